"""``make bench``: pinstream beside other systems on one input, in one run: one table, one JSON file."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Shown

from benchmarks import document
from benchmarks.growth import QUICK, GrowthPlan, measure_growth
from benchmarks.load import Content
from benchmarks.own import NothingToMeasure, OwnPlan, measure_own, own_steps, read_own
from benchmarks.report import figures_part, growth_part, machine_before, own_part, update
from benchmarks.running import RunFailed
from benchmarks.suite import RATES, Plan, ReportStep, measure, steps
from benchmarks.systems import SYSTEMS, System
from benchmarks.tables import Table, notes, own_note, own_tables, tables
from consumer.errors import PinstreamError
from tests.support.kafka.broker import RealBroker

_MEMORY = Path("/dev/shm")
"""Linux has a file system in memory here."""
_LOG_BYTES = 8 << 30
"""More than the broker writes in one run of everything."""
_WIDTH = 160
"""Of output that goes into a file."""
_FULL = "full"
_LEGEND = """\
µs an event       CPU of the whole process, user and system
of plain          the same as a share of the plain consumer's; machines differ, so this is the figure
of floor          the same beside the floor's, the least that this job can cost
p50, p99          from the timestamp of an event's record to its receipt by the API
first delivery    from the start of the process to the first event acknowledged
drain             from SIGTERM under load to the end of the process"""
_QUICK = Plan(40_000, 20_000, 3, seconds=4.0, minutes=6.0)
_QUICK_OWN = OwnPlan(30_000, 10_000)


def main() -> None:
    """Measure, print tables, write a JSON file; with ``--document`` also the documentation."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    machine = machine_before()
    if arguments.file:
        _measure_own(arguments, machine, console)
        return
    with _broker() as broker, _progress(console) as progress:
        if arguments.growth:
            parts = {"growth": _growth(broker.bootstrap_servers, arguments, machine, progress)}
        else:
            parts = {"figures": _figures(broker.bootstrap_servers, arguments, machine, progress)}
    whole = update(arguments.json, parts)
    for table in tables(parts):
        console.print(_shown(table))
    if "figures" in parts:
        console.print(_LEGEND, highlight=False)
    for _, note in notes(parts):
        console.print(note.strip(), highlight=False)
    console.print(f"written to {arguments.json}")
    if arguments.document:
        document.write(arguments.json)
        written = ", ".join(path.name for path in (*document.PAGES, document.FIGURES))
        console.print(f"written to {written}: {', '.join(whole)}")


def _measure_own(arguments: argparse.Namespace, machine: dict[str, Any], console: Console) -> None:
    """With ``--file``: measure the user's own events, and write a document of its own."""
    default = _QUICK_OWN if arguments.quick else OwnPlan()
    plan = OwnPlan(
        arguments.events or default.events,
        arguments.warm_up or default.warm_up,
        arguments.runs or default.runs,
    )
    try:
        own = read_own(arguments.file, os.environ)
    except (NothingToMeasure, PinstreamError) as error:
        raise SystemExit(f"make bench: {error}") from error
    with _broker() as broker, _progress(console) as progress, tempfile.TemporaryDirectory() as scratch:
        report = _step_reporter(progress, own_steps(plan))
        try:
            part = own_part(measure_own(broker.bootstrap_servers, own, plan, Path(scratch), report), machine)
        except RunFailed as error:
            raise SystemExit(f"make bench: {error}") from error
    update(arguments.json, {"own": part})
    for table in own_tables(part):
        console.print(_shown(table))
    console.print(own_note(part).strip(), highlight=False)
    console.print(f"written to {arguments.json}")


@contextlib.contextmanager
def _broker() -> Iterator[RealBroker]:
    """A broker with segments as large as Kafka's default, and its log in memory where there is room for it.

    In production it has a disk of its own. On one disk, each sync of keys would wait for all that the broker writes,
    and the ages of events would measure that.
    """
    has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _LOG_BYTES
    with (
        tempfile.TemporaryDirectory(prefix="pinstream-bench-", dir=_MEMORY if has_room else None) as folder,
        RealBroker(Path(folder), log_segment_bytes=1 << 30) as broker,
    ):
        yield broker


