"""Committed offset, position, end and lag agree with each other, with ends and commits in any order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine import messages as m
from consumer.engine.model import TopicPartition
from tests.engine.building import MACHINE, MANY, TOPIC, Core, chunk, event, filtered, reading

TP = TopicPartition(TOPIC, 0)


class LagMachine(RuleBasedStateMachine):
    """One partition of a real pipeline; ends come late or too early, commits come late or not at all."""

    def __init__(self) -> None:
        super().__init__()
        # The budget is small, so that part of a fetch is held.
        self.core = Core(max_open_events=4)
        self.epoch = 0
        self.fetched_to = 0
        self.names = 0

    @initialize(start=st.integers(0, 3), commit_start=st.booleans())
    def assign(self, start: int, commit_start: bool) -> None:
        self.epoch += 1
        self.fetched_to = start
        self.core.assign(0, self.epoch, start, commit_start=commit_start)

    @rule(start=st.integers(0, 12), commit_start=st.booleans())
    def assign_again(self, start: int, commit_start: bool) -> None:
        self.core.lose(0)
        self.assign(start, commit_start)

    def _fetch(self, offset: int, sent: list[bool]) -> None:
        values = [self._value(one) for one in sent]
        self.core.feed(m.Fetched([chunk(values, offset=offset, epoch=self.epoch)]))
        self.fetched_to = offset + len(values)

    def _value(self, sent: bool) -> bytes:
        self.names += 1
        return event(str(self.names)) if sent else filtered()

    @rule(gap=st.integers(0, 3), sent=st.lists(st.booleans(), min_size=1, max_size=6))
    def fetch(self, gap: int, sent: list[bool]) -> None:
        self._fetch(self.fetched_to + gap, sent)

    @precondition(lambda self: self.fetched_to)
    @rule(data=st.data(), sent=st.lists(st.booleans(), min_size=1, max_size=3))
    def the_log_was_cut(self, data: st.DataObject, sent: list[bool]) -> None:
        self._fetch(data.draw(st.integers(0, self.fetched_to - 1)), sent)

    @rule(end=st.integers(0, 40), reached=st.none() | st.integers(0, 40))
    def hear_of_an_end(self, end: int, reached: int | None) -> None:
        """Report any end, also one long passed, or of the log before a cut."""
        self.core.feed(m.EndOffsets({TP: end}, {} if reached is None else {TP: reached}))

    @rule()
    def hear_of_the_end(self) -> None:
        self.core.feed(m.EndOffsets({TP: self.fetched_to}, {TP: self.fetched_to}))

    @rule()
    def deliver(self) -> None:
        self.core.deliver()

    @rule(seconds=st.sampled_from([0.3, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.core.advance(seconds)

    @precondition(lambda self: self.core.has(m.Commit))
    @rule(taken=st.booleans())
    def commit(self, taken: bool) -> None:
        asked = self.core.take(m.Commit)
        self.core.feed(m.CommitDone(asked.positions if taken else [], None if taken else "TIMED_OUT"))

    @invariant()
    def the_figures_agree(self) -> None:
        for one in self.core.statistics().partitions:
            state = self.core.pipeline.ledger.get(TP)
            assert state is not None
            known = [at for at in (one.committed, one.position, one.end) if at is not None]
            assert known == sorted(known)
            if one.lag is None:
                continue
            assert one.end is not None
            begin = state.start if one.committed is None else one.committed
            assert begin is not None
            assert one.lag in (0, one.end - begin)
            assert one.lag >= one.totals.open
            assert one.lag_seconds is None or (one.lag == 0) == (one.lag_seconds == 0)
            everything = one.totals.open == 0 and self.core.pipeline.admission.held == 0
            assert one.lag or (everything and one.position == begin)

    @invariant()
    def what_was_fetched_is_within_the_end(self) -> None:
        for one in self.core.statistics().partitions:
            assert one.end is None or one.end >= self.fetched_to


TestLag = LagMachine.TestCase
TestLag.settings = MACHINE


@pytest.mark.slow("many examples")
def test_lag_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(LagMachine, settings=MANY)


@given(st.integers(0, 30))
@settings(max_examples=20)
def test_the_end_is_never_below_the_position(heard: int) -> None:
    """The end is at least the position: ends come once a second, and lag must not be below the open records."""
    core = Core()
    core.assign(start=0)
    core.fetch(*(event(str(n)) for n in range(10)))
    core.feed(m.EndOffsets({TP: heard}, {}))
    [one] = core.statistics().partitions
    assert (one.position, one.end, one.lag) == (10, max(10, heard), max(10, heard))
    assert one.totals.open == 10


def test_a_commit_that_comes_back_after_the_log_was_cut_is_void() -> None:
    """A commit answered after a cut of the log is void: nothing is committed, and the new records count as lag."""
    core = reading(filtered(), filtered(), filtered())
    core.until(lambda: core.has(m.Commit))
    under_way = core.take(m.Commit)
    core.feed(m.Fetched([chunk([event("b")], offset=1)]))
    core.feed(m.CommitDone(under_way.positions, None))
    core.feed(m.EndOffsets({TP: 2}, {TP: 2}))
    [one] = core.statistics().partitions
    assert [at.next_offset for at in under_way.positions] == [3]
    assert (one.committed, one.position, one.end, one.totals.open) == (None, 2, 2, 1)
    core.deliver()
    core.until(lambda: core.has(m.Commit))
    assert [at.next_offset for at in core.commit()] == [2]
    [one] = core.statistics().partitions
    assert (one.committed, one.lag, one.lag_seconds) == (2, 0, 0.0)


def test_an_empty_log_has_no_lag_also_for_a_group_that_never_committed() -> None:
    """An empty log has no lag, although a group without commits has no position yet."""
    core = Core()
    core.feed(m.Assigned([m.Assignment(TOPIC, 0, 1, None, False)]))
    [one] = core.statistics().partitions
    assert (one.end, one.lag, one.lag_seconds) == (None, None, None)
    core.feed(m.EndOffsets({TP: 0}, {}))
    [one] = core.statistics().partitions
    assert (one.end, one.lag, one.lag_seconds) == (0, 0, 0.0)
    core.feed(m.EndOffsets({TP: 7}, {}))
    [one] = core.statistics().partitions
    assert (one.end, one.lag, one.lag_seconds) == (7, None, None)


@pytest.mark.parametrize("reached", [None, 6])
def test_what_is_held_is_within_the_end(reached: int | None) -> None:
    """Held records count as lag and lie within the end, although the end was reported before they came."""
    core = reading(max_open_events=1)
    core.feed(m.EndOffsets({TP: 1}, {} if reached is None else {TP: reached}))
    core.fetch(*(event(str(n)) for n in range(6)))
    statistics = core.statistics()
    [one] = statistics.partitions
    assert (statistics.held, one.position, one.end, one.lag) == (5, 1, 6, 6)
