"""Builders for the tests of the engine: records whose value decides their outcome, a core, a clock set by hand.

Theory of operation. A record's value is JSON that the fake decoder and converter read: `event` makes a deliverable
one, `filtered`, `unconvertible` and so on the others. `Core` feeds a `Pipeline`, keeps every command that waits for
its answer, and checks the invariants after each input: the ledger adds up, no commit lies past an open record, and
a tick at its deadline leaves nothing due (otherwise the shell's timer would spin).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any, NamedTuple, TypeVar

import orjson
from hypothesis import settings

from consumer.engine import messages as m
from consumer.engine.context import SKEW, Context
from consumer.engine.figures.delivered import written_in
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import (
    Chunk,
    CommerceEvent,
    ConversionEvent,
    Converted,
    Disposition,
    Filtered,
    Instant,
    Policy,
    Position,
    Record,
    Rejection,
    SchemaRef,
    Stage,
    TopicPartition,
    Untimely,
    Warned,
)
from consumer.engine.native import sizes_of
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import OFFLINE, Columns, Keys, Kind, NoEvent, Reading, split_keys
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.offset_map import CommitMetadata, OffsetMap
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import MOVES, SETTLED_AS, RecordStage
from tests.engine.decoder import FakeDecoder

TOPIC = "shop"
ACCOUNT = "549755885175"
OTHER_ACCOUNT = "549755885176"
START = 1_000.0
"""The monotonic clock at the start of a test, in seconds: not a power of two, so that rounding errors show."""
UNIX = 1_700_000_000.0
MAX_AGE = 7 * 86_400.0
"""Seconds after which an event is too old."""
UNDECODABLE = b"\xff not an event"
NO = b'{"code": 2, "message": "no"}'
"""The body of a refusal by the platform itself."""
NO_EVENTS: dict[str, str] = {}

PROPERTY = settings(max_examples=300, derandomize=True, deadline=None)
"""Settings for property tests: the same examples on every run, so that a failure can be repeated."""
MACHINE = settings(PROPERTY, max_examples=30, stateful_step_count=40)
"""Settings for state machines: few examples, which take about a second."""
MANY = settings(MACHINE, max_examples=150)
"""Settings for the same state machines in tests that are marked slow."""

AT_ONCE: dict[str, Any] = {"linger": 0.0, "calls_per_minute": 10**21}
"""A policy by which a batch goes without a wait, as far as rounding shows."""

C = TypeVar("C", bound=m.Command)


def event(event_id: str, account: str = ACCOUNT, **more: Any) -> bytes:
    """Return the value of a deliverable record; `more` goes into the payload's ``custom_data``."""
    return orjson.dumps({"id": event_id, "account": account, "more": more})


def filtered() -> bytes:
    """Return the value of a record that the mapping filters."""
    return orjson.dumps({"filter": "event_name"})


def unconvertible() -> bytes:
    """Return the value of a record that decodes and cannot be converted."""
    return orjson.dumps({"reject": "no_identity"})


def of_schema(event_id: str, schema: str, **more: Any) -> bytes:
    """Return the value of a deliverable record whose writer's schema has the id `schema`."""
    return orjson.dumps({"id": event_id, "account": ACCOUNT, "more": more, "schema": schema})


def ref(schema: str) -> SchemaRef:
    """Return the reference to the schema that a record of `of_schema` needs."""
    return SchemaRef("id", schema)


class FakeConverter:
    """A converter that turns the events of `FakeDecoder` into conversion events."""

    def convert(self, one: CommerceEvent, now: float) -> Converted:
        """Return what the event says that it becomes."""
        if "filter" in one:
            return Filtered(one["filter"])
        if "reject" in one:
            return Rejection(Stage.CONVERT, one["reject"], "the event cannot be converted")
        more = dict(one["more"])
        time = more.get("time", now)
        if not now - MAX_AGE <= time <= now + SKEW:
            code = "future_event_time" if time > now else "expired"
            rejection = Rejection(Stage.CONVERT, code, "it lies ahead, or is too old")
            return Untimely.of(rejection, time, time + MAX_AGE)
        source, age = more.pop("action_source", "web"), more.pop("age", 10)
        text = "\ud800" if more.pop("surrogate", False) else "shirt"
        warnings = (Warned("value_zero", "a value of zero", "custom_data.value"),) if "warn" in more else ()
        payload = {"event_name": "checkout", "event_id": one["id"], "custom_data": {"name": text, **more}}
        written = written_in(payload)
        names = (one["account"], "checkout", one["id"], one["id"])
        return ConversionEvent(*names, int(now) - age, source, payload, written, warnings)


