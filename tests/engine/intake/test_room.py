"""Room: a replay's pace and its limit. The budgets have tests of their own (`test_admission`, `test_draining`, …)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.commands.replay.options import NOT_MATCHED, UNJUDGED
from consumer.engine import messages as m
from consumer.engine.intake.admission import MAX_FETCH
from tests.engine.building import (
    PROPERTY,
    START,
    UNDECODABLE,
    Core,
    event,
    filtered,
    of_schema,
    reading,
    unconvertible,
    write_map,
)


def not_matched(code: str = NOT_MATCHED) -> bytes:
    """Return the value of a record that ``--where`` omits."""
    return orjson.dumps({"filter": code})


def made(**policy: Any) -> Core:
    """Return a core with a partition that sends at once."""
    return reading(**{"linger": 0.0, **policy})


def gone_on(core: Core) -> int:
    """Return the number of events that are delivered, open or held."""
    totals = core.statistics().totals
    return totals.delivered + totals.open + core.statistics().held


def selected(core: Core) -> int:
    """Return the number of records read that were not filtered."""
    totals = core.statistics().totals
    return totals.read - totals.filtered


# -- the limit


def test_without_a_limit_reading_never_ends() -> None:
    """Without a limit, as in the service, `enough` is never true."""
    core = made()
    core.fetch(*(event(f"{n}") for n in range(2000)))
    assert not core.pipeline.enough()


def test_room_grows_with_what_is_omitted() -> None:
    """When few records are selected, fetches exceed what is left of the limit, so that a replay ends in time."""
    core = made(max_records=10)
    assert core.pipeline.room() == 10
    core.fetch(event("a"), *(not_matched() for _ in range(99)))
    assert 100 < core.pipeline.room() <= MAX_FETCH


def test_records_passed_over_do_not_count() -> None:
    """Records that are passed over are not read and do not count towards the limit."""
    core = Core(max_records=2)
    core.assign(start=0, leader_epoch=7, metadata=write_map(0, [1, 50], 7))
    core.fetch(*(event(f"{n}") for n in range(60)))
    assert (core.statistics().totals.read, core.statistics().passed) == (2, 49)


def test_what_waits_for_its_schema_counts_until_it_is_omitted() -> None:
    """A record that waits for its schema counts towards the limit until it is omitted; then reading goes on."""
    core = made(max_records=2)
    core.fetch(event("a"), orjson.dumps({"filter": NOT_MATCHED, "schema": "1"}), event("b"), event("c"))
    assert (selected(core), core.pipeline.room(), core.pipeline.enough()) == (2, 0, False)
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
    assert (selected(core), core.pipeline.enough()) == (2, True)
    core.deliver()
    assert core.statistics().totals.delivered == 2


VALUE = st.one_of(
    st.integers(0, 99).map(lambda n: event(f"{n}")),
    st.sampled_from(
        [
            not_matched(),
            not_matched(UNJUDGED),
            filtered(),
            None,
            UNDECODABLE,
            unconvertible(),
            of_schema("s", "1"),
            orjson.dumps({"filter": NOT_MATCHED, "schema": "1"}),
        ]
    ),
)


@PROPERTY
@given(
    st.lists(st.lists(VALUE, max_size=30), max_size=6), st.integers(0, 12), st.sampled_from([3, 20, 20_000])
)
def test_the_limit_is_exact_whatever_comes(
    fetches: Sequence[Sequence[bytes | None]], maximum: int, budget: int
) -> None:
    """The limit is never exceeded, and is reached when there are enough records, as a naive count confirms."""
    core = made(max_records=maximum, max_open_events=budget, batch_events=3)
    for values in fetches:
        if values:
            core.fetch(*values)
        assert selected(core) <= maximum
        core.deliver()
        while core.has(m.FetchSchema) or core.has(m.StoreDeadLetters):
            if core.has(m.FetchSchema):
                core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
            else:
                core.store_letters()
            core.deliver()
        assert selected(core) <= maximum
    values = [value for one in fetches for value in one]
    candidates = [one for one in values if one is not None and not one.startswith(b'{"filter":')]
    assert selected(core) == min(maximum, len(candidates))
    assert core.pipeline.enough() == (len(candidates) >= maximum)
    assert not core.statistics().totals.open
    if core.pipeline.enough():
        assert core.pipeline.room() == 0


# -- the pace


def replay(core: Core, seconds: float, values: Any) -> list[tuple[float, int]]:
    """Fetch whatever there is room for, as the shell does; return times and how many events went on by then.

    A fetch takes a millisecond; without room it waits for the next deadline.
    """
    seen, until = [], core.now + seconds
    while core.now < until:
        room = core.pipeline.room()
        if room:
            core.fetch(*(next(values) for _ in range(room)))
            core.deliver()
            core.advance(0.001)
        else:
            deadline = core.pipeline.next_deadline()
            assert deadline is not None
            core.now = min(until, max(deadline, core.now))
            core.tick()
        seen.append((core.now - START, gone_on(core)))
    return seen


def events() -> Any:
    """Yield deliverable values without end."""
    number = 0
    while True:
        number += 1
        yield event(f"{number}")


@pytest.mark.parametrize("rate", [0.5, 1.0, 7.3, 100.0, 1000.0 / 3])
def test_the_pace_is_kept_and_used(rate: float) -> None:
    """Rate x seconds and the burst are never exceeded, and nearly used, with a tick at each deadline alone."""
    core = made(events_per_second=rate)
    seen = replay(core, 20.0, events())
    burst = max(1.0, rate / 10)
    assert all(count <= rate * at + burst + 1e-3 for at, count in seen)
    assert seen[-1][1] >= rate * 18.9 - burst
    assert len(seen) < 20 * 25


def test_the_pace_begins_with_the_work() -> None:
    """The pace counts from the first assignment, so that waiting for partitions brings no burst."""
    core = Core(events_per_second=50.0)
    core.advance(60.0)
    core.assign()
    assert core.pipeline.room() == 5


def test_filtered_records_cost_nothing() -> None:
    """Filtered records cost nothing of the pace: with one event in 20 records, 200 are read for 10 events."""
    core = made(events_per_second=10.0)

    def values() -> Any:
        for value in events():
            yield from (not_matched() for _ in range(19))
            yield value

    replay(core, 10.0, values())
    totals = core.statistics().totals
    assert 90 <= totals.delivered <= 101
    assert totals.filtered > 19 * 85


def test_duplicates_and_dead_letters_cost_nothing_either() -> None:
    """Duplicates and dead letters, which were not sent, cost nothing of the pace."""
    core = made(events_per_second=10.0)
    core.fetch(event("a"))
    core.deliver()
    core.advance(1.0)
    for _ in range(50):
        core.fetch(event("a"), UNDECODABLE)
        core.deliver()
        core.store_letters()
    assert core.pipeline.room() >= 1


def test_an_outage_is_not_made_up_for_in_one_go() -> None:
    """After an outage at most one second of unused pace is made up for."""
    core = made(events_per_second=10.0)
    replay(core, 5.0, events())
    before = gone_on(core)
    core.advance(3600.0)
    assert core.pipeline.room() <= 10
    seen = replay(core, 5.0, events())
    assert seen[-1][1] <= before + 10 + 50 + 1


def test_the_timer_does_not_wait_for_open_events() -> None:
    """Open events limit the room until they are answered: the timer must not look at the clock again and again."""
    core = made(events_per_second=1 - 1e-5)  # two seconds of it are just too little for two events
    core.fetch(event("a"))
    core.advance(1.1)
    deadline = core.pipeline.next_deadline()
    assert core.pipeline.room() == 0
    assert deadline is None or deadline > core.now + 0.01


def test_held_records_count_towards_the_pace() -> None:
    """Held records count towards the pace: they are sent as soon as there is room."""
    core = made(events_per_second=10.0, max_open_events=2, batch_events=1)
    core.fetch(*(event(f"{n}") for n in range(50)))
    core.advance(3.0)
    core.deliver()
    assert core.statistics().held == 0
    assert core.pipeline.room() == 0


@PROPERTY
@given(
    st.floats(0.1, 10_000.0),
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 3), st.booleans()), max_size=25),
)
def test_the_pace_holds_whatever_happens(rate: float, steps: Sequence[tuple[float, int, bool]]) -> None:
    """The pace holds with fetches and answers at any time, duplicates and filtered records; the timer never spins."""
    core = made(events_per_second=rate)
    values, burst = events(), max(1.0, rate / 10)
    for seconds, kind, answer in steps:
        room = min(core.pipeline.room(), 40)
        same = next(values)
        if room:
            core.fetch(*(same if kind == 1 else next(values) for _ in range(room)))
        if kind == 2 and room:
            core.fetch(*(not_matched() for _ in range(room)))
        if answer:
            core.deliver()
        assert gone_on(core) <= rate * (core.now - START) + burst + 1e-3
        core.advance(seconds)
