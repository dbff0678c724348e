"""The input: fills topics with the benchmark's records, and produces them live at steady rates.

Every system reads the same topic, each run in a consumer group of its own, so all get the same bytes.
"""

from __future__ import annotations

import io
import json
import multiprocessing as mp
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import fastavro
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.events import checkouts
from consumer.avro.encode import Encoder

SCHEMA = Path(__file__).resolve().parent.parent / "schemas" / "commerce_event.avsc"
_FILL_SECONDS = 300.0
_TICK = 0.002
_HEAD = 10
"""Bytes of single-object encoding before the Avro."""
_STAMP = slice(_HEAD + 1, _HEAD + 17)
"""The place of the event id's first sixteen characters in a record's value: behind the id's length."""
QUIET: dict[str, str | int] = {"log_level": 4}
"""For every Kafka client here: only warnings and worse, so that librdkafka's notes do not stand between the figures."""
READ_AHEAD = 20_000
"""Events that pinstream may have open (its default), and thus may have processed before the sink gets them. A
topic holds this much beyond what is measured, so that as much is read ahead at the end of the measurement as at
its beginning."""


@dataclass(frozen=True)
class Content:
    """What a topic holds: how many events, of about how many bytes, over how many partitions."""

    events: int
    event_bytes: int = 395
    partitions: int = 4
    seed: int = 1


@lru_cache(maxsize=2)
def encoded_checkouts(count: int, event_bytes: int, seed: int) -> list[bytes]:
    """`count` checkouts in Avro single-object encoding."""
    schema = json.loads(SCHEMA.read_text())
    parsed = fastavro.parse_schema(schema)
    head = b""
    values = []
    for event in checkouts(count, seed, int(time.time() * 1000), event_bytes):
        if (
            not head
        ):  # the product's encoder knows it; fastavro's is in C, and writes a large topic in seconds
            head = Encoder(schema).encode(event)[:_HEAD]
        body = io.BytesIO()
        fastavro.schemaless_writer(body, parsed, event)
        values.append(head + body.getvalue())
    return values


def create_topic(bootstrap: str, topic: str, partitions: int) -> None:
    """Make `topic`; raises `KafkaException`."""
    admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(60)


def delete_topic(bootstrap: str, topic: str) -> None:
    """Remove `topic`, so that a long benchmark does not fill the disk."""
    admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})  # must outlive the call
    admin.delete_topics([topic])[topic].result(60)


def fill_topic(bootstrap: str, topic: str, content: Content) -> None:
    """Make `topic` and put its records on it, one partition after the other; raises `RuntimeError` if it cannot."""
    create_topic(bootstrap, topic, content.partitions)
    add_events(bootstrap, topic, content)


def add_events(bootstrap: str, topic: str, content: Content) -> None:
    """Put `content` on a topic that is there; raises `RuntimeError` if it cannot."""
    values = encoded_checkouts(content.events, content.event_bytes, content.seed)
    add_values(bootstrap, topic, values, content.partitions)


def add_values(bootstrap: str, topic: str, values: Sequence[bytes], partitions: int) -> None:
    """Put records on a topic that is there, one partition after the other; raises `RuntimeError` if it cannot."""
    producer = Producer(
        {**QUIET, "bootstrap.servers": bootstrap, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}
    )
    deadline = time.monotonic() + _FILL_SECONDS
    for number, value in enumerate(values):
        while True:
            try:
                producer.produce(topic, value, partition=number % partitions)
                break
            except BufferError:  # large events: what is queued in bytes has a bound of its own
                producer.poll(0.05)
                if time.monotonic() > deadline:
                    raise
        if number % 1000 == 0:
            producer.poll(0)
    if producer.flush(max(1.0, deadline - time.monotonic())):
        raise RuntimeError(f"the topic could not be filled within {_FILL_SECONDS:.0f} s")


class LiveProducer:
    """A process that produces `rate` events a second, which may change; each has the time in its event id."""

    def __init__(self, bootstrap: str, topic: str, content: Content) -> None:
        context = mp.get_context("spawn")
        self._rate = context.Value("d", 0.0)
        arguments = (bootstrap, topic, content, self._rate)
        self._process = context.Process(target=produce_live, args=arguments, daemon=True)

    def __enter__(self) -> LiveProducer:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(10)

    def produce(self, rate: float) -> None:
        """From now on, as many events a second."""
        self._rate.value = rate


def produce_live(bootstrap: str, topic: str, content: Content, rate: Synchronized[float]) -> None:
    """See `LiveProducer`. Every tick sends what is due by then, so a late tick catches up. Batches wait as long
    as clients let them wait by default: with less, most of the broker's CPU would go into requests of a few
    records."""
    values = encoded_checkouts(content.events, content.event_bytes, content.seed)
    producer = Producer({**QUIET, "bootstrap.servers": bootstrap})
    sent, due, before = 0, 0.0, time.monotonic()
    while True:
        now = time.monotonic()
        due, before = due + (now - before) * rate.value, now
        while due >= 1:
            producer.produce(topic, stamped(values[sent % len(values)]), partition=sent % content.partitions)
            sent, due = sent + 1, due - 1
        producer.poll(0)
        time.sleep(_TICK)


def stamped(value: bytes) -> bytes:
    """The record with the current microsecond in place of its event id's first sixteen characters."""
    return b"%b%016d%b" % (value[: _STAMP.start], time.time_ns() // 1000, value[_STAMP.stop :])
