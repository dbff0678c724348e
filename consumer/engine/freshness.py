"""Freshness: how old events are when they are delivered, since the start and over the last hour and day.

Theory of operation. The platform wants events within one hour of happening (docs/platform.md). Ages are
counted in a histogram, so that their number does not matter; a bucket's bound is at most a quarter above the one before
it (below five seconds: one second, as event times are whole seconds). So a quantile, which is the upper bound of its
bucket, is never too low and at most a quarter too high. One of the bounds is the hour: the share within it is exact.

The histogram of the running minute goes into `consumer.engine.windows`: 156 histograms at most, half a megabyte.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import Annotated, NamedTuple

from consumer.engine.figures import Figure, Histogram, rounded_share
from consumer.engine.model import Instant
from consumer.engine.windows import Rows, Windows

HOUR = 3600
_MINUTE = 60
_DAY = 24 * HOUR
AGE_BOUNDS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 22, 26, 30, 36, 42, 50, 60, 75, 90, 105),
    *(120, 150, 180, 210, 240, 300, 360, 420, 480, 540, 600, 720, 840, 960, 1080, 1200, 1500, 1800),
    *(_MINUTE * n for n in (35, 40, 45, 50, 55)),
    *(HOUR, 4500, 5400, 6300, 7200, 9000, 10800, 12600),
    *(HOUR * n for n in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 48, 60, 72, 84)),
    *(_DAY * n for n in (4, 5, 6, 7)),
)
"""Upper bounds of the histogram's buckets, in seconds; one more bucket holds what is older."""
METRIC_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800)
"""Some of `AGE_BOUNDS`: each is a series for Prometheus to keep."""
_WITHIN_HOUR = AGE_BOUNDS.index(HOUR) + 1
"""How many of the buckets hold what is at most an hour old."""
_ALL = "all"
"""The name of the only row in the windows."""


class Ages(NamedTuple):
    """Ages of events delivered, in seconds. Quantiles are the upper bounds of their buckets."""

    delivered: Annotated[int, Figure("delivered", "Events delivered since the start.")]
    within_hour: Annotated[
        float | None,
        Figure(
            "within_one_hour",
            "Share of them that were at most an hour old then, 0 to 1.",
            status_note="null before the first.",
            show=rounded_share,
        ),
    ]
    p50: Annotated[
        float | None,
        Figure(
            "age_p50",
            "Age in seconds that half of them had at most; at most a quarter too high.",
            status_note="See below. null: none, or more than 7 days.",
        ),
    ]
    p95: Annotated[float | None, Figure("age_p95", "The same of 95 %.")]
    p99: Annotated[float | None, Figure("age_p99", "The same of 99 %.")]


NO_AGES = Ages(0, None, None, None, None)


@dataclass(frozen=True, slots=True)
class FreshnessSnapshot:
    """Event age at delivery since the start, and over the last hour and day: histograms by `AGE_BOUNDS`."""

    age_sum: Annotated[float, Figure()]
    """Seconds, since the start."""
    buckets: Annotated[tuple[int, ...], Figure()]
    """Since the start."""
    hour_buckets: Annotated[tuple[int, ...], Figure()]
    day_buckets: Annotated[tuple[int, ...], Figure()]

    @property
    def total(self) -> Annotated[Ages, Figure(".")]:
        """Since the start."""
        return ages(self.buckets)

    @property
    def hour(
        self,
    ) -> Annotated[Ages, Figure("hour", "The same five of what was delivered in the last hour:")]:
        """Over the last hour."""
        return ages(self.hour_buckets)

    @property
    def day(self) -> Annotated[Ages, Figure("day", "The same five of what was delivered in the last day:")]:
        """Over the last day."""
        return ages(self.day_buckets)

    @property
    def within_hour(
        self,
    ) -> Annotated[
        Mapping[str, float | None],
        Figure(
            sentence="Share of the events delivered in the last hour or day that were at most an hour old then.",
            metric="pinstream_delivered_within_hour_ratio",
            labels=("window",),
        ),
    ]:
        """By window."""
        return {"hour": self.hour.within_hour, "day": self.day.within_hour}

    @property
    def age(
        self,
    ) -> Annotated[
        Histogram,
        Figure(sentence="Age of events when they were delivered.", metric="pinstream_event_age_seconds"),
    ]:
        """Since the start, by `METRIC_AGES`."""
        up_to = dict(zip((*AGE_BOUNDS, math.inf), accumulate(self.buckets), strict=True))
        bounds = (*METRIC_AGES, math.inf)
        return Histogram(bounds, [up_to[bound] for bound in bounds], self.age_sum)


class Freshness:
    """Counts ages of events at delivery."""

    def __init__(self) -> None:
        self._before = _none()
        """Since the start, without the running minute."""
        self._minute = _none()
        """The running minute."""
        self._age_sum = 0.0
        self._windows = Windows()

    def add(self, event_times: Iterable[int], now: Instant) -> None:
        """Events that happened at these times (unix seconds) were delivered at `now`."""
        self._roll(now.monotonic)
        minute, unix, total = self._minute, now.unix, 0.0
        # Many events share a second: what is done for each of them is done by C's loop.
        for event_time, count in Counter(event_times).items():
            age = unix - event_time
            minute[bisect_left(AGE_BOUNDS, age)] += count
            if age > 0:
                total += age * count
        self._age_sum += total

    def snapshot(self, now: float) -> FreshnessSnapshot:
        """The figures of `now` (monotonic seconds)."""
        self._roll(now)
        sums = self._windows.sums(self._running())
        return FreshnessSnapshot(
            age_sum=self._age_sum,
            buckets=tuple(map(add, self._before, self._minute)),
            hour_buckets=tuple(sums.hour[_ALL]),
            day_buckets=tuple(sums.day[_ALL]),
        )

    def _roll(self, now: float) -> None:
        if self._windows.roll(now, self._running):
            self._before = [*map(add, self._before, self._minute)]
            self._minute = _none()

    def _running(self) -> Rows:
        return {_ALL: self._minute}


def ages(buckets: Sequence[int]) -> Ages:
    """What a histogram by `AGE_BOUNDS` says."""
    count = sum(buckets)
    if not count:
        return NO_AGES
    within = sum(buckets[:_WITHIN_HOUR]) / count
    return Ages(count, within, *(_quantile(buckets, q * count) for q in (0.50, 0.95, 0.99)))


def _quantile(buckets: Sequence[int], need: float) -> float:
    """The upper bound, in seconds, of the bucket that has the `need`-th; infinity in the last."""
    seen = 0
    for bound, count in zip(AGE_BOUNDS, buckets, strict=False):
        seen += count
        if seen >= need:
            return float(bound)
    return float("inf")


def _none() -> list[int]:
    return [0] * (len(AGE_BOUNDS) + 1)


NO_FRESHNESS = FreshnessSnapshot(0.0, *([tuple(_none())] * 3))
