"""What is read of a request, and what is left of one that is none.

Theory of operation. Whoever reaches the port can send anything, also without the token. `Requests` is aiohttp's end of
a connection, with these bounds:

* At most `AT_ONCE` bytes are read in one turn of the loop, into one buffer that all connections share. (asyncio reads
  256 KiB by itself, and parsing as much, for many connections, may take the loop a second.)
* At most `MAX_HEAD` bytes are read before the headers of a request are complete; then the connection is refused.
* No request of ours has a body, so what follows the headers of one that has is discarded unparsed, and the
  connection is closed after the answer. The same is done after bytes that are no HTTP.
* A parser's error is cut from its traceback when it is seen: its frames hold the bytes that were read, and they and
  the error refer to each other. Such a circle stays until the garbage collector runs, which is rare in this process.
  So does the task of a client that leaves before its answer is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

AT_ONCE: Final = 4 * 1024
MAX_HEAD: Final = 16 * 1024
# Seconds for which a refused client may go on sending: if it were closed before, it might not get the answer.
LINGER: Final = 1.0
_BUFFER: Final = memoryview(bytearray(AT_ONCE))
_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"the headers of a request may have 16 KiB\n"
)


class Requests(web.RequestHandler, asyncio.BufferedProtocol):
    """A connection; `more` as aiohttp's `RequestHandler` takes it."""

    def __init__(self, server: web.Server, **more: Any) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # None turns it off
            lingering_time=LINGER,
            auto_decompress=False,
            **more,
        )
        self._room = MAX_HEAD
        self._is_over = False
        """Whether nothing that comes is looked at any more."""

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where asyncio puts what it reads; `buffer_updated` takes it before anything else is read."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse what was read, within the bounds."""
        if self._is_over:
            return
        queued = len(self._messages)
        super().data_received(data)
        self._room -= len(data)
        for place, (message, payload) in enumerate(list(self._messages)[queued:], queued):
            self._room = MAX_HEAD
            error = getattr(message, "exc", None)  # of a message that stands for no request
            if error is not None:
                drop_frames(error)
                # With a body that never ends, so that aiohttp lingers after the answer.
                self._messages[place] = (message, StreamReader(self, AT_ONCE, loop=self._loop))
            self._is_over = error is not None or not payload.is_eof()
        if self._room < 0:
            self._refuse()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Cancel what is being answered, and free what that leaves."""
        answering = self._task_handler
        super().connection_lost(exc)
        if answering is not None:
            answering.add_done_callback(_forget)

    def _refuse(self) -> None:
        self._is_over = True
        if self._request_in_progress or self.transport is None:
            self.force_close()  # another answer is being written
            return
        self.transport.write(_TOO_LONG)
        self._loop.call_later(LINGER, self.force_close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request, without repeating it. It is the client's mistake, and not logged."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        answer = web.Response(status=status, text="this is no HTTP request that pinstream understands\n")
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error of ours: that a body is not what it should be is the client's mistake."""
        error = kw.get("exc_info")
        if isinstance(error, web.RequestPayloadError):
            drop_frames(error)
        else:
            super().log_exception(*args, **kw)


def _forget(task: asyncio.Task[None]) -> None:
    # A task that is cancelled keeps the error, which refers to its frames, and one of those to the task.
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()


def drop_frames(error: BaseException) -> None:
    """Release the frames that an error came through."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
