"""Commits: when they are sent, and that a process that was frozen begins nothing before it knows what is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consumer.adapters.kafka.commits import commit_done
from consumer.engine import messages as m
from consumer.engine.model import REAL_API, MetadataLevel, Position, TopicPartition, settings_digests
from consumer.engine.records import offset_map
from consumer.engine.records.offset_map import CommitMetadata
from tests.engine.building import (
    TOPIC,
    UNDECODABLE,
    Core,
    event,
    event_ids,
    filtered,
    released,
    sends,
)

AWAY = 5.0
TOPIC_ID = "x5vNb0eWTeyZpT1Aw2Z5Cg"
DESTINATION = "PO4_-b8T"
OURS = settings_digests("a mapping", "schemas", "")


def core_of(*partitions: int, commit_interval: float = 1.0, concurrency: int = 8) -> Core:
    """Return a core with these partitions that sends at once; it has had its first input."""
    core = Core(
        away=AWAY, batch_events=1, linger=0.0, commit_interval=commit_interval, concurrency=concurrency
    )
    core.tick()
    for partition in partitions or (0,):
        core.assign(partition, epoch=1 + partition)
    return core


def is_away(core: Core, seconds: float = 60.0) -> list[m.Command]:
    """Freeze the process for `seconds`; return the commands of the tick after that."""
    core.now += seconds
    return core.tick()


def begun(commands: Sequence[m.Command]) -> list[m.Command]:
    """Return the commands that must not be given for records that may belong to another member."""
    return [one for one in commands if isinstance(one, m.Send | m.StoreDeadLetters)]


def queued(core: Core, *values: bytes | None, partition: int = 0) -> None:
    """Fetch records and look them up: they are ready to be sent or wait for their turn."""
    core.fetch(*values, partition=partition)
    core.look_up()


def committed(core: Core, positions: Sequence[Position], failure: str | None = None) -> list[m.Command]:
    """Let the broker answer a commit: it accepted `positions`."""
    return core.feed(commit_done(positions, failure))


# -- when commits are sent


def test_commits_go_one_at_a_time_and_only_when_something_changed() -> None:
    """A commit is sent at most once an interval, one at a time, and only when something changed."""
    core = core_of(commit_interval=2.0)
    core.fetch(filtered())
    core.advance(2.0)
    first = core.take(m.Commit)
    core.fetch(filtered())
    core.advance(10.0)
    assert not core.has(m.Commit)
    committed(core, first.positions)
    core.advance(2.0)
    assert [one.next_offset for one in core.commit()] == [2]
    core.advance(20.0)
    assert not core.has(m.Commit)


def test_a_commit_checks_no_partition_that_has_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check once an interval costs grows with what changed since, not with how many partitions there are;
    and what changes later is committed, whatever it is: a record that comes, one that settles, a topic's id."""
    checked: list[int] = []
    write_map = offset_map.write_map

    def write(tp: TopicPartition, *args: Any, **options: Any) -> str:
        checked.append(tp.partition)
        return write_map(tp, *args, **options)

    monkeypatch.setattr(offset_map, "write_map", write)
    core = core_of(*range(20))
    for partition in range(20):
        core.fetch(filtered(), event(f"e{partition}"), partition=partition)
    core.look_up()
    core.advance(1.0)
    core.commit()
    assert checked == [*range(20)]
    core.advance(60.0)
    assert len(checked) == 20
    core.fetch(filtered(), partition=3)
    core.advance(1.0)
    assert [(one.partition, one.next_offset) for one in core.commit()] == [(3, 1)]
    core.accept(sends(core.waiting)[7])
    core.store_keys()
    core.advance(1.0)
    assert [(one.partition, one.next_offset) for one in core.commit()] == [(7, 2)]
    assert checked[20:] == [3, 7]
    core.feed(m.TopicIds({TOPIC: TOPIC_ID}))
    core.advance(1.0)
    assert len(core.commit()) == 20


