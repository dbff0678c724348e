"""Damaged batches: neither the batch nor records after it are read until it is repaired; other partitions go
on, and the trouble is reported."""

from __future__ import annotations

import asyncio
import itertools

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.adapters.kafka.bounded import scan
from consumer.adapters.kafka.configuration import consumer_config
from consumer.adapters.kafka.ranges import Range
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from consumer.settings import passthrough
from tests.adapters.kafka.member.scripted_member import Bench, Clock, brings, message, offsets, taken
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka, Member, commit, create_topic, produce, unique
from tests.support.kafka.segments import LogSegment

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
BATCHES = [[b"%d-%d " % (batch, number) + b"abcdef" * 50 for number in range(10)] for batch in range(6)]
ALL = [value for batch in BATCHES for value in batch]


def damaged(offset: int, code: int = confluent_kafka.KafkaError._BAD_MSG, partition: int = 0) -> Message:
    """Return the message that librdkafka yields for a damaged batch."""
    error = confluent_kafka.KafkaError(code, "failed CRC32C check")
    return Message("t", partition, offset, None, None, None, error, (0, -1), 0.0, -1)


@pytest.mark.parametrize("code", ["_BAD_MSG", "_BAD_COMPRESSION", "_NOT_IMPLEMENTED", "INVALID_MSG"])
def test_what_follows_a_damaged_batch_is_dropped(clock: Clock, code: str) -> None:
    """Records after a damaged batch are dropped, in the same consume and in later ones, since librdkafka may go
    on anywhere; other partitions are read."""
    bench = Bench()
    bench.assign(0, 1)
    error = damaged(5, getattr(confluent_kafka.KafkaError, code))
    lot = [message(3), message(4), error, message(9), message(0), message(7, partition=1), damaged(77, -192)]
    assert offsets(bench.fetch(brings(*lot))) == [3, 4, 7]
    assert offsets(bench.fetch(brings(message(10), damaged(5), message(8, partition=1)))) == [8]
    assert bench.calls("pause") == [("pause", [(0, -1001)])]
    assert [
        one for one in bench.reported.errors if "t[0] cannot be read further than offset 5" in one[1]
    ] == [bench.reported.errors[0]]
    assert bench.reported.errors[0][0] == code
    assert bench.member.end_offsets().unreadable == {P0: 5}


def test_a_damaged_batch_is_tried_again_less_and_less_often(clock: Clock) -> None:
    """A damaged batch is tried again after half a second, then in doubled intervals up to 30 s; once it is
    read, it is no longer reported."""
    bench = Bench()
    bench.assign(0)
    bench.fetch(brings(message(3), damaged(4)))
    asked = []
    for _ in range(1500):
        clock.now += 0.1
        sought = len(bench.calls("seek"))
        bench.fetch()
        if len(bench.calls("seek")) > sought:
            asked.append(round(clock.now - 1000.0, 1))
            bench.fetch(brings(damaged(4)))
    assert [round(after - before) for before, after in itertools.pairwise(asked[1:])] == [
        *(2, 4, 8, 16, 30, 30, 30)
    ]
    assert set(map(str, bench.calls("seek"))) == {"('seek', [(0, 4)])"}
    clock.now += 30.0
    assert offsets(bench.fetch(brings(message(4)))) == [4]
    assert bench.member.end_offsets().unreadable == {}
    names = [call[0] for call in bench.consumer.calls if call[0] in ("pause", "resume", "seek")]
    assert names == ["pause", "resume", "seek"] * (len(names) // 3)


def test_a_damaged_partition_of_which_nothing_was_read_is_tried_from_its_start(clock: Clock) -> None:
    """A partition of which nothing was read is tried again from its committed offset, or from the beginning."""
    bench = Bench()
    bench.consumer.stored = {1: 7}
    bench.assign(0, 1)
    bench.fetch(brings(damaged(0), damaged(5, partition=1)))
    clock.now += 1.0
    bench.fetch()
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)]), ("seek", [(1, 7)])]
    assert bench.member.end_offsets().unreadable == {P0: 0, P1: 7}


