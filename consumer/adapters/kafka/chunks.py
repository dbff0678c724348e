"""From librdkafka's messages to chunks of records: fast, bounded in bytes, and without damaged batches.

A consume returns the records of all partitions, in runs. They are grouped by partition, epoch of the assignment
and leader epoch, in offset order.

A thousand records may be a megabyte or some gigabytes, and the client hands out records by number only. So they are
taken a slice at a time (`Inbox`), each as large as the size of the records before it allows, until they hold
`MAX_FETCH_BYTES`: what is fetched beyond the engine's budget, and held unread, has a bound. The messages of a slice
beyond that are kept back for the next fetch.

If records come one by one, a fetch that did not wait would bring a few of them, and cost as much as one of a thousand.
So, after a fetch that emptied the client's queue, the next one gathers until `GATHER_SECONDS` have passed, whatever
broker the records come from, and then ends with the next answer, whose records need not wait. A chunk says for how long
it was gathered (`waited`): that counts into the linger of its batch. A record that comes alone does not wait, nor do
records enough for a call, or a fetch whose thread has something else to do.

*Damaged batches.* Each batch of records has a checksum. If it does not fit (a byte was changed on the wire, in a
broker's memory or on its disk), if the batch cannot be decompressed, or has an unknown format, librdkafka reports it
and goes on *somewhere* behind the error: it loses its place in the answer and reads any bytes there as the next batch,
so that it skips records, or finds the offset out of range and begins the whole log again (librdkafka 2.16;
`rdkafka_msgset_reader.c` has the remark). None of that can be trusted. So all messages behind such an error in its
partition are dropped, the partition is paused, and after a while reading goes on at the offset where it stopped: a
batch that was damaged on the wire then comes whole; one that is damaged on the disk fails until it is repaired, or
until an operator moves the group past it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Message

from consumer.adapters.kafka.client_errors import DAMAGED
from consumer.adapters.kafka.native import gather
from consumer.engine.model import Chunk, Record, TopicPartition

MAX_RECORDS: Final = 2000
"""Records of one fetch at most."""
MAX_FETCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of a fetch from which on no further slice is taken."""
_SLICE: Final = 256
"""Most records of a slice, and so the most large records that may come unforeseen behind small ones. Each slice
hands the GIL over between two busy threads: slices of 64 cost 0.5 µs a record."""

GATHER_SECONDS: Final = 0.17
"""Seconds after a fetch that brought records and emptied the client's queue for which the next one gathers: a fetch
costs two milliseconds of CPU until its events are settled. Then it ends with the next answer of a broker: the
fourth, where a broker answers after 50 ms."""
_ENOUGH: Final = 1000
"""Records after which a fetch that has waited ends: a call takes as many."""
_ANSWER_SECONDS, _ANSWER_PARTS_SECONDS = 0.06, 0.002
"""Seconds that it waits for that answer at most, and then for the rest of it: an answer has a part for each
partition."""

CHECK_SECONDS, IDLE_CHECK_SECONDS = 0.2, 0.4
"""While no record comes, the thread checks at this interval, in seconds, whether it has something else to do: the
longest that a commit or a stop waits for it. A check costs 0.1 ms; only a record ends a consume. The second interval
holds after a fetch without records, when there is hardly anything to commit. It must be well below the time in which
a service has to leave the group (`service._LEAST_CLOSE`)."""

_Key = tuple[Any, Any, int | None]
"""Topic, partition, leader epoch."""


class Taken:
    """Messages that were taken, sorted into records, errors and damaged batches. What follows a damaged batch is
    dropped."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        """All messages that were added."""
        self.size = 0
        """Bytes of the messages' records, dropped records included."""
        self.errors: list[Message] = []
        """The messages that are errors, except for damaged batches."""
        self.since = math.inf
        """When the fetch began to gather, with the first of them (monotonic)."""
        self.waited = 0.0
        """For how many seconds it has waited for the others."""
        self.damaged: dict[TopicPartition, KafkaError] = {}
        """The first damaged batch of each partition that has one."""
        self._runs: list[tuple[_Key, list[Record]]] = []
        """The records of each chunk, in the order in which they began."""
        self._last: dict[_Key, list[Record]] = {}
        """By key, the list in `_runs` that may still grow."""

    def chunks(self, epoch_of: Callable[[Any], int | None]) -> list[Chunk]:
        """Return the chunks of the partitions that have an epoch. `epoch_of` is called only for partitions that
        records came from."""
        return [
            Chunk(topic, partition, epoch, leader, records, waited=self.waited)
            for (topic, partition, leader), records in self._runs
            if (epoch := epoch_of((topic, partition))) is not None
        ]

    def add(self, messages: list[Message], maximum: int) -> None:
        """Move messages from the list to here, and their records into chunks, up to `maximum` messages or
        `MAX_FETCH_BYTES`."""
        taken = messages[: maximum - len(self.messages)]
        at = 0
        while at < len(taken) and (at == 0 or self.size < MAX_FETCH_BYTES):
            message = taken[at]
            error, topic, partition = message.error(), message.topic(), message.partition()
            if error is None and (topic, partition) not in self.damaged:
                key, offset = (topic, partition, message.leader_epoch()), message.offset() or 0
                records = self._last.get(key)
                # Where offsets go back, the log was cut, or its topic deleted and created again. Then a new chunk
                # begins, so that offsets rise within each chunk.
                if records is None or offset <= records[-1].offset:
                    records = self._last[key] = []
                    self._runs.append((key, records))
                at, size = gather(taken, at, records, MAX_FETCH_BYTES - self.size)
                self.size += size
                continue
            at += 1
            # What follows a damaged batch is dropped (see the module), but it is in memory until the fetch ends, so it
            # counts.
            if error is None or (topic, partition) in self.damaged:
                self.size += len(message.value() or b"")
                continue
            if error.code() in DAMAGED and topic is not None and partition is not None:
                self.damaged[TopicPartition(topic, partition)] = error
            else:
                self.errors.append(message)
        self.messages += taken[:at]
        del messages[:at]


