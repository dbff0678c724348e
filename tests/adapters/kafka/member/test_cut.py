"""Logs that were changed on the broker's disk: cut before a partition is assigned, they are read from the cut on;
offsets that are in order raise no alarm; damaged batches are waited for."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import confluent_kafka
import pytest
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.bounded import BoundedSource, scan
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import open_plan
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import delete_before, read_on, records_of, transaction
from tests.adapters.kafka.member.scripted_member import (
    Bench,
    Clock,
    FakeConsumer,
    brings,
    given,
    message,
    offsets,
    taken,
)
from tests.support.kafka.broker import RealBroker, wait_until
from tests.support.kafka.harness import (
    WITHIN,
    Kafka,
    Member,
    commit,
    create_topic,
    produce,
    unique,
)
from tests.support.kafka.segments import LogSegment

OLD: list[bytes | None] = [b"old-%d" % number for number in range(100)]
NEW: list[bytes | None] = [b"new-%d" % number for number in range(100)]
PLAN = "all of it"
BATCHES = [[b"%d-%d " % (batch, number) + b"abcdef" * 50 for number in range(10)] for batch in range(6)]
ALL = [value for batch in BATCHES for value in batch]


class Logs(NamedTuple):
    """Topics whose first 100 records have the leader epoch 0; then the broker was killed, and leads again."""

    kafka: Kafka
    cut: str
    """A topic of which the broker lost the records from `at` on; 100 others were written since."""
    at: int
    plan: str
    """The group of a named replay of it, which has settled 100 records."""
    whole: dict[str, str]
    """Topics of which nothing before offset 100 was lost, by what precedes it."""

    def group(self, topic: str, leader_epoch: int = 0) -> str:
        """Return a new group that has committed the offset 100, with this leader epoch."""
        name = unique("group")
        commit(self.kafka, name, topic, len(OLD), leader_epoch=leader_epoch)
        return name


@pytest.fixture(scope="module")
def logs(own_kafka: RealBroker) -> Logs:
    """Return the logs as an unclean leader election leaves them."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    cut = create_topic(kafka)
    for begin in range(0, len(OLD), 10):
        produce(kafka, cut, OLD[begin : begin + 10])
    plan = unique("plan")
    asyncio.run(settle_plan(kafka, plan, cut))

    whole = {what: create_topic(kafka) for what in ("a record", "a control record", "what was removed")}
    compacted = create_topic(
        kafka, cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01"
    )
    whole["what was compacted"] = compacted
    whole["a cut behind a record"] = beyond = create_topic(kafka)
    for topic in (whole["a record"], whole["what was removed"], beyond):
        produce(kafka, topic, OLD)
    produce(kafka, beyond, OLD)
    transaction(kafka, whole["a control record"], OLD[:-1], commit=True)  # its marker is at offset 99
    produce(kafka, compacted, OLD, key=b"k")
    own_kafka.kill()
    log = LogSegment(own_kafka.directory, cut)
    batch = next(one for one in log.batches() if one.base >= 50)
    log.cut(batch)
    behind = LogSegment(own_kafka.directory, beyond)
    behind.cut(next(one for one in behind.batches() if one.base == 100))
    own_kafka.restart()
    for topic in (cut, *whole.values()):
        produce(kafka, topic, NEW, key=b"k" if topic == compacted else None)
    delete_before(kafka, whole["what was removed"], 120)
    assert wait_until(lambda: asyncio.run(first_of(kafka, compacted)) > 100, WITHIN), "no compaction"
    return Logs(kafka, cut, batch.base, plan, whole)


async def settle_plan(kafka: Kafka, group: str, topic: str) -> None:
    """Begin a named replay of a hundred records, and commit that all of them are settled but the last ten."""

    async def resolve() -> list[Range]:
        return [Range(topic, 0, 0, len(OLD))]

    plan = await open_plan(kafka.config, group, PLAN, resolve, 0.0, WITHIN)
    assert plan.progress is not None
    assert (await plan.progress.commit([Position(topic, 0, 90, 0)])).failure is None
    await plan.progress.close()


