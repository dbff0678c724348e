"""A TCP proxy of the tests, between the process under test and its API: it carries bytes, or misbehaves on command.

Theory of operation. It listens on one port of loopback for its whole life, in the thread of the tests' servers, and
pumps each connection to the server behind it, one task per direction. Its `Mode` says what happens to connections:

========  =================================================================================================
FORWARD   carried
HALF_OPEN stay open on both sides and carry nothing more, like those of a router that lost its memory: what
          was sent into them is gone for good, also when the mode changes again. New ones are accepted, deaf.
MUTE      what the client says is carried, what the server answers is not: the client cannot know
DROP      reset, the new ones as soon as they are made
REFUSE    reset, and nobody listens; the port stays ours, so that nobody else gets it
========  =================================================================================================

A change of mode concerns every connection there is; but one that has gone deaf or mute stays so, whatever comes.
With a TLS context it speaks TLS with its clients, as the platform's edge does, and plain TCP with the server. The
context may be changed on the same port, as when someone installs another certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from enum import Enum
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.end_to_end.api import Loop

_MAX_HEARD = 1 << 20
_PIECE = 64 * 1024


class Mode(Enum):
    """What happens to connections; see above."""

    FORWARD = "forward"
    HALF_OPEN = "half-open"
    MUTE = "mute"
    DROP = "drop"
    REFUSE = "refuse"


class Proxy:
    """A proxy in front of `behind`, a base URL; a context manager. Its own base URL is `url`."""

    def __init__(self, loop: Loop, behind: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._loop = loop
        self._behind = urlsplit(behind)
        self._tls = tls
        self._mode = Mode.FORWARD
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self._links: set[_Link] = set()
        self._port = 0
        self.heard = bytearray()
        """The first MiB that clients sent, in order, decrypted where the proxy speaks TLS."""
        self.connections = 0
        """How many connections were accepted and, where the proxy speaks TLS, trusted."""

    @property
    def url(self) -> str:
        """Its URL for clients: ``http``, or ``https`` with a TLS context."""
        return f"{'https' if self._tls is not None else 'http'}://{self.place}{self._behind.path}"

    @property
    def place(self) -> str:
        """Its address and port."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())

    def set(self, mode: Mode) -> None:
        """From now on behave like this."""
        self._do(self._change(mode, self._tls))

    def speak(self, tls: ssl.SSLContext | None) -> None:
        """From now on use this TLS context for new connections, None for plain TCP; present ones are dropped."""
        self._do(self._change(self._mode, tls, renew=True))

    @property
    def links(self) -> int:
        """How many client connections are open."""
        return len(self._links)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.call(work)

    # -- in the servers' thread

    async def _open(self) -> None:
        self._hold_port()
        await self._listen()

    async def _close(self) -> None:
        self._unlisten()
        self._reset_all()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _change(self, mode: Mode, tls: ssl.SSLContext | None, *, renew: bool = False) -> None:
        self._mode, self._tls = mode, tls
        refuse = mode is Mode.REFUSE
        if renew or refuse:
            self._unlisten()
        if renew or refuse or mode is Mode.DROP:
            self._reset_all()
        for link in self._links:
            link.obey(mode)
        if self._server is None and not refuse:
            await self._listen()

    def _hold_port(self) -> None:
        """Bind without listening: connections are refused, and no other program gets the port."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self._port))
        self._port = int(self._socket.getsockname()[1])

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._socket, ssl=self._tls)
        self._socket = None

    def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._hold_port()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(self._mode, reader, writer)
        self._links.add(link)
        try:
            if self._mode is Mode.DROP:
                link.reset()
            else:
                await link.run(self._behind.hostname or "", self._behind.port or 0, self._hear)
        finally:
            link.reset()
            self._links.discard(link)

    def _hear(self, piece: bytes) -> None:
        self.heard += piece[: _MAX_HEARD - len(self.heard)]


class _Link:
    """One client's connection, and ours to the server behind."""

    def __init__(self, mode: Mode, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._other: asyncio.StreamWriter | None = None
        self._deaf = self._mute = False
        self.obey(mode)

    def obey(self, mode: Mode) -> None:
        """Go deaf or mute, if the mode says so; a link stays that way."""
        self._deaf = self._deaf or mode is Mode.HALF_OPEN
        self._mute = self._mute or mode in (Mode.HALF_OPEN, Mode.MUTE)

    def reset(self) -> None:
        """End the link at once, on both sides."""
        for writer in self._writers():
            writer.transport.abort()

    async def run(self, host: str, port: int, hear: Callable[[bytes], None]) -> None:
        """Carry bytes until the client ends the link or, while it still listens, the server does."""
        with contextlib.suppress(OSError):
            reader, self._other = await asyncio.open_connection(host, port)
            answers = asyncio.create_task(self._answer(reader))
            try:
                while piece := await self._reader.read(_PIECE):
                    hear(piece)
                    if not self._deaf:
                        self._other.write(piece)
                        await self._other.drain()
            finally:
                answers.cancel()
                await asyncio.wait([answers])

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if not self._mute:
                    self._writer.write(piece)
                    await self._writer.drain()
            if not self._mute:
                self._writer.close()  # a deaf one stays open: nobody can tell its client that the server left

    def _writers(self) -> Iterator[asyncio.StreamWriter]:
        yield self._writer
        if self._other is not None:
            yield self._other
