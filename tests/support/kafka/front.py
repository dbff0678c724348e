"""A front for the demo's embedded broker: the checksums that its transactions lack.

The mock cluster ends a transaction with a control batch whose checksum is 0 (librdkafka's `rdkafka_mock.c`), which a
client that checks checksums, as pinstream does, cannot read past. So the tests' clients do not talk to it directly: a
process of its own (``python -m tests.support.kafka.front``) passes requests and answers on, and puts the right checksum
into these batches. Like the broker, it prints its address and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from consumer.demo.broker import embedded_broker
from tests.support.kafka.raw import crc32c


@contextlib.contextmanager
def fronted_broker() -> Iterator[str]:
    """The embedded broker behind a front; yields its bootstrap servers."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.kafka.front"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the embedded broker did not start"
        yield address


_FETCH, _METADATA, _FIND_COORDINATOR = 1, 3, 10
"""API keys of the requests whose answers are changed: they contain batches or the broker's address."""
_CONTROL_BATCH: Final = struct.pack(">biHiqq", 2, 0, 0x30, 0, 0, 0)
"""A control batch of the mock cluster from its magic byte on: no checksum, transactional and control, no times."""
_BEFORE_MAGIC: Final = 16
_CHECKED: Final = 21
"""Position in a batch from which the checksum is computed."""
_BATCH_BYTES: Final = 78


class _Front:
    """The port that clients connect to.

    It forwards messages to the mock cluster at the loopback port `behind`, and back.
    """

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._server = server  # a server that nothing refers to is closed

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        cluster, to_cluster = await asyncio.open_connection("127.0.0.1", self._behind)
        asked: dict[bytes, int] = {}
        """Correlation id -> API key of the requests whose answers are changed."""

        def note(request: bytes) -> bytes:
            key = int.from_bytes(request[:2], "big")
            if key in (_FETCH, _METADATA, _FIND_COORDINATOR):
                asked[request[4:8]] = key
            return request

        def change(answer: bytes) -> bytes:
            key = asked.pop(answer[:4], None)
            if key == _FETCH:
                return _with_checksums(answer)
            return answer if key is None else self._with_own_address(answer)

        passing = [
            asyncio.create_task(_forward(client, to_cluster, note)),
            asyncio.create_task(_forward(cluster, to_client, change)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for one in passing:
            one.cancel()
        to_client.close()
        to_cluster.close()

    def _with_own_address(self, answer: bytes) -> bytes:
        host = b"127.0.0.1"
        return answer.replace(host + self._behind.to_bytes(4, "big"), host + self.port.to_bytes(4, "big"))


async def _forward(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, change: Callable[[bytes], bytes]
) -> None:
    """Forward messages (a length, then the bytes) until one side has closed."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            size = await source.readexactly(4)
            message = await source.readexactly(int.from_bytes(size, "big"))
            target.write(size + change(message))
            await target.drain()


def _with_checksums(answer: bytes) -> bytes:
    """Return the answer to a fetch with the correct checksum in each control batch."""
    at = answer.find(_CONTROL_BATCH)
    if at < 0:
        return answer
    changed = bytearray(answer)
    while at >= 0:
        batch = at - _BEFORE_MAGIC
        checked = answer[batch + _CHECKED : batch + _BATCH_BYTES]
        if answer[batch + 8 : batch + 12] == (_BATCH_BYTES - 12).to_bytes(4, "big"):
            changed[at + 1 : at + 5] = _checksum(checked).to_bytes(4, "big")
        at = answer.find(_CONTROL_BATCH, at + 1)
    return bytes(changed)


_checksum = lru_cache(1024)(crc32c)


async def _serve() -> None:
    async with embedded_broker() as servers:
        front = _Front(int(servers.rpartition(":")[2]))
        await front.start()
        print(f"127.0.0.1:{front.port}", flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_serve())
