"""From bounds to offsets: which part of each partition a replay reads.

Theory of operation. The brokers are asked once, when a replay begins: which partitions there are, where each begins
and ends, and for a time, where the first record of that time or later stands. What comes out is fixed: records that
arrive later do not belong to the replay.

The end is the last stable offset, not the high watermark. Whoever reads only what is committed never gets beyond it
while a transaction is open, and would wait for somebody else's commit.

*Times.* A topic need not be in order of time: producers stamp their records themselves. So a range by time begins at
the first record that is late enough, always ends at the end of the partition, and carries the times: the reader
passes over what lies outside.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import confluent_kafka
from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    OffsetSpec,
)

from consumer.adapters.kafka.cluster import fetch_metadata, nearest_topic
from consumer.adapters.kafka.configuration import Config, admin_config, make_client
from consumer.adapters.kafka.trouble import as_fatal, describe_error, exception_error
from consumer.adapters.thread import run_blocking
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError, UsageError

_Code = confluent_kafka.KafkaError
_THREAD: Final = "pinstream-kafka-ranges"
_LEAST_ASK: Final = 1.0
_ASK_AGAIN: Final = 0.2
_MOVING: Final = frozenset(
    {
        confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION,
        confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE,
        confluent_kafka.KafkaError.UNKNOWN_LEADER_EPOCH,
        confluent_kafka.KafkaError.FENCED_LEADER_EPOCH,
    }
)
"""The partition has another leader than the client knows, as one that was just made often has."""
"""Seconds that a question gets even when the limit is nearly used up."""
_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # it has no annotations
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # it has no annotations
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_PARTITION: Final = re.compile(r"(?:(?P<topic>[^:]+):)?(?P<number>[0-9]{1,10})", re.ASCII)


class Bound(NamedTuple):
    """Where a range begins or ends. `value`: the offset, or milliseconds since 1970; 0 for the other kinds."""

    kind: Literal["beginning", "end", "offset", "time"]
    value: int = 0

    def __str__(self) -> str:
        """As it is written on the command line."""
        if self.kind == "offset":
            return f"offset:{self.value}"
        if self.kind != "time":
            return self.kind
        moment = _EPOCH + self.value * _MILLISECOND
        text = moment.isoformat(timespec="milliseconds" if self.value % 1000 else "seconds")
        return text.replace("+00:00", "Z")


class Range(NamedTuple):
    """Offsets [begin, end) of one partition, and of those only the records with a timestamp in [since, until).

    `since_ms`, `until_ms`: milliseconds since 1970; None: whatever the time.
    """

    topic: str
    partition: int
    begin: int
    end: int
    since_ms: int | None = None
    until_ms: int | None = None


class Extent(NamedTuple):
    """What a partition holds now: the offsets [low, end), as far as all transactions are closed."""

    low: int
    end: int


async def resolve_ranges(
    config: Config,
    topics: Sequence[str],
    partitions: Sequence[str],
    start: Bound,
    stop: Bound,
    timeout: float,
) -> list[Range]:
    """The range of each partition, by topic and partition; its end is fixed from here on.

    `partitions`: ``P`` or ``TOPIC:P``, none for all. Raises `UsageError` for what is not there, `KafkaError` for
    brokers that do not answer within `timeout` seconds.
    """
    return await run_blocking(_THREAD, _resolve, config, topics, partitions, start, stop, timeout)


async def behind_transactions(
    config: Config, names: Sequence[TopicPartition], timeout: float
) -> Mapping[TopicPartition, int]:
    """How many offsets of each partition lie at or behind an open transaction, where no reader gets to yet.

    Only partitions that have some. Raises `KafkaError`.
    """
    return await run_blocking(_THREAD, _behind, config, names, timeout)


def _behind(config: Config, names: Sequence[TopicPartition], timeout: float) -> dict[TopicPartition, int]:
    left = limit(timeout)
    with make_client(AdminClient, admin_config(config)) as client:
        _acquaint(client, left)
        stable = _offsets(client, names, _LATEST, left)
        written = _offsets(client, names, _LATEST, left, IsolationLevel.READ_UNCOMMITTED)
    gaps = zip(names, stable, written, strict=True)
    return {name: high - end for name, end, high in gaps if high > end}


def find_extents(client: Any, names: Sequence[TopicPartition], left: Callable[[], float]) -> list[Extent]:
    """What each of these holds. Blocks; raises `KafkaError`. `client`: an AdminClient; `left`: seconds."""
    lows = _offsets(client, names, _EARLIEST, left)
    ends = _offsets(client, names, _LATEST, left)
    return [Extent(low, max(low, end)) for low, end in zip(lows, ends, strict=True)]


def limit(timeout: float) -> Callable[[], float]:
    """Tells how many seconds are left of `timeout`."""
    deadline = time.monotonic() + timeout
    return lambda: max(_LEAST_ASK, deadline - time.monotonic())


def _resolve(
    config: Config,
    topics: Sequence[str],
    partitions: Sequence[str],
    start: Bound,
    stop: Bound,
    timeout: float,
) -> list[Range]:
    left = limit(timeout)
    known = {name: list(topic.partitions) for name, topic in fetch_metadata(config, timeout).topics.items()}
    names = _chosen(topics, partitions, known)
    with make_client(AdminClient, admin_config(config)) as client:
        _acquaint(client, left)
        extents = find_extents(client, names, left)
        begins = _begins(client, names, extents, start, left)
    return [
        _range(name, extent, begin, start, stop)
        for name, extent, begin in zip(names, extents, begins, strict=True)
    ]


def _acquaint(client: Any, left: Callable[[], float]) -> None:
    """Let a new client see the cluster: else its first question about offsets may wait for that, up to 3 s."""
    try:
        client.list_topics(timeout=left())
    except KafkaException as error:
        raise _unanswered("the topics hold", exception_error(error)) from error


# ------------------------------------------------------------------------------------- which partitions


def _chosen(
    topics: Sequence[str], partitions: Sequence[str], known: Mapping[str, Collection[int]]
) -> list[TopicPartition]:
    for topic in topics:
        if topic not in known:
            raise _missing(topic, known)
    every = [TopicPartition(topic, number) for topic in dict.fromkeys(topics) for number in known[topic]]
    if not partitions:
        return sorted(every)
    wanted: set[TopicPartition] = set()
    for text in partitions:
        wanted.update(named_partitions(text, topics, known))
    # A topic of which no partition is named is read whole: --topic asked for it.
    named = {name.topic for name in wanted}
    return sorted({*wanted, *(name for name in every if name.topic not in named)})


def named_partitions(
    text: str, topics: Sequence[str], known: Mapping[str, Collection[int]]
) -> list[TopicPartition]:
    """The partitions that ``--partition P`` or ``--partition TOPIC:P`` names; ``P`` is that of each of `topics`.

    `known`: the partitions of each topic. Raises `UsageError` for one that does not exist.
    """
    found = _PARTITION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--partition {text!r} names no partition: write P, or TOPIC:P, as in 0 or orders:0")
    topic, number = found["topic"], int(found["number"])
    if topic is not None and topic not in topics:
        raise UsageError(
            f"--partition {text}: {topic} is not among the topics ({', '.join(topics)}): add --topic {topic}"
        )
    names = [TopicPartition(one, number) for one in (topics if topic is None else [topic])]
    for name in names:
        if number not in known[name.topic]:
            raise UsageError(
                f"--partition {text}: {name.topic} has no partition {number}; it has {_spoken(known[name.topic])}"
            )
    return names


def _spoken(numbers: Iterable[int]) -> str:
    """``0 to 3`` or, of one or with holes, ``0, 2``."""
    listed = sorted(numbers)
    if len(listed) > 1 and listed[-1] - listed[0] == len(listed) - 1:
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed)) or "none"


def _missing(topic: str, known: Iterable[str]) -> UsageError:
    hint = nearest_topic(topic, known)
    return UsageError(f"the topic {topic} does not exist, or this user may not see it{hint}: correct --topic")


# ---------------------------------------------------------------------------------------- which offsets


def _begins(
    client: Any,
    names: Sequence[TopicPartition],
    extents: Sequence[Extent],
    start: Bound,
    left: Callable[[], float],
) -> list[int]:
    if start.kind == "time":
        # Below 0 the protocol has other meanings for a timestamp.
        found = _offsets(client, names, OffsetSpec.for_timestamp(max(0, start.value)), left)
        # -1: no record is late enough. What was written after the end was asked for does not count.
        return [
            extent.end if at < 0 else min(at, extent.end) for at, extent in zip(found, extents, strict=True)
        ]
    if start.kind == "offset":
        return [start.value] * len(names)
    return [extent.low if start.kind == "beginning" else extent.end for extent in extents]


def _range(name: TopicPartition, extent: Extent, begin: int, start: Bound, stop: Bound) -> Range:
    for option, bound in (("--from", start), ("--to", stop)):
        if bound.kind == "offset" and not extent.low <= bound.value <= extent.end:
            raise _out_of_range(name, extent, option, bound)
    end = {"beginning": extent.low, "offset": stop.value}.get(stop.kind, extent.end)
    if begin > end:
        raise UsageError(
            f"--from {start} is offset {begin} of {name.topic}[{name.partition}], which is after --to {stop}: "
            "give a later --to, or other partitions"
        )
    since = start.value if start.kind == "time" else None
    until = stop.value if stop.kind == "time" else None
    return Range(*name, begin, end, since, until)


def _out_of_range(name: TopicPartition, extent: Extent, option: str, bound: Bound) -> UsageError:
    where = f"{name.topic}[{name.partition}]"
    if extent.low == extent.end:
        held = f"which is empty (its next offset is {extent.end})"
    else:
        held = f"which holds {extent.low} to {extent.end - 1}"
    return UsageError(f"{option} {bound}: offset {bound.value} is not in {where}, {held}")


def _offsets(
    client: Any,
    names: Sequence[TopicPartition],
    spec: OffsetSpec,
    left: Callable[[], float],
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> list[int]:
    """One offset for each partition, in order. Each wait is bounded twice: by librdkafka, and by us.

    A partition that is just changing its leader is asked for again, as long as there is time.
    """
    found: dict[TopicPartition, int] = {}
    while missing := [name for name in names if name not in found]:
        for name, answer in _ask(client, missing, spec, left(), isolation).items():
            if isinstance(answer, int):
                found[name] = answer
            elif answer.code() not in _MOVING or left() <= _LEAST_ASK:
                raise _unanswered(f"{name.topic}[{name.partition}] holds", answer)
        if len(found) < len(names):
            time.sleep(_ASK_AGAIN)
    return [found[name] for name in names]


def _ask(
    client: Any, names: Sequence[TopicPartition], spec: OffsetSpec, seconds: float, isolation: IsolationLevel
) -> dict[TopicPartition, int | confluent_kafka.KafkaError]:
    """Ask once: an offset for each partition, or why there is none."""
    asked = client.list_offsets(
        {RawPartition(*name): spec for name in names}, isolation_level=isolation, request_timeout=seconds
    )
    answers = {TopicPartition(raw.topic, raw.partition): future for raw, future in asked.items()}
    return {name: _answer(answers[name], seconds + _LEAST_ASK) for name in names}


def _answer(future: Any, seconds: float) -> int | confluent_kafka.KafkaError:
    try:
        return int(future.result(seconds).offset)
    except KafkaException as error:
        return exception_error(error)
    except TimeoutError:
        return _Code(_Code._TIMED_OUT)


def _unanswered(what: str, error: confluent_kafka.KafkaError) -> KafkaError:
    return as_fatal(error) or KafkaError(
        f"Kafka: the brokers do not say what {what}: look after them, then start again ({describe_error(error)})"
    )
