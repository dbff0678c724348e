"""/events: a stream of /status documents (server-sent events), one per second, made once for all listeners.

The web server calls `EventStream.refresh` regularly. Once per second, if there are listeners, it makes the document and
wakes them. Each writes the latest document, also if nothing has changed: so the page knows that its figures are
current, and a listener that has left is found out. Nothing is buffered for clients that read slowly. One that falls too
far behind is disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from consumer.engine.figures.statistics import Statistics

MAX_LISTENERS = 32
# Seconds in a row in which a listener was not ready for a message, after which it is disconnected.
MAX_MISSED = 5
# A browser reconnects after two seconds.
_RETRY = b"retry: 2000\n\n"
# X-Accel-Buffering tells nginx not to buffer the stream.
_HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


@dataclass(eq=False)
class _Listener:
    """One open stream."""

    transport: asyncio.Transport
    # Set when there is something to write, or when the stream is over.
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    # How often it was woken since it began its last write.
    missed: int = 0


@dataclass(eq=False)
class EventStream:
    """Sends the document of `make` to all listeners, at most once a second.

    `make` takes a snapshot, or takes one itself if it gets None. `clock` returns monotonic seconds.
    """

    make: Callable[[Statistics | None], bytes]
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._listeners: set[_Listener] = set()
        # The latest document as a message; empty: there is none, or it is out of date.
        self._latest = b""
        # The second in which it was made.
        self._second = 0
        self._ended = False
        # Set when a listener comes.
        self._comes = asyncio.Event()

    async def wait(self, seconds: float, alone: float) -> None:
        """Wait for `seconds`; without a listener for `alone` seconds, or until one comes."""
        if self._listeners:
            await asyncio.sleep(seconds)
            return
        self._comes.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._comes.wait(), alone)

    def refresh(self, statistics: Statistics) -> None:
        """Send the document to the listeners if a new second has begun. Raises what `make` raises."""
        # Made for listeners only, and once for all of them: the cost does not grow with their number.
        if not self._listeners or int(self.clock()) == self._second:
            return
        self._make_latest(statistics)
        for one in self._listeners:
            one.missed += 1
            if one.missed > MAX_MISSED:
                one.transport.abort()  # its `serve` is cancelled then
            one.woken.set()

    def hang_up(self) -> None:
        """End all streams, because there are no valid figures. Listeners may reconnect."""
        self._latest = b""
        while self._listeners:
            one = self._listeners.pop()
            one.woken.set()
            # A write to a client that does not read waits for it, and the stream would not end before.
            if one.transport.get_write_buffer_size():
                one.transport.abort()

    def end(self) -> None:
        """End all streams and accept no more listeners."""
        self._ended = True
        self.hang_up()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve a stream until the listener leaves or falls behind, or the streams are ended."""
        transport = request.transport
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        if self._ended or transport is None or len(self._listeners) >= MAX_LISTENERS:
            text = f"pinstream is stopping, or has {MAX_LISTENERS} listeners already; /status has the same figures\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "5"})
        if not self._listeners or not self._latest:
            # No other listener keeps the document up to date.
            self._make_latest(None)
        listener = _Listener(transport)
        self._listeners.add(listener)
        self._comes.set()
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            await response.write(_RETRY)
            while listener in self._listeners:
                listener.missed = 0
                listener.woken.clear()
                await response.write(self._latest)
                await listener.woken.wait()
        except ConnectionError:
            pass  # the listener left or was disconnected
        finally:
            self._listeners.discard(listener)
        return response

    def _make_latest(self, statistics: Statistics | None) -> None:
        """Make the document, one line of JSON, a server-sent event ``status``."""
        self._second = int(self.clock())
        self._latest = b"event: status\ndata: " + self.make(statistics) + b"\n\n"
