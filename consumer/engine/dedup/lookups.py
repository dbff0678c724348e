"""Look-ups in the key store: was this event delivered before?

Theory of operation. An event that leads its key is looked up in the key store before it is sent. A look-up that failed
is tried again, after a backoff that grows with failures in a row; its events stay open.

A key store that several members share also holds claims (`consumer.adapters.key_store.shared`): a look-up there claims
keys that were not delivered, for our *session*, as long as its *lease* holds (`lease`). An event that another member
has claimed waits (stage ``CLAIMED_BY_OTHER``) and is looked up again until its outcome is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

from consumer.engine.context import Context
from consumer.engine.messages import Found, KeysLookedUp
from consumer.engine.records.runs import Run, divide, pick, rows_of
from consumer.engine.records.stages import RecordStage
from consumer.errors import bug

# Seconds after which an event that another member has in flight is looked up again.
ASK_AGAIN: Final = 1.0

_DELIVERED, _CLAIMED_BY_OTHER = Found.DELIVERED, Found.CLAIMED_BY_OTHER


class Seen(NamedTuple):
    """Leaders by what the key store says of their keys."""

    new: Sequence[Run] = ()
    delivered: Sequence[Run] = ()
    claimed_by_other: Sequence[Run] = ()
    """Another member has claimed them."""
    unproven: Sequence[Run] = ()
    """Claimed by a session that has ended, or is not known yet: the claims prove nothing."""


class Lookups:
    """Look-ups under way or to be tried again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asked: dict[int, Sequence[Run]] = {}
        self._again: list[tuple[float, Sequence[Run]]] = []
        # Look-ups in a row that failed.
        self.failures = 0

    @property
    def busy(self) -> bool:
        """True if look-ups are under way or due again, so that an event may soon be sent."""
        return bool(self._asked or self._again)

    @property
    def claimed_by_other(self) -> int:
        """Events that wait for another member's outcome."""
        waiting = chain.from_iterable([*self._asked.values(), *(leaders for _, leaders in self._again)])
        return sum(
            block.stages.count(RecordStage.CLAIMED_BY_OTHER, first, end) for block, first, end in waiting
        )

    def ask(self, number: int, leaders: Sequence[Run]) -> None:
        """Remember which leaders the question `number` is about."""
        self._asked[number] = leaders

    def later(self, at: float, leaders: Sequence[Run]) -> None:
        """Have leaders looked up at `at` (monotonic) or later."""
        self._again.append((at, leaders))

    def due(self) -> float | None:
        """Return when a look-up is due next (monotonic); None: none waits."""
        return min([at for at, _ in self._again], default=None)

    def take_due(self) -> Sequence[Run]:
        """Return the leaders to be looked up now."""
        now = self._context.now.monotonic
        due = [leaders for at, leaders in self._again if at <= now] if self._again else ()
        if not due:
            return ()
        self._again = [entry for entry in self._again if entry[0] > now]
        return [*chain.from_iterable(due)]

    def answered(self, happened: KeysLookedUp, session: int) -> Seen:
        """Take the answer to a look-up. Return its leaders by what it says. `session`: ours in a shared key store."""
        self.failures = 0
        leaders, found = self._take(happened.number), happened.found
        if rows_of(leaders) != len(found):
            raise bug("a look-up was answered for more or fewer keys than asked")
        if happened.session != session:
            return Seen(unproven=leaders)
        if not any(found):
            return Seen(leaders)
        claimed_by_other, leaders = pick(leaders, [flag == _CLAIMED_BY_OTHER for flag in found])
        delivered, leaders = pick(
            leaders, [flag == _DELIVERED for flag in found if flag != _CLAIMED_BY_OTHER]
        )
        return Seen(leaders, delivered, claimed_by_other)

    def failed(self, number: int) -> tuple[float, Sequence[Run]]:
        """Take a look-up that failed. Return when it is to be tried again (monotonic), and its leaders."""
        self.failures += 1
        self._context.counters.failures["key_store_look_up"] += 1
        delay = self._context.policy.inner_backoff.delay(self.failures, 0.5 + self._context.jitter() / 2)
        return self._context.now.monotonic + delay, self._take(number)

    def purge(self) -> Sequence[Run]:
        """Remove and return the leaders that wait to be looked up and for which no new work may begin."""
        divided = [(at, *divide(leaders)) for at, leaders in self._again]
        self._again = [(at, kept) for at, kept, _ in divided if kept]
        return [*chain.from_iterable(gone for *_, gone in divided)]

    def _take(self, number: int) -> Sequence[Run]:
        leaders = self._asked.pop(number, None)
        if leaders is None:
            raise bug(f"look-up {number} was answered but not asked")
        return leaders
