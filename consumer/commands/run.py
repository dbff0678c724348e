"""``pinstream run``: one member in this process, or a supervisor and its workers."""

from __future__ import annotations

import importlib
import os
import sys

import click

from consumer.commands.base import SettingsCommand
from consumer.errors import UsageError


@click.command(cls=SettingsCommand)
@click.option(
    "--workers",
    metavar="N",
    help="Number of group members to run, each in its own process, under one supervisor that restarts dead ones and "
    "serves the figures of all. auto: one per core, as far as the settings can be divided. The workers share the key "
    "store, the call quota, the requests in flight and the budget of open events. Default: one process without a "
    "supervisor.",
)
@click.option(
    "--fail-fast",
    is_flag=True,
    help="End with exit code 1 if no broker answers within 15 seconds of the start. Default: wait for the brokers, as "
    "in an outage later, and say so on the page, in /readyz and in the log.",
)
@click.option("--worker", hidden=True, help="For the supervisor's use.")
def run(workers: str | None, fail_fast: bool, worker: str | None) -> None:
    """Run the service: read events, deliver them and commit, until SIGTERM or SIGINT.

    A second signal ends it at once. Exit code 3: Pinterest has refused this account for PINSTREAM_HALT_PATIENCE.
    Metrics and traces by OpenTelemetry's own variables (OTEL_…): docs/monitoring.md.
    """
    import_structlog()
    # Imported here: the supervisor needs no client of Kafka or the API, and a member needs no supervisor.
    if worker is not None:
        _run_worker(worker, fail_fast=fail_fast)
    elif workers is not None:
        from consumer.workers.supervisor import run_workers, this_program

        # The workers are processes of their own, and get the option on their command line.
        debug = ["--debug"] if click.get_current_context().find_root().params.get("debug") else []
        run_workers(os.environ, workers, [*this_program(), *debug], fail_fast=fail_fast)
    else:
        from consumer.app.run import run_service

        run_service(os.environ, fail_fast=fail_fast)


def import_structlog() -> None:
    """Import structlog without rich, which it would load for tracebacks in colour that `consumer.logs` does not use."""
    # 4 MiB, and a tenth of the start. Only the commands that print tables need rich.
    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # so `import rich` raises, as if it were not installed
        importlib.import_module("structlog")
        del sys.modules["rich"]


def _run_worker(which: str, *, fail_fast: bool) -> None:
    """Run worker I of N; `which` is ``I/N``."""
    number, _, count = which.partition("/")
    # The user may have copied this option from a list of processes.
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UsageError("--worker is for the supervisor's use: give --workers")
    from consumer.workers.worker import run_worker

    run_worker(os.environ, int(number), int(count), fail_fast=fail_fast)
