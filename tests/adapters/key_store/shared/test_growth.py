"""The number of sets of a shared key store follows that of its keys: each stays small, and each key is found."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tests.adapters.key_store.helpers import LONG_AGO, NOON, WINDOW, Used, keys, used
from tests.support.redis_server import RedisServer

LEAST, PER_SET, MARGIN = 64, 24, 60


def sets(one: Used) -> tuple[int, int]:
    """Return how many sets there are by the store's own count, and how many keys."""
    reported = one.server.hmget(f"{one.names}sets", "sets", "entries")
    return int(reported[0] or 0), int(reported[1] or 0)


async def test_a_set_has_a_few_dozen_keys_however_many_there_are(redis: RedisServer) -> None:
    """All keys are found, and each is in one set only, also when forty times as many come."""
    async with used(redis) as one:
        for count, before in ((600, 0), (24_000, 600)):
            new = keys(range(before, count))
            assert await one.store.confirm(new, NOON) == b"\1" * (count - before)
            number, entries = sets(one)
            found = one.sizes()
            assert entries == count == sum(found.values())
            assert max(found) < number <= max(LEAST, count / PER_SET + 1)
            assert number >= count / PER_SET or number == LEAST
            assert max(found.values()) <= 100
            assert await one.store.look_up(keys(range(count + 100)), NOON) == b"\1" * count + bytes(100)


async def test_a_thousand_keys_are_three_calls_however_many_are_stored(redis: RedisServer) -> None:
    """Claims, calls, confirmation; and each set is asked once, not once a key."""
    async with used(redis) as one:
        store = one.store

        def asked(*commands: str) -> list[int]:
            reported: Any = one.server.info("commandstats")
            return [int(reported.get(f"cmdstat_{one}", {"calls": 0})["calls"]) for one in commands]

        await store.acquire_permits("shop", 1, 5_000, 2.0)
        for stored in (600, 24_000):
            await store.confirm(keys(range(stored)), NOON)
            batch = keys(range(100_000 + stored, 101_000 + stored))
            before, number = asked("evalsha", "zmscore"), sets(one)[0]
            assert (await store.claim(batch, NOON)).found == bytes(1_000)
            await store.acquire_permits("shop", 1, 5_000, 2.0)
            evaluated, looked_up = asked("evalsha", "zmscore")
            assert looked_up - before[1] <= min(1_000, number)
            assert await store.confirm(batch, NOON) == b"\1" * 1_000
            assert asked("evalsha")[0] == evaluated + 1 == before[0] + 3


async def test_the_sets_become_fewer_when_keys_do(redis: RedisServer) -> None:
    """When most keys are out of the window, sets are joined again, and no key within it is missed meanwhile."""
    async with used(redis) as one:
        await one.store.confirm(keys(range(20_000)), LONG_AGO)
        assert sets(one)[0] > 800
        later = LONG_AGO + WINDOW.seconds + MARGIN + 10
        for new in range(0, 120, 10):
            await one.store.expire(later)
            await one.store.confirm(keys(range(20_000 + new, 20_010 + new)), later)
            found = await one.store.look_up(keys(range(20_010 + new)), later)
            assert found == bytes(20_000) + b"\1" * (new + 10)
        assert sets(one) == (LEAST, 120)
        assert sum(one.sizes().values()) == 120
        assert max(one.sizes()) < LEAST


async def test_a_store_that_grows_and_shrinks_agrees_with_a_plain_table(redis: RedisServer) -> None:
    """Whichever of two members confirms what again, in whatever order of time."""
    chance, table, now = random.Random(7), dict[int, int](), int(LONG_AGO)
    async with used(redis, "agrees") as (one, _, _), used(redis, "agrees") as (other, _, _):
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
