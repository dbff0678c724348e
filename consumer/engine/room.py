"""Room: how many records to fetch now. A level, read before each fetch (design.md, rules 5 and 8).

Theory of operation. Each limit says how many more it leaves, and the least of them counts: the budget in events and
in bytes, the offset maps, a destination that is halted, the guard, and for a replay its pace and its limit. Nothing
here changes anything but `Pace`, which keeps time, and does so only when an input is handled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from consumer.engine.dispatch import TOKEN_REFUSED, Dispatcher
from consumer.engine.guard import Guard
from consumer.engine.intake import Prepared
from consumer.engine.ledger import Ledger
from consumer.engine.model import Filtered
from consumer.engine.parking import Parking
from consumer.engine.policy import Policy

if TYPE_CHECKING:
    from consumer.engine.admission import Admission
    from consumer.engine.context import Context

FETCH_MOST = 1000
"""Records in one fetch at most: large enough that per-chunk costs vanish, small enough to keep the loop lively."""
_CRAWL = 1.0
"""Seconds between two fetches while an offset map is full."""
_BURST = 0.1
"""Seconds of its pace that a replay may be ahead."""
_UNUSED = 1.0
"""Seconds of its pace that it may catch up on: an outage of an hour must not be followed by an hour's events."""
_AHEAD = 2.0
"""Seconds of its pace that may be open: what is read while the platform takes nothing goes all at once afterwards."""
_ROUNDING = 1e-6


class Limit:
    """At most `most` records are read, not counting those that are filtered: tombstones, too old ones, and what
    ``--where`` left out."""

    def __init__(self, most: int | None, ledger: Ledger) -> None:
        self._most = most
        self._ledger = ledger
        self.left_out = 0
        """Records read and filtered."""

    def left(self) -> int:
        """How many more may be read. What waits for its schema may turn out to be filtered: it counts till then."""
        return FETCH_MOST if self._most is None else self._most - self._counted()

    def cut(self, items: Sequence[Prepared | None], count: int) -> int:
        """How many of the first `count` of these may be read."""
        left = self.left()
        if self._most is None or left >= count:
            return count
        for at, item in enumerate(items[:count]):
            left -= item is not None and type(item) is not Filtered
            if left < 0:
                return at
        return count

    def room(self, held: int) -> int:
        """How many to fetch: as many as it takes, as far as can be told from what was read, to find what is left."""
        if self._most is None:
            return FETCH_MOST
        left, counted = self.left(), self._counted()
        return left * (1 + counted + self.left_out) // (1 + counted) - held if left > 0 else 0

    def reached(self, waiting: int) -> bool:
        """Whether nothing more will be read; so many `waiting` records have no verdict yet."""
        return self._most is not None and self._counted() - waiting >= self._most

    def _counted(self) -> int:
        return self._ledger.settlements + self._ledger.open - self.left_out


class Pace:
    """At most `rate` events a second go on. What of that was not used within a second is gone."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(1.0, rate * _BURST)
        self._ahead = max(1.0, rate * _AHEAD)
        self._allowed = self._left = self._burst
        self._at: float | None = None

    @property
    def endless(self) -> bool:
        """Whether there is no pace to keep."""
        return math.isinf(self._rate)

    def go_on(self, gone_on: int, still_open: int, now: float) -> None:
        """So many events have gone on until `now`, some of them are open. The first time is when the pace begins."""
        since = now - self._at if self._at is not None else 0.0
        self._at = now
        most = gone_on + max(1.0, self._rate * _UNUSED)
        self._allowed = min(self._allowed + since * self._rate, most)
        self._left = min(self._allowed - gone_on, self._ahead - still_open)

    def room(self) -> int:
        """How many more may go on now."""
        return FETCH_MOST if self.endless else math.floor(self._left + 2 * _ROUNDING)

    def due(self) -> float | None:
        """When there is room for a whole burst; None: there is, or it has not begun."""
        if self.endless or self._at is None or self._left >= self._burst * (1 - _ROUNDING):
            return None
        return self._at + (self._burst - self._left) / self._rate


class Room:
    """What all the limits leave."""

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        parking: Parking,
        admission: Admission,
        dispatcher: Dispatcher,
        guard: Guard,
        limit: Limit,
    ) -> None:
        self._context = context
        self._policy: Policy = context.policy
        self._ledger = ledger
        self._parking = parking
        self._admission = admission
        self._dispatcher = dispatcher
        self._guard = guard
        self._limit = limit
        self._pace = Pace(context.policy.events_per_second)
        self._fed_at = 0.0

    def fed(self) -> None:
        """A fetch came back."""
        self._fed_at = self._context.now.monotonic

    def go_on(self) -> None:
        """An input was handled: let the pace know what has gone on."""
        if self._pace.endless or not any(True for _ in self._ledger):
            return
        totals = self._ledger.totals()
        still_open = totals.open + self._admission.held
        self._pace.go_on(totals.delivered + still_open, still_open, self._context.now.monotonic)

    def level(self) -> int:
        """How many records to fetch now at most; 0: pause."""
        if self._guard.tripped is not None:
            return 0
        # With nothing open there is room for one, however large: else one huge record would stop the line.
        least = 1 if not self._ledger.open and not self._admission.held else 0
        room = max(least, 0 if self._halted() else self._budget())
        return max(0, min(room, self._pace.room(), self._limit.room(self._admission.held)))

    def enough(self) -> bool:
        """Whether the limit is reached."""
        return self._limit.reached(self._admission.waiting)

    def due(self) -> float | None:
        """When the pace leaves room again."""
        return None if self._guard.tripped is not None or self.enough() else self._pace.due()

    def _budget(self) -> int:
        most = int(FETCH_MOST * self._map_share())
        return min(self._policy.max_open_events - self._ledger.open, self._admission.room(), most)

    def _map_share(self) -> float:
        """What the offset maps leave of a fetch. A full one slows intake down and never stops it.

        What does not fit into a map may be sent again after a crash; a stop would strand all that has nothing to do
        with the records that wait.
        """
        now = self._context.now.monotonic
        share = self._ledger.map_share(now)
        return 1.0 if now - self._fed_at >= _CRAWL else share

    def _halted(self) -> bool:
        """Whether intake stops: the token is refused, or every account, or refused ones hold half of the budget.

        One refused account of several does not stop the others (lessons.md: rudder-server #4953).
        """
        halted = [queue for queue in self._dispatcher if queue.gate.halt is not None]
        if not halted:
            return False
        if len(halted) >= self._policy.accounts or any(
            queue.gate.halt is not None and queue.gate.halt.status == TOKEN_REFUSED for queue in halted
        ):
            return True
        return sum(queue.queued for queue in halted) * 2 >= self._policy.max_open_events
