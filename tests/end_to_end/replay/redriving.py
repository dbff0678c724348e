"""Dead letters to look at and to redrive, and what is on their topics afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from consumer.adapters.kafka.letters import letter_headers
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Record, Rejection, Stage
from tests.end_to_end.processes import Process, bare_environment, command
from tests.end_to_end.records import ENCODER, PARTITIONS, commerce_event
from tests.end_to_end.shop import Shop
from tests.support.kafka.harness import WITHIN, Kafka, unique

AT = 1_700_000_000_000
"""When the first event became a dead letter, in milliseconds; each further one a second later."""


def letter(topic: str, number: int, **parts: Any) -> DeadLetter:
    """The dead letter of an event that can be delivered now; the arguments replace parts of its record and of
    its reason."""
    value = parts.pop("value", ENCODER.encode(commerce_event(f"event-{number}")))
    stage, code = parts.pop("stage", Stage.CONVERT), parts.pop("code", "unknown_currency")
    message = parts.pop("message", "custom_data.currency is not a code of ISO 4217")
    partition, attempts = parts.pop("partition", number % PARTITIONS), parts.pop("attempts", 0)
    record = {"offset": number, "timestamp": AT - 5000, "key": b"key-%d" % number, "headers": (), **parts}
    return DeadLetter(
        topic,
        partition,
        Record(value=value, **record),
        Rejection(stage, code, message),
        attempts,
        AT + number * 1000,
    )


def bury(
    kafka: Kafka,
    letters: Iterable[DeadLetter],
    *,
    on: str | None = None,
    omitted: tuple[str, ...] = (),
    partitions: int = PARTITIONS,
) -> None:
    """Write dead letters as the product does."""
    producer = Producer({**kafka.config, "linger.ms": 5, "log_level": 0})
    for one in letters:
        producer.produce(
            on or f"{one.topic}.dead-letters",
            None if "value" in omitted else one.record.value,
            None if "key" in omitted else one.record.key,
            headers=[*letter_headers(one, omitted)],
            partition=one.partition % partitions,
        )
    assert producer.flush(WITHIN) == 0


def kafka_environment(folder: Any, kafka: Kafka, topic: str, group: str, **settings: str) -> dict[str, str]:
    """What the dead-letter commands need; nothing of Pinterest."""
    return {
        **bare_environment(folder),
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": group,
        "PINSTREAM_LOG_FORMAT": "json",
        **settings,
    }


def asked(*arguments: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The JSON output of ``pinstream dead-letters …``."""
    done = command("dead-letters", *arguments, "--json", env=env)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


class LetterShop(Shop):
    """A shop whose dead letters are redriven."""

    def bury(self, letters: Iterable[DeadLetter], **how: Any) -> None:
        """See `bury`."""
        bury(self.kafka, letters, **how)

    def bury_many(self, count: int, **parts: Any) -> None:
        """So many letters of events that can be delivered now; `parts`: see `letter`."""
        self.bury(letter(self.topic, number, **parts) for number in range(count))

    def redrive(self, *arguments: str, **settings: str) -> dict[str, Any]:
        """What a redrive says that it did."""
        return asked("redrive", *arguments, env={**self.env, **settings})

    def begin(self, *arguments: str, under: tuple[str, ...] = ()) -> Process:
        """A redrive that runs."""
        return Process(self.folder, "dead-letters", "redrive", *arguments, env=self.env, under=under)

    def counted(self) -> tuple[int, int]:
        """How many letters wait, and how many are done."""
        listed = asked("list", env=self.env)
        return listed["waiting"], listed["done"]


NewLetterShop = Callable[..., LetterShop]


def committed(kafka: Kafka, topic: str) -> list[Message]:
    """All records that a read_committed reader finds on a topic, up to its present end for such a reader."""
    consumer = Consumer(
        {
            **kafka.config,
            "group.id": unique("reader"),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    numbers = consumer.list_topics(topic, timeout=WITHIN).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    found: list[Message] = []
    ended = set[int]()
    deadline = time.monotonic() + WITHIN
    while len(ended) < len(numbers):
        assert time.monotonic() < deadline, f"{topic} has no end"
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found.append(message)
            else:
                ended.add(message.partition() or 0)
    consumer.close()
    return found


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    """The headers of a record that was read."""
    found: Any = message.headers() or []
    return list(found)


def event_ids(count: int) -> dict[str, int]:
    """The event ids of the first `count` letters of `letter`, once each."""
    return {f"event-{number}": 1 for number in range(count)}
