"""Print the outcome of a redrive: how many letters were redriven, and why the others were not. A table, or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from consumer.commands.base import prose
from consumer.commands.replay.engine import ReplayEnd
from consumer.engine.figures.statistics import GuardStatistics
from consumer.errors import Incomplete

LATE = (
    "what happened more than an hour ago counts as offline at the platform, which does not deduplicate that"
)
# How many notes are printed; the others are counted.
MOST_NAMED = 10


@dataclass(slots=True)
class Tally:
    """Counts of one dead-letter topic. ``matched = redriven + looped + gone + done_before + left``."""

    topic: str
    # Letters that match the filters.
    matched: int = 0
    redriven: int = 0
    # They stay, because they were redriven too often already.
    looped: int = 0
    # They stay, because they lack a part of their record, and the record is no longer at its origin.
    gone: int = 0
    done_before: int = 0
    # Not among `matched`: records that are no letters of the topics that were asked for, and marks that a redrive of
    # another cluster wrote, which are not believed.
    foreign: int = 0
    elsewhere: int = 0

    @property
    def left(self) -> int:
        """Letters that were not reached, because of ``--max`` or because the redrive was interrupted."""
        return self.matched - self.redriven - self.looped - self.gone - self.done_before

    def counts(self) -> dict[str, int]:
        """Return all numbers by name."""
        numbers = {name: number for name, number in asdict(self).items() if name != "topic"}
        return {**numbers, "left": self.left}


@dataclass(slots=True)
class RedriveOutcome:
    """The outcome of a redrive."""

    dry_run: bool
    end: ReplayEnd = ReplayEnd.COMPLETE
    tallies: list[Tally] = field(default_factory=list)
    # Dead-letter topics that do not exist, because there was no dead letter so far.
    missing: list[str] = field(default_factory=list)
    # One line for each of the first letters that stayed or lost a part; `unnamed` counts the others.
    notes: list[str] = field(default_factory=list)
    unnamed: int = 0
    # Letters that were handed out, over all topics: ``--max`` limits them.
    chosen: int = 0
    # How the handed-out letters ended.
    ledger: Mapping[str, int] | None = None
    # Set if the guard stopped the redrive.
    guard: GuardStatistics | None = None

    def note(self, text: str) -> None:
        """Add a line to the end of the output, unless it has `MOST_NAMED` already."""
        if len(self.notes) < MOST_NAMED:
            self.notes.append(text)
        else:
            self.unnamed += 1

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        counts = [tally.counts() for tally in self.tallies]
        return {
            "result": self.end.value,
            "dry_run": self.dry_run,
            **{name: sum(one[name] for one in counts) for name in Tally("").counts()},
            "topics": [
                {"topic": tally.topic, **one} for tally, one in zip(self.tallies, counts, strict=True)
            ],
            "ledger": self.ledger,
            "no_dead_letters": self.missing,
            "notes": self.notes,
        }


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
    """Print the table on stdout; with `as_json`, the document on stdout and the table on stderr.

    Raises `Incomplete` if stdout fails: the letters are marked all the same.
    """
    try:
        _tell(outcome, Console(stderr=as_json))
        if as_json:
            click.echo(orjson.dumps(outcome.document()))
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


def _tell(outcome: RedriveOutcome, console: Console) -> None:
    for topic in outcome.missing:
        prose(console, f"{topic}: no dead letters")
    if outcome.tallies:
        console.print(_table(outcome))
    if outcome.ledger is not None:
        became = ", ".join(f"{count:,} {_BECAME[name]}" for name, count in outcome.ledger.items() if count)
        prose(console, f"of the redriven: {became or 'none'}")
    if any(tally.redriven for tally in outcome.tallies):
        prose(console, LATE)
    for note in outcome.notes:
        prose(console, note)
    if outcome.unnamed:
        prose(console, f"… and {outcome.unnamed} more")


def _table(outcome: RedriveOutcome) -> Table:
    title = "what a redrive would do" if outcome.dry_run else "what became of the dead letters"
    names = (escape(tally.topic) for tally in outcome.tallies)
    topics = (Column(name, justify="right", overflow="fold") for name in names)
    table = Table(Column("letters on", overflow="fold"), *topics, title=title, title_justify="left")
    for name, text in _MEANT.items():
        would = "would be " if name == "redriven" and outcome.dry_run else ""
        counts = [tally.counts()[name] for tally in outcome.tallies]
        if any(counts) or name in ("matched", "redriven"):
            table.add_row(would + text, *(f"{count:,}" for count in counts))
    return table
