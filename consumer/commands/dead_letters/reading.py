"""Find the dead-letter topics that are asked for, and read them in two passes: first the marks, then the letters.

``--topic`` names an origin or a dead-letter topic; KAFKA_TOPICS is the default. Both passes end where the topic ended
when the first one began: later records are left for the next time.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from consumer.adapters.kafka import letters
from consumer.adapters.kafka.bounded import read_record, scan
from consumer.adapters.kafka.cluster import cluster_id, nearest_topic
from consumer.adapters.kafka.configuration import Config, dead_letter_pattern, dead_letter_topic
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.kafka.topic_ids import ask_once
from consumer.adapters.thread import run_blocking
from consumer.commands.base import iso
from consumer.engine.model import Chunk, Record
from consumer.errors import SettingsError, UsageError
from consumer.settings import Settings

WAITING, DONE = "waiting", "done"
# Seconds for one question to the brokers.
TIMEOUT = 15.0


class DeadLetterTopic(NamedTuple):
    """A dead-letter topic. Only letters of `origins` are ours; None: all letters."""

    name: str
    origins: frozenset[str] | None
    # False if it does not exist, because there was no dead letter so far.
    there: bool


def chosen(settings: Settings, topics: Sequence[str], known: Collection[str]) -> list[DeadLetterTopic]:
    """Return the dead-letter topics that are asked for, by name. `known`: the topics that exist.

    Raises `UsageError` for a ``--topic`` that is neither an origin nor a dead-letter topic.
    """
    template = settings.pinstream.dead_letter_topic
    if not topics and not settings.kafka.topics:
        raise UsageError("which dead letters? Name their topic with --topic, or set KAFKA_TOPICS")
    origins: dict[str, set[str] | None] = {}
    for topic in topics or settings.kafka.topics:
        meant = list(_meant(topic, template, known))
        if topics and not topic.startswith("^") and not {topic, *meant[0]} & {*known}:
            hint = nearest_topic(topic, known)
            raise UsageError(f"--topic {topic}: there is no such topic, and none for its dead letters{hint}")
        for name, origin in meant:
            found = origins.setdefault(name, set())
            if origin is None:
                origins[name] = None
            elif found is not None:
                found.add(origin)
    return [
        DeadLetterTopic(name, None if found is None else frozenset(found), name in known)
        for name, found in sorted(origins.items())
    ]


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
        raise SettingsError(f"KAFKA_TOPICS: the pattern {topic} cannot be read: {error}") from error
    # Topics that exist, and those of which only the letters are left.
    for origin in (origin_of(name) if is_dead(name) else name for name in known):
        if origin is not None and matches(origin):
            yield dead_letter_topic(template, origin), origin


class Reader:
    """Reads from Kafka with a consumer that belongs to no group."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cluster: str | None = None
        # As they were at the first question: marks are for the topic that was read.
        self._ids: dict[str, str | None] = {}

    async def ranges(self, topic: str) -> Sequence[Range]:
        """Return all of the topic as it is now, one range per partition."""
        return await resolve_ranges(self._config, [topic], (), Bound("beginning"), Bound("end"), TIMEOUT)

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """Yield the records of the ranges, those of each partition in order."""
        return scan(self._config, ranges)

    async def record(self, place: letters.Place) -> Record | None:
        """Return the record at `place`; None if it is gone, or its topic or partition is."""
        try:
            return await read_record(self._config, *place, TIMEOUT)
        except UsageError:
            return None

    async def home(self, topic: str, partition: int) -> letters.Home:
        """Return the partition in this cluster: only marks that were written for it are believed."""
        # One question is enough: all partitions are in one cluster.
        if self._cluster is None:
            self._cluster = await cluster_id(self._config, TIMEOUT)
        if topic not in self._ids:
            found = await run_blocking("pinstream-kafka-ids", ask_once, self._config, [topic], TIMEOUT)
            self._ids[topic] = found.get(topic)
        return letters.Home(self._cluster, topic, partition, self._ids[topic])


