"""Where the logs of the held partitions begin and end, up to where each was read, and whose turn it is to be read.

The member's own consumer knows most ends from its fetches, without a question to the brokers.

*Turns.* librdkafka names all partitions in each fetch, and looks at each of them whenever it wakes. While a thousand
lag, that costs more than the records that a fetch brings, which are those of one partition. So where many lag they are
read in groups by turns. The others rest: they are paused. A turn ends when all that was fetched is taken, or soon
after: a pause discards what was fetched ahead. A partition rests for some seconds at most, and not where few lag.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.trouble import OnTrouble, cause_of
from consumer.engine.model import TopicPartition

_EVERY: Final = 1.0
"""Seconds between two readings of the ends that came with fetched records: one takes 2 µs a partition."""
_ASK_EVERY: Final = 1.0
"""Seconds between two questions for a partition's end while the consumer is paused, so that nothing is fetched."""
_ASK_TIMEOUT: Final = 1.0

_LAGS: Final = 64
"""Records by which a partition lags to count: more than what comes between two fetches of it at 50,000 a second."""
_GROUP: Final = 64
"""Partitions that are read at a time, at least; with two groups of those that lag, turns begin."""
_MOST_GROUPS: Final = 16
_TURN: Final = 0.1
"""Seconds of a turn if all that was fetched has been taken then."""
_LONGEST_TURN: Final = 0.3
"""Seconds of a turn, at the most: times the most groups, the longest that a partition rests."""


@dataclass(eq=False)
class Ends:
    """The known ends of the held partitions. Updated in the consumer's thread.

    `begins`, `ends` and `reached` may be read by other threads: each look replaces the mappings and changes none.
    """

    consumer: Consumer
    on_trouble: OnTrouble
    begins: Mapping[TopicPartition, int] = field(default_factory=dict)
    """First offset of each log."""
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)
    """High watermark of each log."""
    reached: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Offset up to which each partition was read, transaction markers included."""
    due: float = 0.0
    """Time of the next `look` (monotonic)."""
    _of_fetches: dict[TopicPartition, int] = field(default_factory=dict)
    _ask_due: float = 0.0
    _asked: int = 0

    def known(self, name: TopicPartition) -> tuple[int, int]:
        """Return where a partition's log begins and ends, by its last fetch; a number below 0 means unknown."""
        return self.consumer.get_watermark_offsets(RawPartition(*name), cached=True)

    def look(
        self, held: Collection[TopicPartition], unread: Mapping[TopicPartition, int], *, paused: bool
    ) -> bool:
        """Update the ends. Return True if an end went back, as when a log was cut or its topic was created again.

        `unread`: the first offset that was not handed out, for each partition whose fetched records wait or are
        damaged.
        """
        now = time.monotonic()
        self.due = now + _EVERY
        # librdkafka knows an end from its last fetch, and none before the first fetch. The answer to our own question
        # counts until a fetch brings another end.
        watermarks = {name: self.known(name) for name in held}
        before, self._of_fetches = self._of_fetches, {name: end for name, (_, end) in watermarks.items()}
        known = {
            name: end if end >= 0 and end != before.get(name) else self.ends.get(name, end)
            for name, end in self._of_fetches.items()
        }
        # While it is paused, the consumer fetches nothing and learns of no end.
        if known and paused and now >= self._ask_due:
            # Ask for one partition at a time, in turn: the question blocks the polls.
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
        self.reached = {**reached, **unread}  # other threads read these mappings: replace, never change them
        return went_back


class Held(Protocol):
    """A held partition, as `starts.StartedPartition` is."""

    next: RawPartition
    """Where reading goes on."""


class Turns:
    """Whose turn it is to be read, where many partitions lag. Times are monotonic."""

    def __init__(self) -> None:
        self.resting: set[TopicPartition] = set()
        """The partitions that wait for their turn."""
        self.due = math.inf
        """When the next turn may begin; infinite: there are no turns, or all is paused. After such a pause, which has
        discarded what was fetched ahead, the next turn may begin at once."""
        self._groups = 1
        self._turn = 0

    def look(self, held: Mapping[TopicPartition, Held], ends: Ends, now: float) -> None:
        """Take how far the held partitions lag. `now`: when turns may begin; infinite without room."""
        lagging = 0
        for name, one in held.items() if len(held) >= 2 * _GROUP else ():
            # Behind the last record there may be markers and aborted transactions. And a partition that starts at its
            # beginning has a negative offset until a record comes.
            read = max(one.next.offset, ends.reached.get(name, 0), ends.begins.get(name, 0))
            lagging += ends.ends.get(name, 0) - read >= _LAGS
        self._groups = min(_MOST_GROUPS, len(held) // _GROUP) if lagging >= 2 * _GROUP else 1
        if self._groups > 1 and self.due == math.inf:
            self.due = now

    def next(self, held: Collection[TopicPartition], drained: bool, now: float) -> set[TopicPartition]:
        """Begin the next turn, if it is time. Return the partitions that rest from now on, or have rested until now.

        `drained`: nothing that was fetched is left.
        """
        if now < self.due + (0.0 if drained else _LONGEST_TURN - _TURN):
            return set()
        before, self._turn = self.resting, self._turn + 1
        self.resting = {name for at, name in enumerate(held) if (at - self._turn) % self._groups}
        self.due = now + _TURN if self._groups > 1 else math.inf
        return before ^ self.resting