async def first_of(kafka: Kafka, topic: str) -> int:
    """Write one more record, which makes the log's last segment one that can be compacted; return the first offset."""
    produce(kafka, topic, [b"more"], key=b"k")
    return (await records_of(kafka, topic))[0].offset


def polls(consumer: FakeConsumer) -> list[confluent_kafka.Message]:
    """Record the poll; no record comes."""
    consumer.calls.append(("poll",))
    return []


def test_each_start_with_an_epoch_is_sought_before_anything_is_read() -> None:
    """Before the next poll, with its epoch: then librdkafka asks the leader. Nothing is asked without one, or at 0."""
    bench = Bench()
    bench.consumer.stored, bench.consumer.epochs = {0: 7, 1: 9, 2: 0}, {0: 3, 2: 3}
    epochs: list[int] = []
    bench.consumer.on_seek = lambda one: epochs.append(one.leader_epoch)
    bench.fetch(given(0, 1, 2, 3))
    bench.fetch(polls)
    bench.fetch(polls)
    names = [call[0] for call in bench.consumer.calls]
    assert names[names.index("poll") :] == ["poll", "incremental_assign", "seek", "poll"]
    assert (bench.calls("seek"), epochs) == ([("seek", [(0, 7)])], [3])
    assert offsets(bench.fetch(brings(message(5), message(9, partition=1)))) == [5, 9]


def test_the_seeks_of_a_thousand_partitions_leave_the_polls_their_time(clock: Clock) -> None:
    """A poll comes every 0.2 s, and waits for nothing; no record of a partition comes before its seek."""
    bench = Bench()
    numbers = range(1000)
    bench.consumer.stored = dict.fromkeys(numbers, 7)
    bench.consumer.epochs = dict.fromkeys(numbers, 3)
    sought: list[int] = []

    def take_long(one: RawPartition) -> None:
        sought.append(one.partition)
        clock.now += 0.01

    bench.consumer.on_seek = take_long
    bench.fetch(given(*numbers))
    last, gaps, limits = clock.now, [], []

    def poll(consumer: FakeConsumer) -> list[confluent_kafka.Message]:
        nonlocal last
        gaps.append(clock.now - last)
        limits.append(consumer.waits)
        last = clock.now
        return [message(7, partition=0), message(7, partition=999)]

    found: list[list[int]] = []
    while len(sought) < len(numbers):
        bench.consumer.script = [poll]
        bench.member.fetch(100, 5.0)
        found.append([chunk.partition for chunk in bench.ready])
        bench.ready.clear()
    assert sought == [*numbers]
    assert max(gaps) < 0.25
    assert set(limits[1:-1]) == {0.0}
    assert found == [[], *[[0]] * (len(found) - 2), [0, 999]]


@pytest.mark.parametrize("then", ["begun", "revoked"])
def test_a_start_that_cannot_be_sought_yet_waits_quietly(clock: Clock, then: str) -> None:
    """librdkafka refuses a seek before it reads: nothing is handed out or reported; a revocation ends it."""
    bench = Bench()
    bench.consumer.stored, bench.consumer.epochs = {0: 7}, {0: 3}
    refusal = confluent_kafka.KafkaError(confluent_kafka.KafkaError._STATE)
    bench.consumer.refused["seek"] = KafkaException(refusal)
    bench.assign(0)
    for _ in range(20):
        clock.now += 0.05
        assert bench.fetch(brings(message(60))) == []
    assert bench.reported.errors == []
    assert bench.member.end_offsets().unreadable == {}
    if then == "revoked":
        bench.fetch(taken(0))
    del bench.consumer.refused["seek"]
    clock.now += 0.1
    assert offsets(bench.fetch(brings(message(50)))) == ([50] if then == "begun" else [])
    assert bench.calls("seek") == ([("seek", [(0, 7)])] if then == "begun" else [])


