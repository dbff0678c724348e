"""What every key store guarantees: one suite, run on each kind."""

from __future__ import annotations

import asyncio

import pytest

from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.errors import InvariantViolation, KeyStoreError
from tests.adapters.key_store.conftest import LOCAL, MakeStore
from tests.adapters.key_store.helpers import MIB, NOON, key, keys

DAY = 86400.0


async def test_a_key_is_unknown_until_remembered(make_store: MakeStore) -> None:
    """Answers are in the order of the keys asked, also for repeated keys; an empty chunk changes nothing."""
    store = make_store(DAY, MIB)
    await store.confirm(b"", NOON)
    assert await store.look_up(b"", NOON) == b""
    assert store.statistics() == KeyStoreStatistics(bytes_used=store.statistics().bytes_used)
    assert await store.look_up(keys([1, 2]), NOON) == b"\0\0"
    await store.confirm(key(2), NOON)
    assert await store.look_up(keys([1, 2, 3, 2]), NOON) == b"\0\1\0\1"


@pytest.mark.parametrize("window", [10.0, 9.5])
@pytest.mark.parametrize(
    "start", [NOON, NOON + 4, NOON + 9], ids=["bucket's begin", "within", "bucket's end"]
)
async def test_the_window_is_exact_to_the_second(make_store: MakeStore, window: float, start: float) -> None:
    """A key is forgotten a second after the window, which is rounded up, wherever in a bucket it was stored."""
    store = make_store(window, MIB)
    await store.confirm(key(1), start + 0.9)
    assert await store.look_up(key(1), start + 0.9 + 10.0) == b"\1"
    assert await store.look_up(key(1), start + 11.0) == b"\0"


@pytest.mark.parametrize("times", [(0, 10), (10, 0), (0, 90), (90, 0)], ids=str)
async def test_the_latest_delivery_counts(make_store: MakeStore, times: tuple[int, int]) -> None:
    """The window runs from the latest time of delivery, in the same bucket or another, confirmed in order or not."""
    store = make_store(100.0, MIB)
    for later in times:
        await store.confirm(key(1), NOON + later)
    assert await store.look_up(key(1), NOON + max(times) + 100) == b"\1"
    assert await store.look_up(key(1), NOON + max(times) + 101) == b"\0"


async def test_a_look_up_may_ask_for_late_deliveries_only(make_store: MakeStore) -> None:
    """With `since` only keys count whose latest delivery was then or later, and within the window."""
    store = make_store(100.0, MIB)
    await store.confirm(keys([1, 2]), NOON)
    await store.confirm(keys([2, 3]), NOON + 60)
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON + 59.9) == b"\0\1\1"
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON) == b"\1\1\1"
    assert await store.look_up(keys([1, 2, 3]), NOON + 70, since=NOON + 61) == b"\0\0\0"
    assert await store.look_up(keys([1, 2, 3]), NOON + 161, since=NOON) == b"\0\0\0"


async def test_expire_forgets_nothing_inside_the_window(make_store: MakeStore) -> None:
    """Expiry drops only keys that a look-up would not find; after the window the store is empty."""
    store, at = make_store(10.0, MIB), NOON - 1e8  # also by the clock of a server, which has a say
    await store.confirm(key(1), at)
    await store.expire(at + 10)
    assert await store.look_up(key(1), at + 10) == b"\1"
    await store.expire(at + 16 + 60)
    assert store.statistics().keys == 0
    assert store.statistics().buckets == 0
    assert store.statistics().evicted_early == 0


