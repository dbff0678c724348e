"""A topic that is created again, as a member sees it: ids go with starts, and a seek back begins a new epoch."""

from __future__ import annotations

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
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.engine import offset_map
from consumer.engine.messages import Assignment, NewLife
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.membership.scripted_member import (
    Bench,
    FakeConsumer,
    Ids,
    brings,
    message,
    offsets,
    taken,
)
from tests.adapters.kafka.membership.test_forgotten import FORGOTTEN, ended
from tests.adapters.kafka.membership.test_starts import P0, P1, FakeOffsets, find_starts
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, produce, unique

OLD_ID, NEW_ID = "x5vNb0eWTeyZpT1Aw2Z5Cg", "AAAAAAAAAAAAAAAAAAAAAg"
EAGER = "range"


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_an_offset_of_an_earlier_life_is_the_beginning(reset: str) -> None:
    """Whatever the setting: the committed id is another one than the topic has. Without an id it is what it is."""
    source = FakeOffsets([7, 7], [9, 9])
    source.metadata = offset_map.write(7, [], None, where="t-0", topic_id=OLD_ID)
    starts = find_starts(source, [P0, P1], reset, 1, set(), ids={"t": NEW_ID}).starts
    assert starts[P0] == Assignment(*P0, 0, None, False, None, source.metadata, NEW_ID, void=7)
    # Written for partition 0: of partition 1 it says nothing.
    assert starts[P1] == Assignment(*P1, 0, 7, False, None, source.metadata, NEW_ID)


@pytest.mark.parametrize("ids", [{}, {"t": OLD_ID}])
def test_an_offset_of_this_life_or_of_an_unknown_one_is_the_start(ids: dict[str, str]) -> None:
    """The same id, or none."""
    source = FakeOffsets([7], [9])
    source.metadata = offset_map.write(7, [], None, where="t-0", topic_id=OLD_ID)
    starts = find_starts(source, [P0], "earliest", 1, set(), ids=ids).starts
    assert starts[P0] == Assignment(*P0, 0, 7, False, None, source.metadata, ids.get("t"))


def test_chunks_are_parted_where_offsets_go_back() -> None:
    """The tail of one log, then the head of the next: two chunks, each with offsets that rise. So with an equal one."""
    taken = Taken()
    taken.add([message(one) for one in (8, 9, 0, 1, 1, 5)], 100)
    chunks = taken.chunks({("t", 0): 3}.get)
    assert [[record.offset for record in chunk.records] for chunk in chunks] == [[8, 9], [0, 1], [1, 5]]
    assert {chunk.epoch for chunk in chunks} == {3}


def test_chunks_are_parted_between_runs_as_well() -> None:
    """Another partition's records stand between; those of one partition that rise stay together."""
    taken = Taken()
    taken.add([message(8), message(3, 1), message(0), message(4, 1)], 100)
    chunks = taken.chunks({("t", 0): 3, ("t", 1): 4}.get)
    parted = [(chunk.partition, [record.offset for record in chunk.records]) for chunk in chunks]
    assert sorted(parted) == [(0, [0]), (0, [8]), (1, [3, 4])]
    assert parted.index((0, [8])) < parted.index((0, [0]))


@pytest.mark.parametrize("strategy", [EAGER, "cooperative-sticky"])
def test_what_is_read_anew_begins_under_a_new_epoch(strategy: str) -> None:
    """A seek to the beginning; what the same consume brings afterwards is of the new assignment."""
    bench = Bench(strategy=strategy)
    bench.ids.told = {"t": OLD_ID}
    bench.consumer.stored = {0: 5, 1: 6}
    bench.assign(0, 1)
    first = bench.told.assignments[0]
    assert (first.topic_id, first.start) == (OLD_ID, 5)
    bench.member.read_anew([NewLife("t", 0, first.epoch, NEW_ID)])
    bench.fetch()
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)])]
    again = bench.told.assignments[-1]
    assert (again.partition, again.start, again.topic_id, again.void) == (0, None, NEW_ID, None)
    assert again.epoch > first.epoch
    [chunk] = bench.fetch(lambda _: [message(0)])
    assert (chunk.epoch, offsets([chunk])) == (again.epoch, [0])


