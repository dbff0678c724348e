"""The dead-letter producer: original records with the reason in headers, acknowledged by the broker or not stored.

A letter that the broker refuses for good must not block its partition (docs/why.md). A letter that is refused for its
size is tried in a batch of its own, since the broker measures batches, and then with fewer and fewer of its parts
(`letters.forms`); a line in the log names the parts that were omitted. The verdicts on one lot:

::

    together  --stored-->  done           --other error-->  not stored
       '--refused for what one record is-->  alone, whole
                                               '--too large-->  without value  --too large-->  ... not stored

One try, one time limit for each step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # public, not re-exported

from consumer.adapters.aws.msk import NoToken
from consumer.adapters.kafka import client_errors, configuration
from consumer.adapters.kafka.cluster import (
    ask_settings,
    await_topic,
    has_controller,
    known_partitions,
    setting_command,
)
from consumer.adapters.kafka.configuration import Config, OnBrokers, dead_letter_topic
from consumer.adapters.kafka.letters import NewRecord, forms, part_sizes
from consumer.adapters.kafka.producers import PolledProducer
from consumer.adapters.thread import post, run_blocking, settle
from consumer.engine.messages import DeadLetter
from consumer.errors import SettingsError

_Code = confluent_kafka.KafkaError
# Verdict on one letter; None: it is stored.
_Verdict = confluent_kafka.KafkaError | None
# Why a client cannot be made now although one could at the start: no token, or a certificate that is being replaced.
_NOT_NOW: Final = (NoToken, SettingsError)

# Time limit of a question for a topic's settings, which letters do not need.
_SETTINGS_SECONDS: Final = 2.0
SIZE_LIMIT: Final = "max.message.bytes"
NO_COMPACTION: Final = "cleanup.policy=delete"
# Our own batches hold up to 1,000,000 bytes, and the topic's limit is about batches.
_LEAST_LIMIT: Final = 1024 * 1024
# The largest value that a broker takes for this limit.
_MAX_LIMIT: Final = 2**31 - 1


class _Draft(NamedTuple):
    """A letter, whole, and the smaller forms in which it can be written."""

    letter: DeadLetter
    whole: NewRecord
    smaller: Iterator[NewRecord]


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
        on_error: client_errors.OnError = client_errors.ignore_error,
    ) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._post_error = partial(post, self._loop, on_error)
        self._report_error = client_errors.ErrorReporter(self._post_error)
        self._topics = WrittenTopics(config, topic, timeout, self._post_error)
        # The letters of one batch of answers come one after the other: a short wait puts them into one request.
        self._config = {
            **configuration.producer_config(config, delivery_timeout=timeout),
            **configuration.UNLIMITED_QUEUE,
            "linger.ms": 5,
        }
        # An idempotent producer whose sequence numbers are wrong never accepts anything more.
        self._spoiled = False
        # Called on the event loop with what the producer measured of the brokers. May be set later.
        self.on_brokers: OnBrokers = lambda stats: None
        self._watch = configuration.BrokerWatch(lambda stats: post(self._loop, self.on_brokers, stats))
        self._together = PolledProducer(self._watch.watching(self._config), self._on_error)
        # Producer of letters that are in a batch of their own. Most runs need none.
        self._alone: PolledProducer | None = None

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Return for each letter, in order, whether the broker acknowledged it. Never raises: failures are reported.

        One try: the time limit counts once for the topics if they are not known yet, once for the letters, and once for
        each further step of letters that were refused for what they are.
        """
        counts = await self._topics.find({letter.topic for letter in letters})
        together = await self._working()
        if together is None:
            return [False] * len(letters)
        # By the letters' places. If a topic cannot be found, the reason was reported.
        drafts: dict[int, _Draft] = {}
        for at, letter in enumerate(letters):
            topic = self._topics.name(letter.topic)
            if count := counts.get(topic):
                smaller = forms(letter, topic, count)
                drafts[at] = _Draft(letter, next(smaller), smaller)
        answers = await self._try(together, [one.whole for one in drafts.values()])
        verdicts = dict(zip(drafts, answers, strict=True))
        # If one record is too large, or has no key where the topic requires one, its whole batch is refused.
        refused = [
            at for at, error in verdicts.items() if error and error.code() in client_errors.FOR_ONE_RECORD
        ]
        if refused and (alone := await self._apart()) is not None:
            tries = (self._store_alone(alone, drafts[at]) for at in refused)
            verdicts |= zip(refused, await asyncio.gather(*tries), strict=True)
        self._report([(drafts[at], error) for at, error in verdicts.items() if error])
        return [at in verdicts and verdicts[at] is None for at in range(len(letters))]

    async def close(self) -> None:
        """End the threads. A letter that was not acknowledged counts as not stored."""
        self._together.stop()
        if self._alone is not None:
            self._alone.stop()
            self._alone = None

    async def _working(self) -> PolledProducer | None:
        """Return the producer of most letters, another one if that is spoiled or has lost its brokers; None if none can
        be made now."""
        if self._spoiled or self._watch.stranded:
            await self.close()
            # Until there is a new producer, the next call must not use the closed one.
            self._spoiled = True
            made = await self._make(self._watch.watching(self._config))
            if made is None:
                return None
            self._together, self._spoiled = made, False
        return self._together

    async def _apart(self) -> PolledProducer | None:
        """Return the producer that puts each letter into a batch of its own; None if none can be made now."""
        if self._alone is None:
            self._alone = await self._make({**self._config, "batch.num.messages": 1})
        return self._alone

    async def _make(self, config: dict[str, Any]) -> PolledProducer | None:
        """Return a producer; None if none can be made now, which is reported."""
        try:
            # In a thread of its own: with IAM, making a producer takes a second, and longer if AWS does not answer.
            return await run_blocking("pinstream-kafka-producer", PolledProducer, config, self._on_error)
        except _NOT_NOW as why:
            self._post_error("_AUTHENTICATION", f"dead letters cannot be stored ({why})")
            return None

    async def _store_alone(self, alone: PolledProducer, draft: _Draft) -> _Verdict:
        """Store a letter in a batch of its own, in the largest form that the topic accepts."""
        refused = None
        for record in chain([draft.whole], draft.smaller):
            [verdict] = await self._try(alone, [record])
            if verdict is None or verdict.code() not in client_errors.TOO_LARGE:
                break
            refused = verdict
        if verdict is None and refused is not None:
            letter, size = draft.letter, part_sizes(draft.letter.record)["value"]
            self._post_error(
                refused.name(),
                f"the dead letter of {letter.topic} partition {letter.partition} offset {letter.record.offset} was "
                f"stored without its {' and '.join(record.omitted)} ({size} bytes of value)"
                f"{self._advice(draft, refused)}",
            )
        return verdict

    def _report(self, failed: Sequence[tuple[_Draft, confluent_kafka.KafkaError]]) -> None:
        """Report why letters were not stored: one line for each topic and cause."""
        for draft, error in {(one.whole.topic, error.code()): (one, error) for one, error in failed}.values():
            self._spoiled = self._spoiled or error.fatal()
            # A deleted topic shows only as a time-out: look it up again next time, which creates it again.
            self._topics.forget()
            said = f"{draft.whole.topic}: {client_errors.describe_error(error)}"
            advice = self._advice(draft, error)
            self._post_error(error.name(), f"a dead letter was not stored{advice} ({said})")

    def _advice(self, draft: _Draft, error: confluent_kafka.KafkaError) -> str:
        """Return what to do if a letter was refused, as the end of a message; empty if nothing is known."""
        topic, record = draft.whole.topic, draft.letter.record
        if error.code() in client_errors.NOT_ALLOWED:
            return f": grant WRITE on {topic}"
        if error.code() == _Code.INVALID_RECORD and record.key is None:
            command = setting_command(self._topics.servers, topic, NO_COMPACTION)
            return f": {topic} takes none without a key, as it is with cleanup.policy=compact: change it: {command}"
        size = sum(part_sizes(record).values())
        # A letter that exceeds one request cannot be stored whole on any topic.
        if error.code() in client_errors.TOO_LARGE and size < int(
            configuration.UNLIMITED_QUEUE["message.max.bytes"]
        ):
            limit = "segment.bytes" if error.code() == _Code.RECORD_LIST_TOO_LARGE else SIZE_LIMIT
            command = setting_command(self._topics.servers, topic, f"{limit}={room_for(size)}")
            return f": {topic} takes no larger one ({limit}): change it: {command}"
        return ""

    async def _try(self, producer: PolledProducer, records: Sequence[NewRecord]) -> list[_Verdict]:
        answers: list[asyncio.Future[_Verdict]] = []
        for record in records:
            answer: asyncio.Future[_Verdict] = self._loop.create_future()
            answers.append(answer)
            try:
                # The letter's timestamp is the current time: with the record's own, retention could delete it at once.
                producer.produce(record, partial(post, self._loop, settle, answer))
            except KafkaException as error:
                answer.set_result(client_errors.cause_of(error))
            except BufferError:
                answer.set_result(_Code(_Code._QUEUE_FULL))
        if answers:
            # librdkafka gives up by itself at the time limit; with one second more it reports why.
            await asyncio.wait(answers, timeout=self._timeout + 1)
        # Judged as of now: a letter that is acknowledged later is stored a second time, which is allowed
        # (docs/guarantees.md); none is lost.
        late = _Code(_Code._TIMED_OUT, "the broker did not acknowledge it in time")
        return [one.result() if one.done() else late for one in answers]

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        spoiled, self._spoiled = self._spoiled, self._spoiled or error.fatal()
        if error.code() not in client_errors.NOT_ALLOWED:
            self._report_error(error)
        elif not spoiled:
            # An idempotent producer needs WRITE on some topic before it begins.
            text = f"dead letters cannot be stored: grant WRITE on their topics ({client_errors.describe_error(error)})"
            self._post_error(error.name(), text)


