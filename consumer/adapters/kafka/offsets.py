"""What the brokers say of offsets: where a log begins and ends, what stands at a time, what a group has committed.

Every question goes through an AdminClient, blocks, and is bounded twice: by librdkafka and, a moment later, by us,
since librdkafka says why its time ended. The exception is the group member: it asks through its own consumer, which
has the answers of its fetches at hand (see `member` and `starts`).

*What a group has committed* is asked for only when its coordinator has answered another question. librdkafka answers
"not the coordinator (yet)" to a question for offsets by telling its own group handler, and an AdminClient has none: the
process ends with a segmentation fault (seen with librdkafka 2.16 on a cluster that had never had a group;
confluent-kafka-javascript #374 has the stack). Who is in the group is asked of the same coordinator, needs the same
permission, and its errors are only errors. What is left is a coordinator that moves between the two questions.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaException
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    OffsetSpec,
)

from consumer.adapters.kafka.configuration import Config, admin_config, make_client
from consumer.adapters.kafka.trouble import PASSING, as_fatal, describe_error, exception_error
from consumer.adapters.thread import run_blocking
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError

_Answer = TypeVar("_Answer")
_Code: Final = confluent_kafka.KafkaError

SLACK: Final = 1.0
"""Seconds that a question gets beyond librdkafka's own limit, in which librdkafka says why its time ended."""
_LEAST: Final = 0.1
"""Seconds that a question about a group gets even when the limit is nearly used up."""
_LEAST_ASK: Final = 1.0
"""The same, for a question about partitions: it may have to find their leaders first."""
_ASK_AGAIN: Final = 0.2
_MOVING: Final = frozenset(
    {
        _Code.NOT_LEADER_FOR_PARTITION,
        _Code.LEADER_NOT_AVAILABLE,
        _Code.UNKNOWN_LEADER_EPOCH,
        _Code.FENCED_LEADER_EPOCH,
    }
)
"""The partition has another leader than the client knows, as one that was just created often has."""
_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # it has no annotations
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # it has no annotations

CANNOT_SAY: Final = frozenset({_Code._UNSUPPORTED_FEATURE, _Code.UNSUPPORTED_VERSION})
"""What a broker that cannot describe groups (the embedded one) answers."""


class Extent(NamedTuple):
    """What a partition holds now: the offsets [low, end), as far as all transactions are closed."""

    low: int
    end: int


# ------------------------------------------------------------------------------------------------ of partitions


def limit(timeout: float) -> Callable[[], float]:
    """A function that says how many seconds of `timeout` are left."""
    deadline = time.monotonic() + timeout
    return lambda: max(_LEAST_ASK, deadline - time.monotonic())


def find_extents(client: Any, names: Sequence[TopicPartition], left: Callable[[], float]) -> list[Extent]:
    """What each of these partitions holds. Blocks; raises `KafkaError`. `client`: an AdminClient."""
    lows = _ask_partitions(client, names, _EARLIEST, left)
    ends = _ask_partitions(client, names, _LATEST, left)
    return [Extent(low, max(low, end)) for low, end in zip(lows, ends, strict=True)]


def find_at(
    client: Any, names: Sequence[TopicPartition], milliseconds: int, left: Callable[[], float]
) -> list[int]:
    """The offset of each partition's first record with this timestamp or a later one; -1 if there is none.

    Blocks; raises `KafkaError`.
    """
    # Below 0 the protocol has other meanings for a timestamp: -1 is the end.
    return _ask_partitions(client, names, OffsetSpec.for_timestamp(max(0, milliseconds)), left)


def meet_cluster(client: Any, left: Callable[[], float]) -> None:
    """Let a new client see the cluster: else its first question about offsets may wait for that, up to 3 s."""
    try:
        client.list_topics(timeout=left())
    except KafkaException as error:
        raise _unanswered("the topics hold", exception_error(error)) from error


async def behind_transactions(
    config: Config, names: Sequence[TopicPartition], timeout: float
) -> Mapping[TopicPartition, int]:
    """How many offsets of each partition lie at or behind an open transaction, where no reader gets to yet.

    Only the partitions that have some. Raises `KafkaError`.
    """

    def ask() -> dict[TopicPartition, int]:
        left = limit(timeout)
        with make_client(AdminClient, admin_config(config)) as client:
            meet_cluster(client, left)
            stable = _ask_partitions(client, names, _LATEST, left)
            written = _ask_partitions(client, names, _LATEST, left, IsolationLevel.READ_UNCOMMITTED)
        gaps = zip(names, stable, written, strict=True)
        return {name: high - end for name, end, high in gaps if high > end}

    return await run_blocking("pinstream-kafka-offsets", ask)


