"""What happens to a log: its topic is deleted and created again, or records are removed before they are read.

Theory of operation.
*Recreated topics* (`RecreatedTopics`). A topic that was deleted and created again has another id, and other offsets: an
offset means something under one id only. If the id changes while we hold partitions, their assignments end as if they
were lost. They settle and commit nothing more, and reading begins again, under new epochs. Records of the new topic
that were read already are read again and found to be delivered. If the id changed while we did not hold the topic, the
next assignment shows it: the committed offset belongs to another id (`Assignment.void`), or the id is not the last
known.

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
from consumer.engine.messages import Assignment, RestartPartitions, TopicRecreated
from consumer.engine.model import Chunk, Position
from consumer.engine.records import offset_map
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.log import count_unsettled, removed_unread
from consumer.engine.records.offset_map import NOTHING_SAID, CommitMetadata


class RecreatedTopics:
    """Knows to which id of its topic each assignment belongs."""

    def __init__(self, context: Context, ledger: Ledger) -> None:
        self._context = context
        self._ledger = ledger
        # The last known id of each topic that was ever assigned to us.
        self._ids: dict[str, str] = {}

    def assigned(self, assignments: Sequence[Assignment]) -> list[AssignmentState]:
        """Begin the ledgers of new assignments, with what was committed along with their starts.

        Reports topics that have another id than what was read or committed before, and what was committed for
        another destination.
        """
        states = [self._ledger.assign(one, self._read_metadata(one)) for one in assignments]
        recreated = Counter(
            one.topic
            for one in assignments
            if one.void is not None or offset_map.are_different_topics(self._ids.get(one.topic), one.topic_id)
        )
        self._ids.update({one.topic: one.topic_id for one in assignments if one.topic_id is not None})
        for topic, partitions in recreated.items():
            self._report(topic, partitions, 0)
        other_destination = sum(state.other_destination for state in states)
        if other_destination:
            self._context.report("warning", "committed_for_another_destination", partitions=other_destination)
        return states

    def _read_metadata(self, one: Assignment) -> CommitMetadata:
        """Return what was committed with the start, as far as it can be read."""
        if not one.metadata or one.start is None:
            return NOTHING_SAID
        said = offset_map.read_map(Position(one.topic, one.partition, one.start, None, one.metadata))
        if said is NOTHING_SAID:
            self._context.report("info", "commit_metadata_ignored", topic=one.topic, partition=one.partition)
        return said

    def update(self, ids: Mapping[str, str]) -> bool:
        """End the assignments whose topic has another id in `ids` than theirs. Return True if there were any."""
        ended: dict[str, list[AssignmentState]] = {}
        for state in self._ledger:
            topic_id = ids.get(state.tp.topic)
            if offset_map.are_different_topics(state.topic_id, topic_id):
                ended.setdefault(state.tp.topic, []).append(state)
            else:
                state.topic_id_reported(topic_id)
        recreated: list[TopicRecreated] = []
        for topic, states in ended.items():
            self._ids[topic] = ids[topic]
            self._report(topic, len(states), sum(state.open for state in states))
            for state in states:
                # Its open records belong to a log that is gone.
                self._ledger.drop(state.tp)
                # A partition that is being drained is read by its next owner.
                if not state.draining:
                    recreated.append(TopicRecreated(*state.tp, state.epoch, ids[topic]))
        if recreated:
            self._context.emit(RestartPartitions(recreated))
        return bool(ended)

    def _report(self, topic: str, partitions: int, released: int) -> None:
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
        self._report(state, expected, chunk.log_start, removed_unread(chunk, expected, state.inherited))

    def begins(self, state: AssignmentState, beginning: int) -> None:
        """Take where the log begins. If the log is empty, no chunk comes that would show what is missing."""
        # It counts when it is seen twice, because records that were fetched earlier may still be on their way to us.
        expected = _read_to(state)
        if state.log.note_empty(expected, beginning) and expected is not None:
            self._report(state, expected, beginning, count_unsettled(expected, beginning, state.inherited))

    def _report(self, state: AssignmentState, expected: int | None, beginning: int, count: int) -> None:
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
