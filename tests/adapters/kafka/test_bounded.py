"""The bounded source on brokers: exactly the records of its ranges, with any gaps in the log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from consumer.adapters.kafka.bounded import BoundedSource
from consumer.adapters.kafka.commits import commit_done
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.engine.model import Position, TopicPartition
from tests.adapters.kafka.bounded_reading import (
    TEN,
    Listener,
    begin_transaction,
    delete_before,
    everything,
    offsets,
    read,
    read_on,
    records_of,
    transaction,
    write,
)
from tests.support.kafka.harness import WITHIN, Kafka, committed, create_topic, produce, unique


@pytest.mark.kafka
class TestRanges:
    """Which records are read."""

    @pytest.mark.parametrize(("begin", "end"), [(0, 10), (3, 7), (0, 1), (9, 10), (4, 4), (10, 10)], ids=str)
    async def test_exactly_the_range(self, each_kafka: Kafka, begin: int, end: int) -> None:
        """Records from `begin` to before `end` are read, also where that is an empty range."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        assert await read(each_kafka, Range(topic, 0, begin, end)) == list(range(begin, end))

    async def test_each_partition_to_its_own_end(self, each_kafka: Kafka) -> None:
        """Several ranges are each read to their own end, in order; a chunk is of one partition, with its epoch
        and leader epoch."""
        topic = create_topic(each_kafka, 4)
        for partition in range(4):
            produce(each_kafka, topic, TEN * 10, partition=partition)
        ranges = [Range(topic, 0, 0, 100), Range(topic, 1, 50, 60), Range(topic, 3, 7, 7)]
        listener = Listener()
        source = BoundedSource(each_kafka.config, ranges, listener=listener)
        await source.start()
        chunks = await read_on(source, room=7)
        await source.close(WITHIN)
        epochs = {one.partition: one.epoch for one in listener.assignments}
        assert {one.partition for one in chunks} == {0, 1}
        for partition, numbers in ((0, range(100)), (1, range(50, 60))):
            own = [one for one in chunks if one.partition == partition]
            assert offsets(own) == list(numbers)
            assert {(one.epoch, one.leader_epoch) for one in own} == {(epochs[partition], 0)}

    async def test_the_listener_gets_all_ranges_once(self, each_kafka: Kafka) -> None:
        """The listener gets all ranges once, at their beginnings, each with an epoch that no other source has
        and no commit to make."""
        topic = create_topic(each_kafka, 4)
        seen: set[int] = set()
        for turn in (1, 2):
            listener = Listener()
            source = BoundedSource(
                each_kafka.config, [Range(topic, 0, 0, 0), Range(topic, 2, 0, 0)], listener=listener
            )
            await source.start()
            await source.close(WITHIN)
            told = [(one.partition, one.start, one.commit_start) for one in listener.assignments]
            assert told == [(0, 0, False), (2, 0, False)]
            seen |= {one.epoch for one in listener.assignments}
            assert len(seen) == 2 * turn

    async def test_where_a_named_replay_goes_on(self, each_kafka: Kafka) -> None:
        """A named replay starts at its positions, with their leader epochs and maps, and reads nothing from before."""
        topic = create_topic(each_kafka, 4)
        for partition in range(2):
            produce(each_kafka, topic, TEN, partition=partition)
        starts = Position(topic, 0, 6, 0, "a map"), Position(topic, 1, 9, 0)
        listener = Listener()
        source = BoundedSource(
            each_kafka.config,
            [Range(topic, 0, 2, 9, start=starts[0]), Range(topic, 1, 0, 9, start=starts[1])],
            listener=listener,
        )
        assert source.figures == {TopicPartition(topic, 0): 6, TopicPartition(topic, 1): 9}
        await source.start()
        assert offsets(await read_on(source)) == [6, 7, 8]
        await source.close(WITHIN)
        told = [(one.start, one.leader_epoch, one.metadata) for one in listener.assignments]
        assert told == [(6, 0, "a map"), (9, 0, "")]

    async def test_a_log_that_grows_meanwhile(self, each_kafka: Kafka) -> None:
        """Records written after the end was fixed are not read and do not keep the source from being done."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        source = BoundedSource(each_kafka.config, [await everything(each_kafka, topic)])
        await source.start()
        found = await source.fetch(4, WITHIN)
        produce(each_kafka, topic, TEN)
        found += await read_on(source, room=4)
        assert offsets(found) == list(range(10))
        assert await source.fetch(1000, 0.01) == []
        await source.close(WITHIN)

    async def test_figures_and_records_come_together(self, each_kafka: Kafka) -> None:
        """After each fetch the figures name the offset after the last record returned."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        name = TopicPartition(topic, 0)
        source = BoundedSource(each_kafka.config, [Range(topic, 0, 0, 10)])
        await source.start()
        seen = 0
        async with asyncio.timeout(WITHIN):
            while not source.done:
                seen += len(offsets(await source.fetch(3, 0.05)))
                assert source.figures == (await source.end_offsets()).reached == {name: seen}
        assert (await source.end_offsets()).ends == {name: 10}
        await source.close(WITHIN)

    async def test_no_group_is_joined_and_nothing_committed(self, each_kafka: Kafka) -> None:
        """No group is joined and nothing committed, even if settings of the service name an instance id or the
        new protocol."""
        topic, group = create_topic(each_kafka), unique("group")
        produce(each_kafka, topic, TEN)
        own = {"group.id": group, "group.instance.id": "a", "group.protocol": "consumer"}
        config: dict[str, Any] = {**each_kafka.config, **own}
        source = BoundedSource(config, [Range(topic, 0, 0, 10)])
        await source.start()
        await read_on(source)
        positions = [Position(topic, 0, 10, 0)]
        assert await source.commit(positions) == commit_done(positions, None)
        await source.close(WITHIN, positions)
        assert committed(each_kafka, group, topic).offset < 0


