"""Blocks: the stages of records, runs of open and of settled ones, and what remains of a settled block."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.model import Chunk, Disposition, Record, TopicPartition
from consumer.engine.native import sizes_of
from consumer.engine.native.plain import size_of_headers
from consumer.engine.records.block import ROW_BYTES, Block, settled_bounds
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import MOVES, RecordStage
from consumer.errors import InvariantViolation
from tests.engine.building import PROPERTY, TOPIC, Books

TP = TopicPartition(TOPIC, 0)
ROOT = Path(__file__).resolve().parents[4]

BLOCKS = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8), min_size=1, max_size=6
)
"""Per block its records: the distance of each from the one before it, and whether it is settled."""


def tracked(layout: list[list[tuple[int, bool]]], pack: bool = False) -> tuple[list[Block], dict[int, bool]]:
    """Return blocks of that layout and which offsets are settled; with `pack`, finished blocks are packed."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    blocks: list[Block] = []
    books: dict[int, bool] = {}
    for records in layout:
        offsets: list[int] = []
        for gap, _ in records:
            offsets.append((offsets[-1] if offsets else state.last_seen) + gap)
        block = ledger.enter(
            state, Chunk(TOPIC, 0, 1, 7, [Record(offset, 0, None, b"v", ()) for offset in offsets])
        )
        for index, (offset, (_, settled)) in enumerate(zip(offsets, records, strict=True)):
            books[offset] = settled
            if settled:
                ledger.settle_row(block, index, Disposition.DELIVERED)
        if pack and not block.open:
            block.pack()
        blocks.append(block)
    return blocks, books


@PROPERTY
@given(BLOCKS, st.booleans())
def test_bounds_are_those_of_the_settled_records(layout: list[list[tuple[int, bool]]], pack: bool) -> None:
    """From the lowest open record on, a record lies in a run of the bounds exactly if it is settled."""
    blocks, books = tracked(layout, pack)
    base = min((offset for offset, settled in books.items() if not settled), default=max(books) + 1)
    bounds = settled_bounds(blocks, base)
    assert len(bounds) % 2 == 0
    assert all(before < after for before, after in pairwise(bounds))
    runs = list(zip(bounds[::2], bounds[1::2], strict=True))
    for offset, settled in books.items():
        if offset >= base:
            assert any(begin <= offset < end for begin, end in runs) == settled
    assert not bounds or base < bounds[0] < bounds[-1] <= max(books) + 1


def test_a_gap_between_spans_belongs_to_the_run_before_it() -> None:
    """A gap between blocks belongs to the run before it: no record can come in it, so one run is enough for both."""
    blocks, _ = tracked([[(1, False), (1, True)], [(40, True), (1, False)], [(9, True)]])
    assert settled_bounds(blocks, 0) == [1, 42, 51, 52]


def test_records_above_a_cut_are_in_no_run() -> None:
    """Records above a cut are in no run: they are neither open nor settled."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    records = [Record(offset, 0, None, b"v", ()) for offset in range(6)]
    block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, records))
    for index in (1, 2, 4):
        ledger.settle_row(block, index, Disposition.FILTERED)
    ledger.rewind(state, 4)
    assert [Run(block, index, index + 1).ours for index in range(6)] == [True] * 5 + [False]
    assert settled_bounds(state.blocks, 0) == [1, 3]
    ledger.settle_row(block, 3, Disposition.FILTERED)
    assert settled_bounds(state.blocks, 0) == [1, 4]


def test_records_read_after_a_cut_have_their_own_state() -> None:
    """A block that was cut, with an offset above the cut, does not hide the state of records that come there later."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    for offsets in ((0, 10), (5, 6, 7)):
        if offsets[0] <= state.last_seen:
            ledger.rewind(state, offsets[0])
        block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, [Record(at, 0, None, b"v", ()) for at in offsets]))
    ledger.settle_row(block, 0, Disposition.FILTERED)
    assert settled_bounds(state.blocks, 0) == [5, 6]


def test_a_settled_record_is_not_held() -> None:
    """A settled record's bytes are freed while others of the block are open; asking for it again raises an error."""
    blocks, _ = tracked([[(1, True), (1, False)]])
    block = blocks[0]
    assert block.records[0] is None
    with pytest.raises(InvariantViolation):
        block.record(0)
    assert block.record(1).offset == 1
    assert block.lowest() == 1


