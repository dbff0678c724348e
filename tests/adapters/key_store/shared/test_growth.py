"""The number of sets of a shared key store follows that of its keys: each stays small, and each key is found."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import redis as client

from tests.adapters.key_store.helpers import NOON, WINDOW, keys, member
from tests.support.redis_server import RedisServer

LONG_AGO = NOON - 1e8
"""Years ago by the server's clock, which a test cannot set."""
LEAST, PER_SET, MARGIN = 64, 24, 60


def sets(server: client.Redis, prefix: str) -> tuple[int, int]:
    """Return how many sets there are by the store's own count, and how many keys."""
    told = server.hmget(f"{prefix}:{{0}}:sets", "sets", "entries")
    return int(told[0] or 0), int(told[1] or 0)


def sizes(server: client.Redis, prefix: str) -> dict[int, int]:
    """Return for each set its number of entries; Redis has packed all of them."""
    found = {}
    for name in server.scan_iter(f"{prefix}:*", count=10_000):
        if server.type(name) == b"zset":
            assert server.object("encoding", name) == b"listpack"
            found[int(name.rpartition(b":")[2])] = int(server.zcard(name))
    return found


async def test_a_set_has_a_few_dozen_keys_however_many_there_are(redis: RedisServer) -> None:
    """From the first keys on, and when a hundred times as many come, no set becomes large, all keys are found, and each
    is in one set only."""
    prefix = "grows"
    with client.Redis(port=redis.port) as server:
        async with member(f"{redis.url}?prefix={prefix}") as store:
            await store.renew()
            for count, before in ((600, 0), (60_000, 600)):
                new = keys(range(before, count))
                assert await store.confirm(new, NOON) == b"\1" * (count - before)
                number, entries = sets(server, prefix)
                found = sizes(server, prefix)
                assert entries == count == sum(found.values())
                assert max(found) < number <= max(LEAST, count / PER_SET + 1)
                assert number >= count / PER_SET or number == LEAST
                assert max(found.values()) <= 100
                assert await store.look_up(keys(range(count + 100)), NOON) == b"\1" * count + bytes(100)


async def test_a_thousand_keys_are_three_calls_however_many_are_stored(redis: RedisServer) -> None:
    """Of a batch the server is asked three times: claims, calls, confirmation. Each set is asked once, not once a key,
    and as often with sixty thousand keys in the store as with six hundred."""
    with client.Redis(port=redis.port) as server:

        def asked(*commands: str) -> list[int]:
            told: Any = server.info("commandstats")
            return [int(told.get(f"cmdstat_{one}", {"calls": 0})["calls"]) for one in commands]

        async with member(f"{redis.url}?prefix=asked") as store:
            await store.renew()
            await store.ask_calls("shop", 1, 5_000, 2.0)
            for stored in (600, 60_000):
                await store.confirm(keys(range(stored)), NOON)
                batch = keys(range(100_000 + stored, 101_000 + stored))
                before, number = asked("evalsha", "zmscore"), sets(server, "asked")[0]
                assert (await store.claim(batch, NOON)).found == bytes(1_000)
                await store.ask_calls("shop", 1, 5_000, 2.0)
                evaluated, looked_up = asked("evalsha", "zmscore")
                assert looked_up - before[1] <= min(1_000, number)
                assert await store.confirm(batch, NOON) == b"\1" * 1_000
                assert asked("evalsha")[0] == evaluated + 1 == before[0] + 3


async def test_the_sets_become_fewer_when_keys_do(redis: RedisServer) -> None:
    """When most keys are out of the window, sets are joined again as others are stored, down to as many as there are at
    first, and no key within the window is missed meanwhile."""
    prefix = "shrinks"
    with client.Redis(port=redis.port) as server:
        async with member(f"{redis.url}?prefix={prefix}") as store:
            await store.renew()
            await store.confirm(keys(range(20_000)), LONG_AGO)
            assert sets(server, prefix)[0] > 800
            later = LONG_AGO + WINDOW.seconds + MARGIN + 10
            stored = 20_000
            for _ in range(12):
                await store.expire(later)
                await store.confirm(keys(range(stored, stored + 10)), later)
                stored += 10
                assert await store.look_up(keys(range(stored)), later) == bytes(20_000) + b"\1" * (
                    stored - 20_000
                )
            assert sets(server, prefix) == (LEAST, stored - 20_000)
            assert sum(sizes(server, prefix).values()) == stored - 20_000
            assert max(sizes(server, prefix)) < LEAST


async def test_a_store_that_grows_and_shrinks_agrees_with_a_plain_table(redis: RedisServer) -> None:
    """Whatever is confirmed again, by whichever of two members, in whatever order of time, a look-up finds what was
    delivered within the window, and nothing else."""
    chance, table, now, prefix = random.Random(7), dict[int, int](), int(LONG_AGO), "agrees"
    async with member(f"{redis.url}?prefix={prefix}") as one, member(f"{redis.url}?prefix={prefix}") as other:
        await one.renew()
        await other.renew()
        for turn in range(40):
            await asyncio.gather(one.renew(), other.renew())
            now += chance.randint(0, 600)
            at = now - chance.randint(0, 5)
            some = chance.sample(range(30_000), chance.choice([1, 30, 3_000 if turn < 20 else 1]))
            await chance.choice([one, other]).confirm(keys(some), at)
            table |= {number: max(at, table.get(number, 0)) for number in some}
            await chance.choice([one, other]).expire(now)
            asked = chance.sample(range(30_000), 2_000)
            expected = bytes(now - table.get(number, 0) <= WINDOW.seconds for number in asked)
            assert await one.look_up(keys(asked), now) == expected