@pytest.mark.kafka
@pytest.mark.real_kafka
class TestGaps:
    """Offsets that are no records."""

    @pytest.mark.parametrize("commit", [True, False], ids=["committed", "aborted"])
    async def test_a_transaction_at_the_end(
        self, kafka: Kafka, topic: Callable[..., str], commit: bool
    ) -> None:
        """With a transaction at the end, whose marker is the last offset, committed records alone are read and
        the source is done."""
        name = topic()
        produce(kafka, name, TEN)
        transaction(kafka, name, TEN[:5], commit=commit)
        held = await everything(kafka, name)
        assert held.end == 16
        assert await read(kafka, held) == list(range(15 if commit else 10))

    async def test_an_end_within_a_gap(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """A range whose end lies within a gap is done, whether a record follows the gap or not."""
        name = topic()
        produce(kafka, name, TEN[:3])
        transaction(kafka, name, TEN, commit=False)
        for end in (3, 4, 9, 13, 14):
            assert await read(kafka, Range(name, 0, 0, end)) == [0, 1, 2]
        produce(kafka, name, TEN[:1])
        for begin, end in itertools.product((0, 3, 5, 13), (13, 14)):
            assert await read(kafka, Range(name, 0, begin, end)) == list(range(begin, 3))
        assert await read(kafka, Range(name, 0, 13, 15)) == [14]

    async def test_a_range_of_nothing_but_gaps(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """A range of aborted records alone is done without a record."""
        name = topic()
        transaction(kafka, name, TEN, commit=False)
        assert await read(kafka, await everything(kafka, name)) == []

    async def test_an_open_transaction_behind_the_end(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """An open transaction after the end of the range does not delay the reading."""
        name = topic()
        produce(kafka, name, TEN)
        producer = begin_transaction(kafka)
        write(producer, name, TEN[:1])
        assert await read(kafka, await everything(kafka, name)) == list(range(10))
        producer.abort_transaction(WITHIN)

    async def test_compaction(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """Records removed by compaction are gaps at the beginning, within and at the end of a range."""
        name = topic(
            cleanup_policy="compact",
            segment_ms="50",
            min_cleanable_dirty_ratio="0.01",
            delete_retention_ms="0",
        )
        for key in (b"a", b"b", b"a", b"b", b"a", b"c", b"a"):
            produce(kafka, name, [b"x"], key=key)
        left: list[int] = []
        async with asyncio.timeout(WITHIN):
            while left[:3] != [3, 5, 6]:
                produce(kafka, name, [b"x"], key=unique("other").encode())  # a new segment
                await asyncio.sleep(0.2)
                left = await read(kafka, await everything(kafka, name))
        assert await read(kafka, Range(name, 0, 0, 3)) == []
        assert await read(kafka, Range(name, 0, 0, 5)) == [3]
        assert await read(kafka, Range(name, 0, 4, 7)) == [5, 6]

    async def test_a_beginning_that_was_moved(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """After records were deleted at the beginning of the log, the remaining ones are read."""
        name = topic()
        produce(kafka, name, TEN)
        delete_before(kafka, name, 4)
        assert await read(kafka, await everything(kafka, name)) == [4, 5, 6, 7, 8, 9]


@pytest.mark.kafka
@pytest.mark.real_kafka
class TestTimes:
    """Records outside of the time limits are left out."""

    async def test_exactly_the_records_of_the_time(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """Records at or after `from` and before `to` are read, in any order of times; all others are counted."""
        name = topic()
        stamps = [5000, 1000, 3000, 2000, 3999, 4000, 2999, 3000]
        for stamp in stamps:
            produce(kafka, name, [b"x"], timestamp=stamp)
        for since, until in ((3000, 4000), (None, 3000), (4000, None), (6000, None), (2000, 2000)):
            [found] = await resolve_ranges(
                kafka.config,
                [name],
                [],
                Bound("beginning") if since is None else Bound("time", since),
                Bound("end") if until is None else Bound("time", until),
                WITHIN,
            )
            wanted = [
                offset
                for offset, stamp in enumerate(stamps)
                if (since is None or stamp >= since) and (until is None or stamp < until)
            ]
            source = BoundedSource(kafka.config, [found])
            await source.start()
            assert offsets(await read_on(source)) == wanted
            assert source.outside_time == found.end - found.begin - len(wanted)
            await source.close(WITHIN)

    async def test_times_that_the_broker_gave_end_the_range(
        self, kafka: Kafka, topic: Callable[..., str]
    ) -> None:
        """Times given by the broker are in order, so the first record that is too late ends the range."""
        name = topic(message_timestamp_type="LogAppendTime")
        produce(kafka, name, TEN)
        [first, *_, last] = [record for chunks in [await records_of(kafka, name)] for record in chunks]
        until = last.timestamp + 1
        async with asyncio.timeout(WITHIN):
            while time.time() * 1000 <= until:
                await asyncio.sleep(0.005)
        produce(kafka, name, TEN)
        # The partition never reaches this end, so only the time can end the range.
        source = BoundedSource(kafka.config, [Range(name, 0, 0, 1000, first.timestamp, until)])
        await source.start()
        assert offsets(await read_on(source)) == list(range(10))
        assert source.figures == {TopicPartition(name, 0): 1000}
        await source.close(WITHIN)
