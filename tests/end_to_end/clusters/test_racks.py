"""Two brokers in two racks: records are fetched from the replica in our own rack (`client.rack`), which may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import committed_offsets, generated, new_group, write_generated
from tests.support.kafka.broker import RealBroker, wait_until
from tests.support.kafka.harness import WITHIN, Kafka, committed, create_topic, unique

pytestmark = pytest.mark.kafka

LEADER, FOLLOWER = 1, 2
EVENTS = 400


class Cluster(NamedTuple):
    """Broker 1 leads all partitions and coordinates all groups; broker 2 follows."""

    kafka: Kafka
    follower: RealBroker

    def new_topic(self) -> str:
        """A topic with a replica on each broker, led by the first, and its dead-letter topic on the first."""
        name = unique("topic")
        admin = AdminClient({**self.kafka.config, "log_level": 0})
        wanted = [
            NewTopic(name, 2, replica_assignment=[[LEADER, FOLLOWER]] * 2),
            NewTopic(f"{name}.dead-letters", 1, replica_assignment=[[LEADER]]),
        ]
        for done in admin.create_topics(wanted).values():
            done.result(WITHIN)
        assert wait_until(lambda: self._in_sync(admin, name), WITHIN)
        return name

    def _in_sync(self, admin: AdminClient, topic: str) -> bool:
        found = admin.list_topics(timeout=WITHIN).topics.get(topic)
        return found is not None and all(len(one.isrs) == 2 for one in found.partitions.values())


@pytest.fixture(scope="module")
def cluster(started: Callable[[RealBroker], AbstractContextManager[RealBroker]]) -> Iterator[Cluster]:
    """Both brokers."""
    selector = "org.apache.kafka.common.replica.RackAwareReplicaSelector"
    racks: dict[str, Any] = {"replica_selector_class": selector, "replica_lag_time_max_ms": 3000}
    with started(RealBroker(broker_rack="west", **racks)) as first:
        kafka = Kafka(first.bootstrap_servers, "real")
        # The groups' topic is made with the first question for an offset: before there is another broker for it.
        topic = create_topic(kafka)
        assert wait_until(lambda: answers_for_groups(kafka, topic), WITHIN)
        second = first.beside(FOLLOWER, broker_rack="east", **racks)
        with started(second):
            yield Cluster(kafka, second)


def answers_for_groups(kafka: Kafka, topic: str) -> bool:
    """Whether the broker coordinates groups yet."""
    try:
        return committed(kafka, "first", topic) is not None
    except KafkaException:
        return False


def asked(status: dict[str, Any]) -> set[str]:
    """The brokers that the consumer fetches from now."""
    return {
        one["broker"]
        for one in status["brokers"]
        if one["client"] == "consumer" and one["round_trip_seconds"]
    }


def test_the_replica_of_our_rack_is_read_and_may_be_lost(cluster: Cluster, api: Api, tmp_path: Path) -> None:
    """Records come from the follower in our rack. When it dies they come from the leader, and none is lost."""
    topic, group = cluster.new_topic(), new_group()
    _, events = generated(EVENTS, duplicates=0)
    write_generated(cluster.kafka, topic, events)
    env = run_environment(
        tmp_path,
        cluster.kafka,
        topic,
        group,
        api.url,
        KAFKA_CLIENT_RACK="east",
    )
    with Process(tmp_path, "run", env=env) as service:
        service.until_settled(EVENTS)
        follower_alone = {str(FOLLOWER), "coordinator"}
        service.until(lambda: asked(service.status()) == follower_alone, "fetches from the follower alone")
        cluster.follower.kill()
        _, more = generated(EVENTS, seed=2, duplicates=0)
        write_generated(cluster.kafka, topic, more)
        ledger = service.until_settled(2 * EVENTS)
        service.until(lambda: str(LEADER) in asked(service.status()), "fetches from the leader")
        assert service.stop()[0] == 0
    accepted = api.accepted()
    assert ledger["delivered"] == accepted.total() == len(accepted) > EVENTS
    assert sum(committed_offsets(cluster.kafka, group, topic, 2)) == 2 * EVENTS
