"""Select letters: the options that filter them, and the choice of those that are redriven, in a dry run too.

A letter that matches the filters is exactly one of: done before (the first pass counts those), left (``--max`` is
reached, or the run was interrupted), looped, gone, or chosen.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import click

from consumer.adapters.kafka.letters import LETTER_HEADERS, TRIPS, DeadRecord, Place, read_mark
from consumer.adapters.kafka.ranges import Range
from consumer.commands.base import parse_time
from consumer.commands.dead_letters import reading
from consumer.commands.dead_letters.outcome import RedriveOutcome, Tally
from consumer.commands.parsing import topics_option
from consumer.commands.replay.watch import watch
from consumer.engine.model import Record, Stage
from consumer.errors import UsageError

# ``TOPIC[:PARTITION[:OFFSET]]``, with Kafka's longest topic name and its largest numbers.
_RECORDS: Final = re.compile(r"([A-Za-z0-9._-]{1,249})(?::([0-9]{1,10})(?::([0-9]{1,19}))?)?")
# Headers of a letter that go through the pipeline with its record.
_CARRIED: Final = frozenset({*LETTER_HEADERS, TRIPS})


class Filters(NamedTuple):
    """Conditions on letters. One that is empty or None holds for all."""

    stages: frozenset[Stage] = frozenset()
    codes: frozenset[str] = frozenset()
    # They died at or after `since_ms`, and before `until_ms`.
    since_ms: int | None = None
    until_ms: int | None = None
    # Beginnings of a `Place`: a topic, one of its partitions, or a single record.
    origins: tuple[tuple[str | int, ...], ...] = ()

    def hold(self, letter: DeadRecord) -> bool:
        """Return True if the letter matches."""
        return (
            (not self.stages or letter.stage in self.stages)
            and (not self.codes or letter.code in self.codes)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (not self.origins or any(letter.origin[: len(one)] == one for one in self.origins))
        )


def parse_origin(text: str) -> tuple[str | int, ...]:
    """Parse ``TOPIC[:PARTITION[:OFFSET]]`` for `Filters.origins`. Raises `UsageError`."""
    found = _RECORDS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--origin {text[:300]!r} is no origin: write TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET"
        )
    # A `Place` is a tuple too, so what it begins with can be compared.
    topic, *numbers = found.groups()
    return topic, *(int(one) for one in numbers if one is not None)


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select letters. The command is called with `topics` and `filters`."""

    @topics_option(
        help="Letters of this topic (or: on this dead-letter topic); may be repeated. Default: KAFKA_TOPICS."
    )
    @click.option(
        "--stage",
        "stages",
        multiple=True,
        type=click.Choice([stage.value for stage in Stage]),
        help="Only letters of this stage; may be repeated.",
    )
    @click.option(
        "--code", "codes", multiple=True, metavar="C", help="Only letters of this reason; may be repeated."
    )
    @click.option(
        "--since",
        type=lambda text: parse_time(text, "--since"),
        metavar="TIME",
        help="Only letters written at or after this time (ISO 8601).",
    )
    @click.option(
        "--until",
        type=lambda text: parse_time(text, "--until"),
        metavar="TIME",
        help="Only letters written before this time.",
    )
    @click.option(
        "--origin",
        "origins",
        multiple=True,
        type=parse_origin,
        metavar="TOPIC[:PARTITION[:OFFSET]]",
        help="Only letters of records from here; may be repeated.",
    )
    @functools.wraps(command)
    def with_filters(
        stages: Sequence[str],
        codes: Sequence[str],
        since: int | None,
        until: int | None,
        origins: Sequence[tuple[str | int, ...]],
        **others: Any,
    ) -> None:
        # It would match nothing, and look as if there were no letters.
        if since is not None and until is not None and since >= until:
            raise UsageError("--since must be before --until: no letter can match")
        filters = Filters(frozenset(map(Stage, stages)), frozenset(codes), since, until, tuple(origins))
        command(filters=filters, **others)

    return with_filters


def parse_place(text: str) -> Place:
    """Parse ``TOPIC:PARTITION:OFFSET``. Raises `UsageError`."""
    found = _RECORDS.fullmatch(text)
    if found is None or found[3] is None:
        raise UsageError(f"{text[:300]!r} is no place of a record: write TOPIC:PARTITION:OFFSET")
    return Place(found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """The options of the command line. `rate` is in events per second."""

    topics: tuple[str, ...]
    filters: Filters
    most: int | None
    rate: float | None
    max_trips: int
    dry_run: bool
    as_json: bool


class Chooser:
    """Chooses letters among the records of one dead-letter topic. Call `begin` first, then `choose` in offset order."""

    marks: reading.Marks
    ranges: Sequence[Range]

    def __init__(
        self,
        options: RedriveOptions,
        topic: reading.DeadLetterTopic,
        reader: reading.Reader,
        outcome: RedriveOutcome,
    ) -> None:
        self.topic = topic
        self.tally = Tally(topic.name)
        # Shared by the choosers of all topics, because ``--max`` counts over all of them.
        self.outcome = outcome
        outcome.tallies.append(self.tally)
        self._options = options
        self._reader = reader

    async def begin(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Fix where the topic ends, and read its marks: the first pass, which ends early when `stopped` says so."""
        # The second pass ends there too: a letter that dies again during the redrive must not be redriven with it.
        self.ranges = await self._reader.ranges(self.topic.name)
        with watch(f"reading {self.topic.name}", sum(one.end - one.begin for one in self.ranges)) as show:
            self.marks = await reading.read_marks(
                self._reader, self.topic, self.ranges, self._options.filters.hold, show, stopped
            )
        self.tally.matched = self.marks.matching
        self.tally.done_before = self.marks.done_before
        self.tally.elsewhere = self.marks.elsewhere

    def spent(self) -> bool:
        """Return True if ``--max`` letters are chosen, over all topics."""
        return self._options.most is not None and self.outcome.chosen >= self._options.most

    async def choose(self, partition: int, record: Record) -> Record | None:
        """Return the record that died, at the offset of its letter; None if `record` is no letter, or stays."""
        letter = reading.ours(self.topic, partition, record)
        if letter is None:
            # Marks are ours, too. Anything else may be another team's: it is counted and stays.
            self.tally.foreign += read_mark(record, self.marks.homes[partition]) is None
            return None
        # The first pass has counted what is done already.
        if record.offset in self.marks.done[partition] or not self._options.filters.hold(letter):
            return None
        # It counts as left: as many letters as were asked for are chosen already.
        if self.spent():
            return None
        # The loop guard: a record that dies every time must not go round for ever.
        if letter.trips >= self._options.max_trips:
            self.tally.looped += 1
            return None
        original = await reading.whole_record(letter, self._reader)
        if original is None:
            self.tally.gone += 1
            self.outcome.note(f"{letter.place} stays: {reading.why_gone(letter)}")
            return None
        self.outcome.chosen += 1
        # If it dies again, its new letter needs these: where it came from, and how often it was redriven.
        carried = (header for header in record.headers if header[0] in _CARRIED)
        return original._replace(headers=(*original.headers, *carried))
