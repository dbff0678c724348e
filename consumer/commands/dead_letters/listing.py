"""``pinstream dead-letters list``: count letters by origin and reason, waiting and done; and show the latest of them.

Only headers are read, never a key or a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import click
import orjson
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from consumer.adapters.kafka.cluster import describe
from consumer.adapters.kafka.letters import DeadRecord, Place, read_mark
from consumer.commands.base import Command, iso, prose
from consumer.commands.dead_letters.choosing import Filters, filter_options
from consumer.commands.dead_letters.reading import (
    DONE,
    TIMEOUT,
    WAITING,
    DeadLetterTopic,
    Reader,
    chosen,
    facts,
    ours,
    read_chunks,
    read_marks,
)
from consumer.commands.parsing import JSON_OPTION
from consumer.commands.replay.watch import watch
from consumer.settings import load

# Most rows: codes are the platform's, and a hostile topic may hold any number of them.
MOST_KINDS = 10_000
_OTHER = "(others)"
_DAY = len("2026-11-24")
# Columns from which on a time has a line to itself.
_WIDE = 100
# Of ours; what is longer is broken over lines.
_LONGEST_CODE = 24
# As wide as the column of topics is at least; longer names are broken over lines.
_LEAST_TOPIC = 16
_SECOND = len("2026-11-24 12:00:00")
_HEADS = ("topic", "stage", "code", WAITING, DONE, "oldest", "latest")


class Kind(NamedTuple):
    """What letters of one row have in common. `topic` is their origin."""

    topic: str
    stage: str
    code: str


@dataclass(slots=True)
class Count:
    """How many letters of one kind there are."""

    waiting: int = 0
    done: int = 0
    oldest_ms: int = 1 << 62
    latest_ms: int = -1 << 62


@dataclass(slots=True)
class Listing:
    """All that the command prints. It keeps the headers of the `most` latest letters."""

    most: int
    counts: dict[Kind, Count] = field(default_factory=dict)
    # Records that are no letters of the topics that were asked for.
    foreign: int = 0
    # Marks that were written in another cluster, and are not believed.
    elsewhere: int = 0
    # Dead-letter topics that do not exist, because there was no dead letter so far.
    missing: list[str] = field(default_factory=list)
    # A heap, the oldest first.
    _latest: list[tuple[int, Place, dict[str, Any]]] = field(default_factory=list)

    def add(self, letter: DeadRecord, done: bool) -> None:
        """Count a letter."""
        # The code comes from a header, so anyone who may write to the topic chooses it.
        kind = Kind(letter.origin.topic, letter.stage.value, letter.code)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = Kind(_OTHER, _OTHER, _OTHER)
        count = self.counts.setdefault(kind, Count())
        count.done += done
        count.waiting += not done
        count.oldest_ms = min(count.oldest_ms, letter.at_ms)
        count.latest_ms = max(count.latest_ms, letter.at_ms)
        # The place decides between letters of the same millisecond, so that every run prints the same.
        key = (letter.at_ms, letter.place)
        if self.most and (len(self._latest) < self.most or key > self._latest[0][:2]):
            # Only what headers say is kept, however large the letters are.
            heapq.heappush(self._latest, (*key, facts(letter, done)))
            if len(self._latest) > self.most:
                heapq.heappop(self._latest)

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "waiting": sum(count.waiting for count in self.counts.values()),
            "done": sum(count.done for count in self.counts.values()),
            "counts": [
                {
                    **kind._asdict(),
                    "waiting": count.waiting,
                    "done": count.done,
                    "oldest": iso(count.oldest_ms),
                    "latest": iso(count.latest_ms),
                }
                for kind, count in sorted(self.counts.items())
            ],
            "latest": [one for _, _, one in sorted(self._latest, reverse=True)],
            "foreign": self.foreign,
            "elsewhere": self.elsewhere,
            "no_dead_letters": self.missing,
        }


@click.command(name="list", cls=Command)
@filter_options
@click.option(
    "--latest",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="How many of the latest to show.",
)
@JSON_OPTION
def list_letters(topics: tuple[str, ...], filters: Filters, latest: int, as_json: bool) -> None:
    """Count letters by topic, stage and code, and show the latest; never a key or a value.

    waiting: not redriven yet; done: redriven. Needs only the KAFKA_… settings.
    """
    settings = load(os.environ, needs=("kafka",))
    config = settings.kafka.client_properties()

    async def listing() -> Listing:
        known = (await describe(config, (), TIMEOUT)).known
        return await read_listing(filters, latest, Reader(config), chosen(settings, topics, known))

    found = asyncio.run(listing())
    if as_json:
        click.echo(orjson.dumps(found.document()))
    else:
        print_listing(found, Console())


async def read_listing(
    filters: Filters, latest: int, reader: Reader, topics: Sequence[DeadLetterTopic]
) -> Listing:
    """Make both passes over all topics."""
    found = Listing(latest, missing=[topic.name for topic in topics if not topic.there])
    for topic in topics:
        if topic.there:
            await _read_topic(filters, reader, topic, found)
    return found


async def _read_topic(filters: Filters, reader: Reader, topic: DeadLetterTopic, found: Listing) -> None:
    ranges = await reader.ranges(topic.name)
    one_pass = sum(one.end - one.begin for one in ranges)
    # One progress bar for both passes.
    with watch(f"reading {topic.name}", 2 * one_pass) as show:
        marks = await read_marks(reader, topic, ranges, filters.hold, show)
        found.elsewhere += marks.elsewhere
        second_pass = read_chunks(reader, ranges, lambda read: show(one_pass + read))
        async with contextlib.aclosing(second_pass) as chunks:
            async for chunk in chunks:
                for record in chunk.records:
                    letter = ours(topic, chunk.partition, record)
                    if letter is None:
                        found.foreign += read_mark(record, marks.homes[chunk.partition]) is None
                    elif filters.hold(letter):
                        found.add(letter, record.offset in marks.done[chunk.partition])


def print_listing(found: Listing, console: Console) -> None:
    """Print the listing for people."""
    for topic in found.missing:
        prose(console, f"{topic}: no dead letters")
    if found.counts:
        _print_counts(found, console)
    elif not found.missing or found.foreign:
        prose(console, "no dead letters that match")
    if found.foreign:
        prose(console, f"and {found.foreign:,} other records that are no letters of these topics")
    if found.elsewhere:
        prose(console, f"marks of another cluster: {found.elsewhere:,} (not believed here)")
    latest = found.document()["latest"]
    if latest:
        prose(console, "the latest", "italic")
    for one in latest:
        # The first line begins with the place, unbroken: it is what `show` takes.
        times = f"trips: {one['trips']}, attempts: {one['attempts']}"
        tried = [times] if one["trips"] or one["attempts"] else []
        prose(console, "  ".join([one["place"], _short(one["at"]), one["state"], *tried]), "bold")
        prose(console, f"  {one['stage']}: {one['code']}, from {one['origin']}")
        console.print(Padding(escape(one["message"]), (0, 0, 0, 2)), highlight=False, style="dim")


def _print_counts(found: Listing, console: Console) -> None:
    """Print a table; if even its narrowest form is too wide for the terminal, print a few lines for each kind."""
    rows = [
        (
            *kind,
            f"{count.waiting:,}",
            f"{count.done:,}",
            _short(iso(count.oldest_ms)),
            _short(iso(count.latest_ms)),
        )
        for kind, count in sorted(found.counts.items())
    ]
    # On a narrow terminal a time is broken between day and second.
    time = _DAY if console.width < _WIDE else _SECOND
    texts = (row[:5] for row in rows)
    wanted = [*(max(map(len, column)) for column in zip(_HEADS[:5], *texts, strict=True)), time, time]
    # Without the oldest, if all do not fit: the latest says whether it still goes on.
    for columns in (range(7), (0, 1, 2, 3, 4, 6)):
        # A space between any two columns, and at each edge.
        rest = console.width - sum(wanted[one] for one in columns if one not in (0, 2)) - len(columns) - 1
        if rest < min(wanted[0], _LEAST_TOPIC) + min(wanted[2], _LONGEST_CODE):
            continue
        code = min(wanted[2], max(_LONGEST_CODE, rest - wanted[0]))
        # Rich would make columns narrower than their numbers, and a number that is cut is another number.
        widths = [min(wanted[0], rest - code), wanted[1], code, *wanted[3:]]
        # No lines between columns: codes are long, and people copy them into --code.
        table = Table(title="dead letters", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        for one in columns:
            justify: Literal["left", "right"] = "right" if one in (3, 4) else "left"
            table.add_column(_HEADS[one], overflow="fold", justify=justify, width=widths[one])
        for row in rows:
            table.add_row(*(escape(row[one]) for one in columns))
        console.print(table)
        return
    prose(console, "dead letters", "italic")
    for topic, stage, code_text, waiting, done, _, latest in rows:
        prose(console, topic, "bold")
        prose(console, f"  {stage}: {code_text}")
        prose(console, f"  waiting: {waiting}, done: {done}, latest: {latest}")


def _short(moment: str | None) -> str:
    """Rewrite the result of `iso` as ``2026-11-24 12:00:00``, which can be broken between day and time."""
    return (moment or "?").replace("T", " ").replace("Z", "")
