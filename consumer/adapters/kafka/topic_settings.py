"""What topics are set to, as far as it matters for dead letters: for `pinstream check`.

Who may read and write a topic need not be allowed to see its settings, and the embedded broker does not tell them:
what is not known is absent, never an error.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    ResourceType,
)

from consumer.adapters.kafka.configuration import Config, admin_config, make_client
from consumer.adapters.thread import run_blocking


class TopicSettings(NamedTuple):
    """How a topic forgets, and how large a batch it takes."""

    compacted: bool
    largest: int


async def topic_settings(
    config: Config, topics: Collection[str], timeout: float
) -> Mapping[str, TopicSettings]:
    """Of each topic whose settings the brokers tell within `timeout` seconds."""
    return await run_blocking("pinstream-kafka-settings", _ask, config, topics, timeout)


def _ask(config: Config, topics: Collection[str], timeout: float) -> Mapping[str, TopicSettings]:
    deadline = time.monotonic() + timeout
    with make_client(AdminClient, admin_config(config)) as client:
        return _ask_each(client, topics, deadline) if _can_tell(client, timeout) else {}


def _ask_each(client: AdminClient, topics: Collection[str], deadline: float) -> Mapping[str, TopicSettings]:
    asked = {name: ConfigResource(ResourceType.TOPIC, name) for name in topics}
    found = {}
    for name, resource in asked.items():
        try:
            # One at a time: an answer of several is refused whole by some brokers when one is not allowed.
            left = max(0.1, deadline - time.monotonic())
            answer: Any = client.describe_configs([resource], request_timeout=left)[resource].result(left + 1)
            found[name] = TopicSettings(
                "compact" in answer["cleanup.policy"].value, int(answer["max.message.bytes"].value)
            )
        except (KafkaException, TimeoutError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _can_tell(client: AdminClient, timeout: float) -> bool:
    """Whether there is a controller. The embedded broker has none, and would leave the question without an answer."""
    try:
        metadata: Any = client.list_topics(timeout=timeout)
    except KafkaException:
        return False
    return metadata.controller_id in metadata.brokers
