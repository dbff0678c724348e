"""A topic that is created again, as a member sees it: assignments carry topic ids, and a seek back begins a new
epoch."""

from __future__ import annotations

import asyncio
import time

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.adapters.kafka.bounded import BoundedSource
from consumer.adapters.kafka.chunks import Taken
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import NamedProgress, open_plan
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.engine.messages import Assignment, TopicRecreated
from consumer.engine.model import Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.errors import KafkaError
from tests.adapters.kafka.member.scripted_member import (
    Bench,
    Clock,
    FakeConsumer,
    Ids,
    brings,
    message,
    offsets,
    taken,
)
from tests.adapters.kafka.member.test_forgotten import FORGOTTEN, ended
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import WITHIN, Kafka, Member, create_topic, produce, unique

P0, P1 = (TopicPartition("t", number) for number in (0, 1))
OLD_ID, NEW_ID = "x5vNb0eWTeyZpT1Aw2Z5Cg", "AAAAAAAAAAAAAAAAAAAAAg"
EAGER = "range"


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
@pytest.mark.parametrize("now", [NEW_ID, OLD_ID, None])
def test_an_offset_of_an_earlier_life_is_the_beginning(reset: str, now: str | None) -> None:
    """Whatever the reset. An offset of the present id, or where either id is unknown, counts as it is."""
    bench = Bench(reset=reset)
    bench.ids.reported = {} if now is None else {"t": now}
    bench.consumer.stored, bench.consumer.beginnings = {0: 7, 1: 7}, {0: 0}
    bench.consumer.metadata = text = offset_map.write_map(P0, 7, [], None, topic_id=OLD_ID)
    bench.assign(0, 1)
    first, second = (one._replace(epoch=0) for one in bench.reported.assignments)
    old = Assignment(*P0, 0, 7, False, None, text, now)
    void = Assignment(*P0, 0, None, False, None, text, now, void=7, beginning=0)
    assert first == (void if now == NEW_ID else old)
    # The metadata are of partition 0 and say nothing of partition 1.
    assert second == Assignment(*P1, 0, 7, False, None, text, now)


def test_chunks_are_parted_where_offsets_go_back() -> None:
    """Or repeat, also behind another partition's records: offsets rise within a chunk."""
    taken = Taken()
    taken.add([message(one) for one in (8, 9, 0, 1, 1, 5)], 100)
    chunks = taken.chunks({("t", 0): 3}.get)
    assert [[record.offset for record in chunk.records] for chunk in chunks] == [[8, 9], [0, 1], [1, 5]]
    assert {chunk.epoch for chunk in chunks} == {3}
    taken = Taken()
    taken.add([message(8), message(3, 1), message(0), message(4, 1)], 100)
    chunks = taken.chunks({("t", 0): 3, ("t", 1): 4}.get)
    parted = [(chunk.partition, [record.offset for record in chunk.records]) for chunk in chunks]
    assert sorted(parted) == [(0, [0]), (0, [8]), (1, [3, 4])]
    assert parted.index((0, [8])) < parted.index((0, [0]))


@pytest.mark.parametrize("strategy", [EAGER, "cooperative-sticky"])
def test_a_partition_restarted_begins_under_a_new_epoch(strategy: str) -> None:
    """Reading a partition anew seeks to its beginning under a new epoch, which the records that follow carry."""
    bench = Bench(strategy=strategy)
    bench.ids.reported = {"t": OLD_ID}
    bench.consumer.stored = {0: 5, 1: 6}
    bench.assign(0, 1)
    first = bench.reported.assignments[0]
    assert (first.topic_id, first.start) == (OLD_ID, 5)
    bench.member.restart_partitions([TopicRecreated("t", 0, first.epoch, NEW_ID)])
    bench.fetch()
    assert bench.calls("seek") == [("seek", [(0, 0)])]
    again = bench.reported.assignments[-1]
    assert (again.partition, again.start, again.topic_id, again.void) == (0, None, NEW_ID, None)
    assert again.epoch > first.epoch
    [chunk] = bench.fetch(lambda _: [message(0)])
    assert (chunk.epoch, offsets([chunk])) == (again.epoch, [0])


