"""Kafka: the consumer, the dead-letter producer, the record producer, and questions about the cluster.

Everything stands on confluent-kafka (librdkafka). Each class has a thread of its own for its client and looks
like plain asyncio from outside. Nothing here decides: a call is tried once, within a time limit, and the core
says what its failure means.
"""

from consumer.adapters.kafka.cluster import ClusterView, describe
from consumer.adapters.kafka.commits import CommitResult
from consumer.adapters.kafka.configuration import (
    REFUSED_PROPERTIES,
    dead_letter_pattern,
    dead_letter_topic,
)
from consumer.adapters.kafka.dead_letters import HEADER_PREFIX, DeadLetterProducer
from consumer.adapters.kafka.producer import RecordProducer
from consumer.adapters.kafka.source import KafkaSource, SourceListener

__all__ = [
    "HEADER_PREFIX",
    "REFUSED_PROPERTIES",
    "ClusterView",
    "CommitResult",
    "DeadLetterProducer",
    "KafkaSource",
    "RecordProducer",
    "SourceListener",
    "dead_letter_pattern",
    "dead_letter_topic",
    "describe",
]
