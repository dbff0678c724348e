"""A group seen from outside: members, committed offsets, beginnings and ends of partitions, and setting offsets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from consumer.adapters.kafka.cluster import Extent
from consumer.adapters.kafka.groups import ActiveMember, GroupOffsets, GroupView, read_group
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError
from tests.support.kafka.harness import WITHIN, Kafka, Member, commit, create_topic, produce, unique
from tests.support.limits import LATE

PROTOCOLS = pytest.mark.parametrize("protocol", ["classic", "consumer"])


async def members(kafka: Kafka, group: str) -> GroupView:
    """Return the present view of the group."""
    async with GroupOffsets(kafka.config, group, WITHIN) as offsets:
        return await offsets.view()


@pytest.mark.real_kafka
@PROTOCOLS
async def test_a_group_with_members(kafka: Kafka, topic: Callable[..., str], protocol: str) -> None:
    """The same view under both protocols; while it has some, the broker refuses to set offsets."""
    name, group = topic(4), unique("group")
    produce(kafka, name, [b"a"] * 10)
    assert await members(kafka, group) == GroupView("Dead", ())
    config = {"group.protocol": protocol, "client.id": "shop"}
    one, other = (Member(kafka, [name], group, config=config) for _ in range(2))
    place = TopicPartition(name, 0)
    async with one, other, GroupOffsets(kafka.config, group, WITHIN) as offsets:
        await one.until(lambda: len(one.held) == len(other.held) == 2, "half of the partitions each")
        view = await offsets.view()
        assert [member.client_id for member in view.members] == ["shop", "shop"]
        assert all(member.host and not member.host.startswith("/") for member in view.members)
        assert view.active
        owner = one if place in one.held else other
        assert (await owner.source.commit([Position(*place, 10, 0)])).failure is None
        with pytest.raises(KafkaError, match=f"{group} has active members"):
            await offsets.put({place: 3})
        assert (await offsets.positions([place]))[place].next_offset == 10
    view = await members(kafka, group)
    assert view == GroupView("Empty", ())
    assert not view.active


def test_a_group_is_active_while_it_rebalances() -> None:
    """Members are joining; one of unknown state is active only if it has members."""
    assert GroupView("CompletingRebalance", ()).active
    assert GroupView("Unknown", (ActiveMember("shop", "127.0.0.1"),)).active
    assert not GroupView("Unknown", ()).active


@pytest.mark.real_kafka
async def test_offsets_are_found_and_set(kafka: Kafka, topic: Callable[..., str]) -> None:
    """Of all topics, named or not; what is set has no metadata, so that an old map is gone; others stay."""
    name, other, group = topic(3), topic(1), unique("group")
    produce(kafka, name, [b"a"] * 10)
    commit(kafka, group, name, 4, metadata="of the old one")
    commit(kafka, group, name, 0, 1)
    commit(kafka, group, other, 0)
    places = [TopicPartition(name, number) for number in range(3)]
    other_destination = TopicPartition(other, 0)
    async with GroupOffsets(kafka.config, group, WITHIN) as offsets:
        assert set(await offsets.positions([])) == {*places[:2], other_destination}
        assert group in await offsets.known_groups()
        assert (await offsets.positions(places))[places[0]].metadata == "of the old one"
        await offsets.put({places[0]: 4})
        found = await offsets.positions(places)
    reported = {place: (one.next_offset, one.metadata) for place, one in found.items()}
    assert reported == {places[0]: (4, ""), places[1]: (0, ""), other_destination: (0, "")}
    async with GroupOffsets(kafka.config, unique("group"), WITHIN) as offsets:
        assert await offsets.positions(places) == {}


async def test_commits_are_found_on_both_brokers(each_kafka: Kafka) -> None:
    """A member's commits are seen from outside on both brokers; the embedded one does not report a group's members."""
    name, group = create_topic(each_kafka, 4), unique("group")
    produce(each_kafka, name, [b"a"] * 10)
    async with Member(each_kafka, [name], group) as member:
        await member.until(lambda: len(member.records) == 10, "the records")
        assert (await member.commit()).failure is None
        async with GroupOffsets(each_kafka.config, group, WITHIN) as offsets:
            found = await offsets.positions([TopicPartition(name, number) for number in range(4)])
        assert {one: position.next_offset for one, position in found.items()} == {TopicPartition(name, 0): 10}
        view = await members(each_kafka, group)
        assert view.active or view == GroupView("Unknown", ())
        produce(each_kafka, name, [b"b"] * 3)
        state, rows = await read_group(each_kafka.config, group, [TopicPartition(name, 2)], WITHIN)
        assert state == view.state
        assert [(one.place.partition, one.lag) for one in rows] == [(0, 3), (1, 0), (2, 0), (3, 0)]
        assert {one.member is None for one in rows} == {state == "Unknown"}


@pytest.mark.real_kafka
async def test_what_partitions_hold(kafka: Kafka, topic: Callable[..., str]) -> None:
    """Up to an open transaction; the first since a time, if any; an unknown partition is named in one line."""
    name = topic(3)
    now = int(time.time() * 1000)
    for partition, ages in enumerate([[3000, 2000, 1000], [3000, 2500], []]):
        for age in ages:
            produce(kafka, name, [b"a"], partition=partition, timestamp=now - age)
    places = [TopicPartition(name, number) for number in range(3)]
    producer = Producer({**kafka.config, "transactional.id": unique("transaction"), "log_level": 0})
    producer.init_transactions(WITHIN)
    producer.begin_transaction()
    producer.produce(name, b"open", partition=0)
    assert producer.flush(WITHIN) == 0
    async with GroupOffsets(kafka.config, unique("group"), WITHIN) as offsets:
        held = dict(zip(places, (Extent(0, 3), Extent(0, 2), Extent(0, 0)), strict=True))
        assert await offsets.extents(places) == held
        assert await offsets.first_since(places, now - 2000) == {places[0]: 1}
        assert await offsets.first_since(places, now - 2500) == {places[0]: 1, places[1]: 1}
        for earlier in (-1, -2, -62_135_596_800_000):
            assert await offsets.first_since(places, earlier) == {places[0]: 0, places[1]: 0}
        producer.commit_transaction(WITHIN)
        # The marker is written after the commit is acknowledged.
        async with asyncio.timeout(WITHIN):
            while (await offsets.extents(places))[places[0]].end != 5:
                await asyncio.sleep(0.01)
        assert await offsets.extents([]) == {}
        with pytest.raises(KafkaError, match=rf"{name}\[7\]") as raised:
            await offsets.extents([TopicPartition(name, 7)])
    assert "\n" not in str(raised.value)


async def test_brokers_that_do_not_answer_are_reported_in_time() -> None:
    """Without brokers every query, and the setting of offsets, fails within its time limit in one line."""
    place = TopicPartition("orders", 0)
    async with GroupOffsets({"bootstrap.servers": "127.0.0.1:9"}, "shop", 0.5) as offsets:
        for ask in (
            offsets.view,
            lambda: offsets.positions([place]),
            lambda: offsets.extents([place]),
            lambda: offsets.put({place: 1}),
        ):
            started = time.monotonic()
            with pytest.raises(KafkaError) as raised:
                await ask()
            assert time.monotonic() - started < LATE
            assert "\n" not in str(raised.value)
        assert await offsets.known_groups() == []
