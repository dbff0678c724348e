"""Records removed from a log before they were read are reported and counted; other gaps in the log are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.model import Chunk, TopicPartition
from consumer.engine.records.log import removed_unread
from consumer.engine.records.offset_map import OffsetMap
from tests.engine.building import TOPIC, Core, event, record, write_map

P0 = TopicPartition(TOPIC, 0)


def chunk(log_start: int, *offsets: int) -> Chunk:
    """Return a chunk of records at these offsets, in a log that begins at `log_start`."""
    return Chunk(TOPIC, 0, 1, 7, [record(one, event(str(one))) for one in offsets], log_start)


def reported(core: Core) -> list[tuple[object, ...]]:
    """Return each report of removed records: expected offset, beginning of the log, and the most that were removed."""
    reports = core.reports("records_removed_unread")
    assert all(one.level == "error" for one in reports)
    return [(one.fields["expected"], one.fields["beginning"], one.fields["at_most"]) for one in reports]


@pytest.mark.parametrize(
    ("log_start", "expected", "offsets", "removed"),
    [
        (50, 20, (50, 51), 30),
        (45, 20, (50, 51), 25),
        (20, 20, (50, 51), 0),
        (-1, 20, (50, 51), 0),
        (50, None, (50, 51), 0),
        (50, 20, (20, 21, 50), 28),
        (60, 20, (20, 21, 50, 70), 28 + 9),
        (60, 60, (60, 65), 0),
    ],
)
def test_of_each_gap_the_part_below_the_beginning_counts(
    log_start: int, expected: int | None, offsets: tuple[int, ...], removed: int
) -> None:
    """Of each gap, before the records or among them, the part below the log's beginning counts."""
    assert removed_unread(chunk(log_start, *offsets), expected, None) == removed


@given(
    st.lists(st.integers(0, 60), min_size=2, unique=True).map(sorted),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_what_was_settled_before_does_not_count(bounds: list[int], begin: int, end: int) -> None:
    """Counting settled offsets of a range equals counting them one by one."""
    known = OffsetMap(bounds[: len(bounds) // 2 * 2], 7)
    assert known.count(begin, end) == sum(known.settled(one) for one in range(begin, end))


def test_records_removed_while_no_member_read_are_reported() -> None:
    """Records removed while no member read them are reported, without those that the offset map says were settled."""
    core = Core()
    core.assign(start=100, metadata=write_map(100, [110, 150], 7))
    core.feed(m.Fetched([chunk(500, 500, 501)]))
    assert reported(core) == [(100, 500, 360)]
    statistics = core.statistics()
    assert statistics.counters.removed_unread == 360
    assert statistics.totals.read == 2


def test_records_removed_before_a_first_read_are_reported() -> None:
    """Records of a partition without a committed offset count from where its log began when it was assigned; without
    a beginning that is known nothing counts."""
    core = Core()
    core.assign(start=None, beginning=300)
    core.feed(m.Fetched([chunk(2_900, 2_900, 2_901)]))
    assert reported(core) == [(300, 2_900, 2_600)]
    core = Core()
    core.assign(start=None)
    core.feed(m.Fetched([chunk(2_900, 2_900, 2_901)]))
    assert reported(core) == []


def test_a_log_that_was_emptied_before_a_first_read_is_reported_without_a_record() -> None:
    """A log that begins where it ends now is reported although nothing was ever read of it, and once."""
    core = Core()
    core.assign(start=None, beginning=0)
    for _ in range(3):
        core.feed(m.EndOffsets({P0: 2_700}, begins={P0: 2_700}))
    core.feed(m.Fetched([chunk(2_700, 2_700)]))
    assert reported(core) == [(0, 2_700, 2_700)]


def test_records_removed_under_a_running_member_are_reported_once() -> None:
    """Records removed while a member runs are reported once; later gaps are those of transactions."""
    core = Core()
    core.assign(start=0)
    core.feed(m.Fetched([chunk(-1, 0, 1)]))
    core.feed(m.Fetched([chunk(10, 10, 11)]))
    core.feed(m.Fetched([chunk(10, 14)]))
    assert reported(core) == [(2, 10, 8)]


@pytest.mark.parametrize("then", ["nothing", "a record"])
def test_removed_markers_are_not_reported(then: str) -> None:
    """Transaction markers that were read and then removed do not count as records removed unread."""
    core = Core()
    core.assign(start=0)
    core.feed(m.Fetched([chunk(-1, 0, 1)]))
    for _ in range(2):
        core.feed(m.EndOffsets({P0: 3}, {P0: 3}))
    for _ in range(3):
        core.feed(m.EndOffsets({P0: 3}, {P0: 3}, begins={P0: 3}))
    if then == "a record":
        core.feed(m.Fetched([chunk(3, 3)]))
        core.feed(m.Fetched([chunk(9, 9)]))
    assert reported(core) == ([] if then == "nothing" else [(4, 9, 5)])


def test_a_gap_that_the_client_has_skipped_is_reported() -> None:
    """A gap that the client has already skipped is reported with the first record behind it."""
    core = Core()
    core.assign(start=0)
    core.feed(m.Fetched([chunk(-1, 0, 1)]))
    for reached in (2, 2, 11):  # the log is not empty, so nothing is reported yet
        core.feed(m.EndOffsets({P0: 11}, {P0: reached}, begins={P0: 10}))
    assert reported(core) == []
    core.feed(m.Fetched([chunk(10, 10)]))
    assert reported(core) == [(2, 10, 8)]


def test_held_records_count_as_read() -> None:
    """Records that are held count as read when the gap is measured."""
    core = Core(max_open_events=1)
    core.assign(start=0)
    core.feed(m.Fetched([chunk(-1, 0, 1, 2)]))
    assert core.statistics().held == 2
    core.feed(m.Fetched([chunk(2, 3)]))
    core.feed(m.Fetched([chunk(10, 10)]))
    assert reported(core) == [(4, 10, 6)]


def test_a_log_that_was_emptied_is_reported_without_a_record() -> None:
    """An emptied log seen twice is reported without a record; seen once, a fetch may still be on its way."""
    core = Core()
    core.assign(start=5)
    emptied = m.EndOffsets({P0: 40}, {P0: 5}, begins={P0: 40})
    core.feed(emptied)
    assert reported(core) == []
    assert core.statistics().partitions[0].lag == 35
    core.feed(emptied)
    core.feed(emptied)
    assert reported(core) == [(5, 40, 35)]
    assert core.statistics().partitions[0].lag == 0
    core.feed(m.Fetched([chunk(40, 40)]))
    assert len(reported(core)) == 1, "it is not told again with the first record"


def test_a_log_that_was_emptied_behind_records_on_their_way_is_not_reported() -> None:
    """A log that was emptied is not reported when the fetch on its way brings all its records."""
    core = Core()
    core.assign(start=5)
    emptied = m.EndOffsets({P0: 8}, {P0: 5}, begins={P0: 8})
    core.feed(emptied)
    core.feed(m.Fetched([chunk(-1, 5, 6, 7)]))
    core.feed(emptied)
    core.feed(emptied)
    assert reported(core) == []


def test_a_position_that_goes_back_is_counted() -> None:
    """Each position that goes back is counted and logged."""
    core = Core()
    core.assign(start=0)
    for first in (0, 1, 0):
        core.feed(m.Fetched([chunk(-1, first, first + 1, first + 2)]))
    assert core.statistics().counters.positions_went_back == len(core.reports("position_went_back")) == 2
