"""Connections to the HTTP server are bounded, in number and in time, so that strangers cannot use up the open files."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from consumer.web import listening as connections
from consumer.web import server
from tests.web.building import Served, busy
from tests.web.listening import WITHIN, listening, running, until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def opened(served: Served, count: int, sent: bytes = b"") -> AsyncIterator[list[Stream]]:
    """Connections that send `sent` and then nothing more."""
    address = urlsplit(served.url)
    streams: list[Stream] = []
    try:
        for _ in range(count):
            stream = await asyncio.open_connection(address.hostname, address.port)
            stream[1].write(sent)
            streams.append(stream)
        yield streams
    finally:
        for _, writer in streams:
            writer.close()


async def is_closed(stream: Stream) -> bool:
    """Wait until the server closes this connection."""
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(stream[0].read(), WITHIN)
    return True


def open_at(served: Served) -> int:
    """How many connections the server holds, the one that this test asks on included."""
    return len(served.server.connections.open())


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "])
async def test_silent_connections_do_not_keep_a_probe_out(sent: bytes) -> None:
    """Above the limit the oldest silent connections are closed, and a new request is answered."""
    maximum = connections.MAX_CONNECTIONS
    async with running(busy) as served, opened(served, maximum + 60, sent) as streams:
        status, _, _ = await served.get("/healthz")
        assert status == 200
        assert await is_closed(streams[0])
        await until(lambda: open_at(served) <= maximum)


async def test_a_connection_that_is_being_answered_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that listens is older than a flood of connections, and keeps its stream."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    async with running(busy) as served, listening(served) as page, opened(served, 40) as streams:
        await page.status()
        assert await is_closed(streams[0])
        await until(lambda: open_at(served) <= 10)
        served.shown.now += 10
        assert await page.message() is not None


async def test_the_limit_holds_where_all_are_being_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners that do not read cannot keep their connections either: the oldest is closed at once."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    ask = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with running(busy) as served, opened(served, 5, ask) as streams:
        for reader, _ in streams:
            await asyncio.wait_for(reader.readuntil(b"data: "), WITHIN)
        status, _, _ = await served.get("/healthz")
        assert status == 200
        assert await is_closed(streams[0])


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nX: "])
async def test_a_request_has_to_be_complete_in_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a complete request is closed when its time is over."""
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 0.05)
    async with running(busy) as served, opened(served, 1, sent) as [(reader, _)]:
        assert await asyncio.wait_for(reader.read(), WITHIN) == b""


async def test_both_addresses_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own address has no limit of its own."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    async with running(busy, page_at=("127.0.0.1", 0)) as served, opened(served, 30) as streams:
        assert await is_closed(streams[0])
        await until(lambda: open_at(served) <= 10)
