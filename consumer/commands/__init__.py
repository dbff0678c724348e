"""The command line: parse, call the app, turn errors into one line and an exit code.

Exit codes (docs/run.md): 0 done; 1 something failed; 2 wrong usage or settings; 3 the destination refuses this
account and patience ran out. Errors go to stderr, one readable line each; a traceback only with ``--debug``.

Each command is a module or a folder, with its options beside its code. `base` has what commands share.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from consumer import __version__
from consumer.commands.base import Command, Group

# Command -> the module that defines it, and the first sentence of its help.
_COMMANDS = {
    "check": (
        "check.command",
        "Check whether this configuration is fit to run.",
    ),
    "dead-letters": ("dead_letters.command", "List, show and redrive records that could not be delivered."),
    "demo": ("demo", "Run the whole system on this machine: broker, sandbox, producer, consumer and page."),
    "explain": (
        "explain.command",
        "Show the outcome of each record of FILE (NDJSON or an Avro container; - is standard input), and why.",
    ),
    "offsets": (
        "offsets",
        "Show or change the committed offsets of the consumer group.",
    ),
    "produce": (
        "produce",
        "Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.",
    ),
    "replay": ("replay.command", "Send a bounded part of topics through the same pipeline again, then exit."),
    "run": ("run", "Run the service: read events, deliver them and commit, until SIGTERM or SIGINT."),
    "sandbox": (
        "sandbox",
        "Run a strict stand-in for the Conversions API, for development and load tests, until Ctrl-C.",
    ),
}
# A command is imported when it is called, so that ``pinstream --help`` is quick. That is why its sentence is here.


def command(name: str) -> click.Command:
    """Import a command."""
    module = importlib.import_module(f"{__name__}.{_COMMANDS[name][0]}")
    found: click.Command = getattr(module, name.replace("-", "_"))
    return found


class _Commands(Group):
    """Lists a placeholder with the first sentence of each command, and imports the one that is called."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for name, (_, sentence) in _COMMANDS.items():
            self.add_command(Command(name, help=sentence))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, placeholder if name is None else command(name), rest


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="pinstream")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Commerce events from Kafka to the Pinterest Conversions API: none lost, in time."""