class WrittenTopics:
    """Finds and creates topics that we write to, and says what is wrong with them. Used on the event loop.

    `template`: their names, from those of the topics that they serve, as of dead letters. `what`: their kind, for
    messages.
    """

    def __init__(
        self,
        config: Config,
        template: str,
        timeout: float,
        on_error: client_errors.OnError,
        what: str = "dead-letter topic",
    ) -> None:
        self._what = what
        self._config = config
        self._template = template
        self._timeout = timeout
        self._post_error = on_error
        self.servers = str(config.get("bootstrap.servers", ""))
        # Number of partitions of each known topic. The mapping is replaced, never changed: two threads read it.
        self._counts: Mapping[str, int] = {}

    def name(self, origin: str) -> str:
        """Return the topic that serves a topic."""
        return dead_letter_topic(self._template, origin)

    def forget(self) -> None:
        """Look the topics up again next time."""
        self._counts = {}

    async def find(self, origins: set[str]) -> Mapping[str, int]:
        """Return the number of partitions of each topic for these that exists; missing topics are created."""
        pairs = {self.name(origin): origin for origin in sorted(origins)}
        if not pairs.keys() <= self._counts.keys():
            try:
                async with asyncio.timeout(self._timeout):
                    await run_blocking("pinstream-kafka-topics", self._look_up, pairs)
            except TimeoutError:
                self._not_looked_up("_TIMED_OUT", f"the brokers did not answer within {self._timeout:g} s")
        return self._counts

    def _look_up(self, origins: Mapping[str, str]) -> None:
        """Find or create each topic (key) that serves an origin (value). Runs in a thread of its own.

        A failure is reported; the topic then stays unknown, and is looked up again with the next write.
        """
        try:
            with configuration.admin_client(self._config) as client:
                metadata: Any = client.list_topics(timeout=self._timeout)
                known, asks = known_partitions(metadata), has_controller(metadata)
                for topic, origin in origins.items():
                    if count := len(known.get(topic, ())) or self._create(client, topic, origin, known, asks):
                        self._counts = {**self._counts, topic: count}
                # Last, since a write needs no answer to this.
                for topic in origins.keys() & known.keys() if asks else ():
                    settings = ask_settings(client, topic, _SETTINGS_SECONDS)
                    if settings is not None and settings.compacted:
                        self._post_error("INVALID_CONFIG", compaction(topic, self.servers))
        except _NOT_NOW as why:
            self._not_looked_up("_AUTHENTICATION", str(why))
        except KafkaException as error:
            cause = client_errors.cause_of(error)
            self._not_looked_up(cause.name(), client_errors.describe_error(cause))

    def _not_looked_up(self, code: str, why: str) -> None:
        self._post_error(code, f"the {self._what}s cannot be looked up ({why})")

    def _create(
        self, client: AdminClient, topic: str, origin: str, known: Mapping[str, Sequence[int]], asks: bool
    ) -> int:
        """Create a topic and return its number of partitions; 0 if that failed, which is reported."""
        refused = f"grant CREATE on {topic}, or create it"
        try:
            if asks:
                try:
                    new = new_topic(client, topic, origin, known, self._timeout)
                    client.create_topics([new], request_timeout=self._timeout)[topic].result(self._timeout)
                    return int(new.num_partitions)
                except KafkaException as error:
                    if client_errors.cause_of(error).code() != _Code.TOPIC_ALREADY_EXISTS:
                        raise
            # Another client was faster, and the brokers learn of the topic one after the other; or this user may not
            # see it. Or this is the embedded broker, which has no controller: asking for a topic by name creates it.
            refused = f"grant WRITE on {topic}"
            return await_topic(client, topic, time.monotonic() + self._timeout / 2)
        except KafkaException as error:
            cause = client_errors.cause_of(error)
            advice = f": {refused}" if cause.code() in client_errors.NOT_ALLOWED else ""
            text = f"the {self._what} {topic} cannot be found or created{advice}"
            self._post_error(cause.name(), f"{text} ({client_errors.describe_error(cause)})")
            return 0


