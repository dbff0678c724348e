"""The outbox: an item leaves it only when it is written, or discarded because it is no longer ours."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine.model import Backoff
from consumer.engine.records.outbox import Outbox
from consumer.errors import InvariantViolation
from tests.engine.building import MACHINE, MANY

BACKOFF = Backoff(base=1.0, cap=8.0)


def test_what_was_not_written_waits_again_in_front() -> None:
    """Items that were not written wait in front, in order, for a backoff between half and all of the ceiling."""
    outbox: Outbox[str] = Outbox(BACKOFF, limit=3)
    outbox.add(["a", "b", "c", "d"])
    outbox.begin(1, 10.0)
    assert outbox.finish(1, [False, True, False], 10.0, 0.0) == ["b"]
    assert list(outbox) == ["a", "c", "d"]
    assert outbox.due() == 10.5
    assert outbox.begin(2, 10.4) == ()
    assert outbox.begin(2, 10.5) == ["a", "c", "d"]


def test_the_backoff_grows_to_its_cap_and_ends_with_success() -> None:
    """Failures in a row double the backoff up to its cap; a write that stores all items resets it."""
    outbox: Outbox[str] = Outbox(BACKOFF, limit=1)
    outbox.add(["a", "b"])
    delays = []
    now = 0.0
    for number in range(6):
        outbox.begin(number, now)
        outbox.finish(number, False, now, 1.0)
        due = outbox.due()
        assert due is not None
        delays.append(due - now)
        now = due
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    outbox.begin(7, now)
    assert outbox.finish(7, [True], now, 1.0) == ["a"]
    assert outbox.begin(8, now) == ["b"]


def test_answers_that_fit_no_write_are_bugs() -> None:
    """An answer with a wrong number or length, or a second answer, raises an error."""
    outbox: Outbox[str] = Outbox(BACKOFF, limit=2)
    with pytest.raises(InvariantViolation):
        outbox.finish(1, [], 0.0, 0.0)
    outbox.add(["a", "b"])
    outbox.begin(1, 0.0)
    with pytest.raises(InvariantViolation):
        outbox.finish(2, [True, True], 0.0, 0.0)
    with pytest.raises(InvariantViolation):
        outbox.finish(1, [True], 0.0, 0.0)


class OutboxMachine(RuleBasedStateMachine):
    """Every item is in exactly one state: waiting, being written, written or discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox: Outbox[int] = Outbox(BACKOFF, limit=4)
        self.now = 0.0
        self.added = 0
        self.number = 0
        self.writing: list[int] | None = None
        self.gone: set[int] = set()

    @rule(count=st.integers(0, 6))
    def add(self, count: int) -> None:
        self.outbox.add(list(range(self.added, self.added + count)))
        self.added += count

    @rule(jump=st.booleans())
    def begin(self, jump: bool) -> None:
        due = self.outbox.due()
        if jump and due is not None:
            self.now = max(self.now, due)
        items = list(self.outbox.begin(self.number + 1, self.now))
        may = self.writing is None and due is not None and due <= self.now
        assert bool(items) == may
        assert len(items) <= 4
        if items:
            self.number += 1
            self.writing = items

    @precondition(lambda self: self.writing is not None)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        items = self.writing or []
        flags = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
        done = self.outbox.finish(
            self.number, flags if any(flags) else False, self.now, data.draw(st.floats(0, 1))
        )
        assert done == [item for item, flag in zip(items, flags, strict=True) if flag]
        assert self.gone.isdisjoint(done)
        self.gone.update(done)
        self.writing = None
        due = self.outbox.due()
        if len(done) < len(items):
            assert due is not None
            assert self.now < due <= self.now + BACKOFF.cap
        elif due is not None:
            assert due <= self.now

    @rule(modulus=st.integers(2, 5))
    def discard(self, modulus: int) -> None:
        unwanted = {n for n in self.outbox if n % modulus == 0 and n not in (self.writing or ())}
        self.outbox.discard(lambda n: n % modulus == 0)
        self.gone |= unwanted

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        held = list(self.outbox)
        assert len(held) == len(set(held)) == len(self.outbox)
        assert set(held) == set(range(self.added)) - self.gone
        assert len(self.outbox.writing) == len(self.writing or ())


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_outbox_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(OutboxMachine, settings=MANY)
