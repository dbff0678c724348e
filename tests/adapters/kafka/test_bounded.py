"""The bounded source on brokers: exactly the records of its ranges, with any gaps in the log; and `scan`.

Where records of a range are not there, an error ends the reading, without a silent skip or an endless wait.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.bounded import BoundedSource, read_record, scan
from consumer.adapters.kafka.chunks import MAX_RECORDS
from consumer.adapters.kafka.commits import commit_done
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError
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
from tests.support.kafka.harness import WITHIN, Kafka, Member, committed, create_topic, produce, unique
from tests.support.limits import LATE

NOBODY = "127.0.0.1:9"


@asynccontextmanager
async def reading(kafka: Kafka, *ranges: Range, **options: Any) -> AsyncIterator[BoundedSource]:
    """A source of these ranges that has begun to read."""
    source = BoundedSource(options.pop("config", kafka.config), ranges, **options)
    await source.start()
    yield source
    await source.close(WITHIN)


async def test_exactly_the_ranges(each_kafka: Kafka) -> None:
    """Each to its own end, in order, within the room, in chunks with their epochs, which no other source has."""
    topic = create_topic(each_kafka, 4)
    for partition in range(4):
        produce(each_kafka, topic, TEN * 10, partition=partition)
    for begin, end in ((0, 10), (3, 7), (0, 1), (99, 100), (4, 4), (100, 100)):
        assert await read(each_kafka, Range(topic, 0, begin, end)) == list(range(begin, end))
    seen: set[int] = set()
    for turn in (1, 2):
        listener = Listener()
        ranges = [Range(topic, 0, 0, 100), Range(topic, 1, 50, 60), Range(topic, 3, 7, 7)]
        async with reading(each_kafka, *ranges, listener=listener) as source:
            chunks = await read_on(source, room=7)
        reported = [(one.partition, one.start, one.commit_start) for one in listener.assignments]
        assert reported == [(0, 0, False), (1, 50, False), (3, 7, False)]
        seen |= {one.epoch for one in listener.assignments}
        assert len(seen) == 3 * turn
        epochs = {one.partition: one.epoch for one in listener.assignments}
        assert {one.partition for one in chunks} == {0, 1}
        for partition, numbers in ((0, range(100)), (1, range(50, 60))):
            own = [one for one in chunks if one.partition == partition]
            assert offsets(own) == list(numbers)
            assert {(one.epoch, one.leader_epoch) for one in own} == {(epochs[partition], 0)}


async def test_where_a_named_replay_goes_on(each_kafka: Kafka) -> None:
    """A named replay starts at its positions, with their leader epochs and maps, and reads nothing from before."""
    topic = create_topic(each_kafka, 4)
    for partition in range(2):
        produce(each_kafka, topic, TEN, partition=partition)
    starts = Position(topic, 0, 6, 0, "a map"), Position(topic, 1, 9, 0)
    listener = Listener()
    ranges = [Range(topic, 0, 2, 9, start=starts[0]), Range(topic, 1, 0, 9, start=starts[1])]
    async with reading(each_kafka, *ranges, listener=listener) as source:
        assert source.figures == {TopicPartition(topic, 0): 6, TopicPartition(topic, 1): 9}
        assert offsets(await read_on(source)) == [6, 7, 8]
    reported = [(one.start, one.leader_epoch, one.metadata) for one in listener.assignments]
    assert reported == [(6, 0, "a map"), (9, 0, "")]


async def test_a_log_that_grows_while_it_is_read(each_kafka: Kafka) -> None:
    """What is written later is not read; the figures name the offset after what a fetch brought."""
    topic = create_topic(each_kafka)
    name = TopicPartition(topic, 0)
    produce(each_kafka, topic, TEN)
    async with reading(each_kafka, await everything(each_kafka, topic)) as source:
        found = await source.fetch(4, WITHIN)
        produce(each_kafka, topic, TEN)
        async with asyncio.timeout(WITHIN):
            while not source.done:
                found += await source.fetch(3, 0.05)
                known = await source.end_offsets()
                assert source.figures == known.reached == {name: len(offsets(found))}
        assert offsets(found) == list(range(10))
        assert (await source.end_offsets()).ends == {name: 10}
        assert await source.fetch(1000, 0.01) == []


async def test_no_group_is_joined_and_nothing_committed(each_kafka: Kafka) -> None:
    """Even if the service's settings name an instance id or the new protocol."""
    topic, group = create_topic(each_kafka), unique("group")
    produce(each_kafka, topic, TEN)
    own = {"group.id": group, "group.instance.id": "a", "group.protocol": "consumer"}
    positions = [Position(topic, 0, 10, 0)]
    async with reading(each_kafka, Range(topic, 0, 0, 10), config={**each_kafka.config, **own}) as source:
        await read_on(source)
        assert await source.commit(positions) == commit_done(positions, None)
        await source.close(WITHIN, positions)
    assert committed(each_kafka, group, topic).offset < 0


