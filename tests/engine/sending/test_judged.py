"""Dispatcher and answers by themselves: which batches go, and what an answer makes of the events of each."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.context import Context
from consumer.engine.model import Instant, Policy
from consumer.engine.records.runs import Run, rows_of
from consumer.engine.sending.answers import Answers, Judged
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.queue import Batch
from consumer.engine.sending.verdicts import Refused
from tests.engine.building import (
    ACCOUNT,
    AT_ONCE,
    NO,
    OTHER_ACCOUNT,
    START,
    UNIX,
    accepted,
    answer_body,
    make_runs,
)


class Sending:
    """A dispatcher and its answers, without the steps between them."""

    def __init__(self, **policy: Any) -> None:
        self.context = Context(Policy(**{**AT_ONCE, **policy}), 0)
        self.context.now = Instant(START, UNIX)
        self.dispatcher = Dispatcher(self.context)
        self.answers = Answers(self.context, self.dispatcher)

    def queue(self, count: int, account: str = ACCOUNT) -> list[Run]:
        """Queue events of an account."""
        runs = make_runs(count, account=account)
        for run in runs:
            self.dispatcher.queue(account).add(run, START)
        return runs

    def send(self, at_risk: int = 0, lease_until: float = inf) -> list[Batch]:
        """Begin the calls that may begin."""
        return [batch for batch, _ in self.dispatcher.send(at_risk, lease_until, 0)]

    def answer(self, batch: Batch, status: int, body: bytes, **headers: str) -> Judged:
        """Answer the call of a batch."""
        happened = m.Answered(batch.number, status, headers, body)
        assert self.dispatcher.answered(batch.number) is batch
        return self.answers.apply(batch, self.answers.read(batch, happened), happened)


def test_accounts_take_turns_and_the_calls_of_all_are_bounded() -> None:
    """Each account sends a batch before one sends a second; no more calls begin than the process may have."""
    sending = Sending(concurrency=3, batch_events=1)
    sending.queue(4)
    sending.queue(1, OTHER_ACCOUNT)
    assert [batch.account for batch in sending.send()] == [ACCOUNT, OTHER_ACCOUNT, ACCOUNT]
    assert sending.send() == []


@pytest.mark.parametrize(("at_risk", "lease_until"), [(7, inf), (0, START + 29.0)])
def test_no_call_begins_at_too_much_risk_or_beyond_the_lease(at_risk: int, lease_until: float) -> None:
    """Events without a durable key and those in flight together are bounded; claims hold until the call's limit."""
    sending = Sending(concurrency=2, batch_events=4, call_timeout=30.0)
    sending.queue(4)
    assert sending.send(at_risk, lease_until) == []
    assert sending.dispatcher.due(at_risk, lease_until) is None
    assert len(sending.send()) == 1


def test_what_the_platform_processed_is_delivered_and_what_it_refused_is_not() -> None:
    """Each event of the batch comes back once: delivered, or with the reason."""
    sending = Sending()
    first, second, third = sending.queue(3)
    [batch] = sending.send()
    outcomes = [("processed", None, None), ("failed", "no", None), ("processed", None, None)]
    judged = sending.answer(batch, 200, answer_body(outcomes))
    assert judged.delivered == [first, third]
    assert [(row, rejection.message) for row, rejection in judged.refused] == [(second, "no")]
    assert not judged.again


@pytest.mark.parametrize("status", [429, 503])
def test_a_batch_without_a_verdict_comes_back_whole(status: int) -> None:
    """Nothing is known of any event, so all are sent again."""
    sending = Sending()
    sending.queue(3)
    [batch] = sending.send()
    judged = sending.answer(batch, status, b"")
    assert (judged.again, judged.delivered, judged.refused) == ([batch], (), ())
    assert batch.failures == 1


def test_a_refused_batch_comes_back_in_halves_and_one_event_is_refused() -> None:
    """The halves have all events, in order, and no failures; of one event it is known which is at fault."""
    sending = Sending()
    runs = sending.queue(3)
    [batch] = sending.send()
    judged = sending.answer(batch, 400, NO)
    assert [run for half in judged.again for run in half.runs] == runs
    assert [(half.events, half.failures) for half in judged.again] == [(1, 0), (2, 0)]
    alone = Batch(99, ACCOUNT, [runs[0]])
    verdict = sending.answers.read(alone, m.Answered(99, 400, {}, NO))
    judged = sending.answers.apply(alone, verdict, m.Answered(99, 400, {}, NO))
    assert [row for row, _ in judged.refused] == [runs[0]]


def test_a_refused_token_halts_and_refuses_no_event() -> None:
    """The batch comes back, and the account sends nothing more until a probe is due."""
    sending = Sending()
    sending.queue(2)
    [batch] = sending.send()
    happened = m.Answered(sending.dispatcher.answered(batch.number).number, 401, {}, NO)
    verdict = sending.answers.read(batch, happened)
    assert isinstance(verdict, Refused)
    assert sending.answers.apply(batch, verdict, happened) == Judged(again=[batch])
    sending.dispatcher.queue(ACCOUNT).put_back(batch, START)
    assert sending.send() == []


def test_a_call_without_an_answer_marks_its_events() -> None:
    """Its outcome is not known, and the next call counts them as sent again, once."""
    sending = Sending()
    sending.queue(2)
    [batch] = sending.send()
    sending.dispatcher.answered(batch.number)
    sending.context.now = Instant(START, UNIX + 7200)
    judged = sending.answers.unanswered(batch, m.Unanswered(batch.number, "timeout"))
    assert judged.again == [batch]
    for _ in range(2):
        sending.dispatcher.queue(ACCOUNT).put_back(batch, START)
        [batch] = sending.send()
        assert sending.answer(batch, 200, accepted(2)).delivered == batch.runs
    assert sending.context.counters.unclear_repeats == rows_of(batch.runs)
