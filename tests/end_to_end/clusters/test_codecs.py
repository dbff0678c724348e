"""Each compression codec that a topic may have, for records that are read and for dead letters that are written."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer

from consumer.demo.generator import GeneratedEvent
from tests.end_to_end.records import committed_offsets, dead_letters, generated, value_of
from tests.end_to_end.shop import Shop
from tests.support.kafka.harness import WITHIN, Kafka, create_topic

CODECS = ("gzip", "snappy", "lz4", "zstd")
EACH = 400
PARTITIONS = 2


def write_compressed(kafka: Kafka, topic: str, codec: str, events: list[GeneratedEvent]) -> None:
    """Produce them in one compressed batch for each partition, as a producer with a linger time does."""
    settings: dict[str, Any] = {
        **kafka.config,
        "compression.type": codec,
        "linger.ms": 60_000,
        "batch.size": 4 << 20,
        "message.max.bytes": 8 << 20,
        "log_level": 0,
    }
    producer = Producer(settings)
    for number, one in enumerate(events):
        producer.produce(topic, value_of(one), one.key, partition=number % PARTITIONS)
    assert producer.flush(WITHIN) == 0  # it lingers no longer


@pytest.mark.real_kafka
def test_every_codec_is_read_and_written(kafka: Kafka, shop: Shop) -> None:
    """On four topics with different codecs every event is delivered once. Dead letters are stored unchanged on
    topics with each codec, whatever codec they are sent with; a replay and a redrive read them, too."""
    topics, bad = {}, {}
    count = 0
    for seed, codec in enumerate(CODECS):
        topic = create_topic(kafka, PARTITIONS, compression_type="producer")
        create_topic(kafka, 1, f"{topic}.dead-letters", compression_type=codec)
        _, events = generated(EACH, seed=seed, invalid=0.05)
        write_compressed(kafka, topic, codec, events)
        topics[codec], count = topic, count + len(events)
        bad[codec] = sorted(value_of(one) for one in events if one.defect)
    shop.env |= {"KAFKA_TOPICS": ",".join(topics.values()), "KAFKA_COMPRESSION_TYPE": "snappy"}
    ledger = shop.serve(count)
    accepted = shop.api.accepted()
    assert ledger["delivered"] == accepted.total() == len(accepted) > count / 2
    for codec, topic in topics.items():
        assert sum(committed_offsets(kafka, shop.group, topic, PARTITIONS)) == EACH
        assert sorted(message.value() or b"" for message, _ in dead_letters(kafka, topic)) == bad[codec] != []
    shop.command("replay", "--topic", topics["zstd"], "--from", "beginning", "--to", "end")
    shop.command("dead-letters", "redrive", "--topic", topics["zstd"])
    assert shop.api.accepted() == accepted
