"""Keys that were chosen to share their first bits are spread over the sets of a shared key store as all others are."""

from __future__ import annotations

import pytest

from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import LONG_AGO, NOON, WINDOW, used
from tests.support.redis_server import RedisServer


def column(numbers: range) -> bytes:
    """Return keys whose first 64 bits are the same: more than anybody can choose."""
    return b"".join(b"\x12\x34\x56\x78" * 2 + number.to_bytes(6, "big") + b"\0\0" for number in numbers)


async def test_keys_that_share_their_first_bits_fill_no_set(redis: RedisServer) -> None:
    """They are found within the window only, no set has more than a few dozen, and none stays behind."""
    at, count = LONG_AGO, 20_000
    async with used(redis) as one:
        store, everything = one.store, column(range(count))
        assert await store.confirm(everything, at) == b"\1" * count
        assert max(one.sizes().values()) <= 100
        assert sum(one.sizes().values()) == count
        assert await store.look_up(everything, at) == b"\1" * count
        assert (await store.claim(everything, at)).found == b"\1" * count
        assert await store.confirm(column(range(count - 10, count)), at) == b"\2" * 10
        assert await store.look_up(column(range(count, count + 9)), at) == bytes(9)
        assert await store.look_up(everything, at + 2 * WINDOW.seconds) == bytes(count)
        for _ in range(9):
            await store.expire(at + 4 * WINDOW.seconds)
        assert not one.sizes()


async def test_each_layout_has_a_secret_of_its_own(redis: RedisServer) -> None:
    """What one store's sets have together is apart in another's: whoever learned it from one has learned nothing."""
    places, first = [], column(range(1))[:14]
    for _ in range(2):
        async with used(redis) as one:
            await one.store.confirm(column(range(1000)), NOON)
            names = [f"{one.names}{number}" for number in one.sizes()]
            [name] = [name for name in names if one.server.zscore(name, first) is not None]
            places.append(set(one.server.zrange(name, 0, -1)))
    assert places[0] & places[1] != places[0]


async def test_after_a_loss_all_members_use_the_secret_made_since(redis: RedisServer) -> None:
    """The server reads it for each call, also for a member that had known the former layout."""
    async with used(redis, "lost") as (one, server, names), used(redis, "lost") as (other, _, _):
        layout = server.get(f"{names}layout")
        await one.confirm(column(range(10)), NOON)
        for name in server.scan_iter(f"{names}*", count=10_000):
            server.delete(name)
        with pytest.raises(KeyStoreError, match="lease"):
            await other.claim(column(range(10)), NOON)
        with pytest.raises(KeyStoreError, match="lost 0 keys"):
            await other.renew()
        await other.renew()
        assert server.get(f"{names}layout") not in (None, layout)
        with pytest.raises(KeyStoreError, match="lost 10 keys"):
            await one.renew()
        await one.renew()
        await other.confirm(column(range(5_000)), NOON)
        assert (await one.claim(column(range(5_000)), NOON)).found == b"\1" * 5_000
