"""Keeps the topic ahead of the consumer, by a bounded number of records, and deletes what is committed.

A thread of the watching process: producing is librdkafka's work, and what is left takes a few microseconds a record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.soak.records import PARTITIONS, Records

_CHUNK = 500
"""Records between two checks of how far ahead the producer is."""
_WITHIN = 60.0


def create_topics(bootstrap: str, topic: str) -> None:
    """Create the topic and the one for its dead letters. Segments are small, so that deleting records frees the
    disk."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    config = {"segment.bytes": str(16 << 20), "file.delete.delay.ms": "1000"}
    names = [topic, f"{topic}.dead-letters"]
    made = admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config) for name in names])
    for one in made.values():
        one.result(_WITHIN)


class Backlog:
    """Produces `records` onto `topic` in a thread; a context manager.

    Never more than `ahead` records beyond the last argument of `settled`. `rate`: records a second on average, for runs
    that are to take their time; they come `ahead` at once, with pauses between. None: as fast as they are taken.
    """

    def __init__(
        self, bootstrap: str, topic: str, records: Records, *, ahead: int, rate: float | None
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._records = records
        self._ahead = ahead
        self._rate = rate
        self._settled = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-producer", daemon=True)
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self.produced = 0
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_WITHIN)

    def settled(self, records: int) -> None:
        """Report that `count` records are settled in all."""
        self._settled = records

    def let_go(self, committed: Mapping[int, int]) -> None:
        """Delete what is before these offsets, by partition: it has been read and committed."""
        asked = [TopicPartition(self._topic, number, offset) for number, offset in committed.items()]
        for one in self._admin.delete_records(asked).values() if asked else ():
            one.result(_WITHIN)

    def _run(self) -> None:
        try:
            self._produce()
        except BaseException as error:  # whoever watches is to hear of it
            self.failure = error

    def _produce(self) -> None:
        failed: list[str] = []
        producer = Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "linger.ms": 20,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
                "on_delivery": lambda error, _: failed.append(str(error)) if error is not None else None,
            }
        )
        begun = time.monotonic()
        for number, record in enumerate(self._records):
            if number % _CHUNK == 0 and not self._wait_for_room(number, begun, producer):
                return
            producer.produce(self._topic, record.value, partition=record.partition)
            self.produced = number + 1
        if producer.flush(_WITHIN) or failed:
            raise RuntimeError(f"not all records could be produced: {failed[:1]}")

    def _wait_for_room(self, number: int, begun: float, producer: Producer) -> bool:
        """Wait until the next chunk may go; False when the producer was closed."""
        while not self._ended.is_set():
            producer.poll(0)
            allowed = self._settled
            if self._rate is not None:
                waves = int((time.monotonic() - begun) * self._rate / self._ahead)
                allowed = min(allowed, waves * self._ahead)
            if number - allowed < self._ahead:
                return True
            self._ended.wait(0.02)
        return False
