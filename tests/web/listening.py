"""A running server with what the test sets, and a listener of its stream that reads one message at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from consumer.engine.figures.statistics import Statistics
from tests.web.building import Served, Shown, make_server

WITHIN = 60.0
"""Time limit of any wait in seconds, far above what it takes."""
QUICK = 0.005
"""Seconds between two checks of the server; the clock stands still until the test sets it."""


@contextlib.asynccontextmanager
async def running(scene: Callable[[], Statistics], **more: Any) -> AsyncIterator[Served]:
    """A server on a free port of loopback; `more` as `WebServer` takes it."""
    shown = Shown(scene())
    server = make_server(shown, **({"check_every": QUICK} | more))
    url = (await server.start()).page
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            yield Served(url, server, session, shown)
    finally:
        await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, at most `WITHIN` seconds."""
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.001)


async def checked(shown: Shown, times: int = 2) -> None:
    """Wait until the server has taken this many more snapshots."""
    enough = shown.checks + times
    await until(lambda: shown.checks >= enough)


async def reported(served: Served, request: bytes) -> bytes:
    """The server's whole answer to these bytes, until it closes the connection."""
    at = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(request)
    async with asyncio.timeout(WITHIN):
        answer = await reader.read()
    writer.close()
    return answer


async def asked(served: Served, path: str, *headers: str, host: str = "x") -> bytes:
    """The answer to a request for exactly this path: clients would normalise it."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return await reported(served, "\r\n".join(lines).encode())


@dataclass(slots=True)
class Listener:
    """One open stream of /events."""

    answer: aiohttp.ClientResponse
    _rest: bytearray = field(default_factory=bytearray)

    async def message(self) -> str | None:
        """The next message, without the empty line at its end; None: the stream is over."""
        seen = 0
        async with asyncio.timeout(WITHIN):
            while (end := self._rest.find(b"\n\n", max(0, seen - 1))) < 0:
                seen = len(self._rest)
                part = await self.answer.content.readany()
                if not part:
                    return None
                self._rest += part
        message = self._rest[:end]
        del self._rest[: end + 2]
        return message.decode()

    async def status(self) -> dict[str, Any]:
        """The document of the next event."""
        message = await self.message()
        assert message is not None
        name, data = message.splitlines()
        assert name == "event: status"
        document: dict[str, Any] = orjson.loads(data.removeprefix("data: "))
        return document

    async def opened(self) -> Self:
        """Read the first line, which says when to reconnect."""
        assert await self.message() == "retry: 2000"
        return self


@contextlib.asynccontextmanager
async def listening(served: Served, headers: Mapping[str, str] | None = None) -> AsyncIterator[Listener]:
    """A listener, ready for the first document."""
    async with served.session.get(served.url + "events", headers=headers) as answer:
        assert answer.status == 200
        yield await Listener(answer).opened()
