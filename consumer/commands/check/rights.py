"""The least rights that the commands need of a Kafka cluster, printed for who grants them.

There is one list (`needed`). `commands`, `strimzi` and `iam` print it, and the tests run each command with just these
rights and without any one of them. (What this user has of them is asked in `granted`.)
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from consumer.adapters.kafka.configuration import dead_letter_topic
from consumer.adapters.kafka.producers import ID_PREFIX
from consumer.settings import Settings

SERVICE: Final = "pinstream run, check, replay"
PEOPLE: Final = "pinstream dead-letters, trace, reconcile, audit"
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
    if receipts := settings.pinstream.receipts_topic:
        why = "receipts. Create: only if the topic is not there yet"
        yield Right("topic", receipts, False, ("Write", "Create", "DescribeConfigs"), why)
    yield Right("group", group, False, ("Read",), "offsets; also for `pinstream offsets`")
    yield Right("group", f"{group}.replay.", True, ("Read",), "named replays")
    for name, prefixed in letters:
        yield Right("topic", name, prefixed, ("Read",), "dead letters are read", PEOPLE)
        why = "a letter that dies again and the mark of the old one are one transaction"
        yield Right("transactional-id", ID_PREFIX + name, prefixed, ("Write",), why, PEOPLE)
    if receipts:
        why = "receipts are read, and written by a redrive"
        yield Right("topic", receipts, False, ("Read", "Write"), why, PEOPLE)


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
        "apiVersion: kafka.strimzi.io/v1 # before Strimzi 0.49: v1beta2",
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