async def test_a_clock_that_goes_back_loses_nothing(make_store: MakeStore) -> None:
    """Keys with a later time of delivery are still found, and earlier deliveries are stored too."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), NOON)
    back = NOON - 7200
    assert await store.look_up(key(1), back) == b"\1"
    await store.confirm(keys([1, 2]), back)
    await store.expire(back)
    assert await store.look_up(keys([1, 2]), back) == b"\1\1"
    assert await store.look_up(keys([1, 2]), NOON + 10) == b"\1\0"


async def test_while_the_time_is_not_known_nothing_is_out_of_the_window(make_store: MakeStore) -> None:
    """With 0 for the time, which means that no clock is confirmed yet, every key is found and none is dropped."""
    store = make_store(10.0, MIB)
    for at in (NOON, NOON + 3600, NOON + 7200):
        await store.confirm(key(int(at)), at)
        await store.expire(0.0)
    everything = keys([int(NOON), int(NOON) + 3600, int(NOON) + 7200])
    assert await store.look_up(everything, 0.0) == b"\1\1\1"
    assert await store.look_up(everything, 0.0, since=NOON + 3600) == b"\0\1\1"
    assert store.statistics().keys == 3
    await store.expire(NOON + 7200)
    assert await store.look_up(everything, NOON + 7200) == b"\0\0\1"
    assert store.statistics().evicted_early == 0


@pytest.mark.parametrize("now", [0.0, -5.0, 2.0**33])
async def test_an_absurd_clock_does_no_harm(make_store: MakeStore, now: float) -> None:
    """Keys are remembered even if the clock shows a time before 1970 or after 2106."""
    store = make_store(10.0, MIB)
    await store.confirm(key(1), now)
    assert await store.look_up(key(1), now) == b"\1"


@pytest.mark.parametrize("make_store", LOCAL, indirect=True)  # a server has its own limit
async def test_a_store_at_its_limit_drops_the_oldest_and_says_so(make_store: MakeStore) -> None:
    """At its size limit a store drops the oldest keys and counts them; the newest are always found."""
    store = make_store(DAY, MIB)
    total = 56_000
    for first in range(0, total, 500):
        await store.confirm(keys(range(first, first + 500)), NOON + first / 10)
        assert store.statistics().bytes_used <= MIB
    answers = await store.look_up(keys(range(total)), NOON + total / 10)
    assert all(answers[-1000:])
    assert not any(answers[:1000])
    assert all(answers[answers.index(True) + 500 :])  # the chunk at the cut may be dropped in part
    assert store.statistics().evicted_early == answers.count(False)


@pytest.mark.parametrize("make_store", LOCAL, indirect=True)  # a server has its own limit
async def test_a_chunk_does_not_push_out_its_own_keys(make_store: MakeStore) -> None:
    """At the limit a chunk keeps all its keys, even if the clock was set back, so that its bucket is the oldest."""
    store = make_store(DAY, MIB)
    for step in range(8):
        await store.confirm(keys(range(step * 1000, step * 1000 + 1000)), NOON + step)
    earlier = NOON - 10 * DAY
    await store.confirm(keys(range(50_000, 56_000)), earlier)
    assert all(await store.look_up(keys(range(50_000, 56_000)), earlier))


async def test_dropping_what_is_out_of_the_window_is_not_early(make_store: MakeStore) -> None:
    """Dropping keys that are out of the window is not counted as dropping keys early."""
    store = make_store(10.0, MIB)
    for step in range(10):
        await store.confirm(keys(range(step * 2000, step * 2000 + 2000)), NOON + step * 20)
    assert store.statistics().evicted_early == 0


async def test_calls_at_the_same_time_are_all_stored(make_store: MakeStore) -> None:
    """Many chunks confirmed at once, at different times and with keys in common, are all stored."""
    store = make_store(100.0, 4 * MIB)
    chunks = [keys(range(n * 10, n * 10 + 15)) for n in range(40)]
    await asyncio.gather(*(store.confirm(chunk, NOON + n * 3) for n, chunk in enumerate(chunks)))
    assert all(await store.look_up(keys(range(70, 405)), NOON + 120))
    assert await store.look_up(keys([0, 55, 60, 65]), NOON + 116) == b"\0\0\1\1"


async def test_a_key_of_another_length_is_a_bug(make_store: MakeStore) -> None:
    """A key of a wrong length is a bug and raises `InvariantViolation`, since a wrong key must not be remembered."""
    store = make_store(DAY, MIB)
    with pytest.raises(InvariantViolation, match="15 bytes"):
        await store.confirm(key(1)[:15], NOON)


async def test_a_closed_store_refuses(make_store: MakeStore) -> None:
    """After `close` every look-up and confirmation raises an error; expiry and a second `close` do not."""
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
