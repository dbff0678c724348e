"""A librdkafka producer with a thread that polls it, and the record producer of `pinstream produce`."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException, Message

from consumer.adapters.kafka.configuration import LOGGER, Config, make_client, producer_config
from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.trouble import cause_of, describe_error, is_unjudged_login
from consumer.adapters.thread import OwnThread, post
from consumer.errors import KafkaError

_POLL_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 1.0
"""Seconds between two polls while nothing is queued: they bring errors and statistics."""
# The partition of a record whose key decides where it goes.
_PARTITIONER: Final = -1


class PolledProducer:
    """A `confluent_kafka.Producer` with a thread of its own that polls and closes it."""

    def __init__(
        self, config: dict[str, Any], on_error: Callable[[confluent_kafka.KafkaError], None]
    ) -> None:
        self._producer = make_client(confluent_kafka.Producer, {**config, "error_cb": on_error})
        self._on_error = on_error
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = OwnThread("pinstream-kafka-producer")
        # The client's `produce` only queues, and delivery reports come in `poll`, in this thread: no work for the event
        # loop.
        self._thread.begin(self._poll)

    def produce(
        self,
        record: NewRecord,
        on_delivery: Callable[[confluent_kafka.KafkaError | None, Message], None],
    ) -> None:
        """Queue one record; `on_delivery` is called in the polling thread, once.

        Returns at once. Raises `BufferError` when the queue is full, `KafkaException` for what cannot be queued.
        """
        self._producer.produce(**record.arguments(), on_delivery=on_delivery)
        self._wake.set()

    def stop(self) -> None:
        """End the polling within a moment; what is still queued is dropped. Does not wait."""
        self._stopped.set()
        self._wake.set()
        self._thread.stop()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            try:
                if not len(self._producer):
                    self._wake.wait(_IDLE_SECONDS)
                    self._wake.clear()
                self._producer.poll(_POLL_SECONDS if len(self._producer) else 0.0)
            except KafkaException as error:
                # The producer has failed: each poll would return at once with the error.
                self._on_error(cause_of(error))
                self._stopped.wait()
            except Exception:
                # Raised by a callback. Without this thread no record would be acknowledged any more.
                LOGGER.exception("a delivery report could not be handled")
        # Otherwise `close` waits until all is acknowledged, possibly for ever.
        self._producer.purge(blocking=False)
        self._producer.close()


class RecordProducer:
    """Produces many records with back-pressure: ``await produce`` waits while the queue is full; `flush` at the end.

    Acknowledged by all in-sync replicas, idempotent. The first record that fails for good fails all that follows:
    `produce` and `flush` raise `KafkaError`, and `open_place` says where to go on. A record that fails because its
    connection had to log in is sent again, behind those that are queued. `delivery_timeout`: seconds for one record,
    retries included. `queue_records` limits what is queued, beside 32 MiB.
    """

    def __init__(
        self, config: Config, *, delivery_timeout: float = 30.0, queue_records: int = 10_000
    ) -> None:
        limits = {"queue.buffering.max.messages": queue_records, "queue.buffering.max.kbytes": 32 * 1024}
        complete = {**producer_config(config, delivery_timeout=delivery_timeout), **limits}
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._trouble = ""
        self._failure: str | None = None
        self._unqueued: deque[tuple[int, NewRecord]] = deque()
        """Records that librdkafka has to be given, for the first time or again, by their numbers."""
        # Records given to us so far, and records that the broker has acknowledged.
        self.produced = self.delivered = 0
        # By number, the places of the others.
        self._open: dict[int, int] = {}
        # Started last: it may call back at once.
        self._producer = PolledProducer(complete, self._on_error)

    @property
    def open_place(self) -> int:
        """Return the place of the first record that is not acknowledged; 0: all are. Those before it are."""
        return next(filter(None, self._open.values()), 0)

    async def produce(self, topic: str, key: bytes | None, value: bytes | None, place: int = 0) -> None:
        """Queue one record, waiting for room; `place`: where it is from. Raises `KafkaError` once any record has
        failed."""
        self.produced += 1
        self._open[self.produced] = place
        self._unqueued.append((self.produced, NewRecord(topic, _PARTITIONER, key, value)))
        await self._queue()
        if self.produced % 256 == 0:
            # Let other tasks run, also when the queue is never full.
            await asyncio.sleep(0)

    async def flush(self, timeout: float) -> None:
        """Wait until all records are acknowledged. Raises `KafkaError` if a record failed, or `timeout` seconds
        passed."""
        try:
            async with asyncio.timeout(timeout):
                while self._failure is None and self.delivered < self.produced:
                    await self._queue()
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            left = self.produced - self.delivered
            self._failure = f"{left} records not acknowledged within {timeout:g} s {self._trouble}"
        self._raise_failure()

    async def close(self) -> None:
        """Drop what is queued and close the producer. Call `flush` first."""
        self._producer.stop()

    async def _queue(self) -> None:
        while self._unqueued:
            self._raise_failure()
            self._moved.clear()
            number, record = self._unqueued[0]
            try:
                self._producer.produce(record, partial(post, self._loop, self._count, number))
                self._unqueued.popleft()
            except BufferError:
                # The wait is bounded: each queued record is delivered, or fails at its time limit.
                await self._moved.wait()
            except KafkaException as error:
                self._failure = describe_error(cause_of(error))

    def _count(self, number: int, error: confluent_kafka.KafkaError | None, message: Message) -> None:
        """Count a delivery report."""
        if error is None:
            self.delivered += 1
            del self._open[number]
        elif is_unjudged_login(error):
            # The broker has refused nothing. If it has stored the record all the same, there are two of it.
            again = NewRecord(message.topic() or "", _PARTITIONER, message.key(), message.value())
            self._unqueued.append((number, again))
        else:
            self._failure = self._failure or f"{message.topic()}: {describe_error(error)}"
        self._moved.set()

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        self._trouble = f"({describe_error(error)})"

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise KafkaError(
                "Kafka: a record was not accepted: check the broker and the topic, then produce again: "
                f"{self._failure}"
            )
