"""From librdkafka's messages to chunks of records: hot, and bounded in bytes.

A consume returns the records of all partitions, in runs. They are grouped by partition, epoch of the assignment
and leader epoch, in offset order; within a run the group is found by comparing with the last record's, without
making a key. Where offsets go back (behind the tail of a log comes the head of another: it was cut, or its topic made
anew) a chunk of its own begins, so that within each they rise. 0.3 to 0.4 µs a record, of which the nine calls into the
client are about half.

A thousand records may be a megabyte or some gigabytes, and the client hands out records by their number only. So they
are taken a slice at a time (`take`), each as large as the records before it let expect, until they hold `MOST_BYTES`:
what is fetched beyond the core's budget, and held unread, has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from consumer.core.model import UNREADABLE_HEADERS, Chunk, Record
from consumer.core.spans import size_of_headers

_new_record = tuple.__new__  # what `Record(...)` comes down to, without its argument handling


MOST_RECORDS: Final = 1000
"""Records of one fetch at most."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one fetch, after which no further slice is taken."""
_SLICE: Final = 64
"""Records of a slice at most. A record costs no more so than in a slice of a thousand."""


_Key = tuple[Any, Any, int | None]
"""Topic, partition, leader epoch."""


class Client(Protocol):
    """What of a consumer is used here."""

    def consume(self, num_messages: int = ..., timeout: float = ...) -> list[Message]:
        """At most `num_messages`, as soon as all are there, or those that are after `timeout` seconds."""


class Taken:
    """Messages, and what is in them: records, and errors."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """All that were added."""
        self.size = 0
        """Bytes that their records hold."""
        self.errors: list[Message] = []
        """Those that are errors."""
        self._records: dict[_Key, list[Record]] = {}
        self._before: list[tuple[_Key, list[Record]]] = []
        """Records behind which offsets went back."""

    def chunks(self, epochs: Mapping[Any, int]) -> list[Chunk]:
        """Those of the partitions that are in `epochs`."""
        return [
            Chunk(topic, partition, epochs[topic, partition], leader, records)
            for (topic, partition, leader), records in (*self._before, *self._records.items())
            if (topic, partition) in epochs
        ]

    def add(self, messages: list[Message]) -> None:
        """Put their records into chunks."""
        last_topic: str | None = None
        last_partition: int | None = -1
        last_leader: int | None = -1
        last_offset = -1
        records: list[Record] = []
        size = sum(map(len, messages))  # of values
        for message in messages:
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
                # The client decodes names as UTF-8, and any bytes can be one: no such record stops a topic.
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
        self.messages += messages
        self.size += size

    def _run(self, key: _Key, offset: int) -> list[Record]:
        """Where the records of a run go that begins at `offset`."""
        records = self._records.setdefault(key, [])
        if records and offset <= records[-1].offset:
            self._before.append((key, records))
            records = self._records[key] = []
        return records


def group(messages: list[Message], epochs: Mapping[Any, int]) -> tuple[list[Chunk], list[Message]]:
    """Chunks of the records whose partition is in `epochs`, and the messages that are errors."""
    taken = Taken()
    taken.add(messages)
    return taken.chunks(epochs), taken.errors


def take(consumer: Client, room: int, timeout: float) -> Taken:
    """What is there for `room` records, which is at least 1; waits for the first one only, `timeout` seconds at most.

    No more than `MOST_RECORDS`, and no further slice beyond `MOST_BYTES`: the last one may exceed that by as much as
    its records are larger than those before it.
    """
    taken = Taken()
    # The first wait ends with the first record; one large consume would wait until it is full.
    asked, left = 1, min(room, MOST_RECORDS)
    found = consumer.consume(1, timeout)
    while found:
        taken.add(found)
        left -= len(found)
        fitting = (MOST_BYTES - taken.size) * len(taken.messages) // max(1, taken.size)
        if left <= 0 or fitting <= 0 or len(found) < asked:
            break
        asked = min(_SLICE, left, fitting)
        found = consumer.consume(asked, 0)
    return taken
