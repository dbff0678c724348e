"""Counts over the last hour and the last day, from minutes that are over.

Theory of operation. The caller counts the running minute. When that ends, it is added to two windows: an hour of
minutes, and a day of quarters of an hour. A window keeps its sum, so that a snapshot costs the same at any rate; what
falls out of it is subtracted again. So a window is up to one of its buckets short: the hour is 59 to 60 minutes, the
day 23¾ to 24 hours.

Windows go by the monotonic clock, since setting the wall clock must not empty them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import add, sub
from typing import NamedTuple

_MINUTE = 60

Rows = dict[str, list[int]]
"""Counts by name, in columns; all rows of one window have the same columns."""


class Sums(NamedTuple):
    """The rows of the last hour and of the last day."""

    hour: Rows
    day: Rows


class Windows:
    """The last hour and the last day of what one counter counts."""

    def __init__(self) -> None:
        self._minute = 0
        self._hour = _Window(60, 1)
        self._day = _Window(24 * 4, 15)

    def roll(self, now: float, running: Callable[[], Rows]) -> bool:
        """Roll the windows forward to `now` (monotonic seconds). Return True if the minute changed.

        `running`: the counts of the minute that ended.
        """
        minute = int(now // _MINUTE)
        if minute == self._minute:
            return False
        rows = running()
        for window in (self._hour, self._day):
            window.add(self._minute, rows)
            window.forget_before(minute)
        self._minute = minute
        return True

    def sums(self, running: Rows) -> Sums:
        """The sums of both windows, with the running minute."""
        return Sums(self._hour.sums(running), self._day.sums(running))


class _Window:
    """The last `most` buckets of `width` minutes each, with the one that is being filled."""

    def __init__(self, most: int, width: int) -> None:
        self._most = most
        self._width = width
        self._buckets: deque[tuple[int, Rows]] = deque()
        self._sum: Rows = {}

    def add(self, minute: int, rows: Rows) -> None:
        """Add the counts of a minute that is over."""
        number = minute // self._width
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, {}))
        # A row of zeros is left out: once the other rows are subtracted, there would be no sum to subtract it from.
        counted = {name: row for name, row in rows.items() if any(row)}
        _enter(counted, self._buckets[-1][1])
        _enter(counted, self._sum)

    def forget_before(self, minute: int) -> None:
        """Drop the buckets that are too old once `minute` has begun."""
        while self._buckets and self._buckets[0][0] <= minute // self._width - self._most:
            for name, row in self._buckets.popleft()[1].items():
                left = [*map(sub, self._sum[name], row)]
                if any(left):
                    self._sum[name] = left
                else:
                    del self._sum[name]

    def sums(self, running: Rows) -> Rows:
        """The sum with the running minute. The caller may keep the rows, but must not change them."""
        rows = dict(self._sum)
        _enter(running, rows)
        return rows


def _enter(rows: Rows, sums: Rows) -> None:
    for name, row in rows.items():
        so_far = sums.get(name)
        sums[name] = list(row) if so_far is None else [*map(add, so_far, row)]
