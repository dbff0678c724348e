"""Requests that no honest client sends take no memory and no time, however many of them are sent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from consumer.web.requests import Requests
from tests.web.building import busy
from tests.web.listening import reported, running, until

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
AT_ONCE = 190
"""Open connections of a flood: nearly as many as the server allows."""

_SERVER = """
import asyncio, logging, sys, time
from consumer.app.run import tune_memory
from consumer.web.server import WebServer
from tests.web.building import INFO, busy

async def serve():
    shown = busy()
    server = WebServer(lambda: shown, lambda: INFO, host="127.0.0.1", port=0, token=lambda: "secret")
    print((await server.start()).page, flush=True)
    slowest, before = 0.0, time.thread_time()
    while True:
        await asyncio.sleep(0.005)
        before, took = time.thread_time(), time.thread_time() - before
        if took > slowest:
            slowest = took
            print(f"turn {took:.3f}", file=sys.stderr, flush=True)

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
tune_memory()
asyncio.run(serve())
"""

PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
BOMB = gzip.compress(bytes(32 * MIB))
FLOODS = {
    "a request line without an end": b"GET /" + b"a" * 256 * 1024,
    "lines that are not HTTP": b"\x16\x03\x01 nothing\r\n" * 16_000,
    "a header without an end": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"b" * 256 * 1024,
    "headers without an end": b"GET / HTTP/1.1\r\n"
    + b"".join(b"X%d: %s\r\n" % (n, b"c" * 2000) for n in range(120)),
    "a bad header": b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\x00" + b"d" * 2000 + b"\r\n\r\n",
    "a body of one-byte chunks": CHUNKED + b"\r\n" + b"1\r\ne\r\n" * 40_000,
    "a body whose chunks are wrong": CHUNKED + b"\r\n" + b"zz\r\n" * 60_000,
    "a body that is no gzip": b"%sContent-Encoding: gzip\r\n\r\n400\r\n%s\r\n0\r\n\r\n"
    % (CHUNKED, b"f" * 1024),
    "a body that unpacks to much": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
    + b"Content-Length: %d\r\n\r\n" % len(BOMB)
    + BOMB,
    "paths that are none": b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 90,
    "pipelined requests": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5_000,
}


@dataclass
class FloodTarget:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    host: str
    port: int

    def resident(self) -> int:
        """Return the bytes that it has in memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    async def send(self, data: bytes) -> bytes:
        """Send these bytes on a connection of their own, and return what comes until it is closed."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        answer = b""
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(64 * 1024), 5)
        writer.transport.abort()
        return answer

    async def flood(self, data: bytes) -> None:
        """Send the same `AT_ONCE` times at once, twice."""
        for _ in range(2):
            await asyncio.gather(*(self.send(data) for _ in range(AT_ONCE)))


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[FloodTarget]:
    """A server as `run` has it, with its settings of the collector and the allocator."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SERVER,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = urlsplit((await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip())
        assert url.hostname is not None
        assert url.port is not None
        yield FloodTarget(process, url.hostname, url.port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_no_flood_of_bad_requests_takes_memory_or_time() -> None:
    """4,180 connections with requests that are none, or with bodies that no request needs, 190 at once: resident memory
    grows by less than 48 MiB, no turn of the loop takes long, nothing is logged, and a probe is answered afterwards."""
    async with served() as target:
        assert b"\r\n\r\nok\n" in await target.send(PROBE)
        before = target.resident()
        for name, data in FLOODS.items():
            await target.flood(data)
            assert target.resident() - before < 48 * MIB, name
            assert b"\r\n\r\nok\n" in await target.send(PROBE), name
        target.process.kill()
        assert target.process.stderr is not None
        *_, slowest = reported = (await target.process.stderr.read()).decode().splitlines()
        assert all(line.startswith("turn ") for line in reported), reported[:3]
        assert float(slowest.removeprefix("turn ")) < 0.5  # of processor time: a busy machine changes nothing


async def test_requests_of_clients_that_read_no_answer_are_not_kept() -> None:
    """Once the answers fill what the system buffers, no more requests are read: memory grows by less than 48 MiB."""
    async with served() as target:
        before = target.resident()
        writers = [(await asyncio.open_connection(target.host, target.port))[1] for _ in range(5)]
        for writer in writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport of both ways has it
            writer.write(FLOODS["pipelined requests"] * 60)
        left, same = [1], 0
        while any(left) and same < 20:
            await asyncio.sleep(0.05)
            now = [writer.transport.get_write_buffer_size() for writer in writers]
            left, same = now, same + 1 if now == left else 0
            assert target.resident() - before < 48 * MIB
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("name", "size", "status"),
    [
        ("lines that are not HTTP", 4_000, b"400"),
        ("a request line without an end", 8_197, b"400"),
        ("a bad header", 4_000, b"400"),
        ("headers without an end", 18_000, b"431"),
    ],
)
async def test_a_refusal_says_so_and_ends_the_connection(name: str, size: int, status: bytes) -> None:
    """What is no request is answered with 400 or 431, without a word of what was sent, and the connection ends."""
    async with running(busy) as served_here:
        answer = await reported(served_here, FLOODS[name][:size])
        assert answer.split()[1] == status
        assert len(answer) < 300


@pytest.mark.parametrize("size", [1, 300, 30_000])
async def test_a_client_that_leaves_leaves_nothing(size: int) -> None:
    """Whenever a client leaves, nothing of its connection stays that only the garbage collector would free."""

    def connected() -> list[Requests]:
        return [one for one in gc.get_objects() if isinstance(one, Requests)]

    def is_connected() -> bool:
        return any(one not in earlier for one in connected())

    async with running(busy) as served_here:
        at = urlsplit(served_here.url)
        gc.collect()
        earlier = connected()  # those of other tests of this process
        gc.disable()
        try:
            for data in FLOODS.values():
                _, writer = await asyncio.open_connection(at.hostname, at.port)
                writer.write(data[:size])
                await until(is_connected)
                # Into the parser and, if it is a request, into the answer; any moment is a case.
                await asyncio.sleep(0.02)
                writer.transport.abort()
                await until(lambda: not is_connected())
        finally:
            gc.enable()


async def test_a_body_takes_nothing_of_its_answer() -> None:
    """A request with a body is answered, says that the connection ends, and another one is answered as before."""
    async with running(busy) as served_here:
        async with served_here.session.post(f"{served_here.url}healthz", data=b"x" * 100_000) as answer:
            assert answer.status == 405
            assert answer.headers["Connection"] == "close"
        long = {"X-Long": "y" * 8_000}
        async with served_here.session.get(f"{served_here.url}healthz", headers=long) as answer:
            assert answer.status == 200
