"""The stream of /status documents (server-sent events): one document a second, made once for all listeners.

Theory of operation. Whoever owns an `Events` shows it the time again and again; once in each second it makes the
document, if anybody listens, and hands the same bytes to every listener. A document that has not changed is said
again every few seconds, so that a page knows that the line is alive; in between a comment finds out who has gone.

Each listener has room for one message. One that comes while another still waits takes its place: what is old is of
no use. Who has fallen too far behind is cut off, with all that was on its way to him: nothing is stored up for those
who do not read. A browser comes back by itself, two seconds later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from consumer.engine.statistics import Statistics

MOST_LISTENERS = 32
MOST_MISSED = 5
"""Messages in a row that a listener was not ready to take; it is cut off at that many."""
SAY_AGAIN = 5
"""Seconds after which a document that has not changed is said again."""
_RETRY = b"retry: 2000\n\n"
_HEARTBEAT = b":\n\n"
_HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
"""The second one tells nginx not to collect what should be seen at once."""


class Events:
    """Tells all listeners the document that `make` gives of a snapshot, or without one of now, at most once a second.

    `clock` in monotonic seconds.
    """

    def __init__(self, make: Callable[[Statistics | None], bytes], clock: Callable[[], float]) -> None:
        self._make = make
        self._clock = clock
        self._listeners: set[_Listener] = set()
        self._told: bytes | None = None
        """The document that the listeners have; None: they have none, or it is too old."""
        self._told_at = 0.0
        self._second = 0
        self._ended = False

    def look(self, statistics: Statistics) -> None:
        """Tell the listeners how things are, if a new second has begun. Raises what `make` raises."""
        now = self._clock()
        if not self._listeners or int(now) == self._second:
            return
        self._second = int(now)
        document = self._make(statistics)
        if document == self._told and now - self._told_at < SAY_AGAIN:
            message = _HEARTBEAT
        else:
            message = self._message(document, now)
        for one in tuple(self._listeners):
            one.tell(message)

    def hang_up(self) -> None:
        """End all streams: they have nothing true to say. Listeners may come back."""
        self._told = None
        for one in tuple(self._listeners):
            one.hang_up()

    def end(self) -> None:
        """End all streams, and take no more listeners."""
        self._ended = True
        self.hang_up()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The stream, until the listener goes or falls behind, or the streams are ended."""
        transport = request.transport
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        if self._ended or transport is None or len(self._listeners) >= MOST_LISTENERS:
            text = f"stopping, or {MOST_LISTENERS} listen already; /status has the same\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "5"})
        listener = _Listener(transport)
        listener.tell(self._first())
        self._listeners.add(listener)
        try:
            return await _stream(request, listener)
        finally:
            self._listeners.discard(listener)

    def _first(self) -> bytes:
        """What a new listener hears: what the others have heard, or, without any, how things are now."""
        document = self._told if self._listeners else None
        if document is None:
            now = self._clock()
            self._second = int(now)
            return self._message(self._make(None), now)
        return _event(document)

    def _message(self, document: bytes, now: float) -> bytes:
        self._told, self._told_at = document, now
        return _event(document)


async def _stream(request: web.Request, listener: _Listener) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    try:
        await response.write(_RETRY)
        while (message := await listener.next()) is not None:
            await response.write(message)
    except ConnectionError:
        pass  # gone, or cut off
    return response


class _Listener:
    """One open stream."""

    __slots__ = ("_message", "_missed", "_over", "_transport", "_wake")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._message: bytes | None = None
        self._missed = 0
        self._over = False
        self._wake = asyncio.Event()

    def tell(self, message: bytes) -> None:
        """Have it sent, or take note that the listener has not even taken the one before."""
        if self._message is not None:
            self._missed += 1
            if self._missed >= MOST_MISSED:
                self._transport.abort()
            if message == _HEARTBEAT:
                return
        self._message = message
        self._wake.set()

    def hang_up(self) -> None:
        """End the stream; at once, if something is still on its way to somebody who does not read."""
        self._over = True
        self._wake.set()
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    async def next(self) -> bytes | None:
        """The next message; None: the stream is over."""
        await self._wake.wait()
        self._wake.clear()
        if self._over:
            return None
        message, self._message, self._missed = self._message, None, 0
        return message


def _event(document: bytes) -> bytes:
    """An event ``status``; the document is JSON in one line."""
    return b"event: status\ndata: " + document + b"\n\n"
