"""The ledger: per partition and assignment, what was read, what became of it, and what may be committed.

Theory of operation. Records come in chunks; each chunk becomes a `Span` that holds its records until all are
settled. A settlement marks one byte in the span. Spans stand in a queue in offset order, so the lowest unsettled
record is the first unmarked byte of the first unfinished span. What may be committed is worked out from that, in the
books of each partition (`assignment`).

An `Assignment` dies with its epoch: dropped, it settles nothing and commits nothing, whatever still refers to
it (rule 2). The ledger adds up at every instant: ``read = delivered + duplicate + filtered + dead_lettered +
open``. What was open in a dropped assignment was never ours to settle, so it leaves ``read`` again and is
counted in `Totals.released`.

The invariants are asserted here, in production too: an `InvariantViolation` stops the process before a wrong offset
is committed. Figures are taken without raising, so that `mismatch` is seen (see `commits` for what follows from it).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from operator import attrgetter, lt
from typing import Protocol, TypeVar

from consumer.engine import offset_map
from consumer.engine.assignment import MARK, AssignmentState, LeftAt
from consumer.engine.model import Chunk, Disposition, Position, TopicPartition
from consumer.engine.offset_map import OffsetMap
from consumer.engine.spans import RELEASED, Span, sizes_of
from consumer.engine.statistics import Totals
from consumer.errors import InvariantViolation


class Placed(Protocol):
    """Something with a record."""

    span: Span
    index: int


@dataclass(slots=True)
class Place:
    """A record: its span, and its index there."""

    span: Span
    index: int


P = TypeVar("P", bound=Placed)
_SPAN: attrgetter[Span] = attrgetter("span")


class Ledger:
    """All live assignments, and the sums of those that ended."""

    def __init__(self, map_most: int = offset_map.MOST, destination: str | None = None) -> None:
        """`map_most`: bytes that the metadata of a commit may take; `destination`: where events go, for it."""
        self._assignments: dict[TopicPartition, AssignmentState] = {}
        self._ended = [0] * (len(MARK) + 1)
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
        self._ended = [total + count for total, count in zip(self._ended, state.counts, strict=True)]
        state.spans.clear()
        return state

    def left_at(self) -> dict[TopicPartition, LeftAt]:
        """Where each partition that was ever ours stands, or was left at."""
        return {**self._ended_at, **{tp: state.left_at() for tp, state in self._assignments.items()}}

    def rewind(self, state: AssignmentState, offset: int) -> int:
        """The position went back to `offset` within an assignment: what is open from there on will come again.

        It is released; what is open before `offset` will not come again and stays. Gives how many were released.
        """
        released = sum(self._cut(span, offset) for span in state.spans if isinstance(span, Span))
        state.spans = deque(span for span in state.spans if span.first_offset < offset)
        for span in state.spans:
            # Where it ends is where reading goes on: what is committed does not go back to before a gap.
            span.end = min(span.end, offset)
        state.last_seen, state.last_timestamp = offset - 1, -1
        # Of the log that is there now, no end has been heard; a commit beyond `offset` was of the one before.
        state.end, state.reached, state.reached_before, state.removed_to = None, -1, -1, 0
        if state.committed is not None and state.committed.next_offset > offset:
            state.committed = None
        if state.inherited is not None and (
            state.inherited.leader_epoch is None or offset < (state.start or 0)
        ):
            # Without leader epochs nobody can tell whether the log was cut; before its beginning it is another one.
            state.inherited = None
        if not state.spans and (state.next_offset is None or state.next_offset > offset):
            # Reading begins anew; what is before it is settled, or was never ours.
            state.start, state.start_leader_epoch = offset, None
            state.next_offset = state.next_leader_epoch = None
        return released

    def _cut(self, span: Span, offset: int) -> int:
        """Release a span's open records from `offset` on; what is before it is all that is left of the span."""
        place, released = bisect_left(span.offsets, offset), 0
        for index in range(place, len(span.offsets)):
            if not span.settled[index]:
                span.settled[index] = RELEASED
                span.records[index] = None
                released += 1
                span.assignment.open_bytes -= span.costs[index]
                self.open_bytes -= span.costs[index]
        span.open -= released
        span.assignment.open -= released
        span.assignment.read -= released
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
    ) -> Span:
        """Enter fetched records as read and open. Offsets must be beyond those seen, and rise.

        `costs`: bytes each holds (by default, of the record alone); `passed`: see `settled_before`.
        """
        span = Span(state, chunk, sizes_of(chunk.records) if costs is None else costs, passed)
        offsets = span.offsets
        if offsets[0] <= state.last_seen or not all(map(lt, offsets, offsets[1:])):
            raise InvariantViolation(
                f"offsets of {state.tp.topic}[{state.tp.partition}] do not rise after {state.last_seen}; "
                "please report this"
            )
        state.spans.append(span)
        state.keep_little()
        state.last_seen, state.last_timestamp = offsets[-1], chunk.records[-1].timestamp
        if state.inherited is not None and state.inherited.end <= state.last_seen + 1:
            state.inherited = None
        size = sum(span.costs)
        self.passed += len(passed)
        self._entered += span.open
        state.read += span.open
        state.open += span.open
        state.open_bytes += size
        self.open += span.open
        self.open_bytes += size
        return span

    def grow(self, state: AssignmentState, size: int) -> None:
        """Open records of an assignment now hold `size` bytes more: their serialised events, entered in `costs`."""
        state.open_bytes += size
        self.open_bytes += size

    def settle(self, span: Span, index: int, disposition: Disposition) -> bool:
        """Give an open record its one final disposition. False if its assignment has ended: nothing happens."""
        return bool(self.settle_all([Place(span, index)], disposition))

    def settle_all(self, placed: Iterable[P], disposition: Disposition) -> list[P]:
        """As `settle`, for many; gives those whose record it settled."""
        # One run after another of records that share a span, which nearly all do: the books are written once for each.
        mark = MARK[disposition]
        ours: list[P] = []
        for span, run in groupby(placed, _SPAN):
            if not span.assignment.live:
                continue
            settled, records, costs = span.settled, span.records, span.costs
            count = size = 0
            for one in run:
                index = one.index
                if settled[index]:
                    if settled[index] == RELEASED:
                        continue
                    raise _settled_twice(span)
                settled[index] = mark
                records[index] = None
                size += costs[index]
                count += 1
                ours.append(one)
            self._enter(span, mark, count, size)
        return ours

    def _enter(self, span: Span, mark: int, count: int, size: int) -> None:
        """So many records of a span, of so many bytes, are settled."""
        state = span.assignment
        span.open -= count
        state.counts[mark] += count
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
        counts = zip(self._ended, *(state.counts for state in self), strict=True)
        _, delivered, duplicate, filtered, dead_lettered = map(sum, counts)
        read = self._entered - (self._released - self._released_unread)
        return Totals(read, delivered, duplicate, filtered, dead_lettered, self.open, self._released)

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
                f"settled {sum(state.counts)}, open {state.open}; please report this"
            )


def _settled_twice(span: Span) -> InvariantViolation:
    tp = span.assignment.tp
    return InvariantViolation(f"a record of {tp.topic}[{tp.partition}] was settled twice; please report this")
