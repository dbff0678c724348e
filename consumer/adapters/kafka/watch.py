"""What a member watches beside its records: how far its logs reach, its topics' ids, and who is in its group.

The member's own consumer knows most ends from its fetches, without a question to the brokers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.client_errors import OnError, cause_of
from consumer.adapters.kafka.configuration import BrokerWatch
from consumer.adapters.kafka.groups import GroupWatch
from consumer.adapters.kafka.held import HeldPartitions, StartedPartition
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.engine.figures.outside import silence_of_coordinator
from consumer.engine.messages import GroupSize, TopicIds
from consumer.engine.model import TopicPartition

_EVERY: Final = 1.0
"""Seconds between two readings of the ends that came with fetched records: one takes 2 µs a partition."""
_ASK_EVERY: Final = 1.0
"""Seconds between two questions for a partition's end while the consumer is paused, so that nothing is fetched."""
_ASK_TIMEOUT: Final = 1.0


@dataclass(eq=False)
class Ends:
    """The known ends of the held partitions. Updated in the consumer's thread.

    `begins`, `ends` and `reached` may be read by other threads: each refresh replaces the mappings and changes none.
    """

    consumer: Consumer
    on_error: OnError
    begins: Mapping[TopicPartition, int] = field(default_factory=dict)
    """First offset of each log."""
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)
    """High watermark of each log."""
    reached: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Offset up to which each partition was read, transaction markers included."""
    _of_fetches: dict[TopicPartition, int] = field(default_factory=dict)
    _ask_due: float = 0.0
    _asked: int = 0

    def known(self, name: TopicPartition) -> tuple[int, int]:
        """Return where a partition's log begins and ends, by its last fetch; a number below 0 means unknown."""
        return self.consumer.get_watermark_offsets(RawPartition(*name), cached=True)

    def lags(self, started: Mapping[TopicPartition, StartedPartition]) -> list[int]:
        """Return by how many records each of these partitions lags."""
        # Behind the last record there may be markers and aborted transactions. And a partition that starts at its
        # beginning has a negative offset until a record comes.
        return [
            self.ends.get(name, 0) - max(one.next.offset, self.reached.get(name, 0), self.begins.get(name, 0))
            for name, one in started.items()
        ]

    def refresh(
        self, held: Collection[TopicPartition], unread: Mapping[TopicPartition, int], *, paused: bool
    ) -> bool:
        """Update the ends. Return True if an end went back, as when a log was cut or its topic was created again.

        `unread`: the first offset that was not handed out, for each partition whose fetched records wait or are
        damaged.
        """
        now = time.monotonic()
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
                self.on_error(cause_of(error).name(), "the broker did not say where a partition ends")
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


@dataclass(eq=False, repr=False)
class MemberWatch:
    """Refreshes what one client's member knows of its logs, topics and group, once a second, and reports what is new.

    The owner of `topic_ids` and `group` closes them.
    """

    ends: Ends
    hooks: Hooks
    topic_ids: TopicIdWatch
    group: GroupWatch
    brokers: BrokerWatch
    due: float = 0.0
    """Time of the next `refresh` (monotonic)."""

    def refresh(self, held: HeldPartitions, joining: str | None) -> bool:
        """Refresh all that is watched. `joining`: the id of a member that only the coordinator's list of members tells
        that it has joined, else None. Return whether that list names it."""
        self.due = time.monotonic() + _EVERY
        if (seconds := self.brokers.coordinator_silent) is not None:
            self.hooks.post_error("_WAIT_COORD", silence_of_coordinator(seconds).sentence)
        self._refresh_ends(held)
        if ids := self.topic_ids.poll({name.topic for name in held.started}):
            self.hooks.report(TopicIds(ids))
        return self._count_members(joining)

    def _refresh_ends(self, held: HeldPartitions) -> None:
        # The consumer counts records as read that the inbox keeps back, or that were dropped behind a damaged batch.
        unread = {**held.inbox.first_offsets(), **held.unreadable()}
        if self.ends.refresh(held.started, unread, paused=held.full):
            self.topic_ids.expire_cache()
        held.plan_turns(self.ends.lags(held.started))

    def _count_members(self, joining: str | None) -> bool:
        counts = self.hooks.counts_members
        if joining is None and not counts:
            return False
        size = self.group.poll(joining)
        if size is not None and counts:
            self.hooks.report(GroupSize(size))
        return joining in self.group.members
