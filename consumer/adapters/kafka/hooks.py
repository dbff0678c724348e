"""How the consumer's thread reaches the event loop: rebalances to a listener, which may take its time, and trouble.

**A listener must never await its source**: the thread that would do the work is the one that waits for the listener.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from consumer.adapters.kafka.configuration import OnBrokers
from consumer.adapters.kafka.trouble import OnTrouble
from consumer.adapters.thread import post
from consumer.engine.messages import Assignment, BrokerTimes
from consumer.engine.model import Position, TopicPartition

_TELL_TIMEOUT: Final = 10.0
"""Seconds for the listener to take note of what it need not wait for: assigned, lost."""

OnTopicIds = Callable[[Mapping[str, str]], None]
"""Called on the event loop every few seconds with the ids of the topics that are held."""
OnGroupSize = Callable[[int], None]
"""Called on the event loop every few seconds with the number of members that hold partitions."""

_Answer = TypeVar("_Answer")


class AssignmentListener(Protocol):
    """Called on the event loop with what is read. It must not await the source."""

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These are read from now on. None of their records was handed out before."""


class SourceListener(AssignmentListener, Protocol):
    """The same for a member of a group, whose partitions may also go."""

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Drain these, then return what to commit. Cancelled after its time limit; `lost` follows then."""

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These already belong to another member: drop them, commit nothing."""


class Hooks:
    """What the thread calls. `assigned`, `revoked` and `lost` block it until the listener has answered, bounded.

    They raise `TimeoutError`, and whatever the listener raises; the others return at once. `revoke_timeout`: seconds
    for the listener to drain.
    """

    def __init__(
        self,
        listener: SourceListener,
        on_trouble: OnTrouble,
        on_topic_ids: OnTopicIds,
        on_group_size: OnGroupSize | None,
        on_brokers: OnBrokers,
        revoke_timeout: float,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        """Set before the thread begins."""
        self.listener = listener
        self._on_trouble = on_trouble
        self._on_topic_ids = on_topic_ids
        self._on_group_size = on_group_size
        self._on_brokers = on_brokers
        self._revoke_timeout = revoke_timeout
        self._given_up = False
        self._asked: concurrent.futures.Future[Any] | None = None
        # Used on the event loop:
        self.epochs: dict[tuple[str, int], int] = {}
        """Those of the partitions that are announced to the listener."""
        self.draining = False
        """Whether the listener is draining what is about to go."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are ours now."""

        async def tell() -> None:
            self.epochs.update({(one.topic, one.partition): one.epoch for one in assignments})
            await self.listener.assigned(assignments)

        self._ask(tell(), _TELL_TIMEOUT)

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """These partitions are about to go. Returns what to commit of them."""

        async def ask() -> Sequence[Position]:
            self.draining = True
            try:
                return await self.listener.revoked(partitions)
            finally:
                # Whatever the listener did: the partitions go, and nothing of them commits any more.
                self.draining = False
                for one in partitions:
                    self.epochs.pop(one, None)

        return self._ask(ask(), self._revoke_timeout)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions are gone."""

        async def tell() -> None:
            for one in partitions:
                self.epochs.pop(one, None)
            await self.listener.lost(partitions)

        self._ask(tell(), _TELL_TIMEOUT)

    def trouble(self, code: str, text: str) -> None:
        """Something went wrong that recovers by itself."""
        post(self.loop, self._on_trouble, code, text)

    def topic_ids(self, ids: Mapping[str, str]) -> None:
        """The ids that topics have now."""
        post(self.loop, self._on_topic_ids, ids)

    def group_size(self, members: int) -> None:
        """How many members of the group hold partitions."""
        if self._on_group_size is not None:
            post(self.loop, self._on_group_size, members)

    def brokers(self, told: Sequence[BrokerTimes]) -> None:
        """What the consumer measured of its brokers."""
        post(self.loop, self._on_brokers, told)

    def give_up(self) -> None:
        """Stop waiting for the listener, now and later. Called on the event loop."""
        self._given_up = True
        if self._asked is not None:
            self._asked.cancel()

    def _ask(self, question: Coroutine[Any, Any, _Answer], timeout: float) -> _Answer:
        if self._given_up or self.loop.is_closed():
            question.close()  # else Python warns that it was never awaited
            raise TimeoutError
        # This thread is inside a poll, in a rebalance callback: until it returns, neither the poll nor the group's
        # rebalance goes on. Kept, so that `give_up` can end the wait.
        self._asked = asked = asyncio.run_coroutine_threadsafe(question, self.loop)
        try:
            return asked.result(timeout)
        except (TimeoutError, concurrent.futures.CancelledError):  # too late, or given up
            asked.cancel()
            raise TimeoutError from None
        finally:
            self._asked = None