def test_a_start_is_sought_without_room_too() -> None:
    """A partition that is assigned while there is no room is sought at once, and stays paused until there is some."""
    bench = Bench()
    bench.consumer.stored, bench.consumer.epochs = {0: 7}, {0: 3}
    bench.member._held.full = True
    bench.assign(0, room=0)
    assert bench.calls("seek") == [("seek", [(0, 7)])]
    assert bench.calls("pause")
    assert bench.calls("resume") == []
    assert offsets(bench.fetch(brings(message(7)))) == [7]
    assert bench.calls("resume") == [("resume", [(0, -1001)])]


@pytest.mark.parametrize("room", [1000, 0], ids=["room", "no room at first"])
async def test_a_log_that_outgrew_the_committed_offset_is_read_from_the_cut(
    logs: Logs, protocol: dict[str, Any], room: int
) -> None:
    """What was written since is read once, under each protocol, paused at the assignment or not."""
    group = logs.group(logs.cut)
    async with Member(logs.kafka, [logs.cut], group, config=protocol) as member:
        member.room = room
        await member.until(lambda: bool(member.assignments), "the assignment")
        await member.obeys(room)
        member.room = 1000
        await member.until(lambda: NEW[-1] in member.values, "the last record")
    assert member.values == NEW
    assert (member.records[0].offset, member.assignments[0].start) == (logs.at, len(OLD))
    assert member.errors == []


async def test_a_cut_ends_a_run_that_was_reported_to_end_without_an_offset(logs: Logs) -> None:
    """Under ``error`` the run ends, with a line that names partition, committed offset and cut, and what to do."""
    group = logs.group(logs.cut)
    async with Member(logs.kafka, [logs.cut], group, offset_reset="error") as member:
        text = str(await member.until_fails())
    assert text.startswith(
        f"Kafka: the log of {logs.cut}[0] was cut, by a leader that lacked its last records"
    )
    assert f"detected at offset 100 (leader epoch 0): broker end offset is {logs.at} " in text
    assert "or set KAFKA_AUTO_OFFSET_RESET=earliest, which goes on where the log was cut" in text
    assert member.records == []


@pytest.mark.parametrize(
    "before",
    ["a record", "a cut behind a record", "a control record", "what was removed", "what was compacted"],
)
async def test_an_offset_that_is_in_order_raises_no_alarm(logs: Logs, before: str) -> None:
    """Reading starts at the committed offset, or at the next one that is there, although another epoch has begun."""
    topic = logs.whole[before]
    async with Member(logs.kafka, [topic], logs.group(topic)) as member:
        await member.until(lambda: bool(member.records), "a record")
    first = member.records[0].offset
    assert first == 100 if before.endswith("record") else first > 100
    assert member.errors == []


async def test_an_offset_without_an_epoch_is_taken_as_it_is(logs: Logs) -> None:
    """Nothing says to which log an offset belongs that has no epoch (as one that `pinstream offsets set` has set)."""
    group = logs.group(logs.cut, leader_epoch=-1)
    async with Member(logs.kafka, [logs.cut], group) as member:
        await member.until(lambda: NEW[-1] in member.values, "the last record")
    assert member.records[0].offset == len(OLD)


async def test_a_named_replay_of_a_cut_log_ends_and_says_where_it_was_cut(logs: Logs) -> None:
    """Behind the cut are other records: it reads none of them, and says from where it can begin anew."""

    async def resolve() -> list[Range]:
        raise AssertionError("the plan is there")

    plan = await open_plan(logs.kafka.config, logs.plan, PLAN, resolve, 0.0, WITHIN)
    assert plan.resumed
    source = BoundedSource(logs.kafka.config, plan.ranges, progress=plan.progress)
    await source.start()
    try:
        with pytest.raises(KafkaError) as failed:
            await read_on(source)
    finally:
        await source.close(WITHIN)
    assert str(failed.value).startswith(
        f"Kafka: {logs.cut}[0] cannot be read further than offset 90: its log was cut at offset {logs.at}, by a leader "
        f"that lacked the records from there on. Start again from `offset:{logs.at}`, and under another --name"
    )
    assert source.figures == {plan.ranges[0].name: 90}


