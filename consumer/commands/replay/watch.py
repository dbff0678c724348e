"""What is shown while a bounded run goes on: a bar on a terminal, else a line every few seconds, on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

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

LINE_EVERY = 5.0
_UNKNOWN = "unknown"
_WIDE = 100


class ProgressDisplay(Protocol):
    """Shows how far it is."""

    def show(self, done: int, note: str = "") -> None:
        """`done` of the total; `note` is a short text beside it."""


@contextlib.contextmanager
def watch(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[ProgressDisplay]:
    """A watch over `total` records; the bar is gone when it is over."""
    if not on_terminal():
        yield _Lines(what, total, clock)
        return
    console = Console(stderr=True)
    with Progress(*_columns(console.width), console=console, transient=True) as progress:
        yield _Bar(progress, what, total, clock)


def _columns(width: int) -> list[ProgressColumn]:
    """What fits: on a narrow terminal the bar itself goes first."""
    columns: list[ProgressColumn] = [
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    ]
    if width >= _WIDE:
        columns[:0] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    return columns


class _Bar:
    def __init__(self, progress: Progress, what: str, total: int, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._total = total
        self._task = progress.add_task(what, total=total, note="", rate="")
        self._clock = clock
        self._begun = clock()

    def show(self, done: int, note: str = "") -> None:
        """See `Watch.show`."""
        rate = done / max(0.001, self._clock() - self._begun)
        self._progress.update(
            self._task, completed=min(done, self._total), note=note, rate=f"{rate:,.0f}/s" if done else ""
        )


class _Lines:
    def __init__(self, what: str, total: int, clock: Callable[[], float]) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._begun = self._said = clock()

    def show(self, done: int, note: str = "") -> None:
        """See `Watch.show`; the first line comes after a while, so that a short run is quiet."""
        now = self._clock()
        if now - self._said < LINE_EVERY:
            return
        self._said = now
        say(progress_line(self._what, done, self._total, now - self._begun, note))


def progress_line(what: str, done: int, total: int, seconds: float, note: str) -> str:
    """``replay: 1,200 of 69,659 records read (2 %), 240 a second, about 5 min left, 1,100 delivered``."""
    done = max(0, min(done, total))
    rate = done / seconds if seconds > 0 else 0.0
    left = _time_left((total - done) / rate) if rate > 0 else _UNKNOWN
    share = f"{done / total:.0%}" if total else "100%"
    text = f"{what}: {done:,} of {total:,} ({share}), {rate:,.0f} a second, {left} left"
    return f"{text}, {note}" if note else text


def _time_left(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