def test_a_refused_seek_is_tried_again(clock: Clock) -> None:
    """It is reported, and tried after a while; a request for another epoch or partition is ignored."""
    bench = Bench()
    bench.assign(0)
    epoch = bench.reported.assignments[0].epoch
    bench.member.restart_partitions(
        [TopicRecreated("t", 0, epoch - 1, NEW_ID), TopicRecreated("t", 7, epoch, NEW_ID)]
    )
    bench.fetch()
    assert bench.calls("seek") == []
    refusal = confluent_kafka.KafkaError(confluent_kafka.KafkaError._STATE)
    bench.consumer.refused["seek"] = KafkaException(refusal)
    bench.member.restart_partitions([TopicRecreated("t", 0, epoch, NEW_ID)])
    for _ in range(2):
        bench.fetch()
        assert [code for code, _ in bench.reported.errors] == ["_STATE"]
        assert len(bench.reported.assignments) == 1
    assert bench.member.end_offsets().unreadable == {P0: 0}
    clock.now += 1.0
    del bench.consumer.refused["seek"]
    bench.fetch()
    assert len(bench.reported.assignments) == 2
    assert bench.member.end_offsets().unreadable == {}


def test_a_partition_revoked_before_its_seek_is_not_restarted(clock: Clock) -> None:
    """The listener's positions are committed as they are: it holds nothing of the earlier topic."""
    bench = Bench()
    bench.assign(0, 1)
    epoch = bench.reported.assignments[0].epoch
    refusal = confluent_kafka.KafkaError(confluent_kafka.KafkaError._STATE)
    bench.consumer.refused["seek"] = KafkaException(refusal)
    bench.member.restart_partitions([TopicRecreated("t", 0, epoch, NEW_ID)])
    bench.reported.positions = [Position("t", 1, 3, None)]
    bench.fetch(taken(0, 1))
    assert bench.reported.revocations == [[P0, P1]]
    assert bench.calls("commit") == [("commit", False, [(1, 3, None)])]
    del bench.consumer.refused["seek"]
    clock.now += 1.0
    bench.fetch()
    assert bench.calls("seek") == []
    assert len(bench.reported.assignments) == 2


def test_topic_ids_are_reported_while_paused_too(clock: Clock) -> None:
    """With each look at the ends; offsets that go back hurry the next question."""
    bench = Bench()
    bench.ids.reported = {"t": OLD_ID}
    bench.assign(0)
    bench.fetch(lambda _: [message(5)])
    assert bench.ids.expired_caches == 0
    bench.fetch(lambda _: [message(0)])
    assert bench.ids.expired_caches == 1
    bench.reported.ids.clear()
    bench.fetch(room=0)
    clock.now += 1.0
    bench.fetch(room=0)
    assert bench.reported.ids == [{"t": OLD_ID}]
    bench.close()
    assert bench.ids.closed


@pytest.mark.parametrize("forgotten", [False, True], ids=["with its topic", "with the cluster"])
def test_a_group_whose_offsets_are_gone_is_no_new_group(forgotten: bool) -> None:
    """Under ``latest`` all is read from the beginning where they went with the topic, or with the cluster."""
    bench = Bench(reset="latest", settings={"group.protocol": "consumer"} if forgotten else None)
    bench.consumer.stored = {0: 5}
    bench.assign(0)
    bench.consumer.stored = {}

    def take_and_give(consumer: FakeConsumer) -> list[confluent_kafka.Message]:
        consumer.take_away(0)
        consumer.assign_to(0)
        return []

    bench.fetch(brings(ended(FORGOTTEN)) if forgotten else take_and_give)
    bench.fetch()
    if forgotten:
        bench.assign(0)
    assert [one.start for one in bench.reported.assignments] == [5, None]


async def test_a_replay_that_may_not_begin_ends_its_clients() -> None:
    """A replay whose plan is of an earlier topic of the same name fails to start and closes its clients."""
    ids = Ids()
    ids.reported = {"t": NEW_ID}
    text = offset_map.write_map(P0, 0, [], None, topic_id=OLD_ID)
    planned = Range("t", 0, 0, 9, start=Position("t", 0, 0, None, text))
    source = BoundedSource({}, [planned], topic_ids=ids)
    with pytest.raises(KafkaError, match="deleted and created again"):
        await source.start()
    assert ids.closed
    await source.close(WITHIN)


def delete_and_make(kafka: Kafka, topic: str) -> None:
    """Delete `topic` and create it again as soon as the broker allows it."""
    admin = AdminClient({**kafka.config, "log_level": 0})
    admin.delete_topics([topic])[topic].result(WITHIN)

    def made() -> bool:
        try:
            admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(WITHIN)
        except KafkaException as error:
            if error.args[0].code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                raise
            return False
        return True

    assert wait_until(made, WITHIN)


