"""The points of the last hour and day: their values, their bounds, and the same from a naive list."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.figures.delivered import AGE_BOUNDS, HOUR, Ages, FreshnessSnapshot
from consumer.engine.figures.statistics import Statistics
from consumer.web.history import STEPS, History, Point
from consumer.workers.merging import NO_WORKER
from tests.engine.building import Core, event
from tests.web.building import UNIX, call_latency, idle, partition, totals
from tests.web.listening import checked, running

START = 5_000.0
SERIES = [
    "at", "settled_per_second", "delivered_per_second", "duplicates_per_second", "dead_lettered_per_second", "lag",
    "lag_seconds", "age_p50", "age_p95", "keys", "within_hour", "age_p99", "call_p50", "call_p95",
]  # fmt: skip


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


BOUNDS = [*map(float, AGE_BOUNDS), None]
LATENCIES = [call_latency(), call_latency(0.02), call_latency(0.02, 7.0)]
Walk = list[tuple[float, Statistics]]


def naive(walk: Walk, seconds: int, maximum: int) -> list[Point]:
    """The same points, from a list of all snapshots: a piece ends with the first snapshot of another interval."""
    made, piece, before = list[Point](), Walk(), walk[0]
    for earlier, later in pairwise(walk):
        piece.append(later)
        if len({(at - walk[0][0]) // seconds for at, _ in (earlier, later)}) > 1:
            made.append(naive_point(before, piece))
            piece, before = [], later
    return made[-maximum:]


def naive_point(before: tuple[float, Statistics], piece: Walk) -> Point:
    """Its ages come from a list of all ages, its lags from a list of all lags."""
    (then, earlier), (at, last) = before, piece[-1]
    counts = [
        (
            one.totals.read - one.totals.open,
            one.totals.delivered,
            one.totals.duplicate,
            one.totals.dead_lettered,
        )
        for one in (earlier, last)
    ]
    settled, delivered, duplicates, dead_lettered = [
        round((new - old) / (at - then), 3) if new >= old else None for old, new in zip(*counts, strict=True)
    ]
    buckets = [one.freshness.total.buckets for one in (earlier, last)]
    ages = [bound for bound, old, new in zip(BOUNDS, *buckets, strict=True) for _ in range(new - old)]
    lags = [[one.lag for one in seen.partitions if one.lag is not None] for _, seen in piece]
    late = [one.lag_seconds for _, seen in piece for one in seen.partitions if one.lag_seconds is not None]
    within = sum(bound is not None and bound <= HOUR for bound in ages)
    p50, p95, p99 = (ages[-(-len(ages) * share // 100) - 1] if ages else None for share in (50, 95, 99))
    return Point(
        START + at,
        settled,
        delivered,
        duplicates,
        dead_lettered,
        max((sum(known) for known in lags if known), default=None),
        max(late, default=None),
        p50,
        p95,
        last.key_store.keys,
        int(within / len(ages) * 1e6) / 1e6 if ages else None,
        p99,
        last.latency.p50,
        last.latency.p95,
    )


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    """Snapshots at irregular times, with growing counts and partitions that come and go."""
    walk, at, delivered, duplicate, buckets = Walk(), 0.0, 0, 0, [0] * len(BOUNDS)
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0.5, 1, 9, 10, 10.5, 13, 60, 119, 120, 500]))
        delivered += draw(st.integers(0, 50))
        duplicate = max(0, duplicate + draw(st.integers(-1, 5)))
        for bucket in draw(st.lists(st.sampled_from([0, 3, 50, len(BOUNDS) - 1]), max_size=4)):
            buckets[bucket] += 1
        lags = draw(
            st.lists(
                st.tuples(st.none() | st.integers(0, 99), st.sampled_from([None, 0.5, 420.0])), max_size=3
            )
        )
        snapshot = replace(
            NO_WORKER,
            partitions=[replace(partition(lag=lag), lag_seconds=seconds) for lag, seconds in lags],
            totals=totals(delivered=delivered, duplicate=duplicate),
            freshness=FreshnessSnapshot(0.0, Ages(tuple(buckets))),
            key_store=KeyStoreStatistics(draw(st.integers(0, 9))),
            latency=draw(st.sampled_from(LATENCIES)),
        )
        walk.append((at, snapshot))
    return walk


@given(walks())
def test_the_same_as_a_naive_list(walk: Walk) -> None:
    """All points of both steps equal those of the naive list, however irregular the snapshots: lags are the maximum
    since the point before, of all partitions where it is known; a peak in between is seen."""
    one = History()
    for at, snapshot in walk:
        one.add(snapshot, START + at)
    for step, (seconds, maximum) in zip(one.document(0.0, 0.0)["steps"], STEPS, strict=True):
        assert points(step, *SERIES) == [tuple(each) for each in naive(walk, seconds, maximum)]


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