def test_what_is_not_held_under_that_epoch_is_left_alone() -> None:
    """It was taken meanwhile, or is already read from its beginning."""
    bench = Bench()
    bench.assign(0)
    epoch = bench.told.assignments[0].epoch
    bench.member.read_anew([NewLife("t", 0, epoch - 1, NEW_ID), NewLife("t", 7, epoch, NEW_ID)])
    bench.fetch()
    assert bench.calls("seek") == []


def test_a_refused_seek_is_tried_again() -> None:
    """The new topic's leader is not known yet: reported, and tried again after a while, not with each fetch."""
    bench = Bench()
    bench.assign(0)
    epoch = bench.told.assignments[0].epoch
    refusal = confluent_kafka.KafkaError(confluent_kafka.KafkaError._STATE)
    bench.consumer.refused["seek"] = KafkaException(refusal)
    bench.member.read_anew([NewLife("t", 0, epoch, NEW_ID)])
    bench.fetch()
    assert [code for code, _ in bench.told.troubles] == ["_STATE"]
    assert len(bench.told.assignments) == 1
    bench.fetch()
    assert len(bench.told.troubles) == 1
    assert bench.member.end_offsets().unreadable == {P0: 0}
    bench.member._again_due = 0.0
    bench.member._held[P0].again = 0.0
    del bench.consumer.refused["seek"]
    bench.fetch()
    assert len(bench.told.assignments) == 2
    assert bench.member.end_offsets().unreadable == {}


def test_what_goes_before_it_was_sought_is_released_and_not_read_anew() -> None:
    """The new topic's leader is not known yet, and the group takes the partition: no seek comes after that. What the
    listener says is committed as it is, since it holds nothing of the earlier life any more (`test_topic_lives`)."""
    bench = Bench()
    bench.assign(0, 1)
    epoch = bench.told.assignments[0].epoch
    refusal = confluent_kafka.KafkaError(confluent_kafka.KafkaError._STATE)
    bench.consumer.refused["seek"] = KafkaException(refusal)
    bench.member.read_anew([NewLife("t", 0, epoch, NEW_ID)])
    bench.told.positions = [Position("t", 1, 3, None)]
    bench.fetch(taken(0, 1))
    assert bench.told.revocations == [[P0, P1]]
    assert bench.calls("commit") == [("commit", False, [(1, 3, None)])]
    del bench.consumer.refused["seek"]
    bench.member._again_due = 0.0
    bench.fetch()
    assert bench.calls("seek") == []
    assert len(bench.told.assignments) == 2


def test_ids_are_told_while_paused_too() -> None:
    """Every look at the ends brings them, room or not; offsets that go back hurry the next question."""
    bench = Bench()
    bench.ids.told = {"t": OLD_ID}
    bench.assign(0)
    bench.fetch(lambda _: [message(5)])
    assert bench.ids.hurried == 0
    bench.fetch(lambda _: [message(0)])
    assert bench.ids.hurried == 1
    bench.told.ids.clear()
    bench.member._full_since, bench.member._ends.due = 0.0, 0.0  # full for long, and time to look
    bench.fetch(room=0)
    assert bench.told.ids == [{"t": OLD_ID}]
    bench.close()
    assert bench.ids.closed


def test_a_group_whose_offsets_went_with_its_topic_is_no_new_group() -> None:
    """Under ``latest``: brokers forget offsets with a deleted topic; its next life is read from the beginning."""
    bench = Bench(reset="latest")
    bench.consumer.stored = {0: 5}
    bench.assign(0)
    bench.consumer.stored = {}

    def take_and_give(consumer: FakeConsumer) -> list[confluent_kafka.Message]:
        consumer.take_away(0)
        consumer.assign_to(0)
        return []

    bench.fetch(take_and_give)
    bench.fetch()
    assert bench.told.assignments[-1].start is None


def test_a_group_that_the_brokers_forgot_is_no_new_group() -> None:
    """Under ``latest`` too: in the cluster that took the place of the other one all is read from the beginning."""
    bench = Bench(reset="latest", settings={"group.protocol": "consumer"})
    bench.consumer.stored = {0: 5}
    bench.assign(0)
    bench.fetch(lambda _: [ended(FORGOTTEN)])
    bench.fetch()
    bench.assign(0)
    assert [one.start for one in bench.told.assignments] == [5, None]


