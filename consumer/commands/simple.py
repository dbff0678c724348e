"""The commands that serve, try out and look: run, demo, explain, check, produce, sandbox."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from consumer.commands.base import SettingsCommand, parse_time
from consumer.commands.root import main
from consumer.errors import UsageError


@main.command(cls=SettingsCommand)
@click.option(
    "--workers",
    metavar="N",
    help="How many members of the group run, in processes of their own, under one supervisor that starts dead ones"
    " again and serves the figures of all; auto: one for each core, as far as the settings can be divided. They share"
    " the key store, and the quota, the requests in flight and the open events are for all of them together. Default:"
    " one process, without a supervisor.",
)
@click.option("--worker", hidden=True, help="For the supervisor's use.")
def run(workers: str | None, worker: str | None) -> None:
    """The service: consume, deliver, commit, until SIGTERM or SIGINT.

    A second signal ends at once. Exit code 3: the destination refused this account for PINSTREAM_HALT_PATIENCE.
    """
    if worker is not None:
        _run_worker(worker)
    elif workers is not None:
        from consumer.workers.supervisor import run_workers, this_program

        debug = ["--debug"] if click.get_current_context().find_root().params.get("debug") else []
        run_workers(os.environ, workers, [*this_program(), *debug])
    else:
        from consumer.app.run import run_service

        run_service(os.environ)


def _run_worker(which: str) -> None:
    """``I/N``: worker I of N."""
    number, _, count = which.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UsageError("--worker is for the supervisor's use: give --workers")
    from consumer.workers.worker import run_worker

    run_worker(os.environ, int(number), int(count))


@main.command()
@click.option(
    "--events",
    type=click.IntRange(min=1),
    help="Stop after N events and print the ledger; else until Ctrl-C.",
)
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Send this file's records (NDJSON or Avro)."
)
@click.option(
    "--duplicates", type=click.FloatRange(0, 0.9), default=0.0, help="Share of events sent twice: 0.05."
)
@click.option(
    "--invalid", type=click.FloatRange(0, 0.9), default=0.0, help="Share of records that are broken: 0.01."
)
@click.option("--faults", is_flag=True, help="The sandbox misbehaves: 429, 5xx, slow and dropped answers.")
@click.option(
    "--json", "as_json", is_flag=True, help="The last line on stdout is the final /status document."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same events and faults.")
@click.option(
    "--rate", type=click.FloatRange(min=0.01), help="Events a second; without it as fast as it goes."
)
def demo(**options: Any) -> None:
    """The whole system on this machine: broker, sandbox, producer, consumer, page. Nothing to install or start.

    Event times are moved to the moment an event is produced, as if the shop were live now.
    """
    from consumer.commands.demo import DemoOptions, run_demo

    run_demo(DemoOptions(**options), os.environ)


@main.command()
@click.argument("file")
@click.option("--now", metavar="TIME", help="ISO 8601; the clock that ages are judged by. Default: now.")
def explain(file: str, now: str | None) -> None:
    """What becomes of each record of FILE (NDJSON or an Avro container; - is standard input), and why.

    One JSON line for each record on stdout: outcome, payload, error, warnings. No network, no KAFKA_… or
    PINTEREST_… setting needed. Exit code 0 whatever the outcomes, 1 if FILE cannot be read to its end.
    """
    from consumer.commands.explain import explain_file

    explain_file(file, None if now is None else parse_time(now, "--now") / 1000, os.environ)


@main.command(cls=SettingsCommand)
@click.option(
    "--send-test-event",
    is_flag=True,
    help="Also send events through the API's test mode. To see them in Pinterest's Events Manager, open its test view"
    " before: it has no history.",
)
@click.option("--workers", metavar="N", help="As for `pinstream run`: what each of them would get.")
def check(send_test_event: bool, workers: str | None) -> None:
    """Is this configuration fit to run? A table of what was checked; exit code 0 or 1."""
    from consumer.commands.check import run_checks

    sys.exit(run_checks(os.environ, send_test_event=send_test_event, workers=workers))


@main.command()
@click.argument("file", required=False)
@click.option("--topic", required=True, help="Where to.")
@click.option("--now", "restamp", is_flag=True, help="Move event times so that the newest is now.")
@click.option("--generate", is_flag=True, help="Made-up events instead of FILE's.")
@click.option(
    "--events", type=click.IntRange(min=1), help="With --generate: stop after N; else until Ctrl-C."
)
@click.option(
    "--rate", type=click.FloatRange(min=0.01), help="Events a second; without it as fast as it goes."
)
@click.option(
    "--duplicates", type=click.FloatRange(0, 0.9), default=0.0, help="With --generate: share sent twice."
)
@click.option(
    "--invalid", type=click.FloatRange(0, 0.9), default=0.0, help="With --generate: share that is broken."
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="With --generate: same seed, same events."
)
def produce(file: str | None, **options: Any) -> None:
    """Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.

    With SCHEMA_REGISTRY_URL the schema is registered and records are framed as Confluent does; without, they
    use Avro single-object encoding.
    """
    from consumer.commands.produce import ProduceOptions, run_produce

    if (file is None) != options["generate"]:
        raise UsageError("give either FILE or --generate")
    run_produce(ProduceOptions(file=file, **options), os.environ)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option("--token", default="sandbox", show_default=True, help="The access token it takes.")
@click.option("--account", "accounts", multiple=True, help="Ad accounts it knows; default: any.")
@click.option(
    "--own-event",
    "own_events",
    multiple=True,
    metavar="NAME",
    help="An event name that is registered beside the standard ones; may be repeated.",
)
@click.option("--faults", is_flag=True, help="Misbehave: 429, 5xx, slow and dropped answers.")
@click.option("--any-age", is_flag=True, help="Take events older than 7 days too, to try out old orders.")
@click.option("--seed", type=int, default=1, show_default=True)
def sandbox(**options: Any) -> None:
    """A strict stand-in for the Conversions API, for development and load tests; until Ctrl-C.

    It refuses what the API refuses, answers for each event, and counts what it accepted: GET /sandbox/counts.
    """
    from consumer.commands.sandbox import run_sandbox

    run_sandbox(**options)
