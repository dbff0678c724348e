"""Print the outcome of a redrive: how many letters were redriven, and why the others were not. A table, or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from consumer.commands.dead_letters.options import RedriveOptions
from consumer.commands.dead_letters.reading import Tally
from consumer.commands.replay.bounded_run import DOUBLED, ReplayEnd
from consumer.commands.results import prose, table
from consumer.errors import PinstreamError

# How many notes are printed; the others are counted.
MAX_NOTES = 10


@dataclass(slots=True)
class RedriveOutcome:
    """The outcome of a redrive, collected while it runs."""

    options: RedriveOptions
    tallies: dict[str, Tally] = field(default_factory=dict)
    # Dead-letter topics that do not exist, because no record has died so far.
    missing: Sequence[str] = ()
    end: ReplayEnd = ReplayEnd.COMPLETE
    # The error that ended the redrive.
    failure: PinstreamError | None = None
    # A line for each of the first letters that stayed or lost a part; `unnamed` counts the other letters.
    notes: list[str] = field(default_factory=list)
    unnamed: int = 0
    # Letters that were handed out, over all topics.
    chosen: int = 0
    # How the handed-out letters ended.
    ledger: Mapping[str, int] | None = None

    def spent(self) -> bool:
        """Return True if ``--max`` letters are chosen, over all topics."""
        return self.options.maximum is not None and self.chosen >= self.options.maximum

    def note(self, text: str) -> None:
        """Add a line to the end of the output, unless it has `MAX_NOTES` already."""
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)
        else:
            self.unnamed += 1

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        topics = {topic: tally.counts() for topic, tally in self.tallies.items()}
        return {
            "result": self.end.value,
            "dry_run": self.options.dry_run,
            **{name: sum(counts[name] for counts in topics.values()) for name in Tally().counts()},
            "topics": [{"topic": topic, **counts} for topic, counts in topics.items()],
            "ledger": self.ledger,
            "no_dead_letters": list(self.missing),
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
    "dead_lettered": "dead again",
    "open": "still open",
}


def show_redrive(outcome: RedriveOutcome, _: object, console: Console) -> None:
    """Print an outcome for people."""
    for topic in outcome.missing:
        prose(console, f"{topic}: no dead letters")
    if outcome.tallies:
        _print_counts(outcome, console)
    if outcome.ledger is not None:
        became = ", ".join(f"{count:,} {_BECAME[name]}" for name, count in outcome.ledger.items() if count)
        prose(console, f"of the redriven: {became or 'none'}")
    if any(tally.redriven for tally in outcome.tallies.values()):
        prose(console, DOUBLED)
    for note in outcome.notes:
        prose(console, note)
    if outcome.unnamed:
        prose(console, f"… and {outcome.unnamed} more")


def _print_counts(outcome: RedriveOutcome, console: Console) -> None:
    dry_run = outcome.options.dry_run
    title = "what a redrive would do" if dry_run else "what became of the dead letters"
    rows = []
    for name, text in _MEANT.items():
        would = "would be " if name == "redriven" and dry_run else ""
        counts = [tally.counts()[name] for tally in outcome.tallies.values()]
        if any(counts) or name in ("matched", "redriven"):
            rows.append([would + text, *(f"{count:,}" for count in counts)])
    console.print(table("letters on", *(f">{topic}" for topic in outcome.tallies), rows=rows, title=title))
