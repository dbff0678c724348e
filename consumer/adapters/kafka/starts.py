"""Where a newly assigned partition starts: the rules of ``KAFKA_AUTO_OFFSET_RESET``.

The committed offset, always, if there is one. Without one:

* ``earliest``: the beginning.
* ``error``: nowhere, which ends the run.
* ``latest``: the end as it is now, as an explicit offset that is then committed at once, so that a crash
  before the first settlement cannot skip what came in between. This holds only for a group without a committed
  offset on *any* partition of the topic. Otherwise the partition is new in a known topic (it was added, or the
  group's first run never got to it), and its records must not be skipped: the beginning.

An offset out of range never leads to the end: librdkafka is configured with ``earliest`` or ``error``. Nothing else of
this is left to librdkafka. It would look for the committed offset by itself, and where a moving coordinator does not
tell, it gives up after three tries: the member then holds its partitions and reads nothing.

Two members of a new group that start at the same moment under ``latest`` may find each other's first commits;
the later one then reads its partitions from the beginning. That repeats old records, and loses none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition


class OffsetSource(Protocol):
    """What of `confluent_kafka.Consumer` is needed here."""

    def committed(self, partitions: list[RawPartition], timeout: float = ...) -> list[RawPartition]: ...
    def list_topics(self, topic: str | None = ..., timeout: float = ...) -> Any: ...
    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = ..., cached: bool = ...
    ) -> tuple[int, int]: ...


class Start(NamedTuple):
    """Where to start; `offset` None is the beginning. `commit`: commit it at once.

    `metadata`: what was committed with the offset.
    """

    offset: int | None
    leader_epoch: int | None
    commit: bool
    metadata: str = ""


_BEGINNING: Final = Start(None, None, False)


def find_starts(
    source: OffsetSource, partitions: Sequence[tuple[str, int]], offset_reset: str, timeout: float
) -> list[Start]:
    """One start for each partition, in order. Blocks on the brokers.

    Raises `confluent_kafka.KafkaException`; of ``_AUTO_OFFSET_RESET`` where there is none and `offset_reset` is
    ``error``.
    """
    known = [_committed_start(one) for one in _committed(source, partitions, timeout)]
    if offset_reset == "error" and None in known:
        raise KafkaException(KafkaError(KafkaError._AUTO_OFFSET_RESET, _nowhere(partitions, known)))
    if offset_reset != "latest":
        return [start or _BEGINNING for start in known]
    missing = {topic for (topic, _), start in zip(partitions, known, strict=True) if start is None}
    new = {topic for topic in missing if not _has_commits(source, topic, timeout)}
    return [
        start or _without_commit(source, partition, new, timeout)
        for partition, start in zip(partitions, known, strict=True)
    ]


def _committed(
    source: OffsetSource, partitions: Iterable[tuple[str, int]], timeout: float
) -> list[RawPartition]:
    found = source.committed([RawPartition(topic, number) for topic, number in partitions], timeout=timeout)
    for one in found:
        if one.error is not None:  # "unknown" must not be taken for "none"
            raise KafkaException(one.error)
    return found


def _committed_start(found: RawPartition) -> Start | None:
    if found.offset < 0:
        return None
    leader = found.leader_epoch
    return Start(found.offset, leader if (leader or 0) >= 0 else None, False, _metadata(found))


def _metadata(found: RawPartition) -> str:
    """What was committed with the offset; what is not even text (brokers need not look) is not ours: none."""
    try:
        return found.metadata or ""
    except UnicodeDecodeError:
        return ""


def _nowhere(partitions: Sequence[tuple[str, int]], known: Sequence[Start | None]) -> str:
    (topic, number), *others = (one for one, start in zip(partitions, known, strict=True) if start is None)
    more = f" and {len(others)} more" if others else ""
    return f"no committed offset of {topic}[{number}]{more}"


def _has_commits(source: OffsetSource, topic: str, timeout: float) -> bool:
    metadata = source.list_topics(topic, timeout=timeout).topics[topic]
    everywhere = _committed(source, [(topic, number) for number in metadata.partitions], timeout)
    return any(one.offset >= 0 for one in everywhere)


def _without_commit(source: OffsetSource, partition: tuple[str, int], new: set[str], timeout: float) -> Start:
    topic, number = partition
    if topic not in new:
        return _BEGINNING
    _, end = source.get_watermark_offsets(RawPartition(topic, number), timeout=timeout)
    return Start(end, None, True)
