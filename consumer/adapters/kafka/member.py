"""A member of the group, as it lives in the consumer's own thread: all use of `confluent_kafka.Consumer` is here.

Every method and callback runs in that one thread; it reaches others through `Hooks`. Rebalance callbacks
run inside `fetch` and `close`, ask through the hooks, and block until they are answered or out of time.

*Fencing.* Each assignment of a partition gets an epoch that no other in this process has. A partition is handed to
librdkafka between two consumes only (`consumer.adapters.kafka.starts`), never in the callback that gives it: so what
one consume brings belongs to one assignment, also where a partition went and came back within it. Records of what is
not held any more are dropped.

*Another life.* A topic that was deleted and created again has another id (`consumer.adapters.kafka.topic_ids`). The
engine gets the ids every few seconds; what it wants read again goes back to the beginning, under a new epoch.

*Leaving* has rules of its own: `consumer.adapters.kafka.commits`.

*Lost is not revoked.* What is taken from a member that did not poll in time is lost: dropped, never committed.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.chunks import Inbox, Taken, Unreadable, group, take_damaged
from consumer.adapters.kafka.commits import (
    ASSIGNMENT_LOST,
    Answer,
    CommitResult,
    ResumePoint,
    SentCommits,
    commit_last,
    leave_without_partitions,
    raw_place,
    raw_positions,
)
from consumer.adapters.kafka.configuration import RawConsumer, is_cooperative, make_client
from consumer.adapters.kafka.ends import Ends
from consumer.adapters.kafka.groups import is_member
from consumer.adapters.kafka.starts import HasOffsets, Unstarted
from consumer.adapters.kafka.topic_ids import MISSING_TOPIC, OTHER_TOPIC, IdSource
from consumer.adapters.kafka.trouble import Teller, as_fatal, exception_error, forgets_group, words
from consumer.engine.messages import Assignment, EndOffsets, NewLife
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError

_MOST_IDLE_MS: Final = 300_000
"""librdkafka's default of max.poll.interval.ms."""

_REVOKED_WITHIN: Final = 3.0
"""Seconds in which the last commit of a revoked partition is tried again: far less than a rebalance may take."""
_LEAVING_SHARE: Final = 0.9
"""Share of the time for leaving in which the last commit is tried again and a rebalance is waited for. The rest is for
the goodbye itself."""

_ASK_GROUP_TIMEOUT: Final = 5.0

_SEEK_AGAIN: Final = 0.5
"""Seconds until a partition that could not be read from its beginning is tried again."""

_FULL_FOR: Final = 1.0
"""Seconds without room after which partitions are paused."""
_LOOK_FOR_ROOM: Final = 0.005

_epochs = itertools.count(1)


class Hooks(Protocol):
    """Called from the thread. The first three block until the event loop has answered, within their limit.

    They raise `TimeoutError`, and whatever the listener raises.
    """

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are ours now."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """These partitions are about to go. Returns what to commit of them."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions are gone."""

    def trouble(self, code: str, text: str) -> None:
        """Something went wrong that recovers by itself. Returns at once."""

    def topic_ids(self, ids: Mapping[str, str]) -> None:
        """The ids that topics have now. Returns at once."""


