"""From fetched records to claimed events: read, admit, wait for room.

Theory of operation. A slice of records is *prepared*: decoded, converted, serialised (`reading`); that changes nothing
except the state of decoder and converter. Then it is known how many bytes each event will hold, and `Admission` enters
as many in the ledger as fit, which makes them open. The rest of the fetch is *held*, and while records are held no
more are fetched. Held records are bounded by one fetch, are not open, and are forgotten with their assignment.
An admitted event *claims* its key. The budget in bytes is kept to the byte.

Records that waited for their schema are open already, and hold more bytes once it is there: they are *deferred* until
there is room. So that room is left for them, records that wait for their schema or their time (`waiting`) may fill
only half of the budget.

A single event may be larger than the budget: it is admitted when nothing is open or all open records wait; otherwise
it would block intake for ever. Nothing is admitted once the guard has tripped, or a replay's limit is reached.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile

from consumer.engine.block import ROW_BYTES, Block, RecordStage, Run, goes_on, move_all, pick
from consumer.engine.claims import Claims, Lookups
from consumer.engine.context import Clock, Context
from consumer.engine.guard import Guard
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.model import (
    Chunk,
    Disposition,
    Filtered,
    Later,
    Record,
    SchemaRef,
    TopicPartition,
    Untimely,
)
from consumer.engine.native import sizes_of
from consumer.engine.outcomes import Outcomes
from consumer.engine.reading import Columns, Keys, NoEvent, Reading
from consumer.engine.waiting import Parking, Transforming, UntimelyRecords

# Records read in one go, which become one block: enough that the cost per block is negligible per event, and few enough
# that one record that waits for hours keeps little memory of its neighbours. A kind's number is one byte, and a block
# has at most as many kinds as records: not more than 256.
SLICE = 256
# Bytes read in one go, unless one record alone has more: decoded, a hostile record takes far more than its length.
_SLICE_BYTES = 1024 * 1024
# Records in one fetch at most: large enough that per-chunk costs vanish, small enough to keep the loop lively.
FETCH_MOST = 2000
# Bytes that an event is assumed to hold before any was read; and the weight of the latest slice in the mean after that.
_FIRST_GUESS, _NEWEST_COUNTS = 16 * 1024, 0.2


class Limit:
    """At most `most` records are read; filtered ones do not count: tombstones, records that are too old, and
    records that ``--where`` excludes."""

    def __init__(self, most: int | None, ledger: Ledger) -> None:
        self._most = math.inf if most is None else most
        self._ledger = ledger
        # Records read and filtered.
        self.left_out = 0

    def left(self) -> float:
        """Return how many more records may be read; infinite without a limit. A record that waits for its
        schema counts, although it may turn out to be filtered."""
        return self._most - (self._ledger.settlements + self._ledger.open - self.left_out)

    def cut(self, columns: Columns, count: int) -> int:
        """Return how many of the first `count` rows of `columns` the limit allows."""
        left = self.left()
        if left >= count:
            return count
        for row in range(count):
            # Neither filtered records count nor those settled before this assignment.
            verdict = columns.verdicts.get(row)
            left -= columns.is_event(row) if verdict is None else not isinstance(verdict, Filtered)
            if left < 0:
                return row
        return count

    def room(self, held: int) -> int:
        """Return how many records to fetch beside the `held` ones: an estimate from the share filtered so far."""
        left = self.left()
        if math.isinf(left) or left <= 0:
            return FETCH_MOST if left > 0 else 0
        counted = self._most - left
        return int(left * (1 + counted + self.left_out) // (1 + counted)) - held


@dataclass(eq=False)
class Admission:
    """Reads held and deferred records, enters those that fit in the ledger, and lets events claim their keys."""

    _context: Context
    _clock: Clock
    _ledger: Ledger
    _claims: Claims
    _parking: Parking
    _untimely: UntimelyRecords
    _transforming: Transforming
    _reading: Reading
    _lookups: Lookups
    _outcomes: Outcomes
    _guard: Guard

    def __post_init__(self) -> None:
        policy = self._context.policy
        self._keys = Keys(policy.destination, policy.earlier_destination)
        # Until when keys under the earlier tag may have been stored within the window (monotonic).
        self._earlier_until: float | None = None
        self.limit = Limit(policy.most_records, self._ledger)
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
    def deferred(self) -> int:
        """Open records that wait for room in the budget."""
        return len(self._deferred)

    def waiting(self) -> int:
        """Return how many open records wait: for their schema, their time, or room."""
        return len(self._parking) + len(self._untimely) + len(self._deferred)

    def room(self) -> int:
        """Return how many more events the budget has room for, by their mean size; 0 while records wait for room."""
        if self._held or self._deferred:
            return 0
        return int((self._context.policy.max_open_bytes - self._ledger.open_bytes) // self._mean_cost)

    # -- records that come in, and records that are forgotten

    def fetched(self, state: AssignmentState, chunk: Chunk) -> None:
        """Hold a fetched chunk. If it begins before the end of an earlier fetch, the log is read again from
        there: held records of its partition from its first offset on are forgotten, since the chunk brings them
        again."""
        first = chunk.records[0].offset
        if first < state.fetched_to:
            before, held, self._held = self.held, self._held, deque()
            for one, other in held:
                records = [each for each in other.records if one is not state or each.offset < first]
                if records:
                    self._held.append((one, other._replace(records=records)))
            self._ledger.released_unread += before - self.held
        self._held.append((state, chunk))
        state.fetched_to = chunk.records[-1].offset + 1

    def unparked(self, rows: Sequence[Run]) -> None:
        """Queue open records for room in the budget: their schema or their time has come, so they can be read."""
        if rows:
            move_all(rows, RecordStage.ROOM)
            self._deferred.extend(row for row in rows if goes_on(row))
            # They may need less room than the records that did not fit before.
            self._need = 0

    def decided(self, rows: Iterable[tuple[Run, NoEvent]]) -> None:
        """Handle the verdicts on open records that waited and are not events (yet); none of them needs room."""
        for row, verdict in rows:
            # Nothing is settled once the guard has tripped: it is read again after the cause is corrected.
            if self._guard.tripped is not None:
                move_all([row], RecordStage.FREED)
                continue
            self._set_aside(row, verdict)
            if isinstance(verdict, Filtered):
                self._guard.judge(row, None)

    def purge(self) -> None:
        """Forget records of partitions that were revoked or are being drained."""
        before, held, self._held = self.held, self._held, deque()
        for state, chunk in held:
            if state.live and not state.draining:
                self._held.append((state, chunk))
            else:
                state.fetched_to = 0
        self._ledger.released_unread += before - self.held
        self._deferred = deque(row for row in self._deferred if goes_on(row))
        self._transforming.purge()
        self._need = 0

    # -- admission

    def admit(self) -> None:
        """Read and admit all records that fit."""
        leaders: list[Run] = []
        # Records that are open already come first: they hold back the commit of their partition.
        while self._deferred and self._may_try() and self._admit_deferred(leaders):
            pass
        while self._held and not self._deferred and self._may_try() and self._admit_held(leaders):
            pass
        self._lookups.look_up(leaders)

    def judge_untimely(self, version: int) -> None:
        """Judge untimely events again: those whose time has come; all of them, if `version` has changed."""
        if taken := self._untimely.take(self._context.now, version):
            self.unparked(taken)
            self.admit()

    def _may_try(self) -> bool:
        """Return True if the next record may fit. When all open records wait, one is admitted, however large it is."""
        free_bytes = self._context.policy.max_open_bytes - self._ledger.open_bytes
        roomy = free_bytes >= self._need or self._ledger.open == self.waiting()
        return roomy and self._guard.tripped is None

    def _admit_held(self, leaders: list[Run]) -> bool:
        """Read a slice of the held records and admit as many as fit. Return True if all of the slice did."""
        state, chunk = self._held[0]
        most = min(SLICE, self._context.policy.max_open_events - self._ledger.open)
        if most <= 0 or self.limit.left() <= 0:
            return False
        sizes = sizes_of(chunk.records[:most])
        del sizes[_one_slice(sizes) :]
        piece = chunk._replace(records=chunk.records[: len(sizes)])
        passed = self._ledger.settled_before(state, piece)
        records: list[Record | None] = [*piece.records]
        for at in passed:
            records[at], sizes[at] = None, 0
        ready = self._ready(len(records), ((state.tp, record) for record in records))
        if not ready:
            return False  # the user's function has not returned yet
        del records[ready:], sizes[ready:]
        passed = [at for at in passed if at < ready]
        columns = self._prepare(records, chunk.topic)
        fitting = self.limit.cut(columns, self._fitting(columns, sizes, passed))
        if fitting:
            self._transforming.read(islice(records, fitting))
            columns.cut(fitting)
            read = piece._replace(records=piece.records[:fitting])
            settled = [at for at in passed if at < fitting]
            block = self._ledger.track(state, read, sizes[:fitting], columns, settled)
            self._guard.read(block, columns.verdicts)
            for index, verdict in columns.verdicts.items():
                self._set_aside(Run(block, index, index + 1), verdict)
            for run in block.runs(RecordStage.READ):
                leaders += self._claim(run)
            self._note(columns, fitting)
            self._mean_cost += _NEWEST_COUNTS * (max(1.0, block.held / fitting) - self._mean_cost)
            self._held.popleft()
            if fitting < len(chunk.records):
                self._held.appendleft((state, chunk._replace(records=chunk.records[fitting:])))
        return fitting == len(sizes)

    def _admit_deferred(self, leaders: list[Run]) -> bool:
        """Read a slice of the deferred records and admit as many as fit. Return True if all of the slice did."""
        topic = self._deferred[0].block.assignment.tp.topic
        alike = takewhile(lambda row: row.block.assignment.tp.topic == topic, self._deferred)
        rows = [*islice(alike, SLICE)]
        rows = rows[: _one_slice([block.sizes[index] for block, index, _ in rows])]
        read = ((block.assignment.tp, block.record(index)) for block, index, _ in rows)
        rows = rows[: self._ready(len(rows), read)]
        if not rows:
            return False  # the user's function has not returned yet
        records = [block.record(index) for block, index, _ in rows]
        columns = self._prepare(records, topic)
        return self._admit_rows(rows, columns, leaders)

    def _admit_rows(self, rows: Sequence[Run], columns: Columns, leaders: list[Run]) -> bool:
        """Admit as many of `rows`, the first of the deferred records, as fit. Return True if all did.

        `columns`: what was read of them.
        """
        fitting = self._fitting(columns)
        self._transforming.read(block.record(index) for block, index, _ in rows[:fitting])
        events: dict[Block, dict[int, int]] = {}
        for row, (block, index, _) in enumerate(rows[:fitting]):
            self._deferred.popleft()
            if columns.is_event(row):
                events.setdefault(block, {})[index] = row
        for block, of_block in events.items():
            self._ledger.insert(block, of_block, columns)
        for row, run in enumerate(rows[:fitting]):
            if row < len(columns.sections):
                run.block.put_section(run.first, columns.sections[row])
            verdict = columns.verdicts.get(row)
            if verdict is None:
                leaders += self._claim(run)
            else:
                self.decided([(run, verdict)])
        self._note(columns, fitting)
        return fitting == len(rows)

    # -- single steps

    def _ready(self, count: int, records: Iterable[tuple[TopicPartition, Record | None]]) -> int:
        """Return for how many of these `count` records, from the first on, the user's function has returned."""
        return self._transforming.ready([*records]) if self._context.policy.transform else count

    def _prepare(self, records: Sequence[Record | None], topic: str) -> Columns:
        """Return a row for each record of this topic. None: it was settled before."""
        if self._keys.earlier is not None:
            monotonic, policy = self._context.now.monotonic, self._context.policy
            if self._earlier_until is None:
                self._earlier_until = monotonic + policy.dedup_window
            elif monotonic > self._earlier_until:
                self._keys = Keys(policy.destination)
        columns = Columns(self._keys)
        self._reading.read(records, self._context.now.unix, columns, topic)
        self._context.counters.in_two_steps = self._reading.in_two_steps
        for row, verdict in columns.verdicts.items():
            record = records[row]
            # Whether the event is refused or waits depends on which clock is wrong.
            if isinstance(verdict, Untimely) and record is not None:
                columns.verdicts[row] = self._clock.may_wait(verdict, record.timestamp) or verdict.verdict
        return columns

    def _fitting(self, columns: Columns, sizes: Sequence[int] = (), passed: Sequence[int] = ()) -> int:
        """Return how many rows of `columns`, from the first on, fit now. Notes how many free bytes the others need.

        `sizes`: bytes of their records, unless the ledger counts them already; `passed`: rows that were settled before.
        """
        # Counted as `Block.held` counts it, so that the budget is kept to the byte.
        budget = self._context.policy.max_open_bytes
        free_bytes = budget - self._ledger.open_bytes
        waits = {row for row, verdict in columns.verdicts.items() if isinstance(verdict, SchemaRef | Later)}
        needed = sum(sizes) + ROW_BYTES * (len(sizes) - len(passed)) + len(columns.page)
        if needed <= free_bytes and not waits:  # nearly always
            self._need = 0
            return len(columns)
        costs = [end - start for start, end in zip((0, *columns.ends), columns.ends, strict=False)]
        if sizes:
            costs = [size + body + ROW_BYTES for size, body in zip(sizes, costs, strict=True)]
        for row in passed:
            costs[row] = 0
        # The other half is for records that do not wait, or a flood of unknown schemas would stop them all.
        for_waiting = budget // 2 - self._parking.size - self._untimely.size
        count = 0
        for row, cost in enumerate(costs):
            # An open record costs only its body. One that waits again has no body, so it fits even if it is larger than
            # the budget: otherwise it would wait here for ever.
            if cost and (cost > free_bytes or (row in waits and cost > for_waiting)):
                break
            free_bytes -= cost
            for_waiting -= cost if row in waits else 0
            count += 1
        else:
            self._need = 0
            return len(costs)
        nothing_moves = self._ledger.open == self.waiting()
        if count == 0 and (not self._ledger.open or (nothing_moves and count not in waits)):
            self._need = 0
            return 1
        # A record that would have to wait fits only after others have stopped waiting; that resets the need.
        self._need = budget + 1 if count in waits else min(sum(costs[count:]), max(costs[count], budget // 4))
        return count

    def _claim(self, run: Run) -> list[Run]:
        """Claim the keys of these events. Return those that lead their keys, to be looked up; the others follow."""
        leaders, followers = [run], self._claims.claim(run)
        if followers:
            self._context.counters.followers += len(followers)
            move_all(followers, RecordStage.FOLLOWING)
            follows = {follower.first for follower in followers}
            leaders, _ = pick([run], [index not in follows for index in range(run.first, run.end)])
        move_all(leaders, RecordStage.LOOKED_UP)
        return leaders

    def _set_aside(self, row: Run, verdict: NoEvent) -> None:
        """End a record that is not an event, or have it wait, as its verdict says."""
        if isinstance(verdict, SchemaRef):
            move_all([row], RecordStage.SCHEMA)
            self._parking.park(verdict, row, self._context.now.monotonic)
        elif isinstance(verdict, Later):
            move_all([row], RecordStage.CLOCK)
            self._untimely.wait(row, verdict)
        elif isinstance(verdict, Filtered):
            self._context.counters.bump(self._context.counters.filtered, verdict.code)
            if self._ledger.settle([row], Disposition.FILTERED):
                self.limit.left_out += 1
        else:
            self._outcomes.dead_letter(row, verdict, 0)

    def _note(self, columns: Columns, rows: int) -> None:
        """Count the warnings of the first `rows` rows of `columns`, and have the guard weigh the new verdicts."""
        counters, samples = self._context.counters, self._outcomes.samples
        for row, warnings in columns.warnings.items():
            for warning in warnings if row < rows else ():
                counters.convert_warnings[warning.code, warning.field] += 1
                samples.warnings[warning.code, warning.field] = warning.message
        self._guard.weigh()


def _one_slice(sizes: Sequence[int]) -> int:
    """Return how many records of these sizes, from the first on, are read in one go: at least one."""
    if sum(sizes) <= _SLICE_BYTES:  # nearly always
        return len(sizes)
    return max(1, bisect_right([*accumulate(sizes)], _SLICE_BYTES))
