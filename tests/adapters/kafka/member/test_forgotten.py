"""What ends a client of librdkafka: another process with its instance id, which the error names, or a replaced
cluster whose brokers do not know the group, which is then joined again, as it is when the client has lost all
brokers, and when the process had no time for a rebalance."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.adapters.aws import msk
from consumer.adapters.kafka import hooks
from consumer.adapters.kafka.client_errors import as_fatal
from consumer.engine.messages import Assignment
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import TEN
from tests.adapters.kafka.member.scripted_member import Bench, Clock, FakeConsumer, message, offsets, taken
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import PROTOCOLS, Kafka, Member, create_topic, produce, unique
from tests.support.limits import LATE

MORE: list[bytes | None] = [b"new %d" % number for number in range(20)]
FORGOTTEN = "Fatal error: Broker: The group id does not exist: ConsumerGroupHeartbeat fatal error"


def ended(text: str) -> Message:
    """Return the message that the queue of a client holds when the client has ended."""
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._FATAL, text)
    return Message(None, -1, -1, None, None, None, error, (0, -1), 0.0, -1)


def strand(consumer: FakeConsumer) -> None:
    """Let the client have lost all its brokers."""
    for _ in range(10):
        consumer.config["stats_cb"]('{ "brokers":{ "GroupCoordinator":{ "source":"logical" } }, "topics":{}}')


def test_a_forgotten_group_is_joined_again() -> None:
    """When the brokers no longer know the group, its partitions are lost and another client joins it."""
    bench = Bench(settings={"group.protocol": "consumer"})
    bench.assign(0, 1)
    bench.fetch(lambda _: [message(4), ended(FORGOTTEN)])
    first = bench.consumer
    bench.fetch()
    assert bench.reported.losses == [[TopicPartition("t", 0), TopicPartition("t", 1)]]
    assert bench.consumer is not first
    assert [call[0] for call in first.calls][-1] == "close"
    assert bench.reported.errors == [
        ("GROUP_ID_NOT_FOUND", "the brokers no longer know the group: joining again")
    ]
    bench.assign(0)
    assert offsets(bench.fetch(lambda _: [message(0)])) == [0]


def test_a_client_that_lost_its_brokers_is_replaced() -> None:
    """Its partitions are lost; another joins without waiting for its end, and ignores its callbacks."""
    bench = Bench()
    bench.assign(0, 1)
    first, closing, close = bench.consumer, threading.Event(), threading.Event()

    def end() -> None:
        closing.set()
        close.wait(LATE)

    first.close = end  # type: ignore[method-assign] # the fake's own never waits
    strand(first)
    bench.fetch()
    assert closing.wait(LATE)
    assert bench.consumer is not first
    assert bench.reported.losses == [[TopicPartition("t", 0), TopicPartition("t", 1)]]
    assert bench.reported.errors == [
        ("_ALL_BROKERS_DOWN", "the client has lost all brokers: joining with another one")
    ]
    bench.assign(0)
    first.take_away(0, 1)
    first.config["error_cb"](confluent_kafka.KafkaError(confluent_kafka.KafkaError._FATAL, FORGOTTEN))
    close.set()
    assert offsets(bench.fetch(lambda _: [message(0)])) == [0]
    assert len(bench.reported.losses) == 1
    assert len(bench.made) == 2


@pytest.mark.parametrize("missing", ["a token", "a certificate"])
def test_a_client_is_not_replaced_before_another_can_be_made(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without a token or a certificate it is kept, and the reason is reported every ten seconds."""
    authority = tmp_path / "ca.pem"
    authority.touch()
    if missing == "a token":
        servers = "b-1.x.y.c1.kafka.eu-west-1.amazonaws.com:9098"
        nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_CONFIG_FILE": "/none"}
        secret = {"AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in {"AWS_ACCESS_KEY_ID": "AKIDTESTS", **secret, **nowhere}.items():
            monkeypatch.setenv(name, value)
        settings = {"sasl.mechanism": "AWS_MSK_IAM", "bootstrap.servers": servers}
        said = "Kafka: no token for AWS_MSK_IAM (eu-west-1): "
    else:
        settings = {"ssl.ca.location": str(authority)}
        said = f"KAFKA_SSL_CA_LOCATION: {authority} cannot be read: No such file or directory"
    msk.tokens_of.cache_clear()
    bench = Bench(settings=settings)
    bench.assign(0)
    first = bench.consumer
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    authority.unlink()
    msk.tokens_of.cache_clear()
    strand(first)
    for times in (1, 2):
        for _ in range(3):
            bench.fetch()
        assert (bench.consumer, bench.reported.losses) == (first, [])
        assert [code for code, _ in bench.reported.errors] == ["_AUTHENTICATION"] * times
        assert (
            f"the group cannot be joined again yet; next attempt in 10 s ({said}"
            in bench.reported.errors[-1][1]
        )
        clock.now += 10.0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTESTS")
    authority.touch()
    bench.fetch()
    assert bench.consumer is not first
    assert bench.reported.losses == [[TopicPartition("t", 0)]]
    msk.tokens_of.cache_clear()


@pytest.mark.parametrize("code", ["FENCED_INSTANCE_ID", "UNRELEASED_INSTANCE_ID"])
def test_the_cause_of_a_client_s_end_is_named(code: str) -> None:
    """A shared instance id is named, without the advice to restart, which would fence the other process."""
    words = confluent_kafka.KafkaError(getattr(confluent_kafka.KafkaError, code)).str()
    found = as_fatal(
        confluent_kafka.KafkaError(confluent_kafka.KafkaError._FATAL, f"Fatal error: {words}: x")
    )
    assert "another process uses the same KAFKA_GROUP_INSTANCE_ID" in str(found)
    unknown = as_fatal(confluent_kafka.KafkaError(confluent_kafka.KafkaError._FATAL, "Fatal error: of ours"))
    assert "restart it" in str(unknown)


@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", ["cooperative", "kip-848"])
async def test_two_processes_with_one_instance_id(kafka: Kafka, protocol: str) -> None:
    """Of two processes with one instance id, a classic group ends the first, KIP-848 the second; its error says why."""
    topic, group = create_topic(kafka), unique("group")
    settings = {**PROTOCOLS[protocol], "group.instance.id": "one"}
    async with Member(kafka, [topic], group, config=settings) as first:
        await first.until(lambda: bool(first.held))
        async with Member(kafka, [topic], group, config=settings) as second:
            failure = await (first if protocol == "cooperative" else second).until_fails()
    assert isinstance(failure, KafkaError)
    assert "give each process its own" in str(failure)


async def test_a_cluster_that_is_replaced(own_kafka: RealBroker) -> None:
    """An empty cluster takes its ports: a member under each protocol joins its group there, reads and commits."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topics = [create_topic(kafka) for _ in PROTOCOLS]
    members = [
        Member(kafka, [topic], unique("group"), config=one)
        for topic, one in zip(topics, PROTOCOLS.values(), strict=True)
    ]

    async def reads(member: Member, values: list[bytes | None]) -> None:
        await member.until(lambda: set(values) <= set(member.values), "what is there")
        assert (await member.commit()).failure is None

    async with contextlib.AsyncExitStack() as stack:
        for topic, member in zip(topics, members, strict=True):
            produce(kafka, topic, TEN)
            await stack.enter_async_context(member)
            await reads(member, TEN)
        own_kafka.replace()
        for topic in topics:
            create_topic(kafka, name=topic)
            produce(kafka, topic, MORE)
        for member in members:
            await reads(member, MORE)
            assert member.losses


# -- a process that has no time for a rebalance: its event loop does not answer

BOTH = [TopicPartition("t", 0), TopicPartition("t", 1)]
TEXT = "the process is too busy to handle a rebalance in time: its partitions are lost, joining again"


@pytest.mark.parametrize("busy", [1, 3])
def test_too_busy_to_hear_of_its_partitions(busy: int) -> None:
    """They are reported as lost, as soon as it has time for that, and another client joins and reads on."""
    bench = Bench()
    bench.reported.busy = busy
    bench.assign(0, 1)
    first = bench.consumer
    for _ in range(busy):
        assert bench.reported.losses == []
        bench.fetch()
    assert bench.reported.losses == [BOTH]
    assert bench.consumer is not first
    assert [call[0] for call in first.calls][-1] == "close"
    assert set(bench.reported.errors) == {("_TIMED_OUT", TEXT)}
    bench.assign(0)
    assert offsets(bench.fetch(lambda _: [message(0)])) == [0]


def test_too_busy_to_give_them_back() -> None:
    """A drain that is out of time, whose end nobody hears either: the partitions are unassigned, and it joins again."""
    bench = Bench()
    bench.assign(0, 1)
    first = bench.consumer
    bench.reported.expired, bench.reported.busy = True, 1
    bench.fetch(taken(0))
    bench.fetch()
    assert len([call for call in first.calls if call[0] == "incremental_unassign"]) == 1
    assert bench.consumer is not first
    assert TopicPartition("t", 1) in bench.reported.losses[-1]
    bench.assign(0)
    assert offsets(bench.fetch(lambda _: [message(0)])) == [0]


class Starved(Member):
    """A member whose event loop stands still for `stands` seconds when it is told of its first partitions."""

    stands = 0.0

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Stand still once, then take note."""
        seconds, self.stands = self.stands, 0.0
        time.sleep(seconds)  # on purpose: nothing else runs on the loop meanwhile  # noqa: ASYNC251
        await super().assigned(assignments)


@pytest.mark.real_kafka
async def test_a_loop_that_stands_still_in_a_rebalance(
    kafka: Kafka, protocol: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets its partitions again and reads everything; nothing of the assignment that it missed is committed."""
    monkeypatch.setattr(hooks, "_NOTIFY_TIMEOUT", 1.0)
    topic, group = create_topic(kafka, 2), unique("group")
    values: list[bytes | None] = [b"%d" % number for number in range(20)]
    produce(kafka, topic, values)
    starved = Starved(kafka, [topic], group, config=protocol)
    starved.stands = 3.0
    async with starved as member:
        await member.until(lambda: len(member.losses) == 1, "the loss of what it missed")
        await member.until(lambda: len(member.held) == 2, "its partitions")
        await member.until(lambda: set(values) <= set(member.values), "all records")
        assert ("_TIMED_OUT", TEXT) in member.errors
        assert (await member.commit()).failure is None
