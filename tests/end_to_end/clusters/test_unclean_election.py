"""An unclean leader election: a replica leads that lacks the last records, and its log grows beyond the committed
offsets before anybody reads it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.engine.model import CommerceEvent
from tests.end_to_end.api import Api
from tests.end_to_end.clusters.test_racks import answers_for_groups
from tests.end_to_end.processes import Process, run_environment, wait_for
from tests.end_to_end.records import ENCODER, commerce_event, committed_offsets, new_group, write
from tests.support.kafka.broker import RealBroker, wait_until
from tests.support.kafka.harness import WITHIN, Kafka, Member, commit, create_topic, produce, unique
from tests.support.kafka.segments import LogSegment

pytestmark = pytest.mark.kafka

LEADER, BEHIND = 2, 3
SESSION = 20.0
"""Seconds after which the group gives a killed member's partitions away: longer than the election takes."""
PROTOCOLS = ("classic", "consumer")
KEPT, LOST, NEW = 60, 40, 90
"""Events of each partition: on both replicas, on the first leader only, and written after the election."""
PARTITIONS = 2


class Cluster(NamedTuple):
    """A controller that coordinates all groups, and the two brokers that hold the topics."""

    kafka: Kafka
    leader: RealBroker
    behind: RealBroker

    def new_topic(self) -> str:
        """A topic on both brokers whose leader may be one that lacks records, and its dead-letter topic."""
        name = unique("topic")
        unclean = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
        wanted = [
            NewTopic(name, PARTITIONS, replica_assignment=[[LEADER, BEHIND]] * PARTITIONS, config=unclean),
            NewTopic(f"{name}.dead-letters", 1, replica_assignment=[[1]]),
        ]
        admin = AdminClient({**self.kafka.config, "log_level": 0})
        for done in admin.create_topics(wanted).values():
            done.result(WITHIN)
        self.until_led(name, LEADER, in_sync=2)
        return name

    def until_led(self, topic: str, leader: int, in_sync: int) -> None:
        """Wait until this broker leads all partitions, and so many replicas are in sync."""
        admin = AdminClient({**self.kafka.config, "log_level": 0})

        def led() -> bool:
            found = admin.list_topics(timeout=WITHIN).topics.get(topic)
            parts = found.partitions.values() if found is not None else ()
            return bool(parts) and all(one.leader == leader and len(one.isrs) == in_sync for one in parts)

        assert wait_until(led, WITHIN)


@pytest.fixture(scope="module")
def cluster(started: Callable[[RealBroker], AbstractContextManager[RealBroker]]) -> Iterator[Cluster]:
    """The cluster."""
    session = int(SESSION * 1000)
    slow: dict[str, Any] = {"group_consumer_session_timeout_ms": session, "replica_lag_time_max_ms": 2000}
    with ExitStack() as stack:
        first = stack.enter_context(started(RealBroker(**slow)))
        kafka = Kafka(first.bootstrap_servers, "real")
        # The groups' topic is made with the first question for an offset: before there is another broker for it.
        topic = create_topic(kafka)
        assert wait_until(lambda: answers_for_groups(kafka, topic), WITHIN)
        brokers = [stack.enter_context(started(first.beside(number, **slow))) for number in (LEADER, BEHIND)]
        yield Cluster(kafka, *brokers)


def written(cluster: Cluster, topic: str, what: str, count: int) -> set[str]:
    """Write `count` events into each partition; return their ids."""
    ids: set[str] = set()
    for partition in range(PARTITIONS):
        events: list[CommerceEvent] = [commerce_event(f"{what}-{partition}-{n}") for n in range(count)]
        write(cluster.kafka, topic, ((None, ENCODER.encode(one)) for one in events), partition=partition)
        ids |= {str(one["event_id"]) for one in events}
    return ids


class ElectionGroup(NamedTuple):
    """A group's name, and the environment of each of its two members."""

    name: str
    first: dict[str, str]
    second: dict[str, str]


def held(member: Process) -> set[int]:
    """The partitions that a member holds."""
    return {one["partition"] for one in member.status()["partitions"]}


def share(one: Process, other: Process) -> bool:
    """Whether both hold one of the two partitions."""
    return len(held(one)) == len(held(other)) == 1


