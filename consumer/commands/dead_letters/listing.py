"""``pinstream dead-letters list``: count letters by origin and reason, waiting and done; and show the latest of them.

Only headers are read, never a key or a value.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click
import orjson
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from consumer.adapters.kafka.cluster import describe
from consumer.adapters.kafka.letters import DeadRecord, Place, read_mark
from consumer.commands.base import Command, asynchronous, iso, prose
from consumer.commands.dead_letters import reading
from consumer.commands.dead_letters.choosing import Filters, filter_options
from consumer.commands.parsing import JSON_OPTION
from consumer.commands.replay.watch import watch
from consumer.settings import load

# Most rows: codes are the platform's, and a hostile topic may hold any number of them.
MOST_KINDS = 10_000
_OTHER = "(others)"
# Columns of a terminal from which on there is a table, and one in which a time has one line.
_LEAST_TABLE, _WIDE = 80, 100
# Codes of ours are no longer than this, and the column of topics should not be narrower than that.
_LONGEST_CODE, _LEAST_TOPIC = 24, 12


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
            heapq.heappush(self._latest, (*key, reading.facts(letter, done)))
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
@asynchronous
async def list_letters(topics: tuple[str, ...], filters: Filters, latest: int, as_json: bool) -> None:
    """Count letters by topic, stage and code, and show the latest; never a key or a value.

    waiting: not redriven yet; done: redriven. Needs only the KAFKA_… settings.
    """
    settings = load(os.environ, needs=("kafka",))
    config = settings.kafka.client_properties()
    known = (await describe(config, (), reading.TIMEOUT)).known
    which = reading.chosen(settings, topics, known)
    found = await read_listing(filters, latest, reading.Reader(config), which)
    if as_json:
        click.echo(orjson.dumps(found.document()))
    else:
        print_listing(found, Console())


async def read_listing(
    filters: Filters, latest: int, reader: reading.Reader, topics: Sequence[reading.DeadLetterTopic]
) -> Listing:
    """Read the topics, each in two passes: marks, then letters."""
    found = Listing(latest)
    for topic in topics:
        if not topic.there:
            found.missing.append(topic.name)
            continue
        ranges = await reader.ranges(topic.name)
        one_pass = sum(one.end - one.begin for one in ranges)
        # One progress bar for both passes.
        with watch(f"reading {topic.name}", 2 * one_pass) as show:
            marks = await reading.read_marks(reader, topic, ranges, filters.hold, show)
            found.elsewhere += marks.elsewhere
            second_pass = reading.read_records(reader, ranges, show, read_before=one_pass)
            async with contextlib.aclosing(second_pass) as records:
                async for partition, record in records:
                    letter = reading.ours(topic, partition, record)
                    if letter is None:
                        # Marks are ours, too.
                        found.foreign += read_mark(record, marks.homes[partition]) is None
                    elif filters.hold(letter):
                        found.add(letter, record.offset in marks.done[partition])
    return found


def print_listing(found: Listing, console: Console) -> None:
    """Print the listing for people."""
    document = found.document()
    for topic in found.missing:
        prose(console, f"{topic}: no dead letters")
    if found.counts:
        _print_counts(document["counts"], console)
    elif not found.missing or found.foreign:
        prose(console, "no dead letters that match")
    if found.foreign:
        prose(console, f"and {found.foreign:,} other records that are no letters of these topics")
    if found.elsewhere:
        prose(console, f"marks of another cluster: {found.elsewhere:,} (not believed here)")
    if document["latest"]:
        prose(console, "the latest", "italic")
    for one in document["latest"]:
        # The first line begins with the place, unbroken: it is what `show` takes.
        times = f"trips: {one['trips']}, attempts: {one['attempts']}"
        tried = [times] if one["trips"] or one["attempts"] else []
        prose(console, "  ".join([one["place"], _short(one["at"]), one["state"], *tried]), "bold")
        prose(console, f"  {one['stage']}: {one['code']}, from {one['origin']}")
        console.print(Padding(escape(one["message"]), (0, 0, 0, 2)), highlight=False, style="dim")


def _print_counts(counts: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print a table; on a narrow terminal, a few lines for each kind."""
    rows = [
        [one["topic"], one["stage"], one["code"], f"{one['waiting']:,}", f"{one['done']:,}"]
        + [_short(one[moment]) for moment in ("oldest", "latest")]
        for one in counts
    ]
    if console.width < _LEAST_TABLE:
        # Rich would make columns narrower than their numbers, and a number that is cut is another number.
        prose(console, "dead letters", "italic")
        for topic, stage, code, waiting, done, _, latest in rows:
            prose(console, topic, "bold")
            prose(console, f"  {stage}: {code}")
            prose(console, f"  waiting: {waiting}, done: {done}, latest: {latest}")
        return
    # With less room, a time is broken between day and second, and gets two lines.
    time = len("2026-11-24 12:00:00" if console.width >= _WIDE else "2026-11-24")
    heads = ("stage", "code", reading.WAITING, reading.DONE)
    stage, code, *numbers = (
        max(map(len, texts)) for texts in zip(heads, *(row[1:5] for row in rows), strict=True)
    )
    # With a space between any two columns, and at each edge.
    room = console.width - (stage + code + sum(numbers) + 2 * time + len(heads) + 4)
    table = Table(
        # Topics take the room that is left, and are broken over lines; codes only if they are not ours or too little
        # room would be left: people copy them into --code. For the same reason there are no lines between columns.
        Column("topic", overflow="fold"),
        Column("stage", no_wrap=True),
        Column("code", overflow="fold", no_wrap=code <= _LONGEST_CODE and room >= _LEAST_TOPIC),
        Column(reading.WAITING, no_wrap=True, justify="right"),
        Column(reading.DONE, no_wrap=True, justify="right"),
        Column("oldest", width=time),
        Column("latest", width=time),
        title="dead letters",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _short(moment: str | None) -> str:
    """Rewrite the result of `iso` as ``2026-11-24 12:00:00``, which can be broken between day and time."""
    return (moment or "?").replace("T", " ").replace("Z", "")
