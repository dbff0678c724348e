"""The embedded broker: enough of Kafka for the demo, and for tests on a machine without Java.

librdkafka contains a mock cluster (`test.mock.num.brokers`) that speaks the real protocol on loopback sockets:
produce, fetch, consumer groups (classic and KIP-848), commits with leader epochs, transactions. It runs inside a
client, so it gets its own process (``python -m consumer.demo.broker``): the broker must survive when a consumer is
killed. The process prints ``bootstrap.servers`` as one line and ends when its standard input closes, so it never
outlives its parent, even after a SIGKILL.

Its limits, each measured in tests/demo/test_broker.py:

* A topic is created when a producer first asks for it, always with `PARTITIONS` partitions. The admin API cannot create
  topics.
* A partition keeps about its last `LOG_BYTES` bytes. Older records are dropped **even if they are unread**, and a
  consumer behind that point gets an offset out of range. So a producer must not be more than `LOG_BYTES` per partition
  ahead of the consumer's committed offset.
* Everything is in memory. A classic group's first rebalance takes about three seconds.
* No transaction is ever filtered, nothing is compacted, nothing authenticates.

The mock cluster ends a transaction with a control batch whose checksum is 0 (librdkafka's `rdkafka_mock.c`), which a
client that checks checksums, as pinstream does, cannot read past. So clients do not talk to it directly: `_Front`, in
the same process, passes requests and answers on, and puts the right checksum into these batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import KafkaError

PARTITIONS = 4
"""Partitions of every topic; the mock cluster's own default."""
LOG_BYTES = 5 * 1024 * 1024
"""Bytes that a partition keeps; the mock cluster's own limit."""

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class EmbeddedBroker:
    """The mock cluster in a child process: ``async with EmbeddedBroker() as broker: broker.bootstrap_servers``.

    Without an event loop, use `open` and `shut`.
    """

    def __init__(self) -> None:
        self.bootstrap_servers = ""
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> Self:
        """Start the process and wait for its address. Raises `KafkaError` if there is none in time."""
        await asyncio.to_thread(self.open)
        return self

    async def stop(self) -> None:
        """End the process, and wait for it (a few seconds at most)."""
        await asyncio.to_thread(self.shut)

    def open(self) -> Self:
        """Like `start`, but blocking."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumer.demo.broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only the demo, which ends the broker last
        )
        self.bootstrap_servers = _first_line(self._process, _START_SECONDS)
        if not self.bootstrap_servers:
            self.shut()
            raise KafkaError(
                "the embedded broker did not start: run `python -m consumer.demo.broker` to see why"
            )
        return self

    def shut(self) -> None:
        """Like `stop`, but blocking."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)

    @property
    def pid(self) -> int | None:
        """The id of the child process; None if there is none."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _first_line(process: subprocess.Popen[str], seconds: float) -> str:
    """Return the first line of the process's output, or ``""`` if it ends or prints nothing within `seconds`."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    try:
        return process.stdout.readline().strip() if process.stdout is not None else ""
    finally:
        alarm.cancel()


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
                return with_checksums(answer)
            return answer if key is None else self._with_own_address(answer)

        passing = [
            asyncio.create_task(_pass_on(client, to_cluster, note)),
            asyncio.create_task(_pass_on(cluster, to_client, change)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for one in passing:
            one.cancel()
        to_client.close()
        to_cluster.close()

    def _with_own_address(self, answer: bytes) -> bytes:
        host = b"127.0.0.1"
        return answer.replace(host + self._behind.to_bytes(4, "big"), host + self.port.to_bytes(4, "big"))


async def _pass_on(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, change: Callable[[bytes], bytes]
) -> None:
    """Forward messages (a length, then the bytes) until one side has closed."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            size = await source.readexactly(4)
            message = await source.readexactly(int.from_bytes(size, "big"))
            target.write(size + change(message))
            await target.drain()


def with_checksums(answer: bytes) -> bytes:
    """Return the answer to a fetch with the correct checksum in each control batch."""
    at = answer.find(_CONTROL_BATCH)
    if at < 0:
        return answer
    changed = bytearray(answer)
    while at >= 0:
        batch = at - _BEFORE_MAGIC
        checked = answer[batch + _CHECKED : batch + _BATCH_BYTES]
        if answer[batch + 8 : batch + 12] == (_BATCH_BYTES - 12).to_bytes(4, "big"):
            changed[at + 1 : at + 5] = crc32c(checked).to_bytes(4, "big")
        at = answer.find(_CONTROL_BATCH, at + 1)
    return bytes(changed)


@functools.lru_cache(1024)
def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum, computed bit by bit because these batches are few and small."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def run_broker() -> int:
    """The child process: create the cluster, print the address of its front, wait for the end of standard input."""
    config: dict[str, str | int | float | bool] = {"test.mock.num.brokers": "1", "log_level": 0}
    client = AdminClient(config)
    try:
        [broker] = client.list_topics(timeout=_START_SECONDS / 2).brokers.values()
    except KafkaException as error:
        sys.stderr.write(f"the mock cluster does not answer: {error.args[0].str()}\n")
        return 1

    async def until_input_ends() -> None:
        front = _Front(broker.port)
        await front.start()
        sys.stdout.write(f"127.0.0.1:{front.port}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)
        # Without the interpreter's tidying: destroying the client would wait for its threads.
        os._exit(0)

    asyncio.run(until_input_ends())
    return 0


if __name__ == "__main__":
    os._exit(run_broker())
