"""Event age at delivery: exact counts within the hour, quantiles as exact as the buckets, moving windows."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.figures.delivered import AGE_BOUNDS, HOUR, Ages, Freshness
from consumer.engine.model import Instant
from tests.engine.building import PROPERTY, UNIX, event, reading

AGES = st.integers(-100, 10**7) | st.sampled_from([0, 1, HOUR - 1, HOUR, HOUR + 1, *AGE_BOUNDS])
_WAITS = st.sampled_from([0, 1, 30, 61, 899, 3500, 3601, 40_000])
_BATCHES = st.lists(st.tuples(_WAITS, st.lists(AGES, min_size=1, max_size=8)), min_size=1, max_size=12)


def add(freshness: Freshness, ages: list[int], monotonic: float = 0.0) -> None:
    """Deliver events of these ages at the time `monotonic`."""
    freshness.add([int(UNIX) - age for age in ages], Instant(monotonic, UNIX))


def shown(ages: Ages) -> tuple[int, float | None, float | None, float | None, float | None]:
    """Return all figures of these ages."""
    return ages.delivered, ages.within_hour, ages.p50, ages.p95, ages.p99


def naive(ages: list[int]) -> tuple[int, float | None, float | None, float | None, float | None]:
    """Return the same figures, computed by sorting all ages."""
    if not ages:
        return 0, None, None, None, None
    # Rounded down to six digits, so that all but one of a million is not 1.0.
    within = sum(age <= HOUR for age in ages) * 1_000_000 // len(ages) / 1_000_000
    p50, p95, p99 = (bound(sorted(ages)[math.ceil(q * len(ages)) - 1]) for q in (0.50, 0.95, 0.99))
    return len(ages), within, p50, p95, p99


def bound(age: int) -> float | None:
    """Return the smallest bound that is not below the age."""
    return next((float(one) for one in AGE_BOUNDS if age <= one), None)


def test_a_quantile_is_at_most_a_quarter_too_high() -> None:
    """Bounds are 1 s apart below 5 s and at most 25 % apart up to a week; one is the hour, so its share is exact."""
    assert list(AGE_BOUNDS) == sorted(set(AGE_BOUNDS))
    assert (AGE_BOUNDS[0], AGE_BOUNDS[-1]) == (1, 7 * 86_400)
    assert HOUR in AGE_BOUNDS
    for lower, upper in pairwise(AGE_BOUNDS):
        assert upper - lower == 1 if lower < 5 else upper <= 1.25 * lower


@PROPERTY
@given(_BATCHES)
def test_windows_agree_with_a_list_of_all_ages(batches: list[tuple[int, list[int]]]) -> None:
    """Figures of the whole run, the last hour and day equal those of sorted ages, at each step and after a pause."""
    freshness, now, happened = Freshness(), 0, list[tuple[int, int]]()
    for wait, ages in [*batches, (4_000, [])]:
        now += wait
        if ages:
            add(freshness, ages, now)
        happened += [(now, age) for age in ages]
        snapshot = freshness.snapshot(now)
        assert shown(snapshot.total) == naive([age for _, age in happened])
        assert shown(snapshot.hour) == naive([age for at, age in happened if at >= (now // 60 - 59) * 60])
        assert shown(snapshot.day) == naive([age for at, age in happened if at >= (now // 900 - 95) * 900])
        assert snapshot.age_sum == sum(max(0, age) for _, age in happened)
        assert sum(snapshot.total.buckets) == len(happened)


def test_nothing_delivered_has_no_freshness() -> None:
    """Before a delivery the figures are None: no division by zero, no invented figure."""
    snapshot = Freshness().snapshot(0.0)
    assert snapshot.total == snapshot.hour == snapshot.day == Ages()
    assert shown(Ages()) == (0, None, None, None, None)


def test_histograms_are_bounded() -> None:
    """Two days of all ages keep at most 60 histograms for the hour and 96 for the day."""
    freshness = Freshness()
    for minute in range(2 * 24 * 60):
        add(freshness, [minute, 7 * minute, 10_000 * minute], minute * 60.0)
    windows = freshness._windows._windows
    assert all(len(one._buckets) <= maximum for one, maximum in zip(windows, (1, 60, 96), strict=True))
    assert [len(one.sum) for one in windows] == [1, 1, 1]


def test_the_core_counts_what_is_delivered_over_the_last_hour() -> None:
    """The window moves with the monotonic clock; the age is measured by the wall clock."""
    core = reading(event("a"))
    core.deliver()
    freshness = core.statistics().freshness
    assert freshness.hour == freshness.day == freshness.total
    assert freshness.hour.delivered == 1
    core.now += 3_700.0
    later = core.statistics().freshness
    assert (later.hour, later.total) == (Ages(), freshness.total)
