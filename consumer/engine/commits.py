"""When positions are committed, whether partitions are still ours, and what their logs lost or became meanwhile.

Theory of operation. One commit at a time, every `commit_interval`, of all positions that changed; a failed one is
simply due again. One whose metadata the broker finds too large is due at once with less of it: without offset maps,
and if that was too large, without anything. The ledger says what may be committed. Each time that a member joins the
group or leaves it, commits of the others that are on their way are refused: that is reported as such, and as trouble
only if it lasts.

A process that was *away* (stopped, swapped out, asleep) cannot know what the group did meanwhile: its partitions may
be another's, who sends what is queued here. So after an absence they are unproven until the broker has taken a
commit of theirs that was sent after it; while any with open records is, nothing is begun.

Books that do not add up are a bug, and no offset of theirs can be trusted: from then on commits are *withheld*, for
good, and intake stops. The process stays for three minutes, so that page, metrics and health are seen to say so, and
then stops; a revoke or a stop ends it at once. A restart reads again what was not committed.

*Lives of topics* (`Lives`). A topic that was deleted and made anew under its name has another id, and offsets of its
own. An offset means something within one life only. Where the id changes while partitions are held, their assignments
end like lost ones: nothing of them settles or commits any more, and reading begins anew, under new epochs. What was
read of the new life meanwhile, from its middle, is read again then, and found to be delivered. If the id changed
while we did not hold the topic, that is seen at the next assignment: its committed offset is of another id
(`Assignment.void`), or its id is not the one last heard.

*What was removed unread* (`Removals`), by retention or by hand (delete-records). Offsets that are missing are normal:
compaction and transactions leave gaps. What is missing *below the log's beginning* is gone for another reason, and
may have been records, unread. So of each gap the part counts that lies below the beginning, as last heard. How
much of it was records cannot be known any more: the count is the most that it can have been. What an offset map names
as settled was delivered before, and does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from consumer.engine import offset_map
from consumer.engine.context import Context
from consumer.engine.ledger import AssignmentState, Ledger, map_place
from consumer.engine.messages import Assignment, Commit, CommitDone, CommitTrouble, NewLife, ReadAnew
from consumer.engine.model import Chunk, Instant, MetadataLeft, Position, TopicPartition
from consumer.engine.offset_map import CommitMetadata, OffsetMap
from consumer.errors import InvariantViolation

_LASTING = 30.0
"""Seconds after which they are not usual any more: above what members may take to drain by default."""

_SOON = 12
"""In absences: what the group said while a process was away reaches it within this time."""
_SHOWN_FOR = 180.0
"""Seconds from the first look at books that do not add up to the end: some scrapes, and an alert."""


class Commits:
    """The commit under way, and when the next one is due."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        self._under_way: tuple[int, list[tuple[AssignmentState, Position]]] | None = None
        self._due_at = 0.0
        self._last_input: Instant | None = None
        self._back_since = float("-inf")
        self._absence = 0
        """Commits of lower numbers prove nothing: the process was away after they were sent."""
        self._failing_since: float | None = None
        """When the first of the commits that failed in a row came back."""
        self._off_since: float | None = None
        """When the books were first seen not to add up."""

    @property
    def withheld(self) -> bool:
        """Whether nothing is committed any more."""
        return self._off_since is not None

    def due(self) -> float:
        """When to look here again at the latest, monotonic."""
        last = self._last_input.monotonic if self._last_input is not None else 0.0
        look_at_clock = last + self._context.policy.away / 2
        return look_at_clock if self._under_way is not None else min(self._due_at, look_at_clock)

    def go_on(self) -> None:
        """Commit what changed, if it is time."""
        now = self._context.now.monotonic
        if self._under_way is not None or now < self._due_at:
            return
        self._due_at = now + self._context.policy.commit_interval
        self._mind_the_books(now)
        if self.withheld:
            return
        positions = list(self._ledger.committables())
        if not positions:
            return
        number = self._context.number()
        states = [self._ledger.get(TopicPartition(one.topic, one.partition)) for one in positions]
        pairs = [(s, p) for s, p in zip(states, positions, strict=True) if s is not None]
        self._under_way = (number, pairs)
        self._context.emit(Commit(number, positions))

    def _mind_the_books(self, now: float) -> None:
        """Look whether they add up. Raises `InvariantViolation` once it was long to be seen that they do not."""
        mismatch = self._ledger.mismatch()
        if mismatch and self._off_since is None:
            self._off_since = now
            self._context.report("error", "ledger_mismatch", records=mismatch)
        if self._off_since is not None and now - self._off_since >= _SHOWN_FOR:
            raise InvariantViolation(
                "the ledger does not add up, and nothing is committed; please report this"
            )

    def done(self, happened: CommitDone) -> None:
        """The commit under way came back."""
        if self._under_way is None or self._under_way[0] != happened.number:
            raise InvariantViolation(
                f"commit {happened.number} was answered but not asked; please report this"
            )
        taken = set(happened.committed)
        for state, position in self._under_way[1]:
            if position in taken:
                state.took(position)
                state.proven = state.proven or happened.number > self._absence
        asked, self._under_way = self._under_way[1], None
        if happened.failure is None:
            self._failing_since = None
        else:
            self._failed(happened.failure, happened.trouble)
        if happened.trouble is CommitTrouble.METADATA and self._ledger.map_most:
            self._say_less(any(state.maps_something(position) for state, position in asked))

    def _say_less(self, with_maps: bool) -> None:
        """The broker takes no commit with so much metadata, which was with maps or without: better less than none."""
        left = offset_map.IDS_MOST if with_maps else 0
        self._ledger.limit_metadata(left)
        self._due_at = self._context.now.monotonic
        self._context.report("warning", "commit_metadata_refused", left="ids" if left else "nothing")

    def metadata(self) -> MetadataLeft:
        """What commits carry."""
        most = self._ledger.map_most
        if not most:
            return MetadataLeft.NOTHING
        return MetadataLeft.MAPS if most > offset_map.IDS_MOST else MetadataLeft.IDS

    def _failed(self, failure: str, trouble: CommitTrouble) -> None:
        now = self._context.now.monotonic
        first = self._failing_since is None
        since = self._failing_since = now if self._failing_since is None else self._failing_since
        self._context.counters.failures["commit"] += 1
        usual = trouble is CommitTrouble.PASSING and now - since < _LASTING
        if first or not usual:
            self._context.report("info" if usual else "warning", "commit_failed", reason=failure)

    # -- absence

    def mind_absence(self, now: Instant) -> None:
        """An input came at `now`; if that is long after the last one, the process was away.

        By either clock: a suspended machine's monotonic one stands still. That a wall clock was set costs a commit.
        """
        before, self._last_input = self._last_input, now
        if before is None:
            return
        gap = max(now.monotonic - before.monotonic, now.unix - before.unix)
        if gap <= self._context.policy.away:
            return
        states = list(self._ledger)
        for state in states:
            state.proven = False
        self._absence = self._context.number()
        self._back_since = self._due_at = now.monotonic
        if states:
            self._context.report("warning", "away", seconds=round(gap, 3), partitions=len(states))

    def assigned(self, state: AssignmentState) -> None:
        """A new assignment. Soon after an absence it may be one that was given, and taken again, during it."""
        state.proven = self._context.now.monotonic - self._back_since > _SOON * self._context.policy.away

    def unproven(self) -> bool:
        """Whether something open might be another's by now."""
        return any(not state.proven and state.open and not state.draining for state in self._ledger)


