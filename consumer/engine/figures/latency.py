"""How long calls to the API took, over the last five minutes.

Theory of operation. Counted are the calls that brought a verdict on their events, and those that got no answer in
time: without these, the more calls fail the faster the rest would look. A refused token, a 429 and a lost connection
say nothing of how fast the platform works. The buckets of the histogram are 2 % apart, so that memory does not depend
on the number of calls, and workers' figures can be added. A quantile is the upper bound of its bucket: never too low,
and at most 2 % too high (a millisecond, if that is more).

The histogram for Prometheus has few buckets, because each is a series (`counters.CALL_BOUNDS`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import Final

from consumer.engine.figures.definitions import buckets, derived, quantile, snapshot
from consumer.engine.figures.windows import FIVE_MINUTES, Windows

# Upper bounds of the histogram's buckets in seconds: whole milliseconds, up to more than ten minutes, because a call
# may take that long (PINSTREAM_REQUEST_TIMEOUT).
_MILLISECONDS: Final = accumulate(range(560), lambda bound, _: max(bound + 1, bound * 102 // 100), initial=1)
_BOUNDS: Final = (*(bound / 1000 for bound in _MILLISECONDS), math.inf)
_NONE: Final = (0,) * len(_BOUNDS)
# The name of the only row in the window.
_ALL: Final = "all"
# Seconds from which on a call is slow: one of `counters.CALL_BOUNDS`, because deploy/alerts.yml asks for it, too.
SLOW_SECONDS: Final = 5.0
# Calls from which on their 95th percentile says more than that one of them was slow.
_SEVERAL: Final = 20


@snapshot
class CallLatency:
    """How long the calls of the last five minutes took, from their begin to their end."""

    buckets: tuple[int, ...] = buckets(_BOUNDS)

    @derived("calls")
    def calls(self) -> int:
        """Calls of the last five minutes that brought a verdict, or no answer in time."""
        return sum(self.buckets)

    p50 = quantile(
        0.50,
        _BOUNDS,
        "Median of the time that they took.",
        path="p50",
        status_note="See [below](#latency-of-calls).",
    )
    p95 = quantile(0.95, _BOUNDS, "95th percentile of that.", path="p95")
    p99 = quantile(0.99, _BOUNDS, "99th percentile of that.", path="p99")

    @derived(
        "slow",
        status_note="null: at most one call in 20 takes more than five seconds (of fewer calls: half of them). "
        "[Runbook](runbook.md#pinterest-answers-slowly).",
    )
    def slow(self) -> str | None:
        """That Pinterest answers slowly, in words."""
        half, nearly_all = self.p50, self.p95
        if half is None or nearly_all is None:
            return None
        if (nearly_all if self.calls >= _SEVERAL else half) <= SLOW_SECONDS:
            return None
        return (
            f"Pinterest answers slowly: of the calls of the last five minutes ({self.calls}), half took up to "
            f"{half:.1f} s, and 95 % up to {nearly_all:.1f} s"
        )


class Latency:
    """Counts how long calls took."""

    def __init__(self) -> None:
        self._window = Windows(FIVE_MINUTES)

    def add(self, seconds: float, now: float) -> None:
        """Count a call that took so long and ended at `now` (monotonic seconds)."""
        self._window.roll(now)
        row = self._window.running.setdefault(_ALL, [*_NONE])
        row[bisect_left(_BOUNDS, seconds)] += 1

    def snapshot(self, now: float) -> CallLatency:
        """Return the figures of `now` (monotonic seconds)."""
        self._window.roll(now)
        [rows] = self._window.sums()
        return CallLatency(tuple(rows.get(_ALL, _NONE)))
