"""Commits on their way: sent without waiting, answered by librdkafka in a later poll.

The answer (`on_commit`) names the offsets but not the call, so it is matched to the oldest commit of exactly
these offsets. An answer that nobody waits for any more finds its entry abandoned, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import TopicPartition as RawPartition

from consumer.engine.model import Position, TopicPartition


class CommitResult(NamedTuple):
    """What the broker took. `failure`: the code of the first thing that it did not take, if any."""

    committed: tuple[Position, ...]
    failure: str | None


Answer = Callable[[CommitResult], None]
_Offsets = frozenset[tuple[str, int, int]]


class _Sent(NamedTuple):
    offsets: _Offsets
    positions: tuple[Position, ...]
    left_out: str | None
    answer: Answer


class Commits:
    """The commits that were sent and not answered, oldest first. Used in the consumer's thread."""

    def __init__(self) -> None:
        self._sent: list[_Sent] = []

    def add(self, positions: Sequence[Position], left_out: str | None, answer: Answer) -> None:
        """These were sent; `left_out` is why others that were asked for were not."""
        self._sent.append(_Sent(_offsets_of(raw_positions(positions)), tuple(positions), left_out, answer))

    def heard(self, error: confluent_kafka.KafkaError | None, partitions: Iterable[RawPartition]) -> None:
        """librdkafka's `on_commit`."""
        partitions = list(partitions)
        offsets = _offsets_of(partitions)
        for index, sent in enumerate(self._sent):
            if sent.offsets == offsets:
                del self._sent[index]
                sent.answer(read_answer(error, partitions, sent.positions, sent.left_out))
                return

    def drop(self, failure: str) -> None:
        """None of them will be answered any more."""
        for sent in self._sent:
            sent.answer(CommitResult((), failure))
        self._sent.clear()


def read_answer(
    error: confluent_kafka.KafkaError | None,
    partitions: Iterable[RawPartition],
    positions: Sequence[Position],
    left_out: str | None = None,
) -> CommitResult:
    """Which of `positions` were taken, from the broker's verdict on each partition."""
    if error is not None and error.code() != confluent_kafka.KafkaError.NO_ERROR:
        return CommitResult((), error.name())
    refused = {(one.topic, one.partition): one.error.name() for one in partitions if one.error is not None}
    taken = tuple(one for one in positions if (one.topic, one.partition) not in refused)
    # What says that the metadata is too large must not hide behind another partition's trouble.
    of_size = next((name for name in refused.values() if name == "OFFSET_METADATA_TOO_LARGE"), None)
    return CommitResult(taken, of_size or next(iter(refused.values()), left_out))


def raw_positions(positions: Iterable[Position]) -> list[RawPartition]:
    """As librdkafka names them, with the leader epoch (apache/kafka PR 23183: never without)."""
    return [raw_partition(*one) for one in positions]


def raw_partition(
    topic: str, partition: int, offset: int, leader_epoch: int | None, metadata: str = ""
) -> RawPartition:
    """librdkafka's name of a place in a partition; it takes an unknown leader epoch only by its absence.

    So with metadata: an empty text is sent with the NUL behind it, and a broker that allows no byte refuses it.
    """
    known: dict[str, Any] = {} if leader_epoch is None else {"leader_epoch": leader_epoch}
    if metadata:
        known["metadata"] = metadata
    return RawPartition(topic, partition, offset, **known)


class Place(NamedTuple):
    """Where reading goes on: an offset (None: the beginning), and the leader epoch of what is before it."""

    offset: int | None
    leader_epoch: int | None


def raw_place(name: TopicPartition, place: Place) -> RawPartition:
    """As librdkafka names it."""
    if place.offset is None:
        return RawPartition(*name, confluent_kafka.OFFSET_BEGINNING)
    return raw_partition(*name, place.offset, place.leader_epoch)


def _offsets_of(partitions: Iterable[RawPartition]) -> _Offsets:
    return frozenset((one.topic, one.partition, one.offset) for one in partitions)
