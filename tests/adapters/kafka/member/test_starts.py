"""Where partitions start: the rules of KAFKA_AUTO_OFFSET_RESET, on a fake and on brokers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple, cast

import confluent_kafka
import pytest
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.starts import PendingPartitions
from consumer.engine.messages import Assignment
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.support.kafka.harness import (
    PROTOCOLS,
    Kafka,
    Member,
    add_partitions,
    commit,
    committed,
    create_topic,
    produce,
    unique,
)

TEN: list[bytes | None] = [b"%d" % number for number in range(10)]


class FakeOffsets:
    """A cluster with one topic: each partition's committed offset (None without a commit) and its end."""

    def __init__(self, offsets: list[int | None], ends: list[int]) -> None:
        self.offsets = offsets
        self.ends = ends
        self.metadata = ""
        """The metadata committed with each offset."""
        self.error: confluent_kafka.KafkaError | None = None

    def committed(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Behave like `confluent_kafka.Consumer.committed`."""
        found = []
        for one in partitions:
            offset = self.offsets[one.partition]
            metadata = "" if offset is None else self.metadata
            found.append(
                RawPartition(
                    one.topic,
                    one.partition,
                    confluent_kafka.OFFSET_INVALID if offset is None else offset,
                    metadata=metadata,
                )
            )
        return found

    def offsets_for_times(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Behave like `confluent_kafka.Consumer.offsets_for_times` for the beginning; the logs begin at 0."""
        return [RawPartition(one.topic, one.partition, 0) for one in partitions]

    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        """Behave like `confluent_kafka.Consumer.get_watermark_offsets`."""
        return 0, self.ends[partition.partition]


class FoundStarts(NamedTuple):
    """The starts that are known after one search, and why others are not (None: all are known)."""

    starts: dict[TopicPartition, Assignment]
    failure: confluent_kafka.KafkaException | None


def starting(
    name: TopicPartition, offset: int | None, *, commit: bool = False, leader_epoch: int | None = None
) -> Assignment:
    """Return the start of a partition that has no epoch yet."""
    return Assignment(*name, 0, offset, commit, leader_epoch, beginning=0 if offset is None else None)


def find_starts(
    source: FakeOffsets,
    partitions: list[TopicPartition],
    reset: str,
    timeout: float,
    new: set[TopicPartition],
    *,
    has_other_offsets: bool = False,
    ids: Mapping[str, str] = MappingProxyType({}),
) -> FoundStarts:
    """Return what is found for a group with the offsets of `source`, and of other topics if
    `has_other_offsets`."""

    def has_offsets(_: float) -> bool:
        return has_other_offsets or any(offset is not None for offset in source.offsets)

    return find_all_starts(source, partitions, reset, timeout, new, has_offsets, ids)


def find_all_starts(
    source: FakeOffsets,
    partitions: list[TopicPartition],
    reset: str,
    timeout: float,
    new: set[TopicPartition],
    has_offsets: Callable[[float], bool],
    ids: Mapping[str, str] = MappingProxyType({}),
) -> FoundStarts:
    """Return what is found; `new` is kept from one call to the next."""
    pending = PendingPartitions(
        cast(Any, source),
        reset,
        has_offsets=has_offsets,
        topic_ids=lambda *_: ids,
        whole=False,
        timeout=timeout,
        on_error=lambda *_: None,
        new=new,
    )
    pending.add(partitions)
    failure = None
    try:
        pending._find(partitions, time.monotonic() + timeout)
    except confluent_kafka.KafkaException as error:
        failure = error
    return FoundStarts({name: one for name, one in pending.waiting.items() if one is not None}, failure)


P0, P1, P2, P3 = (TopicPartition("t", number) for number in range(4))
LEADERLESS = confluent_kafka.KafkaException(
    confluent_kafka.KafkaError(confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE)
)


@pytest.mark.parametrize(
    ("reset", "committed", "has_other_offsets", "expected"),
    [
        *((reset, [7, 0], False, [(7, False), (0, False)]) for reset in ("earliest", "latest", "error")),
        ("earliest", [None, 3], False, [(None, False), (3, False)]),
        ("latest", [None, None], False, [(9, True), (4, True)]),
        ("latest", [None, 3], False, [(None, False), (3, False)]),
        ("latest", [None], True, [(None, False)]),
    ],
)
def test_the_rules_of_starts(
    reset: str, committed: list[int | None], has_other_offsets: bool, expected: list[tuple[int | None, bool]]
) -> None:
    """A committed offset always wins. Without one, ``earliest`` starts at the beginning, and ``latest`` at the end,
    which is to be committed at once: but at the beginning if the group has any other commit, also of other topics."""
    names = [P0, P1][: len(committed)]
    found = find_starts(
        FakeOffsets(committed, [9, 4]), names, reset, 1, set(), has_other_offsets=has_other_offsets
    )
    starts = [starting(name, at, commit=again) for name, (at, again) in zip(names, expected, strict=True)]
    assert found == (dict(zip(names, starts, strict=True)), None)


def test_the_metadata_comes_with_the_committed_offset() -> None:
    """The metadata come with the committed offset, whatever their text; without a commit they are empty. Metadata that
    are not UTF-8, which confluent_kafka raises for when they are read, count as empty; offset and leader epoch are
    used."""
    source = FakeOffsets([7, None], [9, 9])
    source.metadata = "pinstream:1:äö€"
    starts = find_starts(source, [P0, P1], "earliest", 1, set()).starts
    assert [starts[one].metadata for one in (P0, P1)] == ["pinstream:1:äö€", ""]

    class NotText:
        """A committed offset whose metadata are the byte 0xff."""

        topic, partition, offset, leader_epoch, error = "t", 0, 7, 3, None

        @property
        def metadata(self) -> str:
            return b"\xff".decode()

    source = FakeOffsets([7], [9])
    source.committed = lambda partitions, timeout=-1: [NotText()]  # type: ignore[method-assign,list-item]
    found = find_starts(source, [P0], "latest", 1, set())
    assert found == ({P0: starting(P0, 7, leader_epoch=3)}, None)


def test_error_without_commit_is_a_refusal_that_names_what_lacks_one() -> None:
    """Under ``error`` a partition without a commit is refused, by a message that names it and counts the
    others; none starts."""
    found = find_starts(FakeOffsets([None, 3, None, None], [9] * 4), [P0, P1, P2, P3], "error", 1, set())
    assert found.starts == {}
    assert code_of(found) == confluent_kafka.KafkaError._AUTO_OFFSET_RESET
    assert "no committed offset of t[0] and 2 more" in str(found.failure)


def code_of(found: FoundStarts) -> int:
    """Return the error code of a search that failed."""
    assert found.failure is not None
    return int(found.failure.args[0].code())


def test_the_group_is_asked_for_only_where_that_decides() -> None:
    """The group's commits are queried only under ``latest`` for a partition without one; if that fails the
    partition waits."""

    def unasked(_: float) -> bool:
        raise AssertionError("asked for the group")

    def unreported(_: float) -> bool:
        raise LEADERLESS

    source, new = FakeOffsets([None, 3], [9, 4]), set[TopicPartition]()
    for reset in ("latest", "earliest"):
        found = find_all_starts(source, [P0, P1], reset, 1, new, unasked)
        assert found == ({P0: starting(P0, None), P1: starting(P1, 3)}, None)
    assert find_all_starts(source, [P0], "latest", 1, new, unreported) == (
        {},
        LEADERLESS,
    )
    assert new == set()


def test_a_partition_without_a_leader_does_not_delay_others() -> None:
    """A partition without a leader, or a topic that was deleted, does not delay the starts of the others."""

    class Partly(FakeOffsets):
        """A cluster without commits where partition 1 has no leader and the topic `gone` was deleted."""

        def get_watermark_offsets(
            self, partition: RawPartition, timeout: float = -1, cached: bool = False
        ) -> tuple[int, int]:
            if partition.topic == "gone":
                raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(3))
            if partition.partition == 1:
                raise LEADERLESS
            return super().get_watermark_offsets(partition, timeout, cached)

    gone = TopicPartition("gone", 0)
    found = find_starts(Partly([None] * 3, [9, 4, 5]), [gone, P1, P0, P2], "latest", 1, set())
    assert found.starts == {P0: starting(P0, 9, commit=True), P2: starting(P2, 5, commit=True)}
    assert code_of(found) == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART


