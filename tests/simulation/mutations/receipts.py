"""Deliberate bugs in receipts: outcomes that have none, or go on before theirs is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from consumer.engine import messages
from consumer.engine.pipeline import Pipeline
from consumer.engine.records.block import Block
from consumer.engine.records.outbox import Outbox
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import RecordStage
from consumer.engine.sending.answers import Judged
from consumer.engine.steps import Steps
from tests.simulation.mutations.mutating import around, replaced, replaces


def _without_receipt(name: str, chosen: Callable[[Run, RecordStage], bool]) -> None:
    """Register a bug: the runs chosen, by the stage that follows, go on without a receipt."""
    original = Steps.conclude

    def conclude(self: Steps, runs: Sequence[Run], then: RecordStage, code: Any = None, *about: Any) -> None:
        without = [run for run in runs if chosen(run, then)]
        if without:
            self.concluded(without, then, code, about[-1] if len(about) > 2 else None)
        original(self, [run for run in runs if run not in without], then, code, *about)

    replaced(name, Steps, "conclude", conclude)


# After a crash the only receipt of a delivered event says duplicate.
_without_receipt("a_key_is_stored_without_a_receipt", lambda _, then: then is RecordStage.STORING)
_without_receipt("a_letter_is_enough", lambda _, then: then is RecordStage.DEAD_LETTERED)
_without_receipt("what_is_filtered_gets_no_receipt", lambda _, then: then is RecordStage.FILTERED)
_without_receipt(
    "followers_get_no_receipt", lambda run, _: run.block.stages[run.first] == RecordStage.FOLLOWING
)


@around(Steps, "receipts_stored")
def a_receipt_that_was_not_stored_counts(stored: Any, self: Steps, happened: messages.ReceiptsStored) -> None:
    """The broker does not acknowledge a receipt, and its record goes on."""
    stored(self, happened._replace(stored=[True] * len(happened.stored)))


@around(Steps, "judged")
def receipts_forget_the_call(judged: Any, self: Steps, ends: Judged, attempts: int, _: Any) -> None:
    """A receipt does not say which call was answered."""
    judged(self, ends, attempts, None)


# Sending goes on while no receipt is acknowledged.
replaced(
    "unacknowledged_receipts_are_no_risk", Steps, "at_risk", property(lambda self: self.keys.rows_at_risk)
)
# What another member has to settle by now still gets its receipt from us.
replaced("receipts_outlive_their_assignment", Steps, "discard_receipts", lambda self: None)


@replaces(Steps, "discard_receipts")
def receipts_of_delivered_events_end_with_their_assignment(self: Steps) -> None:
    """The partition is lost, so nobody stores the keys of the events that we have delivered."""
    self.receipts.discard(lambda one: not one.run.block.assignment.live)


@around(Pipeline, "_busy")
def drains_do_not_wait_for_receipts(busy: Any, self: Pipeline, states: Any) -> Any:
    """A partition is released although receipts of its records are being written."""
    receipts, self.receipts = self.receipts, Outbox(self.policy.inner_backoff, 1)
    try:
        return busy(self, states)
    finally:
        self.receipts = receipts


@around(Block, "release_from")
def what_is_read_again_loses_its_record(release: Any, self: Block, offset: int) -> Any:
    """The record of a delivered event is gone when its receipt is written."""
    released = release(self, offset)
    for index, stage in enumerate(self.stages):
        if stage == RecordStage.REWOUND:
            self.records[index] = None
    return released
