"""Admission by itself: which slice is read next, how much of it fits, and what it hands back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consumer.engine.context import Context
from consumer.engine.intake.admission import SLICE, Admission, Fresh, Level, Waited
from consumer.engine.model import Chunk, Filtered, Instant, Policy, Record, TopicPartition
from consumer.engine.reading import Columns, Kind
from consumer.engine.records.block import ROW_BYTES, AssignmentState
from consumer.engine.records.runs import Run
from tests.engine.building import START, TOPIC, UNIX, Books, chunk, record

BODY = b"{}"
COST = ROW_BYTES + len(b"v") + len(BODY) + 1
"""Bytes that each record of these tests holds once it is read."""


class Reads:
    """Reads each record as an event, or as its verdict by offset."""

    in_two_steps = 0

    def __init__(self, verdicts: dict[int, Any] | None = None) -> None:
        self.verdicts = verdicts or {}

    def read(
        self, records: Sequence[Record | None], now: float, columns: Columns, topic: str, partition: int
    ) -> None:
        for one in records:
            verdict = None if one is None else self.verdicts.get(one.offset)
            if one is None or verdict is not None:
                columns.add(verdict)
            else:
                columns.add_event(Kind("1", "checkout", 0), str(one.offset), int(now), False, BODY, ())


def admission_of(reads: Reads | None = None, **policy: Any) -> tuple[Admission, AssignmentState]:
    """Return an admission and a live assignment."""
    context = Context(Policy(**policy), 0)
    context.now = Instant(START, UNIX)
    return Admission(context, reads or Reads()), Books().begin(TopicPartition(TOPIC, 0), 1, 0, False)


def held(count: int, offset: int = 0) -> Chunk:
    """Return a chunk of records that hold a byte each."""
    return chunk([b"v"] * count, offset=offset)


def level(**more: Any) -> Level:
    """Return a level at which nothing is open, but for `more`."""
    return Level(**{"open": 0, "open_bytes": 0, "counted": 0, "waiting": 0, "waiting_bytes": 0, **more})


def test_a_slice_is_the_first_of_what_is_held_and_goes_when_it_is_taken() -> None:
    """Records are handed out in order, at most a slice at a time, and again until they are taken."""
    admission, state = admission_of()
    assert admission.hold(state, held(SLICE + 10)) == 0
    sizes = []
    while (piece := admission.next(level())) is not None:
        assert isinstance(piece, Fresh)
        assert admission.next(level()) == piece
        sizes.append((piece.chunk.records[0].offset, admission.take(piece, admission.read(piece), level())))
    assert sizes == [(0, SLICE), (SLICE, 10)]
    assert not admission.waits


@pytest.mark.parametrize("fit", [0, 1, 3, 5])
def test_as_many_fit_as_the_budget_has_bytes_for(fit: int) -> None:
    """The budget in bytes is kept to the byte, and the columns are cut to what fits."""
    admission, state = admission_of(max_open_bytes=100 * COST + fit * COST)
    admission.hold(state, held(5))
    full = level(open=100, open_bytes=100 * COST, counted=100)
    piece = admission.next(full)
    assert piece is not None
    columns = admission.read(piece)
    assert admission.take(piece, columns, full) == fit
    assert (len(columns), admission.held) == (fit, 5 - fit)


def test_a_record_larger_than_the_budget_is_taken_when_nothing_is_open() -> None:
    """One alone goes, however large; beside open ones it waits."""
    admission, state = admission_of(max_open_bytes=COST - 1)
    admission.hold(state, held(2))
    piece = admission.next(level())
    assert piece is not None
    assert admission.take(piece, admission.read(piece), level()) == 1
    full = level(open=1, open_bytes=COST, counted=1)
    rest = admission.next(full)
    assert rest is None or admission.take(rest, admission.read(rest), full) == 0


def test_nothing_is_handed_out_behind_the_guard_or_beyond_the_limit() -> None:
    """A guard that has tripped stops all; a limit stops what is not open yet, and filtered records do not count."""
    admission, state = admission_of(Reads({1: Filtered("event_name")}), max_records=3)
    admission.hold(state, held(6))
    assert admission.next(level(stopped=True)) is None
    assert admission.next(level(counted=3)) is None
    piece = admission.next(level())
    assert piece is not None
    assert admission.take(piece, admission.read(piece), level()) == 4


def test_what_has_waited_comes_before_what_is_new() -> None:
    """Open records that have waited are handed out first, as rows of their blocks."""
    admission, state = admission_of()
    books = Books()
    columns = Columns(admission._keys)
    columns.add(None)
    block = books.track(state, held(1), [1], columns)
    admission.hold(state, held(2, offset=1))
    row = Run(block, 0, 1)
    admission.defer([row])
    piece = admission.next(level(open=1))
    assert piece == Waited(TopicPartition(TOPIC, 0), [row], [record(0, b"v")])
    assert admission.take(piece, admission.read(piece), level(open=1)) == 1
    assert isinstance(admission.next(level(open=1)), Fresh)


def test_a_chunk_that_begins_earlier_replaces_what_is_held_from_there_on() -> None:
    """The log is read again from there: what is held of it is forgotten, and counted."""
    admission, state = admission_of()
    admission.hold(state, held(5))
    assert admission.hold(state, held(4, offset=2)) == 3
    assert admission.held == 2 + 4


def test_a_purge_hands_back_what_may_not_be_read() -> None:
    """Held records of a draining partition are forgotten and counted; its deferred rows are handed back."""
    admission, state = admission_of()
    columns = Columns(admission._keys)
    columns.add(None)
    row = Run(Books().track(state, held(1), [1], columns), 0, 1)
    admission.hold(state, held(3, offset=1))
    admission.defer([row])
    assert admission.purge() == ([], 0)
    state.draining = True
    assert admission.purge() == ([row], 3)
    assert not admission.waits
