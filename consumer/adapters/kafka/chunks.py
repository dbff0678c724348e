"""From librdkafka's messages to chunks of records: hot, bounded in bytes, and without what came damaged.

A consume returns the records of all partitions, in runs. They are grouped by partition, epoch of the assignment
and leader epoch, in offset order; within a run the group is found by comparing with the last record's, without
making a key. Where offsets go back (the log was cut, or its topic deleted and created again) a new chunk begins, so
that offsets rise within each chunk. 0.3 to 0.4 µs a record, about half of it the nine calls into the client.

A thousand records may be a megabyte or some gigabytes, and the client hands out records by number only. So they are
taken a slice at a time (`Inbox`), each as large as the size of the records before it allows, until they hold
`MOST_BYTES`: what is fetched beyond the engine's budget, and held unread, has a bound. Headers are counted when they
become objects, which may take twenty times their bytes; what of a slice goes beyond `MOST_BYTES` is kept back for the
next fetch.

*Damaged batches.* Each batch of records has a checksum. Where it does not fit (a byte was changed on the wire, in a
broker's memory or on its disk), where the batch cannot be decompressed, or has an unknown format, librdkafka reports it
and goes on *somewhere* behind the error: it loses its place in the answer and takes what stands there for the next
batch, so that it skips records, or finds the offset out of range and begins the whole log again (librdkafka 2.16;
`rdkafka_msgset_reader.c` has the remark). None of that can be trusted. So what follows such an error in its partition
is dropped, the partition is paused, and after a while reading goes on at the very offset where it stopped: what was
damaged on its way then comes whole; what is damaged on the disk fails until it is repaired, or until an operator moves
the group past it.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, Message

from consumer.engine.block import size_of_headers
from consumer.engine.model import UNREADABLE_HEADERS, Chunk, Record, TopicPartition

_new_record = tuple.__new__  # what `Record(...)` does in the end, without its argument handling


MOST_RECORDS: Final = 1000
"""Records of one fetch at most."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Once a fetch holds this many bytes, no further slice is taken."""
_SLICE: Final = 256
"""Records of a slice at most: this many may come unforeseen, where large records follow small ones. Each slice hands
the GIL over between two busy threads: slices of 64 cost 0.5 µs a record."""


_Key = tuple[Any, Any, int | None]
"""Topic, partition, leader epoch."""


DAMAGED: Final = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED, KafkaError.INVALID_MSG}
)
"""What librdkafka reports for a batch with a wrong checksum, that cannot be decompressed or has an unknown format; and
what a broker reports when it cannot read its disk."""

_FIRST_DELAY: Final = 0.5
_MOST_DELAY: Final = 30.0


class Client(Protocol):
    """What is used here of a consumer."""

    def consume(self, num_messages: int = ..., timeout: float = ...) -> list[Message]:
        """Return `num_messages` as soon as all are there, or those that are there after `timeout` seconds."""


