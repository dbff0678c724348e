"""The least rights that the commands need of a Kafka cluster: printed as ACLs, and compared with what this user may do.

There is one list (`needed`). `commands`, `strimzi` and `iam` print it, `missing` compares it with the brokers' answers,
and the tests run each command with just these rights and without any one of them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from confluent_kafka import KafkaException, TopicCollection

from consumer.adapters.kafka.cluster import has_controller
from consumer.adapters.kafka.configuration import (
    Config,
    admin_client,
    dead_letter_topic,
    result_of,
    time_left,
)
from consumer.adapters.kafka.transactions import ID_PREFIX
from consumer.settings import Settings

SERVICE: Final = "pinstream run, check, replay"
PEOPLE: Final = "pinstream dead-letters list, show, redrive"
# How a pattern begins, as far as it is plain text: not a character that may be missing or repeated.
_PLAIN_START: Final = re.compile(r"\^((?:(?:[A-Za-z0-9_-]|\\\.)(?![?*{]))*)")
_GROUP: Final = re.compile(r"\([^()]*\)")


class Right(NamedTuple):
    """A right that a user needs."""

    # The kind of resource, as in Kafka's tool and IAM: ``topic``, ``group`` or ``transactional-id``.
    kind: str
    name: str
    # Whether `name` is a prefix of names.
    prefixed: bool
    # Operations, as Kafka's ACLs name them. ``Read`` and ``Write`` include ``Describe``.
    operations: tuple[str, ...]
    why: str
    # Who needs the right: `SERVICE` or `PEOPLE`.
    who: str = SERVICE


def needed(settings: Settings) -> Iterator[Right]:
    """Yield all rights that the commands need with these settings: first those of `SERVICE`, then of `PEOPLE`."""
    group, template = settings.kafka.group_id, settings.pinstream.dead_letter_topic
    by_topic = "{topic}" in template
    # Names, and whether they are prefixes. A dictionary: several topics may share a dead-letter topic.
    letters: dict[tuple[str, bool], None] = {}
    for topic in settings.kafka.topics:
        name, prefixed = topic, False
        if topic.startswith("^"):
            # The prefix of all names that the pattern matches; empty: every topic.
            start = None if "|" in _GROUP.sub("", topic) else _PLAIN_START.match(topic)
            name, prefixed = ("" if start is None else start[1].replace("\\", "")), True
        yield Right("topic", name, prefixed, ("Read", "DescribeConfigs"), "the events; how large they may be")
        # Only the beginning of a pattern is known. The names of its dead-letter topics begin in the same way.
        is_start = prefixed and by_topic
        letters[name if is_start else dead_letter_topic(template, name), is_start] = None
    for name, prefixed in letters:
        why = "dead letters. Create: only if the topic is not there yet"
        yield Right("topic", name, prefixed, ("Write", "Create", "DescribeConfigs"), why)
    yield Right("group", group, False, ("Read",), "offsets; also for `pinstream offsets`")
    yield Right("group", f"{group}.replay.", True, ("Read",), "named replays")
    for name, prefixed in letters:
        yield Right("topic", name, prefixed, ("Read",), "dead letters are read", PEOPLE)
        why = "a letter that dies again and the mark of the old one are one transaction"
        yield Right("transactional-id", ID_PREFIX + name, prefixed, ("Write",), why, PEOPLE)


def principal(settings: Settings) -> str:
    """Return the user's name at the brokers, as far as the settings have it."""
    properties = settings.kafka.client_properties()
    return str(properties.get("sasl.username") or properties.get("sasl.oauthbearer.client.id") or "pinstream")


def commands(settings: Settings) -> str:
    """Return the rights as commands of Kafka's own tool."""
    tool = ["kafka-acls.sh", "--bootstrap-server", settings.kafka.bootstrap_servers]
    lines: list[str] = []
    for who, rights in groupby(needed(settings), key=attrgetter("who")):
        lines.append(f"# {who}")
        for right in rights:
            # A prefix of no letters would be no prefix at all: Kafka's name for every topic is a literal ``*``.
            pattern = "prefixed" if right.prefixed and right.name else "literal"
            given = [word for one in right.operations for word in ("--operation", one)]
            line = [*tool, "--add", "--allow-principal", f"User:{principal(settings)}", *given]
            line += [f"--{right.kind}", right.name or "*", "--resource-pattern-type", pattern]
            lines += [f"# - {right.why}", shlex.join(line)]
    return "\n".join(lines) + "\n"


