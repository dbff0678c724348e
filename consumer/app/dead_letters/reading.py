"""Reads dead-letter topics in two passes: first the marks, which say what is done, then the letters.

Marks come after the letters they speak of, so one pass would have to remember all letters; of the marks only runs of
offsets are kept. Both passes end where the topic ended when the first began: what came later is for the next time.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from consumer.adapters.kafka import Bound, Range, read_record, resolve_ranges, scan
from consumer.app.dead_letters.topics import DeadLetterTopic
from consumer.core.letters import DeadRecord, Done, Filters, Place, read_letter, read_mark
from consumer.core.model import Chunk, Record

TIMEOUT = 15.0
"""Seconds for one question to the brokers."""

Config = Mapping[str, str | int | float | bool]


class Reader(Protocol):
    """What is asked of Kafka; see `KafkaReader`."""

    async def ranges(self, topic: str) -> Sequence[Range]:
        """All of the topic, partition by partition, as it is now."""

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """The records of the ranges, each partition's in order."""

    async def record(self, place: Place) -> Record | None:
        """The record at `place`; None if it is not there any more."""


class KafkaReader:
    """Reads with a consumer that belongs to no group.

    These commands do not log: what goes wrong for good is the one line that they end with.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def ranges(self, topic: str) -> Sequence[Range]:
        """See `Reader`."""
        return await resolve_ranges(self._config, [topic], (), Bound("beginning"), Bound("end"), TIMEOUT)

    def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """See `Reader`."""
        return scan(self._config, ranges)

    async def record(self, place: Place) -> Record | None:
        """See `Reader`."""
        return await read_record(self._config, *place, TIMEOUT)


class Marks(NamedTuple):
    """What the first pass found."""

    done: Mapping[int, Done]
    """By partition."""
    matching: int
    """How many letters the filters mean, done or not."""


OnProgress = Callable[[int], None]
"""Told of so many more offsets that are read."""


class Unread:
    """How far each of some ranges was read; tells of what is new, gaps included."""

    def __init__(self, ranges: Sequence[Range], tell: OnProgress) -> None:
        self._at = {(one.topic, one.partition): one.begin for one in ranges}
        self._ends = {(one.topic, one.partition): one.end for one in ranges}
        self._tell = tell

    def heard(self, chunk: Chunk) -> None:
        """A chunk came."""
        key, at = (chunk.topic, chunk.partition), chunk.records[-1].offset + 1
        self._tell(at - self._at[key])
        self._at[key] = at

    def over(self) -> None:
        """All is read through."""
        self._tell(sum(end - self._at[key] for key, end in self._ends.items()))


def ours(topic: DeadLetterTopic, partition: int, record: Record) -> DeadRecord | None:
    """The letter that `record` is, if it is one of the topics asked for."""
    letter = read_letter(topic.name, partition, record)
    if letter is None or (topic.origins is not None and letter.origin.topic not in topic.origins):
        return None
    return letter


async def read_marks(
    reader: Reader,
    topic: DeadLetterTopic,
    ranges: Sequence[Range],
    filters: Filters,
    tell: OnProgress,
    stopped: Callable[[], bool] = lambda: False,
) -> Marks:
    """The first pass. Ends early when `stopped` says so."""
    done: dict[int, Done] = defaultdict(Done)
    matching = 0
    unread = Unread(ranges, tell)
    async with contextlib.aclosing(reader.scan(ranges)) as scanned:
        async for chunks in scanned:
            for chunk in chunks:
                for record in chunk.records:
                    runs = read_mark(record)
                    if runs is not None:
                        done[chunk.partition].add(runs)
                        continue
                    letter = ours(topic, chunk.partition, record)
                    matching += letter is not None and filters.hold(letter)
                unread.heard(chunk)
            if stopped():
                return Marks(done, matching)
    unread.over()
    return Marks(done, matching)
