"""The ledger with offset maps: after a restart exactly the records that were settled are passed over.

Theory of operation. A reader feeds a ledger, as admission does, from a log with gaps that may be cut and written
again, and notes which records are open and which are settled. After each step a ledger of its own reads the whole
log again, from the position that may be committed now and from the committed one.
"""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import NamedTuple

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

from consumer.engine.model import METADATA_BYTES, Chunk, Disposition, Position, Record, TopicPartition
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState, Block
from tests.engine.building import MACHINE, MANY, TOPIC, Books, read_map

TP = TopicPartition(TOPIC, 0)
FIRST = 5
"""The offset where the log and the group begin."""


class Identity(NamedTuple):
    """Identity of a record in a log that may be cut: the same offset in another leader epoch is another record."""

    offset: int
    leader_epoch: int | None


def chunk_of(records: list[Identity], epoch: int = 1) -> Chunk:
    """Return these records, of one leader epoch, as they are fetched."""
    return Chunk(
        TOPIC,
        0,
        epoch,
        records[0].leader_epoch,
        [Record(one.offset, 0, None, b"value", ()) for one in records],
    )


def begin(ledger: Books, position: Position | None, epoch: int = 1) -> AssignmentState:
    """Begin an assignment at the committed position, as the pipeline does."""
    if position is None:
        return ledger.begin(TP, epoch, FIRST, False)
    inherited = read_map(position)
    assert (inherited is None) == (position.metadata == "")
    return ledger.begin(TP, epoch, position.next_offset, False, position.leader_epoch, inherited)


class LedgerReader:
    """A ledger that is fed from a log, with naive notes of open and settled records."""

    def __init__(self, committed: Position | None, settled: frozenset[Identity]) -> None:
        self.ledger = Books()
        self.state = begin(self.ledger, committed)
        self.committed = committed
        self.handed = settled
        """Records settled before that are in the map; empty once the map is used up."""
        self.open: dict[Identity, tuple[Block, int]] = {}
        self.settled: set[Identity] = set()
        self.next = FIRST if committed is None else committed.next_offset

    def fetch(self, log: list[Identity], count: int) -> bool:
        """Enter up to `count` records of one leader epoch, as admission does; return False if there are none."""
        ahead = list(islice((one for one in log if one.offset >= self.next), count))
        some = [one for one in ahead if one.leader_epoch == ahead[0].leader_epoch]
        if not some:
            return False
        if some[0].offset <= self.state.last_seen:
            self.go_back(some[0].offset)
        chunk, to_pass = chunk_of(some), self.to_pass
        passed = self.state.settled_before(chunk)
        block = self.ledger.enter(self.state, chunk, passed)
        assert {some[at] for at in passed} == to_pass.intersection(some), "exactly what was settled before"
        for index, one in enumerate(some):
            if index in passed:
                self.settled.add(one)
            else:
                self.open[one] = (block, index)
        self.next = some[-1].offset + 1
        self.mind_end_of_map()
        return True

    @property
    def to_pass(self) -> frozenset[Identity]:
        """Return the records settled before that are still to come again."""
        return frozenset(one for one in self.handed if one.offset > self.state.last_seen)

    def mind_end_of_map(self) -> None:
        """Empty `handed` once the ledger dropped the map: from then on no record is passed over."""
        if self.state.inherited is None:
            self.handed = frozenset()

    def go_back(self, offset: int) -> None:
        """Set the position back: records from there on are void."""
        gone = {one: place for one, place in self.open.items() if one.offset >= offset}
        assert self.ledger.rewind(self.state, offset) == len(gone)
        for one, (block, index) in gone.items():
            assert not self.ledger.settle_row(block, index, Disposition.DELIVERED)
            del self.open[one]
        self.settled = {one for one in self.settled if one.offset < offset}
        self.next = offset
        self.mind_end_of_map()

    def settle(self, one: Identity) -> None:
        """Settle a record."""
        block, index = self.open.pop(one)
        assert self.ledger.settle_row(block, index, Disposition.DELIVERED)
        self.settled.add(one)

    def known(self, position: Position) -> frozenset[Identity]:
        """Return the records settled at or above a position, which its map must name."""
        return frozenset(one for one in self.settled | self.to_pass if one.offset >= position.next_offset)