def test_a_broker_that_takes_no_metadata_is_committed_to_without_any() -> None:
    """With ``offset.metadata.max.bytes=0`` commits have offsets alone from the second one on, reported once."""
    core = Core(destination=DESTINATION)
    core.assign(0, start=0, topic_id=TOPIC_ID)
    core.fetch(filtered(), filtered())
    core.advance(1.0)
    asked = core.take(m.Commit)
    assert asked.positions[0].metadata
    committed(core, [], "OFFSET_METADATA_TOO_LARGE")
    assert core.commit() == [Position(TOPIC, 0, 2, 7)]
    core.fetch(filtered(), event("a"), filtered())
    core.advance(1.0)
    assert core.commit() == [Position(TOPIC, 0, 3, 7)]
    assert [one.fields for one in core.reports("commit_metadata_refused")] == [{"left": "nothing"}]
    assert core.statistics().commit_metadata is MetadataLevel.NOTHING


def test_a_broker_that_takes_short_metadata_gets_the_ids() -> None:
    """When a map is refused, the ids are committed without it; when those are refused too, the offset alone."""
    core = Core(destination=DESTINATION, fingerprint=OURS)
    core.assign(0, start=0, topic_id=TOPIC_ID)
    core.fetch(filtered(), event("a"), filtered())
    core.advance(1.0)
    assert core.statistics().commit_metadata is MetadataLevel.MAPS
    core.take(m.Commit)
    committed(core, [], "OFFSET_METADATA_TOO_LARGE")
    asked = core.take(m.Commit)
    [position] = asked.positions
    assert (position.next_offset, len(position.metadata)) == (1, offset_map.MAX_IDS)
    assert offset_map.read_map(position) == CommitMetadata(TOPIC_ID, DESTINATION, OURS, None)
    assert core.statistics().commit_metadata is MetadataLevel.IDS
    committed(core, [], "OFFSET_METADATA_TOO_LARGE")
    assert core.commit() == [Position(TOPIC, 0, 1, 7)]
    assert [one.fields["left"] for one in core.reports("commit_metadata_refused")] == ["ids", "nothing"]


# -- the destination


def metadata_of(destination: str | None, base: int = 5) -> str:
    """Return the metadata of a commit of `base` for this destination."""
    return offset_map.write_map(
        TopicPartition(TOPIC, 0), base, [], None, topic_id=TOPIC_ID, destination=destination
    )


def test_commits_for_another_destination_are_reported_at_the_start() -> None:
    """Offsets committed for another destination, whose records are not sent here, give a warning, and count
    in a figure while the assignment lasts."""
    core = Core(destination=DESTINATION)
    core.assign(0, start=5, topic_id=TOPIC_ID, metadata=metadata_of("AAAAAAAA"))
    [report] = core.reports("committed_for_another_destination")
    assert (report.level, report.fields) == ("warning", {"partitions": 1})
    assert core.statistics().other_destination == 1
    core.fetch(filtered())
    core.advance(1.0)
    [position] = core.commit()
    assert offset_map.read_map(position) == CommitMetadata(TOPIC_ID, DESTINATION, None, None)
    core.assign(0, epoch=9, start=6, topic_id=TOPIC_ID, metadata=position.metadata)
    assert len(core.reports("committed_for_another_destination")) == 1
    assert core.statistics().other_destination == 0


@pytest.mark.parametrize("reported", [DESTINATION, None])
def test_the_same_or_an_unknown_destination_is_not_reported(reported: str | None) -> None:
    """Commits without a destination, as of older versions and other tools, give no warning."""
    core = Core(destination=DESTINATION)
    core.assign(0, start=5, topic_id=TOPIC_ID, metadata=metadata_of(reported))
    assert not core.reports("committed_for_another_destination")
    assert core.statistics().other_destination == 0


def test_what_a_gateway_committed_before_it_was_declared_is_not_for_another_destination() -> None:
    """Offsets under the tag that the URL had before it was declared to be the platform count as the platform's."""
    core = Core(destination=REAL_API, earlier_destination=DESTINATION)
    core.assign(0, start=5, topic_id=TOPIC_ID, metadata=metadata_of(DESTINATION))
    assert not core.reports("committed_for_another_destination")


