"""A proxy for the way out, as companies have: it tunnels (``CONNECT``), forwards plain HTTP, or misbehaves.

Names need not exist: `routes` says where a host of the tests really is, so that a call that arrives has gone through
here. What it does with the next request is its `mode`, which a test may change at any time:

========== ==========================================================================================
TUNNEL     what a proxy is for; with `login` only for who shows it, the others get a 407
REFUSE     403 with a page
GATEWAY    502 with a page: the proxy itself cannot get there
PAGE       200 with a page, in place of a tunnel or of the answer
SILENT     takes the request and says nothing
DEAF       opens the tunnel and carries nothing
CUT        opens the tunnel, and ends it when the client has sent a request through it
INSPECT    opens the tunnel, speaks TLS in the server's place with a certificate of its own `authority`
========== ==========================================================================================

A change of mode ends the tunnels that are open.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Mapping
from enum import Enum
from typing import Final
from urllib.parse import urlsplit

from tests.support.certificates import Authority

PAGE: Final = b"<html><head><title>Access to this site is blocked</title></head><body>Ask IT.</body></html>"
_PIECE: Final = 64 * 1024
# Longer than the handshake, of which a post-quantum key (OpenSSL 3.5) is most; shorter than that and a request.
_CUT_AFTER: Final = 2200


class WayOut(Enum):
    """What the proxy does; see above."""

    TUNNEL = "tunnel"
    REFUSE = "refuse"
    GATEWAY = "gateway"
    PAGE = "page"
    SILENT = "silent"
    DEAF = "deaf"
    CUT = "cut"
    INSPECT = "inspect"


_ANSWERS: Final = {
    WayOut.REFUSE: "403 Forbidden",
    WayOut.GATEWAY: "502 Bad Gateway",
    WayOut.PAGE: "200 OK",
}


class OutProxy:
    """See the module. `routes`: host -> its real address and port. `tls`: the proxy itself speaks HTTPS."""

    def __init__(
        self,
        routes: Mapping[str, tuple[str, int]],
        *,
        login: str | None = None,
        authority: Authority | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.routes = dict(routes)
        self.login = login
        self.mode = WayOut.TUNNEL
        self.asked: list[str] = []
        """``CONNECT host:port``, or ``POST http://host:port/path``, in order."""
        self.refused = 0
        """How many requests got a 407."""
        self.port = 0
        self._authority = authority
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def place(self) -> str:
        """Its address and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The value for HTTPS_PROXY."""
        return f"{'http' if self._tls is None else 'https'}://{self.place}"

    async def start(self) -> str:
        """Listen, on the same port if it had one before. Returns `url`."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.url

    async def stop(self) -> None:
        """Stop listening; open connections end."""
        if self._server is not None:
            self._server.close()
        self._end_all()

    async def set(self, mode: WayOut, login: str | None = None) -> None:
        """From now on behave like this."""
        self.mode, self.login = mode, login
        self._end_all()

    def _end_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            # A client that leaves in the middle is no error of a test.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._serve(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if self.mode in (WayOut.CUT, WayOut.SILENT) else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ", 2)
        self.asked.append(f"{method} {target}")
        mode = self.mode
        if mode is WayOut.SILENT:
            await reader.read()
            return
        if self.login is not None and _login(lines) != self.login:
            self.refused += 1
            await _answer(
                writer, '407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="tests"'
            )
        elif mode in _ANSWERS:
            await _answer(writer, _ANSWERS[mode])
        elif method == "CONNECT":
            await self._tunnel(target, mode, reader, writer)
        else:
            await self._forward(method, target, lines, reader, writer)

    async def _tunnel(
        self, target: str, mode: WayOut, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, _, port = target.rpartition(":")
        place = self.routes.get(host.strip("[]"), (host.strip("[]"), int(port)))
        upstream_tls: ssl.SSLContext | None = None
        if mode is WayOut.INSPECT:
            upstream_tls = ssl.create_default_context()
            upstream_tls.check_hostname, upstream_tls.verify_mode = False, ssl.CERT_NONE
        try:
            back, forth = await asyncio.open_connection(*place, ssl=upstream_tls)
        except OSError:
            await _answer(writer, _ANSWERS[WayOut.GATEWAY])
            return
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            if mode is WayOut.DEAF:
                await reader.read()
                return
            if mode is WayOut.INSPECT:
                assert self._authority is not None
                await writer.start_tls(self._authority.server(host=host.strip("[]")))
            await _carry(reader, writer, back, forth, _CUT_AFTER if mode is WayOut.CUT else None)
        finally:
            forth.transport.abort()

    async def _forward(
        self,
        method: str,
        target: str,
        lines: list[str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(target)
        place = self.routes.get(url.hostname or "", (url.hostname or "", url.port or 80))
        kept = [one for one in lines if one and not one.lower().startswith(("proxy-", "connection:"))]
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        back, forth = await asyncio.open_connection(*place)
        try:
            # One request a connection: the next may be for another host.
            head = [f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]
            forth.write("\r\n".join(head).encode("latin-1"))
            await _carry(reader, writer, back, forth, _CUT_AFTER if self.mode is WayOut.CUT else None)
        finally:
            forth.transport.abort()


def _login(lines: list[str]) -> str | None:
    """``user:password`` as the client sends it."""
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "proxy-authorization" and value.strip().startswith("Basic "):
            return base64.b64decode(value.split()[1]).decode()
    return None


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    head = f"HTTP/1.1 {status}\r\nServer: squid/6.6\r\nContent-Type: text/html\r\n"
    writer.write(f"{head}Content-Length: {len(PAGE)}\r\nConnection: close\r\n\r\n".encode() + PAGE)
    await writer.drain()


async def _carry(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    back: asyncio.StreamReader,
    forth: asyncio.StreamWriter,
    maximum: int | None,
) -> None:
    """Carry bytes both ways until either side ends, or `maximum` bytes came from the client."""

    async def there() -> None:
        carried = 0
        while piece := await reader.read(_PIECE):
            carried += len(piece)
            if maximum is not None and carried > maximum:
                return
            forth.write(piece)
            await forth.drain()

    async def home() -> None:
        while piece := await back.read(_PIECE):
            writer.write(piece)
            await writer.drain()

    tasks = [asyncio.create_task(there()), asyncio.create_task(home())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
