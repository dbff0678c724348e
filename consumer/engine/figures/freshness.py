"""Freshness: how old events are when they are delivered, since the start and over the last hour and day.

Theory of operation. The platform wants events within one hour of happening (docs/platform.md). Ages are counted in a
histogram, so that memory does not depend on their number. A bound is at most a quarter above the one before it (below
five seconds: one second, because event times are whole seconds). A quantile is the upper bound of its bucket: never too
low, and at most a quarter too high. One of the bounds is the hour, so the share within it is exact.

Each minute has a histogram, which goes into `windows`: 157 histograms at most, half a megabyte.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from consumer.engine.figures.definitions import Histogram, derived, figure, snapshot
from consumer.engine.figures.windows import Windows
from consumer.engine.model import Instant
from consumer.engine.native import count_ages

HOUR = 3600
_MINUTE = 60
_DAY = 24 * HOUR
# Upper bounds of the histogram's buckets, in seconds; one more bucket holds older events.
AGE_BOUNDS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 22, 26, 30, 36, 42, 50, 60, 75, 90, 105),
    *(120, 150, 180, 210, 240, 300, 360, 420, 480, 540, 600, 720, 840, 960, 1080, 1200, 1500, 1800),
    *(_MINUTE * n for n in (35, 40, 45, 50, 55)),
    *(HOUR, 4500, 5400, 6300, 7200, 9000, 10800, 12600),
    *(HOUR * n for n in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 48, 60, 72, 84)),
    *(_DAY * n for n in (4, 5, 6, 7)),
)
_BOUNDS = (*map(float, AGE_BOUNDS), math.inf)
_COLUMN = array("d", _BOUNDS)
_BUCKETS = len(_BOUNDS)
# Some of `AGE_BOUNDS`, because Prometheus keeps a series for each.
METRIC_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800)
# The last of the buckets for events that are at most an hour old.
_LAST_WITHIN_HOUR = AGE_BOUNDS.index(HOUR)
# The name of the only row in the windows.
_ALL = "all"


@snapshot
class Ages:
    """Ages of events delivered, in seconds. Quantiles are the upper bounds of their buckets."""

    delivered: int = figure("Events delivered since the start.")
    within_hour: float | None = figure(
        "Share of them that were at most an hour old then, 0 to 1.",
        path="within_one_hour",
        status_note="null before the first.",
        # `ages` has rounded it; as seconds are, to three digits, it would be 1 with one in two thousand too late.
        show=lambda share: share,
    )
    p50: float | None = figure(
        "Age in seconds that half of them had at most; at most a quarter too high.",
        path="age_p50",
        status_note="See below. null: none, or more than 7 days.",
    )
    p95: float | None = figure("The same of 95 %.", path="age_p95")
    p99: float | None = figure("The same of 99 %.", path="age_p99")


NO_AGES = Ages(0, None, None, None, None)


@snapshot
class FreshnessSnapshot:
    """Event age at delivery since the start, and over the last hour and day: histograms by `AGE_BOUNDS`."""

    # Seconds, since the start.
    age_sum: float = figure(path="")
    # Since the start.
    buckets: tuple[int, ...] = figure(path="")
    hour_buckets: tuple[int, ...] = figure(path="")
    day_buckets: tuple[int, ...] = figure(path="")

    @derived(".")
    def total(self) -> Ages:
        """Since the start."""
        return ages(self.buckets)

    @derived("hour")
    def hour(self) -> Ages:
        """The same five of what was delivered in the last hour:"""
        return ages(self.hour_buckets)

    @derived("day")
    def day(self) -> Ages:
        """The same five of what was delivered in the last day:"""
        return ages(self.day_buckets)

    @derived(metric="pinstream_delivered_within_hour_ratio", labels=("window",))
    def within_hour(self) -> Mapping[str, float | None]:
        """Share of the events delivered in the last hour or day that were at most an hour old then."""
        return {"hour": self.hour.within_hour, "day": self.day.within_hour}

    @derived(metric="pinstream_event_age_seconds")
    def age(self) -> Histogram:
        """Age of events when they were delivered."""
        up_to = dict(zip(_BOUNDS, accumulate(self.buckets), strict=True))
        bounds = (*METRIC_AGES, math.inf)
        return Histogram(bounds, [up_to[bound] for bound in bounds], self.age_sum)


NO_FRESHNESS = FreshnessSnapshot(0.0, *([(0,) * _BUCKETS] * 3))


class Freshness:
    """Counts the ages of events at delivery."""

    def __init__(self) -> None:
        # The histogram of the running minute, once there is one.
        self._running = array("q")
        self._age_sum = 0.0
        self._windows = Windows()

    def add(self, event_times: Iterable[int], now: Instant) -> None:
        """Count events that happened at these times (unix seconds) and were delivered at `now`."""
        self._windows.roll(now.monotonic)
        if not self._windows.running:
            self._windows.running[_ALL] = self._running = array("q", [0]) * _BUCKETS
        unix, whole = now.unix, int(now.unix)
        past, total = count_ages(array("q", event_times), unix, _COLUMN, self._running)
        # An event that lies ahead has no age. Whole seconds are summed as integers, so that rounding loses nothing.
        self._age_sum += past * whole - total + past * (unix - whole)

    def snapshot(self, now: float) -> FreshnessSnapshot:
        """Return the figures of `now` (monotonic seconds)."""
        self._windows.roll(now)
        windows = (tuple(rows.get(_ALL, NO_FRESHNESS.buckets)) for rows in self._windows.sums())
        return FreshnessSnapshot(self._age_sum, *windows)


def ages(buckets: Sequence[int]) -> Ages:
    """Return the share and the quantiles of a histogram by `AGE_BOUNDS`."""
    count = sum(buckets)
    if not count:
        return NO_AGES
    seen = [*accumulate(buckets)]
    # A quantile is the upper bound of the bucket that has it; the last bucket has none.
    bounds = (*_BOUNDS[:-1], None)
    quantiles = (bounds[bisect_left(seen, share * count)] for share in (0.50, 0.95, 0.99))
    # Rounded down, so that 1 means all.
    within_hour = seen[_LAST_WITHIN_HOUR] * 1_000_000 // count / 1_000_000
    return Ages(count, within_hour, *quantiles)
