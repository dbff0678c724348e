"""The block: the records of one chunk of a partition, from reading until all of them are settled; and their stages.

Theory of operation. A block has a column for each property of its records: offset, size, stage, key, body, time, kind,
marks, and the record itself (for dead letters). A record is a row: a block and an index. Neighbours in a block are
handled together as a *run*: a run of healthy records changes stage in one operation, and only a record with a problem
is taken out of it, as a run of one row.

The stage is one byte, and says where a record is on its way. Two rules:

* A record is open until its stage is final. Only the ledger settles a record; a block makes a row final that another
  assignment or another row settles (PASSED, REWOUND). The lowest open record of an assignment is the first byte that is
  not final in its first unfinished block: nothing is committed past that.
* A stage changes only as `MOVES` says; any other change is a bug and raises `InvariantViolation`.

Memory is counted as it is held: the records that are open, the page of bodies, and the other columns until the last
record of the block is settled. A page of which a quarter belongs to settled records is copied into a smaller one.
Finished blocks behind an unfinished one are packed (`Block.pack`): one record that waits for hours must not keep the
memory of a million records after it.

A batch, a call or a write takes a list of runs, of several blocks; its rows are numbered from 0, in order. The
functions at the end join the columns of such runs, divide them, and move them.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import groupby
from operator import attrgetter
from sys import getsizeof
from typing import Final, NamedTuple

from consumer.engine.model import Chunk, Disposition, Record, TopicPartition
from consumer.engine.native import offsets_of
from consumer.engine.reading import KEY_BYTES, UNCLEAR, Columns, Kind
from consumer.errors import bug


class RecordStage(IntEnum):
    """The stage that a record is on. `MOVES` says which change is legal, who makes it and what a crash then means."""

    # Entered in the ledger; it gets its next stage while the same input is handled.
    READ = 0
    # Waits for its writer's schema.
    SCHEMA = 1
    # Waits for its time, which lies ahead, or until the current time is certain.
    CLOCK = 2
    # Its schema or its time has come; waits for room in the budget.
    ROOM = 3
    # Waits for another open record with the same key, which leads.
    FOLLOWING = 4
    # Leads its key; the key store is asked whether it was delivered before.
    LOOKED_UP = 5
    # Leads its key here; another member has the key in flight, so this record waits for the outcome there.
    ELSEWHERE = 6
    # Waits in its account's queue, for its batch or for the next attempt.
    QUEUED = 7
    # In a call that is not answered yet.
    IN_FLIGHT = 8
    # Delivered; its key is being written.
    STORING = 9
    # Its dead letter is being written.
    DEAD_LETTERING = 10
    # No new work begins for it: its partition is being drained, or the guard has tripped.
    FREED = 11
    # The stages from here on are final.
    DELIVERED = 12
    DUPLICATE = 13
    FILTERED = 14
    DEAD_LETTERED = 15
    # Settled before this assignment: the offset map it came with says so.
    PASSED = 16
    # The log was read again from before it: another row settles the record, although its block is still ours.
    REWOUND = 17


class Move(NamedTuple):
    """How a record comes to a stage. `after_crash`: what becomes of a record that was on this stage in a crash."""

    of: Set[RecordStage]
    """The stages that it may come from."""
    by: str
    after_crash: str


_S = RecordStage
_AGAIN = "read again"
# How a record comes to each stage but the first. "After a crash" is where its offset was not committed, and no offset
# map says that it is settled. docs/architecture.md shows this table.
MOVES: Final[Mapping[RecordStage, Move]] = {
    _S.SCHEMA: Move({_S.READ, _S.ROOM}, "intake", _AGAIN),
    _S.CLOCK: Move({_S.READ, _S.ROOM}, "intake", _AGAIN),
    _S.ROOM: Move({_S.SCHEMA, _S.CLOCK}, "intake", _AGAIN),
    _S.FOLLOWING: Move({_S.READ, _S.ROOM}, "intake", f"{_AGAIN}: a claim is in memory only"),
    _S.LOOKED_UP: Move(
        {_S.READ, _S.ROOM, _S.FOLLOWING, _S.QUEUED}, "intake, claims (an heir, a new session)", _AGAIN
    ),
    _S.ELSEWHERE: Move({_S.LOOKED_UP, _S.ELSEWHERE}, "claims", _AGAIN),
    _S.QUEUED: Move(
        {_S.LOOKED_UP, _S.ELSEWHERE, _S.IN_FLIGHT}, "claims, answers (a retry)", f"{_AGAIN}, sent"
    ),
    _S.IN_FLIGHT: Move({_S.QUEUED}, "sending", "read again, sent again under the same event id"),
    _S.STORING: Move({_S.IN_FLIGHT}, "outcomes.delivered", "sent again under the same event id"),
    _S.DEAD_LETTERING: Move(
        {_S.READ, _S.SCHEMA, _S.ROOM, _S.IN_FLIGHT}, "outcomes.dead_letter", "its letter may be written twice"
    ),
    # A delivered event is not freed: its key is being written.
    _S.FREED: Move(
        {one for one in _S if _S.SCHEMA <= one < _S.FREED} - {_S.STORING},
        "claims, and intake or pipeline for what holds no claim",
        f"{_AGAIN}, by the next owner or after the restart",
    ),
    _S.DELIVERED: Move({_S.STORING}, "ledger", "a duplicate: its key is durable (not with `memory:`)"),
    _S.DUPLICATE: Move({_S.LOOKED_UP, _S.ELSEWHERE, _S.FOLLOWING}, "ledger", "a duplicate once more"),
    _S.FILTERED: Move({_S.READ, _S.SCHEMA, _S.ROOM}, "ledger", "filtered once more"),
    _S.DEAD_LETTERED: Move({_S.DEAD_LETTERING}, "ledger", "its letter is written twice"),
    _S.PASSED: Move({_S.READ}, "block, when it is made", "passed over once more"),
    _S.REWOUND: Move({_S(n) for n in range(_S.DELIVERED)}, "ledger.rewind", _AGAIN),
}
REWOUND: Final = int(_S.REWOUND)
# The stage of a record that is settled, by its disposition.
SETTLED_AS: Final = {one: RecordStage[one.name] for one in Disposition}
# By stage, a list: looked up at every move.
_MAY_COME_FROM: Final[list[Set[RecordStage]]] = [
    MOVES[one].of if one in MOVES else set() for one in RecordStage
]
# Stages that are not final; a regular expression, because each commit looks through all blocks of an assignment.
_OPEN_RUN: Final = re.compile(b"[\\0-\\x%02x]+" % RecordStage.FREED)
# Mark of a rewound row that is in a call which is not answered yet.
_IN_CALL: Final = 8
# Mark of a delivered row whose key another member has claimed.
TAKEN_OVER: Final = 16
# For `bytes.translate`: the same marks, and `UNCLEAR`.
AS_UNCLEAR: Final = bytes(marks | UNCLEAR for marks in range(256))


@dataclass(eq=False, slots=True)
class Fence:
    """One partition under one epoch: its name, whether it is still ours, and the sums of its records."""

    tp: TopicPartition
    epoch: int
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


# How much larger than its bytes a page may be: beyond that a copy costs less than the memory, which no budget counts.
_LOOSE: Final = 17 / 16
# Bytes of a row beside its record and its body: four columns of eight bytes, a key of sixteen, and the small columns.
ROW_BYTES: Final = 64


class Block:
    """Records of one chunk until they are settled, in columns of equal length.

    `sizes`: bytes of each record as it was fetched; `ends`: where its body, and the comma behind it, end in `page`;
    `keys`: `KEY_BYTES` each; `earlier_keys`: as many, or none (`reading.Keys`); `times`: unix seconds of its event;
    `marks`: `OFFLINE` and so on; `kind_numbers`: which of `kinds` it is; `sections`: the number of the mapping's
    section, if it has any. A record that is not an event has an empty body.
    """

    def __init__(
        self, assignment: Fence, chunk: Chunk, sizes: Sequence[int], columns: Columns, passed: Iterable[int]
    ) -> None:
        """`columns`: what was read of its records; `passed`: rows that were settled before this assignment."""
        records = chunk.records
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
        self.times = columns.times
        self.marks = columns.marks
        self.kinds: list[Kind] = [*columns.kinds]
        self.kind_numbers = columns.kind_numbers
        self.sections = columns.sections.ljust(len(records), b"\0") if columns.sections else columns.sections
        self.open = len(records)
        self.leader_epoch: int | None = chunk.leader_epoch
        self.first_offset: int = self.offsets[0]
        # The offset after the last record, or where the log was cut (see `Ledger.rewind`).
        self.end: int = self.offsets[-1] + 1
        # By row, its number in the guard's sample; see `consumer.engine.guard`.
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
        stages, of, count = self.stages, _MAY_COME_FROM[stage], end - first
        before = stages[first:end]
        # Nearly always all rows come from one stage.
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

    def runs(self, stage: RecordStage) -> list[Run]:
        """Return all rows on this stage, as runs."""
        found = re.finditer(b"%b+" % re.escape(bytes((stage,))), self.stages)
        return [Run(self, run.start(), run.end()) for run in found]

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
                kind = kinds[columns.kind_numbers[row]]
                if kind not in self.kinds:
                    self.kinds.append(kind)
                self.kind_numbers[index] = self.kinds.index(kind)
            before, self.ends[index] = end, len(page)
        self.held += len(page) - len(self.page)
        self.page = bytes(page)

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
            if stage not in _MAY_COME_FROM[RecordStage.REWOUND]:
                continue
            self.stages[index] = REWOUND
            self.records[index] = None
            self.held -= self.sizes[index]
            released += 1
            if stage == RecordStage.IN_FLIGHT:  # its body masks what the answer to its call echoes
                self.marks[index] |= _IN_CALL
            else:
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
        self.records, self.offsets, self.sizes = [], array("q"), array("q")

    def _drop_what_is_dead(self) -> None:
        """Drop all columns with the last open row; before that, bodies of settled rows once they are a quarter."""
        if not self.open:
            self.held = 0
            # Answers to calls with rewound rows still need bodies, to mask what they echo.
            if not self._cut:
                self.page, self.keys, self.earlier_keys = b"", b"", b""
                self.ends, self.times = array("q"), array("q")
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


class Run(NamedTuple):
    """Rows of a block that stand next to each other, from `first` to before `end`."""

    block: Block
    first: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the bodies, with a comma behind each."""
        return self.block.ends[self.end - 1] - self.block.start(self.first)

    @property
    def ours(self) -> bool:
        """True if all rows are still ours to settle, or were settled while they were."""
        # A rewound record is read again as a row of another block, under the same assignment.
        return self.block.assignment.live and self.block.stages.find(REWOUND, self.first, self.end) < 0

    @property
    def accepted(self) -> bool:
        """True if new work may begin for all rows: they are ours, and their partition is not being drained."""
        return self.ours and not self.block.assignment.draining

    def by_account(self) -> list[tuple[str, Run]]:
        """Return the parts of this run whose events go to one account each."""
        block, first, end = self
        accounts = dict.fromkeys(kind.account for kind in block.kinds)
        # Nearly always.
        if len(accounts) == 1:
            return [(account, self) for account in accounts]
        parts = [(account, [*rows]) for account, rows in groupby(range(first, end), block.account)]
        return [(account, Run(block, rows[0], rows[-1] + 1)) for account, rows in parts]


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


