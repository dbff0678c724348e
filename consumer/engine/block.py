"""The block: what of one fetch belongs to one partition, from reading until all of it is settled; and its stages.

Theory of operation. A block has a column for each thing that is known of its records: offset, cost in bytes, stage,
account, the record itself (for dead letters). The stage is one byte, and says where a record is on its way. Two rules:

* A record is open until its stage is final, and only the ledger makes it final. The lowest open record of an
  assignment is the first byte that is not final in its first unfinished block: nothing is committed past that.
* A stage changes only as `MOVES` says; any other change is a bug and raises `InvariantViolation`.

Finished blocks behind an unfinished one are packed (`Finished`): one record that waits for hours must not keep what a
million after it needed.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from consumer.engine.model import (
    Chunk,
    Disposition,
    Early,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    TopicPartition,
    Warned,
)
from consumer.errors import InvariantViolation


class RecordStage(IntEnum):
    """Where a record is on its way. `MOVES` says which change is legal, who makes it and what a crash then means."""

    READ = 0
    """Entered in the ledger; what becomes of it is decided before the message is handled."""
    SCHEMA = 1
    """Waits for its writer's schema."""
    CLOCK = 2
    """Waits for its time, which lies ahead, or for certainty of what time it is."""
    ROOM = 3
    """Its schema or its time has come; waits for room in the budget."""
    FOLLOWING = 4
    """Waits for another open record with the same key, which leads."""
    LOOKED_UP = 5
    """Leads its key; the key store is asked whether it was delivered before."""
    QUEUED = 6
    """Waits in its account's queue, for its batch or for the next attempt."""
    IN_FLIGHT = 7
    """In a call that is not answered yet."""
    STORING = 8
    """Delivered; its key is being written."""
    DEAD_LETTERING = 9
    """Its dead letter is being written."""
    FREED = 10
    """Nothing is begun for it any more: its partition is being drained, or the guard has tripped."""
    # What follows is final.
    DELIVERED = 11
    DUPLICATE = 12
    FILTERED = 13
    DEAD_LETTERED = 14
    PASSED = 15
    """Settled before this assignment: the offset map it came with says so."""
    RELEASED = 16
    """The log was read again from before it: not ours to settle any more, although its block is."""


class Move(NamedTuple):
    """How a record comes to a stage. `after_crash`: what becomes of a record that a crash finds there."""

    of: frozenset[RecordStage]
    """The stages that it may come from."""
    by: str
    after_crash: str


_S = RecordStage
_AGAIN = "read again"
MOVES: Final[Mapping[RecordStage, Move]] = {
    _S.SCHEMA: Move(frozenset({_S.READ, _S.ROOM}), "pipeline.set_aside", _AGAIN),
    _S.CLOCK: Move(frozenset({_S.READ, _S.ROOM}), "pipeline.set_aside", _AGAIN),
    _S.ROOM: Move(frozenset({_S.SCHEMA, _S.CLOCK}), "intake.unparked", _AGAIN),
    _S.FOLLOWING: Move(frozenset({_S.READ, _S.ROOM}), "intake", f"{_AGAIN}: a claim is in memory only"),
    _S.LOOKED_UP: Move(frozenset({_S.READ, _S.ROOM, _S.FOLLOWING}), "intake, pipeline (an heir)", _AGAIN),
    _S.QUEUED: Move(
        frozenset({_S.LOOKED_UP, _S.IN_FLIGHT}), "pipeline, answers (a retry)", f"{_AGAIN}, sent"
    ),
    _S.IN_FLIGHT: Move(frozenset({_S.QUEUED}), "sending", "read again, sent again under the same event id"),
    _S.STORING: Move(frozenset({_S.IN_FLIGHT}), "pipeline.delivered", "sent again under the same event id"),
    _S.DEAD_LETTERING: Move(
        frozenset({_S.READ, _S.ROOM, _S.IN_FLIGHT}), "pipeline.dead_letter", "its letter may be written twice"
    ),
    _S.FREED: Move(
        frozenset(
            {
                _S.SCHEMA,
                _S.CLOCK,
                _S.ROOM,
                _S.FOLLOWING,
                _S.LOOKED_UP,
                _S.QUEUED,
                _S.IN_FLIGHT,
                _S.DEAD_LETTERING,
            }
        ),
        "pipeline, whatever held it",
        f"{_AGAIN}, by the next owner or after the restart",
    ),
    _S.DELIVERED: Move(frozenset({_S.STORING}), "ledger", "a duplicate: its key is durable"),
    _S.DUPLICATE: Move(frozenset({_S.LOOKED_UP, _S.FOLLOWING}), "ledger", "a duplicate once more"),
    _S.FILTERED: Move(frozenset({_S.READ, _S.ROOM}), "ledger", "filtered once more"),
    _S.DEAD_LETTERED: Move(frozenset({_S.DEAD_LETTERING}), "ledger", "its letter is written twice"),
    _S.PASSED: Move(frozenset({_S.READ}), "block, when it is made", "passed over once more"),
    _S.RELEASED: Move(frozenset(_S(n) for n in range(_S.DELIVERED)), "ledger.rewind", _AGAIN),
}
"""How a record comes to each stage but the first. "After a crash" is where its offset was not committed, and no offset
map says that it is settled. docs/architecture.md shows this table."""
RELEASED: Final = int(_S.RELEASED)
MARK: dict[Disposition, RecordStage] = {
    Disposition.DELIVERED: _S.DELIVERED,
    Disposition.DUPLICATE: _S.DUPLICATE,
    Disposition.FILTERED: _S.FILTERED,
    Disposition.DEAD_LETTERED: _S.DEAD_LETTERED,
}
_OF: Final = [MOVES[stage].of if stage in MOVES else frozenset() for stage in RecordStage]
OFFLINE, UNCLEAR, COUNTED = 1, 2, 4
"""Marks of a delivery: it happened offline; a call with it has left, and its outcome is not known; it is counted
among those that may be doubled."""
_OPEN_RUN = re.compile(b"[\\0-\\x0a]+")
"""Stages that are not final."""


