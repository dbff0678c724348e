"""Admission: which records are held, deferred or sent alone, and what happens to them when their partition goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Record
from consumer.engine.reading import TwoSteps
from consumer.engine.records.block import ROW_BYTES
from tests.engine.building import (
    Core,
    event,
    event_ids,
    of_schema,
    reading,
    ref,
    write_map,
)

BUDGET = 2_000
EMPTY = (
    len(event("a"))
    + len(b'{"event_name":"checkout","event_id":"a","custom_data":{"name":"shirt"}},')
    + ROW_BYTES
)
"""Bytes that the smallest event holds with its JSON."""


def padded(event_id: str, size: int) -> bytes:
    """Return the value of a deliverable record that holds about `size` bytes with its JSON."""
    return event(event_id, pad="x" * max(0, (size - EMPTY) // 2 - 9))


def kind(core: Core) -> None:
    """Answer everything favourably until nothing is open or held; fail if several rounds change nothing."""
    before, idle = (-1, -1), 0
    while core.pipeline.ledger.open or core.pipeline.admission.held:
        while core.has(m.FetchSchema):
            core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
        core.send_all()
        while core.has(m.Send):
            core.accept()
        core.store_keys()
        while core.has(m.StoreDeadLetters):
            core.store_letters()
        now = (core.pipeline.ledger.settlements, core.pipeline.admission.held)
        idle = idle + 1 if now == before else 0
        assert idle < 5, f"{core.pipeline.ledger.open} open and {now[1]} held: nothing moves"
        if idle:
            core.advance(11.0)
        before = now


# -- held records


def tight() -> Core:
    """Return a core with a small budget that sends at once."""
    return reading(max_open_bytes=BUDGET, batch_events=1)


def test_what_does_not_fit_is_held() -> None:
    """Records that exceed the budget are held: not read, not open, and there is no room for a fetch."""
    core = tight()
    core.fetch(*(padded(f"{n}", 600) for n in range(8)))
    totals = core.statistics().totals
    assert (totals.read, totals.open, core.statistics().held) == (3, 3, 5)
    assert BUDGET - 600 < core.pipeline.ledger.open_bytes <= BUDGET
    assert core.pipeline.room() == 0
    core.deliver()
    assert core.statistics().totals.delivered == 8
    assert core.statistics().held == 0
    assert core.committable() == 8
    assert core.pipeline.room() > 0


# -- deferred records


def test_deferred_records_are_read_in_slices_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that waited for their schema are read a few at a time: read, a hostile record grows large."""
    slices: list[list[int]] = []
    read = TwoSteps.read

    def measured(self: TwoSteps, records: Sequence[Record | None], *more: Any) -> None:
        slices.append([len(one.value or b"") for one in records if one is not None])
        read(self, records, *more)

    monkeypatch.setattr("consumer.engine.intake.admission._SLICE_BYTES", 500)
    monkeypatch.setattr(TwoSteps, "read", measured)
    core = reading(
        *(of_schema(f"{n}", "1", pad="x" * 150) for n in range(9)), of_schema("l", "1", pad="x" * 600)
    )
    slices.clear()
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "good"))
    assert sum(map(len, slices)) == 10
    assert all(sum(one) <= 500 or len(one) == 1 for one in slices)


def test_records_with_a_known_schema_use_the_other_half() -> None:
    """Records with a known schema use the other half of the budget, if they come before one that has to wait."""
    core = tight()
    core.fetch(
        *(of_schema(f"{n}", "1", pad="x" * 150) for n in range(3)), *(padded(f"p{n}", 200) for n in range(4))
    )
    assert core.statistics().held == 0
    core.look_up()
    assert [event_ids(core.accept()) for _ in range(4)] == [["p0"], ["p1"], ["p2"], ["p3"]]


def test_a_deferred_event_that_never_fits_goes_when_only_such_are_open() -> None:
    """A deferred event whose JSON does not fit is sent when all open records are deferred or wait for a schema."""
    core = tight()
    core.fetch(*(of_schema(f"{n}", "1", pad="x" * 300) for n in range(2)), of_schema("other", "2"))
    core.fetch(padded("p", 900))
    core.feed(m.SchemaFound(ref("1"), "{}"))
    core.waiting = [one for one in core.waiting if one != m.FetchSchema(ref("1"))]
    seen: list[str] = []
    for _ in range(6):
        core.look_up()
        while core.has(m.Send):
            seen += event_ids(core.accept())
        core.store_keys()
    assert sorted(seen) == ["0", "1", "p"]
    assert core.statistics().totals.open == 1


