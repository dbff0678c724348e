"""Find the dead-letter topics that are asked for, and read them in two passes: first the marks, then the letters.

``--topic`` names an origin or a dead-letter topic; KAFKA_TOPICS is the default. Both passes end where the topic ended
when the first one began: later records wait for the next run.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from consumer.adapters.kafka.bounded import read_record, scan
from consumer.adapters.kafka.cluster import cluster_id, describe_cluster, nearest_topic
from consumer.adapters.kafka.configuration import OF_KAFKA, Config, dead_letter_pattern, dead_letter_topic
from consumer.adapters.kafka.letters import (
    DeadRecord,
    Done,
    Home,
    Place,
    is_original,
    own_headers,
    read_letter,
    read_mark,
    restored,
)
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.kafka.topic_ids import ask_once
from consumer.adapters.thread import run_blocking
from consumer.commands.base import iso
from consumer.commands.dead_letters.options import Filters
from consumer.commands.replay.bounded_run import scan_shown
from consumer.engine.model import Chunk, Record
from consumer.errors import UsageError
from consumer.settings import Settings

WAITING, DONE = "waiting", "done"
# Seconds for one question to the brokers.
_TIMEOUT = 15.0
# Origins of the letters that are ours on a dead-letter topic; with None, all letters that it holds.
Origins = Set[str | None]


def chosen(settings: Settings, topics: Sequence[str], known: Collection[str]) -> Mapping[str, Origins]:
    """Return the dead-letter topics that are asked for, in the order of their names. `known`: the topics that exist.

    Raises `UsageError` for a ``--topic`` that is neither an origin nor a dead-letter topic.
    """
    template = settings.pinstream.dead_letter_topic
    if not topics and not settings.kafka.topics:
        raise UsageError("which dead letters? Name their topic with --topic, or set KAFKA_TOPICS")
    found: defaultdict[str, set[str | None]] = defaultdict(set)
    for topic in topics or settings.kafka.topics:
        meant = list(_meant(topic, template, known))
        if topics and not topic.startswith("^") and not {topic, meant[0][0]} & {*known}:
            hint = nearest_topic(topic, known)
            raise UsageError(f"--topic {topic}: there is no such topic, and none for its dead letters{hint}")
        for name, origin in meant:
            found[name].add(origin)
    return dict(sorted(found.items()))


def _meant(topic: str, template: str, known: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yield pairs of dead-letter topic and origin; an origin of None means all letters that the topic holds."""
    is_dead = re.compile(dead_letter_pattern(template)).match
    before, mark, after = template.partition("{topic}")

    def origin_of(name: str) -> str | None:
        """Return the origin of the letters on the dead-letter topic `name`; None if the name does not contain it."""
        return name[len(before) : len(name) - len(after)] if mark else None

    if not topic.startswith("^"):
        yield (topic, origin_of(topic)) if is_dead(topic) else (dead_letter_topic(template, topic), topic)
        return
    try:
        matches = re.compile(topic).search
    except re.error as error:
        # A pattern of KAFKA_TOPICS was checked with the settings.
        raise UsageError(f"--topic {topic}: the pattern cannot be read: {error}") from error
    # Topics that exist, and deleted ones that still have letters.
    for origin in (origin_of(name) if is_dead(name) else name for name in known):
        if origin is not None and matches(origin) and not re.match(OF_KAFKA, origin):
            yield dead_letter_topic(template, origin), origin


@dataclass(eq=False, repr=False)  # the configuration holds passwords
class LetterReader:
    """Reads from Kafka with a consumer that belongs to no group."""

    _config: Config
    _cluster: str | None = None

    async def ranges(self, topic: str) -> Sequence[Range]:
        """Return the ranges of the whole topic as it is now, one per partition."""
        return await resolve_ranges(self._config, [topic], (), Bound("beginning"), Bound("end"), _TIMEOUT)

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """Yield the records of the ranges, those of each partition in order."""
        return scan(self._config, ranges)

    async def record(self, place: Place) -> Record | None:
        """Return the record at `place`; None if it, its topic or its partition is gone."""
        return await read_record(self._config, *place, _TIMEOUT)

    async def homes(self, topic: str, partitions: Collection[int]) -> dict[int, Home]:
        """Return the partitions as they are in this cluster: only marks that were written for them count."""
        # One question is enough: all topics are in one cluster.
        if self._cluster is None:
            self._cluster = await cluster_id(self._config, _TIMEOUT)
        ids = await run_blocking("pinstream-kafka-ids", ask_once, self._config, [topic], _TIMEOUT)
        return {number: Home(self._cluster, topic, number, ids.get(topic)) for number in partitions}


@dataclass(slots=True)
class Tally:
    """Counts of one dead-letter topic. ``matched = redriven + looped + gone + done_before + left``."""

    # Letters that match the filters.
    matched: int = 0
    redriven: int = 0
    # Letters that stay because they were redriven too often already.
    looped: int = 0
    # Letters that stay because they lack a part of their record, which is no longer at its origin.
    gone: int = 0
    done_before: int = 0
    # Not among `matched`: records that are no letters of the topics that were asked for, and marks that were written
    # for another cluster or an earlier topic of this name, which do not count.
    foreign: int = 0
    elsewhere: int = 0

    @property
    def left(self) -> int:
        """Return the number of letters that were not reached, because of ``--max`` or an interruption."""
        return self.matched - self.redriven - self.looped - self.gone - self.done_before

    def counts(self) -> dict[str, int]:
        """Return all numbers by name."""
        return {**asdict(self), "left": self.left}