async def test_room_and_cancelled_fetches(each_kafka: Kafka) -> None:
    """Room 0 waits out its time; what a cancelled fetch had consumed comes next, and counts only then."""
    topic = create_topic(each_kafka)
    produce(each_kafka, topic, TEN * 30)
    found: list[Chunk] = []
    delays = itertools.cycle([0.0, None, 0.001, None, 0.003, None, 0.02, None])
    async with reading(each_kafka, Range(topic, 0, 0, 300)) as source, asyncio.timeout(WITHIN):
        while not source.done:
            try:
                async with asyncio.timeout(next(delays)):
                    found += await source.fetch(10, 0.1)
            except TimeoutError:
                continue
            assert list(source.figures.values()) == [len(offsets(found))]
            before = time.monotonic()
            assert await source.fetch(0, 0.01) == []
            assert time.monotonic() - before >= 0.009
    assert offsets(found) == list(range(300))


async def test_use_before_start_and_after_close(each_kafka: Kafka) -> None:
    """A fetch before the start or after the close is an error; a second close, or one without a start, does nothing."""
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


@pytest.mark.real_kafka
async def test_transactions(kafka: Kafka, topic: Callable[..., str]) -> None:
    """Only committed records are read, also by a member, to the marker at the end; none open is waited for."""
    name = topic()
    transaction(kafka, name, TEN, commit=False)
    assert await read(kafka, await everything(kafka, name)) == []
    name = topic()
    produce(kafka, name, TEN[:3])
    transaction(kafka, name, TEN, commit=False)
    assert (await everything(kafka, name)).end == 14
    for end in (3, 4, 9, 13, 14):
        assert await read(kafka, Range(name, 0, 0, end)) == [0, 1, 2]
    async with Member(kafka, [name], unique("group")) as member, asyncio.timeout(WITHIN):
        while (await member.source.end_offsets()).reached.get(TopicPartition(name, 0)) != 14:
            await asyncio.sleep(0.02)
    assert [record.offset for record in member.records] == [0, 1, 2]
    produce(kafka, name, TEN[:1])
    for begin, end in itertools.product((0, 3, 5, 13), (13, 14)):
        assert await read(kafka, Range(name, 0, begin, end)) == list(range(begin, 3))
    assert await read(kafka, Range(name, 0, 13, 15)) == [14]
    transaction(kafka, name, TEN[:5], commit=True)
    held = await everything(kafka, name)
    assert held.end == 21
    producer = begin_transaction(kafka)
    write(producer, name, TEN[:1])
    assert await everything(kafka, name) == held
    assert await read(kafka, held) == [0, 1, 2, *range(14, 20)]
    producer.abort_transaction(WITHIN)


