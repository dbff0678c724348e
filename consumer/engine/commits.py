"""When positions are committed, whether partitions are still ours, and what happened to their logs.

Theory of operation. Every `commit_interval` there is one commit of all positions that changed. The ledger says what may
be committed. A failed commit is due again.

A process that was *away* (stopped, swapped out, suspended) does not know what the group did: its partitions may belong
to another member, which sends what is queued here. So after an absence a partition is unproven until the broker has
accepted a commit of it that was sent after the absence. While a partition with open records is unproven, nothing new
begins.

A ledger that does not add up is a bug, and its offsets cannot be trusted. From then on commits are *withheld* and
intake stops. The process goes on for three minutes, so that page, metrics and health show it, and then ends; a revoke
or a stop ends it at once. A restart reads uncommitted records again.

*Lives of topics* (`Lives`). A topic that was deleted and created again has another id, and other offsets: an offset
means something within one life only. If the id changes while we hold partitions, their assignments end as if they were
lost. They settle and commit nothing more, and reading begins again, under new epochs. Records of the new life that were
read already are read again and found to be delivered. If the id changed while we did not hold the topic, the next
assignment shows it: the committed offset belongs to another id (`Assignment.void`), or the id is not the last known.

*Members that differ* (`Differences`). All members of a group should send the same: by one mapping, one set of schemas,
one function, to one destination. What the owner before us committed says by which it sent; members that share a key
store announce it. During a rollout members differ for a while, so a difference is a warning, and it is shown for as
long as it is seen and a little longer.

*Records removed unread* (`Removals`), by retention or by an administrator (delete-records). Missing offsets are
normal, because compaction and transactions leave gaps. But offsets missing *below the log's beginning* may have been
unread records, so that part of each gap is counted. How many records it had is unknown: the count is a maximum. Offsets
that an offset map says are settled do not count. Where nothing was read yet, and nothing is committed, they count from
where the log began when it was assigned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from consumer.engine import offset_map
from consumer.engine.context import Context
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.messages import Assignment, Commit, CommitDone, CommitTrouble, NewLife, ReadAnew
from consumer.engine.model import (
    FINGERPRINTED,
    Announcement,
    Chunk,
    Instant,
    MetadataLeft,
    Position,
    differing,
)
from consumer.engine.offset_map import NOTHING_SAID, CommitMetadata, OffsetMap
from consumer.errors import bug

# Seconds after which failed commits are no longer usual: more than members may take to drain by default.
_LASTING = 30.0
# A multiple of `Policy.away`: within this time after an absence, reports of the group from then reach the process.
_SOON = 12
# Seconds for which a ledger that does not add up is shown: enough for some scrapes and an alert.
_SHOWN_FOR = 180.0


class Commits:
    """The commit in flight, and when the next one is due."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        self._under_way: list[tuple[AssignmentState, Position]] | None = None
        # Whether it was sent since the process was last away: one from before does not show what the group did then.
        self._proves = True
        # Whether partitions may be unproven: asked with each input, and there may be thousands.
        self._doubts = False
        self._due_at = 0.0
        self._last_input: Instant | None = None
        self._back_since = float("-inf")
        # When the first of several failed commits in a row was answered.
        self._failing_since: float | None = None
        # Since when the ledger has not added up, so that nothing is committed.
        self.withheld_since: float | None = None

    def due(self) -> float:
        """Return when `go_on` must be called at the latest, monotonic."""
        last = self._last_input.monotonic if self._last_input is not None else 0.0
        look_at_clock = last + self._context.policy.away / 2
        return look_at_clock if self._under_way is not None else min(self._due_at, look_at_clock)

    def go_on(self) -> None:
        """Commit what changed, if it is time. Raises `InvariantViolation` if a mismatch was shown for long enough."""
        now = self._context.now.monotonic
        # One commit at a time, so that none can overtake a later one of the same partition.
        if self._under_way is not None or now < self._due_at:
            return
        self._due_at = now + self._context.policy.commit_interval
        # Checked before each commit.
        mismatch = self._ledger.mismatch()
        if mismatch and self.withheld_since is None:
            self.withheld_since = now
            self._context.report("error", "ledger_mismatch", records=mismatch)
        if self.withheld_since is not None:
            if now - self.withheld_since >= _SHOWN_FOR:
                raise bug("the ledger does not add up, and nothing is committed")
            return
        asked = [*self._ledger.committables()]
        if asked:
            for state, _ in asked:
                state.changed = False
            self._under_way, self._proves = asked, True
            self._context.emit(Commit([position for _, position in asked]))

    def done(self, happened: CommitDone) -> None:
        """Take the answer to the commit in flight."""
        asked, self._under_way = self._under_way, None
        if asked is None:
            raise bug("a commit was answered but not asked")
        taken = set(happened.committed)
        for state, position in asked:
            if position in taken:
                # A position beyond what was read belongs to a log that was cut meanwhile: it is void.
                if position.next_offset <= (state.position() or 0):
                    state.committed = position
                state.proven = state.proven or self._proves
            else:
                state.changed = True
        if happened.failure is None:
            self._failing_since = None
        else:
            self._failed(happened.failure, happened.trouble)
        if happened.trouble is CommitTrouble.METADATA and self._ledger.map_most:
            # The metadata was too large for the broker: commit at once with less, without maps or without any.
            with_maps = any(offset_map.read_map(position).settled is not None for _, position in asked)
            self._ledger.map_most = offset_map.IDS_MOST if with_maps else 0
            self._due_at = self._context.now.monotonic
            for state in self._ledger:
                state.changed = True
            left = "ids" if with_maps else "nothing"
            self._context.report("warning", "commit_metadata_refused", left=left)

    def complete(self) -> bool:
        """Return True if everything is committed that may be."""
        return self._under_way is None and next(self._ledger.committables(), None) is None

    def metadata(self) -> MetadataLeft:
        """Return what metadata commits carry."""
        most = self._ledger.map_most
        if not most:
            return MetadataLeft.NOTHING
        return MetadataLeft.MAPS if most > offset_map.IDS_MOST else MetadataLeft.IDS

    def _failed(self, failure: str, trouble: CommitTrouble) -> None:
        now, first = self._context.now.monotonic, self._failing_since is None
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._context.counters.failures["commit"] += 1
        # When a member joins or leaves, the group refuses the others' commits. That passes, so only if it lasts it is
        # reported as trouble.
        usual = trouble is CommitTrouble.PASSING and now - self._failing_since < _LASTING
        if first or not usual:
            self._context.report("info" if usual else "warning", "commit_failed", reason=failure)

    # -- absence

    def was_away(self, since: Instant, now: Instant) -> bool:
        """Return True if the process was away after `since`, whether an input has shown that yet or not."""
        unseen = self._last_input is not None and now.since(self._last_input) > self._context.policy.away
        return unseen or self._back_since > since.monotonic

    def notice_absence(self, now: Instant) -> None:
        """Note that an input came at `now`; if that is long after the one before, the process was away."""
        before, self._last_input = self._last_input, now
        if before is None:
            return
        gap = now.since(before)  # if the wall clock was set, this costs one commit
        if gap <= self._context.policy.away:
            return
        # Each partition may be another member's by now.
        states = list(self._ledger)
        for state in states:
            state.proven = False
        self._proves, self._doubts = False, True
        # Commit at once: the answer shows whether the partitions are still ours.
        self._back_since = self._due_at = now.monotonic
        if states:
            self._context.report("warning", "away", seconds=round(gap, 3), partitions=len(states))

    def assigned(self, states: Sequence[AssignmentState]) -> None:
        """Say whether new assignments are proven."""
        # Soon after an absence they may have been assigned, and lost again, during the absence.
        proven = self._context.now.monotonic - self._back_since > _SOON * self._context.policy.away
        self._doubts = self._doubts or not proven
        for state in states:
            state.proven = proven

    def unproven(self) -> bool:
        """Return True if open records may belong to another member by now."""
        if self._doubts:
            self._doubts = any(not state.proven for state in self._ledger)
        return self._doubts and any(
            not state.proven and state.open and not state.draining for state in self._ledger
        )


