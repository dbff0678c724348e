"""Host names to addresses, without anything that keeps the process from ending.

`socket.getaddrinfo` may take as long as a name server is silent, and cannot be cancelled. In asyncio's own pool the
loop waits for it when it closes, past every deadline; so each question has a daemon thread of its own. aiohttp
remembers answers for ten seconds and asks once for all calls that wait for the same name, so threads stay few.
"""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from consumer.adapters.thread import OwnThread


class PatientResolver(AbstractResolver):
    """Asks the system; whoever waits decides for how long."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The host's addresses. Raises `OSError`, which aiohttp tells as a DNS error."""
        thread = OwnThread("pinstream-resolver")
        try:
            found = await thread.run(
                socket.getaddrinfo,
                host,
                port,
                family=family,
                type=socket.SOCK_STREAM,
                flags=socket.AI_ADDRCONFIG,
            )
        finally:
            thread.stop()
        return [
            ResolveResult(
                hostname=host,
                # IPv6 addresses may carry a scope, which is part of the number.
                host=socket.getnameinfo(place, _NUMERIC)[0],
                port=int(place[1]),
                family=kind,
                proto=proto,
                flags=_NUMERIC,
            )
            for kind, _, proto, _, place in found
        ]

    async def close(self) -> None:
        """Nothing is kept."""


_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
