"""The last hour and day in points: what they say, that they are bounded, and that a naive list says the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, repeat
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.freshness import AGE_BOUNDS, HOUR
from consumer.engine.statistics import Statistics
from consumer.web.history import NO_LAG, STEPS, History, Lag, Point, Sample, current_lag, sample_of
from tests.engine.building import Core, event
from tests.web.building import UNIX, busy, idle, partition, statistics, totals
from tests.web.listening import looked, running

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
]


def history(*looks: tuple[float, Statistics], keys: int | None = None) -> list[dict[str, Any]]:
    """The steps of a history that had these looks, each so many seconds after the start."""
    one = History()
    for at, snapshot in looks:
        one.look(snapshot, START + at, lambda: keys)
    steps: list[dict[str, Any]] = one.document(START, UNIX)["steps"]
    return steps


def points(step: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    """The points of a step, these values of each."""
    return list(zip(*(step["series"][name] for name in names), strict=True))


# -- what a point says


def test_rates_are_what_happened_since_the_point_before() -> None:
    """Divided by the time that it really took, not by the time that it should have."""
    steps = history(
        (0, statistics(partition(delivered=100, duplicate=7, dead_lettered=2))),
        (10, statistics(partition(delivered=600, duplicate=17, dead_lettered=2, filtered=30))),
        (22.5, statistics(partition(delivered=600, duplicate=17, dead_lettered=27, filtered=30))),
    )
    assert points(steps[0], *SERIES[:5]) == [
        (UNIX + 10, 54.0, 50.0, 1.0, 0.0),
        (UNIX + 22.5, 2.0, 0.0, 0.0, 2.0),
    ]


def test_ages_are_of_what_was_delivered_since_the_point_before() -> None:
    """What was delivered earlier says nothing of now; None where nothing was delivered, or it is beyond all buckets."""
    early = [5] * 1000
    steps = history(
        (0, statistics(ages=early)),
        (10, statistics(ages=early + [100] * 9 + [4000])),
        (20, statistics(ages=early + [100] * 9 + [4000])),
        (30, statistics(ages=early + [100] * 9 + [4000] + [10**7])),
    )
    assert points(steps[0], "age_p50", "age_p95", "age_p99") == [
        (105.0, 4500.0, 4500.0),
        (None, None, None),
        (None, None, None),
    ]
    assert points(steps[0], "within_hour") == [(0.9,), (None,), (0.0,)]


def test_lag_is_of_all_partitions_where_it_is_known() -> None:
    """Events in all, seconds of the worst; nothing is known of a member without partitions."""
    known = statistics(partition(0, lag=5), partition(1, lag=7), partition(2, lag=None))
    steps = history((0, known), (10, known), (20, statistics(partition(lag=None))), (30, statistics()))
    assert points(steps[0], "lag") == [(12,), (None,), (None,)]
    assert current_lag(busy().partitions).records == sum(one.lag or 0 for one in busy().partitions)
    late = [replace(partition(n), lag_seconds=seconds) for n, seconds in enumerate([0.5, 61.5, None])]
    assert current_lag(late).seconds == 61.5


def test_a_peak_between_two_points_is_seen() -> None:
    """Each point has the worst that any look saw since the one before: records and seconds, each on its own."""

    def at(records: int | None, seconds: float | None) -> Statistics:
        return statistics(replace(partition(lag=records), lag_seconds=seconds))

    looks = [(float(second), at(3, 0.5)) for second in range(31)]
    looks[4] = (4.0, at(70_000, 2.0))
    looks[7] = (7.0, at(9, 420.0))
    looks[20] = (20.0, at(55, 8.0))
    looks[21] = (21.0, at(None, None))
    steps = history(*looks)
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
    looks = [(10.0 * n, statistics(partition(lag=900 if n == 5 else n))) for n in range(25)]
    assert points(history(*looks)[1], "at", "lag") == [(UNIX + 120, 900), (UNIX + 240, 24)]


def test_keys_are_what_the_key_store_holds() -> None:
    """None if nobody knows."""
    assert points(history((0, idle()), (10, idle()), keys=77)[0], "keys") == [(77,)]
    assert points(history((0, idle()), (10, idle()))[0], "keys") == [(None,)]


def test_a_start_has_no_points() -> None:
    """The first comes when there is a time to speak of; every series is there all the same."""
    for looks in ([], [(0.0, idle())], [(0.0, idle()), (9.9, idle())]):
        for step in history(*looks):
            assert step["points"] == 0
            assert step["series"] == {name: [] for name in SERIES}
    assert list(Point._fields) == SERIES


def test_a_clock_that_is_set_does_not_tear_the_curves() -> None:
    """Points are shown by the wall clock of now, as far back as they really are."""
    one = History()
    for at in (0, 10, 20):
        one.look(idle(), START + at, lambda: None)
    for unix in (UNIX, UNIX - 86_400):
        series = one.document(START + 25, unix)["steps"][0]["series"]
        assert series["at"] == [unix - 15, unix - 5]


# -- partitions that move


def test_moving_partitions_make_no_negative_rates() -> None:
    """What is released was never settled, and what an assignment settled stays settled: with the core's own figures."""
    core, one, looks = Core(), History(), count()

    def look() -> None:
        one.look(core.statistics(), START + 10 * next(looks), lambda: None)

    core.assign()
    look()
    core.fetch(*(event(f"{n}") for n in range(20)))
    core.deliver()
    look()
    core.fetch(*(event(f"open-{n}") for n in range(5)))
    look()
    core.lose(0)
    look()
    core.assign(epoch=2)
    look()
    core.fetch(*(event(f"again-{n}") for n in range(10)), epoch=2)
    core.deliver()
    look()
    steps = one.document(START, UNIX)["steps"]
    assert points(steps[0], "delivered_per_second") == [(2.0,), (0.0,), (0.0,), (0.0,), (1.0,)]


