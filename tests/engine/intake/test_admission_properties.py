"""Admission, with any records: the budget in bytes is kept exactly, and in the end all records are settled.

Theory of operation. Two partitions, records of any size, answers in any order; fetches bring more than room
allows. The bytes of each open record are counted anew after each step, from records and events. At the end every
command is answered favourably.
"""

from __future__ import annotations

import orjson
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine import messages as m
from consumer.engine.model import TopicPartition
from consumer.engine.native import sizes_of
from consumer.engine.reading import Keys, split_keys
from consumer.engine.records.block import ROW_BYTES
from tests.engine.building import (
    ACCOUNT,
    MACHINE,
    MANY,
    TOPIC,
    UNDECODABLE,
    Core,
    filtered,
    of_schema,
    released,
)
from tests.engine.intake.test_admission import BUDGET, kind, padded


def json_size(value: bytes | None) -> int:
    """Return the bytes of the JSON that the fake converter makes of a record, 0 if it makes none."""
    if value is None or not value.startswith(b'{"id"'):
        return 0
    one = orjson.loads(value)
    payload = {
        "event_name": "checkout",
        "event_id": one["id"],
        "custom_data": {"name": "shirt", **one["more"]},
    }
    return len(orjson.dumps(payload) + b",")


def waiting(core: Core) -> set[tuple[int, int]]:
    """Return partition and offset of each open record that waits for its schema, or for room since its schema came."""
    parked = [one.row for each in core.pipeline.parking._wanted.values() for one in each.records]
    return {
        (block.assignment.tp.partition, block.offsets[index])
        for block, index, _ in (*parked, *core.pipeline.admission._deferred)
    }


def dying(core: Core) -> set[tuple[int, int]]:
    """Return partition and offset of each open record whose dead letter is being stored."""
    return {
        (one.row.block.assignment.tp.partition, one.letter.record.offset) for one in core.pipeline.letters
    }


def open_bytes(core: Core) -> dict[tuple[int, int], int]:
    """Return the bytes that each open record needs, counted anew from records and events."""
    waits, found = waiting(core) | dying(core), {}
    for state in core.pipeline.ledger:
        for block in state.blocks:
            for record in block.records:
                if record is None:
                    continue
                place = (state.tp.partition, record.offset)
                grown = 0 if place in waits else json_size(record.value)
                found[place] = sizes_of([record])[0] + ROW_BYTES + grown
    return found


