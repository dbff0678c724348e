"""What follows from an answer: events are delivered or refused, batches are split or wait, an account halts.
`verdicts` reads the bytes; `Judged` says what becomes of the events.

Where a proxy or another server answered in the platform's place, no event has a verdict: the batch waits and is sent
again, in smaller batches if it was too large, and the answer's text is reported (`masking.who_answered`).

A batch that repeatedly gets no verdict while others do is cut in halves, too: a firewall or the platform itself may
fail on one event of it, and the others should not wait with that event. (Halving refuses no event.)

Each path has one of three ends: the event is delivered, it is refused for good, or its batch goes back into the queue.
None of them loses an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

from consumer.engine.context import Context
from consumer.engine.figures.latency import Latency
from consumer.engine.messages import START_EXPIRED, Answered, Unanswered
from consumer.engine.model import Rejection, Stage
from consumer.engine.records.runs import Run, each_of, mark_unclear, pick, rows_of
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.masking import kind, mask, who_answered
from consumer.engine.sending.queue import Batch
from consumer.engine.sending.verdicts import (
    ACCEPTED,
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

# Reasons for no answer when nothing was sent: without a connection the outcome is clear.
_NEVER_LEFT = frozenset({"dns", "connect", "tls", "proxy", START_EXPIRED})
# Bytes of an answer that is kept for comparison; one for a thousand events has some 100 KB.
_MAX_REMEMBERED = 1024 * 1024
# Calls in a row without a verdict after which a batch may itself be the reason, if others get one.
_SUSPECT_AFTER = 5
_NO_REASON = "the API gave no reason"


# All others are verdicts.
_OUTCOMES: Mapping[type, str] = {NoVerdict: "no_verdict", Throttled: "throttled", Refused: "refused"}
_REASONS: Mapping[str, str] = {
    "timeout": "no answer in time",
    "dns": "the name of the API cannot be resolved",
    "connect": "nothing answers at the API's address",
    "tls": "the TLS handshake failed",
    "proxy": "the proxy did not open a connection",
    "connection": "the connection broke off",
    START_EXPIRED: "this process stood still before the call began",
    "not_json": "HTTP 200 from somebody else",
    "unreadable_outcomes": "HTTP 200 without an outcome for each event",
    "contradicting_counters": "HTTP 200 that contradicts itself",
}


class Judged(NamedTuple):
    """What becomes of the events of a call."""

    delivered: Sequence[Run] = ()
    refused: Sequence[tuple[Run, Rejection]] = ()
    """For good."""
    again: Sequence[Batch] = ()
    """Without a verdict."""
    at: float = -inf
    """When these may go again (monotonic)."""


@dataclass(eq=False)
class Answers:
    """Reads answers and applies their verdicts to accounts."""

    _context: Context
    _dispatcher: Dispatcher
    latency: Latency = field(default_factory=Latency)
    # The last 200 that was read: for how many events, its body, and its verdict.
    _read_last: tuple[int, bytes, Verdict] | None = None

    def read(self, batch: Batch, answer: Answered) -> Verdict:
        """Return the verdict of the API's answer to a call with this batch."""
        now, counters = self._context.now, self._context.counters
        counters.bump(counters.answers, str(answer.status))
        counters.calls_answered += 1
        counters.events_answered += batch.events
        counters.bytes_answered += batch.sent_bytes
        gate = self._dispatcher.queue(batch.account).gate
        # Also for an answer without a verdict: its headers, too, say how many calls are left.
        gate.limited(*limit_headers(answer.headers), now.monotonic)
        # Full batches without an error are all answered with the same bytes, and comparing them with the last answer
        # costs far less than parsing tens of kilobytes.
        events = batch.events
        if answer.status != 200 or len(answer.body) > _MAX_REMEMBERED:
            return read_answer(answer.status, answer.headers, answer.body, events, now.unix)
        # With 200, the verdict follows from the number of events and the body alone.
        last = self._read_last
        if last is None or last[:2] != (events, answer.body):
            verdict = read_answer(200, answer.headers, answer.body, events, now.unix)
            last = self._read_last = (events, answer.body, verdict)
        return last[2]

    def apply(self, batch: Batch, verdict: Verdict, answer: Answered) -> Judged:
        """Apply the verdict of an answer to the account. Return what becomes of the events."""
        rid, now = request_id(answer.headers), self._context.now.monotonic
        outcome = _OUTCOMES.get(type(verdict), "verdict")
        self._context.counters.call_ended(outcome, now - batch.sent_at)
        if outcome == "verdict":
            self.latency.add(now - batch.sent_at, now)
        if isinstance(verdict, NoVerdict):
            # An answer that is not in the platform's own form comes from a server in between.
            readable = answer.status == 200 and verdict.reason != "not_json"
            said = None if readable else who_answered(answer.headers, answer.body, b"".join(batch.parts()))
            return self._no_verdict(batch, verdict, said, rid)
        queue = self._dispatcher.queue(batch.account)
        if queue.gate.heard(now, queue.in_flight):
            self._context.report("info", "reachable", account=batch.account)
        if isinstance(verdict, Throttled):
            return self._throttled(batch, verdict.wait, rid)
        if isinstance(verdict, Refused):
            # An outage; the events are not at fault and wait until a probe is accepted (docs/architecture.md, rule 7).
            self._dispatcher.halts.refuse(batch, verdict.status, verdict.code, rid)
            return Judged(again=[batch])
        self._dispatcher.halts.accept(batch)
        queue.gate.judged(now)
        return self._judged(batch, verdict, rid)

    def unanswered(self, batch: Batch, end: Unanswered) -> Judged:
        """Take the end of a call that brought no answer. Return what becomes of its events."""
        self._context.counters.bump(self._context.counters.answers, end.reason)
        now = self._context.now.monotonic
        self._context.counters.call_ended("no_answer", now - batch.sent_at)
        if end.reason == "timeout":
            self.latency.add(now - batch.sent_at, now)
        return self._no_verdict(batch, NoVerdict(end.reason), end.said, request_id(end.headers))

    def _judged(
        self, batch: Batch, verdict: PerEvent | SomeRefused | BatchRefused, rid: str | None
    ) -> Judged:
        events = batch.events
        if isinstance(verdict, PerEvent):
            judged = self._per_event(batch, verdict.outcomes)
        elif isinstance(verdict, SomeRefused):
            judged = self._some_refused(batch, verdict)
        elif not verdict.too_large:
            judged = self._bisect(batch, "refused", verdict.message, rid)
        else:
            # A batch of one event says nothing about how much fits.
            if events > 1:
                self._dispatcher.queue(batch.account).shrink(batch.size, self._context.now.monotonic)
            message = verdict.message or "the API says the event is too large"
            judged = self._bisect(batch, "too_large", message, rid)
        if judged.refused:
            _, first = judged.refused[0]
            self._context.report(
                "warning", "events_refused", account=batch.account, refused=len(judged.refused), events=events,
                code=first.code, message=first.message, request_id=rid,
            )  # fmt: skip
        return judged

    # -- verdicts on events

    def _per_event(self, batch: Batch, outcomes: Sequence[EventOutcome]) -> Judged:
        counters = self._context.counters
        # The fast path: then no event is looked at by itself.
        if outcomes.count(ACCEPTED) == len(outcomes):
            counters.events_processed += len(outcomes)
            return Judged(batch.runs)
        delivered, _ = pick(batch.runs, [outcome.processed for outcome in outcomes])
        refused = []
        for row, outcome in zip(each_of(batch.runs), outcomes, strict=True):
            body = row.block.body(row.first)
            if not outcome.processed:
                refused.append(_refusal(row, outcome.error))
            # By kind, which is the message without the event's values that it repeats: they may be personal.
            if outcome.warning is not None:
                counters.bump(counters.api_warnings, kind(outcome.warning, body))
            if outcome.error is not None:
                counters.bump(counters.api_errors, kind(outcome.error, body))
                counters.processed_with_error += outcome.processed
        counters.events_processed += rows_of(delivered)
        return Judged(delivered, refused)

    def _some_refused(self, batch: Batch, verdict: SomeRefused) -> Judged:
        rows = [*each_of(batch.runs)]
        _, rest = pick(batch.runs, [index in verdict.errors for index in range(len(rows))])
        refused = [_refusal(rows[index], message) for index, message in sorted(verdict.errors.items())]
        # None of the others was processed: the platform refused the call, and named the events at fault.
        again = [replace(batch, number=self._context.number(), runs=rest, failures=0)] if rest else []
        return Judged(refused=refused, again=again)

    def _bisect(self, batch: Batch, code: str, message: str, rid: str | None) -> Judged:
        # A single event is at fault itself. Of several it is not known which one is: the halves will show it.
        if batch.events == 1:
            return Judged(refused=[_refusal(batch.runs[0], message, code)])
        self._context.counters.bisected += 1
        self._context.report(
            "warning", "batch_bisected", account=batch.account, events=batch.events, code=code,
            request_id=rid,
        )  # fmt: skip
        halves = batch.halves(self._context.number(), self._context.number())
        return Judged(again=[replace(half, failures=0) for half in halves])

    # -- no verdict on any event

    def _no_verdict(self, batch: Batch, verdict: NoVerdict, said: str | None, rid: str | None) -> Judged:
        """Have a batch without a verdict wait and retry. `said`: what answered in the platform's place, or why
        nothing did; None: the reason says enough."""
        context, reason = self._context, verdict.reason
        queue, now = self._dispatcher.queue(batch.account), context.now.monotonic
        # A call that did not begin says nothing about the batch or the API: the batch goes again at once.
        failed = reason != START_EXPIRED
        if failed:
            batch.failed(now)
        words = _REASONS.get(reason, reason.replace("http_", "HTTP ").replace("_", " "))
        queue.gate.unjudged(words if said is None else f"{words} ({said})", now, failed=failed)
        context.counters.bump(context.counters.no_verdicts, reason)
        if reason not in _NEVER_LEFT:
            mark_unclear(batch.runs)
        delay = context.policy.delivery_backoff.delay(batch.failures, context.jitter()) if failed else 0.0
        context.report(
            "warning", "no_verdict", account=batch.account, reason=reason, said=said, events=batch.events,
            attempt=batch.attempts, retry_seconds=round(delay, 3), request_id=rid,
        )  # fmt: skip
        suspect = failed and batch.failures >= _SUSPECT_AFTER and queue.gate.judged_at > batch.failing_since
        parts: Sequence[Batch] = [batch]
        if batch.events > 1 and (verdict.too_large or suspect):
            if verdict.too_large:
                queue.shrink(batch.size, now)
            context.counters.bisected += 1
            # Each half is suspected only after failures of its own.
            halves = batch.halves(context.number(), context.number())
            parts = [replace(half, failing_since=now) for half in halves]
        return Judged(again=parts, at=now + delay)

    def _throttled(self, batch: Batch, wait: float | None, rid: str | None) -> Judged:
        context = self._context
        gate = self._dispatcher.queue(batch.account).gate
        gate.postpone_probe(context.now.monotonic)
        batch.failed(context.now.monotonic, blameless=True)  # the quota is used up
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
        return Judged(again=[batch])


def _refusal(row: Run, message: str | None, code: str = "refused") -> tuple[Run, Rejection]:
    """Return an event with the reason why the API refuses it, without its own values."""
    text = mask(message or _NO_REASON, row.block.body(row.first))
    return row, Rejection(Stage.DELIVER, code, text)
