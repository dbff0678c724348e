"""The pipeline: it handles one input at a time and returns what to do next.

Theory of operation. `handle` takes one input and returns the commands that follow; between two inputs nothing changes.
One `match` (`_take_in`) says which part an input is for, or which step of a record's way (`steps`) follows from it;
`_go_on` then begins, in a fixed order, what may begin now. Commands go through `Context`. Each step either settles a
record or leaves it open, and no commit goes past an open record.

A shell uses only `handle`, `next_deadline`, `room`, `was_away`, `statistics`, `enough`, `committed`, `last_positions`,
`problems`, `stopping`, and the two times of the key store in `clock`.

Where the rules of docs/architecture.md are implemented: offsets and fences in `ledger`, claims in `claims`, the
meaning of an answer in `verdicts`, its consequences in `answers`, and when a call may go in `account`.

Revoke and stop are one path (`_drain`): begin nothing new, drop queued events and release their claims, wait for events
in flight until the deadline, then say what to commit and release the partitions (rule 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain
from math import inf
from typing import assert_never

from consumer.engine import messages as m
from consumer.engine.clock import Clock
from consumer.engine.context import Context
from consumer.engine.dedup.claims import Claims
from consumer.engine.dedup.lease import Lease
from consumer.engine.dedup.lookups import Lookups
from consumer.engine.figures.definitions import copied
from consumer.engine.figures.outside import BrokerStatistics, silence_of_brokers, silence_of_coordinator
from consumer.engine.figures.settled import SettledFigures
from consumer.engine.figures.statistics import Statistics
from consumer.engine.figures.waits import MAX_OLDEST
from consumer.engine.intake.admission import Admission
from consumer.engine.intake.guard import Guard
from consumer.engine.intake.parking import Parking
from consumer.engine.intake.transforming import Transforming
from consumer.engine.intake.untimely import UntimelyRecords
from consumer.engine.model import Instant, Policy, Problem, TopicPartition
from consumer.engine.reading import Converting, Reading, SchemaLearner, TwoSteps, split_keys
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.commits import Commits, Differences
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.outbox import Letter, Outbox, Receipt
from consumer.engine.records.runs import Run, keys_of, rows_of
from consumer.engine.records.topics import RecreatedTopics, Removals
from consumer.engine.room import Room
from consumer.engine.sending.answers import Answers
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.time_question import TimeQuestion
from consumer.engine.steps import Steps
from consumer.engine.survey import (
    ClockWatch,
    Stall,
    account_statistics,
    describe_open,
    partition_statistics,
    timestamp_of,
)


@dataclass(slots=True)
class Drain:
    """Assignments that are being drained. `number` is the `Revoked`'s, None for the stop; `deadline` is monotonic."""

    number: int | None
    states: list[AssignmentState]
    deadline: float


