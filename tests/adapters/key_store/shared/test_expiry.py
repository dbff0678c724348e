"""What a shared key store removes, and when: no clock alone decides it, neither a member's nor the server's."""

from __future__ import annotations

import pytest
import redis as client

from tests.adapters.key_store.helpers import LONG_AGO, NOON, WINDOW, keys, member, used
from tests.support.redis_server import RedisServer

FORGOTTEN = int(LONG_AGO) + WINDOW.seconds + 1
"""The second from which a key of that time is out of the window."""


def names(server: client.Redis, prefix: str) -> set[bytes]:
    """Return the names of all that the store keeps on the server, but for leases."""
    found = set(server.scan_iter(f"{prefix}*", count=100_000))
    return {name for name in found if not name.startswith(f"{prefix}session:".encode())}


async def test_nothing_that_was_delivered_expires_by_itself(redis: RedisServer) -> None:
    """No set of delivered keys has a time to live, nor has a member's count of them: a clock may jump."""
    async with used(redis) as (store, server, prefix):
        await store.confirm(keys(range(100)), NOON)
        found = names(server, prefix)
        assert len(found) > 30
        assert {server.ttl(name) for name in found} == {-1}


@pytest.mark.parametrize("now", [0.0, FORGOTTEN - 1, FORGOTTEN + 59])
async def test_a_key_stays_while_it_is_in_the_window_by_a_member_s_time(
    redis: RedisServer, now: float
) -> None:
    """Nor while that is not known (0), whatever the server's clock says and is stored beside it."""
    async with used(redis) as (store, _, _):
        await store.confirm(keys(range(100)), LONG_AGO)
        for n in range(10):
            await store.expire(now)
            await store.confirm(keys(range(1000 * n, 1000 * n + 100)), LONG_AGO)
        assert await store.look_up(keys(range(100)), 0.0) == b"\1" * 100


async def test_a_key_stays_while_it_is_in_the_window_by_the_server_s_clock(redis: RedisServer) -> None:
    """A member whose time is years ahead removes nothing, as long as the server's clock is right."""
    async with used(redis) as (store, _, _):
        await store.confirm(keys(range(100)), NOON + 1e8)
        for n in range(10):
            await store.expire(NOON + 2e8)
            await store.confirm(keys(range(1000 * n, 1000 * n + 100)), NOON + 1e8)
        assert await store.look_up(keys(range(100)), NOON + 1e8) == b"\1" * 100


async def test_what_is_out_of_the_window_is_removed(redis: RedisServer) -> None:
    """Once both say so: all that is too old, a thousand sets in each round of housekeeping; and no others."""
    async with used(redis) as one:
        store = one.store
        await store.confirm(keys(range(30_000)), LONG_AGO)
        await store.confirm(keys(range(30_000, 30_100)), LONG_AGO + 1)
        for _ in range(2):
            await store.expire(FORGOTTEN + 60)
        assert store.statistics().keys == 100
        assert sum(one.sizes().values()) == 100
        assert await store.look_up(keys(range(30_000)), 0.0) == bytes(30_000)
        assert await store.look_up(keys(range(30_000, 30_100)), LONG_AGO) == b"\1" * 100


async def test_memory_peaks_at_a_little_more_than_the_window(redis: RedisServer) -> None:
    """Keys that come evenly remove those that are too old: there are never a quarter more than the window has."""
    async with used(redis) as (store, server, prefix):
        maximum, each = 0, 400
        for turn in range(40):
            now = LONG_AGO + turn * WINDOW.seconds / 10
            await store.renew()
            await store.confirm(keys(range(each * turn, each * turn + each)), now)
            await store.expire(now)
            maximum = max(maximum, int(server.hget(f"{prefix}sets", "entries") or 0))
        assert 10 * each <= maximum <= 1.25 * 10 * each


async def test_the_numbers_of_a_member_that_ended_long_ago_are_removed(redis: RedisServer) -> None:
    """Those of a member that goes on stay, however far the time moves at once."""
    async with used(redis) as (store, server, prefix):
        async with member(f"{redis.url}?prefix={prefix.partition(':')[0]}") as other:
            await other.renew()
        assert len(list(server.scan_iter(f"{prefix}member:*", count=100_000))) == 2
        for n in range(3):
            await store.renew()
            await store.expire(LONG_AGO + n * 0.6 * WINDOW.seconds)
            assert len(list(server.scan_iter(f"{prefix}member:*", count=100_000))) == 2 - (n == 2)
        assert server.hlen(f"{prefix}members") == 1
        await store.renew()
        assert store.statistics().lost == 0
        await store.expire(NOON)
        await store.renew()
        assert store.statistics().lost == 0
