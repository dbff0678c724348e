"""A member of the group, inside the consumer's own thread: all use of `confluent_kafka.Consumer` is here.

Every method and callback runs in that thread, which reaches the event loop through `Hooks`. Rebalance callbacks run
inside `fetch` and `close`, call the listener through the hooks, and block until it answers or its time is over.

*Fencing.* Each assignment of a partition gets an epoch that no other in this process has.

*Another life.* A topic that was deleted and created again has another id (`consumer.adapters.kafka.topic_ids`). The
engine gets the ids every few seconds; partitions that it wants to have read again start at the beginning, under a new
epoch.

*Seeks.* A new life and a damaged batch (see `chunks`) both lead back to an offset. And librdkafka asks whether a log
still has what was committed (KIP-320, by the leader epoch) for an offset that it seeks to, not for one that it is
assigned: a log that was cut and has grown again since would be read on in its middle. So each start that has an epoch
is sought to at once. Until the seek (`_read_again`), fetched records of the partition are dropped.

*Pauses* are for lack of room, for damage, and while other partitions have their turn (`ends.Turns`).
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
from consumer.adapters.kafka.chunks import GATHER_SECONDS, LOOK_SECONDS, Inbox
from consumer.adapters.kafka.configuration import (
    BrokerWatch,
    check_files,
    is_cooperative,
    make_client,
    uses_consumer_protocol,
)
from consumer.adapters.kafka.ends import Ends, Turns
from consumer.adapters.kafka.groups import GroupWatch
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.starts import StartedPartition, Unstarted
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.adapters.thread import run_aside
from consumer.engine.figures.outside import silence_of_coordinator
from consumer.engine.messages import Assignment, BrokersTold, EndOffsets, GroupSize, NewLife, TopicIdsTold
from consumer.engine.model import Chunk, Position, TopicPartition
from consumer.errors import KafkaError, SettingsError

_Code: Final = confluent_kafka.KafkaError

_MOST_IDLE_MS: Final = 300_000  # librdkafka's default of max.poll.interval.ms

# Seconds in which the last commit of a revoked partition is tried again: far less than a rebalance may take.
_REVOKED_WITHIN: Final = 3.0
# Share of the time for leaving for the last commit and for a rebalance. The rest is for the LeaveGroup request itself.
_LEAVING_SHARE: Final = 0.9

# Seconds until a partition that could not be read is tried again: the first time, and at most.
_FIRST_DELAY: Final = 0.5
_MOST_DELAY: Final = 30.0

# Seconds between two attempts to replace a client while none can be made; librdkafka asks for tokens as seldom.
_REJOIN_EVERY: Final = 10.0

_SEEKING: Final = 0.1
"""Seconds for seeks between two polls: one takes some 50 µs, and a member may hold thousands of partitions."""
_SEEK_AGAIN: Final = 0.01
"""Seconds until a start is sought again: librdkafka begins a partition some milliseconds after it was assigned, and
none while a commit is under way, or one ends."""
_SEEK_AGAIN_EACH: Final = 0.0001
"""The same for each partition that is held, where there are many."""

_FULL_FOR: Final = 1.0
"""Seconds without room after which partitions are paused."""
_LOOK_FOR_ROOM: Final = 0.005

_epochs = itertools.count(1)


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
    """Returns whether the group has committed any offset, see `starts.Unstarted`."""
    timeout: float
    """Seconds that the brokers have to say where a partition starts."""
    topic_ids: TopicIds
    """Closed with the member."""
    group_watch: GroupWatch
    """Closed with the member."""
    is_wanted: Callable[[], bool]
    """Returns whether something else than a fetch waits for the thread."""
    make_consumer: Callable[[dict[str, Any]], confluent_kafka.Consumer]

    def __post_init__(self) -> None:
        self._most_idle = float(self.config.get("max.poll.interval.ms", _MOST_IDLE_MS)) / 1000
        self._tls_files = trouble.TlsFiles(self.config)
        self._tell = trouble.Teller(self.hooks.trouble)
        self._watch = BrokerWatch(
            lambda told: self.hooks.tell(BrokersTold("consumer", told)),
            lambda silence: self.hooks.tell(silence),
        )
        self._paused = False
        self._full_since = math.inf
        """Time (monotonic) since which there is no room; infinite: there is room, or the partitions are paused
        already."""
        self._polled = time.monotonic()
        self._late = False
        """Whether the last poll is so long ago that the group has reassigned our partitions, or is about to."""
        self._was_assigned = False
        self._closing = False
        self._rejoin_due = 0.0
        self._failure: Exception | None = None
        self._open()

    def _open(self, *, begun: bool = False) -> None:
        """Make a client and subscribe. `begun`: an earlier client has started partitions.

        The assignment comes with a later `fetch`. All state that belongs to one client is made here.
        """
        self._held: dict[TopicPartition, StartedPartition] = {}
        # Time of the next search for partitions to read again; infinite while there are none: thousands may be held.
        self._again_due = math.inf
        self._left_paused: set[TopicPartition] = set()
        """The partitions that librdkafka has paused, held or not."""
        self._joined = False
        self._useless: tuple[str, str] | None = None
        """Why this client has to be replaced, as code and text."""
        self._commits = commits.SentCommits()
        life = self._life = object()

        def hear(step: Callable[..., object], *args: object) -> None:
            if self._life is life:  # otherwise an earlier client is still closing
                step(*args)

        def rebalance(step: Callable[[list[TopicPartition]], None]) -> Callable[..., None]:
            return lambda _, raw: hear(
                self._safely, step, [TopicPartition(one.topic, one.partition) for one in raw]
            )

        callbacks = {"error_cb": partial(hear, self._on_error, None), "on_commit": self._commits.on_commit}
        self._consumer = make_client(self.make_consumer, self._watch.watching({**self.config, **callbacks}))
        self._inbox, self._turns = Inbox(self._consumer, gather=GATHER_SECONDS), Turns()
        self._ends = Ends(self._consumer, self.hooks.trouble)
        # Eager: an assignment has all partitions. Those held before were revoked first, and all start together.
        cooperative = is_cooperative(self.config)
        self._assign = self._consumer.incremental_assign if cooperative else self._consumer.assign
        self._unstarted = Unstarted(
            self._consumer,
            self.offset_reset,
            has_offsets=self.has_offsets,
            topic_ids=self.topic_ids.ask,
            whole=not cooperative,
            timeout=self.timeout,
            on_trouble=self.hooks.trouble,
            begun=begun,
        )
        self._consumer.subscribe(
            self.topics,
            on_assign=rebalance(self._on_assign),
            on_revoke=rebalance(partial(self._on_gone, lost=False)),
            on_lost=rebalance(partial(self._on_gone, lost=True)),
        )

    def fetch(self, room: int, timeout: float) -> None:
        """Pause or resume by `room`, poll, put chunks into `ready`; return once there are some, something else waits
        for this thread, or `timeout` seconds are over. Raises `KafkaError` for what does not recover by itself."""
        if self._failure is not None:
            raise self._failure
        if (self._useless or self._watch.stranded) and time.monotonic() >= self._rejoin_due:
            self._safely(self._rejoin)
        if self._is_full_for_a_moment(room):
            time.sleep(min(timeout, _LOOK_FOR_ROOM))
            return
        if self._paused != (room <= 0):
            self._paused, self._again_due = room <= 0, 0.0
            self._turns.due = math.inf if self._paused else 0.0
            self._turns.next(self._held, True, time.monotonic())
            self._set_pause(self._held)
        self._safely(self._read_again)
        if not self.ready:  # otherwise a fetch was cancelled: hand out what it consumed first
            # Ask, poll, start, in this order: only a poll shows that a partition was revoked or lost while its start
            # was asked for. If a lost partition were assigned then, librdkafka would report it as revoked. (Behind a
            # thousand records that were fetched ahead, the poll may miss it. Then the broker refuses the commit.)
            some_can_start = self._unstarted.ask()
            # Partitions that can start, or wait for their seek or turn, must not wait for records of others.
            until_due = max(0.0, min(self._again_due, self._turns.due) - time.monotonic())
            self._consume(room, 0.0 if some_can_start else min(timeout, until_due), some_can_start)
            if turned := self._turns.next(self._held, self._inbox.drained, self._polled):
                self._set_pause(turned)
            self._safely(self._start_reading)
        self._look_at_ends()
        if self._failure is not None:
            raise self._failure

    def send_commit(
        self, positions: Sequence[Position], epochs: Sequence[int], answer: commits.Answer
    ) -> None:
        """Send a commit of the positions whose partitions are still held in the epochs beside them."""
        # Positions of an earlier assignment are never committed, even if the partition was assigned to us again.
        ours = self._still_ours(positions, epochs)
        left_out = None if len(ours) == len(positions) else trouble.ASSIGNMENT_LOST
        if not ours:
            answer(commits.commit_done((), left_out))
            return
        try:
            self._consumer.commit(offsets=[commits.raw_partition(*one) for one in ours], asynchronous=True)
        except KafkaException as error:
            answer(commits.commit_done((), trouble.cause_of(error).name()))
        else:
            self._commits.sent.append(commits.Sent(ours, left_out, answer))  # answered in a later poll

    def close(self, positions: Sequence[Position], epochs: Sequence[int], deadline: float) -> None:
        """Commit and leave the group. Revocations meanwhile do not call the hooks any more.

        `deadline` (monotonic) is for commit and leaving together. Waiting for the brokers can take longer: then the
        caller stops waiting.
        """
        self._closing = True
        begun = time.monotonic()
        until = begun + max(0.0, deadline - begun) * _LEAVING_SHARE
        commits.commit_last(self._consumer, self._still_ours(positions, epochs), until, self.hooks.trouble)
        # With partitions, closing leaves the group by revoking them. A static member does not leave, on purpose: it
        # will come back.
        if not self._held and not self.config.get("group.instance.id"):
            commits.leave_without_partitions(self._consumer, self.config, until)
        try:
            self._consumer.close()
        finally:
            self.topic_ids.close()
            self.group_watch.client.close()
        self._commits.drop("_DESTROY")  # answers come in polls, and there are none any more
        self._failure = KafkaError("the Kafka consumer is closed: create a new one")

    def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """Read these partitions from the beginning with the next fetch, if they are still held in the given epochs."""
        for one in partitions:
            name = TopicPartition(one.topic, one.partition)
            reading = self._held.get(name)
            if reading is not None and reading.epoch == one.epoch:
                # With a new epoch, records of the earlier life are never settled and never committed.
                beginning = commits.raw_partition(*name, self._known_beginning(0), None)
                self._held[name] = StartedPartition(
                    next(_epochs), beginning, again=0.0, beginning=0, new_life=one
                )
                self._again_due = 0.0

    def _known_beginning(self, offset: int | None) -> int | None:
        """Return the offset from which to read from the beginning; None: the client has to ask for it."""
        # That question waits behind the fetch that is under way, and the partition then for the next one. If the offset
        # does not exist any more, the client asks all the same, but for ``error``, under which it would end the run.
        return None if self.offset_reset == "error" else offset

    def end_offsets(self) -> EndOffsets:
        """Return the known ends of the held partitions; may be called by other threads.

        `EndOffsets.joined`: the group has assigned our partitions, even if there are none for us.
        """
        return EndOffsets(
            self._ends.ends,
            self._ends.reached,
            len(self._unstarted.waiting),
            # The copy is one step of the interpreter: the thread cannot change the dictionary meanwhile. It may change
            # `unreadable`, so that is read once.
            {name: at for name, one in self._held.copy().items() if (at := one.unreadable) is not None},
            self._ends.begins,
            self._joined,
            self._watch.coordinator_silent,
        )

    # ------------------------------------------------------------------------------------------- polling

    def _is_full_for_a_moment(self, room: int) -> bool:
        """Return whether to wait without a poll: there is no room, but there was some a moment ago."""
        # A pause is expensive. librdkafka throws away what it has fetched ahead, and after the resume it does not fetch
        # before its broker threads look again, once a second: calls to a destination that answers within that time
        # would go out in bursts. Only polls bring rebalances and the answers to commits, so this wait lasts a second at
        # most.
        now, is_full = time.monotonic(), room <= 0 and not self._paused and not self.ready
        self._full_since = min(self._full_since, now) if is_full else math.inf
        return is_full and now - self._full_since < _FULL_FOR

    def _set_pause(self, names: Iterable[TopicPartition]) -> None:
        """Pause those of these partitions that rest, all without room; resume the others that are paused."""
        stop = [one for one in names if self._paused or one in self._turns.resting]
        # Resuming a partition that was never paused does harm: librdkafka fetches again from where the partition last
        # started, although records from there were handed out meanwhile (librdkafka #4637).
        left = self._left_paused.difference(stop)
        go = [one for one in names if one in left and self._held[one].again == math.inf]
        self._left_paused = left.difference(go).union(stop)
        for change, some in ((self._consumer.pause, stop), (self._consumer.resume, go)):
            if some:
                change([RawPartition(*name) for name in some])

    def _consume(self, room: int, timeout: float, some_can_start: bool) -> None:
        # librdkafka reports a revocation that was queued before the deadline passed as if it were in time (librdkafka
        # #5604). So this clock decides what is lost.
        self._late = time.monotonic() - self._polled >= self._most_idle
        look = LOOK_SECONDS / (1 if self._held else 2)  # the first partitions start at a look
        taken = self._inbox.take(room, timeout, partial(self._has_other_work, some_can_start), look)
        self._inbox.keep(self._held)
        self._polled = time.monotonic()
        if not taken.messages:
            return

        def epoch_of(name: TopicPartition) -> int | None:
            # Only partitions that are held now: a rebalance while records were taken may have revoked some.
            reading = self._held.get(name)
            return None if reading is None or reading.again < math.inf else reading.epoch

        for chunk in taken.chunks(epoch_of):
            name = TopicPartition(chunk.topic, chunk.partition)
            reading = self._held[name]
            first, last = chunk.records[0].offset, chunk.records[-1].offset
            expected = reading.expected(first)
            # Behind a hole the engine needs to know whether retention made it.
            if expected != first or last - first >= len(chunk.records):
                chunk = chunk._replace(log_start=self._ends.known(name)[0])
            if first < expected:  # the log was cut, or the topic was created again
                self.topic_ids.hurry()
            self.ready.append(chunk)
            reading.next = commits.raw_partition(*name, last + 1, chunk.leader_epoch)
            reading.unreadable = None
        for name, why in taken.damaged.items():
            if epoch_of(name) is not None:
                self._stop_reading(name, why, "the broker sent damaged data")
        for message in taken.errors:
            if (error := message.error()) is not None:
                self._on_error(TopicPartition(message.topic() or "", message.partition() or 0), error)

    def _has_other_work(self, can_start: bool) -> bool:
        """Return whether to wait for no more records: a commit or a partition waits for this thread, or it failed."""
        now = time.monotonic()
        is_due = can_start or self._unstarted.is_due(now) or now >= min(self._again_due, self._turns.due)
        return is_due or self.is_wanted() or self._failure is not None or self._useless is not None

    def _stop_reading(self, name: TopicPartition, error: confluent_kafka.KafkaError, why: str) -> None:
        """Stop reading a partition that cannot be read on: pause it, drop its records, and try again after a while."""
        reading = self._held[name]
        offset = max(reading.next.offset, 0)
        # The same offset as before: it is likely damaged on the broker's disk, and each attempt costs a fetch.
        same = reading.unreadable == offset
        reading.delay = min(2 * reading.delay, _MOST_DELAY) if same else _FIRST_DELAY
        reading.unreadable, reading.again = offset, time.monotonic() + reading.delay
        self._again_due = min(self._again_due, reading.again)
        self._left_paused.add(name)
        self._consumer.pause([RawPartition(*name)])
        at = "its beginning" if reading.next.offset == OFFSET_BEGINNING else f"offset {offset}"
        self.hooks.trouble(
            error.name(),
            f"{name} cannot be read further than {at}: {why}, and nothing after it is read until it can be; "
            f"next attempt in {reading.delay:g} s ({trouble.words(error)})",
        )

    def _read_again(self) -> None:
        """Seek to where reading starts, or stopped, or to the beginning of a new life, in partitions for which this is
        due."""
        now = time.monotonic()
        if now < self._again_due:
            return
        self._again_due = math.inf
        sought: set[TopicPartition] = set()
        begun: list[Assignment] = []
        for name, reading in self._held.items():
            if reading.again > now or time.monotonic() - now >= _SEEKING:
                self._again_due = min(self._again_due, reading.again)
                continue
            starts = reading.new_life is None and reading.unreadable is None
            # Without room a damaged batch is not fetched again; `fetch` makes this due once there is room.
            if self._paused and not starts and reading.new_life is None:
                continue
            reading.again = math.inf
            try:
                # The seek discards all that librdkafka has of the partition, so it comes last.
                self._set_pause([name])
                self._consumer.seek(reading.next)
            except KafkaException as failure:
                if starts:  # librdkafka has not begun to read it yet
                    reading.again = now + max(_SEEK_AGAIN, _SEEK_AGAIN_EACH * len(self._held))
                    self._again_due = min(self._again_due, reading.again)
                else:
                    self._stop_reading(name, trouble.cause_of(failure), "the client cannot go there yet")
                continue
            sought.add(name)
            if reading.new_life is not None:
                # No damage is known in a new life, and a record that would show this may never come.
                life, reading.new_life, reading.unreadable = reading.new_life, None, None
                begun.append(
                    Assignment(*name, reading.epoch, None, False, topic_id=life.topic_id, beginning=0)
                )
        self._inbox.keep(self._held.keys() - sought)
        if begun:
            self.hooks.assigned(begun)

    def _look_at_ends(self) -> None:
        if time.monotonic() < self._ends.due:
            return
        if (seconds := self._watch.coordinator_silent) is not None:
            self.hooks.trouble("_WAIT_COORD", silence_of_coordinator(seconds).sentence)
        # The consumer counts records as read that the inbox keeps back, or that were dropped behind a damaged batch.
        unreadable = {name: one.unreadable for name, one in self._held.items() if one.unreadable is not None}
        unread = {**self._inbox.first_offsets(), **unreadable}
        if self._ends.look(self._held, unread, paused=self._paused):
            self.topic_ids.hurry()
        self._turns.look(self._held, self._ends, math.inf if self._paused else time.monotonic())
        if ids := self.topic_ids.look({name.topic for name in self._held}):
            self.hooks.tell(TopicIdsTold(ids))
        # Under KIP-848 an assignment without partitions brings no callback. That this member has joined is known only
        # from the coordinator, which lists it among the members.
        silent = not self._joined and uses_consumer_protocol(self.config)
        us = self._consumer.memberid() or "" if silent else None
        if not silent and not self.hooks.counts_members:
            return
        size = self.group_watch.look(us)
        self._joined = self._joined or us in self.group_watch.members
        if size is not None and self.hooks.counts_members:
            self.hooks.tell(GroupSize(size))

    # -------------------------------------------------------------------------------------- rebalancing

    def _safely(self, step: Callable[..., object], *args: object) -> None:
        """Call `step`. No exception may pass through librdkafka: the fetch under way, or the next one, raises it."""
        try:
            step(*args)
        except TimeoutError:
            self._useless = self._useless or trouble.STARVED
        except Exception as error:
            self._failure = self._failure or error

    def _on_assign(self, names: list[TopicPartition]) -> None:
        # librdkafka waits for this answer. The partitions start later, once the brokers have reported their starts, and
        # between two consumes: so all that one consume brings belongs to one assignment, even if a partition was
        # revoked and assigned again during it.
        self._assign([])
        self.group_watch.hurry()
        if self._closing:  # the assignment was under way when leaving began: it will not be read
            return
        self._joined = True
        self._was_assigned = self._was_assigned or bool(names)
        self._unstarted.add(names)

    def _start_reading(self) -> None:
        """Start the partitions that were assigned, as far as the brokers have reported their starts."""
        found = self._unstarted.take()
        if not found:
            return
        places = [
            commits.raw_partition(
                *name,
                self._known_beginning(one.beginning) if one.start is None else one.start,
                one.leader_epoch,
            )
            for name, one in found.items()
        ]
        self._assign(places)
        given = [one._replace(epoch=next(_epochs)) for one in found.values()]
        for name, place, one in zip(found, places, given, strict=True):
            # Without an epoch there is nothing to ask for, and before offset 0 there is nothing.
            again = math.inf if one.leader_epoch is None or not one.start else 0.0
            self._held[name] = StartedPartition(one.epoch, place, again, beginning=one.beginning)
        # librdkafka remembers a partition's pause beyond its assignment (and so did parallel-consumer #857). A pause
        # for lack of room applies to partitions that are assigned later, too.
        self._set_pause(found)
        self._again_due = 0.0
        self._read_again()
        self.hooks.assigned(given)

    def _on_gone(self, names: list[TopicPartition], *, lost: bool) -> None:
        # Partitions of a member that did not poll in time are lost, even if librdkafka calls them revoked: dropped, and
        # never committed.
        lost = lost or self._late
        # Partitions that wait for their start were never reported to the event loop.
        begun = [name for name in names if name in self._held]
        try:
            if begun and not self._closing:
                self._part_with(begun, lost=lost)
        finally:  # even after an error: librdkafka waits for this answer, and so does the group
            self._joined = self._joined and not lost
            self.group_watch.hurry()
            for name in names:
                self._unstarted.discard(name)
                self._held.pop(name, None)
                self._turns.resting.discard(name)
            try:
                if is_cooperative(self.config):
                    self._consumer.incremental_unassign([RawPartition(*name) for name in begun])
                else:
                    self._consumer.unassign()
            except KafkaException as error:
                text = "a single partition could not be unassigned"
                self.hooks.trouble(trouble.cause_of(error).name(), text)

    def _part_with(self, begun: list[TopicPartition], *, lost: bool) -> None:
        """Have the listener drain these partitions, and commit the positions that it returns; or report them as
        lost."""
        if lost:
            self.hooks.lost(begun)
            return
        try:
            positions = self.hooks.revoked(begun)
        except TimeoutError:
            text = "partitions were not drained in time and are given back undrained"
            self.hooks.trouble("_TIMED_OUT", text)
            self.hooks.lost(begun)
            return
        # The listener may return positions of other partitions, too; only the revoked ones may be committed now. Epochs
        # need no check here: the positions are of the listener's present assignments. A partition that waits for the
        # seek into a new life has none, because the engine ends the old life before it asks for the new one
        # (`read_anew`).
        ours = [one for one in positions if one[:2] in begun]
        commits.commit_last(self._consumer, ours, time.monotonic() + _REVOKED_WITHIN, self.hooks.trouble)

    def _still_ours(self, positions: Sequence[Position], epochs: Sequence[int]) -> list[Position]:
        held = {name: one.epoch for name, one in self._held.items()}
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
            check_files(self.config)
        except (msk.NoToken, SettingsError) as error:
            # No client can be made without a token, or while a certificate is replaced. Fetches come many times a
            # second, and asking AWS for a token may take longer than a fetch.
            self._rejoin_due = time.monotonic() + _REJOIN_EVERY
            text = f"the group cannot be joined again yet; next attempt in {_REJOIN_EVERY:g} s ({error})"
            self.hooks.trouble("_AUTHENTICATION", text)
            return
        stranded = self._watch.stranded
        if stranded:
            self._useless = trouble.STRANDED
        if self._useless is not None:
            self.hooks.trouble(*self._useless)
        if lost := list(self._held):
            self.hooks.lost(lost)  # if the event loop is still too busy, the next fetch comes here again
            self._held.clear()
        if stranded:
            # Closing may never end, because it waits for the answers to commits. The group ends the membership with the
            # session.
            self._life = object()
            run_aside("pinstream-kafka-ending", partial(_close, self._consumer))
        else:
            self._consumer.close()
        self._commits.drop(trouble.ASSIGNMENT_LOST)
        self.group_watch.hurry()
        self._open(begun=self._unstarted.begun)

    # ------------------------------------------------------------------------------------------- errors

    def _on_error(self, name: TopicPartition | None, error: confluent_kafka.KafkaError) -> None:
        """Handle an error of this partition, or of the client."""
        self._watch.heard(error)
        if error.code() in trouble.OTHER_TOPIC:
            self.topic_ids.hurry()
        if name and name.topic and error.code() in trouble.MISSING_TOPIC and not self._was_assigned:
            text = f"Kafka: the topic {name.topic} does not exist: create it, or correct KAFKA_TOPICS"
            self._failure = self._failure or KafkaError(text)
        elif error.code() == _Code._FATAL and trouble.cause_code(error) == _Code.GROUP_ID_NOT_FOUND:
            self._useless = trouble.FORGOTTEN
        elif (
            name in self._held
            and error.code() == _Code._AUTO_OFFSET_RESET
            and trouble.is_unjudged_login(error)
        ):
            # librdkafka gives the partition up here, while it repeats all else that such a login interrupts.
            self._stop_reading(name, error, "the client had to log in when it asked for the beginning")
        elif (fatal := trouble.as_fatal(error, name) or self._tls_files.explain(error)) is not None:
            self._failure = self._failure or fatal
        else:
            self._tell(error)


def _close(consumer: confluent_kafka.Consumer) -> None:
    with contextlib.suppress(KafkaException):
        consumer.close()
