"""Pages of the reference that the code makes: commands, exit codes, fields of an event.

Settings, figures, metrics and log events have their pages in docs/, with tables that are made of the code too: there a
test compares the two. These here have no text of their own, so they are made when the site is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from consumer import commands, errors
from consumer.conversion.targets import DECIDED, DERIVED, NEVER_SENT, NEW_TARGETS, TARGETS, Arity, Target

_SEVERAL = {
    Arity.ONE: "refused",
    Arity.FIRST: "the first",
    Arity.ALL: "all",
    Arity.SUM: "their sum",
    Arity.ITEM: "one for each item",
}


def pages() -> dict[str, str]:
    """Return the pages by their paths in the site."""
    return {
        "reference/commands.md": "\n".join(command_lines()),
        "reference/exit-codes.md": "\n".join(exit_code_lines()),
        "reference/fields.md": "\n".join(field_lines()),
    }


def command_lines() -> Iterator[str]:
    """Yield the page of the commands, each as its ``--help`` has it."""
    yield "# Commands\n"
    yield (
        "As `pinstream COMMAND --help` has them. [Run it](../run.md#commands) says what they are for, "
        "[exit codes](exit-codes.md) how they end, [settings](../settings.md) what the environment says.\n"
    )
    for path, command in _commands():
        name = " ".join(("pinstream", *path))
        context = click.Context(command, info_name=name)
        yield f"## {name}\n"
        yield f"{_help(command)}\n"
        yield f"```text\n{' '.join((name, *command.collect_usage_pieces(context)))}\n```\n"
        rows = [row for one in command.get_params(context) if (row := one.get_help_record(context))]
        if rows:
            yield "| option | |\n| --- | --- |"
            yield from (f"| `{_cell(option)}` | {_cell(text)} |" for option, text in rows)
            yield ""


def _commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield all commands that run something, with their words."""
    for name in commands._COMMANDS:
        found = commands.command(name)
        if isinstance(found, click.Group):
            yield from (((name, inner), one) for inner, one in found.commands.items())
        else:
            yield (name,), found


def _help(command: click.Command) -> str:
    """Return a command's help. A paragraph that begins with a backspace, whose lines click keeps, is code here."""
    paragraphs = inspect.cleandoc(command.help or "").strip().split("\n\n")
    return "\n\n".join(
        f"```text\n{one[1:].strip(chr(10))}\n```" if one.startswith("\b") else one for one in paragraphs
    )


def exit_code_lines() -> Iterator[str]:
    """Yield the page of the exit codes and the errors behind them."""
    yield "# Exit codes\n"
    yield (
        "Errors are one line on stderr that says what happened and what to change; `pinstream --debug …` adds the "
        "traceback. Code 130: a second signal, or Ctrl-C before anything began.\n"
    )
    yield "| code | error | |\n| --- | --- | --- |"
    yield "| 0 | | Done. |"
    found = {
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.PinstreamError)
    }
    for error in sorted(found - {errors.PinstreamError}, key=lambda one: (one.exit_code, one.__name__)):
        yield f"| {error.exit_code} | `{error.__name__}` | {_cell(inspect.getdoc(error) or '')} |"
    yield ""


def field_lines() -> Iterator[str]:
    """Yield the page of the fields that a mapping may fill, in the order of a payload."""
    yield "# Fields of an event\n"
    yield (
        "Every field of a conversion event that a [mapping](../conversion.md) may fill, in the order of a payload. "
        "[Editors](../test-your-mapping.md#in-an-editor) know them, too. *Of several*: what is sent if the record has "
        "several values.\n"
    )
    objects = dict.fromkeys(target.parent for target in TARGETS.values())
    for parent in objects:
        yield f"## `{parent}`\n" if parent else "## The event\n"
        yield "| field | takes | sent as | of several | a malformed value |\n| --- | --- | --- | --- | --- |"
        yield from (_row(target) for target in TARGETS.values() if target.parent == parent)
        yield ""
    yield f"Never sent: {', '.join(f'`{name}`' for name in sorted(NEVER_SENT))}.\n"


def _row(target: Target) -> str:
    more = []
    if target.name in DERIVED:
        more.append(f"follows from `{DERIVED[target.name]}`")
    if target.name in NEW_TARGETS:
        more.append(f"new: {NEW_TARGETS[target.name]}")
    sent = "; ".join([target.form or ("" if target.name in DECIDED else target.meant), *more])
    wrong = "refuses the event" if target.refusal or target.name in DECIDED else "is left out, with a warning"
    code = f" (`{target.refusal}`)" if target.refusal else ""
    return f"| `{target.key}` | {_cell(target.meant)} | {_cell(sent)} | {_SEVERAL[target.arity]} | {wrong}{code} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
