"""Counts since the start, over the last hour and over the last day.

Theory of operation. The owner counts the running minute. When it ends, it is added to three windows: one that never
ends, an hour of minutes, and a day of quarters of an hour. The sum of a window is computed then, once a minute, so a
snapshot costs the same at any rate. A window is up to one bucket short: the hour has 59 to 60 minutes, the day 23¾ to
24 hours.

Windows use the monotonic clock, because setting the wall clock must not empty them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, MutableSequence
from itertools import chain
from operator import add

_MINUTE = 60

# Counts by name, in columns; all rows of one owner have the same columns.
Rows = dict[str, MutableSequence[int]]


class Windows:
    """What one counter counted since the start, in the last hour and in the last day."""

    def __init__(self) -> None:
        # The counts of the running minute, which the owner enters here.
        self.running: Rows = {}
        self._minute = 0
        # By the number of buckets, and by the minutes of each: since the start there is one, which never ends.
        self._windows = [_Window(1, sys.maxsize), _Window(60, 1), _Window(24 * 4, 15)]

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
        """Return the sums since the start, of the last hour and of the last day, each with the running minute.

        The caller may keep the rows, but must not change them.
        """
        return [_sum([window.sum, self.running]) for window in self._windows]


class _Window:
    """The last `most` buckets of `width` minutes each, with the one that is being filled."""

    def __init__(self, most: int, width: int) -> None:
        self._most = most
        self._width = width
        # By their numbers, which count from the begin of the clock.
        self._buckets: dict[int, Rows] = {}
        self.sum: Rows = {}

    def roll(self, ended: int, rows: Rows, begun: int) -> None:
        """Add the counts of the minute that `ended`; drop the buckets that are too old now that another has `begun`."""
        number, oldest = ended // self._width, begun // self._width - self._most
        self._buckets[number] = _sum([self._buckets.get(number, {}), rows])
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if number > oldest}
        self.sum = _sum(self._buckets.values())


def _sum(buckets: Iterable[Rows]) -> Rows:
    """Add counts by name. Rows are replaced, never changed, because a snapshot may hold them."""
    sums: Rows = {}
    for name, row in chain.from_iterable(map(dict.items, buckets)):
        sums[name] = list(map(add, sums[name], row)) if name in sums else list(row)
    return sums
