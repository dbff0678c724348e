"""The books of one partition under one epoch: what was read, what became of it, and what may be committed.

Theory of operation. Spans stand in a queue in offset order, so the lowest unsettled record is the first unmarked byte
of the first unfinished span, found by one `bytearray.find`. The committable position is that record's offset; with
nothing open it is the one after the last record seen. Offsets are never counted up: gaps from compaction and
transactions are normal (design.md, rule 1).

Only the ledger (`consumer.engine.ledger`) writes here.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import NamedTuple

from consumer.engine import offset_map
from consumer.engine.model import Disposition, Position, TopicPartition
from consumer.engine.offset_map import OffsetMap
from consumer.engine.spans import Finished, Span, settled_bounds
from consumer.engine.statistics import Totals
from consumer.errors import InvariantViolation

_MEASURE_EVERY = 1.0
"""Seconds between two measurements of a map that may come to overflow."""
_OPEN: attrgetter[int] = attrgetter("open")
MARK: dict[Disposition, int] = {disposition: n for n, disposition in enumerate(Disposition, start=1)}


class LeftAt(NamedTuple):
    """Where an assignment stands: its lowest offset that is not settled (None: not known); `clear`: nothing is open,
    so that everything it has read is settled."""

    next_offset: int | None
    clear: bool


class AssignmentState:
    """One partition under one epoch: the books, and the fence (`live`)."""

    __slots__ = (
        "_map_size",
        "_measure_at",
        "_pack_at",
        "commit_start",
        "committed",
        "counts",
        "destination",
        "draining",
        "elsewhere",
        "emptied",
        "end",
        "epoch",
        "inherited",
        "last_seen",
        "last_timestamp",
        "live",
        "map_most",
        "next_leader_epoch",
        "next_offset",
        "open",
        "open_bytes",
        "proven",
        "reached",
        "reached_before",
        "read",
        "removed_to",
        "spans",
        "start",
        "start_leader_epoch",
        "topic_id",
        "tp",
        "unreadable_at",
    )

    def __init__(
        self,
        tp: TopicPartition,
        epoch: int,
        start: int | None,
        commit_start: bool,
        start_leader_epoch: int | None = None,
        inherited: OffsetMap | None = None,
        topic_id: str | None = None,
    ) -> None:
        self.tp = tp
        self.topic_id = topic_id
        """Which life of the topic its offsets are of; None: the brokers do not tell."""
        self.epoch = epoch
        self.start = start
        self.start_leader_epoch = start_leader_epoch
        self.inherited = inherited
        """What was settled above `start` before this assignment, as far as it was not read again yet."""
        self.live = True
        self.draining = False
        self.proven = True
        """False after the process was away: the group may have given the partition to another meanwhile."""
        self.spans: deque[Span | Finished] = deque()
        self.last_seen = -1
        self.last_timestamp = -1
        """Kafka's (milliseconds) of the record at `last_seen`; -1 while that is not known."""
        self.next_offset: int | None = start if commit_start else None
        self.next_leader_epoch: int | None = None
        self.committed: Position | None = None
        self.end: int | None = None
        self.reached = self.reached_before = -1
        """Up to where the client has read, markers included, as last heard and as heard the time before: by then it has
        handed over what it had read."""
        self.removed_to = 0
        """Up to here it is reported what was removed from the log before it was read."""
        self.emptied: tuple[int, int] | None = None
        """Where the log was seen to be empty, all to be read removed: our position, and where it begins."""
        self.unreadable_at: int | None = None
        """From where it cannot be read now: what the broker sends is damaged. None: it can."""
        self.read = 0
        self.open = 0
        self.open_bytes = 0
        self.counts = [0] * (len(MARK) + 1)
        self.map_most = offset_map.MOST
        """Bytes that the metadata of a commit may take."""
        self.destination: str | None = None
        """Where its events go: stands in what is committed."""
        self.elsewhere = False
        """What lies before its start was committed for another destination."""
        self._pack_at = 16
        self._map_size = 0
        self._measure_at = float("-inf")

    @property
    def accepts(self) -> bool:
        """Whether new records may still be taken in and new work begun."""
        return self.live and not self.draining

    def position(self) -> int | None:
        """The offset after the last record read, or where reading starts."""
        return self.last_seen + 1 if self.last_seen >= 0 else self.start

    def took(self, committed: Position) -> None:
        """The group has this position now. Beyond what is read it is one of a log that was cut meanwhile: void."""
        if committed.next_offset <= (self.position() or 0):
            self.committed = committed

    def lowest_open(self) -> tuple[Span, int] | None:
        """The lowest open record: its span, and its index there."""
        span = next((one for one in self.spans if one.open), None) if self.open else None
        return (span, span.lowest()) if isinstance(span, Span) and span.lowest() >= 0 else None

    # -- what may be committed

    def committable(self) -> Position | None:
        """The next offset after all that is settled without a gap of open ones; None while there is none.

        With it goes the map of what is settled above it.
        """
        self._take_off_finished()
        next_offset, leader_epoch = self.next_offset, self.next_leader_epoch
        if self.spans:
            first = self.spans[0]
            lowest = first.lowest() if isinstance(first, Span) else 0
            if lowest > 0 and isinstance(first, Span):
                next_offset, leader_epoch = first.offsets[lowest], first.leader_epoch
        if next_offset is not None:
            return self._position(next_offset, leader_epoch)
        # The first record still waits; what is settled behind it is worth a commit all the same.
        position = self._beginning()
        return position if position is not None and self.maps_something(position) else None

    def proof(self) -> Position | None:
        """What to commit in order to hear whether the partition is still ours; None: nothing is known of it yet."""
        return self.committable() or self._beginning()

    def map_share(self, now: float) -> float:
        """How much of the usual room the offset map leaves: 1 while it fits whatever settles next, 0 when it is full.

        1 also where the broker takes no maps: none is lost then by reading on. Measured only where the window is so
        long that its pattern matters, and then not at every turn.
        """
        if not self.spans or self.map_most <= offset_map.IDS_MOST:
            return 1.0
        window = max(self.last_seen + 1, self.inherited.end if self.inherited is not None else 0)
        if window - self.spans[0].first_offset <= offset_map.safe_window(self.map_most) // 2:
            return 1.0
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY
            self.committable()
        # What is open may settle in any pattern: a bit each, six to a character.
        free = 1 - (self._map_size + self.open / 6) / max(1, self.map_most)
        return min(1.0, max(0.0, free - 0.1) * 2)

    def _beginning(self) -> Position | None:
        """Where reading began; None while that is not known."""
        if self.start is not None:
            return self._position(self.start, self.start_leader_epoch)
        return self._position(self.spans[0].first_offset, None) if self.spans else None

    def _position(self, next_offset: int, leader_epoch: int | None) -> Position:
        bounds, highest = self._settled_above(next_offset)
        if bounds and bounds[0] < next_offset:
            raise InvariantViolation(
                f"the map of {self.tp.topic}[{self.tp.partition}] begins before {next_offset}; please report this"
            )
        text = offset_map.write(
            next_offset,
            bounds,
            highest,
            self.map_most,
            where=map_place(self.tp),
            topic_id=self.topic_id,
            destination=self.destination,
        )
        self._map_size = len(text)
        return Position(*self.tp, next_offset, leader_epoch, text)

    def maps_something(self, position: Position) -> bool:
        """Whether this position of its own goes with a map."""
        where = map_place(self.tp)
        return offset_map.read(position.metadata, position.next_offset, where=where) is not None

    def _take_off_finished(self) -> None:
        spans = self.spans
        while spans and not spans[0].open:
            done = spans.popleft()
            self.next_offset, self.next_leader_epoch = done.end, done.leader_epoch
        self.keep_little()

    def keep_little(self) -> None:
        """Keep little of finished spans behind an unfinished one: it may stand there for hours."""
        if len(self.spans) < self._pack_at:
            return
        packed: deque[Span | Finished] = deque()
        for span in self.spans:
            last = packed[-1] if packed else None
            if span.open:
                packed.append(span)
            elif isinstance(last, Finished) and last.leader_epoch == span.leader_epoch:
                last.end = span.end
            else:
                packed.append(Finished(span))
        self.spans = packed
        self._pack_at = max(16, 2 * len(packed))

    def _settled_above(self, base: int) -> tuple[list[int], int | None]:
        """Bounds of what is settled above `base` (see `OffsetMap`), and the highest leader epoch seen."""
        bounds = settled_bounds(self.spans, base)
        if self.inherited is None:
            return bounds, self.spans[-1].leader_epoch if self.spans else None
        rest = self.inherited.from_offset(max(base, self.last_seen + 1))
        if bounds and rest and bounds[-1] == rest[0]:
            return bounds[:-1] + rest[1:], self.inherited.leader_epoch
        return bounds + rest, self.inherited.leader_epoch

    def totals(self) -> Totals:
        """This assignment's figures."""
        delivered, duplicate, filtered, dead_lettered = self.counts[1:]
        return Totals(self.read, delivered, duplicate, filtered, dead_lettered, self.open)

    def off(self) -> int:
        """By how many records the books do not add up."""
        return abs(self.read - sum(self.counts) - self.open) + abs(sum(map(_OPEN, self.spans)) - self.open)

    def left_at(self) -> LeftAt:
        """Where it stands."""
        position = self.proof()
        return LeftAt(None if position is None else position.next_offset, self.open == 0)


def map_place(tp: TopicPartition) -> str:
    """What an offset map is bound to, beside its offset."""
    return f"{tp.topic}-{tp.partition}"
