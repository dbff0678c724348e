"""The pipeline keeps its rules (docs/architecture.md); rules 5 to 7 are in test_draining.py."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Position, Stage, TopicPartition
from consumer.engine.reading import split_keys
from consumer.errors import InvariantViolation
from tests.engine.building import (
    NO,
    OTHER_ACCOUNT,
    TOPIC,
    UNDECODABLE,
    Core,
    chunk,
    event,
    event_ids,
    filtered,
    of_schema,
    reading,
    ref,
    released,
    sending,
    sends,
    stopped,
    unconvertible,
)

# -- outcomes of records


def test_every_record_ends_in_exactly_one_disposition() -> None:
    """Each record is delivered, duplicate, filtered or dead-lettered, and the commit has their end and leader epoch."""
    core = Core()
    core.assign(start=40)
    core.fetch(
        event("a"), event("a"), filtered(), None, UNDECODABLE, unconvertible(), event("b", surrogate=True)
    )
    core.deliver()
    letters = core.store_letters()
    assert [(one.record.offset, one.rejection.stage, one.rejection.code) for one in letters] == [
        (44, Stage.DECODE, "malformed"),
        (45, Stage.CONVERT, "no_identity"),
        (46, Stage.CONVERT, "unserialisable"),
    ]
    totals = core.statistics().totals
    assert (totals.read, totals.open) == (7, 0)
    assert (totals.delivered, totals.duplicate, totals.filtered, totals.dead_lettered) == (1, 1, 2, 3)
    core.advance(core.policy.commit_interval)
    assert core.commit() == [Position(TOPIC, 0, 47, 7)]


def test_what_happened_is_counted() -> None:
    """Outcomes are counted by event name, code and stage."""
    core = reading(event("a", warn=1), filtered(), None, UNDECODABLE)
    core.deliver()
    core.store_letters()
    counters = core.statistics().counters
    assert dict(counters.delivered_by_name) == {"checkout": 1}
    assert dict(counters.filtered) == {"event_name": 1, "tombstone": 1}
    assert dict(counters.rejections) == {("decode", "malformed"): 1}
    assert dict(counters.convert_warnings) == {("value_zero", "custom_data.value"): 1}
    assert core.statistics().freshness.total.delivered == 1


def test_a_chunk_of_the_most_records_is_one_look_up_and_one_call() -> None:
    """A chunk of 1,000 records takes one look-up and one call."""
    core = reading(*(event(str(n)) for n in range(1000)))
    asked = core.take(m.LookUpKeys)
    assert len(split_keys(asked.keys)) == 1000
    core.feed(m.KeysLookedUp(asked.number, [False] * 1000))
    assert core.take(m.Send).events == 1000
    assert not core.waiting


# -- rule 1: only the lowest unsettled is committed


def test_an_open_record_holds_the_commit_of_its_partition_alone() -> None:
    """An open record holds the commit of its own partition; other partitions are committed."""
    core = Core(batch_events=1)
    core.assign(0)
    core.assign(1)
    core.fetch(event("slow"), event("fast"), partition=0)
    core.fetch(event("other"), partition=1)
    core.look_up()
    slow = core.take(m.Send)
    core.deliver()
    core.advance(core.policy.commit_interval)
    held, other = core.commit()
    assert (held.next_offset, held.metadata != "") == (0, True)
    assert other == Position(TOPIC, 1, 1, 7)
    core.deliver_one(slow)
    core.advance(core.policy.commit_interval)
    assert core.commit() == [Position(TOPIC, 0, 2, 7)]


def test_a_commit_taken_in_part_is_repeated_for_the_rest() -> None:
    """When a commit was accepted for some partitions, it is repeated for the others alone."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(filtered(), partition=0)
    core.fetch(filtered(), partition=1)
    core.advance(1.0)
    asked = core.take(m.Commit)
    core.feed(m.CommitDone(asked.positions[:1], "trouble"))
    core.advance(1.0)
    assert core.commit() == list(asked.positions[1:])


# -- rule 2: an assignment's epoch is a fence


def test_records_of_an_older_epoch_are_not_taken_in() -> None:
    """Records of an older epoch or a partition that is not ours, and empty chunks, are ignored."""
    core = Core()
    core.assign(0, epoch=2)
    core.feed(
        m.Fetched([chunk([event("old")], epoch=1), chunk([event("x")], partition=9), chunk([], epoch=2)])
    )
    assert core.statistics().totals.read == 0
    assert not core.waiting


def test_an_answer_for_an_older_epoch_settles_nothing() -> None:
    """When a partition was assigned again, an answer to an earlier call settles no record of the new assignment."""
    core = Core()
    core.assign(0, epoch=1)
    core.fetch(event("a"))
    core.send_all()
    core.assign(0, epoch=2)
    core.fetch(event("a"))
    core.accept()
    assert core.committable() is None
    core.store_keys()
    totals = core.statistics().totals
    assert (totals.delivered, totals.duplicate, totals.open) == (0, 1, 0)
    assert core.committable() == 1


