"""A record's way, on one page: one method for each step, in the order of the way, and no other module moves a record.

Theory of operation. Each part holds records of one stage or two: `intake` those that are not read yet, or wait for
their schema, their time or room; `dedup` those that follow or are looked up; `sending` those that are queued or in a
call; `records.outbox` those whose key, letter or receipt is being written. A part says what is due and hands back what
it has; it moves no record and knows no other part. Here records go from part to part, and their stage with them
(`records.stages.MOVES`).

Three rules hold throughout:

* A record whose partition is being drained, or whose assignment has ended, begins nothing new: it is *freed*, and its
  next owner reads it again. Only a record in a call or in a write of its key, letter or receipt stays: its outcome
  settles it.
* Whoever held a claim and is not delivered gives it back: the first follower that is still ours claims it and is looked
  up. So a claim never waits for a record that does not go on.
* What is read off a block (keys, kinds, times) is read before its rows settle: a block drops its columns with the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from consumer.engine import messages as m
from consumer.engine.clock import Clock
from consumer.engine.context import Context
from consumer.engine.dedup.claims import Claims
from consumer.engine.dedup.lease import Lease
from consumer.engine.dedup.lookups import ASK_AGAIN, Lookups
from consumer.engine.figures.delivered import HOUR
from consumer.engine.figures.settled import SettledFigures
from consumer.engine.intake.admission import Admission, Fresh, Level, Waited
from consumer.engine.intake.guard import Guard
from consumer.engine.intake.parking import Parking
from consumer.engine.intake.transforming import Transforming
from consumer.engine.intake.untimely import UntimelyRecords
from consumer.engine.model import (
    Chunk,
    Disposition,
    Filtered,
    Later,
    NotSelected,
    Problem,
    Rejection,
    SchemaRef,
    Untimely,
    trace_parents,
)
from consumer.engine.reading import UNCLEAR, Columns, NoEvent
from consumer.engine.receipts import Call, Outcome
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.outbox import Letter, Outbox, Receipt
from consumer.engine.records.runs import (
    Run,
    divide,
    each_of,
    earlier_keys_of,
    keys_of,
    kinds_of,
    late_of,
    mark_taken_over,
    move_all,
    pick,
    receipts_of,
    rows_of,
    runs_by_verdict,
    runs_on,
    times_of,
    values_of,
)
from consumer.engine.records.stages import OUTCOME_BEFORE, SETTLED_AS, RecordStage
from consumer.engine.sending.answers import Answers, Judged
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.verdicts import NoVerdict, Throttled, request_id


@dataclass(eq=False)
class Steps:
    """Moves records from part to part."""

    context: Context
    clock: Clock
    ledger: Ledger
    guard: Guard
    admission: Admission
    parking: Parking
    untimely: UntimelyRecords
    transforming: Transforming
    claims: Claims
    lookups: Lookups
    lease: Lease
    dispatcher: Dispatcher
    answers: Answers
    keys: Outbox[Run]
    letters: Outbox[Letter]
    receipts: Outbox[Receipt]
    figures: SettledFigures
    # Delivered events without an acknowledged receipt.
    unreceipted: int = 0

    # -- fetched -> READ -> its first stage

    def fetched(self, state: AssignmentState | None, chunk: Chunk) -> None:
        """Hold a fetched chunk until its records fit. `state` None: it is not ours any more."""
        self._forget(len(chunk.records) if state is None else self.admission.hold(state, chunk))

    def _forget(self, records: int) -> None:
        """Count records that were fetched and not read."""
        self.ledger.released_unread += records

    def level(self) -> Level:
        """Return how full the budget is."""
        ledger, parking, untimely = self.ledger, self.parking, self.untimely
        waiting, size = len(parking) + len(untimely), parking.size + untimely.size
        stopped = self.guard.tripped is not None
        return Level(ledger.open, ledger.open_bytes, ledger.counted, waiting, size, stopped)

    def admit(self) -> None:
        """Read records and enter as many as fit; open ones that have waited come first."""
        leaders: list[Run] = []
        # Each slice depends on what the one before left.
        while self.admission.waits and (piece := self.admission.next(level := self.level())) is not None:
            if self.context.policy.transform:
                piece = piece.first(self.transforming.ready(piece.tp, piece.records))
                if not piece.records:
                    break  # the user's function has not returned yet
            columns = self._read(piece)
            taken = self.admission.take(piece, columns, level)
            if taken:
                fitting = piece.first(taken)
                self.transforming.read(fitting.records)
                leaders += (
                    self.enter(fitting, columns)
                    if isinstance(fitting, Fresh)
                    else self.reenter(fitting, columns)
                )
                self.figures.warned(columns.warnings.values())
                self.guard.weigh()
            if taken < len(piece.records):
                break
        self.look_up(leaders)

    def _read(self, piece: Fresh | Waited) -> Columns:
        columns = self.admission.read(piece)
        for row, verdict in columns.verdicts.items():
            record = piece.records[row]
            # Whether the event is refused or waits depends on which clock is wrong.
            if isinstance(verdict, Untimely) and record is not None:
                columns.verdicts[row] = self.clock.may_wait(verdict, record.timestamp) or verdict.verdict
        return columns

    def enter(self, piece: Fresh, columns: Columns) -> list[Run]:
        """Enter new records in the ledger: READ, or PASSED. Return the events that lead their keys."""
        block = self.ledger.track(piece.state, piece.chunk, piece.sizes, columns, piece.passed)
        self.guard.read(block, columns.verdicts)
        for run, verdict in runs_by_verdict(block, columns.verdicts):
            self.aside(run, verdict)
        leaders = [leader for run in runs_on(block, RecordStage.READ) for leader in self.claim(run)]
        self.admission.held_by(block.held, len(piece.records))
        return leaders

    def reenter(self, piece: Waited, columns: Columns) -> list[Run]:
        """Enter the events of records that have waited. Return those that lead their keys."""
        events: dict[Block, dict[int, int]] = {}
        for row, (block, index, _) in enumerate(piece.rows):
            if columns.is_event(row):
                events.setdefault(block, {})[index] = row
        for block, of_block in events.items():
            self.ledger.insert(block, of_block, columns)
        leaders: list[Run] = []
        for row, run in enumerate(piece.rows):
            if row < len(columns.sections):
                run.block.put_section(run.first, columns.sections[row])
            verdict = columns.verdicts.get(row)
            if verdict is None:
                leaders += self.claim(run)
            else:
                self.decided([(run, verdict)])
        return leaders

    def aside(self, row: Run, verdict: NoEvent) -> None:
        """End a record that is not an event, or have it wait: SCHEMA, CLOCK, FILTERED, DEAD_LETTERING.

        Of filtered records `row` may be several.
        """
        if isinstance(verdict, SchemaRef):
            move_all([row], RecordStage.SCHEMA)
            self.parking.park(verdict, row, self.context.now.monotonic)
        elif isinstance(verdict, Later):
            move_all([row], RecordStage.CLOCK)
            self.untimely.wait(row, verdict)
        elif isinstance(verdict, NotSelected):
            self.concluded([row], RecordStage.FILTERED, verdict.code, None)
        elif isinstance(verdict, Filtered):
            self.conclude([row], RecordStage.FILTERED, verdict.code)
        else:
            self.dead_letter(row, verdict, 0)

    # -- SCHEMA, CLOCK -> ROOM -> as READ

    def unparked(self, rows: Sequence[Run]) -> None:
        """Queue open records for room in the budget: their schema or their time has come, so they can be read."""
        if rows:
            move_all(rows, RecordStage.ROOM)
            kept, gone = divide(rows)
            self.free(gone)
            self.admission.defer(kept)

    def judge_untimely(self) -> None:
        """Judge untimely events again: those whose time has come; all of them, if the engine's time has changed."""
        if taken := self.untimely.take(self.context.now, self.clock.version):
            self.unparked(taken)
            self.admit()

    def decided(self, rows: Iterable[tuple[Run, NoEvent]]) -> None:
        """Handle the verdicts on open records that waited and are not events (yet); none of them needs room."""
        for row, verdict in rows:
            # Nothing is settled once the guard has tripped: it is read again after the cause is corrected.
            if self.guard.tripped is not None:
                self.free([row])
                continue
            self.aside(row, verdict)
            if isinstance(verdict, Filtered):
                self.guard.judge(row, None)

    # -- READ, ROOM -> FOLLOWING, LOOKED_UP -> QUEUED, DUPLICATE, CLAIMED_BY_OTHER

    def claim(self, run: Run) -> Sequence[Run]:
        """Claim the keys of these events. Return those that lead their keys, to be looked up; the others follow."""
        leaders, followers = [run], self.claims.claim(run)
        if followers:
            self.context.counters.followers += len(followers)
            move_all(followers, RecordStage.FOLLOWING)
            follows = {follower.first for follower in followers}
            leaders, _ = pick([run], [index not in follows for index in range(run.first, run.end)])
        move_all(leaders, RecordStage.LOOKED_UP)
        return leaders

    def look_up(self, leaders: Sequence[Run]) -> None:
        """Ask the key store whether these leaders were delivered before."""
        if leaders:
            number = self.context.number()
            self.lookups.ask(number, leaders)
            self.context.emit(m.LookUpKeys(number, keys_of(leaders), earlier_keys_of(leaders)))

    def looked_up(self, happened: m.KeysLookedUp) -> None:
        """Take the answer to a look-up: settle events delivered before, queue the others."""
        now, seen = self.context.now.monotonic, self.lookups.answered(happened, self.lease.session)
        self._look_up_later(now, seen.unproven)
        if seen.delivered:
            if self.lease.shared:
                # Events that we sent in a call without an answer, and that another member delivered after our lease
                # had ended.
                marks = [mark for block, first, end in seen.delivered for mark in block.marks[first:end]]
                sent_too, _ = pick(seen.delivered, [mark & UNCLEAR for mark in marks])
                self.context.counters.taken_over += mark_taken_over(sent_too)
            followers = self.claims.confirm(seen.delivered)
            self.conclude([*seen.delivered, *followers], RecordStage.DUPLICATE)
        if seen.claimed_by_other:
            move_all(seen.claimed_by_other, RecordStage.CLAIMED_BY_OTHER)
            self._look_up_later(now + ASK_AGAIN, seen.claimed_by_other)
        leaders, gone = divide(seen.new)
        move_all(leaders, RecordStage.QUEUED)
        for run in leaders:
            for account, part in run.by_account():
                self.dispatcher.queue(account).add(part, now)
        self.free_leaders(gone)

    def look_up_failed(self, number: int) -> None:
        """Take a look-up that failed: it is tried again later."""
        self._look_up_later(*self.lookups.failed(number))
        self.lease.renew_soon()

    def _look_up_later(self, at: float, leaders: Sequence[Run]) -> None:
        """Look events up at `at` or later, except those for which no new work may begin."""
        if not leaders:
            return
        kept, gone = divide(leaders)
        if kept:
            self.lookups.later(at, kept)
        self.free_leaders(gone)

    # -- QUEUED -> LOOKED_UP

    def new_session(self) -> None:
        """Look up again what is queued: the session that claimed it has ended."""
        queued = [run for queue in self.dispatcher for run in queue.purge(lambda _: False)]
        self.context.report("warning", "claimed_again", events=rows_of(queued))
        self.claim_again(queued)

    def claim_again(self, queued: Sequence[Run]) -> None:
        """Look up again events that a session claimed which has ended: another member may have claimed them by now."""
        kept, gone = divide(queued)
        move_all(kept, RecordStage.LOOKED_UP)
        self.look_up(kept)
        self.free_leaders(gone)

    # -- QUEUED -> IN_FLIGHT -> STORING, DEAD_LETTERING, QUEUED

    @property
    def at_risk(self) -> int:
        """Delivered events whose keys are not durable yet."""
        return self.unreceipted + self.keys.rows_at_risk

    def send(self) -> None:
        """Begin the calls that may begin now."""
        context, policy, lease = self.context, self.context.policy, self.lease
        for batch, parts in self.dispatcher.send(self.at_risk, lease.until, lease.session):
            move_all(batch.runs, RecordStage.IN_FLIGHT)
            links = policy.trace_links
            records = (record for block, first, end in batch.runs for record in block.records[first:end])
            parents = trace_parents(records, links) if links else ()
            # A process that stood still since now may have lost the partition. And the answer must come while the
            # claims hold. The shell checks both again.
            start_deadline = min(context.now.monotonic + policy.away, lease.until - policy.call_timeout)
            context.emit(
                m.Send(
                    batch.number, batch.account, parts, batch.events, batch.attempts, parents, start_deadline
                )
            )

    def answered(self, happened: m.Answered) -> None:
        """Take the API's answer to a call."""
        batch = self.dispatcher.answered(happened.number)
        verdict = self.answers.read(batch, happened)
        if not isinstance(verdict, NoVerdict | Throttled):  # the platform's own words
            self.clock.answered(happened.headers.get("date"), batch.sent_at)
        answered_ms = int(self.context.now.unix * 1000)
        call = Call(request_id(happened.headers), happened.status, answered_ms)
        self.judged(self.answers.apply(batch, verdict, happened), batch.attempts, call)

    def unanswered(self, happened: m.Unanswered) -> None:
        """Take the end of a call that brought no answer."""
        batch = self.dispatcher.answered(happened.number)
        self.judged(self.answers.unanswered(batch, happened), batch.attempts, None)

    def judged(self, judged: Judged, attempts: int, call: Call | None) -> None:
        """Move the events of a call on, as they were judged. `attempts`: calls made with them; `call`: this one, if it
        was answered."""
        for row, rejection in judged.refused:
            # No letter is written for a partition that belongs to another member by now: it reads the record again.
            if row.ours:
                self.dead_letter(row, rejection, attempts, call)
        if judged.refused:
            self.transfer(row for row, _ in judged.refused)
        self.conclude(judged.delivered, RecordStage.STORING, None, attempts, call)
        now = self.context.now.monotonic
        for batch in judged.again:
            self.free_leaders(batch.purge())
            # All partitions of the batch may have been revoked.
            if not batch.runs:
                continue
            self.context.counters.retried_batches += 1
            move_all(batch.runs, RecordStage.QUEUED)
            # Claims of an ended session may be another member's by now.
            if batch.session == self.lease.session:
                self.dispatcher.queue(batch.account).put_back(batch, max(judged.at, now))
            else:
                self.claim_again(batch.runs)

    # -- STORING -> DELIVERED, and its followers -> DUPLICATE

    def write_keys(self) -> None:
        """Begin the next write of keys, if it is due."""
        number = self.context.number()
        if runs := self.keys.begin(number, self.context.now.monotonic):
            self.context.emit(m.StoreKeys(number, keys_of(runs)))

    def keys_not_stored(self, number: int) -> None:
        """Take a failed write of keys, which may have been done: it is tried again, and its events stay open."""
        self.context.counters.failures["key_store_write"] += 1
        self.keys.finish(number, False, self.context.now.monotonic, self.context.jitter())

    def keys_stored(self, happened: m.KeysStored) -> None:
        """Take a finished write of keys: events with durable keys settle, with the duplicates that waited for them."""
        now, counters = self.context.now, self.context.counters
        done = self.keys.finish(happened.number, True, now.monotonic, self.context.jitter())
        if happened.stored is not None and {*happened.stored} != {m.Stored.DURABLE}:
            # Our lease had ended, and another member had claimed some of these events. Keys that are not stored are
            # written again later: by then the other member's outcome may be known.
            taken_over, _ = pick(done, [one != m.Stored.DURABLE for one in happened.stored])
            counters.taken_over += mark_taken_over(taken_over)
            done, not_stored = pick(done, [one != m.Stored.TAKEN_OVER for one in happened.stored])
            self.keys.add(not_stored, now.monotonic + ASK_AGAIN)
        self.conclude(self.claims.confirm(done), RecordStage.DUPLICATE)
        # A partition may have been revoked during the call: its next owner settles these events, and finds their keys.
        ours, others = divide(done, attrgetter("ours"))
        counters.delivered_after_release += rows_of(others)
        if self.figures.delivered(times_of(ours), kinds_of(ours), values_of(ours), now):
            self.figures.late(late_of(ours, now.unix - HOUR), now.monotonic)
        self.ledger.settle(ours, Disposition.DELIVERED)

    # -- READ, SCHEMA, ROOM, IN_FLIGHT -> DEAD_LETTERING -> DEAD_LETTERED

    def dead_letter(self, row: Run, rejection: Rejection, attempts: int, call: Call | None = None) -> None:
        """Queue a record for the dead-letter topic; it settles once the broker has stored its letter."""
        tp, record = row.block.assignment.tp, row.block.record(row.first)
        move_all([row], RecordStage.DEAD_LETTERING)
        self.guard.judge(row, rejection)
        self.figures.rejected(Problem(tp.topic, tp.partition, record.offset, *rejection))
        at_ms = int(self.context.now.unix * 1000)
        self.letters.add([Letter(row, m.DeadLetter(*tp, record, rejection, attempts, at_ms), call)])

    def write_letters(self) -> None:
        """Begin the next write of letters, if it is due."""
        number = self.context.number()
        if letters := self.letters.begin(number, self.context.now.monotonic):
            self.context.emit(m.StoreDeadLetters(number, [one.letter for one in letters]))

    def letters_stored(self, happened: m.DeadLettersStored) -> None:
        """Take a finished write of letters: records whose letters the broker has stored are done with."""
        if failed := sum(not stored for stored in happened.stored):
            self.context.counters.failures["dead_letter"] += failed
            self.context.report("error", "dead_letters_not_stored", count=failed)
        # Letters that the broker did not acknowledge are written again: better two letters than none.
        now, jitter = self.context.now.monotonic, self.context.jitter()
        for row, letter, call in self.letters.finish(happened.number, happened.stored, now, jitter):
            code, attempts = letter.rejection.code, letter.attempts
            self.conclude([row], RecordStage.DEAD_LETTERED, code, attempts, call, letter)
        # Letters that were not written are in the outbox again, although their partition may have been revoked.
        self.discard_letters()

    def discard_letters(self) -> None:
        """Forget letters of assignments that have ended: the next owner writes them."""
        self.letters.discard(lambda letter: not letter.row.ours)

    def guard_tripped(self) -> None:
        """Drop the letters that are not written yet: their records stay open, so nothing is committed past them.

        A letter would settle its record, and its offset could be committed before the cause is corrected.
        """
        self.free([letter.row for letter in self.letters.discard(lambda _: True)])

    # -- a known outcome -> RECEIPTING -> STORING, DUPLICATE, FILTERED, DEAD_LETTERED

    def conclude(
        self,
        runs: Sequence[Run],
        then: RecordStage,
        code: str | None = None,
        attempts: int = 0,
        call: Call | None = None,
        letter: m.DeadLetter | None = None,
    ) -> None:
        """Move records whose outcome is known on to the stage `then`: at once, or after their receipts if there are
        any. See `Outcome`; `letter`: the letter that was stored."""
        if not self.context.policy.receipts:
            self.concluded(runs, then, code, letter)
            return
        at_ms = int(self.context.now.unix * 1000)
        outcome = Outcome(OUTCOME_BEFORE[then], at_ms, code, attempts, call)
        if outcome.is_delivered:
            # Also events of partitions that belong to another member by now: nobody else has this answer.
            self.unreceipted += rows_of(runs)
        else:
            runs, _ = divide(runs, attrgetter("ours"))
        move_all(runs, RecordStage.RECEIPTING)
        limit = self.receipts.limit  # a run may be as long as a fetch
        parts = [
            Run(block, at, min(at + limit, end))
            for block, first, end in runs
            for at in range(first, end, limit)
        ]
        self.receipts.add([Receipt(part, outcome, then, letter) for part in parts])

    def concluded(
        self, runs: Sequence[Run], then: RecordStage, code: str | None, letter: m.DeadLetter | None
    ) -> None:
        """Move records on whose outcome needs no more receipt."""
        disposition = OUTCOME_BEFORE[then]
        if then is not SETTLED_AS[disposition]:  # a delivered event settles once its key is stored
            move_all(runs, then)
            self.keys.add(runs)
            return
        section = 0 if letter is None else runs[0].block.section(runs[0].first)
        settled = self.ledger.settle(runs, disposition)
        if letter is not None and settled:
            self.figures.dead_lettered(letter, section)
        elif code is not None and settled:
            self.context.counters.bump(self.context.counters.filtered, code, rows_of(settled))

    def write_receipts(self) -> None:
        """Begin the next write of receipts, if it is due."""
        number = self.context.number()
        if receipts := self.receipts.begin(number, self.context.now.monotonic):
            self.context.emit(
                m.StoreReceipts(number, [receipts_of(one.run, one.outcome) for one in receipts])
            )

    def receipts_stored(self, happened: m.ReceiptsStored) -> None:
        """Take a finished write of receipts: records whose receipts the broker has stored go on."""
        tried, stored = [one.run for one in self.receipts.writing], happened.stored
        if failed := rows_of(run for run, done in zip(tried, stored, strict=True) if not done):
            self.context.counters.failures["receipt"] += failed
            self.context.report("error", "receipts_not_stored", count=failed, reason=happened.reason)
        # Receipts that the broker did not acknowledge are written again: readers take the one that says most.
        now, jitter = self.context.now.monotonic, self.context.jitter()
        for run, outcome, then, letter in self.receipts.finish(happened.number, stored, now, jitter):
            if outcome.is_delivered:
                self.unreceipted -= rows_of([run])
            self.concluded([run], then, outcome.code, letter)
        self.discard_receipts()

    def discard_receipts(self) -> None:
        """Forget receipts of assignments that have ended, whose next owner writes them; except of delivered events,
        whose keys are still to be stored."""
        self.receipts.discard(lambda one: not (one.outcome.is_delivered or one.run.block.assignment.live))

    # -- -> FREED

    def purge(self) -> None:
        """Remove records for which no new work may begin from all parts.

        A record in a call or a write stays there: its outcome still settles it, unless its assignment has ended.
        """
        for queue in self.dispatcher:
            self.free_leaders(queue.purge())
        self.free_leaders(self.lookups.purge())
        deferred, unread = self.admission.purge()
        self._forget(unread)
        self.free([*self.parking.purge(), *self.untimely.purge(), *deferred])
        self.transforming.purge()
        # Last, so that followers could still claim what the others held.
        self.claims.purge()
        self.discard_letters()
        self.discard_receipts()

    def free_leaders(self, leaders: Sequence[Run]) -> None:
        """Free events that lead their keys, which the first follower of each claims now."""
        if leaders:
            self.free(leaders)
            self.transfer(each_of(leaders))

    def transfer(self, leaders: Iterable[Run]) -> None:
        """Give each leader's claim to its first follower that is still ours, which is looked up; else end it."""
        claimants, ended = [], []
        for leader in leaders:
            claimant, gone = self.claims.release(leader)
            self.free(gone)
            if claimant is None:
                ended.append(leader)
            else:
                claimants.append(claimant)
        move_all(claimants, RecordStage.LOOKED_UP)
        # So that other members need not wait for these keys until our lease ends.
        if self.lease.shared and ended:
            self.context.emit(m.ReleaseKeys(keys_of(ended)))
        self.look_up(claimants)

    def free(self, rows: Iterable[Run]) -> None:
        """Free records that hold no claim."""
        move_all(rows, RecordStage.FREED)
