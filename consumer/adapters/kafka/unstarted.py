"""Partitions that were assigned and are not read yet, since the brokers have not said where to start.

Under a moving or loading coordinator the question for the committed offsets fails at once. librdkafka, when it is left
to find a start by itself, tries thrice and then never again: the member stays in the group, holds its partitions, and
reads nothing. So a partition whose start is not known is not handed to librdkafka at all. It waits here, and the
question is asked again with the polls until it is answered, or the partition is taken away.

A guess would be worse than a wait: the beginning would repeat a topic, the end skip records, and an unknown start costs
the offset map that came with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaError as RawError
from confluent_kafka import KafkaException

from consumer.adapters.kafka.starts import OffsetSource, Start, find_starts
from consumer.adapters.kafka.trouble import as_fatal, describe_error, exception_error
from consumer.core.model import TopicPartition

_ASK_EVERY: Final = 0.5
"""Seconds between a refusal and the next question."""


class Unstarted:
    """The partitions that wait, and the question they wait for. Lives in the consumer's thread.

    `timeout`: seconds for each question. `on_trouble` is told of each question without an answer: a code and a line.
    """

    def __init__(
        self, source: OffsetSource, offset_reset: str, timeout: float, on_trouble: Callable[[str, str], None]
    ) -> None:
        self._source = source
        self._offset_reset = offset_reset
        self._timeout = timeout
        self._on_trouble = on_trouble
        self._waiting: dict[TopicPartition, None] = {}
        self._ask_due = 0.0

    def add(self, names: Sequence[TopicPartition]) -> None:
        """These were assigned; the next `find` asks without delay."""
        self._waiting.update(dict.fromkeys(names))
        self._ask_due = 0.0

    def discard(self, name: TopicPartition) -> None:
        """This one is not ours any more."""
        self._waiting.pop(name, None)

    def find(self) -> list[tuple[TopicPartition, Start]]:
        """All that wait, with their starts: they wait no more. Empty if none does or their starts are not known yet.

        Raises `consumer.errors.KafkaError` for a refusal that does not pass.
        """
        if not self._waiting or time.monotonic() < self._ask_due:
            return []
        names = list(self._waiting)
        try:
            starts = find_starts(self._source, names, self._offset_reset, self._timeout)
        except KafkaException as error:
            self._not_yet(exception_error(error))
            return []
        self._waiting.clear()
        return list(zip(names, starts, strict=True))

    def _not_yet(self, why: RawError) -> None:
        if (fatal := as_fatal(why)) is not None:
            raise fatal
        self._ask_due = time.monotonic() + _ASK_EVERY
        count = len(self._waiting)
        waits = f"{count} partitions wait" if count > 1 else "a partition waits"
        self._on_trouble(
            why.name(), f"{waits} for the brokers to say where to start: asked again ({describe_error(why)})"
        )
