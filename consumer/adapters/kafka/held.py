"""The partitions that a member holds: where reading goes on in each, which are paused, and whose turn it is.

*Seeks.* A recreated topic and a damaged batch (see `chunks`) both lead back to an offset. And librdkafka asks whether a
log still has what was committed (KIP-320, by the leader epoch) for an offset that it seeks to, not for one that it is
assigned: a log that was cut and has grown again since would be read on in its middle. So each start that has an epoch
is sought to at once. Until the seek, fetched records of the partition are dropped.

*Pauses* are for lack of room, for damage, and while other partitions have their turn.

*Turns.* librdkafka names all partitions in each fetch, and looks at each of them whenever it wakes. While a thousand
lag, that costs more than the records that a fetch brings, which are those of one partition. So where many lag they are
read in groups by turns. The others rest: they are paused. A turn ends when all that was fetched is taken, or soon
after: a pause discards what was fetched ahead. A partition rests for some seconds at most, and not where few lag.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.chunks import GATHER_SECONDS, Inbox
from consumer.adapters.kafka.commits import raw_partition
from consumer.engine.messages import Assignment, TopicRecreated
from consumer.engine.model import TopicPartition

# Seconds until a partition that could not be read is tried again: the first time, and at most.
_FIRST_DELAY: Final = 0.5
_MAX_DELAY: Final = 30.0

_SEEKING: Final = 0.1
"""Seconds for seeks between two polls: one takes some 50 µs, and a member may hold thousands of partitions."""
_SEEK_AGAIN: Final = 0.01
"""Seconds until a start is sought again: librdkafka begins a partition some milliseconds after it was assigned, and
none while a commit is under way, or one ends."""
_SEEK_AGAIN_EACH: Final = 0.0001
"""The same for each partition that is held, where there are many."""

_FULL_FOR: Final = 1.0
"""Seconds without room after which partitions are paused."""

_LAGS: Final = 64
"""Records by which a partition lags to count: more than what comes between two fetches of it at 50,000 a second."""
_GROUP: Final = 64
"""Partitions that are read at a time, at least; with two groups of those that lag, turns begin."""
_MAX_GROUPS: Final = 16
_TURN: Final = 0.1
"""Seconds of a turn if all that was fetched has been taken then."""
_LONGEST_TURN: Final = 0.3
"""Seconds of a turn, at the most: times the most groups, the longest that a partition rests."""

_epochs = itertools.count(1)


@dataclass(slots=True)
class StartedPartition:
    """A partition that is assigned and has started."""

    epoch: int
    next: RawPartition
    """Where reading goes on, behind the records that were handed out."""
    again: float = math.inf
    """Time of the seek to `next` (monotonic); infinite: no seek is due. Records that come until then are dropped."""
    unreadable: int | None = None
    """The offset from which the partition could not be read, until a record comes."""
    delay: float = 0.0
    """Seconds between the last two attempts to read at that offset."""
    beginning: int | None = None
    """Where the log began when it was assigned, if reading starts there; None: not known."""
    recreated: TopicRecreated | None = None
    """The recreated topic to report as assigned once the seek is made."""

    def expected(self, first: int) -> int:
        """Return the offset of the next record if none is missing; `first`: that of the record that came."""
        if self.next.offset != OFFSET_BEGINNING:
            return self.next.offset
        return first if self.beginning is None else self.beginning


@dataclass(eq=False)
class Turns:
    """Whose turn it is to be read, where many partitions lag. Times are monotonic."""

    resting: set[TopicPartition] = field(default_factory=set)
    """The partitions that wait for their turn."""
    due: float = math.inf
    """When the next turn may begin; infinite: there are no turns, or all is paused. After such a pause, which has
    discarded what was fetched ahead, the next turn may begin at once."""
    _groups: int = 1
    _turn: int = 0

    def plan(self, lags: Collection[int], now: float) -> None:
        """Take by how many records each held partition lags. `now`: when turns may begin; infinite without room."""
        lagging = sum(lag >= _LAGS for lag in lags)
        self._groups = min(_MAX_GROUPS, len(lags) // _GROUP) if lagging >= 2 * _GROUP else 1
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


@dataclass(eq=False)
class HeldPartitions:
    """The partitions of one client that have started. Used in the consumer's thread."""

    consumer: Consumer
    on_error: client_errors.OnError
    _: KW_ONLY
    incremental: bool
    """Whether assignments are."""
    resets: bool
    """Whether the client may go to the beginning of a log by itself."""
    started: dict[TopicPartition, StartedPartition] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)
    full: bool = False
    """Whether all are paused for lack of room."""
    _full_since: float = math.inf
    """Time (monotonic) since which there is no room; infinite: there is room, or `full` is set already."""
    _seek_due: float = math.inf
    """Time of the next search for partitions to seek in; infinite while there are none: thousands may be held."""
    _paused: set[TopicPartition] = field(default_factory=set)
    """The partitions that librdkafka has paused, held or not."""

    def __post_init__(self) -> None:
        # Eager: an assignment has all partitions. Those held before were revoked first, and all start together.
        self.assign = self.consumer.incremental_assign if self.incremental else self.consumer.assign
        self.inbox = Inbox(self.consumer, gather=GATHER_SECONDS)

    @property
    def due(self) -> float:
        """Return when a seek or a turn is due (monotonic)."""
        return min(self._seek_due, self.turns.due)

    # -- which there are

    def start(self, found: Mapping[TopicPartition, Assignment]) -> list[Assignment]:
        """Assign these partitions to the client. Return their assignments, each with an epoch that no other in this
        process has."""
        given = [one._replace(epoch=next(_epochs)) for one in found.values()]
        starts = [self._beginning(one.beginning) if one.start is None else one.start for one in given]
        places = [
            raw_partition(*name, start, one.leader_epoch)
            for name, start, one in zip(found, starts, given, strict=True)
        ]
        self.assign(places)
        for name, place, one in zip(found, places, given, strict=True):
            # Without an epoch there is nothing to ask for, and before offset 0 there is nothing.
            again = math.inf if one.leader_epoch is None or not one.start else 0.0
            self.started[name] = StartedPartition(one.epoch, place, again, beginning=one.beginning)
        # librdkafka remembers a partition's pause beyond its assignment (and so did parallel-consumer #857). A pause
        # for lack of room applies to partitions that are assigned later, too.
        self._set_pause(found)
        self._seek_due = 0.0
        return given

    def remove(self, names: Collection[TopicPartition]) -> None:
        """Forget these partitions and take them from the client. Raises `KafkaException`."""
        held = [RawPartition(*name) for name in names if self.started.pop(name, None) is not None]
        self.turns.resting.difference_update(names)
        if self.incremental:
            self.consumer.incremental_unassign(held)
        else:
            self.consumer.unassign()

    def restart(self, life: TopicRecreated) -> None:
        """Read a partition from its beginning with the next seek, if it is still held in the epoch of `life`."""
        name = TopicPartition(life.topic, life.partition)
        if (reading := self.started.get(name)) is not None and reading.epoch == life.epoch:
            # With a new epoch, records of the deleted topic are never settled and never committed.
            beginning = raw_partition(*name, self._beginning(0), None)
            self.started[name] = StartedPartition(
                next(_epochs), beginning, again=0.0, beginning=0, recreated=life
            )
            self._seek_due = 0.0

    def _beginning(self, offset: int | None) -> int | None:
        """Return the offset from which to read from the beginning; None: the client has to ask for it."""
        # That question waits behind the fetch that is under way, and the partition then for the next one. If the offset
        # does not exist any more, the client asks all the same, but for ``error``, under which it would end the run.
        return offset if self.resets else None

    def epoch(self, name: TopicPartition) -> int | None:
        """Return the epoch in which a partition is read now; None: it is not held, or waits for a seek."""
        reading = self.started.get(name)
        return None if reading is None or reading.again < math.inf else reading.epoch

    def unreadable(self) -> dict[TopicPartition, int]:
        """Return from where partitions cannot be read. May be called by other threads."""
        # The copy is one step of the interpreter: the thread cannot change the dictionary during it. It may change
        # `unreadable`, so that is read once.
        return {name: at for name, one in self.started.copy().items() if (at := one.unreadable) is not None}

    # -- pauses

    def note_full(self, room: int, *, waits: bool) -> bool:
        """Note since when there is no room. Return whether to wait without a poll: there is none, but there was some a
        moment ago. `waits`: whether fetched records wait to be handed out."""
        # A pause is expensive. librdkafka throws away what it has fetched ahead, and after the resume it does not fetch
        # before its broker threads look again, once a second: calls to a destination that answers within that time
        # would go out in bursts. Only polls bring rebalances and the answers to commits, so this wait lasts a second at
        # most.
        now, is_full = time.monotonic(), room <= 0 and not self.full and not waits
        self._full_since = min(self._full_since, now) if is_full else math.inf
        return is_full and now - self._full_since < _FULL_FOR

    def set_full(self, full: bool) -> None:
        """Pause all for lack of room, or resume those whose turn it is."""
        if self.full != full:
            self.full, self._seek_due = full, 0.0
            self.turns.due = math.inf if full else 0.0
            self.turns.next(self.started, True, time.monotonic())
            self._set_pause(self.started)

    def begin_turn(self, now: float) -> None:
        """Begin the next turn, if it is time."""
        if turned := self.turns.next(self.started, self.inbox.drained, now):
            self._set_pause(turned)

    def plan_turns(self, lags: Collection[int]) -> None:
        """Take by how many records each of the partitions lags."""
        self.turns.plan(lags, math.inf if self.full else time.monotonic())

    def _set_pause(self, names: Iterable[TopicPartition]) -> None:
        """Pause those of these partitions that rest, all without room; resume the others that are paused."""
        stop = [one for one in names if self.full or one in self.turns.resting]
        # Resuming a partition that was never paused does harm: librdkafka fetches again from where the partition last
        # started, although records from there were handed out since (librdkafka #4637).
        left = self._paused.difference(stop)
        go = [one for one in names if one in left and self.started[one].again == math.inf]
        self._paused = left.difference(go).union(stop)
        for change, some in ((self.consumer.pause, stop), (self.consumer.resume, go)):
            if some:
                change([RawPartition(*name) for name in some])

    # -- seeks

    def stop(self, name: TopicPartition, error: confluent_kafka.KafkaError, why: str) -> None:
        """Stop reading a partition that cannot be read on: pause it, drop its records, and try again after a while."""
        reading = self.started[name]
        offset = max(reading.next.offset, 0)
        # The same offset as before: it is likely damaged on the broker's disk, and each attempt costs a fetch.
        same = reading.unreadable == offset
        reading.delay = min(2 * reading.delay, _MAX_DELAY) if same else _FIRST_DELAY
        reading.unreadable, reading.again = offset, time.monotonic() + reading.delay
        self._seek_due = min(self._seek_due, reading.again)
        self._paused.add(name)
        self.consumer.pause([RawPartition(*name)])
        at = "its beginning" if reading.next.offset == OFFSET_BEGINNING else f"offset {offset}"
        self.on_error(
            error.name(),
            f"{name} cannot be read further than {at}: {why}, and nothing after it is read until it can be; "
            f"next attempt in {reading.delay:g} s ({client_errors.words(error)})",
        )

    def seek(self) -> list[Assignment]:
        """Seek to where reading starts or stopped, or to the beginning of a recreated topic, in partitions for which
        this is due. Return the assignments that begin with it: those of recreated topics."""
        now = time.monotonic()
        if now < self._seek_due:
            return []
        self._seek_due = math.inf
        sought: set[TopicPartition] = set()
        begun: list[Assignment] = []
        for name, reading in self.started.items():
            if reading.again > now or time.monotonic() - now >= _SEEKING:
                self._seek_due = min(self._seek_due, reading.again)
                continue
            starts = reading.recreated is None and reading.unreadable is None
            # Without room a damaged batch is not fetched again; `set_full` makes this due once there is room.
            if self.full and not starts and reading.recreated is None:
                continue
            reading.again = math.inf
            try:
                # The seek discards all that librdkafka has of the partition, so it comes last.
                self._set_pause([name])
                self.consumer.seek(reading.next)
            except KafkaException as failure:
                if starts:  # librdkafka has not begun to read it yet
                    reading.again = now + max(_SEEK_AGAIN, _SEEK_AGAIN_EACH * len(self.started))
                    self._seek_due = min(self._seek_due, reading.again)
                else:
                    self.stop(name, client_errors.cause_of(failure), "the client cannot go there yet")
                continue
            sought.add(name)
            if (life := reading.recreated) is not None:
                # No damage is known in a recreated topic, and a record that would show this may never come.
                reading.recreated, reading.unreadable = None, None
                begun.append(
                    Assignment(*name, reading.epoch, None, False, topic_id=life.topic_id, beginning=0)
                )
        self.inbox.keep(self.started.keys() - sought)
        return begun
