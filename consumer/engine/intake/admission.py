"""Admission: which fetched records are read next, and how many of them fit.

Theory of operation. A slice of records is read: decoded, converted, serialised (`reading`); that changes nothing except
the state of decoder and converter. Then it is known how many bytes each event will hold, and as many of the slice are
entered as fit, which makes them open. The rest of the fetch is *held*, and while records are held no more are fetched.
Held records are bounded by one fetch, are not open, and are forgotten with their assignment. The budget in bytes is
kept to the byte.

Records that waited for their schema or their time are open already, and hold more bytes once they are read: they are
*deferred* until there is room, and come before the held ones, since they hold back the commit of their partition. So
that room is left for them, records that wait (`waiting`) may fill only half of the budget.

A single event may be larger than the budget: it is admitted when nothing is open or all open records wait; otherwise
it would block intake indefinitely. Nothing is admitted once the guard has tripped, or a replay's limit is reached.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, takewhile
from typing import NamedTuple

from consumer.engine.context import Context
from consumer.engine.model import Chunk, Filtered, Later, Record, SchemaRef, TopicPartition
from consumer.engine.native import sizes_of
from consumer.engine.reading import Columns, Keys, Reading
from consumer.engine.records.block import ROW_BYTES, AssignmentState
from consumer.engine.records.runs import Run, divide

# Records read in one go, which become one block: enough that the cost per block is negligible per event, and few enough
# that one record that waits for hours keeps few of its neighbours in memory. A kind's number is one byte, and a block
# has at most as many kinds as records: not more than 256.
SLICE = 256
# Bytes read in one go, unless one record alone has more: decoded, a hostile record takes far more than its length.
_SLICE_BYTES = 1024 * 1024
# Records in one fetch at most: large enough that per-chunk costs vanish, small enough to keep the loop lively.
MAX_FETCH = 2000
# Bytes that an event is assumed to hold before any was read; and the weight of the latest slice in the mean after that.
_FIRST_GUESS, _NEWEST_COUNTS = 16 * 1024, 0.2


class Level(NamedTuple):
    """How full the budget is, by the parts that know."""

    # Open records, and the bytes that they hold.
    open: int
    open_bytes: int
    # Records read, except filtered ones.
    counted: int
    # Open records that wait for their schema or their time, and their bytes. (Deferred ones not included.)
    waiting: int
    waiting_bytes: int
    # Nothing more is read: the guard has tripped.
    stopped: bool = False


class Fresh(NamedTuple):
    """Records of a chunk that are not open yet."""

    state: AssignmentState
    chunk: Chunk
    records: Sequence[Record | None]
    """The chunk's; None: settled before this assignment."""
    sizes: Sequence[int]
    """Bytes of each; 0: settled before."""
    passed: Sequence[int]
    """Which were settled before."""

    @property
    def tp(self) -> TopicPartition:
        """Their partition."""
        return self.state.tp

    def first(self, count: int) -> Fresh:
        """Return the first `count` of them."""
        if count == len(self.records):
            return self
        chunk = self.chunk._replace(records=self.chunk.records[:count])
        passed = [at for at in self.passed if at < count]
        return Fresh(self.state, chunk, self.records[:count], self.sizes[:count], passed)


class Waited(NamedTuple):
    """Open records of one partition whose schema or time has come: rows of blocks that exist."""

    tp: TopicPartition
    rows: Sequence[Run]
    records: Sequence[Record | None]

    def first(self, count: int) -> Waited:
        """Return the first `count` of them."""
        return Waited(self.tp, self.rows[:count], self.records[:count])