def _figures(
    bootstrap: str, arguments: argparse.Namespace, machine: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    plan, systems = _plan(arguments), _systems(arguments.systems)
    figures = measure(bootstrap, plan, systems, _step_reporter(progress, steps(plan, systems)))
    return figures_part(plan, figures, machine)


def _growth(
    bootstrap: str, arguments: argparse.Namespace, machine: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    plan = QUICK if arguments.quick else GrowthPlan()
    curves = measure_growth(bootstrap, plan, _step_reporter(progress, plan.steps))
    return growth_part(plan, curves, machine)


def _plan(arguments: argparse.Namespace) -> Plan:
    """The options; those that are not given have the value of --quick or of the full run."""
    default = _QUICK if arguments.quick else Plan()
    full, rates = arguments.rates
    return Plan(
        events=arguments.events or default.events,
        warm_up=arguments.warm_up or default.warm_up,
        runs=arguments.runs or default.runs,
        content=Content(0, arguments.event_bytes, arguments.partitions, arguments.seed),
        full=full,
        rates=rates,
        seconds=arguments.seconds or default.seconds,
        minutes=arguments.minutes or default.minutes,
    )


def _rates(names: str) -> tuple[bool, tuple[int, ...]]:
    """Whether full batches are wanted, and which rates."""
    wanted = {"0" if name == "idle" else name for name in names.split(",")}
    for name in wanted - {_FULL}:
        if not name.isdecimal():
            raise argparse.ArgumentTypeError(f"{name!r} is not idle, full or a number of events a second")
    return _FULL in wanted, tuple(sorted(int(name) for name in wanted - {_FULL}))


def _systems(keys: str) -> Sequence[System]:
    wanted = keys.split(",") if keys else [system.key for system in SYSTEMS]
    unknown = set(wanted) - {system.key for system in SYSTEMS}
    if unknown:
        known = ", ".join(system.key for system in SYSTEMS)
        raise SystemExit(f"no such system: {', '.join(sorted(unknown))}; there are: {known}")
    return [system for system in SYSTEMS if system.key in wanted]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        usage='make bench ARGS="[options]"',
        description="pinstream beside other systems on one input, in one run: tables, and one JSON file.",
    )
    add = parser.add_argument
    full, quick = Plan(), _QUICK
    add("--quick", action="store_true", help="some minutes instead of most of an hour; good for a first look")
    add(
        "--growth",
        action="store_true",
        help="instead: how pinstream's cost grows with keys, partitions, bytes, workers; takes --quick, --document "
        "and --json",
    )
    add(
        "--file",
        metavar="FILE",
        help="instead: what the events of this file cost (NDJSON or Avro container), with the schema and mapping that "
        "PINSTREAM_SCHEMAS_DIR, PINSTREAM_SCHEMA and PINSTREAM_MAPPING_FILE name; takes --quick, --events, "
        "--warm-up, --runs and --json",
    )
    add("--document", action="store_true", help="also write the figures into docs/ and README.md")
    add(
        "--systems",
        default="",
        metavar="A,B",
        help=f"only these of {', '.join(system.key for system in SYSTEMS)}; default: all",
    )
    add(
        "--events",
        type=int,
        metavar="N",
        help=_with_default("measured in each run", full.events, quick.events),
    )
    add("--warm-up", type=int, metavar="N", help=_with_default("events before", full.warm_up, quick.warm_up))
    add(
        "--runs",
        type=int,
        metavar="N",
        help=_with_default("of each; the median counts", full.runs, quick.runs),
    )
    add("--event-bytes", type=int, default=395, metavar="N", help="of an event; 200 to 20000, default 395")
    add("--partitions", type=int, default=4, metavar="N", help="of the topic; default 4")
    add(
        "--rates",
        type=_rates,
        default=(True, RATES),
        metavar="A,B",
        help="only at these rates: idle, events a second, or full (batches, from a full topic); default: "
        + ",".join(["full", "idle", *(str(rate) for rate in RATES[1:])]),
    )
    add(
        "--seconds",
        type=float,
        metavar="S",
        help=_with_default("for which each rate is measured", full.seconds, quick.seconds),
    )
    add(
        "--minutes",
        type=float,
        metavar="M",
        help=_with_default("no round of runs is begun after that", full.minutes, quick.minutes),
    )
    add("--seed", type=int, default=1, metavar="N", help="same seed, same events; default 1")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; default artifacts/bench.json, of --file artifacts/bench-own.json",
    )
    arguments = parser.parse_args()
    if arguments.file and (arguments.growth or arguments.document or arguments.systems):
        parser.error("--file is measured by itself: leave --growth, --document and --systems out")
    if arguments.document and arguments.rates != (True, RATES):
        parser.error("the pages have full batches and all default rates: leave --rates or --document out")
    if arguments.json is None:
        arguments.json = Path("artifacts") / ("bench-own.json" if arguments.file else "bench.json")
    return arguments


def _with_default(what: str, full: float, quick: float) -> str:
    """The help text of an option whose default differs with --quick."""
    return f"{what}; default {full:,.0f}" + ("" if full == quick else f", with --quick {quick:,.0f}")


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f}"), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console, transient=True)


def _step_reporter(progress: Progress, total: int) -> ReportStep:
    task = progress.add_task("", total=total, completed=-1)

    def report(what: str) -> None:
        progress.update(task, advance=1, description=what)
        if not progress.console.is_terminal:
            progress.console.print(what, highlight=False)

    return report


def _shown(table: Table) -> Shown:
    shown = Shown(title=table.title, title_justify="left")
    for column in table.columns:
        shown.add_column(column, justify="left" if table.is_text(column) else "right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    main()