@pytest.mark.real_kafka
async def test_compaction(kafka: Kafka, topic: Callable[..., str]) -> None:
    """Records removed by compaction are gaps at the beginning, within and at the end of a range, and for a member."""
    name = topic(
        cleanup_policy="compact", segment_ms="50", min_cleanable_dirty_ratio="0.01", delete_retention_ms="0"
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
    group = unique("group")
    async with Member(kafka, [name], group) as member:
        await member.until(lambda: len(member.records) >= len(left), "what is left")
        assert (await member.commit()).failure is None
    assert [record.offset for record in member.records] == left
    assert committed(kafka, group, name).offset == left[-1] + 1


@pytest.mark.real_kafka
async def test_exactly_the_records_of_the_time(kafka: Kafka, topic: Callable[..., str]) -> None:
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


@pytest.mark.real_kafka
async def test_times_that_the_broker_gave_end_the_range(kafka: Kafka, topic: Callable[..., str]) -> None:
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


async def test_no_broker_is_errors_and_closing_is_bounded() -> None:
    """No broker, or a silent one, is reported; no record comes, and closing keeps its limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (NOBODY, f"127.0.0.1:{server.getsockname()[1]}"):
            reported: list[tuple[str, str]] = []
            source = BoundedSource(
                {"bootstrap.servers": address, "socket.timeout.ms": 1000},
                [Range("orders", 0, 0, 10)],
                on_error=lambda *one, reported=reported: reported.append(one),
            )
            await source.start()
            async with asyncio.timeout(WITHIN):
                while not reported:
                    assert await source.fetch(10, 0.1) == []
            started = time.monotonic()
            await source.close(2.0)
            assert time.monotonic() - started < 2 + LATE


@pytest.mark.real_kafka
async def test_records_and_topics_deleted_under_the_reader(kafka: Kafka, topic: Callable[..., str]) -> None:
    """The error names partition and offset, and what to do; what is left can be read."""
    name = topic()
    produce(kafka, name, TEN)
    held = await everything(kafka, name)
    delete_before(kafka, name, 4)
    with pytest.raises(KafkaError, match=rf"{name}\[0\].*offset 0.*deleted.*`beginning`"):
        await read(kafka, held)
    assert await read(kafka, await everything(kafka, name)) == [4, 5, 6, 7, 8, 9]
    config = {**kafka.config, "topic.metadata.propagation.max.ms": 500}
    async with reading(kafka, Range(name, 0, 4, 1000), config=config) as source:
        await source.fetch(1000, WITHIN)
        admin = AdminClient({**kafka.config, "log_level": 0})
        admin.delete_topics([name])[name].result(WITHIN)
        with pytest.raises(KafkaError, match=rf"{name}\[0\]"):
            await read_on(source)


async def test_a_partition_that_ends_too_early(each_kafka: Kafka) -> None:
    """For longer than `patience` it is an error; for a moment, as on a replica that lags, it is not."""
    topic = create_topic(each_kafka)
    produce(each_kafka, topic, TEN)
    async with reading(each_kafka, Range(topic, 0, 0, 15), patience=0.3) as source:
        with pytest.raises(KafkaError, match=rf"{topic}\[0\] ends at offset 10 now, and ended at 15"):
            await read_on(source)
    async with reading(each_kafka, Range(topic, 0, 0, 15), patience=WITHIN) as source:
        found = await source.fetch(1000, WITHIN)
        async with asyncio.timeout(WITHIN):
            while len(offsets(found)) < 10:
                found += await source.fetch(1000, 0.1)
        assert await source.fetch(1000, 0.2) == []
        produce(each_kafka, topic, TEN)
        assert offsets(found + await read_on(source)) == list(range(15))


async def test_a_scan(each_kafka: Kafka) -> None:
    """All records, in lots of a fetch, and nothing of empty ranges; ending early closes the client."""
    topic = create_topic(each_kafka, 4)
    produce(each_kafka, topic, TEN * 250)
    produce(each_kafka, topic, TEN, partition=1)
    found: dict[int, list[int]] = {0: [], 1: []}
    ranges = [Range(topic, 0, 0, 2500), Range(topic, 1, 5, 10)]
    async for chunks in scan(each_kafka.config, ranges):
        assert sum(len(one.records) for one in chunks) <= MAX_RECORDS
        for one in chunks:
            found[one.partition] += offsets([one])
    assert found == {0: list(range(2500)), 1: list(range(5, 10))}
    for empty in ([Range(topic, 0, 0, 0)], []):
        assert [one async for one in scan(each_kafka.config, empty)] == []
    earlier = scan(each_kafka.config, ranges[:1])
    assert len(await anext(earlier)) == 1
    await asyncio.wait_for(earlier.aclose(), WITHIN)


async def test_one_record(each_kafka: Kafka) -> None:
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
async def test_one_record_that_is_no_more(kafka: Kafka, topic: Callable[..., str]) -> None:
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
