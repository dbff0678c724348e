"""``pinstream check --rights``: the policy for Amazon MSK, and Strimzi's user. (The ACLs are tested on a broker.)"""

from __future__ import annotations

import json

import yaml

from consumer.commands.check import rights
from consumer.settings import Settings, load


def settings(**variables: str) -> Settings:
    """Return the least settings that `run` needs, with `variables` on top."""
    least = {
        "HOME": "/home/shop",
        "KAFKA_BOOTSTRAP_SERVERS": "b-1.x.y.c1.kafka.eu-west-1.amazonaws.com:9098",
        "KAFKA_TOPICS": "orders,^web-.*$",
        "PINTEREST_AD_ACCOUNT_ID": "549755885175",
        "PINTEREST_ACCESS_TOKEN": "t",
    }
    return load({**least, **variables})


def policy(of: Settings) -> dict[str, set[str]]:
    """Return the allowed actions of the policy, by the resource's name without its prefix."""
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
    """DescribeTopic is named, since IAM's ReadData and WriteData do not include it."""
    found = policy(settings(PINSTREAM_RECEIPTS_TOPIC="shop.receipts"))
    read = {"DescribeTopic", "ReadData", "DescribeTopicDynamicConfiguration"}
    letters = read | {"WriteData", "CreateTopic"}
    redrive = {"DescribeTransactionalId", "AlterTransactionalId"}
    at = "{}/CLUSTER/UUID/{}".format
    assert found == {
        "cluster/CLUSTER/UUID": {"Connect", "DescribeCluster", "WriteDataIdempotently"},
        at("topic", "orders"): read,
        at("topic", "web-*"): letters,  # the pattern's dead-letter topics have the same prefix
        at("topic", "orders.dead-letters"): letters,
        at("topic", "shop.receipts"): letters,
        at("group", "pinstream"): {"DescribeGroup", "AlterGroup"},
        at("group", "pinstream.replay.*"): {"DescribeGroup", "AlterGroup"},
        at("transactional-id", "pinstream.redrive.orders.dead-letters"): redrive,
        at("transactional-id", "pinstream.redrive.web-*"): redrive,
    }


def test_a_group_of_any_name_is_quoted() -> None:
    """A group's name with quotes, backslashes and ``#``, which Kafka allows, is read back from the YAML as it was."""
    group = 'shop "eu" \\ #1: größe'
    document = yaml.safe_load(rights.strimzi(settings(KAFKA_GROUP_ID=group)))
    resources = [acl["resource"] for acl in document["spec"]["authorization"]["acls"]]
    assert {"type": "group", "name": group, "patternType": "literal"} in resources
    assert {"type": "group", "name": f"{group}.replay.", "patternType": "prefix"} in resources
    assert {one["type"] for one in resources} == {"topic", "group", "transactionalId"}
