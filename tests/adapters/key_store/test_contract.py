"""What every key store promises: one suite, run on each kind."""

from __future__ import annotations

import asyncio

import pytest

from consumer.adapters.key_store import KeyStoreStatistics
from consumer.errors import InvariantViolation, KeyStoreError
from tests.adapters.key_store.conftest import LOCAL, MakeStore
from tests.adapters.key_store.helpers import MIB, NOON, key, keys

DAY = 86400.0


async def test_a_key_is_unknown_until_remembered(make_store: MakeStore) -> None:
    """Each key is answered for itself, in the order asked, repeated ones too."""
    store = make_store(DAY, MIB)
    assert await store.look_up(keys([1, 2]), NOON) == bytes([False, False])
    await store.confirm(key(2), NOON)
    assert await store.look_up(keys([1, 2, 3, 2]), NOON) == bytes([False, True, False, True])


async def test_nothing_asked_nothing_answered(make_store: MakeStore) -> None:
    """Empty chunks are legal."""
    store = make_store(DAY, MIB)
    await store.confirm(b"", NOON)
    assert await store.look_up(b"", NOON) == b""
    assert store.statistics() == KeyStoreStatistics(0, store.statistics().bytes_used, 0, None, 0, 0, None)


@pytest.mark.parametrize(
    "start", [NOON, NOON + 4, NOON + 9], ids=["bucket's begin", "within", "bucket's end"]
)
async def test_the_window_is_exact_to_the_second(make_store: MakeStore, start: float) -> None:
    """Remembered for the whole window, forgotten a second later, wherever in a bucket it was stored."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), start + 0.9)
    assert await store.look_up(key(1), start + 0.9 + 10.0) == bytes([True])
    assert await store.look_up(key(1), start + 11.0) == bytes([False])


async def test_a_window_of_part_of_a_second_is_rounded_up(make_store: MakeStore) -> None:
    """A key is never forgotten before its window is over."""
    store = make_store(0.5, MIB)
    await store.confirm(key(1), NOON + 0.9)
    assert await store.look_up(key(1), NOON + 1.3) == bytes([True])


@pytest.mark.parametrize("times", [(0, 10), (10, 0), (0, 90), (90, 0)], ids=str)
async def test_the_latest_delivery_counts(make_store: MakeStore, times: tuple[int, int]) -> None:
    """The window runs from the latest time of delivery: same bucket or another, remembered in order or not."""
    store = make_store(100.0, MIB)
    for later in times:
        await store.confirm(key(1), NOON + later)
    assert await store.look_up(key(1), NOON + max(times) + 100) == bytes([True])
    assert await store.look_up(key(1), NOON + max(times) + 101) == bytes([False])


async def test_a_look_up_may_ask_for_late_deliveries_only(make_store: MakeStore) -> None:
    """With `since`: keys whose latest delivery is of that second or later, and still none out of the window."""
    store = make_store(100.0, MIB)
    await store.confirm(keys([1, 2]), NOON)
    await store.confirm(keys([2, 3]), NOON + 60)
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON + 59.9) == bytes([False, True, True])
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON) == bytes([True, True, True])
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON + 61) == bytes([False, False, False])
    assert await store.look_up(keys([1, 2, 3]), NOON + 161, since=NOON) == bytes([False, False, False])


async def test_expire_forgets_nothing_inside_the_window(make_store: MakeStore) -> None:
    """Housekeeping drops only what a look-up would not find; then the store is empty again."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), NOON)
    await store.expire(NOON + 10)
    assert await store.look_up(key(1), NOON + 10) == bytes([True])
    await store.expire(NOON + 16)
    assert store.statistics().keys == 0
    assert store.statistics().buckets == 0
    assert store.statistics().evicted_early == 0


