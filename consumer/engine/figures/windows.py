"""Counts over the last minutes, hour or day.

Theory of operation. The owner counts the running minute. When it ends, it is added to the current bucket of each
window, a bucket that is too old is dropped, and the sum of the window is computed. That is once a minute, so a snapshot
costs the same at any rate. A window is up to one bucket short: an hour of minutes has 59 to 60 of them, a day of
quarters of an hour 23¾ to 24 hours.

Windows use the monotonic clock, because setting the wall clock must not empty them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, MutableSequence, Sequence
from itertools import chain
from operator import add
from typing import Any

_MINUTE = 60

# Counts by name, or names, in columns; all rows of one owner have the same columns.
Rows = dict[Any, MutableSequence[int]]

# Windows: the number of buckets, and the minutes of each. Since the start there is one, which never ends.
START_HOUR_DAY = ((1, sys.maxsize), (60, 1), (24 * 4, 15))
FIVE_MINUTES = ((5, 1),)


class Windows:
    """What one counter counted in each of some windows."""

    def __init__(self, windows: Sequence[tuple[int, int]] = START_HOUR_DAY) -> None:
        # The counts of the running minute, which the owner enters here.
        self.running: Rows = {}
        self._minute = 0
        self._windows = [_Buckets(maximum, width) for maximum, width in windows]

    def is_over(self, now: float) -> bool:
        """Return True if the running minute has ended at `now` (monotonic seconds)."""
        return int(now // _MINUTE) != self._minute

    def roll(self, now: float) -> None:
        """Roll the windows forward to `now` (monotonic seconds). If the minute has ended, no name is `running`."""
        if self.is_over(now):
            ended, self._minute = self._minute, int(now // _MINUTE)
            for window in self._windows:
                window.roll(ended, self.running, self._minute)
            self.running = {}

    def sums(self) -> list[Rows]:
        """Return the sum of each window, each with the running minute.

        The caller may keep the rows, but must not change them.
        """
        return [_sum([window.sum, self.running]) for window in self._windows]


class _Buckets:
    """The last `maximum` buckets of `width` minutes each, with the one that is being filled."""

    def __init__(self, maximum: int, width: int) -> None:
        self._maximum = maximum
        self._width = width
        # By their numbers, which count from the begin of the clock.
        self._buckets: dict[int, Rows] = {}
        self.sum: Rows = {}

    def roll(self, ended: int, rows: Rows, begun: int) -> None:
        """Add the counts of the minute that `ended`; drop the buckets that are too old now that another has `begun`."""
        number, oldest = ended // self._width, begun // self._width - self._maximum
        self._buckets[number] = _sum([self._buckets.get(number, {}), rows])
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if number > oldest}
        self.sum = _sum(self._buckets.values())


def _sum(buckets: Iterable[Rows]) -> Rows:
    """Add counts by name. Rows are replaced, never changed, because a snapshot may hold them."""
    sums: Rows = {}
    for name, row in chain.from_iterable(map(dict.items, buckets)):
        sums[name] = list(map(add, sums[name], row)) if name in sums else list(row)
    return sums
