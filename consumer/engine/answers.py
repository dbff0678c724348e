"""What follows from an answer: deliver, refuse, bisect, wait, halt. The branching; `verdicts` reads the bytes.

Where somebody else answered in the platform's place nothing follows for any event: its batch waits and is sent again,
in smaller ones where it was too large for them, and what they said is reported (`masking.who_answered`).

A batch that gets no verdict time after time while others do is cut in halves, too: a firewall or the platform itself
may stumble over one event of it, and the others shall not wait with that one. (Nothing is refused by it.)

Every path ends in one of four: the event is delivered, it is refused for good, its batch goes back into the queue,
or it is given up because it is no longer ours. None of them loses an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from consumer.engine.block import UNCLEAR, Delivery, RecordStage, move_all
from consumer.engine.context import Clock, Context
from consumer.engine.masking import kind, mask, who_answered
from consumer.engine.messages import Answered, Unanswered
from consumer.engine.model import Rejection, Stage
from consumer.engine.sending import Batch, Dispatcher, halves
from consumer.engine.verdicts import (
    UNTROUBLED,
    BatchRefused,
    EventOutcome,
    NoVerdict,
    PerEvent,
    Refused,
    SomeRefused,
    Throttled,
    TooLarge,
    Verdict,
    limit_headers,
    read_answer,
    request_id,
)

_NEVER_LEFT = frozenset({"dns", "connect", "tls"})
"""Why no answer came when nothing was sent: without a connection the outcome is clear."""
_REMEMBERED_MOST = 1024 * 1024
"""Bytes of an answer that is kept; one for a thousand events is some 100 KB."""
_SUSPECT_AFTER = 5
"""Calls in a row without a verdict after which a batch may itself be the reason, if others get one meanwhile."""
_NO_REASON = "the API gave no reason"


_OUTCOMES: Mapping[type, str] = {NoVerdict: "no_verdict", Throttled: "throttled", Refused: "refused"}
"""All others are verdicts."""
_TROUBLES: Mapping[str, str] = {
    "timeout": "no answer in time",
    "dns": "the name of the API cannot be resolved",
    "connect": "nothing answers at the API's address",
    "tls": "the TLS handshake failed",
    "connection": "the connection broke off",
    "not_json": "HTTP 200 from somebody else",
    "unreadable_outcomes": "HTTP 200 without an outcome for each event",
    "contradicting_counters": "HTTP 200 that contradicts itself",
}


def _in_words(reason: str, said: str | None) -> str:
    text = _TROUBLES.get(reason, reason.replace("http_", "HTTP ").replace("_", " "))
    return text if said is None else f"{text} ({said})"


class Consequences(Protocol):
    """What the pipeline does with events whose outcome is known."""

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        """The API said processed."""

    def refused(self, delivery: Delivery, rejection: Rejection, attempts: int) -> None:
        """The API refused this event for good."""

    def let_go(self, deliveries: Sequence[Delivery]) -> None:
        """Undelivered, and no longer ours to deliver."""


class Answers:
    """Applies verdicts to batches."""

    def __init__(
        self, context: Context, clock: Clock, dispatcher: Dispatcher, pipeline: Consequences
    ) -> None:
        self._context = context
        self._clock = clock
        self._dispatcher = dispatcher
        self._pipeline = pipeline
        self._read_last: tuple[int, bytes] | None = None
        """The last 200 that was read: for how many events, and its body; its verdict is the next."""
        self._verdict_last: Verdict

    def answered(self, answer: Answered) -> None:
        """The API answered an attempt."""
        batch = self._dispatcher.answered(answer.number)
        now = self._context.now
        self._context.counters.bump(self._context.counters.answers, str(answer.status))
        gate = self._dispatcher.queue(batch.account).gate
        gate.told(*limit_headers(answer.headers), now.monotonic)
        verdict = self._read(answer, len(batch.deliveries))
        if not isinstance(verdict, NoVerdict | Throttled):  # the platform's own words
            self._clock.answered(answer.headers.get("date"), batch.sent_at)
        self._apply(batch, verdict, answer)

    def _read(self, answer: Answered, events: int) -> Verdict:
        """The verdict of an answer. Full batches without trouble are all answered with the same bytes, and to read
        some tens of kilobytes costs far more than to see that they are those that were read before."""
        if answer.status != 200 or len(answer.body) > _REMEMBERED_MOST:
            return read_answer(answer.status, answer.headers, answer.body, events, self._context.now.unix)
        # With 200, the verdict follows from these two alone.
        asked = (events, answer.body)
        if asked != self._read_last:
            self._verdict_last = read_answer(200, answer.headers, answer.body, events, self._context.now.unix)
            self._read_last = asked
        return self._verdict_last

    def unanswered(self, answer: Unanswered) -> None:
        """No answer came to an attempt."""
        batch = self._dispatcher.answered(answer.number)
        self._context.counters.bump(self._context.counters.answers, answer.reason)
        self._ended(batch, "no_answer")
        self._no_verdict(batch, NoVerdict(answer.reason), None, request_id(answer.headers))

    def _ended(self, batch: Batch, outcome: str) -> None:
        self._context.counters.call_ended(outcome, self._context.now.monotonic - batch.sent_at)

    def _apply(self, batch: Batch, verdict: Verdict, answer: Answered) -> None:
        rid = request_id(answer.headers)
        self._ended(batch, _OUTCOMES.get(type(verdict), "verdict"))
        if isinstance(verdict, NoVerdict):
            readable = answer.status == 200 and verdict.reason != "not_json"
            said = None if readable else who_answered(answer.headers, answer.body, batch.body())
            self._no_verdict(batch, verdict, said, rid)
            return
        queue = self._dispatcher.queue(batch.account)
        if queue.gate.heard(self._context.now.monotonic, queue.in_flight):
            self._context.report("info", "reachable", account=batch.account)
        if isinstance(verdict, Throttled):
            self._throttled(batch, verdict.wait, rid)
        elif isinstance(verdict, Refused):
            self._dispatcher.refuse(batch, verdict.status, verdict.code, rid)
            self._again(batch, self._context.now.monotonic)
        else:
            self._dispatcher.accept(batch)
            self._dispatcher.queue(batch.account).gate.judged(self._context.now.monotonic)
            self._judged(batch, verdict, rid)

    def _judged(
        self, batch: Batch, verdict: PerEvent | SomeRefused | BatchRefused | TooLarge, rid: str | None
    ) -> None:
        refused: list[Rejection] = []
        events = len(batch.deliveries)
        if isinstance(verdict, PerEvent):
            refused = self._per_event(batch, verdict.outcomes)
        elif isinstance(verdict, SomeRefused):
            refused = self._some_refused(batch, verdict)
        elif isinstance(verdict, BatchRefused):
            refused = self._bisect(batch, "refused", verdict.message, rid)
        else:
            if events > 1:
                self._dispatcher.queue(batch.account).shrink(batch.size, self._context.now.monotonic)
            message = verdict.message or "the API says the event is too large"
            refused = self._bisect(batch, "too_large", message, rid)
        if refused:
            self._context.report(
                "warning", "events_refused", account=batch.account, refused=len(refused), events=events,
                code=refused[0].code, message=refused[0].message, request_id=rid,
            )  # fmt: skip

    # -- verdicts on events

    def _per_event(self, batch: Batch, outcomes: Sequence[EventOutcome]) -> list[Rejection]:
        if outcomes.count(UNTROUBLED) == len(outcomes):
            self._pipeline.delivered(batch.deliveries)
            return []
        delivered, refused = [], []
        for delivery, outcome in zip(batch.deliveries, outcomes, strict=True):
            if outcome.processed:
                delivered.append(delivery)
            else:
                refused.append(self._refuse(delivery, outcome.error or _NO_REASON, batch.attempts))
            if outcome.warning is not None or outcome.error is not None:
                self._count_messages(outcome, delivery.body)
        self._pipeline.delivered(delivered)
        return refused

    def _some_refused(self, batch: Batch, verdict: SomeRefused) -> list[Rejection]:
        rest, refused = [], []
        for index, delivery in enumerate(batch.deliveries):
            error = verdict.errors.get(index)
            if error is None:
                rest.append(delivery)
            else:
                refused.append(self._refuse(delivery, error or _NO_REASON, batch.attempts))
        if rest:
            again = Batch(self._context.number(), batch.account, rest, batch.attempts)
            self._again(again, self._context.now.monotonic)
        return refused

    def _bisect(self, batch: Batch, code: str, message: str, rid: str | None) -> list[Rejection]:
        if len(batch.deliveries) == 1:
            return [self._refuse(batch.deliveries[0], message or _NO_REASON, batch.attempts, code)]
        self._context.counters.bisected += 1
        self._context.report(
            "warning", "batch_bisected", account=batch.account, events=len(batch.deliveries), code=code,
            request_id=rid,
        )  # fmt: skip
        for half in halves(batch, self._context.number(), self._context.number()):
            self._again(half, self._context.now.monotonic)
        return []

    def _refuse(self, delivery: Delivery, message: str, attempts: int, code: str = "refused") -> Rejection:
        rejection = Rejection(Stage.DELIVER, code, mask(message, delivery.body))
        self._pipeline.refused(delivery, rejection, attempts)
        return rejection

    def _count_messages(self, outcome: EventOutcome, body: bytes) -> None:
        counters = self._context.counters
        if outcome.warning is not None:
            counters.bump(counters.api_warnings, kind(outcome.warning, body))
        if outcome.error is not None:
            counters.bump(counters.api_errors, kind(outcome.error, body))
            counters.processed_with_error += outcome.processed

    # -- no verdict on any event

    def _no_verdict(self, batch: Batch, verdict: NoVerdict, said: str | None, rid: str | None) -> None:
        """`said`: what was answered in the platform's place; None: nothing was, or the platform itself answered."""
        context, reason = self._context, verdict.reason
        queue, now = self._dispatcher.queue(batch.account), context.now.monotonic
        queue.gate.slow_down()
        queue.gate.postpone_probe(now)
        queue.gate.unheard(_in_words(reason, said))
        batch.failures += 1
        if batch.failures == 1:
            batch.failing_since = now
        context.counters.bump(context.counters.no_verdicts, reason)
        if reason not in _NEVER_LEFT:
            for one in batch.deliveries:
                one.marks |= UNCLEAR
        delay = context.policy.delivery_backoff.delay(batch.failures, context.jitter())
        context.report(
            "warning", "no_verdict", account=batch.account, reason=reason, said=said, events=len(batch.deliveries),
            attempt=batch.attempts, retry_seconds=round(delay, 3), request_id=rid,
        )  # fmt: skip
        suspect = batch.failures >= _SUSPECT_AFTER and queue.gate.judged_at > batch.failing_since
        parts = [batch]
        if len(batch.deliveries) > 1 and (verdict.too_large or suspect):
            if verdict.too_large:
                queue.shrink(batch.size, now)
            context.counters.bisected += 1
            parts = [*halves(batch, context.number(), context.number())]
        for part in parts:
            if part is not batch:
                part.failures, part.failing_since = batch.failures, now
            self._again(part, now + delay)

    def _throttled(self, batch: Batch, wait: float | None, rid: str | None) -> None:
        context = self._context
        gate = self._dispatcher.queue(batch.account).gate
        gate.postpone_probe(context.now.monotonic)
        batch.failures += 1
        batch.failing_since = context.now.monotonic  # for want of quota, not for anything in it
        if wait is None or wait < context.policy.delivery_backoff.base:
            # Clocks differ: a moment in the past must not turn a throttled client into a hammer.
            backoff = context.policy.delivery_backoff.delay(batch.failures, 0.5 + context.jitter() / 2)
            wait = max(wait or 0.0, backoff)
        wait = min(wait, context.policy.throttle_cap)
        context.report(
            "warning", "throttled", account=batch.account, wait_seconds=round(wait, 3), request_id=rid
        )
        gate.close(context.now.monotonic + wait)
        self._again(batch, context.now.monotonic)

    def _again(self, batch: Batch, at: float) -> None:
        """Back into the queue, less what is no longer ours."""
        gone = [one for one in batch.deliveries if not one.accepted]
        if gone:
            batch.deliveries = [one for one in batch.deliveries if one.accepted]
            self._pipeline.let_go(gone)
        if batch.deliveries:
            self._context.counters.retried_batches += 1
            move_all(batch.deliveries, RecordStage.QUEUED)
            self._dispatcher.queue(batch.account).put_back(batch, at)
