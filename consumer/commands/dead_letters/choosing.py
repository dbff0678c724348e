"""Which letters are meant: the options that filter them; which are redriven and which stay, in a dry run too.

A letter of the topics asked for that matches the filters is exactly one of: done before (the first pass counts those),
left (``--max`` is reached, or the run was interrupted), looped, gone, or chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import click

from consumer.adapters.kafka.letters import (
    DeadRecord,
    Filters,
    parse_origin,
    read_mark,
)
from consumer.commands.base import parse_time
from consumer.commands.dead_letters.outcome import RedriveOutcome, Tally
from consumer.commands.dead_letters.reading import Marks, Reader, ours, whole_record, why_gone
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.engine.model import Record, Stage
from consumer.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="The last line on stdout is the result as JSON."
)


def filter_options(command: _F) -> _F:
    """Add the options that select letters."""
    options = (
        click.option(
            "--topic",
            "topics",
            multiple=True,
            metavar="T",
            help="Letters of this topic (or: on this dead-letter topic); may be repeated. Default: KAFKA_TOPICS.",
        ),
        click.option(
            "--stage",
            "stages",
            multiple=True,
            type=click.Choice(["decode", "convert", "deliver"]),
            help="Only what died here; may be repeated.",
        ),
        click.option(
            "--code", "codes", multiple=True, metavar="C", help="Only this reason; may be repeated."
        ),
        click.option("--since", metavar="TIME", help="Only what died at or after this time (ISO 8601)."),
        click.option("--until", metavar="TIME", help="Only what died before this time."),
        click.option(
            "--origin",
            "origins",
            multiple=True,
            metavar="TOPIC[:PARTITION[:OFFSET]]",
            help="Only records from here; may be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_filters(
    stages: Sequence[str], codes: Sequence[str], since: str | None, until: str | None, origins: Sequence[str]
) -> Filters:
    """The filters that the options ask for. Raises `UsageError`."""
    try:
        found = tuple(parse_origin(text) for text in origins)
    except ValueError as error:
        raise UsageError(f"--origin {error}") from None
    since_ms = None if since is None else parse_time(since, "--since")
    until_ms = None if until is None else parse_time(until, "--until")
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise UsageError("--since must be before --until: no letter can match")
    return Filters(frozenset(map(Stage, stages)), frozenset(codes), since_ms, until_ms, found)


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """The command line's options. `rate` in letters a second."""

    topics: tuple[str, ...]
    filters: Filters
    most: int | None
    rate: float | None
    max_trips: int
    dry_run: bool
    as_json: bool


class Chosen(NamedTuple):
    """A letter that is redriven. `joins`: no letter that stays lies between it and the chosen one before."""

    letter: DeadRecord
    original: Record
    """What died, whole; at the offset of the letter."""
    joins: bool


class Budget:
    """How many letters may still be redriven, over all topics; `most` None: any number."""

    def __init__(self, most: int | None) -> None:
        self._left = most

    def spent(self) -> bool:
        """Whether no more may be redriven."""
        return self._left is not None and self._left <= 0

    def take(self) -> None:
        """One more is redriven."""
        if self._left is not None:
            self._left -= 1


class Chooser:
    """Chooses among the records of one dead-letter topic, each partition's in order.

    `known`: the topics that there are, with their number of partitions.
    """

    def __init__(
        self,
        options: RedriveOptions,
        topic: DeadLetterTopic,
        reader: Reader,
        known: Mapping[str, int],
        budget: Budget,
        outcome: RedriveOutcome,
    ) -> None:
        self.topic = topic
        self.tally = Tally(topic.name)
        self.outcome = outcome
        outcome.tallies.append(self.tally)
        self.budget = budget
        self._options = options
        self._reader = reader
        self._known = known
        self._joins: defaultdict[int, bool] = defaultdict(bool)

    def begin(self, marks: Marks) -> None:
        """What the first pass found."""
        self.tally.matched = marks.matching
        self.tally.done_before = marks.done_before
        self.tally.elsewhere = marks.elsewhere

    async def choose(self, partition: int, record: Record, done: Container[int]) -> Chosen | None:
        """The letter in `record` if it is to be redriven. `done`: the offsets of its partition that are done."""
        letter = ours(self.topic, partition, record)
        if letter is None:
            if read_mark(record, await self._reader.home(self.topic.name, partition)) is None:
                self.tally.foreign += 1
                self._joins[partition] = False
            return None
        if not self._options.filters.hold(letter):
            self._joins[partition] = False
            return None
        if record.offset in done:
            return None
        original = await self._original(letter)
        joins, self._joins[partition] = self._joins[partition], original is not None
        if original is None:
            return None
        self.budget.take()
        return Chosen(letter, original, joins)

    async def _original(self, letter: DeadRecord) -> Record | None:
        """The record that died, whole; None if the letter stays."""
        if self.budget.spent():
            return None
        if letter.trips >= self._options.max_trips:
            self.tally.looped += 1
            return None
        # Kafka is asked only for a partition that there is: any other one is an error to it.
        there = letter.origin.partition < self._known.get(letter.origin.topic, 0)
        record = await whole_record(letter, self._reader) if there or not letter.omitted else None
        if record is None:
            self.tally.gone += 1
            self.outcome.note(f"{letter.place} stays: {why_gone(letter)}")
        return record