class Books(Ledger):
    """A ledger alone, without the pipeline that moves records to the stage from which they settle."""

    def __init__(self) -> None:
        super().__init__(Context(Policy(), 0))

    def begin(
        self,
        tp: TopicPartition,
        epoch: int,
        start: int | None,
        commit_start: bool,
        leader_epoch: int | None = None,
        settled: OffsetMap | None = None,
    ) -> AssignmentState:
        """Begin an assignment; `settled` is the offset map that was committed with its start."""
        one = m.Assignment(tp.topic, tp.partition, epoch, start, commit_start, leader_epoch)
        return self.assign(one, CommitMetadata(None, None, None, settled))

    def to_commit(self) -> list[Position]:
        """Return the positions that may be committed now."""
        return [position for _, position in self.committables()]

    def enter(self, state: AssignmentState, chunk: Chunk, passed: Sequence[int] = ()) -> Block:
        """Enter fetched records that became no events (yet)."""
        return self.track(state, chunk, sizes_of(chunk.records), no_events(len(chunk.records)), passed)

    def settle_row(self, block: Block, index: int, disposition: Disposition) -> bool:
        """Settle a record as if it had reached the last stage before; return whether it was ours to settle."""
        if block.stages[index] < RecordStage.DELIVERED:
            block.stages[index] = min(MOVES[SETTLED_AS[disposition]].of)
        return bool(self.settle([Run(block, index, index + 1)], disposition))


def no_events(count: int) -> Columns:
    """Return rows of `count` records that are no events."""
    columns = Columns(Keys())
    for _ in range(count):
        columns.add(None)
    return columns


def record(offset: int, value: bytes | None) -> Record:
    """Return a Kafka record without key and headers."""
    return Record(offset, 1_699_999_999_000 + offset, None, value, ())


def chunk(
    values: Sequence[bytes | None],
    *,
    offset: int = 0,
    step: int = 1,
    partition: int = 0,
    epoch: int = 1,
    leader_epoch: int | None = 7,
) -> Chunk:
    """Return records of one partition with offsets from `offset` on, `step` apart."""
    records = [record(offset + n * step, value) for n, value in enumerate(values)]
    return Chunk(TOPIC, partition, epoch, leader_epoch, records)


def make_runs(
    count: int,
    *,
    size: int = 100,
    account: str = ACCOUNT,
    state: AssignmentState | None = None,
    since: float = 0.0,
) -> list[Run]:
    """Return one run per event of a block, whose first record came at `since`; each has its own key."""
    ledger = Books()
    if state is None:
        state = ledger.begin(TopicPartition(TOPIC, 0), 1, 0, False)
    first = state.last_seen + 1
    columns = Columns(Keys())
    for index in range(count):
        body = b"{" + b" " * (size - 2) + b"}"
        columns.add_event(
            Kind(account, "checkout", 0), f"{id(state)}-{first + index}", int(UNIX), False, body, ()
        )
    records = chunk([b"x"] * count, offset=first)
    block = ledger.track(state, records, sizes_of(records.records), columns)
    block.since = since
    return [Run(block, index, index + 1) for index in range(count)]


def read_by(reading: Reading, records: Sequence[Record], now: float = UNIX) -> list[Read | NoEvent]:
    """Return what `reading` makes of each record: an event, or the verdict that it is none."""
    columns = Columns(Keys())
    reading.read(records, now, columns, TOPIC, 0)
    kinds = [*columns.kinds]
    return [
        columns.verdicts[row]
        if row in columns.verdicts
        else Read(
            *kinds[columns.kind_numbers[row]],
            columns.key(row),
            columns.times[row],
            bool(columns.marks[row] & OFFLINE),
            columns.body(row)[:-1],
            columns.warnings.get(row, ()),
            columns.values[row],
        )
        for row in range(len(columns))
    ]


