"""The points of the last hour and day: their values, their bounds, and the same from a naive list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.figures.delivered import AGE_BOUNDS, HOUR
from consumer.engine.figures.latency import CallLatency
from consumer.engine.figures.statistics import Statistics
from consumer.web.history import STEPS, History, Point
from tests.engine.building import Core, event
from tests.web.building import UNIX, busy, call_latency, idle, partition, statistics, totals
from tests.web.listening import checked, running

START = 5_000.0
SERIES = [
    "at",
    "settled_per_second",
    "delivered_per_second",
    "duplicates_per_second",
    "dead_lettered_per_second",
    "lag",
    "lag_seconds",
    "age_p50",
    "age_p95",
    "keys",
    "within_hour",
    "age_p99",
    "call_p50",
    "call_p95",
]


def history(*checks: tuple[float, Statistics]) -> list[dict[str, Any]]:
    """The steps of a history that took these snapshots, each with its seconds after the start."""
    one = History()
    for at, snapshot in checks:
        one.add(snapshot, START + at)
    steps: list[dict[str, Any]] = one.document(START, UNIX)["steps"]
    return steps


def points(step: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    """These values of each point of a step."""
    return list(zip(*(step["series"][name] for name in names), strict=True))


# -- what a point says


def test_lag_is_of_all_partitions_where_it_is_known() -> None:
    """The sum of records, the maximum of seconds; None for a member without partitions."""
    known = statistics(partition(0, lag=5), partition(1, lag=7), partition(2, lag=None))
    steps = history((0, known), (10, known), (20, statistics(partition(lag=None))), (30, statistics()))
    assert points(steps[0], "lag") == [(12,), (None,), (None,)]
    everywhere = sum(one.lag or 0 for one in busy().partitions)
    assert points(history((0, busy()), (10, busy()))[0], "lag") == [(everywhere,)]
    late = statistics(
        *(replace(partition(n), lag_seconds=seconds) for n, seconds in enumerate([0.5, 61.5, None]))
    )
    assert points(history((0, late), (10, late))[0], "lag_seconds") == [(61.5,)]


def test_a_peak_between_two_points_is_seen() -> None:
    """Each point has the maximum since the point before: of records and of seconds."""

    def at(records: int | None, seconds: float | None) -> Statistics:
        return statistics(replace(partition(lag=records), lag_seconds=seconds))

    checks = [(float(second), at(3, 0.5)) for second in range(31)]
    checks[4] = (4.0, at(70_000, 2.0))
    checks[7] = (7.0, at(9, 420.0))
    checks[20] = (20.0, at(55, 8.0))
    checks[21] = (21.0, at(None, None))
    steps = history(*checks)
    assert points(steps[0], "at", "lag", "lag_seconds") == [
        (UNIX + 10, 70_000, 420.0),
        (UNIX + 20, 55, 8.0),
        (UNIX + 30, 3, 0.5),
    ]
    gone = history(
        (0, at(3, 0.5)), (3, at(80, 9.0)), (6, statistics()), (10, statistics()), (20, statistics())
    )
    assert points(gone[0], "lag", "lag_seconds") == [(80, 9.0), (None, None)]


def test_the_day_shows_the_worst_lag_that_the_hour_saw() -> None:
    """A peak between two points of the day is not lost."""
    checks = [(10.0 * n, statistics(partition(lag=900 if n == 5 else n))) for n in range(25)]
    assert points(history(*checks)[1], "at", "lag") == [(UNIX + 120, 900), (UNIX + 240, 24)]


def test_a_start_has_no_points() -> None:
    """The first point comes after an interval; every series exists before that."""
    for checks in ([], [(0.0, idle())], [(0.0, idle()), (9.9, idle())]):
        for step in history(*checks):
            assert step["points"] == 0
            assert step["series"] == {name: [] for name in SERIES}
    assert list(Point._fields) == SERIES


def test_a_clock_that_is_set_does_not_tear_the_curves() -> None:
    """Points have the wall-clock time of now minus their real age."""
    one = History()
    for at in (0, 10, 20):
        one.add(idle(), START + at)
    for unix in (UNIX, UNIX - 86_400):
        series = one.document(START + 25, unix)["steps"][0]["series"]
        assert series["at"] == [unix - 15, unix - 5]


# -- partitions that move


def test_moving_partitions_make_no_negative_rates() -> None:
    """Released records were never settled, and settled ones stay settled: with the engine's own figures."""
    core, one, checks = Core(), History(), count()

    def add() -> None:
        one.add(core.statistics(), START + 10 * next(checks))

    core.assign()
    add()
    core.fetch(*(event(f"{n}") for n in range(20)))
    core.deliver()
    add()
    core.fetch(*(event(f"open-{n}") for n in range(5)))
    add()
    core.lose(0)
    add()
    core.assign(epoch=2)
    add()
    core.fetch(*(event(f"again-{n}") for n in range(10)), epoch=2)
    core.deliver()
    add()
    steps = one.document(START, UNIX)["steps"]
    assert points(steps[0], "delivered_per_second") == [(2.0,), (0.0,), (0.0,), (0.0,), (1.0,)]


