"""The consumer as the event loop sees it: chunks of records, assignments to a listener, commits of positions.

One thread of its own owns the `confluent_kafka.Consumer`, through `GroupMember`. `fetch`, `commit` and `close` are jobs
for it; rebalance callbacks run in it, inside a poll, and wait for the listener on the event loop (`hooks`).

::

    event loop                              own thread
    await fetch(room, timeout)  ----------> obey room (pause | resume), consume
                                              rebalance callback:
    await listener.revoked(...) <-----------    wait, bounded
            '-- positions ----------------->    commit them, synchronously, bounded; unassign
    chunks                      <---------- group, drop what is not ours any more
    await commit(positions)     ----------> send; the answer comes in a later fetch

*Room is a level.* Every fetch passes the present room. Once it has been 0 for a second, all partitions that are
assigned, now or later, are paused; any other value resumes them, or those whose turn it is (`held.Turns`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import confluent_kafka

from consumer.adapters.kafka.client_errors import NOT_OPEN
from consumer.adapters.kafka.commits import commit_done
from consumer.adapters.kafka.configuration import (
    Config,
    consumer_config,
    never_matched,
    uses_consumer_protocol,
)
from consumer.adapters.kafka.groups import GroupWatch, group_has_offsets
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.member import GroupMember
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.adapters.thread import OwnThread, post, settle
from consumer.engine.messages import CommitDone, EndOffsets, TopicRecreated
from consumer.engine.model import Chunk, Position
from consumer.errors import KafkaError, SettingsError

_COMMIT_TIMEOUT: Final = 10.0
"""Seconds for the answer to a commit."""


class KafkaSource:
    """A member of a consumer group.

    `topics`: names, or patterns that start with ``^``; a pattern never matches one of Kafka's own, nor one of
    `own_topics` (names, or templates with ``{topic}``). `offset_reset`: ``earliest``, ``latest`` or ``error``,
    see `consumer.adapters.kafka.starts`.

    Raises `SettingsError` for a pattern under KIP-848: there the broker matches it, and cannot exclude topics.
    """

    def __init__(
        self,
        config: Config,
        topics: Sequence[str],
        hooks: Hooks,
        *,
        own_topics: Sequence[str] = ("{topic}.dead-letters",),
        offset_reset: str = "earliest",
        make_consumer: Callable[[dict[str, Any]], confluent_kafka.Consumer] = confluent_kafka.Consumer,
        make_topic_ids: Callable[..., TopicIdWatch] = TopicIdWatch,
    ) -> None:
        pattern = next((topic for topic in topics if topic.startswith("^")), None)
        if pattern is not None and uses_consumer_protocol(config):
            raise SettingsError(
                f"KAFKA_TOPICS has the pattern {pattern} and KAFKA_GROUP_PROTOCOL is consumer: the broker would match "
                "dead-letter topics too; name the topics, or set KAFKA_GROUP_PROTOCOL=classic"
            )
        ignore = None if pattern is None else never_matched(own_topics)
        complete = consumer_config(config, offset_reset=offset_reset, ignore=ignore)
        self._ready: deque[Chunk] = deque()
        self._hooks = hooks
        self._thread = OwnThread("pinstream-kafka-consumer")
        # One client for all questions. It is made for the first one, which may come long after the consumer is made.
        ids = make_topic_ids(config)
        self._make_member = functools.partial(
            GroupMember,
            complete,
            list(topics),
            hooks,
            self._ready,
            offset_reset=offset_reset,
            has_offsets=functools.partial(group_has_offsets, complete),
            topic_ids=ids,
            group_watch=GroupWatch(complete["group.id"], ids.client, hooks.post_error),
            is_wanted=self._thread.has_waiting,
            make_consumer=make_consumer,
        )
        self._member: GroupMember | None = None

    async def start(self) -> None:
        """Join the group. Raises `SettingsError` naming the property that librdkafka refuses."""
        self._member = await self._thread.run(self._make_member)

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """Return up to `room` records (`chunks.MAX_RECORDS` at most), once there are some or after `timeout` seconds.

        Call it continuously, also with room 0: it polls, which brings rebalances and the answers to commits. Raises
        `KafkaError` for what does not recover by itself, and any error of the listener.
        """
        # Cancelling this loses nothing: what the thread has consumed is in `_ready`, and the next fetch hands it out.
        await self._thread.run(self._joined().fetch, room, timeout)
        chunks = [self._ready.popleft() for _ in range(len(self._ready))]
        # Chunks that a cancelled fetch left may be of a partition that was revoked since.
        return [one for one in chunks if self._hooks.epochs.get((one.topic, one.partition)) == one.epoch]

    async def commit(self, positions: Sequence[Position]) -> CommitDone:
        """Commit `positions` with their leader epochs: one try, within the time limit. Fetches have to go on.

        `CommitDone.failure` is a librdkafka code: ``_ASSIGNMENT_LOST`` for partitions that were
        revoked or lost since, ``_TIMED_OUT``, ``STALE_MEMBER_EPOCH``, …; ``REBALANCE_IN_PROGRESS`` at once while the
        listener drains.
        """
        # While the listener drains, the thread waits for it and can send nothing.
        if self._hooks.draining:
            return commit_done((), "REBALANCE_IN_PROGRESS")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[CommitDone] = loop.create_future()
        # The thread sends a position only if it holds the partition in the epoch that the listener knows now. (No
        # assignment has the epoch 0.)
        epochs = [self._hooks.epochs.get(one[:2], 0) for one in positions]
        answer = functools.partial(post, loop, settle, answered)
        send = self._joined().send_commit
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT):
                await self._thread.run(send, positions, epochs, answer)
                return await answered
        except TimeoutError:
            return commit_done((), "_TIMED_OUT")

    async def restart_partitions(self, partitions: Sequence[TopicRecreated]) -> None:
        """Read these partitions from the beginning, since their topic was created again. Then report them as
        assigned."""
        await self._thread.run(self._joined().restart_partitions, partitions)

    async def end_offsets(self) -> EndOffsets:
        """Return the last known ends of the assigned partitions. Asks no broker."""
        return self._joined().end_offsets()

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions`, leave the group, end the thread. The listener is not called any more.

        After `timeout` seconds the thread, a daemon, is abandoned and the error reported.
        """
        member, self._member = self._member, None
        if member is None:
            return
        deadline = time.monotonic() + timeout
        epochs = [self._hooks.epochs.get(one[:2], 0) for one in positions]
        leaving = asyncio.ensure_future(self._thread.run(member.close, positions, epochs, deadline))
        # A listener that is draining gets half of the time to finish. If it has not finished then, it must not keep the
        # thread from leaving.
        await asyncio.wait([leaving], timeout=timeout / 2)
        self._hooks.give_up()
        await asyncio.wait([leaving], timeout=timeout / 2)
        self._thread.stop()  # a daemon: one that hangs does not keep the process from ending
        if leaving.done():
            leaving.result()
        else:
            leaving.cancel()
            self._hooks.on_error(
                "_TIMED_OUT", f"leaving the group took more than {timeout:g} s: closed without leaving it"
            )

    def _joined(self) -> GroupMember:
        if self._member is None:
            raise KafkaError(NOT_OPEN)
        return self._member
