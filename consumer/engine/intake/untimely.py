"""Records of events that seem to lie ahead, or to be too old: they wait until more is known of the time.

Theory of operation. Events too far ahead of our clock, which may be slow, wait as open records and are judged again,
and so do those that are too old by our clock, which may be fast. While the platform's time is not known, an event too
far ahead is not refused if its record's timestamp is ahead of our clock, too; and none is too old unless the records
have confirmed our clock (`consumer.engine.clock`). An event waits until its time comes, or the engine's time changes.
While any waits, the platform is asked for the time (`consumer.engine.sending.time_question`).

These events share the bounds of records that wait for their schema (`admission`), and are forgotten with
their assignment.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Final

from consumer.engine.context import SKEW
from consumer.engine.model import Instant, Later
from consumer.engine.records.runs import Run, bytes_of

_A_MOMENT: Final = 0.01


class UntimelyRecords:
    """Records of events that lie ahead, by the time of the event; then those that look too old."""

    def __init__(self) -> None:
        # A heap.
        self._waiting: list[tuple[float, int, Run]] = []
        self._order = itertools.count()
        self._version = 0
        # Bytes that the waiting records hold.
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, row: Run, later: Later) -> None:
        """Hold a record until its event is to be judged again."""
        heapq.heappush(self._waiting, (later.time, next(self._order), row))
        self.size += bytes_of((row,))

    def due(self, now: Instant) -> float | None:
        """Return when the first event's time comes; None: none will come."""
        if not self._waiting or self._waiting[0][0] == math.inf:
            return None
        # A moment later, so that rounding does not judge the event before its time, again and again.
        return now.monotonic + self._waiting[0][0] - SKEW - now.unix + _A_MOMENT

    def take(self, now: Instant, version: int) -> list[Run]:
        """Return the records to be judged again now: those whose time has come, or all if `version` has changed."""
        # The engine's time has changed, so all are judged again.
        if version != self._version:
            self._version = version
            taken = [parked for *_, parked in sorted(self._waiting)]
            self._waiting, self.size = [], 0
            return taken
        taken = []
        while self._waiting and self._waiting[0][0] <= now.unix + SKEW:
            taken.append(heapq.heappop(self._waiting)[-1])
        self.size -= bytes_of(taken)
        return taken

    def purge(self) -> list[Run]:
        """Remove and return records that were revoked or are being drained."""
        gone = [row for *_, row in self._waiting if not row.accepted]
        self._waiting = [one for one in self._waiting if one[-1].accepted]
        heapq.heapify(self._waiting)
        self.size = bytes_of(row for *_, row in self._waiting)
        return gone