class Marks(NamedTuple):
    """Result of the first pass. `homes` and `done` are by partition; `homes` is also where new marks are written."""

    homes: Mapping[int, letters.Home]
    done: Mapping[int, letters.Done]
    # Number of letters that match, and how many of these are done.
    matching: int
    done_before: int
    # Number of marks that were written for another cluster or topic, and are not believed.
    elsewhere: int


# Called with the number of offsets that are read so far, gaps included.
OnProgress = Callable[[int], None]


def ours(topic: DeadLetterTopic, partition: int, record: Record) -> letters.DeadRecord | None:
    """Return the letter that `record` is, if it is one of ours."""
    letter = letters.read_letter(topic.name, partition, record)
    # Other origins: another team's letter on a topic for all, or one that a mirror brought from another cluster.
    if letter is None or (topic.origins is not None and letter.origin.topic not in topic.origins):
        return None
    return letter


async def whole_record(letter: letters.DeadRecord, reader: Reader) -> Record | None:
    """Return the record that died, at the letter's offset. Read at the origin what the letter lacks; None if gone."""
    if not letter.omitted:
        return letters.restored(letter)
    # Its topic does not take messages of that size, so the letter was written without that part.
    record = await reader.record(letter.origin)
    if record is None or not letters.is_original(letter, record):
        return None
    return record._replace(offset=letter.place.offset, headers=letters.own_headers(record.headers))


def facts(letter: letters.DeadRecord, done: bool) -> dict[str, Any]:
    """Return the JSON form of what the headers say about a letter: no key, no value."""
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


def why_gone(letter: letters.DeadRecord) -> str:
    """Say why there is no whole record."""
    parts = " and ".join(letter.omitted)
    return f"it holds no {parts}, and the record at {letter.origin} is gone, or another one is there now"


async def read_records(
    reader: Reader, ranges: Sequence[Range], tell: OnProgress = lambda _: None, read_before: int = 0
) -> AsyncGenerator[tuple[int, Record], None]:
    """Yield each record of one pass over `ranges` of a topic, with its partition. `tell` gets the offsets read so far,
    and `read_before` more.
    """
    at = {one.partition: one.begin for one in ranges}
    read = read_before
    # Closed explicitly, also after an error: a client of librdkafka that lives until the process ends can crash it.
    async with contextlib.aclosing(reader.scan(ranges)) as scanned:
        async for chunks in scanned:
            for chunk in chunks:
                for record in chunk.records:
                    yield chunk.partition, record
                # Count offsets: how many of them are records is not known before the end.
                end = chunk.records[-1].offset + 1
                read += end - at[chunk.partition]
                at[chunk.partition] = end
            tell(read)
    # The last offsets may be markers of transactions, which a consumer never gets.
    tell(read_before + sum(one.end - one.begin for one in ranges))


async def read_marks(
    reader: Reader,
    topic: DeadLetterTopic,
    ranges: Sequence[Range],
    matches: Callable[[letters.DeadRecord], bool],
    tell: OnProgress = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Marks:
    """Make the first pass over a topic. It ends early when `stopped` says so."""
    # Marks come after their letters, so a single pass would have to remember all letters. Of marks, runs are enough.
    homes = {one.partition: await reader.home(topic.name, one.partition) for one in ranges}
    done: dict[int, letters.Done] = {one.partition: letters.Done() for one in ranges}
    # Matching letters are kept as runs, too: only at the end is it known which of them are done.
    matching: defaultdict[int, letters.Done] = defaultdict(letters.Done)
    count = elsewhere = 0
    async with contextlib.aclosing(read_records(reader, ranges, tell)) as records:
        async for partition, record in records:
            mark = letters.read_mark(record, homes[partition])
            if mark is not None:
                # Without runs if the mark is for another place.
                done[partition].add(mark.runs)
                elsewhere += not mark.at_home
            elif (letter := ours(topic, partition, record)) is not None and matches(letter):
                matching[partition].add([(record.offset, record.offset + 1)])
                count += 1
            if stopped():
                break
    done_before = sum(one.common(done[partition]) for partition, one in matching.items())
    return Marks(homes, done, count, done_before, elsewhere)