def strimzi(settings: Settings) -> str:
    """Return the rights as a KafkaUser of Strimzi. The user has to fill in the cluster's name and the login."""
    # Kubernetes accepts only these characters in a name.
    name = re.sub(r"[^a-z0-9.-]+", "-", principal(settings).lower()).strip("-.") or "pinstream"
    lines = [
        "apiVersion: kafka.strimzi.io/v1beta2",
        "kind: KafkaUser",
        "metadata:",
        f"  name: {name}",
        "  labels: {strimzi.io/cluster: my-cluster}",
        "spec:",
        "  authentication: {type: scram-sha-512}",
        "  authorization:",
        "    type: simple",
        "    acls:",
    ]
    for who, rights in groupby(needed(settings), key=attrgetter("who")):
        lines.append(f"      # {who}")
        for right in rights:
            kind = "transactionalId" if right.kind == "transactional-id" else right.kind
            pattern = "prefix" if right.prefixed and right.name else "literal"
            # A group may have any name. JSON's quotes are YAML's, too.
            quoted = json.dumps(right.name or "*", ensure_ascii=False)
            resource = f"{{type: {kind}, name: {quoted}, patternType: {pattern}}}"
            lines.append(f"      - resource: {resource} # {right.why}")
            lines.append(f"        operations: [{', '.join(right.operations)}]")
    return "\n".join(lines) + "\n"


# IAM's name of each right of Kafka. Kafka's ``Read`` and ``Write`` include ``Describe``; IAM's do not.
_ACTIONS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("topic", "Read"): ("DescribeTopic", "ReadData"),
    ("topic", "Write"): ("DescribeTopic", "WriteData"),
    ("topic", "Create"): ("CreateTopic",),
    ("topic", "DescribeConfigs"): ("DescribeTopicDynamicConfiguration",),
    ("group", "Read"): ("DescribeGroup", "AlterGroup"),
    ("transactional-id", "Write"): ("DescribeTransactionalId", "AlterTransactionalId"),
}
_OF_THE_CLUSTER: Final = ("Connect", "DescribeCluster", "WriteDataIdempotently")


def iam(settings: Settings) -> str:
    """Return the rights as a policy of AWS, for MSK with IAM, where Kafka's ACLs do not count.

    The user has to fill in region, account, cluster and its UUID, which only AWS knows.
    """
    arn = "arn:aws:kafka:REGION:ACCOUNT:{}/CLUSTER/UUID"
    actions: dict[str, dict[str, None]] = {arn.format("cluster"): dict.fromkeys(_OF_THE_CLUSTER)}
    for right in needed(settings):
        name = f"{right.name}{'*' if right.prefixed or not right.name else ''}"
        ours = actions.setdefault(f"{arn.format(right.kind)}/{name}", {})
        for operation in right.operations:
            ours.update(dict.fromkeys(_ACTIONS[right.kind, operation]))
    statements = [
        {"Effect": "Allow", "Action": [f"kafka-cluster:{one}" for one in given], "Resource": resource}
        for resource, given in actions.items()
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n"


# The rights without which the service cannot run, on topics and groups that exist.
_ESSENTIAL: Final = frozenset({"Read", "Write"})


def missing(config: Config, rights: Iterable[Right], known: Mapping[str, int], timeout: float) -> list[str]:
    """Return those of the service's rights on these topics that this user lacks: ``WRITE on the topic orders``.

    `known`: the topics that exist. Also empty if the brokers do not report rights. Blocks.
    """
    wanted = {
        topic: right
        for right in rights
        if right.kind == "topic" and right.who == SERVICE
        for topic in known
        if topic == right.name or (right.prefixed and topic.startswith(right.name))
    }
    deadline, found = time.monotonic() + timeout, list[str]()
    # Rights that the brokers do not report do not count as missing: other questions show what is wrong with the
    # brokers.
    with admin_client(config) as client, contextlib.suppress(KafkaException):
        if not wanted or not has_controller(client.list_topics(timeout=timeout)):
            return []
        topics = TopicCollection(list(wanted))
        asked = client.describe_topics(
            topics, include_authorized_operations=True, request_timeout=time_left(deadline)
        )
        for topic, right in wanted.items():
            allowed = result_of(asked[topic], deadline).authorized_operations
            # These brokers have no authorizer, or do not report rights.
            if allowed is None:
                continue
            lacking = _ESSENTIAL.intersection(right.operations) - {one.name.capitalize() for one in allowed}
            found += [f"{one.upper()} on the topic {topic}" for one in sorted(lacking)]
    return found