class Lives:
    """Knows to which life of its topic each assignment belongs."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        # The last known id of each topic that was ever assigned to us.
        self._ids: dict[str, str] = {}

    def assigned(self, assignments: Sequence[Assignment]) -> list[AssignmentState]:
        """Begin the ledgers of new assignments, with what was committed along with their starts.

        Reports topics that are in another life than what was read or committed before, and what was committed for
        another destination.
        """
        states = [self._ledger.assign(one, self._read_metadata(one)) for one in assignments]
        anew = Counter(
            one.topic
            for one in assignments
            if one.void is not None or offset_map.are_different_lives(self._ids.get(one.topic), one.topic_id)
        )
        self._ids.update({one.topic: one.topic_id for one in assignments if one.topic_id is not None})
        for topic, partitions in anew.items():
            self._tell(topic, partitions, 0)
        elsewhere = sum(state.elsewhere for state in states)
        if elsewhere:
            self._context.report("warning", "committed_for_another_destination", partitions=elsewhere)
        return states

    def _read_metadata(self, one: Assignment) -> CommitMetadata:
        """Return what was committed with the start, as far as it can be read."""
        if not one.metadata or one.start is None:
            return NOTHING_SAID
        said = offset_map.read_map(Position(one.topic, one.partition, one.start, None, one.metadata))
        if said is NOTHING_SAID:
            self._context.report("info", "commit_metadata_ignored", topic=one.topic, partition=one.partition)
        return said

    def told(self, ids: Mapping[str, str]) -> bool:
        """End the assignments whose topic has another id in `ids` than theirs. Return True if there were any."""
        ended: dict[str, list[AssignmentState]] = {}
        for state in self._ledger:
            told = ids.get(state.tp.topic)
            if offset_map.are_different_lives(state.topic_id, told):
                ended.setdefault(state.tp.topic, []).append(state)
            elif state.topic_id is None and told is not None:
                state.topic_id, state.changed = told, True
        anew: list[NewLife] = []
        for topic, states in ended.items():
            self._ids[topic] = ids[topic]
            self._tell(topic, len(states), sum(state.open for state in states))
            for state in states:
                # Its open records belong to a log that is gone.
                self._ledger.drop(state.tp)
                # A partition that is being drained is read by its next owner.
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


# Seconds for which a difference is shown after it was last seen, and after which it is reported again.
_DIFFERS_FOR: Final = 600.0
DESTINATION: Final = "destination"


def differing_from(ours: Announcement, others: Sequence[Announcement]) -> set[str]:
    """Return in what members that share the key store differ from us."""
    found = {
        name
        for other in others
        if other.group == ours.group
        for name in differing(ours.fingerprint, other.fingerprint)
    }
    # For the same account each destination has a quota and a memory of delivered events of its own.
    if any(one.destination != ours.destination and {*one.accounts} & {*ours.accounts} for one in others):
        found.add(DESTINATION)
    return found


class Differences:
    """What other members send by other settings, as far as it was seen lately."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # By what differs, when it was seen last and reported last (monotonic).
        self._seen: dict[str, tuple[float, float]] = {}

    def committed(self, states: Sequence[AssignmentState]) -> None:
        """Compare with the members that had these partitions before."""
        self._note({name for state in states for name in state.differs}, "commits")

    def announced(self, others: Sequence[Announcement]) -> None:
        """Compare with the members that share the key store."""
        ours = self._context.policy.announcement
        if ours is not None:
            self._note(differing_from(ours, others), "key store")

    def names(self) -> tuple[str, ...]:
        """Return what differs: names of `model.FINGERPRINTED`, and ``destination``."""
        now = self._context.now.monotonic
        return tuple(
            name
            for name in (*FINGERPRINTED, DESTINATION)
            if name in self._seen and now - self._seen[name][0] < _DIFFERS_FOR
        )

    def _note(self, found: set[str], source: str) -> None:
        now = self._context.now.monotonic
        new = [name for name in sorted(found) if now - self._seen.get(name, (0.0, -inf))[1] >= _DIFFERS_FOR]
        for name in found:
            self._seen[name] = (now, now if name in new else self._seen[name][1])
        if new:
            self._context.report("warning", "members_differ", differ=", ".join(new), seen_in=source)