class MapMachine(RuleBasedStateMachine):
    """A partition that is read, settled in any order, cut and read again; the process may end at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Identity] = []
        self.leader_epoch: int | None = 3
        self.reader = LedgerReader(None, frozenset())
        self.noted: frozenset[Identity] = frozenset()
        """Records settled at or above the committed position at the time of the commit."""
        self.limit = METADATA_BYTES
        self.eager = False

    @initialize(
        leader_epoch=st.one_of(st.none(), st.integers(0, 9)),
        limit=st.sampled_from([METADATA_BYTES, METADATA_BYTES, offset_map.MAX_IDS + 8]),
        eager=st.booleans(),
    )
    def set_up(self, leader_epoch: int | None, limit: int, eager: bool) -> None:
        """Begin a log with a first commit; `eager` packs finished blocks at once, `limit` limits a map in bytes."""
        self.leader_epoch, self.limit, self.eager = leader_epoch, limit, eager
        self.append([1, 1, 3, 1, 1, 1, 2, 1])
        self.work([3, 2], 1, 0.5, commit=True)

    @rule(gaps=st.lists(st.sampled_from([1, 1, 1, 2, 7]), min_size=1, max_size=12))
    def append(self, gaps: list[int]) -> None:
        """Append records to the log, with gaps between them."""
        at = self.log[-1].offset if self.log else FIRST - 1
        for gap in gaps:
            at += gap
            self.log.append(Identity(at, self.leader_epoch))

    @precondition(lambda self: self.leader_epoch is not None)
    @rule(by=st.integers(1, 3))
    def change_leader(self, by: int) -> None:
        """Change the leader without a loss of records."""
        assert self.leader_epoch is not None
        self.leader_epoch += by

    @rule(
        counts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
        seed=st.integers(0, 2**16),
        share=st.sampled_from([0.0, 0.5, 0.5, 0.9, 1.0]),
        commit=st.booleans(),
    )
    def work(self, counts: list[int], seed: int, share: float, commit: bool) -> None:
        """Fetch several times, and settle some open records in any order, most often not the first."""
        for count in counts:
            self.reader.fetch(self.log, count)
        random = Random(seed)
        candidates = sorted(self.reader.open)[0 if random.random() < 0.3 else 1 :]
        for one in random.sample(candidates, int(share * len(candidates))):
            self.reader.settle(one)
        if commit:
            self.commit()

    @rule()
    def commit(self) -> None:
        """Let the broker accept the position, if it changed."""
        position = self.position()
        if position is not None:
            self.noted = self.reader.known(position)
            self.reader.committed = self.reader.state.committed = position

    @rule()
    def restart(self) -> None:
        """Let another process go on from the committed position."""
        self.reader = LedgerReader(self.reader.committed, self.kept(self.reader.committed, self.noted))

    @rule(back=st.integers(0, 12))
    def go_back(self, back: int) -> None:
        """Set the position back to a record already read, at most to the start, and read on from there."""
        seen = [one.offset for one in self.log if self.reader.state.start <= one.offset < self.reader.next]  # type: ignore[operator]  # set
        if seen:
            self.reader.next = seen[max(0, len(seen) - 1 - back)]
            self.reader.fetch(self.log, 3)

    @precondition(lambda self: self.leader_epoch is not None)
    @rule(data=st.data(), crash=st.booleans(), gaps=st.lists(st.integers(1, 3), min_size=1, max_size=9))
    def cut(self, data: st.DataObject, crash: bool, gaps: list[int]) -> None:
        """Cut the log's end in an unclean leader election, and append other records at the same offsets.

        Records below the position are on more than one broker; those above it may be lost.
        """
        low = max(one.next_offset for one in (self.position(), self.reader.committed) if one is not None)
        places = [at for at, one in enumerate(self.log) if one.offset >= low and at > 0]
        if not places:
            return
        at = data.draw(st.sampled_from(places))
        assert self.leader_epoch is not None
        self.leader_epoch += 1
        offset = self.log[at].offset - 1
        del self.log[at:]
        for gap in gaps:
            offset += gap
            self.log.append(Identity(offset, self.leader_epoch))
        if crash:
            self.restart()
        else:
            self.reader.next = min(self.reader.next, self.log[at].offset)
            self.reader.fetch(self.log, 4)

    # -- invariants

    def position(self) -> Position | None:
        """Return the position that may be committed now."""
        state = self.reader.state
        state.metadata.limit = self.limit
        if self.eager:
            state._pack_at = 1
        return state.committable()

    def kept(self, position: Position | None, settled: frozenset[Identity]) -> frozenset[Identity]:
        """Return the settled records that the map names: those below its end with a small limit, else all."""
        if position is None:
            return frozenset()
        if self.limit == METADATA_BYTES:
            return settled
        found = read_map(position)
        return frozenset(one for one in settled if found is not None and one.offset < found.end)

    @invariant()
    def nothing_open_is_committed_past(self) -> None:
        """Neither the position nor the proof lies past an open record, and no map marks one as settled."""
        lowest = min((one.offset for one in self.reader.open), default=None)
        for position in (self.position(), self.reader.state.proof()):
            if position is None:
                continue
            assert lowest is None or position.next_offset <= lowest
            assert position.next_offset <= max(self.reader.next, self.reader.state.last_seen + 1)
            found = read_map(position)
            assert found is None or not any(found.settled(one.offset) for one in self.reader.open)

    @invariant()
    def a_process_that_begins_now_reads_what_is_open_and_nothing_else(self) -> None:
        """From the position, and from the committed one, a new process reads exactly the open records."""
        position = self.position()
        if position is not None:
            self.read_all(position, self.kept(position, self.reader.known(position)), self.reader.open)
        self.read_all(self.reader.committed, self.kept(self.reader.committed, self.noted), {})

    def read_all(
        self,
        position: Position | None,
        settled: frozenset[Identity],
        still_open: dict[Identity, tuple[Block, int]],
    ) -> None:
        """Read the whole log again: settled records are passed over (`LedgerReader.fetch` checks it), open ones are
        read."""
        other = LedgerReader(position, settled)
        while other.fetch(self.log, 3):
            pass
        assert other.settled == settled.intersection(self.log)
        assert set(still_open).intersection(self.log) <= set(other.open)
        other.ledger.totals()

    @invariant()
    def what_is_kept_is_bounded_by_what_is_open(self) -> None:
        """The number of blocks kept is bounded by the unfinished ones and the leader epochs."""
        if self.eager:
            self.position()
            blocks = list(self.reader.state.blocks)
            unfinished = sum(1 for block in blocks if block.open)
            leader_epochs = len({block.leader_epoch for block in blocks})
            assert unfinished <= len(self.reader.open)
            assert len(blocks) <= 2 * unfinished + leader_epochs


TestMapMachine = MapMachine.TestCase
TestMapMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_map_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(MapMachine, settings=MANY)
