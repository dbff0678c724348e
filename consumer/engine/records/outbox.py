"""The last writes of a record before it settles: the key of a delivered event, the dead letter of a refused record,
and the receipt of any outcome.

Theory of operation. An outcome does not settle a record at once. A delivered event settles once its key is durable
(stage ``STORING``); a refused or unreadable record settles once the broker has its letter (``DEAD_LETTERING``). Until
then the record is open, so nothing is committed past it, and after a crash it is read again: the event is sent
again under the same event id, or its letter is written twice.

If receipts are wanted, a record whose outcome is known first waits for the receipt of it (``RECEIPTING``): before its
key is stored, or before it settles. A letter is written before its receipt.

Keys, letters and receipts each have an `Outbox`. It has at most one write under way; items that come in that time wait
and go together in the next write (group commit: the slower the disk, the larger the groups). Items that a write did not
store wait again, after a backoff that grows with failures in a row. An item leaves an outbox when it is written, or
when its assignment has ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from math import inf
from typing import Generic, NamedTuple, TypeVar

from consumer.engine.messages import DeadLetter
from consumer.engine.model import Backoff
from consumer.engine.receipts import Call, Outcome
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import RecordStage
from consumer.errors import bug

T = TypeVar("T")


class Letter(NamedTuple):
    """A record on its way to the dead-letter topic."""

    row: Run
    letter: DeadLetter
    call: Call | None
    """The call in which the event was refused; None: it was not sent."""


class Receipt(NamedTuple):
    """Records on their way to the receipts topic, and the stage that they go to then."""

    run: Run
    outcome: Outcome
    then: RecordStage
    letter: DeadLetter | None


class Outbox(Generic[T]):
    """A queue with one write under way, of up to `limit` records. `rows_in`: records that an item stands for."""

    def __init__(self, backoff: Backoff, limit: int, rows_in: Callable[[T], int] = lambda _: 1) -> None:
        self._backoff = backoff
        self.limit = limit
        self._rows_in = rows_in
        self._waiting: list[T] = []
        self.writing: list[T] = []
        self._number: int | None = None
        # Writes in a row that did not write everything.
        self.failures = 0
        # The end of the backoff (monotonic): no write begins before it.
        self.not_before = -inf
        self._later: list[tuple[float, Sequence[T]]] = []

    def __iter__(self) -> Iterator[T]:
        """Yield all items that are not known to be written."""
        yield from self.writing
        yield from self._waiting
        yield from chain.from_iterable(items for _, items in self._later)

    def __len__(self) -> int:
        return len(self.writing) + len(self._waiting) + sum(len(items) for _, items in self._later)

    @property
    def rows(self) -> int:
        """Records that are not known to be written."""
        return sum(map(self._rows_in, self))

    @property
    def rows_at_risk(self) -> int:
        """Records that a crash now would leave unwritten.

        Items for a later write do not count: another member has claimed their keys, and its own records count there.
        Two members that each wait for the other's outcome must not both stop sending.
        """
        if not (self.writing or self._waiting):  # asked with each input
            return 0
        return sum(map(self._rows_in, chain(self.writing, self._waiting)))

    def add(self, items: Sequence[T], at: float = -inf) -> None:
        """Queue items for the next write, or for one that begins at `at` (monotonic) or later."""
        if at == -inf:
            self._waiting.extend(items)
        elif items:
            self._later.append((at, items))

    def due(self) -> float | None:
        """When the next write may begin; None while nothing waits or one is under way."""
        if self._number is not None:
            return None
        begins = [-inf] if self._waiting else [at for at, _ in self._later]
        return max(self.not_before, min(begins)) if begins else None

    def begin(self, number: int, now: float) -> Sequence[T]:
        """Begin the next write under this number, and return its items; none: no write may begin now."""
        due = self.due()
        if due is None or due > now:
            return ()
        for entry in [one for one in self._later if one[0] <= now]:
            self._later.remove(entry)
            self._waiting.extend(entry[1])
        self._number = number
        up_to = [*accumulate(map(self._rows_in, self._waiting))]
        # At least one item, however many records it stands for: a run of more than `limit` must not wait indefinitely.
        count = max(1, bisect_right(up_to, self.limit))
        self.writing, self._waiting = self._waiting[:count], self._waiting[count:]
        return self.writing

    def finish(self, number: int, written: Sequence[bool] | bool, now: float, jitter: float) -> list[T]:
        """Take the answer to the write `number`: whether all items, or which of them, were written. Return the
        written ones."""
        if number != self._number:
            raise bug(f"write {number} was answered, {self._number} is under way")
        items, self.writing, self._number = self.writing, [], None
        flags = [written] * len(items) if isinstance(written, bool) else written
        if len(flags) != len(items):
            raise bug("a write was answered for more or fewer items than it had")
        if all(flags):
            self.failures, self.not_before = 0, -inf
            return items
        # Items that were not written go first, so that the order stays.
        done = [item for item, flag in zip(items, flags, strict=True) if flag]
        self._waiting = [item for item, flag in zip(items, flags, strict=True) if not flag] + self._waiting
        self.failures += 1
        # At least half of the longest delay: an immediate second try does not help a broken disk or broker.
        self.not_before = now + self._backoff.delay(self.failures, 0.5 + jitter / 2)
        return done

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Forget waiting items that are unwanted, and return them."""
        # Items in the current write stay until its answer comes: they may be written.
        gone = [item for item in self._waiting if unwanted(item)]
        self._waiting = [item for item in self._waiting if not unwanted(item)]
        return gone
