"""Metadata of commits on a broker: an offset map and any foreign text come back with the next assignment."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from consumer.adapters.kafka.commits import commit_done
from consumer.engine.messages import Assignment
from consumer.engine.model import METADATA_BYTES, Position, TopicPartition
from consumer.engine.records import offset_map
from tests.adapters.kafka.bounded_reading import TEN
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import (
    WITHIN,
    Kafka,
    Member,
    commit,
    committed,
    create_topic,
    produce,
    unique,
)

REFUSED = "OFFSET_METADATA_TOO_LARGE"


# What maps are bound to; nothing here checks that it is the partition they are committed for.
WHERE = TopicPartition("t", 0)


def a_map(base: int) -> str:
    """Return a map of some settled offsets above `base`."""
    return offset_map.write_map(WHERE, base, [base + 1, base + 3, base + 4, base + 6], 0)


def largest() -> str:
    """Return a map as large as allowed: the longest of many that had to be cut."""
    texts = []
    for seed in range(30):
        random, bounds = Random(seed), [5]
        for _ in range(5_999):
            bounds.append(bounds[-1] + random.randint(1, 200))
        texts.append(offset_map.write_map(WHERE, 4, bounds, 0))
    return max(texts, key=len)


def commit_bytes(kafka: Kafka, group: str, topic: str, offset: int, metadata: bytes) -> int:
    """Commit any bytes as metadata by a hand-made OffsetCommit request of version 2; return the broker's error code."""

    def text(value: bytes) -> bytes:
        return struct.pack(">h", len(value)) + value

    partition = struct.pack(">iq", 0, offset) + text(metadata)
    topics = struct.pack(">i", 1) + text(topic.encode()) + struct.pack(">i", 1) + partition
    body = text(group.encode()) + struct.pack(">i", -1) + text(b"") + struct.pack(">q", -1) + topics
    request = struct.pack(">hhi", 8, 2, 1) + text(b"by-hand") + body
    host, port = kafka.bootstrap_servers.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), WITHIN) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.makefile("rb")
        [size] = struct.unpack(">i", answer.read(4))
        [error] = struct.unpack(">h", answer.read(size)[-2:])
    return int(error)


async def assignment(kafka: Kafka, topic: str, group: str, **options: Any) -> Assignment:
    """Return the assignment of the topic's first partition to the next member of the group."""
    async with Member(kafka, [topic], group, **options) as member:
        await member.until(lambda: TopicPartition(topic, 0) in member.held, "an assignment")
        return member.held[TopicPartition(topic, 0)]


