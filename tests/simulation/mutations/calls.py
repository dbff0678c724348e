"""Deliberate bugs in the engine's actions: answers, gates, limits, drains, schemas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.intake.admission import Admission, Fresh, Level, Waited
from consumer.engine.model import Backoff, Instant
from consumer.engine.pipeline import Drain, Pipeline
from consumer.engine.reading import Columns
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.commits import Commits
from consumer.engine.records.runs import Run, cut, each_of, mark_unclear
from consumer.engine.sending import answers, verdicts
from consumer.engine.sending.answers import Answers, Judged
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.gate import Gate, Quota
from consumer.engine.sending.halts import Halts
from consumer.engine.sending.queue import AccountQueue, Batch, BodyParts
from tests.simulation.mutations.mutating import around, mutation, replaced, replaces

# -- answers


@replaces(verdicts, "_read_ok")
def counters_are_not_checked(body: bytes, events: int) -> verdicts.Verdict:
    """The statuses of events are believed whatever the answer's counters say."""
    answer = verdicts._parse(body)
    outcomes = verdicts._outcomes(answer.get("events"), events) if isinstance(answer, dict) else None
    return verdicts.NoVerdict("unreadable_outcomes") if outcomes is None else verdicts.PerEvent(outcomes)


@mutation
def any_success_is_a_success(patch: pytest.MonkeyPatch) -> None:
    """Any 200 means that all events were processed."""
    outcome = verdicts.EventOutcome(True, None, None)
    patch.setattr(verdicts, "_read_ok", lambda _, events: verdicts.PerEvent([outcome] * events))


@mutation
def refused_token_refuses_the_events(patch: pytest.MonkeyPatch) -> None:
    """A 401 refuses the events like any other 4xx (vectordotdev/vector #24543)."""
    read = verdicts.read_answer

    def dropping(status: int, *more: Any) -> verdicts.Verdict:
        return read(400 if status == 401 else status, *more)

    patch.setattr(answers, "read_answer", dropping)


@around(Batch, "halves")
def bisecting_loses_the_odd_event(halves: Any, self: Batch, first: int, second: int) -> Any:
    """Halving a batch of five gives two and two."""
    one, other = halves(self, first, second)
    other.runs, _ = cut(other.runs, one.events)
    return one, other


@replaces(Answers, "_bisect")
def refused_batch_is_refused_whole(
    _: Answers, batch: Batch, code: str, message: str, __: str | None
) -> Judged:
    """One bad event makes dead letters of its whole batch."""
    return Judged(refused=[answers._refusal(row, message, code) for row in each_of(batch.runs)])


# A call that timed out counts as a success.
replaced(
    "unanswered_calls_count_as_delivered", Answers, "unanswered", lambda _, batch, __: Judged(batch.runs)
)
# Only repeats of offline events count as not deduplicated by the platform, even after an hour.
replaced(
    "repeats_in_doubt_are_not_counted", "consumer.engine.sending.dispatcher", "COUNTS_AS_OFFLINE_AFTER", 1e12
)


