"""What one process was told, and whether what it then commands is allowed.

Theory of operation. `reported` follows the inputs, `commanded` checks each command against what the process had been
told by then: never against what it could not know. It repeats no rule of the core: it keeps what was handed out,
what is in flight, and what the API asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from consumer.engine import messages as m
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.engine.reading import split_keys
from tests.simulation.api import Reply, Says
from tests.simulation.gateview import GateView, NotesView, QuotaView
from tests.simulation.guardview import GuardView
from tests.simulation.questions import Questions
from tests.simulation.records import Spec
from tests.simulation.truth import Violation, longest_delay, require

if TYPE_CHECKING:
    from consumer.engine.pipeline import Pipeline
    from tests.simulation.member import Member
    from tests.simulation.world import World

_NEVER_FULL = 100_000
"""Bytes that no batch of these worlds reaches."""
_DIVIDED_FOR = 180.0
"""Seconds after which a number of members no longer counts, once a lower number was reported."""
_SNAPSHOT_EVERY = 10
"""Inputs between two checks of the whole snapshot, which costs more than handling an input does."""


class HeldRecords:
    """A partition that a process holds."""

    __slots__ = (
        "beginning",
        "beginnings",
        "committing",
        "doubtful",
        "draining",
        "epoch",
        "last_seen",
        "position",
        "start",
        "topic_id",
        "tp",
    )

    def __init__(self, tp: TopicPartition, epoch: int, start: int) -> None:
        self.tp = tp
        self.epoch = epoch
        self.start = start
        self.beginning: int | None = None
        """Where the log began when it was assigned, if reading begins there and not at `start`."""
        self.topic_id: str | None = None
        self.beginnings: set[tuple[int, int | None]] = set()
        """Positions, with their leader epochs, where reading began: at first, and each time that it went back."""
        self.position = start
        """The consumer's position, where fetching continues; not the engine's."""
        self.last_seen = -1
        self.draining = False
        self.committing = -1
        """The highest offset in any commit since the position last went back."""
        self.doubtful: dict[Spec, bool] = {}
        """Events of calls that left and got no verdict; True once one was sent again at a time when the
        platform may keep both copies."""


class Call:
    """A call in flight."""

    __slots__ = ("account", "doubtful", "helds", "probe", "session", "size", "specs")

    def __init__(
        self, account: str, specs: list[Spec], helds: list[HeldRecords], size: int, probe: bool, session: int
    ) -> None:
        self.account = account
        self.session = session
        self.probe = probe
        self.size = size
        self.specs = specs
        self.helds = helds
        self.doubtful = [held.doubtful for held in helds]
        """Where to record that the outcome of each event is in doubt."""


class Watch:
    """Watches one process."""

    def __init__(self, world: World, member: Member) -> None:
        self._world = world
        self._member = member
        self._policy = world.knobs.policy
        self._truth = world.truth
        self.held: dict[TopicPartition, HeldRecords] = {}
        self.stopping = False
        self.calls: dict[int, Call] = {}
        self.out: dict[bytes, HeldRecords] = {}
        """Keys of events that are in flight, or processed while their keys are not known to be durable."""
        self.taken_over: set[bytes] = set()
        """Those of them that another member had claimed when they were to be stored."""
        self._taken_over_ever = 0
        self.unclear: set[bytes] = set()
        """Keys of events that were ever in doubt."""
        self._session = 0
        """Its session in a shared key store."""
        self._storing: dict[int, list[bytes]] = {}
        self._writing: dict[int, list[tuple[HeldRecords, Spec]]] = {}
        self._drains: dict[int | None, tuple[list[HeldRecords], float]] = {}
        self._handed_out: dict[Spec, float] = {}
        """When each record was last given to the process."""
        self._lost_sight_at = world.now
        self._failures: dict[Spec, tuple[int, float]] = {}
        """For each event, its attempts in a row without a verdict, and when the first was answered."""
        self._committing = False
        self.guarding: int | None = None
        """Records read when the process said that its guard had stopped intake; None: it has not."""
        self._guarded = GuardView(world.policy)
        self._fed = 0
        self._repeats = 0
        """Events sent again that the platform may have and would keep twice, because they count as offline."""
        self._removed = (0, 0)
        """What was removed before it was read: the least number of records, the largest number of offsets."""
        self._open_bytes = 0
        self._questions = Questions(world.knobs.policy)
        self._quota = QuotaView(world.knobs.policy, world.now)
        self._gates = {
            str(n + 1): GateView(world.knobs.policy, self._quota) for n in range(world.knobs.accounts)
        }
        self._notes = NotesView(self._gates)

    # -- what it is told

    def reported(self, happened: m.Input) -> None:
        """Take in an input that is about to be handled."""
        match happened:
            case m.Assigned() | m.Revoked() | m.Lost() | m.StopRequested() | m.TopicIds():
                self._lose_sight()
                self._partitions_reported(happened)
            case m.Fetched():
                for chunk in happened.chunks:
                    self._fetched(chunk)
            case m.GroupSize():
                self._quota.reported(happened.members, self._world.now)
            case m.TokenRead():
                for gate in self._gates.values():
                    gate.token_read = True
            case _:
                self._writes_reported(happened)

    def _partitions_reported(
        self, happened: m.Assigned | m.Revoked | m.Lost | m.StopRequested | m.TopicIds
    ) -> None:
        match happened:
            case m.Assigned():
                self._assigned(happened)
            case m.Revoked():
                helds = [self.held[tp] for tp in happened.partitions if tp in self.held]
                self._drain(happened.number, helds, happened.grace)
            case m.StopRequested() if not self.stopping:
                self.stopping = True
                self._drain(None, list(self.held.values()), happened.grace)
            case m.Lost():
                for tp in happened.partitions:
                    self.held.pop(tp, None)
            case m.TopicIds():
                self._topic_ids_reported(happened)

    def _topic_ids_reported(self, happened: m.TopicIds) -> None:
        """What belongs to an earlier topic of this name ends; events of the new topic that were sent meanwhile
        may be sent again."""
        ended = [held for tp, held in self.held.items() if happened.ids.get(tp.topic) != held.topic_id]
        ended = [held for held in ended if held.tp.topic in happened.ids]
        self.excuse_in_flight(ended)
        self.excuse_all(ended, whole=True)
        for held in ended:
            del self.held[held.tp]

    def _lose_sight(self) -> None:
        """Events may have left their queues without a call, so it is not known any more what is left to be sent."""
        self._lost_sight_at = self._world.now
        for gate in self._gates.values():
            gate.unsure = True

    def _writes_reported(self, happened: m.Input) -> None:
        match happened:
            case m.LeaseRenewed():
                self._notes.heard(happened.notes, self._world.now)
                self._quota.sessions = 1 + len(happened.others)
                if happened.session != self._session:
                    self._session = happened.session
                    self._failures.clear()  # its events are claimed again, and go in other batches
                    self._lose_sight()
            case m.KeysStored():
                keys = self._storing.pop(happened.number)
                for key, stored in zip(keys, happened.stored or [1] * len(keys), strict=True):
                    self._key_stored(key, stored)
            case m.KeyStoreFailed(m.StoreKeys(number)):
                del self._storing[number]
            case m.DeadLettersStored():
                del self._writing[happened.number]
            case m.CommitDone():
                self._committing = False
            case m.SchemaFound() | m.SchemaMissing() | m.SchemaUnavailable():
                self._questions.answered(happened.ref)

    def _key_stored(self, key: bytes, stored: int) -> None:
        if stored != 1 and key not in self.taken_over:
            self.taken_over.add(key)
            self._taken_over_ever += 1
        if stored:
            self.out.pop(key, None)
            self.taken_over.discard(key)

    def _assigned(self, happened: m.Assigned) -> None:
        for one in happened.assignments if not self.stopping else ():
            tp = TopicPartition(one.topic, one.partition)
            self.held[tp] = HeldRecords(tp, one.epoch, one.start or 0)
            self.held[tp].beginning = one.beginning
            self.held[tp].topic_id = one.topic_id
            self.held[tp].beginnings.add((one.start or 0, one.leader_epoch))
            self._guarded.assigned(tp)

    def _drain(self, number: int | None, helds: list[HeldRecords], grace: float) -> None:
        for held in helds:
            held.draining = True
        self._drains[number] = (helds, self._world.now + grace)

    def _fetched(self, chunk: Chunk) -> None:
        self._fed += len(chunk.records)
        tp = TopicPartition(chunk.topic, chunk.partition)
        held = self.held.get(tp)
        if held is None or held.epoch != chunk.epoch or held.draining:
            return
        self._removal(held, chunk)
        if chunk.records[0].offset <= held.last_seen or chunk.records[0].offset < held.start:
            self._lose_sight()
            # Another member may get the partition before it is read again: what is in flight may be sent again,
            # and so may what is void now.
            self.excuse_in_flight([held])
            self.excuse_all([held], whole=chunk.records[0].offset < held.start)
            self._restart(held, chunk.records[0].offset if chunk.records[0].offset >= held.start else 0)
            held.start = min(held.start, chunk.records[0].offset)
            # Commits may go back with it, to the new position.
            held.committing = min(held.committing, chunk.records[0].offset)
            held.beginnings.add((chunk.records[0].offset, None))
        held.last_seen = chunk.records[-1].offset
        specs = [self._world.spec_of(record) for record in chunk.records]
        self._handed_out.update(dict.fromkeys(specs, self._world.now - chunk.waited))
        for spec in specs:  # read again, under another assignment: its backoff begins anew
            self._failures.pop(spec, None)
        self._guarded.fetched(tp, specs)

    def _restart(self, held: HeldRecords, first: int) -> None:
        """Records from `first` on are read again: later answers about their earlier reading do not concern the
        new one."""
        held.doubtful = {spec: counted for spec, counted in held.doubtful.items() if spec.offset < first}
        for call in self.calls.values():
            call.doubtful = [
                known if other is not held else held.doubtful if spec.offset < first else {}
                for spec, other, known in zip(call.specs, call.helds, call.doubtful, strict=True)
            ]

    def _removal(self, held: HeldRecords, chunk: Chunk) -> None:
        """Count the records before this chunk that were removed unread."""
        begin = held.last_seen + 1 if held.last_seen >= 0 else held.start
        end = min(chunk.records[0].offset, chunk.log_start)
        if held.last_seen < 0 and held.beginning is not None:
            held.beginnings.add((chunk.records[0].offset, None))  # the log's own, whatever was there before
            begin = held.beginning
        if end <= begin:
            return
        broker, truth = self._world.broker, self._truth
        specs = broker.logs[held.tp][broker.index(held.tp, begin) : broker.index(held.tp, end)]
        least, maximum = self._removed
        lost = {spec.number for spec in specs if not truth.settled(spec)} & truth.removed - truth.missed
        # A map that was written since counts them with the settled ones around them: they are told of once.
        truth.missed |= lost
        self._removed = least + len(lost), maximum + end - begin

    def _check_removed(self, counted: int) -> None:
        least, maximum = self._removed
        if not least <= counted <= maximum:
            raise Violation("what was removed unread is counted", f"{counted}, not {least} to {maximum}")

    def answered(self, number: int, reply: Reply) -> None:
        """Take in the answer to a call, before it is handled."""
        call = self.calls.pop(number)
        for spec in call.specs:
            if reply.says is not Says.EVENTS or spec.kind.stage is not None:
                self.out.pop(spec.key, None)
        gate, now = self._gates[call.account], self._world.now
        gate.flying -= 1
        gate.take_reply(reply, now, len(call.specs), call.size)
        gone = any(held.draining or self.held.get(held.tp) is not held for held in call.helds)
        if gone or call.session != self._session:
            self._lose_sight()
        instant = self._member.pipeline.clock.correct(self._member.instant())
        if self._world.knobs.shared:
            self._notes.answered(call.account, reply, call.probe, instant)
        gate.heard(reply, instant)
        for spec in call.specs:
            failures, since = self._failures.pop(spec, (0, now))
            if reply.says is Says.NOTHING:
                self._failures[spec] = failures + 1, since
        self._doubt(call, reply)
        if reply.says is Says.HALT:
            self._refused(gate, reply.status)
        elif reply.says not in (Says.NOTHING, Says.THROTTLE):
            self._accepted(gate, call.probe)

    def _doubt(self, call: Call, reply: Reply) -> None:
        """Record that a call left and got no verdict."""
        if reply.says is Says.NOTHING and (reply.status or reply.reason not in ("dns", "connect", "tls")):
            for spec, doubtful in zip(call.specs, call.doubtful, strict=True):
                doubtful.setdefault(spec, False)
                self.unclear.add(spec.key)

    def _accepted(self, gate: GateView, probe: bool) -> None:
        self._notes.probed = self._notes.probed or probe or gate.may_be_halted
        for other in self._gates.values():
            if other is gate or other.halted == 401:
                other.halted = None
            if probe and (other is gate or other.halt_shown == 401):
                other.halt_shown = None

    def _refused(self, gate: GateView, status: int) -> None:
        if gate.halted == 401 and status != 401:
            # The token is accepted again, the account is not: an account that was never called learns nothing.
            for other in self._gates.values():
                other.halted = other.halted if other.used else None
        for concerned in self._gates.values() if status == 401 else (gate,):
            concerned.refuse(status)

    # -- what it commands

    def handled(self, pipeline: Pipeline) -> None:
        """An input was handled; its commands follow."""
        self._guarded.settled_down(pipeline.ledger)

    def commanded(self, command: m.Command) -> None:
        """Check one command."""
        match command:
            case m.Send():
                self._send(command)
            case m.ShareNote():
                self._notes.reported(command.note, self._world.now)
            case m.FetchSchema():
                self._questions.asked(command.ref, self._world.now, self.guarding is not None)
            case m.StoreKeys():
                require(not self._storing, "one key-store write at a time", command.number)
                self._storing[command.number] = split_keys(command.keys)
            case m.StoreDeadLetters():
                self._letters(command)
            case m.Commit():
                self._commit(command)
            case m.Report(event="dead_letter_guard"):
                self._guard(command)
            case m.Release():
                self._let_go(command.number, command.positions)
            case m.Stop():
                waiting = [number for number in self._drains if number is not None]
                require(not waiting, "a stop comes after all releases", waiting)
                late = self._let_go(None, command.positions)
                require(late != command.drained, "a stop says whether all was drained", command)

    def _send(self, send: m.Send) -> None:
        policy, specs = self._policy, self._world.api.read(send)
        require(0 < len(specs) == send.events <= policy.batch_events, "batch limit in events", len(specs))
        require(
            len(send.body) <= policy.batch_bytes or len(specs) == 1,
            "batch limit in bytes",
            len(send.body),
        )
        require(len(self.calls) < policy.concurrency, "calls in flight", len(self.calls))
        require(send.number not in self.calls, "numbers are unique", send.number)
        self._check_patience(specs)
        now = self._member.pipeline.context.now.unix
        helds = []
        for spec in specs:
            held = self.held.get(spec.tp)
            if held is None or held.draining or spec.offset > held.last_seen:
                raise Violation("no work is begun for what is not ours", f"{spec} was sent")
            if spec.account != send.account:
                raise Violation("an event goes to its own account", f"{spec} to {send.account}")
            if spec.key in self.out:
                raise Violation("a key is in flight once", f"{spec} is in flight already")
            self.out[spec.key] = held
            helds.append(held)
            if held.doubtful.get(spec) is False and self._world.counts_as_offline(spec, now):
                held.doubtful[spec] = True
                self._repeats += 1
        at_risk = len(self.out.keys() - self.taken_over)  # those count where they are in flight
        require(
            at_risk <= policy.concurrency * policy.batch_events,
            "a crash repeats concurrency x batch events at most", at_risk,
        )  # fmt: skip
        if self._world.knobs.shared:
            self._world.shared.check_send(self._member, specs)
            self._world.shared.check_quota(send.account)
        self._check_wait(send, specs)
        gate = self._gates[send.account]
        probe = gate.halt_shown is not None
        self.calls[send.number] = Call(send.account, specs, helds, len(send.body), probe, self._session)
        gate.check_send(self._world.now, len(specs), len(send.body))

    def _check_wait(self, send: m.Send, specs: Sequence[Spec]) -> None:
        """Check that a batch has waited that is certainly neither full nor cut."""
        gate, policy = self._gates[send.account], self._policy
        if (
            send.attempt > 1
            or len(specs) == policy.batch_events
            or gate.cuts
            or policy.batch_bytes < _NEVER_FULL
        ):
            return
        since = min(self._handed_out[spec] for spec in specs)
        # Of a full batch a part may have left with its partition.
        if since > self._lost_sight_at:
            gate.check_wait(self._world.now, since)

    def _check_patience(self, specs: Sequence[Spec]) -> None:
        """Check the pauses of retries: a pause is random from zero up, but pauses of zero again and again have
        a chance of 1 in 10 million here."""
        failures, since = min((self._failures.get(spec, (0, 0.0)) for spec in specs), default=(0, 0.0))
        if failures >= 8:
            longest = sum(longest_delay(self._policy.delivery_backoff, one) for one in range(1, failures + 1))
            waited = self._world.now - since
            if waited < 0.05 * longest:
                raise Violation("attempts without a verdict back off", f"{failures} in {waited} s")

    def _letters(self, command: m.StoreDeadLetters) -> None:
        require(not self._writing, "one dead-letter write at a time", command.number)
        require(self.guarding is None, "no dead letter is written once the guard has tripped", command)
        written = []
        for letter in command.letters:
            spec = self._world.spec_of(letter.record)
            rejection, stage = letter.rejection, spec.kind.stage
            if rejection.stage is not stage or not rejection.code or letter.record is not spec.record:
                raise Violation("a dead letter is a bad record and says why", f"{spec}: {rejection}")
            if (letter.attempts > 0) is not spec.kind.is_event:
                raise Violation("a dead letter counts its attempts", f"{spec}: {letter.attempts}")
            if spec.event_id in rejection.message:
                raise Violation("a dead letter holds no personal data", f"{spec}: {rejection}")
            held = self.held.get(spec.tp)
            if held is None or spec.offset > held.last_seen:
                raise Violation("no dead letter is written for what is not ours", f"{spec}")
            if self._member.given_up and not held.draining:
                raise Violation("no dead letter is written for what may be another's", f"{spec}")
            written.append((held, spec))
        self._writing[command.number] = written
        self._guarded.letters(spec for _, spec in written)

    def _guard(self, report: m.Report) -> None:
        """Check that the guard had a reason to stop intake."""
        self._guarded.check_reason(str(report.fields["topic"]))
        pipeline = self._member.pipeline
        self.guarding = self.guarding if self.guarding is not None else pipeline.ledger.totals().read

    def _commit(self, commit: m.Commit) -> None:
        require(not self._committing, "one commit at a time", commit.positions)
        self._committing = True
        require(bool(commit.positions), "a commit has positions", commit)
        for position in commit.positions:
            held = self._check_position(position)
            require(not held.draining, "what is drained is committed once, at its release", position)

    def _check_position(self, position: Position) -> HeldRecords:
        held = self.held.get(TopicPartition(position.topic, position.partition))
        if held is None:
            raise Violation("only what is held is committed", f"{position}")
        if position.next_offset < held.committing:
            raise Violation("commits do not go backwards", f"{position} after {held.committing}")
        held.committing = position.next_offset
        self._world.broker.check_position(self._member, position, held.start, held.beginnings)
        return held

    def _let_go(self, number: int | None, positions: Iterable[Position]) -> bool:
        """Take in a release or a stop. Returns whether it came at its deadline with work in flight."""
        if number not in self._drains:
            raise Violation("a release answers a revoke", f"{number}")
        helds, deadline = self._drains.pop(number)
        ours = [held for held in helds if self.held.get(held.tp) is held]
        for position in positions:
            held = self._check_position(position)
            require(held in ours, "a release commits what it releases", position)
        # The stop ends the process: at its deadline every revoke that still waits is answered, too.
        stop = self._drains.get(None)
        late = self._world.now >= (min(deadline, stop[1]) if stop is not None else deadline)
        if self.in_flight(ours):
            require(late, "a drain waits for what is in flight", self.in_flight(ours))
            self.excuse_in_flight(ours)
        for held in ours:
            del self.held[held.tp]
        return late

    # -- what is in flight

    def in_flight(self, helds: list[HeldRecords]) -> list[str]:
        """The work of these partitions that is in flight and has no outcome yet, in words."""
        keys = [key.hex() for key, held in self.out.items() if held in helds]
        written = [pair for pairs in self._writing.values() for pair in pairs]
        receipts = self._member.receipts.in_flight(helds)
        return keys + receipts + [str(spec) for held, spec in written if held in helds]

    def excuse_in_flight(self, helds: list[HeldRecords] | None = None) -> None:
        """After an ungraceful end for these partitions (None: for the whole process) keys without an outcome
        may be sent again."""
        # With a shared store our claims keep other members from sending them.
        if helds is None or not self._world.knobs.shared:
            self._truth.excuse(key for key, held in self.out.items() if helds is None or held in helds)

    def excuse_uncovered(self, helds: list[HeldRecords]) -> None:
        """Excuse what was accepted and is neither below a committed offset nor in its map, on other machines."""
        if not self._world.knobs.own_stores:
            return
        for held in helds:
            specs = self._world.broker.uncovered(held.tp, held.last_seen)
            self._truth.excuse(
                spec.key for spec in specs if self._truth.accepted[spec.key] and spec.key not in self.out
            )

    def excuse_all(self, helds: list[HeldRecords], *, whole: bool = False) -> None:
        """What of these was accepted, committed or not: nobody knows of it any more.

        As far as it was seen, or (`whole`) all of the log: what begins before its beginning is another one.
        """
        if not self._world.knobs.own_stores:
            return
        for held in helds:
            log = self._world.broker.logs[held.tp]
            # Where the broker tells no leader epochs, what came with the committed offset is void as well.
            specs = [
                spec for spec in log if whole or spec.offset <= held.last_seen or spec.leader_epoch is None
            ]
            self._truth.excuse(spec.key for spec in specs if self._truth.accepted[spec.key])

    # -- after every input

    def settled_down(self, pipeline: Pipeline) -> None:
        """After the commands of an input: check that the ledger adds up and that the limits are kept."""
        world, ledger, room = self._world, pipeline.ledger, pipeline.room()
        require(not self._notes.owed, "what one member meets all are told", self._notes.owed)
        ledger.check()
        totals = ledger.totals()
        settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
        held = pipeline.admission.held
        seen = totals.read + totals.released + ledger.passed + held
        if totals.read != settled + totals.open or seen != self._fed:
            raise Violation(
                "the ledger adds up", f"{totals}, passed {ledger.passed}, {held} held, fed {self._fed}"
            )
        if totals.open > self._policy.max_open_events or totals.open < 0:
            raise Violation("open events stay within the budget", f"{totals.open} are open")
        moving = totals.open - pipeline.steps.level().waiting - pipeline.admission.deferred
        grown, self._open_bytes = ledger.open_bytes > self._open_bytes, ledger.open_bytes
        if grown and ledger.open_bytes > self._policy.max_open_bytes and moving > 1:
            raise Violation("open bytes stay within the budget", f"{ledger.open_bytes}, {moving} events")
        require(not (held and room), "nothing is fetched while something waits for room", (held, room))
        if not totals.open and ledger.open_bytes:
            raise Violation("nothing open holds no bytes", f"{ledger.open_bytes} bytes")
        if not 0 <= room <= self._policy.max_open_events - totals.open:
            raise Violation("room is what is left of the budget", f"{room}, open {totals.open}")
        self._check_removed(pipeline.context.counters.removed_unread)
        if self.guarding is not None and (room or totals.read > self.guarding):
            raise Violation("nothing is read once the guard has tripped", f"{totals}, room {room}")
        for number, (_, deadline) in self._drains.items():
            if world.now >= deadline:
                raise Violation("a drain ends by its deadline", f"{number} is not released")
        if not world.inputs % _SNAPSHOT_EVERY:
            self._snapshot(pipeline.statistics(self._member.instant()))

    def _snapshot(self, figures: Statistics) -> None:
        """Check that the snapshot's figures agree with each other, partition by partition."""
        if not self._world.knobs.incidents.clock_jumps:
            counted = figures.counters.unclear_repeats
            require(counted == self._repeats, "repeats in doubt are counted", (counted, self._repeats))
        counted = figures.counters.taken_over
        least, more = self._taken_over_ever, self._member.keys.sent_too
        require(least <= counted <= least + more, "what was taken over is counted", (counted, least, more))
        maximum = self._quota.members(self._world.now, _DIVIDED_FOR)
        require(figures.quota_members <= maximum, "a part grows again", (figures.quota_members, maximum))
        totals = [partition.totals for partition in figures.partitions]
        require(sum(one.open for one in totals) == figures.totals.open, "the snapshot agrees", figures)
        for one in totals:
            settled = one.delivered + one.duplicate + one.filtered + one.dead_lettered
            require(one.read == settled + one.open, "the ledger adds up by partition", one)
        held = sorted((tp, held.epoch) for tp, held in self.held.items())
        shown = sorted((TopicPartition(one.topic, one.partition), one.epoch) for one in figures.partitions)
        require(held == shown, "the snapshot shows what is held", (shown, held))
        for account in figures.accounts:
            busy = bool(account.queued or account.in_flight)
            self._gates[account.account].check_state(account.state, busy, self._world.now)
        flying = sum(account.in_flight for account in figures.accounts)
        require(flying == len(self.calls), "the snapshot shows what is in flight", flying)
