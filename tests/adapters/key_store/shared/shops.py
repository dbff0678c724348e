"""Shared key stores of the tests: real Redis and the stand-in, each with members, and a server that can be set back."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import redis as client

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.shared.address import parse_address
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.engine.model import Announcement
from consumer.ports import KeyStore
from tests.support.redis_server import RedisServer
from tests.support.shared_keys import SharedKeys, SharedMember

LEASE = 30.0
WINDOW = Window.of(3600.0)


class Shop:
    """A shared store, its members, and what a test can do to the server."""

    def __init__(
        self,
        member: Callable[[Announcement | None], KeyStore],
        end_leases: Callable[[], None],
        keep: Callable[[], None],
        go_back: Callable[[], None],
    ) -> None:
        self._make = member
        self.end_leases = end_leases
        self.keep = keep
        self.go_back = go_back
        self.made: list[KeyStore] = []

    async def member(self, announcement: Announcement | None = None) -> KeyStore:
        """Return a new member that has a session."""
        self.made.append(self._make(announcement))
        await self.made[-1].renew()
        return self.made[-1]


def on_redis(server: RedisServer) -> Shop:
    prefix = uuid4().hex
    direct = client.Redis(port=server.port)
    kept: dict[bytes, bytes] = {}

    def names(pattern: str) -> list[bytes]:
        return list(direct.scan_iter(f"{prefix}:{pattern}"))

    def keep() -> None:
        kept.clear()
        kept.update({name: direct.dump(name) or b"" for name in names("*")})

    def go_back() -> None:
        for name in names("*"):
            direct.delete(name)
        for name, value in kept.items():
            direct.restore(name, 3_600_000, value)

    def end_leases() -> None:
        for name in names("*session:*"):
            direct.delete(name)

    address = parse_address(f"{server.url}?prefix={prefix}")

    def member(announcement: Announcement | None) -> KeyStore:
        return RedisKeyStore(address, WINDOW, lease=LEASE, announcement=announcement)

    return Shop(member, end_leases, keep, go_back)


def on_the_fake() -> Shop:
    server = SharedKeys(lambda: 0.0)

    def member(announcement: Announcement | None) -> KeyStore:
        return SharedMember(server, WINDOW, LEASE, announcement)

    return Shop(member, server.leases.clear, server.keep, server.go_back)