@mutation
def every_repeat_is_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A repeat counts as in doubt although its call was answered or never left."""
    begin = Dispatcher._begin

    def doubting(self: Dispatcher, queue: AccountQueue, batch: Batch, session: int) -> BodyParts:
        mark_unclear(batch.runs if batch.attempts else ())
        return begin(self, queue, batch, session)

    patch.setattr(Dispatcher, "_begin", doubting)


@around(Batch, "parts")
def events_are_sent_again_under_a_new_id(parts: Any, self: Batch) -> Any:
    """A retry gives its events new ids."""
    if self.attempts <= 1:
        return parts(self)
    return [b"".join(parts(self)).replace(b'"event-', b'"again-')]


@around(Answers, "_per_event")
def outcomes_are_shifted_by_one(
    judge: Any, self: Answers, batch: Batch, outcomes: Sequence[verdicts.EventOutcome]
) -> Any:
    """The outcomes of a batch belong to the wrong events (connect #461)."""
    return judge(self, batch, [*outcomes[1:], *outcomes[:1]])


@around(Answers, "_some_refused")
def the_rest_of_a_refused_batch_counts_as_delivered(
    some: Any, self: Answers, batch: Batch, verdict: verdicts.SomeRefused
) -> Any:
    """A 400 that names the events at fault counts as delivery of the others."""
    judged = some(self, batch, verdict)
    return judged._replace(delivered=[run for rest in judged.again for run in rest.runs], again=())


# A proxy's 400 makes dead letters, and its 403 halts the account.
replaced("a_proxy_s_refusal_is_the_platform_s", verdicts, "_own_words", lambda body, events: {})


@mutation
def a_proxy_s_403_halts(patch: pytest.MonkeyPatch) -> None:
    """Every 401 or 403 counts as a refused token, whoever sent it."""
    read = verdicts.read_answer

    def halting(status: int, *more: Any) -> verdicts.Verdict:
        return verdicts.Refused(status, None) if status in (401, 403) else read(status, *more)

    patch.setattr(answers, "read_answer", halting)


@mutation
def what_is_too_large_for_a_proxy_is_a_dead_letter(patch: pytest.MonkeyPatch) -> None:
    """Every 413 is believed, even for a single event."""
    read = verdicts.read_answer

    def believing(status: int, *more: Any) -> verdicts.Verdict:
        return verdicts.BatchRefused("", too_large=True) if status == 413 else read(status, *more)

    patch.setattr(answers, "read_answer", believing)


# Each batch is halved again until the proxy takes it.
replaced("bodies_stay_as_large_as_they_are", AccountQueue, "shrink", lambda *_: None)
# Every call fails, and the destination counts as reachable.
replaced("no_destination_is_ever_unreachable", Gate, "unreachable_at", lambda _: float("inf"))
# A verdict does not make the destination reachable again.
replaced("unreachable_indefinitely", Gate, "heard", lambda *_: False)


# -- gates and limits


# Retry-After is ignored (connect #1352).
replaced("retry_after_is_ignored", Gate, "close", lambda self, until, by_member=False: self.slow_down())
# Retry-After is understood only as seconds, not as a date.
replaced("retry_after_dates_are_ignored", verdicts, "unix_of", lambda text: 0.0)
# A refused token halts one account; the others meet the refusal themselves.
replaced("refused_token_halts_its_own_account_only", "consumer.engine.sending.halts", "TOKEN_REFUSED", -1)


@around(AccountQueue, "add")
def batches_are_cut_by_count_alone(add: Any, self: AccountQueue, run: Run, now: float) -> None:
    """Batches are cut by count; the limit in bytes is ignored."""
    for row in each_of([run]):
        add(self, row, now)
        self._filling_bytes = 0


# The quota that answers announce is ignored.
replaced("limit_headers_are_ignored", Gate, "limited", lambda *_: None)
# The 5,000 calls a minute are not counted.
replaced("quota_is_ignored", Gate, "_quota_at", lambda self, now: now)


@replaces(Gate, "_quota_at")
def quota_opens_by_rounding(self: Gate, now: float) -> float:
    """The gate opens at the very moment when a call expires, and still counts that call (this simulation found
    the bug)."""
    while self._calls and self._calls[0] <= now - 60.0:
        self._calls.popleft()
    return now if len(self._calls) < self._policy.calls_per_minute else self._calls[0] + 60.0


# Whenever a call may begin, it begins with the few events that are there.
replaced("batches_go_before_they_have_waited", Gate, "filled_at", lambda self, since: since)
# Events that a fetch gathered go at once behind a batch that has just gone, as a call of their own.
replaced(
    "a_batch_begins_to_wait_while_the_one_before_fills",
    AccountQueue,
    "_since",
    property(lambda self: self._oldest),
)
# A batch waits no longer where the quota has few calls.
replaced("small_batches_use_up_the_quota", Quota, "wait", 0.0)


@mutation
def small_batches_use_up_what_the_headers_leave(patch: pytest.MonkeyPatch) -> None:
    """A batch waits no longer where answers say that few calls are left."""
    waits = Gate.filled_at

    def filled_at(self: Gate, since: float) -> float:
        with patch.context() as known:
            known.setattr(self, "_remaining", None)
            return waits(self, since)

    patch.setattr(Gate, "filled_at", filled_at)


@around(Gate, "opens_at")
def probes_ignore_the_throttle(opens: Any, self: Gate, now: float, in_flight: int) -> Any:
    """A halted account is probed while a 429 closes it, and beyond its quota (this simulation found the bug)."""
    if self.halt is not None:
        return now if self.halt.may_probe and not in_flight else None
    return opens(self, now, in_flight)


@replaces(Gate, "opens_at")
def halted_accounts_are_sent_to(self: Gate, now: float, in_flight: int) -> float | None:
    """Every batch of a halted account is sent to find out whether it is still refused."""
    return None if in_flight >= int(self.pace) else max(self.closed_until, self._quota_at(now))


@around(Halts, "due")
def halt_never_ends(due: Any, self: Halts, queue: Any) -> Any:
    """The token is never read again."""
    return (math.inf, *due(self, queue)[1:])


@mutation
def concurrency_is_per_account(patch: pytest.MonkeyPatch) -> None:
    """Each account may have as many calls in flight as the whole process."""

    def send(self: Dispatcher, _: int, __: float, session: int) -> Iterator[tuple[Batch, BodyParts]]:
        for queue in list(self._rotation):
            while queue.in_flight < self._context.policy.concurrency:
                batch = queue.take(self._context.now.monotonic, self._context.number())
                if batch is None:
                    break
                yield batch, self._begin(queue, batch, session)

    patch.setattr(Dispatcher, "send", send)


# Fetching does not look at what is open (parallel-consumer #832).
replaced("room_ignores_what_is_open", Pipeline, "room", lambda self: self.policy.max_open_events)
# The budget counts events and not bytes.
replaced("room_ignores_bytes", Pipeline, "room", lambda self: self.policy.max_open_events - self.ledger.open)
# Records are taken in although they exceed the budget in bytes.
replaced("all_that_is_fetched_is_read", Admission, "_fitting", lambda _, columns, *__: len(columns))


@around(Admission, "purge")
def held_records_outlive_their_assignment(purge: Any, self: Admission) -> Any:
    """Records that wait for room are read although their partition has another owner."""
    held = self._held
    gone, _ = purge(self)
    self._held = held
    return gone, 0


@around(Admission, "take")
def deferred_records_are_forgotten(
    take: Any, self: Admission, piece: Fresh | Waited, columns: Columns, level: Level
) -> Any:
    """Records are forgotten whose schema came when there was no room."""
    taken = take(self, piece, columns, level)
    self._deferred.clear()
    return taken


# -- absence


@around(Commits, "notice_absence")
def an_absence_goes_unnoticed(original: Any, self: Commits, now: Instant) -> None:
    """A process that stood still goes on sending, although its partitions have other owners."""
    original(self, now)
    for state in self._ledger:
        state.proven = True


@around(Commits, "notice_absence")
def a_commit_from_before_the_absence_is_proof(original: Any, self: Commits, now: Instant) -> None:
    """The answer to a commit that was sent before the absence counts as proof of ownership."""
    original(self, now)
    self._proves = True


@around(Commits, "done")
def a_failed_commit_is_proof(done: Any, self: Commits, happened: messages.CommitDone) -> None:
    """Any answer to a commit counts as proof of ownership."""
    done(self, happened)
    for state in self._ledger:
        state.proven = True


@around(Pipeline, "_go_on")
def letters_need_no_proof(go_on: Any, self: Pipeline) -> None:
    """After an absence dead letters are written without proof of ownership."""
    self.steps.write_letters()
    go_on(self)


@mutation
def what_is_not_remembered_yet_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Delivered events whose keys are not stored yet do not count: after a crash far more than concurrency x
    batch are repeated."""

    def may(self: Dispatcher, *_: float) -> bool:
        return len(self._in_flight) < self._context.policy.concurrency

    patch.setattr(Dispatcher, "_may_risk", may)


# Retries begin without a pause (connect #435).
replaced("no_backoff", Backoff, "delay", lambda *_: 0.001)


# -- drains


@replaces(Pipeline, "_end_drains")
def deadlines_are_ignored(self: Pipeline) -> None:
    """A drain waits indefinitely (scality/backbeat PR 2818)."""
    for drain in [one for one in self._drains if not self._busy(one.states)]:
        self._drains.remove(drain)
        self._finish(drain, False)


# A drain does not wait for calls in flight.
replaced("drains_do_not_wait", Pipeline, "_busy", lambda self, states: False)


@mutation
def drains_do_not_wait_for_claims_of_others(patch: pytest.MonkeyPatch) -> None:
    """A drain waits for records in flight, but not for keys that are being stored."""

    def busy(self: Pipeline, states: list[AssignmentState]) -> bool:
        return any(run.block.assignment in states for run in self.dispatcher.in_flight())

    patch.setattr(Pipeline, "_busy", busy)


# Queued events are sent during a drain (getsentry/launchpad PR 512).
replaced("queued_work_starts_while_draining", Run, "accepted", property(lambda self: self.ours))


@replaces(Pipeline, "_finish")
def released_partitions_are_not_dropped(self: Pipeline, drain: Drain, late: bool) -> None:
    """The release is answered, but the partition is kept."""
    positions = self.ledger.final_positions(drain.states)
    for state in drain.states:
        state.draining = False
    if drain.number is None:
        self.context.emit(messages.Stop(positions, not late))
    else:
        self.context.emit(messages.Release(drain.number, positions))


@around(AccountQueue, "purge")
def purge_forgets_retries(purge: Any, self: AccountQueue, *stays: Callable[[Run], bool]) -> Any:
    """Batches that wait for a retry survive their assignment."""
    again, self.again = self.again, []
    gone = purge(self, *stays)
    self.again = again
    return gone
