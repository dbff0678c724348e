"""The dead-letter producer: original records with the reason in headers, acknowledged by the broker or not stored.

A dead letter holds the record's key, value and headers as they were, and nine more headers (`added_headers`;
docs/dead-letters.md lists them), which say where it is from and what is wrong, without a look into the value.

A letter that the broker refuses for good must not block its partition (docs/why.md). What is refused for its size is
tried in a batch of its own, since the broker measures batches, and then with less and less of it: without its value,
without its own headers, without its key. For each part that is left out, a header says so; the headers about the origin
say where to read it; and a line of trouble reports it. The verdicts on one lot:

::

    together  --stored-->  done           --other error-->  not stored
       '--refused for what one record is-->  alone, whole
                                               '--too large-->  without value  --too large-->  ... not stored

One try, one time limit for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # public, not re-exported

from consumer.adapters.aws.msk import NoToken
from consumer.adapters.kafka import configuration, trouble
from consumer.adapters.kafka import letters as form
from consumer.adapters.kafka.cluster import ask_settings, has_controller
from consumer.adapters.kafka.configuration import Config, OnBrokers, dead_letter_topic
from consumer.adapters.kafka.producer import PolledProducer
from consumer.adapters.thread import post, run_blocking, settle
from consumer.engine.messages import DeadLetter
from consumer.engine.model import UNREADABLE_HEADERS

_Code = confluent_kafka.KafkaError

# Our own batches hold up to 1,000,000 bytes, and the limit is about batches.
_LEAST_LIMIT: Final = 1024 * 1024
_MOST_LIMIT: Final = 2**31 - 1
"""The largest value that a broker takes for this limit."""
_THREAD: Final = "pinstream-kafka-producer"

Parts = tuple[str, ...]
"""Which of ``value``, ``headers`` and ``key`` are left out of a letter."""
Verdict = confluent_kafka.KafkaError | Literal[""] | None
"""On one letter: None is stored; an error, or an empty text where the reason is not known, is not."""


def added_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The nine headers that make a record a dead letter: UTF-8 text, numbers in decimal.

    ``pinstream.timestamp`` is the record's Kafka timestamp in milliseconds; ``pinstream.at`` is ISO 8601 in UTC.
    """
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    texts = {
        form.STAGE: letter.rejection.stage.value,
        form.CODE: letter.rejection.code,
        form.MESSAGE: letter.rejection.message,
        form.TOPIC: letter.topic,
        form.PARTITION: str(letter.partition),
        form.OFFSET: str(letter.record.offset),
        form.TIMESTAMP: str(letter.record.timestamp),
        form.ATTEMPTS: str(letter.attempts),
        form.AT: at.replace("+00:00", "Z"),
    }
    return [(name, text.encode()) for name, text in texts.items()]


