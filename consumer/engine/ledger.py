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

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from consumer.engine import offset_map
from consumer.engine.block import SETTLED_AS, Block, Fence, Run, pick, settled_bounds
from consumer.engine.context import Context
from consumer.engine.figures.statistics import Totals
from consumer.engine.messages import Assignment
from consumer.engine.model import Chunk, Disposition, Position, TopicPartition, differing
from consumer.engine.native import rising
from consumer.engine.offset_map import NOTHING_SAID, CommitMetadata, OffsetMap
from consumer.engine.reading import Columns
from consumer.errors import bug

# Seconds between two measurements of a map that may come to overflow.
_MEASURE_EVERY = 1.0
_OPEN: attrgetter[int] = attrgetter("open")


class LeftAt(NamedTuple):
    """Where an assignment stands: its lowest offset that is not settled (None: not known); `clear`: no record
    is open, so everything read is settled."""

    next_offset: int | None
    clear: bool


@dataclass(eq=False, slots=True)
class AssignmentState(Fence):
    """One partition under one epoch: its records and counts, and its fence (`live`)."""

    ledger: Ledger
    """The ledger that this assignment belongs to: it has the limit for commit metadata, and the destination."""
    start: int | None
    start_leader_epoch: int | None = None
    beginning: int | None = None
    """Where the log began when it was assigned, if reading starts there; None: not known."""
    inherited: OffsetMap | None = None
    """Offsets from `start` on that were settled before this assignment and are not read again yet."""
    topic_id: str | None = None
    """The topic's id, which says to which life of the topic the offsets belong; None: the brokers do not say."""
    proven: bool = True
    """False after the process was away: the group may have given the partition to another member meanwhile."""
    elsewhere: bool = False
    """True if the offset before its start was committed for another destination."""
    differs: tuple[str, ...] = ()
    """In what the member that committed it sends by other settings (`model.differing`)."""
    blocks: deque[Block] = field(default_factory=deque)
    last_seen: int = -1
    fetched_to: int = 0
    """The offset after the last record fetched; records between `position` and this offset are held."""
    last_timestamp: int = -1
    """Kafka timestamp (milliseconds) of the record at `last_seen`; -1 while not known."""
    next_offset: int | None = None
    next_leader_epoch: int | None = None
    committed: Position | None = None
    end: int | None = None
    reached: int = -1
    """The offset up to which the client has read, markers included, as last reported."""
    reached_before: int = -1
    """The same in the report before: the client has handed over everything up to there."""
    removed_to: int = 0
    """The offset below which removed records have been reported."""
    emptied: tuple[int, int] | None = None
    """Our position and the log's beginning when the log was last seen to be empty, with unread records removed."""
    unreadable_at: int | None = None
    """The offset from which the partition cannot be read, as the broker sends damaged data; None: it can be."""
    _pack_at: int = 16
    _map_size: int = 0
    _measure_at: float = -math.inf

    def position(self) -> int | None:
        """Return the offset after the last record read, or where reading starts."""
        return self.last_seen + 1 if self.last_seen >= 0 else self.start

    def lowest_open(self) -> tuple[Block, int] | None:
        """Return the lowest open record: its block, and its index there."""
        block = next((one for one in self.blocks if one.open), None) if self.open else None
        return (block, block.lowest()) if block is not None and block.lowest() >= 0 else None

    # -- what may be committed

    def committable(self) -> Position | None:
        """Return the position to commit: the lowest open offset, or the one after the last record seen; None
        while nothing is settled.

        Its metadata has the map of what is settled above it.
        """
        blocks = self.blocks
        while blocks and not blocks[0].open:
            done = blocks.popleft()
            self.next_offset, self.next_leader_epoch = done.end, done.leader_epoch
        self.keep_little()
        # With the epoch of the record before it, a broker that was cut off can tell whether the offset belongs to its
        # log (KIP-320).
        next_offset, leader_epoch = self.next_offset, self.next_leader_epoch
        # The first block is never a finished one: those were removed just now.
        if blocks and (lowest := blocks[0].lowest()) > 0:
            next_offset, leader_epoch = blocks[0].offsets[lowest], blocks[0].leader_epoch
        if next_offset is not None:
            return self._position(next_offset, leader_epoch)
        # The first record still waits; a map of settled records above it is worth a commit nevertheless.
        position = self._beginning()
        return (
            position if position is not None and offset_map.read_map(position).settled is not None else None
        )

    def proof(self) -> Position | None:
        """Return a position to commit that shows whether the partition is still ours; None: no offset is known yet."""
        return self.committable() or self._beginning()

    def map_share(self, now: float) -> float:
        """Return the share of the usual room that the offset map leaves: 1 while it fits in any pattern, 0 when
        it is full.

        1 also where the broker takes no maps: reading on then loses none. Measured only where the window is so long
        that its pattern matters, and then once a second.
        """
        most = self.ledger.map_most
        if not self.blocks or most <= offset_map.IDS_MOST:
            return 1.0
        window = max(self.last_seen + 1, self.inherited.end if self.inherited is not None else 0)
        if window - self.blocks[0].first_offset <= offset_map.safe_window(most) // 2:
            return 1.0
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY
            self.committable()
        # Open records may settle in any pattern: one bit each, six to a character.
        free = 1 - (self._map_size + self.open / 6) / most
        return min(1.0, max(0.0, free - 0.1) * 2)

    def _beginning(self) -> Position | None:
        """Return the position where reading began; None while that is not known."""
        if self.start is not None:
            return self._position(self.start, self.start_leader_epoch)
        return self._position(self.blocks[0].first_offset, None) if self.blocks else None

    def _position(self, next_offset: int, leader_epoch: int | None) -> Position:
        bounds, highest = self._settled_above(next_offset)
        # A reader of such a map would skip open records.
        if bounds and bounds[0] < next_offset:
            raise bug(f"the map of {self.tp} begins before {next_offset}")
        text = offset_map.write_map(
            self.tp, next_offset, bounds, highest, self.ledger.map_most,
            topic_id=self.topic_id, destination=self.ledger.destination, fingerprint=self.ledger.fingerprint,
        )  # fmt: skip
        self._map_size = len(text)
        return Position(*self.tp, next_offset, leader_epoch, text)

    def keep_little(self) -> None:
        """Pack and join finished blocks behind an unfinished one, which may stand there for hours."""
        if len(self.blocks) < self._pack_at:
            return
        packed: deque[Block] = deque()
        for block in self.blocks:
            last = packed[-1] if packed else None
            if not block.open:
                block.pack()
            if last is not None and not (last.open or block.open) and last.leader_epoch == block.leader_epoch:
                last.end = block.end
            else:
                packed.append(block)
        self.blocks = packed
        self._pack_at = max(16, 2 * len(packed))

    def _settled_above(self, base: int) -> tuple[list[int], int | None]:
        """Return the bounds of what is settled above `base` (see `OffsetMap`), and the highest leader epoch seen."""
        bounds = settled_bounds(self.blocks, base)
        if self.inherited is None:
            return bounds, self.blocks[-1].leader_epoch if self.blocks else None
        # Records not read again yet: without them in the map, a second restart in a row would send them once more.
        rest = self.inherited.from_offset(max(base, self.last_seen + 1))
        if bounds and rest and bounds[-1] == rest[0]:
            return bounds[:-1] + rest[1:], self.inherited.leader_epoch
        return bounds + rest, self.inherited.leader_epoch

    def totals(self) -> Totals:
        """Return this assignment's figures."""
        settled = {one.value: self.counts[one] for one in Disposition}
        return Totals(read=self.read, open=self.open, **settled)

    def off(self) -> int:
        """Return by how many records the counts do not add up."""
        unsettled = self.read - self.counts.total()
        return abs(unsettled - self.open) + abs(sum(map(_OPEN, self.blocks)) - self.open)

    def left_at(self) -> LeftAt:
        """Return where the assignment stands."""
        position = self.proof()
        return LeftAt(None if position is None else position.next_offset, self.open == 0)


