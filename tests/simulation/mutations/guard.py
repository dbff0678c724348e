"""Deliberate bugs in the guard: what it counts, and what follows once it has tripped."""

from __future__ import annotations

from collections.abc import Mapping

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
from tests.simulation.mutations.mutating import mutation


@mutation
def guard_writes_on(patch: pytest.MonkeyPatch) -> None:
    """Intake has stopped, but waiting dead letters are written."""
    patch.setattr(Pipeline, "_check_guard", lambda self: self.guard.check())


@mutation
def guard_settles_what_it_drops(patch: pytest.MonkeyPatch) -> None:
    """No dead letter is written, and the record is settled."""
    original = Pipeline._check_guard

    def settling(self: Pipeline) -> None:
        dropped = list(self.letters)[len(self.letters.writing) :] if self.guard.tripped is not None else []
        original(self)
        for letter in dropped:
            self.ledger.settle([letter.row], Disposition.DEAD_LETTERED)

    patch.setattr(Pipeline, "_check_guard", settling)


@mutation
def guard_stops_fetches_alone(patch: pytest.MonkeyPatch) -> None:
    """Records that were fetched before the guard tripped are still read."""

    level = Steps.level
    patch.setattr(Steps, "level", lambda self: level(self)._replace(stopped=False))


@mutation
def guard_waits_for_letters_it_does_not_write(patch: pytest.MonkeyPatch) -> None:
    """Dead letters are held back instead of dropped: the timer spins, and a stop waits for nothing."""
    write = Steps.write_letters

    def unless_tripped(self: Steps) -> None:
        if self.guard.tripped is None:
            write(self)

    patch.setattr(Pipeline, "_check_guard", lambda self: self.guard.check())
    patch.setattr(Steps, "write_letters", unless_tripped)


@mutation
def guard_sample_is_in_the_order_of_verdicts(patch: pytest.MonkeyPatch) -> None:
    """A refused record enters the sample when it is refused: last, and together with others."""
    mark = guard._Sample.mark

    def at_the_end(self: guard._Sample, number: int, verdict: int) -> None:
        del number
        begin = self._first + len(self._marks)
        self._marks += b"\0"
        mark(self, begin, verdict)

    patch.setattr(guard._Sample, "mark", at_the_end)


@mutation
def guard_passes_over_what_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    """After a restart only refused records are left; without the settled ones between them they fill the sample."""
    read = Guard.read

    def without(self: Guard, block: Block, verdicts: Mapping[int, NoEvent]) -> None:
        passed = runs_on(block, RecordStage.PASSED)
        read(self, block, {**verdicts, **{row.first: TOMBSTONE for row in each_of(passed)}})

    patch.setattr(Guard, "read", without)


@mutation
def guard_does_not_count_duplicates(patch: pytest.MonkeyPatch) -> None:
    """After a rewind nearly all records are duplicates; only the refused ones count."""
    take_in = Pipeline._take_in

    def without(self: Pipeline, happened: messages.Input) -> None:
        if isinstance(happened, messages.KeysLookedUp):
            asked = self.lookups._asked[happened.number]
            for row, found in zip(each_of(asked), happened.found, strict=True):
                if found and row.ours:
                    self.guard.judge(row, None)
        take_in(self, happened)

    patch.setattr(Pipeline, "_take_in", without)


@mutation
def guard_counts_what_is_read_again_twice(patch: pytest.MonkeyPatch) -> None:
    """The same few bad records are read again and again, and become most of the sample."""
    patch.setattr(guard._Sample, "_forget", lambda *_: None)


@mutation
def guard_overlooks_refusals(patch: pytest.MonkeyPatch) -> None:
    """Only rejections count, although the platform may refuse a whole topic."""
    judge = Guard.judge

    def at_once(self: Guard, row: Run, rejection: Rejection | None) -> None:
        if rejection is None or rejection.stage is not Stage.DELIVER:
            judge(self, row, rejection)

    patch.setattr(Guard, "judge", at_once)


@mutation
def guard_weighs_only_what_is_new(patch: pytest.MonkeyPatch) -> None:
    """A refused record counts only while no later record has been read."""
    mark = guard._Sample.mark

    def at_the_end_alone(self: guard._Sample, number: int, verdict: int) -> None:
        if number >= self._first + len(self._marks) - 2:
            mark(self, number, verdict)

    patch.setattr(guard._Sample, "mark", at_the_end_alone)
