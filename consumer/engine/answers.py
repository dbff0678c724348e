"""What follows from an answer: events are delivered or refused, batches are split or wait, an account halts.
`verdicts` reads the bytes.

Where a proxy or another server answered in the platform's place, no event has a verdict: the batch waits and is sent
again, in smaller batches if it was too large, and the answer's text is reported (`masking.who_answered`).

A batch that repeatedly gets no verdict while others do is cut in halves, too: a firewall or the platform itself may
fail on one event of it, and the others should not wait with that event. (Halving refuses no event.)

Each path has one of four ends: the event is delivered, it is refused for good, its batch goes back into the queue,
or it is dropped because its assignment has ended. None of them loses an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from consumer.engine.account import Batch
from consumer.engine.answering.masking import kind, mask, who_answered
from consumer.engine.answering.verdicts import (
    UNTROUBLED,
    BatchRefused,
    EventOutcome,
    NoVerdict,
    PerEvent,
    Refused,
    SomeRefused,
    Throttled,
    Verdict,
    limit_headers,
    read_answer,
    request_id,
)
from consumer.engine.block import AS_UNCLEAR, RecordStage, Run, divide, each_of, move_all, pick, rows_of
from consumer.engine.claims import Lookups
from consumer.engine.context import Clock, Context
from consumer.engine.messages import TOO_LATE, Answered, Unanswered
from consumer.engine.model import Rejection, Stage
from consumer.engine.outcomes import Outcomes
from consumer.engine.sending import Dispatcher

# Reasons for no answer when nothing was sent: without a connection the outcome is clear.
_NEVER_LEFT = frozenset({"dns", "connect", "tls", "proxy", TOO_LATE})
# Bytes of an answer that is kept for comparison; one for a thousand events has some 100 KB.
_REMEMBERED_MOST = 1024 * 1024
# Calls in a row without a verdict after which a batch may itself be the reason, if others get one meanwhile.
_SUSPECT_AFTER = 5
_NO_REASON = "the API gave no reason"


# All others are verdicts.
_OUTCOMES: Mapping[type, str] = {NoVerdict: "no_verdict", Throttled: "throttled", Refused: "refused"}
_TROUBLES: Mapping[str, str] = {
    "timeout": "no answer in time",
    "dns": "the name of the API cannot be resolved",
    "connect": "nothing answers at the API's address",
    "tls": "the TLS handshake failed",
    "proxy": "the proxy did not open a connection",
    "connection": "the connection broke off",
    TOO_LATE: "this process stood still before the call began",
    "not_json": "HTTP 200 from somebody else",
    "unreadable_outcomes": "HTTP 200 without an outcome for each event",
    "contradicting_counters": "HTTP 200 that contradicts itself",
}


@dataclass(eq=False)
class Answers:
    """Applies the verdicts of answers to batches."""

    _context: Context
    _clock: Clock
    _dispatcher: Dispatcher
    _lookups: Lookups
    _outcomes: Outcomes
    # The last 200 that was read: for how many events, its body, and its verdict.
    _read_last: tuple[int, bytes, Verdict] | None = None

    def answered(self, answer: Answered) -> None:
        """Take the API's answer to a call."""
        batch = self._dispatcher.answered(answer.number)
        now, counters = self._context.now, self._context.counters
        counters.bump(counters.answers, str(answer.status))
        counters.calls_answered += 1
        counters.events_answered += batch.events
        counters.bytes_answered += batch.sent_bytes
        gate = self._dispatcher.queue(batch.account).gate
        # Also for an answer without a verdict: its headers, too, say how many calls are left.
        gate.limited(*limit_headers(answer.headers), now.monotonic)
        verdict = self._read(answer, batch.events)
        if not isinstance(verdict, NoVerdict | Throttled):  # the platform's own words
            self._clock.answered(answer.headers.get("date"), batch.sent_at)
        self._apply(batch, verdict, answer)

    def _read(self, answer: Answered, events: int) -> Verdict:
        """Return the verdict of an answer. Full batches without trouble are all answered with the same bytes,
        and comparing them with the last answer costs far less than parsing tens of kilobytes."""
        if answer.status != 200 or len(answer.body) > _REMEMBERED_MOST:
            return read_answer(answer.status, answer.headers, answer.body, events, self._context.now.unix)
        # With 200, the verdict follows from the number of events and the body alone.
        last = self._read_last
        if last is None or last[:2] != (events, answer.body):
            verdict = read_answer(200, answer.headers, answer.body, events, self._context.now.unix)
            last = self._read_last = (events, answer.body, verdict)
        return last[2]

    def unanswered(self, answer: Unanswered) -> None:
        """Take the end of a call that brought no answer."""
        batch = self._dispatcher.answered(answer.number)
        self._context.counters.bump(self._context.counters.answers, answer.reason)
        self._context.counters.call_ended("no_answer", self._context.now.monotonic - batch.sent_at)
        self._no_verdict(batch, NoVerdict(answer.reason), answer.said, request_id(answer.headers))

    def _apply(self, batch: Batch, verdict: Verdict, answer: Answered) -> None:
        rid, now = request_id(answer.headers), self._context.now.monotonic
        outcome = _OUTCOMES.get(type(verdict), "verdict")
        self._context.counters.call_ended(outcome, now - batch.sent_at)
        if isinstance(verdict, NoVerdict):
            # An answer that is not in the platform's own form comes from a server in between.
            readable = answer.status == 200 and verdict.reason != "not_json"
            said = None if readable else who_answered(answer.headers, answer.body, b"".join(batch.parts()))
            self._no_verdict(batch, verdict, said, rid)
            return
        queue = self._dispatcher.queue(batch.account)
        if queue.gate.heard(now, queue.in_flight):
            self._context.report("info", "reachable", account=batch.account)
        if isinstance(verdict, Throttled):
            self._throttled(batch, verdict.wait, rid)
        elif isinstance(verdict, Refused):
            # An outage; the events are not at fault and wait until a probe is accepted (docs/architecture.md, rule 7).
            self._dispatcher.halts.refuse(batch, verdict.status, verdict.code, rid)
            self._again(batch, now)
        else:
            self._dispatcher.halts.accept(batch)
            queue.gate.judged(now)
            batch.failures = 0
            self._judged(batch, verdict, rid)

    def _judged(self, batch: Batch, verdict: PerEvent | SomeRefused | BatchRefused, rid: str | None) -> None:
        refused: list[Rejection] = []
        events = batch.events
        if isinstance(verdict, PerEvent):
            refused = self._per_event(batch, verdict.outcomes)
        elif isinstance(verdict, SomeRefused):
            refused = self._some_refused(batch, verdict)
        elif not verdict.too_large:
            refused = self._bisect(batch, "refused", verdict.message, rid)
        else:
            # A batch of one event says nothing about how much fits.
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
        # Nearly always: then no event is looked at by itself.
        if outcomes.count(UNTROUBLED) == len(outcomes):
            self._context.counters.events_processed += len(outcomes)
            self._outcomes.delivered(batch.runs)
            return []
        delivered, _ = pick(batch.runs, [outcome.processed for outcome in outcomes])
        refused = []
        for row, outcome in zip(each_of(batch.runs), outcomes, strict=True):
            body = row.block.body(row.first)
            if not outcome.processed:
                refused.append(self._refuse(row, outcome.error or _NO_REASON, batch.attempts))
            counters = self._context.counters
            # By kind, which is the message without the event's values that it repeats: they may be personal.
            if outcome.warning is not None:
                counters.bump(counters.api_warnings, kind(outcome.warning, body))
            if outcome.error is not None:
                counters.bump(counters.api_errors, kind(outcome.error, body))
                counters.processed_with_error += outcome.processed
        self._context.counters.events_processed += rows_of(delivered)
        self._outcomes.delivered(delivered)
        return refused

    def _some_refused(self, batch: Batch, verdict: SomeRefused) -> list[Rejection]:
        rows = [*each_of(batch.runs)]
        _, rest = pick(batch.runs, [index in verdict.errors for index in range(len(rows))])
        refused = [
            self._refuse(rows[index], message or _NO_REASON, batch.attempts)
            for index, message in sorted(verdict.errors.items())
        ]
        # None of the others was processed: the platform refused the call, and named the events at fault.
        if rest:
            self._again(replace(batch, number=self._context.number(), runs=rest), self._context.now.monotonic)
        return refused

    def _bisect(self, batch: Batch, code: str, message: str, rid: str | None) -> list[Rejection]:
        # A single event is at fault itself. Of several it is not known which one is: the halves will show it.
        if batch.events == 1:
            return [self._refuse(batch.runs[0], message or _NO_REASON, batch.attempts, code)]
        self._context.counters.bisected += 1
        self._context.report(
            "warning", "batch_bisected", account=batch.account, events=batch.events, code=code,
            request_id=rid,
        )  # fmt: skip
        for half in batch.halves(self._context.number(), self._context.number()):
            self._again(half, self._context.now.monotonic)
        return []

    def _refuse(self, row: Run, message: str, attempts: int, code: str = "refused") -> Rejection:
        rejection = Rejection(Stage.DELIVER, code, mask(message, row.block.body(row.first)))
        self._outcomes.refused(row, rejection, attempts)
        return rejection

    # -- no verdict on any event

    def _no_verdict(self, batch: Batch, verdict: NoVerdict, said: str | None, rid: str | None) -> None:
        """Have a batch without a verdict wait and retry. `said`: what answered in the platform's place, or why
        nothing did; None: the reason says enough."""
        context, reason = self._context, verdict.reason
        queue, now = self._dispatcher.queue(batch.account), context.now.monotonic
        # A call that did not begin says nothing about the batch or the API: the batch goes again at once.
        failed = reason != TOO_LATE
        if failed:
            # More calls at once would only meet the same trouble.
            queue.gate.slow_down()
            batch.failures += 1
            if batch.failures == 1:
                batch.failing_since = now
        queue.gate.postpone_probe(now)
        trouble = _TROUBLES.get(reason, reason.replace("http_", "HTTP ").replace("_", " "))
        queue.gate.last_trouble = trouble if said is None else f"{trouble} ({said})"
        context.counters.bump(context.counters.no_verdicts, reason)
        if reason not in _NEVER_LEFT:
            # A call with these events was sent, and its outcome is not known.
            for block, first, end in batch.runs:
                block.marks[first:end] = block.marks[first:end].translate(AS_UNCLEAR)
        delay = context.policy.delivery_backoff.delay(batch.failures, context.jitter()) if failed else 0.0
        context.report(
            "warning", "no_verdict", account=batch.account, reason=reason, said=said, events=batch.events,
            attempt=batch.attempts, retry_seconds=round(delay, 3), request_id=rid,
        )  # fmt: skip
        suspect = failed and batch.failures >= _SUSPECT_AFTER and queue.gate.judged_at > batch.failing_since
        parts = [batch]
        if batch.events > 1 and (verdict.too_large or suspect):
            if verdict.too_large:
                queue.shrink(batch.size, now)
            context.counters.bisected += 1
            # Each half is suspected only after failures of its own.
            batch.failing_since = now
            parts = [*batch.halves(context.number(), context.number())]
        for part in parts:
            self._again(part, now + delay)

    def _throttled(self, batch: Batch, wait: float | None, rid: str | None) -> None:
        context = self._context
        gate = self._dispatcher.queue(batch.account).gate
        gate.postpone_probe(context.now.monotonic)
        batch.failures += 1
        batch.failing_since = context.now.monotonic  # the quota is used up: nothing in the batch is at fault
        if wait is None or wait < context.policy.delivery_backoff.base:
            # Clocks differ: a reset time in the past must not make a throttled client retry at once, again and again.
            backoff = context.policy.delivery_backoff.delay(batch.failures, 0.5 + context.jitter() / 2)
            wait = max(wait or 0.0, backoff)
        wait = min(wait, context.policy.throttle_cap)
        context.report(
            "warning", "throttled", account=batch.account, wait_seconds=round(wait, 3), request_id=rid
        )
        gate.close(context.now.monotonic + wait)
        self._dispatcher.halts.throttled(batch.account, wait)
        self._again(batch, context.now.monotonic)

    def _again(self, batch: Batch, at: float) -> None:
        """Put the batch back into its queue, without events whose assignment has ended."""
        batch.runs, gone = divide(batch.runs)
        if gone:
            self._lookups.drop(gone)
        # All partitions of the batch may have been revoked meanwhile.
        if batch.runs:
            self._context.counters.retried_batches += 1
            move_all(batch.runs, RecordStage.QUEUED)
            # Claims of an ended session may be another member's by now (`consumer.engine.claims`).
            if batch.session == self._dispatcher.session:
                self._dispatcher.queue(batch.account).put_back(batch, at)
            else:
                self._lookups.claim_again(batch.runs)
