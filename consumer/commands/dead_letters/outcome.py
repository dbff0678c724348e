"""What a redrive tells: how many letters were redriven, and what became of the others. A table, or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.engine.statistics import GuardStatistics
from consumer.errors import Incomplete

LATE = (
    "what happened more than an hour ago counts as offline at the platform, which does not deduplicate that"
)
MOST_NAMED = 10
"""How many notes are printed; the others are counted."""


class RedriveEnd(Enum):
    """How a redrive ended."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    GUARDED = "guarded"
    """Too many would have been dead letters again."""
    FAILED = "failed"


@dataclass(slots=True)
class Tally:
    """Of one dead-letter topic. ``matched = redriven + looped + gone + done_before + left``."""

    topic: str
    matched: int = 0
    """Letters that match the filters."""
    redriven: int = 0
    looped: int = 0
    """Left, because they were redriven too often already."""
    gone: int = 0
    """Left, because they lack a part of their record, which is no longer at its origin."""
    done_before: int = 0
    foreign: int = 0
    """Records that are no letters of the topics asked for. Not among `matched`."""
    elsewhere: int = 0
    """Marks that a redrive of another cluster wrote, which are not believed. Not among `matched`."""

    @property
    def left(self) -> int:
        """Not reached: because of ``--max``, or because it was interrupted."""
        return self.matched - self.redriven - self.looped - self.gone - self.done_before


@dataclass(slots=True)
class RedriveOutcome:
    """A redrive that is over. `notes`: one line each on what was left, for people."""

    dry_run: bool
    end: RedriveEnd = RedriveEnd.COMPLETE
    tallies: list[Tally] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Dead-letter topics that are not there: no dead letter so far."""
    notes: list[str] = field(default_factory=list)
    unnamed: int = 0
    ledger: Mapping[str, int] | None = None
    """What the pipeline made of them."""
    guard: GuardStatistics | None = None
    """Why too many would have been dead letters again."""

    def note(self, text: str) -> None:
        """Print this at the end, unless there are `MOST_NAMED` notes already."""
        if text in self.notes:
            return
        if len(self.notes) < MOST_NAMED:
            self.notes.append(text)
        else:
            self.unnamed += 1

    def total(self) -> Tally:
        """All topics together."""
        total = Tally("")
        for tally in self.tallies:
            for name, count in _counts(tally).items():
                if name != "left":
                    setattr(total, name, getattr(total, name) + count)
        return total

    def document(self) -> dict[str, Any]:
        """The whole as JSON."""
        return {
            "result": self.end.value,
            "dry_run": self.dry_run,
            **_counts(self.total()),
            "topics": [{"topic": tally.topic, **_counts(tally)} for tally in self.tallies],
            "ledger": self.ledger,
            "no_dead_letters": self.missing,
            "notes": self.notes,
        }


def _counts(tally: Tally) -> dict[str, int]:
    counts = {name: count for name, count in asdict(tally).items() if name != "topic"}
    return {**counts, "left": tally.left}


_MEANT = {
    "matched": "letters that match",
    "redriven": "redriven",
    "done_before": "done before",
    "looped": "left: redriven too often already",
    "gone": "left: the record is gone",
    "left": "left: not reached",
    "foreign": "other records, not touched",
    "elsewhere": "marks of another cluster",
}

_BECAME = {
    "read": "read",
    "delivered": "delivered",
    "duplicate": "delivered before",
    "filtered": "filtered",
    "dead_lettered": "dead once more",
    "open": "still open",
}


def print_redrive(outcome: RedriveOutcome, *, as_json: bool) -> None:
    """Print the outcome, as `_tell` says. Raises `Incomplete` if stdout fails: the letters are marked all the same."""
    try:
        _tell(outcome, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Incomplete(
            f"the result could not be printed ({error.strerror}); all that was done is marked: run it again with "
            "--dry-run to see what is left"
        ) from error


def _tell(outcome: RedriveOutcome, *, as_json: bool) -> None:
    """The table for people, on stdout; with `as_json` the document on stdout, and the table on stderr."""
    console = Console(stderr=as_json)
    for topic in outcome.missing:
        console.print(f"{escape(topic)}: no dead letters", highlight=False)
    if outcome.tallies:
        console.print(_table(outcome))
    if outcome.ledger is not None:
        became = ", ".join(f"{count:,} {_BECAME[name]}" for name, count in outcome.ledger.items() if count)
        console.print(f"of the redriven: {became or 'none'}", highlight=False, soft_wrap=True)
    if outcome.total().redriven:
        console.print(LATE, highlight=False, soft_wrap=True)
    for note in outcome.notes:
        console.print(escape(note), highlight=False, soft_wrap=True)
    if outcome.unnamed:
        console.print(f"… and {outcome.unnamed} more", highlight=False)
    if as_json:
        click.echo(orjson.dumps(outcome.document()))


def _table(outcome: RedriveOutcome) -> Table:
    title = "what a redrive would do" if outcome.dry_run else "what became of the dead letters"
    table = Table(title=title, title_justify="left")
    table.add_column("letters on", overflow="fold")
    for tally in outcome.tallies:
        table.add_column(escape(tally.topic), justify="right", overflow="fold")
    for name, text in _MEANT.items():
        if name == "redriven" and outcome.dry_run:
            text = "would be redriven"
        counts = [_counts(tally)[name] for tally in outcome.tallies]
        if any(counts) or name in ("matched", "redriven"):
            table.add_row(text, *(f"{count:,}" for count in counts))
    return table
