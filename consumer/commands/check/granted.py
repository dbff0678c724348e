"""Which rights this user lacks, asked of the brokers. Nothing is created, written or joined for that.

How each right is asked for, and what answers that it is missing::

    READ, WRITE        the topic's description does not list it, or is refused: each of them includes DESCRIBE
    DESCRIBE_CONFIGS   the topic's settings are refused
    CREATE             a creation that is only validated is refused
    READ on a group    the group's description is refused

WRITE on a topic that does not exist yet: brokers describe no such topic, only refuse that to a user without any right
on it. A user who may read the topic, as `pinstream dead-letters` does, is not refused. But a producer of letters gets
no id of the brokers unless its user may write to some topic. So one case remains that cannot be asked: a user who may
write to other topics, and may read this one. WRITE on a transactional id cannot be asked either: only taking the id
over shows it, which would end a redrive that runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException, Producer, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    ResourceType,
)

from consumer.adapters.kafka.client_errors import CANNOT_SAY, NOT_ALLOWED, cause_of
from consumer.adapters.kafka.cluster import RenewedAdmin, has_controller, known_partitions
from consumer.adapters.kafka.configuration import (
    Config,
    admin_client,
    make_client,
    producer_config,
    result_of,
    time_left,
)
from consumer.adapters.kafka.dead_letters import new_topic
from consumer.adapters.kafka.groups import describe_group

_Code: Final = confluent_kafka.KafkaError
_NO_VERDICT: Final = CANNOT_SAY | {
    _Code.NOT_CONTROLLER,
    _Code.REQUEST_TIMED_OUT,
    _Code.THROTTLING_QUOTA_EXCEEDED,
}
_POLL_SECONDS: Final = 0.1
_HAS_ID: Final = re.compile(r'"idemp_state": *"Assigned"')


def lacking(
    config: Config, operations: Sequence[str], topics: Collection[str], timeout: float
) -> dict[str, list[str]]:
    """Return for each of `operations` the topics on which this user lacks it: READ, WRITE, DESCRIBE_CONFIGS.

    What the brokers do not report does not count as lacking: other questions show what is wrong with them. Blocks.
    """
    found: dict[str, list[str]] = {one: [] for one in operations}
    deadline = time.monotonic() + timeout
    with admin_client(config) as client:
        if not topics or _answers(client, timeout) is None:
            return found
        described = client.describe_topics(
            TopicCollection(list(topics)),
            include_authorized_operations=True,
            request_timeout=time_left(deadline),
        )
        for topic in topics:
            try:
                allowed = result_of(described[topic], deadline).authorized_operations
                # Brokers without an authorizer allow all; some do not report it.
                names = None if allowed is None else {one.name for one in allowed}
            except KafkaException as error:
                names = set() if _refuses(error) else None
            for operation in operations:
                if operation == "DESCRIBE_CONFIGS":
                    lacks = _settings_refused(client, topic, deadline)
                else:
                    lacks = names is not None and operation not in names
                found[operation] += [topic] if lacks else []
    return found


def uncreatable(
    config: Config, letters: Mapping[str, str], timeout: float
) -> dict[str, confluent_kafka.KafkaError]:
    """Return why the brokers refuse to create these dead-letter topics (each with an origin), by topic. Blocks."""
    found: dict[str, confluent_kafka.KafkaError] = {}
    deadline = time.monotonic() + timeout
    with admin_client(config) as client:
        if (known := _answers(client, timeout)) is None:
            return found
        for topic, origin in letters.items():
            new = new_topic(client, topic, origin, known, time_left(deadline))
            asked = client.create_topics([new], validate_only=True, request_timeout=time_left(deadline))
            try:
                result_of(asked[topic], deadline)
            except KafkaException as error:
                cause = cause_of(error)
                # Not a refusal: no answer, which has a negative code, or none yet.
                if cause.code() > 0 and cause.code() not in _NO_VERDICT:
                    found[topic] = cause
    return found


def may_produce(config: Config, timeout: float) -> bool:
    """Return whether this user may write to any topic at all. True if the brokers do not say. Blocks."""
    heard: list[confluent_kafka.KafkaError] = []
    statistics: list[str] = []
    quick = {"statistics.interval.ms": 100, "stats_cb": statistics.append, "error_cb": heard.append}
    complete = {**producer_config(config, delivery_timeout=timeout), **quick}
    deadline = time.monotonic() + timeout
    with closing(make_client(Producer, complete)) as producer:
        while time.monotonic() < deadline and not (statistics and _HAS_ID.search(statistics[-1])):
            try:
                producer.poll(_POLL_SECONDS)
            except KafkaException as error:  # a producer that was refused has failed for good
                heard.append(cause_of(error))
            if any(one.code() in NOT_ALLOWED for one in heard):
                return False
    return True


def group_refused(config: Config, group: str, timeout: float) -> bool:
    """Return whether this user may not use a group of this name. Blocks."""
    with closing(RenewedAdmin(config)) as client:
        try:
            describe_group(client, group, time.monotonic() + timeout)
        except KafkaException as error:
            return _refuses(error)
    return False


def _answers(client: AdminClient, timeout: float) -> dict[str, list[int]] | None:
    """Return the topics with their partitions; None if these brokers answer no questions about rights."""
    try:
        metadata: Any = client.list_topics(timeout=timeout)
    except KafkaException:
        return None
    return known_partitions(metadata) if has_controller(metadata) else None


def _settings_refused(client: AdminClient, topic: str, deadline: float) -> bool:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        result_of(
            client.describe_configs([resource], request_timeout=time_left(deadline))[resource], deadline
        )
    except KafkaException as error:
        return _refuses(error)
    return False


def _refuses(error: KafkaException) -> bool:
    return cause_of(error).code() in NOT_ALLOWED
