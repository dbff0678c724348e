"""Keys that were chosen to share their first bits cost a shared key store no more than a bound, and are remembered as
all others are."""

from __future__ import annotations

import redis as client

from tests.adapters.key_store.helpers import NOON, WINDOW, member
from tests.support.redis_server import RedisServer

MOST = 1024
"""Keys with which a string is full; one confirmation may add a thousand more."""


def column(numbers: range) -> bytes:
    """Return keys whose first 24 bits are the same."""
    return b"".join(b"\x12\x34\x56" + number.to_bytes(13, "little") for number in numbers)


async def test_keys_that_share_their_first_bits_fill_no_string(redis: RedisServer) -> None:
    """A string of the server takes a few thousand keys; those beyond are found as well, by look-ups, claims and second
    confirmations, within the window and not after it; and nothing of them is left once the slice is removed."""
    at, count, prefix = NOON - 1e8, 5 * MOST, "chosen"
    with client.Redis(port=redis.port) as server:
        async with member(f"{redis.url}?prefix={prefix}") as store:
            await store.renew()
            for begin in range(0, count, 1024):
                assert await store.confirm(column(range(begin, begin + 1024)), at) == b"\1" * 1024
            strings = [name for name in server.scan_iter(f"{prefix}*") if server.type(name) == b"string"]
            assert 14 * MOST <= max(map(server.strlen, strings)) < 14 * (MOST + 1000)
            everything = column(range(count))
            assert await store.look_up(everything, at) == b"\1" * count
            assert (await store.claim(everything, at)).found == b"\1" * count
            assert await store.confirm(column(range(count - 10, count)), at) == b"\2" * 10
            assert await store.look_up(column(range(count, count + 9)), at) == bytes(9)
            assert await store.look_up(everything, at + 2 * WINDOW.seconds) == bytes(count)
            for _ in range(64):
                await store.expire(at + 4 * WINDOW.seconds)
            left = [name.rpartition(b":")[2] for name in server.scan_iter(f"{prefix}*", count=100_000)]
            assert not [name for name in left if name == b"beyond" or len(name) == 3]
