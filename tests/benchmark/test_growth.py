"""The growth benchmark, with few events: every curve is made."""

from __future__ import annotations

import pytest

from benchmarks.growth import GrowthPlan, measure_growth
from benchmarks.report import growth_part, machine_before
from benchmarks.tables import tables
from tests.support.kafka.harness import Kafka

PLAN = GrowthPlan(
    keys=(0, 5_000),
    partitions=(3,),
    event_bytes=(1_000,),
    workers=(2,),
    events=12_000,
    warm_up=2_000,
    key_events=12_000,
    rounds=2,
)


@pytest.mark.slow("the growth benchmark, from end to end")
@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_every_curve_comes_about(kafka: Kafka) -> None:
    """One point of each curve with every figure; stores beside an empty one, in turns; workers once each has
    partitions."""
    reported: list[str] = []
    curves = measure_growth(kafka.bootstrap_servers, PLAN, reported.append)
    assert len(reported) == PLAN.steps
    empty = curves["keys"].pop(0)
    for name, points in curves.items():
        [point] = points
        assert "not_measured" not in point, (name, point)
        assert point["cpu_us"] > 0
        assert point["events_per_second"] > 0
        assert 0 < point["first_delivery"] < 120
        assert point["drain"] is not None
        assert 0 <= point["sink_busy"] < 2  # the clock of CPU has ticks of 10 ms
    [store] = curves["keys"]
    assert 16 < store["disk_bytes_per_key"] < 30
    assert 0 < store["opens"] < 30
    assert len(store["cpu_us_runs"]) == len(empty["cpu_us_runs"]) == PLAN.rounds
    assert empty["of_first"] == 1
    assert store["of_first"] == pytest.approx(store["cpu_us"] / empty["cpu_us"])
    curves["keys"].insert(0, empty)
    shown = tables({"growth": growth_part(PLAN, curves, machine_before())})
    assert [table.key for table in shown] == [f"growth-{name}" for name in curves]
    [workers] = [table for table in shown if table.key == "growth-workers"]
    assert workers.columns[-1] == "drain s"
