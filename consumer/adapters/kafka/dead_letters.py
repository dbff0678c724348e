"""The dead-letter producer: original records with the reason in headers, acknowledged by the broker or not stored.

A dead letter holds the record's key, value and headers as they were, and nine more headers (`added_headers`;
docs/dead-letters.md lists them), which say where it is from and what is wrong, without a look into the
value. It goes to the partition of the same number, with the current time as its timestamp: with the record's own,
retention could delete it at once. The record's own timestamp is in a header.

A missing topic is created when it is first needed, with as many partitions as its origin, the broker's default
replication, ``cleanup.policy=delete`` (records without a key must be taken whatever the broker's default), and room for
more than the origin's largest record.

A letter that the broker refuses for good must not block its partition (docs/why.md). What is refused for its size is
tried in a batch of its own, since the broker measures batches, and then with less and less of it: without its value,
without its own headers, without its key. For each part that is left out, a header says so; the headers about the origin
say where to read it; and a line of trouble reports it. The verdicts on one lot:

::

    together  --stored-->  done           --other error-->  not stored
       '--refused for what one record is-->  alone, whole
                                               '--too large-->  without value  --too large-->  ... not stored

One try, one time limit for each step: a letter counts as stored only when its acknowledgement came in time. If it came
later, the letter is stored twice: allowed (docs/guarantees.md), never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from consumer.adapters.kafka.configuration import (
    Config,
    admin_config,
    dead_letter_topic,
    end_client,
    make_client,
    producer_config,
)
from consumer.adapters.kafka.letters import (
    AT,
    ATTEMPTS,
    CODE,
    HEADER_PREFIX,
    MESSAGE,
    OFFSET,
    PARTITION,
    PARTS,
    STAGE,
    TIMESTAMP,
    TOPIC,
    omitted_text,
    travelling,
)
from consumer.adapters.kafka.producer import PolledProducer
from consumer.adapters.kafka.trouble import (
    FOR_ONE_RECORD,
    TOO_LARGE,
    OnTrouble,
    Teller,
    describe_error,
    exception_error,
    ignore_trouble,
)
from consumer.adapters.thread import OwnThread, post
from consumer.engine.messages import DeadLetter
from consumer.engine.model import UNREADABLE_HEADERS

_FIXED: Final = {
    # The topic decides how large a letter may be. Only what exceeds one request (a broker's
    # socket.request.max.bytes is 100 MiB) must be refused here: the broker would just close the connection.
    "message.max.bytes": 100_000_000,
    # What waits is limited by the engine's own budget. A queue that is smaller than a letter would never take it.
    "queue.buffering.max.messages": 0,
    "queue.buffering.max.kbytes": 2_000_000,
    "linger.ms": 5,
}
_LARGEST: Final = "max.message.bytes"
_LEAST_LIMIT: Final = 1024 * 1024
"""Our own batches hold up to 1,000,000 bytes, and the limit is about batches."""
_MOST_LIMIT: Final = 2**31 - 1
"""The largest value that a broker takes for this limit."""
_EXISTS: Final = confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS

Parts = tuple[str, ...]
"""Which of ``value``, ``headers`` and ``key`` are left out of a letter."""


def added_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The nine headers that make a record a dead letter: UTF-8 text, numbers in decimal.

    ``pinstream.timestamp`` is the record's Kafka timestamp in milliseconds; ``pinstream.at`` is ISO 8601 in UTC.
    """
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    texts = {
        STAGE: letter.rejection.stage.value,
        CODE: letter.rejection.code,
        MESSAGE: letter.rejection.message,
        TOPIC: letter.topic,
        PARTITION: str(letter.partition),
        OFFSET: str(letter.record.offset),
        TIMESTAMP: str(letter.record.timestamp),
        ATTEMPTS: str(letter.attempts),
        AT: at.replace("+00:00", "Z"),
    }
    return [(name, text.encode()) for name, text in texts.items()]


