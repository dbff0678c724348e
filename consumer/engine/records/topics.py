"""What happens to a log: its topic is deleted and created again, or records are removed before they are read.

Theory of operation.
*Lives of topics* (`Lives`). A topic that was deleted and created again has another id, and other offsets: an offset
means something within one life only. If the id changes while we hold partitions, their assignments end as if they were
lost. They settle and commit nothing more, and reading begins again, under new epochs. Records of the new life that were
read already are read again and found to be delivered. If the id changed while we did not hold the topic, the next
assignment shows it: the committed offset belongs to another id (`Assignment.void`), or the id is not the last known.

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

from consumer.engine.context import Context
from consumer.engine.messages import Assignment, NewLife, ReadAnew
from consumer.engine.model import Chunk, Position
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.log import count_unsettled, removed_unread
from consumer.engine.records.offset_map import NOTHING_SAID, CommitMetadata


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
            else:
                state.topic_told(told)
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
        if state.log.seen_empty_again(expected, beginning) and expected is not None:
            self._tell(state, expected, beginning, count_unsettled(expected, beginning, state.inherited))

    def _tell(self, state: AssignmentState, expected: int | None, beginning: int, count: int) -> None:
        if not count:
            return
        state.log.removed_to = beginning
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
        None
        if position is None
        else max(position, state.fetched_to, state.log.reached_before, state.log.removed_to)
    )