class Ledger:
    """All live assignments, and the sums of those that ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._assignments: dict[TopicPartition, AssignmentState] = {}
        # Records of assignments that ended, by disposition, and where each partition was left.
        self._ended: Counter[Disposition] = Counter()
        self._ended_at: dict[TopicPartition, LeftAt] = {}
        self._entered = 0
        self._released = 0
        # Records fetched, and dropped without being read.
        self.released_unread = 0
        # Bytes that the metadata of a commit may take: less where the broker takes less.
        self.map_most = context.policy.map_bytes
        # The tag of the destination, which stands in the metadata of commits.
        self.destination = context.policy.destination
        self._known_destinations = (None, self.destination, context.policy.earlier_destination)
        self.fingerprint = context.policy.fingerprint
        # Records passed over, ever.
        self.passed = 0
        self.open = 0
        self.open_bytes = 0
        # Records settled since the start: shows whether there is progress.
        self.settlements = 0
        # When a record last settled, or became open with no other open (monotonic).
        self.moved_at = 0.0

    def __iter__(self) -> Iterator[AssignmentState]:
        return iter(self._assignments.values())

    def get(self, tp: TopicPartition) -> AssignmentState | None:
        """Return the live assignment of a partition."""
        return self._assignments.get(tp)

    def assign(self, one: Assignment, said: CommitMetadata = NOTHING_SAID) -> AssignmentState:
        """Begin a new assignment; an older assignment of the same partition ends.

        `said`: the metadata committed with its start.
        """
        tp = TopicPartition(one.topic, one.partition)
        self.drop(tp)
        # If the brokers do not say the id, the offset still belongs to the life in which it was committed.
        topic_id = one.topic_id or said.topic_id
        state = AssignmentState(
            tp, one.epoch, self, one.start, one.leader_epoch, one.beginning, said.settled, topic_id
        )
        state.next_offset = one.start if one.commit_start else None
        # Metadata without a destination is older than destination tags.
        state.differs = differing(self.fingerprint, said.fingerprint)
        state.elsewhere = said.destination not in self._known_destinations
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
        self._ended_at[tp] = state.left_at()
        # From here on no record of it changes its stage: see `Block.move`.
        state.live = False
        self.open -= state.open
        self.open_bytes -= state.open_bytes
        self._released += state.open
        self._ended.update(state.counts)
        state.blocks.clear()
        return state

    def left_at(self) -> dict[TopicPartition, LeftAt]:
        """Return where each partition that was ever assigned stands, or where it was left."""
        return {**self._ended_at, **{tp: state.left_at() for tp, state in self._assignments.items()}}

    def rewind(self, state: AssignmentState, offset: int) -> int:
        """Go back to `offset` within an assignment: open records from there on are released, because they are
        read again.

        Open records before `offset` are not read again and stay. Return how many were released.
        """
        released, state.changed = sum(self._release_from(block, offset) for block in state.blocks), True
        state.blocks = deque(block for block in state.blocks if block.first_offset < offset)
        for block in state.blocks:
            # A block ends where reading goes on, so that the committed offset does not go back to before a gap.
            block.end = min(block.end, offset)
        state.last_seen, state.last_timestamp = offset - 1, -1
        # The end of the present log is not known yet; a commit beyond `offset` was of the log before the cut.
        state.end, state.reached, state.reached_before, state.removed_to = None, -1, -1, 0
        if state.committed is not None and state.committed.next_offset > offset:
            state.committed = None
        if state.inherited is not None and (
            state.inherited.leader_epoch is None or offset < (state.start or 0)
        ):
            # Without leader epochs a cut of the log cannot be recognised; an offset before `start` means another log.
            state.inherited = None
        if not state.blocks and (state.next_offset is None or state.next_offset > offset):
            # Reading begins again at `offset`; records before it are settled, or were never ours.
            state.start, state.start_leader_epoch = offset, None
            state.next_offset = state.next_leader_epoch = None
        elif not state.blocks:
            # All records before `offset` are settled, and a commit past the gap before it may be in flight: later
            # commits must not go back before it.
            state.next_offset = offset
        return released

    def _release_from(self, block: Block, offset: int) -> int:
        """Release a block's open records from `offset` on. Return how many."""
        released, size = block.release_from(offset)
        self._grow(block.assignment, -size)
        block.assignment.open -= released
        block.assignment.read -= released
        self.open -= released
        self._released += released
        return released

    def settled_before(self, state: AssignmentState, chunk: Chunk) -> list[int]:
        """Return the indexes of the chunk's records that were settled before this assignment and are passed over.

        A record of a higher leader epoch than any in the map shows that the log was cut since: the map is dropped then.
        """
        inherited = state.inherited
        if inherited is None or not chunk.records:
            return []
        # The log was cut, and the map describes records that are gone.
        if not inherited.holds_for(chunk.leader_epoch):
            state.inherited, state.changed = None, True
            return []
        if chunk.records[0].offset >= inherited.end:
            return []
        return [index for index, record in enumerate(chunk.records) if inherited.settled(record.offset)]

    def track(
        self,
        state: AssignmentState,
        chunk: Chunk,
        sizes: Sequence[int],
        columns: Columns,
        passed: Sequence[int] = (),
    ) -> Block:
        """Enter fetched records as read and open. Offsets must rise, and lie beyond those seen.

        `sizes`: bytes of each; `columns`: what was read of them; `passed`: see `settled_before`.
        """
        block = Block(state, chunk, sizes, columns, passed)
        offsets = block.offsets
        # The first record that is not final is the lowest open one only where offsets rise.
        if offsets[0] <= state.last_seen or not rising(offsets):
            raise bug(f"offsets of {state.tp} do not rise after {state.last_seen}")
        # Not only at a commit, because while the lowest record waits no commit may be due. And before the new block is
        # added, because its offsets are still needed, even if all of its records are passed over.
        state.keep_little()
        state.blocks.append(block)
        state.changed = True
        state.last_seen, state.last_timestamp = offsets[-1], chunk.records[-1].timestamp
        if state.inherited is not None and state.inherited.end <= state.last_seen + 1:
            state.inherited = None
        self.moved_at = self.moved_at if self.open else self._context.now.monotonic
        self.passed += len(passed)
        self._entered += block.open
        state.read += block.open
        state.open += block.open
        self.open += block.open
        self._grow(state, block.held)
        return block

    def insert(self, block: Block, rows: Mapping[int, int], columns: Columns) -> None:
        """Enter open records that waited and have been read: see `Block.insert`."""
        before = block.held
        block.insert(rows, columns)
        self._grow(block.assignment, block.held - before)

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
            self._grow(state, -block.settled(first, end))
            state.counts[disposition] += count
            state.changed = True
            state.open -= count
            self.open -= count
            self.settlements += count
            self.moved_at = self._context.now.monotonic
        return ours

    def _grow(self, state: Fence, size: int) -> None:
        """Add to the bytes that blocks of an assignment hold."""
        state.open_bytes += size
        self.open_bytes += size

    def committables(self) -> Iterator[tuple[AssignmentState, Position]]:
        """Yield assignments with positions that differ from what is committed, except those of draining partitions.

        Of assignments that are not proven to be ours it also yields positions that are committed already: committing
        one again is the proof (see `AssignmentState.proof`).
        """
        for state in self:
            # Its last position is committed with its release: two commits in flight could overtake each other.
            if state.draining or (state.proven and not state.changed):
                continue
            position = state.committable() if state.proven else state.proof()
            if position is not None and (position != state.committed or not state.proven):
                yield state, position
            else:
                state.changed = False

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
        """Return the share of the usual room that the fullest offset map leaves, 0 to 1."""
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