class GroupMember:
    """Owns the Consumer; made, used and closed in one thread.

    `config` is complete (see `configuration.consumer_config`). `ready` is where fetched chunks go: a deque, since
    the event loop takes them out at the other end. `has_offsets`: whether the group has any (see `starts`). `topic_ids`
    is closed with the member. `timeout`: seconds for each question to the brokers.
    """

    def __init__(
        self,
        config: dict[str, Any],
        hooks: Hooks,
        ready: deque[Chunk],
        *,
        offset_reset: str,
        has_offsets: HasOffsets,
        topic_ids: IdSource,
        timeout: float,
        make_consumer: Callable[[dict[str, Any]], RawConsumer],
    ) -> None:
        self._config = config
        self._offset_reset = offset_reset
        self._has_offsets = has_offsets
        self._topic_ids = topic_ids
        self._anew: dict[TopicPartition, NewLife] = {}
        """Partitions to read again from the beginning."""
        self._anew_due = 0.0
        self._timeout = timeout
        self._make_consumer = make_consumer
        self._topics: list[str] = []
        self._cooperative = is_cooperative(config)
        self._hooks = hooks
        self._tell = Teller(hooks.trouble)
        self._ready = ready
        self._commits = SentCommits()
        self._held: dict[TopicPartition, int] = {}
        """The partitions that are read, with their epochs."""
        self._next: dict[TopicPartition, ResumePoint] = {}
        """Where reading goes on in each partition, behind what was handed out."""
        self._paused = False
        self._full_since: float | None = None
        """Since when there has been no room; None: there is room, or the partitions are paused already."""
        self._left_paused: set[TopicPartition] = set()
        """The partitions that librdkafka has paused, held or not."""
        self._closing = False
        self._most_idle = float(config.get("max.poll.interval.ms", _MOST_IDLE_MS)) / 1000
        self._polled = time.monotonic()
        self._late = False
        """The last poll is so long ago that the group has given our partitions away, or is about to do so."""
        self._failure: Exception | None = None
        self._was_assigned = False
        self._forgotten = False
        """The brokers do not know the group any more, and this client is of no use any more."""
        self._open()

    def _open(self, *, begun: bool = False) -> None:
        """Make a client, which has not joined yet. `begun`: an earlier one has begun with partitions."""
        self._joined = False
        self._member_id: str | None = None
        """As of the last look at the ends; kept up to date until the group has assigned our partitions."""
        callbacks = {"error_cb": partial(self._heard, None), "on_commit": self._commits.heard}
        self._consumer = make_client(self._make_consumer, {**self._config, **callbacks})
        self._inbox = Inbox(self._consumer)
        self._ends = Ends(self._consumer, self._hooks.trouble)
        self._unreadable = Unreadable()
        self._unstarted = Unstarted(
            self._consumer,
            self._offset_reset,
            has_offsets=self._has_offsets,
            topic_ids=self._topic_ids.ask,
            whole=not self._cooperative,
            timeout=self._timeout,
            on_trouble=self._hooks.trouble,
            begun=begun,
        )

    def join(self, topics: list[str]) -> None:
        """Subscribe. The assignment comes with a later `fetch`."""
        self._topics = topics
        self._consumer.subscribe(
            topics,
            on_assign=self._guarded(self._on_assign),
            on_revoke=self._guarded(self._on_revoke),
            on_lost=self._guarded(self._on_lost),
        )

    def fetch(self, room: int, timeout: float) -> None:
        """Obey `room`, poll, put chunks into `ready`. Raises `KafkaError` for what does not recover."""
        self._raise_failure()
        if self._forgotten:
            self._safely(self._join_anew)
        if self._is_full_for_a_moment(room):
            time.sleep(min(timeout, _LOOK_FOR_ROOM))
            return
        self._obey(room)
        if self._unreadable and not self._paused:
            self._ask_again()
        if not self._ready:  # else a fetch was cancelled: what it consumed comes first
            # Ask, poll, start, in this order: only a poll shows that a partition went while its start was asked for.
            some_can_start = self._unstarted.ask()
            self._consume(room, 0.0 if some_can_start else timeout)
            self._safely(self._start_reading)
            if self._anew and time.monotonic() >= self._anew_due:
                self._safely(self._begin_anew)
        self._look_at_ends()
        self._raise_failure()

    def send_commit(
        self, positions: Sequence[Position], epochs: Sequence[int | None], answer: Answer
    ) -> None:
        """Send a commit of those positions whose partition is still held in the epoch beside it."""
        # What belongs to an earlier assignment never commits, even if the partition came back to us.
        ours = self._still_ours(positions, epochs)
        left_out = None if len(ours) == len(positions) else ASSIGNMENT_LOST
        if not ours:
            answer(CommitResult((), left_out))
            return
        try:
            self._consumer.commit(offsets=raw_positions(ours), asynchronous=True)
        except KafkaException as error:
            answer(CommitResult((), exception_error(error).name()))
        else:
            self._commits.add(ours, left_out, answer)

    def close(self, positions: Sequence[Position], epochs: Sequence[int | None], deadline: float) -> None:
        """Commit, leave the group. Revocations on the way out do not call the hooks any more.

        `deadline` (monotonic) is for all of it. Waiting for the brokers can take longer: then the caller gives up.
        """
        self._closing = True
        begun = time.monotonic()
        until = begun + max(0.0, deadline - begun) * _LEAVING_SHARE
        self._commit_last(self._still_ours(positions, epochs), until)
        # With partitions, closing says goodbye by revoking them. A static member says none: it will be back.
        if not self._held and not self._config.get("group.instance.id"):
            leave_without_partitions(self._consumer, self._config, until)
        try:
            self._consumer.close()
        finally:
            self._topic_ids.close()
        self._commits.drop("_DESTROY")  # their answers would come in a poll, and there is none any more
        self._failure = KafkaError("the Kafka consumer is closed: create a new one")

    def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """Read these from the beginning with the next fetch, as far as they are held in the epoch that is named."""
        for one in partitions:
            name = TopicPartition(one.topic, one.partition)
            if self._held.get(name) == one.epoch:
                self._anew[name] = one

    def end_offsets(self) -> EndOffsets:
        """What is known of the held partitions; may be called by other threads.

        `EndOffsets.joined`: the group has assigned us our partitions, even if there are none.
        """
        return EndOffsets(
            self._ends.ends,
            self._ends.reached,
            len(self._unstarted),
            self._unreadable.offsets(),
            self._ends.begins,
            self._joined,
        )

    def is_known(self) -> bool:
        """Ask the coordinator whether this is a member of the group. Call it from another thread than the consumer's.

        Under KIP-848 an assignment of no partition brings no callback: a member without any hears nothing more.
        """
        member = self._member_id
        if member and not self._joined and is_member(self._config, member, _ASK_GROUP_TIMEOUT):
            self._joined = self._member_id == member  # else another client has taken the place of that one
        return self._joined

    # ------------------------------------------------------------------------------------------- polling

    def _is_full_for_a_moment(self, room: int) -> bool:
        """Whether to wait without a poll: there is no room, but there was some a moment ago.

        A pause is expensive. librdkafka throws away what it has fetched ahead, and after the resume it does not fetch
        before its broker threads look again, once a second: a destination that answers within that time would be
        served in bursts. Only polls bring rebalances and the answers to commits, so this lasts a second at most.
        """
        if room > 0 or self._paused or self._ready:
            self._full_since = None
            return False
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since < _FULL_FOR

    def _obey(self, room: int) -> None:
        paused = room <= 0
        if paused == self._paused:
            return
        self._paused = paused
        self._set_pause(self._held)

    def _set_pause(self, names: Iterable[TopicPartition]) -> None:
        """Pause these, or resume those of them that are paused.

        Resuming what was never paused does harm: librdkafka takes the fetch back to where the partition last
        began, also when records from there were handed out meanwhile (librdkafka #4637).
        """
        if self._paused:
            names = list(names)
            self._left_paused.update(names)
        else:
            names = [name for name in names if name in self._left_paused and not self._unreadable.waits(name)]
            self._left_paused.difference_update(names)
        if names:
            (self._consumer.pause if self._paused else self._consumer.resume)(_raw(names))

    def _consume(self, room: int, timeout: float) -> None:
        # librdkafka hands out a revocation that was queued before the deadline passed as if it were in time
        # (librdkafka #5604): so this clock decides what is lost.
        self._late = time.monotonic() - self._polled >= self._most_idle
        taken = self._inbox.take(room, timeout)
        self._inbox.drop_all_but(self._held)
        self._polled = time.monotonic()
        if taken.messages:
            self._hand_over(taken)

    def _hand_over(self, taken: Taken) -> None:
        damaged: dict[TopicPartition, confluent_kafka.KafkaError] = {}
        # What is held now: a rebalance while records were taken may have ended some.
        chunks, errors = taken.chunks(self._held), taken.errors
        if errors or self._unreadable:
            messages, damaged = take_damaged(taken.messages)
            chunks, errors = group(messages, {name: self._held[name] for name in self._believed()})
        for chunk in chunks:
            name = TopicPartition(chunk.topic, chunk.partition)
            first, last = chunk.records[0].offset, chunk.records[-1].offset
            if self._next[name].offset not in (first, None) or last - first >= len(chunk.records):
                chunk = chunk._replace(log_start=self._ends.known(name)[0])
            if first < (self._next[name].offset or 0):
                self._topic_ids.hurry()
            self._ready.append(chunk)
            self._next[name] = ResumePoint(last + 1, chunk.leader_epoch)
            self._unreadable.discard(name)
        for name in [one for one in self._believed() if one in damaged]:
            self._stop_reading(name, damaged[name])
        for message in errors:
            if (error := message.error()) is not None:
                self._heard(message.topic(), error)

    # ------------------------------------------------------------------- what came damaged (see `chunks`)

    def _believed(self) -> list[TopicPartition]:
        return [name for name in self._held if not self._unreadable.waits(name)]

    def _stop_reading(self, name: TopicPartition, error: confluent_kafka.KafkaError) -> None:
        """The next batch of this partition is damaged: drop what comes behind it, until it is asked for again."""
        offset = self._next[name].offset
        delay = self._unreadable.found(name, offset or 0, time.monotonic())
        self._left_paused.add(name)
        self._consumer.pause(_raw([name]))
        at = "its beginning" if offset is None else f"offset {offset}"
        self._hooks.trouble(
            error.name(),
            f"{name.topic}[{name.partition}] cannot be read further than {at}: the broker sent damaged data, and "
            f"nothing after it is read until it can be; next attempt in {delay:g} s ({words(error)})",
        )

    def _ask_again(self) -> None:
        """Go on where reading stopped. The seek discards all that librdkafka has of the partition, so it comes last."""
        for name in self._unreadable.due(time.monotonic()):
            self._left_paused.discard(name)
            self._inbox.drop(name)
            try:
                self._consumer.resume(_raw([name]))
                self._consumer.seek(raw_place(name, self._next[name]))
            except KafkaException as failure:
                self._stop_reading(name, exception_error(failure))

    def _look_at_ends(self) -> None:
        if not self._ends.is_due():
            return
        if not self._joined:
            self._member_id = self._consumer.memberid()
        # What is kept back was given out by the consumer, and what came behind a damaged batch was dropped.
        unread = {**self._inbox.first_offsets(), **self._unreadable.offsets()}
        if self._ends.look(self._held, unread, paused=self._paused):
            self._topic_ids.hurry()
        if ids := self._topic_ids.look({name.topic for name in self._held}):
            self._hooks.topic_ids(ids)

    # -------------------------------------------------------------------------------------- rebalancing

    def _guarded(self, callback: Callable[[list[RawPartition]], None]) -> Callable[..., None]:
        """`callback` for librdkafka: no exception may pass through librdkafka; the next `fetch` raises it."""

        def call(_: object, partitions: list[RawPartition]) -> None:
            self._safely(lambda: callback(partitions))

        return call

    def _safely(self, step: Callable[[], Any]) -> None:
        try:
            step()
        except TimeoutError:
            self._fail("the process is too busy to handle a rebalance in time: start it again")
        except Exception as error:
            self._failure = self._failure or error

    def _on_assign(self, partitions: list[RawPartition]) -> None:
        self._assign([])  # librdkafka waits for an answer; they begin once the brokers have said where
        if self._closing:  # the assignment was under way when we began to leave: it will not be read
            return
        names = _names(partitions)
        self._joined = True
        self._was_assigned = self._was_assigned or bool(names)
        self._unstarted.add(names)

    def _start_reading(self) -> None:
        """Begin with what was assigned before, as far as the brokers have said where to start."""
        found = self._unstarted.take()
        if not found:
            return
        self._next.update({name: ResumePoint(start.offset, start.leader_epoch) for name, start in found})
        self._assign([raw_place(name, self._next[name]) for name, _ in found])
        # librdkafka remembers a partition's pause beyond its assignment (and so did parallel-consumer #857). And the
        # level of room holds for partitions that come later, too.
        self._set_pause([name for name, _ in found])
        given = [
            Assignment(
                *name,
                next(_epochs),
                start.offset,
                start.commit,
                start.leader_epoch,
                start.metadata,
                start.topic_id,
                start.void,
            )
            for name, start in found
        ]
        self._held.update({TopicPartition(one.topic, one.partition): one.epoch for one in given})
        self._hooks.assigned(given)

    def _begin_anew(self) -> None:
        """Go back to the beginning of these. A seek discards all that librdkafka has of a partition, paused or not."""
        begun = []
        for name, one in list(self._anew.items()):
            try:
                self._consumer.seek(RawPartition(*name, confluent_kafka.OFFSET_BEGINNING))
            except KafkaException as error:  # perhaps its leader is not known yet
                self._anew_due = time.monotonic() + _SEEK_AGAIN
                text = f"{name.topic}[{name.partition}] cannot be read from its beginning yet: trying again"
                self._hooks.trouble(exception_error(error).name(), text)
                continue
            del self._anew[name]
            self._inbox.drop(name)
            self._next[name] = ResumePoint(None, None)
            self._unreadable.discard(name)
            begun.append(Assignment(*name, next(_epochs), None, False, topic_id=one.topic_id))
            self._held[name] = begun[-1].epoch
        if begun:
            self._set_pause([TopicPartition(one.topic, one.partition) for one in begun])
            self._hooks.assigned(begun)

    def _assign(self, partitions: list[RawPartition]) -> None:
        # Eager: these are all partitions. What was held was taken away before, and all begin together.
        (self._consumer.incremental_assign if self._cooperative else self._consumer.assign)(partitions)

    def _on_revoke(self, partitions: list[RawPartition]) -> None:
        if self._late:  # whatever librdkafka calls it
            self._on_lost(partitions)
            return
        names = self._begun(partitions)
        try:
            if names and not self._closing:
                # The listener may answer for more than what goes: only that may be committed now.
                ours = [one for one in self._drained(names) if one[:2] in names]
                self._commit_last(ours, time.monotonic() + _REVOKED_WITHIN)
        finally:
            self._let_go(
                partitions
            )  # whatever went wrong: librdkafka waits for this answer, and so does the group

    def _drained(self, names: Sequence[TopicPartition]) -> Sequence[Position]:
        try:
            return self._hooks.revoked(names)
        except TimeoutError:
            self._hooks.trouble(
                "_TIMED_OUT", "partitions were not drained in time and are given back undrained"
            )
            self._hooks.lost(names)
            return ()

    def _on_lost(self, partitions: list[RawPartition]) -> None:
        self._joined = False
        names = self._begun(partitions)
        try:
            if names and not self._closing:
                self._hooks.lost(names)
        finally:
            self._let_go(partitions)

    def _begun(self, partitions: Iterable[RawPartition]) -> list[TopicPartition]:
        """Those that are being read: the event loop never heard of the ones that wait for their start."""
        return [name for name in _names(partitions) if name in self._held]

    def _let_go(self, partitions: list[RawPartition]) -> None:
        begun = self._begun(partitions)
        for name in _names(partitions):
            self._unstarted.discard(name)
            self._unreadable.discard(name)
            self._anew.pop(name, None)
            self._held.pop(name, None)
            self._next.pop(name, None)
        try:
            if self._cooperative:
                self._consumer.incremental_unassign(_raw(begun))
            else:
                self._consumer.unassign()
        except KafkaException as error:
            self._hooks.trouble(exception_error(error).name(), "a single partition could not be unassigned")

    def _still_ours(self, positions: Sequence[Position], epochs: Sequence[int | None]) -> list[Position]:
        return [
            position
            for position, epoch in zip(positions, epochs, strict=True)
            if epoch is not None
            and self._held.get(TopicPartition(position.topic, position.partition)) == epoch
        ]

    def _commit_last(self, positions: Sequence[Position], until: float) -> None:
        failure = commit_last(self._consumer, positions, until)
        if failure is not None:
            self._hooks.trouble(
                failure, "the last commit of a partition failed: some records will be read again"
            )

    def _join_anew(self) -> None:
        """The brokers forgot the group (another cluster stands in place of this one): its partitions are lost.

        A member of a classic group does all this by itself. The client of a KIP-848 group is of no use any more, and
        another one takes its place.
        """
        self._forgotten = False
        self._hooks.trouble("GROUP_ID_NOT_FOUND", "the brokers no longer know the group: joining again")
        lost = list(self._held)
        self._held.clear()
        self._next.clear()
        self._anew.clear()
        if lost:
            self._hooks.lost(lost)
        self._consumer.close()
        self._commits.drop(ASSIGNMENT_LOST)
        self._left_paused.clear()
        self._open(begun=self._unstarted.begun)
        self.join(self._topics)

    # ------------------------------------------------------------------------------------------- errors

    def _heard(self, topic: str | None, error: confluent_kafka.KafkaError) -> None:
        if error.code() in OTHER_TOPIC:
            self._topic_ids.hurry()
        if topic is not None and error.code() in MISSING_TOPIC and not self._was_assigned:
            self._fail(f"the topic {topic} does not exist: create it, or correct KAFKA_TOPICS")
        elif forgets_group(error):
            self._forgotten = True
        elif (fatal := as_fatal(error)) is not None:
            self._failure = self._failure or fatal
        else:
            self._tell(error)

    def _fail(self, text: str) -> None:
        self._failure = self._failure or KafkaError(f"Kafka: {text}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _names(partitions: Iterable[RawPartition]) -> list[TopicPartition]:
    return [TopicPartition(one.topic, one.partition) for one in partitions]


def _raw(names: Iterable[TopicPartition]) -> list[RawPartition]:
    return [RawPartition(*name) for name in names]