class Fence:
    """One partition under one epoch: its name, whether it is still ours, and the sums that its records count into."""

    __slots__ = ("counts", "draining", "epoch", "live", "open", "open_bytes", "read", "tp")

    def __init__(self, tp: TopicPartition, epoch: int) -> None:
        self.tp = tp
        self.epoch = epoch
        self.live = True
        self.draining = False
        self.read = 0
        self.open = 0
        self.open_bytes = 0
        self.counts = dict.fromkeys(MARK, 0)

    @property
    def accepts(self) -> bool:
        """Whether new records may still be taken in and new work begun."""
        return self.live and not self.draining


class Block:
    """Records of one chunk until they are settled. `costs`: bytes that each of them holds in memory."""

    __slots__ = (
        "accounts",
        "assignment",
        "costs",
        "end",
        "first_offset",
        "leader_epoch",
        "numbers",
        "offsets",
        "open",
        "records",
        "stages",
    )

    def __init__(self, assignment: Fence, chunk: Chunk, costs: list[int], passed: Iterable[int]) -> None:
        """`passed`: those settled before this assignment."""
        records = chunk.records
        self.assignment = assignment
        self.records: list[Record | None] = list(records)
        # Arrays, since the last open record of a block keeps them all: a quarter of what lists of numbers take.
        self.offsets = array("q", [record.offset for record in records])
        self.costs = array("q", costs)
        self.stages = bytearray(len(records))
        self.accounts: dict[int, str] | str | None = None
        """Where its events go: one account for all, or by index; None while there is none."""
        self.open = len(records)
        self.leader_epoch: int | None = chunk.leader_epoch
        self.first_offset: int = self.offsets[0]
        self.end: int = self.offsets[-1] + 1
        """The offset after the last record, or where the log was cut (see `Ledger.rewind`)."""
        self.numbers: Sequence[int] = ()
        """By index, the places of the records in the guard's sample; see `consumer.engine.guard`."""
        for index in passed:
            self.stages[index] = RecordStage.PASSED
            self.records[index] = None
            self.costs[index] = 0
            self.open -= 1

    def move(self, indexes: Sequence[int], stage: RecordStage) -> bool:
        """Move records, each given once, to a stage; those that are released stay so. True if none is.

        Nothing happens to those of an assignment that has ended. Raises `InvariantViolation` if a move is not legal.
        """
        if not self.assignment.live:
            return False
        stages, of = self.stages, _OF[stage]
        first, count = indexes[0], len(indexes)
        before = stages[first : first + count]
        # Nearly always a run of records that all come from one stage.
        if before.count(before[0]) == count and before[0] in of and indexes == [*range(first, first + count)]:
            stages[first : first + count] = bytes((stage,)) * count
            return True
        whole = True
        for index in indexes:
            if stages[index] in of:
                stages[index] = stage
            elif stages[index] == RELEASED:
                whole = False
            else:
                raise self._illegal(index, stage)
        return whole

    def release(self, index: int) -> bool:
        """The log is read again from before this record: False if it is settled already."""
        if self.stages[index] not in _OF[RecordStage.RELEASED]:
            return False
        self.stages[index] = RELEASED
        return True

    def _illegal(self, index: int, stage: RecordStage) -> InvariantViolation:
        (topic, partition), before = self.assignment.tp, RecordStage(self.stages[index])
        if stage in MARK.values() and before >= RecordStage.DELIVERED:
            return InvariantViolation(
                f"a record of {topic}[{partition}] was settled twice; please report this"
            )
        return InvariantViolation(
            f"a record of {topic}[{partition}] went from {before.name} to {stage.name}; please report this"
        )

    def ours(self, index: int) -> bool:
        """Whether a record is still ours to settle (or was, and is settled)."""
        return self.assignment.live and self.stages[index] != RELEASED

    def record(self, index: int) -> Record:
        """An open record of this block."""
        record = self.records[index]
        if record is None:
            raise InvariantViolation("a settled record was asked for again; please report this")
        return record

    def note_accounts(self, deliveries: Sequence[Delivery]) -> None:
        """These are deliveries of its records."""
        known = self.accounts
        if not isinstance(known, dict):
            accounts = {one.account for one in deliveries}
            if len(accounts) == 1 and (known is None or known in accounts):
                (self.accounts,) = accounts
                return
            known = self.accounts = {} if known is None else dict.fromkeys(range(len(self.stages)), known)
        known.update({one.index: one.account for one in deliveries})

    def account(self, index: int) -> str | None:
        """Where a record's event goes."""
        return self.accounts.get(index) if isinstance(self.accounts, dict) else self.accounts

    def lowest(self) -> int:
        """The index of the lowest open record; -1: none is open."""
        found = _OPEN_RUN.search(self.stages)
        return -1 if found is None else found.start()

    def open_runs(self) -> Iterator[tuple[int, int | None]]:
        """Where runs of open records begin, and where the settled record after each stands (None: there is none)."""
        count = bisect_left(self.offsets, self.end)
        for run in _OPEN_RUN.finditer(self.stages, 0, count) if self.open else ():
            yield self.offsets[run.start()], self.offsets[run.end()] if run.end() < count else None