def test_a_commit_that_comes_back_late_says_nothing_of_a_new_assignment() -> None:
    """The answer to an old assignment's commit does not set the committed position of the new one."""
    core = Core()
    core.assign(0, epoch=1)
    core.fetch(filtered())
    core.advance(1.0)
    asked = core.take(m.Commit)
    core.assign(0, epoch=2)
    core.feed(m.CommitDone(asked.positions, None))
    assert core.statistics().partitions[0].committed is None


def test_a_position_that_goes_back_voids_what_was_seen_from_there() -> None:
    """When the position goes back without a rebalance, open records from there on are released and read again."""
    core = sending(event("a"), event("b"), event("c"))
    core.offsets[0] = 1
    core.fetch(event("b"), event("c"))
    assert core.committable() is None
    assert core.statistics().totals.open == 3
    core.deliver()
    totals = core.statistics().totals
    assert (totals.duplicate, totals.delivered, totals.open, totals.released) == (2, 1, 0, 2)
    assert core.committable() == 3
    assert core.reports("position_went_back")


def test_a_stop_waits_for_the_keys_of_what_a_position_that_went_back_released() -> None:
    """A stop waits for keys of delivered events that a rewind released: without them the events would be sent
    again (the simulation's seed 681)."""
    core = sending(event("a"), event("b"))
    core.offsets[0] = 0
    core.fetch(event("c"))
    core.feed(m.StopRequested(20.0))
    core.accept()
    assert stopped(core) is None
    core.store_keys()
    stop = stopped(core)
    assert stop is not None
    assert stop.drained


def test_a_position_that_goes_back_loses_nothing_before_it() -> None:
    """When a log was truncated, open records before the cut stay open and are delivered."""
    core = sending(event("a"), event("b"), event("c"))
    core.offsets[0] = 1
    core.fetch(event("B"), event("C"))
    core.deliver()
    core.advance(core.policy.commit_interval)
    assert core.commit() == [Position(TOPIC, 0, 3, 7)]
    delivered = {one for send in sends(core.log) for one in event_ids(send)}
    assert delivered >= {"a", "B", "C"}


# -- rule 3: claim, then confirm or release


def test_a_delivered_key_is_durable_before_its_record_settles() -> None:
    """A delivered record settles when its key is stored, and not before (Redpanda Connect's own docs)."""
    core = sending(event("a"))
    core.accept()
    for _ in range(3):
        assert core.committable() is None
        asked = core.take(m.StoreKeys)
        core.feed(m.KeyStoreFailed(asked))
        core.until(lambda: core.has(m.StoreKeys))
    core.store_keys()
    assert core.committable() == 1
    assert core.statistics().counters.failures["key_store_write"] == 3


def test_a_key_delivered_before_is_a_duplicate_and_is_not_sent() -> None:
    """An event whose key is stored is a duplicate and is not sent, and so are its followers."""
    core = reading(event("a"))
    core.deliver()
    core.fetch(event("a"), event("a"))
    core.send_all()
    assert not core.has(m.Send)
    assert core.statistics().totals.duplicate == 2


def test_a_duplicate_of_an_open_event_waits_for_it() -> None:
    """A duplicate of an open event of any partition is not sent, and settles with that event."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.fetch(event("a"), partition=1)
    core.send_all()
    send = core.take(m.Send)
    assert send.events == 1
    core.advance(60.0)
    assert core.committable(1) is None
    core.deliver_one(send)
    totals = core.statistics().totals
    assert (totals.delivered, totals.duplicate, totals.open) == (1, 1, 0)


def test_a_duplicate_of_a_refused_event_is_tried_itself() -> None:
    """A duplicate of a refused event is sent itself: it may hold what the first one lacked."""
    core = sending(event("a", version=1), event("a", version=2))
    core.answer(core.take(m.Send), 400, NO)
    core.store_letters()
    core.deliver()
    totals = core.statistics().totals
    assert (totals.dead_lettered, totals.delivered) == (1, 1)


@pytest.mark.parametrize("when", ["looking up", "queued", "in flight", "backing off"])
def test_a_follower_whose_leader_s_partition_is_lost_is_delivered(when: str) -> None:
    """When a leader's partition is lost, its follower is sent itself, or settles with the leader's delivery."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.fetch(event("a"), partition=1)
    if when != "looking up":
        core.look_up()
    if when in ("in flight", "backing off"):
        core.advance(core.policy.linger)
    if when == "backing off":
        core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    core.lose(0)
    core.deliver()
    totals = core.statistics().totals
    assert (totals.delivered + totals.duplicate, totals.open) == (1, 0)
    assert core.statistics().claims == 0
    assert core.committable(1) == 1


# -- rule 4: the engine retries


