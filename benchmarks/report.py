"""The JSON document of a run: what was found, on which machine, after which plan.

It has two parts, ``figures`` and ``growth``; each run writes its own and keeps the other, and each says when and where
it was made. Rounded to what the measurement is good for. `benchmarks.tables` makes tables of it, for the terminal and
for docs/performance.md.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.growth import GrowthPlan
from benchmarks.machine import describe
from benchmarks.running import Paced
from benchmarks.suite import Figures, Plan, Result

_DIGITS = {
    "cpu_us": 2,
    "events_per_second": 0,
    "peak_mib": 1,
    "first_delivery": 2,
    "drain": 2,
    "sink_busy": 2,
    "of_first": 3,
    "opens": 2,
}


def figures_part(plan: Plan, figures: Figures, machine: dict[str, Any]) -> dict[str, Any]:
    """The part ``figures``."""
    counts = [len(one.runs) for one in figures.results if one.runs]
    counts += [len(paced) for one in figures.results for paced in one.paced.values()]
    systems = {result.system.key: _system(result) for result in figures.results}
    part: dict[str, Any] = {
        **_made(machine),
        "plan": {
            "events": plan.events,
            "warm_up": plan.warm_up,
            "runs": max(counts),
            "partitions": plan.content.partitions,
            "event_bytes": plan.content.event_bytes,
            "rates": list(plan.rates),
            "seconds": plan.seconds,
            "seed": plan.content.seed,
        },
        "stages_cpu_us": {name: round(value, 2) for name, value in figures.stages.items()},
        "systems": systems,
        "not_measured": figures.not_measured,
    }
    if figures.open_memory is not None:
        part["open_bytes_per_event"] = round(figures.open_memory.by_event)
        part["base_mib"] = round(figures.open_memory.base_mib, 1)
    for other in ("plain", "floor"):
        if plan.full and {"pinstream", other} <= systems.keys():
            part[f"ratio_to_{other}"] = round(systems["pinstream"]["cpu_us"] / systems[other]["cpu_us"], 3)
    return part


def growth_part(
    plan: GrowthPlan, curves: dict[str, list[dict[str, Any]]], machine: dict[str, Any]
) -> dict[str, Any]:
    """The part ``growth``."""
    rounded = {name: [_rounded(point) for point in points] for name, points in curves.items()}
    return {
        **_made(machine),
        "plan": {
            "events": plan.events,
            "warm_up": plan.warm_up,
            "key_events": plan.key_events,
            "rounds": plan.rounds,
        },
        **rounded,
    }


def own_part(part: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The document of `benchmarks.own`."""
    return {**_made(machine), **part}


def update(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Write `parts` into the file and give the whole; a part that is not given stays as it was."""
    before = json.loads(path.read_text()) if path.exists() else {}
    document: dict[str, Any] = {**before, **parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return document


def machine_before() -> dict[str, Any]:
    """Take this before anything is measured: it says how busy the machine is without the benchmark."""
    return describe()


def _made(machine: dict[str, Any]) -> dict[str, Any]:
    return {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine}


def _system(result: Result) -> dict[str, Any]:
    system = result.system
    found: dict[str, Any] = {
        "name": system.name,
        "version": result.version,
        "how": system.how,
        "lacks": system.lacks,
        "rates": {str(rate): _paced(runs) for rate, runs in result.paced.items()},
    }
    if result.runs:
        drains = [run.drain for run in result.runs if run.drain is not None]
        found |= {
            "cpu_us": round(result.median("cpu_us"), 2),
            "cpu_us_runs": [round(run.cpu_us, 2) for run in result.runs],
            "events_per_second": round(result.median("events_per_second")),
            "peak_mib": round(max(run.peak_mib for run in result.runs), 1),
            "first_delivery": round(result.median("first_delivery"), 2),
            "drain": round(max(drains), 2) if len(drains) == len(result.runs) else None,
            "disk_bytes_per_key": round(result.median("disk_bytes_per_event"), 1),
            "sink_busy": round(max(run.sink_busy for run in result.runs), 2),
        }
    return found


def _paced(runs: list[Paced]) -> dict[str, Any]:
    """Medians of all that was measured, memory apart: its most."""
    found: dict[str, Any] = {
        "cpu_ms_runs": [round(run.cpu_ms, 2) for run in runs],
        "peak_mib": round(max(run.peak_mib for run in runs), 1),
    }
    for name in ("cpu_ms", "server_cpu_ms", "p50_ms", "p99_ms"):
        values = [getattr(run, name) for run in runs]
        if None not in values:
            found[name] = round(statistics.median(values), 2)
    return found


def _rounded(point: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, _DIGITS.get(name, 1)) if isinstance(value, float) else value
        for name, value in point.items()
    }
