"""From librdkafka's messages to chunks of records: hot, and bounded in bytes.

A consume returns the records of all partitions, in runs. They are grouped by partition, epoch of the assignment
and leader epoch, in offset order; within a run the group is found by comparing with the last record's, without
making a key. Where offsets go back (behind the tail of a log comes the head of another: it was cut, or its topic made
anew) a chunk of its own begins, so that within each they rise. 0.3 to 0.4 µs a record, of which the nine calls into the
client are about half.

A thousand records may be a megabyte or some gigabytes, and the client hands out records by their number only. So they
are taken a slice at a time (`Inbox`), each as large as the records before it let expect, until they hold `MOST_BYTES`:
what is fetched beyond the core's budget, and held unread, has a bound. Headers are counted when they become objects,
which may be twenty times their bytes; what of a slice goes beyond `MOST_BYTES` is kept back for the next fetch.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from typing import Any, Final, Protocol

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from consumer.engine.block import size_of_headers
from consumer.engine.model import UNREADABLE_HEADERS, Chunk, Record

_new_record = tuple.__new__  # what `Record(...)` comes down to, without its argument handling


MOST_RECORDS: Final = 1000
"""Records of one fetch at most."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one fetch, after which no further slice is taken."""
_SLICE: Final = 256
"""Records of a slice at most: so many come unforeseen, where large ones follow small ones. Each slice is a hand-over of
the GIL between two busy threads: slices of 64 cost 0.5 µs a record."""


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

    @property
    def fitting(self) -> int:
        """How many more records fit into a fetch, if they are as large as those that are here."""
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
            if headers and size >= MOST_BYTES:
                # Headers are objects only once they are asked for: those of the records behind stay as they are.
                del taken[taken.index(message) + 1 :]
                break
        self.messages += taken
        del messages[: len(taken)]
        self.size = size

    def _run(self, key: _Key, offset: int) -> list[Record]:
        """Where the records of a run go that begins at `offset`."""
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

    Lives in the consumer's thread. Whoever ends an assignment, or moves the place where a partition is read, discards
    what is kept back of it.
    """

    def __init__(self, consumer: Client) -> None:
        self._consumer = consumer
        self._kept_back: list[Message] = []

    def take(self, room: int, timeout: float) -> Taken:
        """What is there for `room` records; waits for the first one only, `timeout` seconds at most.

        Asks the client in any case, since that is the poll which the group wants to see. Without room it takes one
        message, which may be an error, unless some are kept back already.
        """
        taken = Taken()
        most = min(room if self._kept_back else max(1, room), MOST_RECORDS)
        # The first wait ends with the first record; one large consume would wait until it is full.
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

    def first_offsets(self) -> dict[tuple[Any, Any], Any]:
        """Of each partition of which something is kept back, the first offset."""
        return {
            (one.topic(), one.partition()): one.offset()
            for one in reversed(self._kept_back)
            if one.error() is None
        }
