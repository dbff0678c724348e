"""``pinstream dead-letters list``: how many letters, from where and why, waiting and done; and the latest of them.

Counts only what headers say. No key and no value is looked at, let alone shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
import orjson
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from consumer.adapters.kafka import describe
from consumer.adapters.kafka.letters import DeadRecord, Done, Filters, Home, Place, read_mark
from consumer.commands.base import Command
from consumer.commands.dead_letters.choosing import JSON_OPTION, filter_options, read_filters
from consumer.commands.dead_letters.reading import (
    TIMEOUT,
    KafkaReader,
    Reader,
    ours,
    read_chunks,
    read_marks,
)
from consumer.commands.dead_letters.topics import DeadLetterTopic, chosen
from consumer.commands.replay.watch import watch
from consumer.engine.model import Record
from consumer.settings import load

WAITING, DONE = "waiting", "done"
MOST_KINDS = 10_000
"""Most rows: codes are the platform's, and a hostile topic may hold any number of them."""
_OTHER = "(others)"
_DAY = len("2026-11-24")
_WIDE = 100
"""Columns from which on a time has a line to itself."""
_LONGEST_CODE = 24
"""Of ours; what is longer is broken over lines."""
_LEAST_TOPIC = 16
"""As wide as the column of topics is at least; longer names are broken over lines."""
_SECOND = len("2026-11-24 12:00:00")
_HEADS = ("topic", "stage", "code", "waiting", "done", "oldest", "latest")
_NUMBERS = (3, 4)
_COLUMNS = tuple(range(len(_HEADS)))
_WITHOUT_OLDEST = (0, 1, 2, 3, 4, 6)


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The command line's options."""

    topics: tuple[str, ...]
    filters: Filters
    latest: int
    as_json: bool


class Kind(NamedTuple):
    """What letters have in common."""

    topic: str
    """Their origin."""
    stage: str
    code: str


@dataclass(slots=True)
class Count:
    """How many of a kind."""

    waiting: int = 0
    done: int = 0
    oldest_ms: int = 1 << 62
    latest_ms: int = -1 << 62


class Line(NamedTuple):
    """One letter without what it holds."""

    place: Place
    origin: Place
    at_ms: int
    stage: str
    code: str
    attempts: int
    trips: int
    message: str
    state: str


@dataclass(slots=True)
class Listing:
    """What was found."""

    most: int
    counts: dict[Kind, Count] = field(default_factory=dict)
    foreign: int = 0
    """Records that are no letters of the topics asked for."""
    elsewhere: int = 0
    """Marks that were written in another cluster, and are not believed."""
    missing: list[str] = field(default_factory=list)
    _latest: list[tuple[int, Place, DeadRecord, bool]] = field(default_factory=list)

    def add(self, letter: DeadRecord, done: bool) -> None:
        """One more letter."""
        kind = Kind(letter.origin.topic, letter.stage.value, letter.code)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = Kind(_OTHER, _OTHER, _OTHER)
        count = self.counts.setdefault(kind, Count())
        count.done += done
        count.waiting += not done
        count.oldest_ms = min(count.oldest_ms, letter.at_ms)
        count.latest_ms = max(count.latest_ms, letter.at_ms)
        # Of the latest only headers are kept, however large the letters are.
        bare = letter._replace(record=Record(letter.record.offset, -1, None, None, ()))
        entry = (letter.at_ms, letter.place, bare, done)
        if len(self._latest) < self.most:
            heapq.heappush(self._latest, entry)
        elif self.most and entry[:2] > self._latest[0][:2]:
            heapq.heapreplace(self._latest, entry)

    def rows(self) -> Iterator[tuple[Kind, Count]]:
        """By topic, stage and code."""
        return iter(sorted(self.counts.items()))

    def latest(self) -> list[Line]:
        """The latest letters, the latest first."""
        return [
            Line(
                one.place,
                one.origin,
                one.at_ms,
                one.stage.value,
                one.code,
                one.attempts,
                one.trips,
                one.message,
                DONE if done else WAITING,
            )
            for _, _, one, done in sorted(self._latest, reverse=True)
        ]

    def document(self) -> dict[str, Any]:
        """The whole as JSON."""
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
                for kind, count in self.rows()
            ],
            "latest": [
                {
                    "place": str(line.place),
                    "at": iso(line.at_ms),
                    "stage": line.stage,
                    "code": line.code,
                    "message": line.message,
                    "origin": str(line.origin),
                    "attempts": line.attempts,
                    "trips": line.trips,
                    "state": line.state,
                }
                for line in self.latest()
            ],
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
def list_letters(
    topics: tuple[str, ...],
    stages: tuple[str, ...],
    codes: tuple[str, ...],
    since: str | None,
    until: str | None,
    origins: tuple[str, ...],
    latest: int,
    as_json: bool,
) -> None:
    """How many letters there are, by topic, stage and code; and the latest. Never a key or a value.

    waiting: still to be looked at; done: redriven. Needs only the KAFKA_… settings.
    """
    options = ListOptions(topics, read_filters(stages, codes, since, until, origins), latest, as_json)
    settings = load(os.environ, needs=("kafka",))
    config = settings.kafka.client_properties()

    async def listing() -> Listing:
        known = (await describe(config, (), TIMEOUT)).known
        return await read_listing(options, KafkaReader(config), chosen(settings, options.topics, known))

    found = asyncio.run(listing())
    if options.as_json:
        click.echo(orjson.dumps(found.document()))
    else:
        _print(found, Console())


async def read_listing(options: ListOptions, reader: Reader, topics: Sequence[DeadLetterTopic]) -> Listing:
    """Both passes over all topics."""
    found = Listing(options.latest, missing=[topic.name for topic in topics if not topic.there])
    for topic in topics:
        if topic.there:
            await _read_topic(options.filters, reader, topic, found)
    return found


