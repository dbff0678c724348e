"""The last hour and the last day in points, for the plots; in memory, bounded, begun anew with the process.

Theory of operation. Each second a snapshot is looked at that is there anyway, each ten a reading is taken. A point says
what happened since the point before: rates and event ages come from differences of what only ever grows, and so cover
all of that time; lag, which comes and goes, is the worst look since then, so that a peak between two readings is seen;
keys are the last. The same readings make the points of the hour (10 s) and those of the day (2 min).

A point is kept with its monotonic time and shown with the wall's: a clock that is set does not tear the curves. What
is not known is None, not zero: no ages where nothing was delivered, no rate where a count has shrunk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from consumer.engine.figures import rounded_share
from consumer.engine.freshness import Ages, ages
from consumer.engine.statistics import PartitionStatistics, Statistics

STEPS = ((10, 360), (120, 720))
"""Seconds between two points, and the most points: an hour, and a day."""
_EVERY = STEPS[0][0]


class Reading(NamedTuple):
    """What a snapshot has of it. `at`: monotonic seconds; counts and age buckets since the start; lag: the worst."""

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
    """Of all partitions where it is known: records in all, and how long the oldest has waited, in seconds."""

    records: int | None
    seconds: float | None

    def worst(self, other: Lag) -> Lag:
        """The more of both, each on its own."""
        return Lag(_most((self.records, other.records)), _most((self.seconds, other.seconds)))


NO_LAG = Lag(None, None)


class History:
    """Takes snapshots, in order; gives the /history document."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._tick = -1
        self._worst = NO_LAG
        """Of the looks since the latest reading."""
        self._steps = [_Step(seconds, most) for seconds, most in STEPS]

    def look(self, statistics: Statistics, now: float, keys: Callable[[], int | None]) -> None:
        """At `now` (monotonic seconds); takes a reading if it is time for one. `keys`: how many the key store holds."""
        if self._begun is None:
            self._begun = now
        self._worst = self._worst.worst(lag(statistics.partitions))
        tick = int((now - self._begun) // _EVERY)
        if tick == self._tick:
            return
        self._tick = tick
        reading = read(statistics, now, keys(), self._worst)
        self._worst = NO_LAG
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


def lag(partitions: Iterable[PartitionStatistics]) -> Lag:
    """The lag of now."""
    known = list(partitions)
    records = [one.lag for one in known if one.lag is not None]
    return Lag(sum(records) if records else None, _most(one.lag_seconds for one in known))


def read(statistics: Statistics, now: float, keys: int | None, worst: Lag) -> Reading:
    """What the history keeps of a snapshot; `worst`: the lag since the reading before."""
    totals = statistics.totals
    return Reading(
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


def point(before: Reading, since: Sequence[Reading]) -> Point:
    """What happened between `before` and the last reading `since` then."""
    last = since[-1]
    seconds = last.at - before.at
    delivered = _ages([late - early for early, late in zip(before.buckets, last.buckets, strict=True)])
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


def _ages(buckets: Sequence[int]) -> Ages:
    """Of what was delivered; nothing is known of a count that has shrunk."""
    return ages(buckets if min(buckets) >= 0 else ())


def _finite(age: float | None) -> float | None:
    """None beyond the last bucket, as in /status."""
    return None if age is None or math.isinf(age) else age
