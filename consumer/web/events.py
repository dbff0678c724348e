"""/events: a stream of /status documents (server-sent events), one per second, made once for all listeners.

The web server calls `Events.look` regularly. Once per second, if there are listeners, it makes the document and gives
the same bytes to every listener. A listener that falls too far behind is disconnected, so that nothing is buffered for
clients that do not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from consumer.engine.figures.statistics import Statistics

MOST_LISTENERS = 32
# Messages in a row that a listener was not ready for, after which it is disconnected.
MOST_MISSED = 5
# Seconds after which an unchanged document is repeated.
SAY_AGAIN = 5
# A browser reconnects after two seconds.
_RETRY = b"retry: 2000\n\n"
# A comment line, which finds out whether the listener is still there.
_HEARTBEAT = b":\n\n"
# X-Accel-Buffering tells nginx not to buffer the stream.
_HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Events:
    """Sends the document of `make` to all listeners, at most once a second.

    `make` takes a snapshot, or takes one itself if it gets None. `clock` returns monotonic seconds.
    """

    def __init__(self, make: Callable[[Statistics | None], bytes], clock: Callable[[], float]) -> None:
        self._make = make
        self._clock = clock
        self._listeners: set[_Listener] = set()
        # The latest document sent; None: there is none, or it is out of date.
        self._told: bytes | None = None
        self._told_at = 0.0
        self._second = 0
        self._ended = False

    def look(self, statistics: Statistics) -> None:
        """Send the document to the listeners if a new second has begun. Raises what `make` raises."""
        now = self._clock()
        # Made for listeners only, and once for all of them: the cost does not grow with their number.
        if not self._listeners or int(now) == self._second:
            return
        self._second = int(now)
        document = self._make(statistics)
        message = _HEARTBEAT
        # An unchanged document is repeated too, so that the page knows that its figures are current.
        if document != self._told or now - self._told_at >= SAY_AGAIN:
            self._told, self._told_at = document, now
            message = _event(document)
        for one in tuple(self._listeners):  # a listener that is disconnected removes itself
            one.tell(message)

    def hang_up(self) -> None:
        """End all streams, because there are no valid figures. Listeners may reconnect."""
        self._told = None
        # First out of the set: a message would take the place of the end.
        while self._listeners:
            self._listeners.pop().hang_up()

    def end(self) -> None:
        """End all streams and accept no more listeners."""
        self._ended = True
        self.hang_up()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve a stream until the listener leaves or falls behind, or the streams are ended."""
        transport = request.transport
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        if self._ended or transport is None or len(self._listeners) >= MOST_LISTENERS:
            text = f"pinstream is stopping, or has {MOST_LISTENERS} listeners already; /status has the same figures\n"
            return web.Response(status=503, text=text, headers={"Retry-After": "5"})
        if not self._listeners or self._told is None:
            # No other listener keeps the document up to date.
            self._told_at = self._clock()
            self._second = int(self._told_at)
            self._told = self._make(None)
        listener = _Listener(transport)
        listener.tell(_event(self._told))
        self._listeners.add(listener)
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            await response.write(_RETRY)
            while (message := await listener.next()) is not None:
                await response.write(message)
        except ConnectionError:
            pass  # the listener left or was disconnected
        finally:
            self._listeners.discard(listener)
        return response


class _Listener:
    """One open stream."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # There is room for one message: a newer document replaces one that is still waiting. None ends the stream.
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._missed = 0

    def tell(self, message: bytes) -> None:
        """Queue `message`; if the one before is still waiting, count a missed message."""
        if self._messages.full():
            self._missed += 1
            if self._missed >= MOST_MISSED:
                self._transport.abort()
            if message == _HEARTBEAT:
                return  # the document that waits does the same, and says more
            self._messages.get_nowait()
        self._messages.put_nowait(message)

    def hang_up(self) -> None:
        """End the stream; abort the connection if the listener does not read."""
        if self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(None)
        # A write to a client that does not read waits for it, and the stream would not end before.
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    async def next(self) -> bytes | None:
        """Wait for the next message; None: the stream is over."""
        message = await self._messages.get()
        self._missed = 0
        return message


def _event(document: bytes) -> bytes:
    """Encode a server-sent event ``status``; `document` is one line of JSON."""
    return b"event: status\ndata: " + document + b"\n\n"
