"""The ledger: per partition and assignment, what was read, what became of it, and what may be committed.

Theory of operation. Records come in chunks; each chunk becomes a `Block` that holds its records until all are settled.
The ledger of an assignment is its blocks in the order of offsets: the lowest open record is the first stage that is not
final in the first unfinished block. That record's offset is the committable position; with nothing open it is the one
after the last record seen. The offset map and the oldest open record are read off the same bytes. Offsets are never
counted up: gaps from compaction and transactions are normal (docs/architecture.md, rule 1).

An assignment ends with its epoch: dropped, it settles nothing and commits nothing, whatever still refers to it (rule
2). The ledger adds up at every instant: ``read = delivered + duplicate + filtered + dead_lettered + open``. What was
open in a dropped assignment was never ours to settle, so it leaves ``read`` again and is counted in `Totals.released`.

The invariants are asserted here, in production too: an `InvariantViolation` stops the process before a wrong offset
is committed. Figures are taken without raising, so that `mismatch` is seen (see `commits` for what follows from it).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from itertools import groupby
from operator import attrgetter, lt
from typing import NamedTuple, Protocol, TypeVar

from consumer.engine import offset_map
from consumer.engine.block import (
    MARK,
    RELEASED,
    Block,
    Fence,
    Finished,
    RecordPlace,
    settled_bounds,
    sizes_of,
)
from consumer.engine.model import Chunk, Disposition, Position, TopicPartition
from consumer.engine.offset_map import OffsetMap
from consumer.engine.statistics import Totals
from consumer.errors import InvariantViolation

_MEASURE_EVERY = 1.0
"""Seconds between two measurements of a map that may come to overflow."""
_OPEN: attrgetter[int] = attrgetter("open")


class LeftAt(NamedTuple):
    """Where an assignment stands: its lowest offset that is not settled (None: not known); `clear`: nothing is open,
    so that everything it has read is settled."""

    next_offset: int | None
    clear: bool


class AssignmentState(Fence):
    """One partition under one epoch: the books, and the fence (`live`)."""

    __slots__ = (
        "_map_size",
        "_measure_at",
        "_pack_at",
        "blocks",
        "commit_start",
        "committed",
        "destination",
        "elsewhere",
        "emptied",
        "end",
        "inherited",
        "last_seen",
        "last_timestamp",
        "map_most",
        "next_leader_epoch",
        "next_offset",
        "proven",
        "reached",
        "reached_before",
        "removed_to",
        "start",
        "start_leader_epoch",
        "topic_id",
        "unreadable_at",
    )

    def __init__(
        self,
        tp: TopicPartition,
        epoch: int,
        start: int | None,
        commit_start: bool,
        start_leader_epoch: int | None = None,
        inherited: OffsetMap | None = None,
        topic_id: str | None = None,
    ) -> None:
        super().__init__(tp, epoch)
        self.topic_id = topic_id
        """Which life of the topic its offsets are of; None: the brokers do not tell."""
        self.start = start
        self.start_leader_epoch = start_leader_epoch
        self.inherited = inherited
        """What was settled above `start` before this assignment, as far as it was not read again yet."""
        self.proven = True
        """False after the process was away: the group may have given the partition to another meanwhile."""
        self.blocks: deque[Block | Finished] = deque()
        self.last_seen = -1
        self.last_timestamp = -1
        """Kafka's (milliseconds) of the record at `last_seen`; -1 while that is not known."""
        self.next_offset: int | None = start if commit_start else None
        self.next_leader_epoch: int | None = None
        self.committed: Position | None = None
        self.end: int | None = None
        self.reached = self.reached_before = -1
        """Up to where the client has read, markers included, as last heard and as heard the time before: by then it has
        handed over what it had read."""
        self.removed_to = 0
        """Up to here it is reported what was removed from the log before it was read."""
        self.emptied: tuple[int, int] | None = None
        """Where the log was seen to be empty, all to be read removed: our position, and where it begins."""
        self.unreadable_at: int | None = None
        """From where it cannot be read now: what the broker sends is damaged. None: it can."""
        self.map_most = offset_map.MOST
        """Bytes that the metadata of a commit may take."""
        self.destination: str | None = None
        """Where its events go: stands in what is committed."""
        self.elsewhere = False
        """What lies before its start was committed for another destination."""
        self._pack_at = 16
        self._map_size = 0
        self._measure_at = float("-inf")

    def position(self) -> int | None:
        """The offset after the last record read, or where reading starts."""
        return self.last_seen + 1 if self.last_seen >= 0 else self.start

    def took(self, committed: Position) -> None:
        """The group has this position now. Beyond what is read it is one of a log that was cut meanwhile: void."""
        if committed.next_offset <= (self.position() or 0):
            self.committed = committed

    def lowest_open(self) -> tuple[Block, int] | None:
        """The lowest open record: its block, and its index there."""
        block = next((one for one in self.blocks if one.open), None) if self.open else None
        return (block, block.lowest()) if isinstance(block, Block) and block.lowest() >= 0 else None

    # -- what may be committed

    def committable(self) -> Position | None:
        """The next offset after all that is settled without a gap of open ones; None while there is none.

        With it goes the map of what is settled above it.
        """
        self._take_off_finished()
        next_offset, leader_epoch = self.next_offset, self.next_leader_epoch
        if self.blocks:
            first = self.blocks[0]
            lowest = first.lowest() if isinstance(first, Block) else 0
            if lowest > 0 and isinstance(first, Block):
                next_offset, leader_epoch = first.offsets[lowest], first.leader_epoch
        if next_offset is not None:
            return self._position(next_offset, leader_epoch)
        # The first record still waits; what is settled behind it is worth a commit all the same.
        position = self._beginning()
        return position if position is not None and self.maps_something(position) else None

    def proof(self) -> Position | None:
        """What to commit in order to hear whether the partition is still ours; None: nothing is known of it yet."""
        return self.committable() or self._beginning()

    def map_share(self, now: float) -> float:
        """How much of the usual room the offset map leaves: 1 while it fits whatever settles next, 0 when it is full.

        1 also where the broker takes no maps: none is lost then by reading on. Measured only where the window is so
        long that its pattern matters, and then not at every turn.
        """
        if not self.blocks or self.map_most <= offset_map.IDS_MOST:
            return 1.0
        window = max(self.last_seen + 1, self.inherited.end if self.inherited is not None else 0)
        if window - self.blocks[0].first_offset <= offset_map.safe_window(self.map_most) // 2:
            return 1.0
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY
            self.committable()
        # What is open may settle in any pattern: a bit each, six to a character.
        free = 1 - (self._map_size + self.open / 6) / max(1, self.map_most)
        return min(1.0, max(0.0, free - 0.1) * 2)

    def _beginning(self) -> Position | None:
        """Where reading began; None while that is not known."""
        if self.start is not None:
            return self._position(self.start, self.start_leader_epoch)
        return self._position(self.blocks[0].first_offset, None) if self.blocks else None

    def _position(self, next_offset: int, leader_epoch: int | None) -> Position:
        bounds, highest = self._settled_above(next_offset)
        if bounds and bounds[0] < next_offset:
            raise InvariantViolation(
                f"the map of {self.tp.topic}[{self.tp.partition}] begins before {next_offset}; please report this"
            )
        text = offset_map.write(
            next_offset,
            bounds,
            highest,
            self.map_most,
            where=map_place(self.tp),
            topic_id=self.topic_id,
            destination=self.destination,
        )
        self._map_size = len(text)
        return Position(*self.tp, next_offset, leader_epoch, text)

    def maps_something(self, position: Position) -> bool:
        """Whether this position of its own goes with a map."""
        where = map_place(self.tp)
        return offset_map.read(position.metadata, position.next_offset, where=where) is not None

    def _take_off_finished(self) -> None:
        blocks = self.blocks
        while blocks and not blocks[0].open:
            done = blocks.popleft()
            self.next_offset, self.next_leader_epoch = done.end, done.leader_epoch
        self.keep_little()

    def keep_little(self) -> None:
        """Keep little of finished blocks behind an unfinished one: it may stand there for hours."""
        if len(self.blocks) < self._pack_at:
            return
        packed: deque[Block | Finished] = deque()
        for block in self.blocks:
            last = packed[-1] if packed else None
            if block.open:
                packed.append(block)
            elif isinstance(last, Finished) and last.leader_epoch == block.leader_epoch:
                last.end = block.end
            else:
                packed.append(Finished(block))
        self.blocks = packed
        self._pack_at = max(16, 2 * len(packed))

    def _settled_above(self, base: int) -> tuple[list[int], int | None]:
        """Bounds of what is settled above `base` (see `OffsetMap`), and the highest leader epoch seen."""
        bounds = settled_bounds(self.blocks, base)
        if self.inherited is None:
            return bounds, self.blocks[-1].leader_epoch if self.blocks else None
        rest = self.inherited.from_offset(max(base, self.last_seen + 1))
        if bounds and rest and bounds[-1] == rest[0]:
            return bounds[:-1] + rest[1:], self.inherited.leader_epoch
        return bounds + rest, self.inherited.leader_epoch

    def totals(self) -> Totals:
        """This assignment's figures."""
        counts = {disposition.value: count for disposition, count in self.counts.items()}
        return Totals(read=self.read, open=self.open, **counts)

    def off(self) -> int:
        """By how many records the books do not add up."""
        return abs(self.read - sum(self.counts.values()) - self.open) + abs(
            sum(map(_OPEN, self.blocks)) - self.open
        )

    def left_at(self) -> LeftAt:
        """Where it stands."""
        position = self.proof()
        return LeftAt(None if position is None else position.next_offset, self.open == 0)