def test_a_beginning_that_a_login_interrupts_is_asked_for_again(clock: Clock) -> None:
    """Under ``error`` librdkafka gives a partition up when the query for its beginning fails, also with a login that
    was not judged: that does not end the run, and the partition is read from there half a second later."""
    bench = Bench()
    bench.assign(0, 1)
    words = "failed to query logical offset: Local: Authentication failure (broker 1)"
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTO_OFFSET_RESET, words)
    bench.fetch(brings(Message("t", 0, -1, None, None, None, error, (0, -1), 0.0, -1)))
    [(code, text)] = bench.reported.errors
    assert code == "_AUTO_OFFSET_RESET"
    assert text.startswith("t[0] cannot be read further than its beginning: the client had to log in")
    clock.now += 0.5
    assert offsets(bench.fetch(brings(message(3)))) == [3]
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)])]


def test_a_damaged_partition_stays_paused_without_room(clock: Clock) -> None:
    """Without room a damaged partition stays paused; with room the others resume, and it resumes when it is
    tried again."""
    bench = Bench()
    bench.assign(0, 1)
    bench.fetch(brings(damaged(0)))
    clock.now += 2.0
    bench.fetch(room=0)
    clock.now += 2.0
    bench.fetch(room=0)
    assert bench.calls("seek") == bench.calls("resume") == []
    bench.fetch()
    assert bench.calls("resume") == [("resume", [(1, -1001)]), ("resume", [(0, -1001)])]
    assert len(bench.calls("seek")) == 1


def test_a_damaged_partition_is_forgotten_with_its_revocation(clock: Clock) -> None:
    """After its revocation a damaged partition is no longer tried; assigned again, it is read from its
    committed offset."""
    bench = Bench()
    bench.assign(0)
    bench.fetch(brings(damaged(0)))
    bench.fetch(taken(0))
    assert bench.member.end_offsets().unreadable == {}
    clock.now += 5.0
    bench.assign(0)
    assert bench.calls("seek") == []
    assert bench.calls("resume") == [("resume", [(0, -1001)])]
    assert offsets(bench.fetch(brings(message(0)))) == [0]


def test_checksums_are_checked_against_the_user_s_setting() -> None:
    """Checksums are always verified, even if the user's setting says otherwise, so that no changed byte is
    delivered."""
    assert "checksums" in (passthrough.refusal("check.crcs", "false") or "")
    config = consumer_config({"check.crcs": False}, offset_reset="earliest", ignore=None)
    assert config["check.crcs"] is True


@pytest.fixture(scope="module")
def disk(own_kafka: RealBroker) -> Kafka:
    """Return a broker whose segments a test may change."""
    return Kafka(own_kafka.bootstrap_servers, "real")


def segment(kafka: Kafka, own_kafka: RealBroker, codec: str, partitions: int = 1) -> tuple[str, LogSegment]:
    """Make a topic with six batches of ten records in partition 0; return its name and its segment."""
    name = create_topic(kafka, partitions, compression_type=codec)
    for batch in BATCHES:
        produce(kafka, name, batch)
    found = LogSegment(own_kafka.directory, name)
    return name, found


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
@pytest.mark.parametrize("codec", ["uncompressed", "lz4"])
async def test_a_flipped_bit_is_waited_for_and_reported(
    disk: Kafka, own_kafka: RealBroker, strategy: str, codec: str
) -> None:
    """A batch with a flipped bit on the broker's disk, and all records after it, are read once and in order
    when the disk is repaired; until then another partition is read."""
    name, log = segment(disk, own_kafka, codec, partitions=2)
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
    disk: Kafka, own_kafka: RealBroker, codec: str
) -> None:
    """A batch with a valid checksum that cannot be decompressed, or one with an impossible length, which the broker
    itself reports, is reported, and read once the file is repaired."""
    name, log = segment(disk, own_kafka, codec)
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


async def test_ways_past_a_damaged_batch(disk: Kafka, own_kafka: RealBroker) -> None:
    """When the group's offset is moved past the damaged batch, as the runbook says, reading starts at the next batch.
    A replay fails at it and says where, since it can neither wait indefinitely nor skip it."""
    name, log = segment(disk, own_kafka, "uncompressed")
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
