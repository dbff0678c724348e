"""The producer of receipts: acknowledged by the broker, or not stored.

Theory of operation. The receipts of each source partition go to one partition of the receipts topic, so those with one
key are in the order in which they were written. The client makes no object of a record that was
acknowledged, only of one that was not (``delivery.report.only.error``): when it holds none any more, all others are
stored. It is polled on the event loop, without waiting, and only during a write: a report takes the interpreter's lock,
and a thread of its own would wait for it with each record while the loop is busy.

A write that fails is followed by one with another client, so no state of a client outlives what went wrong. If a batch
was too large for the topic, the next ones are smaller: one receipt always fits (`encoding.MAX_RECEIPT_BYTES`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.aws.msk import NoToken
from consumer.adapters.kafka import client_errors, configuration
from consumer.adapters.kafka.cluster import setting_command
from consumer.adapters.kafka.configuration import Config
from consumer.adapters.kafka.dead_letters import SIZE_LIMIT, WrittenTopics
from consumer.adapters.receipts.encoding import ReceiptEncoder
from consumer.adapters.thread import post, run_aside, run_blocking
from consumer.engine.receipts import Receipts
from consumer.errors import RegistryError, SettingsError
from consumer.ports import WrittenReceipts

_Code = confluent_kafka.KafkaError
# Seconds between two polls of a write: a broker answers within some milliseconds.
_POLL_SECONDS: Final = 0.003
# Seconds of encoding after which other work of the event loop goes on.
_SLICE_SECONDS: Final = 0.02
_BATCH_BYTES: Final = 1_000_000
_LEAST_BYTES: Final = 2048
"""Bytes of a batch at least: one receipt with its key."""
_SMALLER: Final = 8


class ReceiptProducer:
    """Stores receipts on `topic`. Make it on the event loop.

    `register` returns the id of their schema in the registry, and may raise `RegistryError`; None: there is no
    registry. `make_encoder` takes that id. `timeout`: seconds for each step of one `store`.
    """

    def __init__(
        self,
        config: Config,
        topic: str,
        make_encoder: Callable[[int | None], ReceiptEncoder],
        register: Callable[[], Awaitable[int]] | None = None,
        *,
        timeout: float = 10.0,
        on_error: client_errors.OnError = client_errors.ignore_error,
    ) -> None:
        self._topic = topic
        self._make_encoder = make_encoder
        self._register = register
        self._timeout = timeout
        self._on_error = on_error
        self._config = {
            **configuration.producer_config(config, delivery_timeout=timeout),
            "delivery.report.only.error": True,
            **configuration.UNLIMITED_QUEUE,
            "message.max.bytes": _BATCH_BYTES,
            "error_cb": client_errors.ErrorReporter(on_error),
        }
        report = partial(post, asyncio.get_running_loop(), self._failed)
        self._topics = WrittenTopics(config, topic, timeout, report, "receipts topic")
        self._batch_bytes = _BATCH_BYTES
        self._encoder: ReceiptEncoder | None = None
        self._producer: Any = None
        self._why = ""

    async def store(self, receipts: Sequence[Receipts]) -> WrittenReceipts:
        """See `ReceiptWriter`. The time limit counts for the registry and the topic, if they are not known yet, for a
        new client, and for the receipts."""
        self._why = ""
        failed: dict[int, confluent_kafka.KafkaError] = {}
        try:
            if self._encoder is None:
                self._encoder = self._make_encoder(None if self._register is None else await self._register())
            served = {one.topic for one in receipts}
            if count := (await self._topics.find(served)).get(self._topic):
                if self._producer is None:
                    config = {**self._config, "batch.size": self._batch_bytes}
                    make = partial(configuration.make_client, confluent_kafka.Producer, config)
                    # In a thread: with IAM, making a producer may take seconds.
                    self._producer = await run_blocking("pinstream-kafka-receipts", make)
                failed = await self._write(self._producer, self._encoder, count, receipts)
                if not failed:
                    return WrittenReceipts([True] * len(receipts))
        except (NoToken, SettingsError, RegistryError) as error:
            self._why = str(error)
        except KafkaException as error:
            failed = dict.fromkeys(range(len(receipts)), client_errors.cause_of(error))
        reason = self._reason(next(iter(failed.values()), None))
        stored = [bool(failed) and at not in failed for at in range(len(receipts))]
        await self.close()
        # It may have been deleted: the next write looks it up, and creates it.
        self._topics.forget()
        return WrittenReceipts(stored, reason)

    async def _write(
        self, producer: Any, encoder: ReceiptEncoder, count: int, receipts: Sequence[Receipts]
    ) -> dict[int, confluent_kafka.KafkaError]:
        """Write, and return the errors by the places of the receipts that were not acknowledged."""
        failed: dict[int, confluent_kafka.KafkaError] = {}
        others_wait_since = time.monotonic()
        for at, some in enumerate(receipts):
            # Thousands of records that are no events take half a second.
            if time.monotonic() > others_wait_since + _SLICE_SECONDS:
                await asyncio.sleep(0)
                others_wait_since = time.monotonic()
            messages = encoder.encode(some)
            partition, report = some.partition % count, partial(_note, failed, at)
            queued = producer.produce_batch(self._topic, messages, partition=partition, on_delivery=report)
            if queued < len(messages):
                failed[at] = next(one["_error"] for one in messages if "_error" in one)
        # librdkafka gives up by itself at the time limit; with one second more it reports why.
        until = time.monotonic() + self._timeout + 1
        while len(producer) and time.monotonic() < until:
            await asyncio.sleep(_POLL_SECONDS)
            producer.poll(0)
        if len(producer):
            late = _Code(_Code._TIMED_OUT, "the broker did not acknowledge them in time")
            failed = {at: failed.get(at, late) for at in range(len(receipts))}
        return failed

    def _failed(self, code: str, why: str) -> None:
        """Take what is wrong with the topic."""
        self._why = why
        self._on_error(code, why)

    def _reason(self, error: confluent_kafka.KafkaError | None) -> str:
        """Return why receipts were not stored, and what to do."""
        topic, advice = self._topic, ""
        if error is None:
            return f"receipts cannot be written: {self._why or f'the topic {topic} cannot be found'}"
        if error.code() in client_errors.NOT_ALLOWED:
            advice = f": grant WRITE on {topic}"
        elif error.code() in client_errors.TOO_LARGE:
            if self._batch_bytes <= _LEAST_BYTES:
                advice = f": change it: {setting_command(self._topics.servers, topic, f'{SIZE_LIMIT}={_BATCH_BYTES}')}"
            self._batch_bytes = max(_LEAST_BYTES, self._batch_bytes // _SMALLER)
        return f"receipts cannot be written to {topic}{advice} ({client_errors.describe_error(error)})"

    async def close(self) -> None:
        """End the client. A receipt that was not acknowledged counts as not stored."""
        producer, self._producer = self._producer, None
        if producer is not None:
            run_aside("pinstream-kafka-receipts", partial(_end, producer))


def _note(
    failed: dict[int, confluent_kafka.KafkaError],
    at: int,
    error: confluent_kafka.KafkaError | None,
    _: object,
) -> None:
    if error is not None:
        failed.setdefault(at, error)


def _end(producer: Any) -> None:
    # Otherwise `close` waits until all is acknowledged, possibly indefinitely.
    producer.purge(blocking=False)
    producer.close()
