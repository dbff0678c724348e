"""What a shared key store removes, and when: no clock alone decides it, neither a member's nor the server's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import redis as client

from consumer.adapters.key_store.shared.store import RedisKeyStore
from tests.adapters.key_store.helpers import NOON, WINDOW, key, keys, member
from tests.support.redis_server import RedisServer

LONG_AGO = NOON - 1e8
"""Years ago by the server's clock, which a test cannot set."""
FORGOTTEN = WINDOW.bucket_start(int(LONG_AGO)) + WINDOW.bucket_seconds + WINDOW.seconds
"""The second from which no key of that slice is in the window."""


@asynccontextmanager
async def used(redis: RedisServer) -> AsyncIterator[tuple[RedisKeyStore, client.Redis, str]]:
    """Yield a store, the server itself, and the prefix of the store's names."""
    prefix = uuid4().hex
    with client.Redis(port=redis.port) as server:
        async with member(f"{redis.url}?prefix={prefix}") as store:
            await store.renew()
            yield store, server, f"{prefix}:{{0}}:"


def names(server: client.Redis, prefix: str) -> set[bytes]:
    """Return the names of all that the store keeps on the server, but for leases."""
    found = set(server.scan_iter(f"{prefix}*", count=100_000))
    return {name for name in found if not name.startswith(f"{prefix}session:".encode())}


async def test_nothing_that_was_delivered_expires_by_itself(redis: RedisServer) -> None:
    """No string of delivered keys has a time to live, nor has a member's count of them: a server whose clock jumps
    would forget all at once, and the missing count would be told as a loss."""
    async with used(redis) as (store, server, prefix):
        await store.confirm(keys(range(100)), NOON)
        found = names(server, prefix)
        assert len(found) > 100
        assert {server.ttl(name) for name in found} == {-1}


@pytest.mark.parametrize("now", [0.0, FORGOTTEN - 1, FORGOTTEN + 59])
async def test_a_slice_stays_while_it_is_in_the_window_by_a_member_s_time(
    redis: RedisServer, now: float
) -> None:
    """Nothing is removed before a member's time says so, nor while it is not known (0), whatever the server's clock
    says."""
    async with used(redis) as (store, _, _):
        await store.confirm(keys(range(100)), LONG_AGO)
        for _ in range(10):
            await store.expire(now)
        assert await store.look_up(keys(range(100)), 0.0) == b"\1" * 100


async def test_a_slice_stays_while_it_is_in_the_window_by_the_server_s_clock(redis: RedisServer) -> None:
    """A member whose time is years ahead removes nothing, as long as the server's clock is right."""
    async with used(redis) as (store, _, _):
        await store.confirm(keys(range(100)), NOON + 1e8)
        for _ in range(10):
            await store.expire(NOON + 2e8)
        assert await store.look_up(keys(range(100)), NOON + 1e8) == b"\1" * 100


async def test_a_slice_that_is_out_of_the_window_is_removed_as_a_whole(redis: RedisServer) -> None:
    """Once both say so, all strings of a slice are removed within 64 rounds, and nothing of other slices."""
    async with used(redis) as (store, server, prefix):
        await store.confirm(keys(range(3_000)), LONG_AGO)
        await store.confirm(keys(range(3_000, 3_100)), NOON)
        # The names of the first and the last string.
        await store.confirm(b"\0" * 16 + b"\xff" * 16, LONG_AGO)
        for _ in range(64):
            await store.expire(FORGOTTEN + 60)
        assert not [
            name for name in names(server, prefix) if b":%d" % WINDOW.bucket_start(int(LONG_AGO)) in name
        ]
        assert store.statistics().keys == 100
        assert await store.look_up(keys(range(3_000)), 0.0) == bytes(3_000)
        assert await store.look_up(keys(range(3_000, 3_100)), NOON) == b"\1" * 100


async def test_a_slice_of_an_earlier_version_stays_with_what_is_added(redis: RedisServer) -> None:
    """An earlier version gave a slice's marker a time to live. The next confirmation takes it away; if it has passed,
    the slice is removed."""
    async with used(redis) as (store, server, prefix):
        marker = f"{prefix}{WINDOW.bucket_start(int(NOON))}"
        await store.confirm(key(1), NOON)
        server.expire(marker, 1_000)
        await store.confirm(key(2), NOON)
        assert server.ttl(marker) == -1
        server.delete(marker)
        await store.expire(NOON)
        assert store.statistics().keys == 0
        assert await store.look_up(keys([1, 2]), NOON) == b"\0\0"


async def test_the_numbers_of_a_member_that_ended_long_ago_are_removed(redis: RedisServer) -> None:
    """With the fourth slice that is removed after a member's latest renewal, its numbers go, too; those of a member
    that goes on stay, however many slices are removed at once."""
    async with used(redis) as (store, server, prefix):
        async with member(f"{redis.url}?prefix={prefix.partition(':')[0]}") as other:
            await other.renew()
        assert len(list(server.scan_iter(f"{prefix}member:*", count=100_000))) == 2
        for n in range(4):
            for more in range(5):
                await store.confirm(key(n), LONG_AGO + 10_000 * (5 * n + more))
            await store.renew()
            await store.expire(NOON)
        assert len(list(server.scan_iter(f"{prefix}member:*", count=100_000))) == 1
        assert server.hlen(f"{prefix}members") == 2, "the count of removals, and the one that goes on"
        await store.renew()
        assert store.statistics().lost == 0