# -- bounds


def test_it_is_bounded() -> None:
    """Two days of snapshots: only the latest hour and the latest day of points are kept."""
    one, snapshot = History(), idle()
    for at in range(0, 2 * 86_400, 10):
        one.add(snapshot, START + at)
    steps = one.document(START, UNIX)["steps"]
    assert [(step["seconds"], step["points"]) for step in steps] == list(STEPS) == [(10, 360), (120, 720)]
    assert [step["series"]["at"][-1] - step["series"]["at"][0] for step in steps] == [3590, 86_280]
    assert steps[0]["series"]["at"][-1] == UNIX + 2 * 86_400 - 10


# -- against a naive list


class Sample(NamedTuple):
    """What the naive list keeps of a look, and the maximum lag since the one before."""

    at: float
    counts: Sequence[int]
    buckets: Sequence[int]
    lag: int | None
    lag_seconds: float | None
    keys: int
    calls: CallLatency


def naive(readings: Sequence[Sample], seconds: int, maximum: int) -> list[Point]:
    """The same points, from a list of all samples."""
    groups: list[list[Sample]] = [[]]
    for one in readings[1:]:
        groups[-1].append(one)
        ticks = [int((r.at - readings[0].at) // seconds) for r in (readings[readings.index(one) - 1], one)]
        if ticks[0] != ticks[1]:
            groups.append([])
    made, before = [], readings[0]
    for group in groups[:-1]:
        made.append(naive_point(before, group))
        before = group[-1]
    return made[-maximum:]


def naive_point(before: Sample, group: Sequence[Sample]) -> Point:
    """Its ages come from sorting all ages."""
    last = group[-1]
    settled, delivered, duplicates, dead_lettered = [
        round((late - earlier) / (last.at - before.at), 3) if late >= earlier else None
        for earlier, late in zip(before.counts, last.counts, strict=True)
    ]
    bounds = [*map(float, AGE_BOUNDS), None]
    ages = [
        b for b, new, old in zip(bounds, last.buckets, before.buckets, strict=True) for _ in range(new - old)
    ]
    lags = [one.lag for one in group if one.lag is not None]
    late = [one.lag_seconds for one in group if one.lag_seconds is not None]
    within = sum(bound is not None and bound <= HOUR for bound in ages)
    return Point(
        last.at,
        settled,
        delivered,
        duplicates,
        dead_lettered,
        max(lags, default=None),
        max(late, default=None),
        ages[-(-len(ages) // 2) - 1] if ages else None,
        ages[-(-len(ages) * 19 // 20) - 1] if ages else None,
        last.keys,
        int(within / len(ages) * 1e6) / 1e6 if ages else None,
        ages[-(-len(ages) * 99 // 100) - 1] if ages else None,
        last.calls.p50,
        last.calls.p95,
    )


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[float, Statistics]]:
    """Snapshots at irregular times, with growing counts and partitions that come and go."""
    walk, at, delivered, duplicate, ages = [], 0.0, 0, 0, []
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0.5, 1, 9, 10, 10.5, 13, 60, 119, 120, 500]))
        delivered += draw(st.integers(0, 50))
        duplicate = max(0, duplicate + draw(st.integers(-1, 5)))
        ages += draw(st.lists(st.sampled_from([0, 3, 50, 3600, 10**7]), max_size=4))
        lags = draw(st.lists(st.none() | st.integers(0, 99), max_size=3))
        took = draw(st.lists(st.sampled_from([0.02, 7.0]), max_size=2))
        snapshot = statistics(
            *(partition(number, lag=lag) for number, lag in enumerate(lags)),
            ended=totals(delivered=delivered, duplicate=duplicate),
            ages=ages,
            key_store=KeyStoreStatistics(draw(st.integers(0, 9))),
            latency=call_latency(*took),
        )
        walk.append((at, snapshot))
    return walk


@given(walks())
def test_the_same_as_a_naive_list(walk: list[tuple[float, Statistics]]) -> None:
    """All points of both steps equal those of the naive list, however irregular the snapshots."""
    one = History()
    for at, snapshot in walk:
        one.add(snapshot, START + at)
    readings = list(due(walk))
    for step, (seconds, maximum) in zip(one.document(0.0, 0.0)["steps"], STEPS, strict=True):
        expected = naive(readings, seconds, maximum)
        assert [tuple(row) for row in points(step, *SERIES)] == [tuple(each) for each in expected]
        assert all(value is None or value >= 0 for row in points(step, *SERIES) for value in row)


def due(walk: list[tuple[float, Statistics]]) -> Iterator[Sample]:
    """The samples: the first snapshot in each ten seconds, with the maximum lag since the sample before."""
    begun, last, lags, late = walk[0][0], -1, list[int](), list[float]()
    for at, snapshot in walk:
        known = [one.lag for one in snapshot.partitions if one.lag is not None]
        lags += [sum(known)] if known else []
        late += [one.lag_seconds for one in snapshot.partitions if one.lag_seconds is not None]
        if (tick := int((at - begun) // 10)) != last:
            last = tick
            ended = snapshot.totals
            delivered, duplicate, dead_lettered = ended.delivered, ended.duplicate, ended.dead_lettered
            settled = delivered + duplicate + dead_lettered + ended.filtered
            counts = (settled, delivered, duplicate, dead_lettered)
            worst = max(lags, default=None), max(late, default=None)
            yield Sample(
                START + at,
                counts,
                snapshot.freshness.total.buckets,
                *worst,
                snapshot.key_store.keys,
                snapshot.latency,
            )
            lags, late = [], []


# -- over HTTP


async def test_the_server_takes_it_from_the_checks_it_takes_anyway() -> None:
    """/history has points whether or not a page is open; in the JSON that the page expects."""
    async with running(idle, wall=lambda: float(UNIX)) as served:
        await checked(served.shown)
        for _ in range(13):
            served.shown.now += 10
            await checked(served.shown)
        assert served.shown.asked == 0
        status, headers, text = await served.get("/history")
        assert status == 200
        assert headers["Content-Type"] == "application/json"
        fine, coarse = orjson.loads(text)["steps"]
        assert list(fine) == list(coarse) == ["seconds", "points", "series"]
        assert (fine["seconds"], fine["points"]) == (10, 13)
        assert (coarse["seconds"], coarse["points"]) == (120, 1)
        assert list(fine["series"]) == SERIES
        assert fine["series"]["at"] == [UNIX - 120 + 10 * n for n in range(13)]
        assert fine["series"]["keys"] == [1_204_511] * 13
        assert coarse["series"]["at"] == [UNIX - 10]


@pytest.mark.parametrize("broken", [1, 3])
async def test_a_check_without_figures_is_a_gap(broken: int) -> None:
    """Without figures there is no point, and the next one covers the time since the last."""
    async with running(idle, wall=lambda: float(UNIX)) as served:
        await checked(served.shown)
        for step in range(1, 6):
            served.shown.broken = RuntimeError() if step == broken else None
            served.shown.now += 10
            await checked(served.shown)
        series = orjson.loads((await served.get("/history"))[2])["steps"][0]["series"]
        assert series["at"] == [UNIX - 10 * (5 - step) for step in range(1, 6) if step != broken]
        assert set(series["settled_per_second"]) == {0.0}
