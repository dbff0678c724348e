"""What became of letters, written to their dead-letter topic: marks, and the letters of those that died again.

`Marker` knows which letters are handed out and not marked yet. A letter is marked once its record is settled; one that
dies again is written as a new letter in one transaction with the mark of the old one, so that never both wait.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from consumer.adapters.kafka import NewRecord
from consumer.adapters.kafka.dead_letters import letter_headers
from consumer.adapters.kafka.letters import (
    HEADERS,
    KEY,
    VALUE,
    DeadRecord,
    Done,
    Home,
    Runs,
    mark_headers,
    next_trip,
    own_headers,
    read_letter,
)
from consumer.commands.dead_letters.choosing import Chooser, Chosen
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Position, TopicPartition
from consumer.errors import InvariantViolation, KafkaError

LOT_LETTERS: Final = 500
LOT_BYTES: Final = 1 << 20
"""Limits of one transaction (a larger letter has one to itself): it must be over within seconds."""


class LetterWriter(Protocol):
    """Writes lots; see `consumer.adapters.kafka.TransactionalWriter`."""

    async def start(self) -> None:
        """Take over from any other redrive of this topic."""

    async def write(self, records: Sequence[NewRecord]) -> int | None:
        """Write all of them in one transaction; or the index of one that is refused."""

    async def close(self) -> None:
        """End it."""


class Redriven(NamedTuple):
    """A dead-letter topic that is redriven. By partition: what was `done` before, and the `homes` of its marks."""

    chooser: Chooser
    writer: LetterWriter
    done: Mapping[int, Done]
    homes: Mapping[int, Home]


class Unmarked(NamedTuple):
    """A letter that is handed out and not marked yet."""

    offset: int
    joins: bool
    """See `Chosen`."""


class Marker:
    """Marks the letters of `topics`, which maps each dead-letter topic's name to what is known of it.

    `failure`: why nothing can be marked any more.
    """

    def __init__(self, topics: Mapping[str, Redriven]) -> None:
        self.topics = topics
        self.failure: KafkaError | None = None
        self._unmarked: defaultdict[TopicPartition, list[Unmarked]] = defaultdict(list)
        """In the order of offsets."""
        self._marking = asyncio.Lock()

    def handed_out(self, name: TopicPartition, one: Chosen) -> None:
        """This letter is on its way."""
        self._unmarked[name].append(Unmarked(one.letter.place.offset, one.joins))

    async def settle(self, positions: Sequence[Position]) -> bool:
        """Mark all that these positions say is settled; whether the broker has the marks.

        The marks of one dead-letter topic, all its partitions, are one transaction.
        """
        async with self._marking:
            try:
                for topic, redriven in self.topics.items():
                    settled: dict[TopicPartition, set[int]] = {}
                    for position in positions:
                        if position.topic == topic:
                            name = TopicPartition(topic, position.partition)
                            settled[name] = self._settled(name, position)
                    await self._write(redriven, [], settled)
            except KafkaError as error:
                self.failure = self.failure or error
        return self.failure is None

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Write the new letters of what died again, in one transaction with the marks of the old ones.

        Which of them are stored, as `consumer.service.DeadLetterWriter.store` says it.
        """
        stored = [False] * len(letters)
        async with self._marking:
            try:
                for topic, redriven in self.topics.items():
                    for lot in _lots([at for at, one in enumerate(letters) if one.topic == topic], letters):
                        if self.failure is not None:
                            return stored
                        settled: defaultdict[TopicPartition, set[int]] = defaultdict(set)
                        for at in lot:
                            name = TopicPartition(topic, letters[at].partition)
                            settled[name].add(letters[at].record.offset)
                        await self._write(redriven, [_DiedAgain(letters[at]) for at in lot], settled)
                        for at in lot:
                            stored[at] = True
            except KafkaError as error:
                self.failure = self.failure or error
        return stored

    def _settled(self, name: TopicPartition, position: Position) -> set[int]:
        """Offsets of letters that are settled by `position`: below it, or above it by its offset map."""
        above = offset_map.read(position.metadata, position.next_offset, where=map_place(name))
        return {
            one.offset
            for one in self._unmarked[name]
            if one.offset < position.next_offset or (above is not None and above.settled(one.offset))
        }

    async def _write(
        self,
        redriven: Redriven,
        died_again: Sequence[_DiedAgain],
        settled: Mapping[TopicPartition, set[int]],
    ) -> None:
        """One transaction: the new letters, and a mark for each partition. Parts that are too large are left out."""
        chooser = redriven.chooser
        marks = [
            _mark(redriven.homes[name.partition], runs_of(done))
            for name, offsets in settled.items()
            if (done := split(self._unmarked[name], offsets)[0])
        ]
        if not marks and not died_again:
            return
        while True:
            again = [one.record(len(redriven.homes)) for one in died_again]
            refused = await redriven.writer.write([*again, *marks])
            if refused is None:
                break
            if refused >= len(again):
                raise KafkaError(
                    f"Kafka: {chooser.topic.name} takes no mark of what is done: raise its max.message.bytes"
                )
            if not died_again[refused].leave_out_more():
                raise KafkaError(
                    f"Kafka: {chooser.topic.name} does not take the letter of {died_again[refused].before.origin} "
                    "once more: raise its max.message.bytes, or give it cleanup.policy=delete"
                )
        for one in died_again:
            if one.left_out:
                chooser.outcome.note(
                    f"{one.before.place} died once more, too large for its topic: the new letter is without its "
                    f"{' and '.join(one.left_out)}"
                )
        for name, offsets in settled.items():
            # Split anew: more may have been handed out meanwhile.
            done, self._unmarked[name] = split(self._unmarked[name], offsets)
            chooser.tally.redriven += len(done)