async def test_a_replay_that_may_not_begin_ends_its_clients() -> None:
    """Its plan is of an earlier life of the topic: nothing is left open for the end of the process to trip over."""
    ids = Ids()
    ids.told = {"t": NEW_ID}
    text = offset_map.write(0, [], None, where="t-0", topic_id=OLD_ID)
    starts = {TopicPartition("t", 0): Position("t", 0, 0, None, text)}
    source = BoundedSource({}, [Range("t", 0, 0, 9)], starts=starts, topic_ids=ids)
    with pytest.raises(KafkaError, match="deleted and created again"):
        await source.start()
    assert ids.closed
    await source.close(WITHIN)


def delete_and_make(kafka: Kafka, topic: str) -> None:
    """The topic's next life, as soon as the broker allows it."""
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
async def test_a_replay_ends_where_its_topic_is_made_anew_while_it_reads(kafka: Kafka) -> None:
    """It does not go on in another log under the offsets of the one before: one line that says so."""
    topic = create_topic(kafka)
    produce(kafka, topic, [b"old"] * 10)
    source = BoundedSource(kafka.config, [Range(topic, 0, 0, 100)], topic_ids=TopicIds(kafka.config))
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


async def read_on(source: BoundedSource) -> None:
    """Fetch until it fails, bounded."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        await source.fetch(1, 0.05)


@pytest.mark.real_kafka
async def test_a_named_replay_is_not_resumed_on_another_log(kafka: Kafka) -> None:
    """Its plan names the topic's id from the first commit on: with another id it is refused, by name."""
    topic, group = create_topic(kafka), unique("replay")
    produce(kafka, topic, [b"old"] * 10)

    async def resolve() -> list[Range]:
        return [Range(topic, 0, 2, 8)]

    plan = await open_plan(kafka.config, group, "a", resolve, 1.0, WITHIN)
    assert plan.progress is not None
    await plan.progress.close()
    delete_and_make(kafka, topic)
    produce(kafka, topic, [b"new"] * 10)
    # The brokers forget the group's offsets with the topic; one that comes late is of the old life.
    late = NamedProgress(kafka.config, group)
    held = [(one, plan.starts[TopicPartition(one.topic, one.partition)]) for one in plan.ranges]
    source = BoundedSource(
        kafka.config,
        [one for one, _ in held],
        starts=plan.starts,
        progress=late,
        topic_ids=TopicIds(kafka.config),
    )
    with pytest.raises(KafkaError, match=f"{topic} was deleted and created again since this replay began"):
        await source.start()
    await source.close(WITHIN)


def many_headers(offset: int) -> Message:
    """Two of these are more than one fetch holds."""
    headers: list[tuple[str, str | bytes | None]] = [("name", b"v")] * 15_000
    return Message("t", 0, offset, b"k", b"v", headers, None, (1, 1000), 0.0, 0)


def test_what_is_kept_back_does_not_outlive_its_life() -> None:
    """Records of many headers are handed out a few at a time; what is kept back of an earlier life is dropped."""
    bench = Bench()
    bench.ids.told = {"t": OLD_ID}
    bench.assign(0)
    assert offsets(bench.fetch(brings(*map(many_headers, range(5))))) == [0, 1]
    bench.member.read_anew([NewLife("t", 0, bench.told.assignments[0].epoch, NEW_ID)])
    assert offsets(bench.fetch()) == []
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)])]
    assert offsets(bench.fetch(brings(message(0)))) == [0]


@pytest.mark.parametrize("strategy", [EAGER, "cooperative-sticky"])
def test_what_is_kept_back_does_not_outlive_its_assignment(strategy: str) -> None:
    """Taken away and given back: the new owner of it begins where the group stands."""
    bench = Bench(strategy=strategy)
    bench.assign(0)
    assert offsets(bench.fetch(brings(*map(many_headers, range(12))))) == [0, 1]
    bench.fetch(taken(0), room=1)
    bench.assign(0)
    assert offsets(bench.fetch(brings(message(2)))) == [2]