def test_a_refused_map_of_one_partition_ends_maps_for_all() -> None:
    """A refused map of one partition ends maps for all: the limit is the broker's. Accepted positions stay."""
    core = core_of(0, 1)
    for partition in (0, 1):
        core.fetch(filtered(), event(f"a{partition}"), filtered(), partition=partition)
    core.advance(1.0)
    asked = core.take(m.Commit)
    committed(core, asked.positions[:1], "OFFSET_METADATA_TOO_LARGE")
    core.advance(1.0)
    assert core.commit() == [Position(TOPIC, 0, 1, 7), Position(TOPIC, 1, 1, 7)]


# -- absence


def test_after_an_absence_nothing_is_begun_until_it_is_proven() -> None:
    """After an absence no call or dead letter is sent before the broker accepted a commit that was sent after it."""
    core = core_of(concurrency=1)
    queued(core, event("a"), event("b"))
    core.fetch(UNDECODABLE)
    core.store_letters(stored=False)
    first = core.take(m.Send)
    assert begun(is_away(core)) == []
    [report] = core.reports("away")
    assert report.fields["partitions"] == 1
    assert begun(core.answer(first, 500)) == []
    before = len(core.log)
    core.advance(30.0)
    assert begun(core.log[before:]) == []
    core.commit()
    core.advance(1.0)
    assert core.has(m.Send)
    assert core.has(m.StoreDeadLetters)


def test_the_proof_is_a_commit_even_of_what_is_committed_already() -> None:
    """The proof is a commit even of a committed offset; without a settled record, of where reading began."""
    core = core_of(0, 1)
    core.fetch(filtered())
    core.advance(1.0)
    assert core.commit() == [Position(TOPIC, 0, 1, 7)]
    core.fetch(event("a"))
    core.fetch(event("b"), partition=1)
    is_away(core)
    assert core.commit() == [Position(TOPIC, 0, 1, 7), Position(TOPIC, 1, 0, None)]
    core.advance(10.0)
    assert not core.has(m.Commit)


@pytest.mark.parametrize("first", ["tick", "records", "assignment", "answer", "letters"])
def test_an_absence_is_noticed_by_whatever_comes_first(first: str) -> None:
    """Any first input after an absence detects it: sockets and threads have full queues then, in any order."""
    core = core_of(concurrency=1)
    queued(core, event("a"), event("b"), UNDECODABLE)
    send, letters = core.take(m.Send), core.take(m.StoreDeadLetters)
    core.now += 60.0
    before = len(core.log)
    if first == "tick":
        core.tick()
    elif first == "records":
        queued(core, event("c"))
    elif first == "assignment":
        core.assign(5, epoch=9)
    elif first == "answer":
        core.accept(send)
    else:
        core.feed(m.DeadLettersStored(letters.number, [False]))
        core.advance(20.0)
    assert begun(core.log[before:]) == []
    assert len(core.reports("away")) == 1
    core.commit()
    core.advance(1.0)
    if first == "answer":
        core.store_keys()
        assert event_ids(core.take(m.Send)) == ["b"]


def test_the_proof_goes_at_once() -> None:
    """The proof is sent at once, also after a short absence and with a long commit interval."""
    core = core_of(commit_interval=1_000.0)
    core.fetch(event("a"))
    core.advance(1_000.0)
    assert not core.has(m.Commit)
    is_away(core, AWAY + 0.01)
    assert len(core.reports("away")) == 1
    assert core.commit() == [Position(TOPIC, 0, 0, None)]


def test_a_call_must_begin_before_an_absence_would_be_noticed() -> None:
    """A call that was decided before the process stood still must not begin after that: the partition may be lost."""
    core = core_of()
    queued(core, event("a"))
    assert core.take(m.Send).start_deadline == core.now + AWAY


def test_a_proof_of_one_partition_is_none_of_another() -> None:
    """While a partition with open records is unproven, no call begins at all: a call may hold events of several."""
    core = core_of(0, 1)
    for partition in (0, 1):
        core.fetch(event(f"a{partition}"), partition=partition)
    is_away(core)
    core.look_up()
    asked = core.take(m.Commit)
    assert len(asked.positions) == 2
    assert begun(committed(core, asked.positions[:1], "REBALANCE_IN_PROGRESS")) == []
    core.advance(1.0)
    # The first is proven and unchanged: it is not committed again.
    asked = core.take(m.Commit)
    assert [one.partition for one in asked.positions] == [1]
    assert len(sends(committed(core, asked.positions))) == 2


