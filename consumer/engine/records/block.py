"""The block: the records of one chunk of a partition, until all are settled; and the blocks of an assignment.

Theory of operation. A block has a column for each property of its records: offset, size, stage, key, body, time, kind,
marks, and the record itself (for dead letters). A record is a row: a block and an index. Neighbours in a block are
handled together as a *run*: a run of healthy records changes stage in one operation, and only a record with a problem
is taken out of it, as a run of one row.

Memory is counted as it is held: the records that are open, the page of bodies, and the other columns until the last
record of the block is settled. A page of which a quarter belongs to settled records is copied into a smaller one.
Finished blocks behind an unfinished one are packed (`Block.pack`): one record that waits for hours must not keep the
memory of a million records after it.

An *assignment* is a partition under one epoch: its blocks in the order of offsets, their sums, and whether it is still
ours. With its one flag `live` nothing in its blocks can be settled any more.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from sys import getsizeof
from typing import Final

from consumer.engine.figures.statistics import Totals
from consumer.engine.model import Chunk, Disposition, Position, Record, TopicPartition
from consumer.engine.native import offsets_of, rising
from consumer.engine.reading import KEY_BYTES, Columns, Kind
from consumer.engine.records import offset_map
from consumer.engine.records.log import LogFacts
from consumer.engine.records.offset_map import MetadataWriter, OffsetMap
from consumer.engine.records.stages import MAY_COME_FROM, REWOUND, SETTLED_AS, RecordStage
from consumer.errors import bug

# Stages that are not final; a regular expression, because each commit looks through all blocks of an assignment.
_OPEN_RUN: Final = re.compile(b"[\\0-\\x%02x]+" % RecordStage.FREED)
# Mark of a rewound row that is in a call which is not answered yet, or in a write of its receipt.
_IN_CALL: Final = 8
# Seconds between two measurements of a map that may come to overflow.
_MEASURE_EVERY: Final = 1.0
_OPEN: attrgetter[int] = attrgetter("open")
# How much larger than its bytes a page may be: beyond that a copy costs less than the memory, which no budget counts.
_LOOSE: Final = 17 / 16
# Bytes of a row beside its record and its body: five columns of eight bytes, a key of sixteen, and the small columns.
ROW_BYTES: Final = 72


class Block:
    """Records of one chunk until they are settled, in columns of equal length.

    `sizes`: bytes of each record as it was fetched; `ends`: where its body, and the comma behind it, end in `page`;
    `keys`: `KEY_BYTES` each; `earlier_keys`: as many, or none (`reading.Keys`); `times`: unix seconds of its event;
    `values`: see `reading.packed_value`; `marks`: `OFFLINE` and so on; `kind_numbers`: which of `kinds` it is;
    `sections`: the number of the mapping's section, if it has any. A record that is not an event has an empty body.
    """

    def __init__(
        self,
        assignment: AssignmentState,
        chunk: Chunk,
        sizes: Sequence[int],
        columns: Columns,
        passed: Iterable[int],
        since: float,
    ) -> None:
        """`columns`: what was read of its records; `passed`: rows that were settled before this assignment; `since`:
        when the first record of its fetch came (monotonic)."""
        records = chunk.records
        self.since = since
        self.assignment = assignment
        self.records: list[Record | None] = list(records)
        self.offsets = offsets_of(records)
        self.sizes = array("q", sizes)
        self.stages = bytearray(len(records))
        self.page: bytes | bytearray = columns.page
        if getsizeof(self.page) > len(self.page) * _LOOSE:
            self.page = bytes(self.page)  # it does not change any more
        self.ends = columns.ends
        self.keys = bytes(columns.keys)
        self.earlier_keys = bytes(columns.earlier_keys)
        self.times, self.values = columns.times, columns.values
        self.marks = columns.marks
        self.kinds: list[Kind] = [*columns.kinds]
        self.kind_numbers = columns.kind_numbers
        self.sections = columns.sections.ljust(len(records), b"\0") if columns.sections else columns.sections
        self.open = len(records)
        self.leader_epoch: int | None = chunk.leader_epoch
        self.first_offset: int = self.offsets[0]
        # The offset after the last record, or where the log was cut (see `Ledger.rewind`).
        self.end: int = self.offsets[-1] + 1
        # By row, its number in the guard's sample; see `consumer.engine.intake.guard`.
        self.numbers: Sequence[int] = ()
        # Rows settled before are in the block too, so that offsets have no gaps and the guard counts them.
        for index in passed:
            self.stages[index] = RecordStage.PASSED
            self.records[index] = None
            self.sizes[index] = 0
            self.open -= 1
        # Bytes that count into the budget.
        self.held = sum(self.sizes) + len(self.page) + ROW_BYTES * self.open
        # Bytes of the page that belong to settled records.
        self._dead = 0
        # Whether rows were rewound: calls with them may still be in flight, so the columns stay.
        self._cut = False
        self._drop_what_is_dead()

    def move(self, first: int, end: int, stage: RecordStage) -> bool:
        """Move the rows from `first` to before `end` to a stage, except rewound ones. Return True if none is rewound.

        Return False and move nothing if the assignment has ended. Raises `InvariantViolation` if a move is not legal.
        """
        # The partition's next owner reads these records again: late answers for them do not count.
        if not self.assignment.live:
            return False
        stages, of, count = self.stages, MAY_COME_FROM[stage], end - first
        before = stages[first:end]
        # The fast path: all rows come from one stage.
        if before.count(before[0]) == count and before[0] in of:
            stages[first:end] = bytes((stage,)) * count
            return True
        whole = True
        for index in range(first, end):
            if stages[index] in of:
                stages[index] = stage
            elif stages[index] == REWOUND:
                whole = False  # it is read again, as a row of another block
            else:
                where, came_from = self.assignment.tp, RecordStage(stages[index])
                # Settling twice may mean that an offset was committed too early, so it has its own message.
                if stage in SETTLED_AS.values() and came_from >= RecordStage.DELIVERED:
                    raise bug(f"a record of {where} was settled twice")
                raise bug(f"a record of {where} went from {came_from.name} to {stage.name}")
        return whole

    # -- reading rows

    def record(self, index: int) -> Record:
        """Return an open record of this block."""
        record = self.records[index]
        if record is None:
            raise bug("a settled record was asked for again")
        return record

    def start(self, index: int) -> int:
        """Return where the body of this row begins in the page."""
        return self.ends[index - 1] if index else 0

    def body(self, index: int) -> bytes:
        """Return the event's JSON."""
        start = self.start(index)
        return bytes(self.page[start : max(start, self.ends[index] - 1)])

    def account(self, index: int) -> str:
        """Return the ad account of this row's event."""
        return self.kinds[self.kind_numbers[index]].account

    def section(self, index: int) -> int:
        """Return the number of the section that this row belongs to; 0: none."""
        return self.sections[index] if self.sections else 0

    def put_section(self, index: int, number: int) -> None:
        """Set the section of a row whose record waited and has been read now."""
        if not self.sections:
            self.sections = bytearray(len(self.offsets))
        self.sections[index] = number

    def lowest(self) -> int:
        """Return the lowest open row; -1: none is open."""
        found = _OPEN_RUN.search(self.stages)
        return -1 if found is None else found.start()

    def open_runs(self) -> Iterator[tuple[int, int | None]]:
        """Yield where each run of open records begins, and where the settled record after it is (None: there is
        none)."""
        count = bisect_left(self.offsets, self.end)
        for run in _OPEN_RUN.finditer(self.stages, 0, count) if self.open else ():
            yield self.offsets[run.start()], self.offsets[run.end()] if run.end() < count else None

    # -- changing rows

    def insert(self, rows: Mapping[int, int], columns: Columns) -> None:
        """Enter records that waited and have been read: row `rows[index]` of `columns` is the event at `index`."""
        kinds = [*columns.kinds]
        # The whole page is written again, because bodies stand in the order of the rows.
        page, before = bytearray(), 0
        self.keys = _with_keys(self.keys, columns.keys, rows)
        if columns.earlier_keys:
            self.earlier_keys = _with_keys(
                self.earlier_keys or bytes(len(self.keys)), columns.earlier_keys, rows
            )
        for index, end in enumerate(self.ends):
            row = rows.get(index)
            if row is None:
                page += self.page[before:end]
            else:
                page += columns.body(row)
                self.times[index], self.marks[index] = columns.times[row], columns.marks[row]
                self.values[index] = columns.values[row]
                kind = kinds[columns.kind_numbers[row]]
                if kind not in self.kinds:
                    self.kinds.append(kind)
                self.kind_numbers[index] = self.kinds.index(kind)
            before, self.ends[index] = end, len(page)
        self.held += len(page) - len(self.page)
        self.page = bytes(page)

    def mark(self, first: int, end: int, mark: int) -> None:
        """Add a mark to the rows from `first` to before `end`."""
        self.marks[first:end] = self.marks[first:end].translate(_with_mark(mark))

    def settled(self, first: int, end: int) -> int:
        """Drop the data of the rows from `first` to before `end`, which are final now. Return the bytes freed."""
        before = self.held
        # Records are needed only for dead letters, so they are dropped at once.
        self.records[first:end] = [None] * (end - first)
        self.held -= sum(self.sizes[first:end])
        self.open -= end - first
        self._dead += self.ends[end - 1] - self.start(first)
        self._drop_what_is_dead()
        return before - self.held

    def release_from(self, offset: int) -> tuple[int, int]:
        """Release the open rows from `offset` on, because the log is read again from there.

        Return how many rows these are, and how many bytes are freed.
        """
        released, before = 0, self.held
        for index in range(bisect_left(self.offsets, offset), len(self.offsets)):
            stage = self.stages[index]
            if stage not in MAY_COME_FROM[RecordStage.REWOUND]:
                continue
            self.stages[index] = REWOUND
            self.held -= self.sizes[index]
            released += 1
            # Its body masks what the answer to its call echoes; and if it is delivered, it still gets its receipt.
            if stage in (RecordStage.IN_FLIGHT, RecordStage.RECEIPTING):
                self.marks[index] |= _IN_CALL
            else:
                self.records[index] = None
                self._dead += self.ends[index] - self.start(index)
        self._cut = self._cut or released > 0
        self.open -= released
        self._drop_what_is_dead()
        return released, before - self.held

    def pack(self) -> None:
        """Keep only where the block begins and ends: all its records are settled, and ones before it may wait
        for hours.

        Its stages stay, so that settling one of its rows twice is still detected.
        """
        if not self._cut:
            self.records, self.offsets, self.sizes = [], array("q"), array("q")

    def _drop_what_is_dead(self) -> None:
        """Drop all columns with the last open row; before that, bodies of settled rows once they are a quarter."""
        if not self.open:
            self.held = 0
            # Answers to calls with rewound rows still need bodies, to mask what they echo.
            if not self._cut:
                self.page, self.keys, self.earlier_keys = b"", b"", b""
                self.ends, self.times, self.values = array("q"), array("q"), array("q")
                self.marks, self.kind_numbers, self.sections = bytearray(), bytearray(), bytearray()
        # Copied once a quarter is unused: seldom enough to cost little, often enough to waste little memory.
        elif 4 * self._dead > len(self.page):
            page, before = bytearray(), 0
            for index, end in enumerate(self.ends):
                if self.stages[index] < RecordStage.DELIVERED or self.marks[index] & _IN_CALL:
                    page += self.page[before:end]
                before, self.ends[index] = end, len(page)
            self.held += len(page) - len(self.page)
            self.page, self._dead = bytes(page), 0


