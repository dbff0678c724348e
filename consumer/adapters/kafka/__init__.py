"""Kafka, by confluent-kafka (librdkafka): translate, try once within a time limit, decide nothing.

What is where. *Reading as a member of the group*: `source` is what the service drives; `member` is the same in the
consumer's own thread; `starts` finds where a partition starts, `chunks` turns messages into records, `commits` commits
and leaves, `ends` knows how far the logs reach, `topic_ids` notices that a topic was deleted and created again.
*Reading outside of any group* (replay, dead letters): `bounded` reads ranges, `ranges` finds their offsets,
`replay_progress` keeps how far a named replay has come. *Writing*: `producer`, `dead_letters`, and a redrive's
`transactions` (`letters` is what a letter looks like). *Questions*: `cluster` (brokers, topics, their settings),
`offsets`, `groups`. *All of it*: `configuration` (librdkafka's properties, making clients) and `trouble` (what an
error means).

Each client has a thread of its own and looks like plain asyncio from outside. Nothing here decides: what a failure
means for the service is decided by the engine.
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
from consumer.adapters.kafka.replay_progress import METADATA_MOST, Plan, open_plan
from consumer.adapters.kafka.source import KafkaSource, SourceListener
from consumer.adapters.kafka.transactions import NewRecord, TransactionalWriter

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
    "SourceListener",
    "TransactionalWriter",
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
