"""The command line: parse, call the app, turn errors into one line and an exit code.

Exit codes (contract.md): 0 done; 1 something failed; 2 wrong usage or settings; 3 the destination refuses this
account and patience ran out. Errors go to stderr, one readable line each; a traceback only with ``--debug``.
The app is imported when a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from consumer import __version__
from consumer.errors import PinstreamError, UsageError


class _Command(click.Command):
    """Takes ``--debug`` after its name too, where most people write it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        option = click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks of errors."
        )
        self.params.append(option)


def _debug(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        ctx.find_root().params["debug"] = True


class _Group(click.Group):
    """Ends every command the same way: our errors as one line, bugs as one line unless ``--debug``."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PinstreamError as error:
            _say(ctx, str(error), error)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.exceptions.Abort):
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # The reader of our output is gone (`pinstream explain … | head`): nothing is left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except Exception as error:
            _say(
                ctx,
                f"unexpected {type(error).__name__}; run it again with --debug and report what it prints",
                error,
            )
            ctx.exit(1)


def _say(ctx: click.Context, message: str, error: BaseException) -> None:
    if ctx.params.get("debug"):
        traceback.print_exception(error)
    click.echo(f"pinstream: {' '.join(message.split())}", err=True)


class _SettingsCommand(_Command):
    """A command whose ``--help`` ends with the settings it goes by, from the one place that defines them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from consumer.settings import describe

        super().format_epilog(ctx, formatter)
        with formatter.section("Settings, from the environment only"):
            formatter.write_dl([(doc.name, _setting_text(doc)) for doc in describe()])


def _setting_text(doc: Any) -> str:
    unit = f" ({doc.unit})" if doc.unit else ""
    return f"[{doc.default}]{unit} {doc.reason}"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pinstream")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Commerce events from Kafka to the Pinterest Conversions API: all of them, once, in time."""


@main.command(cls=_SettingsCommand)
def run() -> None:
    """The service: consume, deliver, commit, until SIGTERM or SIGINT.

    A second signal ends at once. Exit code 3: the destination refused this account for PINSTREAM_HALT_PATIENCE.
    """
    from consumer.app.run import run_service

    run_service(os.environ)


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
    "--rate", type=click.FloatRange(min=0.1), help="Events a second; without it as fast as it goes."
)
def demo(**options: Any) -> None:
    """The whole system on this machine: broker, sandbox, producer, consumer, page. Nothing to install or start.

    Event times are moved to the moment an event is produced, as if the shop were live now.
    """
    from consumer.app.demo import DemoOptions, run_demo

    run_demo(DemoOptions(**options), os.environ)


@main.command()
@click.argument("file")
@click.option("--now", metavar="TIME", help="ISO 8601; the clock that ages are judged by. Default: now.")
def explain(file: str, now: str | None) -> None:
    """What becomes of each record of FILE (NDJSON or an Avro container; - is standard input), and why.

    One JSON line for each record on stdout: outcome, payload, error, warnings. No network, no KAFKA_… or
    PINTEREST_… setting needed. Exit code 0 whatever the outcomes, 1 if FILE cannot be read to its end.
    """
    from consumer.app.explain import explain_file

    explain_file(file, _time(now, "--now"), os.environ)


@main.command(cls=_SettingsCommand)
@click.option("--send-test-event", is_flag=True, help="Also send one event through the API's test mode.")
def check(send_test_event: bool) -> None:
    """Is this configuration fit to run? A table of what was checked; exit code 0 or 1."""
    from consumer.app.check import run_checks

    sys.exit(run_checks(os.environ, send_test_event=send_test_event))


@main.command()
@click.argument("file", required=False)
@click.option("--topic", required=True, help="Where to.")
@click.option("--now", "restamp", is_flag=True, help="Move event times so that the newest is now.")
@click.option("--generate", is_flag=True, help="Made-up events instead of FILE's.")
@click.option(
    "--events", type=click.IntRange(min=1), help="With --generate: stop after N; else until Ctrl-C."
)
@click.option(
    "--rate", type=click.FloatRange(min=0.1), help="Events a second; without it as fast as it goes."
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
    from consumer.app.produce import ProduceOptions, run_produce

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
@click.option("--faults", is_flag=True, help="Misbehave: 429, 5xx, slow and dropped answers.")
@click.option("--seed", type=int, default=1, show_default=True)
def sandbox(**options: Any) -> None:
    """A strict stand-in for the Conversions API, for development and load tests; until Ctrl-C.

    It refuses what the API refuses, answers for each event, and counts what it accepted: GET /sandbox/counts.
    """
    from consumer.app.sandbox import run_sandbox

    run_sandbox(**options)


def _time(text: str | None, option: str) -> float | None:
    """Unix seconds of an ISO 8601 time; a naive one is UTC. Raises `UsageError`."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no ISO 8601 time; write it as 2026-11-24T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
