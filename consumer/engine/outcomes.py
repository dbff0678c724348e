"""The last steps of a record: it is delivered or dead-lettered, and what that needs is written before it settles.

Theory of operation. An outcome does not settle a record at once. A delivered event settles once its key is durable
(stage ``STORING``); a refused or unreadable record settles once the broker has its letter (``DEAD_LETTERING``). Until
then the record is open, so nothing is committed past it, and after a crash it is read again: the event is sent once
more under the same event id, or its letter is written twice. Keys and letters each have an `Outbox`, which tries until
they are written.

When a leader is refused, its claim passes on (`Lookups.pass_on`): the first event that followed it is tried itself.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from consumer.engine.block import RecordStage, Run
from consumer.engine.claims import Claims, Letter, Outbox
from consumer.engine.context import Context
from consumer.engine.figures.counters import LETTERS_MOST, Samples, StoredLetter
from consumer.engine.figures.delivered import Coverage, Freshness
from consumer.engine.guard import Guard
from consumer.engine.keys import ASK_AGAIN, Lookups
from consumer.engine.ledger import Ledger
from consumer.engine.messages import DeadLetter, DeadLettersStored, KeysStored, StoreDeadLetters, StoreKeys
from consumer.engine.model import Disposition, Problem, Rejection
from consumer.engine.reading import Kind
from consumer.engine.runs import divide, keys_of, kinds_of, mark_taken_over, move_all, pick, rows_of, times_of

_PROBLEMS_MOST = 10


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