def _ask_partitions(
    client: Any,
    names: Sequence[TopicPartition],
    spec: OffsetSpec,
    left: Callable[[], float],
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> list[int]:
    """One offset for each partition, in order. One whose leader changes is asked for again while time is left."""
    found: dict[TopicPartition, int] = {}
    while missing := [name for name in names if name not in found]:
        seconds = left()
        asked = client.list_offsets(
            {RawPartition(*name): spec for name in missing},
            isolation_level=isolation,
            request_timeout=seconds,
        )
        answers = {TopicPartition(raw.topic, raw.partition): future for raw, future in asked.items()}
        for name in missing:
            try:
                found[name] = int(answers[name].result(seconds + SLACK).offset)
                continue
            except KafkaException as failure:
                error = exception_error(failure)
            except TimeoutError:
                error = _Code(_Code._TIMED_OUT)
            if error.code() not in _MOVING or left() <= _LEAST_ASK:
                raise _unanswered(f"{name.topic}[{name.partition}] holds", error)
        if len(found) < len(names):
            time.sleep(_ASK_AGAIN)
    return [found[name] for name in names]


def _unanswered(what: str, error: confluent_kafka.KafkaError) -> KafkaError:
    return as_fatal(error) or KafkaError(
        f"Kafka: the brokers do not say what {what}: check that they are healthy, then start again "
        f"({describe_error(error)})"
    )


# ----------------------------------------------------------------------------------------------------- of groups


def ask_committed(
    client: Any,
    group: str,
    deadline: float,
    partitions: Sequence[TopicPartition] | None = None,
    *,
    slack: float = SLACK,
) -> list[RawPartition]:
    """What the group has committed, of `partitions` or of all that it has offsets for. One question, no retry.

    `deadline` (monotonic) is librdkafka's, `slack` what it gets beyond that. Raises `KafkaException`, also where the
    answer for a single partition is an error: "unknown" must not be taken for "none".
    """
    # Never without this: see the module's docstring for the crash.
    meet_coordinator(client, group, max(_LEAST, deadline - time.monotonic()), slack)
    named = None if partitions is None else [RawPartition(*one) for one in partitions]
    asked = ConsumerGroupTopicPartitions(group, named)
    left = max(_LEAST, deadline - time.monotonic())
    [answer] = client.list_consumer_group_offsets([asked], request_timeout=left).values()
    told: list[RawPartition] = result_of(answer, deadline).topic_partitions or []
    for one in told:
        if one.error is not None:
            raise KafkaException(one.error)
    # A partition without a committed offset has a number below 0 there.
    return [one for one in told if one.offset >= 0]


def meet_coordinator(client: Any, group: str, timeout: float, slack: float) -> None:
    """Return when the group's coordinator answers. Raises `KafkaException`, also when the time is up."""
    try:
        client.describe_consumer_groups([group], request_timeout=timeout)[group].result(timeout + slack)
    except KafkaException as error:
        if exception_error(error).code() not in CANNOT_SAY:
            raise
    except TimeoutError:
        raise KafkaException(_Code(_Code._TIMED_OUT)) from None


def ask_patiently(question: Callable[[float], _Answer], timeout: float) -> _Answer:
    """Ask until the coordinator answers; `question` takes the deadline (monotonic) and raises `KafkaException`.

    Errors of a coordinator that starts or moves pass by themselves, within seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return question(deadline)
        except KafkaException as error:
            passing = exception_error(error).name() in PASSING
            if not passing or time.monotonic() + _ASK_AGAIN > deadline:
                raise
        time.sleep(_ASK_AGAIN)


def result_of(answer: concurrent.futures.Future[Any], deadline: float) -> Any:
    """The answer of an AdminClient; `deadline` (monotonic) is librdkafka's. Raises `KafkaException`."""
    try:
        return answer.result(max(0.0, deadline - time.monotonic()) + SLACK)
    except TimeoutError:
        raise KafkaException(_Code(_Code._TIMED_OUT)) from None


def read_position(raw: RawPartition) -> Position:
    """What was committed for one partition, read from librdkafka's answer.

    Metadata that is not even text (brokers do not look at it) is not ours: it counts as none.
    """
    leader = raw.leader_epoch
    try:
        metadata = raw.metadata or ""
    except UnicodeDecodeError:  # confluent_kafka decodes it when it is read
        metadata = ""
    return Position(raw.topic, raw.partition, raw.offset, leader if (leader or 0) >= 0 else None, metadata)
