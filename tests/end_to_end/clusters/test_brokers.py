"""The oldest supported broker, and a broker with the new group protocol turned off: what works, and what the
messages say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from consumer.adapters.kafka.topic_ids import ask_once
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, last_error, run_environment
from tests.end_to_end.records import (
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    write_generated,
)
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import WITHIN, Kafka, create_topic

pytestmark = pytest.mark.kafka

Start = Callable[[RealBroker], AbstractContextManager[RealBroker]]
UNKNOWN = "the brokers do not take KAFKA_GROUP_PROTOCOL=consumer"
REMEDY = "remove the setting, or update the brokers"


def test_an_old_broker_has_no_topic_ids(old_kafka: Kafka) -> None:
    """This broker is right for the other tests: Kafka 2.8 with the protocol of 2.7 has no topic ids."""
    assert not ask_once(old_kafka.config, [create_topic(old_kafka)], WITHIN)


def test_the_commands_on_an_old_broker(old_kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Each event is delivered once. `check`, a restart, a named replay, a redrive (one transaction for each
    letter) and `offsets` work; the dead-letter topic is created."""
    topic, group = create_topic(old_kafka, 4), new_group()
    _, events = generated(300, invalid=0.1)
    write_generated(old_kafka, topic, events)
    env = run_environment(tmp_path, old_kafka, topic, group, api.url)
    checked = command("check", env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    with Process(tmp_path, "run", env=env) as service:
        ledger = service.until_settled(len(events))
        # How many members share the quota comes from the broker's description of the group.
        assert service.status()["destination"]["quota_divided_by"] == 1
        assert service.stop()[0] == 0
        assert not [line for line in service.log if line["event"] == "kafka_trouble"]
    assert ledger["delivered"] == api.accepted().total() == len(api.accepted()) > 200
    assert ledger["dead_lettered"] == len(dead_letters(old_kafka, topic)) > 10
    assert sum(committed_offsets(old_kafka, group, topic)) == len(events)
    _, more = generated(50, seed=2)
    write_generated(old_kafka, topic, more)
    with Process(tmp_path, "run", env=env) as service:
        assert service.until_settled(len(more))["read"] == len(more)
        assert service.stop()[0] == 0

    bounds = ("--topic", topic, "--from", "beginning", "--to", "end")
    replayed = command("replay", "--name", "again", *bounds, "--json", env=env)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout.splitlines()[-1])["ledger"]["duplicate"] > 200
    redriven = command("dead-letters", "redrive", "--topic", topic, env=env)
    assert redriven.returncode == 0, redriven.stderr
    assert command("dead-letters", "list", "--topic", topic, env=env).returncode == 0
    moved = command("offsets", "set", "--topic", topic, "--to", "beginning", "--yes", env=env)
    assert moved.returncode == 0, moved.stderr
    assert api.accepted().total() == len(api.accepted())


@pytest.fixture(scope="module")
def classic_kafka(started: Start) -> Iterator[Kafka]:
    """The newest broker with the new group protocol turned off."""
    with started(RealBroker(group_coordinator_rebalance_protocols="classic")) as broker:
        yield Kafka(broker.bootstrap_servers, "real")


@pytest.mark.parametrize("broker", ["old_kafka", "classic_kafka"])
def test_a_group_protocol_that_the_broker_lacks(
    broker: str, request: pytest.FixtureRequest, api: Api, tmp_path: Path
) -> None:
    """`check` and `run` end with one line that says which setting to remove; without that setting the same
    group continues."""
    kafka: Kafka = request.getfixturevalue(broker)
    topic, group = new_topic(kafka), new_group()
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    new = {**env, "KAFKA_GROUP_PROTOCOL": "consumer", "COLUMNS": "300"}
    checked = command("check", env=new)
    assert checked.returncode == 1
    [line] = [line for line in checked.stdout.splitlines() if UNKNOWN in line]
    assert REMEDY in line
    ended = command("run", env=new)
    assert ended.returncode == 1
    line = last_error(ended.stderr)
    assert UNKNOWN in line
    assert REMEDY in line
    _, events = generated(20)
    write_generated(kafka, topic, events)
    with Process(tmp_path, "run", env=env) as service:
        assert service.until_settled(len(events))["read"] == len(events)
        assert service.stop()[0] == 0