class Read(NamedTuple):
    """An event as it was read."""

    account: str
    name: str
    written: int
    key: bytes
    time: int
    offline: bool
    body: bytes
    warnings: tuple[Warned, ...]
    value: int


def accepted(count: int) -> bytes:
    """Return the body of an answer that accepts a whole batch."""
    return answer_body([("processed", None, None)] * count)


def answer_body(outcomes: Sequence[tuple[str, str | None, str | None]], **other: Any) -> bytes:
    """Return the body of an answer: status, error and warning per event; `other` replaces its counters."""
    processed = sum(1 for status, _, _ in outcomes if status == "processed")
    return orjson.dumps(
        {
            "num_events_received": len(outcomes),
            "num_events_processed": processed,
            "events": [
                {"status": status, "error_message": error, "warning_message": warning}
                for status, error, warning in outcomes
            ],
            **other,
        }
    )


class Core:
    """A pipeline on a clock set by hand, with all commands that still wait for their answer."""

    def __init__(self, *, seed: int = 0, sections: Sequence[str] = (), **policy: Any) -> None:
        self.policy = Policy(**AT_ONCE | policy)
        self.pipeline = Pipeline(
            self.policy, FakeDecoder(sections), FakeConverter(), seed=seed, sections=sections
        )
        self.now = START
        self.clock_off = 0.0
        """Seconds that the wall clock is ahead of true time."""
        self.waiting: list[m.Command] = []
        self.log: list[m.Command] = []
        """Every command that the pipeline returned."""
        self.stored_keys: set[bytes] = set()
        self.gives_calls = True
        """Whether a shared key store grants at once all calls that it is asked for."""
        self.offsets: dict[int, int] = {}

    # -- inputs

    def feed(self, happened: m.Input) -> list[m.Command]:
        """Feed one input, keep the commands that need an answer, check the invariants, and return all commands."""
        commands = self.pipeline.handle(happened, self.instant())
        self.log += commands
        self.waiting += [
            one
            for one in commands
            if not isinstance(one, m.Report | m.Release | m.Stop | m.GiveUp | m.ShareNote)
        ]
        self._check(commands)
        while self.gives_calls and self.has(m.AcquirePermits):
            asked = self.take(m.AcquirePermits)
            commands += self.feed(m.PermitsGranted(asked.number, asked.account, asked.calls, 0.0))
        return commands

    def instant(self) -> Instant:
        """Return the current time on both clocks."""
        return Instant(self.now, UNIX + self.now - START + self.clock_off)

    def assign(self, partition: int = 0, epoch: int = 1, start: int | None = 0, **more: Any) -> None:
        """Let the group assign a partition to this member; `more`: see `m.Assignment`."""
        self.offsets[partition] = start or 0
        one = m.Assignment(TOPIC, partition, epoch, start, more.pop("commit_start", False), **more)
        self.feed(m.Assigned([one]))

    def fetch(self, *values: bytes | None, partition: int = 0, epoch: int | None = None) -> None:
        """Let records of a live assignment come in, at the next offsets."""
        state = self.pipeline.ledger.get(TopicPartition(TOPIC, partition))
        if epoch is None:
            epoch = state.epoch if state is not None else 1
        offset = self.offsets.get(partition, 0)
        self.offsets[partition] = offset + len(values)
        self.feed(m.Fetched([chunk(values, offset=offset, partition=partition, epoch=epoch)]))

    def revoke(self, *partitions: int, number: int = 1_000_000, grace: float = 20.0) -> list[m.Command]:
        """Let the group revoke partitions."""
        return self.feed(m.Revoked([TopicPartition(TOPIC, one) for one in partitions], number, grace))

    def lose(self, *partitions: int) -> list[m.Command]:
        """Let the group report that partitions are lost to another member."""
        return self.feed(m.Lost([TopicPartition(TOPIC, one) for one in partitions]))

    # -- answers to commands

    def take(self, kind: type[C]) -> C:
        """Return the oldest command of this kind that waits for its answer, and stop waiting for it."""
        for one in self.waiting:
            if isinstance(one, kind):
                self.waiting.remove(one)
                return one
        raise AssertionError(
            f"no {kind.__name__} waits; these do: {[type(one).__name__ for one in self.waiting]}"
        )

    def has(self, kind: type[m.Command]) -> bool:
        """Return whether a command of this kind waits for its answer."""
        return any(isinstance(one, kind) for one in self.waiting)

    def answer(
        self, send: m.Send, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> list[m.Command]:
        """Let the API answer a call."""
        return self.feed(m.Answered(send.number, status, headers or NO_EVENTS, body))

    def report_time(self, off: float = 0.0, *, date: str | None = None) -> None:
        """Let the API answer what time it is: `off` seconds ahead of the true time, or `date`."""
        self.take(m.AskTime)
        shown = formatdate(UNIX + self.now - START + off, usegmt=True) if date is None else date
        self.feed(m.TimeAsked(m.Answered(0, 401, {"date": shown}, NO)))

    def accept(self, send: m.Send | None = None) -> m.Send:
        """Let the API accept a call (by default the oldest), and return it."""
        send = send or self.take(m.Send)
        self.answer(send, 200, accepted(send.events))
        return send

    def deny_schema(self) -> SchemaRef:
        """Let the registry deny the oldest schema asked for until that is final, and return its reference."""
        denied = self.take(m.FetchSchema).ref
        self.feed(m.SchemaMissing(denied))
        while any((one.kind, one.value) == denied for one in self.statistics().schemas):
            self.advance(10.0)
            for asked in [one for one in self.waiting if one == m.FetchSchema(denied)]:
                self.waiting.remove(asked)
                self.feed(m.SchemaMissing(denied))
        return denied

    def look_up(self) -> None:
        """Let the key store answer all look-ups that wait."""
        while self.has(m.LookUpKeys):
            asked = self.take(m.LookUpKeys)
            keys = split_keys(asked.keys)
            also = split_keys(asked.earlier) or keys
            found = [{*both} & self.stored_keys != set() for both in zip(keys, also, strict=True)]
            self.feed(m.KeysLookedUp(asked.number, found))

    def store_keys(self) -> None:
        """Let the key store store all keys that wait."""
        while self.has(m.StoreKeys):
            asked = self.take(m.StoreKeys)
            self.stored_keys.update(split_keys(asked.keys))
            self.feed(m.KeysStored(asked.number))

    def deliver_one(self, send: m.Send | None = None) -> m.Send:
        """Let the API accept the oldest call, or this one, and the key store store the keys; return the call."""
        accepted = self.accept(send)
        self.store_keys()
        return accepted

    def read_token(self, changed: bool) -> None:
        """Let the token be read again."""
        self.take(m.ReadToken)
        self.feed(m.TokenRead(changed))

    def store_letters(self, stored: bool = True) -> list[m.DeadLetter]:
        """Let the broker store all dead letters of the oldest write, or none of them, and return them."""
        asked = self.take(m.StoreDeadLetters)
        self.feed(m.DeadLettersStored(asked.number, [stored] * len(asked.letters)))
        return list(asked.letters)

    def commit(self) -> list[Position]:
        """Let the broker accept the oldest commit, and return its positions."""
        asked = self.take(m.Commit)
        self.feed(m.CommitDone(asked.positions, None))
        return list(asked.positions)

    def send_all(self) -> None:
        """Answer all look-ups and let the linger pass: all batches that may be sent are in flight afterwards."""
        self.look_up()
        self.advance(self.policy.linger)

    def deliver(self) -> None:
        """Deliver all open events that can be: look them up, send them, accept the calls, store the keys."""
        for _ in range(50):
            self.send_all()
            while self.has(m.Send):
                self.accept()
            self.store_keys()
            if not self.has(m.LookUpKeys):
                return
        raise AssertionError("fifty rounds did not deliver everything")

    # -- time

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick at each deadline on the way and one at the end."""
        until = self.now + seconds
        for _ in range(400_000):
            deadline = self.pipeline.next_deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.tick()
        else:
            raise AssertionError("the timer spins")
        self.now = until
        self.tick()

    def tick(self) -> list[m.Command]:
        """Feed a tick now."""
        return self.feed(m.Tick())

    def until(self, done: Callable[[], bool], seconds: float = 3600.0) -> None:
        """Tick from deadline to deadline until `done`, or fail after `seconds`."""
        end = self.now + seconds
        while not done():
            deadline = self.pipeline.next_deadline()
            assert deadline is not None, "nothing is due, and it is not done"
            assert deadline <= end, "it did not happen in time"
            self.now = max(self.now, deadline)
            self.tick()

    # -- reading the state

    def statistics(self) -> Statistics:
        """Return the snapshot of now."""
        return self.pipeline.statistics(self.instant())

    def reports(self, name: str) -> list[m.Report]:
        """Return all reports so far with the event name `name`."""
        return [one for one in self.log if isinstance(one, m.Report) and one.event == name]

    def committable(self, partition: int = 0) -> int | None:
        """Return the next offset that may be committed."""
        state = self.pipeline.ledger.get(TopicPartition(TOPIC, partition))
        position = state.committable() if state is not None else None
        return position.next_offset if position is not None else None

    def _check(self, commands: Sequence[m.Command]) -> None:
        totals = self.pipeline.ledger.totals()
        settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
        assert totals.read == settled + totals.open
        self.pipeline.ledger.check()
        assert self.pipeline.ledger.open_bytes >= 0
        for one in commands:
            if isinstance(one, m.Commit):
                for position in one.positions:
                    self._check_position(position)
        deadline = self.pipeline.next_deadline()
        assert deadline is None or deadline > self.now, (
            "due now, after all that was due was done: the timer spins"
        )

    def _check_position(self, position: Position) -> None:
        state = self.pipeline.ledger.get(TopicPartition(position.topic, position.partition))
        assert state is not None, "a commit for a partition that is not ours"
        for block in state.blocks:
            for index, stage in enumerate(block.stages):
                assert stage >= RecordStage.DELIVERED or block.record(index).offset >= position.next_offset, (
                    "committed past an open record"
                )


def reading(*values: bytes | None, **more: Any) -> Core:
    """Return a core with a partition, of which it has read these records; `more`: see `Core`."""
    core = Core(**more)
    core.assign()
    if values:
        core.fetch(*values)
    return core


def sending(*values: bytes | None, **more: Any) -> Core:
    """Return a core as `reading` does, with all batches in flight that may be sent."""
    core = reading(*values, **more)
    core.send_all()
    return core


def sends(commands: Sequence[m.Command]) -> list[m.Send]:
    """Return the calls among `commands`."""
    return [one for one in commands if isinstance(one, m.Send)]


def event_ids(send: m.Send) -> list[str]:
    """Return the ids of the events in a call."""
    return [one["event_id"] for one in orjson.loads(send.body)["data"]]


def released(commands: list[m.Command]) -> list[Position] | None:
    """Return the positions that the release among `commands` names; None: there is no release."""
    releases = [one for one in commands if isinstance(one, m.Release)]
    return list(releases[0].positions) if releases else None


def read_map(position: Position) -> OffsetMap | None:
    """Return the offset map in the metadata of `position`."""
    return offset_map.read_map(position).settled


def bounds_of(position: Position) -> list[int]:
    """Return where settled runs begin and end by the offset map in the metadata of `position`, which has one."""
    found = read_map(position)
    assert found is not None
    return list(found.bounds)


def write_map(base: int, bounds: Sequence[int], leader_epoch: int | None, partition: int = 0) -> str:
    """Return the metadata of a commit of `base`."""
    return offset_map.write_map(TopicPartition(TOPIC, partition), base, bounds, leader_epoch)


def stopped(core: Core) -> m.Stop | None:
    """Return the stop, once there is one."""
    return next((one for one in core.log if isinstance(one, m.Stop)), None)
