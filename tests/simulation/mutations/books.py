"""Deliberate bugs in the engine's state: claims, keys, the ledger, commits, dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.dedup.claims import Claims
from consumer.engine.model import Chunk, Disposition, Position, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import Keys, split_keys
from consumer.engine.records import offset_map, topics
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.commits import Commits
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.log import removed_unread
from consumer.engine.records.offset_map import NOTHING_SAID, CommitMetadata, OffsetMap
from consumer.engine.records.outbox import Outbox
from consumer.engine.records.runs import Run, each_of, keys_of, pick, rows_of
from consumer.engine.records.stages import RecordStage
from consumer.engine.records.topics import RecreatedTopics, Removals
from consumer.engine.sending import answers
from consumer.engine.sending.answers import Judged
from consumer.engine.steps import Steps
from tests.simulation.broker import Broker
from tests.simulation.mutations.mutating import around, mutation, replaced, replaces

# -- deduplication


@around(Keys, "__init__")
def keys_do_not_name_the_destination(make: Any, self: Keys, *_: Any) -> Any:
    """An event that a sandbox received counts as a duplicate for the platform."""
    return make(self)


@around(Steps, "look_up")
def boolean_dedup(look_up: Any, self: Steps, leaders: Sequence[Run]) -> None:
    """A record is settled as a duplicate while its key is only claimed (apache/pulsar #5218)."""
    for followers in self.claims.followers.values():
        self.ledger.settle(followers, Disposition.DUPLICATE)
    self.claims.followers.clear()
    look_up(self, leaders)


# Dropped work keeps its claim, so its followers wait indefinitely.
replaced("claims_of_dropped_work_are_kept", Steps, "transfer", lambda self, leaders: None)


@around(Pipeline, "_take_in")
def key_stored_before_delivery(take_in: Any, self: Pipeline, happened: messages.Input) -> None:
    """The key is stored when the event is queued."""
    if isinstance(happened, messages.KeysLookedUp):
        _, others = pick(self.lookups._asked[happened.number], happened.found)
        self.keys.add(others)
    take_in(self, happened)


@around(Steps, "judged")
def followers_share_their_leaders_refusal(judged: Any, self: Steps, ends: Judged, *about: Any) -> None:
    """The followers of a refused leader are settled as duplicates, though no event was delivered."""
    for row, _ in ends.refused:
        self.ledger.settle(self.claims.followers.pop(keys_of([row]), []), Disposition.DUPLICATE)
    judged(self, ends, *about)


# A dropped leader's claim is released, and no follower inherits it.
replaced(
    "followers_of_dropped_leaders_are_forgotten",
    Claims,
    "release",
    lambda self, leader: (self.claimed.remove(keys_of([leader])) and None, ()),
)
# An event counts as delivered though its key is not durable.
replaced(
    "store_failure_is_ignored",
    Steps,
    "keys_not_stored",
    lambda self, number: self.keys_stored(messages.KeysStored(number)),
)


@around(Steps, "judged")
def delivered_without_waiting_for_the_key(judged: Any, self: Steps, ends: Judged, *about: Any) -> None:
    """The record settles with the API's answer, before its key is durable."""
    self.ledger.settle([*ends.delivered, *self.claims.confirm(ends.delivered)], Disposition.DELIVERED)
    judged(self, ends._replace(delivered=()), *about)


@replaces(Steps, "look_up_failed")
def failed_look_up_means_new(self: Steps, number: int) -> None:
    """The key store does not answer, and the event counts as new."""
    count = rows_of(self.lookups._asked[number])
    self.looked_up(messages.KeysLookedUp(number, [False] * count))


@around(Claims, "release")
def other_followers_are_forgotten(release: Any, self: Claims, leader: Run) -> Any:
    """The first follower inherits the claim; the followers behind it are forgotten."""
    released = release(self, leader)
    self.followers.pop(keys_of([leader]), None)
    return released


@around(Steps, "judged")
def followers_settle_before_the_key_is_durable(judged: Any, self: Steps, ends: Judged, *about: Any) -> None:
    """Followers settle with the answer to their leader, before its key is durable."""
    for key in split_keys(keys_of(ends.delivered)):
        self.ledger.settle(self.claims.followers.pop(key, []), Disposition.DUPLICATE)
    judged(self, ends, *about)


# -- ledger, fences and commits


@replaces(Pipeline, "_fetched")
def no_epoch_fence(self: Pipeline, happened: messages.Fetched) -> None:
    """Records of an ended assignment enter the new one."""
    for chunk in happened.chunks:
        for state in self.ledger:
            if state.tp == (chunk.topic, chunk.partition) and not state.draining:
                if chunk.records[0].offset > state.last_seen:
                    self.steps.fetched(state, chunk)
                break


@mutation
def ended_assignments_settle(patch: pytest.MonkeyPatch) -> None:
    """Records of an ended assignment settle in the assignment that followed it."""
    keys_stored = Steps.keys_stored

    def inherited(self: Steps, row: Run) -> Run:
        successor = self.ledger.get(row.block.assignment.tp)
        if not row.block.assignment.live and successor is not None and successor.blocks:
            other = successor.blocks[0]
            if row.first < len(other.stages) and other.stages[row.first] < RecordStage.DELIVERED:
                return Run(other, row.first, row.end)
        return row

    def unfenced(self: Steps, happened: messages.KeysStored) -> None:
        written = self.keys.writing
        keys_stored(self, happened)
        for row in each_of(written):
            other = inherited(self, row)
            if other is not row:
                other.block.stages[other.first] = RecordStage.STORING
                self.ledger.settle([other], Disposition.DELIVERED)

    patch.setattr(Steps, "keys_stored", unfenced)


@replaces(AssignmentState, "committable")
def commits_the_highest_seen(self: AssignmentState) -> Position | None:
    """The highest settled offset is committed (vectordotdev/vector #24215)."""
    if self.last_seen < 0:
        return None
    return Position(*self.tp, self.last_seen + 1, self.blocks[-1].leader_epoch if self.blocks else None)


@around(AssignmentState, "committable")
def commits_past_the_lowest_open(committable: Any, self: AssignmentState) -> Any:
    """The commit is the position after the lowest open record instead of the record's own."""
    position = committable(self)
    if position is None or not self.open:
        return position
    return position._replace(next_offset=position.next_offset + 1)


@around(AssignmentState, "committable")
def commits_without_leader_epoch(committable: Any, self: AssignmentState) -> Any:
    """Commits carry no leader epoch (apache/kafka PR 23183)."""
    position = committable(self)
    return position and position._replace(leader_epoch=None)


@around(Commits, "done")
def failed_commit_is_taken_for_done(done: Any, self: Commits, happened: messages.CommitDone) -> None:
    """After a failed commit the position is not committed again until more records settle."""
    positions = [position for _, position in self._under_way or ()]
    done(self, happened._replace(committed=positions, failure=None))


@around(Ledger, "settle")
def what_settles_late_is_not_committed(
    settle: Any, self: Ledger, runs: Iterable[Run], disposition: Disposition
) -> Any:
    """A record that settles after its partition was last looked at does not have it looked at again."""
    runs = list(runs)
    before = {run.block.assignment: run.block.assignment.changed for run in runs}
    settled = settle(self, runs, disposition)
    for state, changed in before.items():
        state.changed = changed
    return settled


@replaces(Ledger, "committables")
def draining_partitions_are_committed_twice(self: Ledger) -> Iterable[tuple[AssignmentState, Position]]:
    """The timer and the release both commit a draining partition."""
    pairs = ((state, state.committable()) for state in self)
    return ((state, one) for state, one in pairs if one is not None and one != state.committed)


@around(Pipeline, "_lost")
def lost_partitions_are_committed(lose: Any, self: Pipeline, happened: messages.Lost) -> None:
    """Partitions that were lost are committed (librdkafka #5604)."""
    positions = self.ledger.final_positions(s for s in map(self.ledger.get, happened.partitions) if s)
    lose(self, happened)
    if positions and self.commits._under_way is None:
        self.commits._under_way = []
        self.context.emit(messages.Commit(positions))


@around(Ledger, "rewind")
def a_position_that_went_back_voids_all_that_is_open(
    rewind: Any, self: Ledger, state: AssignmentState, offset: int
) -> Any:
    """Open records before the new position are dropped, although they will not be read again."""
    released = rewind(self, state, 0)
    state.last_seen = offset - 1
    state.start = offset
    return released


# A settled record frees more bytes of the budget than it took.
replaced(
    "bytes_of_events_are_not_entered",
    Ledger,
    "insert",
    lambda self, block, rows, columns: block.insert(rows, columns),
)
# Records that retention removed unread are not reported.
replaced("records_removed_unread_are_not_counted", Removals, "fetched", lambda *_: None)


@around(Ledger, "assign")
def what_is_removed_before_a_first_read_is_not_counted(
    assign: Any, self: Ledger, one: messages.Assignment, *said: CommitMetadata
) -> Any:
    """Where a log began when it was assigned is forgotten, so that the first record comes from its beginning."""
    return assign(self, one._replace(beginning=None), *said)


# The client does not ask whether a log still has what was committed: it reads on in the middle of another one.
replaced("a_log_that_outgrew_the_committed_offset_is_read_on", Broker, "end_of_epoch", lambda *_: None)


@replaces(topics, "removed_unread")
def every_gap_counts_as_removed(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
    """Every gap in offsets counts as removed records, although compaction and transactions leave gaps, too."""
    return removed_unread(chunk._replace(log_start=chunk.records[-1].offset), expected, known)


# -- the offset map


@around(RecreatedTopics, "_read_metadata")
def offset_maps_are_not_read(read: Any, self: RecreatedTopics, one: messages.Assignment) -> Any:
    """The next owner sends again what is settled above the committed offset."""
    return read(self, one)._replace(settled=None)


# Commits carry no offset map.
replaced("offset_maps_are_not_written", offset_map, "write_map", lambda *_, **__: "")


@around(AssignmentState, "committable")
def maps_wait_for_the_watermark(committable: Any, self: AssignmentState) -> Any:
    """No map is written while the first record of all is open (this simulation found the bug)."""
    position = committable(self)
    return position if self.next_offset is not None else None


@around(AssignmentState, "_position")
def inherited_maps_are_forgotten(
    commit: Any, self: AssignmentState, next_offset: int, leader_epoch: int | None
) -> Any:
    """The next commit holds only what was settled since the assignment."""
    inherited, self.inherited = self.inherited, None
    position = commit(self, next_offset, leader_epoch)
    self.inherited = inherited
    return position


# A map is applied although other records have these offsets now (unclean leader election).
replaced("maps_of_a_cut_log_are_believed", OffsetMap, "holds_for", lambda self, leader_epoch: True)
# A topic that is created again under a running member is read on from the old position.
replaced("another_id_goes_unnoticed", RecreatedTopics, "update", lambda self, ids: False)
# An offset that was committed before the topic was recreated holds in the next one.
replaced("the_committed_id_is_not_compared", offset_map, "is_void", lambda *_, **__: False)


@around(RecreatedTopics, "_read_metadata")
def a_map_of_a_deleted_topic_is_believed(read: Any, self: RecreatedTopics, one: messages.Assignment) -> Any:
    """Reading begins again, but skips the offsets that were settled in the topic's earlier life."""
    if one.void is None:
        return read(self, one)
    found = read(self, one._replace(start=one.void))
    if found.settled is None:
        return NOTHING_SAID
    return found._replace(settled=OffsetMap(found.settled.bounds, 9))


@replaces(AssignmentState, "_settled_above")
def open_records_are_in_the_map(self: AssignmentState, base: int) -> tuple[list[int], int | None]:
    """The map says that every record seen is settled."""
    return ([base + 1, self.last_seen + 1], 10**6) if self.last_seen > base else ([], None)


@around(offset_map, "write_map")
def maps_are_as_long_as_they_come(
    write: Any,
    tp: TopicPartition,
    base: int,
    bounds: Sequence[int],
    epoch: int | None,
    maximum: int = 0,
    **ids: Any,
) -> Any:
    """The broker refuses a commit whose map is too long, and every later one."""
    return write(tp, base, bounds, epoch, 10**9, **ids)


@replaces(Pipeline, "_fetched")
def beginning_below_the_start_goes_unnoticed(self: Pipeline, happened: messages.Fetched) -> None:
    """The log was recreated, and its records count as settled before (a reviewer found the bug)."""
    for chunk in happened.chunks:
        state = self.ledger.get(TopicPartition(chunk.topic, chunk.partition))
        if state is None or state.epoch != chunk.epoch or state.draining:
            continue
        if chunk.records[0].offset <= state.last_seen:
            self._go_back(state, chunk.records[0].offset)
        self.steps.fetched(state, chunk)


@around(Block, "open_runs")
def records_after_a_gap_are_taken_for_settled(open_runs: Any, self: Block) -> Any:
    """Runs of settled records are counted in records instead of offsets."""
    for begin, after in open_runs(self):
        shift = begin - self.offsets[0] - self.offsets.index(begin)
        yield begin - min(shift, begin), after


# -- dead letters


@mutation
def settles_before_the_dead_letter_is_stored(patch: pytest.MonkeyPatch) -> None:
    """The write fails and the event is lost (getsentry/arroyo, jitsu rotor)."""
    write = Steps.dead_letter

    def earlier(self: Steps, row: Run, *refused: Any) -> None:
        write(self, row, *refused)
        self.ledger.settle([row], Disposition.DEAD_LETTERED)

    def stored(self: Steps, happened: messages.DeadLettersStored) -> None:
        self.letters.finish(happened.number, happened.stored, self.context.now.monotonic, 0.5)

    patch.setattr(Steps, "dead_letter", earlier)
    patch.setattr(Steps, "letters_stored", stored)


@around(Steps, "letters_stored")
def partly_stored_letters_count_as_stored(
    stored: Any, self: Steps, happened: messages.DeadLettersStored
) -> None:
    """One acknowledged dead letter counts for the whole write."""
    stored(self, happened._replace(stored=[any(happened.stored)] * len(happened.stored)))


@around(Outbox, "finish")
def failed_writes_are_dropped(finish: Any, self: Outbox[Any], *args: Any) -> Any:
    """Dead letters whose write failed are not written again."""
    waiting = list(self._waiting)
    done = finish(self, *args)
    self._waiting = waiting
    return done


# Dead letters are written although their partition has another owner.
replaced("letters_outlive_their_assignment", Outbox, "discard", lambda *_: [])


@around(Steps, "letters_stored")
def acknowledgements_are_taken_in_any_order(
    stored: Any, self: Steps, happened: messages.DeadLettersStored
) -> None:
    """Acknowledgements are matched to dead letters in the wrong order."""
    stored(self, happened._replace(stored=list(happened.stored)[::-1]))


@around(Steps, "judged")
def letters_forget_their_attempts(judged: Any, self: Steps, ends: Any, attempts: Any, call: Any) -> Any:
    """A dead letter does not say how often it was tried (getsentry/arroyo PR 410)."""
    return judged(self, ends, 0, call)


# The API's message repeats values of the event, and so does the dead letter.
replaced("messages_are_not_masked", answers, "mask", lambda message, body=b"": message)


@mutation
def drains_do_not_wait_for_what_was_read_again(patch: pytest.MonkeyPatch) -> None:
    """After a position went back, a drain does not wait for the calls with the earlier reading."""
    busy = Pipeline._busy

    def forgetful(self: Pipeline, states: list[AssignmentState]) -> bool:
        out = [*self.dispatcher.in_flight(), *self.keys, *(one.row for one in self.letters)]
        return busy(self, states) and any(row.ours for row in each_of(out))

    patch.setattr(Pipeline, "_busy", forgetful)
