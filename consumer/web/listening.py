"""Listening on an address: its notation, its URL, why it is not available, and how many connections are open.

The server listens with this module, and ``pinstream check`` tries the same functions, so that both report the same.

*Limits.* Every client that reaches the address can open connections, even without the token. Each takes a file
descriptor, and a process without free descriptors can neither send events nor answer a probe. So at most
`MAX_CONNECTIONS` are open, over all addresses, and each has `REQUEST_TIMEOUT` seconds for a complete request.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from consumer.errors import SettingsError
from consumer.web.requests import drop_frames

# Far more than page, Prometheus and probes need, and far below 1,024, the common limit of open files.
MAX_CONNECTIONS = 200
# Seconds for a complete request, counted from the opening or the last answer. aiohttp enforces it (keepalive_timeout).
# Longer than most scrape intervals, so that Prometheus reuses its connection.
REQUEST_TIMEOUT = 20.0
# Connections that the system accepts before asyncio does: for a moment, that many may be open beyond the limit.
BACKLOG = 128
# Wildcard address -> an address that reaches it from this machine.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
# Hosts that can be reached from this machine only.
LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class ListenAddress(NamedTuple):
    """An address, and the setting that names it."""

    variable: str
    host: str
    port: int
    otherwise: str = "choose another address"
    """What to do if the address is not available."""
    or_any_port: bool = False
    """If the port is in use, take any free one."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, listening: asyncio.Server) -> str:
        """Return the URL that a browser on this machine opens; `listening`: at this address, whose port may be any."""
        host, port = listening.sockets[0].getsockname()[:2]
        return f"http://{self._replace(host=LOOPBACK.get(host, host), port=port)}/"


def main_address(host: str, port: int) -> ListenAddress:
    """Return the address of health and metrics and, unless it has its own address, of the page."""
    return ListenAddress(
        "PINSTREAM_HTTP_ADDRESS", host, port, "choose another address, or set it empty to serve nothing"
    )


def page_address(host: str, port: int) -> ListenAddress:
    """Return the page's own address."""
    return ListenAddress("PINSTREAM_PAGE_ADDRESS", host, port)


async def listen(place: ListenAddress, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    """Listen at `place`; `protocol` serves a connection. Raises `SettingsError`, which names the variable."""
    create = asyncio.get_running_loop().create_server
    try:
        if place.host != "::":
            return _ours(await create(protocol, place.host, place.port, backlog=BACKLOG))
        # asyncio would exclude IPv4 here, but the wildcard address shall mean all addresses.
        both = socket.has_dualstack_ipv6()
        all_addresses = socket.create_server(
            (place.host, place.port), family=socket.AF_INET6, dualstack_ipv6=both
        )
        return _ours(await create(protocol, sock=all_addresses, backlog=BACKLOG))
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        if place.or_any_port and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return await listen(place._replace(port=0, or_any_port=False), protocol)
        why = "no such host"
        if isinstance(error, OSError) and not isinstance(error, socket.gaierror):
            # asyncio's own words would repeat the address. From Python 3.13 on it gives an address that is not this
            # machine's no number.
            why = os.strerror(error.errno or errno.EADDRNOTAVAIL).lower()
        raise SettingsError(
            f"{place.variable}: cannot listen on {place} ({why}); {place.otherwise}"
        ) from error


_listening: weakref.WeakSet[asyncio.Server] = weakref.WeakSet()


def _ours(server: asyncio.Server) -> asyncio.Server:
    _listening.add(server)
    return server


def _close_in_child() -> None:
    # A child that a function of the user forks may outlive this process, and would keep the port from the next one.
    nothing = os.open(os.devnull, os.O_RDWR)
    for one in chain.from_iterable(server.sockets for server in list(_listening)):
        # Not closed: the number would go to another file, which the socket's object could close later.
        os.dup2(nothing, one.fileno())
    os.close(nothing)


os.register_at_fork(after_in_child=_close_in_child)


async def try_out(*places: ListenAddress) -> None:
    """Listen at all `places` for a moment, without serving. Raises `SettingsError` like `listen`."""
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.callback((await listen(place, asyncio.Protocol)).close)


def is_taken(error: SettingsError) -> bool:
    """Return True if `listen` failed because the address is in use."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


@dataclass(eq=False)
class Connections:
    """The open connections of all addresses that one `WebServer` listens on."""

    # Those whose connections count.
    servers: list[web.Server] = field(default_factory=list)
    _answering: set[object] = field(default_factory=set)

    @web.middleware
    async def note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note which connections are being answered. It must be the outermost middleware."""
        protocol = request.protocol
        self._answering.add(protocol)
        try:
            return await handler(request)
        except web.HTTPException as error:  # no such path or method
            drop_frames(error)  # the request has the error, and its frames the request
            return web.Response(status=error.status, text=error.text, headers=error.headers)
        finally:
            self._answering.discard(protocol)

    def open(self) -> dict[web.RequestHandler, asyncio.Transport]:
        """Return the open connections, the oldest of each server first."""
        all_of_them = chain.from_iterable(server.connections for server in self.servers)
        transports = {one: one.transport for one in all_of_them}
        return {one: at for one, at in transports.items() if at is not None and not at.is_closing()}

    def make_room(self) -> None:
        """Close an older connection if one more would exceed the limit."""
        # A new connection is always accepted: it may be a probe, which idle connections must not shut out.
        transports = self.open()
        if len(transports) >= MAX_CONNECTIONS:
            silent = (one for one in transports if one not in self._answering)
            # The oldest of all if every one is being answered: listeners that do not read must not hold them all.
            victim = next(silent, next(iter(transports)))
            transports[victim].abort()  # close() would wait for a client that does not read
