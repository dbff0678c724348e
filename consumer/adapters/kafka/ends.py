"""Where the logs of the held partitions begin and end, and up to where each was read: for lag and the page.

The member's own consumer knows most of it from its fetches, without a question to the brokers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.trouble import OnTrouble, cause_of
from consumer.engine.model import TopicPartition

_EVERY: Final = 0.25
"""Seconds between two looks at the ends that came with fetched records."""
_ASK_EVERY: Final = 1.0
"""Seconds between two questions for one partition's end, while paused and nothing is fetched."""
_ASK_TIMEOUT: Final = 1.0


@dataclass(eq=False)
class Ends:
    """What is known of the held partitions. Updated in the consumer's thread.

    `begins`, `ends` and `reached` may be read by other threads: each look replaces the mappings and changes none.
    """

    consumer: Consumer
    on_trouble: OnTrouble
    begins: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Where logs begin."""
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)
    """High watermarks."""
    reached: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Up to which offset each was read, transaction markers included."""
    due: float = 0.0
    """When to look again (monotonic)."""
    _of_fetches: dict[TopicPartition, int] = field(default_factory=dict)
    _ask_due: float = 0.0
    _asked: int = 0

    def known(self, name: TopicPartition) -> tuple[int, int]:
        """Where this log begins and ends, by its last fetch; a number below 0 is not known."""
        return self.consumer.get_watermark_offsets(RawPartition(*name), cached=True)

    def look(
        self, held: Collection[TopicPartition], unread: Mapping[TopicPartition, int], *, paused: bool
    ) -> bool:
        """Look again. Return True if an end went back, as it does where a log was cut or its topic created again.

        `unread`: the first offset that was not handed on, for each partition where fetched records wait or are damaged.
        """
        now = time.monotonic()
        self.due = now + _EVERY
        # librdkafka knows an end from its last fetch, and none before the first: until it hears another one, the
        # answer to our own question stands.
        watermarks = {name: self.known(name) for name in held}
        before, self._of_fetches = self._of_fetches, {name: end for name, (_, end) in watermarks.items()}
        known = {
            name: end if end >= 0 and end != before.get(name) else self.ends.get(name, end)
            for name, end in self._of_fetches.items()
        }
        # While it is paused, the consumer fetches nothing and hears of no end.
        if known and paused and now >= self._ask_due:
            # One partition, another one each time: the question blocks the polls.
            self._asked += 1
            name = sorted(known)[self._asked % len(known)]
            try:
                _, known[name] = self.consumer.get_watermark_offsets(
                    RawPartition(*name), timeout=_ASK_TIMEOUT
                )
            except KafkaException as error:
                self.on_trouble(cause_of(error).name(), "the broker did not say where a partition ends")
            self._ask_due = time.monotonic() + _ASK_EVERY
        went_back = any(0 <= end < self.ends.get(name, 0) for name, end in known.items())
        positions = self.consumer.position([RawPartition(*name) for name in held])
        reached = {
            TopicPartition(one.topic, one.partition): one.offset for one in positions if one.offset >= 0
        }
        self.begins = {name: begin for name, (begin, _) in watermarks.items() if begin >= 0}
        self.ends = {name: end for name, end in known.items() if end >= 0}
        self.reached = {**reached, **unread}  # new mappings, never changed: other threads read them
        return went_back
