"""Deliberate bugs in the engine's state: claims, keys, the ledger, commits, dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.dedup.claims import Claims
from consumer.engine.model import Chunk, Disposition, Position, Rejection, TopicPartition
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
from consumer.engine.records.topics import Lives, Removals
from consumer.engine.sending import answers
from consumer.engine.sending.answers import Judged
from consumer.engine.steps import Steps
from tests.simulation.broker import Broker
from tests.simulation.mutations.mutating import mutation

# -- deduplication


@mutation
def keys_do_not_name_the_destination(patch: pytest.MonkeyPatch) -> None:
    """An event that a sandbox received counts as a duplicate for the platform."""
    make = Keys.__init__
    patch.setattr(Keys, "__init__", lambda self, *_: make(self))


@mutation
def boolean_dedup(patch: pytest.MonkeyPatch) -> None:
    """A record is settled as a duplicate while its key is only claimed (apache/pulsar #5218)."""
    look_up = Steps.look_up

    def settling(self: Steps, leaders: Sequence[Run]) -> None:
        for followers in self.claims.followers.values():
            self.ledger.settle(followers, Disposition.DUPLICATE)
        self.claims.followers.clear()
        look_up(self, leaders)

    patch.setattr(Steps, "look_up", settling)


@mutation
def claims_of_dropped_work_are_kept(patch: pytest.MonkeyPatch) -> None:
    """Dropped work keeps its claim, so its followers wait for ever."""
    patch.setattr(Steps, "transfer", lambda self, leaders: None)


@mutation
def key_stored_before_delivery(patch: pytest.MonkeyPatch) -> None:
    """The key is stored when the event is queued."""
    take_in = Pipeline._take_in

    def taken_in(self: Pipeline, happened: messages.Input) -> None:
        if isinstance(happened, messages.KeysLookedUp):
            _, others = pick(self.lookups._asked[happened.number], happened.found)
            self.keys.add(others)
        take_in(self, happened)

    patch.setattr(Pipeline, "_take_in", taken_in)


@mutation
def followers_share_their_leaders_refusal(patch: pytest.MonkeyPatch) -> None:
    """The followers of a refused leader are settled as duplicates, though no event was delivered."""
    judged = Steps.judged

    def refused(self: Steps, ends: Judged, attempts: int) -> None:
        for row, _ in ends.refused:
            self.ledger.settle(self.claims.followers.pop(keys_of([row]), []), Disposition.DUPLICATE)
        judged(self, ends, attempts)

    patch.setattr(Steps, "judged", refused)


@mutation
def followers_of_dropped_leaders_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A dropped leader's claim is released, and no follower inherits it."""
    patch.setattr(
        Claims, "release", lambda self, leader: (self.claimed.remove(keys_of([leader])) and None, ())
    )


@mutation
def store_failure_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """An event counts as delivered though its key is not durable."""
    patch.setattr(
        Steps, "keys_not_stored", lambda self, number: self.keys_stored(messages.KeysStored(number))
    )


@mutation
def delivered_without_waiting_for_the_key(patch: pytest.MonkeyPatch) -> None:
    """The record settles with the API's answer, before its key is durable."""

    judged = Steps.judged

    def delivered(self: Steps, ends: Judged, attempts: int) -> None:
        self.ledger.settle([*ends.delivered, *self.claims.confirm(ends.delivered)], Disposition.DELIVERED)
        judged(self, ends._replace(delivered=()), attempts)

    patch.setattr(Steps, "judged", delivered)


@mutation
def failed_look_up_means_new(patch: pytest.MonkeyPatch) -> None:
    """The key store does not answer, and the event counts as new."""

    def failed(self: Steps, number: int) -> None:
        count = rows_of(self.lookups._asked[number])
        self.looked_up(messages.KeysLookedUp(number, [False] * count))

    patch.setattr(Steps, "look_up_failed", failed)


@mutation
def other_followers_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The first follower inherits the claim; the followers behind it are forgotten."""
    release = Claims.release

    def alone(self: Claims, leader: Run) -> tuple[Run | None, Sequence[Run]]:
        released = release(self, leader)
        self.followers.pop(keys_of([leader]), None)
        return released

    patch.setattr(Claims, "release", alone)


@mutation
def followers_settle_before_the_key_is_durable(patch: pytest.MonkeyPatch) -> None:
    """Followers settle with the answer to their leader, before its key is durable."""

    judged = Steps.judged

    def delivered(self: Steps, ends: Judged, attempts: int) -> None:
        for key in split_keys(keys_of(ends.delivered)):
            self.ledger.settle(self.claims.followers.pop(key, []), Disposition.DUPLICATE)
        judged(self, ends, attempts)

    patch.setattr(Steps, "judged", delivered)


# -- ledger, fences and commits


@mutation
def no_epoch_fence(patch: pytest.MonkeyPatch) -> None:
    """Records of an ended assignment enter the new one."""

    def fetched(self: Pipeline, happened: messages.Fetched) -> None:
        for chunk in happened.chunks:
            for state in self.ledger:
                if state.tp == (chunk.topic, chunk.partition) and not state.draining:
                    if chunk.records[0].offset > state.last_seen:
                        self.steps.fetched(state, chunk)
                    break

    patch.setattr(Pipeline, "_fetched", fetched)


@mutation
def ended_assignments_settle(patch: pytest.MonkeyPatch) -> None:
    """Records of an ended assignment settle in the assignment that followed it."""
    keys_stored = Steps.keys_stored

    def inherited(self: Steps, row: Run) -> Run:
        heir = self.ledger.get(row.block.assignment.tp)
        if not row.block.assignment.live and heir is not None and heir.blocks:
            other = heir.blocks[0]
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


@mutation
def commits_the_highest_seen(patch: pytest.MonkeyPatch) -> None:
    """The highest settled offset is committed (vectordotdev/vector #24215)."""

    def committable(self: AssignmentState) -> Position | None:
        if self.last_seen < 0:
            return None
        return Position(*self.tp, self.last_seen + 1, self.blocks[-1].leader_epoch if self.blocks else None)

    patch.setattr(AssignmentState, "committable", committable)


@mutation
def commits_past_the_lowest_open(patch: pytest.MonkeyPatch) -> None:
    """The commit is the position after the lowest open record instead of the record's own."""
    committable = AssignmentState.committable

    def one_more(self: AssignmentState) -> Position | None:
        position = committable(self)
        if position is None or not self.open:
            return position
        return position._replace(next_offset=position.next_offset + 1)

    patch.setattr(AssignmentState, "committable", one_more)


@mutation
def commits_without_leader_epoch(patch: pytest.MonkeyPatch) -> None:
    """Commits carry no leader epoch (apache/kafka PR 23183)."""
    committable = AssignmentState.committable

    def bare(self: AssignmentState) -> Position | None:
        position = committable(self)
        return position and position._replace(leader_epoch=None)

    patch.setattr(AssignmentState, "committable", bare)


@mutation
def failed_commit_is_taken_for_done(patch: pytest.MonkeyPatch) -> None:
    """After a failed commit the position is not committed again until more records settle."""
    done = Commits.done

    def always(self: Commits, happened: messages.CommitDone) -> None:
        positions = [position for _, position in self._under_way or ()]
        done(self, happened._replace(committed=positions, failure=None))

    patch.setattr(Commits, "done", always)


@mutation
def what_settles_late_is_not_committed(patch: pytest.MonkeyPatch) -> None:
    """A record that settles after its partition was last looked at does not have it looked at again."""
    settle = Ledger.settle

    def unseen(self: Ledger, runs: Iterable[Run], disposition: Disposition) -> list[Run]:
        runs = list(runs)
        before = {run.block.assignment: run.block.assignment.changed for run in runs}
        settled = settle(self, runs, disposition)
        for state, changed in before.items():
            state.changed = changed
        return settled

    patch.setattr(Ledger, "settle", unseen)


@mutation
def draining_partitions_are_committed_twice(patch: pytest.MonkeyPatch) -> None:
    """The timer and the release both commit a draining partition."""

    def all_of_them(self: Ledger) -> Iterable[tuple[AssignmentState, Position]]:
        pairs = ((state, state.committable()) for state in self)
        return ((state, one) for state, one in pairs if one is not None and one != state.committed)

    patch.setattr(Ledger, "committables", all_of_them)


@mutation
def lost_partitions_are_committed(patch: pytest.MonkeyPatch) -> None:
    """Partitions that were lost are committed (librdkafka #5604)."""
    lose = Pipeline._lost

    def lost(self: Pipeline, happened: messages.Lost) -> None:
        positions = self.ledger.final_positions(s for s in map(self.ledger.get, happened.partitions) if s)
        lose(self, happened)
        if positions and self.commits._under_way is None:
            self.commits._under_way = []
            self.context.emit(messages.Commit(positions))

    patch.setattr(Pipeline, "_lost", lost)


@mutation
def a_position_that_went_back_voids_all_that_is_open(patch: pytest.MonkeyPatch) -> None:
    """Open records before the new position are dropped, although they will not be read again."""
    rewind = Ledger.rewind

    def all_of_it(self: Ledger, state: AssignmentState, offset: int) -> int:
        released = rewind(self, state, 0)
        state.last_seen = offset - 1
        state.start = offset
        return released

    patch.setattr(Ledger, "rewind", all_of_it)


@mutation
def bytes_of_events_are_not_entered(patch: pytest.MonkeyPatch) -> None:
    """A settled record frees more bytes of the budget than it took."""
    patch.setattr(Ledger, "insert", lambda self, block, rows, columns: block.insert(rows, columns))


@mutation
def records_removed_unread_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Records that retention removed unread are not reported."""
    patch.setattr(Removals, "fetched", lambda *_: None)


@mutation
def what_is_removed_before_a_first_read_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Where a log began when it was assigned is forgotten, so that the first record comes from its beginning."""
    assign = Ledger.assign

    def without(self: Ledger, one: messages.Assignment, *said: CommitMetadata) -> AssignmentState:
        return assign(self, one._replace(beginning=None), *said)

    patch.setattr(Ledger, "assign", without)


@mutation
def a_log_that_outgrew_the_committed_offset_is_read_on(patch: pytest.MonkeyPatch) -> None:
    """The client does not ask whether a log still has what was committed: it reads on in the middle of another one."""
    patch.setattr(Broker, "end_of_epoch", lambda *_: None)


@mutation
def every_gap_counts_as_removed(patch: pytest.MonkeyPatch) -> None:
    """Every gap in offsets counts as removed records, although compaction and transactions leave gaps, too."""

    def removed(chunk: Chunk, expected: int | None, known: OffsetMap | None) -> int:
        return removed_unread(chunk._replace(log_start=chunk.records[-1].offset), expected, known)

    patch.setattr(topics, "removed_unread", removed)


# -- the offset map


@mutation
def offset_maps_are_not_read(patch: pytest.MonkeyPatch) -> None:
    """The next owner sends again what is settled above the committed offset."""
    read = Lives._read_metadata

    def without_map(self: Lives, one: messages.Assignment) -> CommitMetadata:
        return read(self, one)._replace(settled=None)

    patch.setattr(Lives, "_read_metadata", without_map)


@mutation
def offset_maps_are_not_written(patch: pytest.MonkeyPatch) -> None:
    """Commits carry no offset map."""
    patch.setattr(offset_map, "write_map", lambda *_, **__: "")


@mutation
def maps_wait_for_the_watermark(patch: pytest.MonkeyPatch) -> None:
    """No map is written while the first record of all is open (this simulation found the bug)."""
    committable = AssignmentState.committable

    def moved(self: AssignmentState) -> Position | None:
        position = committable(self)
        return position if self.next_offset is not None else None

    patch.setattr(AssignmentState, "committable", moved)


@mutation
def inherited_maps_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The next commit holds only what was settled since the assignment."""
    commit = AssignmentState._position

    def own(self: AssignmentState, next_offset: int, leader_epoch: int | None) -> Position:
        inherited, self.inherited = self.inherited, None
        position = commit(self, next_offset, leader_epoch)
        self.inherited = inherited
        return position

    patch.setattr(AssignmentState, "_position", own)


@mutation
def maps_of_a_cut_log_are_believed(patch: pytest.MonkeyPatch) -> None:
    """A map is applied although other records have these offsets now (unclean leader election)."""
    patch.setattr(OffsetMap, "holds_for", lambda self, leader_epoch: True)


@mutation
def another_id_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """A topic that is created again under a running member is read on from the old position."""
    patch.setattr(Lives, "told", lambda self, ids: False)


@mutation
def the_committed_id_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    """An offset that was committed in an earlier life of the topic holds in the next one."""
    patch.setattr(offset_map, "is_void", lambda *_, **__: False)


@mutation
def a_map_of_another_life_is_believed(patch: pytest.MonkeyPatch) -> None:
    """Reading begins again, but skips the offsets that were settled in the topic's earlier life."""
    read = Lives._read_metadata

    def of_before(self: Lives, one: messages.Assignment) -> CommitMetadata:
        if one.void is None:
            return read(self, one)
        found = read(self, one._replace(start=one.void))
        if found.settled is None:
            return NOTHING_SAID
        return found._replace(settled=OffsetMap(found.settled.bounds, 9))

    patch.setattr(Lives, "_read_metadata", of_before)


@mutation
def open_records_are_in_the_map(patch: pytest.MonkeyPatch) -> None:
    """The map says that every record seen is settled."""

    def all_of_it(self: AssignmentState, base: int) -> tuple[list[int], int | None]:
        return ([base + 1, self.last_seen + 1], 10**6) if self.last_seen > base else ([], None)

    patch.setattr(AssignmentState, "_settled_above", all_of_it)


@mutation
def maps_are_as_long_as_they_come(patch: pytest.MonkeyPatch) -> None:
    """The broker refuses a commit whose map is too long, and every later one."""
    write = offset_map.write_map

    def all_of_it(
        tp: TopicPartition, base: int, bounds: Sequence[int], epoch: int | None, most: int = 0, **ids: Any
    ) -> str:
        return write(tp, base, bounds, epoch, 10**9, **ids)

    patch.setattr(offset_map, "write_map", all_of_it)


@mutation
def beginning_below_the_start_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """The log was made anew, and its records count as settled before (a reviewer found the bug)."""

    def fetched(self: Pipeline, happened: messages.Fetched) -> None:
        for chunk in happened.chunks:
            state = self.ledger.get(TopicPartition(chunk.topic, chunk.partition))
            if state is None or state.epoch != chunk.epoch or state.draining:
                continue
            if chunk.records[0].offset <= state.last_seen:
                self._go_back(state, chunk.records[0].offset)
            self.steps.fetched(state, chunk)

    patch.setattr(Pipeline, "_fetched", fetched)


@mutation
def records_after_a_gap_are_taken_for_settled(patch: pytest.MonkeyPatch) -> None:
    """Runs of settled records are counted in records instead of offsets."""

    def by_index(self: Block) -> Iterator[tuple[int, int | None]]:
        for begin, after in open_runs(self):
            shift = begin - self.offsets[0] - self.offsets.index(begin)
            yield begin - min(shift, begin), after

    open_runs = Block.open_runs
    patch.setattr(Block, "open_runs", by_index)


# -- dead letters


@mutation
def settles_before_the_dead_letter_is_stored(patch: pytest.MonkeyPatch) -> None:
    """The write fails and the event is lost (getsentry/arroyo, jitsu rotor)."""
    write = Steps.dead_letter

    def early(self: Steps, row: Run, rejection: Rejection, attempts: int) -> None:
        write(self, row, rejection, attempts)
        self.ledger.settle([row], Disposition.DEAD_LETTERED)

    def stored(self: Steps, happened: messages.DeadLettersStored) -> None:
        self.letters.finish(happened.number, happened.stored, self.context.now.monotonic, 0.5)

    patch.setattr(Steps, "dead_letter", early)
    patch.setattr(Steps, "letters_stored", stored)


@mutation
def partly_stored_letters_count_as_stored(patch: pytest.MonkeyPatch) -> None:
    """One acknowledged dead letter counts for the whole write."""
    stored = Steps.letters_stored

    def all_or_nothing(self: Steps, happened: messages.DeadLettersStored) -> None:
        stored(self, happened._replace(stored=[any(happened.stored)] * len(happened.stored)))

    patch.setattr(Steps, "letters_stored", all_or_nothing)


@mutation
def failed_writes_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """Dead letters whose write failed are not written again."""
    finish = Outbox.finish

    def dropping(self: Outbox[Any], *args: Any) -> list[Any]:
        waiting = list(self._waiting)
        done = finish(self, *args)
        self._waiting = waiting
        return done

    patch.setattr(Outbox, "finish", dropping)


@mutation
def letters_outlive_their_assignment(patch: pytest.MonkeyPatch) -> None:
    """Dead letters are written although their partition has another owner."""
    patch.setattr(Outbox, "discard", lambda *_: [])


@mutation
def acknowledgements_are_taken_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """Acknowledgements are matched to dead letters in the wrong order."""
    stored = Steps.letters_stored

    def reversed_(self: Steps, happened: messages.DeadLettersStored) -> None:
        stored(self, happened._replace(stored=list(happened.stored)[::-1]))

    patch.setattr(Steps, "letters_stored", reversed_)


@mutation
def letters_forget_their_attempts(patch: pytest.MonkeyPatch) -> None:
    """A dead letter does not say how often it was tried (getsentry/arroyo PR 410)."""
    judged = Steps.judged
    patch.setattr(Steps, "judged", lambda self, ends, attempts: judged(self, ends, 0))


@mutation
def messages_are_not_masked(patch: pytest.MonkeyPatch) -> None:
    """The API's message repeats values of the event, and so does the dead letter."""
    patch.setattr(answers, "mask", lambda message, body=b"": message)


@mutation
def drains_do_not_wait_for_what_was_read_again(patch: pytest.MonkeyPatch) -> None:
    """After a position went back, a drain does not wait for the calls with the earlier reading."""
    busy = Pipeline._busy

    def forgetful(self: Pipeline, states: list[AssignmentState]) -> bool:
        out = [*self.dispatcher.in_flight(), *self.keys, *(one.row for one in self.letters)]
        return busy(self, states) and any(row.ours for row in each_of(out))

    patch.setattr(Pipeline, "_busy", forgetful)
