"""The order of the measurements: systems in turns, run after run, within a bound on time.

The machine is shared and its speed drifts, so no system has all its runs at once: every round runs each of them once,
each round beginning with another, and the medians are taken over the rounds. When the time is up no new round is
begun (the first is always made), and the report says how many there were; each run has a bound of its own. Then each
system but the floor is run at half of the throughput that was measured of it, all are run at one rate that each of them
can keep up with, and pinstream's memory by open event is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.load import READ_AHEAD, Content, fill_topic
from benchmarks.open_memory import OpenMemory, measure_open_memory
from benchmarks.running import Ages, Measured, RunFailed, run_full, run_steady
from benchmarks.stages import benchmark_stages
from benchmarks.systems import System, Unavailable

_TAIL = 2 * READ_AHEAD
"""Events on the topic beyond those that are measured, so that a system is busy when it is stopped."""
_STAGE_EVENTS = 20_000
_TOPIC = "bench"

Tell = Callable[[str], None]
"""Called with what comes next, once for each step."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    events: int = 200_000
    """Measured in each run."""
    warm_up: int = 20_000
    """Events before those."""
    runs: int = 5
    content: Content = field(default_factory=lambda: Content(0))
    """Event size, partitions and seed; the number of events follows from the fields above."""
    steady_seconds: float = 30.0
    same_rate: float = 7_000.0
    """Events a second at which all are run: about half of what the plain consumer can do."""
    minutes: float = 60.0
    """After this no new round of runs begins."""

    @property
    def on_topic(self) -> Content:
        """All events that a full topic holds."""
        return replace(self.content, events=self.warm_up + self.events + _TAIL)


@dataclass
class Result:
    """All runs of one system."""

    system: System
    version: str
    runs: list[Measured] = field(default_factory=list)
    steady: Ages | None = None
    same: Ages | None = None
    """At the rate that all systems get."""

    def median(self, name: str) -> float:
        """The median of one of `Measured`'s figures."""
        return float(statistics.median(getattr(run, name) for run in self.runs))


@dataclass
class Figures:
    """What the suite found."""

    stages: dict[str, float]
    results: list[Result]
    not_measured: dict[str, str]
    """Why a system, or one of its figures, was not measured, by name."""
    open_memory: OpenMemory | None = None


def steps(plan: Plan, systems: Sequence[System]) -> int:
    """The most steps that `measure` reports."""
    return 3 + (plan.runs + 2) * len(systems)


def measure(bootstrap: str, plan: Plan, systems: Sequence[System], tell: Tell) -> Figures:
    """Measure everything. A system that fails is left out, with its reason; raises `RunFailed` if none is left."""
    deadline = time.monotonic() + plan.minutes * 60
    tell("filling the topic")
    fill_topic(bootstrap, _TOPIC, plan.on_topic)
    tell("the stages of the core")
    content = plan.content
    figures = Figures(
        benchmark_stages(min(_STAGE_EVENTS, plan.events), content.event_bytes, content.seed), [], {}
    )
    figures.results = _prepared(systems, figures.not_measured)
    for number in range(plan.runs):
        if number and time.monotonic() > deadline:
            break
        _round(bootstrap, plan, figures, number, tell)
    for result in figures.results:
        if result.system.half_load:
            tell(f"half load: {result.system.name}")
            rate = result.median("events_per_second") / 2
            result.steady = _steady(bootstrap, plan, result.system, rate, figures.not_measured)
    for result in figures.results:
        tell(f"{plan.same_rate:,.0f} events a second: {result.system.name}")
        result.same = _steady(bootstrap, plan, result.system, plan.same_rate, figures.not_measured)
    tell("memory by open event")
    figures.open_memory = _open_memory(bootstrap, plan, figures)
    return figures


def _prepared(systems: Sequence[System], not_measured: dict[str, str]) -> list[Result]:
    results = []
    for system in systems:
        try:
            results.append(Result(system, system.prepare()))
        except Unavailable as error:
            not_measured[system.name] = str(error)
    return results


def _round(bootstrap: str, plan: Plan, figures: Figures, number: int, tell: Tell) -> None:
    """One run of each system; each round begins with another one."""
    turn = number % len(figures.results)
    for result in figures.results[turn:] + figures.results[:turn]:
        tell(f"run {number + 1} of {plan.runs}: {result.system.name}")
        try:
            result.runs.append(run_full(result.system, bootstrap, _TOPIC, plan.warm_up, plan.events))
        except RunFailed as error:
            figures.not_measured[result.system.name] = str(error)
            figures.results = [one for one in figures.results if one is not result]
    if not figures.results:
        raise RunFailed(f"no system came to its end: {figures.not_measured}")


def _steady(
    bootstrap: str, plan: Plan, system: System, rate: float, not_measured: dict[str, str]
) -> Ages | None:
    content = replace(plan.content, events=_STAGE_EVENTS)
    try:
        return run_steady(system, bootstrap, content, rate, plan.steady_seconds)
    except RunFailed as error:
        not_measured[f"{system.name} at {rate:,.0f} events a second"] = str(error)
        return None


def _open_memory(bootstrap: str, plan: Plan, figures: Figures) -> OpenMemory | None:
    try:
        return measure_open_memory(bootstrap, _TOPIC, plan.on_topic.events)
    except RunFailed as error:
        figures.not_measured["memory by open event"] = str(error)
        return None
