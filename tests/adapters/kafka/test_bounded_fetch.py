"""The bounded source: room, cancelling, closing and deleted records; and `scan`, which only reads."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.bounded import BoundedSource, read_record, scan
from consumer.adapters.kafka.chunks import MOST_RECORDS
from consumer.adapters.kafka.ranges import Range
from consumer.engine.model import Chunk
from consumer.errors import KafkaError, SettingsError
from tests.adapters.kafka.bounded_reading import (
    TEN,
    delete_before,
    everything,
    offsets,
    read,
    read_on,
    transaction,
)
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, produce
from tests.support.limits import LATE

NOBODY = "127.0.0.1:9"


@pytest.mark.kafka
class TestFetch:
    """Room, cancelling, closing."""

    async def test_no_room_brings_nothing_and_waits(self, each_kafka: Kafka) -> None:
        """A fetch with room 0 waits out its time and returns nothing, and no record is lost by it."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN * 20)
        source = BoundedSource(each_kafka.config, [Range(topic, 0, 0, 200)])
        await source.start()
        found: list[Chunk] = []
        async with asyncio.timeout(WITHIN):
            while not source.done:
                found += await source.fetch(37, 0.05)
                before = time.monotonic()
                assert await source.fetch(0, 0.01) == []
                assert time.monotonic() - before >= 0.009
        assert offsets(found) == list(range(200))
        await source.close(WITHIN)

    async def test_cancelled_fetch_loses_nothing(self, each_kafka: Kafka) -> None:
        """Records that a cancelled fetch had consumed come with the next one, and count as read only then."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN * 30)
        source = BoundedSource(each_kafka.config, [Range(topic, 0, 0, 300)])
        await source.start()
        found: list[Chunk] = []
        delays = itertools.cycle([0.0, None, 0.001, None, 0.003, None, 0.02, None])
        async with asyncio.timeout(WITHIN):
            while not source.done:
                try:
                    async with asyncio.timeout(next(delays)):
                        found += await source.fetch(10, 0.1)
                except TimeoutError:
                    continue
                assert list(source.figures.values()) == [len(offsets(found))]
        assert offsets(found) == list(range(300))
        await source.close(WITHIN)

    async def test_use_before_start_and_after_close(self, each_kafka: Kafka) -> None:
        """A fetch before the start or after the close is an error; a second close, or one without a start, does
        nothing."""
        source = BoundedSource(each_kafka.config, [])
        with pytest.raises(KafkaError, match="not open"):
            await source.fetch(1, 0.1)
        await source.start()
        assert source.done
        await source.close(WITHIN)
        await source.close(WITHIN)
        with pytest.raises(KafkaError, match="not open"):
            await source.fetch(1, 0.1)
        await BoundedSource(each_kafka.config, []).close(WITHIN)


async def test_no_broker_is_trouble_and_closing_is_bounded() -> None:
    """When no broker listens, or one never answers, the trouble is reported, no record comes, and closing keeps
    its time limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (NOBODY, f"127.0.0.1:{server.getsockname()[1]}"):
            told: list[tuple[str, str]] = []
            source = BoundedSource(
                {"bootstrap.servers": address, "socket.timeout.ms": 1000},
                [Range("orders", 0, 0, 10)],
                on_trouble=lambda *one, told=told: told.append(one),
            )
            await source.start()
            async with asyncio.timeout(WITHIN):
                while not told:
                    assert await source.fetch(10, 0.1) == []
            started = time.monotonic()
            await source.close(2.0)
            assert time.monotonic() - started < 2 + LATE


async def test_wrong_settings_name_the_variable() -> None:
    """A property that librdkafka does not know is a settings error when the source starts."""
    source = BoundedSource({"bootstrap.servers": NOBODY, "no.such.thing": "1"}, [])
    with pytest.raises(SettingsError, match="KAFKA_NO_SUCH_THING"):
        await source.start()
    await source.close(WITHIN)