async def _read_topic(filters: Filters, reader: Reader, topic: DeadLetterTopic, found: Listing) -> None:
    ranges = await reader.ranges(topic.name)
    one_pass = sum(one.end - one.begin for one in ranges)
    with watch(f"reading {topic.name}", 2 * one_pass) as shown:
        marks = await read_marks(reader, topic, ranges, filters, shown.show)
        found.elsewhere += marks.elsewhere
        homes = {one.partition: await reader.home(topic.name, one.partition) for one in ranges}
        second_pass = read_chunks(reader, ranges, lambda read: shown.show(one_pass + read))
        async with contextlib.aclosing(second_pass) as chunks:
            async for chunk in chunks:
                done = marks.done.get(chunk.partition, Done())
                for record in chunk.records:
                    _count(filters, topic, homes[chunk.partition], record, done, found)


def _count(
    filters: Filters,
    topic: DeadLetterTopic,
    home: Home,
    record: Record,
    done: Container[int],
    found: Listing,
) -> None:
    letter = ours(topic, home.partition, record)
    if letter is None:
        found.foreign += read_mark(record, home) is None
    elif filters.hold(letter):
        found.add(letter, record.offset in done)


def iso(milliseconds: int) -> str | None:
    """ISO 8601 in UTC, whole seconds; None for what no calendar has."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _print(found: Listing, console: Console) -> None:
    for topic in found.missing:
        console.print(f"{escape(topic)}: no dead letters", highlight=False)
    if found.counts:
        _print_counts(found, console)
    elif not found.missing or found.foreign:
        console.print("no dead letters that match", highlight=False)
    if found.foreign:
        console.print(
            f"and {found.foreign:,} other records that are no letters of these topics", highlight=False
        )
    if found.elsewhere:
        console.print(f"marks of another cluster: {found.elsewhere:,} (not believed here)", highlight=False)
    _print_latest(found.latest(), console)


def _print_counts(found: Listing, console: Console) -> None:
    """A table, as wide as it may be; where even the narrowest is too wide, a few lines for each kind."""
    rows = [
        (
            *map(escape, kind),
            f"{count.waiting:,}",
            f"{count.done:,}",
            *map(_short, (count.oldest_ms, count.latest_ms)),
        )
        for kind, count in found.rows()
    ]
    for columns in (_COLUMNS, _WITHOUT_OLDEST):
        widths = _widths(columns, found, console.width)
        if widths is not None:
            console.print(_table(columns, widths, rows))
            return
    console.print("[italic]dead letters[/italic]")
    for topic, stage, code, waiting, done, _, latest in rows:
        console.print(topic, highlight=False, soft_wrap=True, style="bold")
        console.print(f"  {stage}: {code}", highlight=False, soft_wrap=True)
        console.print(
            f"  waiting: {waiting}, done: {done}, latest: {latest}", highlight=False, soft_wrap=True
        )


def _widths(columns: Sequence[int], found: Listing, width: int) -> dict[int, int] | None:
    """How wide each column is; None if they do not fit. Numbers are never cut: a cut one is another number.

    Said to the table in full: left to itself it makes columns narrower than what they hold.
    """
    kinds, counts = list(found.counts), list(found.counts.values())
    time = _DAY if width < _WIDE else _SECOND
    topic, stage, code = (
        max(len(text) for text in (name, *texts))
        for name, texts in zip(Kind._fields, zip(*kinds, strict=True), strict=True)
    )
    waiting = max(len("waiting"), *(len(f"{one.waiting:,}") for one in counts))
    done = max(len("done"), *(len(f"{one.done:,}") for one in counts))
    widths = {0: topic, 1: stage, 2: code, 3: waiting, 4: done, 5: time, 6: time}
    # A space between any two, and at each edge.
    fixed = sum(widths[one] for one in columns if one not in (0, 2)) + len(columns) + 1
    rest = width - fixed
    least = min(topic, _LEAST_TOPIC)
    if rest < least + min(code, _LONGEST_CODE):
        return None
    widths[2] = min(code, max(min(code, _LONGEST_CODE), rest - topic))
    widths[0] = min(topic, rest - widths[2])
    return widths


def _table(columns: Sequence[int], widths: Mapping[int, int], rows: Sequence[Sequence[str]]) -> Table:
    # Few lines between columns: codes are long, and are to be copied into --code.
    table = Table(title="dead letters", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for one in columns:
        table.add_column(
            _HEADS[one], overflow="fold", justify="right" if one in _NUMBERS else "left", width=widths[one]
        )
    for row in rows:
        table.add_row(*(row[one] for one in columns))
    return table


def _print_latest(lines: Sequence[Line], console: Console) -> None:
    """A few lines for each letter, the first of them its place, unbroken: it is what `show` takes."""
    if lines:
        console.print("[italic]the latest[/italic]")
    for line in lines:
        times = f"trips: {line.trips}, attempts: {line.attempts}" if line.trips or line.attempts else ""
        head = "  ".join(filter(None, (str(line.place), _short(line.at_ms), line.state, times)))
        console.print(escape(head), highlight=False, soft_wrap=True, style="bold")
        console.print(
            escape(f"  {line.stage}: {line.code}, from {line.origin}"), highlight=False, soft_wrap=True
        )
        console.print(Padding(escape(line.message), (0, 0, 0, 2)), highlight=False, style="dim")


def _short(milliseconds: int) -> str:
    """``2026-11-24 12:00:00``: in UTC, and it breaks between day and time."""
    return (iso(milliseconds) or "?").replace("T", " ").replace("Z", "")
