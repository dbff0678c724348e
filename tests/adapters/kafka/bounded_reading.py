"""Helpers of the tests of bounded reading: read ranges to their ends, and make logs with gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.bounded import BoundedSource, scan
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.engine.messages import Assignment
from consumer.engine.model import Chunk, Record
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import WITHIN, Kafka, unique

TEN: list[bytes | None] = [b"%d" % number for number in range(10)]


class Listener:
    """A listener that records assignments."""

    def __init__(self) -> None:
        self.assignments: list[Assignment] = []

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Record the assignments."""
        self.assignments += assignments


async def read_on(source: BoundedSource, room: int = 1000) -> list[Chunk]:
    """Return all chunks until the source is done, and check that no fetch returns more records than `room`."""
    found: list[Chunk] = []
    async with asyncio.timeout(WITHIN):
        while not source.done:
            lot = await source.fetch(room, 0.05)
            assert sum(len(one.records) for one in lot) <= room
            found += lot
    return found


async def read(kafka: Kafka, *ranges: Range, **options: Any) -> list[int]:
    """Return the offsets of all records of the ranges, in the order in which they came."""
    source = BoundedSource(kafka.config, ranges, **options)
    await source.start()
    try:
        found = await read_on(source)
        known = await source.end_offsets()
        assert source.figures == known.ends == known.reached
    finally:
        await source.close(WITHIN)
    return offsets(found)


def offsets(chunks: Iterable[Chunk]) -> list[int]:
    """Return the offsets of all records of `chunks`."""
    return [record.offset for one in chunks for record in one.records]


async def everything(kafka: Kafka, topic: str, partition: str = "0") -> Range:
    """Return the range of all records that the partition has now."""
    [found] = await resolve_ranges(
        kafka.config, [topic], [partition], Bound("beginning"), Bound("end"), WITHIN
    )
    return found


def begin_transaction(kafka: Kafka) -> Producer:
    """Return a producer in the middle of a transaction."""
    producer = Producer({**kafka.config, "transactional.id": unique("writer"), "log_level": 0})
    producer.init_transactions(WITHIN)
    producer.begin_transaction()
    return producer


def write(producer: Producer, topic: str, values: Sequence[bytes | None]) -> None:
    """Write `values` within the producer's transaction, and wait until they are written."""
    for value in values:
        producer.produce(topic, value=value, partition=0)
    assert producer.flush(WITHIN) == 0


def end_transaction(kafka: Kafka, topic: str, producer: Producer, *, commit: bool) -> None:
    """Commit or abort the producer's transaction on `topic`, and wait for its marker, which is written after
    the answer."""
    before = _end(kafka, topic, "read_uncommitted")
    producer.commit_transaction(WITHIN) if commit else producer.abort_transaction(WITHIN)
    assert wait_until(lambda: _end(kafka, topic, "read_committed") > before, WITHIN)


def transaction(kafka: Kafka, topic: str, values: Sequence[bytes | None], *, commit: bool) -> None:
    """Write `values` in a transaction of their own, and end it."""
    producer = begin_transaction(kafka)
    write(producer, topic, values)
    end_transaction(kafka, topic, producer, commit=commit)


def _end(kafka: Kafka, topic: str, isolation: str) -> int:
    consumer = Consumer({**kafka.config, "group.id": "x", "isolation.level": isolation, "log_level": 0})
    end = consumer.get_watermark_offsets(RawPartition(topic, 0), timeout=WITHIN)[1]
    consumer.close()
    return int(end)


def delete_before(kafka: Kafka, topic: str, first: int) -> None:
    """Delete the records before `first`, as retention does."""
    admin = AdminClient({**kafka.config, "log_level": 0})
    [done] = admin.delete_records([RawPartition(topic, 0, first)]).values()
    done.result(WITHIN)


async def records_of(kafka: Kafka, topic: str) -> list[Record]:
    """Return all records of partition 0."""
    reading = scan(kafka.config, [await everything(kafka, topic)])
    return [record async for chunks in reading for one in chunks for record in one.records]
