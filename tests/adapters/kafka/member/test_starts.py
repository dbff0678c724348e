"""Where partitions start: the rules of KAFKA_AUTO_OFFSET_RESET, on a fake and on brokers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException

from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import TEN
from tests.adapters.kafka.member.scripted_member import Bench
from tests.support.kafka.harness import (
    Kafka,
    Member,
    add_partitions,
    commit,
    committed,
    create_topic,
    produce,
    unique,
)

END = 77
"""Where each log of the fake ends."""
LEADERLESS = KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE))


def starts(bench: Bench, *partitions: int) -> list[tuple[int, int | None, bool]]:
    """Assign partitions; return those of which the start is known then, with it, and whether it is to be committed."""
    bench.assign(*partitions)
    return [(one.partition, one.start, one.commit_start) for one in bench.reported.assignments]


@pytest.mark.parametrize(
    ("reset", "stored", "expected"),
    [
        *((reset, {0: 7, 1: 0}, [(7, False), (0, False)]) for reset in ("earliest", "latest", "error")),
        ("earliest", {1: 3}, [(None, False), (3, False)]),
        ("latest", {}, [(END, True), (END, True)]),
        ("latest", {1: 3}, [(None, False), (3, False)]),
        ("latest", {9: 1}, [(None, False), (None, False)]),
    ],
)
def test_the_rules_of_starts(
    reset: str, stored: dict[int, int], expected: list[tuple[int | None, bool]]
) -> None:
    """A committed offset wins; without one, ``latest`` skips records only if the group has no offset at all."""
    bench = Bench(reset=reset)
    bench.consumer.stored = stored
    assert [start[1:] for start in starts(bench, 0, 1)] == expected


def test_the_metadata_comes_with_the_committed_offset() -> None:
    """Whatever its text; empty without a commit, or where it is no UTF-8, which the client notices when it is read."""
    bench = Bench()
    bench.consumer.stored, bench.consumer.metadata = {0: 7}, "pinstream:1:äö€"
    bench.assign(0, 1)
    assert [one.metadata for one in bench.reported.assignments] == ["pinstream:1:äö€", ""]

    class NotText:
        """A committed offset whose metadata are the byte 0xff."""

        topic, partition, offset, leader_epoch, error = "t", 0, 7, 3, None

        @property
        def metadata(self) -> str:
            return b"\xff".decode()

    bench = Bench(reset="latest")
    bench.consumer.committed = lambda partitions, timeout=-1: [NotText()]  # type: ignore[method-assign,list-item]
    bench.assign(0)
    [found] = bench.reported.assignments
    assert (found.start, found.leader_epoch, found.metadata) == (7, 3, "")


def test_error_without_commit_is_a_refusal_that_names_what_lacks_one() -> None:
    """Under ``error`` a partition without a commit is named, and the others are counted; none starts."""
    bench = Bench(reset="error")
    bench.consumer.stored = {1: 3}
    with pytest.raises(KafkaError, match=r"no committed offset of t\[0\] and 2 more"):
        bench.assign(0, 1, 2, 3)
    assert bench.reported.assignments == []


@pytest.mark.parametrize("reset", ["latest", "earliest"])
def test_the_group_is_asked_for_only_where_that_decides(reset: str) -> None:
    """Only under ``latest``, for partitions without a commit; they wait if the question fails."""

    def unanswered(_: float) -> bool:
        raise LEADERLESS

    bench = Bench(reset=reset)
    bench.member._pending.has_offsets = unanswered
    bench.consumer.stored = {1: 3}
    assert starts(bench, 0, 1) == [(0, None, False), (1, 3, False)]
    bench = Bench(reset=reset)
    bench.member._pending.has_offsets = unanswered
    assert starts(bench, 0) == ([] if reset == "latest" else [(0, None, False)])
    assert bench.member._pending.new == set()


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_unknown_is_not_taken_for_none(reset: str) -> None:
    """A partition whose committed offset the broker does not return gets no start; another one does."""
    bench = Bench(reset=reset)
    bench.consumer.stored = {1: 3}
    bench.consumer.unstable = {0}
    assert starts(bench, 0, 1) == [(1, 3, False)]
    assert [code for code, _ in bench.reported.errors] == ["UNSTABLE_OFFSET_COMMIT"]


async def test_where_groups_start(each_kafka: Kafka) -> None:
    """A new group: at the beginning, or under ``latest`` at the end, which it commits; else at the beginning."""
    name, group = create_topic(each_kafka, 2), unique("group")
    place = TopicPartition(name, 0)
    for partition in (0, 1):
        produce(each_kafka, name, TEN, partition=partition)
    commit(each_kafka, group, name, 10, partition=1)
    async with Member(each_kafka, [name], group, offset_reset="latest") as member:
        await member.until(lambda: member.values == TEN)
    assert {chunk.partition for chunk in member.chunks} == {0}
    async with Member(each_kafka, [name], unique("group")) as member:
        await member.until(lambda: sorted(member.values, key=str) == sorted([*TEN, *TEN], key=str))
        assert member.held[place][3:5] == (None, False)
    async with Member(each_kafka, [name], unique("group"), offset_reset="latest") as member:
        await member.until(lambda: place in member.held)
        assert member.held[place][3:5] == (10, True)
        produce(each_kafka, name, [b"new"])
        await member.until(lambda: member.values == [b"new"])


FIFTY: list[bytes | None] = [b"new %d" % number for number in range(50)]


@pytest.mark.real_kafka
async def test_latest_reads_a_topic_that_is_added_from_the_beginning(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """If the group has offsets of any topic, also of one that it no longer reads."""
    old, added, instead, group = topic(), topic(), topic(), unique("group")
    settings = protocol
    produce(kafka, old, TEN)
    async with Member(kafka, [old], group, offset_reset="latest", config=settings) as member:
        await member.until(lambda: TopicPartition(old, 0) in member.held)
        produce(kafka, old, [b"one"])
        await member.until(lambda: member.values == [b"one"])
        await member.stop(commit=True)
    for topics, name in (([old, added], added), ([instead], instead)):
        produce(kafka, name, FIFTY)
        async with Member(kafka, topics, group, offset_reset="latest", config=settings) as member:
            await member.until(functools.partial(_has_read, member, FIFTY))
    assert committed(kafka, group, old).offset == 11


def _has_read(member: Member, values: list[bytes | None]) -> bool:
    return member.values == values


@pytest.mark.real_kafka
@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
async def test_latest_reads_what_appears_from_the_beginning(kafka: Kafka, strategy: str) -> None:
    """New topics of a pattern and new partitions, once topics are looked up (here every 0.5 s)."""
    prefix, group = unique("family"), unique("group")
    first = create_topic(kafka, name=f"{prefix}.one")
    settings = {"partition.assignment.strategy": strategy, "topic.metadata.refresh.interval.ms": 500}
    produce(kafka, first, TEN)
    async with Member(kafka, [f"^{prefix}"], group, offset_reset="latest", config=settings) as member:
        await member.until(lambda: TopicPartition(first, 0) in member.held)
        produce(kafka, first, [b"one"])
        await member.until(lambda: member.values == [b"one"])
        assert (await member.commit()).failure is None
        second = create_topic(kafka, name=f"{prefix}.two")
        produce(kafka, second, FIFTY)
        await member.until(lambda: set(FIFTY) <= set(member.values), "the topic that was made")
        member.chunks.clear()
        add_partitions(kafka, first, 2)
        produce(kafka, first, FIFTY, partition=1)
        await member.until(lambda: set(FIFTY) <= set(member.values), "the partition that was added")


@pytest.mark.real_kafka
async def test_an_offset_that_cannot_be_used(kafka: Kafka, topic: Callable[..., str]) -> None:
    """Outside of the log it is the beginning; under ``error``, as without one, the run ends without a commit."""
    name = topic()
    produce(kafka, name, TEN)
    for reset, offset in (("latest", 999), ("earliest", 999), ("error", 999), ("error", None)):
        group = unique("group")
        if offset is not None:
            commit(kafka, group, name, offset)
        async with Member(kafka, [name], group, offset_reset=reset) as member:
            if reset != "error":
                await member.until(functools.partial(_has_read, member, TEN))
                continue
            failure = await member.until_fails()
        assert isinstance(failure, KafkaError)
        assert "KAFKA_AUTO_OFFSET_RESET" in str(failure)
        assert member.records == []
        assert committed(kafka, group, name).offset == (offset or confluent_kafka.OFFSET_INVALID)
