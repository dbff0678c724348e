"""The consumer as the event loop sees it: chunks of records, assignments to a listener, commits of positions.

One thread of its own (`OwnThread`) owns the `confluent_kafka.Consumer`, through `GroupMember`. `fetch`, `commit` and
`close` are jobs for it; rebalance callbacks run in it, inside a poll, and wait for the listener on the event loop. So
**a listener must never await this source**: the thread that would do the work is the one that waits.

::

    event loop                              own thread
    await fetch(room, timeout)  ----------> obey room (pause | resume), consume
                                              rebalance callback:
    await listener.revoked(...) <-----------    wait, bounded
            '-- positions ----------------->    commit them, synchronously, bounded; unassign
    chunks                      <---------- group, drop what is not ours any more
    await commit(positions)     ----------> send; the answer comes in a later fetch

*Room is a level.* Every fetch says how much room there is. Once it has been 0 for a second, all partitions that are
assigned, now or later, are paused; any other value resumes them; polling goes on, or the group would expel the member.
For up to a second nothing is polled and nothing paused: a pause costs what was fetched ahead, and up to a second after
the resume.

*Cancelling* a fetch loses nothing: what it consumed is kept and handed out by the next one.

*Commits* are sent for a partition only while the epoch is held that was announced when they were asked for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import confluent_kafka

from consumer.adapters.kafka.commits import CommitResult
from consumer.adapters.kafka.configuration import (
    Config,
    RawConsumer,
    consumer_config,
    dead_letter_pattern,
    uses_consumer_protocol,
)
from consumer.adapters.kafka.groups import group_has_offsets
from consumer.adapters.kafka.member import GroupMember
from consumer.adapters.kafka.topic_ids import IdSource, TopicIds
from consumer.adapters.kafka.trouble import OnTrouble, ignore_trouble
from consumer.adapters.thread import OwnThread, post, run_blocking, settle
from consumer.engine.messages import Assignment, EndOffsets, NewLife
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError, SettingsError

_TELL_TIMEOUT = 10.0
"""Seconds for the listener to take note of what it need not wait for: assigned, lost."""

OnTopicIds = Callable[[Mapping[str, str]], None]
"""Called on the event loop every few seconds with the ids of the topics that are held."""

_Answer = TypeVar("_Answer")


def ignore_topic_ids(ids: Mapping[str, str]) -> None:
    """An `OnTopicIds` that does nothing."""


class SourceListener(Protocol):
    """What is called when partitions come and go, on the event loop. It must not await the source."""

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These are ours from now on. None of their records was handed out before."""

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Drain these, then return what to commit. Cancelled after its time limit; `lost` follows then."""

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These already belong to another member: drop them, commit nothing."""


