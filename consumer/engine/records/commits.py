"""When positions are committed, whether partitions are still ours, and whether members differ.

Theory of operation. Every `commit_interval` there is one commit of all positions that changed. The ledger says what may
be committed. A failed commit is due again.

A process that was *away* (stopped, swapped out, suspended) does not know what the group did: its partitions may belong
to another member, which sends what is queued here. So after an absence a partition is unproven until the broker has
accepted a commit of it that was sent after the absence. While a partition with open records is unproven, nothing new
begins.

A ledger that does not add up is a bug, and its offsets cannot be trusted. From then on commits are *withheld* and
intake stops. The process goes on for three minutes, so that page, metrics and health show it, and then ends; a revoke
or a stop ends it at once. A restart reads uncommitted records again.

*Members that differ* (`Differences`). All members of a group should send the same: by one mapping, one set of schemas,
one function, to one destination. What the owner before us committed says by which it sent; members that share a key
store announce it. During a rollout members differ for a while, so a difference is a warning, and it is shown for as
long as it is seen and a little longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from consumer.engine.context import Context
from consumer.engine.messages import Commit, CommitDone, CommitError
from consumer.engine.model import FINGERPRINTED, Announcement, Instant, MetadataLevel, Position, differing
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.ledger import Ledger
from consumer.errors import bug

# Seconds after which failed commits are no longer expected: more than members may take to drain by default.
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
        check_clock_at = last + self._context.policy.away / 2
        return check_clock_at if self._under_way is not None else min(self._due_at, check_clock_at)

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
            state.commit_answered(position if position in taken else None, self._proves)
        if happened.failure is None:
            self._failing_since = None
        else:
            self._failed(happened.failure, happened.error)
        if happened.error is CommitError.METADATA and self._ledger.metadata.limit:
            # The metadata was too large for the broker: commit at once with less, without maps or without any.
            with_maps = any(offset_map.read_map(position).settled is not None for _, position in asked)
            self._ledger.metadata.refused(with_maps)
            self._due_at = self._context.now.monotonic
            left = "ids" if with_maps else "nothing"
            self._context.report("warning", "commit_metadata_refused", left=left)

    def complete(self) -> bool:
        """Return True if everything is committed that may be."""
        return self._under_way is None and next(self._ledger.committables(), None) is None

    def metadata(self) -> MetadataLevel:
        """Return what metadata commits carry."""
        limit = self._ledger.metadata.limit
        if not limit:
            return MetadataLevel.NOTHING
        return MetadataLevel.MAPS if limit > offset_map.MAX_IDS else MetadataLevel.IDS

    def _failed(self, failure: str, error: CommitError) -> None:
        now, first = self._context.now.monotonic, self._failing_since is None
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._context.counters.failures["commit"] += 1
        # When a member joins or leaves, the group refuses the others' commits. That passes, so only if it lasts it is
        # reported as an error.
        expected = error is CommitError.PASSING and now - self._failing_since < _LASTING
        if first or not expected:
            self._context.report("info" if expected else "warning", "commit_failed", reason=failure)

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
