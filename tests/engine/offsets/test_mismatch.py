"""Books that do not add up: they are shown as they are, nothing is committed of them, and the process ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumer.engine import messages as m
from consumer.engine.block import RecordStage
from consumer.engine.commits import _SHOWN_FOR
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.model import Disposition, Instant, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.errors import InvariantViolation
from tests.engine.building import TOPIC, Core, event, filtered

TP = TopicPartition(TOPIC, 0)


def state_of(ledger: Ledger) -> AssignmentState:
    """The books of the one partition."""
    state = ledger.get(TP)
    assert state is not None
    return state


def a_record_vanished(ledger: Ledger) -> None:
    """It was entered, and nobody knows of it."""
    ledger._entered += 1


def a_record_was_settled_twice(ledger: Ledger) -> None:
    """In the books, at least."""
    state_of(ledger).counts[Disposition.DELIVERED] += 1


def open_ones_were_forgotten(ledger: Ledger) -> None:
    """By the partition; the whole still knows."""
    state_of(ledger).open -= 1


def the_whole_forgot_one(ledger: Ledger) -> None:
    """And the partition still knows."""
    ledger.open -= 1


def a_span_holds_what_it_has_not(ledger: Ledger) -> None:
    """A finished one believes that one of its records is open."""
    block = state_of(ledger).blocks[0]
    block.open += 1


def a_finished_span_holds_one(ledger: Ledger) -> None:
    """And what is lowest of the open ones is none."""
    block = state_of(ledger).blocks[0]
    block.stages[:] = bytes([RecordStage.DELIVERED]) * len(block.stages)


SPOILERS = [
    a_record_vanished, a_record_was_settled_twice, open_ones_were_forgotten, the_whole_forgot_one,
    a_span_holds_what_it_has_not,
]  # fmt: skip


def spoiled(spoil: Callable[[Ledger], None]) -> tuple[Pipeline, Callable[[float], list[m.Command]], Core]:
    """A core that has something to commit and something open, and then its books are wrong."""
    core = Core(linger=5.0)
    core.assign(0)
    core.fetch(filtered(), event("a"), event("b"))
    spoil(core.pipeline.ledger)

    def tick(seconds: float) -> list[m.Command]:
        # Not through `Core.feed`, which itself looks whether the books add up.
        core.now += seconds
        return core.pipeline.handle(m.Tick(), core.instant())

    return core.pipeline, tick, core


@pytest.mark.parametrize("spoil", SPOILERS)
def test_figures_are_taken_and_say_by_how_much(spoil: Callable[[Ledger], None]) -> None:
    """Whatever is off: no figure raises, and the mismatch is there from the first look on."""
    _, _, core = spoiled(spoil)
    statistics = core.statistics()
    assert statistics.mismatch != 0
    assert len(statistics.partitions) == 1


def test_an_open_span_without_an_open_record_is_no_reason_to_fail() -> None:
    """Nothing is said of the oldest record: there is none to be found."""
    _, _, core = spoiled(a_finished_span_holds_one)
    assert core.statistics().oldest_open is None


@pytest.mark.parametrize("spoil", SPOILERS)
def test_nothing_is_committed_or_read_any_more(spoil: Callable[[Ledger], None]) -> None:
    """From the next time a commit is due: no commit, no room, one line in the log, for three minutes; then the end."""
    pipeline, tick, core = spoiled(spoil)
    assert pipeline.room() > 0
    given = [one for _ in range(int(_SHOWN_FOR)) for one in tick(1.0)]
    assert [one for one in given if isinstance(one, m.Commit)] == []
    reports = [one for one in given if isinstance(one, m.Report) and one.event == "ledger_mismatch"]
    assert [one.level for one in reports] == ["error"]
    assert (pipeline.room(), core.statistics().room) == (0, 0)
    with pytest.raises(InvariantViolation, match="does not add up"):
        tick(1.0)


def test_books_that_come_right_by_themselves_are_not_trusted_again() -> None:
    """Two errors that cancel each other out are two errors."""
    pipeline, tick, _ = spoiled(a_record_vanished)
    tick(1.0)
    pipeline.ledger._entered -= 1
    given = [one for _ in range(int(_SHOWN_FOR) - 1) for one in tick(1.0)]
    assert [one for one in given if isinstance(one, m.Commit)] == []
    with pytest.raises(InvariantViolation):
        tick(1.0)


@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize("ending", [m.StopRequested(0.0), m.Revoked([TP], 7, 0.0)])
def test_a_revoke_and_a_stop_commit_nothing_and_end_it(
    spoil: Callable[[Ledger], None], ending: m.Input
) -> None:
    """Also before anybody has looked: what would be committed last is not given."""
    pipeline, _, core = spoiled(spoil)
    with pytest.raises(InvariantViolation, match="does not add up"):
        pipeline.handle(ending, Instant(core.now, core.instant().unix))
