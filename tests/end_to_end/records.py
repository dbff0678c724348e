"""The records that the processes under test read, and what is on the topics afterwards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from consumer.avro.encode import Encoder
from consumer.demo.generator import EventGenerator, GeneratedEvent
from consumer.engine.model import CommerceEvent, Disposition
from tests.adapters.receipts.building import read
from tests.end_to_end.processes import ROOT
from tests.support.kafka.harness import WITHIN, Kafka, all_committed, ask, create_topic, read_all, unique

SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text())
PARTITIONS = 4
"""Partitions of each topic: as many as the embedded broker gives, so that the tests are the same on both."""
ENCODER = Encoder(SCHEMA)


def commerce_event(event_id: str, **members: Any) -> CommerceEvent:
    """A present purchase with all fields of the schema; `members` replace or add fields."""
    return {
        "event_id": event_id,
        "event_type": "order_completed",
        "occurred_at": int(time.time() * 1000),
        "channel": "WEB",
        "customer": {"emails": [f"{event_id}@example.com"]},
        "order": {"order_id": event_id, "currency": "EUR", "total": "1.50", "items": []},
    } | members


def ndjson(events: Iterable[CommerceEvent]) -> str:
    """Events as lines."""
    return "".join(json.dumps(event) + "\n" for event in events)


class Shop(EventGenerator):
    """The made-up shop, which also counts: `tally` by expected disposition, `value_sum` over distinct deliveries."""

    def __init__(self, *args: Any, **shares: Any) -> None:
        super().__init__(*args, **shares)
        self.tally: Counter[Disposition] = Counter()
        self.value_sum = Decimal(0)

    def __next__(self) -> GeneratedEvent:
        made = super().__next__()
        self.tally[made.expected] += 1
        self.value_sum += made.value or 0
        return made


def generated(count: int, *, seed: int = 1, **shares: float) -> tuple[Shop, list[GeneratedEvent]]:
    """`count` events of the made-up shop, and the generator with their tally."""
    generator = Shop(seed, time.time, **shares)
    return generator, list(islice(generator, count))


def deliverable(events: Iterable[GeneratedEvent]) -> set[str]:
    """The ids of those that the API must accept."""
    return {one.event["event_id"] for one in events if one.event and one.expected is Disposition.DELIVERED}


def value_of(one: GeneratedEvent) -> bytes:
    """The record's value."""
    return ENCODER.encode(one.event) if one.event is not None else one.raw or b""


def write(kafka: Kafka, topic: str, records: Iterable[tuple[bytes | None, bytes]], **extra: Any) -> None:
    """Produce keys and values, with the key choosing the partition, and wait until they are stored."""
    producer = Producer({**kafka.config, "linger.ms": 5, "log_level": 0})
    for key, value in records:
        producer.produce(topic, value, key, **extra)
    assert producer.flush(WITHIN) == 0


def write_generated(kafka: Kafka, topic: str, events: Iterable[GeneratedEvent]) -> None:
    """Produce the shop's events as the generator made them."""
    write(kafka, topic, ((one.key, value_of(one)) for one in events))


def write_events(kafka: Kafka, topic: str, events: Iterable[CommerceEvent]) -> None:
    """Produce events without a key."""
    write(kafka, topic, ((None, ENCODER.encode(event)) for event in events))


def write_registered(
    kafka: Kafka, topic: str, schema_id: int, events: Iterable[CommerceEvent], schema: Any = None
) -> None:
    """Produce events in Confluent's wire format with a registry's id, without a key."""
    encoder = Encoder(schema or SCHEMA, schema_id)
    write(kafka, topic, ((None, encoder.encode(event)) for event in events))


def new_topic(kafka: Kafka, partitions: int = PARTITIONS) -> str:
    """A new topic, with its dead-letter topic."""
    topic = create_topic(kafka, partitions)
    create_topic(kafka, partitions, f"{topic}.dead-letters")
    return topic


def new_group() -> str:
    """A new consumer group's name."""
    return unique("group")


def committed_offsets(kafka: Kafka, group: str, topic: str, partitions: int = PARTITIONS) -> list[int]:
    """The group's committed offset of each partition, 0 where there is none."""
    return [max(0, one.offset) for one in all_committed(kafka, group, topic, range(partitions))]


def records_on(kafka: Kafka, topic: str) -> int:
    """How many records are on a topic now."""
    consumer = Consumer({**kafka.config, "group.id": "watermarks", "log_level": 0})
    numbers = ask(lambda: consumer.list_topics(topic, timeout=WITHIN)).topics[topic].partitions
    marks = [
        ask(partial(consumer.get_watermark_offsets, TopicPartition(topic, number), WITHIN))
        for number in numbers
    ]
    consumer.close()
    return sum(high - low for low, high in marks)


def text_of(value: str | bytes | None) -> str:
    """A header's value as text."""
    return value.decode() if isinstance(value, bytes) else value or ""


def dead_letters(kafka: Kafka, topic: str) -> list[tuple[Message, dict[str, str]]]:
    """All dead letters of `topic`, each with its ``pinstream.`` headers as text."""
    found = []
    name = f"{topic}.dead-letters"
    for message in read_all(kafka, name, records_on(kafka, name)):
        headers = dict(message.headers() or ())
        ours = {
            name.removeprefix("pinstream."): text_of(value)
            for name, value in headers.items()
            if name.startswith("pinstream.")
        }
        found.append((message, ours))
    return found


def receipts_on(kafka: Kafka, topic: str) -> list[dict[str, Any]]:
    """All receipts of a topic, as a reader of Avro that is not ours reads them; none if there is no such topic."""
    consumer = Consumer({**kafka.config, "group.id": "watermarks", "log_level": 0})
    is_there = topic in ask(lambda: consumer.list_topics(timeout=WITHIN)).topics
    consumer.close()
    return (
        [read(one.value() or b"") for one in read_all(kafka, topic, records_on(kafka, topic))]
        if is_there
        else []
    )
