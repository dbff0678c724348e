"""The order of the measurements: systems in turns, run after run, within a bound on time.

The machine is shared and its speed drifts, so no system has all its runs at once: every round runs each of them once,
over a full topic and then at the rates, each round beginning with another system, and the medians are taken over the
rounds. When the time is up no new round is begun (the first is always made), and the report says how many there were;
each run has a bound of its own. At the end pinstream's memory by open event is taken.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.load import READ_AHEAD, Content, fill_topic
from benchmarks.open_memory import OpenMemory, measure_open_memory
from benchmarks.running import Measured, Paced, RunFailed, run_full, run_paced
from benchmarks.stages import benchmark_stages
from benchmarks.systems import System, Unavailable

_TAIL = 2 * READ_AHEAD
"""Events on the topic beyond those that are measured, so that a system is busy when it is stopped."""
_STAGE_EVENTS = 20_000
_TOPIC = "bench"
RATES = (0, 100, 1_000, 7_000)
"""Events a second; the last is about half of what the plain consumer can do."""

ReportStep = Callable[[str], None]
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
    full: bool = True
    """Whether systems are run over a full topic, too."""
    rates: tuple[int, ...] = RATES
    """Events a second at which all are run, in rising order; 0 is idle."""
    seconds: float = 12.0
    """For which each rate is measured."""
    minutes: float = 60.0
    """After this no new round of runs begins."""

    @property
    def on_topic(self) -> Content:
        """All events that a full topic holds."""
        return replace(self.content, events=self.warm_up + self.events + _TAIL)

    @property
    def paced(self) -> Content:
        """The events that are produced again and again at a rate, under other ids."""
        return replace(self.content, events=_STAGE_EVENTS)


@dataclass
class Result:
    """All runs of one system."""

    system: System
    version: str
    runs: list[Measured] = field(default_factory=list)
    paced: dict[int, list[Paced]] = field(default_factory=dict)
    """By rate."""

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
    return 3 + plan.runs * len(systems) * (plan.full + bool(plan.rates))


def measure(bootstrap: str, plan: Plan, systems: Sequence[System], report: ReportStep) -> Figures:
    """Measure everything. A system that fails is omitted, with its reason; raises `RunFailed` if none is left."""
    deadline = time.monotonic() + plan.minutes * 60
    figures = Figures({}, [], {})
    if plan.full:
        report("filling the topic")
        fill_topic(bootstrap, _TOPIC, plan.on_topic)
        report("the stages of the core")
        events, content = min(_STAGE_EVENTS, plan.events), plan.content
        figures.stages = benchmark_stages(events, content.event_bytes, content.seed)
    figures.results = _prepared(systems, figures.not_measured)
    for number in range(plan.runs):
        if number and time.monotonic() > deadline:
            break
        _round(bootstrap, plan, figures, number, report)
    if plan.full:
        report("memory by open event")
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


def _round(bootstrap: str, plan: Plan, figures: Figures, number: int, report: ReportStep) -> None:
    """One run of each system; each round begins with another one."""
    turn = number % len(figures.results)
    for result in figures.results[turn:] + figures.results[:turn]:
        system = result.system
        reported = f"run {number + 1} of {plan.runs}: {system.name}"
        try:
            if plan.full and system.full:
                report(f"{reported}, full batches")
                result.runs.append(run_full(system, bootstrap, _TOPIC, plan.warm_up, plan.events))
            if plan.rates:
                report(f"{reported}, at the rates")
                for paced in run_paced(system, bootstrap, plan.paced, plan.rates, plan.seconds):
                    result.paced.setdefault(paced.rate, []).append(paced)
        except RunFailed as error:
            once = f", run {number + 1}" if result.runs or result.paced else ""
            figures.not_measured[f"{system.name}{once}"] = str(error)
    figures.results = [one for one in figures.results if one.runs or one.paced]
    if not figures.results:
        raise RunFailed(f"no system came to its end: {figures.not_measured}")


def _open_memory(bootstrap: str, plan: Plan, figures: Figures) -> OpenMemory | None:
    try:
        return measure_open_memory(bootstrap, _TOPIC, plan.on_topic.events)
    except RunFailed as error:
        figures.not_measured["memory by open event"] = str(error)
        return None