def letter_headers(letter: DeadLetter, left_out: Parts = ()) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then ours, which replace those of an earlier dead letter of a redriven record."""
    added: list[tuple[str, bytes | None]] = [*added_headers(letter)]
    for part in left_out:
        text = f"omitted: {_sizes(letter)[part]} bytes, too large for this topic; read it at its origin"
        added.append((form.HEADER_PREFIX + part, text.encode()))
    # The mark that headers could not be read has one of our names, and must stay.
    if letter.record.headers == UNREADABLE_HEADERS and "headers" not in left_out:
        added += UNREADABLE_HEADERS
    ours = {name for name, _ in added} | {form.HEADER_PREFIX + part for part in form.PARTS}
    own = letter.record.headers
    if "headers" in left_out:
        own = tuple(
            one for one in own if one[0] in form.TRAVELS and len(one[1] or b"") <= form.LONGEST_TRAVEL
        )
    return [header for header in own if header[0] not in ours] + added


def _sizes(letter: DeadLetter) -> dict[str, int]:
    """The bytes of each part that can be left out, in the order in which they are."""
    record = letter.record
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return {"value": len(record.value or b""), "headers": headers, "key": len(record.key or b"")}


def reductions(letter: DeadLetter) -> Iterator[Parts]:
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
        on_trouble: trouble.OnTrouble = trouble.ignore_trouble,
    ) -> None:
        self._template = topic
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._trouble = partial(post, self._loop, on_trouble)
        self._tell = trouble.Teller(self._trouble)
        self._user_config = config
        # The letters of one batch of answers come one after the other: a moment's wait puts them into one request.
        self._config = {
            **configuration.producer_config(config, delivery_timeout=timeout),
            **configuration.LETTERS,
            "linger.ms": 5,
        }
        self._spoiled = False
        self.on_brokers: OnBrokers = lambda told: None
        """Called on the event loop with what is measured of the brokers. May be set later."""
        self._watch = configuration.BrokerWatch(lambda told: post(self._loop, self.on_brokers, told))
        self._together = PolledProducer(self._watch.watching(self._config), self._on_error)
        self._alone: PolledProducer | None = None
        """For letters that are in a batch of their own."""
        self._counts: Mapping[str, int] = {}
        """The partitions of each dead-letter topic that is known. Replaced, never changed: two threads read it."""

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Whether the broker has acknowledged each of them, in order.

        One try: the time limit once for the topics, if they are not known yet, once for the letters, and once for
        each further step of those that were refused for what they are.
        """
        counts = await self._find_topics({letter.topic for letter in letters})
        if self._spoiled or self._watch.stranded:
            # An idempotent producer that has lost count never takes anything more: make a new one.
            await self.close()
            try:
                # In a thread: with IAM making one takes a second, and longer where AWS does not answer.
                config = self._watch.watching(self._config)
                self._together = await run_blocking(_THREAD, PolledProducer, config, self._on_error)
            except NoToken as away:
                self._trouble("_AUTHENTICATION", f"dead letters cannot be stored ({away})")
                return [False] * len(letters)
            self._spoiled = False
        verdicts = await self._try(self._together, letters, counts)
        # One record that is too large, or has no key where one is needed, gets its whole batch refused.
        refused = [
            index
            for index, verdict in enumerate(verdicts)
            if isinstance(verdict, _Code) and verdict.code() in trouble.FOR_ONE_RECORD
        ]
        if refused and self._alone is None:
            alone = {**self._config, "batch.num.messages": 1}
            with contextlib.suppress(NoToken):  # then they are not stored, and tried again
                self._alone = await run_blocking(_THREAD, PolledProducer, alone, self._on_error)
        again = await asyncio.gather(*(self._store_alone(letters[index], counts) for index in refused))
        for index, verdict in zip(refused, again, strict=True):
            verdicts[index] = verdict
        if error := next((one for one in verdicts if isinstance(one, _Code)), None):
            self._spoiled = self._spoiled or error.fatal()
            self._counts = {}  # a deleted topic shows only as a time-out: look again, create it again
            what = ": grant WRITE on its topic" if error.code() in trouble.NOT_ALLOWED else ""
            self._trouble(
                error.name(), f"a dead letter was not stored{what} ({trouble.describe_error(error)})"
            )
        return tuple(verdict is None for verdict in verdicts)

    async def close(self) -> None:
        """End the threads. What was not acknowledged is not stored."""
        self._together.stop()
        if self._alone is not None:
            self._alone.stop()
            self._alone = None

    async def _store_alone(self, letter: DeadLetter, counts: Mapping[str, int]) -> Verdict:
        """In a batch of its own, with as much of it as the topic takes."""
        verdict: Verdict = ""
        if self._alone is None:
            return verdict
        for left_out in reductions(letter):
            [verdict] = await self._try(self._alone, [letter], counts, left_out)
            if not isinstance(verdict, _Code) or verdict.code() not in trouble.TOO_LARGE:
                break
        if verdict is None and left_out:
            topic = dead_letter_topic(self._template, letter.topic)
            self._trouble(
                "MSG_SIZE_TOO_LARGE",
                f"the dead letter of {letter.topic} partition {letter.partition} offset {letter.record.offset} was "
                f"stored without its {' and '.join(left_out)} ({_sizes(letter)['value']} bytes of value): {topic} "
                "takes no larger one; raise its max.message.bytes",
            )
        return verdict

    async def _try(
        self,
        producer: PolledProducer,
        letters: Sequence[DeadLetter],
        counts: Mapping[str, int],
        left_out: Parts = (),
    ) -> list[Verdict]:
        answers: list[asyncio.Future[Verdict]] = []

        def reported(answer: asyncio.Future[Verdict], error: Verdict, _: object) -> None:
            post(self._loop, settle, answer, error)

        for letter in letters:
            answer: asyncio.Future[Verdict] = self._loop.create_future()
            answers.append(answer)
            topic = dead_letter_topic(self._template, letter.topic)
            count = counts.get(topic)
            if not count:
                answer.set_result("")  # the reason was reported when the topic could not be found or created
                continue
            try:
                producer.produce(
                    topic,
                    None if "key" in left_out else letter.record.key,
                    None if "value" in left_out else letter.record.value,
                    letter_headers(letter, left_out),
                    partial(reported, answer),
                    partition=letter.partition % count,  # that of its origin, if the topic has as many
                    # Its timestamp is the current time: with the record's own, retention could delete it at once.
                )
            except KafkaException as error:
                answer.set_result(trouble.cause_of(error))
            except BufferError:
                answer.set_result(_Code(_Code._QUEUE_FULL))
        if answers:
            # librdkafka gives up by itself at the time limit; one second more lets it say why.
            await asyncio.wait(answers, timeout=self._timeout + 1)
        # As of now: what is acknowledged later is stored twice in the end, which is allowed (docs/guarantees.md), and
        # never lost.
        return [one.result() if one.done() else "" for one in answers]

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        spoiled, self._spoiled = self._spoiled, self._spoiled or error.fatal()
        if error.code() not in trouble.NOT_ALLOWED:
            self._tell(error)
        elif not spoiled:
            # An idempotent producer needs WRITE on some topic before it begins.
            text = f"dead letters cannot be stored: grant WRITE on their topics ({trouble.describe_error(error)})"
            self._trouble(error.name(), text)

    # ----------------------------------------------------------------------------------------------- topics

    async def _find_topics(self, origins: set[str]) -> Mapping[str, int]:
        """The number of partitions of each dead-letter topic that is there; missing topics are created."""
        pairs = {dead_letter_topic(self._template, origin): origin for origin in sorted(origins)}
        if not pairs.keys() <= self._counts.keys():
            try:
                async with asyncio.timeout(self._timeout):
                    await run_blocking("pinstream-kafka-topics", self._look_up, pairs)
            except TimeoutError:
                self._trouble("_TIMED_OUT", "the dead-letter topics cannot be looked up")
        return self._counts

    def _look_up(self, origins: Mapping[str, str]) -> None:
        """Find or create each dead-letter topic (key) of an origin (value). Runs in a thread of its own.

        A failure is reported, and the topic stays unknown.
        """
        metadata: Any = None
        found: dict[str, int] = {}
        try:
            client = configuration.admin_client(self._user_config)
        except NoToken as error:
            self._trouble("_AUTHENTICATION", f"the dead-letter topics cannot be looked up ({error})")
            return
        with client:
            for topic, origin in origins.items():
                try:
                    metadata = metadata or client.list_topics(timeout=self._timeout)
                    found[topic] = self._find_or_create(client, topic, origin, metadata)
                except KafkaException as error:
                    cause = trouble.cause_of(error)
                    what = (
                        f": grant CREATE on {topic}, or create it"
                        if cause.code() in trouble.NOT_ALLOWED
                        else ""
                    )
                    text = f"a dead-letter topic cannot be found or created{what} ({trouble.describe_error(cause)})"
                    self._trouble(cause.name(), text)
                    if metadata is None:  # no broker answers
                        break
        self._counts = {**self._counts, **found}

    def _find_or_create(self, client: AdminClient, topic: str, origin: str, metadata: Any) -> int:
        there = metadata.topics
        if topic in there:
            return len(there[topic].partitions)
        if has_controller(metadata):
            # Records without a key must be taken whatever the broker's default policy.
            settings = {"cleanup.policy": "delete"}
            if (of_origin := ask_settings(client, origin, self._timeout)) is not None:
                # What the origin takes, with room for the added headers, and for a record that its producer
                # compressed better than we do, since brokers measure compressed batches.
                largest = min(2 * max(of_origin.largest, _LEAST_LIMIT), _MOST_LIMIT)
                settings["max.message.bytes"] = str(largest)
            partitions = len(there[origin].partitions) if origin in there else 1
            new = NewTopic(topic, num_partitions=partitions, config=settings)
            try:
                client.create_topics([new], request_timeout=self._timeout)[topic].result(self._timeout)
                return partitions
            except KafkaException as error:
                if trouble.cause_of(error).code() != _Code.TOPIC_ALREADY_EXISTS:
                    raise
        # Another client was faster. Or it is the embedded broker, which has no controller to create topics: asking for
        # a topic by name creates it.
        return len(client.list_topics(topic, timeout=self._timeout).topics[topic].partitions)
