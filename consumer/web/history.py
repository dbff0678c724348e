"""/history: the last hour and the last day as points for the plots. Kept in memory, bounded, lost at a restart.

The web server passes a snapshot each second; every ten seconds it becomes a sample. A point describes the time since
the point before. Rates and event ages are differences of counters and so cover all of that time. Lag is the maximum of
all snapshots since then, so that a short peak is seen. The number of keys is the latest. The same samples make the
points of the hour (every 10 s) and of the day (every 2 min).

Points have monotonic times and are shown with wall-clock times, so that setting the clock does not tear the curves.
Unknown values are None, not zero: no ages if nothing was delivered, no rate if a count has decreased.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from consumer.engine.figures import rounded_share
from consumer.engine.freshness import ages
from consumer.engine.statistics import PartitionStatistics, Statistics

STEPS = ((10, 360), (120, 720))
"""Seconds between two points, and the maximum number of points: for an hour and for a day."""
_EVERY = STEPS[0][0]


class Sample(NamedTuple):
    """What the history keeps of a snapshot: counts and age buckets since the start, and the maximum lag.

    `at`: monotonic seconds.
    """

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
    within_hour: float | None
    age_p99: float | None


class Lag(NamedTuple):
    """Lag over all partitions where it is known: the sum of records, and the age of the oldest, in seconds."""

    records: int | None
    seconds: float | None

    def worst(self, other: Lag) -> Lag:
        """Return the maximum of each value."""
        return Lag(_most((self.records, other.records)), _most((self.seconds, other.seconds)))


NO_LAG = Lag(None, None)


class History:
    """Takes snapshots in order and makes the /history document."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._tick = -1
        self._worst = NO_LAG
        """Maximum lag since the latest sample."""
        self._steps = [_Step(seconds, most) for seconds, most in STEPS]

    def look(self, statistics: Statistics, now: float, keys: Callable[[], int | None]) -> None:
        """Take the snapshot of `now` (monotonic seconds), and a sample if one is due. `keys`: the key store's size."""
        if self._begun is None:
            self._begun = now
        self._worst = self._worst.worst(current_lag(statistics.partitions))
        tick = int((now - self._begun) // _EVERY)
        if tick == self._tick:
            return
        self._tick = tick
        sample = sample_of(statistics, now, keys(), self._worst)
        self._worst = NO_LAG
        for step in self._steps:
            step.take(sample, now - self._begun)

    def document(self, now: float, unix: float) -> dict[str, Any]:
        """Return the points as JSON, oldest first; `unix` is the wall-clock time at the monotonic `now`."""
        return {"steps": [step.document(unix - now) for step in self._steps]}


class _Step:
    """The points of one interval."""

    def __init__(self, seconds: int, most: int) -> None:
        self._seconds = seconds
        self._points: deque[Point] = deque(maxlen=most)
        self._tick = 0
        self._before: Sample | None = None
        self._since: list[Sample] = []
        """The samples since `_before`, for the next point."""

    def take(self, sample: Sample, age: float) -> None:
        """Take a sample; make a point if one is due. `age`: seconds since the first sample."""
        if self._before is None:
            self._before = sample
            return
        self._since.append(sample)
        tick = int(age // self._seconds)
        if tick != self._tick:
            self._points.append(point(self._before, self._since))
            self._tick, self._before, self._since = tick, sample, []

    def document(self, to_unix: float) -> dict[str, Any]:
        columns = zip(*self._points, strict=True) if self._points else ((),) * len(Point._fields)
        series = {name: list(values) for name, values in zip(Point._fields, columns, strict=True)}
        series["at"] = [round(one.at + to_unix, 1) for one in self._points]
        return {"seconds": self._seconds, "points": len(self._points), "series": series}


def current_lag(partitions: Iterable[PartitionStatistics]) -> Lag:
    """Return the lag over these partitions."""
    known = list(partitions)
    records = [one.lag for one in known if one.lag is not None]
    return Lag(sum(records) if records else None, _most(one.lag_seconds for one in known))


def sample_of(statistics: Statistics, now: float, keys: int | None, worst: Lag) -> Sample:
    """Return the sample of a snapshot; `worst`: the maximum lag since the sample before."""
    totals = statistics.totals
    return Sample(
        at=now,
        settled=totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered,
        delivered=totals.delivered,
        duplicates=totals.duplicate,
        dead_lettered=totals.dead_lettered,
        buckets=statistics.freshness.buckets,
        lag=worst.records,
        lag_seconds=worst.seconds,
        keys=keys,
    )


def point(before: Sample, since: Sequence[Sample]) -> Point:
    """Return the point from the sample `before` to the last sample of `since`."""
    last = since[-1]
    seconds = last.at - before.at
    buckets = [late - early for early, late in zip(before.buckets, last.buckets, strict=True)]
    delivered = ages(buckets if min(buckets) >= 0 else ())  # nothing is known if a count has decreased
    return Point(
        at=last.at,
        settled_per_second=_rate(before.settled, last.settled, seconds),
        delivered_per_second=_rate(before.delivered, last.delivered, seconds),
        duplicates_per_second=_rate(before.duplicates, last.duplicates, seconds),
        dead_lettered_per_second=_rate(before.dead_lettered, last.dead_lettered, seconds),
        lag=_most(one.lag for one in since),
        lag_seconds=_most(one.lag_seconds for one in since),
        age_p50=_finite(delivered.p50),
        age_p95=_finite(delivered.p95),
        keys=last.keys,
        within_hour=rounded_share(delivered.within_hour),
        age_p99=_finite(delivered.p99),
    )


def _rate(early: int, late: int, seconds: float) -> float | None:
    return round((late - early) / seconds, 3) if late >= early and seconds > 0 else None


def _most(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _finite(age: float | None) -> float | None:
    """None beyond the last bucket, as in /status."""
    return None if age is None or math.isinf(age) else age
