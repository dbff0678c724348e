"""Settings of topics: returned where the brokers have them, empty where they do not, within bounded time."""

from __future__ import annotations

import time

import pytest

from consumer.adapters.kafka.cluster import TopicSettings, topic_settings
from tests.support.kafka.harness import Kafka, create_topic, unique


@pytest.mark.real_kafka
async def test_both_settings_are_returned(kafka: Kafka) -> None:
    """Both settings of each existing topic are returned."""
    plain = create_topic(kafka, max_message_bytes="123456")
    compacted = create_topic(kafka, cleanup_policy="compact", max_message_bytes="2000000")
    found = await topic_settings({**kafka.config}, [plain, unique("missing"), compacted], 10.0)
    assert found == {plain: TopicSettings(False, 123456), compacted: TopicSettings(True, 2000000)}


async def test_a_broker_that_cannot_tell(embedded_kafka: Kafka) -> None:
    """The embedded broker has no settings of topics, and the query returns before its time limit."""
    begun = time.monotonic()
    topic = create_topic(embedded_kafka)
    assert await topic_settings({**embedded_kafka.config}, [topic], 30.0) == {}
    assert time.monotonic() - begun < 15


async def test_brokers_that_are_away() -> None:
    """Without brokers nothing is returned after the time limit."""
    assert await topic_settings({"bootstrap.servers": "127.0.0.1:9", "log_level": 0}, ["orders"], 0.5) == {}