class Finished:
    """What is left of finished blocks that stand next to each other and have one leader epoch."""

    __slots__ = ("end", "first_offset", "leader_epoch", "open")

    def __init__(self, block: Block | Finished) -> None:
        self.first_offset: int = block.first_offset
        self.end: int = block.end
        self.leader_epoch: int | None = block.leader_epoch
        self.open = 0

    def open_runs(self) -> Iterator[tuple[int, int | None]]:
        """None are."""
        return iter(())


_HEADER = 184
"""Bytes of a header beside its name and value: tuples (64, and 8 for its place in another), text (64), bytes (48)."""
_WIDEST = 4
"""Bytes of a character in a name that is not ASCII, at most."""


def sizes_of(records: Iterable[Record]) -> list[int]:
    """Bytes that each of these fetched records holds in memory.

    The objects around key and value are left aside: some hundred bytes a record, which the budget of open events
    bounds. Headers are counted with theirs, for a record may have a hundred thousand of two bytes each.
    """
    return [
        len(value or b"") + len(key or b"") + (size_of_headers(headers) if headers else 0)
        for _, _, key, value, headers in records
    ]


def size_of_headers(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Bytes that a record's headers hold in memory, objects included: never less than they do."""
    return _HEADER * len(headers) + sum(
        (len(name) if name.isascii() else _WIDEST * len(name)) + len(value or b"") for name, value in headers
    )


def settled_bounds(blocks: Iterable[Block | Finished], base: int) -> list[int]:
    """Where settled runs above `base`, the lowest open offset, begin and end, in turns (see `OffsetMap`).

    What lies between two blocks holds no records, and belongs to the run before it.
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


@dataclass(slots=True)
class RecordPlace:
    """A record: its block, and its index there."""

    block: Block
    index: int


class Delivery:
    """A record's way to the API: the record (block and index, once it is read), its key, and the serialised event.

    The key is there once it is claimed (`Claims.claim`): only then is it known to whom it goes.
    """

    __slots__ = (
        "account",
        "block",
        "body",
        "dedup_id",
        "event_time",
        "followers",
        "index",
        "key",
        "marks",
        "name",
        "warnings",
        "written",
    )

    def __init__(
        self,
        account: str,
        name: str,
        dedup_id: str,
        event_time: int,
        offline: bool,
        body: bytes,
        warnings: tuple[Warned, ...],
        written: int,
    ) -> None:
        """`body`: the event's JSON, all that is kept of its payload; `written`: which parameters are in it
        (`consumer.engine.coverage.BITS`). The others are those of `ConversionEvent`."""
        self.block: Block
        self.index: int
        self.account = account
        self.name = name
        self.dedup_id = dedup_id
        self.key: bytes
        self.body = body
        self.event_time = event_time
        self.marks: int = offline
        """`OFFLINE`, `UNCLEAR`, `COUNTED`."""
        self.warnings = warnings
        self.written = written
        self.followers: list[Delivery] | None = None

    @property
    def offline(self) -> bool:
        """Whether it happened offline."""
        return bool(self.marks & OFFLINE)

    @property
    def live(self) -> bool:
        """Whether its record is still ours to settle."""
        return self.block.ours(self.index)

    @property
    def accepted(self) -> bool:
        """Whether new work may begin for it: ours, and not being drained."""
        return self.block.ours(self.index) and not self.block.assignment.draining


_BLOCK: attrgetter[Block] = attrgetter("block")


def move_all(deliveries: Iterable[Delivery], stage: RecordStage) -> None:
    """Move the records of these; most stand next to each other in few blocks."""
    for block, run in groupby(deliveries, _BLOCK):
        block.move([one.index for one in run], stage)


def all_accepted(deliveries: Iterable[Delivery]) -> bool:
    """Whether each of these is `accepted`: nearly always so, and told by their few blocks."""
    blocks = {one.block for one in deliveries}
    return all(block.assignment.accepts and RELEASED not in block.stages for block in blocks)


Verdict = Filtered | Rejection | SchemaRef | Early
Prepared = Delivery | Verdict
"""A delivery that has no record yet, or why there is none."""
