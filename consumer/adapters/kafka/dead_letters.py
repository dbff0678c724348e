"""The dead-letter producer: original records with the reason in headers, acknowledged by the broker or not stored.

A dead letter holds the record's key, value and headers as they were, and nine headers more (`added_headers`,
contract.md "Dead-letter record"), so that whoever finds it knows where it is from and what is wrong, without
looking into the value. It goes to the partition of the same number, and gets a timestamp of now: with the
record's own, retention could delete it at once. The record's own is in a header.

The topic is created the first time if it is missing, with as many partitions as its origin, the broker's default
replication, ``cleanup.policy=delete`` (records without a key must be taken whatever the broker's default) and
room for the headers on top of the origin's largest record.

One try, one time limit: a letter counts as stored only when its acknowledgement came in time. One that came later
is then stored twice: allowed (lessons.md, crash points), never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.kafka.configuration import (
    Config,
    dead_letter_topic,
    producer_config,
)
from consumer.adapters.kafka.dead_letter_topics import DeadLetterTopics
from consumer.adapters.kafka.producer import PolledProducer
from consumer.adapters.kafka.thread import OwnThread, post
from consumer.adapters.kafka.trouble import OnTrouble, describe_error, exception_error, ignore_trouble
from consumer.core.interface import DeadLetter

HEADER_PREFIX: Final = "pinstream."
_MOST_BYTES: Final = 1_000_000_000
"""librdkafka's own limit of a record is left to the topic's."""


def added_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The nine headers that tell of a dead letter: UTF-8 text, numbers in decimal, times as said below.

    ``pinstream.timestamp`` is Kafka's of the record, in milliseconds; ``pinstream.at`` is ISO 8601 in UTC.
    """
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    texts = {
        "stage": letter.rejection.stage.value,
        "code": letter.rejection.code,
        "message": letter.rejection.message,
        "topic": letter.topic,
        "partition": str(letter.partition),
        "offset": str(letter.record.offset),
        "timestamp": str(letter.record.timestamp),
        "attempts": str(letter.attempts),
        "at": at.replace("+00:00", "Z"),
    }
    return [(HEADER_PREFIX + name, text.encode()) for name, text in texts.items()]


def letter_headers(letter: DeadLetter) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then ours. Those of an earlier death (a redriven record) give way."""
    added = added_headers(letter)
    ours = {name for name, _ in added}
    return [header for header in letter.record.headers if header[0] not in ours] + list(added)


class DeadLetterProducer:
    """Stores dead letters. `topic`: a template with ``{topic}``, or one name. `timeout`: seconds for one `store`.

    Make it on the event loop. Raises `SettingsError` naming a property that librdkafka refuses.
    """

    def __init__(
        self,
        config: Config,
        *,
        topic: str = "{topic}.dead-letters",
        timeout: float = 10.0,
        on_trouble: OnTrouble = ignore_trouble,
    ) -> None:
        self._template = topic
        self._timeout = timeout
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._config = {
            **producer_config(config, delivery_timeout=timeout),
            "message.max.bytes": _MOST_BYTES,
            "linger.ms": 5,
        }
        self._spoiled = False
        self._producer = PolledProducer(self._config, self._heard_error)
        self._topics = DeadLetterTopics(config, timeout, self._trouble)
        self._thread = OwnThread("pinstream-kafka-topics")

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Whether the broker has acknowledged each of them, in order.

        One try: the time limit once for the topics, if they are not known yet, and once for the letters.
        """
        counts = await self._ensure({letter.topic for letter in letters})
        self._renew_if_spoiled()
        answers = _Answers(len(letters))
        for index, letter in enumerate(letters):
            self._send(letter, counts, functools.partial(answers.heard, index))
        await answers.wait(self._timeout)
        if answers.first_error is not None:
            self._note(answers.first_error)
        return tuple(answers.stored)  # as of now: a later acknowledgement changes nothing any more

    async def close(self) -> None:
        """End the threads. What was not acknowledged is not stored."""
        self._producer.stop()
        self._thread.stop()

    async def _ensure(self, origins: set[str]) -> Mapping[str, int]:
        """The number of partitions of each dead-letter topic that is there; missing topics are created."""
        pairs = {dead_letter_topic(self._template, origin): origin for origin in sorted(origins)}
        if not self._topics.know(pairs):
            try:
                async with asyncio.timeout(self._timeout):
                    await self._thread.run(self._topics.ensure, pairs)
            except TimeoutError:
                self._on_trouble("_TIMED_OUT", "the dead-letter topics cannot be looked up")
        return self._topics.partitions

    def _send(self, letter: DeadLetter, counts: Mapping[str, int], answer: Callable[[Verdict], None]) -> None:
        topic = dead_letter_topic(self._template, letter.topic)
        count = counts.get(topic)
        if not count:
            answer("")  # why was told when the topic could not be found or made
            return
        try:
            self._producer.produce(
                topic,
                letter.record.key,
                letter.record.value,
                letter_headers(letter),
                lambda error, _: post(self._loop, answer, error),
                partition=letter.partition % count,
            )
        except KafkaException as error:
            answer(exception_error(error))
        except BufferError:
            answer(confluent_kafka.KafkaError(confluent_kafka.KafkaError._QUEUE_FULL))

    def _note(self, error: confluent_kafka.KafkaError) -> None:
        self._spoiled = self._spoiled or error.fatal()
        self._topics.forget()  # a deleted topic shows as no more than a time-out: look again, create it again
        self._trouble(error.name(), f"a dead letter was not stored ({describe_error(error)})")

    def _renew_if_spoiled(self) -> None:
        """An idempotent producer that has lost count takes nothing more, ever: a new one starts afresh."""
        if self._spoiled:
            self._producer.stop()
            self._producer = PolledProducer(self._config, self._heard_error)
            self._spoiled = False

    def _heard_error(self, error: confluent_kafka.KafkaError) -> None:
        self._spoiled = self._spoiled or error.fatal()
        self._trouble(error.name(), describe_error(error))

    def _trouble(self, code: str, text: str) -> None:
        post(self._loop, self._on_trouble, code, text)


Verdict = confluent_kafka.KafkaError | Literal[""] | None
"""On one letter: None is stored; an error, or nothing to say, is not."""


class _Answers:
    """The verdicts on one lot of letters, collected on the event loop."""

    def __init__(self, count: int) -> None:
        self.stored = [False] * count
        self.first_error: confluent_kafka.KafkaError | None = None
        self._open = count
        self._all = asyncio.Event()

    def heard(self, index: int, verdict: Verdict) -> None:
        """The verdict on letter `index`; each letter gets one."""
        self.stored[index] = verdict is None
        if isinstance(verdict, confluent_kafka.KafkaError) and self.first_error is None:
            self.first_error = verdict
        self._open -= 1
        if not self._open:
            self._all.set()

    async def wait(self, timeout: float) -> None:
        """Until all are there, or out of time: then what is stored so far is what counts."""
        if not self._open:
            return
        with contextlib.suppress(TimeoutError):
            # librdkafka gives up by itself at the same limit; the second more lets it say why.
            async with asyncio.timeout(timeout + 1):
                await self._all.wait()
