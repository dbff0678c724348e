"""From bounds to offsets: which part of each partition a replay reads.

Theory of operation. The brokers are asked once, when a replay begins: which partitions exist, where each begins and
ends, and for a time, where the first record of that time or later stands. The result is fixed: records that arrive
later do not belong to the replay.

The end is the last stable offset, not the high watermark. A reader of committed records never gets beyond it while a
transaction is open, and would wait for another producer's commit.

*Times.* A topic need not be in order of time: producers set the timestamps of their records. So a range by time begins
at the first record that is late enough, always ends at the end of the partition, and carries the times: the reader
skips what lies outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

import confluent_kafka
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.cluster import fetch_metadata, nearest_topic
from consumer.adapters.kafka.configuration import Config, admin_config, make_client
from consumer.adapters.kafka.offsets import Extent, find_at, find_extents, limit, meet_cluster
from consumer.adapters.thread import run_blocking
from consumer.engine.model import TopicPartition
from consumer.errors import UsageError

_Code = confluent_kafka.KafkaError
_THREAD: Final = "pinstream-kafka-ranges"
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

    `since_ms`, `until_ms`: milliseconds since 1970; None: no limit.
    """

    topic: str
    partition: int
    begin: int
    end: int
    since_ms: int | None = None
    until_ms: int | None = None


async def resolve_ranges(
    config: Config,
    topics: Sequence[str],
    partitions: Sequence[str],
    start: Bound,
    stop: Bound,
    timeout: float,
) -> list[Range]:
    """The range of each partition, by topic and partition; its end is fixed from here on.

    `partitions`: ``P`` or ``TOPIC:P``, none for all. Raises `UsageError` for what does not exist, `KafkaError` if the
    brokers do not answer within `timeout` seconds.
    """
    return await run_blocking(_THREAD, _resolve, config, topics, partitions, start, stop, timeout)


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
        meet_cluster(client, left)
        extents = find_extents(client, names, left)
        begins = _begins(client, names, extents, start, left)
    return [
        _range(name, extent, begin, start, stop)
        for name, extent, begin in zip(names, extents, begins, strict=True)
    ]


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
        raise UsageError(
            f"--partition {text!r} is not a partition: write P, or TOPIC:P, for example 0 or orders:0"
        )
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
        found = find_at(client, names, start.value, left)
        # -1: no record is late enough. Records written after the end was asked for do not count.
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