async def test_a_clock_that_goes_back_loses_nothing(make_store: MakeStore) -> None:
    """A key delivered "in the future" is remembered, and deliveries at the earlier time are too."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), NOON)
    back = NOON - 7200
    assert await store.look_up(key(1), back) == bytes([True])
    await store.confirm(keys([1, 2]), back)
    await store.expire(back)
    assert await store.look_up(keys([1, 2]), back) == bytes([True, True])
    assert await store.look_up(keys([1, 2]), NOON + 10) == bytes([True, False])


@pytest.mark.parametrize("now", [0.0, -5.0, 2.0**33])
async def test_an_absurd_clock_does_no_harm(make_store: MakeStore, now: float) -> None:
    """Before 1970 and after 2106 keys are still remembered."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), now)
    assert await store.look_up(key(1), now) == bytes([True])


@pytest.mark.parametrize("make_store", LOCAL, indirect=True)  # a server has a limit of its own
async def test_a_store_at_its_limit_drops_the_oldest_and_says_so(make_store: MakeStore) -> None:
    """The newest keys are always remembered, size stays below the limit, what was dropped is counted."""
    store = make_store(DAY, MIB)
    total = 96_000
    for first in range(0, total, 500):
        await store.confirm(keys(range(first, first + 500)), NOON + first / 10)
        assert store.statistics().bytes_used <= MIB
    answers = await store.look_up(keys(range(total)), NOON + total / 10)
    assert all(answers[-1000:])
    assert not any(answers[:1000])
    assert all(answers[answers.index(True) + 500 :]), (
        "dropped from the old end only, the chunk at the cut in part"
    )
    assert store.statistics().evicted_early == answers.count(False)
    assert store.statistics().oldest is not None


@pytest.mark.parametrize("make_store", LOCAL, indirect=True)  # a server has a limit of its own
async def test_a_chunk_does_not_push_out_its_own_keys(make_store: MakeStore) -> None:
    """At the limit and with the clock set back, so that the bucket being written is the oldest of all."""
    store = make_store(DAY, MIB)
    for step in range(8):
        await store.confirm(keys(range(step * 1000, step * 1000 + 1000)), NOON + step)
    earlier = NOON - 10 * DAY
    await store.confirm(keys(range(50_000, 56_000)), earlier)
    assert all(await store.look_up(keys(range(50_000, 56_000)), earlier))


async def test_dropping_what_is_out_of_the_window_is_not_early(make_store: MakeStore) -> None:
    """When room is made from keys that no look-up would find, there is nothing to warn of."""
    store = make_store(10.0, MIB)
    for step in range(10):
        await store.confirm(keys(range(step * 2000, step * 2000 + 2000)), NOON + step * 20)
    assert store.statistics().evicted_early == 0


async def test_calls_at_the_same_time_are_all_stored(make_store: MakeStore) -> None:
    """Many chunks at once, with times of their own, and some keys in several of them."""
    store = make_store(100.0, 4 * MIB)
    chunks = [keys(range(n * 10, n * 10 + 15)) for n in range(40)]
    await asyncio.gather(*(store.confirm(chunk, NOON + n * 3) for n, chunk in enumerate(chunks)))
    assert all(await store.look_up(keys(range(70, 405)), NOON + 120))
    assert await store.look_up(keys([0, 55, 60, 65]), NOON + 116) == bytes([False, False, True, True])


async def test_a_key_of_another_length_is_a_bug(make_store: MakeStore) -> None:
    """The length is agreed; anything else stops the line rather than remembering a wrong key."""
    store = make_store(DAY, MIB)
    with pytest.raises(InvariantViolation, match="15 bytes"):
        await store.confirm(key(1)[:15], NOON)


async def test_a_closed_store_refuses(make_store: MakeStore) -> None:
    """Use after close is an error, housekeeping after close is not, and closing twice is fine."""
    store = make_store(DAY, MIB)
    await store.confirm(key(1), NOON)
    await store.close()
    await store.close()
    await store.expire(NOON)
    assert store.statistics().keys == 0
    with pytest.raises(KeyStoreError, match="closed"):
        await store.look_up(key(1), NOON)
    with pytest.raises(KeyStoreError, match="closed"):
        await store.confirm(key(1), NOON)