@pytest.mark.kafka
class TestGone:
    """When records of the range are not there, an error ends the reading, without a silent skip or an endless wait."""

    @pytest.mark.real_kafka
    async def test_deleted_under_the_reader(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """When retention deletes the records to be read next, the error names partition and offset, and what to do."""
        name = topic()
        produce(kafka, name, TEN)
        held = await everything(kafka, name)
        delete_before(kafka, name, 4)
        with pytest.raises(KafkaError, match=rf"{name}\[0\].*offset 0.*deleted.*`beginning`"):
            await read(kafka, held)

    @pytest.mark.real_kafka
    async def test_a_topic_deleted_under_the_reader(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """When the topic is deleted, an error names the partition."""
        name = topic()
        produce(kafka, name, TEN)
        source = BoundedSource(
            {**kafka.config, "topic.metadata.propagation.max.ms": 500}, [Range(name, 0, 0, 1000)]
        )
        await source.start()
        await source.fetch(1000, WITHIN)
        admin = AdminClient({**kafka.config, "log_level": 0})
        admin.delete_topics([name])[name].result(WITHIN)
        with pytest.raises(KafkaError, match=rf"{name}\[0\]"):
            await read_on(source)
        await source.close(WITHIN)

    async def test_a_partition_that_ends_too_early(self, each_kafka: Kafka) -> None:
        """When a partition ends before its range for longer than `patience`, an error says that the brokers
        lost records."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        source = BoundedSource(each_kafka.config, [Range(topic, 0, 0, 15)], patience=0.3)
        await source.start()
        with pytest.raises(KafkaError, match=rf"{topic}\[0\] ends at offset 10 now, and ended at 15"):
            await read_on(source)
        await source.close(WITHIN)

    async def test_one_that_ends_too_early_for_a_moment(self, each_kafka: Kafka) -> None:
        """When a partition ends before its range for a moment, as on a replica that lags, reading continues."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        source = BoundedSource(each_kafka.config, [Range(topic, 0, 0, 15)], patience=WITHIN)
        await source.start()
        found = await source.fetch(1000, WITHIN)
        async with asyncio.timeout(WITHIN):
            while len(offsets(found)) < 10:
                found += await source.fetch(1000, 0.1)
        assert await source.fetch(1000, 0.2) == []
        produce(each_kafka, topic, TEN)
        found += await read_on(source)
        assert offsets(found) == list(range(15))
        await source.close(WITHIN)


@pytest.mark.kafka
class TestScan:
    """Reading of records alone, by `scan` and `read_record`."""

    async def test_all_records_to_the_end(self, each_kafka: Kafka) -> None:
        """All records of the ranges are read, in lots no larger than those of a fetch."""
        topic = create_topic(each_kafka, 4)
        produce(each_kafka, topic, TEN * 250)
        produce(each_kafka, topic, TEN, partition=1)
        found: dict[int, list[int]] = {0: [], 1: []}
        async for chunks in scan(each_kafka.config, [Range(topic, 0, 0, 2500), Range(topic, 1, 5, 10)]):
            assert sum(len(one.records) for one in chunks) <= MOST_RECORDS
            for one in chunks:
                found[one.partition] += offsets([one])
        assert found == {0: list(range(2500)), 1: list(range(5, 10))}

    async def test_nothing_to_read(self, each_kafka: Kafka) -> None:
        """A scan of empty ranges, or of none, ends at once."""
        topic = create_topic(each_kafka)
        assert [one async for one in scan(each_kafka.config, [Range(topic, 0, 0, 0)])] == []
        assert [one async for one in scan(each_kafka.config, [])] == []

    async def test_stopped_early(self, each_kafka: Kafka) -> None:
        """A scan that its caller ends early closes its client."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN * 250)
        reading = scan(each_kafka.config, [Range(topic, 0, 0, 2500)])
        assert len(await anext(reading)) == 1
        await asyncio.wait_for(reading.aclose(), WITHIN)

    async def test_one_record(self, each_kafka: Kafka) -> None:
        """The record at an offset is returned with its bytes; None without one, its partition or its topic."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN, key=b"k", headers=[("h", b"\x00")])
        found = await read_record(each_kafka.config, topic, 0, 7, WITHIN)
        assert found is not None
        assert found[0] == 7
        assert found[2:] == (b"k", b"7", (("h", b"\x00"),))
        assert await read_record(each_kafka.config, topic, 0, 10, WITHIN) is None
        assert await read_record(each_kafka.config, topic, 0, -1, WITHIN) is None
        assert await read_record(each_kafka.config, topic, 17, 0, WITHIN) is None
        assert await read_record(each_kafka.config, topic + "x", 0, 0, WITHIN) is None

    @pytest.mark.real_kafka
    async def test_one_record_that_is_no_more(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """At the offset of a deleted record, of an aborted one or of a marker there is no record."""
        name = topic()
        produce(kafka, name, TEN)
        transaction(kafka, name, TEN[:2], commit=False)
        produce(kafka, name, TEN)
        delete_before(kafka, name, 4)
        found = [await read_record(kafka.config, name, 0, offset, WITHIN) for offset in (3, 4, 10, 12, 13)]
        assert [one and one.offset for one in found] == [None, 4, None, None, 13]


async def test_scan_gives_up_when_nothing_comes() -> None:
    """Without a broker a scan fails after `still` seconds, so that its command ends."""
    reading = scan({"bootstrap.servers": NOBODY}, [Range("orders", 0, 0, 10)], still=0.5)
    with pytest.raises(KafkaError, match=r"no record came for 0\.5 s"):
        await anext(reading)