@dataclass(eq=False)
class Removals:
    """Reports records that were removed from a log before they were read."""

    _context: Context

    def fetched(self, state: AssignmentState, chunk: Chunk) -> None:
        """Look for offsets that are missing before or within a chunk, below the log's beginning."""
        expected = _read_to(state)
        self._tell(state, expected, chunk.log_start, removed_unread(chunk, expected, state.inherited))

    def begins(self, state: AssignmentState, beginning: int) -> None:
        """Take where the log begins. If the log is empty, no chunk comes that would show what is missing."""
        # It counts when it is seen twice, because records that were fetched earlier may still be on their way to us.
        expected = _read_to(state)
        if expected is None or beginning <= expected or state.end != beginning:
            state.emptied = None
            return
        before, state.emptied = state.emptied, (expected, beginning)
        if before == state.emptied:
            self._tell(state, expected, beginning, _count_unsettled(expected, beginning, state.inherited))

    def _tell(self, state: AssignmentState, expected: int | None, beginning: int, count: int) -> None:
        if not count:
            return
        state.removed_to = beginning
        self._context.counters.removed_unread += count
        self._context.report(
            "error", "records_removed_unread", topic=state.tp.topic, partition=state.tp.partition,
            expected=expected, beginning=beginning, at_most=count,
        )  # fmt: skip


def _read_to(state: AssignmentState) -> int | None:
    """Return the next offset, after held records, markers and what is known to be removed; None: unknown."""
    position = state.position()
    position = state.beginning if position is None else position
    return (
        None if position is None else max(position, state.fetched_to, state.reached_before, state.removed_to)
    )


def removed_unread(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
    """Count the offsets that are missing below the log's beginning, from `expected` (None: the chunk's first) on.

    `known`: what was settled before this assignment.
    """
    removed = 0
    for record in chunk.records:
        if expected is not None:
            if expected >= chunk.log_start:
                break
            removed += _count_unsettled(expected, min(record.offset, chunk.log_start), known)
        expected = record.offset + 1
    return removed


def _count_unsettled(begin: int, end: int, known: OffsetMap | None) -> int:
    return max(0, end - begin) - (0 if known is None else known.count(begin, end))