def half_deferred() -> Core:
    """Return a core with a small event in flight and a deferred one, which has its schema but not enough room."""
    core = tight()
    for number in range(30):  # the core learns how large events are
        core.fetch(padded(f"{number}", 200))
        kind(core)
    core.fetch(padded("p", 300))
    assert core.pipeline.room() > 3
    core.fetch(of_schema("large", "1", pad="x" * 800))
    core.look_up()
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
    assert core.pipeline.admission.deferred == 1
    assert BUDGET - core.pipeline.ledger.open_bytes > 500
    return core


def test_while_one_is_deferred_nothing_else_is_read() -> None:
    """While an event is deferred nothing else is read: smaller events would take its room indefinitely."""
    core = half_deferred()
    assert core.pipeline.room() == 0
    core.fetch(padded("small", 200))
    assert core.statistics().held == 1
    core.deliver_one()
    core.look_up()
    assert event_ids(core.accept()) == ["large"]


def half_parked(*, partition: int) -> Core:
    """Return a core with an event in flight, half of the budget parked in `partition`, and held records behind that."""
    core = tight()
    core.assign(1, epoch=2)
    core.fetch(padded("p", 300))
    core.look_up()
    core.fetch(*(of_schema(f"{n}", "1", pad="x" * 100) for n in range(7)), partition=partition)
    assert core.statistics().held > 0
    return core


def test_records_go_on_at_once_when_their_schema_comes() -> None:
    """When a schema comes, its records go on while other calls are still in flight."""
    core = half_parked(partition=0)
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
    assert core.has(m.LookUpKeys)


def test_held_records_are_read_at_once_when_a_partition_goes() -> None:
    """When a partition with parked records goes, held records behind them are read at once."""
    core = half_parked(partition=1)
    core.fetch(padded("q", 300))
    core.lose(1)
    core.look_up()
    assert [event_ids(core.accept()) for _ in range(2)] == [["p"], ["q"]]


# -- records passed over


def test_records_passed_over_take_no_room() -> None:
    """Records that the offset map passes over are not converted, take no room and do not count as read."""
    core = Core(max_open_bytes=BUDGET, batch_events=1)
    core.assign(start=10, leader_epoch=7, metadata=write_map(10, [12, 400], 7))
    core.fetch(*(padded(f"{n}", 900) for n in range(10, 402)))
    statistics = core.statistics()
    assert (statistics.totals.read, statistics.passed, statistics.held) == (2, 388, 2)
    core.deliver()
    sent = [event_ids(one) for one in core.log if isinstance(one, m.Send)]
    assert sent == [["10"], ["11"], ["400"], ["401"]]
    statistics = core.statistics()
    assert (statistics.totals.read, statistics.passed, statistics.held) == (4, 388, 0)
    assert core.committable() == 402


def test_records_passed_over_behind_one_that_does_not_fit_wait_with_it() -> None:
    """Records to pass over wait behind a record that does not fit; each record is handled once, in order."""
    core = Core(max_open_bytes=BUDGET, batch_events=1)
    core.assign(start=10, leader_epoch=7, metadata=write_map(10, [12, 15], 7))
    core.fetch(*(padded(f"{n}", 1_500) for n in range(10, 17)))
    assert (core.statistics().passed, core.statistics().held) == (0, 6)
    kind(core)
    assert core.statistics().passed == 3
    assert [event_ids(one) for one in core.log if isinstance(one, m.Send)] == [["10"], ["11"], ["15"], ["16"]]


def test_foreign_metadata_is_reported_and_ignored() -> None:
    """Foreign metadata, or a map of another offset, is reported and ignored; empty metadata is not reported."""
    core = Core()
    for partition, metadata in enumerate(("not ours", write_map(11, [12, 13], 7, 1), "")):
        core.assign(partition, epoch=1 + partition, start=10, leader_epoch=7, metadata=metadata)
        core.fetch(*(event(f"{partition}-{n}") for n in range(5)), partition=partition)
    assert core.statistics().totals.read == 15
    assert core.statistics().passed == 0
    assert [one.fields["partition"] for one in core.reports("commit_metadata_ignored")] == [0, 1]
