"""The dead-letter topics themselves: found, or created the first time they are needed.

Blocking, and used in one thread of its own. What was found is remembered until a producer finds it wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from consumer.adapters.kafka.configuration import Config, admin_config, end_client, make_client
from consumer.adapters.kafka.trouble import OnTrouble, describe_error, exception_error

_LARGEST: Final = "max.message.bytes"
_LEAST_LIMIT: Final = 1024 * 1024
"""Our own batches hold up to 1,000,000 bytes, and the limit is a batch's."""
_MOST_LIMIT: Final = 2**31 - 1
"""The broker's own limit of the limit."""
_EXISTS: Final = confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS


class DeadLetterTopics:
    """Knows how many partitions each dead-letter topic has. `timeout`: seconds for each question."""

    def __init__(self, config: Config, timeout: float, on_trouble: OnTrouble) -> None:
        self._config = config
        self._timeout = timeout
        self._on_trouble = on_trouble
        self._client: AdminClient | None = None
        self.partitions: Mapping[str, int] = {}
        """Replaced, never changed: other threads may read it."""

    def know(self, topics: Iterable[str]) -> bool:
        """Whether there is nothing left to ask."""
        return all(topic in self.partitions for topic in topics)

    def forget(self) -> None:
        """Something is not as it was: ask again next time."""
        self.partitions = {}

    def close(self) -> None:
        """End the client."""
        if self._client is not None:
            end_client(self._client)

    def ensure(self, origins: Mapping[str, str]) -> None:
        """Find or create each dead-letter topic (key) of an origin (value). What fails is told, and stays unknown."""
        try:
            client = self._client = self._client or make_client(AdminClient, admin_config(self._config))
            metadata = client.list_topics(timeout=self._timeout)
        except KafkaException as error:
            self._tell(error)
            return
        found = {name: len(topic.partitions) for name, topic in metadata.topics.items()}
        can_create = metadata.controller_id in metadata.brokers
        for topic, origin in origins.items():
            if topic not in found:
                try:
                    found[topic] = self._make(client, topic, origin, found.get(origin, 1), can_create)
                except KafkaException as error:
                    self._tell(error)
        known = {topic: found[topic] for topic in origins if topic in found}
        self.partitions = {**self.partitions, **known}

    def _tell(self, error: KafkaException) -> None:
        told = exception_error(error)
        self._on_trouble(told.name(), f"a dead-letter topic cannot be had ({describe_error(told)})")

    def _make(self, client: AdminClient, topic: str, origin: str, partitions: int, can_create: bool) -> int:
        if not can_create:
            # The embedded broker: it has no controller to create topics; asking for one by name makes it.
            return len(client.list_topics(topic, timeout=self._timeout).topics[topic].partitions)
        new = NewTopic(topic, num_partitions=partitions, config=self._settings(client, origin))
        try:
            client.create_topics([new], request_timeout=self._timeout)[topic].result(self._timeout)
        except KafkaException as error:
            if exception_error(error).code() != _EXISTS:
                raise
            # Another member was faster.
            return len(client.list_topics(topic, timeout=self._timeout).topics[topic].partitions)
        return partitions

    def _settings(self, client: AdminClient, origin: str) -> dict[str, str]:
        settings = {"cleanup.policy": "delete"}
        resource = ConfigResource(ResourceType.TOPIC, origin)
        try:
            asked: Any = client.describe_configs([resource], request_timeout=self._timeout)[resource]
            settings[_LARGEST] = str(_limit_above(int(asked.result(self._timeout)[_LARGEST].value)))
        except (KafkaException, KeyError, TypeError, ValueError):
            pass  # not allowed to look, or the origin is gone: the broker's default must do
        return settings


def _limit_above(origin: int) -> int:
    """How large a batch a created topic takes: whatever its origin takes, with room for the added headers, and
    for a record that its producer compressed better than we do, since brokers measure what is compressed.
    """
    return min(2 * max(origin, _LEAST_LIMIT), _MOST_LIMIT)
