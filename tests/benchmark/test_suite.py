"""The suite from end to end, with few events: every figure is made."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from benchmarks import suite
from benchmarks.load import Content
from benchmarks.report import figures_part, machine_before
from benchmarks.running import Paced
from benchmarks.suite import Plan, measure, steps
from benchmarks.systems import Command, Job, Pinstream, Plain, System, Unavailable, WithRedis
from benchmarks.tables import tables
from tests.support.kafka.harness import Kafka

PLAN = Plan(
    events=4_000, warm_up=1_000, runs=1, content=Content(0, partitions=2), seconds=1.5, rates=(0, 200)
)


class Absent(System):
    """A system that is not available."""

    key = "absent"
    name = "absent"
    how = ""
    lacks = ""

    def prepare(self) -> str:
        raise Unavailable("not installed")

    def command(self, job: Job) -> Command:
        raise AssertionError("what is unavailable is not started")


class Broken(Absent):
    """A system that ends at once."""

    key = "broken"
    name = "broken"

    def prepare(self) -> str:
        return "1"

    def command(self, job: Job) -> Command:
        return Command([sys.executable, "-c", "raise SystemExit('no such topic')"], {})


@pytest.mark.slow("the benchmark, from end to end")
@pytest.mark.real_kafka
def test_every_figure_comes_about_and_what_does_not_says_why(kafka: Kafka) -> None:
    """Two systems are measured completely; one that is not available and one that fails are named, with the reason."""
    reported: list[str] = []
    systems = (Pinstream(), Plain(), Absent(), Broken())
    figures = measure(kafka.bootstrap_servers, PLAN, systems, reported.append)
    assert len(reported) <= steps(PLAN, systems)
    assert figures.not_measured["absent"] == "not installed"
    assert "no such topic" in figures.not_measured["broken"]

    part = figures_part(PLAN, figures, machine_before())
    assert part["systems"].keys() == {"pinstream", "plain"}, figures.not_measured
    assert part["plan"]["runs"] == PLAN.runs
    for found in part["systems"].values():
        assert found["cpu_us"] > 0
        assert found["events_per_second"] > 0
        assert 10 < found["peak_mib"] < 1_000
        assert 0 < found["first_delivery"] < 120
        assert 0 <= found["sink_busy"] < 2
        idle, paced = found["rates"]["0"], found["rates"]["200"]
        assert 0 < idle["cpu_ms"] < paced["cpu_ms"] < 1_000
        assert 10 < idle["peak_mib"] <= paced["peak_mib"] < 1_000
        assert 0 < paced["p50_ms"] <= paced["p99_ms"]
        assert "p50_ms" not in idle
    assert all(cost > 0 for cost in part["stages_cpu_us"].values())
    assert "look up and remember its key, in an empty store" in part["stages_cpu_us"]
    assert part["systems"]["pinstream"]["drain"] is not None
    assert part["systems"]["plain"]["drain"] is None
    assert (
        part["systems"]["pinstream"]["disk_bytes_per_key"]
        > part["systems"]["plain"]["disk_bytes_per_key"]
        == 0
    )
    assert 395 < part["open_bytes_per_event"] < 100_000
    assert part["ratio_to_plain"] > 0
    expected = {"rates", "ages", "capacity", "systems", "own", "lacks"}
    assert {table.key for table in tables({"figures": part})} == expected


def test_each_round_begins_with_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems take turns, and the medians are over the rounds."""
    order: list[str] = []

    def paced(system: System, *_: object) -> list[Paced]:
        order.append(system.key)
        return [Paced(100, float(len(order)), None, 1.0, 1.0, 1.0)]

    monkeypatch.setattr(suite, "run_paced", paced)
    plan = replace(PLAN, runs=3, full=False, rates=(100,))
    figures = measure("", plan, (Pinstream(), Plain()), order.append)
    assert [one for one in order if one in ("pinstream", "plain")] == [
        *("pinstream", "plain"),
        *("plain", "pinstream"),
        *("pinstream", "plain"),
    ]
    assert [len(result.paced[100]) for result in figures.results] == [3, 3]
    part = figures_part(plan, figures, machine_before())
    assert part["systems"]["plain"]["rates"]["100"]["cpu_ms"] == figures.results[1].paced[100][1].cpu_ms


@pytest.mark.slow("the benchmark, from end to end")
@pytest.mark.real_kafka
def test_one_rate_alone_is_quick(kafka: Kafka) -> None:
    """Without full batches nothing is filled and no stage is measured; with Redis its server's CPU is told, and a
    system that does not keep up says so."""
    plan = replace(PLAN, runs=1, full=False, rates=(100, 1_000_000), seconds=1.0)
    reported: list[str] = []
    figures = measure(kafka.bootstrap_servers, plan, (WithRedis(),), reported.append)
    assert len(reported) == 1
    part = figures_part(plan, figures, machine_before())
    paced = part["systems"]["redis"]["rates"]
    assert paced.keys() == {"100"}
    assert 0 < paced["100"]["server_cpu_ms"] < paced["100"]["cpu_ms"]
    assert "of 1,000,000 events a second arrived" in figures.not_measured["pinstream, Redis, run 1"]
    assert {table.key for table in tables({"figures": part})} == {"rates", "ages", "capacity", "lacks"}
