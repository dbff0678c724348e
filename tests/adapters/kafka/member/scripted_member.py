"""A `GroupMember` on a fake consumer that plays a script, for cases that no broker produces on demand."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import confluent_kafka
from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupType,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    Uuid,
)
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.cluster import RenewedAdmin
from consumer.adapters.kafka.commits import raw_partition
from consumer.adapters.kafka.groups import GroupWatch
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.member import GroupMember
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.engine.messages import Assignment, BrokersSilent, BrokerStats, GroupSize, TopicIds
from consumer.engine.model import Chunk, Position, TopicPartition

Step = Callable[["FakeConsumer"], list[Message]]


def message(offset: int, partition: int = 0, leader_epoch: int = 0) -> Message:
    """Return a record of topic ``t``."""
    return Message("t", partition, offset, b"k", b"v", None, None, (1, 1000), 0.0, leader_epoch)


def parts(*numbers: int) -> list[RawPartition]:
    """Return partitions of topic ``t`` by number."""
    return [RawPartition("t", number) for number in numbers]


def brings(*messages: Message) -> Step:
    """Return a step that yields these records."""
    return lambda _: list(messages)


def given(*numbers: int) -> Step:
    """Return a step in which a rebalance assigns these partitions and no record comes."""

    def step(consumer: FakeConsumer) -> list[Message]:
        consumer.assign_to(*numbers)
        return []

    return step


def taken(*numbers: int) -> Step:
    """Return a step in which a rebalance revokes these partitions and no record comes."""

    def step(consumer: FakeConsumer) -> list[Message]:
        consumer.take_away(*numbers)
        return []

    return step


class FakeConsumer:
    """A consumer that plays a script: a step for each consume that waits (``consume(1, …)``); other consumes
    are empty."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.script: list[Step] = []
        self.calls: list[tuple[Any, ...]] = []
        self.stored: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        """The leader epochs that were committed with the offsets of `stored`."""
        self.metadata = ""
        """The metadata that were committed with each of them."""
        self.unstable: set[int] = set()
        """The partitions whose committed offsets the broker does not return now."""
        self.beginnings: dict[int, int] = {}
        self.leaderless: set[int] = set()
        """The partitions of which no end or beginning can be had: a question times out."""
        self.asked: list[tuple[float, float]] = []
        """When each question for committed offsets was asked, and how many seconds it had."""
        self.cached_begin = self.cached_end = -1001
        self.refused: dict[str, KafkaException] = {}
        """The error that each method named here always raises."""
        self.commit_answers: list[int] = []
        """Error codes of the next commits; when the list is empty, commits succeed."""
        self.member_id: str | None = "m1"
        self.rebalance_lasts = 0
        """Number of consumes after the unsubscription during which a rebalance delays it."""
        self._unsubscribed = False
        self.on_seek: Callable[[RawPartition], object] = lambda _: None
        self.waits = 0.0
        """The time limit of the present, or last, consume."""

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        """Keep the callbacks for the script to call."""
        self.on = SimpleNamespace(**callbacks)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        """Play the next step of the script."""
        self.waits = timeout
        if self._unsubscribed and self.member_id is not None:
            self.rebalance_lasts -= 1
            if self.rebalance_lasts < 0 and self.config.get("group.protocol") != "consumer":
                self.member_id = None
                self.calls.append(("goodbye",))
        return self.script.pop(0)(self) if num_messages == 1 and self.script else []

    def assign_to(self, *numbers: int) -> None:
        """Let a rebalance assign these partitions."""
        self.on.on_assign(self, parts(*numbers))

    def take_away(self, *numbers: int) -> None:
        """Let a rebalance revoke these partitions."""
        self.on.on_revoke(self, parts(*numbers))

    def committed(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Return the offsets of `stored`, or raise the refusal."""
        self.asked.append((time.monotonic(), timeout))
        self._refuse("committed", timeout)
        unstable = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)
        found: list[Any] = []
        for topic, number in ((one.topic, one.partition) for one in partitions):
            offset = self.stored.get(number, confluent_kafka.OFFSET_INVALID)
            text = self.metadata if number in self.stored else ""
            whole = raw_partition(topic, number, offset, self.epochs.get(number), text)
            found.append(SimpleNamespace(error=unstable) if number in self.unstable else whole)
        return found

    def offsets_for_times(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Return where each log begins, by `beginnings`; for a time that is not the beginning nothing is known."""
        assert {one.offset for one in partitions} == {confluent_kafka.OFFSET_BEGINNING}
        self._refuse("offsets_for_times", timeout)
        self._need_leaders(partitions, timeout)
        return [
            RawPartition(one.topic, one.partition, self.beginnings.get(one.partition, -1))
            for one in partitions
        ]

    def seek(self, partition: RawPartition) -> None:
        """Record the call."""
        self._refuse("seek")
        self.calls.append(("seek", [(partition.partition, partition.offset)]))
        self.on_seek(partition)

    def position(self, partitions: list[RawPartition]) -> list[RawPartition]:
        """Return that no record was read yet."""
        return [RawPartition(one.topic, one.partition, -1001) for one in partitions]

    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        """Return (0, 77) when asked, and the cached ends, by default unknown, when `cached`."""
        if cached:
            return self.cached_begin, self.cached_end
        self._need_leaders([partition], timeout)
        return 0, 77

    def commit(self, *, offsets: list[RawPartition], asynchronous: bool) -> Any:
        """Record the call and succeed, unless `refused` or `commit_answers` names an error."""
        named = [(one.partition, one.offset, one.leader_epoch) for one in offsets]
        self.calls.append(("commit", asynchronous, named))
        self._refuse("commit")
        if self.commit_answers:
            raise KafkaException(KafkaError(self.commit_answers.pop(0)))
        return None if asynchronous else offsets

    def unsubscribe(self) -> None:
        """Record the call; the member leaves with a later consume, once no rebalance is under way."""
        self.calls.append(("unsubscribe",))
        self._unsubscribed = True

    def memberid(self) -> str | None:
        """Return the member id, or None after the member has left."""
        return self.member_id

    def close(self) -> None:
        """Record the call."""
        self.calls.append(("close",))

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Record calls of assign, unassign, incremental_…, pause and resume, and raise the refusal."""

        def call(partitions: Sequence[RawPartition] = ()) -> None:
            self.calls.append((name, [(one.partition, one.offset) for one in partitions]))
            self._refuse(name)

        return call

    def _refuse(self, what: str, timeout: float = 0.0) -> None:
        if what in self.refused:
            if self.refused[what].args[0].code() == KafkaError._TIMED_OUT:
                time.sleep(timeout)
            raise self.refused[what]

    def _need_leaders(self, partitions: Sequence[RawPartition], timeout: float) -> None:
        if self.leaderless.intersection(one.partition for one in partitions):
            time.sleep(timeout)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


class Reported(Hooks):
    """Hooks that answer at once and record their calls."""

    def __init__(self) -> None:
        self.assignments: list[Assignment] = []
        self.revocations: list[Sequence[TopicPartition]] = []
        self.losses: list[Sequence[TopicPartition]] = []
        self.errors: list[tuple[str, str]] = []
        self.ids: list[dict[str, str]] = []
        self.positions: Sequence[Position] = ()
        self.expired = False
        self.busy = 0
        """How many of the next calls the event loop has no time for."""
        self.counts_members = False

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Record the assignments, unless the event loop is `busy`."""
        self._be_busy()
        self.assignments.extend(assignments)

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Record the partitions; return `positions`, or raise `TimeoutError` if `expired`."""
        self.revocations.append(partitions)
        if self.expired:
            raise TimeoutError
        return self.positions

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Record the partitions, unless the event loop is `busy`."""
        self._be_busy()
        self.losses.append(partitions)

    def _be_busy(self) -> None:
        if self.busy:
            self.busy -= 1
            raise TimeoutError

    def post_error(self, code: str, text: str) -> None:
        """Record the trouble."""
        self.errors.append((code, text))

    def report(self, news: TopicIds | GroupSize | BrokerStats | BrokersSilent) -> None:
        """Record `news` if they are topic ids."""
        if isinstance(news, TopicIds):
            self.ids.append(dict(news.ids))


class Ids(TopicIdWatch):
    """The brokers' topic ids, as `reported` has them now."""

    def __init__(self) -> None:
        self.client = RenewedAdmin({}, make_admin=lambda _: FakeAdmin())
        self.reported: dict[str, str] = {}
        self.asked: list[set[str]] = []
        self.expired_caches = 0
        self.closed = False
        self.refused: KafkaException | None = None

    def ask(self, topics: Collection[str], timeout: float) -> Mapping[str, str]:
        """Return the scripted answer, or raise the refusal."""
        self.asked.append(set(topics))
        if self.refused is not None:
            raise self.refused
        return dict(self.reported)

    def poll(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the scripted answer."""
        return {name: self.reported[name] for name in topics if name in self.reported}

    def expire_cache(self) -> None:
        """Count the call."""
        self.expired_caches += 1

    def close(self) -> None:
        """Record the call."""
        self.closed = True


class FakeAdmin:
    """An AdminClient. `answer`: returns the answer to a call, or an error, at once; None: a test answers `asked`."""

    def __init__(self, answer: Callable[[str], Any] | None = None) -> None:
        self.answer = answer
        self.calls: list[str] = []
        self.asked: list[concurrent.futures.Future[Any]] = []
        self.ended = threading.Event()
        self.controller = 1
        self.ids: dict[str, Uuid | KafkaException] = {}
        self.topics: list[dict[str, concurrent.futures.Future[Any]]] = []
        """The questions for ids."""
        self.at_once = True
        """Whether they are answered at once, and not with `answer_topics`."""

    def list_topics(self, timeout: float) -> Any:
        """Return metadata that name the controller."""
        return SimpleNamespace(controller_id=self.controller, brokers={1: None})

    def describe_topics(
        self, topics: TopicCollection, request_timeout: float
    ) -> dict[str, concurrent.futures.Future[Any]]:
        """Return a future for each topic."""
        self.topics.append({name: concurrent.futures.Future[Any]() for name in topics.topic_names})
        if self.at_once:
            self.answer_topics()
        return self.topics[-1]

    def answer_topics(self) -> None:
        """Answer the latest question for ids."""
        for name, future in self.topics[-1].items():
            reported = self.ids.get(name, KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)))
            if isinstance(reported, KafkaException):
                future.set_exception(reported)
            else:
                future.set_result(SimpleNamespace(topic_id=reported))

    def describe_consumer_groups(
        self, names: list[str], request_timeout: float
    ) -> dict[str, concurrent.futures.Future[Any]]:
        """Begin the question."""
        assert request_timeout == 3600.0, "librdkafka must never be the one that times out"
        return {names[0]: self._begin("describe")}

    def list_consumer_group_offsets(self, _: Any, **__: Any) -> dict[str, concurrent.futures.Future[Any]]:
        """Begin the question."""
        return {"the group": self._begin("offsets")}

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")
        self.ended.set()

    def _begin(self, call: str) -> concurrent.futures.Future[Any]:
        self.calls.append(call)
        self.asked.append(concurrent.futures.Future())
        reported = None if self.answer is None else self.answer(call)
        if isinstance(reported, Exception):
            self.asked[-1].set_exception(reported)
        elif self.answer is not None:
            self.asked[-1].set_result(reported)
        return self.asked[-1]


def described(*held: int, state: Any = ConsumerGroupState.STABLE, of: Any = ConsumerGroupType.CLASSIC) -> Any:
    """Return a description of a group whose members, ``m0`` and so on, hold `held` partitions each."""
    parts = [SimpleNamespace(topic_partitions=["p"] * count) for count in held]
    members = [
        SimpleNamespace(member_id=f"m{number}", assignment=one, target_assignment=None)
        for number, one in enumerate(parts)
    ]
    return SimpleNamespace(state=state, type=of, members=members)


class Clock:
    """A stand-in for `time.monotonic` whose time a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self.now += seconds


class Bench:
    """A member on a fake consumer."""

    def __init__(
        self,
        *,
        reset: str = "earliest",
        strategy: str = "cooperative-sticky",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.reported = Reported()
        self.ids = Ids()
        self.coordinator = FakeAdmin()
        self.ready: deque[Chunk] = deque()
        config = {"partition.assignment.strategy": strategy, **(settings or {})}
        self.made: list[FakeConsumer] = []

        def make(config: dict[str, Any]) -> Any:
            self.made.append(FakeConsumer(config))
            return self.made[-1]

        self.member = GroupMember(
            config,
            ["t"],
            self.reported,
            self.ready,
            offset_reset=reset,
            has_offsets=lambda _: bool(self.consumer.stored),
            topic_ids=self.ids,
            group_watch=GroupWatch(
                "g", RenewedAdmin({}, make_admin=lambda _: self.coordinator), self.reported.post_error
            ),
            is_wanted=lambda: True,  # a fetch gathers nothing, and so takes no time
            make_consumer=make,
        )

    @property
    def consumer(self) -> FakeConsumer:
        """The consumer that is used now."""
        return self.made[-1]

    def fetch(self, *steps: Step, room: int = 100) -> list[Chunk]:
        """Fetch once while `steps` are the script, and return the chunks."""
        self.consumer.script = list(steps)
        self.member.fetch(room, 0.0)
        chunks = list(self.ready)
        self.ready.clear()
        return chunks

    def assign(self, *numbers: int, room: int = 100) -> None:
        """Let a rebalance assign these partitions, and fetch until they have begun."""
        self.fetch(given(*numbers), room=room)
        self.fetch(room=room)

    def close(self, timeout: float = 10.0) -> None:
        """Close the member with the positions that the listener would commit."""
        epochs = [one.epoch for one in self.reported.assignments[: len(self.reported.positions)]]
        self.member.close(self.reported.positions, epochs, time.monotonic() + timeout)

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """Return the calls of the method `name`."""
        return [call for call in self.consumer.calls if call[0] == name]


def offsets(chunks: list[Chunk]) -> list[int]:
    """Return the offsets of all records, in order."""
    return [record.offset for chunk in chunks for record in chunk.records]