@pytest.mark.real_kafka
async def test_maps_go_to_the_member_that_takes_over(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """In a rebalance, and the largest to the next member: offset, leader epoch and map as committed."""
    name, group = topic(2), unique("group")
    for partition in (0, 1):
        produce(kafka, name, TEN, partition=partition)
    async with Member(kafka, [name], group, config=protocol) as first:
        await first.until(lambda: len(first.records) == 20)
        for tp in list(first.next):
            first.next[tp] = Position(*tp, 3, 0, a_map(3))
        async with Member(kafka, [name], group, config=protocol) as second:
            await second.until(lambda: len(second.held) == 1, "one partition")
            [reported] = second.held.values()
            assert (reported.start, reported.leader_epoch, reported.metadata) == (3, 0, a_map(3))
            for text in (a_map(4), largest()):
                position = Position(name, reported.partition, 4, 0, text)
                assert await second.source.commit([position]) == commit_done((position,), None)
    assert first.revocations
    async with Member(kafka, [name], group, config=protocol) as third:
        await third.until(lambda: len(third.held) == 2)
        reported = third.held[TopicPartition(name, reported.partition)]
    assert (reported.start, reported.leader_epoch, reported.metadata) == (4, 0, largest())
    found = offset_map.read_map(Position(*WHERE, 4, 0, reported.metadata)).settled
    assert found is not None
    assert found.settled(5)


async def test_the_map_of_the_last_commit_comes_back(each_kafka: Kafka) -> None:
    """A map committed on leaving the group comes back; after a later commit without a map there is none."""
    name, group = create_topic(each_kafka), unique("group")
    produce(each_kafka, name, TEN)
    async with Member(each_kafka, [name], group) as member:
        await member.until(lambda: len(member.records) == 10)
        member.next[TopicPartition(name, 0)] = Position(name, 0, 6, 0, a_map(6))
        await member.stop(commit=True)
    async with Member(each_kafka, [name], group) as member:
        await member.until(lambda: len(member.records) == 4)
        assert member.held[TopicPartition(name, 0)].metadata == a_map(6)
        assert (await member.source.commit([Position(name, 0, 6, 0)])).failure is None
    assert (await assignment(each_kafka, name, group)).metadata == ""


@pytest.mark.real_kafka
async def test_more_than_the_broker_takes_is_refused_by_name(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """Metadata larger than the broker accepts are refused with an error that says why; earlier commits stay.

    The broker accepts another partition's position of the same commit, but librdkafka returns one error for all: that
    position counts as not committed, and is committed again.
    """
    name, group = topic(2), unique("group")
    for partition in (0, 1):
        produce(kafka, name, TEN, partition=partition)
    async with Member(kafka, [name], group, config=protocol) as member:
        await member.until(lambda: len(member.records) == 20)
        kept = Position(name, 0, 2, 0, a_map(2))
        assert (await member.source.commit([kept])).failure is None
        refused, taken = Position(name, 0, 5, 0, "x" * 4097), Position(name, 1, 5, 0, a_map(5))
        assert await member.source.commit([refused]) == commit_done((), REFUSED)
        for both in ([refused, taken], [taken, refused]):
            result = await member.source.commit(both)
            assert result.failure == REFUSED
            assert refused not in result.committed
    async with Member(kafka, [name], group, config=protocol) as member:
        await member.until(lambda: len(member.held) == 2)
        reported = {one.partition: (one.start, one.metadata) for one in member.held.values()}
    assert reported == {0: (2, a_map(2)), 1: (5, a_map(5))}


TEXTS: tuple[str | bytes, ...] = (
    *("", "moved by hand on Monday", "größer als 4 €", "pinstream:1:", "x" * 4095),
    *(b"", b"moved by hand on Monday", b"x" * 4096, b"\xff\xfe\x80"),
    *(b"pinstream:1:\xc3", b"\xed\xa0\x80", b"pinstream:1:\0AAAA"),
)
"""Metadata of other clients: as this one commits them, and as bytes (nothing, as much as a broker takes, no UTF-8, a
character that ends in its middle, a lone surrogate, a NUL)."""


async def test_any_metadata_does_no_harm(each_kafka: Kafka) -> None:
    """With any metadata of another client, the offset is the start, reading continues and there is no map. What this
    client committed, in any language, comes back unchanged.

    Confluent's client writes a NUL after each text and relies on it when it reads: after a text of another client, such
    as one in Java, it reads on into the memory that follows, which may be no UTF-8.
    """
    name = create_topic(each_kafka)
    produce(each_kafka, name, TEN)
    for at, text in enumerate(TEXTS):
        group = unique("group")
        if isinstance(text, str):
            commit(each_kafka, group, name, 7, metadata=text)
        else:
            assert wait_until(lambda of=group: committed(each_kafka, of, name).offset < 0, WITHIN)  # type: ignore[misc]
            assert commit_bytes(each_kafka, group, name, 7, text) == 0
        reset = ("earliest", "latest")[at % 2]
        async with Member(each_kafka, [name], group, offset_reset=reset) as member:
            await member.until(lambda seen=member: len(seen.records) == 3)  # type: ignore[misc]  # a default
            reported = member.held[TopicPartition(name, 0)]
        assert reported.start == 7
        assert isinstance(text, bytes) or reported.metadata == text
        assert offset_map.read_map(Position(name, 0, 7, None, reported.metadata)) is offset_map.NOTHING_SAID
        assert member.errors == []


@pytest.mark.real_kafka
async def test_the_broker_s_limit_counts_the_client_s_nul(kafka: Kafka, topic: Callable[..., str]) -> None:
    """The broker's limit of 4,096 bytes includes the NUL that this client adds, so 4,095 bytes can be committed."""
    name = topic()
    for length, taken in ((4094, True), (4095, True), (4096, False)):
        async with Member(kafka, [name], unique("group")) as member:
            await member.until(lambda seen=member: len(seen.held) > 0)  # type: ignore[misc]  # a default
            result = await member.source.commit([Position(name, 0, 0, None, "x" * length)])
        assert (result.failure is None) == taken
    assert METADATA_BYTES < 4096
