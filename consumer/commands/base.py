"""What commands have in common: ``--debug``, settings in ``--help``, one line and an exit code for an error, words
for people on stderr."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from consumer.errors import PinstreamError, UsageError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Command(click.Command):
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


class Group(click.Group):
    """Ends every command the same way: our errors as one line, bugs as one line unless ``--debug``."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PinstreamError as error:
            _say_failure(ctx, str(error), error)
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
            _say_failure(
                ctx,
                f"unexpected {type(error).__name__}; run it again with --debug and report what it prints",
                error,
            )
            ctx.exit(1)


def _say_failure(ctx: click.Context, message: str, error: BaseException) -> None:
    if ctx.params.get("debug"):
        traceback.print_exception(error)
    click.echo(f"pinstream: {' '.join(message.split())}", err=True)


class Subgroup(click.Group):
    """A group of commands within the group. The outer one turns their errors into a line, so this one does not."""

    command_class = Command


class SettingsCommand(Command):
    """A command whose ``--help`` ends with the settings it goes by, from the one place that defines them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from consumer.settings import all_settings  # here, so that a command without settings starts quickly

        super().format_epilog(ctx, formatter)
        with formatter.section("Settings, from the environment only"):
            formatter.write_dl([(doc.name, _setting_text(doc)) for doc in all_settings()])


def _setting_text(doc: Any) -> str:
    unit = f" ({doc.unit})" if doc.unit else ""
    return f"[{doc.default}]{unit} {doc.reason}"


def parse_time(
    text: str, option: str, forms: str = "an ISO 8601 time, for example 2026-11-24T12:00:00Z"
) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; without a zone it is UTC.

    Kafka's timestamps are whole milliseconds. A time between two of them means the later one: no timestamp lies
    between, so ``>= since`` and ``< until`` select the same records. Raises `UsageError` that names `option` and the
    `forms` that it takes.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} cannot be read: use {forms}") from None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return -(-since // _MILLISECOND)


async def pause(seconds: float, stopped: asyncio.Event) -> None:
    """Sleep, but not past a stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopped.wait()


def say(text: str) -> None:
    """Print a line for people to stderr; stdout is for results. A closed stderr is ignored."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def on_terminal() -> bool:
    """Whether a person is watching stderr (which may be closed)."""
    return sys.stderr is not None and sys.stderr.isatty()


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
