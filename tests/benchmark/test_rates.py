"""The guard on docs/performance.md, *what a rate takes*: no row is more than 1.5 times off a run.

A row and a run are compared as ratios to the plain consumer, run in this test at that rate: never by a constant, since
machines differ. The systems take turns, and the best turn of each counts, since noise only ever adds. Further turns, up
to four, are only of the rows that are off or not measured, and of the plain consumer beside them. Where the machine is
too busy for the plain consumer to keep up, its highest rate below is what the others are compared with.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.document import FIGURES
from benchmarks.load import Content
from benchmarks.running import RunFailed, run_paced
from benchmarks.systems import Pinstream, Plain, System, WithRedis, WithWorkers
from consumer.conversion.program import COMPILED
from tests.support.kafka.harness import Kafka

FACTOR = 1.5
_SECONDS = 2.5
_MAX_TURNS = 4
_CONTENT = Content(2_000)

Row = tuple[str, int]
"""A system, or the server beside it, and a rate."""
Cost = dict[str, dict[int, float]]
"""CPU a second by system and rate; that of the server beside a system has a name of its own."""


@pytest.mark.slow("measures each rate of the page")
@pytest.mark.real_kafka
@pytest.mark.timeout(600)
@pytest.mark.skipif(COMPILED is None, reason="built without a C compiler")
def test_a_rate_takes_what_the_page_says(kafka: Kafka) -> None:
    """Idle and at each rate of the page: alone, with Redis and its server, and as two workers."""
    documented = _documented(json.loads(FIGURES.read_text("utf-8")))
    best: Cost = {}
    failed: dict[Row, str] = {}
    for _ in range(_MAX_TURNS):
        again = _off(documented, best).keys() | _unmeasured(documented, best)
        for system in (Plain(), Pinstream(), WithRedis(), WithWorkers()):
            rates = {rate for name, rate in again if system.key in ("plain", name.split("'")[0])}
            try:
                for name, rate, cpu in _measured(kafka, system, sorted(rates)) if rates else ():
                    costs = best.setdefault(name, {})
                    costs[rate] = min(cpu, costs.get(rate, math.inf))
                    rates.discard(rate)
            except RunFailed as error:  # on a busy machine one may not keep up in one of the turns
                failed |= {(system.key, rate): str(error) for rate in rates}
        if not _off(documented, best) and not _unmeasured(documented, best):
            break
    print(f"what a rate takes, run to page: {_ratios(documented, best)}; not measured: {failed}")
    assert any(best.get("plain", {})), f"the machine is too busy to measure anything: {failed}"
    assert not _off(documented, best), "times what the page says"
    slower = [row for row in _unmeasured(documented, best) if row[1] in best["plain"]]
    assert not slower, f"the plain consumer kept up, and these did not: {failed}"


def test_the_guard_sees_full_batches_multiplied_by_the_rate() -> None:
    """The page was so once: the cost of an event in a full batch times 1,000. It is found, and no other row with it."""
    figures = json.loads(FIGURES.read_text("utf-8"))
    right = _documented(figures)
    wrong = copy.deepcopy(right)
    wrong["pinstream"][1_000] = figures["figures"]["systems"]["pinstream"]["cpu_us"]
    assert _off(right, right) == {}
    assert _off(wrong, right).keys() == {("pinstream", 1_000)}
    assert len(_unmeasured(right, {})) == sum(map(len, right.values()))


def test_the_guard_needs_no_plain_consumer_at_the_highest_rate() -> None:
    """Where it does not keep up, its row alone is not measured, and the others are still judged."""
    right = _documented(json.loads(FIGURES.read_text("utf-8")))
    highest = max(right["plain"])
    best = copy.deepcopy(right)
    del best["plain"][highest]
    assert (_off(right, best), _unmeasured(right, best)) == ({}, {("plain", highest)})
    best["pinstream"][highest] *= 2
    assert _off(right, best) == {("pinstream", highest): 2.0}


def _measured(kafka: Kafka, system: System, rates: list[int]) -> Iterator[tuple[str, int, float]]:
    for paced in run_paced(system, kafka.bootstrap_servers, _CONTENT, rates, _SECONDS):
        yield system.key, paced.rate, paced.cpu_ms
        if paced.server_cpu_ms is not None:
            yield f"{system.key}'s server", paced.rate, paced.server_cpu_ms


def _documented(figures: dict[str, Any]) -> Cost:
    costs: Cost = {}
    for key in ("plain", "pinstream", "redis", "workers"):
        for rate, paced in figures["figures"]["systems"][key]["rates"].items():
            costs.setdefault(key, {})[int(rate)] = paced["cpu_ms"]
            if "server_cpu_ms" in paced:
                costs.setdefault(f"{key}'s server", {})[int(rate)] = paced["server_cpu_ms"]
    return costs


def _ratios(documented: Cost, best: Cost) -> dict[Row, float]:
    """By row that was measured: how many times what the page says a run took, both beside the plain consumer at that
    rate, or at the highest one below it that was measured."""
    ratios = {}
    for name, costs in documented.items():
        for rate in costs.keys() & best.get(name, {}).keys():
            rulers = [one for one in best.get("plain", {}) if one == rate or 0 < one < rate]
            if rulers:
                run, page = (one[name][rate] / one["plain"][max(rulers)] for one in (best, documented))
                ratios[name, rate] = round(run / page, 2)
    return ratios


def _off(documented: Cost, best: Cost) -> dict[Row, float]:
    ratios = _ratios(documented, best)
    return {row: ratio for row, ratio in ratios.items() if not 1 / FACTOR <= ratio <= FACTOR}


def _unmeasured(documented: Cost, best: Cost) -> set[Row]:
    rows = {(name, rate) for name, costs in documented.items() for rate in costs}
    return rows - _ratios(documented, best).keys()