def test_a_partition_without_open_records_does_not_hold_up_others() -> None:
    """A partition without open records, or without an offset to commit, need not be proven before others go on."""
    core = core_of(0, 1)
    core.feed(m.Assigned([m.Assignment(TOPIC, 2, 3, None, False)]))
    core.fetch(event("a"))
    is_away(core)
    core.look_up()
    asked = core.take(m.Commit)
    proven = [one for one in asked.positions if one.partition == 0]
    commands = committed(core, proven, "ILLEGAL_GENERATION")
    assert [event_ids(one) for one in sends(commands)] == [["a"]]


def test_a_draining_partition_does_not_hold_up_others() -> None:
    """A draining partition is not committed or proven before its release, and others go on without it."""
    core = core_of(0, 1)
    core.fetch(event("a"))
    core.look_up()
    is_away(core)
    core.take(m.Commit)
    core.feed(m.CommitDone([], "REBALANCE_IN_PROGRESS", m.CommitError.PASSING))
    assert released(core.revoke(0)) is None
    core.fetch(event("b"), partition=1)
    core.look_up()
    core.advance(1.0)
    asked = core.take(m.Commit)
    assert [one.partition for one in asked.positions] == [1]
    assert [event_ids(one) for one in sends(committed(core, asked.positions))] == [["b"]]


def test_an_assignment_soon_after_an_absence_is_proven_too() -> None:
    """An assignment soon after an absence needs a proof: it may have been revoked again during the absence."""
    core = core_of()
    core.fetch(event("a"))
    is_away(core)
    core.lose(0)
    core.assign(0, epoch=7, start=4)
    core.fetch(event("b"), UNDECODABLE)
    core.look_up()
    asked = core.take(m.Commit)
    if asked.positions[0].next_offset != 4:  # the one for the lost assignment
        committed(core, [], "_ASSIGNMENT_LOST")
        core.advance(1.0)
        asked = core.take(m.Commit)
    assert begun(core.log) == []
    assert list(asked.positions) == [Position(TOPIC, 0, 4, None)]
    assert len(begun(committed(core, asked.positions))) == 2


def test_an_assignment_long_after_an_absence_needs_no_proof() -> None:
    """An assignment long after an absence needs no proof."""
    core = core_of()
    is_away(core)
    core.commit()
    core.advance(20 * AWAY)
    core.lose(0)
    core.assign(0, epoch=7)
    core.fetch(event("b"))
    core.look_up()
    assert event_ids(core.take(m.Send)) == ["b"]


@pytest.mark.parametrize("gap", [0.01, AWAY / 2, AWAY - 0.01])
def test_ordinary_gaps_are_no_absence(gap: float) -> None:
    """Gaps between inputs below `away` cause no wait, report or commit."""
    core = core_of()
    core.fetch(event("a"))
    for number in range(5):
        core.now += gap
        core.fetch(event(f"b{number}"))
        core.look_up()
        assert core.has(m.Send)
        core.deliver_one()
    assert core.reports("away") == []
    assert not core.pipeline.commits.unproven()


def test_the_first_input_is_no_absence() -> None:
    """The first input is no absence, with any clock, and an absence before the first partition is not reported."""
    core = Core(away=AWAY)
    core.now += 10_000.0
    core.tick()
    core.now += 10_000.0
    core.tick()
    assert core.reports("away") == []


def test_an_idle_process_checks_the_clock_often_enough() -> None:
    """An idle process has a tick at least twice per `away`, so that being idle is no absence."""
    core = core_of()
    core.fetch(event("a"))
    core.deliver()
    core.advance(1.0)
    core.commit()
    core.advance(500.0)
    assert core.reports("away") == []
    core.fetch(filtered())
    core.advance(1.0)
    core.take(m.Commit)  # the same while a commit is in flight
    core.advance(500.0)
    assert core.reports("away") == []
