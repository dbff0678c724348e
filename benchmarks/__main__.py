"""``make bench``: CPU microseconds per event, stage by stage and whole, beside a plain consumer, in one run."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.consumers import Measured, run_pinstream, run_plain
from benchmarks.load import fill_topic
from benchmarks.stages import measure_stages
from tests.kafka.broker import RealBroker

_SYSTEMS = {"pinstream": run_pinstream, "plain consumer": run_plain}
_LACKS = {
    "pinstream": "",
    "plain consumer": "verdicts per event, dedup, dead letters, retries, quota, budget",
}


def main() -> None:
    """Measure, print a table, write a JSON file."""
    arguments = _arguments()
    console = Console()
    with RealBroker() as broker, Progress(console=console, transient=True) as progress:
        task = progress.add_task("filling the topic", total=1 + arguments.runs * len(_SYSTEMS))
        total = arguments.warm_up + arguments.events
        fill_topic(broker.bootstrap_servers, "bench", total, arguments.seed)
        stages = measure_stages(min(20_000, arguments.events), arguments.seed)
        progress.advance(task)
        runs: dict[str, list[Measured]] = {name: [] for name in _SYSTEMS}
        for number in range(arguments.runs):
            for name, run in _SYSTEMS.items():
                progress.update(task, description=f"run {number + 1} of {arguments.runs}: {name}")
                # A plain consumer commits under one group name; each run needs its own to begin at the beginning.
                topic = f"bench-{number}-{name.split()[0]}"
                fill_topic(broker.bootstrap_servers, topic, total, arguments.seed)
                runs[name].append(run(broker.bootstrap_servers, topic, arguments.warm_up, arguments.events))
                progress.advance(task)
    report = _report(arguments, stages, runs)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    _print(console, report)
    console.print(f"written to {arguments.json}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="measured in each run")
    parser.add_argument("--warm-up", type=int, default=20_000, help="before the measuring begins")
    parser.add_argument("--runs", type=int, default=3, help="the median counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench.json"))
    return parser.parse_args()


def _report(
    arguments: argparse.Namespace, stages: dict[str, float], runs: dict[str, list[Measured]]
) -> dict[str, Any]:
    whole: dict[str, dict[str, Any]] = {
        name: {
            "cpu_us": round(statistics.median(run.cpu_us for run in measured), 2),
            "cpu_us_runs": [round(run.cpu_us, 2) for run in measured],
            "events_per_second": round(statistics.median(run.events_per_second for run in measured)),
            "peak_mib": round(max(run.peak_mib for run in measured)),
            "lacks": _LACKS[name],
        }
        for name, measured in runs.items()
    }
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"python": platform.python_version(), "cpu": _cpu_name(), "system": platform.platform()},
        "events": arguments.events,
        "runs": arguments.runs,
        "stages_cpu_us": {name: round(value, 2) for name, value in stages.items()},
        "whole": whole,
        "ratio_to_plain": round(whole["pinstream"]["cpu_us"] / whole["plain consumer"]["cpu_us"], 3),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _print(console: Console, report: dict[str, Any]) -> None:
    table = Table(title="CPU microseconds per event (user + system)", title_justify="left")
    for column in ("what", "µs/event", "events/s", "peak MiB", "lacks"):
        table.add_column(column, justify="left" if column in ("what", "lacks") else "right")
    for name, value in report["stages_cpu_us"].items():
        table.add_row(f"stage: {name}", f"{value:.2f}", "", "", "")
    table.add_section()
    for name, whole in report["whole"].items():
        rate = f"{whole['events_per_second']:,}"
        table.add_row(
            f"whole: {name}", f"{whole['cpu_us']:.2f}", rate, str(whole["peak_mib"]), whole["lacks"]
        )
    console.print(table)
    console.print(f"pinstream takes {report['ratio_to_plain']:.2f} of the plain consumer's CPU time.")


if __name__ == "__main__":
    main()
