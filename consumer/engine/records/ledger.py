"""The ledger: per partition and assignment, what was read, what became of it, and what may be committed.

Theory of operation. Records come in chunks; each chunk becomes a `Block` that holds its records until all are settled.
The ledger of an assignment is its blocks in the order of offsets: the lowest open record is the first stage that is not
final in the first unfinished block. That record's offset is the committable position; with nothing open it is the one
after the last record seen. The offset map and the oldest open record are read off the same bytes. Offsets are never
counted up: gaps from compaction and transactions are normal (docs/architecture.md, rule 1).

An assignment ends with its epoch: once dropped, it settles and commits nothing, even if a call still refers to it
(rule 2). The ledger adds up at every instant: ``read = delivered + duplicate + filtered + dead_lettered + open``.
Records that were open in a dropped assignment are not ours to settle, so they leave ``read`` again and count in
`Totals.released`.

The invariants are asserted here, in production too: an `InvariantViolation` stops the process before a wrong offset
is committed. Figures are taken without raising, so that `mismatch` is seen (see `commits` for what follows from it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from consumer.engine.context import Context
from consumer.engine.figures.statistics import Totals
from consumer.engine.messages import Assignment
from consumer.engine.model import Chunk, Disposition, Position, TopicPartition, differing
from consumer.engine.reading import Columns
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.offset_map import NOTHING_SAID, CommitMetadata, MetadataWriter
from consumer.engine.records.runs import Run, pick
from consumer.engine.records.stages import SETTLED_AS
from consumer.errors import bug


class LastPosition(NamedTuple):
    """Where an assignment stands: its lowest offset that is not settled (None: not known); `clear`: no record
    is open, so everything read is settled."""

    next_offset: int | None
    clear: bool


class Ledger:
    """All live assignments, and the sums of those that ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._assignments: dict[TopicPartition, AssignmentState] = {}
        # Records of assignments that ended, by disposition, and where each partition was left.
        self._ended: Counter[Disposition] = Counter()
        self._ended_at: dict[TopicPartition, LastPosition] = {}
        self._entered = 0
        self._released = 0
        # Records fetched, and dropped without being read.
        self.released_unread = 0
        policy = context.policy
        self.metadata = MetadataWriter(policy.map_bytes, policy.destination, policy.fingerprint)
        self._known_destinations = (None, policy.destination, policy.earlier_destination)
        # Records passed over, ever.
        self.passed = 0
        self.open = 0
        self.open_bytes = 0
        # Records settled since the start: shows whether there is progress. And those of them that were filtered.
        self.settlements = self.filtered = 0
        # When a record last settled, or became open with no other open (monotonic).
        self.moved_at = 0.0

    def __iter__(self) -> Iterator[AssignmentState]:
        return iter(self._assignments.values())

    @property
    def counted(self) -> int:
        """Records read since the start, except filtered ones: what a limit counts."""
        return self.settlements + self.open - self.filtered

    def get(self, tp: TopicPartition) -> AssignmentState | None:
        """Return the live assignment of a partition."""
        return self._assignments.get(tp)

    def assign(self, one: Assignment, said: CommitMetadata = NOTHING_SAID) -> AssignmentState:
        """Begin a new assignment; an older assignment of the same partition ends.

        `said`: the metadata committed with its start.
        """
        tp = TopicPartition(one.topic, one.partition)
        self.drop(tp)
        # If the brokers do not say the id, the offset still belongs to the topic for which it was committed.
        topic_id = one.topic_id or said.topic_id
        state = AssignmentState(
            tp,
            one.epoch,
            self.metadata,
            one.start,
            one.leader_epoch,
            one.beginning,
            said.settled,
            topic_id,
            next_offset=one.start if one.commit_start else None,
            # Metadata without a destination is older than destination tags.
            other_destination=said.destination not in self._known_destinations,
            differs=differing(self.metadata.fingerprint, said.fingerprint),
        )
        self._assignments[tp] = state
        return state

    def drop(self, tp: TopicPartition) -> AssignmentState | None:
        """End an assignment and return it: its open records are released, and it settles and commits nothing more."""
        state = self._assignments.pop(tp, None)
        if state is None:
            return None
        # Its figures join the sums of ended assignments, where a mismatch would not show its partition any more.
        self._check(state)
        # Read off the blocks before they are cleared.
        self._ended_at[tp] = _last_position(state)
        self.open -= state.open
        self.open_bytes -= state.open_bytes
        self._released += state.open
        self._ended.update(state.counts)
        state.end_now()
        return state

    def last_positions(self) -> dict[TopicPartition, LastPosition]:
        """Return where each partition that was ever assigned stands, or where it was left."""
        return {**self._ended_at, **{tp: _last_position(state) for tp, state in self._assignments.items()}}

    def rewind(self, state: AssignmentState, offset: int) -> int:
        """Go back to `offset` within an assignment: open records from there on are released, because they are
        read again.

        Open records before `offset` are not read again and stay. Return how many were released.
        """
        released, size = state.rewind(offset)
        self.open_bytes -= size
        self.open -= released
        self._released += released
        return released

    def track(
        self,
        state: AssignmentState,
        chunk: Chunk,
        sizes: Sequence[int],
        columns: Columns,
        passed: Sequence[int] = (),
    ) -> Block:
        """Enter fetched records as read and open. Offsets must rise, and lie beyond those seen.

        `sizes`: bytes of each; `columns`: what was read of them; `passed`: see `AssignmentState.settled_before`.
        """
        block = Block(state, chunk, sizes, columns, passed, self._context.now.monotonic - chunk.waited)
        state.track(block, chunk.records[-1].timestamp)
        self.moved_at = self.moved_at if self.open else self._context.now.monotonic
        self.passed += len(passed)
        self._entered += block.open
        self.open += block.open
        self.open_bytes += block.held
        return block

    def insert(self, block: Block, rows: Mapping[int, int], columns: Columns) -> None:
        """Enter open records that waited and have been read: see `Block.insert`."""
        self.open_bytes += block.assignment.insert(block, rows, columns)

    def settle(self, runs: Iterable[Run], disposition: Disposition) -> list[Run]:
        """Settle open records with their final disposition. Return the settled runs: those of live assignments."""
        ours: list[Run] = []
        counters = self._context.counters
        for run in runs:
            block, first, end = run
            if block.move(first, end, SETTLED_AS[disposition]):
                ours.append(run)
            # Some of the rows were rewound; the others are settled nevertheless.
            elif block.assignment.live:
                settled, _ = pick([run], [one == SETTLED_AS[disposition] for one in block.stages[first:end]])
                ours += settled
        for block, first, end in ours:
            count, state = end - first, block.assignment
            # Before the block drops its columns.
            sections = block.sections[first:end]
            for number in {*sections} - {0}:  # 0: none
                section = self._context.sections[number]
                counters.by_section[section, disposition.value] += sections.count(number)
            self.open_bytes -= state.count_settled(block, first, end, disposition)
            self.open -= count
            self.settlements += count
            self.filtered += count * (disposition is Disposition.FILTERED)
            self.moved_at = self._context.now.monotonic
        return ours

    def committables(self) -> Iterator[tuple[AssignmentState, Position]]:
        """Yield assignments with positions that differ from what is committed, except those of draining partitions.

        Of assignments that are not proven to be ours also positions that are committed already: committing one again is
        the proof.
        """
        for state in self:
            if (position := state.to_commit()) is not None:
                yield state, position

    def final_positions(self, states: Iterable[AssignmentState]) -> list[Position]:
        """Return the positions to commit for assignments that are about to end. Raises `InvariantViolation` if
        a ledger does not add up."""
        self.check()
        positions = []
        for state in states:
            # A lost partition commits nothing, even if its drain has not ended: its new owner may have committed more.
            position = state.committable() if state.live else None
            if position is not None and position != state.committed:
                positions.append(position)
        return positions

    def map_share(self, now: float) -> float:
        """Return the share of the full room that the fullest offset map leaves, 0 to 1."""
        # With nothing open a map cannot grow, however long it is.
        return min((state.map_share(now) for state in self if state.open), default=1.0)

    def totals(self) -> Totals:
        """Return the whole process's figures, each as it was counted: they add up, or there is a `mismatch`."""
        counts, released = self._settled(), self._released + self.released_unread
        settled = {one.value: counts[one] for one in Disposition}
        return Totals(read=self._entered - self._released, open=self.open, released=released, **settled)

    def _settled(self) -> Counter[Disposition]:
        """Return the counts of all settled records, by disposition."""
        settled = self._ended.copy()
        for state in self:
            settled.update(state.counts)
        return settled

    def mismatch(self) -> int:
        """Return the records ever entered that are neither settled, open nor rewound; if none, by how many
        records the assignments' counts do not add up."""
        # Records entered and records settled are counted independently.
        unsettled = self._entered - self._released - self._settled().total()
        return unsettled - self.open or sum(state.off() for state in self)

    def check(self) -> None:
        """Check that all counts add up. Raises `InvariantViolation` otherwise."""
        for state in self:
            self._check(state)
        if self.mismatch():
            raise bug(f"the ledger does not add up: {self.totals()}")

    def _check(self, state: AssignmentState) -> None:
        off = state.off()
        if off:
            raise bug(
                f"the ledger of {state.tp} does not add up, by {off}: read {state.read}, "
                f"settled {state.counts.total()}, open {state.open}"
            )


def _last_position(state: AssignmentState) -> LastPosition:
    """Return where an assignment stands."""
    position = state.proof()
    return LastPosition(None if position is None else position.next_offset, state.open == 0)
