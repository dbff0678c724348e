"""Show the progress of a bounded run on stderr, and print its result.

The progress is a bar on a terminal, else a line every few seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import click
import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from consumer.commands.base import on_terminal, say
from consumer.errors import Incomplete

# Seconds between two lines in a log: often enough to see that it goes on.
LINE_EVERY = 5.0
_WIDE = 100


class Show(Protocol):
    """Shows the progress."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done, with a short note beside it."""


@contextlib.contextmanager
def watch(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Show progress over `total` records; the bar is gone when it is over."""
    begun = said = clock()
    # Escape sequences of a bar would fill the log of a job.
    if not on_terminal():

        def line(done: int, note: str = "") -> None:
            nonlocal said
            now = clock()
            # No line at the beginning either, so that a short run prints none.
            if now - said >= LINE_EVERY:
                said = now
                say(progress_line(what, done, total, now - begun, note))

        yield line
        return

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    ]
    # On a narrow terminal the numbers are worth more than the bar.
    if console.width >= _WIDE:
        columns[:0] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, note="", rate="")

        def bar(done: int, note: str = "") -> None:
            # Since the beginning: a rate of the last second would jump with each batch.
            rate = f"{done / max(0.001, clock() - begun):,.0f}/s" if done else ""
            progress.update(task, completed=min(done, total), note=note, rate=rate)

        yield bar


def progress_line(what: str, done: int, total: int, seconds: float, note: str) -> str:
    """``replay: 1,200 of 69,659 (2%), 240 a second, about 5 min left, 1,100 delivered``."""
    # Offsets and events are counted at different moments, so the difference of the two can be out of bounds.
    done = max(0, min(done, total))
    rate = done / seconds if seconds > 0 else 0.0
    # While nothing moves, the time left cannot be estimated.
    left = f", {_time_left((total - done) / rate)} left" if rate > 0 else ""
    share = f"{done / total:.0%}" if total else "100%"
    text = f"{what}: {done:,} of {total:,} ({share}), {rate:,.0f} a second{left}"
    return f"{text}, {note}" if note else text


def _time_left(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def print_result(tell: Callable[[Console], None], document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result for people, by `tell`, on stdout; with `as_json`, that on stderr and the document on stdout.

    Raises `Incomplete` if stdout fails: what was done stands all the same.
    """
    try:
        tell(Console(stderr=as_json))
        if as_json:
            click.echo(orjson.dumps(document))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Incomplete(
            f"the result could not be printed ({error.strerror}); what was done stands: run it again with --dry-run "
            "to see what is left"
        ) from error
