"""Lessons of other projects (docs/why.md) that no other file shows, and a test per crash point.

A crash is a new `Core` that knows only what is durable: the key store's keys and the committed offset.
"""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.reading import split_keys
from tests.engine.building import (
    NO,
    UNDECODABLE,
    Core,
    event,
    event_ids,
    of_schema,
    reading,
    ref,
    sending,
    sends,
)


def test_a_dead_letter_settles_only_when_the_broker_has_it() -> None:
    """A dead letter that could not be written is written again without end, and the offset does not move
    (arroyo's dlq, jitsu's rotor)."""
    core = reading(UNDECODABLE, UNDECODABLE)
    asked = core.take(m.StoreDeadLetters)
    core.feed(m.DeadLettersStored(asked.number, [False, True]))
    assert core.committable() == 0
    for _ in range(10):
        core.until(lambda: core.has(m.StoreDeadLetters))
        [letter] = core.store_letters(stored=False)
        assert letter.record.offset == 0
    core.until(lambda: core.has(m.StoreDeadLetters))
    core.store_letters()
    assert core.committable() == 2
    assert core.statistics().totals.dead_lettered == 2
    assert core.statistics().counters.failures["dead_letter"] == 11


def test_a_retry_is_no_duplicate() -> None:
    """A key is stored when its event is delivered, not before, so a retry is no duplicate (apache/pulsar #5218)."""
    core = sending(event("a"))
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    assert not core.stored_keys
    assert not core.has(m.StoreKeys)
    core.lose(0)
    core.assign(0, epoch=2)
    core.fetch(event("a"))
    core.deliver()
    assert core.statistics().totals.delivered == 1


def test_a_registry_outage_holds_only_the_unknown() -> None:
    """While the registry is down, records with known schemas are delivered and the others wait (hermes #607)."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(of_schema("known", "1"), partition=0)
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "good"))
    core.fetch(of_schema("unknown", "2"), partition=1)
    for _ in range(30):
        core.feed(m.SchemaUnavailable(core.take(m.FetchSchema).ref, "timeout"))
        core.until(lambda: core.has(m.FetchSchema), seconds=core.policy.inner_backoff.cap)
    core.fetch(of_schema("also known", "1"), partition=0)
    core.deliver()
    assert core.statistics().totals.delivered == 2
    assert core.committable(1) is None
    assert not core.has(m.StoreDeadLetters)
    core.feed(m.SchemaFound(ref("2"), "good"))
    core.deliver()
    assert core.committable(1) == 1


# -- crash points


def restarted(core: Core, committed: int | None) -> Core:
    """Return the process after a kill -9, which knows only stored keys and the committed offset."""
    after = Core()
    after.stored_keys = set(core.stored_keys)
    after.assign(0, epoch=1, start=committed or 0)
    return after


def crashing() -> Core:
    """Return a core with two open events."""
    return reading(event("a"), event("b"))


def replayed(core: Core, *values: bytes | None) -> list[str]:
    """Let the restarted core read these records and settle them all; return the ids of the events sent."""
    core.fetch(*values)
    core.deliver()
    if core.has(m.StoreDeadLetters):
        core.store_letters()
    assert core.statistics().totals.open == 0
    return [one for send in sends(core.log) for one in event_ids(send)]


def test_killed_when_fetched_and_not_sent() -> None:
    """After a kill before the call, the events are read again and sent."""
    core = crashing()
    assert core.committable() is None
    assert replayed(restarted(core, None), event("a"), event("b")) == ["a", "b"]


def test_killed_when_sent_without_an_answer() -> None:
    """After a kill during the call, the events are sent again with the same ids."""
    core = crashing()
    core.look_up()
    first = core.take(m.Send)
    assert core.committable() is None
    assert replayed(restarted(core, None), event("a"), event("b")) == event_ids(first)


def test_killed_when_answered_and_the_key_not_stored() -> None:
    """After a kill before the key is durable, the events are sent again: nothing was committed."""
    core = crashing()
    core.look_up()
    core.accept()
    assert core.committable() is None
    assert not core.stored_keys
    assert replayed(restarted(core, None), event("a"), event("b")) == ["a", "b"]


def test_a_key_store_that_fails_bounds_what_a_kill_sends_again() -> None:
    """While the key store fails, at most `concurrency` batches are sent without stored keys; then sending waits."""
    core = sending(*(event(str(n)) for n in range(100)), batch_events=2, concurrency=3)
    for _ in range(200):
        if core.has(m.StoreKeys):
            core.feed(m.KeyStoreFailed(core.take(m.StoreKeys)))
        if core.has(m.Send):
            core.accept()
        core.advance(1.0)
    assert sum(one.events for one in sends(core.log)) <= 6
    assert replayed(restarted(core, None), event("0"), event("1")) == ["0", "1"]


@pytest.mark.parametrize("reported", [False, True])
def test_killed_when_the_key_is_stored_and_not_committed(reported: bool) -> None:
    """After a kill between key and commit, the events are read again and are duplicates, acknowledged key or not."""
    core = crashing()
    core.look_up()
    core.accept()
    asked = core.take(m.StoreKeys)
    core.stored_keys.update(split_keys(asked.keys))
    if reported:
        core.feed(m.KeysStored(asked.number))
    after = restarted(core, None)
    assert replayed(after, event("a"), event("b")) == []
    assert after.statistics().totals.duplicate == 2
    assert after.committable() == 2


def test_killed_when_refused_and_the_dead_letter_not_acknowledged() -> None:
    """After a kill before the dead letter is acknowledged, the event is refused again and has another dead letter."""
    core = crashing()
    core.look_up()
    send = core.take(m.Send)
    core.answer(send, 400, NO)
    core.answer(core.take(m.Send), 400, NO)
    assert core.has(m.StoreDeadLetters)
    assert core.committable() is None
    after = restarted(core, None)
    after.fetch(event("a"))
    after.look_up()
    after.answer(after.take(m.Send), 400, NO)
    assert after.committable() is None
    assert len(after.store_letters()) == 1
    assert after.committable() == 1
