"""What tests do with a broker: topics, records, committed offsets, and a member that records what happens to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.source import KafkaSource
from consumer.engine.messages import Assignment, CommitDone, GroupSize
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from tests.support.kafka.broker import wait_until

WITHIN = 30.0
"""Seconds that any step of a test may take."""

ASKED_AGAIN = 60.0
"""Seconds for which a question is asked again."""
_PASSING = client_errors.PASSING | {
    *(
        "_TIMED_OUT",
        "_ALL_BROKERS_DOWN",
        "REQUEST_TIMED_OUT",
        "UNSTABLE_OFFSET_COMMIT",
        "CONCURRENT_TRANSACTIONS",
    ),
    *("NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "REBALANCE_IN_PROGRESS", "UNKNOWN_TOPIC_OR_PART"),
}
_Answer = TypeVar("_Answer")

_numbers = itertools.count(1)


class Kafka(NamedTuple):
    """A broker for tests. `kind` is ``external``, ``real`` or ``embedded``."""

    bootstrap_servers: str
    kind: str
    sasl_bootstrap_servers: str | None = None

    @property
    def config(self) -> dict[str, str | int | float | bool]:
        """A librdkafka configuration for it."""
        return {"bootstrap.servers": self.bootstrap_servers}


PROTOCOLS: dict[str, dict[str, Any]] = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range,roundrobin"},
    "kip-848": {"group.protocol": "consumer"},
}
"""The configuration of a member for each group protocol."""


def unique(prefix: str) -> str:
    """A name that is in use neither in this run nor on an external broker."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}-{uuid.uuid4().hex[:6]}"


