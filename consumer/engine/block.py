"""Spans: the records of one fetch until all of them are settled, and what is left of them then.

Theory of operation. A settlement marks one byte in its span; the lowest open record is the first unmarked byte of
the first unfinished span. Finished spans behind an unfinished one are packed (`Finished`): one record that waits
for hours must not keep what a million after it needed.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

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

RELEASED = 255
"""Marks a record that is not ours to settle any more although its span is (see `Ledger.rewind`)."""
_PASSED = 254
"""Marks a record that was settled before this assignment: the offset map it came with says so."""
MARK: dict[Disposition, int] = {disposition: n for n, disposition in enumerate(Disposition, start=1)}
OFFLINE, UNCLEAR, COUNTED = 1, 2, 4
"""Marks of a delivery: it happened offline; a call with it has left, and its outcome is not known; it is counted
among those that may be doubled."""
_OPEN_RUN = re.compile(b"\0+")


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
        self.counts = [0] * (len(MARK) + 1)

    @property
    def accepts(self) -> bool:
        """Whether new records may still be taken in and new work begun."""
        return self.live and not self.draining


class Span:
    """Records of one chunk until they are settled. `settled[i]` is 0 while record i is open, else why it is not.

    `costs`: bytes that each record holds in memory. `passed`: those settled before this assignment.
    """

    __slots__ = (
        "assignment",
        "costs",
        "end",
        "first_offset",
        "leader_epoch",
        "numbers",
        "offsets",
        "open",
        "records",
        "settled",
    )

    def __init__(self, assignment: Fence, chunk: Chunk, costs: list[int], passed: Iterable[int]) -> None:
        records = chunk.records
        self.assignment = assignment
        self.records: list[Record | None] = list(records)
        # Arrays, since the last open record of a span keeps them all: a quarter of what lists of numbers take.
        self.offsets = array("q", [record.offset for record in records])
        self.costs = array("q", costs)
        self.settled = bytearray(len(records))
        self.open = len(records)
        self.leader_epoch: int | None = chunk.leader_epoch
        self.first_offset: int = self.offsets[0]
        self.end: int = self.offsets[-1] + 1
        """The offset after the last record, or where the log was cut (see `Ledger.rewind`)."""
        self.numbers: Sequence[int] = ()
        """By index, the places of the records in the guard's sample; see `consumer.engine.guard`."""
        for index in passed:
            self.settled[index] = _PASSED
            self.records[index] = None
            self.costs[index] = 0
            self.open -= 1

    def ours(self, index: int) -> bool:
        """Whether a record is still ours to settle (or was, and is settled)."""
        return self.assignment.live and self.settled[index] != RELEASED

    def record(self, index: int) -> Record:
        """An open record of this span."""
        record = self.records[index]
        if record is None:
            raise InvariantViolation("a settled record was asked for again; please report this")
        return record

    def lowest(self) -> int:
        """The index of the lowest open record of an unfinished span."""
        return self.settled.find(0)

    def open_runs(self) -> Iterator[tuple[int, int | None]]:
        """Where runs of open records begin, and where the settled record after each stands (None: there is none)."""
        count = bisect_left(self.offsets, self.end)
        for run in _OPEN_RUN.finditer(self.settled, 0, count) if self.open else ():
            yield self.offsets[run.start()], self.offsets[run.end()] if run.end() < count else None


class Finished:
    """What is left of finished spans that stand next to each other and have one leader epoch."""

    __slots__ = ("end", "first_offset", "leader_epoch", "open")

    def __init__(self, span: Span | Finished) -> None:
        self.first_offset: int = span.first_offset
        self.end: int = span.end
        self.leader_epoch: int | None = span.leader_epoch
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


def settled_bounds(spans: Iterable[Span | Finished], base: int) -> list[int]:
    """Where settled runs above `base`, the lowest open offset, begin and end, in turns (see `OffsetMap`).

    What lies between two spans holds no records, and belongs to the run before it.
    """
    bounds: list[int] = []
    settled_from: int | None = None
    end = base
    for span in spans:
        if settled_from is None:
            settled_from = max(base, span.first_offset)
        for begin, after in span.open_runs():
            if settled_from is not None and begin > settled_from:
                bounds += (settled_from, begin)
            settled_from = after
        end = span.end
    if settled_from is not None and settled_from < end:
        bounds += (settled_from, end)
    return bounds


@dataclass(slots=True)
class RecordPlace:
    """A record: its span, and its index there."""

    span: Span
    index: int


class Delivery:
    """A record's way to the API: the record (span and index, once it is read), its key, and the serialised event.

    The key is there once it is claimed (`Claims.claim`): only then is it known to whom it goes.
    """

    __slots__ = (
        "account",
        "body",
        "dedup_id",
        "event_time",
        "followers",
        "index",
        "key",
        "marks",
        "name",
        "span",
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
        self.span: Span
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
        return self.span.ours(self.index)

    @property
    def accepted(self) -> bool:
        """Whether new work may begin for it: ours, and not being drained."""
        return self.span.ours(self.index) and not self.span.assignment.draining


def all_accepted(deliveries: Iterable[Delivery]) -> bool:
    """Whether each of these is `accepted`: nearly always so, and told by their few spans."""
    spans = {one.span for one in deliveries}
    return all(span.assignment.accepts and RELEASED not in span.settled for span in spans)


Verdict = Filtered | Rejection | SchemaRef | Early
Prepared = Delivery | Verdict
"""A delivery that has no record yet, or why there is none."""