def letter_headers(letter: DeadLetter, left_out: Parts = ()) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then ours, which replace those of an earlier dead letter of a redriven record.

    The count of its trips stays, even where its own headers must be left out: nothing else ends a circle.
    """
    added: list[tuple[str, bytes | None]] = [*added_headers(letter)]
    sizes = _sizes(letter)
    added += [(HEADER_PREFIX + part, omitted_text(sizes[part])) for part in left_out]
    if letter.record.headers == UNREADABLE_HEADERS and "headers" not in left_out:
        added += UNREADABLE_HEADERS
    ours = {name for name, _ in added} | {HEADER_PREFIX + part for part in PARTS}
    headers = letter.record.headers
    own = travelling(headers) if "headers" in left_out else headers
    return [header for header in own if header[0] not in ours] + added


def _sizes(letter: DeadLetter) -> dict[str, int]:
    """The bytes of each part that can be left out, in the order in which they are."""
    record = letter.record
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return {"value": len(record.value or b""), "headers": headers, "key": len(record.key or b"")}


def _reductions(letter: DeadLetter) -> Iterator[Parts]:
    """What to leave out, in the order of tries: nothing, then more and more of what is there."""
    left_out: Parts = ()
    yield left_out
    for part, size in _sizes(letter).items():
        if size:
            left_out = (*left_out, part)
            yield left_out


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
        self._tell = Teller(self._trouble)
        self._loop = asyncio.get_running_loop()
        self._config = {
            **producer_config(config, delivery_timeout=timeout),
            **_FIXED,
        }
        self._spoiled = False
        self._together = PolledProducer(self._config, self._heard_error)
        self._alone: PolledProducer | None = None
        self._topics = DeadLetterTopics(config, timeout, self._trouble)
        self._thread = OwnThread("pinstream-kafka-topics")

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Whether the broker has acknowledged each of them, in order.

        One try: the time limit once for the topics, if they are not known yet, once for the letters, and once for
        each further step of those that were refused for what they are.
        """
        counts = await self._ensure({letter.topic for letter in letters})
        self._renew_if_spoiled()
        verdicts = await self._try(self._together, letters, counts)
        refused = [index for index, verdict in enumerate(verdicts) if _is(verdict, FOR_ONE_RECORD)]
        again = await asyncio.gather(*(self._store_alone(letters[index], counts) for index in refused))
        for index, verdict in zip(refused, again, strict=True):
            verdicts[index] = verdict
        errors = [one for one in verdicts if isinstance(one, confluent_kafka.KafkaError)]
        if errors:
            self._note(errors[0])
        return tuple(verdict is None for verdict in verdicts)

    async def close(self) -> None:
        """End the threads. What was not acknowledged is not stored."""
        self._stop_producers()
        await self._thread.end(self._topics.close)

    async def _store_alone(self, letter: DeadLetter, counts: Mapping[str, int]) -> Verdict:
        """In a batch of its own, with as much of it as the topic takes."""
        if self._alone is None:
            self._alone = PolledProducer({**self._config, "batch.num.messages": 1}, self._heard_error)
        verdict: Verdict = ""
        for left_out in _reductions(letter):
            [verdict] = await self._try(self._alone, [letter], counts, left_out)
            if not _is(verdict, TOO_LARGE):
                break
        if verdict is None and left_out:
            self._tell_left_out(letter, left_out)
        return verdict

    def _tell_left_out(self, letter: DeadLetter, left_out: Parts) -> None:
        topic = dead_letter_topic(self._template, letter.topic)
        self._on_trouble(
            "MSG_SIZE_TOO_LARGE",
            f"the dead letter of {letter.topic} partition {letter.partition} offset {letter.record.offset} was stored "
            f"without its {' and '.join(left_out)} ({_sizes(letter)['value']} bytes of value): {topic} takes no "
            "larger one; raise its max.message.bytes",
        )

    async def _try(
        self,
        producer: PolledProducer,
        letters: Sequence[DeadLetter],
        counts: Mapping[str, int],
        left_out: Parts = (),
    ) -> list[Verdict]:
        answers = _Answers(len(letters))
        for index, letter in enumerate(letters):
            self._send(producer, letter, counts, left_out, functools.partial(answers.heard, index))
        await answers.wait(self._timeout)
        return list(answers.verdicts)  # as of now: a later acknowledgement changes nothing

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

    def _send(
        self,
        producer: PolledProducer,
        letter: DeadLetter,
        counts: Mapping[str, int],
        left_out: Parts,
        answer: Callable[[Verdict], None],
    ) -> None:
        topic = dead_letter_topic(self._template, letter.topic)
        count = counts.get(topic)
        if not count:
            answer("")  # the reason was reported when the topic could not be found or created
            return
        try:
            producer.produce(
                topic,
                None if "key" in left_out else letter.record.key,
                None if "value" in left_out else letter.record.value,
                letter_headers(letter, left_out),
                lambda error, _: post(self._loop, answer, error),
                partition=letter.partition % count,
            )
        except KafkaException as error:
            answer(exception_error(error))
        except BufferError:
            answer(confluent_kafka.KafkaError(confluent_kafka.KafkaError._QUEUE_FULL))

    def _note(self, error: confluent_kafka.KafkaError) -> None:
        self._spoiled = self._spoiled or error.fatal()
        self._topics.forget()  # a deleted topic shows only as a time-out: look again, create it again
        self._trouble(error.name(), f"a dead letter was not stored ({describe_error(error)})")

    def _renew_if_spoiled(self) -> None:
        """An idempotent producer that has lost count never takes anything more: make a new one."""
        if self._spoiled:
            self._stop_producers()
            self._together = PolledProducer(self._config, self._heard_error)
            self._spoiled = False

    def _stop_producers(self) -> None:
        self._together.stop()
        if self._alone is not None:
            self._alone.stop()
            self._alone = None

    def _heard_error(self, error: confluent_kafka.KafkaError) -> None:
        self._spoiled = self._spoiled or error.fatal()
        self._tell(error)

    def _trouble(self, code: str, text: str) -> None:
        post(self._loop, self._on_trouble, code, text)


