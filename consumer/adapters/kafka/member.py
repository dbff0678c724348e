"""A member of the group, as it lives in the consumer's own thread: all use of `confluent_kafka.Consumer` is here.

Every method and callback runs in that one thread; it reaches others through `Hooks`. Rebalance callbacks
run inside `fetch` and `close`, ask through the hooks, and block until they are answered or out of time.

*Fencing.* Each assignment of a partition gets an epoch that no other in this process has.

*Another life.* A topic that was deleted and created again has another id (`consumer.adapters.kafka.topic_ids`). The
engine gets the ids every few seconds; what it wants read again goes back to the beginning, under a new epoch.

*Leaving* has rules of its own: `consumer.adapters.kafka.commits`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.aws import msk
from consumer.adapters.kafka import commits, trouble
from consumer.adapters.kafka.chunks import Damage, Inbox, damage_at
from consumer.adapters.kafka.configuration import BrokerWatch, is_cooperative, make_client
from consumer.adapters.kafka.ends import Ends
from consumer.adapters.kafka.groups import GroupSize, is_member
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.starts import Unstarted
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.adapters.thread import run_aside
from consumer.engine.messages import Assignment, EndOffsets, NewLife
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError

_Code: Final = confluent_kafka.KafkaError

_MOST_IDLE_MS: Final = 300_000
"""librdkafka's default of max.poll.interval.ms."""

# Seconds in which the last commit of a revoked partition is tried again: far less than a rebalance may take.
_REVOKED_WITHIN: Final = 3.0
# Share of the time for leaving in which the last commit is tried again and a rebalance is waited for. The rest is for
# the LeaveGroup request itself.
_LEAVING_SHARE: Final = 0.9

_ASK_GROUP_TIMEOUT: Final = 5.0

_SEEK_AGAIN: Final = 0.5
"""Seconds until a partition that could not be read from its beginning is tried again."""

_FULL_FOR: Final = 1.0
"""Seconds without room after which partitions are paused."""
_LOOK_FOR_ROOM: Final = 0.005

_epochs = itertools.count(1)


@dataclass(slots=True)
class _Reading:
    """A partition that is read."""

    epoch: int
    next: RawPartition
    """Where reading goes on, behind what was handed out."""
    damage: Damage | None = None
    """It cannot be read on, since its next batch is damaged."""
    restart: NewLife | None = None
    """It is to be read again from the beginning."""

    @property
    def passed_over(self) -> bool:
        """Whether to drop what comes of it: its damaged batch has not been asked for again yet."""
        return self.damage is not None and self.damage.due is not None


