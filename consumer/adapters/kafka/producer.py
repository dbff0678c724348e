"""Producing: a librdkafka producer with a thread that polls it, and the record producer of `pinstream produce`.

`produce` of the client only queues; delivery reports come in `poll`. `PolledProducer` gives each producer a thread
that polls, so that reports come at once without work for the event loop. The thread also closes the client, after a
purge: `close` alone waits until everything that is queued is acknowledged, possibly for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaException, Message

from consumer.adapters.kafka.configuration import LOGGER, Config, make_client, producer_config
from consumer.adapters.kafka.trouble import describe_error, exception_error
from consumer.adapters.thread import OwnThread, post
from consumer.errors import KafkaError

OnDelivery = Callable[[confluent_kafka.KafkaError | None, Message], None]
Headers = Sequence[tuple[str, bytes | None]]

_POLL_SECONDS = 0.1
_PARTITIONER = -1
_NOW = 0


class PolledProducer:
    """A `confluent_kafka.Producer` that is polled by a thread of its own."""

    def __init__(
        self, config: dict[str, Any], heard_error: Callable[[confluent_kafka.KafkaError], None]
    ) -> None:
        self._producer = make_client(confluent_kafka.Producer, {**config, "error_cb": heard_error})
        self._stopped = threading.Event()
        self._thread = OwnThread("pinstream-kafka-producer")
        self._thread.begin(self._poll)

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        on_delivery: OnDelivery,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue one record; `on_delivery` is called in the polling thread, once.

        Returns at once. Raises `BufferError` when the queue is full, `KafkaException` for what cannot be queued.
        """
        self._producer.produce(
            topic,
            value=value,
            key=key,
            headers=list(headers),
            on_delivery=on_delivery,
            partition=_PARTITIONER if partition is None else partition,
            timestamp=_NOW if timestamp_ms is None else timestamp_ms,
        )

    def stop(self) -> None:
        """End the polling within a moment; what is still queued is dropped. Does not wait."""
        self._stopped.set()
        self._thread.stop()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            try:
                self._producer.poll(_POLL_SECONDS)
            except (
                Exception
            ):  # raised by a callback; without this thread no record would be acknowledged any more
                LOGGER.exception("a delivery report could not be handled")
        self._producer.purge(blocking=False)  # else `close` waits until all is acknowledged
        self._producer.close()


class RecordProducer:
    """Produces many records with back-pressure: ``await produce`` waits while the queue is full; `flush` at the end.

    Acknowledged by all in-sync replicas, idempotent. The first record that fails for good fails all that follows:
    `produce` and `flush` raise `KafkaError`. `delivery_timeout`: seconds for one record, retries included.
    `queue_records` and `queue_bytes` limit what is queued.
    """

    def __init__(
        self,
        config: Config,
        *,
        delivery_timeout: float = 30.0,
        queue_records: int = 10_000,
        queue_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        limits = {
            "queue.buffering.max.messages": queue_records,
            "queue.buffering.max.kbytes": max(1, queue_bytes // 1024),
        }
        complete = {**producer_config(config, delivery_timeout=delivery_timeout), **limits}
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._trouble = ""
        self._failure: str | None = None
        self.produced = 0
        """Records queued so far."""
        self.delivered = 0
        """Records that the broker has acknowledged."""
        self._producer = PolledProducer(complete, self._heard_error)  # last: it may call back at once

    async def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue one record, waiting for room. Raises `KafkaError` once any record has failed."""
        while True:
            self._raise_failure()
            self._moved.clear()
            try:
                self._producer.produce(
                    topic, key, value, headers, self._heard_delivery, partition, timestamp_ms
                )
                break
            except BufferError:
                await (
                    self._moved.wait()
                )  # bounded: each queued record is delivered, or fails at its time limit
            except KafkaException as error:
                raise self._failed(describe_error(exception_error(error))) from error
        self.produced += 1
        if self.produced % 256 == 0:
            await asyncio.sleep(0)  # let others run, also when the queue is never full

    async def flush(self, timeout: float) -> None:
        """Wait until all is acknowledged. Raises `KafkaError` if a record failed, or `timeout` seconds passed."""
        try:
            async with asyncio.timeout(timeout):
                while self._failure is None and self.delivered < self.produced:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            left = self.produced - self.delivered
            raise self._failed(
                f"{left} records not acknowledged within {timeout:g} s {self._trouble}"
            ) from None
        self._raise_failure()

    async def close(self) -> None:
        """Drop what is queued and end. Call `flush` first."""
        self._producer.stop()

    def _heard_delivery(self, error: confluent_kafka.KafkaError | None, message: Message) -> None:
        post(
            self._loop, self._count, None if error is None else f"{message.topic()}: {describe_error(error)}"
        )

    def _count(self, failure: str | None) -> None:
        if failure is None:
            self.delivered += 1
        else:
            self._failure = self._failure or failure
        self._moved.set()

    def _heard_error(self, error: confluent_kafka.KafkaError) -> None:
        self._trouble = f"({describe_error(error)})"

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failed(self._failure)

    def _failed(self, reason: str) -> KafkaError:
        return KafkaError(
            f"Kafka: a record was not accepted: check the broker and the topic, then produce again: {reason}"
        )
