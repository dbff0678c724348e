"""Reads dead-letter topics in two passes: first the marks, which say what is done, then the letters.

Marks come after the letters they speak of, so one pass would have to remember all letters; of the marks only runs of
offsets are kept. Both passes end where the topic ended when the first began: later records are left for the next time.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from consumer.adapters.kafka import Bound, Range, read_record, resolve_ranges, scan
from consumer.adapters.kafka.cluster import cluster_id
from consumer.adapters.kafka.letters import (
    DeadRecord,
    Done,
    Filters,
    Home,
    Place,
    is_original,
    own_headers,
    read_letter,
    read_mark,
    restored,
)
from consumer.adapters.kafka.topic_ids import ask_once
from consumer.adapters.thread import run_blocking
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.engine.model import Chunk, Record

TIMEOUT = 15.0
"""Seconds for one question to the brokers."""

Config = Mapping[str, str | int | float | bool]


class Reader(Protocol):
    """The questions to Kafka; see `KafkaReader`."""

    async def ranges(self, topic: str) -> Sequence[Range]:
        """All of the topic, partition by partition, as it is now."""

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """The records of the ranges, each partition's in order."""

    async def record(self, place: Place) -> Record | None:
        """The record at `place`; None if it is not there any more."""

    async def home(self, topic: str, partition: int) -> Home:
        """The partition in this cluster: only marks that were written for it are believed."""


class KafkaReader:
    """Reads with a consumer that belongs to no group.

    These commands do not log: what goes wrong for good is the one line that they end with.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cluster: str | None = None
        self._ids: dict[str, str | None] = {}
        """Topic ids as they were at the first question: marks are for the topic that was read."""

    async def ranges(self, topic: str) -> Sequence[Range]:
        """See `Reader`."""
        return await resolve_ranges(self._config, [topic], (), Bound("beginning"), Bound("end"), TIMEOUT)

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """See `Reader`."""
        return scan(self._config, ranges)

    async def record(self, place: Place) -> Record | None:
        """See `Reader`."""
        return await read_record(self._config, *place, TIMEOUT)

    async def home(self, topic: str, partition: int) -> Home:
        """See `Reader`."""
        if self._cluster is None:
            self._cluster = await cluster_id(self._config, TIMEOUT)
        if topic not in self._ids:
            told = await run_blocking("pinstream-kafka-ids", ask_once, self._config, [topic], TIMEOUT)
            self._ids[topic] = told.get(topic)
        return Home(self._cluster, topic, partition, self._ids[topic])


class Marks(NamedTuple):
    """What the first pass found."""

    done: Mapping[int, Done]
    """By partition."""
    matching: int
    """How many letters match the filters, done or not."""
    done_before: int = 0
    """How many of these are done."""
    elsewhere: int = 0
    """Marks that were written for another cluster or topic, and are not believed."""


OnProgress = Callable[[int], None]
"""Told how many offsets are read so far, gaps included."""


def ours(topic: DeadLetterTopic, partition: int, record: Record) -> DeadRecord | None:
    """The letter that `record` is, if it is one of the topics asked for."""
    letter = read_letter(topic.name, partition, record)
    if letter is None or (topic.origins is not None and letter.origin.topic not in topic.origins):
        return None
    return letter


async def whole_record(letter: DeadRecord, reader: Reader) -> Record | None:
    """The record that died, at the letter's offset. What the letter lacks is read at its origin; None if it is gone."""
    if not letter.omitted:
        return restored(letter)
    record = await reader.record(letter.origin)
    if record is None or not is_original(letter, record):
        return None
    return record._replace(offset=letter.place.offset, headers=own_headers(record.headers))


def why_gone(letter: DeadRecord) -> str:
    """What to say where there is no whole record."""
    parts = " and ".join(letter.omitted)
    return f"it holds no {parts}, and the record at {letter.origin} is gone, or another one is there now"


async def read_chunks(
    reader: Reader, ranges: Sequence[Range], tell: OnProgress
) -> AsyncGenerator[Chunk, None]:
    """One pass over `ranges`."""
    at = {(one.topic, one.partition): one.begin for one in ranges}
    read = 0
    async with contextlib.aclosing(reader.scan(ranges)) as scanned:
        async for chunks in scanned:
            for chunk in chunks:
                yield chunk
                key, end = (chunk.topic, chunk.partition), chunk.records[-1].offset + 1
                read += end - at[key]
                at[key] = end
            tell(read)
    tell(sum(one.end - one.begin for one in ranges))


async def read_marks(
    reader: Reader,
    topic: DeadLetterTopic,
    ranges: Sequence[Range],
    filters: Filters,
    tell: OnProgress,
    stopped: Callable[[], bool] = lambda: False,
) -> Marks:
    """The first pass. Ends early when `stopped` says so."""
    first = _FirstPass(topic, filters)
    homes = {one.partition: await reader.home(topic.name, one.partition) for one in ranges}
    async with contextlib.aclosing(read_chunks(reader, ranges, tell)) as chunks:
        async for chunk in chunks:
            for record in chunk.records:
                first.hear(record, homes[chunk.partition])
            if stopped():
                break
    return first.marks()


class _FirstPass:
    """Which letters match is kept as runs, too: only at the end is it known which of them are done."""

    def __init__(self, topic: DeadLetterTopic, filters: Filters) -> None:
        self._topic = topic
        self._filters = filters
        self._done: dict[int, Done] = defaultdict(Done)
        self._matching: dict[int, Done] = defaultdict(Done)
        self._count = self._elsewhere = 0

    def hear(self, record: Record, home: Home) -> None:
        """The next record of a partition."""
        mark = read_mark(record, home)
        if mark is not None:
            self._done[home.partition].add(mark.runs)
            self._elsewhere += not mark.at_home
            return
        letter = ours(self._topic, home.partition, record)
        if letter is not None and self._filters.hold(letter):
            self._count += 1
            self._matching[home.partition].add(((record.offset, record.offset + 1),))

    def marks(self) -> Marks:
        """What was found so far."""
        before = sum(one.common(self._done[at]) for at, one in self._matching.items())
        return Marks(self._done, self._count, before, self._elsewhere)
