"""Output of ``explain`` for people: a record on a terminal, and the summary."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from consumer.commands.explain.explaining import Explained
from consumer.commands.results import readable, table
from consumer.engine.figures.delivered import PARAMETERS, Coverage, CoverageSnapshot, by_id, written_in
from consumer.engine.reading import Kind

_Named = TypeVar("_Named", bound=tuple[Any, ...])
_STYLES: Final = {"deliverable": "bold green", "filtered": "bold yellow", "rejected": "bold red"}


def why(line: dict[str, Any]) -> str:
    """Return why a record is not delivered, as the end of a sentence; empty if it is delivered."""
    error = line["error"]
    if error is not None:
        return f": {error['code']} ({error['stage']}): {error['message']}"
    return f": {line['filter']}" if "filter" in line else ""


def print_lines(records: Iterable[Explained]) -> None:
    """Print each record's line as JSON; on a terminal, as text for people."""
    if sys.stdout.isatty():
        # rich leaves the colours out if NO_COLOR is set.
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for one in records:
            print_record(console, one.name, one.line)
        return
    for one in records:
        # Only ASCII, because some readers take U+2028 for the end of a line.
        sys.stdout.write(json.dumps(one.line, separators=(",", ":")) + "\n")
    # Flush here, where `Group.invoke` handles a reader that is gone.
    sys.stdout.flush()


def print_record(console: Console, name: str, line: dict[str, Any]) -> None:
    """Print a record's line as text: payload indented and coloured, then the reason, the warnings and the rules."""
    outcome = line["outcome"]
    console.print(Text.assemble(f"{name}: ", (outcome, _STYLES[outcome]), why(line)))
    # Printed as text, so that nothing in a record can be taken for rich's markup.
    if line["payload"] is not None:
        console.print(JSONHighlighter()(readable(line["payload"], indent=2)))
    for warning in line["warnings"]:
        console.print(Text.assemble(("warning", "yellow"), f" {warning['code']}: {warning['message']}"))
    rules = line.get("rules", [])
    # Columns fit the longest name, so that rules stand below each other.
    widths = [max((len(rule[key]) for rule in rules), default=0) for key in ("field", "from")]
    for rule in rules:
        omitted = [f"{count} omitted: {reason}" for reason, count in rule["left_out"].items()]
        done = "; ".join([*rule["done"], *omitted])
        text = (
            f"{rule['field']:{widths[0]}}  {rule['from']:{widths[1]}}  {rule['rule']}{done and f': {done}'}"
        )
        console.print(Text(text, "yellow" if omitted else "dim"))
    console.print()


class Summary:
    """Counts the lines of a file: outcomes, codes, and the coverage of deliverable events."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys(_STYLES, 0))
        self._codes: dict[str, Counter[str]] = {"rejected": Counter(), "filtered": Counter()}
        # By code, the number of warnings for each field.
        self._warnings: dict[str, Counter[str]] = {}
        self._coverage = Coverage()

    def count(self, records: Iterable[_Named]) -> Iterator[_Named]:
        """Yield records, each a name and a line, as they are, and count them."""
        for one in records:
            line = one[1]
            outcome, error = line["outcome"], line["error"]
            self.outcomes[outcome] += 1
            if outcome in self._codes:
                self._codes[outcome][line["filter"] if error is None else error["code"]] += 1
            for warning in line["warnings"]:
                self._warnings.setdefault(warning["code"], Counter())[warning["field"]] += 1
            # Coverage counts only events that would be sent.
            if line["payload"] is not None:
                kind = Kind("", line["payload"]["event_name"], written_in(line["payload"]))
                # All events count in one minute of the coverage's windows.
                self._coverage.add([(kind, 1)], 0.0)
            yield one

    @property
    def coverage(self) -> CoverageSnapshot:
        """The coverage of the events that would be sent."""
        return self._coverage.snapshot(0.0)

    def document(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        covered = self.coverage.hour
        codes = {**self._codes, "warnings": self._warnings}
        coverage = {
            name: {"events": one.events, "carried": by_id(one.carried)} for name, one in covered.items()
        }
        return {
            "records": self.outcomes.total(),
            "outcomes": self.outcomes,
            "codes": codes,
            "coverage": coverage,
        }

    def print(self) -> None:
        """Print the counts: one line of JSON, on a terminal tables."""
        # One line for programs, as for each record.
        if not sys.stdout.isatty():
            click.echo(json.dumps(self.document(), separators=(",", ":")))
            return
        self.show(Console(highlight=False, markup=False))

    def show(self, console: Console) -> None:
        """Print the counts as tables."""
        counts = table("what", "code", "field", ">records")
        for outcome, number in self.outcomes.items():
            counts.add_row(Text(outcome, _STYLES[outcome]), "", "", f"{number:,}")
            for code, number in self._codes.get(outcome, Counter()).most_common():
                counts.add_row("", code, "", f"{number:,}")
        for code, fields in self._warnings.items():
            for field, number in fields.most_common():
                counts.add_row(Text("warning", "yellow"), code, field, f"{number:,}")
        console.print(counts)
        covered = self.coverage.hour
        if covered:
            heads = (f">{name}\n{one.events:,}" for name, one in covered.items())
            shares = table("recommended field", *heads)
            for number, parameter in enumerate(PARAMETERS):
                shares.add_row(parameter.id, *(f"{one.shares[number]:.0%}" for one in covered.values()))
            console.print(shares)
        console.print(f"{self.outcomes.total():,} records")