class Lives:
    """Which life of its topic each assignment is of."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        self._ids: dict[str, str] = {}
        """The id of each topic that was ever ours, as last heard."""

    def assign(self, one: Assignment) -> AssignmentState:
        """Open the books of a new assignment, with what was committed along with its start."""
        tp = TopicPartition(one.topic, one.partition)
        told = self._read_metadata(tp, one)
        inherited = None if told is None else told.settled
        # Where the brokers tell no id now, the offset is still one of the life that it was committed in.
        topic_id = one.topic_id or (None if told is None else told.topic_id)
        state = self._ledger.assign(
            tp, one.epoch, one.start, one.commit_start, one.leader_epoch, inherited, topic_id
        )
        state.elsewhere = told is not None and told.destination not in (
            None,
            self._context.policy.destination,
        )
        return state

    def _read_metadata(self, tp: TopicPartition, one: Assignment) -> CommitMetadata | None:
        """What was committed with the start, if anything that can be read."""
        if not one.metadata or one.start is None:
            return None
        told = offset_map.read_metadata(one.metadata, one.start, where=map_place(tp))
        if told is None:
            self._context.report("info", "commit_metadata_ignored", topic=tp.topic, partition=tp.partition)
        return told

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These begin. If one is of another life than what was read or committed before, that is reported."""
        anew = Counter(
            one.topic
            for one in assignments
            if one.void is not None or offset_map.are_different_lives(self._ids.get(one.topic), one.topic_id)
        )
        self._ids.update({one.topic: one.topic_id for one in assignments if one.topic_id is not None})
        for topic, partitions in anew.items():
            self._tell(topic, partitions, 0)

    def told(self, ids: Mapping[str, str]) -> bool:
        """The brokers told the ids of topics: assignments of an earlier life end here. Whether any did."""
        ended: dict[str, list[AssignmentState]] = {}
        for state in self._ledger:
            told = ids.get(state.tp.topic)
            if offset_map.are_different_lives(state.topic_id, told):
                ended.setdefault(state.tp.topic, []).append(state)
            elif state.topic_id is None:
                state.topic_id = told
        anew: list[NewLife] = []
        for topic, states in ended.items():
            self._ids[topic] = ids[topic]
            self._tell(topic, len(states), sum(state.open for state in states))
            for state in states:
                self._ledger.drop(state.tp)
                if not state.draining:
                    anew.append(NewLife(*state.tp, state.epoch, ids[topic]))
        if anew:
            self._context.emit(ReadAnew(anew))
        return bool(ended)

    def _tell(self, topic: str, partitions: int, released: int) -> None:
        self._context.counters.bump(self._context.counters.topics_made_anew, topic)
        self._context.report(
            "error", "topic_made_anew", topic=topic, partitions=partitions, released=released
        )