def map_place(tp: TopicPartition) -> str:
    """What an offset map is bound to, beside its offset."""
    return f"{tp.topic}-{tp.partition}"


class Placed(Protocol):
    """Something with a record."""

    block: Block
    index: int


P = TypeVar("P", bound=Placed)
_BLOCK: attrgetter[Block] = attrgetter("block")


class Ledger:
    """All live assignments, and the sums of those that ended."""

    def __init__(self, map_most: int = offset_map.MOST, destination: str | None = None) -> None:
        """`map_most`: bytes that the metadata of a commit may take; `destination`: where events go, for it."""
        self._assignments: dict[TopicPartition, AssignmentState] = {}
        self._ended = dict.fromkeys(MARK, 0)
        self._entered = 0
        self._released = 0
        self._released_unread = 0
        self._map_most = map_most
        self._destination = destination
        self._ended_at: dict[TopicPartition, LeftAt] = {}
        self.passed = 0
        """Records passed over, ever."""
        self.open = 0
        self.open_bytes = 0
        self.settlements = 0
        """How often something settled, ever: whether there is progress."""

    def __iter__(self) -> Iterator[AssignmentState]:
        return iter(self._assignments.values())

    def get(self, tp: TopicPartition) -> AssignmentState | None:
        """The live assignment of a partition."""
        return self._assignments.get(tp)

    def assign(
        self,
        tp: TopicPartition,
        epoch: int,
        start: int | None,
        commit_start: bool,
        start_leader_epoch: int | None = None,
        inherited: OffsetMap | None = None,
        topic_id: str | None = None,
    ) -> AssignmentState:
        """Open the books of a new assignment; an older one of the same partition ends here."""
        self.drop(tp)
        state = AssignmentState(tp, epoch, start, commit_start, start_leader_epoch, inherited, topic_id)
        state.map_most, state.destination = self._map_most, self._destination
        self._assignments[tp] = state
        return state

    def drop(self, tp: TopicPartition) -> AssignmentState | None:
        """End an assignment: what is open in it is released, and it settles and commits nothing more."""
        state = self._assignments.pop(tp, None)
        if state is None:
            return None
        self._check(state)
        self._ended_at[tp] = state.left_at()
        state.live = False
        self.open -= state.open
        self.open_bytes -= state.open_bytes
        self._released += state.open
        for disposition, count in state.counts.items():
            self._ended[disposition] += count
        state.blocks.clear()
        return state

    def left_at(self) -> dict[TopicPartition, LeftAt]:
        """Where each partition that was ever ours stands, or was left at."""
        return {**self._ended_at, **{tp: state.left_at() for tp, state in self._assignments.items()}}

    def rewind(self, state: AssignmentState, offset: int) -> int:
        """The position went back to `offset` within an assignment: what is open from there on will come again.

        It is released; what is open before `offset` will not come again and stays. Gives how many were released.
        """
        released = sum(self._cut(block, offset) for block in state.blocks if isinstance(block, Block))
        state.blocks = deque(block for block in state.blocks if block.first_offset < offset)
        for block in state.blocks:
            # Where it ends is where reading goes on: what is committed does not go back to before a gap.
            block.end = min(block.end, offset)
        state.last_seen, state.last_timestamp = offset - 1, -1
        # Of the log that is there now, no end has been heard; a commit beyond `offset` was of the one before.
        state.end, state.reached, state.reached_before, state.removed_to = None, -1, -1, 0
        if state.committed is not None and state.committed.next_offset > offset:
            state.committed = None
        if state.inherited is not None and (
            state.inherited.leader_epoch is None or offset < (state.start or 0)
        ):
            # Without leader epochs a cut of the log cannot be recognised; before its beginning it is another one.
            state.inherited = None
        if not state.blocks and (state.next_offset is None or state.next_offset > offset):
            # Reading begins anew; what is before it is settled, or was never ours.
            state.start, state.start_leader_epoch = offset, None
            state.next_offset = state.next_leader_epoch = None
        return released

    def _cut(self, block: Block, offset: int) -> int:
        """Release a block's open records from `offset` on; what is before it is all that is left of the block."""
        place, released = bisect_left(block.offsets, offset), 0
        for index in range(place, len(block.offsets)):
            if block.release(index):
                block.records[index] = None
                released += 1
                block.assignment.open_bytes -= block.costs[index]
                self.open_bytes -= block.costs[index]
        block.open -= released
        block.assignment.open -= released
        block.assignment.read -= released
        self.open -= released
        self._released += released
        return released

    def release_unread(self, count: int) -> None:
        """So many records that were fetched and never read were let go of."""
        self._released += count
        self._released_unread += count

    def settled_before(self, state: AssignmentState, chunk: Chunk) -> list[int]:
        """Indexes of the chunk's records that were settled before this assignment: they are passed over.

        The fence: records of a higher leader epoch than any in the map stand where the log was cut since.
        """
        inherited = state.inherited
        if inherited is None or not chunk.records:
            return []
        if not inherited.holds_for(chunk.leader_epoch):
            state.inherited = None
            return []
        if chunk.records[0].offset >= inherited.end:
            return []
        return [index for index, record in enumerate(chunk.records) if inherited.settled(record.offset)]

    def track(
        self,
        state: AssignmentState,
        chunk: Chunk,
        costs: list[int] | None = None,
        passed: Sequence[int] = (),
    ) -> Block:
        """Enter fetched records as read and open. Offsets must be beyond those seen, and rise.

        `costs`: bytes each holds (by default, of the record alone); `passed`: see `settled_before`.
        """
        block = Block(state, chunk, sizes_of(chunk.records) if costs is None else costs, passed)
        offsets = block.offsets
        if offsets[0] <= state.last_seen or not all(map(lt, offsets, offsets[1:])):
            raise InvariantViolation(
                f"offsets of {state.tp.topic}[{state.tp.partition}] do not rise after {state.last_seen}; "
                "please report this"
            )
        state.blocks.append(block)
        state.keep_little()
        state.last_seen, state.last_timestamp = offsets[-1], chunk.records[-1].timestamp
        if state.inherited is not None and state.inherited.end <= state.last_seen + 1:
            state.inherited = None
        size = sum(block.costs)
        self.passed += len(passed)
        self._entered += block.open
        state.read += block.open
        state.open += block.open
        state.open_bytes += size
        self.open += block.open
        self.open_bytes += size
        return block

    def grow(self, state: Fence, size: int) -> None:
        """Open records of an assignment now hold `size` bytes more: their serialised events, entered in `costs`."""
        state.open_bytes += size
        self.open_bytes += size

    def settle(self, block: Block, index: int, disposition: Disposition) -> bool:
        """Give an open record its one final disposition. False if its assignment has ended: nothing happens."""
        return bool(self.settle_all([RecordPlace(block, index)], disposition))

    def settle_all(self, placed: Iterable[P], disposition: Disposition) -> list[P]:
        """As `settle`, for many; gives those whose record it settled."""
        ours: list[P] = []
        for block, run in groupby(placed, _BLOCK):
            some = list(run)
            indexes = [one.index for one in some]
            if not block.move(indexes, MARK[disposition]):
                if not block.assignment.live:
                    continue
                some = [one for one in some if block.stages[one.index] != RELEASED]
                indexes = [one.index for one in some]
            records, costs, size = block.records, block.costs, 0
            for index in indexes:
                records[index] = None
                size += costs[index]
            self._enter(block, disposition, len(indexes), size)
            ours += some
        return ours

    def _enter(self, block: Block, disposition: Disposition, count: int, size: int) -> None:
        """So many records of a block, of so many bytes, are settled."""
        state = block.assignment
        block.open -= count
        state.counts[disposition] += count
        state.open -= count
        state.open_bytes -= size
        self.open -= count
        self.open_bytes -= size
        self.settlements += count

    def committables(self) -> Iterator[Position]:
        """Positions that differ from what is committed, for partitions that are not being drained.

        With them, for what must be proven to be ours (see `AssignmentState.proof`), even what is committed already.
        """
        for state in self._assignments.values():
            if state.draining:
                continue
            position = state.committable() if state.proven else state.proof()
            if position is not None and (position != state.committed or not state.proven):
                yield position

    def final_positions(self, states: Iterable[AssignmentState]) -> list[Position]:
        """What to commit of live assignments about to be let go. Raises `InvariantViolation` if the books are off."""
        self.check()
        positions = []
        for state in states:
            position = state.committable() if state.live else None
            if position is not None and position != state.committed:
                positions.append(position)
        return positions

    @property
    def map_most(self) -> int:
        """Bytes that the metadata of a commit may take."""
        return self._map_most

    def limit_metadata(self, most: int) -> None:
        """The broker takes no more with a commit than this."""
        self._map_most = most
        for state in self._assignments.values():
            state.map_most = most

    def map_share(self, now: float) -> float:
        """How much of the usual room the fullest offset map leaves, 0 to 1."""
        return min((state.map_share(now) for state in self._assignments.values() if state.open), default=1.0)

    def totals(self) -> Totals:
        """The whole process's figures, each as it was counted: they add up, or there is a `mismatch`."""
        counts = dict(self._ended)
        for state in self:
            for disposition, count in state.counts.items():
                counts[disposition] += count
        read = self._entered - (self._released - self._released_unread)
        named = {disposition.value: count for disposition, count in counts.items()}
        return Totals(read=read, open=self.open, released=self._released, **named)

    def mismatch(self) -> int:
        """Records ever entered that are neither settled, open nor released, or by how many partitions are off."""
        read, *parts, _ = astuple(self.totals())
        return read - sum(parts) or sum(state.off() for state in self)

    def check(self) -> None:
        """Raises `InvariantViolation` unless the books add up."""
        for state in self:
            self._check(state)
        if self.mismatch():
            raise InvariantViolation(f"the ledger does not add up: {self.totals()}; please report this")

    def _check(self, state: AssignmentState) -> None:
        off = state.off()
        if off:
            raise InvariantViolation(
                f"the ledger of {state.tp.topic}[{state.tp.partition}] does not add up, by {off}: read {state.read}, "
                f"settled {sum(state.counts.values())}, open {state.open}; please report this"
            )
