"""/history: the last hour and the last day as points for the plots. Kept in memory, bounded, lost at a restart.

The web server passes a snapshot each second. A point describes the time since the point before: 10 s in the hour,
2 min in the day. Rates and event ages are differences of counters and so cover all of that time. Lag is the maximum of
all snapshots since then. The number of keys is the latest.

Unknown values are None, not zero: no ages if nothing was delivered, no rate if a count has decreased.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from consumer.engine.figures.definitions import maximum
from consumer.engine.figures.delivered import Ages
from consumer.engine.figures.statistics import Statistics

# Seconds between two points, and the maximum number of points: for an hour and for a day.
STEPS = ((10, 360), (120, 720))


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
    keys: int
    within_hour: float | None
    age_p99: float | None
    call_p50: float | None
    call_p95: float | None


class History:
    """Takes snapshots in order and makes the /history document."""

    def __init__(self) -> None:
        self._steps = [_Step(seconds, points) for seconds, points in STEPS]

    def add(self, statistics: Statistics, now: float) -> None:
        """Take the snapshot of `now` (monotonic seconds)."""
        for step in self._steps:
            step.add(statistics, now)

    def document(self, now: float, unix: float) -> dict[str, Any]:
        """Return the points as JSON, oldest first; `unix` is the wall-clock time at the monotonic `now`."""
        steps = []
        for step in self._steps:
            series: dict[str, list[Any]] = {
                name: [getattr(point, name) for point in step.points] for name in Point._fields
            }
            # Points have monotonic times, so that setting the clock does not tear the curves.
            series["at"] = [round(at + unix - now, 1) for at in series["at"]]
            steps.append({"seconds": step.seconds, "points": len(step.points), "series": series})
        return {"steps": steps}


class _Step:
    """The points of one interval."""

    def __init__(self, seconds: int, points: int) -> None:
        self.seconds = seconds
        self.points: deque[Point] = deque(maxlen=points)
        # All steps count their intervals from the first check: points of the day stand at points of the hour.
        self._begun = 0.0
        self._interval = 0
        # Time, counts and age buckets at the latest point: a point is about the time since then.
        self._before: tuple[float, Sequence[int], Sequence[int]] | None = None
        # The maximum of all snapshots since then, so that a short peak is seen.
        self._lag: int | None = None
        self._lag_seconds: float | None = None

    def add(self, statistics: Statistics, now: float) -> None:
        """Take a snapshot; make a point if one is due."""
        totals, buckets = statistics.totals, statistics.freshness.total.buckets
        settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
        counts = (settled, totals.delivered, totals.duplicate, totals.dead_lettered)
        if self._before is None:
            self._begun, self._before = now, (now, counts, buckets)
            return
        # A partition whose lag is unknown adds nothing; if none is known, there is no sum.
        known = [one.lag for one in statistics.partitions if one.lag is not None]
        self._lag = maximum((self._lag, sum(known) if known else None))
        self._lag_seconds = maximum((self._lag_seconds, *(one.lag_seconds for one in statistics.partitions)))
        # By the number of the interval: a late snapshot must not shift all later points.
        interval = int((now - self._begun) // self.seconds)
        if interval == self._interval:
            return
        then, counts_then, buckets_then = self._before
        # A count that has decreased gives no rate: unknown is None, not zero.
        rates = [
            round((late - before) / (now - then), 3) if late >= before else None
            for before, late in zip(counts_then, counts, strict=True)
        ]
        grown = [late - before for before, late in zip(buckets_then, buckets, strict=True)]
        delivered = Ages(tuple(grown)) if min(grown) >= 0 else Ages()
        lags = self._lag, self._lag_seconds
        quantiles = delivered.p50, delivered.p95
        keys = statistics.key_store.keys
        # Of the last five minutes, whatever the interval.
        calls = statistics.latency.p50, statistics.latency.p95
        values = (now, *rates, *lags, *quantiles, keys, delivered.within_hour, delivered.p99, *calls)
        self.points.append(Point._make(values))
        self._interval, self._before = interval, (now, counts, buckets)
        self._lag = self._lag_seconds = None
