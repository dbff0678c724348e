"""Books that do not add up: figures show the mismatch, nothing is committed, and the process ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Disposition, Instant, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.commits import _SHOWN_FOR
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.stages import RecordStage
from consumer.errors import InvariantViolation
from tests.engine.building import TOPIC, Core, event, filtered

TP = TopicPartition(TOPIC, 0)


def state_of(ledger: Ledger) -> AssignmentState:
    """Return the ledger's state of the one partition."""
    state = ledger.get(TP)
    assert state is not None
    return state


def a_record_vanished(ledger: Ledger) -> None:
    """Count a record as entered that is in no state."""
    ledger._entered += 1


def a_record_was_settled_twice(ledger: Ledger) -> None:
    """Count a record as settled twice in the ledger."""
    state_of(ledger).counts[Disposition.DELIVERED] += 1


def open_ones_were_forgotten(ledger: Ledger) -> None:
    """Lower the partition's number of open records, but not the ledger's."""
    state_of(ledger).open -= 1


def the_whole_forgot_one(ledger: Ledger) -> None:
    """Lower the ledger's number of open records, but not the partition's."""
    ledger.open -= 1


def a_span_holds_what_it_has_not(ledger: Ledger) -> None:
    """Raise a block's number of open records."""
    block = state_of(ledger).blocks[0]
    block.open += 1


def a_finished_span_holds_one(ledger: Ledger) -> None:
    """Mark all records of a block as delivered, although its number of open records says otherwise."""
    block = state_of(ledger).blocks[0]
    block.stages[:] = bytes([RecordStage.DELIVERED]) * len(block.stages)


SPOILERS = [
    a_record_vanished, a_record_was_settled_twice, open_ones_were_forgotten, the_whole_forgot_one,
    a_span_holds_what_it_has_not,
]  # fmt: skip


def spoiled(spoil: Callable[[Ledger], None]) -> tuple[Pipeline, Callable[[float], list[m.Command]], Core]:
    """Return a core with something to commit and something open, whose counts are then made wrong."""
    core = Core(linger=5.0)
    core.assign(0)
    core.fetch(filtered(), event("a"), event("b"))
    spoil(core.pipeline.ledger)

    def tick(seconds: float) -> list[m.Command]:
        # Not through `Core.feed`, which itself checks that the ledger adds up.
        core.now += seconds
        return core.pipeline.handle(m.Tick(), core.instant())

    return core.pipeline, tick, core


@pytest.mark.parametrize("spoil", SPOILERS)
def test_figures_show_the_mismatch_and_raise_nothing(spoil: Callable[[Ledger], None]) -> None:
    """With any mismatch statistics raise no error, and show it from the first snapshot on."""
    _, _, core = spoiled(spoil)
    statistics = core.statistics()
    assert statistics.mismatch != 0
    assert len(statistics.partitions) == 1


def test_an_open_span_without_an_open_record_is_no_reason_to_fail() -> None:
    """When no open record can be found, the snapshot names no oldest record and raises no error."""
    _, _, core = spoiled(a_finished_span_holds_one)
    assert core.statistics().oldest_open is None


@pytest.mark.parametrize("spoil", SPOILERS)
def test_nothing_is_committed_or_read_any_more(spoil: Callable[[Ledger], None]) -> None:
    """When a commit is due, commits and reading stop with a line in the log; three minutes later an error follows."""
    pipeline, tick, core = spoiled(spoil)
    assert pipeline.room() > 0
    given = [one for _ in range(int(_SHOWN_FOR)) for one in tick(1.0)]
    assert [one for one in given if isinstance(one, m.Commit)] == []
    reports = [one for one in given if isinstance(one, m.Report) and one.event == "ledger_mismatch"]
    assert [one.level for one in reports] == ["error"]
    assert (pipeline.room(), core.statistics().room) == (0, 0)
    with pytest.raises(InvariantViolation, match="does not add up"):
        tick(1.0)


def test_books_that_add_up_again_are_not_trusted() -> None:
    """Books that add up again by a second error are not trusted: commits stay stopped."""
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
    """A revoke and a stop raise the error before they commit, also before the mismatch was noticed."""
    pipeline, _, core = spoiled(spoil)
    with pytest.raises(InvariantViolation, match="does not add up"):
        pipeline.handle(ending, Instant(core.now, core.instant().unix))
