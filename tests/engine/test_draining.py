"""Room, revoke, stop and halt: rules 5 to 7 of docs/architecture.md."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine import pipeline
from consumer.engine.intake.admission import MAX_FETCH
from consumer.engine.model import Position
from tests.engine.building import (
    NO,
    TOPIC,
    Core,
    event,
    event_ids,
    filtered,
    reading,
    released,
    sending,
    stopped,
)

# -- rule 5: room depends on the present level


def test_room_is_what_the_budget_leaves() -> None:
    """Room is at most one fetch, and at most the events left in the budget; a full budget has none."""
    core = reading(max_open_events=MAX_FETCH + 500)
    assert core.pipeline.room() == MAX_FETCH
    core.fetch(*(event(str(n)) for n in range(700)))
    assert core.pipeline.room() == MAX_FETCH - 200
    core.fetch(*(event(f"x{n}") for n in range(MAX_FETCH - 200)))
    assert core.pipeline.room() == 0
    core.deliver()
    assert core.pipeline.room() == MAX_FETCH


# -- rule 6: revoke, stop and the end of a replay are one path


def test_a_revoke_drops_the_queue_and_waits_for_what_is_in_flight() -> None:
    """A revoke drops the queue, waits for calls in flight, commits and releases (getsentry/launchpad PR 512)."""
    core = sending(event("a"), event("b"), batch_events=1, concurrency=1)
    assert released(core.revoke(0)) is None
    send = core.accept()
    assert event_ids(send) == ["a"]
    assert not core.has(m.Send)
    asked = core.take(m.StoreKeys)
    commands = core.feed(m.KeysStored(asked.number))
    assert released(commands) == [Position(TOPIC, 0, 1, 7)]
    assert not any(isinstance(one, m.Commit) for one in commands), "in the rebalance alone"
    assert core.statistics().partitions == ()
    assert core.statistics().totals.released == 1


def test_a_revoke_takes_no_new_records_of_its_partitions() -> None:
    """While a partition is revoked, its new records are not read; other partitions go on."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.send_all()
    core.revoke(0)
    core.fetch(event("b"), partition=0)
    core.fetch(event("c"), partition=1)
    assert core.pipeline.room() > 0
    assert core.statistics().totals.read == 2


def test_a_revoke_waits_no_longer_than_its_deadline() -> None:
    """At its deadline a revoke commits what is settled; an answer that comes later commits nothing."""
    core = sending(event("a"), event("b"), batch_events=1)
    core.deliver_one()
    begun = core.now
    core.revoke(0, grace=20.0)
    core.until(lambda: any(isinstance(one, m.Release) for one in core.log))
    assert core.now == begun + 20.0
    assert released(core.log) == [Position(TOPIC, 0, 1, 7)]
    core.deliver_one()
    core.advance(10.0)
    assert not core.has(m.Commit)


def test_a_revoke_waits_for_the_leader_of_a_follower() -> None:
    """A revoke waits for a leader in flight on another partition, whose delivery settles the follower."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.fetch(event("a"), partition=1)
    core.send_all()
    assert released(core.revoke(1)) is None
    core.accept()
    asked = core.take(m.StoreKeys)
    assert released(core.feed(m.KeysStored(asked.number))) == [Position(TOPIC, 1, 1, 7)]


def test_a_revoke_checks_no_keys_while_a_call_of_its_own_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks with each input: the keys of all that is in flight would take milliseconds of each."""
    checked: list[bytes] = []

    def split_keys(keys: bytes) -> list[bytes]:
        checked.append(keys)
        return []

    monkeypatch.setattr(pipeline, "split_keys", split_keys)
    core = sending(event("a"))
    assert released(core.revoke(0)) is None
    core.tick()
    core.accept()
    assert checked == []
    core.store_keys()
    assert released(core.log) == [Position(TOPIC, 0, 1, 7)]


def test_a_revoke_of_what_we_do_not_have_is_answered_at_once() -> None:
    """A revoke of no partition, or of one that is not ours, is answered at once: the group waits for the answer."""
    core = Core()
    assert released(core.revoke(3)) == []
    assert released(core.revoke()) == []


