"""Where an assigned partition starts (the rules of ``KAFKA_AUTO_OFFSET_RESET``), and the partitions that wait for it.

It starts at the committed offset if there is one for the topic as it is. An offset that was committed
before the topic was deleted and created again has no meaning now: then it starts at the beginning,
whatever the setting. Without a committed offset:

* ``earliest``: the beginning.
* ``error``: nowhere, which ends the run.
* ``latest``: the end as it is now, as an explicit offset that is then committed at once, so that a crash before the
  first settlement cannot skip records that came before it. This applies only to a group that has no offsets yet of any
  topic, subscribed or not. In a group that has offsets, a partition without one is new: its topic was created or added
  to the subscription since, or the partition was added to its topic, or the group's first run never got to it. Its
  records must not be skipped, so it starts at the beginning.

An offset out of range never leads to the end: librdkafka is configured with ``earliest`` or ``error``. librdkafka
decides nothing else about starts.

*Partitions that wait* (`PendingPartitions`). Under a moving or loading coordinator the question for the committed
offsets fails at once. A partition whose start is not known is not handed to librdkafka at all: it waits, and the
question is asked again between the polls until it is answered, or the partition is revoked.

During a question the group may have reassigned the partition, which only a poll shows: so there is one between the
answer (`PendingPartitions.ask`) and its use (`PendingPartitions.take`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.client_errors import as_fatal, cause_of, describe_error
from consumer.adapters.kafka.commits import read_position
from consumer.adapters.kafka.configuration import time_left
from consumer.engine.messages import Assignment
from consumer.engine.model import TopicPartition
from consumer.engine.records.offset_map import is_void

# Seconds for the first question. Each question that times out doubles them.
_PATIENCE: Final = 2.0
# For the longest: an answer to a commit that waits behind it must still come in time.
_MAX_PATIENCE: Final = 5.0
_ASK_EVERY: Final = 0.5
"""Seconds between two questions, at least."""
_BEGINNINGS: Final = 1.0
"""Seconds for the question where logs begin, at most: it blocks the polls, and is not needed for reading."""
_NO_EPOCH: Final = 0
"""Epoch of a partition that waits; no assignment has this number."""


@dataclass(eq=False, repr=False)
class PendingPartitions:
    """The partitions that wait for their start. Used in the consumer's thread."""

    source: Consumer
    offset_reset: str
    _: KW_ONLY
    has_offsets: Callable[[float], bool]
    """Returns whether the group has committed an offset of any partition; called only where that decides. Blocks for
    at most the seconds given; raises `KafkaException`."""
    topic_ids: Callable[[Collection[str], float], Mapping[str, str]]
    """`TopicIdWatch.ask`."""
    whole: bool
    """Whether all partitions have to start together: an eager group assigns all at once."""
    on_error: Callable[[str, str], None]
    """Called for each question that is not answered in full."""
    begun: bool = False
    """Whether any partition has started, with this client or an earlier one. Then the group is not new, even if the
    brokers have deleted its offsets."""
    new: set[TopicPartition] = field(default_factory=set)
    """Partitions that were assigned when the group had no offsets. They stay here while they wait: commits of other
    partitions, which have started since, do not change where these start."""

    def __post_init__(self) -> None:
        self._patience = _PATIENCE
        self.waiting: dict[TopicPartition, Assignment | None] = {}
        """The waiting partitions, with their starts as far as known. They get an epoch only when they start. Other
        threads may read how many there are."""
        self._ask_due = 0.0

    def add(self, names: Sequence[TopicPartition]) -> None:
        """Add partitions that were assigned. The next `ask` asks without delay."""
        if names:
            self.waiting.update(dict.fromkeys(names))
            self._ask_due = 0.0

    def discard(self, name: TopicPartition) -> None:
        """Remove a partition that has started or is not ours any more."""
        self.waiting.pop(name, None)
        self.new.discard(name)
        if not self.waiting:
            self._patience = _PATIENCE

    def is_due(self, now: float) -> bool:
        """Return whether it is time (monotonic) to ask for a start."""
        return bool(self.waiting) and now >= self._ask_due and None in self.waiting.values()

    def ask(self) -> bool:
        """Ask where the waiting partitions start, if it is time to. Return whether some can start after the next poll.

        Raises `consumer.errors.KafkaError` for a final refusal.
        """
        unknown = [name for name, start in self.waiting.items() if start is None]
        begun = time.monotonic()
        if unknown and begun >= self._ask_due:
            try:
                # A question blocks the polls: it gets little time at first, and more after each time-out.
                self._find(unknown, begun + self._patience)
            except KafkaException as failure:
                self._not_yet(cause_of(failure), time.monotonic() - begun)
        return bool(self._startable())

    def take(self) -> dict[TopicPartition, Assignment]:
        """Remove the partitions that can start, and return them in order."""
        startable = self._startable()
        self.begun = self.begun or bool(startable)
        for name in startable:
            self.discard(name)
        return startable

    def _find(self, names: Sequence[TopicPartition], until: float) -> None:
        """Find where these partitions start, as far as the brokers answer until `until` (monotonic). Blocks.

        Raises `KafkaException` if the start of any is not known then: ``_AUTO_OFFSET_RESET`` if it has no committed
        offset and the setting is ``error``.
        """
        # The member asks for offsets itself, since librdkafka's own question gives up after three tries while a
        # coordinator moves: the member would hold its partitions and read nothing. The ids first: an offset must not
        # belong to an earlier topic than the id that goes with it.
        ids = self.topic_ids({one.topic for one in names}, time_left(until, 0.0))
        answers = self.source.committed([RawPartition(*one) for one in names], timeout=time_left(until, 0.0))
        starts: dict[TopicPartition, Assignment] = {}
        missing: list[TopicPartition] = []
        # A start that failed is asked for again and never guessed: the beginning would repeat a topic, the end would
        # skip records, and either would lose the offset map of the committed offset.
        failures: list[KafkaException] = []
        for name, one in zip(names, answers, strict=True):
            if one.error is not None:  # an error must not be taken for "no committed offset"
                failures.append(KafkaException(one.error))
                continue
            topic_id, position = ids.get(name.topic), read_position(one)
            beginning = Assignment(*name, _NO_EPOCH, None, False, topic_id=topic_id)
            if one.offset < 0:
                missing.append(name)
                starts[name] = beginning
            elif is_void(position, topic_id):
                starts[name] = beginning._replace(metadata=position.metadata, void=one.offset)
            else:
                starts[name] = Assignment(*name, _NO_EPOCH, one.offset, False, *position[3:], topic_id)
        if self.offset_reset == "error" and missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            text = f"no committed offset of {missing[0]}{more}"
            raise KafkaException(KafkaError(KafkaError._AUTO_OFFSET_RESET, text))
        self._find_beginnings(starts, until)
        if self.offset_reset == "latest":
            new = {name: starts.pop(name) for name in missing}
            failures = [*self._find_latest(new, until, begun=self.begun or bool(starts)), *failures]
        self.waiting.update(starts)
        if failures:
            raise failures[0]

    def _find_beginnings(self, starts: dict[TopicPartition, Assignment], until: float) -> None:
        """Note where the logs begin that are read from their beginning: what is removed before it is read is reported.

        No start waits for this: a partition may have no leader now.
        """
        asked = [name for name, one in starts.items() if one.start is None]
        if not asked:
            return
        try:
            # A question for a time, which the beginning may stand for: one request to each leader.
            raw = [RawPartition(*name, OFFSET_BEGINNING) for name in asked]
            answers = self.source.offsets_for_times(raw, timeout=min(_BEGINNINGS, time_left(until, 0.0)))
        except KafkaException:
            return
        for name, one in zip(asked, answers, strict=True):
            if one.error is None and one.offset >= 0:
                starts[name] = starts[name]._replace(beginning=one.offset)

    def _find_latest(
        self, missing: Mapping[TopicPartition, Assignment], until: float, *, begun: bool
    ) -> Iterator[KafkaException]:
        """Find where partitions without a committed offset start, one by one: a known start must not wait for another.

        Yields what fails. `begun`: the group is known not to be new.
        """
        undecided = {name: one for name, one in missing.items() if name not in self.new}
        try:
            # If one of the partitions has an offset, no further question is needed. The brokers delete offsets together
            # with a topic: so `begun` remembers that the group was not new. (Two members of a new group that ask at the
            # same moment may find each other's first commits; the later one then reads its partitions from the
            # beginning. That repeats old records and loses none.)
            if undecided and (begun or self.has_offsets(time_left(until, 0.0))):
                self.waiting.update(undecided)
            else:
                self.new.update(undecided)
        except KafkaException as error:
            yield error
        for name in (one for one in missing if one in self.new):
            try:
                # An explicit offset, committed at once: a crash before the first settlement must not skip
                # records that come before it.
                _, end = self.source.get_watermark_offsets(RawPartition(*name), timeout=time_left(until, 0.0))
                self.waiting[name] = missing[name]._replace(start=end, commit_start=True, beginning=None)
            except KafkaException as error:
                yield error
                if time.monotonic() >= until:
                    break

    def _startable(self) -> dict[TopicPartition, Assignment]:
        # A known start does not wait for another, unless all partitions have to start together.
        if not self.waiting:
            return {}
        found = {name: start for name in sorted(self.waiting) if (start := self.waiting[name]) is not None}
        return {} if self.whole and len(found) < len(self.waiting) else found

    def _not_yet(self, why: KafkaError, took: float) -> None:
        if (fatal := as_fatal(why)) is not None:
            raise fatal
        if took >= self._patience:
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
        self._ask_due = time.monotonic() + max(_ASK_EVERY, took)  # polls get as much time as questions
        # Put the first partition last: a question that times out must not keep others from being asked.
        first = next((name for name, start in self.waiting.items() if start is None), None)
        if first is not None:
            self.waiting[first] = self.waiting.pop(first)
        waiting = sum(start is None for start in self.waiting.values())
        waits = f"{waiting} partitions wait" if waiting > 1 else "a partition waits"
        self.on_error(
            why.name(), f"{waits} for the brokers to say where to start: asking again ({describe_error(why)})"
        )