def _lots(indices: Sequence[int], letters: Sequence[DeadLetter]) -> Iterator[list[int]]:
    """As many letters together as one transaction holds."""
    lot: list[int] = []
    size = 0
    for at in indices:
        record = letters[at].record
        lot.append(at)
        size += len(record.value or b"") + len(record.key or b"")
        if len(lot) >= LOT_LETTERS or size >= LOT_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _mark(home: Home, runs: Iterable[tuple[int, int]]) -> NewRecord:
    """The record that says of these letters of a partition that they are done."""
    headers = mark_headers(runs, home)
    # A compacted topic keeps what has a key of its own and a value.
    key = f"pinstream.done-{uuid.uuid4()}".encode()
    return NewRecord(home.topic, home.partition, key, headers[0][1], headers)


def split(letters: Iterable[Unmarked], settled: Container[int]) -> tuple[list[Unmarked], list[Unmarked]]:
    """Those that are settled, and the others, in order; `joins` is right in both."""
    done: list[Unmarked] = []
    left: list[Unmarked] = []
    after_done, bridged = False, True
    for one in letters:
        if one.offset in settled:
            done.append(one._replace(joins=one.joins and after_done))
            after_done, bridged = True, bridged and one.joins
        else:
            left.append(one._replace(joins=one.joins and bridged))
            after_done, bridged = False, True
    return done, left


def runs_of(letters: Iterable[Unmarked]) -> list[tuple[int, int]]:
    """Letters of one partition, in order, as runs of offsets."""
    runs = Runs()
    for one in letters:
        if not one.joins:
            runs.skip()
        runs.add(one.offset)
    return runs.take()


_REDUCTIONS: Final[tuple[tuple[str, ...], ...]] = ((), (VALUE,), (VALUE, HEADERS), (VALUE, HEADERS, KEY))
"""What is left out of a letter: the first that its topic takes."""


class _DiedAgain:
    """The letter of a record that died once more: of its origin, and one trip further."""

    def __init__(self, letter: DeadLetter) -> None:
        before = read_letter(letter.topic, letter.partition, letter.record)
        if before is None:
            raise InvariantViolation("a redriven record does not say where it is from; please report this")
        self.before: DeadRecord = before
        topic, partition, offset = before.origin
        headers = next_trip(own_headers(letter.record.headers), before)
        record = letter.record._replace(offset=offset, headers=headers)
        self._letter = letter._replace(topic=topic, partition=partition, record=record)
        self._step = 0

    @property
    def left_out(self) -> tuple[str, ...]:
        """The parts that are left out."""
        return _REDUCTIONS[self._step]

    def leave_out_more(self) -> bool:
        """Leave out one part more. False if none is left."""
        self._step += 1
        return self._step < len(_REDUCTIONS)

    def record(self, partitions: int) -> NewRecord:
        """As it is written to the dead-letter topic, which has `partitions` partitions."""
        letter, left_out = self._letter, self.left_out
        return NewRecord(
            self.before.place.topic,
            letter.partition % partitions,
            None if KEY in left_out else letter.record.key,
            None if VALUE in left_out else letter.record.value,
            tuple(letter_headers(letter, left_out)),
        )
