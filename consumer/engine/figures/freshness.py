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
from collections.abc import Iterable, Mapping
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
# The histogram of no event.
_NONE = (0,) * len(_BOUNDS)
# Some of `AGE_BOUNDS`, because Prometheus keeps a series for each.
METRIC_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800)
# The number of buckets for events that are at most an hour old.
_UP_TO_HOUR = AGE_BOUNDS.index(HOUR) + 1
# The name of the only row in the windows.
_ALL = "all"


@snapshot
class Ages:
    """Ages of events delivered: a histogram by `AGE_BOUNDS`, and what it says, in seconds."""

    buckets: tuple[int, ...] = figure(
        path="", default=_NONE, merge=lambda several: tuple(map(sum, zip(_NONE, *several, strict=True)))
    )

    @derived("delivered")
    def delivered(self) -> int:
        """Events delivered since the start."""
        return sum(self.buckets)

    # Not rounded again: as seconds are, to three digits, it would be 1 with one in two thousand too late.
    @derived("within_one_hour", status_note="null before the first.", show=lambda share: share)
    def within_hour(self) -> float | None:
        """Share of them that were at most an hour old then, 0 to 1."""
        if not self.delivered:
            return None
        # Rounded down, so that 1 means all.
        return sum(self.buckets[:_UP_TO_HOUR]) * 1_000_000 // self.delivered / 1_000_000

    @derived("age_p50", status_note="See below. null: none, or more than 7 days.")
    def p50(self) -> float | None:
        """Age in seconds that half of them had at most; at most a quarter too high."""
        return self._quantile(0.50)

    @derived("age_p95")
    def p95(self) -> float | None:
        """The same of 95 %."""
        return self._quantile(0.95)

    @derived("age_p99")
    def p99(self) -> float | None:
        """The same of 99 %."""
        return self._quantile(0.99)

    def _quantile(self, share: float) -> float | None:
        seen = [*accumulate(self.buckets)]
        # The upper bound of the bucket that has it.
        bound = _BOUNDS[bisect_left(seen, share * seen[-1])]
        return bound if seen[-1] and bound < math.inf else None


@snapshot
class FreshnessSnapshot:
    """Event age at delivery since the start, and over the last hour and day."""

    # Seconds, since the start.
    age_sum: float = figure(path="")
    # Since the start.
    total: Ages = figure(path=".")
    hour: Ages = figure("The same five of what was delivered in the last hour:", default=Ages())
    day: Ages = figure("The same five of what was delivered in the last day:", default=Ages())

    @derived(metric="pinstream_delivered_within_hour_ratio", labels=("window",))
    def within_hour(self) -> Mapping[str, float | None]:
        """Share of the events delivered in the last hour or day that were at most an hour old then."""
        return {"hour": self.hour.within_hour, "day": self.day.within_hour}

    @derived(metric="pinstream_event_age_seconds")
    def age(self) -> Histogram:
        """Age of events when they were delivered."""
        up_to = dict(zip(_BOUNDS, accumulate(self.total.buckets), strict=True))
        bounds = (*METRIC_AGES, math.inf)
        return Histogram(bounds, [up_to[bound] for bound in bounds], self.age_sum)


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
            self._windows.running[_ALL] = self._running = array("q", _NONE)
        unix, whole = now.unix, int(now.unix)
        past, total = count_ages(array("q", event_times), unix, _COLUMN, self._running)
        # An event that lies ahead has no age. Whole seconds are summed as integers, so that rounding loses nothing.
        self._age_sum += past * whole - total + past * (unix - whole)

    def snapshot(self, now: float) -> FreshnessSnapshot:
        """Return the figures of `now` (monotonic seconds)."""
        self._windows.roll(now)
        windows = (Ages(tuple(rows.get(_ALL, _NONE))) for rows in self._windows.sums())
        return FreshnessSnapshot(self._age_sum, *windows)
