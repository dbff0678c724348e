"""Where a newly assigned partition starts: the rules of ``KAFKA_AUTO_OFFSET_RESET``.

The committed offset, always, if there is one of the topic as it is. One that was committed in an earlier life of the
topic, before it was deleted and made anew, means nothing in this one: the beginning, whatever the setting. Without any:

* ``earliest``: the beginning.
* ``error``: nowhere, which ends the run.
* ``latest``: the end as it is now, as an explicit offset that is then committed at once, so that a crash
  before the first settlement cannot skip what came in between. This holds only for a group that has no offsets yet,
  of whatever topic, subscribed or not. Otherwise the partition is new to a group that is not: its topic was made or
  added to the subscription since, or it was added to its topic, or the group's first run never got to it. Its records
  must not be skipped: the beginning.

An offset out of range never leads to the end: librdkafka is configured with ``earliest`` or ``error``. Nothing else of
this is left to librdkafka. It would look for the committed offset by itself, and where a moving coordinator does not
tell, it gives up after three tries: the member then holds its partitions and reads nothing.

Two members of a new group under ``latest`` that ask at the same moment, or one of which still waits for an answer, may
find each other's first commits; the later one then reads its partitions from the beginning. That repeats old records,
and loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.offsets import read_position
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.model import TopicPartition


class OffsetSource(Protocol):
    """What of `confluent_kafka.Consumer` is needed here."""

    def committed(self, partitions: list[RawPartition], timeout: float = ...) -> list[RawPartition]: ...
    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = ..., cached: bool = ...
    ) -> tuple[int, int]: ...


HasOffsets = Callable[[float], bool]
"""Whether the group has committed an offset of any partition at all. Blocks, for the seconds given at most; raises
`KafkaException`."""


AskIds = Callable[[Collection[str], float], Mapping[str, str]]
"""The ids of topics, of those that have one. Blocks, for the seconds given at most; raises `KafkaException`."""


class Start(NamedTuple):
    """Where to start; `offset` None is the beginning. `commit`: commit it at once.

    `metadata`: what was committed with the offset.
    """

    offset: int | None
    leader_epoch: int | None
    commit: bool
    metadata: str = ""
    topic_id: str | None = None
    void: int | None = None
    """An offset that was committed in an earlier life of the topic."""


_BEGINNING: Final = Start(None, None, False)


class Found(NamedTuple):
    """The starts that are known, and why others are not; None: all are."""

    starts: dict[TopicPartition, Start]
    failure: KafkaException | None


def find_starts(
    source: OffsetSource,
    partitions: Sequence[TopicPartition],
    offset_reset: str,
    timeout: float,
    new: set[TopicPartition],
    has_offsets: HasOffsets,
    topic_ids: AskIds,
) -> Found:
    """Where these start, as far as the brokers say so within `timeout` seconds. Blocks on them.

    `topic_ids` is asked before: an offset is not to be of an earlier life than the id that goes with it.

    `new`: those that were found to be of a group without offsets, now or when they were asked for before. That is
    remembered, since it stays true of them: while they are ours, and wait, the commits of others, which began already,
    say nothing of them. `has_offsets` is asked only where that decides.
    Where one has no start and `offset_reset` is ``error`` the failure is ``_AUTO_OFFSET_RESET``.
    """
    until = time.monotonic() + timeout
    try:
        ids = topic_ids({one.topic for one in partitions}, _left(until))
        told = _ask_committed(source, partitions, until)
    except KafkaException as error:
        return Found({}, error)
    found = _find(source, partitions, offset_reset, until, new, has_offsets, told, ids)
    with_ids = {name: one._replace(topic_id=ids.get(name.topic)) for name, one in found.starts.items()}
    return Found(with_ids, found.failure)


def _find(
    source: OffsetSource,
    partitions: Sequence[TopicPartition],
    offset_reset: str,
    until: float,
    new: set[TopicPartition],
    has_offsets: HasOffsets,
    told: Sequence[RawPartition],
    ids: Mapping[str, str],
) -> Found:
    failure = _failure_of(told)
    known = {name: one for name, one in zip(partitions, told, strict=True) if one.error is None}
    starts = {
        name: _committed_start(name, one, ids.get(name.topic))
        for name, one in known.items()
        if one.offset >= 0
    }
    missing = [name for name in known if name not in starts]
    if offset_reset == "latest":
        return Found(starts, _find_latest(source, missing, starts, new, has_offsets, until) or failure)
    if offset_reset == "error" and missing:
        return Found({}, KafkaException(KafkaError(KafkaError._AUTO_OFFSET_RESET, _nowhere(missing))))
    return Found({**starts, **dict.fromkeys(missing, _BEGINNING)}, failure)


def _nowhere(missing: Sequence[TopicPartition]) -> str:
    topic, number = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"no committed offset of {topic}[{number}]{more}"


def _find_latest(
    source: OffsetSource,
    missing: Sequence[TopicPartition],
    starts: dict[TopicPartition, Start],
    new: set[TopicPartition],
    has_offsets: HasOffsets,
    until: float,
) -> KafkaException | None:
    """Add to `starts` those that nobody committed, one by one: what is known of one must not wait for another.

    Gives the first failure.
    """
    failures: list[KafkaException] = []
    undecided = [one for one in missing if one not in new]
    if undecided:
        try:
            # One of those that were asked for has an offset? Then no further question decides.
            if starts or has_offsets(_left(until)):
                starts.update(dict.fromkeys(undecided, _BEGINNING))
            else:
                new.update(undecided)
        except KafkaException as error:
            failures.append(error)
    for name in (one for one in missing if one in new):
        try:
            starts[name] = _end(source, name, until)
        except KafkaException as error:
            failures.append(error)
            if time.monotonic() >= until:
                break
    return next(iter(failures), None)


def _end(source: OffsetSource, name: TopicPartition, until: float) -> Start:
    _, end = source.get_watermark_offsets(RawPartition(*name), timeout=_left(until))
    return Start(end, None, True)


def _ask_committed(
    source: OffsetSource, partitions: Iterable[tuple[str, int]], until: float
) -> list[RawPartition]:
    asked = [RawPartition(topic, number) for topic, number in partitions]
    return source.committed(asked, timeout=_left(until))


def _failure_of(told: Iterable[RawPartition]) -> KafkaException | None:
    """Why of one it was not told what is committed: "unknown" must not be taken for "none"."""
    return next((KafkaException(one.error) for one in told if one.error is not None), None)


def _committed_start(name: TopicPartition, told: RawPartition, topic_id: str | None) -> Start:
    position = read_position(told)
    if offset_map.is_void(position.metadata, told.offset, where=map_place(name), topic_id=topic_id):
        return _BEGINNING._replace(metadata=position.metadata, void=told.offset)
    return Start(told.offset, position.leader_epoch, False, position.metadata)


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())