def settled_bytes(core: Core) -> int:
    """Return the upper limit for bytes of settled records: their rows, and a quarter of each page of bodies."""
    blocks = [one for state in core.pipeline.ledger for one in state.blocks if one.open]
    rows = sum(len(block.stages) - block.open for block in blocks)
    return rows * ROW_BYTES + sum(len(block.page) // 4 for block in blocks)


SIZES = st.one_of(st.integers(150, 400), st.integers(150, 1_200), st.integers(1_500, 5_000))
KINDS = st.sampled_from(["event"] * 6 + ["schema"] * 4 + ["filtered", "undecodable", "tombstone"])
RECORDS = st.lists(st.tuples(KINDS, SIZES, st.integers(0, 7)), min_size=1, max_size=12)


class AdmissionMachine(RuleBasedStateMachine):
    """Two partitions, records of any size, answers in any order: fetches bring more than there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[int, list[bytes | None]] = {0: [], 1: []}
        self.epoch = 0
        self.fetched = 0
        self.looked_up = {0: -1, 1: -1}
        """The offset of the last plain event of each partition that was looked up."""
        self.again_to = {0: -1, 1: -1}
        """The last offset of each partition up to which records may come a second time."""
        self.heard = 0

    @initialize(max_events=st.sampled_from([3, 10_000]))
    def begin(self, max_events: int) -> None:
        """Begin a process that has both partitions."""
        self.core = Core(
            max_open_bytes=BUDGET,
            max_open_events=max_events,
            batch_events=4,
            linger=0.1,
            calls_per_minute=10**6,
            schema_patience=1.0,
        )
        for partition in self.log:
            self.assign(partition)

    def assign(self, partition: int) -> None:
        """Assign a partition, from its last position."""
        self.epoch += 1
        start = self.core.offsets.get(partition, 0)
        self.core.assign(partition, self.epoch, start)
        self.looked_up[partition] = -1
        self.again_to[partition] = -1

    def is_ours(self, partition: int) -> bool:
        """Return whether a partition is assigned."""
        return self.core.pipeline.ledger.get(TopicPartition(TOPIC, partition)) is not None

    # -- rules

    @rule(partition=st.integers(0, 1), records=RECORDS, repeat=st.sampled_from([1, 1, 1, 9]))
    def fetch(self, partition: int, records: list[tuple[str, int, int]], repeat: int) -> None:
        """Let records come in, often more than there is room for."""
        self.append(partition, records * repeat)
        self.fetch_on(partition, len(self.log[partition]))

    def append(self, partition: int, records: list[tuple[str, int, int]]) -> None:
        """Append records to a partition's log."""
        log = self.log[partition]
        for what, size, schema in records:
            name = f"{partition}-{len(log)}"
            values = {
                "event": padded(name, size),
                "schema": of_schema(name, str(schema), pad="x" * (size // 2)),
                "filtered": filtered(),
                "undecodable": UNDECODABLE * (size // 40),
                "tombstone": None,
            }
            log.append(values[what])

    def fetch_on(self, partition: int, end: int) -> None:
        """Let the records of the log come in, up to the offset `end`."""
        begin = self.core.offsets[partition]
        if begin < end and self.is_ours(partition):
            self.fetched += end - begin
            self.core.fetch(*self.log[partition][begin:end], partition=partition)

    @rule(partition=st.integers(0, 1), back=st.integers(1, 20), count=st.integers(1, 30))
    def go_back(self, partition: int, back: int, count: int) -> None:
        """Set the position back to held, open or settled records, and fetch some of them again."""
        state = self.core.pipeline.ledger.get(TopicPartition(TOPIC, partition))
        if state is None or state.start is None:
            return
        at = max(state.start, self.core.offsets[partition] - back)
        before, self.core.offsets[partition] = self.core.offsets[partition], at
        # Records read again are looked up after the look-ups of their first reading, so their order is not checked.
        self.again_to[partition] = max(self.again_to[partition], before - 1)
        self.fetch_on(partition, min(at + count, len(self.log[partition])))

    @rule(partition=st.integers(0, 1), revoke=st.booleans(), back=st.integers(0, 10))
    def let_go(self, partition: int, revoke: bool, back: int) -> None:
        """Revoke or lose a partition with its held records, and assign it again from a lower offset."""
        if not self.is_ours(partition):
            return
        if revoke:
            assert released(self.core.revoke(partition, grace=0.0)) is not None
        else:
            self.core.lose(partition)
        held = {state.tp.partition for state, _ in self.core.pipeline.admission._held}
        assert partition not in held
        assert partition not in {place[0] for place in waiting(self.core)}
        before, again_to = self.core.offsets[partition], self.again_to[partition]
        self.core.offsets[partition] = max(0, before - back)
        self.assign(partition)
        # A record that is read again may follow its first copy, which is in flight, and is looked up after its answer.
        self.again_to[partition] = max(again_to, before - 1)

    @rule(rounds=st.integers(1, 4))
    def deliver(self, rounds: int) -> None:
        """Deliver events: look them up, send them, accept the calls, store the keys."""
        for _ in range(rounds):
            self.core.send_all()
            while self.core.has(m.Send):
                self.core.accept()
            self.core.store_keys()

    @precondition(lambda self: self.core.has(m.StoreDeadLetters))
    @rule(stored=st.booleans())
    def dead_letters(self, stored: bool) -> None:
        """Let the broker store the dead letters, or fail."""
        self.core.store_letters(stored)

    @precondition(lambda self: self.core.has(m.FetchSchema))
    @rule(how=st.sampled_from(["found", "found", "missing", "unavailable"]))
    def schema(self, how: str) -> None:
        """Let the registry answer."""
        asked = self.core.take(m.FetchSchema).ref
        self.core.feed(
            m.SchemaFound(asked, "{}") if how == "found"
            else m.SchemaMissing(asked) if how == "missing"
            else m.SchemaUnavailable(asked, "timeout")
        )  # fmt: skip

    @rule(seconds=st.sampled_from([0.05, 1.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        """Let time pass, with a tick at each deadline."""
        self.core.advance(seconds)

    # -- invariants

    @invariant()
    def the_budget_is_kept(self) -> None:
        """Open bytes are exact but for settled records. Above the budget only one event is open, beside records that
        wait, or waited and become dead letters: these hold no event."""
        held_bytes, waits = open_bytes(self.core), waiting(self.core)
        total, needed = self.core.pipeline.ledger.open_bytes, sum(held_bytes.values())
        assert needed <= total <= needed + settled_bytes(self.core)
        if total > BUDGET:
            assert len(held_bytes.keys() - waits - dying(self.core)) <= 1, "one event alone may be too large"
            assert len(waits) <= 1 or sum(held_bytes[one] for one in waits) <= BUDGET

    @invariant()
    def what_waits_for_its_schema_fills_half(self) -> None:
        """Records that wait for their schema fill at most half of the budget, so that there is room when it comes."""
        parking = self.core.pipeline.parking
        assert parking.size <= BUDGET // 2 or len(parking) == 1

    @invariant()
    def held_records_are_not_read(self) -> None:
        """Each fetched record is read, held or released; no held one is open or already read."""
        totals, held = self.core.statistics().totals, 0
        for state, chunk in self.core.pipeline.admission._held:
            held += len(chunk.records)
            assert state.live
            assert chunk.records[0].offset > state.last_seen
        assert held == self.core.pipeline.admission.held
        assert self.fetched == totals.read + totals.released + held

    @invariant()
    def room_is_none_while_something_is_held(self) -> None:
        """While records are held or deferred there is no room, so one fetch bounds how many are held."""
        if self.core.pipeline.admission.held or self.core.pipeline.admission.deferred:
            assert self.core.pipeline.room() == 0

    @invariant()
    def offsets_are_in_order(self) -> None:
        """Plain events of a partition are looked up in the order of their offsets."""
        places = {
            Keys().of(ACCOUNT, "checkout", f"{partition}-{offset}"): (partition, offset)
            for partition, log in self.log.items()
            for offset, value in enumerate(log)
            if value is not None and value.startswith(b'{"id"') and b'"schema"' not in value
        }
        for one in self.core.log[self.heard :]:
            for key in split_keys(one.keys) if isinstance(one, m.LookUpKeys) else ():
                if key in places:
                    partition, offset = places[key]
                    if offset <= self.again_to[partition]:
                        continue
                    assert offset > self.looked_up[partition]
                    self.looked_up[partition] = offset
        self.heard = len(self.core.log)

    def teardown(self) -> None:
        """Answer everything favourably: all records are settled."""
        if not hasattr(self, "core"):
            return
        kind(self.core)
        for partition, log in self.log.items():
            self.fetch_on(partition, len(log))
        kind(self.core)
        for partition, log in self.log.items():
            if log and self.core.pipeline.ledger.get(TopicPartition(TOPIC, partition)).last_seen >= 0:  # type: ignore[union-attr]  # assigned
                assert self.core.committable(partition) == len(log)
        assert self.core.pipeline.ledger.open_bytes == 0
        assert self.core.pipeline.parking.size == 0


def test_a_record_that_waited_beside_a_large_event_becomes_a_dead_letter() -> None:
    """An event larger than the budget is admitted while all other records wait for their schema; then one of these
    turns out to have none."""
    machine = AdmissionMachine()
    machine.begin(10_000)
    machine.append(0, [("schema", 1_200, 1), ("event", 5_000, 0)])
    machine.fetch_on(0, 2)
    while not machine.core.has(m.StoreDeadLetters):
        if machine.core.has(m.FetchSchema):
            machine.schema("missing")
        machine.core.advance(1.0)
        machine.the_budget_is_kept()
    assert machine.core.pipeline.ledger.open == 2
    machine.teardown()


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_admission_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(AdmissionMachine, settings=MANY)
