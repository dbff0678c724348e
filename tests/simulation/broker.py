"""The broker: logs with gaps and leader epochs, committed offsets behind a fence, dead-letter topics."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from bisect import bisect_left
from collections.abc import Container, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from consumer.engine.messages import DeadLetter
from consumer.engine.model import METADATA_BYTES, Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.engine.records.offset_map import NOTHING_SAID, OffsetMap
from tests.simulation.records import Spec
from tests.simulation.truth import Truth, Violation, require

if TYPE_CHECKING:
    from tests.simulation.member import Member


class Broker:
    """All partitions, and who owns which."""

    def __init__(self, logs: dict[TopicPartition, list[Spec]], truth: Truth) -> None:
        self.logs = logs
        self.committed: dict[TopicPartition, Position] = {}
        self.owners: dict[TopicPartition, tuple[Member, int]] = {}
        """For each partition, the member that owns it and the epoch it was given."""
        self._truth = truth
        self._offsets = {tp: [spec.offset for spec in log] for tp, log in logs.items()}
        self._checked = dict.fromkeys(logs, 0)
        self._cut: set[TopicPartition] = set()
        self.begins: dict[TopicPartition, int] = {}
        """Where logs begin whose first records were removed."""
        self.topic_ids = {tp.topic: new_id(tp.topic, 0) for tp in logs}
        self._topics_made = 0
        self.max_map = METADATA_BYTES
        self.metadata_limit = METADATA_BYTES
        """Bytes of metadata that the broker accepts with an offset."""

    def index(self, tp: TopicPartition, offset: int) -> int:
        """The index in the log of the first record at or after `offset`."""
        return bisect_left(self._offsets[tp], offset)

    def fetch(self, tp: TopicPartition, position: int, maximum: int, now: float) -> Sequence[Spec]:
        """The records from `position` on that have appeared by now."""
        log = self.logs[tp]
        first = last = self.index(tp, max(position, self.begins.get(tp, 0)))
        while last < len(log) and last - first < maximum and log[last].visible_at <= now:
            last += 1
        return log[first:last]

    def commit(
        self, member: Member, epochs: Mapping[TopicPartition, int], wanted: Sequence[Position]
    ) -> list[Position]:
        """Accept the positions that this member may commit, under the epoch it had when it asked."""
        taken = []
        for position in wanted:
            tp = TopicPartition(position.topic, position.partition)
            fits = len(position.metadata) <= self.metadata_limit
            if fits and tp in epochs and self.owners.get(tp) == (member, epochs[tp]):
                self.committed[tp] = position
                taken.append(position)
        return taken

    def check_position(
        self, member: object, position: Position, start: int, beginnings: Container[tuple[int, int | None]]
    ) -> None:
        """Every record before it is resolved, and its leader epoch is that of the record before it, if one was read."""
        tp = TopicPartition(position.topic, position.partition)
        if self.is_void(position):
            return  # it says itself that it is of the log before
        if position == self.committed.get(tp):
            # An assignment's first commit repeats what is committed, to hear that the partition is still ours: that
            # changes nothing, also where the log was cut since and is read from the cut on.
            return
        if tp in self._cut and self.owners.get(tp, (None, 0))[0] is not member:
            # It speaks of the log as it was, and will be refused.
            return
        log, end = self.logs[tp], self.index(tp, position.next_offset)
        for at in range(self._checked[tp], end):
            if not self._truth.resolved(log[at]):
                raise Violation("nothing open is committed past", f"{log[at]} is open, commit of {position}")
        # What is resolved stays resolved: no record is looked at twice.
        self._checked[tp] = max(self._checked[tp], end)
        if position.next_offset > (log[-1].offset + 1 if log else 0):
            raise Violation("a position is within the log", f"{position}")
        # What was removed from the log may have been read before that, or not.
        epochs: set[int | None] = set()
        for before in reversed([one for one in log[:end] if one.offset >= start]):
            epochs.add(before.leader_epoch)
            if before.offset >= self.begins.get(tp, 0):
                break
        else:
            epochs.add(None)
        # A position where reading began may be committed again, to hear that the partition is still ours.
        again = (position.next_offset, position.leader_epoch) in beginnings
        if not again and position.leader_epoch not in epochs:
            raise Violation("a commit has its record's leader epoch", f"{position}, not {epochs}")
        self._check_map(position)

    def is_void(self, position: Position) -> bool:
        """Whether it was committed before its topic was recreated."""
        return offset_map.read_map(position).topic_id not in (None, self.topic_ids[position.topic])

    def recreate(self, logs: dict[TopicPartition, list[Spec]]) -> list[Spec]:
        """Replace all partitions of a topic, which was deleted and created again. Returns the earlier records."""
        gone: list[Spec] = []
        self._topics_made += 1
        for tp, log in logs.items():
            gone += self.logs[tp]
            self.logs[tp] = log
            self._offsets[tp] = [spec.offset for spec in log]
            self._checked[tp] = 0
            self._cut.discard(tp)
            self.begins.pop(tp, None)
            self.topic_ids[tp.topic] = new_id(tp.topic, self._topics_made)
        return gone

    def _check_map(self, position: Position) -> None:
        """What a new owner will skip must be resolved."""
        text, tp = position.metadata, TopicPartition(position.topic, position.partition)
        require(len(text.encode()) <= self.max_map, "commit metadata fits", len(text))
        found = offset_map.read_map(position)
        require((found is NOTHING_SAID) is (text == ""), "commit metadata can be read", text)
        known = found.settled
        if known is None:
            return
        for spec in self.logs[tp][self.index(tp, position.next_offset) : self.index(tp, known.end)]:
            if _passes(known, spec) and not self._truth.resolved(spec):
                raise Violation("nothing open is in an offset map", f"{spec}, commit of {position}")

    def store_letter(self, letter: DeadLetter, spec: Spec) -> None:
        """Put a dead letter on its topic."""
        self._truth.letters[spec.number] += 1

    def all_committed(self) -> bool:
        """Whether every partition is committed to its end."""
        return all(
            not log or (self.resumes_at(tp) or 0) >= log[-1].offset + 1 for tp, log in self.logs.items()
        )

    def committed_offset(self, tp: TopicPartition) -> int | None:
        """Where a new owner begins."""
        position = self.committed.get(tp)
        return position.next_offset if position is not None else None

    def resumes_at(self, tp: TopicPartition) -> int | None:
        """Where a new owner begins that knows which id the topic has now, and where its log was cut."""
        position = self.committed.get(tp)
        if position is None or self.is_void(position):
            return None
        cut = None if position.leader_epoch is None else self.end_of_epoch(tp, position.leader_epoch)
        return position.next_offset if cut is None else min(cut, position.next_offset)

    def uncovered(self, tp: TopicPartition, seen: int) -> Sequence[Spec]:
        """Records up to `seen` that are neither below the committed offset nor in its map, so that a new owner
        reads them again."""
        begin = self.resumes_at(tp)
        position = self.committed.get(tp) if begin is not None else None
        known = offset_map.read_map(position).settled if position is not None else None
        specs = self.logs[tp][self.index(tp, begin or 0) : self.index(tp, seen + 1)]
        return [spec for spec in specs if known is None or not _passes(known, spec)]

    def end_of_epoch(self, tp: TopicPartition, leader_epoch: int) -> int | None:
        """Where the records of this leader epoch and of earlier ones end (KIP-320); None: there are no later ones."""
        later = (spec.offset for spec in self.logs[tp] if (spec.leader_epoch or 0) > leader_epoch)
        return next(later, None)

    def remove(self, tp: TopicPartition, place: int) -> None:
        """Remove what is before `place`: nothing has to be done with it any more."""
        log = self.logs[tp]
        self.begins[tp] = max(self.begins.get(tp, 0), log[place].offset)
        self._truth.remove([spec for spec in log[:place] if not self._truth.resolved(spec)])

    def cut(self, tp: TopicPartition, place: int, new: Sequence[Spec]) -> Sequence[Spec]:
        """Replace the log from `place` on by `new`. Returns the earlier records."""
        log = self.logs[tp]
        gone = log[place : place + len(new)]
        log[place : place + len(new)] = new
        self._checked[tp] = min(self._checked[tp], place)
        self._cut.add(tp)
        return gone


def new_id(topic: str, topic_id: int) -> str:
    """A topic id in Kafka's form."""
    raw = blake2b(f"{topic} {topic_id}".encode(), digest_size=16).digest()
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _passes(known: OffsetMap, spec: Spec) -> bool:
    """Whether a new owner skips this record. For a log that was cut the map describes the earlier records."""
    return known.settled(spec.offset) and known.holds_for(spec.leader_epoch)