def test_a_partition_that_was_new_at_its_first_query_stays_new() -> None:
    """Under ``latest`` partition 1, found new but without a leader, starts at its end even after partition 0
    has committed; a partition that comes later is judged by the commits of that time."""
    source, new = FakeOffsets([None] * 3, [9, 4, 5]), set[TopicPartition]()
    find_starts(source, [P0, P1], "latest", 1, new)
    assert new == {P0, P1}
    source.offsets[0] = 9
    found = find_starts(source, [P1, P2], "latest", 1, new)
    assert found.starts == {P1: starting(P1, 4, commit=True), P2: starting(P2, None)}
    assert new == {P0, P1}


def test_all_questions_share_one_time_limit() -> None:
    """All queries share one time limit: one that hangs takes the time of those after it, and no more."""
    asked: list[float] = []

    class Hanging(FakeOffsets):
        """A cluster where each query for an end takes its whole time limit and fails for want of a leader."""

        def get_watermark_offsets(
            self, partition: RawPartition, timeout: float = -1, cached: bool = False
        ) -> tuple[int, int]:
            asked.append(timeout)
            until = time.monotonic() + timeout
            while time.monotonic() < until:
                pass
            raise LEADERLESS

    found = find_starts(Hanging([None] * 3, [9] * 3), [P0, P1, P2], "latest", 0.05, set())
    assert found.starts == {}
    assert len(asked) == 1
    assert 0 < asked[0] <= 0.05


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_unknown_is_not_taken_for_none(reset: str) -> None:
    """A partition whose committed offset the broker does not return gets no start; another one does."""

    class Failing(FakeOffsets):
        """A cluster whose coordinator does not return the offset of partition 0."""

        def committed(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
            unstable = confluent_kafka.KafkaError(confluent_kafka.KafkaError.UNSTABLE_OFFSET_COMMIT)
            return [
                SimpleNamespace(offset=-1001, leader_epoch=None, error=unstable)  # type: ignore[misc]
                if one.partition == 0
                else super(Failing, self).committed([one])[0]
                for one in partitions
            ]

    found = find_starts(Failing([None, 3], [9, 9]), [P0, P1], reset, 1, set())
    assert found.starts == {P1: starting(P1, 3)}
    assert code_of(found) == confluent_kafka.KafkaError.UNSTABLE_OFFSET_COMMIT


async def test_where_groups_start(each_kafka: Kafka) -> None:
    """Under ``earliest`` a new group reads all records from before. Under ``latest`` it starts at the end, reports so,
    and has it to commit; a group with one commit reads its other partitions from the beginning."""
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
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_latest_reads_a_topic_that_is_added_from_the_beginning(
    kafka: Kafka, topic: Callable[..., str], protocol: str
) -> None:
    """Under ``latest`` a group that has offsets of other topics, also of one that it no longer reads, reads a
    new topic whole."""
    old, added, instead, group = topic(), topic(), topic(), unique("group")
    settings = PROTOCOLS[protocol]
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
    """Under ``latest`` a running group reads new topics of its pattern and new partitions whole, once topics
    are looked up again (topic.metadata.refresh.interval.ms, 30 s by default)."""
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
    """A committed offset outside the log leads to its beginning, also under ``latest``. Under ``error`` it ends the run
    with a message on what to do, as does a partition without one; nothing is committed."""
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
