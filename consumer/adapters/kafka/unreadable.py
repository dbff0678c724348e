"""Batches that came damaged: partitions that cannot be read on, and when they are asked for again.

Each batch of records has a checksum. Where it does not fit (a byte was changed on the wire, in a broker's memory or on
its disk), where the batch cannot be unpacked, or is of no known format, librdkafka says so and goes on behind the error
*somewhere*: it loses its place in the answer and takes what stands there for the next batch, so that it passes records
over, or finds the offset out of range and begins the whole log again (librdkafka 2.16; `rdkafka_msgset_reader.c` has
the remark). Nothing of that may be believed. So what follows such an error in its partition is dropped, the partition
is paused, and after a while reading goes on at the very offset where it stopped: what was damaged on its way comes
whole, what is damaged on the disk fails until it is repaired, or until an operator moves the group past it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, Message

from consumer.engine.model import TopicPartition

DAMAGED: Final = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED, KafkaError.INVALID_MSG}
)
"""How librdkafka says that a batch has the wrong checksum, cannot be unpacked, or is of no known format; and how a
broker says that it cannot read what lies on its disk."""

_FIRST_DELAY: Final = 0.5
_MOST_DELAY: Final = 30.0


def take_damaged(messages: Iterable[Message]) -> tuple[list[Message], dict[TopicPartition, KafkaError]]:
    """Without what follows a damaged batch in its partition; and the first such error of each."""
    damaged: dict[TopicPartition, KafkaError] = {}
    kept: list[Message] = []
    for message in messages:
        topic, partition, error = message.topic(), message.partition(), message.error()
        if topic is None or partition is None:
            kept.append(message)
            continue
        name = TopicPartition(topic, partition)
        if name in damaged:
            continue
        if error is not None and error.code() in DAMAGED:
            damaged[name] = error
        else:
            kept.append(message)
    return kept, damaged


@dataclass(slots=True)
class _Damage:
    offset: int
    delay: float
    due: float | None
    """When to ask for it again; None: it was asked for, and nothing has come yet."""


class Unreadable:
    """The partitions that cannot be read on. Lives in the consumer's thread."""

    def __init__(self) -> None:
        self._damages: dict[TopicPartition, _Damage] = {}
        self._offsets: Mapping[TopicPartition, int] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._damages)

    def offsets(self) -> Mapping[TopicPartition, int]:
        """From where each cannot be read. For other threads too: it is never changed."""
        return self._offsets

    def waits(self, name: TopicPartition) -> bool:
        """Whether what comes of this partition is to be dropped: it has not been asked for again yet."""
        damage = self._damages.get(name)
        return damage is not None and damage.due is not None

    def found(self, name: TopicPartition, offset: int, now: float) -> float:
        """It cannot be read on from `offset`. Gives the seconds until it is to be asked for again."""
        before = self._damages.get(name)
        again = before is not None and before.offset == offset
        delay = min(2 * before.delay, _MOST_DELAY) if before is not None and again else _FIRST_DELAY
        self._damages[name] = _Damage(offset, delay, now + delay)
        self._note()
        return delay

    def due(self, now: float) -> list[TopicPartition]:
        """Those that are to be asked for now; they wait no more."""
        due = [name for name, one in self._damages.items() if one.due is not None and one.due <= now]
        for name in due:
            self._damages[name].due = None
        return due

    def discard(self, name: TopicPartition) -> None:
        """It can be read again, or is not ours any more."""
        if self._damages.pop(name, None) is not None:
            self._note()

    def _note(self) -> None:
        self._offsets = {name: one.offset for name, one in self._damages.items()}
