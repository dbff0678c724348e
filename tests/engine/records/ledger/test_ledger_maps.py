"""Offset maps in the ledger: what goes into a commit, how little is kept for it, and how much room it leaves."""

from __future__ import annotations

from random import Random

import pytest

from consumer.engine.model import METADATA_BYTES, Disposition, Position
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.stages import RecordStage
from tests.engine.building import TOPIC, Books, bounds_of, read_map, write_map
from tests.engine.records.ledger.test_ledger_restarts import TP, Identity, begin, chunk_of


def reads(ledger: Books, first: int, count: int, *, step: int = 1, leader_epoch: int | None = 7) -> Block:
    """Enter `count` records."""
    state = ledger.get(TP)
    assert state is not None
    return ledger.enter(state, chunk_of([Identity(first + n * step, leader_epoch) for n in range(count)]))


def settle_all(ledger: Books, block: Block) -> None:
    """Settle all open records of a block."""
    for index, stage in enumerate(block.stages):
        if stage < RecordStage.DELIVERED:
            ledger.settle_row(block, index, Disposition.DELIVERED)


# -- what goes into a commit


@pytest.mark.parametrize("commit_start", [False, True])
def test_the_committed_offset_is_out_of_range_and_something_settles(commit_start: bool) -> None:
    """When the log was cut and is read from its beginning, the map has settled runs above the new position."""
    ledger = Books()
    state = ledger.begin(TP, 1, 999, commit_start, 3)
    ledger.rewind(state, 0)  # as the pipeline does when the first record is below the start
    block = reads(ledger, 0, 10)
    ledger.settle_row(block, 5, Disposition.DELIVERED)
    state.committable()
    ledger.settle_row(block, 0, Disposition.DELIVERED)
    position = state.committable()
    assert position is not None
    assert position.next_offset == 1
    assert bounds_of(position) == [5, 6]


# -- how little is kept, and how much room is left