class Admission:
    """Fetched records that are not read yet, and open ones that wait for room."""

    def __init__(self, context: Context, reading: Reading) -> None:
        policy = context.policy
        self._context = context
        self._reading = reading
        self._keys = Keys(policy.destination, policy.earlier_destination)
        # Until when keys under the earlier tag may have been stored within the window (monotonic).
        self._earlier_until: float | None = None
        # At most this many records are read; filtered ones do not count: tombstones, records that are too old, and
        # records that ``--where`` excludes.
        self._maximum = math.inf if policy.max_records is None else policy.max_records
        self._held: deque[tuple[AssignmentState, Chunk]] = deque()
        self._deferred: deque[Run] = deque()
        # Free bytes below which it is no use to try again.
        self._need = 0
        self._mean_cost = float(_FIRST_GUESS)

    @property
    def held(self) -> int:
        """Records that are fetched and not yet read."""
        return sum(len(chunk.records) for _, chunk in self._held)

    @property
    def waits(self) -> bool:
        """True if records wait to be read."""
        return bool(self._held or self._deferred)

    @property
    def deferred(self) -> int:
        """Open records that wait for room in the budget."""
        return len(self._deferred)

    def room(self, open_bytes: int) -> int:
        """Return how many more events the budget has room for, by their mean size; 0 while records wait for room."""
        if self.waits:
            return 0
        return int((self._context.policy.max_open_bytes - open_bytes) // self._mean_cost)

    def left(self, counted: int) -> float:
        """Return how many more records may be read after `counted` ones; infinite without a limit. A record that waits
        for its schema counts, although it may turn out to be filtered."""
        return self._maximum - counted

    def limited_room(self, counted: int, filtered: int) -> int:
        """Return how many records to fetch for the limit: an estimate from the share filtered so far."""
        left = self.left(counted)
        if math.isinf(left) or left <= 0:
            return MAX_FETCH if left > 0 else 0
        return int(left * (1 + counted + filtered) // (1 + counted)) - self.held

    # -- records that come in, and records that are forgotten

    def hold(self, state: AssignmentState, chunk: Chunk) -> int:
        """Hold a fetched chunk. If it begins before the end of an earlier fetch, the log is read again from
        there: held records of its partition from its first offset on are forgotten, since the chunk brings them
        again. Return how many."""
        before = self.held
        if state.fetched(chunk):
            held, self._held = self._held, deque()
            first = chunk.records[0].offset
            for one, other in held:
                records = [each for each in other.records if one is not state or each.offset < first]
                if records:
                    self._held.append((one, other._replace(records=records)))
        forgotten = before - self.held
        self._held.append((state, chunk))
        return forgotten

    def defer(self, rows: Iterable[Run]) -> None:
        """Queue open records whose schema or time has come for room in the budget."""
        self._deferred.extend(rows)
        # They may need less room than the records that did not fit before.
        self._need = 0

    def purge(self) -> tuple[Sequence[Run], int]:
        """Remove records of partitions that were revoked or are being drained. Return the open ones, and how many
        others there were."""
        before, held, self._held = self.held, self._held, deque()
        for state, chunk in held:
            if state.live and not state.draining:
                self._held.append((state, chunk))
            else:
                state.fetched_to = 0
        kept, gone = divide([*self._deferred])
        self._deferred = deque(kept)
        self._need = 0
        return gone, before - self.held

    # -- what is read next

    def next(self, level: Level) -> Fresh | Waited | None:
        """Return the records to read next; None: none may fit now."""
        free_bytes = self._context.policy.max_open_bytes - level.open_bytes
        # When all open records wait, one is admitted, however large it is.
        roomy = free_bytes >= self._need or level.open == level.waiting + len(self._deferred)
        if level.stopped or not roomy:
            return None
        if self._deferred:
            tp = self._deferred[0].block.assignment.tp
            alike = takewhile(lambda row: row.block.assignment.tp == tp, self._deferred)
            rows = [*islice(alike, SLICE)]
            rows = rows[: _one_slice([block.sizes[index] for block, index, _ in rows])]
            return Waited(tp, rows, [block.record(index) for block, index, _ in rows])
        maximum = min(SLICE, self._context.policy.max_open_events - level.open)
        if not self._held or maximum <= 0 or self.left(level.counted) <= 0:
            return None
        state, chunk = self._held[0]
        sizes = sizes_of(chunk.records[:maximum])
        del sizes[_one_slice(sizes) :]
        piece = chunk._replace(records=chunk.records[: len(sizes)])
        passed = state.settled_before(piece)
        records: list[Record | None] = [*piece.records]
        for at in passed:
            records[at], sizes[at] = None, 0
        return Fresh(state, piece, records, sizes, passed)

    def read(self, piece: Fresh | Waited) -> Columns:
        """Return a row for each record of a slice. None: it was settled before."""
        if self._keys.earlier is not None:
            monotonic, policy = self._context.now.monotonic, self._context.policy
            if self._earlier_until is None:
                self._earlier_until = monotonic + policy.dedup_window
            elif monotonic > self._earlier_until:
                self._keys = Keys(policy.destination)
        columns = Columns(self._keys)
        self._reading.read(piece.records, self._context.now.unix, columns, *piece.tp)
        self._context.counters.in_two_steps = self._reading.in_two_steps
        return columns

    def take(self, piece: Fresh | Waited, columns: Columns, level: Level) -> int:
        """Take as many records of a slice as fit, from the first on. Return how many; `columns`, which was read of
        them, is cut to these."""
        if isinstance(piece, Waited):
            fitting = self._fitting(columns, level)
            for _ in range(fitting):
                self._deferred.popleft()
            columns.cut(fitting)
            return fitting
        fitting = self._fitting(columns, level, piece.sizes, piece.passed)
        fitting = self._within_limit(columns, fitting, level.counted)
        columns.cut(fitting)
        if fitting:
            state, chunk = self._held.popleft()
            if fitting < len(chunk.records):
                self._held.appendleft((state, chunk._replace(records=chunk.records[fitting:])))
        return fitting

    def held_by(self, size: int, records: int) -> None:
        """Take how many bytes the latest slice of new records holds, without those that are settled by now."""
        self._mean_cost += _NEWEST_COUNTS * (max(1.0, size / records) - self._mean_cost)

    def _within_limit(self, columns: Columns, count: int, counted: int) -> int:
        """Return how many of the first `count` rows of `columns` the limit allows."""
        left = self.left(counted)
        if left >= count:
            return count
        for row in range(count):
            # Neither filtered records count nor those settled before this assignment.
            verdict = columns.verdicts.get(row)
            left -= columns.is_event(row) if verdict is None else not isinstance(verdict, Filtered)
            if left < 0:
                return row
        return count

    def _fitting(
        self, columns: Columns, level: Level, sizes: Sequence[int] = (), passed: Sequence[int] = ()
    ) -> int:
        """Return how many rows of `columns`, from the first on, fit now. Notes how many free bytes the others need.

        `sizes`: bytes of their records, unless they count already; `passed`: rows that were settled before.
        """
        # Counted as `Block.held` counts it, so that the budget is kept to the byte.
        budget = self._context.policy.max_open_bytes
        free_bytes = budget - level.open_bytes
        waits = {row for row, verdict in columns.verdicts.items() if isinstance(verdict, SchemaRef | Later)}
        needed = sum(sizes) + ROW_BYTES * (len(sizes) - len(passed)) + len(columns.page)
        if needed <= free_bytes and not waits:  # the fast path
            self._need = 0
            return len(columns)
        costs = [end - start for start, end in zip((0, *columns.ends), columns.ends, strict=False)]
        if sizes:
            costs = [size + body + ROW_BYTES for size, body in zip(sizes, costs, strict=True)]
        for row in passed:
            costs[row] = 0
        # The other half is for records that do not wait, or a flood of unknown schemas would stop them all.
        for_waiting = budget // 2 - level.waiting_bytes
        count = 0
        for row, cost in enumerate(costs):
            # An open record costs only its body. One that waits again has no body, so it fits even if it is larger than
            # the budget: otherwise it would wait here indefinitely.
            if cost and (cost > free_bytes or (row in waits and cost > for_waiting)):
                break
            free_bytes -= cost
            for_waiting -= cost if row in waits else 0
            count += 1
        else:
            self._need = 0
            return len(costs)
        nothing_moves = level.open == level.waiting + len(self._deferred)
        if count == 0 and (not level.open or (nothing_moves and count not in waits)):
            self._need = 0
            return 1
        # A record that would have to wait fits only after others have stopped waiting; that resets the need.
        self._need = budget + 1 if count in waits else min(sum(costs[count:]), max(costs[count], budget // 4))
        return count


def _one_slice(sizes: Sequence[int]) -> int:
    """Return how many records of these sizes, from the first on, are read in one go: at least one."""
    if sum(sizes) <= _SLICE_BYTES:  # the fast path
        return len(sizes)
    return max(1, bisect_right([*accumulate(sizes)], _SLICE_BYTES))