Verdict = confluent_kafka.KafkaError | Literal[""] | None
"""On one letter: None is stored; an error, or an empty text where the reason is not known, is not."""


def _is(verdict: Verdict, codes: Container[int]) -> bool:
    return isinstance(verdict, confluent_kafka.KafkaError) and verdict.code() in codes


class _Answers:
    """The verdicts on one lot of letters, collected on the event loop."""

    def __init__(self, count: int) -> None:
        self.verdicts: list[Verdict] = [""] * count
        self._open = count
        self._all = asyncio.Event()

    def heard(self, index: int, verdict: Verdict) -> None:
        """The verdict on letter `index`; each letter gets one."""
        self.verdicts[index] = verdict
        self._open -= 1
        if not self._open:
            self._all.set()

    async def wait(self, timeout: float) -> None:
        """Wait until all are there or the time is up: then what is stored so far counts."""
        if not self._open:
            return
        with contextlib.suppress(TimeoutError):
            # librdkafka gives up by itself at the same limit; one second more lets it say why.
            async with asyncio.timeout(timeout + 1):
                await self._all.wait()


class DeadLetterTopics:
    """Finds the dead-letter topics, or creates them when they are first needed. Blocks; used in one thread.

    It remembers how many partitions each has, until a producer finds that wrong. `timeout`: seconds for each question.
    """

    def __init__(self, config: Config, timeout: float, on_trouble: OnTrouble) -> None:
        self._config = config
        self._timeout = timeout
        self._on_trouble = on_trouble
        self._client: AdminClient | None = None
        self.partitions: Mapping[str, int] = {}
        """Replaced, never changed: other threads may read it."""

    def know(self, topics: Iterable[str]) -> bool:
        """Whether all of these are known."""
        return all(topic in self.partitions for topic in topics)

    def forget(self) -> None:
        """Something has changed: ask again next time."""
        self.partitions = {}

    def close(self) -> None:
        """End the client."""
        if self._client is not None:
            end_client(self._client)

    def ensure(self, origins: Mapping[str, str]) -> None:
        """Find or create each dead-letter topic (key) of an origin (value). A failure is reported; it stays unknown."""
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
        self._on_trouble(
            told.name(), f"a dead-letter topic cannot be found or created ({describe_error(told)})"
        )

    def _make(self, client: AdminClient, topic: str, origin: str, partitions: int, can_create: bool) -> int:
        if not can_create:
            # The embedded broker has no controller to create topics; asking for a topic by name creates it.
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
            pass  # not allowed to look, or the origin is gone: use the broker's default
        return settings


def _limit_above(origin: int) -> int:
    """How large a batch a created topic takes: what its origin takes, with room for the added headers, and for a
    record that its producer compressed better than we do, since brokers measure compressed batches.
    """
    return min(2 * max(origin, _LEAST_LIMIT), _MOST_LIMIT)