# ------------------------------------------------------------------------------- how a dead-letter topic should be


def new_topic(
    client: AdminClient, topic: str, origin: str, known: Mapping[str, Sequence[int]], timeout: float
) -> NewTopic:
    """Return the dead-letter topic to create for an origin. `known`: the partitions of each topic. Blocks."""
    # The topic must accept records without a key, also if the broker's default policy is to compact.
    settings = {"cleanup.policy": "delete"}
    if (of_origin := ask_settings(client, origin, timeout)) is not None:
        settings[SIZE_LIMIT] = str(room_for(of_origin.largest))
    return NewTopic(topic, num_partitions=len(known.get(origin, (0,))), config=settings)


def compaction(topic: str, servers: str) -> str:
    """Return what is wrong with a topic of ours that is compacted, and the command that changes it."""
    return (
        f"{topic} is compacted (cleanup.policy): records without a key cannot be stored, and of each key only the last "
        f"is kept; change it: {setting_command(servers, topic, NO_COMPACTION)}"
    )


def room_for(largest: int) -> int:
    """Return the limit of a dead-letter topic for records from batches of this size."""
    # Room for the added headers, and for a record that its producer compressed better than we do, since brokers measure
    # compressed batches.
    return min(2 * max(largest, _LEAST_LIMIT), _MAX_LIMIT)