def test_a_count_that_shrinks_has_no_rate() -> None:
    """It cannot be, and if it were, nobody would be shown a negative rate, or a made-up one."""
    steps = history((0, statistics(ended=totals(delivered=9))), (10, statistics(ended=totals(duplicate=2))))
    assert points(steps[0], *SERIES[1:4]) == [(None, None, 0.2)]


# -- bounds


def test_it_is_bounded() -> None:
    """Two days of looks: an hour of the ones, a day of the others, the latest; no more readings than a point has."""
    one, snapshot = History(), idle()
    for at in range(0, 2 * 86_400, 10):
        one.look(snapshot, START + at, lambda: None)
    steps = one.document(START, UNIX)["steps"]
    assert [(step["seconds"], step["points"]) for step in steps] == list(STEPS) == [(10, 360), (120, 720)]
    assert [step["series"]["at"][-1] - step["series"]["at"][0] for step in steps] == [3590, 86_280]
    assert steps[0]["series"]["at"][-1] == UNIX + 2 * 86_400 - 10


def test_more_looks_than_points_cost_nothing() -> None:
    """The key store is asked when a reading is due, not at each look."""
    asked = []
    one = History()
    for tenth in range(1000):
        one.look(idle(), START + tenth / 10, lambda: asked.append(1))
    assert len(asked) == 10


# -- against a naive list


def naive(readings: Sequence[Sample], seconds: int, most: int) -> list[Point]:
    """The same, from a list of all the readings there ever were."""
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
    return made[-most:]


def naive_point(before: Sample, group: Sequence[Sample]) -> Point:
    """By sorting all the ages there were."""
    last = group[-1]
    names = ("settled", "delivered", "duplicates", "dead_lettered")
    settled, delivered, duplicates, dead_lettered = [
        round((getattr(last, name) - getattr(before, name)) / (last.at - before.at), 3)
        if getattr(last, name) >= getattr(before, name)
        else None
        for name in names
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
    )


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[float, Statistics, int | None]]:
    """Looks at irregular times, at counts that grow, with partitions that come and go."""
    walk, at, delivered, duplicate, ages = [], 0.0, 0, 0, []
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0.5, 1, 9, 10, 10.5, 13, 60, 119, 120, 500]))
        delivered += draw(st.integers(0, 50))
        duplicate = max(0, duplicate + draw(st.integers(-1, 5)))
        ages += draw(st.lists(st.sampled_from([0, 3, 50, 3600, 10**7]), max_size=4))
        lags = draw(st.lists(st.none() | st.integers(0, 99), max_size=3))
        snapshot = statistics(
            *(partition(number, lag=lag) for number, lag in enumerate(lags)),
            ended=totals(delivered=delivered, duplicate=duplicate),
            ages=ages,
        )
        walk.append((at, snapshot, draw(st.none() | st.integers(0, 9))))
    return walk


@given(walks())
def test_the_same_as_a_naive_list(walk: list[tuple[float, Statistics, int | None]]) -> None:
    """All points of both steps, however irregular the looks; as the naive list has them."""
    one = History()
    for at, snapshot, keys in walk:
        one.look(snapshot, START + at, repeat(keys).__next__)
    readings = list(due(walk))
    for step, (seconds, most) in zip(one.document(0.0, 0.0)["steps"], STEPS, strict=True):
        expected = naive(readings, seconds, most)
        assert [tuple(row) for row in points(step, *SERIES)] == [tuple(each) for each in expected]
        assert all(value is None or value >= 0 for row in points(step, *SERIES) for value in row)


def due(walk: list[tuple[float, Statistics, int | None]]) -> Iterator[Sample]:
    """The readings that are taken: the first in each ten seconds from the start on, with the worst lag till then."""
    begun, last, seen = walk[0][0], -1, [NO_LAG]
    for at, snapshot, keys in walk:
        seen.append(current_lag(snapshot.partitions))
        if (tick := int((at - begun) // 10)) != last:
            last = tick
            records, seconds = zip(*seen, strict=True)
            worst = Lag(*(max((x for x in one if x is not None), default=None) for one in (records, seconds)))
            yield sample_of(snapshot, START + at, keys, worst)
            seen = [NO_LAG]


# -- over HTTP


async def test_the_server_takes_it_from_the_looks_it_takes_anyway() -> None:
    """/history, sampled whether or not anybody looks; in JSON, of the shape that the page expects."""
    async with running(idle, wall=lambda: float(UNIX), keys=lambda: 1_204_511) as served:
        await looked(served.shown)
        for _ in range(13):
            served.shown.now += 10
            await looked(served.shown)
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
async def test_a_look_without_figures_is_a_gap(broken: int) -> None:
    """Figures that cannot be had leave a point out, and the next one says what happened since the last."""
    async with running(idle, wall=lambda: float(UNIX)) as served:
        await looked(served.shown)
        for step in range(1, 6):
            served.shown.broken = RuntimeError() if step == broken else None
            served.shown.now += 10
            await looked(served.shown)
        series = orjson.loads((await served.get("/history"))[2])["steps"][0]["series"]
        assert series["at"] == [UNIX - 10 * (5 - step) for step in range(1, 6) if step != broken]
        assert set(series["settled_per_second"]) == {0.0}
