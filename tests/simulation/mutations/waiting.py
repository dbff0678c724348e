"""Deliberate bugs in what waits for an answer from outside: a schema that the registry does not have yet, the
right time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.clock import Clock
from consumer.engine.context import Context
from consumer.engine.intake.parking import BURST, Parking
from consumer.engine.intake.transforming import Transforming
from consumer.engine.model import (
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    Stage,
    TopicPartition,
    Untimely,
)
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import SchemaLearner
from consumer.engine.records.runs import Run
from consumer.engine.sending.time_question import TimeQuestion
from consumer.engine.steps import Steps
from tests.simulation.mutations.mutating import around, mutation, replaced, replaces


@around(Pipeline, "_take_in")
def registry_outage_is_final(take_in: Any, self: Pipeline, happened: messages.Input) -> None:
    """A registry that does not answer counts as "no such schema" (allegro/hermes #607)."""
    if isinstance(happened, messages.SchemaUnavailable):
        happened = messages.SchemaMissing(happened.ref)
    take_in(self, happened)


# A schema whose question failed is not asked for again, so its records wait indefinitely.
replaced("an_unavailable_schema_is_asked_for_once", Parking, "unavailable", lambda *_: None)


@mutation
def a_schema_from_disk_is_not_doubted(patch: pytest.MonkeyPatch) -> None:
    """Records become dead letters because an earlier schema with the same id, kept on disk, cannot read them."""
    init = Parking.__init__

    def trusting(self: Parking, *arguments: Any) -> None:
        init(self, *arguments)
        patch.setattr(self._decoder, "doubt", lambda _: None)

    patch.setattr(Parking, "__init__", trusting)


@around(Parking, "_use_cached")
def a_schema_from_disk_ends_the_questions(
    use_cached: Any, self: Parking, earlier: messages.SchemaFound, reason: str
) -> Any:
    """With a schema from disk the registry is not asked again, so records that it cannot read wait indefinitely."""
    rows = use_cached(self, earlier, reason)
    if earlier.ref in self._wanted:
        self._wanted[earlier.ref].retry_at = math.inf
    return rows


@replaces(Parking, "missing")
def no_such_schema_is_final_at_once(self: Parking, ref: SchemaRef) -> list[tuple[Run, Filtered | Rejection]]:
    """A schema that one replica of the registry does not have yet counts as missing."""
    wanted = self._answered(ref, None)
    if wanted is None:
        return []
    del self._wanted[ref]
    return [(row, self._decoder.missing(ref)) for row in self._leave(wanted.records)]


# Records that come later share the patience of the first record that waits, even if it is about to end.
replaced(
    "one_record_s_wait_counts_for_all",
    Parking,
    "_is_final",
    lambda self, wanted, _: wanted.denied >= self._patience / 4,
)
# A schema that the registry lacks is neither final nor asked for again.
replaced("no_such_schema_is_asked_for_once", Parking, "missing", lambda *_: [])


@around(Parking, "__init__")
def questions_have_no_bound(init: Any, self: Parking, context: Context, decoder: SchemaLearner) -> None:
    """Every schema is asked for as soon as a record needs it, without a bound."""
    init(self, context, decoder)
    self._max_at_once, self._rate = 10**6, 1e6
    self._burst = self._tokens = BURST * self._rate


@around(Pipeline, "_check_guard")
def questions_go_on_behind_the_guard(original: Any, self: Pipeline) -> None:
    """Schemas are asked for while the guard has stopped intake."""
    for ref in self.parking.ask(self.context.now.monotonic):
        self.context.emit(messages.FetchSchema(ref))
    original(self)


@around(Steps, "aside")
def parked_records_are_filtered(aside: Any, self: Steps, row: Run, verdict: Any) -> None:
    """A record that cannot be read yet is settled as filtered."""
    if isinstance(verdict, SchemaRef):
        verdict = Rejection(Stage.DECODE, "unknown_schema", "unknown schema")
    aside(self, row, verdict)


# -- clocks


# An event later than our clock is rejected, whatever the record's time.
replaced("our_clock_is_always_right", Clock, "may_wait", lambda *_: None)


@around(Clock, "may_wait")
def what_checks_too_old_is_refused_at_once(
    may_wait: Any, self: Clock, event: Untimely, timestamp: int
) -> Any:
    """After a start our clock decides what is too old, although nothing has confirmed it."""
    return may_wait(self, event, timestamp) if event.since > self._context.now.unix else None


# Our clock is known to be wrong, and is still used.
replaced("the_platform_s_clock_is_not_heard", Clock, "correct", lambda _, now: now)


@mutation
def every_clock_is_believed(patch: pytest.MonkeyPatch) -> None:
    """The time in any answer is believed, whoever sent it."""
    answered = Steps.answered

    def believing(self: Steps, happened: messages.Answered) -> None:
        self.clock.answered(happened.headers.get("date"), self.dispatcher._in_flight[happened.number].sent_at)
        answered(self, happened)

    patch.setattr(Steps, "answered", believing)


# The time in one answer is believed, although no other clock confirms it.
replaced("one_answer_is_believed_whatever_it_says", "consumer.engine.clock", "_ENOUGH", 1)
# All events wait for the platform's time, and no call asks for it.
replaced("no_call_asks_for_the_time", TimeQuestion, "due", lambda *_, **__: None)
# Keys are out of the window when this machine's clock says so.
replaced("keys_are_forgotten_by_our_clock", Clock, "forgotten_at", property(lambda self: self.local.unix))


@mutation
def keys_are_forgotten_before_the_clock_is_confirmed(patch: pytest.MonkeyPatch) -> None:
    """After a start keys are out of the window by this machine's clock, until the platform's is known."""
    confirmed: Any = vars(Clock)["forgotten_at"]
    patch.setattr(Clock, "forgotten_at", property(lambda self: confirmed.fget(self) or self.local.unix))


# A delivered key gets this machine's time, so it looks old when the clock is put right.
replaced("keys_are_stored_under_our_clock", Clock, "delivered_at", property(lambda self: self.local.unix))


# -- the user's function


@around(Transforming, "ready")
def records_do_not_wait_for_the_function(
    ready: Any, self: Transforming, tp: TopicPartition, records: Sequence[Record | None]
) -> Any:
    """Records are read before the user's function has returned."""
    ready(self, tp, records)
    return len(records)


@around(Transforming, "reported")
def what_the_function_returned_is_another_record_s(
    reported: Any, self: Transforming, happened: messages.Transformed | messages.TransformIsSlow
) -> None:
    """The function's results belong to the wrong records: the first that is waited for is skipped."""
    self._asked = self._asked[1:] if isinstance(happened, messages.Transformed) else self._asked
    reported(self, happened)
