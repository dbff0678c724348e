"""``pinstream check --rights``: the policy for Amazon MSK, and Strimzi's user. (The ACLs are tested on a broker.)"""

from __future__ import annotations

import json

import yaml

from consumer.commands.check import rights
from consumer.settings import Settings, load


def settings(**variables: str) -> Settings:
    """These on top of the least that `run` needs."""
    least = {
        "HOME": "/home/shop",
        "KAFKA_BOOTSTRAP_SERVERS": "b-1.x.y.c1.kafka.eu-west-1.amazonaws.com:9098",
        "KAFKA_TOPICS": "orders,^web-.*$",
        "PINTEREST_AD_ACCOUNT_ID": "549755885175",
        "PINTEREST_ACCESS_TOKEN": "t",
    }
    return load({**least, **variables})


def policy(of: Settings) -> dict[str, set[str]]:
    """The last part of each resource -> what is allowed on it."""
    document = json.loads(rights.iam(of))
    assert document["Version"] == "2012-10-17"
    assert {one["Effect"] for one in document["Statement"]} == {"Allow"}
    return {
        one["Resource"].removeprefix("arn:aws:kafka:REGION:ACCOUNT:"): {
            action.removeprefix("kafka-cluster:") for action in one["Action"]
        }
        for one in document["Statement"]
    }


def test_the_policy_has_every_right_that_the_acls_have() -> None:
    """One statement a resource. IAM's ReadData and WriteData do not bring DescribeTopic with them, so it is named."""
    found = policy(settings())
    read = {"DescribeTopic", "ReadData", "DescribeTopicDynamicConfiguration"}
    letters = read | {"WriteData", "CreateTopic"}
    redrive = {"DescribeTransactionalId", "AlterTransactionalId"}
    at = "{}/CLUSTER/UUID/{}".format
    assert found == {
        "cluster/CLUSTER/UUID": {"Connect", "DescribeCluster", "WriteDataIdempotently"},
        at("topic", "orders"): read,
        at("topic", "web-*"): letters,  # the names of its dead-letter topics begin alike
        at("topic", "orders.dead-letters"): letters,
        at("group", "pinstream"): {"DescribeGroup", "AlterGroup"},
        at("group", "pinstream.replay.*"): {"DescribeGroup", "AlterGroup"},
        at("transactional-id", "pinstream.redrive.orders.dead-letters"): redrive,
        at("transactional-id", "pinstream.redrive.web-*"): redrive,
    }


def test_a_group_of_any_name_is_quoted() -> None:
    """Kafka takes quotes, backslashes and the start of a comment in a group's name; YAML reads them back."""
    group = 'shop "eu" \\ #1: größe'
    document = yaml.safe_load(rights.strimzi(settings(KAFKA_GROUP_ID=group)))
    resources = [acl["resource"] for acl in document["spec"]["authorization"]["acls"]]
    assert {"type": "group", "name": group, "patternType": "literal"} in resources
    assert {"type": "group", "name": f"{group}.replay.", "patternType": "prefix"} in resources
    assert {one["type"] for one in resources} == {"topic", "group", "transactionalId"}
