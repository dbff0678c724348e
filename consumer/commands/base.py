"""Shared by commands: ``--debug``, settings in ``--help``, errors as one line and an exit code, lines for people."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from consumer.errors import PinstreamError, UsageError, limit_met

if TYPE_CHECKING:  # they take a while to import, and help does not need them
    import asyncio

_Item = TypeVar("_Item")
OptionDecorator = Callable[[Callable[..., Any]], Callable[..., Any]]
flag_option: Final = functools.partial(click.option, is_flag=True)
repeatable: Final = functools.partial(click.option, multiple=True)
# Length in characters that no first sentence reaches.
_WHOLE: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class DebugCommand(click.Command):
    """A command that accepts ``--debug`` after its name too, where most people write it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)

        def debug(ctx: click.Context, _: click.Parameter, given: bool) -> None:
            if given:
                ctx.find_root().params["debug"] = True

        option = click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=debug, help="Show tracebacks of errors."
        )
        self.params.append(option)
        # In the list of a group, click would cut the first sentence to one line.
        self.short_help = self.get_short_help_str(_WHOLE)


class Group(click.Group):
    """The group of all commands. All commands end the same way: an error is one line on stderr and an exit code."""

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            code = super().main(*args, **{**settings, "standalone_mode": False})
        except click.ClickException as wrong:
            with contextlib.suppress(OSError):  # the exit code says it, too
                wrong.show()
            code = wrong.exit_code
        except click.exceptions.Abort:  # Ctrl-C before the command began
            code = 130
        except OSError as error:  # of what click prints itself, such as help
            _give_up_stdout()
            say(f"pinstream: the output cannot be written ({error.strerror})")
            code = 1
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.exceptions.Abort):
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit):
            # Click prints its own errors about usage.
            raise
        except BrokenPipeError:
            _give_up_stdout()  # its reader is gone (`pinstream explain … | head`)
            ctx.exit(1)
        except Exception as error:
            message, code = str(error), 1
            if isinstance(error, PinstreamError):
                code = error.exit_code
            else:
                # A bug, if it is no limit that was met. Its text may contain personal data.
                message = limit_met(error) or (
                    f"unexpected {type(error).__name__}; run it again with --debug and report what it prints"
                )
            trace = "".join(traceback.format_exception(error)) if ctx.params.get("debug") else ""
            line = f"{trace}pinstream: {' '.join(message.split())}"
            try:
                from consumer import logs  # it takes a while to import, and help does not need it

                logs.end_with(line)
            except (MemoryError, ImportError, RuntimeError):  # there is no room for that either
                say(line)
            ctx.exit(code)


def _give_up_stdout() -> None:
    # Otherwise Python would fail again when it flushes stdout at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class SettingsCommand(DebugCommand):
    """A command whose ``--help`` ends with the settings that it uses."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Imported here, because that takes a third of a second.
        from consumer.settings import all_settings

        super().format_epilog(ctx, formatter)
        rows = [
            (doc.name, f"[{doc.default}]{f' ({doc.unit})' if doc.unit else ''} {doc.reason}")
            for doc in all_settings()
        ]
        with formatter.section("Settings, from the environment only"):
            formatter.write_text(
                "A secret X can also be in a file that X_FILE names. pinstream's own are read again when it changes."
            )
            formatter.write_dl(rows)


def asynchronous(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine function callable by click: it runs in an event loop of its own."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        from consumer.adapters.thread import run_on_loop  # help does not need it

        run_on_loop(command(**options))

    return run


def parse_time(
    text: str, option: str, forms: str = "an ISO 8601 time, for example 2026-11-24T12:00:00Z"
) -> int:
    """Return the milliseconds since 1970 of an ISO 8601 time; without a zone it is UTC.

    Raises `UsageError`, which names `option` and the `forms` that it accepts.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} cannot be read: use {forms}") from None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    # Kafka's timestamps are whole milliseconds. A time between two of them is rounded up: no timestamp lies between, so
    # ``>= since`` and ``< until`` select the same records.
    return -(-since // _MILLISECOND)


async def paced(
    items: Iterable[_Item], rate: float | None, stopped: asyncio.Event
) -> AsyncIterator[tuple[int, _Item]]:
    """Yield the items with their numbers, at most `rate` per second, until `stopped` is set."""
    import asyncio

    begun = time.monotonic()
    for number, item in enumerate(items):
        if rate is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(begun + number / rate - time.monotonic()):
                    await stopped.wait()
        elif number % 100 == 0:
            # Let the other tasks of this event loop run.
            await asyncio.sleep(0)
        if stopped.is_set():
            return
        yield number, item


def say(text: str) -> None:
    """Print a line for people to stderr; stdout is for results. A closed stderr is ignored."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def iso(milliseconds: int) -> str | None:
    """Return the time as ISO 8601 in UTC, in whole seconds; None if it is beyond the calendar."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def on_terminal() -> bool:
    """Return True if stderr is a terminal (it may also be closed)."""
    return sys.stderr is not None and sys.stderr.isatty()