@pytest.mark.real_kafka
async def test_replays_of_a_topic_that_is_recreated(kafka: Kafka) -> None:
    """A replay fails instead of reading on in the new log; a named one is refused for another id."""
    topic, group = create_topic(kafka), unique("replay")
    produce(kafka, topic, [b"old"] * 10)

    async def resolve() -> list[Range]:
        return [Range(topic, 0, 2, 8)]

    plan = await open_plan(kafka.config, group, "a", resolve, 1.0, WITHIN)
    assert plan.progress is not None
    await plan.progress.close()
    source = BoundedSource(kafka.config, [Range(topic, 0, 0, 100)], topic_ids=TopicIdWatch(kafka.config))
    await source.start()
    try:
        while not await source.fetch(100, 0.2):
            pass
        delete_and_make(kafka, topic)
        produce(kafka, topic, [b"new"] * 200)
        with pytest.raises(
            KafkaError, match=r"was deleted and created again|does not exist any more|cannot be read further"
        ):
            await read_on(source)
    finally:
        await source.close(WITHIN)
    # Brokers forget the group's offsets with the topic; an offset committed late is of the old topic.
    late = NamedProgress(kafka.config, group, WITHIN)
    source = BoundedSource(kafka.config, plan.ranges, progress=late, topic_ids=TopicIdWatch(kafka.config))
    with pytest.raises(KafkaError, match=f"{topic} was deleted and created again since this replay began"):
        await source.start()
    await source.close(WITHIN)


async def read_on(source: BoundedSource) -> None:
    """Fetch until an error is raised, for a limited time."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        await source.fetch(1, 0.05)


def many_headers(offset: int) -> Message:
    """Return a record of which two are more than one fetch may hold."""
    headers: list[tuple[str, str | bytes | None]] = [("name", b"v")] * 15_000
    return Message("t", 0, offset, b"k", b"v", headers, None, (1, 1000), 0.0, 0)


def test_records_kept_back_are_dropped_when_their_topic_is_created_again() -> None:
    """Records with many headers come a few at a time; those kept back are of the old topic."""
    bench = Bench()
    bench.ids.reported = {"t": OLD_ID}
    bench.assign(0)
    assert offsets(bench.fetch(brings(*map(many_headers, range(5))))) == [0, 1]
    bench.member.restart_partitions([TopicRecreated("t", 0, bench.reported.assignments[0].epoch, NEW_ID)])
    assert offsets(bench.fetch()) == []
    assert bench.calls("seek") == [("seek", [(0, 0)])]
    assert offsets(bench.fetch(brings(message(0)))) == [0]


@pytest.mark.parametrize("strategy", [EAGER, "cooperative-sticky"])
def test_records_kept_back_are_dropped_with_their_assignment(strategy: str) -> None:
    """After the next one, reading starts at the group's offset."""
    bench = Bench(strategy=strategy)
    bench.assign(0)
    assert offsets(bench.fetch(brings(*map(many_headers, range(12))))) == [0, 1]
    bench.fetch(taken(0), room=1)
    bench.assign(0)
    assert offsets(bench.fetch(brings(message(2)))) == [2]


BEFORE = 0.1 + 0.1
"""Seconds that a seek took at most when brokers waited for one byte: a poll, and a fetch that was under way."""
NOISE = 0.1
_TURNS = 7


@pytest.mark.real_kafka  # the embedded broker does not wait for a minimum of bytes
async def test_a_sought_partition_is_read_as_soon_as_when_brokers_did_not_wait(kafka: Kafka) -> None:
    """It waits for the fetch under way, then again: at most what one wait was. The second longest counts."""
    topic = create_topic(kafka, 2)
    produce(kafka, topic, [b"alone"])
    async with Member(kafka, [topic], unique("group")) as member:
        await until_read(member)
        seconds: list[float] = []
        for turn in range(_TURNS):
            await asyncio.sleep(0.1 + turn * 0.013)  # anywhere in a fetch that waits
            seconds.append(await seconds_to_read_again(member, topic))
    print(f"seconds from a seek to the record: {sorted(seconds)}")
    assert sorted(seconds)[-2] <= BEFORE + NOISE


async def until_read(member: Member) -> None:
    """Wait until it holds both partitions and has read the record."""
    await member.until(lambda: len(member.held) == 2 and bool(member.records))


async def seconds_to_read_again(member: Member, topic: str) -> float:
    """Read the first partition from its beginning; return after how many seconds its record came."""
    [held] = [one for name, one in member.held.items() if name.partition == 0]
    seen, begun = len(member.records), time.monotonic()
    await member.source.restart_partitions([TopicRecreated(topic, 0, held.epoch, held.topic_id or "")])
    await member.until(lambda: len(member.records) > seen)
    return time.monotonic() - begun
