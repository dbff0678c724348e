"""From bounds to offsets: which part of each partition a replay reads.

The brokers are asked once, when a replay begins: which partitions exist, where each begins and ends, and for a time,
the offset of the first record of that time or later. The result is fixed: records that arrive later do not belong to
the replay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from consumer.adapters.kafka import cluster
from consumer.adapters.kafka.configuration import Config
from consumer.adapters.thread import run_blocking
from consumer.engine.model import Position, TopicPartition
from consumer.errors import UsageError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
# No topic's name has a colon. ASCII only: for `re`, digits of other scripts are digits too.
_PARTITION: Final = re.compile(r"(?:(?P<topic>[^:]+):)?(?P<number>[0-9]{1,10})", re.ASCII)


class Bound(NamedTuple):
    """Where a range begins or ends. `value`: the offset, or milliseconds since 1970; 0 for the other kinds."""

    kind: Literal["beginning", "end", "offset", "time"]
    value: int = 0

    def __str__(self) -> str:
        """Return the bound as it is written on the command line."""
        if self.kind == "offset":
            return f"offset:{self.value}"
        if self.kind != "time":
            return self.kind
        moment = _EPOCH + self.value * _MILLISECOND
        text = moment.isoformat(timespec="milliseconds" if self.value % 1000 else "seconds")
        return text.replace("+00:00", "Z")


class Range(NamedTuple):
    """Offsets [begin, end) of one partition, of which only records with a timestamp in [since, until) are read.

    `since_ms`, `until_ms`: milliseconds since 1970; None: no limit. `start`: where a named replay goes on, with the
    engine's offset map as its metadata.
    """

    topic: str
    partition: int
    begin: int
    end: int
    since_ms: int | None = None
    until_ms: int | None = None
    start: Position | None = None

    @property
    def first(self) -> Position:
        """Return the position at which the reading begins: `start`, else the range's begin."""
        return self.start or Position(self.topic, self.partition, self.begin, None)

    @property
    def name(self) -> TopicPartition:
        """Return the partition."""
        return TopicPartition(self.topic, self.partition)


async def resolve_ranges(
    config: Config,
    topics: Sequence[str],
    partitions: Sequence[str],
    start: Bound,
    stop: Bound,
    timeout: float,
) -> list[Range]:
    """Return the range of each partition, by topic and partition. Its end is fixed from now on.

    `partitions`: ``P`` or ``TOPIC:P``, none for all. Raises `UsageError` for what does not exist, `KafkaError` if the
    brokers do not answer within `timeout` seconds.
    """

    def resolve() -> list[Range]:
        deadline = time.monotonic() + timeout
        with cluster.meet_cluster(config, timeout) as (client, metadata):
            names = _chosen(topics, partitions, cluster.known_partitions(metadata))
            # The end is the last stable offset, not the high watermark. A reader of committed records gets no further
            # while a transaction is open, and would wait for another producer's commit.
            extents = cluster.find_extents(client, names, deadline)
            since = cluster.find_at(client, names, start.value, deadline) if start.kind == "time" else {}
        return [_range(name, one, since.get(name, one.end), start, stop) for name, one in extents.items()]

    return await run_blocking("pinstream-kafka-ranges", resolve)


# ------------------------------------------------------------------------------------- which partitions


def _chosen(
    topics: Sequence[str], partitions: Sequence[str], known: Mapping[str, Collection[int]]
) -> list[TopicPartition]:
    for topic in topics:
        if topic not in known:
            hint = cluster.nearest_topic(topic, known)
            raise UsageError(
                f"the topic {topic} does not exist, or this user may not see it{hint}: correct --topic"
            )
    wanted = {name for text in partitions for name in named_partitions(text, topics, known)}
    # A topic without a named partition is read whole: --topic selected it.
    whole = {*topics} - {name.topic for name in wanted}
    return sorted({*wanted, *(TopicPartition(topic, number) for topic in whole for number in known[topic])})


def named_partitions(
    text: str, topics: Sequence[str], known: Mapping[str, Collection[int]]
) -> list[TopicPartition]:
    """Return the partitions that ``--partition P`` or ``--partition TOPIC:P`` names; ``P`` is that of each of `topics`.

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
                f"--partition {text}: {name.topic} has no partition {number}; it has {_formatted(known[name.topic])}"
            )
    return names


def _formatted(numbers: Collection[int]) -> str:
    """Return ``0 to 3`` or, for one partition or with gaps, ``0, 2``."""
    listed = sorted(numbers)
    if len(listed) > 1 and listed[-1] - listed[0] == len(listed) - 1:
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed)) or "none"


# ---------------------------------------------------------------------------------------- which offsets


def _range(name: TopicPartition, extent: cluster.Extent, first: int, start: Bound, stop: Bound) -> Range:
    """Return the range of one partition. `first`: where a range by time begins; the partition's end if no record is
    late enough."""
    for option, bound in (("--from", start), ("--to", stop)):
        if bound.kind == "offset" and not extent.low <= bound.value <= extent.end:
            held = f"holds {extent.low} to {extent.end - 1}"
            if extent.low == extent.end:
                held = f"is empty (its next offset is {extent.end})"
            raise UsageError(f"{option} {bound}: offset {bound.value} is not in {name}, which {held}")
    # Records written after the end was asked for do not count. A range by time always ends at the end of the partition.
    begins = {"beginning": extent.low, "offset": start.value, "time": min(first, extent.end)}
    begin = begins.get(start.kind, extent.end)
    end = {"beginning": extent.low, "offset": stop.value}.get(stop.kind, extent.end)
    if begin > end:
        raise UsageError(
            f"--from {start} is offset {begin} of {name}, which is after --to {stop}: give a later --to, or other "
            "partitions"
        )
    # A topic need not be in order of time, since producers set the timestamps: the reader skips what lies outside.
    since = start.value if start.kind == "time" else None
    until = stop.value if stop.kind == "time" else None
    return Range(*name, begin, end, since, until)
