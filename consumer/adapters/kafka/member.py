"""A member of the group, inside the consumer's own thread: all use of `confluent_kafka.Consumer` is here and in `held`.

Every method and callback runs in that thread, which reaches the event loop through `Hooks`. Rebalance callbacks run
inside `fetch` and `close`, call the listener through the hooks, and block until it answers or its time is over.

*Fencing.* Each assignment of a partition gets an epoch that no other in this process has.

*Recreated topics.* A topic that was deleted and created again has another id (`consumer.adapters.kafka.topic_ids`). The
engine gets the ids every few seconds; partitions that it wants to have read again start at the beginning, under a new
epoch (`consumer.adapters.kafka.held`, which also has seeks and pauses).

*Leaving* has rules of its own: `consumer.adapters.kafka.commits`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.aws import msk
from consumer.adapters.kafka import client_errors, commits, configuration
from consumer.adapters.kafka.chunks import CHECK_SECONDS, IDLE_CHECK_SECONDS
from consumer.adapters.kafka.groups import GroupWatch
from consumer.adapters.kafka.held import HeldPartitions
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.starts import PendingPartitions
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.adapters.kafka.watch import Ends, MemberWatch
from consumer.adapters.thread import run_aside
from consumer.engine.messages import BrokerStats, EndOffsets, TopicRecreated
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError, SettingsError, bug

_Code: Final = confluent_kafka.KafkaError

_MAX_IDLE_MS: Final = 300_000  # librdkafka's default of max.poll.interval.ms

# Seconds in which the last commit of a revoked partition is tried again: far less than a rebalance may take.
_REVOKED_WITHIN: Final = 3.0
# Share of the time for leaving for the last commit and for a rebalance. The rest is for the LeaveGroup request itself.
_LEAVING_SHARE: Final = 0.9

# Seconds between two attempts to replace a client while none can be made; librdkafka asks for tokens as seldom.
_REJOIN_EVERY: Final = 10.0

_ROOM_POLL: Final = 0.005


class Membership(Enum):
    """What a `GroupMember` is to its group."""

    JOINING = auto()
    """The group has not said which partitions are ours, or has taken them all from us."""
    JOINED = auto()
    """It has, even if none is."""
    REJOINING = auto()
    """The client is of no use any more: the next fetch replaces it."""
    FAILED = auto()
    """Each fetch raises the error."""
    LEAVING = auto()
    """What the group assigns now will not be read."""
    LEFT = auto()


_ENDING: Final = frozenset({Membership.FAILED, Membership.LEAVING})
_CHANGES: Final = {
    Membership.JOINING: _ENDING | {Membership.JOINED, Membership.REJOINING},
    Membership.JOINED: _ENDING | {Membership.JOINING, Membership.REJOINING},
    Membership.REJOINING: _ENDING | {Membership.JOINING},
    Membership.FAILED: {Membership.LEAVING},
    Membership.LEAVING: {Membership.LEFT},
    Membership.LEFT: frozenset[Membership](),
}
"""The memberships that may follow each."""


@dataclass(eq=False, repr=False)  # the configuration holds passwords
class GroupMember:
    """Owns the Consumer; made, used and closed in one thread."""

    config: dict[str, Any]
    """The complete configuration, see `configuration.consumer_config`."""
    topics: list[str]
    hooks: Hooks
    ready: deque[Chunk]
    """Queue of fetched chunks: a deque, since the event loop takes chunks from its other end."""
    _: KW_ONLY
    offset_reset: str
    has_offsets: Callable[[float], bool]
    """Returns whether the group has committed any offset, see `starts.PendingPartitions`."""
    topic_ids: TopicIdWatch
    """Closed with the member."""
    group_watch: GroupWatch
    """Closed with the member."""
    is_wanted: Callable[[], bool]
    """Returns whether something else than a fetch waits for the thread."""
    make_consumer: Callable[[dict[str, Any]], confluent_kafka.Consumer]

    def __post_init__(self) -> None:
        self.membership = Membership.JOINING
        self._failure: Exception | None = None
        """What made it fail; in `fetch` after `close`, too."""
        self._useless: tuple[str, str] | None = None
        """Why the client has to be replaced, as code and text."""
        self._rejoin_due = 0.0
        self._max_idle = configuration.milliseconds(self.config, "max.poll.interval.ms", _MAX_IDLE_MS) / 1000
        self._tls_files = client_errors.TlsFiles(self.config)
        self._report_error = client_errors.ErrorReporter(self.hooks.post_error)
        times = partial(BrokerStats, "consumer")
        self._brokers = configuration.BrokerWatch(
            lambda stats: self.hooks.report(times(stats)), self.hooks.report
        )
        self._polled = time.monotonic()
        self._late = False
        """Whether the last poll is so long ago that the group has reassigned our partitions, or is about to."""
        self._was_assigned = False
        self._open()

    def _become(self, membership: Membership) -> None:
        if membership not in _CHANGES[self.membership]:
            raise bug(f"a member of a group that is {self.membership.name} cannot be {membership.name}")
        self.membership = membership

    def _fail(self, error: Exception) -> None:
        """Have each fetch raise this error, unless it failed before or leaves."""
        if Membership.FAILED in _CHANGES[self.membership]:
            self._become(Membership.FAILED)
            self._failure = error

    def _replace_client(self, why: tuple[str, str]) -> None:
        """Have the next fetch replace the client, unless that is known, or the member has failed or leaves."""
        if Membership.REJOINING in _CHANGES[self.membership]:
            self._become(Membership.REJOINING)
            self._useless = why

    def _open(self, *, begun: bool = False) -> None:
        """Make a client and subscribe. `begun`: an earlier client has started partitions.

        The assignment comes with a later `fetch`. All state that belongs to one client is made here.
        """
        self._commits = commits.SentCommits()
        opened = self._opened = object()

        def hear(step: Callable[..., object], *args: object) -> None:
            if self._opened is opened:  # otherwise an earlier client is still closing
                step(*args)

        def rebalance(step: Callable[[list[TopicPartition]], None]) -> Callable[..., None]:
            return lambda _, raw: hear(
                self._safely, step, [TopicPartition(one.topic, one.partition) for one in raw]
            )

        callbacks = {"error_cb": partial(hear, self._on_error, None), "on_commit": self._commits.on_commit}
        watched = self._brokers.watching({**self.config, **callbacks})
        self._consumer = consumer = configuration.make_client(self.make_consumer, watched)
        incremental, resets = configuration.is_cooperative(self.config), self.offset_reset != "error"
        self._held = HeldPartitions(consumer, self.hooks.post_error, incremental=incremental, resets=resets)
        ends = Ends(consumer, self.hooks.post_error)
        self._watch = MemberWatch(ends, self.hooks, self.topic_ids, self.group_watch, self._brokers)
        self._pending = PendingPartitions(
            consumer,
            self.offset_reset,
            has_offsets=self.has_offsets,
            topic_ids=self.topic_ids.ask,
            whole=not incremental,
            on_error=self.hooks.post_error,
            begun=begun,
        )
        consumer.subscribe(
            self.topics,
            on_assign=rebalance(self._on_assign),
            on_revoke=rebalance(partial(self._on_gone, lost=False)),
            on_lost=rebalance(partial(self._on_gone, lost=True)),
        )

    def fetch(self, room: int, timeout: float) -> None:
        """Pause or resume by `room`, poll, put chunks into `ready`; return once there are some, something else waits
        for this thread, or `timeout` seconds are over. Raises `KafkaError` for what does not recover by itself."""
        self._raise_failure()
        if self._brokers.stranded:
            self._replace_client(client_errors.STRANDED)
        if self.membership is Membership.REJOINING and time.monotonic() >= self._rejoin_due:
            self._safely(self._rejoin)
        if self._held.note_full(room, waits=bool(self.ready)):
            time.sleep(min(timeout, _ROOM_POLL))
            return
        self._held.set_full(room <= 0)
        self._safely(self._seek)
        if not self.ready:  # otherwise a fetch was cancelled: hand out what it consumed first
            # Ask, poll, start, in this order: only a poll shows that a partition was revoked or lost while its start
            # was asked for. If a lost partition were assigned then, librdkafka would report it as revoked. (Behind a
            # thousand records that were fetched ahead, the poll may miss it. Then the broker refuses the commit.)
            some_can_start = self._pending.ask()
            # Partitions that can start, or wait for their seek or turn, must not wait for records of others. While the
            # member joins, nor must its next question to the coordinator: it is ready only when that is answered.
            asks_at = self._watch.due if self.membership is Membership.JOINING else math.inf
            until_due = max(0.0, min(self._held.due, asks_at) - time.monotonic())
            self._consume(room, 0.0 if some_can_start else min(timeout, until_due), some_can_start)
            self._held.begin_turn(self._polled)
            self._safely(self._start_reading)
        if time.monotonic() >= self._watch.due:
            # Under KIP-848 an assignment without partitions brings no callback. That this member has joined is known
            # only from the coordinator, which lists it among the members.
            silent = self.membership is Membership.JOINING and configuration.uses_consumer_protocol(
                self.config
            )
            if self._watch.refresh(self._held, self._consumer.memberid() or "" if silent else None):
                self._become(Membership.JOINED)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def send_commit(
        self, positions: Sequence[Position], epochs: Sequence[int], answer: commits.Answer
    ) -> None:
        """Send a commit of the positions whose partitions are still held in the epochs beside them."""
        # Positions of an earlier assignment are never committed, even if the partition was assigned to us again.
        ours = self._still_ours(positions, epochs)
        omitted = None if len(ours) == len(positions) else client_errors.ASSIGNMENT_LOST
        if not ours:
            answer(commits.commit_done((), omitted))
            return
        try:
            self._consumer.commit(offsets=[commits.raw_partition(*one) for one in ours], asynchronous=True)
        except KafkaException as error:
            answer(commits.commit_done((), client_errors.cause_of(error).name()))
        else:
            self._commits.sent.append(commits.Sent(ours, omitted, answer))  # answered in a later poll

    def close(self, positions: Sequence[Position], epochs: Sequence[int], deadline: float) -> None:
        """Commit and leave the group. Revocations while it leaves do not call the hooks any more.

        `deadline` (monotonic) is for commit and leaving together. Waiting for the brokers can take longer: then the
        caller stops waiting.
        """
        self._become(Membership.LEAVING)
        begun = time.monotonic()
        until = begun + max(0.0, deadline - begun) * _LEAVING_SHARE
        commits.commit_last(self._consumer, self._still_ours(positions, epochs), until, self.hooks.post_error)
        # With partitions, closing leaves the group by revoking them. A static member does not leave, on purpose: it
        # will come back.
        if not self._held.started and not self.config.get("group.instance.id"):
            commits.leave_without_partitions(self._consumer, self.config, until)
        try:
            self._consumer.close()
        finally:
            self.topic_ids.close()
        self._commits.drop("_DESTROY")  # answers come in polls, and there are none any more
        self._become(Membership.LEFT)
        self._failure = KafkaError("the Kafka consumer is closed: create a new one")

    def restart_partitions(self, partitions: Sequence[TopicRecreated]) -> None:
        """Read these partitions from the beginning with the next fetch, if they are still held in the given epochs."""
        for one in partitions:
            self._held.restart(one)

    def end_offsets(self) -> EndOffsets:
        """Return the known ends of the held partitions; may be called by other threads.

        `EndOffsets.joined`: the group has assigned our partitions, even if there are none for us.
        """
        return EndOffsets(
            self._watch.ends.ends,
            self._watch.ends.reached,
            len(self._pending.waiting),
            self._held.unreadable(),
            self._watch.ends.begins,
            self.membership is Membership.JOINED,
            self._brokers.coordinator_silent,
        )

    # ------------------------------------------------------------------------------------------- polling

    def _consume(self, room: int, timeout: float, some_can_start: bool) -> None:
        # librdkafka reports a revocation that was queued before the deadline passed as if it were in time (librdkafka
        # #5604). So this clock decides what is lost.
        self._late = time.monotonic() - self._polled >= self._max_idle
        held = self._held
        # The first partitions start at a poll; one that waits for its start is looked for as often as a commit.
        check_every = CHECK_SECONDS if held.started else CHECK_SECONDS / 2
        if held.started and held.inbox.idle and not self._pending.waiting:
            check_every = IDLE_CHECK_SECONDS
        taken = held.inbox.take(room, timeout, partial(self._has_other_work, some_can_start), check_every)
        held.inbox.keep(held.started)
        self._polled = time.monotonic()
        if not taken.messages:
            return
        # Only partitions that are held now: a rebalance while records were taken may have revoked some.
        for chunk in taken.chunks(held.epoch):
            name = TopicPartition(chunk.topic, chunk.partition)
            reading = held.started[name]
            first, last = chunk.records[0].offset, chunk.records[-1].offset
            expected = reading.expected(first)
            # Behind a hole the engine needs to know whether retention made it.
            if expected != first or last - first >= len(chunk.records):
                chunk = chunk._replace(log_start=self._watch.ends.known(name)[0])
            if first < expected:  # the log was cut, or the topic was created again
                self.topic_ids.expire_cache()
            self.ready.append(chunk)
            reading.next = commits.raw_partition(*name, last + 1, chunk.leader_epoch)
            reading.unreadable = None
        for name, why in taken.damaged.items():
            if held.epoch(name) is not None:
                held.stop(name, why, "the broker sent damaged data")
        for message in taken.errors:
            if (error := message.error()) is not None:
                self._on_error(TopicPartition(message.topic() or "", message.partition() or 0), error)

    def _has_other_work(self, can_start: bool) -> bool:
        """Return whether to wait for no more records: a commit or a partition waits for this thread, or it failed."""
        now = time.monotonic()
        is_due = can_start or self._pending.is_due(now) or now >= self._held.due
        return is_due or self.is_wanted() or self.membership not in (Membership.JOINING, Membership.JOINED)

    def _seek(self) -> None:
        if begun := self._held.seek():
            self.hooks.assigned(begun)

    # -------------------------------------------------------------------------------------- rebalancing

    def _safely(self, step: Callable[..., object], *args: object) -> None:
        """Call `step`. No exception may pass through librdkafka: the fetch under way, or the next one, raises it."""
        try:
            step(*args)
        except TimeoutError:
            self._replace_client(client_errors.STARVED)
        except Exception as error:
            self._fail(error)

    def _on_assign(self, names: list[TopicPartition]) -> None:
        # librdkafka waits for this answer. The partitions start later, once the brokers have reported their starts, and
        # between two consumes: so all that one consume brings belongs to one assignment, even if a partition was
        # revoked and assigned again during it.
        self._held.assign([])
        self.group_watch.expire_cache()
        if self.membership is Membership.LEAVING:  # the assignment was under way when leaving began
            return
        if self.membership is Membership.JOINING:
            self._become(Membership.JOINED)
        self._was_assigned = self._was_assigned or bool(names)
        self._pending.add(names)

    def _start_reading(self) -> None:
        """Start the partitions that were assigned, as far as the brokers have reported their starts."""
        found = self._pending.take()
        if not found:
            return
        given = self._held.start(found)
        self._seek()
        self.hooks.assigned(given)

    def _on_gone(self, names: list[TopicPartition], *, lost: bool) -> None:
        # Partitions of a member that did not poll in time are lost, even if librdkafka calls them revoked: dropped, and
        # never committed.
        lost = lost or self._late
        # Partitions that wait for their start were never reported to the event loop.
        begun = [name for name in names if name in self._held.started]
        try:
            if begun and self.membership is not Membership.LEAVING:
                self._hand_back(begun, lost=lost)
        finally:  # even after an error: librdkafka waits for this answer, and so does the group
            if lost and self.membership is Membership.JOINED:
                self._become(Membership.JOINING)
            self.group_watch.expire_cache()
            for name in names:
                self._pending.discard(name)
            try:
                self._held.remove(names)
            except KafkaException as error:
                text = "a single partition could not be unassigned"
                self.hooks.post_error(client_errors.cause_of(error).name(), text)

    def _hand_back(self, begun: list[TopicPartition], *, lost: bool) -> None:
        """Have the listener drain these partitions, and commit the positions that it returns; or report them as
        lost."""
        if lost:
            self.hooks.lost(begun)
            return
        try:
            positions = self.hooks.revoked(begun)
        except TimeoutError:
            text = "partitions were not drained in time and are given back undrained"
            self.hooks.post_error("_TIMED_OUT", text)
            self.hooks.lost(begun)
            return
        # The listener may return positions of other partitions, too; only the revoked ones may be committed now. Epochs
        # need no check here: the positions are of the listener's present assignments. A partition that waits for the
        # seek into a recreated topic has none, because the engine ends the old assignment before it asks for the new
        # one (`restart_partitions`).
        ours = [one for one in positions if one[:2] in begun]
        commits.commit_last(self._consumer, ours, time.monotonic() + _REVOKED_WITHIN, self.hooks.post_error)

    def _still_ours(self, positions: Sequence[Position], epochs: Sequence[int]) -> list[Position]:
        held = {name: one.epoch for name, one in self._held.started.items()}
        both = zip(positions, epochs, strict=True)
        return [one for one, epoch in both if held.get(TopicPartition(*one[:2])) == epoch]

    def _rejoin(self) -> None:
        """Replace a client that has become useless; its partitions are lost.

        The brokers forgot the group (another cluster stands in place of this one; a member of a classic group gets over
        this by itself), the client lost its brokers (`BrokerWatch.stranded`), or the event loop was too busy to take
        part in a rebalance.
        """
        try:
            if msk.asked(self.config):
                msk.tokens_for(self.config)
            configuration.check_files(self.config)
        except (msk.NoToken, SettingsError) as error:
            # No client can be made without a token, or while a certificate is replaced. Fetches come many times a
            # second, and asking AWS for a token may take longer than a fetch.
            self._rejoin_due = time.monotonic() + _REJOIN_EVERY
            text = f"the group cannot be joined again yet; next attempt in {_REJOIN_EVERY:g} s ({error})"
            self.hooks.post_error("_AUTHENTICATION", text)
            return
        why = client_errors.STRANDED if self._brokers.stranded else self._useless
        if why is not None:
            self.hooks.post_error(*why)
        if lost := list(self._held.started):
            self.hooks.lost(lost)  # if the event loop is still too busy, the next fetch comes here again
            self._held.started.clear()
        if self._brokers.stranded:
            # Closing may never end, because it waits for the answers to commits. The group ends the membership with the
            # session.
            self._opened = object()
            run_aside("pinstream-kafka-ending", partial(_close, self._consumer))
        else:
            self._consumer.close()
        self._commits.drop(client_errors.ASSIGNMENT_LOST)
        self.group_watch.expire_cache()
        if self.membership is Membership.REJOINING:  # an error that closing brought does not pass
            self._become(Membership.JOINING)
        self._open(begun=self._pending.begun)

    # ------------------------------------------------------------------------------------------- errors

    def _on_error(self, name: TopicPartition | None, error: confluent_kafka.KafkaError) -> None:
        """Handle an error of this partition, or of the client."""
        self._brokers.heard(error)
        if error.code() in client_errors.OTHER_TOPIC:
            self.topic_ids.expire_cache()
        if name and name.topic and error.code() in client_errors.MISSING_TOPIC and not self._was_assigned:
            text = f"Kafka: the topic {name.topic} does not exist: create it, or correct KAFKA_TOPICS"
            self._fail(KafkaError(text))
        elif error.code() == _Code._FATAL and client_errors.cause_code(error) == _Code.GROUP_ID_NOT_FOUND:
            self._replace_client(client_errors.FORGOTTEN)
        elif (
            name in self._held.started
            and error.code() == _Code._AUTO_OFFSET_RESET
            and client_errors.is_unjudged_login(error)
        ):
            # librdkafka gives the partition up here, while it repeats all else that such a login interrupts.
            self._held.stop(name, error, "the client had to log in when it asked for the beginning")
        elif (fatal := client_errors.as_fatal(error, name) or self._tls_files.explain(error)) is not None:
            self._fail(fatal)
        else:
            self._report_error(error)


def _close(consumer: confluent_kafka.Consumer) -> None:
    with contextlib.suppress(KafkaException):
        consumer.close()