class Inbox:
    """Takes messages from a client, as many as a fetch may hold, and keeps the others back for the next fetch.

    Lives in the consumer's thread. Code that ends an assignment or seeks in a partition also has to drop its kept-back
    messages (`keep`).
    """

    def __init__(self, consumer: Consumer, *, gather: float) -> None:
        """`gather`: `GATHER_SECONDS`, or 0 where all records are there."""
        self._consumer = consumer
        self._gather = gather
        self._kept_back: list[Message] = []
        self._emptied = -math.inf
        """When a fetch that brought records last emptied the client's queue, or waited for more (monotonic)."""
        self.drained = False
        """Whether the last fetch emptied the client's queue."""
        self.idle = False
        """Whether the last fetch brought nothing."""

    def take(
        self,
        room: int,
        timeout: float,
        is_wanted: Callable[[], bool] = lambda: False,
        check_every: float = CHECK_SECONDS,
    ) -> Taken:
        """Take up to `room` records that are there; wait for the first one, at most `timeout` seconds, and gather,
        unless the thread `is_wanted` for something else, which it checks each `check_every` seconds.

        Polls the client in any case, because the group requires it. Without room it takes one message, which may be an
        error, unless messages are kept back already.
        """
        taken = Taken()
        maximum = min(room if self._kept_back else max(1, room), MAX_RECORDS)
        now, fitting, is_empty = time.monotonic(), 1, False
        gathered = self._emptied + self._gather
        waits = self._waits(taken, now + (0.0 if self._kept_back and room > 0 else timeout), gathered)
        count, until = next(waits)
        while count:
            asked = min(count, fitting)
            # It returns earlier when it has all that it asked for.
            found = self._consumer.consume(asked, min(check_every, max(0.0, until - now)))
            self._kept_back += found
            taken.add(self._kept_back, maximum)
            now, is_empty = time.monotonic(), len(found) < asked
            if taken.messages:
                taken.since = min(taken.since, now)
                maximum = min(maximum, _ENOUGH) if taken.since < gathered else maximum
                # How many more records fit if they are as large as the records so far.
                fitting = (MAX_FETCH_BYTES - taken.size) * len(taken.messages) // max(1, taken.size)
                fitting = min(fitting, maximum - len(taken.messages))
                if self._kept_back or fitting <= 0:
                    break
            if is_empty and is_wanted():
                break
            if now >= until if is_empty else count == 1:
                count, until = next(waits, (0, now))
        self.drained, self.idle = is_empty, not taken.messages
        if taken.messages and (is_empty or taken.since < gathered):
            self._emptied = now
        taken.waited = max(0.0, now - taken.since)
        return taken

    def _waits(self, taken: Taken, until: float, gathered: float) -> Iterator[tuple[int, float]]:
        """Yield what a fetch waits for, one after the other: for how many records at a time, and until when."""
        # For one record: a large one would wait until all its records have come.
        yield 1, until
        yield (_SLICE if taken.messages else 0), gathered
        if taken.since < gathered:
            # The records of the next answer need not wait, so that is when a fetch ends.
            yield 1, gathered + _ANSWER_SECONDS
            yield _SLICE, time.monotonic() + _ANSWER_PARTS_SECONDS

    def keep(self, names: Container[Any]) -> None:
        """Drop kept-back messages, except for errors and records of these partitions (pairs of topic and number)."""
        self._kept_back = [
            one
            for one in self._kept_back
            if one.error() is not None or (one.topic(), one.partition()) in names
        ]

    def first_offsets(self) -> dict[TopicPartition, Any]:
        """Return the first kept-back offset of each partition."""
        return {
            TopicPartition(one.topic() or "", one.partition() or 0): one.offset()
            for one in reversed(self._kept_back)
            if one.error() is None
        }
