"""The Kafka user of deploy/helm/examples/strimzi.yaml, on a real Kafka that grants nothing else: its rights are enough.

Strimzi turns the user's `acls` into Kafka's; here a test does, for the user of the broker's SASL listener.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from consumer.engine.model import Disposition
from tests.deploy.rendering import EXAMPLES
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import committed_offsets, dead_letters, generated, write_generated
from tests.support.kafka.broker import SASL_PASSWORD, SASL_USER, RealBroker
from tests.support.kafka.harness import WITHIN, Kafka, create_topic

OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((EXAMPLES / "strimzi.yaml").read_text("utf-8")))
[USER] = [one for one in DOCUMENTS if one["kind"] == "KafkaUser"]
TOPICS = [one["metadata"]["name"] for one in DOCUMENTS if one["kind"] == "KafkaTopic"]
ACLS = [
    AclBinding(
        ResourceType[acl["resource"]["type"].upper()],
        acl["resource"]["name"],
        ResourcePatternType[acl["resource"]["patternType"].upper()],
        f"User:{SASL_USER}",
        "*",
        OPERATIONS[operation],
        AclPermissionType.ALLOW,
    )
    for acl in USER["spec"]["authorization"]["acls"]
    for operation in acl["operations"]
]


@pytest.fixture
def guarded(kafka: Kafka) -> Iterator[Kafka]:
    """A broker that allows its own listener everything, the users of the other one nothing; with the topics.

    `kafka` is there for its reasons to skip: this broker is the test's own.
    """
    assert kafka
    rules = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    with RealBroker(authorizer_class_name=rules, super_users="User:ANONYMOUS") as broker:
        own = Kafka(broker.bootstrap_servers, "real", broker.sasl_bootstrap_servers)
        for name in TOPICS:
            create_topic(own, 3, name)
        yield own


@pytest.fixture
def api() -> Iterator[Api]:
    """A sandbox of the Conversions API."""
    loop = Loop()
    with Api(loop) as server:
        yield server
    loop.close()


def grant(kafka: Kafka, acls: list[AclBinding]) -> None:
    """From now on the user has these rights."""
    admin = AdminClient(kafka.config)
    for future in admin.create_acls(acls).values():
        future.result(WITHIN)


def as_the_user(kafka: Kafka, api: Api, folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a member that logs in as the user."""
    assert kafka.sasl_bootstrap_servers is not None
    return run_environment(
        folder,
        kafka,
        "orders",
        "pinstream",
        api.url,
        KAFKA_BOOTSTRAP_SERVERS=kafka.sasl_bootstrap_servers,
        KAFKA_SECURITY_PROTOCOL="SASL_PLAINTEXT",
        KAFKA_SASL_MECHANISM="PLAIN",
        KAFKA_SASL_USERNAME=SASL_USER,
        KAFKA_SASL_PASSWORD=SASL_PASSWORD,
        **settings,
    )


@pytest.mark.real_kafka
def test_they_are_needed_and_enough(guarded: Kafka, api: Api, tmp_path: Path) -> None:
    """Without them `check` fails. With them it succeeds, and events and dead letters arrive."""
    env = as_the_user(guarded, api, tmp_path)
    refused = command("check", env=env)
    assert refused.returncode == 1, refused.stdout

    grant(guarded, ACLS)
    allowed = command("check", env=env)
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr

    generator, events = generated(300, invalid=0.1)
    write_generated(guarded, "orders", events)
    with Process(tmp_path, "run", env=env) as process:
        ledger = process.until_settled(len(events))
        assert process.get("/readyz")[0] == 200
        assert process.stop()[0] == 0
    assert {one: ledger[one.value] for one in Disposition} == {
        one: generator.tally[one] for one in Disposition
    }
    assert len(dead_letters(guarded, "orders")) == generator.tally[Disposition.DEAD_LETTERED] > 0
    assert sum(committed_offsets(guarded, "pinstream", "orders", 3)) == len(events)

    # A member of the newer group protocol, and a static one, need no more.
    for settings in ({"KAFKA_GROUP_PROTOCOL": "consumer"}, {"KAFKA_GROUP_INSTANCE_ID": "pinstream-0"}):
        with Process(tmp_path, "run", env={**env, **settings}) as other:
            other.until(lambda: len(other.status()["partitions"]) == 3, "its partitions")
            assert other.stop()[0] == 0
