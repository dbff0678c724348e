"""Listening on an address: how it is written, what a browser opens, why it cannot be had; and trying it out.

The server listens here, and ``pinstream check`` tries here whether it could, so that both say the same of an address.
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
"""For an address that stands for all: one that reaches it from this machine."""
LOCAL_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
"""Who listens here is reached from this machine only."""


class Place(NamedTuple):
    """An address, and the setting that names it."""

    variable: str
    host: str
    port: int
    otherwise: str = "choose another address"
    """What to do if it cannot be had."""

    def __str__(self) -> str:
        return _joined(self.host, self.port)


def main_place(host: str, port: int) -> Place:
    """Where health and metrics are and, unless it has an address of its own, the page."""
    return Place(
        "PINSTREAM_HTTP_ADDRESS", host, port, "choose another address, or set it empty to serve nothing"
    )


def page_place(host: str, port: int) -> Place:
    """The page's own."""
    return Place("PINSTREAM_PAGE_ADDRESS", host, port)


def url(host: str, port: int) -> str:
    """What a browser on this machine opens."""
    return f"http://{_joined(LOOPBACK.get(host, host), port)}/"


async def listen(runner: web.AppRunner, place: Place, connections: Connections) -> None:
    """Let `runner`, which is set up, listen there. Raises `SettingsError` naming the variable if it cannot."""
    try:
        await _site(runner, place.host, place.port, connections).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        raise SettingsError(
            f"{place.variable}: cannot listen on {place} ({_why(error)}); {place.otherwise}"
        ) from error


async def try_out(*places: Place) -> None:
    """Listen at all of them for a moment, and serve nothing. Raises `SettingsError` as `listen` does."""
    async with contextlib.AsyncExitStack() as stack:
        for place in places:
            runner = web.AppRunner(web.Application())
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await listen(runner, place, Connections())


def is_taken(error: SettingsError) -> bool:
    """Whether `listen` failed since someone listens there already."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


def _site(runner: web.AppRunner, host: str, port: int, connections: Connections) -> web.BaseSite:
    if host == "::":
        # asyncio would leave IPv4 out here; who binds the address for all means all.
        both = socket.has_dualstack_ipv6()
        listening = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=both)
        return LimitedSite(runner, connections, host, port, listening)
    return LimitedSite(runner, connections, host, port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why(error: Exception) -> str:
    """Why an address cannot be had, in the system's words: asyncio's would repeat the address."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no such host"
