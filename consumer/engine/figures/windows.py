"""Counts over the last hour and the last day, from minutes that are over.

Theory of operation. The owner counts the running minute. When it ends, it is added to two windows: an hour of minutes,
and a day of quarters of an hour. A window keeps its sum, from which it subtracts what becomes too old, so a snapshot
costs the same at any rate. A window is up to one bucket short: the hour has 59 to 60 minutes, the day 23¾ to 24 hours.

Windows use the monotonic clock, because setting the wall clock must not empty them.
"""

from __future__ import annotations

from collections import deque
from operator import add, sub

_MINUTE = 60

# Counts by name, in columns; all rows of one window have the same columns.
Rows = dict[str, list[int]]


class Windows:
    """The last hour and the last day of what one counter counts."""

    def __init__(self) -> None:
        # The counts of the running minute, which the owner enters here.
        self.running: Rows = {}
        self._minute = 0
        self._hour = _Window(60, 1)
        self._day = _Window(24 * 4, 15)

    def is_over(self, now: float) -> bool:
        """Return True if the running minute has ended at `now` (monotonic seconds)."""
        return int(now // _MINUTE) != self._minute

    def roll(self, now: float) -> None:
        """Roll the windows forward to `now` (monotonic seconds)."""
        ended, self._minute = self._minute, int(now // _MINUTE)
        if ended == self._minute:
            return
        # A row of zeros is left out: once the other rows are subtracted, there would be no sum to subtract it from.
        counted = {name: row for name, row in self.running.items() if any(row)}
        for window in (self._hour, self._day):
            window.roll(ended, counted, self._minute)
        self.running = {}

    def sums(self) -> tuple[Rows, Rows]:
        """Return the sums of the last hour and of the last day, with the running minute.

        The caller may keep the rows, but must not change them.
        """
        both = dict(self._hour.sum), dict(self._day.sum)
        for sums in both:
            _enter(self.running, sums)
        return both


class _Window:
    """The last `most` buckets of `width` minutes each, with the one that is being filled."""

    def __init__(self, most: int, width: int) -> None:
        self._most = most
        self._width = width
        self._buckets: deque[tuple[int, Rows]] = deque()
        self.sum: Rows = {}

    def roll(self, ended: int, rows: Rows, begun: int) -> None:
        """Add the counts of the minute that `ended`; drop the buckets that are too old now that another has `begun`."""
        number = ended // self._width
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, {}))
        _enter(rows, self._buckets[-1][1])
        _enter(rows, self.sum)
        while self._buckets and self._buckets[0][0] <= begun // self._width - self._most:
            for name, row in self._buckets.popleft()[1].items():
                left = [*map(sub, self.sum[name], row)]
                # A name that did not occur in the whole window leaves it, or names would be kept for ever.
                if any(left):
                    self.sum[name] = left
                else:
                    del self.sum[name]


def _enter(rows: Rows, sums: Rows) -> None:
    """Add `rows` to `sums`. Rows are replaced, never changed, because a snapshot may hold them."""
    for name, row in rows.items():
        so_far = sums.get(name)
        sums[name] = list(row) if so_far is None else [*map(add, so_far, row)]
