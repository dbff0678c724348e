"""How the consumer's thread reaches the event loop: it waits for a listener at a rebalance, and posts news.

**A listener must never await its source**: the thread that would do the source's work is waiting for the listener.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from consumer.adapters.kafka.client_errors import OnError, ignore_error
from consumer.adapters.thread import post
from consumer.engine.messages import Assignment, BrokersSilent, BrokerStats, GroupSize, TopicIds
from consumer.engine.model import Position, TopicPartition

_NOTIFY_TIMEOUT: Final = 10.0
"""Seconds for the listener's `assigned` and `lost`, which have nothing to wait for."""

OnNews = Callable[[TopicIds | GroupSize | BrokerStats | BrokersSilent], None]
"""Called on the event loop every few seconds: the ids of the held topics, how many members hold partitions, what
the consumer measured of its brokers, or that none of them answers."""

_Answer = TypeVar("_Answer")


class AssignmentListener(Protocol):
    """Its methods are called on the event loop and must not await the source."""

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Take note that these partitions are read from now on. None of their records was handed out before."""


class SourceListener(AssignmentListener, Protocol):
    """The listener of a member of a group, whose partitions may also be revoked or lost."""

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Drain these partitions, then return what to commit. Cancelled after its time limit; then `lost` follows."""

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Drop these partitions, which already belong to another member; commit nothing."""


class Hooks:
    """Calls from the consumer's thread to the event loop. Made on the loop. `counts_members`: whether to ask the
    brokers how many members the group has, and report it. `revoke_timeout`: seconds for the listener to drain.

    `assigned`, `revoked` and `lost` block the thread until the listener has answered, bounded. They raise
    `TimeoutError`, and any error of the listener. The other methods return at once.
    """

    def __init__(
        self,
        listener: SourceListener,
        *,
        on_error: OnError = ignore_error,
        on_news: OnNews = lambda news: None,
        counts_members: bool = False,
        revoke_timeout: float = 20.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self.on_error = on_error
        """`post_error` on the event loop: heard at once, also in the last turn of a stop."""
        self.post_error: OnError = partial(post, self._loop, on_error)
        """Reports something that went wrong and recovers by itself."""
        self.report: OnNews = partial(post, self._loop, on_news)
        self.counts_members = counts_members
        self._revoke_timeout = revoke_timeout
        self._given_up = False
        self._asked: concurrent.futures.Future[Any] | None = None
        # Used on the event loop:
        self.epochs: dict[tuple[str, int], int] = {}
        """Epochs of the partitions that are assigned to the listener."""
        self.draining = False
        """Whether the listener is draining partitions that are being revoked."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Report these partitions as assigned."""

        async def report() -> None:
            self.epochs.update({(one.topic, one.partition): one.epoch for one in assignments})
            await self._listener.assigned(assignments)

        self._ask(report(), _NOTIFY_TIMEOUT)

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Have the listener drain these partitions, which are being revoked; return what to commit of them."""

        async def ask() -> Sequence[Position]:
            self.draining = True
            try:
                return await self._listener.revoked(partitions)
            finally:
                # Even if the listener failed, the partitions are revoked, and nothing of them may be committed any
                # more.
                self.draining = False
                for one in partitions:
                    self.epochs.pop(one, None)

        return self._ask(ask(), self._revoke_timeout)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Report these partitions as lost."""

        async def report() -> None:
            for one in partitions:
                self.epochs.pop(one, None)
            await self._listener.lost(partitions)

        self._ask(report(), _NOTIFY_TIMEOUT)

    def give_up(self) -> None:
        """Stop waiting for the listener, now and later. Called on the event loop."""
        self._given_up = True
        if self._asked is not None:
            self._asked.cancel()

    def _ask(self, question: Coroutine[Any, Any, _Answer], timeout: float) -> _Answer:
        if self._given_up or self._loop.is_closed():
            question.close()  # else Python warns that it was never awaited
            raise TimeoutError
        # This thread is inside a poll, in a rebalance callback: until it returns, neither the poll nor the group's
        # rebalance goes on. `give_up` ends the wait through `_asked`.
        self._asked = asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return asked.result(timeout)
        except (TimeoutError, concurrent.futures.CancelledError):  # too late, or given up
            asked.cancel()
            raise TimeoutError from None
        finally:
            self._asked = None