@pytest.mark.parametrize("answer", [None, 503, 429, 401])
def test_a_revoke_ends_the_retries(answer: int | None) -> None:
    """A revoke drops batches that wait to be retried; they are not sent or committed afterwards."""
    core = sending(event("a"))
    send = core.take(m.Send)
    if answer is None:
        core.feed(m.Unanswered(send.number, "timeout"))
    else:
        core.answer(send, answer, headers={"retry-after": "30"})
    assert released(core.revoke(0)) == []
    core.advance(100.0)
    assert not core.has(m.Send)
    assert core.statistics().claims == 0


def test_answers_that_fit_no_command_are_bugs() -> None:
    """An answer to no command, or with a wrong length, raises an error."""
    core = Core()
    for wrong in (
        m.KeysLookedUp(99, []),
        m.KeyStoreFailed(m.LookUpKeys(99, b"")),
        m.KeysStored(99),
        m.KeyStoreFailed(m.StoreKeys(99, b"")),
        m.CommitDone([], None),
        m.DeadLettersStored(99, []),
        m.Unanswered(99, "timeout"),
    ):
        with pytest.raises(InvariantViolation):
            core.feed(wrong)
    core.assign()
    core.fetch(event("a"))
    with pytest.raises(InvariantViolation):
        core.feed(m.KeysLookedUp(core.take(m.LookUpKeys).number, [False, False]))


# -- rule 8: every limit is explicit


def test_open_bytes_bound_the_intake() -> None:
    """Open bytes of records and events' JSON limit the intake; with nothing open there is room for one record."""
    core = reading(event("a", text="x" * 3000), max_open_bytes=10_000)
    assert core.pipeline.room() == 0
    core.deliver()
    assert core.pipeline.room() == 1
    core.fetch(event("b", text="x" * 30_000))
    assert core.pipeline.room() == 0
    core.deliver()
    assert core.statistics().open_bytes == 0


def test_before_anything_was_seen_room_is_guessed_by_size_too() -> None:
    """Before the first record, room is estimated in bytes, so that the first fetch fits (parallel-consumer #832)."""
    core = reading(max_open_bytes=1024 * 1024)
    assert 1 <= core.pipeline.room() <= 100


# -- rule 9: same seed, same commands


def script(seed: int) -> list[m.Command]:
    """Return the commands of a run with inputs of most kinds."""
    core = Core(seed=seed, batch_events=3)
    core.assign(0)
    core.assign(1)
    core.fetch(*(event(str(n)) for n in range(7)), UNDECODABLE, event("1"), of_schema("s", "1"))
    core.fetch(*(event(str(n), OTHER_ACCOUNT) for n in range(4)), partition=1)
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys)))
    core.feed(m.SchemaUnavailable(ref("1"), "timeout"))
    core.store_letters(stored=False)
    core.send_all()
    for status in (503, 429, 400, 401):
        core.advance(40.0)
        if core.has(m.Send):
            core.answer(core.take(m.Send), status)
    core.revoke(1)
    core.advance(100.0)
    return core.log


def test_the_same_seed_gives_the_same_commands() -> None:
    """The same seed gives the same commands, whatever hash order or identity; another seed waits differently."""
    assert script(1) == script(1)
    assert script(1) != script(2)


# -- schemas


def test_a_schema_s_verdicts() -> None:
    """Records of a found schema are decoded; a missing or unusable one makes dead letters; otherwise they wait."""
    core = reading(of_schema("a", "1"), of_schema("b", "2"), of_schema("c", "3"), event("d"))
    assert core.statistics().waiting_for_schema == 3
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "good"))
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "broken"))
    core.deny_schema()
    core.deliver()
    codes = [one.rejection.code for one in core.store_letters() + core.store_letters()]
    assert codes == ["schema_unusable", "schema_missing"]
    assert core.statistics().totals.delivered == 2
    assert core.committable() == 4


def test_a_dead_letter_names_where_it_came_from() -> None:
    """A dead letter has topic, partition, the original record, attempts and time; an unsent record has 0 attempts."""
    core = reading(UNDECODABLE)
    [letter] = core.store_letters()
    assert (letter.topic, letter.partition, letter.record.value) == (TOPIC, 0, UNDECODABLE)
    assert (letter.attempts, letter.at_ms) == (0, 1_700_000_000_000)


def test_end_offsets_of_partitions_that_are_not_ours_are_ignored() -> None:
    """End offsets of a partition that is not ours are ignored: they come late, from another thread."""
    core = Core()
    core.feed(m.EndOffsets({TopicPartition(TOPIC, 5): 3}))
    assert core.statistics().partitions == ()


def test_a_new_group_s_start_is_committed_before_any_record() -> None:
    """A new group's start is committed before its first record, so that a crash does not skip later records."""
    core = Core()
    core.assign(start=500, commit_start=True)
    core.advance(core.policy.commit_interval)
    assert core.commit() == [Position(TOPIC, 0, 500, None)]
