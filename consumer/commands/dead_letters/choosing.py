"""Which letters go back, and which stay: the same for both ways back, and for a dry run of either.

A letter of the topics asked for that matches the filters is exactly one of: done before (the first pass counts those),
left (no more were asked for), looped, gone, or chosen.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from consumer.adapters.kafka import NewRecord
from consumer.adapters.kafka.letters import (
    DeadRecord,
    Filters,
    Home,
    Runs,
    is_original,
    mark_headers,
    own_headers,
    read_mark,
    restored,
)
from consumer.commands.dead_letters.outcome import Outcome, Tally
from consumer.commands.dead_letters.reading import Marks, Reader, ours
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.engine.model import Record


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
    through_pipeline: bool = False


class Chosen(NamedTuple):
    """A letter that goes back. `joins`: no letter that stays lies between it and the chosen one before."""

    letter: DeadRecord
    original: Record
    """What died, whole; at the offset of the letter."""
    joins: bool


class Budget:
    """How many letters may still go back, over all topics; `most` None: any number."""

    def __init__(self, most: int | None) -> None:
        self._left = most

    def spent(self) -> bool:
        """Whether no more may go."""
        return self._left is not None and self._left <= 0

    def take(self, letters: int = 1) -> None:
        """So many go; below 0: they do not after all."""
        if self._left is not None:
            self._left -= letters


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
        outcome: Outcome,
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
        """The letter that goes back, if `record` is one. `done`: the offsets of its partition that are."""
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
        """What goes back; None if the letter stays."""
        if self.budget.spent():
            return None
        if letter.trips >= self._options.max_trips:
            self.tally.looped += 1
            return None
        partitions = self._known.get(letter.origin.topic, 0)
        nowhere = None if self._options.through_pipeline else self._nowhere(letter.origin.topic, partitions)
        if nowhere is not None:
            self.tally.gone += 1
            self.outcome.note(f"{nowhere}: its letters stay")
            return None
        if not letter.omitted:
            return restored(letter)
        record = await self._reader.record(letter.origin) if letter.origin.partition < partitions else None
        if record is None or not is_original(letter, record):
            self.tally.gone += 1
            parts = " and ".join(letter.omitted)
            self.outcome.note(
                f"{letter.place} stays: it holds no {parts}, and the record at {letter.origin} is gone, or another "
                "one now"
            )
            return None
        return record._replace(offset=letter.place.offset, headers=own_headers(record.headers))

    def _nowhere(self, origin: str, partitions: int) -> str | None:
        """Why nothing can go back to `origin`."""
        if origin.startswith("__"):
            return f"{origin} is Kafka's own, and no record goes back to it"
        if origin == self.topic.name:
            return f"{origin} is the dead-letter topic itself, and nothing goes back to it"
        return None if partitions else f"{origin} is not there any more, or this user may not see it"


class Going(NamedTuple):
    """Of a chosen letter what its mark takes."""

    offset: int
    joins: bool
    """See `Chosen`."""


def going(chosen: Iterable[Chosen]) -> list[Going]:
    """The same letters, without what they hold."""
    return [Going(one.letter.place.offset, one.joins) for one in chosen]


def runs_of(letters: Iterable[Going]) -> list[tuple[int, int]]:
    """Letters of one partition, in order, as runs of offsets."""
    runs = Runs()
    for one in letters:
        if not one.joins:
            runs.skip()
        runs.add(one.offset)
    return runs.take()


def split(letters: Iterable[Going], settled: Callable[[int], bool]) -> tuple[list[Going], list[Going]]:
    """Those that are settled, and the others, in order; what joins what is right in both."""
    done: list[Going] = []
    left: list[Going] = []
    after_done, bridged = False, True
    for one in letters:
        if settled(one.offset):
            done.append(one._replace(joins=one.joins and after_done))
            after_done, bridged = True, bridged and one.joins
        else:
            left.append(one._replace(joins=one.joins and bridged))
            after_done, bridged = False, True
    return done, left


def mark(home: Home, runs: Iterable[tuple[int, int]]) -> NewRecord:
    """The record that says of these letters of a partition that they are done."""
    headers = mark_headers(runs, home)
    # A compacted topic keeps what has a key of its own and a value.
    key = f"pinstream.done-{uuid.uuid4()}".encode()
    return NewRecord(home.topic, home.partition, key, headers[0][1], headers)
