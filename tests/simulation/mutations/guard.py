"""Deliberate bugs in the guard: what it counts, and what follows once it has tripped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.intake import guard
from consumer.engine.intake.guard import Guard
from consumer.engine.model import Disposition, Rejection, Stage
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import TOMBSTONE, NoEvent
from consumer.engine.records.block import Block
from consumer.engine.records.runs import Run, each_of, runs_on
from consumer.engine.records.stages import RecordStage
from consumer.engine.steps import Steps
from tests.simulation.mutations.mutating import around, mutation, replaced

# Intake has stopped, but waiting dead letters are written.
replaced("guard_writes_on", Pipeline, "_check_guard", lambda self: self.guard.check())


@around(Pipeline, "_check_guard")
def guard_settles_what_it_drops(original: Any, self: Pipeline) -> None:
    """No dead letter is written, and the record is settled."""
    dropped = list(self.letters)[len(self.letters.writing) :] if self.guard.tripped is not None else []
    original(self)
    for letter in dropped:
        self.ledger.settle([letter.row], Disposition.DEAD_LETTERED)


@around(Steps, "level")
def guard_stops_fetches_alone(level: Any, self: Steps) -> Any:
    """Records that were fetched before the guard tripped are still read."""
    return level(self)._replace(stopped=False)


@mutation
def guard_waits_for_letters_it_does_not_write(patch: pytest.MonkeyPatch) -> None:
    """Dead letters are held back instead of dropped: the timer spins, and a stop waits for nothing."""
    write = Steps.write_letters

    def unless_tripped(self: Steps) -> None:
        if self.guard.tripped is None:
            write(self)

    patch.setattr(Pipeline, "_check_guard", lambda self: self.guard.check())
    patch.setattr(Steps, "write_letters", unless_tripped)


@around(guard._Sample, "mark")
def guard_sample_is_in_the_order_of_verdicts(
    mark: Any, self: guard._Sample, number: int, verdict: int
) -> None:
    """A refused record enters the sample when it is refused: last, and together with others."""
    del number
    begin = self._first + len(self._marks)
    self._marks += b"\0"
    mark(self, begin, verdict)


@around(Guard, "read")
def guard_passes_over_what_is_passed_over(
    read: Any, self: Guard, block: Block, verdicts: Mapping[int, NoEvent]
) -> None:
    """After a restart only refused records are left; without the settled ones between them they fill the sample."""
    passed = runs_on(block, RecordStage.PASSED)
    read(self, block, {**verdicts, **{row.first: TOMBSTONE for row in each_of(passed)}})


@around(Pipeline, "_take_in")
def guard_does_not_count_duplicates(take_in: Any, self: Pipeline, happened: messages.Input) -> None:
    """After a rewind nearly all records are duplicates; only the refused ones count."""
    if isinstance(happened, messages.KeysLookedUp):
        asked = self.lookups._asked[happened.number]
        for row, found in zip(each_of(asked), happened.found, strict=True):
            if found and row.ours:
                self.guard.judge(row, None)
    take_in(self, happened)


# The same few bad records are read again and again, and become most of the sample.
replaced("guard_counts_what_is_read_again_twice", guard._Sample, "_forget", lambda *_: None)


@around(Guard, "judge")
def guard_overlooks_refusals(judge: Any, self: Guard, row: Run, rejection: Rejection | None) -> None:
    """Only rejections count, although the platform may refuse a whole topic."""
    if rejection is None or rejection.stage is not Stage.DELIVER:
        judge(self, row, rejection)


@around(guard._Sample, "mark")
def guard_weighs_only_what_is_new(mark: Any, self: guard._Sample, number: int, verdict: int) -> None:
    """A refused record counts only while no later record has been read."""
    if number >= self._first + len(self._marks) - 2:
        mark(self, number, verdict)
