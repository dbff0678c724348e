"""Where an assigned partition starts (the rules of ``KAFKA_AUTO_OFFSET_RESET``), and the partitions that wait for it.

The committed offset, always, if there is one for the topic as it is. An offset that was committed in an earlier life of
the topic, before it was deleted and created again, means nothing in this one: the beginning, whatever the setting.
Without a committed offset:

* ``earliest``: the beginning.
* ``error``: nowhere, which ends the run.
* ``latest``: the end as it is now, as an explicit offset that is then committed at once, so that a crash before the
  first settlement cannot skip what came in between. This holds only for a group that has no offsets yet, of whatever
  topic, subscribed or not. Otherwise the partition is new to a group that is not: its topic was created or added to the
  subscription since, or the partition was added to its topic, or the group's first run never got to it. Its records
  must not be skipped: the beginning.

An offset out of range never leads to the end: librdkafka is configured with ``earliest`` or ``error``. Nothing else of
this is left to librdkafka. It would look for the committed offset by itself, and where a moving coordinator does not
answer, it gives up after three tries: the member then holds its partitions and reads nothing.

Two members of a new group under ``latest`` that ask at the same moment, or one of which still waits for an answer, may
find each other's first commits; the later one then reads its partitions from the beginning. That repeats old records
and loses none.

*Partitions that wait* (`Unstarted`). Under a moving or loading coordinator the question for the committed offsets fails
at once. A partition whose start is not known is not handed to librdkafka at all: it waits, and the question is asked
again between the polls until it is answered, or the partition is taken away. A guess would be worse than a wait: the
beginning would repeat a topic, the end would skip records, and an unknown start costs the offset map that came with it.

*A poll between answer and use.* A question takes its time, and meanwhile the group may have given the partition away,
which only a poll shows. So there is one between the answer (`Unstarted.ask`) and its use (`Unstarted.take`): librdkafka
takes an assignment as news that the partitions are ours, and would call those that were lost revoked. (Behind a
thousand records that were fetched ahead the poll may not hear of it. Then the broker refuses the commit.)

*Others go on.* While a question hangs, nothing polls. So it has little time at first, more each time, and the next one
waits as long as it took. What is known of one partition does not wait for another, except where all have to begin
together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.offsets import read_position
from consumer.adapters.kafka.trouble import as_fatal, describe_error, exception_error
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.model import TopicPartition

_PATIENCE: Final = 2.0
"""Seconds for the first question. Each one that hangs doubles it."""
_PATIENCE_SHARE: Final = 0.5
"""Share of `timeout`. The answer to a commit that waits for a question must still be heard in time."""
_ASK_EVERY: Final = 0.5
"""Seconds between two questions, at least."""


class OffsetSource(Protocol):
    """What is needed here of `confluent_kafka.Consumer`."""

    def committed(self, partitions: list[RawPartition], timeout: float = ...) -> list[RawPartition]: ...
    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = ..., cached: bool = ...
    ) -> tuple[int, int]: ...


HasOffsets = Callable[[float], bool]
"""Whether the group has committed an offset of any partition at all. Blocks for at most the seconds given; raises
`KafkaException`."""


AskIds = Callable[[Collection[str], float], Mapping[str, str]]
"""The ids of those topics that have one. Blocks for at most the seconds given; raises `KafkaException`."""


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
    """The offset that was committed in an earlier life of the topic, if that is so."""


_BEGINNING: Final = Start(None, None, False)


class FoundStarts(NamedTuple):
    """The starts that are known, and why others are not (None: all are known)."""

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
) -> FoundStarts:
    """Find where these start, as far as the brokers say so within `timeout` seconds. Blocks.

    `topic_ids` is asked first: an offset must not belong to an earlier life than the id that goes with it.

    `new`: those that were found to belong to a group without offsets, now or when they were asked for before. That is
    remembered, since it stays true: while they are ours and wait, the commits of others, which began already, say
    nothing about them. `has_offsets` is asked only where that decides.
    If one has no start and `offset_reset` is ``error``, the failure is ``_AUTO_OFFSET_RESET``.
    """
    until = time.monotonic() + timeout
    try:
        ids = topic_ids({one.topic for one in partitions}, _left(until))
        told = source.committed([RawPartition(*one) for one in partitions], timeout=_left(until))
    except KafkaException as error:
        return FoundStarts({}, error)
    # "Unknown" must not be taken for "none".
    failure = next((KafkaException(one.error) for one in told if one.error is not None), None)
    known = {name: one for name, one in zip(partitions, told, strict=True) if one.error is None}
    starts: dict[TopicPartition, Start] = {}
    for name, one in known.items():
        if one.offset < 0:
            continue
        position = read_position(one)
        topic_id = ids.get(name.topic)
        if offset_map.is_void(position.metadata, one.offset, where=map_place(name), topic_id=topic_id):
            starts[name] = _BEGINNING._replace(metadata=position.metadata, void=one.offset)
        else:
            starts[name] = Start(one.offset, position.leader_epoch, False, position.metadata)
    missing = [name for name in known if name not in starts]
    if offset_reset == "error" and missing:
        topic, number = missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        text = f"no committed offset of {topic}[{number}]{more}"
        return FoundStarts({}, KafkaException(KafkaError(KafkaError._AUTO_OFFSET_RESET, text)))
    if offset_reset == "latest":
        failure = _find_latest(source, missing, starts, new, has_offsets, until) or failure
    else:
        starts.update(dict.fromkeys(missing, _BEGINNING))
    return FoundStarts(
        {name: one._replace(topic_id=ids.get(name.topic)) for name, one in starts.items()}, failure
    )


def _find_latest(
    source: OffsetSource,
    missing: Sequence[TopicPartition],
    starts: dict[TopicPartition, Start],
    new: set[TopicPartition],
    has_offsets: HasOffsets,
    until: float,
) -> KafkaException | None:
    """Add to `starts` those without a committed offset, one by one: a known start must not wait for another.

    Returns the first failure.
    """
    failures: list[KafkaException] = []
    undecided = [one for one in missing if one not in new]
    if undecided:
        try:
            # If one of those that were asked for has an offset, no further question is needed.
            if starts or has_offsets(_left(until)):
                starts.update(dict.fromkeys(undecided, _BEGINNING))
            else:
                new.update(undecided)
        except KafkaException as error:
            failures.append(error)
    for name in (one for one in missing if one in new):
        try:
            _, end = source.get_watermark_offsets(RawPartition(*name), timeout=_left(until))
            starts[name] = Start(end, None, True)
        except KafkaException as error:
            failures.append(error)
            if time.monotonic() >= until:
                break
    return next(iter(failures), None)


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())


class Unstarted:
    """The partitions that wait for their start. Lives in the consumer's thread.

    `has_offsets`, `topic_ids`: see `find_starts`. `whole`: they can begin only together (an eager group assigns all at
    once). `timeout`: seconds that an answer may take. `on_trouble` is called for each question that is not answered in
    full. `begun`: this member began with partitions before, so the group is not new, whatever the brokers still know
    of it.
    """

    def __init__(
        self,
        source: OffsetSource,
        offset_reset: str,
        *,
        has_offsets: HasOffsets,
        topic_ids: AskIds,
        whole: bool,
        timeout: float,
        on_trouble: Callable[[str, str], None],
        begun: bool = False,
    ) -> None:
        self._source = source
        self._offset_reset = offset_reset
        self._has_offsets = has_offsets
        self._topic_ids = topic_ids
        self._whole = whole
        self._on_trouble = on_trouble
        self._most_patience = timeout * _PATIENCE_SHARE
        self._patience = _PATIENCE
        self._waiting: dict[TopicPartition, Start | None] = {}
        self._new: set[TopicPartition] = set()
        self.begun = begun
        """Whether any partition has begun yet."""
        self._ask_due = 0.0

    def __len__(self) -> int:
        """How many wait; may be called by other threads."""
        return len(self._waiting)

    def add(self, names: Sequence[TopicPartition]) -> None:
        """These were assigned. The next `ask` asks without delay."""
        if names:
            self._waiting.update(dict.fromkeys(names))
            self._ask_due = 0.0

    def discard(self, name: TopicPartition) -> None:
        """This one is not ours any more."""
        self._waiting.pop(name, None)
        self._new.discard(name)
        if not self._waiting:
            self._patience = _PATIENCE

    def ask(self) -> bool:
        """Ask where the waiting partitions start, if it is time to. Return whether some can begin after the next poll.

        Raises `consumer.errors.KafkaError` for a refusal that is final.
        """
        unknown = [name for name, start in self._waiting.items() if start is None]
        begun = time.monotonic()
        if unknown and begun >= self._ask_due:
            timeout = min(self._patience, self._most_patience)
            starts, failure = find_starts(
                self._source,
                unknown,
                self._offset_reset,
                timeout,
                self._new,
                self._group_has_offsets,
                self._topic_ids,
            )
            self._waiting.update(starts)
            if failure is not None:
                self._not_yet(exception_error(failure), time.monotonic() - begun, timeout)
        return bool(self._startable())

    def take(self) -> list[tuple[TopicPartition, Start]]:
        """Take those that can begin, with their starts."""
        startable = self._startable()
        self.begun = self.begun or bool(startable)
        for name, _ in startable:
            self.discard(name)
        return startable

    def _group_has_offsets(self, timeout: float) -> bool:
        """The brokers forget offsets with a topic that is deleted; we remember that our group was not new."""
        return self.begun or self._has_offsets(timeout)

    def _startable(self) -> list[tuple[TopicPartition, Start]]:
        found = sorted((name, start) for name, start in self._waiting.items() if start is not None)
        return [] if self._whole and len(found) < len(self._waiting) else found

    def _not_yet(self, why: KafkaError, took: float, timeout: float) -> None:
        if (fatal := as_fatal(why)) is not None:
            raise fatal
        if took >= timeout:
            self._patience = min(2 * self._patience, self._most_patience)
        self._ask_due = time.monotonic() + max(_ASK_EVERY, took)
        self._rotate()
        waiting = sum(start is None for start in self._waiting.values())
        waits = f"{waiting} partitions wait" if waiting > 1 else "a partition waits"
        self._on_trouble(
            why.name(), f"{waits} for the brokers to say where to start: asking again ({describe_error(why)})"
        )

    def _rotate(self) -> None:
        """Put the first one last: a question that hangs must not keep others from being asked."""
        first = next((name for name, start in self._waiting.items() if start is None), None)
        if first is not None:
            self._waiting[first] = self._waiting.pop(first)
