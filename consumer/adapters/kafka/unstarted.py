"""Partitions that were assigned and are not read yet, since the brokers have not said where to start.

Under a moving or loading coordinator the question for the committed offsets fails at once. librdkafka, when it is left
to find a start by itself, tries thrice and then never again: the member stays in the group, holds its partitions, and
reads nothing. So a partition whose start is not known is not handed to librdkafka at all. It waits here, and the
question is asked again between the polls until it is answered, or the partition is taken away.

A guess would be worse than a wait: the beginning would repeat a topic, the end skip records, and an unknown start costs
the offset map that came with it.

*Asked and taken apart.* A question takes its time, and meanwhile the group may have given the partition away, which
only a poll tells. So there is one between the answer (`Unstarted.ask`) and its use (`Unstarted.take`): librdkafka takes
an assignment as news that partitions are ours, and would call those that were lost revoked. (Behind a thousand records
that were fetched ahead the poll may not get to hear of it. Then the broker refuses what would be committed.)

*Others go on.* While a question hangs, nobody polls. So it has little time at first, more each time, and the next one
waits as long as it took. What is known of one partition does not wait for another, except where all have to begin
together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaError as RawError

from consumer.adapters.kafka.starts import AskIds, HasOffsets, OffsetSource, Start, find_starts
from consumer.adapters.kafka.trouble import as_fatal, describe_error, exception_error
from consumer.engine.model import TopicPartition

_PATIENCE: Final = 2.0
"""Seconds for the first question; each one that hangs doubles it."""
_PATIENCE_SHARE: Final = 0.5
"""Of `timeout`. A commit that waits for a question must still be heard in its own time."""
_ASK_EVERY: Final = 0.5
"""Seconds between two questions, at least."""


class Unstarted:
    """The partitions that wait, and what they wait for. Lives in the consumer's thread.

    `has_offsets`, `topic_ids`: see `find_starts`. `whole`: they can begin only together (an eager group assigns all at
    once). `timeout`: seconds that an answer may take. `on_trouble` is told of each question that is not answered in
    full: a code and a line. `begun`: this member began with partitions before, so the group is no new one, whatever
    the brokers still know of it.
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
        """Whether any began yet."""
        self._ask_due = 0.0

    def __len__(self) -> int:
        """How many wait. Any thread may ask."""
        return len(self._waiting)

    def add(self, names: Sequence[TopicPartition]) -> None:
        """These were assigned; the next `ask` asks without delay."""
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
        """Ask where those that wait start, if it is time to. Whether some can begin after the next poll.

        Raises `consumer.errors.KafkaError` for a refusal that does not pass.
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
        """Those that can begin, with their starts: they wait no more."""
        startable = self._startable()
        self.begun = self.begun or bool(startable)
        for name, _ in startable:
            self.discard(name)
        return startable

    def _group_has_offsets(self, timeout: float) -> bool:
        """The brokers forget them with a topic that is deleted; we remember that ours was no new group."""
        return self.begun or self._has_offsets(timeout)

    def _startable(self) -> list[tuple[TopicPartition, Start]]:
        found = sorted((name, start) for name, start in self._waiting.items() if start is not None)
        return [] if self._whole and len(found) < len(self._waiting) else found

    def _not_yet(self, why: RawError, took: float, timeout: float) -> None:
        if (fatal := as_fatal(why)) is not None:
            raise fatal
        if took >= timeout:
            self._patience = min(2 * self._patience, self._most_patience)
        self._ask_due = time.monotonic() + max(_ASK_EVERY, took)
        self._rotate()
        waiting = sum(start is None for start in self._waiting.values())
        waits = f"{waiting} partitions wait" if waiting > 1 else "a partition waits"
        self._on_trouble(
            why.name(), f"{waits} for the brokers to say where to start: asked again ({describe_error(why)})"
        )

    def _rotate(self) -> None:
        """Last comes what was asked for first: a question that hangs must not keep others from being asked."""
        first = next((name for name, start in self._waiting.items() if start is None), None)
        if first is not None:
            self._waiting[first] = self._waiting.pop(first)
