"""Memory on real Kafka: a process stays below the formula of docs/guarantees.md, however well records compress."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process
from tests.end_to_end.records import ENCODER, commerce_event
from tests.end_to_end.shop import NewShop, Service
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all
from tests.support.memory import MIB, max_resident

pytestmark = pytest.mark.real_kafka  # the embedded broker takes what it is sent apart, and keeps no codec

OPEN_BYTES, OPEN_EVENTS, BATCH_BYTES, CONCURRENCY = 16 * MIB, 2_000, 4 * MIB, 2
BOUND = partial(
    max_resident,
    open_bytes=OPEN_BYTES,
    open_events=OPEN_EVENTS,
    concurrency=CONCURRENCY,
    batch_bytes=BATCH_BYTES,
)


Peak = Callable[[str, int], int]


def peak_resident(process: Process) -> int:
    """The most memory that it ever had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def fill(
    kafka: Kafka, codec: str, records: int, size: int, *, partitions: int = 3, **config: int | str
) -> str:
    """A topic of `count` similar events of `size` bytes, in batches of a megabyte before compression."""
    topic = create_topic(kafka, partitions)
    producer = Producer(
        {
            **kafka.config,
            "compression.type": codec,
            "linger.ms": 100,
            "queue.buffering.max.kbytes": 64 * 1024,
            "log_level": 0,
            **config,
        }
    )
    address = "https://shop.example/" + "the-quick-brown-fox-" * (size // 20)
    for number in range(records):
        value = ENCODER.encode(commerce_event(f"e-{number}", page_url=address))
        while True:
            try:
                producer.produce(topic, value, partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(WITHIN) == 0
    return topic


@pytest.fixture
def peak(new_shop: NewShop) -> Peak:
    """Delivers all records of a topic; returns the most memory that the process had."""
    shop = new_shop(
        PINSTREAM_MAX_OPEN_BYTES=f"{OPEN_BYTES}",
        PINSTREAM_MAX_OPEN_EVENTS=f"{OPEN_EVENTS}",
        PINSTREAM_CONCURRENCY=f"{CONCURRENCY}",
    )

    def run(topic: str, records: int) -> int:
        env = shop.env | {"KAFKA_TOPICS": topic}
        with Service(shop.folder, "run", env=env, fresh=True) as process:
            process.until_settled(records)
            return peak_resident(process)

    return run


@pytest.mark.slow("gigabytes of records")
@pytest.mark.parametrize(
    ("codec", "records"), [("gzip", 6_000), ("lz4", 6_000), ("snappy", 3_000), ("zstd", 12_000)]
)
def test_records_that_compress_a_thousandfold(kafka: Kafka, peak: Peak, codec: str, records: int) -> None:
    """A gigabyte of records takes a few megabytes on disk: librdkafka unpacks a whole fetch before pinstream
    can count it."""
    topic = fill(kafka, codec, records, 100_000)
    assert peak(topic, records) < BOUND(codec, 1)


@pytest.mark.parametrize("codec", ["zstd", pytest.param("gzip", marks=pytest.mark.slow("another codec"))])
def test_one_batch_unpacks_whole(kafka: Kafka, peak: Peak, codec: str) -> None:
    """A single batch of 150 MB takes some kilobytes on disk: its unpacked size is added once, and no more."""
    unpacked = 1_500 * 100_000
    whole = {"batch.size": 2 * unpacked, "message.max.bytes": 2 * unpacked, "linger.ms": 5_000}
    more = {"queue.buffering.max.kbytes": 512 * 1024, "batch.num.messages": 1_500}
    topic = fill(kafka, codec, 1_500, 100_000, partitions=1, **whole, **more)
    assert peak(topic, 1_500) < BOUND("none", 1) + unpacked


def test_records_of_many_headers(kafka: Kafka, peak: Peak) -> None:
    """Each takes 200 kB in Kafka and 4 MB in memory once its headers are objects: they count with that size,
    and few are taken at a time, also behind records without headers."""
    topic = fill(kafka, "none", 600, 100, partitions=1)
    add_headers(kafka, topic, 60, 18_000)
    assert peak(topic, 660) < BOUND("none", 1)


def add_headers(kafka: Kafka, topic: str, records: int, headers: int) -> None:
    """Write `count` records with `headers` headers each."""
    producer = Producer({**kafka.config, "message.max.bytes": 10_000_000, "linger.ms": 5, "log_level": 0})
    many: list[tuple[str, str | bytes | None]] = [(f"h{number:05}", b"abc") for number in range(headers)]
    for number in range(records):
        producer.produce(topic, ENCODER.encode(commerce_event(f"h-{number}")), partition=0, headers=many)
        producer.poll(0)
    assert producer.flush(WITHIN) == 0


def test_more_headers_than_the_client_reads(kafka: Kafka, api: Api, peak: Peak) -> None:
    """librdkafka silently drops all headers of a record with more than 100,000: it is delivered all the same."""
    topic = create_topic(kafka, 1, max_message_bytes="8000000")
    add_headers(kafka, topic, 1, 100_001)
    peak(topic, 1)
    assert set(api.accepted()) == {"h-0"}
    [message] = read_all(kafka, topic, 1)
    assert message.headers() is None