@dataclass(eq=False)
class DeadLetters:
    """The letters on one dead-letter topic that a command asks for. Call `begin` first, then `letters` or `letter`."""

    name: str
    _origins: Origins
    _filters: Filters
    reader: LetterReader
    tally: Tally = field(default_factory=Tally)
    # The ranges to read; they end where the topic ended at the beginning.
    ranges: Sequence[Range] = ()
    # By partition: the place that its marks must name, and which of its letters are done.
    homes: dict[int, Home] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    # By partition: the leader epochs of the records that were read.
    epochs: defaultdict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    async def begin(
        self, stopped: Callable[[], bool] = lambda: False, *, ranges: Sequence[Range] | None = None
    ) -> None:
        """Fix the ranges to read, and read their marks: the first pass, which ends early when `stopped` returns True.

        `ranges`: which part of the topic; None: all of it, up to its present end.
        """
        self.ranges = await self.reader.ranges(self.name) if ranges is None else ranges
        # Marks come after their letters, so a single pass would have to remember all letters. This pass remembers marks
        # and matching letters as runs of offsets; which letters are done is known only at its end.
        partitions = [one.partition for one in self.ranges]
        self.homes = await self.reader.homes(self.name, partitions)
        self.done = {number: Done() for number in partitions}
        matching = {number: Done() for number in partitions}
        async with contextlib.aclosing(self._records("reading")) as records:
            async for partition, record in records:
                if (marked := read_mark(record, self.homes[partition], self.epochs[partition])) is not None:
                    self.done[partition].add(marked)
                    # A mark of another place says nothing about the letters here.
                    self.tally.elsewhere += not marked
                elif (letter := self._ours(partition, record)) is not None and self._filters.hold(letter):
                    matching[partition].add([(record.offset, record.offset + 1)])
                    self.tally.matched += 1
                if stopped():
                    break
        self.tally.done_before = sum(one.common(self.done[at]) for at, one in matching.items())

    async def letters(self, what: str) -> AsyncGenerator[DeadRecord, None]:
        """Make the second pass: yield the letters that match. `what` is done with them, for the progress bar."""
        async with contextlib.aclosing(self._records(what)) as records:
            async for partition, record in records:
                if (letter := self.letter(partition, record)) is not None:
                    yield letter

    def letter(self, partition: int, record: Record) -> DeadRecord | None:
        """Return the letter that a record of the second pass is; None if it is none, or does not match."""
        letter = self._ours(partition, record)
        if letter is None:
            # Marks are ours, too. Any other record may be of another team: it is counted and stays.
            self.tally.foreign += read_mark(record, self.homes[partition]) is None
            return None
        return letter if self._filters.hold(letter) else None

    def note_epoch(self, chunk: Chunk) -> None:
        """Note the leader epoch of a chunk that was read, if it is a later one."""
        known, epoch = self.epochs[chunk.partition], chunk.leader_epoch
        if epoch is not None and (not known or epoch > known[-1][0]):
            known.append((epoch, chunk.records[0].offset))

    def is_done(self, letter: DeadRecord) -> bool:
        """Return True if a mark says that the letter is done."""
        return letter.place.offset in self.done[letter.place.partition]

    def _ours(self, partition: int, record: Record) -> DeadRecord | None:
        letter = read_letter(self.name, partition, record)
        # Other origins: another team's letter on a topic for all, or one that a mirror brought from another cluster.
        return None if letter is None or self._origins.isdisjoint((None, letter.origin.topic)) else letter

    async def _records(self, what: str) -> AsyncGenerator[tuple[int, Record], None]:
        """Yield each record of one pass over `ranges`, with its partition, and show the progress."""
        scanned = scan_shown(f"{what} {self.name}", self.ranges, self.reader.scan(self.ranges))
        async with contextlib.aclosing(scanned):
            async for chunks in scanned:
                for chunk in chunks:
                    self.note_epoch(chunk)
                    for record in chunk.records:
                        yield chunk.partition, record


async def find(
    settings: Settings, topics: Sequence[str], filters: Filters
) -> tuple[list[DeadLetters], list[str]]:
    """Return the dead-letter topics that ``--topic`` or the settings select, and the names of those that do not exist.

    Raises `KafkaError` and `UsageError`.
    """
    config = settings.kafka.client_properties()
    known = (await describe_cluster(config, (), _TIMEOUT)).known
    reader, meant = LetterReader(config), chosen(settings, topics, known)
    there = [DeadLetters(name, ours, filters, reader) for name, ours in meant.items() if name in known]
    # A topic that has had no letter may not exist. That is no error.
    return there, [name for name in meant if name not in known]


async def whole_record(letter: DeadRecord, reader: LetterReader) -> Record | None:
    """Return the record that died, at the letter's offset. Parts that the letter lacks are read at the origin; None
    if gone."""
    if not letter.omitted:
        return restored(letter)
    # The dead-letter topic does not accept messages of that size, so the letter was written without that part.
    record = await reader.record(letter.origin)
    if record is None or not is_original(letter, record):
        return None
    return record._replace(offset=letter.place.offset, headers=own_headers(record.headers))


def why_gone(letter: DeadRecord) -> str:
    """Return why there is no whole record."""
    parts = " and ".join(letter.omitted)
    return f"it holds no {parts}, and the record at {letter.origin} is gone, or another one is there now"


def facts(letter: DeadRecord, done: bool) -> dict[str, Any]:
    """Return the JSON form of a letter's headers: no key, no value."""
    return {
        "place": str(letter.place),
        "state": DONE if done else WAITING,
        "origin": str(letter.origin),
        "stage": letter.stage.value,
        "code": letter.code,
        "message": letter.message,
        "attempts": letter.attempts,
        "trips": letter.trips,
        "at": iso(letter.at_ms),
    }
