"""The broker: logs with gaps and leader epochs, committed offsets behind a fence, dead-letter topics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from consumer.core.interface import DeadLetter
from consumer.core.model import Position, TopicPartition
from tests.simulation.records import Spec
from tests.simulation.truth import Truth, Violation

if TYPE_CHECKING:
    from tests.simulation.member import Member


class Broker:
    """All partitions, and who owns which."""

    def __init__(self, logs: Mapping[TopicPartition, list[Spec]], truth: Truth) -> None:
        self.logs = logs
        self.committed: dict[TopicPartition, int] = {}
        self.owners: dict[TopicPartition, tuple[Member, int]] = {}
        """The member and the epoch it was given."""
        self._truth = truth
        self._offsets = {tp: [spec.offset for spec in log] for tp, log in logs.items()}
        self._checked = dict.fromkeys(logs, 0)

    def index(self, tp: TopicPartition, offset: int) -> int:
        """Where in the log the first record at or after `offset` is."""
        return bisect_left(self._offsets[tp], offset)

    def fetch(self, tp: TopicPartition, position: int, most: int, now: float) -> Sequence[Spec]:
        """Records from `position` on that have appeared by now."""
        log = self.logs[tp]
        first = last = self.index(tp, position)
        while last < len(log) and last - first < most and log[last].visible_at <= now:
            last += 1
        return log[first:last]

    def commit(
        self, member: Member, epochs: Mapping[TopicPartition, int], wanted: Sequence[Position]
    ) -> list[Position]:
        """Take the positions that are this member's to commit under the epoch it had when it asked."""
        taken = []
        for position in wanted:
            tp = TopicPartition(position.topic, position.partition)
            if tp in epochs and self.owners.get(tp) == (member, epochs[tp]):
                self.committed[tp] = position.next_offset
                taken.append(position)
        return taken

    def check_position(self, position: Position, start: int) -> None:
        """Nothing unresolved before it, and the leader epoch is that of the record before it, if one was read."""
        tp = TopicPartition(position.topic, position.partition)
        log, end = self.logs[tp], self.index(tp, position.next_offset)
        for at in range(self._checked[tp], end):
            if not self._truth.resolved(log[at]):
                raise Violation("nothing open is committed past", f"{log[at]} is open, commit of {position}")
        # What is resolved stays resolved: no record is looked at twice.
        self._checked[tp] = max(self._checked[tp], end)
        if position.next_offset > (log[-1].offset + 1 if log else 0):
            raise Violation("a position is within the log", f"{position}")
        before = log[end - 1] if end and log[end - 1].offset >= start else None
        if position.leader_epoch != (before.leader_epoch if before is not None else None):
            raise Violation("a commit has its record's leader epoch", f"{position} after {before}")

    def store_letter(self, letter: DeadLetter, spec: Spec) -> None:
        """The dead-letter topic has it."""
        self._truth.letters[spec.number] += 1

    def all_committed(self) -> bool:
        """Whether every partition is committed to its end."""
        return all(
            not log or self.committed.get(tp, 0) >= log[-1].offset + 1 for tp, log in self.logs.items()
        )
