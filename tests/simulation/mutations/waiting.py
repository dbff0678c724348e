"""Deliberate bugs in what waits for somebody else: for a schema that the registry does not have
(yet), for a clock that is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.answers import Answers
from consumer.engine.block import Run
from consumer.engine.context import Clock, Context
from consumer.engine.intake import Admission
from consumer.engine.model import Filtered, Record, Rejection, SchemaRef, Stage, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import SchemaLearner
from consumer.engine.sending.queues import Batch
from consumer.engine.waiting import BURST, EarlyRecords, Parking, Transforming
from tests.simulation.mutations.mutating import mutation


@mutation
def registry_outage_is_final(patch: pytest.MonkeyPatch) -> None:
    """allegro/hermes #607: no answer is taken for "no such schema"."""

    take_in = Pipeline._take_in

    def missing(self: Pipeline, happened: messages.Input) -> None:
        if isinstance(happened, messages.SchemaUnavailable):
            happened = messages.SchemaMissing(happened.ref)
        take_in(self, happened)

    patch.setattr(Pipeline, "_take_in", missing)


@mutation
def an_unavailable_schema_is_asked_for_once(patch: pytest.MonkeyPatch) -> None:
    """Records that wait for it wait for ever."""
    patch.setattr(Parking, "unavailable", lambda *_: None)


@mutation
def a_schema_from_disk_is_not_doubted(patch: pytest.MonkeyPatch) -> None:
    """What an earlier schema under the same id cannot read becomes a dead letter."""
    init = Parking.__init__

    def trusting(self: Parking, *arguments: Any) -> None:
        init(self, *arguments)
        patch.setattr(self._decoder, "doubt", lambda _: None)

    patch.setattr(Parking, "__init__", trusting)


@mutation
def a_schema_from_disk_ends_the_questions(patch: pytest.MonkeyPatch) -> None:
    """The registry is not asked again, so what the earlier schema cannot read waits for ever."""
    stand_in = Parking._stand_in

    def once(self: Parking, earlier: messages.SchemaFound, reason: str) -> list[Run]:
        rows = stand_in(self, earlier, reason)
        if earlier.ref in self._wanted:
            self._wanted[earlier.ref].retry_at = math.inf
        return rows

    patch.setattr(Parking, "_stand_in", once)


@mutation
def no_such_schema_is_final_at_once(patch: pytest.MonkeyPatch) -> None:
    """What a follower does not know yet does not exist."""

    def final(self: Parking, ref: SchemaRef) -> tuple[Sequence[Run], Filtered | Rejection | None]:
        wanted = self._answered(ref, None)
        if wanted is None:
            return (), None
        del self._wanted[ref]
        return self._leave(wanted.records), self._decoder.missing(ref)

    patch.setattr(Parking, "missing", final)


@mutation
def one_record_s_wait_counts_for_all(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes behind one that waits shares its patience, a moment before the end too."""
    patch.setattr(Parking, "_is_final", lambda self, wanted, _: wanted.denied >= self._patience / 4)


@mutation
def no_such_schema_is_asked_for_once(patch: pytest.MonkeyPatch) -> None:
    """What was said once is neither final nor asked for again."""
    patch.setattr(Parking, "missing", lambda *_: ((), None))


@mutation
def questions_have_no_bound(patch: pytest.MonkeyPatch) -> None:
    """Each schema is asked for as soon as a record needs it."""
    init = Parking.__init__

    def unbound(self: Parking, context: Context, decoder: SchemaLearner) -> None:
        init(self, context, decoder)
        self._most_at_once, self._rate = 10**6, 1e6
        self._burst = self._tokens = BURST * self._rate

    patch.setattr(Parking, "__init__", unbound)


@mutation
def questions_go_on_behind_the_guard(patch: pytest.MonkeyPatch) -> None:
    """Nobody takes in what is asked for."""
    mind = Pipeline._mind_guard

    def ask_first(self: Pipeline) -> None:
        for ref in self.parking.ask(self.context.now.monotonic):
            self.context.emit(messages.FetchSchema(ref))
        mind(self)

    patch.setattr(Pipeline, "_mind_guard", ask_first)


@mutation
def parked_records_are_filtered(patch: pytest.MonkeyPatch) -> None:
    """A record nobody can read yet is passed over."""
    aside = Admission._set_aside

    def passed_over(self: Admission, row: Run, verdict: Any) -> None:
        if isinstance(verdict, SchemaRef):
            verdict = Rejection(Stage.DECODE, "unknown_schema", "unknown schema")
        aside(self, row, verdict)

    patch.setattr(Admission, "_set_aside", passed_over)


# -- clocks


@mutation
def our_clock_is_always_right(patch: pytest.MonkeyPatch) -> None:
    """What lies ahead of it is refused, whatever the time of the record."""
    patch.setattr(Clock, "may_wait", lambda *_: False)


@mutation
def the_platform_s_clock_is_not_heard(patch: pytest.MonkeyPatch) -> None:
    """It is known that our clock is wrong, and it is gone by all the same."""
    patch.setattr(Clock, "correct", lambda _, now: now)


@mutation
def anybody_s_clock_is_believed(patch: pytest.MonkeyPatch) -> None:
    """Whoever answers says what time it is."""
    no_verdict = Answers._no_verdict

    def believing(self: Answers, batch: Batch, *more: Any) -> None:
        if self.last_date is not None:  # type: ignore[attr-defined]  # set below
            self._clock.answered(self.last_date, batch.sent_at)  # type: ignore[attr-defined]  # set below
        no_verdict(self, batch, *more)

    answered = Answers.answered

    def remembering(self: Answers, answer: messages.Answered) -> None:
        self.last_date = answer.headers.get("date")  # type: ignore[attr-defined]  # read above
        answered(self, answer)

    patch.setattr(Answers, "last_date", None, raising=False)
    patch.setattr(Answers, "answered", remembering)
    patch.setattr(Answers, "_no_verdict", believing)


@mutation
def one_answer_is_believed_whatever_it_says(patch: pytest.MonkeyPatch) -> None:
    """Though no other clock bears it out."""
    patch.setattr("consumer.engine.context._ENOUGH", 1)


@mutation
def nobody_asks_what_time_it_is(patch: pytest.MonkeyPatch) -> None:
    """All events wait for an answer of the platform, and none is sent."""
    due = EarlyRecords.due
    patch.setattr(EarlyRecords, "pilot", lambda *_: None)
    patch.setattr(EarlyRecords, "due", lambda self, now, _: due(self, now, lambda: False))


# -- the user's function


@mutation
def records_do_not_wait_for_the_function(patch: pytest.MonkeyPatch) -> None:
    """They are read though it has not returned."""
    ready = Transforming.ready

    def at_once(self: Transforming, rows: Sequence[tuple[TopicPartition, Record | None]]) -> int:
        ready(self, rows)
        return len(rows)

    patch.setattr(Transforming, "ready", at_once)


@mutation
def what_the_function_returned_is_another_record_s(patch: pytest.MonkeyPatch) -> None:
    """The first of those that are still waited for is passed over."""
    told = Transforming.told

    def shifted(self: Transforming, happened: messages.Transformed | messages.TransformIsSlow) -> None:
        self._asked = self._asked[1:] if isinstance(happened, messages.Transformed) else self._asked
        told(self, happened)

    patch.setattr(Transforming, "told", shifted)
