"""``make soak``: millions of events through one process; curves, ledger and verdicts, exit code 1 if one is broken."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.soak import report
from benchmarks.soak.run import Plan, soak, unique_topic
from benchmarks.soak.watch import Sample
from tests.support.kafka.broker import RealBroker

_LINE_EVERY = 5.0


def main() -> None:
    """Run, print, judge."""
    arguments = _arguments()
    plan = Plan(
        events=arguments.events,
        seed=arguments.seed,
        window=arguments.window,
        request_timeout=min(10.0, arguments.window / 2),
        settings=dict(one.split("=", 1) for one in arguments.set),
    )
    console = Console()
    # It looks for old segments often, so that the disk holds little more than what is still to be read.
    broker = RealBroker(log_retention_check_interval_ms=5000, log_initial_task_delay_ms=1000)
    with broker, _shown(console, plan.events) as seen:
        outcome = soak(plan, broker.bootstrap_servers, unique_topic(), seen)
    verdicts = outcome.verdicts()
    for line in report.lines(outcome, verdicts):
        print(line)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.document(outcome, verdicts), indent=1) + "\n")
        print(f"written to {arguments.json}", flush=True)
    broken = [one.name for one in verdicts if not one.held]
    if broken:
        sys.exit(f"soak: not held: {'; '.join(broken)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--window",
        type=int,
        default=20,
        help="PINSTREAM_DEDUP_WINDOW in seconds; the shorter, the more turnovers",
    )
    parser.add_argument(
        "--json", type=Path, default=None, help="write samples, ledger and verdicts to this file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further setting of the process under test",
    )
    return parser.parse_args()


@contextmanager
def _shown(console: Console, events: int) -> Iterator[Callable[[Sample], None]]:
    """A progress bar on a terminal, else a line every few seconds."""
    if not console.is_terminal:
        yield _ProgressLines(events)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=events)

        def show(sample: Sample) -> None:
            text = report.one_line(sample, events).split(" s  ", 1)[1]
            progress.update(task, completed=sample.settled, description=text)

        yield show


class _ProgressLines:
    def __init__(self, events: int) -> None:
        self._events = events
        self._last = 0.0

    def __call__(self, sample: Sample) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY:
            self._last = now
            print(report.one_line(sample, self._events), flush=True)


if __name__ == "__main__":
    main()