def test_a_partition_that_comes_back_while_it_drains_is_fresh() -> None:
    """When a draining partition is assigned again, the revoke is answered without a commit, and records are read."""
    core = Core()
    core.assign(0, epoch=1)
    core.fetch(event("a"))
    core.send_all()
    core.revoke(0)
    core.assign(0, epoch=2)
    assert released(core.log) == []
    core.fetch(event("b"))
    core.deliver()
    assert core.statistics().totals.delivered == 1


def test_a_stop_takes_no_more_and_drains() -> None:
    """A stop reads no more records, waits for calls in flight, and returns positions and that all was drained."""
    core = sending(filtered(), event("a"))
    core.feed(m.StopRequested(25.0))
    core.feed(m.StopRequested(1.0))
    assert core.pipeline.room() == 0
    assert stopped(core) is None
    core.deliver_one()
    assert stopped(core) == m.Stop([Position(TOPIC, 0, 2, 7)], True)
    core.assign(1, epoch=2)
    core.fetch(event("b"), partition=1)
    assert core.statistics().totals.open == 0


def test_a_stop_with_nothing_to_wait_for_is_drained_whatever_its_grace() -> None:
    """A stop that has nothing to wait for is drained, with any grace."""
    core = reading(filtered())
    core.feed(m.StopRequested(0.0))
    assert stopped(core) == m.Stop([Position(TOPIC, 0, 1, 7)], True)


@pytest.mark.parametrize("first", ["stop", "revoke"])
def test_a_revoke_during_a_stop_gets_its_own_positions(first: str) -> None:
    """A revoke during a stop returns its own positions, to be committed before another member takes over."""
    core = Core()
    core.assign(0)
    core.assign(1)
    for partition in (0, 1):
        core.fetch(event(f"a{partition}"), partition=partition)
    core.send_all()
    if first == "stop":
        core.feed(m.StopRequested(25.0))
    core.revoke(0, grace=25.0)
    core.feed(m.StopRequested(25.0))
    while core.has(m.Send):
        core.accept()
    core.store_keys()
    assert released(core.log) == [Position(TOPIC, 0, 1, 7)]
    assert stopped(core) == m.Stop([Position(TOPIC, 1, 1, 7)], True)


def test_a_stop_answers_every_revoke_that_still_waits() -> None:
    """A stop answers every revoke that still waits: the group's thread waits for it before the last commit."""
    core = Core()
    core.assign(0)
    core.fetch(event("a"))
    core.send_all()
    core.revoke(0, grace=60.0)
    core.feed(m.StopRequested(10.0))
    core.until(lambda: stopped(core) is not None)
    assert released(core.log) is not None


# -- rule 7: a refused token is an outage (more in test_dispatcher.py)


def test_a_halt_stops_intake_and_commits_nothing_open() -> None:
    """A halt stops intake, whatever the room, and commits no open record; intake resumes where it was."""
    core = sending(event("a"))
    core.answer(core.take(m.Send), 401, NO)
    assert core.pipeline.room() == 0
    core.advance(300.0)
    assert core.committable() is None
    core.read_token(True)
    core.deliver_one()
    assert core.pipeline.room() == MAX_FETCH
    assert core.committable() == 1


@pytest.mark.parametrize("state", ["halted", "reading the token", "probing"])
def test_a_stop_during_a_halt_ends(state: str) -> None:
    """A stop during a halt ends at once, or when the probe in flight is answered; no refused record is committed."""
    core = sending(filtered(), event("a"))
    core.answer(core.take(m.Send), 401, NO)
    if state != "halted":
        core.until(lambda: core.has(m.ReadToken))
    if state == "probing":
        core.read_token(False)
    core.feed(m.StopRequested(25.0))
    if state == "probing":
        assert stopped(core) is None
        core.answer(core.take(m.Send), 401, NO)
    stop = stopped(core)
    assert stop is not None
    assert stop.drained
    assert [one.next_offset for one in stop.positions] in ([1], [])
    assert core.statistics().totals.released == 1