def test_one_open_record_keeps_little_of_what_is_behind_it() -> None:
    """10,000 finished blocks behind an open record are kept as at most 16 blocks, and as one run in the map."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    reads(ledger, 0, 1)
    limit = 0
    for number in range(10_000):
        settle_all(ledger, reads(ledger, 1 + 3 * number, 3, leader_epoch=7 + number // 4_000))
        assert state.committable() is not None
        limit = max(limit, len(state.blocks))
    assert limit <= 16
    position = state.committable()
    assert position is not None
    assert position.next_offset == 0
    found = read_map(position)
    assert found is not None
    assert (list(found.bounds), found.leader_epoch) == ([1, 30_001], 9)
    totals = ledger.totals()
    assert (totals.delivered, totals.open) == (30_000, 1)


def test_finished_spans_keep_their_leader_epoch() -> None:
    """A packed block commits with the leader epoch of the last record before the position."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    first = reads(ledger, 0, 1, leader_epoch=1)
    for number in range(40):
        settle_all(ledger, reads(ledger, 1 + number, 1, leader_epoch=1 + number // 20))
    last = reads(ledger, 41, 2, leader_epoch=3)
    state.committable()
    assert sum(not block.offsets for block in state.blocks) == 2
    settle_all(ledger, first)
    assert state.committable() == Position(TOPIC, 0, 41, 2)
    settle_all(ledger, last)
    assert state.committable() == Position(TOPIC, 0, 43, 3)


def test_a_broker_that_takes_no_maps_gets_none() -> None:
    """With a broker that refuses maps no assignment writes one, and the position waits for the first record."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    block = reads(ledger, 0, 4)
    ledger.settle_row(block, 2, Disposition.DELIVERED)
    assert [one.metadata != "" for one in ledger.to_commit()] == [True]
    ledger.metadata.limit = 0
    assert ledger.to_commit() == []
    ledger.settle_row(block, 0, Disposition.DELIVERED)
    assert ledger.to_commit() == [Position(TOPIC, 0, 1, 7)]
    assert state.map_share(1e9) == 1.0
    later = ledger.begin(TP, 2, 0, False)
    settle_all(ledger, reads(ledger, 0, 1))
    reads(ledger, 1, 1)
    settle_all(ledger, reads(ledger, 2, 1))
    assert later.committable() == Position(TOPIC, 0, 1, 7)


@pytest.mark.parametrize("limit", [0, offset_map.MAX_IDS])
def test_where_no_map_is_taken_none_limits_what_is_read(limit: int) -> None:
    """Without maps the share of room is 1: reading less would save nothing."""
    ledger = Books()
    state = ledger.begin(TP, 1, 0, False)
    ledger.metadata.limit = limit
    block = reads(ledger, 0, 2000)
    for index in range(1, 2000, 2):
        ledger.settle_row(block, index, Disposition.DELIVERED)
    assert state.map_share(1e9) == 1.0


def test_a_map_of_its_own_is_committed_though_the_first_record_waits() -> None:
    """An assignment whose first record is open commits where it began if it has a map, and nothing without one."""
    ledger = Books()
    state = ledger.begin(TP, 1, 3, False, 6)
    block = reads(ledger, 5, 3)
    assert state.committable() is None
    assert state.proof() == Position(TOPIC, 0, 3, 6)
    ledger.settle_row(block, 1, Disposition.DELIVERED)
    position = state.committable()
    assert position is not None
    assert position[:4] == (TOPIC, 0, 3, 6)
    assert state.proof() == position


def test_without_a_committed_offset_reading_began_at_the_first_record() -> None:
    """Without a committed offset reading began at the first record that came, not at the first that settled."""
    ledger = Books()
    state = ledger.begin(TP, 1, None, False)
    assert state.proof() is None
    reads(ledger, 20, 2)
    settle_all(ledger, reads(ledger, 30, 2))
    position = state.committable()
    assert position is not None
    assert position[:4] == (TOPIC, 0, 20, None)
    assert bounds_of(position) == [30, 32]


@pytest.mark.parametrize("waits_every", [0, 2, 1_000_000])
def test_an_ordinary_window_leaves_all_the_room(waits_every: int) -> None:
    """An ordinary window leaves the whole share of room, with any pattern: half open, one open, or none settled."""
    ledger = Books()
    ledger.begin(TP, 1, 0, False)
    block = reads(ledger, 0, offset_map.safe_window(METADATA_BYTES) // 2)
    for index in range(1, len(block.offsets)):
        if waits_every and index % waits_every:
            ledger.settle_row(block, index, Disposition.DELIVERED)
    assert ledger.map_share(1.0) == 1.0


def test_a_long_window_with_a_short_map_leaves_all_the_room() -> None:
    """One record that waits for hours with a short map leaves the whole share."""
    ledger = Books()
    ledger.begin(TP, 1, 0, False)
    reads(ledger, 0, 1)
    for number in range(100):
        settle_all(ledger, reads(ledger, 1 + 1_000 * number, 1_000))
        assert ledger.map_share(float(number)) == 1.0


def test_nothing_open_leaves_all_the_room() -> None:
    """With nothing open an inherited map of any length leaves the whole share: it does not grow."""
    ledger = Books()
    assert ledger.map_share(0.0) == 1.0
    begin(ledger, Position(TOPIC, 0, 0, 7, write_map(0, list(range(1, 200_001)), 7)))
    assert ledger.map_share(0.0) == 1.0


def read_on(max_open: int, burst: int, waiting: float, step: int, seed: int) -> tuple[bool, int, float]:
    """Read as fast as the share allows; `waiting` of the records stay open indefinitely, others settle in bursts.

    Return whether a map was cut, how many records were read, and the lowest share. Reading ends without room.
    """
    random, ledger = Random(seed), Books()
    state = ledger.begin(TP, 1, 0, False)
    loose: list[tuple[Block, int]] = []
    lowest, seen = 1.0, 0
    for turn in range(300):
        share = ledger.map_share(turn * 0.2)
        lowest = min(lowest, share)
        room = min(int(1_000 * share), max_open - ledger.open)
        if room > 0:
            block = reads(ledger, seen * step, room)
            seen += room
            loose += [(block, n) for n in range(room) if (turn or n) and random.random() >= waiting]
        if len(loose) < burst and room > 0:
            continue
        random.shuffle(loose)
        for block, index in loose[len(loose) // 2 :]:
            ledger.settle_row(block, index, Disposition.DELIVERED)
        del loose[len(loose) // 2 :]
        if was_cut(state):
            return True, seen, lowest
        if share < 0.02 and len(loose) < 10:
            break
    return False, seen, lowest


def was_cut(state: AssignmentState) -> bool:
    """Return whether more is settled above the position than its map says."""
    position = state.committable()
    if position is None:
        return False
    found = read_map(position)
    assert found is not None or position.metadata == ""
    bounds, _ = state._settled_above(position.next_offset)
    return bounds != (list(found.bounds) if found is not None else [])


@pytest.mark.parametrize(("waiting", "step"), [(0.05, 1), (0.5, 3)])
@pytest.mark.parametrize("burst", [1, 1_000])
def test_the_share_falls_before_a_map_is_cut(waiting: float, burst: int, step: int) -> None:
    """When some records stay open, reading slows down and stops before a map is cut."""
    cut, seen, lowest = read_on(20_000, burst, waiting, step, seed=7)
    assert not cut
    assert lowest < 0.05
    assert seen > 10_000


@pytest.mark.parametrize(
    ("max_open", "waiting", "step"), [(20_000, 0.1, 1), (20_000, 0.1, 3), (100_000, 0.1, 1)]
)
def test_the_share_leaves_room_for_open_records(max_open: int, waiting: float, step: int) -> None:
    """With as many records open as possible, half of which settle, as after an outage of the API, no map is cut."""
    cut, _, _ = read_on(max_open, max_open, waiting, step, seed=7)
    assert not cut
