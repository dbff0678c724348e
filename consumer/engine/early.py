"""Events that lie ahead of what may be a slow clock: they wait, open, and are judged again.

Theory of operation. While the platform has not said what time it is, an event too far ahead of our clock is not refused
if its record was stamped ahead of it, too (`consumer.engine.clock`). It waits until its time comes, or there is news of
what time it is. Since the platform only speaks when it is called, and all events may wait, one of them is a *pilot*
while nothing else is under way: it is judged by its own record's timestamp, and so is sent. Its answer brings the Date
by which all others are judged.

What waits has the bounds of what waits for its schema (`consumer.engine.admission`), and dies with its assignment.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Final

from consumer.engine.clock import SKEW
from consumer.engine.model import Instant
from consumer.engine.parking import Parked

_PILOT_EVERY: Final = 1.0
"""Seconds between two pilots: there may be answers without a Date, and each pilot is a call of its own."""

_ROUNDING: Final = 0.01


class EarlyRecords:
    """Records of such events, by their time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Parked]] = []
        """A heap."""
        self._order = itertools.count()
        self._version = 0
        self._pilot_at = -math.inf
        self.size = 0
        """Bytes that they hold."""

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, parked: Parked, time: float) -> None:
        """This record's event happens at `time` (unix seconds)."""
        heapq.heappush(self._waiting, (time, next(self._order), parked))
        self.size += _size((parked,))

    def holds(self, parked: Parked) -> bool:
        """Whether this record waits here."""
        return any(one == parked for _, _, one in self._waiting)

    def due(self, now: Instant, quiet: Callable[[], bool]) -> float | None:
        """When the time of the first of them comes, or (while all is `quiet`) one may go as a pilot."""
        if not self._waiting:
            return None
        # A moment later, so that rounding does not have it judged before its time, again and again.
        comes = now.monotonic + self._waiting[0][0] - SKEW - now.unix + _ROUNDING
        return min(comes, self._pilot_at) if quiet() else comes

    def take(self, now: Instant, version: int) -> list[Parked]:
        """Those to be judged again now: whose time has come, or all, if `version` says that there is news."""
        if version != self._version:
            self._version = version
            taken = [parked for _, _, parked in sorted(self._waiting)]
            self._waiting, self.size = [], 0
            return taken
        taken = []
        while self._waiting and self._waiting[0][0] <= now.unix + SKEW:
            taken.append(heapq.heappop(self._waiting)[2])
        self.size -= _size(taken)
        return taken

    def pilot(self, now: Instant) -> Parked | None:
        """The one that shall go now, if one may."""
        if not self._waiting or now.monotonic < self._pilot_at:
            return None
        self._pilot_at = now.monotonic + _PILOT_EVERY
        parked = heapq.heappop(self._waiting)[2]
        self.size -= _size((parked,))
        return parked

    def no_call(self) -> None:
        """A pilot turned out to need no call (it was delivered before, say): the next may go at once."""
        self._pilot_at = -math.inf

    def purge(self) -> None:
        """Forget records that are no longer ours."""
        self._waiting = [one for one in self._waiting if one[2].ours]
        heapq.heapify(self._waiting)
        self.size = _size(parked for _, _, parked in self._waiting)


def _size(parked: Iterable[Parked]) -> int:
    return sum(span.costs[place] for span, place in parked)
