"""The pipeline: told what happened, it says what to do next. The only control flow there is.

Theory of operation. `handle` takes one message and gives the commands that follow; between two messages nothing
changes. One `match` (`_take_in`) says which part a message is for; `_go_on` then begins all that may begin now. A
record's way: fetched -> decoded, converted -> entered in the ledger -> claims its key -> looked up in the key store ->
batched -> sent -> answered -> its key stored -> settled. Each step either ends in a settlement, or leaves the record
open, and what is open is never committed past. The parts emit commands themselves, through `Context`, in an order that
is fixed here.

A shell feeds `handle`, and reads `next_deadline`, `room`, `statistics`, `progress`, `committed`, `left_at`,
`problems` and `stopping`: nothing else.

Where the rules of docs/architecture.md are kept: offsets and fences in `ledger`, claims in `claims`, what an answer
means in `verdicts`, what follows from it in `answers`, when a call may go in `gate`.

Revoke and stop are one path (`_drain`): begin nothing new, drop what is queued and release its claims, wait for what is
in flight until the deadline, then say what to commit and release the partitions (rule 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import assert_never

from consumer.engine import messages as m
from consumer.engine.answers import Answers
from consumer.engine.block import Block, Delivery, RecordStage, Verdict, all_accepted, move_all
from consumer.engine.claims import Claims, Keys, Letter, Outbox
from consumer.engine.commits import Commits, Lives, Removals
from consumer.engine.context import Clock, Context
from consumer.engine.counters import Samples
from consumer.engine.coverage import Coverage
from consumer.engine.freshness import Freshness
from consumer.engine.guard import Guard
from consumer.engine.intake import FETCH_MOST as FETCH_MOST
from consumer.engine.intake import Admission, Intake, Limit, Room, SchemaAnswers
from consumer.engine.ledger import AssignmentState, Ledger, LeftAt
from consumer.engine.model import (
    Disposition,
    Early,
    Filtered,
    Instant,
    Policy,
    Problem,
    Progress,
    Rejection,
    SchemaRef,
    TopicPartition,
)
from consumer.engine.reading import Converting, Reading, SchemaLearner, TwoSteps
from consumer.engine.sending import Dispatcher
from consumer.engine.statistics import Statistics
from consumer.engine.survey import Stall, excused, lag_of, survey
from consumer.engine.waiting import EarlyRecords, Parked, Parking
from consumer.errors import InvariantViolation

_LETTERS_MOST = 500
_KEYS_MOST = 10_000
_ACCOUNT: attrgetter[str] = attrgetter("account")


class Pipeline:
    """The engine. Feed it messages in the order they happened; perform its commands; call again at `next_deadline`."""

    def __init__(
        self,
        policy: Policy,
        decoder: SchemaLearner,
        converter: Converting,
        *,
        reading: Reading | None = None,
        seed: int = 0,
    ) -> None:
        """`reading`: a faster way through `decoder` and `converter` than one after the other."""
        self.policy = policy
        self.context = Context(policy, seed)
        self.ledger = Ledger(policy.map_bytes, policy.destination)
        self.claims = Claims(Keys(policy.destination))
        self.freshness = Freshness()
        self.coverage = Coverage()
        self.samples = Samples()
        self.dispatcher = Dispatcher(self.context)
        self.parking = Parking(policy)
        self.clock = Clock(self.context)
        self.early = EarlyRecords()
        self.keys: Outbox[Delivery] = Outbox(policy.inner_backoff, _KEYS_MOST)
        self.letters: Outbox[Letter] = Outbox(policy.inner_backoff, _LETTERS_MOST)
        self.stopping = False
        self.progress_at: float | None = None
        self.waiting_for_start = 0
        self.joined = False
        self._intake = Intake(
            self.context,
            self.clock,
            self.claims,
            TwoSteps(decoder, converter) if reading is None else reading,
            self.samples,
        )
        self.guard = Guard(self.context)
        self.stall = Stall(self.context)
        self._limit = Limit(policy.most_records, self.ledger)
        self.admission = Admission(
            self.context, self.ledger, self.parking, self.early, self._intake, self, self.guard, self._limit
        )
        self._room = Room(
            self.context, self.ledger, self.parking, self.admission, self.dispatcher, self.guard, self._limit
        )
        self._schemas = SchemaAnswers(self.context, self.parking, self.admission, decoder)
        self._answers = Answers(self.context, self.clock, self.dispatcher, self)
        self._looking_up: dict[int, list[Delivery]] = {}
        self._look_up_again: list[tuple[float, list[Delivery]]] = []
        self._look_up_failures = 0
        self.commits = Commits(self.context, self.ledger)
        self._drains: list[Drain] = []
        self._lives = Lives(self.context, self.ledger)
        self._removals = Removals(self.context)

    # -- what a shell calls

    def handle(self, happened: m.Input, now: Instant) -> list[m.Command]:
        """Take in what happened; gives what to do, in order. Raises `InvariantViolation` on a bug, never else."""
        self.context.begin(self.clock.begin(now))
        self.commits.mind_absence(now)
        settled_before = self.ledger.settlements
        self._take_in(happened)
        self._go_on()
        if self.ledger.settlements > settled_before or not self.ledger.open or self.progress_at is None:
            self.progress_at = now.monotonic
        return self.context.take()

    def _take_in(self, happened: m.Input) -> None:  # noqa: C901 - one case for each message
        match happened:
            case m.Fetched():
                self._fetched(happened)
            case m.KeysLookedUp():
                self._keys_looked_up(happened)
            case m.LookUpFailed():
                self._look_up_failed(happened)
            case m.Answered():
                self._answers.answered(happened)
            case m.Unanswered():
                self._answers.unanswered(happened)
            case m.KeysStored() | m.StoreFailed():
                self._keys_stored(happened.number, isinstance(happened, m.KeysStored))
            case m.DeadLettersStored():
                self._dead_letters_stored(happened)
            case m.CommitDone():
                self.commits.done(happened)
            case m.SchemaFound():
                self._schemas.found(happened)
            case m.SchemaMissing():
                self._schemas.missing(happened)
            case m.SchemaUnavailable():
                self._schemas.unavailable(happened)
            case m.TokenRead():
                self.dispatcher.token_read(happened.changed)
            case m.Assigned():
                self._assigned(happened)
            case m.Revoked():
                self._revoked(happened)
            case m.Lost():
                self._lost(happened)
            case m.TopicIdsTold():
                self._topic_ids_told(happened)
            case m.EndOffsets():
                self._end_offsets(happened)
            case m.KeysForgotten():
                self._keys_forgotten(happened)
            case m.StopRequested():
                self._stop_requested(happened)
            case m.Tick():
                pass
            case _:
                assert_never(happened)

    def next_deadline(self) -> float | None:
        """When to feed a `Tick` at the latest, in monotonic seconds; in the past: at once.

        The first one is due when the process begins.
        """
        begun = () if self.commits.unproven() else (self.dispatcher.due(), self.letters.due())
        times = [
            *begun,
            self.keys.due(),
            None if self.guard.tripped is not None else self.parking.due(),
            None if self.guard.tripped is not None else self.early.due(self.context.now, self._quiet),
            min((at for at, _ in self._look_up_again), default=None),
            min((drain.deadline for drain in self._drains), default=None),
            self.commits.due(),
            self.guard.due(),
            None if self.stopping else self._room.due(),
        ]
        return min((at for at in times if at is not None), default=None)

    def room(self) -> int:
        """How many records to fetch now at most; 0: pause. A level, read before each fetch (rules 5 and 8)."""
        return 0 if self.stopping or self.commits.withheld else self._room.level()

    def progress(self) -> Progress:
        """Where the work stands, at little cost."""
        return Progress(
            settled=self.ledger.settlements,
            open=self.ledger.open,
            held=self.admission.held,
            released=self.ledger.totals().released,
            guarded=self.guard.tripped is not None,
            enough=self._room.enough(),
        )

    def committed(self) -> bool:
        """Whether everything is committed that may be."""
        return not any(True for _ in self.ledger.committables())

    def left_at(self) -> dict[TopicPartition, LeftAt]:
        """Where each partition that was ever ours stands, or was left at."""
        return self.ledger.left_at()

    @property
    def problems(self) -> Sequence[Problem]:
        """The first records that could not be delivered."""
        return self.samples.problems

    def statistics(self, now: Instant) -> Statistics:
        """A snapshot whose figures agree with each other."""
        return survey(self, now)

    # -- assignments

    def _assigned(self, happened: m.Assigned) -> None:
        if self.stopping:
            return
        states = [self._lives.assign(one) for one in happened.assignments]
        for state in states:
            self.commits.assigned(state)
        self._lives.assigned(happened.assignments)
        elsewhere = sum(state.elsewhere for state in states)
        if elsewhere:
            self.context.report("warning", "committed_for_another_destination", partitions=elsewhere)
        self._purge()

    def _lost(self, happened: m.Lost) -> None:
        released = 0
        for tp in happened.partitions:
            state = self.ledger.drop(tp)
            released += state.open if state is not None else 0
        self._purge()
        self.context.report(
            "warning", "partitions_lost", partitions=len(happened.partitions), released=released
        )

    def _topic_ids_told(self, happened: m.TopicIdsTold) -> None:
        if self._lives.told(happened.ids):
            self._purge()

    def _revoked(self, happened: m.Revoked) -> None:
        states = [state for state in map(self.ledger.get, happened.partitions) if state is not None]
        self._drain(Drain(happened.number, states, self.context.now.monotonic + happened.grace))

    def _stop_requested(self, happened: m.StopRequested) -> None:
        if self.stopping:
            return
        self.stopping = True
        self._drain(Drain(None, list(self.ledger), self.context.now.monotonic + happened.grace))

    def _drain(self, drain: Drain) -> None:
        for state in drain.states:
            state.draining = True
        self._purge()
        self._drains.append(drain)

    def _purge(self) -> None:
        """Take what is no longer ours to begin out of every queue, and release its claims."""
        for queue in self.dispatcher:
            self.let_go(queue.purge())
        again, self._look_up_again = self._look_up_again, []
        for at, deliveries in again:
            kept = [one for one in deliveries if one.accepted]
            self.let_go([one for one in deliveries if not one.accepted])
            if kept:
                self._look_up_again.append((at, kept))
        self.parking.purge()
        self.early.purge()
        self.admission.purge()
        self.letters.discard(lambda letter: not letter.ours)

    def _end_drains(self) -> None:
        """Revokes before the stop: their positions must be committed before the group lets go of them."""
        for drain in sorted(self._drains, key=lambda one: one.number is None):
            busy = self._busy(drain.states)
            if busy and self.context.now.monotonic < drain.deadline:
                continue
            # The stop ends the process: whoever still waits for a revoke is answered first.
            ending = list(self._drains) if drain.number is None else [drain]
            for one in sorted(ending, key=lambda each: each.number is None):
                self._drains.remove(one)
                self._finish(one, busy)

    def _busy(self, states: list[AssignmentState]) -> bool:
        """Whether something of these is out there and may still settle."""
        concerned = {id(state) for state in states if state.live}
        if not concerned:
            return False
        # In flight, or on their way to the key store; their followers settle with them.
        leaders = [*self.dispatcher.in_flight(), *self.keys]
        followers = (one for leader in leaders for one in leader.followers or ())
        return any(
            id(one.block.assignment) in concerned
            for some in (leaders, self.letters, followers)
            for one in some
        )

    def _finish(self, drain: Drain, late: bool) -> None:
        positions = self.ledger.final_positions(drain.states)
        released = 0
        for state in drain.states:
            if state.live:
                released += state.open
                self.ledger.drop(state.tp)
        self._purge()
        if drain.number is None:
            self.context.report("info", "drained", released=released, in_time=int(not late))
            self.context.emit(m.Stop(positions, not late))
        else:
            self.context.report(
                "info",
                "partitions_released",
                partitions=len(drain.states),
                released=released,
                in_time=int(not late),
            )
            self.context.emit(m.Release(drain.number, positions))

    # -- intake

    def _fetched(self, happened: m.Fetched) -> None:
        self._room.fed()
        self.clock.fetched(happened.chunks)
        for chunk in happened.chunks:
            state = self.ledger.get(TopicPartition(chunk.topic, chunk.partition))
            if state is None or state.epoch != chunk.epoch or state.draining or not chunk.records:
                self.ledger.release_unread(len(chunk.records))
                continue
            if chunk.log_start > 0:
                self._removals.fetched(state, chunk, self.admission.held_to().get(state, 0))
            if chunk.records[0].offset < (state.position() or 0):
                self._go_back(state, chunk.records[0].offset)
            self.admission.fetched(state, chunk)

    def _go_back(self, state: AssignmentState, offset: int) -> None:
        """Reading goes on before where it was, or begins before the committed offset: the log was cut or made anew.

        What was seen, or known, from there on is void.
        """
        expected = state.position()
        released = self.ledger.rewind(state, offset)
        self.context.counters.positions_went_back += 1
        self.context.report(
            "warning", "position_went_back", topic=state.tp.topic, partition=state.tp.partition, expected=expected,
            fetched=offset, released=released,
        )  # fmt: skip
        self._purge()

    def set_aside(self, block: Block, index: int, verdict: Verdict) -> None:
        """This record is no event, or none yet."""
        if isinstance(verdict, SchemaRef):
            block.move([index], RecordStage.SCHEMA)
            self.parking.park(verdict, block, index, self.context.now.monotonic)
        elif isinstance(verdict, Early):
            block.move([index], RecordStage.CLOCK)
            self.early.wait(Parked(block, index), verdict.time)
        elif isinstance(verdict, Filtered):
            self.context.counters.bump(self.context.counters.filtered, verdict.code)
            if self.ledger.settle(block, index, Disposition.FILTERED):
                self._limit.left_out += 1
        else:
            self.dead_letter(block, index, verdict, 0)

    # -- keys

    def look_up(self, leaders: list[Delivery]) -> None:
        """These lead their keys: were they delivered before?"""
        if not leaders:
            return
        number = self.context.number()
        self._looking_up[number] = leaders
        self.context.emit(m.LookUpKeys(number, [one.key for one in leaders]))

    def _keys_looked_up(self, happened: m.KeysLookedUp) -> None:
        self._look_up_failures = 0
        leaders = self._looked_up(happened.number)
        if len(leaders) != len(happened.found):
            raise InvariantViolation(
                "a look-up was answered for more or fewer keys than asked; please report this"
            )
        if not any(happened.found) and all_accepted(leaders):
            self._to_be_sent(leaders)
            return
        self.early.no_call()
        for leader, found in zip(leaders, happened.found, strict=True):
            if found:
                duplicates = (leader, *self.claims.confirm(leader))
                self.ledger.settle_all(duplicates, Disposition.DUPLICATE)
            elif leader.accepted:
                self._to_be_sent([leader])
            else:
                self.let_go([leader])

    def _to_be_sent(self, leaders: list[Delivery]) -> None:
        """These were not delivered before."""
        now = self.context.now.monotonic
        move_all(leaders, RecordStage.QUEUED)
        for account, some in groupby(leaders, _ACCOUNT):
            self.dispatcher.queue(account).add_all(list(some), now)

    def _look_up_failed(self, happened: m.LookUpFailed) -> None:
        self._look_up_failures += 1
        self.context.counters.failures["key_store_look_up"] += 1
        delay = self.policy.inner_backoff.delay(self._look_up_failures, 0.5 + self.context.jitter() / 2)
        leaders = self._looked_up(happened.number)
        kept = [one for one in leaders if one.accepted]
        self.let_go([one for one in leaders if not one.accepted])
        if kept:
            self._look_up_again.append((self.context.now.monotonic + delay, kept))

    @property
    def key_store_fails(self) -> bool:
        """Whether the latest look-up or write of the key store failed, and is to be tried again."""
        looks = self._look_up_failures > 0 and bool(self._look_up_again or self._looking_up)
        return looks or self.keys.failing

    def _looked_up(self, number: int) -> list[Delivery]:
        leaders = self._looking_up.pop(number, None)
        if leaders is None:
            raise InvariantViolation(f"look-up {number} was answered but not asked; please report this")
        return leaders

    def _keys_stored(self, number: int, stored: bool) -> None:
        if not stored:
            self.context.counters.failures["key_store_write"] += 1
        flags = [True] * self.keys.writing if stored else None
        done = self.keys.finish(number, flags, self.context.now.monotonic, self.context.jitter())
        followers = self.claims.confirm_all(done)
        if followers:
            self.ledger.settle_all(followers, Disposition.DUPLICATE)
        ours = self.ledger.settle_all(done, Disposition.DELIVERED)
        self.context.counters.delivered_after_release += len(done) - len(ours)
        self.freshness.add([one.event_time for one in ours], self.context.now)
        self.coverage.add(ours, self.context.now.monotonic)
        self.context.counters.delivered_by_name.update([one.name for one in ours])

    def _quiet(self) -> bool:
        """Whether nothing is under way that would end in a call."""
        under_way = self._looking_up or self._look_up_again or self.admission.deferred
        return not under_way and not any(queue.queued or queue.in_flight for queue in self.dispatcher)

    # -- what `answers` decides on

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """The API said processed: they count as delivered as soon as their keys are durable."""
        move_all(deliveries, RecordStage.STORING)
        self.keys.add(deliveries)

    def refused(self, delivery: Delivery, rejection: Rejection, attempts: int) -> None:
        """The API refused this event for good."""
        if delivery.live:
            self.dead_letter(delivery.block, delivery.index, rejection, attempts)
        self._pass_on([delivery])

    def let_go(self, deliveries: Sequence[Delivery]) -> None:
        """These will not be delivered by us (now): nothing is begun for them any more."""
        move_all(deliveries, RecordStage.FREED)
        self._pass_on(deliveries)

    def _pass_on(self, leaders: Iterable[Delivery]) -> None:
        """The claims of these pass to the first follower of each, which is tried itself."""
        heirs = [heir for heir in map(self.claims.release, leaders) if heir is not None]
        move_all(heirs, RecordStage.LOOKED_UP)
        self.look_up(heirs)

    def dead_letter(self, block: Block, index: int, rejection: Rejection, attempts: int) -> None:
        """The record goes to the dead-letter topic; it settles when the broker has it."""
        tp = block.assignment.tp
        block.move([index], RecordStage.DEAD_LETTERING)
        self.guard.bad(block, index, rejection)
        at_ms = int(self.context.now.unix * 1000)
        letter = m.DeadLetter(tp.topic, tp.partition, block.record(index), rejection, attempts, at_ms)
        self.samples.rejected(tp, letter.record.offset, rejection)
        self.letters.add([Letter(block, index, letter)])

    def _dead_letters_stored(self, happened: m.DeadLettersStored) -> None:
        counters = self.context.counters
        failed = sum(1 for stored in happened.stored if not stored)
        if failed:
            counters.failures["dead_letter"] += failed
            self.context.report("error", "dead_letters_not_stored", count=failed)
        done = self.letters.finish(
            happened.number, happened.stored, self.context.now.monotonic, self.context.jitter()
        )
        for block, place, letter in done:
            if self.ledger.settle(block, place, Disposition.DEAD_LETTERED):
                counters.rejections[(letter.rejection.stage.value, letter.rejection.code)] += 1
                self.samples.stored(letter)
        self.letters.discard(lambda letter: not letter.ours)

    # -- ends

    def _end_offsets(self, happened: m.EndOffsets) -> None:
        self.waiting_for_start, self.joined = happened.waiting_for_start, happened.joined
        for tp, end in happened.ends.items():
            state = self.ledger.get(tp)
            if state is not None:
                state.end = end
                state.reached_before, state.reached = state.reached, happened.reached.get(tp, -1)
        held_to = self.admission.held_to()
        for state in self.ledger:
            state.unreadable_at = happened.unreadable.get(state.tp)
            self._removals.begins(state, happened.begins.get(state.tp, -1), held_to.get(state, 0))
        self._look_for_stall()

    def _keys_forgotten(self, happened: m.KeysForgotten) -> None:
        newly = happened.early - self.context.counters.keys_forgotten_early
        if newly > 0:
            self.context.counters.keys_forgotten_early = happened.early
            self.context.report(
                "warning", "keys_forgotten_early", keys=newly, advice="raise PINSTREAM_KEY_STORE_MAX_BYTES"
            )

    def _look_for_stall(self) -> None:
        """Once in each of the shell's rounds, when it is known how much is left."""
        held_to = self.admission.held_to()
        lag = sum(lag_of(state, held_to.get(state, 0)) or 0 for state in self.ledger)
        by_name = (
            self.stopping
            or self.guard.tripped is not None
            or excused(self.dispatcher, self.context.now.monotonic)
        )
        self.stall.look(self.ledger.settlements, self.ledger.open + lag, by_name)

    # -- after every input

    def _go_on(self) -> None:
        """Begin all that may begin now."""
        now = self.context.now.monotonic
        # First who lets go: that makes room for who waits.
        self._end_drains()
        self.clock.mind()
        self.admission.admit()
        if len(self.early):
            self.admission.judge_early(self.clock.version, self._quiet)
        self._mind_guard()
        if self.guard.tripped is None:
            for ref in self.parking.ask(now):
                self.context.emit(m.FetchSchema(ref))
        for at, leaders in list(self._look_up_again):
            if at <= now:
                self._look_up_again.remove((at, leaders))
                self.look_up(leaders)
        self.dispatcher.tend_halts()
        self.dispatcher.tend_silence()
        self._write_keys(now)
        if not self.commits.unproven():
            self.dispatcher.send(len(self.keys))
            self._write_letters(now)
        self.commits.go_on()
        self._room.go_on()

    def _mind_guard(self) -> None:
        """Once it has tripped no dead letter is written: those that wait are dropped, and their records stay open.

        So nothing is committed past them, and no drain waits for what will not be written.
        """
        self.guard.mind()
        if self.guard.tripped is not None:
            for block, index, _ in self.letters.discard(lambda _: True):
                block.move([index], RecordStage.FREED)
            self._end_drains()

    def _write_keys(self, now: float) -> None:
        number = self.context.number()
        keys = [one.key for one in self.keys.begin(number, now)]
        if keys:
            self.context.emit(m.StoreKeys(number, keys))

    def _write_letters(self, now: float) -> None:
        number = self.context.number()
        letters = [one.letter for one in self.letters.begin(number, now)]
        if letters:
            self.context.emit(m.StoreDeadLetters(number, letters))


@dataclass(slots=True)
class Drain:
    """Assignments being let go of. `number` answers a `Revoked`; None: the stop. `deadline` is monotonic."""

    number: int | None
    states: list[AssignmentState]
    deadline: float
