"""Lessons of other projects (docs/why.md) that no other file shows, and a test per crash point.

A crash is a new `Core` that knows only what is durable: the key store's keys and the committed offset.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumer.engine import messages as m
from consumer.engine.reading import split_keys
from tests.engine.building import (
    NO,
    UNDECODABLE,
    Core,
    event,
    event_ids,
    reading,
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


# -- crash points


def restarted(core: Core, committed: int | None) -> Core:
    """Return the process after a kill -9, which knows only stored keys and the committed offset."""
    after = Core()
    after.stored_keys = set(core.stored_keys)
    after.assign(0, epoch=1, start=committed or 0)
    return after


def replayed(core: Core, *values: bytes | None) -> list[str]:
    """Let the restarted core read these records and settle them all; return the ids of the events sent."""
    core.fetch(*values)
    core.deliver()
    if core.has(m.StoreDeadLetters):
        core.store_letters()
    assert core.statistics().totals.open == 0
    return [one for send in sends(core.log) for one in event_ids(send)]


def sent(core: Core) -> None:
    core.look_up()


def answered(core: Core) -> None:
    core.look_up()
    core.accept()


def key_stored(core: Core, reported: bool = False) -> None:
    answered(core)
    asked = core.take(m.StoreKeys)
    core.stored_keys.update(split_keys(asked.keys))
    if reported:
        core.feed(m.KeysStored(asked.number))


@pytest.mark.parametrize(
    ("until_then", "sent_again"),
    [
        pytest.param(lambda core: None, ["a", "b"], id="fetched, not sent"),
        pytest.param(sent, ["a", "b"], id="sent, no answer"),
        pytest.param(answered, ["a", "b"], id="answered, key not yet stored"),
        pytest.param(key_stored, [], id="key stored, not yet acknowledged"),
        pytest.param(lambda core: key_stored(core, reported=True), [], id="key stored, not committed"),
    ],
)
def test_a_kill_at_each_point(until_then: Callable[[Core], None], sent_again: list[str]) -> None:
    """The events are read again, and sent again under the same ids; with a stored key they are duplicates."""
    core = reading(event("a"), event("b"))
    until_then(core)
    assert not core.has(m.Commit)
    after = restarted(core, None)
    assert replayed(after, event("a"), event("b")) == sent_again
    assert after.statistics().totals.duplicate == 2 - len(sent_again)
    assert after.committable() == 2


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


def test_killed_when_refused_and_the_dead_letter_not_acknowledged() -> None:
    """The event is refused again and has another dead letter; nothing was committed."""
    core = sending(event("a"))
    after = restarted(core, None)
    for one in (core, after):
        if one is after:
            one.fetch(event("a"))
            one.look_up()
        one.answer(one.take(m.Send), 400, NO)
        assert one.has(m.StoreDeadLetters)
        assert one.committable() is None
    assert len(after.store_letters()) == 1
    assert after.committable() == 1
