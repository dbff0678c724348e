"""Limits of HTTP: the number of open connections, and the time a client may take to send a request.

Every client that reaches the address can open connections, even without the token. Each takes a file descriptor, and a
process without free descriptors can neither send events nor answer a probe. So at most `MOST_CONNECTIONS` are open,
over all addresses. A new connection is always accepted; above the limit, the oldest connection that is not being
answered is closed, or the oldest of all. So probes are answered although other clients hold idle connections.

asyncio may accept up to `BACKLOG` connections before the first of them is counted, so for a moment there may be that
many more. aiohttp enforces `REQUEST_TIMEOUT` (``keepalive_timeout``): it closes a connection without a complete request
within that time, counted from its opening or from the last answer.
"""

from __future__ import annotations

import asyncio
import socket
from itertools import chain

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

MOST_CONNECTIONS = 200
"""Far more than page, Prometheus and probes need, and far below 1,024, the usual limit of open files."""
REQUEST_TIMEOUT = 20.0
"""Seconds for a complete request. Longer than most scrape intervals, so that Prometheus reuses its connection."""
BACKLOG = 128


class Connections:
    """The open connections of all addresses that one `WebServer` listens on."""

    def __init__(self) -> None:
        self._servers: list[web.Server] = []
        self._answering: set[object] = set()

    def middleware(self) -> Middleware:
        """Return the middleware that records which connections are being answered. It must be the outermost."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            protocol = request.protocol
            self._answering.add(protocol)
            try:
                return await handler(request)
            finally:
                self._answering.discard(protocol)

        return note

    def count(self, server: web.Server) -> None:
        """Count the connections of `server` too."""
        self._servers.append(server)

    def open(self) -> int:
        """Return the number of open connections."""
        return len(self._open())

    def make_room(self) -> None:
        """Close an older connection if one more would exceed the limit."""
        transports = self._open()
        if len(transports) >= MOST_CONNECTIONS:
            # Each server lists its oldest connection first.
            silent = (one for one in transports if one not in self._answering)
            victim = next(silent, next(iter(transports)))
            transports[victim].abort()  # close() would wait for a client that does not read

    def _open(self) -> dict[web.RequestHandler, asyncio.Transport]:
        all_of_them = chain.from_iterable(server.connections for server in self._servers)
        transports = {one: one.transport for one in all_of_them}
        return {one: at for one, at in transports.items() if at is not None and not at.is_closing()}


class LimitedSite(web.BaseSite):
    """Listens on `host` and `port`, or on the socket `sock`, within the limit of `connections`."""

    def __init__(
        self,
        runner: web.AppRunner,
        connections: Connections,
        host: str,
        port: int,
        sock: socket.socket | None = None,
    ) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._connections = connections
        self._host = host
        self._port = port
        self._sock = sock

    @property
    def name(self) -> str:
        """The address, which aiohttp requires."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises `OSError` if the address is not available."""
        await super().start()
        server = self._runner.server
        assert server is not None  # noqa: S101 - the runner is set up before it gets a site
        self._connections.count(server)

        def protocol() -> asyncio.Protocol:
            self._connections.make_room()
            return server()

        create = asyncio.get_running_loop().create_server
        if self._sock is not None:
            self._server = await create(protocol, sock=self._sock, backlog=BACKLOG)
        else:
            self._server = await create(protocol, self._host, self._port, backlog=BACKLOG)
