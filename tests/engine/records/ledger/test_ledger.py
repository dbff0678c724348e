"""The ledger: its counts add up after every input, and it returns only positions that may be committed."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine.model import Chunk, Disposition, Position, Record, TopicPartition
from consumer.engine.records import offset_map
from consumer.engine.records.block import ROW_BYTES, Block
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import RecordStage
from consumer.errors import InvariantViolation
from tests.engine.building import MACHINE, MANY, TOPIC, Books

TP = TopicPartition(TOPIC, 0)


def opened(commit_start: bool = False, start: int | None = 0) -> Books:
    """Return a ledger with one assignment."""
    ledger = Books()
    ledger.begin(TP, 1, start, commit_start)
    return ledger


def track(ledger: Books, *offsets: int, leader_epoch: int | None = 7) -> Block:
    """Enter records at these offsets."""
    state = ledger.get(TP)
    assert state is not None
    records = [Record(offset, 0, b"key", b"value", (("name", b"x"),)) for offset in offsets]
    return ledger.enter(state, Chunk(TOPIC, 0, 1, leader_epoch, records))


def committable(ledger: Books) -> Position | None:
    """Return the position that may be committed now."""
    state = ledger.get(TP)
    assert state is not None
    return state.committable()


def test_the_lowest_open_record_holds_the_commit() -> None:
    """A settled record never moves the commit past an earlier open one (docs/why.md: vector #24215)."""
    ledger = opened()
    block = track(ledger, 0, 1, 2)
    ledger.settle_row(block, 1, Disposition.DELIVERED)
    ledger.settle_row(block, 2, Disposition.DELIVERED)
    position = committable(ledger)
    assert position is not None
    # The position stays where reading began; the map says what is settled behind it.
    assert position.next_offset == 0
    known = offset_map.read_map(position).settled
    assert known is not None
    assert [known.settled(offset) for offset in range(4)] == [False, True, True, False]
    ledger.settle_row(block, 0, Disposition.DEAD_LETTERED)
    assert committable(ledger) == Position(TOPIC, 0, 3, 7)


def test_the_leader_epoch_is_that_of_the_record_before() -> None:
    """A commit has the leader epoch of the last settled record (apache/kafka PR 23183)."""
    ledger = opened()
    first = track(ledger, 0, leader_epoch=3)
    second = track(ledger, 1, 2, leader_epoch=4)
    ledger.settle_row(first, 0, Disposition.DELIVERED)
    assert committable(ledger) == Position(TOPIC, 0, 1, 3)
    ledger.settle_row(second, 0, Disposition.DELIVERED)
    assert committable(ledger) == Position(TOPIC, 0, 2, 4)


def test_a_start_to_commit_is_committable_before_any_record() -> None:
    """A new group that begins at the end commits its start, so that a crash skips nothing."""
    assert committable(opened(commit_start=True, start=77)) == Position(TOPIC, 0, 77, None)
    assert committable(opened(commit_start=False, start=77)) is None
    assert committable(opened(commit_start=True, start=None)) is None


def test_what_is_committed_is_not_offered_again() -> None:
    """Only positions ahead of the committed one are returned; a draining partition is committed at its end alone."""
    ledger = opened()
    block = track(ledger, 0, 1)
    ledger.settle_row(block, 0, Disposition.DELIVERED)
    state = ledger.get(TP)
    assert state is not None
    [position] = ledger.to_commit()
    state.committed = position
    assert ledger.to_commit() == []
    assert ledger.final_positions([state]) == []
    ledger.settle_row(block, 1, Disposition.DELIVERED)
    state.draining = True
    assert ledger.to_commit() == []
    assert ledger.final_positions([state]) == [Position(TOPIC, 0, 2, 7)]


@pytest.mark.parametrize("offsets", [(5,), (4,), (6, 6), (8, 7)])
def test_offsets_that_do_not_rise_are_a_bug_and_stop(offsets: tuple[int, ...]) -> None:
    """Records out of order raise an error."""
    ledger = opened()
    track(ledger, 5)
    with pytest.raises(InvariantViolation, match="do not rise"):
        track(ledger, *offsets)


def test_books_that_do_not_add_up_stop_the_process() -> None:
    """Figures show a mismatch; whenever a position is about to be committed, a mismatch raises an error."""
    ledger = opened()
    track(ledger, 0)
    state = ledger.get(TP)
    assert state is not None
    state.read += 1
    assert (ledger.totals().read, ledger.mismatch()) == (1, 1)
    with pytest.raises(InvariantViolation, match="does not add up, by 1"):
        ledger.check()
    with pytest.raises(InvariantViolation, match="does not add up"):
        ledger.final_positions([state])
    with pytest.raises(InvariantViolation, match="does not add up"):
        ledger.drop(TP)


class LedgerMachine(RuleBasedStateMachine):
    """The ledger against a naive model: a dict of open offsets per assignment, searched from the front."""

    blocks: Bundle[tuple[Block, int]] = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Books()
        self.next_epoch = 1
        self.seen: dict[int, dict[int, bool]] = {}
        """Offsets read per live epoch, and whether each is settled."""
        self.epochs: dict[int, int] = {}
        """The live epoch of each partition."""
        self.tracked: dict[int, list[Block]] = {}
        """The blocks of each live epoch."""
        self.void: set[tuple[int, int]] = set()
        """Records released by a rewind: identity of the block, and index."""
        self.rewound: set[int] = set()
        self.settled = 0
        self.released = 0

    @initialize()
    def begin(self) -> None:
        self.assign(0)

    @rule(partition=st.integers(0, 1))
    def assign(self, partition: int) -> None:
        self._forget(partition)
        self.ledger.begin(TopicPartition(TOPIC, partition), self.next_epoch, None, False)
        self.epochs[partition] = self.next_epoch
        self.seen[self.next_epoch] = {}
        self.tracked[self.next_epoch] = []
        self.next_epoch += 1

    @rule(partition=st.integers(0, 1))
    def drop(self, partition: int) -> None:
        self._forget(partition)
        self.ledger.drop(TopicPartition(TOPIC, partition))

    def _forget(self, partition: int) -> None:
        epoch = self.epochs.pop(partition, None)
        if epoch is not None:
            self.released += sum(not done for done in self.seen.pop(epoch).values())

    @precondition(lambda self: self.epochs)
    @rule(target=blocks, data=st.data(), gaps=st.lists(st.integers(1, 5), min_size=1, max_size=6))
    def track(self, data: st.DataObject, gaps: list[int]) -> MultipleResults[tuple[Block, int]]:
        partition = data.draw(st.sampled_from(sorted(self.epochs)))
        state = self.ledger.get(TopicPartition(TOPIC, partition))
        assert state is not None
        offsets, at = [], state.last_seen
        for gap in gaps:
            at += gap
            offsets.append(at)
        records = [Record(offset, 0, None, b"12345", ()) for offset in offsets]
        block = self.ledger.enter(state, Chunk(TOPIC, partition, state.epoch, None, records))
        self.seen[state.epoch].update(dict.fromkeys(offsets, False))
        self.tracked[state.epoch].append(block)
        return multiple(*((block, index) for index in range(len(offsets))))

    @rule(place=consumes(blocks), disposition=st.sampled_from(Disposition))
    def settle(self, place: tuple[Block, int], disposition: Disposition) -> None:
        block, index = place
        books = self.seen.get(block.assignment.epoch)
        if books is None or (id(block), index) in self.void:
            assert not self.ledger.settle_row(block, index, disposition)
            return
        offset = block.record(index).offset
        assert Run(block, index, index + 1).ours
        assert self.ledger.settle_row(block, index, disposition)
        books[offset] = True
        self.settled += 1

    @precondition(lambda self: self.epochs)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        """Set the position back: records from there on are void, open ones before it stay."""
        partition = data.draw(st.sampled_from(sorted(self.epochs)))
        epoch = self.epochs[partition]
        state = self.ledger.get(TopicPartition(TOPIC, partition))
        assert state is not None
        if state.last_seen < 0:
            return
        offset = data.draw(st.integers(0, state.last_seen))
        books = self.seen[epoch]
        gone = {at for at, done in books.items() if at >= offset and not done}
        for block in self.tracked[epoch]:
            for index, at in enumerate(block.offsets):
                if at in gone and block.stages[index] < RecordStage.DELIVERED:
                    self.void.add((id(block), index))
        assert self.ledger.rewind(state, offset) == len(gone)
        self.seen[epoch] = {at: done for at, done in books.items() if at < offset}
        self.released += len(gone)
        self.rewound.add(epoch)

    @rule()
    def commit(self) -> None:
        """Commit: later positions are never behind earlier ones, except after a rewind."""
        for position in self.ledger.to_commit():
            state = self.ledger.get(TopicPartition(position.topic, position.partition))
            assert state is not None
            forward = state.committed is None or position.next_offset >= state.committed.next_offset
            assert position != state.committed
            assert forward or state.epoch in self.rewound
            state.committed = position

    @invariant()
    def positions_are_between_what_is_settled_and_what_is_open(self) -> None:
        for partition, epoch in self.epochs.items():
            state = self.ledger.get(TopicPartition(TOPIC, partition))
            assert state is not None
            position = state.committable()
            lowest, highest = naive_bounds(self.seen[epoch])
            # After a rewind there may be no position for a while; one that is returned must be right.
            assert position is not None or lowest is None or epoch in self.rewound
            if position is not None:
                still_open = any(not done for done in self.seen[epoch].values())
                # With nothing open the position is where reading goes on: after a rewind that may lie in a gap.
                limit = highest if still_open else state.last_seen + 1
                assert (lowest or 0) <= position.next_offset <= limit
                # With nothing settled at the front the position is where reading began, and has a map.
                assert lowest is not None or position.metadata

    @invariant()
    def it_adds_up(self) -> None:
        totals = self.ledger.totals()
        open_now = sum(not done for books in self.seen.values() for done in books.values())
        assert (totals.open, totals.released) == (open_now, self.released)
        assert totals.read == self.settled + open_now
        blocks = [one for state in self.ledger for one in state.blocks if one.open]
        assert self.ledger.open_bytes == 5 * open_now + ROW_BYTES * sum(len(one.stages) for one in blocks)
        assert totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered == self.settled


def naive_bounds(books: dict[int, bool]) -> tuple[int | None, int]:
    """Return between which offsets the position must lie, looking at every record from the front.

    The lower bound is one past the settled records at the front (None: there are none), the upper one the first
    open record, or the same offset if none is open. In a gap between the two any offset has the same next record.
    """
    lowest = None
    for offset in sorted(books):
        if not books[offset]:
            return lowest, offset
        lowest = offset + 1
    return lowest, lowest or 0


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_ledger_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(LedgerMachine, settings=MANY)


def test_a_position_that_goes_back_to_the_end_of_a_gap_commits_nothing_before_the_gap() -> None:
    """After a rewind to the end of a gap the position is not before the gap, as it was committed past it (seed 833)."""
    ledger = opened()
    state, before, behind = ledger.get(TP), track(ledger, 5, 6, 7), track(ledger, 14, 15, 16)
    assert state is not None
    for block, index in ((before, 0), (before, 1), (before, 2), (behind, 0), (behind, 1)):
        ledger.settle_row(block, index, Disposition.DELIVERED)
    assert committable(ledger) == Position(TOPIC, 0, 16, 7)
    assert ledger.rewind(state, 14) == 1
    assert committable(ledger) == Position(TOPIC, 0, 14, 7)