@cache
def _with_mark(mark: int) -> bytes:
    """Return the table for `bytes.translate` that adds this mark."""
    return bytes(marks | mark for marks in range(256))


def settled_bounds(blocks: Iterable[Block], base: int) -> list[int]:
    """Return where settled runs above `base`, the lowest open offset, begin and end, alternately (see `OffsetMap`).

    Offsets between two blocks have no records, and belong to the run before them.
    """
    bounds: list[int] = []
    settled_from: int | None = None
    end = base
    for block in blocks:
        if settled_from is None:
            settled_from = max(base, block.first_offset)
        for begin, after in block.open_runs():
            if settled_from is not None and begin > settled_from:
                bounds += (settled_from, begin)
            settled_from = after
        end = block.end
    if settled_from is not None and settled_from < end:
        bounds += (settled_from, end)
    return bounds


def _with_keys(keys: bytes, read: bytearray, rows: Mapping[int, int]) -> bytes:
    """Return the keys of a block with those of its rows that were read late: `rows[index]` of `read` at `index`."""
    column = bytearray(keys)
    for index, row in rows.items():
        column[KEY_BYTES * index : KEY_BYTES * (index + 1)] = read[KEY_BYTES * row : KEY_BYTES * (row + 1)]
    return bytes(column)


@dataclass(eq=False, slots=True)
class AssignmentState:
    """One partition under one epoch: its records and counts, and whether it is still ours."""

    tp: TopicPartition
    epoch: int
    metadata: MetadataWriter
    start: int | None
    start_leader_epoch: int | None = None
    beginning: int | None = None
    """Where the log began when it was assigned, if reading starts there; None: not known."""
    inherited: OffsetMap | None = None
    """Offsets from `start` on that were settled before this assignment and are not read again yet."""
    topic_id: str | None = None
    """The topic's id, under which the offsets mean something; None: the brokers do not say."""
    proven: bool = True
    """False after the process was away: the group may have given the partition to another member since."""
    other_destination: bool = False
    """True if the offset before its start was committed for another destination."""
    differs: tuple[str, ...] = ()
    """In what the member that committed it sends by other settings (`model.differing`)."""
    # False once the assignment has ended: with this one flag nothing in its blocks can be settled any more.
    live: bool = field(default=True, init=False)
    # True while the partition is drained: no new work begins; events in flight still settle.
    draining: bool = field(default=False, init=False)
    # False while what may be committed is what was committed last: there may be thousands of these.
    changed: bool = field(default=True, init=False)
    read: int = field(default=0, init=False)
    open: int = field(default=0, init=False)
    open_bytes: int = field(default=0, init=False)
    counts: Counter[Disposition] = field(default_factory=Counter, init=False)
    blocks: deque[Block] = field(default_factory=deque)
    last_seen: int = -1
    fetched_to: int = 0
    """The offset after the last record fetched; records between `position` and this offset are held."""
    last_timestamp: int = -1
    """Kafka timestamp (milliseconds) of the record at `last_seen`; -1 while not known."""
    next_offset: int | None = None
    next_leader_epoch: int | None = None
    committed: Position | None = None
    log: LogFacts = field(default_factory=LogFacts, init=False)
    _pack_at: int = 16
    _map_size: int = 0
    # Bytes that metadata could take when it was looked at last.
    _limit: int = -1
    _measure_at: float = -math.inf

    def position(self) -> int | None:
        """Return the offset after the last record read, or where reading starts."""
        return self.last_seen + 1 if self.last_seen >= 0 else self.start

    def lowest_open(self) -> tuple[Block, int] | None:
        """Return the lowest open record: its block, and its index there."""
        block = next((one for one in self.blocks if one.open), None) if self.open else None
        return (block, block.lowest()) if block is not None and block.lowest() >= 0 else None

    # -- what is read

    def fetched(self, chunk: Chunk) -> bool:
        """Note how far a fetched chunk reaches. Return True if it begins before the end of an earlier one: the log is
        read again from there."""
        again = chunk.records[0].offset < self.fetched_to
        self.fetched_to = chunk.records[-1].offset + 1
        return again

    def settled_before(self, chunk: Chunk) -> list[int]:
        """Return the indexes of the chunk's records that were settled before this assignment and are passed over.

        A record of a higher leader epoch than any in the map shows that the log was cut since: the map is dropped then.
        """
        inherited = self.inherited
        if inherited is None or not chunk.records:
            return []
        # The log was cut, and the map describes records that are gone.
        if not inherited.holds_for(chunk.leader_epoch):
            self.inherited, self.changed = None, True
            return []
        if chunk.records[0].offset >= inherited.end:
            return []
        return [index for index, record in enumerate(chunk.records) if inherited.settled(record.offset)]

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
        self.compact()
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

    def to_commit(self) -> Position | None:
        """Return the position to commit now; None: it is committed already, or with the partition's release."""
        # With its release, because two commits in flight could overtake each other.
        if self.draining or (self.proven and not self.changed and self._limit == self.metadata.limit):
            return None
        self._limit = self.metadata.limit
        position = self.committable() if self.proven else self.proof()
        if position is not None and (position != self.committed or not self.proven):
            return position
        self.changed = False
        return None

    def proof(self) -> Position | None:
        """Return a position to commit that shows whether the partition is still ours; None: no offset is known yet."""
        return self.committable() or self._beginning()

    def map_share(self, now: float) -> float:
        """Return the share of the full room that the offset map leaves: 1 while it fits in any pattern, 0 when
        it is full.

        1 also where the broker takes no maps: reading on then loses none. Measured only where the window is so long
        that its pattern matters, and then once a second.
        """
        limit = self.metadata.limit
        if not self.blocks or limit <= offset_map.MAX_IDS:
            return 1.0
        window = max(self.last_seen + 1, self.inherited.end if self.inherited is not None else 0)
        if window - self.blocks[0].first_offset <= offset_map.safe_window(limit) // 2:
            return 1.0
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY
            self.committable()
        # Open records may settle in any pattern: one bit each, six to a character.
        free = 1 - (self._map_size + self.open / 6) / limit
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
        text = self.metadata.write(self.tp, next_offset, bounds, highest, self.topic_id)
        self._map_size = len(text)
        return Position(*self.tp, next_offset, leader_epoch, text)

    def compact(self) -> None:
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
        # Records not read again yet: without them in the map, a second restart in a row would send them again.
        rest = self.inherited.from_offset(max(base, self.last_seen + 1))
        if bounds and rest and bounds[-1] == rest[0]:
            return bounds[:-1] + rest[1:], self.inherited.leader_epoch
        return bounds + rest, self.inherited.leader_epoch

    # -- its records

    def track(self, block: Block, timestamp: int) -> None:
        """Add a block of new records. `timestamp`: the last one's."""
        offsets = block.offsets
        # The first record that is not final is the lowest open one only where offsets rise.
        if offsets[0] <= self.last_seen or not rising(offsets):
            raise bug(f"offsets of {self.tp} do not rise after {self.last_seen}")
        # Not only at a commit, because while the lowest record waits no commit may be due. And before the new block is
        # added, because its offsets are still needed, even if all of its records are passed over.
        self.compact()
        self.blocks.append(block)
        self.changed = True
        self.last_seen, self.last_timestamp = offsets[-1], timestamp
        if self.inherited is not None and self.inherited.end <= self.last_seen + 1:
            self.inherited = None
        self.read += block.open
        self.open += block.open
        self.open_bytes += block.held

    def insert(self, block: Block, rows: Mapping[int, int], columns: Columns) -> int:
        """Enter open records that waited and have been read: see `Block.insert`. Return the bytes that they hold."""
        before = block.held
        block.insert(rows, columns)
        self.open_bytes += block.held - before
        return block.held - before

    def count_settled(self, block: Block, first: int, end: int, disposition: Disposition) -> int:
        """Count rows that are final now, and drop their data. Return the bytes freed."""
        count, freed = end - first, block.settled(first, end)
        self.open_bytes -= freed
        self.counts[disposition] += count
        self.changed = True
        self.open -= count
        return freed

    def rewind(self, offset: int) -> tuple[int, int]:
        """Go back to `offset`: see `Ledger.rewind`. Return how many records were released, and how many bytes freed."""
        self.changed = True
        done = [block.release_from(offset) for block in self.blocks]
        released, freed = sum(rows for rows, _ in done), sum(size for _, size in done)
        self.read -= released
        self.open -= released
        self.open_bytes -= freed
        self.blocks = deque(block for block in self.blocks if block.first_offset < offset)
        for block in self.blocks:
            # A block ends where reading goes on, so that the committed offset does not go back to before a gap.
            block.end = min(block.end, offset)
        self.last_seen, self.last_timestamp = offset - 1, -1
        # A commit beyond `offset` was of the log before the cut, as is what is known of its end.
        self.log.cut()
        if self.committed is not None and self.committed.next_offset > offset:
            self.committed = None
        if self.inherited is not None and (self.inherited.leader_epoch is None or offset < (self.start or 0)):
            # Without leader epochs a cut of the log cannot be recognised; an offset before `start` means another log.
            self.inherited = None
        if not self.blocks and (self.next_offset is None or self.next_offset > offset):
            # Reading begins again at `offset`; records before it are settled, or were never ours.
            self.start, self.start_leader_epoch = offset, None
            self.next_offset = self.next_leader_epoch = None
        elif not self.blocks:
            # All records before `offset` are settled, and a commit past the gap before it may be in flight: later
            # commits must not go back before it.
            self.next_offset = offset
        return released, freed

    def end_now(self) -> None:
        """End the assignment: from here on no record of it changes its stage (see `Block.move`)."""
        self.live = False
        self.blocks.clear()

    # -- what is known of it and of its log

    def commit_answered(self, position: Position | None, proves: bool) -> None:
        """Take the answer to a commit: the position that the broker has accepted; None: it was refused. `proves`: it
        shows that the partition is still ours."""
        if position is None:
            self.changed = True
            return
        # A position beyond what was read belongs to a log that was cut since: it is void.
        if position.next_offset <= (self.position() or 0):
            self.committed = position
        self.proven = self.proven or proves

    def topic_id_reported(self, topic_id: str | None) -> None:
        """Take the topic's id as the brokers tell it."""
        if self.topic_id is None and topic_id is not None:
            self.topic_id, self.changed = topic_id, True

    def totals(self) -> Totals:
        """Return this assignment's figures."""
        settled = {one.value: self.counts[one] for one in Disposition}
        return Totals(read=self.read, open=self.open, **settled)

    def off(self) -> int:
        """Return by how many records the counts do not add up."""
        unsettled = self.read - self.counts.total()
        return abs(unsettled - self.open) + abs(sum(map(_OPEN, self.blocks)) - self.open)