class KafkaSource:
    """A member of a consumer group.

    `topics`: names, or patterns that start with ``^``; a pattern never matches a topic that `dead_letter_topic`
    (a template with ``{topic}``) can name. `offset_reset`: ``earliest``, ``latest`` or ``error``, see
    `consumer.adapters.kafka.starts`. In seconds: `revoke_timeout` for the listener to drain, `commit_timeout` for the
    answer to a commit, `request_timeout` for other questions to the brokers.

    Raises `SettingsError` for a pattern under KIP-848: there the broker matches it, and cannot exclude topics.
    """

    def __init__(
        self,
        config: Config,
        topics: Sequence[str],
        *,
        listener: SourceListener,
        dead_letter_topic: str = "{topic}.dead-letters",
        offset_reset: str = "earliest",
        on_trouble: OnTrouble = ignore_trouble,
        on_topic_ids: OnTopicIds = ignore_topic_ids,
        revoke_timeout: float = 20.0,
        commit_timeout: float = 10.0,
        request_timeout: float = 10.0,
        make_consumer: Callable[[dict[str, Any]], RawConsumer] = confluent_kafka.Consumer,
        make_topic_ids: Callable[[Config], IdSource] = TopicIds,
    ) -> None:
        pattern = next((topic for topic in topics if topic.startswith("^")), None)
        if pattern is not None and uses_consumer_protocol(config):
            raise SettingsError(
                f"KAFKA_TOPICS has the pattern {pattern} and KAFKA_GROUP_PROTOCOL is consumer: the broker would match "
                "dead-letter topics too; name the topics, or set KAFKA_GROUP_PROTOCOL=classic"
            )
        ignore = None if pattern is None else dead_letter_pattern(dead_letter_topic)
        complete = consumer_config(config, offset_reset=offset_reset, ignore=ignore)
        self._ready: deque[Chunk] = deque()
        self._make_member = functools.partial(
            GroupMember,
            complete,
            ready=self._ready,
            offset_reset=offset_reset,
            has_offsets=functools.partial(group_has_offsets, complete),
            topic_ids=make_topic_ids(config),
            timeout=request_timeout,
            make_consumer=make_consumer,
        )
        self._empty_is_silent = uses_consumer_protocol(config)
        """Whether an assignment of no partition brings no callback."""
        self._topics = list(topics)
        self._listener = listener
        self._on_trouble = on_trouble
        self._on_topic_ids = on_topic_ids
        self._revoke_timeout = revoke_timeout
        self._commit_timeout = commit_timeout
        self._thread = OwnThread("pinstream-kafka-consumer")
        self._member: GroupMember | None = None
        self._hooks: _LoopHooks | None = None
        self._announced: dict[tuple[str, int], int] = {}
        self._rebalancing = False

    async def start(self) -> None:
        """Join the group. Raises `SettingsError` naming the property that librdkafka refuses."""
        self._hooks = hooks = _LoopHooks(
            asyncio.get_running_loop(), self, self._on_trouble, self._on_topic_ids, self._revoke_timeout
        )

        def join() -> GroupMember:
            member = self._make_member(hooks)
            member.join(self._topics)
            return member

        self._member = await self._thread.run(join)

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """At most `room` (and 1000) records, as soon as there are any; none after `timeout` seconds.

        Call it all the time, also with room 0: it polls, rebalances, and brings the answers to commits.
        Raises `KafkaError` for what does not recover by itself, and whatever the listener raised.
        """
        await self._thread.run(self._joined().fetch, room, timeout)
        chunks = [self._ready.popleft() for _ in range(len(self._ready))]
        return [one for one in chunks if self._announced.get((one.topic, one.partition)) == one.epoch]

    async def commit(self, positions: Sequence[Position]) -> CommitResult:
        """Commit these with their leader epochs: one try, within the time limit. Needs fetches to go on.

        `CommitResult.failure` is a librdkafka code: ``_ASSIGNMENT_LOST`` for partitions that went meanwhile,
        ``_TIMED_OUT``, ``STALE_MEMBER_EPOCH``, …; ``REBALANCE_IN_PROGRESS`` at once while the listener drains.
        """
        if self._rebalancing:
            return CommitResult((), "REBALANCE_IN_PROGRESS")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[CommitResult] = loop.create_future()
        epochs = [self._announced.get((one.topic, one.partition)) for one in positions]
        send = self._joined().send_commit
        try:
            async with asyncio.timeout(self._commit_timeout):
                await self._thread.run(
                    send, positions, epochs, functools.partial(post, loop, settle, answered)
                )
                return await answered
        except TimeoutError:
            return CommitResult((), "_TIMED_OUT")

    async def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """Read these from the beginning, since their topic was created again. The listener gets them as assigned."""
        await self._thread.run(self._joined().read_anew, partitions)

    async def end_offsets(self) -> EndOffsets:
        """What is known of the assigned partitions, as last heard. Asks no broker, with one exception.

        Under KIP-848 nothing says that the group has no partition for us: then the coordinator is asked whether this is
        a member.
        """
        member = self._joined()
        known = member.end_offsets()
        if known.joined or not self._empty_is_silent:
            return known
        return replace(known, joined=await run_blocking("pinstream-kafka-group", member.is_known))

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions`, leave the group, end the thread. The listener is not called any more.

        A listener that is draining gets half of the time to end by itself. After `timeout` seconds the thread, a
        daemon, is abandoned and the trouble reported.
        """
        member, self._member = self._member, None
        if member is None:
            return
        epochs = [self._announced.get((one.topic, one.partition)) for one in positions]
        deadline = time.monotonic() + timeout
        leaving = asyncio.ensure_future(self._thread.run(member.close, positions, epochs, deadline))
        await asyncio.wait([leaving], timeout=timeout / 2)
        if self._hooks is not None:
            self._hooks.give_up()  # a listener that still drains must not keep the thread from leaving
        await asyncio.wait([leaving], timeout=timeout / 2)
        self._thread.stop()
        if leaving.done():
            leaving.result()
        else:
            leaving.cancel()
            text = f"leaving the group took more than {timeout:g} s: closed without leaving it"
            self._on_trouble("_TIMED_OUT", text)

    def _joined(self) -> GroupMember:
        if self._member is None:
            raise KafkaError(
                "the Kafka consumer is not open: start it before use, and do not use it after closing"
            )
        return self._member

    # What follows is called for the thread, and keeps the event loop's own record of epochs.

    async def tell_assigned(self, assignments: Sequence[Assignment]) -> None:
        """Announce epochs, then call the listener."""
        self._announced.update({(one.topic, one.partition): one.epoch for one in assignments})
        await self._listener.assigned(assignments)

    async def ask_revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Let the listener drain; meanwhile no commit is taken, and afterwards these epochs are over."""
        self._rebalancing = True
        try:
            return await self._listener.revoked(partitions)
        finally:
            self._rebalancing = False
            self._withdraw(partitions)

    async def tell_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These epochs are over; call the listener."""
        self._withdraw(partitions)
        await self._listener.lost(partitions)

    def _withdraw(self, partitions: Sequence[TopicPartition]) -> None:
        for one in partitions:
            self._announced.pop((one.topic, one.partition), None)


class _LoopHooks:
    """How the thread reaches the event loop: each call blocks the thread until the loop has answered, bounded."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: KafkaSource,
        on_trouble: OnTrouble,
        on_topic_ids: OnTopicIds,
        revoke_timeout: float,
    ) -> None:
        self._loop = loop
        self._source = source
        self._on_trouble = on_trouble
        self._on_topic_ids = on_topic_ids
        self._revoke_timeout = revoke_timeout
        self._given_up = False
        self._asked: concurrent.futures.Future[Any] | None = None

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self._ask(self._source.tell_assigned(assignments), _TELL_TIMEOUT)

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        return self._ask(self._source.ask_revoked(partitions), self._revoke_timeout)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._ask(self._source.tell_lost(partitions), _TELL_TIMEOUT)

    def trouble(self, code: str, text: str) -> None:
        post(self._loop, self._on_trouble, code, text)

    def topic_ids(self, ids: Mapping[str, str]) -> None:
        post(self._loop, self._on_topic_ids, ids)

    def give_up(self) -> None:
        """Stop waiting for the listener, now and later. Called on the loop."""
        self._given_up = True
        if self._asked is not None:
            self._asked.cancel()

    def _ask(self, question: Coroutine[Any, Any, _Answer], timeout: float) -> _Answer:
        if self._given_up or self._loop.is_closed():
            question.close()
            raise TimeoutError
        self._asked = asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return asked.result(timeout)
        except (TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            raise TimeoutError from None
        finally:
            self._asked = None