def times_of(runs: Iterable[Run]) -> array[int]:
    """Return the times of the runs' events."""
    times = array("q")
    for block, first, end in runs:
        times += block.times[first:end]
    return times


def kinds_of(runs: Iterable[Run]) -> Counter[tuple[Kind, int]]:
    """Return how many events of each kind and section the runs have; section 0: none."""
    counted: Counter[tuple[Kind, int]] = Counter()
    for block, first, end in runs:
        numbers = block.kind_numbers[first:end]
        if block.sections:
            pairs: Mapping[tuple[int, int], int] = Counter(
                zip(numbers, block.sections[first:end], strict=True)
            )
        else:  # nearly always: then rows are not looked at one by one
            pairs = {(number, 0): numbers.count(number) for number in set(numbers)}
        for (number, section), count in pairs.items():
            counted[block.kinds[number], section] += count
    return counted


def each_of(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield every row as a run of its own."""
    return (Run(block, index, index + 1) for block, first, end in runs for index in range(first, end))


def rows_of(runs: Iterable[Run]) -> int:
    """Return how many rows the runs have."""
    return sum([end - first for _, first, end in runs])


def keys_of(runs: Iterable[Run]) -> bytes:
    """Return the keys of the runs, one after the other."""
    return b"".join([block.keys[KEY_BYTES * first : KEY_BYTES * end] for block, first, end in runs])


def earlier_keys_of(runs: Sequence[Run]) -> bytes:
    """Return the keys of the runs under the earlier tag, one after the other; empty: none has any."""
    if not any(block.earlier_keys for block, _, _ in runs):
        return b""
    # A block that was read when the earlier tag no longer counted has none: no event has the key of zeros.
    columns = [(block.earlier_keys or bytes(len(block.keys)), first, end) for block, first, end in runs]
    return b"".join([keys[KEY_BYTES * first : KEY_BYTES * end] for keys, first, end in columns])


def _with_keys(keys: bytes, read: bytearray, rows: Mapping[int, int]) -> bytes:
    """Return the keys of a block with those of its rows that were read late: `rows[index]` of `read` at `index`."""
    column = bytearray(keys)
    for index, row in rows.items():
        column[KEY_BYTES * index : KEY_BYTES * (index + 1)] = read[KEY_BYTES * row : KEY_BYTES * (row + 1)]
    return bytes(column)


def move_all(runs: Iterable[Run], stage: RecordStage) -> None:
    """Move all runs to a stage; see `Block.move`."""
    for block, first, end in runs:
        block.move(first, end, stage)


def goes_on(row: Run) -> bool:
    """Return True if new work may begin for this row. Otherwise free it: the partition's next owner reads it again."""
    if not row.accepted:
        move_all([row], RecordStage.FREED)
    return row.accepted


def mark_taken_over(runs: Iterable[Run]) -> int:
    """Mark delivered rows whose keys another member has claimed. Return how many were not marked before."""
    newly = 0
    for block, first, end in runs:
        for index in range(first, end):
            newly += not block.marks[index] & TAKEN_OVER
            block.marks[index] |= TAKEN_OVER
    return newly


def pick(runs: Iterable[Run], chosen: Sequence[object]) -> tuple[list[Run], list[Run]]:
    """Divide runs by a flag for each row: return the chosen rows and the others."""
    picked: list[Run] = []
    others: list[Run] = []
    at = 0
    for block, first, end in runs:
        flags = [bool(flag) for flag in chosen[at : at + end - first]]
        at += end - first
        begin = first
        for index in range(first + 1, end + 1):
            if index == end or flags[index - first] != flags[begin - first]:
                (picked if flags[begin - first] else others).append(Run(block, begin, index))
                begin = index
    return picked, others


def divide(
    runs: Sequence[Run], test: Callable[[Run], bool] = attrgetter("accepted")
) -> tuple[Sequence[Run], list[Run]]:
    """Divide runs by a test: return the rows that pass it (by default: for which new work may begin) and the others."""
    if all(map(test, runs)):
        return runs, []
    return pick(runs, [test(row) for row in each_of(runs)])


def cut(runs: Sequence[Run], rows: int) -> tuple[list[Run], list[Run]]:
    """Return the first `rows` rows of the runs, and the others."""
    head: list[Run] = []
    for at, (block, first, end) in enumerate(runs):
        if end - first > rows:
            middle = first + rows
            begun = [Run(block, first, middle)] if rows else []
            return head + begun, [Run(block, middle, end), *runs[at + 1 :]]
        head.append(runs[at])
        rows -= end - first
    return head, []
