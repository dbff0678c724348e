"""The pipeline keeps its rules (docs/architecture.md), beside what the simulation shows; rules 5 to 7 are in
test_draining.py."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Position, Stage, TopicPartition
from consumer.engine.reading import split_keys
from consumer.errors import InvariantViolation
from tests.engine.building import (
    TOPIC,
    UNDECODABLE,
    Core,
    chunk,
    event,
    filtered,
    reading,
    released,
    sending,
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


def test_before_anything_was_seen_room_is_guessed_by_size_too() -> None:
    """Before the first record, room is estimated in bytes, so that the first fetch fits (parallel-consumer #832)."""
    core = reading(max_open_bytes=1024 * 1024)
    assert 1 <= core.pipeline.room() <= 100


# -- schemas


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
