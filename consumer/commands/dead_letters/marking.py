"""Write to a dead-letter topic what became of its letters: marks, and new letters of records that died again.

A letter is marked once its record is settled. One that dies again is written as a new letter in one transaction with
the mark of the old one, so that the two never wait together.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from consumer.adapters.kafka.letters import (
    DeadRecord,
    Done,
    Home,
    NewRecord,
    forms,
    mark_headers,
    next_trip,
    own_headers,
    read_letter,
)
from consumer.commands.dead_letters.outcome import RedriveOutcome
from consumer.commands.dead_letters.reading import DeadLetters
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, bug

# Limits of one transaction, which must end within seconds. A letter that is larger has a transaction to itself.
LOT_LETTERS: Final = 500
LOT_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Redriven:
    """A dead-letter topic that is redriven. `write` is `TransactionalWriter.write`."""

    letters: DeadLetters
    write: Callable[[Sequence[NewRecord]], Awaitable[int | None]]
    # By partition the offsets of letters that are on their way and not marked yet.
    handed_out: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def settled(self, position: Position) -> set[int]:
        """Return the offsets of letters that `position` settles: below it, or above it by its offset map."""
        name, base = TopicPartition(position.topic, position.partition), position.next_offset
        above = offset_map.read(position.metadata, base, where=map_place(name))
        return {
            at
            for at in self.handed_out[position.partition]
            if at < base or (above is not None and above.settled(at))
        }


class Marker:
    """Marks letters of `topics` (by name of the dead-letter topic), and is the `DeadLetterWriter` of a redrive."""

    def __init__(self, topics: Mapping[str, Redriven], outcome: RedriveOutcome) -> None:
        self.topics = topics
        self.outcome = outcome
        # Once a transaction has failed nothing can be marked any more: what is settled after that goes again next time.
        self.failure: KafkaError | None = None
        # One transaction at a time: a producer has no second one, and no letter may be marked twice.
        self._marking = asyncio.Lock()

    async def settle(self, positions: Sequence[Position]) -> bool:
        """Mark all letters that these positions settle. Return True if the broker has the marks."""
        async with self._marking:
            # One transaction per dead-letter topic, for all its partitions.
            for topic, redriven in self.topics.items():
                settled = {one.partition: redriven.settled(one) for one in positions if one.topic == topic}
                await self._write(redriven, [], settled)
        return self.failure is None

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Write new letters of records that died again, in one transaction with the marks of the old ones.

        See `consumer.service.DeadLetterWriter.store`.
        """
        stored = [False] * len(letters)
        async with self._marking:
            for topic, redriven in self.topics.items():
                for lot in _lots([at for at, one in enumerate(letters) if one.topic == topic], letters):
                    settled: defaultdict[int, set[int]] = defaultdict(set)
                    for at in lot:
                        settled[letters[at].partition].add(letters[at].record.offset)
                    # What is not stored stays open in the engine: it is not committed past.
                    written = await self._write(redriven, [letters[at] for at in lot], settled)
                    for at in lot:
                        stored[at] = written
        return stored

    async def _write(
        self, redriven: Redriven, dead: Sequence[DeadLetter], settled: Mapping[int, set[int]]
    ) -> bool:
        """Write the letters that are `dead` again and the marks of what is `settled`. Return True if it succeeded."""
        try:
            if self.failure is None:
                await self._transact(redriven, dead, settled)
        except KafkaError as error:
            self.failure = error
        return self.failure is None

    async def _transact(
        self, redriven: Redriven, dead: Sequence[DeadLetter], settled: Mapping[int, set[int]]
    ) -> None:
        topic, homes, handed = redriven.letters.name, redriven.letters.homes, redriven.handed_out
        # Fixed before the write: more may be handed out meanwhile.
        done = {partition: handed[partition] & offsets for partition, offsets in settled.items()}
        marks = [_mark(homes[partition], offsets) for partition, offsets in done.items() if offsets]
        again = [_died_again(one) for one in dead]
        if not marks and not again:
            return
        # The topic may accept less than before: a letter that is too large is tried with fewer and fewer of its parts.
        # A transaction is refused as a whole, so all its other records are written again with it.
        tries = [forms(letter, topic, len(homes)) for _, letter in again]
        letters = [next(one) for one in tries]
        while (refused := await redriven.write([*letters, *marks])) is not None:
            if refused >= len(again):
                raise KafkaError(f"Kafka: {topic} takes no mark of what is done: raise its max.message.bytes")
            smaller = next(tries[refused], None)
            if smaller is None:
                raise KafkaError(
                    f"Kafka: {topic} does not take the letter of {again[refused][0].origin} once more: raise its "
                    "max.message.bytes, or give it cleanup.policy=delete"
                )
            letters[refused] = smaller
        for (before, _), written in zip(again, letters, strict=True):
            if written.left_out:
                self.outcome.note(
                    f"{before.place} died once more, too large for its topic: the new letter is without its "
                    f"{' and '.join(written.left_out)}"
                )
        # Only now: a letter whose mark is not written must be marked by the next commit.
        for partition, offsets in done.items():
            handed[partition] -= offsets
            redriven.letters.tally.redriven += len(offsets)


def _lots(indices: Sequence[int], letters: Sequence[DeadLetter]) -> Iterator[list[int]]:
    """Divide the letters at `indices` into lots, each for one transaction."""
    lot: list[int] = []
    size = 0
    for at in indices:
        record = letters[at].record
        lot.append(at)
        # Without headers: it need not be exact.
        size += len(record.value or b"") + len(record.key or b"")
        if len(lot) >= LOT_LETTERS or size >= LOT_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _mark(home: Home, offsets: Iterable[int]) -> NewRecord:
    """Return the record that says of these letters of a partition that they are done."""
    done = Done()
    done.add((at, at + 1) for at in sorted(offsets))
    headers = mark_headers(done.runs(), home)
    # A compacted topic keeps what has a key of its own and a value.
    key = f"pinstream.done-{uuid.uuid4()}".encode()
    return NewRecord(home.topic, home.partition, key, headers[0][1], headers)


def _died_again(letter: DeadLetter) -> tuple[DeadRecord, DeadLetter]:
    """Return the letter before, and the new one: with the origin of the first, and one more trip."""
    # The headers of its letter went with the record (`redrive.choose`), and the engine keeps headers as they are.
    before = read_letter(letter.topic, letter.partition, letter.record)
    if before is None:
        raise bug("a redriven record does not say where it is from")
    topic, partition, offset = before.origin
    headers = next_trip(own_headers(letter.record.headers), before)
    record = letter.record._replace(offset=offset, headers=headers)
    return before, letter._replace(topic=topic, partition=partition, record=record)