def test_records_passed_over_are_settled_from_the_start() -> None:
    """Records that are passed over are settled from the start: not open, without bytes, and not to be settled again."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    records = [Record(offset, 0, b"k", b"v", ()) for offset in range(4)]
    block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, records), [0, 2])
    assert (block.open, state.open, state.read, ledger.passed) == (2, 2, 2, 2)
    assert block.records[0] is block.records[2] is None
    assert state.open_bytes == 4 + 2 * ROW_BYTES
    with pytest.raises(InvariantViolation, match="settled twice"):
        ledger.settle_row(block, 2, Disposition.DELIVERED)


def test_size_is_all_that_a_record_carries() -> None:
    """A record's size is key, value, names and values of headers, and the header objects; a tombstone's value is 0."""
    whole = Record(0, 0, b"12", b"345", (("ab", b"c"), ("d", None)))
    sizes = sizes_of([whole, Record(1, 0, None, None, ()), Record(2, 0, b"1", None, ())])
    assert [*sizes] == [5 + 4 + 2 * 184, 0, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("abc", 3), ("a", 1), ("é" * 3, 0), ("日本", 2), ("🛒🛒", 17), ("n" * 100, 200), ("traceparent", None)],
)
def test_headers_count_what_they_hold(name: str, value: int | None) -> None:
    """Headers count at least the memory that their objects take, and at most 40 % more where no object is shared."""

    def made(count: int) -> tuple[tuple[str, bytes | None], ...]:
        """Return headers as the client makes them, each text and each value a new object."""
        raw = name.encode()
        return tuple((raw.decode(), None if value is None else bytes(bytearray(value))) for _ in range(count))

    made(10)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        headers = made(10_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held, counted = after - before, size_of_headers(headers)
    assert counted >= held
    is_shared = len(name) == 1 or value in (None, 0, 1)  # Python shares these objects
    assert is_shared or counted <= held * 1.4


def test_the_architecture_page_shows_the_table_of_stages() -> None:
    """The architecture page lists each stage with the stages before it, who moves a record, and what a crash means."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    for stage, move in MOVES.items():
        came_from = ", ".join(one.name for one in sorted(move.of))
        assert f"| {stage.name} | {came_from} | {move.by} | {move.after_crash} |" in page
    assert {RecordStage.READ, *MOVES} == set(RecordStage)


@pytest.mark.parametrize("stage", MOVES)
@pytest.mark.parametrize("before", RecordStage)
def test_only_what_the_table_says_moves(stage: RecordStage, before: RecordStage) -> None:
    """A record or a run moves only as the table says; a released one stays released; any other move raises an error."""
    for first, end in ((0, 1), (1, 3), (0, 4)):
        indexes = range(first, end)
        ledger = Books()
        state = ledger.begin(TP, 1, 0, False)
        records = [Record(offset, 0, None, b"v", ()) for offset in range(4)]
        block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, records))
        block.stages[:] = bytes([before]) * 4
        if before in MOVES[stage].of:
            assert block.move(first, end, stage)
        elif before is RecordStage.REWOUND:
            assert not block.move(first, end, stage)
        else:
            with pytest.raises(InvariantViolation, match="please report it"):
                block.move(first, end, stage)
            continue
        expected = before if before is RecordStage.REWOUND else stage
        assert [block.stages[at] == expected for at in indexes] == [True] * len(indexes)
        assert all(block.stages[at] == before for at in {0, 1, 2, 3} - {*indexes})


def test_rows_of_several_stages_move_together() -> None:
    """Each row moves as the table says; a rewound one stays, and the answer says so."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, [Record(at, 0, None, b"v", ()) for at in range(3)]))
    block.stages[:] = bytes([RecordStage.SCHEMA, RecordStage.CLOCK, RecordStage.REWOUND])
    assert block.move(0, 2, RecordStage.ROOM)
    assert not block.move(1, 3, RecordStage.FREED)
    assert [*block.stages] == [RecordStage.ROOM, RecordStage.FREED, RecordStage.REWOUND]


def test_no_record_of_an_ended_assignment_moves() -> None:
    """No record of an ended assignment moves: it belongs to the next owner."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    block = ledger.enter(state, Chunk(TOPIC, 0, 1, 7, [Record(0, 0, None, b"v", ())]))
    ledger.drop(TP)
    assert not block.move(0, 1, RecordStage.STORING)
    assert block.stages[0] == RecordStage.READ
