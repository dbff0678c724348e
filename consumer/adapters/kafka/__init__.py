"""Kafka: the consumer, the dead-letter producer, the record producer, and questions about the cluster.

Everything stands on confluent-kafka (librdkafka). Each class has a thread of its own for its client and looks
like plain asyncio from outside. Nothing here decides: a call is tried once, within a time limit, and the core
says what its failure means.
"""

from consumer.adapters.kafka.bounded import BoundedSource, read_record, scan
from consumer.adapters.kafka.cluster import ClusterView, describe, nearest_topic
from consumer.adapters.kafka.commits import CommitResult
from consumer.adapters.kafka.configuration import (
    REFUSED_PROPERTIES,
    dead_letter_pattern,
    dead_letter_topic,
)
from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.kafka.groups import (
    ActiveMember,
    GroupInUse,
    GroupOffsets,
    GroupView,
    committed,
    group_members,
)
from consumer.adapters.kafka.letters import HEADER_PREFIX
from consumer.adapters.kafka.offsets import Extent, behind_transactions
from consumer.adapters.kafka.producer import RecordProducer
from consumer.adapters.kafka.ranges import Bound, Range, named_partitions, resolve_ranges
from consumer.adapters.kafka.redrive import NewRecord, Redriver
from consumer.adapters.kafka.replay_progress import METADATA_MOST, Plan, open_plan
from consumer.adapters.kafka.source import KafkaSource, SourceListener

__all__ = [
    "HEADER_PREFIX",
    "METADATA_MOST",
    "REFUSED_PROPERTIES",
    "ActiveMember",
    "Bound",
    "BoundedSource",
    "ClusterView",
    "CommitResult",
    "DeadLetterProducer",
    "Extent",
    "GroupInUse",
    "GroupOffsets",
    "GroupView",
    "KafkaSource",
    "NewRecord",
    "Plan",
    "Range",
    "RecordProducer",
    "Redriver",
    "SourceListener",
    "behind_transactions",
    "committed",
    "dead_letter_pattern",
    "dead_letter_topic",
    "describe",
    "group_members",
    "named_partitions",
    "nearest_topic",
    "open_plan",
    "read_record",
    "resolve_ranges",
    "scan",
]
