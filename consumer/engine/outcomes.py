"""The last steps of a record: it is delivered or dead-lettered, and what that needs is written before it settles.

Theory of operation. An outcome does not settle a record at once. A delivered event settles once its key is durable
(stage ``STORING``); a refused or unreadable record settles once the broker has its letter (``DEAD_LETTERING``). Until
then the record is open, so nothing is committed past it, and after a crash it is read again: the event is sent once
more under the same event id, or its letter is written twice.

Keys and letters each have an `Outbox`. It has at most one write under way; items that come meanwhile wait and go
together in the next write (group commit: the slower the disk, the larger the groups). Items that a write did not store
wait again, after a backoff that grows with failures in a row. An item leaves an outbox when it is written, or when its
assignment has ended.

When a leader is refused, its claim passes on (`Lookups.pass_on`): the first event that followed it is tried itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from math import inf
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from consumer.engine.block import (
    RecordStage,
    Run,
    divide,
    keys_of,
    kinds_of,
    mark_taken_over,
    move_all,
    pick,
    rows_of,
    times_of,
)
from consumer.engine.claims import ASK_AGAIN, Claims, Lookups
from consumer.engine.context import Context
from consumer.engine.figures.counters import LETTERS_MOST, Samples, StoredLetter
from consumer.engine.figures.delivered import Coverage, Freshness
from consumer.engine.guard import Guard
from consumer.engine.ledger import Ledger
from consumer.engine.messages import (
    DeadLetter,
    DeadLettersStored,
    KeysStored,
    StoreDeadLetters,
    StoreKeys,
)
from consumer.engine.model import Backoff, Disposition, Problem, Rejection
from consumer.engine.reading import Kind
from consumer.errors import bug

_PROBLEMS_MOST = 10


T = TypeVar("T")


class Letter(NamedTuple):
    """A record on its way to the dead-letter topic."""

    row: Run
    letter: DeadLetter


class Outbox(Generic[T]):
    """A queue with one write under way, of up to `most` records. `rows_in`: records that an item stands for."""

    def __init__(self, backoff: Backoff, most: int, rows_in: Callable[[T], int] = lambda _: 1) -> None:
        self._backoff = backoff
        self._most = most
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
    def rows_at_risk(self) -> int:
        """Records that a crash now would leave unwritten.

        Items for a later write do not count: another member has claimed their keys, and its own records count there.
        Two members that each wait for the other's outcome must not both stop sending.
        """
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
        # At least one item, however many records it stands for: a run of more than `most` must not wait for ever.
        count = max(1, bisect_right(up_to, self._most))
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


@dataclass(eq=False)
class Outcomes:
    """Moves records to the stage before the final one, writes their keys and letters, and settles them."""

    context: Context
    ledger: Ledger
    claims: Claims
    lookups: Lookups
    guard: Guard

    def __post_init__(self) -> None:
        backoff = self.context.policy.inner_backoff
        # The most records in one write: a larger write shares one wait for the acknowledgement among more records, but
        # the next write waits longer for it.
        self.keys: Outbox[Run] = Outbox(backoff, 10_000, lambda run: run.end - run.first)
        self.letters: Outbox[Letter] = Outbox(backoff, 500)
        self.freshness, self.coverage, self.samples = Freshness(), Coverage(), Samples()
        # The first records that could not be delivered.
        self.problems: list[Problem] = []
        # Newest first.
        self.latest_letters: deque[StoredLetter] = deque(maxlen=LETTERS_MOST)

    # -- delivered

    def delivered(self, runs: Sequence[Run]) -> None:
        """Take events that the API has processed: they count as delivered once their keys are durable."""
        move_all(runs, RecordStage.STORING)
        self.keys.add(runs)

    def write_keys(self) -> None:
        """Begin the next write of keys, if it is due."""
        number = self.context.number()
        if runs := self.keys.begin(number, self.context.now.monotonic):
            self.context.emit(StoreKeys(number, keys_of(runs)))

    def keys_not_stored(self, number: int) -> None:
        """Take a failed write of keys, which may have been done: it is tried again, and its events stay open."""
        self.context.counters.failures["key_store_write"] += 1
        self.keys.finish(number, False, self.context.now.monotonic, self.context.jitter())

    def keys_stored(self, happened: KeysStored) -> None:
        """Take a finished write of keys: events with durable keys settle, with the duplicates that waited for them."""
        now = self.context.now.monotonic
        done = self.keys.finish(happened.number, True, now, self.context.jitter())
        if happened.stored is not None and set(happened.stored) != {1}:
            # Our lease had ended, and another member had claimed some of these events. Keys that are not stored are
            # written again later: by then the other member's outcome may be known.
            taken_over, _ = pick(done, [flag != 1 for flag in happened.stored])
            self.context.counters.taken_over += mark_taken_over(taken_over)
            done, not_stored = pick(done, happened.stored)
            self.keys.add(not_stored, now + ASK_AGAIN)
        self.ledger.settle(self.claims.confirm(done), Disposition.DUPLICATE)
        # A partition may have been revoked during the call: its next owner settles these events, and finds their keys.
        ours, others = divide(done, attrgetter("ours"))
        self.context.counters.delivered_after_release += rows_of(others)
        self.freshness.add(times_of(ours), self.context.now)
        covered: Counter[Kind] = Counter()
        for (kind, section), count in kinds_of(ours).items():
            self.context.counters.delivered_by_name[kind.name] += count
            named = f"{kind.name} ({self.context.sections[section]})" if section else kind.name
            covered[kind._replace(name=named)] += count
        self.coverage.add(covered.items(), now)
        # Last, because a block drops the columns counted above with its last record.
        self.ledger.settle(ours, Disposition.DELIVERED)

    # -- refused

    def refused(self, row: Run, rejection: Rejection, attempts: int) -> None:
        """Take an event that the API refused for good."""
        # No letter is written for a partition that belongs to another member by now: it reads the record again.
        if row.ours:
            self.dead_letter(row, rejection, attempts)
        self.lookups.pass_on([row])

    def dead_letter(self, row: Run, rejection: Rejection, attempts: int) -> None:
        """Queue a record for the dead-letter topic; it settles once the broker has stored its letter."""
        tp, record = row.block.assignment.tp, row.block.record(row.first)
        move_all([row], RecordStage.DEAD_LETTERING)
        self.guard.judge(row, rejection)
        self.samples.rejections[rejection.stage.value, rejection.code] = rejection.message
        if len(self.problems) < _PROBLEMS_MOST:
            self.problems.append(Problem(tp.topic, tp.partition, record.offset, *rejection))
        at_ms = int(self.context.now.unix * 1000)
        letter = DeadLetter(tp.topic, tp.partition, record, rejection, attempts, at_ms)
        self.letters.add([Letter(row, letter)])

    def write_letters(self) -> None:
        """Begin the next write of letters, if it is due."""
        number = self.context.number()
        if letters := self.letters.begin(number, self.context.now.monotonic):
            self.context.emit(StoreDeadLetters(number, [one.letter for one in letters]))

    def letters_stored(self, happened: DeadLettersStored) -> None:
        """Take a finished write of letters: letters that the broker has stored settle their records."""
        counters = self.context.counters
        if failed := sum(not stored for stored in happened.stored):
            counters.failures["dead_letter"] += failed
            self.context.report("error", "dead_letters_not_stored", count=failed)
        # Letters that the broker did not acknowledge are written again: better two letters than none.
        now, jitter = self.context.now.monotonic, self.context.jitter()
        for row, letter in self.letters.finish(happened.number, happened.stored, now, jitter):
            # Looked up before the block drops its columns.
            section = self.context.sections[row.block.section(row.first)]
            if self.ledger.settle([row], Disposition.DEAD_LETTERED):
                counters.rejections[(letter.rejection.stage.value, letter.rejection.code)] += 1
                place = (letter.topic, letter.partition, letter.record.offset)
                stored = StoredLetter(letter.at_ms / 1000, *place, *letter.rejection, section)
                self.latest_letters.appendleft(stored)
        # Letters that were not written are in the outbox again, although their partition may have been revoked.
        self.letters.discard(lambda letter: not letter.row.ours)