@dataclass(eq=False, repr=False)  # the configuration holds passwords
class GroupMember:
    """Owns the Consumer; made, used and closed in one thread."""

    config: dict[str, Any]
    """It is complete, see `configuration.consumer_config`."""
    topics: list[str]
    hooks: Hooks
    ready: deque[Chunk]
    """Where fetched chunks go: a deque, since the event loop takes them out at the other end."""
    _: KW_ONLY
    make_unstarted: Callable[..., Unstarted]
    """All is given but the consumer, and whether a client before it has begun."""
    topic_ids: TopicIds
    """Closed with the member."""
    group_size: GroupSize
    """Closed with the member."""
    make_consumer: Callable[[dict[str, Any]], confluent_kafka.Consumer]

    def __post_init__(self) -> None:
        # When to look for partitions to read again, or to ask for again. Infinite while there are none: one may hold
        # thousands, and a fetch may bring a single record.
        self._restarts_due = self._damage_due = math.inf
        self._cooperative = is_cooperative(self.config)
        self._tell = trouble.Teller(self.hooks.trouble)
        self._watch = BrokerWatch(self.hooks.brokers)
        self._commits = commits.SentCommits()
        self._held: dict[TopicPartition, _Reading] = {}
        self._paused = False
        self._full_since: float | None = None
        """Since when there has been no room; None: there is room, or the partitions are paused already."""
        self._left_paused: set[TopicPartition] = set()
        """The partitions that librdkafka has paused, held or not."""
        self._closing = False
        self._most_idle = float(self.config.get("max.poll.interval.ms", _MOST_IDLE_MS)) / 1000
        self._polled = time.monotonic()
        self._late = False
        """The last poll is so long ago that the group has given our partitions away, or is about to do so."""
        self._failure: Exception | None = None
        self._tls_files = trouble.TlsFiles(self.config)
        self._was_assigned = False
        self._forgotten = False
        """The brokers do not know the group any more, and this client is of no use any more."""
        self._open()

    def _open(self, *, begun: bool = False) -> None:
        """Make a client and subscribe. `begun`: an earlier one has begun with partitions.

        The assignment comes with a later `fetch`.
        """
        self._joined = False
        self._member_id: str | None = None
        """As of the last look at the ends; kept up to date until the group has assigned our partitions."""
        life = self._life = object()

        def hear(step: Callable[..., object], *args: object) -> None:
            if self._life is life:  # else a client of an earlier life is still closing
                step(*args)

        def rebalance(step: Callable[[list[TopicPartition]], None]) -> Callable[..., None]:
            return lambda _, raw: hear(
                self._safely, step, [TopicPartition(one.topic, one.partition) for one in raw]
            )

        callbacks = {"error_cb": partial(hear, self._on_error, None), "on_commit": self._commits.on_commit}
        self._consumer = make_client(self.make_consumer, self._watch.watching({**self.config, **callbacks}))
        self._inbox = Inbox(self._consumer)
        self._ends = Ends(self._consumer, self.hooks.trouble)
        self._unstarted = self.make_unstarted(self._consumer, begun=begun)
        self._consumer.subscribe(
            self.topics,
            on_assign=rebalance(self._on_assign),
            on_revoke=rebalance(self._on_revoke),
            on_lost=rebalance(self._on_lost),
        )

    def fetch(self, room: int, timeout: float) -> None:
        """Obey `room`, poll, put chunks into `ready`. Raises `KafkaError` for what does not recover."""
        if self._failure is not None:
            raise self._failure
        if self._forgotten or self._watch.stranded:
            self._safely(self._rejoin)
        if self._is_full_for_a_moment(room):
            time.sleep(min(timeout, _LOOK_FOR_ROOM))
            return
        if self._paused != (room <= 0):
            self._paused = room <= 0
            self._set_pause(self._held)
        if not self._paused:
            self._ask_again()
        if not self.ready:  # else a fetch was cancelled: what it consumed comes first
            # Ask, poll, start, in this order: only a poll shows that a partition went while its start was asked for.
            # librdkafka takes an assignment as news that the partition is ours, and would call one that was lost
            # revoked. (Behind a thousand records that were fetched ahead the poll may not hear of it. Then the broker
            # refuses the commit.)
            some_can_start = self._unstarted.ask()
            # What can start must not wait for records of other partitions.
            self._consume(room, 0.0 if some_can_start else timeout)
            self._safely(self._start_reading)
            self._safely(self._restart_reading)
        self._look_at_ends()
        if self._failure is not None:
            raise self._failure

    def send_commit(
        self, positions: Sequence[Position], epochs: Sequence[int], answer: commits.Answer
    ) -> None:
        """Send a commit of those positions whose partition is still held in the epoch beside it."""
        # What belongs to an earlier assignment never commits, even if the partition came back to us.
        ours = self._still_ours(positions, epochs)
        left_out = None if len(ours) == len(positions) else trouble.ASSIGNMENT_LOST
        if not ours:
            answer(commits.CommitResult((), left_out))
            return
        try:
            self._consumer.commit(offsets=commits.raw_positions(ours), asynchronous=True)
        except KafkaException as error:
            answer(commits.CommitResult((), trouble.cause_of(error).name()))
        else:
            self._commits.sent.append(commits.Sent(ours, left_out, answer))  # answered in a later poll

    def close(self, positions: Sequence[Position], epochs: Sequence[int], deadline: float) -> None:
        """Commit, leave the group. Revocations on the way out do not call the hooks any more.

        `deadline` (monotonic) is for all of it. Waiting for the brokers can take longer: then the caller gives up.
        """
        self._closing = True
        begun = time.monotonic()
        until = begun + max(0.0, deadline - begun) * _LEAVING_SHARE
        self._commit_last(self._still_ours(positions, epochs), until)
        # With partitions, closing leaves the group by revoking them. A static member does not leave, by intent: it will
        # be back.
        if not self._held and not self.config.get("group.instance.id"):
            commits.leave_without_partitions(self._consumer, self.config, until)
        try:
            self._consumer.close()
        finally:
            self.topic_ids.close()
            self.group_size.client.close()
        self._commits.drop("_DESTROY")  # their answers would come in a poll, and there is none any more
        self._failure = KafkaError("the Kafka consumer is closed: create a new one")

    def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """Read these from the beginning with the next fetch, as far as they are held in the epoch that is named."""
        for one in partitions:
            reading = self._held.get(TopicPartition(one.topic, one.partition))
            if reading is not None and reading.epoch == one.epoch:
                reading.restart, self._restarts_due = one, 0.0

    def end_offsets(self) -> EndOffsets:
        """What is known of the held partitions; may be called by other threads.

        `EndOffsets.joined`: the group has assigned us our partitions, even if there are none.
        """
        return EndOffsets(
            self._ends.ends,
            self._ends.reached,
            len(self._unstarted.waiting),
            # The copy is one step of the interpreter: the thread cannot change the dictionary meanwhile. It may end a
            # damage, though, so each is read once.
            {name: bad.offset for name, one in self._held.copy().items() if (bad := one.damage) is not None},
            self._ends.begins,
            self._joined,
        )

    def is_known(self) -> bool:
        """Ask the coordinator whether this is a member of the group. Not for the consumer's own thread."""
        # Under KIP-848 an assignment of no partition brings no callback: a member without any hears nothing more.
        member = self._member_id
        if member and not self._joined and is_member(self.config, member, _ASK_GROUP_TIMEOUT):
            self._joined = self._member_id == member  # else another client has taken the place of that one
        return self._joined

    # ------------------------------------------------------------------------------------------- polling

    def _is_full_for_a_moment(self, room: int) -> bool:
        """Whether to wait without a poll: there is no room, but there was some a moment ago."""
        # A pause is expensive. librdkafka throws away what it has fetched ahead, and after the resume it does not fetch
        # before its broker threads look again, once a second: a destination that answers within that time would be
        # served in bursts. Only polls bring rebalances and the answers to commits, so this lasts a second at most.
        if room > 0 or self._paused or self.ready:
            self._full_since = None
            return False
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since < _FULL_FOR

    def _set_pause(self, names: Iterable[TopicPartition]) -> None:
        """Pause these, or resume those of them that are paused."""
        if self._paused:
            names = list(names)
            self._left_paused.update(names)
        else:
            # Resuming what was never paused does harm: librdkafka takes the fetch back to where the partition last
            # began, also when records from there were handed out meanwhile (librdkafka #4637).
            names = [name for name in names if name in self._left_paused and not self._held[name].passed_over]
            self._left_paused.difference_update(names)
        if names:
            change = self._consumer.pause if self._paused else self._consumer.resume
            change([RawPartition(*name) for name in names])

    def _consume(self, room: int, timeout: float) -> None:
        # librdkafka hands out a revocation that was queued before the deadline passed as if it were in time
        # (librdkafka #5604): so this clock decides what is lost.
        self._late = time.monotonic() - self._polled >= self._most_idle
        taken = self._inbox.take(room, timeout)
        self._inbox.keep(self._held)
        self._polled = time.monotonic()
        if not taken.messages:
            return

        def epoch_of(name: TopicPartition) -> int | None:
            # Of what is held now: a rebalance while records were taken may have ended some.
            reading = self._held.get(name)
            return None if reading is None or reading.passed_over else reading.epoch

        for chunk in taken.chunks(epoch_of):
            name = TopicPartition(chunk.topic, chunk.partition)
            reading = self._held[name]
            first, last, expected = chunk.records[0].offset, chunk.records[-1].offset, reading.next.offset
            # Behind a hole the engine wants to know whether retention made it.
            if expected not in (first, OFFSET_BEGINNING) or last - first >= len(chunk.records):
                chunk = chunk._replace(log_start=self._ends.known(name)[0])
            if first < expected:  # the log was cut, or the topic created again
                self.topic_ids.hurry()
            self.ready.append(chunk)
            reading.next, reading.damage = commits.raw_partition(*name, last + 1, chunk.leader_epoch), None
        for name, why in taken.damaged.items():
            if epoch_of(name) is not None:
                self._stop_reading(name, self._held[name], why)
        for message in taken.errors:
            if (error := message.error()) is not None:
                self._on_error(message.topic(), error)

    # ------------------------------------------------------------------- what came damaged (see `chunks`)

    def _stop_reading(
        self, name: TopicPartition, reading: _Reading, error: confluent_kafka.KafkaError
    ) -> None:
        """The next batch of this partition is damaged: drop what comes behind it, until it is asked for again."""
        offset = reading.next.offset
        now = time.monotonic()
        damage = reading.damage = damage_at(max(offset, 0), reading.damage, now)
        self._damage_due = min(self._damage_due, now + damage.delay)
        self._left_paused.add(name)
        self._consumer.pause([RawPartition(*name)])
        at = "its beginning" if offset == OFFSET_BEGINNING else f"offset {offset}"
        self.hooks.trouble(
            error.name(),
            f"{name} cannot be read further than {at}: the broker sent damaged data, and "
            f"nothing after it is read until it can be; next attempt in {damage.delay:g} s ({trouble.words(error)})",
        )

    def _ask_again(self) -> None:
        """Go on where reading stopped. The seek discards all that librdkafka has of the partition, so it comes last."""
        now = time.monotonic()
        if now < self._damage_due:
            return
        self._damage_due = math.inf
        for name, reading in self._held.items():
            damage = reading.damage
            if damage is None or damage.due is None:
                continue
            if damage.due > now:
                self._damage_due = min(self._damage_due, damage.due)
                continue
            reading.damage = damage._replace(due=None)
            self._left_paused.discard(name)
            self._inbox.keep(self._held.keys() - {name})
            try:
                self._consumer.resume([RawPartition(*name)])
                self._consumer.seek(reading.next)
            except KafkaException as failure:
                self._stop_reading(name, reading, trouble.cause_of(failure))

    def _look_at_ends(self) -> None:
        if time.monotonic() < self._ends.due:
            return
        if not self._joined:
            self._member_id = self._consumer.memberid()
        # What is kept back was given out by the consumer, and what came behind a damaged batch was dropped.
        damaged = {name: one.damage.offset for name, one in self._held.items() if one.damage is not None}
        unread = {**self._inbox.first_offsets(), **damaged}
        if self._ends.look(self._held, unread, paused=self._paused):
            self.topic_ids.hurry()
        if ids := self.topic_ids.look({name.topic for name in self._held}):
            self.hooks.topic_ids(ids)
        if (size := self.group_size.look()) is not None:
            self.hooks.group_size(size)

    # -------------------------------------------------------------------------------------- rebalancing

    def _safely(self, step: Callable[..., object], *args: object) -> None:
        """Do this. No exception may pass through librdkafka: the fetch under way, or the next one, raises it."""
        try:
            step(*args)
        except TimeoutError:
            text = "Kafka: the process is too busy to handle a rebalance in time: start it again"
            self._failure = self._failure or KafkaError(text)
        except Exception as error:
            self._failure = self._failure or error

    def _on_assign(self, names: list[TopicPartition]) -> None:
        # librdkafka waits for an answer. The partitions begin once the brokers have said where, and between two
        # consumes: so what one consume brings belongs to one assignment, also where a partition went and came back
        # within it.
        self._assign([])
        self.group_size.hurry()
        if self._closing:  # the assignment was under way when we began to leave: it will not be read
            return
        self._joined = True
        self._was_assigned = self._was_assigned or bool(names)
        self._unstarted.add(names)

    def _start_reading(self) -> None:
        """Begin with what was assigned before, as far as the brokers have said where to start."""
        found = self._unstarted.take()
        if not found:
            return
        places = [commits.raw_partition(*name, one.start, one.leader_epoch) for name, one in found.items()]
        self._assign(places)
        given = [one._replace(epoch=next(_epochs)) for one in found.values()]
        for name, place, one in zip(found, places, given, strict=True):
            self._held[name] = _Reading(one.epoch, place)
        # librdkafka remembers a partition's pause beyond its assignment (and so did parallel-consumer #857). And the
        # level of room holds for partitions that come later, too.
        self._set_pause(found)
        self.hooks.assigned(given)

    def _restart_reading(self) -> None:
        """Go back to the beginning of these. A seek discards all that librdkafka has of a partition, paused or not."""
        if time.monotonic() < self._restarts_due:
            return
        self._restarts_due = math.inf
        begun = []
        for name, reading in self._held.items():
            if reading.restart is None:
                continue
            beginning = commits.raw_partition(*name, None, None)
            try:
                self._consumer.seek(beginning)
            except KafkaException as error:  # perhaps its leader is not known yet
                self._restarts_due = time.monotonic() + _SEEK_AGAIN
                text = f"{name} cannot be read from its beginning yet: trying again"
                self.hooks.trouble(trouble.cause_of(error).name(), text)
                continue
            self._inbox.keep(self._held.keys() - {name})
            # A new epoch: what belongs to the earlier life never settles and never commits.
            begun.append(Assignment(*name, next(_epochs), None, False, topic_id=reading.restart.topic_id))
            self._held[name] = _Reading(begun[-1].epoch, beginning)
        if begun:
            self._set_pause([TopicPartition(one.topic, one.partition) for one in begun])
            self.hooks.assigned(begun)

    def _assign(self, partitions: list[RawPartition]) -> None:
        # Eager: these are all partitions. What was held was taken away before, and all begin together.
        (self._consumer.incremental_assign if self._cooperative else self._consumer.assign)(partitions)

    def _on_revoke(self, names: list[TopicPartition]) -> None:
        # What is taken from a member that did not poll in time is lost, whatever librdkafka calls it: dropped, and
        # never committed.
        if self._late:
            self._on_lost(names)
            return
        begun = [name for name in names if name in self._held]
        positions: Sequence[Position] = ()
        try:
            if begun and not self._closing:
                try:
                    positions = self.hooks.revoked(begun)
                except TimeoutError:
                    text = "partitions were not drained in time and are given back undrained"
                    self.hooks.trouble("_TIMED_OUT", text)
                    self.hooks.lost(begun)
                # The listener may answer for more than what goes: only that may be committed now.
                ours = [one for one in positions if one[:2] in begun]
                self._commit_last(ours, time.monotonic() + _REVOKED_WITHIN)
        finally:  # whatever went wrong: librdkafka waits for this answer, and so does the group
            self._drop(names)

    def _on_lost(self, names: list[TopicPartition]) -> None:
        self._joined = False
        # The event loop never heard of those that wait for their start.
        begun = [name for name in names if name in self._held]
        try:
            if begun and not self._closing:
                self.hooks.lost(begun)
        finally:
            self._drop(names)

    def _drop(self, names: list[TopicPartition]) -> None:
        self.group_size.hurry()
        begun = [name for name in names if name in self._held]
        for name in names:
            self._unstarted.discard(name)
            self._held.pop(name, None)
        try:
            if self._cooperative:
                self._consumer.incremental_unassign([RawPartition(*name) for name in begun])
            else:
                self._consumer.unassign()
        except KafkaException as error:
            self.hooks.trouble(trouble.cause_of(error).name(), "a single partition could not be unassigned")

    def _still_ours(self, positions: Sequence[Position], epochs: Sequence[int]) -> list[Position]:
        held = {name: one.epoch for name, one in self._held.items()}
        both = zip(positions, epochs, strict=True)
        return [one for one, epoch in both if held.get(TopicPartition(*one[:2])) == epoch]

    def _commit_last(self, positions: Sequence[Position], until: float) -> None:
        failure = commits.commit_last(self._consumer, positions, until)
        if failure is not None:
            self.hooks.trouble(
                failure, "the last commit of a partition failed: some records will be read again"
            )

    def _rejoin(self) -> None:
        """Replace a client that is of no use any more; its partitions are lost.

        The brokers forgot the group (another cluster stands in place of this one; a member of a classic group gets over
        this by itself), or the client lost its brokers (`BrokerWatch.stranded`).
        """
        try:
            msk.require_token(self.config)
        except msk.NoToken as error:
            # Without one no client can be made: the next fetch tries again.
            self.hooks.trouble("_AUTHENTICATION", str(error))
            return
        stranded, self._forgotten = self._watch.stranded, False
        if stranded:
            self.hooks.trouble(
                "_ALL_BROKERS_DOWN", "the client has lost all brokers: joining with another one"
            )
        else:
            self.hooks.trouble("GROUP_ID_NOT_FOUND", "the brokers no longer know the group: joining again")
        lost = list(self._held)
        self._held.clear()
        if lost:
            self.hooks.lost(lost)
        if stranded:
            # This may never end: it waits for the answers to commits. The group ends the membership with the session.
            self._life = object()
            run_aside("pinstream-kafka-ending", partial(_close, self._consumer))
        else:
            self._consumer.close()
        self._commits.drop(trouble.ASSIGNMENT_LOST)
        self._commits = commits.SentCommits()
        self._left_paused.clear()
        self._open(begun=self._unstarted.begun)

    # ------------------------------------------------------------------------------------------- errors

    def _on_error(self, topic: str | None, error: confluent_kafka.KafkaError) -> None:
        if error.code() in trouble.OTHER_TOPIC:
            self.topic_ids.hurry()
        if topic is not None and error.code() in trouble.MISSING_TOPIC and not self._was_assigned:
            text = f"Kafka: the topic {topic} does not exist: create it, or correct KAFKA_TOPICS"
            self._failure = self._failure or KafkaError(text)
        elif error.code() == _Code._FATAL and trouble.cause_code(error) == _Code.GROUP_ID_NOT_FOUND:
            self._forgotten = True
        elif (fatal := trouble.as_fatal(error) or self._tls_files.explain(error)) is not None:
            self._failure = self._failure or fatal
        else:
            self._tell(error)


def _close(consumer: confluent_kafka.Consumer) -> None:
    with contextlib.suppress(KafkaException):
        consumer.close()