class Removals:
    """Tells of records that were removed from a log before they were read.

    `held_to`: the offset after the last record that was fetched and is not read yet; 0: none is.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def fetched(self, state: AssignmentState, chunk: Chunk, held_to: int) -> None:
        """Offsets are missing before or within a chunk, and the log begins behind some of them."""
        expected = _read_to(state, held_to)
        self._tell(state, expected, chunk.log_start, removed_unread(chunk, expected, state.inherited))

    def begins(self, state: AssignmentState, beginning: int, held_to: int) -> None:
        """Where the log begins, as last heard. If it is empty, no record may come for long to tell of what is gone.

        Believed when it is seen twice, since what was fetched before may still be on its way to us.
        """
        expected = _read_to(state, held_to)
        if expected is None or beginning <= expected or state.end != beginning:
            state.emptied = None
            return
        before, state.emptied = state.emptied, (expected, beginning)
        if before == state.emptied:
            self._tell(state, expected, beginning, count_unsettled(expected, beginning, state.inherited))

    def _tell(self, state: AssignmentState, expected: int | None, beginning: int, count: int) -> None:
        if not count:
            return
        state.removed_to = beginning
        self._context.counters.removed_unread += count
        self._context.report(
            "error", "records_removed_unread", topic=state.tp.topic, partition=state.tp.partition,
            expected=expected, beginning=beginning, at_most=count,
        )  # fmt: skip


def _read_to(state: AssignmentState, held_to: int) -> int | None:
    """What comes next of it, behind held records, markers, and what is known to be removed; None: not known."""
    position = state.position()
    return None if position is None else max(position, held_to, state.reached_before, state.removed_to)


def removed_unread(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
    """Offsets below the log's beginning that were passed over: from `expected` (None: from the chunk's first) on.

    `known`: what was settled before this assignment.
    """
    return sum(count_unsettled(begin, end, known) for begin, end in _gaps_below_beginning(chunk, expected))


def count_unsettled(begin: int, end: int, known: OffsetMap | None) -> int:
    """Of the offsets from `begin` to `end` those that are not known to be settled."""
    if known is None:
        return max(0, end - begin)
    bounds = known.from_offset(begin)
    settled = sum(
        max(0, min(last, end) - min(first, end))
        for first, last in zip(bounds[::2], bounds[1::2], strict=True)
    )
    return max(0, end - begin) - settled


def _gaps_below_beginning(chunk: Chunk, expected: int | None) -> Iterator[tuple[int, int]]:
    for record in chunk.records:
        if expected is not None and expected >= chunk.log_start:
            return
        if expected is not None and record.offset > expected:
            yield expected, min(record.offset, chunk.log_start)
        expected = record.offset + 1
