"""Room: how many records to fetch now.

Theory of operation. Room is a level, read before each fetch (docs/architecture.md, rule 5). Each limit says how many
more records it allows, and the lowest number counts: the budget in events and in bytes, the offset maps, a destination
that is halted, the guard, and for a replay its pace and its limit. Reading the level changes nothing; the pace advances
when an input is handled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from consumer.engine.context import Context
from consumer.engine.intake.admission import MAX_FETCH, Admission
from consumer.engine.intake.guard import Guard
from consumer.engine.intake.parking import Parking
from consumer.engine.intake.untimely import UntimelyRecords
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.outbox import Outbox, Receipt
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.halts import is_of_all

# Seconds between two fetches while an offset map is full.
_CRAWL = 1.0
# Seconds of its pace by which a replay may be ahead.
_BURST = 0.1
# Seconds of its pace that a replay may catch up on: after an outage of an hour, an hour's events must not go at once.
_UNUSED = 1.0
# Seconds of its pace that may be open: records read while the platform accepts no events go all at once afterwards.
_AHEAD = 2.0
_ROUNDING = 1e-6


@dataclass(eq=False)
class Room:
    """How many records to fetch now: the least that any limit allows."""

    _context: Context
    _ledger: Ledger
    _admission: Admission
    _parking: Parking
    _untimely: UntimelyRecords
    _dispatcher: Dispatcher
    _guard: Guard
    _receipts: Outbox[Receipt]
    # When the last fetch came back.
    fed_at: float = 0.0
    _paced_at: float | None = None

    def __post_init__(self) -> None:
        self._rate = self._context.policy.events_per_second
        self._burst = max(1.0, self._rate * _BURST)
        self._ahead = max(1.0, self._rate * _AHEAD)
        # Events that may have gone on by now, and how many of these have not.
        self._allowed = self._unused = self._burst
        # Of those, how many may be read now: open events take up room.
        self._left = self._burst

    def go_on(self) -> None:
        """Update a replay's pace after an input was handled: count the events that have gone on, open ones
        included. The first call starts the pace.

        At most `events_per_second` go on. Unused pace of more than a second is lost.
        """
        if math.isinf(self._rate) or not any(True for _ in self._ledger):
            return
        totals, now = self._ledger.totals(), self._context.now.monotonic
        still_open = totals.open + self._admission.held
        gone_on = totals.delivered + still_open
        since = now - self._paced_at if self._paced_at is not None else 0.0
        self._paced_at = now
        self._allowed = min(self._allowed + since * self._rate, gone_on + max(1.0, self._rate * _UNUSED))
        self._unused = self._allowed - gone_on
        self._left = min(self._unused, self._ahead - still_open)

    def level(self) -> int:
        """Return how many records to fetch now at most, up to `MAX_FETCH`; 0: pause."""
        if self._guard.tripped is not None:
            return 0
        ledger, admission = self._ledger, self._admission
        # With nothing open there is room for one record, however large: otherwise a huge record would stop intake.
        room = 1 if not ledger.open and not admission.held else 0
        if not self._halted():
            # A full offset map slows intake down and never stops it. Records that do not fit into a map may be sent
            # again after a crash; a stop would hold back all other records because of the few that wait.
            now = self._context.now.monotonic
            share = 1.0 if now - self.fed_at >= _CRAWL else ledger.map_share(now)
            events = self._context.policy.max_open_events - ledger.open
            room = max(room, min(events, admission.room(ledger.open_bytes), int(MAX_FETCH * share)))
        pace = MAX_FETCH if math.isinf(self._rate) else math.floor(self._left + 2 * _ROUNDING)
        return max(0, min(room, pace, admission.limited_room(ledger.counted, ledger.filtered)))

    def enough(self) -> bool:
        """Return True if the limit of records is reached."""
        # A record that waits may still turn out to be filtered, or is filtered and waits for its receipt: it does not
        # count then.
        waiting = len(self._parking) + len(self._untimely) + self._admission.deferred + self._receipts.rows
        return self._admission.left(self._ledger.counted) + waiting <= 0

    def due(self) -> float | None:
        """Return when the pace allows a whole burst again; None: it does already, or has not begun.

        Room that open events take up does not count: it is their answers that free it, and not time.
        """
        if self._paced_at is None or self._guard.tripped is not None or self.enough():
            return None
        short = self._burst - self._unused
        return None if short <= self._burst * _ROUNDING else self._paced_at + short / self._rate

    def _halted(self) -> bool:
        """Return True if intake stops: the token of all accounts is refused, or every account, or refused
        accounts hold half of the budget.

        One refused account of several does not stop the others (rudder-server #4953), nor does a token of its own.
        """
        policy = self._context.policy
        halted = [(queue, halt) for queue in self._dispatcher if (halt := queue.gate.halt) is not None]
        if len(halted) >= policy.accounts or any(is_of_all(halt.status, policy) for _, halt in halted):
            return True
        return sum(queue.queued for queue, _ in halted) * 2 >= policy.max_open_events
