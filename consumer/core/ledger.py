"""The ledger: per partition and assignment, what was read, what became of it, and what may be committed.

Theory of operation. Records come in chunks; each chunk becomes a `Span` that holds its records until all are
settled. A settlement marks one byte in the span. Spans stand in a queue in offset order, so the lowest unsettled
record is the first unmarked byte of the first unfinished span, found by one `bytearray.find`. The committable
position is that record's offset; with nothing open it is the one after the last record seen. Offsets are never
counted up: gaps from compaction and transactions are normal (design.md, rule 1).

An `Assignment` dies with its epoch: dropped, it settles nothing and commits nothing, whatever still refers to
it (rule 2). The ledger adds up at every instant: ``read = delivered + duplicate + filtered + dead_lettered +
open``. What was open in a dropped assignment was never ours to settle, so it leaves ``read`` again and is
counted in `Totals.released`.

The invariants are asserted here, in production too: an `InvariantViolation` stops the process at once, before
a wrong offset is committed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import lt

from consumer.core.model import Chunk, Disposition, Position, Record, TopicPartition
from consumer.errors import InvariantViolation

_RELEASED = 255
"""Marks a record that is not ours to settle any more although its span is (see `Ledger.rewind`)."""
_MARK: dict[Disposition, int] = {disposition: n for n, disposition in enumerate(Disposition, start=1)}


@dataclass(frozen=True, slots=True)
class Totals:
    """The ledger's figures; `released` is what was fetched but let go of unsettled (someone reads it again)."""

    read: int
    delivered: int
    duplicate: int
    filtered: int
    dead_lettered: int
    open: int
    released: int = 0


class Span:
    """One chunk's records until they are settled. `settled[i]` is 0 while record i is open, else why it is not."""

    __slots__ = (
        "assignment",
        "costs",
        "last_offset",
        "leader_epoch",
        "offsets",
        "open",
        "records",
        "settled",
    )

    def __init__(self, assignment: AssignmentState, chunk: Chunk) -> None:
        records = chunk.records
        self.assignment = assignment
        self.records: list[Record | None] = list(records)
        self.offsets = [record.offset for record in records]
        self.costs = [_size(record) for record in records]
        self.settled = bytearray(len(records))
        self.open = len(records)
        self.leader_epoch = chunk.leader_epoch
        self.last_offset = self.offsets[-1]

    def ours(self, index: int) -> bool:
        """Whether a record is still ours to settle (or was, and is settled)."""
        return self.assignment.live and self.settled[index] != _RELEASED

    def record(self, index: int) -> Record:
        """An open record of this span."""
        record = self.records[index]
        if record is None:
            raise InvariantViolation("a settled record was asked for again; please report this")
        return record


def _size(record: Record) -> int:
    """Bytes a fetched record holds in memory, objects left aside."""
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers:
        size += len(name) + len(value or b"")
    return size


class AssignmentState:
    """One partition under one epoch: the books, and the fence (`live`)."""

    __slots__ = (
        "commit_start",
        "committed",
        "counts",
        "draining",
        "end",
        "epoch",
        "last_seen",
        "live",
        "next_leader_epoch",
        "next_offset",
        "open",
        "open_bytes",
        "reached",
        "read",
        "spans",
        "start",
        "tp",
    )

    def __init__(self, tp: TopicPartition, epoch: int, start: int | None, commit_start: bool) -> None:
        self.tp = tp
        self.epoch = epoch
        self.start = start
        self.commit_start = commit_start
        self.live = True
        self.draining = False
        self.spans: deque[Span] = deque()
        self.last_seen = -1
        self.next_offset: int | None = start if commit_start else None
        self.next_leader_epoch: int | None = None
        self.committed: int | None = None
        self.end: int | None = None
        self.reached = -1
        self.read = 0
        self.open = 0
        self.open_bytes = 0
        self.counts = [0] * (len(_MARK) + 1)

    @property
    def accepts(self) -> bool:
        """Whether new records may still be taken in and new work begun."""
        return self.live and not self.draining

    def position(self) -> int | None:
        """The offset after the last record read, or where reading starts."""
        return self.last_seen + 1 if self.last_seen >= 0 else self.start

    def lag(self) -> int | None:
        """Offsets from the committed position to the end; None while one of them is not known.

        None are left when all is read, settled and committed: the rest are markers and aborted transactions.
        """
        # Where nothing is committed yet, from where reading began.
        begin = self.committed if self.committed is not None else self.start
        if self.end is None or begin is None:
            return None
        if not self.open and self.reached >= self.end and self.position() == begin:
            return 0
        return max(0, self.end - begin)

    def committable(self) -> Position | None:
        """The next offset after all that is settled without a gap of open ones; None while there is none."""
        spans = self.spans
        while spans and not spans[0].open:
            done = spans.popleft()
            self.next_offset, self.next_leader_epoch = done.last_offset + 1, done.leader_epoch
        if spans:
            first = spans[0]
            lowest = first.settled.find(0)
            if lowest > 0:
                return Position(*self.tp, first.offsets[lowest], first.leader_epoch)
        if self.next_offset is None:
            return None
        return Position(*self.tp, self.next_offset, self.next_leader_epoch)

    def totals(self) -> Totals:
        """This assignment's figures."""
        delivered, duplicate, filtered, dead_lettered = self.counts[1:]
        return Totals(self.read, delivered, duplicate, filtered, dead_lettered, self.open)


