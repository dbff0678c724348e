"""The last hour and the last day in points, for the plots; in memory, bounded, begun anew with the process.

Theory of operation. Each ten seconds one reading is taken of a snapshot that is there anyway. A point says what
happened since the point before: rates and event ages come from differences of what only ever grows, lag is the worst
reading since then, keys the last. The same readings make the points of the hour (10 s) and those of the day (2 min).

A point is kept with its monotonic time and shown with the wall's: a clock that is set does not tear the curves. What
is not known is None, not zero: no ages where nothing was delivered, no rate where a count has shrunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from consumer.core.statistics import AGE_BOUNDS, Statistics

STEPS = ((10, 360), (120, 720))
"""Seconds between two points, and the most points: an hour, and a day."""
_EVERY = STEPS[0][0]


class Reading(NamedTuple):
    """What a snapshot has of it. `at`: monotonic seconds; counts and age buckets since the start."""

    at: float
    settled: int
    delivered: int
    duplicates: int
    dead_lettered: int
    buckets: Sequence[int]
    lag: int | None
    lag_seconds: float | None
    keys: int | None


class Point(NamedTuple):
    """One point of every series; times in seconds."""

    at: float
    settled_per_second: float | None
    delivered_per_second: float | None
    duplicates_per_second: float | None
    dead_lettered_per_second: float | None
    lag: int | None
    lag_seconds: float | None
    age_p50: float | None
    age_p95: float | None
    keys: int | None


class History:
    """Takes snapshots, in order; gives the /history document."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._tick = -1
        self._steps = [_Step(seconds, most) for seconds, most in STEPS]

    def look(self, statistics: Statistics, now: float, keys: Callable[[], int | None]) -> None:
        """Take a reading if it is time for one; `now`: monotonic seconds; `keys`: how many the key store holds."""
        if self._begun is None:
            self._begun = now
        tick = int((now - self._begun) // _EVERY)
        if tick == self._tick:
            return
        self._tick = tick
        reading = read(statistics, now, keys())
        for step in self._steps:
            step.take(reading, now - self._begun)

    def document(self, now: float, unix: float) -> dict[str, Any]:
        """The points as JSON, oldest first; `unix` is the wall's time at the monotonic `now`."""
        return {"steps": [step.document(unix - now) for step in self._steps]}


class _Step:
    """The points of one spacing."""

    def __init__(self, seconds: int, most: int) -> None:
        self._seconds = seconds
        self._points: deque[Point] = deque(maxlen=most)
        self._tick = 0
        self._before: Reading | None = None
        self._since: list[Reading] = []
        """The readings after `_before`: as many as a point has, and no more."""

    def take(self, reading: Reading, age: float) -> None:
        """`age`: seconds from the first reading to this one."""
        if self._before is None:
            self._before = reading
            return
        self._since.append(reading)
        tick = int(age // self._seconds)
        if tick != self._tick:
            self._points.append(point(self._before, self._since))
            self._tick, self._before, self._since = tick, reading, []

    def document(self, to_unix: float) -> dict[str, Any]:
        columns = zip(*self._points, strict=True) if self._points else ((),) * len(Point._fields)
        series = {name: list(values) for name, values in zip(Point._fields, columns, strict=True)}
        series["at"] = [round(one.at + to_unix, 1) for one in self._points]
        return {"seconds": self._seconds, "points": len(self._points), "series": series}


def read(statistics: Statistics, now: float, keys: int | None) -> Reading:
    """What the history keeps of a snapshot. Lag: of the partitions where it is known."""
    totals, partitions = statistics.totals, statistics.partitions
    lags = [one.lag for one in partitions if one.lag is not None]
    return Reading(
        at=now,
        settled=totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered,
        delivered=totals.delivered,
        duplicates=totals.duplicate,
        dead_lettered=totals.dead_lettered,
        buckets=statistics.freshness.buckets,
        lag=sum(lags) if lags else None,
        lag_seconds=_worst(one.lag_seconds for one in partitions),
        keys=keys,
    )


def point(before: Reading, since: Sequence[Reading]) -> Point:
    """What happened between `before` and the last reading `since` then."""
    last = since[-1]
    seconds = last.at - before.at
    ages = [late - early for early, late in zip(before.buckets, last.buckets, strict=True)]
    return Point(
        at=last.at,
        settled_per_second=_rate(before.settled, last.settled, seconds),
        delivered_per_second=_rate(before.delivered, last.delivered, seconds),
        duplicates_per_second=_rate(before.duplicates, last.duplicates, seconds),
        dead_lettered_per_second=_rate(before.dead_lettered, last.dead_lettered, seconds),
        lag=_worst(one.lag for one in since),
        lag_seconds=_worst(one.lag_seconds for one in since),
        age_p50=_quantile(ages, 0.50),
        age_p95=_quantile(ages, 0.95),
        keys=last.keys,
    )


def _rate(early: int, late: int, seconds: float) -> float | None:
    return round((late - early) / seconds, 3) if late >= early and seconds > 0 else None


def _worst(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _quantile(ages: Sequence[int], q: float) -> float | None:
    """The upper bound of the bucket that the quantile lies in, as in /status; None beyond the last, or of nothing."""
    count, seen = sum(ages), 0
    if count <= 0 or min(ages) < 0:
        return None
    for bound, more in zip(AGE_BOUNDS, ages, strict=False):
        seen += more
        if seen >= q * count:
            return float(bound)
    return None