@pytest.mark.slow("an unclean election under both protocols")
def test_what_is_written_after_an_unclean_election_is_delivered(
    cluster: Cluster, api: Api, tmp_path: Path
) -> None:
    """Under both group protocols, each event that is written after the election is delivered once: by members that were
    stopped meanwhile, and by one to which the partition of a killed one is assigned anew. What was cut off is reported
    for each partition, from the cut to the committed offset."""
    topic = cluster.new_topic()
    kept = written(cluster, topic, "kept", KEPT)
    cluster.behind.kill()
    cluster.until_led(topic, LEADER, in_sync=1)
    lost = written(cluster, topic, "lost", LOST)

    def group(what: str, protocol: str) -> ElectionGroup:
        name = new_group()
        settings = {
            "KAFKA_GROUP_PROTOCOL": protocol,
            **({"KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000))} if protocol == "classic" else {}),
        }
        folders = [tmp_path / f"{what}-{protocol}-{number}" for number in (1, 2)]
        envs = [run_environment(one, cluster.kafka, topic, name, api.url, **settings) for one in folders]
        return ElectionGroup(name, *envs)

    def settled(one: ElectionGroup) -> bool:
        return committed_offsets(cluster.kafka, one.name, topic, PARTITIONS) == [KEPT + LOST] * PARTITIONS

    stopped = [group("stopped", one) for one in PROTOCOLS]
    shared = [group("shared", one) for one in PROTOCOLS]
    for one in stopped:
        with Process(tmp_path, "run", env=one.first) as alone:
            alone.until_settled((KEPT + LOST) * PARTITIONS)
            assert alone.stop()[0] == 0
    with ExitStack() as stack:
        successors: list[Process] = []
        for one in shared:
            killed, successor = (stack.enter_context(Process(tmp_path, "run", env=env)) for env in one[1:])
            killed.until(partial(share, killed, successor), "a partition each")
            wait_for(partial(settled, one), "all offsets committed")
            successors.append(successor)
            killed.kill()

        cluster.leader.kill()
        stack.callback(cluster.leader.restart)
        cluster.behind.restart()
        cluster.until_led(topic, BEHIND, in_sync=1)
        new = written(cluster, topic, "new", NEW)
        assert all(len(held(successor)) == 1 for successor in successors), (
            "the partition was given away before the log had grown"
        )
        # Not by what each has read: that includes what it read before the election.
        wait_for(
            lambda: all(api.accepted().get(one, 0) == len(successors) for one in new),
            "both groups to deliver it",
        )
        for successor in successors:
            assert successor.stop()[0] == 0
        for one in stopped:
            with Process(tmp_path, "run", env=one.first) as alone:
                alone.until_settled(NEW * PARTITIONS)
                assert alone.stop()[0] == 0
                successors.append(alone)

    accepted = api.accepted()
    assert accepted == dict.fromkeys(kept | lost | new, 2 * len(PROTOCOLS))
    for member in successors:
        backs = [one for one in member.log if one["event"] == "position_went_back"]
        assert sorted((one["partition"], one["fetched"], one["expected"]) for one in backs) == [
            (partition, KEPT, KEPT + LOST) for partition in range(PARTITIONS)
        ]
        assert not [one for one in member.log if "cannot be read" in str(one)]


async def test_a_cut_is_found_although_the_leader_comes_later(cluster: Cluster) -> None:
    """A partition that has no leader when it is assigned waits for it without a line that it cannot be read, and is
    then read from where its log was cut."""
    topic, group = unique("topic"), new_group()
    admin = AdminClient({**cluster.kafka.config, "log_level": 0})

    def is_made() -> bool:
        try:
            admin.create_topics([NewTopic(topic, 1, replica_assignment=[[LEADER]])])[topic].result(WITHIN)
        except KafkaException:  # the broker has just come back, and is fenced yet
            return False
        return True

    assert wait_until(is_made, WITHIN)
    cluster.until_led(topic, LEADER, in_sync=1)
    for number in range(10):
        produce(cluster.kafka, topic, [b"old-%d" % number])
    commit(cluster.kafka, group, topic, 10, leader_epoch=0)
    cluster.leader.kill()
    log = LogSegment(cluster.leader.directory, topic)
    log.cut(log.batches()[6])
    # Its leader is gone when this client first hears of the partition.
    assert wait_until(lambda: admin.list_topics(topic).topics[topic].partitions[0].leader == -1, WITHIN)
    quick = {"topic.metadata.refresh.interval.ms": 1000}
    async with Member(cluster.kafka, [topic], group, config=quick) as member:
        await member.until(lambda: bool(member.assignments), "the assignment")
        await member.obeys(1000)
        cluster.leader.restart()
        await member.until_async(partial(asyncio.to_thread, write_one, cluster.kafka, topic), "a leader")
        await member.until(lambda: b"new" in member.values, "the record behind the cut")
    assert member.records[0].offset == 6
    assert not [text for _, text in member.errors if "cannot be read" in text]


def write_one(kafka: Kafka, topic: str) -> bool:
    """Write a record; return whether there is a leader that takes it."""
    try:
        produce(kafka, topic, [b"new"])
    except (AssertionError, KafkaException):
        return False
    return True