def segment(own_kafka: RealBroker, codec: str, partitions: int = 1) -> tuple[Kafka, str, LogSegment]:
    """Make a topic with six batches of ten records in partition 0; return broker, name and segment."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    name = create_topic(kafka, partitions, compression_type=codec)
    for batch in BATCHES:
        produce(kafka, name, batch)
    return kafka, name, LogSegment(own_kafka.directory, name)


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
@pytest.mark.parametrize("codec", ["uncompressed", "lz4"])
async def test_a_flipped_bit_is_waited_for_and_reported(
    own_kafka: RealBroker, strategy: str, codec: str
) -> None:
    """It and what is behind it are read once and in order after the repair; another partition goes on."""
    disk, name, log = segment(own_kafka, codec, partitions=2)
    hurt = next(one for one in log.batches() if one.base >= 20)
    log.flip(hurt)
    settings = {"partition.assignment.strategy": strategy}
    async with Member(disk, [name], unique("group"), config=settings) as member:
        await member.until(lambda: len(member.values) == hurt.base, "what is before it")
        await member.until(
            lambda: sum("cannot be read further" in one[1] for one in member.errors) >= 3, "tries"
        )
        assert (await member.source.end_offsets()).unreadable == {TopicPartition(name, 0): hurt.base}
        assert (await member.commit()).committed[0].next_offset == hurt.base
        produce(disk, name, [b"beside"], partition=1)
        await member.until(lambda: member.values[-1] == b"beside", "the other partition")
        assert member.values[:-1] == ALL[: hurt.base]
        log.flip(hurt)
        await member.until(lambda: len(member.values) > len(ALL), "what is behind it")
        assert [one for one in member.values if one != b"beside"] == ALL
        assert (await member.source.end_offsets()).unreadable == {}


@pytest.mark.parametrize("codec", ["lz4", "gzip", "snappy", "zstd", "uncompressed"])
async def test_a_batch_that_cannot_be_unpacked_is_waited_for_and_reported(
    own_kafka: RealBroker, codec: str
) -> None:
    """Also one of an impossible length, which the broker reports; it is read after the repair."""
    disk, name, log = segment(own_kafka, codec)
    hurt = next(one for one in log.batches() if one.base >= 20)
    before = log.unmeasure(hurt) if codec == "uncompressed" else log.spoil(hurt)
    async with Member(disk, [name], unique("group")) as member:
        await member.until(lambda: bool(member.errors), "the trouble")
        assert member.errors[0][0] == ("INVALID_MSG" if codec == "uncompressed" else "_BAD_COMPRESSION")
        assert (await member.source.end_offsets()).unreadable == {TopicPartition(name, 0): hurt.base}
        # The consumer's thread reports the trouble; records read before it may not have arrived yet.
        await member.until(lambda: len(member.values) >= hurt.base, "what is before it")
        assert member.values == ALL[: hurt.base]
        log.restore(hurt, before)
        await member.until(lambda: len(member.values) >= len(ALL), "what is behind it")
        assert member.values == ALL


async def test_ways_past_a_damaged_batch(own_kafka: RealBroker) -> None:
    """A group that is moved past it reads on there, as the runbook says; a replay fails and says where."""
    disk, name, log = segment(own_kafka, "uncompressed")
    hurt, behind = log.batches()[2:4]
    log.flip(hurt)
    group = unique("group")
    commit(disk, group, name, behind.base)
    async with Member(disk, [name], group) as member:
        await member.until(lambda: member.values == ALL[behind.base :])
    assert member.errors == []
    read: list[int] = []

    async def read_on() -> None:
        async for chunks in scan(disk.config, [Range(name, 0, 0, len(ALL))]):
            read.extend(offsets(chunks))

    with pytest.raises(
        KafkaError, match=rf"{name}\[0\] cannot be read further than offset {hurt.base}: .* damaged"
    ):
        await asyncio.wait_for(read_on(), 30.0)
    assert read == list(range(len(read)))
    assert len(read) <= hurt.base
