"""The command line: parse, call the app, turn errors into one line and an exit code.

Exit codes (docs/run.md): 0 done; 1 something failed; 2 wrong usage or settings; 3 the destination refuses this
account and patience ran out. Errors go to stderr, one readable line each; a traceback only with ``--debug``.

Each command is a module or a folder, with its options beside its code. `base` has the code that commands share.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from consumer import __version__
from consumer.commands.base import DebugCommand, Group

# Command -> the first sentence of its help. It is here because a command is imported only when it is called, so that
# ``pinstream --help`` is quick.
_COMMANDS = {
    "audit": "Add up the receipts of a group, and compare them with the offsets of its topics.",
    "check": "Check whether this configuration is fit to run.",
    "dead-letters": "List, show and redrive records that could not be delivered.",
    "demo": "Run the whole system on this machine: broker, sandbox, producer, consumer and page.",
    "draft": "Draft a commented mapping from SCHEMA (an .avsc file, or a folder of them) and the values of a sample.",
    "explain": "Show the outcome of each record of FILE (NDJSON or an Avro container; - is standard input), and why.",
    "init": "Lay down a small project in FOLDER: settings, schema, mapping, sample events, and a test of the mapping.",
    "offsets": "Show or change the committed offsets of the consumer group.",
    "produce": "Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.",
    "reconcile": "Compare the shop's list of orders (CSV or NDJSON; - is standard input) with the receipts.",
    "replay": "Send a bounded part of topics through the same pipeline again, then exit.",
    "run": "Run the service: read events, deliver them and commit, until SIGTERM or SIGINT.",
    "sandbox": "Run a strict sandbox of the Conversions API, for development and load tests, until Ctrl-C.",
    "trace": "Say what became of events, each by its event id, its order id, or TOPIC:PARTITION:OFFSET.",
}
# Commands that have a folder; the others have a module.
_FOLDERS = ("check", "dead-letters", "draft", "explain", "replay")


def command(name: str) -> click.Command:
    """Import a command."""
    module = f"{__name__}.{name.replace('-', '_')}" + (".command" if name in _FOLDERS else "")
    found: click.Command = getattr(importlib.import_module(module), name.replace("-", "_"))
    return found


class _Commands(Group):
    """Lists a placeholder with the first sentence of each command, and imports the one that is called."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for name, sentence in _COMMANDS.items():
            self.add_command(DebugCommand(name, help=sentence))

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
    """Deliver commerce events from Kafka to the Pinterest Conversions API, without losing any."""