class Pipeline:
    """The engine. Feed it inputs in the order in which they happened, and a `Tick` at `next_deadline`; perform
    its commands."""

    def __init__(
        self,
        policy: Policy,
        decoder: SchemaLearner,
        converter: Converting,
        *,
        reading: Reading | None = None,
        around: Callable[[Reading], Reading] | None = None,
        seed: int = 0,
        sections: Sequence[str] = (),
    ) -> None:
        """`reading`: a faster way through `decoder` and `converter`; not used with a function. `around`: wraps
        the reading and excludes records. `sections`: the names of the mapping's sections."""
        self.policy, self.decoder = policy, decoder
        self.context = Context(policy, seed, sections)
        self.clock = Clock(self.context)
        self.ledger = Ledger(self.context)
        self.claims, self.lookups, self.lease = Claims(), Lookups(self.context), Lease(self.context)
        self.dispatcher = Dispatcher(self.context)
        self.parking, self.untimely = Parking(self.context, decoder), UntimelyRecords()
        self.transforming = Transforming(self.context, decoder)
        self.time_question = TimeQuestion(self.context)
        self.guard = Guard(self.context)
        # The most records in one write: a larger write shares one wait for the acknowledgement among more records, but
        # the next write waits longer for it.
        self.keys: Outbox[Run] = Outbox(policy.inner_backoff, 10_000, lambda run: run.end - run.first)
        self.letters: Outbox[Letter] = Outbox(policy.inner_backoff, 500)
        # After a crash at most this number of receipts is ahead of the keys and commits that follow them.
        at_risk = policy.concurrency * policy.batch_events
        self.receipts: Outbox[Receipt] = Outbox(
            policy.inner_backoff, min(10_000, at_risk), lambda one: rows_of([one.run])
        )
        self.figures = SettledFigures(self.context.counters, self.context.sections)
        # The first records that could not be delivered.
        self.problems: Sequence[Problem] = self.figures.problems
        if reading is None:
            reading = TwoSteps(self.transforming, converter, divided=len(sections) > 0)
        if around is not None:
            reading = around(reading)
        self.admission = Admission(self.context, reading)
        self.steps = Steps(
            self.context,
            self.clock,
            self.ledger,
            self.guard,
            self.admission,
            self.parking,
            self.untimely,
            self.transforming,
            self.claims,
            self.lookups,
            self.lease,
            self.dispatcher,
            Answers(self.context, self.dispatcher),
            self.keys,
            self.letters,
            self.receipts,
            self.figures,
        )
        self._room = Room(
            self.context,
            self.ledger,
            self.admission,
            self.parking,
            self.untimely,
            self.dispatcher,
            self.guard,
            self.receipts,
        )
        self.commits = Commits(self.context, self.ledger)
        # Says whether everything is committed that may be.
        self.committed = self.commits.complete
        # Says whether the process stood still since a moment: a call that was decided then must not begin any more, as
        # its partitions may be another member's.
        self.was_away = self.commits.was_away
        self._recreated = RecreatedTopics(self.context, self.ledger)
        self._differences = Differences(self.context)
        self._removals = Removals(self.context)
        self.stall = Stall(self.context, self.ledger, self.dispatcher, self.guard, self.transforming)
        self._clock_watch = ClockWatch(self.context, self.clock)
        # The latest measurements of each client, by broker.
        self._brokers: dict[str, Sequence[BrokerStatistics]] = {}
        # Why the key store failed the last time.
        self._key_store_error = ""
        # Why receipts could not be written the last time.
        self._receipts_failure = ""
        # Why no broker answers, and since when (monotonic); None: one does.
        self._silence: tuple[str, float] | None = None
        # Drains for revokes stand before the one for the stop.
        self._drains: list[Drain] = []
        # Says whether a replay's limit is reached.
        self.enough = self._room.enough
        # Says where each partition that was ever assigned stands, or where it was left.
        self.last_positions = self.ledger.last_positions
        self.stopping = False
        self._ends = m.EndOffsets({})

    # -- what a shell calls

    def handle(self, happened: m.Input, now: Instant) -> list[m.Command]:
        """Handle an input and return the commands that follow, in order. Raises only `InvariantViolation`, on a bug."""
        self.context.now = self.clock.begin(now)
        # Before new work begins: the process may have been away, and another member may have its partitions or claims.
        self.commits.notice_absence(now)
        self.lease.notice_suspension(now)
        self._take_in(happened)
        self._go_on()
        commands, self.context.commands = self.context.commands, []
        return commands

    def _take_in(self, happened: m.Input) -> None:  # noqa: C901 - one case for each message
        match happened:
            # -- the group
            case m.Assigned():
                self._assigned(happened)
            case m.Revoked() | m.StopRequested():
                self._drain(happened)
            case m.Lost():
                self._lost(happened)
            case m.GroupSize():
                self.dispatcher.quota.group_has(happened.members, self.context.now.monotonic)
            # -- schemas, and the user's function
            case m.SchemaFound():
                self.steps.unparked(self.parking.found(happened))
            case m.SchemaMissing():
                self.steps.decided(self.parking.missing(happened.ref))
            case m.SchemaUnavailable():
                self.parking.unavailable(happened)
            case m.Transformed() | m.TransformIsSlow():
                self.transforming.reported(happened)
            # -- the key store
            case m.KeysLookedUp():
                self.steps.looked_up(happened)
            case m.KeysStored():
                self.steps.keys_stored(happened)
            case m.LeaseRenewed():
                is_another = self.lease.renewed(happened)
                self.dispatcher.halts.apply(happened.notes)
                if is_another:
                    self.steps.new_session()
                self._differences.announced(happened.others)
                self.dispatcher.quota.shared_with(happened.others)
                # The store answers again: confirm delivered events at once, before other members claim them.
                self.keys.not_before = -inf
            case m.LeaseLost():
                self.lease.lost()
            case m.PermitsGranted():
                self.dispatcher.permits_granted(happened.number, happened.account, happened)
            case m.KeyStoreFailed():
                # While renewals fail, other requests fail for want of a lease: the cause is what renewals say.
                if isinstance(happened.command, m.RenewLease) or not self.lease.fails:
                    self._key_store_error = happened.reason
                self._key_store_failed(happened.command)
            # -- the API
            case m.Answered():
                self.steps.answered(happened)
            case m.Unanswered():
                self.steps.unanswered(happened)
            case m.TokenRead():
                self.dispatcher.halts.token_read(happened.changed)
            case m.TimeAsked():
                if (reported := self.time_question.answered(happened.answer)) is not None:
                    self.clock.answered(*reported)
            # -- Kafka
            case m.Fetched():
                self._fetched(happened)
            case m.DeadLettersStored():
                self.steps.letters_stored(happened)
            case m.ReceiptsStored():
                self._receipts_failure = happened.reason
                self.steps.receipts_stored(happened)
            case m.CommitDone():
                self.commits.done(happened)
            case m.EndOffsets():
                self._end_offsets(happened)
            case m.TopicIds():
                if self._recreated.update(happened.ids):
                    self.steps.purge()
            case m.BrokerStats():
                client = happened.client
                self._brokers[client] = [BrokerStatistics(client, *one) for one in happened.brokers]
            case m.BrokersSilent(why, seconds):
                self._silence = None if why is None else (why, self.context.now.monotonic - seconds)
            case m.Tick():
                pass  # what is due begins in `_go_on`
            case _:
                assert_never(happened)

    def _key_store_failed(self, command: m.KeyStoreCommand) -> None:
        match command:
            case m.LookUpKeys():
                self.steps.look_up_failed(command.number)
            case m.StoreKeys():
                self.steps.keys_not_stored(command.number)
            case m.RenewLease():
                self.lease.renewal_failed(command.number)
            case m.AcquirePermits():
                self.dispatcher.permits_granted(command.number, command.account, None)
            case m.ReleaseKeys() | m.ShareNote():
                pass  # claims end with the lease, and other members meet the cause of a note themselves
            case _:
                assert_never(command)

    def _go_on(self) -> None:
        """Begin everything that may begin now."""
        now = self.context.now.monotonic
        # First drains that end: that makes room for records that wait.
        self._end_drains()
        self._clock_watch.check()
        self.steps.admit()
        if len(self.untimely) and self.guard.tripped is None:
            self.steps.judge_untimely()
        self._check_guard()
        if self.guard.tripped is None:
            self.time_question.ask(waited_for=self._waits_for_time())
            for ref in self.parking.ask(now):
                self.context.emit(m.FetchSchema(ref))
        self.lease.go_on()
        self.steps.look_up(self.lookups.take_due())
        self.dispatcher.halts.go_on()
        if self.policy.receipts:
            self.steps.write_receipts()
        self.steps.write_keys()
        if not self.commits.unproven():
            self.steps.send()
            self.steps.write_letters()
        self.commits.go_on()
        self._room.go_on()

    def _check_guard(self) -> None:
        """Write no dead letters once the guard has tripped: no drain waits for letters that will not be written."""
        self.guard.check()
        if self.guard.tripped is not None:
            self.steps.guard_tripped()
            self._end_drains()

    def _waits_for_time(self) -> bool:
        """Return True if events wait until the platform says what time it is."""
        return len(self.untimely) > 0 and not self.clock.reports_no_time

    def next_deadline(self) -> float | None:
        """Return when to feed a `Tick` at the latest, in monotonic seconds; in the past: at once.

        The first one is due when the process begins.
        """
        # Open records may belong to another member by now. Until a commit has proven that they are ours, no work begins
        # that the other member may do as well.
        at_risk = self.steps.at_risk, self.lease.until
        begun = () if self.commits.unproven() else (self.dispatcher.due(*at_risk), self.letters.due())
        asks = self.time_question.due(waited_for=self._waits_for_time())
        waits = (self.parking.due(), self.untimely.due(self.context.now), asks)
        times = [
            *begun,
            self.keys.due(),
            self.receipts.due(),
            *(waits if self.guard.tripped is None else ()),
            self.lookups.due(),
            self.lease.due(),
            min((drain.deadline for drain in self._drains), default=None),
            self.commits.due(),
            self.guard.due(),
            None if self.stopping else self._room.due(),
        ]
        return min((at for at in times if at is not None), default=None)

    def room(self) -> int:
        """Return how many records to fetch now at most; 0: pause. Read before each fetch (rules 5 and 8)."""
        return 0 if self.stopping or self.commits.withheld_since is not None else self._room.level()

    def statistics(self, now: Instant) -> Statistics:
        """Return a snapshot whose figures agree with each other."""
        # Ages go by the corrected time, as in the engine. Only the clock's own figures need the local time.
        local, now = now, self.clock.correct(now)
        lowest = [place for place in (state.lowest_open() for state in self.ledger) if place is not None]
        # A record without a timestamp is the oldest only if none has one.
        oldest = nsmallest(MAX_OLDEST, lowest, key=lambda one: (timestamp_of(one) < 0, timestamp_of(one)))
        described = tuple(describe_open(one, now, self.steps) for one in oldest)
        # If all events of a failed look-up were dropped, or no event waits for calls, there is no retry to show.
        looks_up = self.lookups.busy and self.lookups.failures > 0
        asks = any(queue.gate.permits.failures for queue in self.dispatcher if queue.queued)
        fails = looks_up or asks or self.lease.fails or self.keys.failures > 0
        return Statistics(
            totals=self.ledger.totals(),
            partitions=tuple(
                partition_statistics(state, now.unix, silent=self._silence is not None)
                for state in self.ledger
            ),
            accounts=tuple(account_statistics(queue, now.monotonic) for queue in self.dispatcher),
            open_bytes=self.ledger.open_bytes,
            held=self.admission.held,
            passed=self.ledger.passed,
            waiting_for_start=self._ends.waiting_for_start,
            # The source reports it from time to time (`EndOffsets`); an assignment shows it earlier.
            joined=self._ends.joined or any(True for _ in self.ledger),
            stalled_for=self.stall.seconds(),
            key_store_fails=fails,
            key_store_trouble=self._key_store_error if fails else None,
            # If all receipts that failed were dropped, there is no retry to show.
            receipts_error=self._receipts_failure if self.receipts.failures and len(self.receipts) else None,
            claimed_elsewhere=self.lookups.claimed_by_other,
            lease_left=max(0.0, self.lease.until - now.monotonic) if self.policy.lease else None,
            quota_members=self.dispatcher.quota.members,
            room=self.room(),
            claims=len(self.claims.claimed),
            waiting_for_schema=len(self.parking),
            oldest_open_ms=timestamp_of(oldest[0]) if oldest and timestamp_of(oldest[0]) >= 0 else None,
            # Without an open record nothing can be stuck.
            seconds_since_progress=now.monotonic - self.ledger.moved_at if self.ledger.open else 0.0,
            freshness=self.figures.freshness.snapshot(now.monotonic),
            value=self.figures.value.snapshot(now.monotonic),
            counters=copied(self.context.counters),
            latency=self.steps.answers.latency.snapshot(now.monotonic),
            stopping=self.stopping,
            guard=self.guard.tripped,
            oldest_open=next(iter(described), None),
            oldest=described,
            coverage=self.figures.coverage.snapshot(now.monotonic),
            letters=tuple(self.figures.latest_letters),
            samples=copied(self.figures.samples),
            commit_metadata=self.commits.metadata(),
            other_destination=sum(state.other_destination for state in self.ledger),
            members_differ=self._differences.names(),
            mismatch=self.ledger.mismatch(),
            schemas=self.parking.waits(now.monotonic),
            schemas_from_disk=self.parking.cached_schemas,
            schema_drift=tuple(self.parking.drifts.values()),
            clock=self.clock.figures(local, len(self.untimely)),
            slow_transform=self.transforming.slow(now.monotonic),
            brokers=tuple(chain.from_iterable(self._brokers.values())),
            brokers_silent=None
            if self._silence is None
            else silence_of_brokers(self._silence[0], now.monotonic - self._silence[1]),
            coordinator_silent=None
            if self._ends.coordinator_silent is None
            else silence_of_coordinator(self._ends.coordinator_silent),
        )

    # -- assignments

    def _assigned(self, happened: m.Assigned) -> None:
        if self.stopping:
            return  # the group assigns them to others once we have left
        states = self._recreated.assigned(happened.assignments)
        self._differences.committed(states)
        self.commits.assigned(states)
        # A partition that was ours already: its older assignment has ended.
        self.steps.purge()

    def _lost(self, happened: m.Lost) -> None:
        # Nothing is committed: the new owner may have committed more, and our commit would set it back.
        states = [self.ledger.drop(tp) for tp in happened.partitions]
        released = sum(state.open for state in states if state is not None)
        self.steps.purge()
        self.context.report(
            "warning", "partitions_lost", partitions=len(happened.partitions), released=released
        )

    def _drain(self, happened: m.Revoked | m.StopRequested) -> None:
        if isinstance(happened, m.Revoked):
            states = [state for tp in happened.partitions if (state := self.ledger.get(tp)) is not None]
            number = happened.number
        elif self.stopping:
            return
        else:
            self.stopping = True
            states, number = list(self.ledger), None
        for state in states:
            state.draining = True
        self.steps.purge()
        self._drains.append(Drain(number, states, self.context.now.monotonic + happened.grace))
        # Positions of a revoke must be committed before the group takes the partitions.
        self._drains.sort(key=lambda drain: drain.number is None)

    def _end_drains(self) -> None:
        for drain in [*self._drains]:
            busy = self._busy(drain.states)
            if busy and self.context.now.monotonic < drain.deadline:
                continue
            # The stop ends the process: revokes that still wait are answered first.
            for one in [*self._drains] if drain.number is None else [drain]:
                self._drains.remove(one)
                self._finish(one, busy)

    def _busy(self, states: list[AssignmentState]) -> bool:
        """Return True if records of these assignments are in a call or a write and may still settle."""
        concerned = {id(state) for state in states if state.live}
        receipts = [*self.receipts]
        events = [*self.dispatcher.in_flight(), *self.keys]
        events += [one.run for one in receipts if one.outcome.is_delivered]
        # Also keys of records that were released because the position went back: without them they are sent again.
        rows = chain(events, (one.row for one in self.letters), (one.run for one in receipts))
        if any(id(row.block.assignment) in concerned for row in rows):
            return True
        # A follower settles with the event that it waits for, which may be of another partition: in a call, or in a
        # write of its receipt or key. Asked last: there may be thousands of keys, and a drain asks with each input.
        out = set(split_keys(keys_of(events)))
        followers = chain.from_iterable(some for key, some in self.claims.followers.items() if key in out)
        return any(id(row.block.assignment) in concerned for row in followers)

    def _finish(self, drain: Drain, late: bool) -> None:
        # Before they are dropped: a dropped assignment commits nothing.
        positions = self.ledger.final_positions(drain.states)
        live = [state for state in drain.states if state.live]
        released, in_time = sum(state.open for state in live), int(not late)
        for state in live:
            self.ledger.drop(state.tp)
        self.steps.purge()
        report = self.context.report
        if drain.number is None:
            report("info", "drained", released=released, in_time=in_time)
            self.context.emit(m.Stop(positions, not late))
        else:
            count = len(drain.states)
            report("info", "partitions_released", partitions=count, released=released, in_time=in_time)
            self.context.emit(m.Release(drain.number, positions))

    # -- intake

    def _fetched(self, happened: m.Fetched) -> None:
        self._room.fed_at = self.context.now.monotonic
        self.clock.fetched(happened.chunks)
        for chunk in happened.chunks:
            state = self.ledger.get(TopicPartition(chunk.topic, chunk.partition))
            if state is None or state.epoch != chunk.epoch or state.draining or not chunk.records:
                # Fetched before the partition was revoked, or assigned to us again: its present owner reads it again.
                self.steps.fetched(None, chunk)
                continue
            if chunk.log_start > 0:
                self._removals.fetched(state, chunk)
            if chunk.records[0].offset < (state.position() or 0):
                self._go_back(state, chunk.records[0].offset)
            self.steps.fetched(state, chunk)

    def _go_back(self, state: AssignmentState, offset: int) -> None:
        """Rewind an assignment to `offset`, before its position: the log was cut, or its topic was created again.

        What was read, or known, from there on is void.
        """
        expected = state.position()
        released = self.ledger.rewind(state, offset)
        self.context.counters.positions_went_back += 1
        self.context.report(
            "warning", "position_went_back", topic=state.tp.topic, partition=state.tp.partition, expected=expected,
            fetched=offset, released=released,
        )  # fmt: skip
        self.steps.purge()

    # -- ends

    def _end_offsets(self, happened: m.EndOffsets) -> None:
        self._ends = happened
        for state in self.ledger:
            tp = state.tp
            state.log.reported(
                happened.ends.get(tp), happened.reached.get(tp, -1), happened.unreadable.get(tp)
            )
            self._removals.begins(state, happened.begins.get(state.tp, -1))
        # Once in each of the shell's rounds, now that it is known how much is left.
        self.stall.check(self.stopping or self._silence is not None)
