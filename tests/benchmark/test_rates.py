"""The guard on docs/performance.md, *what a rate takes*: no row is more than 1.5 times off a run.

A row and a run are compared as ratios to the plain consumer, run in this test at that rate: never by a constant, since
machines differ. The systems take turns, and the best turn of each counts, since noise only ever adds. Further turns, up
to four, are only of the rows that are off and of the plain consumer beside them.
"""

from __future__ import annotations

import contextlib
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

Cost = dict[str, dict[int, float]]
"""CPU a second by system and rate; that of the server beside a system has a name of its own."""


@pytest.mark.real_kafka
@pytest.mark.timeout(600)
@pytest.mark.skipif(COMPILED is None, reason="built without a C compiler")
def test_a_rate_takes_what_the_page_says(kafka: Kafka) -> None:
    """Idle and at each rate of the page: alone, with Redis and its server, and as two workers."""
    documented = _documented(json.loads(FIGURES.read_text("utf-8")))
    best: Cost = {}
    wrong = _off(documented, best)
    for _ in range(_MAX_TURNS):
        for system in (Plain(), Pinstream(), WithRedis(), WithWorkers()):
            rates = {rate for name, rate in wrong if system.key in ("plain", name.split("'")[0])}
            with contextlib.suppress(RunFailed):  # on a busy machine one may not keep up in one of the turns
                for name, rate, cpu in _measured(kafka, system, sorted(rates)) if rates else ():
                    costs = best.setdefault(name, {})
                    costs[rate] = min(cpu, costs.get(rate, math.inf))
        wrong = _off(documented, best)
        if not wrong:
            break
    print(f"what a rate takes, run to page: {_ratios(documented, best)}")
    assert not wrong


def test_the_guard_sees_full_batches_multiplied_by_the_rate() -> None:
    """The page was so once: the cost of an event in a full batch times 1,000. It is found, and no other row with it."""
    figures = json.loads(FIGURES.read_text("utf-8"))
    right = _documented(figures)
    wrong = copy.deepcopy(right)
    wrong["pinstream"][1_000] = figures["figures"]["systems"]["pinstream"]["cpu_us"]
    assert _off(right, right) == {}
    assert _off(wrong, right).keys() == {("pinstream", 1_000)}
    assert len(_off(right, {})) == sum(map(len, right.values())), "what was not measured is off"


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


def _ratios(documented: Cost, best: Cost) -> dict[tuple[str, int], float]:
    """By system and rate: how many times what the page says a run took, both beside the plain consumer. What was not
    measured is infinite, or no number."""

    def beside(costs: Cost, name: str, rate: int) -> float:
        return costs.get(name, {}).get(rate, math.inf) / costs.get("plain", {}).get(rate, math.inf)

    return {
        (name, rate): round(beside(best, name, rate) / beside(documented, name, rate), 2)
        for name, costs in documented.items()
        for rate in costs
    }


def _off(documented: Cost, best: Cost) -> dict[tuple[str, int], float]:
    ratios = _ratios(documented, best)
    return {row: ratio for row, ratio in ratios.items() if not 1 / FACTOR <= ratio <= FACTOR}