class Taken:
    """Messages, and what they hold: records and errors."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """All messages that were added."""
        self.size = 0
        """Bytes that their records hold."""
        self.errors: list[Message] = []
        """Those of the messages that are errors."""
        self._records: dict[_Key, list[Record]] = {}
        self._before: list[tuple[_Key, list[Record]]] = []
        """Records after which offsets went back."""

    def chunks(self, epochs: Mapping[Any, int]) -> list[Chunk]:
        """The chunks of the partitions in `epochs`."""
        return [
            Chunk(topic, partition, epochs[topic, partition], leader, records)
            for (topic, partition, leader), records in (*self._before, *self._records.items())
            if (topic, partition) in epochs
        ]

    @property
    def fitting(self) -> int:
        """How many more records fit into a fetch, if they are as large as those so far."""
        return (MOST_BYTES - self.size) * len(self.messages) // max(1, self.size)

    def add(self, messages: list[Message], most: int = sys.maxsize) -> None:
        """Move messages here, their records into chunks, until there are `most` or they hold `MOST_BYTES`."""
        last_topic: str | None = None
        last_partition: int | None = -1
        last_leader: int | None = -1
        last_offset = -1
        records: list[Record] = []
        taken = messages[: most - len(self.messages)]
        size = self.size + sum(map(len, taken))  # of values
        for message in taken:
            if message.error() is not None:
                self.errors.append(message)
                continue
            topic, partition, leader = message.topic(), message.partition(), message.leader_epoch()
            offset: Any = message.offset()
            if (
                partition != last_partition
                or leader != last_leader
                or topic != last_topic
                or offset <= last_offset
            ):
                last_topic, last_partition, last_leader = topic, partition, leader
                records = self._run((topic, partition, leader), offset)
            last_offset = offset
            kind, timestamp = message.timestamp()
            try:
                read = message.headers()
            except SystemError:
                # The client decodes names as UTF-8, but any bytes can be a name: such a record must not stop a topic.
                read = [*UNREADABLE_HEADERS]
            headers: tuple[Any, ...] = ()
            if read:
                headers = tuple(read)
                size += size_of_headers(headers)
            if key := message.key():
                size += len(key)
            records.append(
                _new_record(
                    Record,
                    (
                        offset,
                        -1 if kind == TIMESTAMP_NOT_AVAILABLE else timestamp,
                        key,
                        message.value(),
                        headers,
                    ),
                )
            )
            if headers and size >= MOST_BYTES:
                # Headers become objects only when they are read: those of the records behind stay as they are.
                del taken[taken.index(message) + 1 :]
                break
        self.messages += taken
        del messages[: len(taken)]
        self.size = size

    def _run(self, key: _Key, offset: int) -> list[Record]:
        """The list for the records of a run that begins at `offset`."""
        records = self._records.setdefault(key, [])
        if records and offset <= records[-1].offset:
            self._before.append((key, records))
            records = self._records[key] = []
        return records


def group(messages: list[Message], epochs: Mapping[Any, int]) -> tuple[list[Chunk], list[Message]]:
    """Chunks of the records whose partition is in `epochs`, and the messages that are errors."""
    taken, left = Taken(), [*messages]
    while left:
        taken.add(left)
    return taken.chunks(epochs), taken.errors


class Inbox:
    """Takes messages from a client, as many as a fetch may hold; keeps back what came beyond that.

    Lives in the consumer's thread. Ending an assignment, or moving the place where a partition is read, includes
    dropping what is kept back of it.
    """

    def __init__(self, consumer: Client) -> None:
        self._consumer = consumer
        self._kept_back: list[Message] = []

    def take(self, room: int, timeout: float) -> Taken:
        """Take up to `room` records that are there; wait only for the first one, at most `timeout` seconds.

        Asks the client in any case, since that is the poll that the group requires. Without room it takes one message,
        which may be an error, unless some are kept back already.
        """
        taken = Taken()
        most = min(room if self._kept_back else max(1, room), MOST_RECORDS)
        # The first wait ends with the first record. One large consume would wait until it is full.
        asked, timeout = 1, 0.0 if self._kept_back and room > 0 else timeout
        while True:
            found = self._consumer.consume(asked, timeout)
            self._kept_back += found
            taken.add(self._kept_back, most)
            left, fitting = most - len(taken.messages), taken.fitting
            if self._kept_back or left <= 0 or fitting <= 0 or len(found) < asked:
                return taken
            asked, timeout = min(_SLICE, left, fitting), 0.0

    def drop_all_but(self, names: Container[Any]) -> None:
        """Keep back only what is of these partitions (pairs of topic and number), and errors."""
        self._kept_back = [
            one
            for one in self._kept_back
            if one.error() is not None or (one.topic(), one.partition()) in names
        ]

    def drop(self, name: tuple[str, int]) -> None:
        """Keep back no record of this partition."""
        self._kept_back = [
            one
            for one in self._kept_back
            if one.error() is not None or (one.topic(), one.partition()) != name
        ]

    def first_offsets(self) -> dict[TopicPartition, Any]:
        """The first offset that is kept back, for each partition that has some."""
        return {
            TopicPartition(one.topic() or "", one.partition() or 0): one.offset()
            for one in reversed(self._kept_back)
            if one.error() is None
        }


def take_damaged(messages: Iterable[Message]) -> tuple[list[Message], dict[TopicPartition, KafkaError]]:
    """The messages without what follows a damaged batch in its partition; and the first such error of each."""
    damaged: dict[TopicPartition, KafkaError] = {}
    kept: list[Message] = []
    for message in messages:
        topic, partition, error = message.topic(), message.partition(), message.error()
        if topic is None or partition is None:
            kept.append(message)
            continue
        name = TopicPartition(topic, partition)
        if name in damaged:
            continue
        if error is not None and error.code() in DAMAGED:
            damaged[name] = error
        else:
            kept.append(message)
    return kept, damaged


@dataclass(slots=True)
class _Damage:
    offset: int
    delay: float
    due: float | None
    """When to ask for it again; None: it was asked for, and nothing came yet."""


class Unreadable:
    """The partitions that cannot be read on. Lives in the consumer's thread."""

    def __init__(self) -> None:
        self._damages: dict[TopicPartition, _Damage] = {}
        self._offsets: Mapping[TopicPartition, int] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._damages)

    def offsets(self) -> Mapping[TopicPartition, int]:
        """The offset from which each cannot be read; may be called by other threads."""
        return self._offsets

    def waits(self, name: TopicPartition) -> bool:
        """Whether to drop what comes from this partition: it has not been asked for again yet."""
        damage = self._damages.get(name)
        return damage is not None and damage.due is not None

    def found(self, name: TopicPartition, offset: int, now: float) -> float:
        """It cannot be read on from `offset`. Returns the seconds until it is to be asked for again."""
        before = self._damages.get(name)
        again = before is not None and before.offset == offset
        delay = min(2 * before.delay, _MOST_DELAY) if before is not None and again else _FIRST_DELAY
        self._damages[name] = _Damage(offset, delay, now + delay)
        self._note()
        return delay

    def due(self, now: float) -> list[TopicPartition]:
        """Take those that are to be asked for now."""
        due = [name for name, one in self._damages.items() if one.due is not None and one.due <= now]
        for name in due:
            self._damages[name].due = None
        return due

    def discard(self, name: TopicPartition) -> None:
        """It can be read again, or is not ours any more."""
        if self._damages.pop(name, None) is not None:
            self._note()

    def _note(self) -> None:
        self._offsets = {name: one.offset for name, one in self._damages.items()}