class Ledger:
    """All live assignments, and the sums of those that ended."""

    def __init__(self) -> None:
        self._assignments: dict[TopicPartition, AssignmentState] = {}
        self._ended = [0] * (len(_MARK) + 1)
        self._released = 0
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
        self, tp: TopicPartition, epoch: int, start: int | None, commit_start: bool
    ) -> AssignmentState:
        """Open the books of a new assignment; an older one of the same partition ends here."""
        self.drop(tp)
        state = AssignmentState(tp, epoch, start, commit_start)
        self._assignments[tp] = state
        return state

    def drop(self, tp: TopicPartition) -> AssignmentState | None:
        """End an assignment: what is open in it is released, and it settles and commits nothing more."""
        state = self._assignments.pop(tp, None)
        if state is None:
            return None
        self._check(state)
        state.live = False
        self.open -= state.open
        self.open_bytes -= state.open_bytes
        self._released += state.open
        self._ended = [total + count for total, count in zip(self._ended, state.counts, strict=True)]
        state.spans.clear()
        return state

    def rewind(self, state: AssignmentState, offset: int) -> int:
        """The position went back to `offset` within an assignment: what is open from there on will come again.

        It is released; what is open before `offset` will not come again and stays. Gives how many were released.
        """
        released = sum(self._cut(span, offset) for span in state.spans)
        state.spans = deque(span for span in state.spans if span.last_offset < offset)
        state.last_seen = offset - 1
        if state.next_offset is not None and state.next_offset > offset:
            state.next_offset = state.next_leader_epoch = None
        return released

    def _cut(self, span: Span, offset: int) -> int:
        """Release a span's open records from `offset` on; what is before it is all that is left of the span."""
        place, released = bisect_left(span.offsets, offset), 0
        for index in range(place, len(span.offsets)):
            if not span.settled[index]:
                span.settled[index] = _RELEASED
                span.records[index] = None
                released += 1
                span.assignment.open_bytes -= span.costs[index]
                self.open_bytes -= span.costs[index]
        if place:
            span.last_offset = span.offsets[place - 1]
        span.open -= released
        span.assignment.open -= released
        span.assignment.read -= released
        self.open -= released
        self._released += released
        return released

    def track(self, state: AssignmentState, chunk: Chunk) -> Span:
        """Enter fetched records as read and open. Offsets must be beyond those seen, and rise."""
        span = Span(state, chunk)
        offsets = span.offsets
        if offsets[0] <= state.last_seen or not all(map(lt, offsets, offsets[1:])):
            raise InvariantViolation(
                f"offsets of {state.tp.topic}[{state.tp.partition}] do not rise after {state.last_seen}; "
                "please report this"
            )
        state.spans.append(span)
        state.last_seen = span.last_offset
        count, size = len(offsets), sum(span.costs)
        state.read += count
        state.open += count
        state.open_bytes += size
        self.open += count
        self.open_bytes += size
        return span

    def grow(self, state: AssignmentState, size: int) -> None:
        """Open records of an assignment now hold `size` bytes more: their serialised events, entered in `costs`."""
        state.open_bytes += size
        self.open_bytes += size

    def settle(self, span: Span, index: int, disposition: Disposition) -> bool:
        """Give an open record its one final disposition. False if its assignment has ended: nothing happens."""
        if not span.ours(index):
            return False
        state = span.assignment
        if span.settled[index]:
            raise InvariantViolation(
                f"a record of {state.tp.topic}[{state.tp.partition}] was settled twice; please report this"
            )
        mark = _MARK[disposition]
        span.settled[index] = mark
        span.records[index] = None
        span.open -= 1
        cost = span.costs[index]
        state.counts[mark] += 1
        state.open -= 1
        state.open_bytes -= cost
        self.open -= 1
        self.open_bytes -= cost
        self.settlements += 1
        return True

    def committables(self) -> Iterator[Position]:
        """Positions that are ahead of what is committed, for partitions that are not being drained."""
        for state in self._assignments.values():
            if state.draining:
                continue
            position = state.committable()
            if position is not None and position.next_offset != state.committed:
                yield position

    def final_positions(self, states: Iterable[AssignmentState]) -> list[Position]:
        """What to commit of live assignments about to be let go."""
        positions = []
        for state in states:
            position = state.committable() if state.live else None
            if position is not None and position.next_offset != state.committed:
                positions.append(position)
        return positions

    def totals(self) -> Totals:
        """The whole process's figures; they add up, or the process stops."""
        counts = list(self._ended)
        for state in self._assignments.values():
            self._check(state)
            counts = [total + count for total, count in zip(counts, state.counts, strict=True)]
        _, delivered, duplicate, filtered, dead_lettered = counts
        read = sum(counts) + self.open
        return Totals(read, delivered, duplicate, filtered, dead_lettered, self.open, self._released)

    def _check(self, state: AssignmentState) -> None:
        in_spans = sum(span.open for span in state.spans)
        if state.read != sum(state.counts) + state.open or in_spans != state.open:
            raise InvariantViolation(
                f"the ledger of {state.tp.topic}[{state.tp.partition}] does not add up: read {state.read}, "
                f"settled {sum(state.counts)}, open {state.open}, in spans {in_spans}; please report this"
            )
