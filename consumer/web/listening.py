"""Listening on an address: its notation, its URL, and why it is not available.

The server listens with this module, and ``pinstream check`` tries the same functions, so that both report the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import NamedTuple

from aiohttp import web

from consumer.errors import SettingsError
from consumer.web.connections import Connections, LimitedSite

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
"""Wildcard address -> an address that reaches it from this machine."""
LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that can be reached from this machine only."""


class ListenAddress(NamedTuple):
    """An address, and the setting that names it."""

    variable: str
    host: str
    port: int
    otherwise: str = "choose another address"
    """What to do if the address is not available."""

    def __str__(self) -> str:
        return _joined(self.host, self.port)


def main_address(host: str, port: int) -> ListenAddress:
    """The address of health and metrics and, unless it has its own address, of the page."""
    return ListenAddress(
        "PINSTREAM_HTTP_ADDRESS", host, port, "choose another address, or set it empty to serve nothing"
    )


def page_address(host: str, port: int) -> ListenAddress:
    """The page's own address."""
    return ListenAddress("PINSTREAM_PAGE_ADDRESS", host, port)


def url(host: str, port: int) -> str:
    """Return the URL that a browser on this machine opens."""
    return f"http://{_joined(LOOPBACK.get(host, host), port)}/"


async def listen(runner: web.AppRunner, place: ListenAddress, connections: Connections) -> None:
    """Make `runner`, which is set up, listen at `place`. Raises `SettingsError`, which names the variable."""
    try:
        await _site(runner, place.host, place.port, connections).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        raise SettingsError(
            f"{place.variable}: cannot listen on {place} ({_why(error)}); {place.otherwise}"
        ) from error


async def try_out(*places: ListenAddress) -> None:
    """Listen at all `places` for a moment, without serving. Raises `SettingsError` like `listen`."""
    async with contextlib.AsyncExitStack() as stack:
        for place in places:
            runner = web.AppRunner(web.Application())
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await listen(runner, place, Connections())


def is_taken(error: SettingsError) -> bool:
    """Return True if `listen` failed because the address is in use."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


def _site(runner: web.AppRunner, host: str, port: int, connections: Connections) -> web.BaseSite:
    if host == "::":
        # asyncio would exclude IPv4 here, but the wildcard address shall mean all addresses.
        both = socket.has_dualstack_ipv6()
        listening = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=both)
        return LimitedSite(runner, connections, host, port, listening)
    return LimitedSite(runner, connections, host, port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why(error: Exception) -> str:
    """Return why an address is not available, in the system's words: asyncio's would repeat the address."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no such host"