def create_topic(kafka: Kafka, partitions: int = 1, name: str | None = None, **settings: str) -> str:
    """Create a topic and return its name. The embedded broker makes four partitions, whatever is asked for."""
    name = name or unique("topic")
    admin = AdminClient({**kafka.config, "log_level": 0})
    if kafka.kind == "embedded":
        admin.list_topics(name, timeout=WITHIN)
    else:
        config = {key.replace("_", "."): value for key, value in settings.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        try:
            admin.create_topics([new], request_timeout=WITHIN / 3)[name].result(WITHIN)
        except KafkaException:
            # Seen once on a busy machine: the answer was lost. It may have been created all the same.
            admin = AdminClient({**kafka.config, "log_level": 0})
            if name not in admin.list_topics(timeout=WITHIN).topics:
                admin.create_topics([new])[name].result(WITHIN)
    # Created is not yet known to whoever asks for metadata.
    assert wait_until(lambda: name in admin.list_topics(timeout=WITHIN).topics, WITHIN)
    return name


def add_partitions(kafka: Kafka, topic: str, partitions: int) -> None:
    """Increase the topic's partitions to this number."""
    admin = AdminClient({**kafka.config, "log_level": 0})
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(WITHIN)
    assert wait_until(
        lambda: len(admin.list_topics(topic, timeout=WITHIN).topics[topic].partitions) == partitions, WITHIN
    )


def produce(
    kafka: Kafka, topic: str, values: Iterable[bytes | None], *, partition: int = 0, **extra: Any
) -> None:
    """Write `values` in order and wait until they are stored. `extra`: key, headers, timestamp."""
    producer = Producer({**kafka.config, "linger.ms": 2, "log_level": 0})
    for value in values:
        producer.produce(topic, value=value, partition=partition, **extra)
    assert producer.flush(WITHIN) == 0


def ask(question: Callable[[], _Answer], within: float = ASKED_AGAIN) -> _Answer:
    """Return the brokers' answer to a question, which is asked again while they say that it cannot be answered yet:
    after a start, while a coordinator or a leader moves, without a connection."""
    deadline = time.monotonic() + within
    while True:
        try:
            return question()
        except KafkaException as error:
            if error.args[0].name() not in _PASSING or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def all_committed(kafka: Kafka, group: str, topic: str, partitions: Iterable[int]) -> list[RawPartition]:
    """What the group has committed of these partitions: offset (below 0 for none), leader epoch, metadata."""
    consumer = Consumer({**kafka.config, "group.id": group, "log_level": 0})
    asked = [RawPartition(topic, number) for number in partitions]

    def whole() -> list[RawPartition]:
        found = consumer.committed(asked, timeout=WITHIN)
        for one in found:  # an answer in part has an error in place of an offset
            if one.error is not None:
                raise KafkaException(one.error)
        return found

    try:
        return ask(whole)
    finally:
        consumer.close()


def committed(kafka: Kafka, group: str, topic: str, partition: int = 0) -> RawPartition:
    """The group's committed offset (below 0 for none) and its leader epoch."""
    return all_committed(kafka, group, topic, [partition])[0]


def read_all(kafka: Kafka, topic: str, count: int) -> list[Message]:
    """Wait for the first `count` records of a topic, of all partitions in no particular order."""
    consumer = Consumer({**kafka.config, "group.id": unique("reader"), "log_level": 0})
    partitions = consumer.list_topics(topic, timeout=WITHIN).topics[topic].partitions
    consumer.assign([RawPartition(topic, number, 0) for number in partitions])
    found: list[Message] = []
    deadline = time.monotonic() + WITHIN
    while len(found) < count and time.monotonic() < deadline:
        found += [one for one in consumer.consume(count - len(found), 0.2) if one.error() is None]
    consumer.close()
    assert len(found) == count, f"{len(found)} records of {topic}, not {count}"
    return found


def commit(
    kafka: Kafka,
    group: str,
    topic: str,
    offset: int,
    partition: int = 0,
    metadata: str = "",
    leader_epoch: int = -1,
) -> None:
    """Commit from outside the group (it must have no members)."""
    consumer = Consumer({**kafka.config, "group.id": group, "enable.auto.commit": False, "log_level": 0})
    position = RawPartition(topic, partition, offset, metadata=metadata, leader_epoch=leader_epoch)
    ask(lambda: consumer.commit(offsets=[position], asynchronous=False))
    consumer.close()


class Member:
    """A source and its listener: fetches all the time, like the service, and writes everything down.

    It plays the simplest core there is: what was fetched counts as settled at once, so the position to commit
    when a partition is revoked is the one after the last record fetched.
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str], group: str, **options: Any) -> None:
        # Members hear of a rebalance with their next heartbeat. The embedded broker's classic groups take
        # seconds for each rebalance all the same; KIP-848 there is immediate.
        embedded = kafka.kind == "embedded"
        quick = {"group.protocol": "consumer"} if embedded else {"heartbeat.interval.ms": 200}
        config = {**kafka.config, **quick, "group.id": group, **options.pop("config", {})}
        self.room = 1000
        self.assignments: list[Assignment] = []
        self.held: dict[TopicPartition, Assignment] = {}
        self.revocations: list[list[TopicPartition]] = []
        self.losses: list[list[TopicPartition]] = []
        self.chunks: list[Chunk] = []
        self.next: dict[TopicPartition, Position] = {}
        self.errors: list[tuple[str, str]] = []
        self.fetches = 0
        self.failure: BaseException | None = None
        self.on_revoked: Callable[[], Any] | None = None
        hooks = {name: options.pop(name) for name in ("revoke_timeout",) if name in options}
        on_group_size: Callable[[int], None] | None = options.pop("on_group_size", None)

        def hear(news: object) -> None:
            if on_group_size is not None and isinstance(news, GroupSize):
                on_group_size(news.members)

        listening = Hooks(
            self,
            on_error=lambda *reported: self.errors.append(reported),
            on_news=hear,
            counts_members=on_group_size is not None,
            **hooks,
        )
        self.source = KafkaSource(config, topics, listening, **options)
        self._task: asyncio.Task[None] | None = None

    # As the listener.

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        self.assignments.extend(assignments)
        self.held.update({TopicPartition(one.topic, one.partition): one for one in assignments})

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        self.revocations.append(list(partitions))
        if self.on_revoked is not None:
            await self.on_revoked()
        positions = [self.next[one] for one in partitions if one in self.next]
        self._forget(partitions)
        return positions

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.losses.append(list(partitions))
        self._forget(partitions)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            self.held.pop(one, None)
            self.next.pop(one, None)

    # As the service.

    async def __aenter__(self) -> Member:
        await self.source.start()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self, *, commit: bool = False) -> None:
        """Stop fetching and leave the group."""
        await self.halt()
        await self.source.close(WITHIN, list(self.next.values()) if commit else ())

    async def halt(self) -> None:
        """Stop fetching, and stay in the group for as long as it allows."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def go_on(self) -> None:
        """Fetch again after `halt`."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                chunks = await self.source.fetch(self.room, 0.1)
            except Exception as error:
                self.failure = error
                return
            self.fetches += 1
            self.chunks.extend(chunks)
            for chunk in chunks:
                name = TopicPartition(chunk.topic, chunk.partition)
                self.next[name] = Position(*name, chunk.records[-1].offset + 1, chunk.leader_epoch)

    async def commit(self) -> CommitDone:
        """Commit everything that was fetched."""
        return await self.source.commit(list(self.next.values()))

    @property
    def records(self) -> list[Record]:
        """Everything that was fetched, in order."""
        return [record for chunk in self.chunks for record in chunk.records]

    @property
    def values(self) -> list[bytes | None]:
        """Their values."""
        return [record.value for record in self.records]

    @property
    def counts(self) -> Counter[bytes | None]:
        """How often each value came."""
        return Counter(self.values)

    async def until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Wait, for a bounded time, until `condition` holds; a failure of the source ends the wait."""

        def hold() -> bool:
            if self.failure is not None:
                raise self.failure
            return condition()

        await until(hold, what)

    async def until_async(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """The same as `until`, for a condition that must be awaited."""
        deadline = time.monotonic() + WITHIN
        while not await condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            await asyncio.sleep(0.1)

    async def obeys(self, room: int) -> None:
        """Set the room, and wait until a fetch has used it."""
        self.room = room
        target = self.fetches + 2  # the one that is on its way may have the old room
        await self.until(lambda: self.fetches >= target, "two fetches")

    async def until_fails(self) -> BaseException:
        """Wait, for a bounded time, until a fetch raises; return the error."""
        await until(lambda: self.failure is not None, "a failure")
        assert self.failure is not None
        return self.failure


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Poll `condition`, for a bounded time, until it holds: not everything it reads can signal a change."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or 'it'}"
        await asyncio.sleep(0.01)
