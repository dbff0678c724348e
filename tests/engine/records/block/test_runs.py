"""Runs of rows and a block's columns keep their content when divided, cut, read late and settled in any order."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.model import Chunk, Disposition, Record, TopicPartition
from consumer.engine.reading import Columns, Keys, Kind
from consumer.engine.records.block import ROW_BYTES, Block
from consumer.engine.records.runs import Run, cut, each_of, keys_of, kinds_of, move_all, pick, rows_of
from consumer.engine.records.stages import RecordStage
from tests.engine.building import PROPERTY, TOPIC, UNIX, Books

TP = TopicPartition(TOPIC, 0)
ROWS = st.lists(
    st.one_of(st.none(), st.tuples(st.sampled_from("12"), st.integers(2, 90))), min_size=1, max_size=40
)
"""Account and size of the event in each row; None: the row holds no event."""


def body_of(index: int, size: int) -> bytes:
    """Return the JSON of an event, different for each row."""
    return (b"%d" % index).ljust(size, b".")


def columns_of(rows: dict[int, tuple[str, int]], count: int) -> Columns:
    """Return columns with these events."""
    columns = Columns(Keys())
    for index in range(count):
        if index not in rows:
            columns.add(None)
            continue
        account, size = rows[index]
        columns.add_event(
            Kind(account, "checkout", size % 3),
            f"e{index}",
            int(UNIX) + index,
            False,
            body_of(index, size),
            (),
        )
    return columns


def block_of(rows: dict[int, tuple[str, int]], count: int) -> tuple[Books, Block]:
    """Return a ledger and a block of `count` records."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    records = [Record(offset, 0, None, b"v", ()) for offset in range(count)]
    return ledger, ledger.track(state, Chunk(TOPIC, 0, 1, 7, records), [1] * count, columns_of(rows, count))


def check(block: Block, rows: dict[int, tuple[str, int]]) -> None:
    """Check that each of these rows holds what was read."""
    for index, (account, size) in rows.items():
        assert block.body(index) == body_of(index, size)
        assert block.account(index) == account
        assert block.times[index] == UNIX + index
        key = Keys().of(account, "checkout", f"e{index}")
        assert keys_of([Run(block, index, index + 1)]) == key


@PROPERTY
@given(ROWS, st.data())
def test_picked_rows_and_the_others_are_all_rows(
    drawn: list[tuple[str, int] | None], data: st.DataObject
) -> None:
    """Picked rows and the others are all rows, once each and in order; runs are as long as possible; cuts are exact."""
    _, block = block_of({}, len(drawn))
    ends = sorted(data.draw(st.sets(st.integers(1, len(drawn)))) | {len(drawn)})
    runs = [Run(block, first, end) for first, end in zip([0, *ends], ends, strict=False)]
    flags = data.draw(st.lists(st.booleans(), min_size=len(drawn), max_size=len(drawn)))
    picked, others = pick(runs, flags)
    assert [row.first for row in each_of(picked)] == [index for index, flag in enumerate(flags) if flag]
    assert [row.first for row in each_of(others)] == [index for index, flag in enumerate(flags) if not flag]
    pieces = sum(len([*groupby(flags[run.first : run.end])]) for run in runs)
    assert len(picked) + len(others) == pieces
    count = data.draw(st.integers(0, len(drawn)))
    head, rest = cut(runs, count)
    assert rows_of(head) == count
    assert [row.first for row in each_of([*head, *rest])] == [*range(len(drawn))]


@PROPERTY
@given(ROWS)
def test_a_run_goes_to_its_accounts_in_parts(drawn: list[tuple[str, int] | None]) -> None:
    """A run is divided by account without loss: each part has one account, and kinds add up."""
    rows = {index: row or ("1", 5) for index, row in enumerate(drawn)}
    _, block = block_of(rows, len(rows))
    run = Run(block, 0, len(rows))
    parts = run.by_account()
    assert [row.first for row in each_of(part for _, part in parts)] == [*range(len(rows))]
    assert all(rows[row.first][0] == account for account, part in parts for row in each_of([part]))
    assert kinds_of([run]).total() == len(rows)
    assert run.size == sum(size + 1 for _, size in rows.values())


@PROPERTY
@given(ROWS, st.data())
def test_what_is_read_late_stands_where_its_record_does(
    drawn: list[tuple[str, int] | None], data: st.DataObject
) -> None:
    """Events that waited for their schema are inserted at their rows, in any order, and open bytes grow by them."""
    rows = {index: row for index, row in enumerate(drawn) if row is not None}
    late = data.draw(st.permutations([*rows]))[: data.draw(st.integers(0, len(rows)))]
    earlier = {index: row for index, row in rows.items() if index not in late}
    ledger, block = block_of(earlier, len(drawn))
    for at in range(0, len(late), 3):
        some = sorted(late[at : at + 3])
        columns = Columns(Keys())
        for index in some:
            account, size = rows[index]
            columns.add_event(
                Kind(account, "checkout", size % 3),
                f"e{index}",
                int(UNIX) + index,
                False,
                body_of(index, size),
                (),
            )
        ledger.insert(block, {index: row for row, index in enumerate(some)}, columns)
    check(block, rows)
    bodies = sum(size + 1 for _, size in rows.values())
    assert ledger.open_bytes == block.held == len(drawn) * (1 + ROW_BYTES) + bodies


@PROPERTY
@given(ROWS, st.data())
def test_what_is_open_is_whole_while_others_settle(
    drawn: list[tuple[str, int] | None], data: st.DataObject
) -> None:
    """Bodies of settled rows are dropped: at most a quarter of a page is theirs, and at the end none are kept."""
    rows = {index: row or ("1", 5) for index, row in enumerate(drawn)}
    ledger, block = block_of(rows, len(rows))
    order = data.draw(st.permutations([*rows]))
    for settled, index in enumerate(order, start=1):
        block.stages[index] = RecordStage.STORING
        assert ledger.settle([Run(block, index, index + 1)], Disposition.DELIVERED)
        left = {other: rows[other] for other in order[settled:]}
        check(block, left)
        live = sum(size + 1 for _, size in left.values())
        assert 3 * len(block.page) <= 4 * live
        assert (
            ledger.open_bytes
            == block.held
            == (len(left) + len(rows) * ROW_BYTES + len(block.page) if left else 0)
        )


@PROPERTY
@given(ROWS, st.data())
def test_a_call_keeps_its_bodies_though_its_rows_are_released(
    drawn: list[tuple[str, int] | None], data: st.DataObject
) -> None:
    """Bodies of a call in flight are kept though its rows were released, to mask the answer; all others are dropped."""
    rows = {index: row or ("1", 5) for index, row in enumerate(drawn)}
    ledger, block = block_of(rows, len(rows))
    out = data.draw(st.sets(st.sampled_from([*rows])))
    for index in out:
        block.stages[index] = RecordStage.QUEUED
        move_all([Run(block, index, index + 1)], RecordStage.IN_FLIGHT)
    offset = data.draw(st.integers(0, len(rows)))
    state = ledger.get(TP)
    assert state is not None
    assert ledger.rewind(state, offset) == len(rows) - offset
    check(block, {index: rows[index] for index in out} | {index: rows[index] for index in range(offset)})
    assert ledger.open_bytes == block.held
    assert (block.held == 0) == (offset == 0)
