"""Fills topics with the benchmark's records, encoded once."""

from __future__ import annotations

import json
import time
from functools import lru_cache

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.consumers import SCHEMA
from benchmarks.events import checkouts
from consumer.core.encode import Encoder, SingleObject

PARTITIONS = 4


@lru_cache(maxsize=2)
def encoded_checkouts(count: int, seed: int) -> list[bytes]:
    """`count` checkouts in Avro single-object encoding."""
    encoder = Encoder(json.loads(SCHEMA.read_text()), SingleObject())
    return [encoder.encode(event) for event in checkouts(count, seed, int(time.time() * 1000))]


def fill_topic(bootstrap: str, topic: str, count: int, seed: int) -> None:
    """Make `topic` and put `count` records on it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}
    )
    for number, value in enumerate(encoded_checkouts(count, seed)):
        producer.produce(topic, value, partition=number % PARTITIONS)
        if number % 1000 == 0:
            producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("the topic could not be filled within 120 s")
