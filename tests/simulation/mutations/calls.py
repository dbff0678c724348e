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
from tests.simulation.mutations.mutating import mutation

# -- answers


@mutation
def counters_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """The statuses of events are believed whatever the answer's counters say."""

    def read(body: bytes, events: int) -> verdicts.Verdict:
        answer = verdicts._parse(body)
        outcomes = verdicts._outcomes(answer.get("events"), events) if isinstance(answer, dict) else None
        return verdicts.NoVerdict("unreadable_outcomes") if outcomes is None else verdicts.PerEvent(outcomes)

    patch.setattr(verdicts, "_read_ok", read)


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


@mutation
def bisecting_loses_the_odd_event(patch: pytest.MonkeyPatch) -> None:
    """Halving a batch of five gives two and two."""

    halves = Batch.halves

    def uneven(self: Batch, first: int, second: int) -> tuple[Batch, Batch]:
        one, other = halves(self, first, second)
        other.runs, _ = cut(other.runs, one.events)
        return one, other

    patch.setattr(Batch, "halves", uneven)


@mutation
def refused_batch_is_refused_whole(patch: pytest.MonkeyPatch) -> None:
    """One bad event makes dead letters of its whole batch."""

    def bisect(_: Answers, batch: Batch, code: str, message: str, __: str | None) -> Judged:
        return Judged(refused=[answers._refusal(row, message, code) for row in each_of(batch.runs)])

    patch.setattr(Answers, "_bisect", bisect)


@mutation
def unanswered_calls_count_as_delivered(patch: pytest.MonkeyPatch) -> None:
    """A call that timed out counts as a success."""

    patch.setattr(Answers, "unanswered", lambda _, batch, __: Judged(batch.runs))


@mutation
def repeats_in_doubt_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Only repeats of offline events count as not deduplicated by the platform, even after an hour."""
    patch.setattr("consumer.engine.sending.dispatcher.COUNTS_AS_OFFLINE_AFTER", 1e12)


@mutation
def every_repeat_is_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A repeat counts as in doubt although its call was answered or never left."""
    begin = Dispatcher._begin

    def doubting(self: Dispatcher, queue: AccountQueue, batch: Batch, session: int) -> BodyParts:
        mark_unclear(batch.runs if batch.attempts else ())
        return begin(self, queue, batch, session)

    patch.setattr(Dispatcher, "_begin", doubting)


@mutation
def events_are_sent_anew_under_a_new_id(patch: pytest.MonkeyPatch) -> None:
    """A retry gives its events new ids."""
    parts = Batch.parts

    def renamed(self: Batch) -> Sequence[bytes | memoryview]:
        if self.attempts <= 1:
            return parts(self)
        return [b"".join(parts(self)).replace(b'"event-', b'"again-')]

    patch.setattr(Batch, "parts", renamed)


@mutation
def outcomes_are_shifted_by_one(patch: pytest.MonkeyPatch) -> None:
    """The outcomes of a batch belong to the wrong events (connect #461)."""
    judge = Answers._per_event

    def shifted(self: Answers, batch: Batch, outcomes: Sequence[verdicts.EventOutcome]) -> Judged:
        return judge(self, batch, [*outcomes[1:], *outcomes[:1]])

    patch.setattr(Answers, "_per_event", shifted)


@mutation
def the_rest_of_a_refused_batch_counts_as_delivered(patch: pytest.MonkeyPatch) -> None:
    """A 400 that names the events at fault counts as delivery of the others."""
    some = Answers._some_refused

    def optimist(self: Answers, batch: Batch, verdict: verdicts.SomeRefused) -> Judged:
        judged = some(self, batch, verdict)
        return judged._replace(delivered=[run for rest in judged.again for run in rest.runs], again=())

    patch.setattr(Answers, "_some_refused", optimist)


@mutation
def a_proxy_s_refusal_is_the_platform_s(patch: pytest.MonkeyPatch) -> None:
    """A proxy's 400 makes dead letters, and its 403 halts the account."""
    patch.setattr(verdicts, "_own_words", lambda body, events: {})


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


@mutation
def bodies_stay_as_large_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Each batch is halved again until the proxy takes it."""
    patch.setattr(AccountQueue, "shrink", lambda *_: None)


@mutation
def no_destination_is_ever_unreachable(patch: pytest.MonkeyPatch) -> None:
    """Every call fails, and the destination counts as reachable."""
    patch.setattr(Gate, "unreachable_at", lambda _: float("inf"))


@mutation
def unreachable_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A verdict does not make the destination reachable again."""
    patch.setattr(Gate, "heard", lambda *_: False)


# -- gates and limits


@mutation
def retry_after_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """Retry-After is ignored (connect #1352)."""
    patch.setattr(Gate, "close", lambda self, until, by_member=False: self.slow_down())


@mutation
def retry_after_dates_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """Retry-After is understood only as seconds, not as a date."""
    patch.setattr(verdicts, "unix_of", lambda text: 0.0)


@mutation
def refused_token_halts_its_own_account_only(patch: pytest.MonkeyPatch) -> None:
    """A refused token halts one account; the others meet the refusal themselves."""
    patch.setattr("consumer.engine.sending.halts.TOKEN_REFUSED", -1)


@mutation
def batches_are_cut_by_count_alone(patch: pytest.MonkeyPatch) -> None:
    """Batches are cut by count; the limit in bytes is ignored."""
    add = AccountQueue.add

    def blind(self: AccountQueue, run: Run, now: float) -> None:
        for row in each_of([run]):
            add(self, row, now)
            self._filling_bytes = 0

    patch.setattr(AccountQueue, "add", blind)


@mutation
def limit_headers_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """The quota that answers announce is ignored."""
    patch.setattr(Gate, "limited", lambda *_: None)


@mutation
def quota_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """The 5,000 calls a minute are not counted."""
    patch.setattr(Gate, "_quota_at", lambda self, now: now)


@mutation
def quota_opens_by_rounding(patch: pytest.MonkeyPatch) -> None:
    """The gate opens at the very moment when a call expires, and still counts that call (this simulation found
    the bug)."""

    def quota_at(self: Gate, now: float) -> float:
        while self._calls and self._calls[0] <= now - 60.0:
            self._calls.popleft()
        return now if len(self._calls) < self._policy.calls_per_minute else self._calls[0] + 60.0

    patch.setattr(Gate, "_quota_at", quota_at)


@mutation
def batches_go_before_they_have_waited(patch: pytest.MonkeyPatch) -> None:
    """Whenever a call may begin, it begins with the few events that are there."""
    patch.setattr(Gate, "filled_at", lambda self, since: since)


@mutation
def a_batch_begins_to_wait_while_the_one_before_fills(patch: pytest.MonkeyPatch) -> None:
    """Events that a fetch gathered go at once behind a batch that has just gone, as a call of their own."""
    patch.setattr(AccountQueue, "_since", property(lambda self: self._oldest))


@mutation
def small_batches_use_up_the_quota(patch: pytest.MonkeyPatch) -> None:
    """A batch waits no longer where the quota has few calls."""
    patch.setattr(Quota, "wait", 0.0)


@mutation
def small_batches_use_up_what_the_headers_leave(patch: pytest.MonkeyPatch) -> None:
    """A batch waits no longer where answers say that few calls are left."""
    waits = Gate.filled_at

    def filled_at(self: Gate, since: float) -> float:
        with patch.context() as known:
            known.setattr(self, "_remaining", None)
            return waits(self, since)

    patch.setattr(Gate, "filled_at", filled_at)


@mutation
def probes_ignore_the_throttle(patch: pytest.MonkeyPatch) -> None:
    """A halted account is probed while a 429 closes it, and beyond its quota (this simulation found the bug)."""
    opens = Gate.opens_at

    def opens_at(self: Gate, now: float, in_flight: int) -> float | None:
        if self.halt is not None:
            return now if self.halt.may_probe and not in_flight else None
        return opens(self, now, in_flight)

    patch.setattr(Gate, "opens_at", opens_at)


@mutation
def halted_accounts_are_sent_to(patch: pytest.MonkeyPatch) -> None:
    """Every batch of a halted account is sent to find out whether it is still refused."""

    def opens(self: Gate, now: float, in_flight: int) -> float | None:
        return None if in_flight >= int(self.pace) else max(self.closed_until, self._quota_at(now))

    patch.setattr(Gate, "opens_at", opens)


@mutation
def halt_never_ends(patch: pytest.MonkeyPatch) -> None:
    """The token is never read again."""
    due = Halts.due
    patch.setattr(Halts, "due", lambda self, queue: (math.inf, *due(self, queue)[1:]))


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


@mutation
def room_ignores_what_is_open(patch: pytest.MonkeyPatch) -> None:
    """Fetching does not look at what is open (parallel-consumer #832)."""
    patch.setattr(Pipeline, "room", lambda self: self.policy.max_open_events)


@mutation
def room_ignores_bytes(patch: pytest.MonkeyPatch) -> None:
    """The budget counts events and not bytes."""
    patch.setattr(Pipeline, "room", lambda self: self.policy.max_open_events - self.ledger.open)


@mutation
def all_that_is_fetched_is_read(patch: pytest.MonkeyPatch) -> None:
    """Records are taken in although they exceed the budget in bytes."""
    patch.setattr(Admission, "_fitting", lambda _, columns, *__: len(columns))


@mutation
def held_records_outlive_their_assignment(patch: pytest.MonkeyPatch) -> None:
    """Records that wait for room are read although their partition has another owner."""
    purge = Admission.purge

    def keeping(self: Admission) -> tuple[Sequence[Run], int]:
        held = self._held
        gone, _ = purge(self)
        self._held = held
        return gone, 0

    patch.setattr(Admission, "purge", keeping)


@mutation
def deferred_records_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Records are forgotten whose schema came when there was no room."""
    take = Admission.take

    def once(self: Admission, piece: Fresh | Waited, columns: Columns, level: Level) -> int:
        taken = take(self, piece, columns, level)
        self._deferred.clear()
        return taken

    patch.setattr(Admission, "take", once)


# -- absence


@mutation
def an_absence_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """A process that stood still goes on sending, although its partitions have other owners."""
    original = Commits.notice_absence

    def unmoved(self: Commits, now: Instant) -> None:
        original(self, now)
        for state in self._ledger:
            state.proven = True

    patch.setattr(Commits, "notice_absence", unmoved)


@mutation
def a_commit_from_before_the_absence_is_proof(patch: pytest.MonkeyPatch) -> None:
    """The answer to a commit that was sent before the absence counts as proof of ownership."""
    original = Commits.notice_absence

    def believing(self: Commits, now: Instant) -> None:
        original(self, now)
        self._proves = True

    patch.setattr(Commits, "notice_absence", believing)


@mutation
def a_failed_commit_is_proof(patch: pytest.MonkeyPatch) -> None:
    """Any answer to a commit counts as proof of ownership."""
    done = Commits.done

    def easily(self: Commits, happened: messages.CommitDone) -> None:
        done(self, happened)
        for state in self._ledger:
            state.proven = True

    patch.setattr(Commits, "done", easily)


@mutation
def letters_need_no_proof(patch: pytest.MonkeyPatch) -> None:
    """After an absence dead letters are written without proof of ownership."""
    go_on = Pipeline._go_on

    def early(self: Pipeline) -> None:
        self.steps.write_letters()
        go_on(self)

    patch.setattr(Pipeline, "_go_on", early)


@mutation
def what_is_not_remembered_yet_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Delivered events whose keys are not stored yet do not count: after a crash far more than concurrency x
    batch are repeated."""

    def may(self: Dispatcher, *_: float) -> bool:
        return len(self._in_flight) < self._context.policy.concurrency

    patch.setattr(Dispatcher, "_may_risk", may)


@mutation
def no_backoff(patch: pytest.MonkeyPatch) -> None:
    """Retries begin without a pause (connect #435)."""
    patch.setattr(Backoff, "delay", lambda *_: 0.001)


# -- drains


@mutation
def deadlines_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A drain waits for ever (scality/backbeat PR 2818)."""

    def end(self: Pipeline) -> None:
        for drain in [one for one in self._drains if not self._busy(one.states)]:
            self._drains.remove(drain)
            self._finish(drain, False)

    patch.setattr(Pipeline, "_end_drains", end)


@mutation
def drains_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A drain does not wait for calls in flight."""
    patch.setattr(Pipeline, "_busy", lambda self, states: False)


@mutation
def drains_do_not_wait_for_leaders_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """A drain waits for records in flight, but not for keys that are being stored."""

    def busy(self: Pipeline, states: list[AssignmentState]) -> bool:
        return any(run.block.assignment in states for run in self.dispatcher.in_flight())

    patch.setattr(Pipeline, "_busy", busy)


@mutation
def queued_work_starts_while_draining(patch: pytest.MonkeyPatch) -> None:
    """Queued events are sent during a drain (getsentry/launchpad PR 512)."""
    patch.setattr(Run, "accepted", property(lambda self: self.ours))


@mutation
def released_partitions_are_not_dropped(patch: pytest.MonkeyPatch) -> None:
    """The release is answered, but the partition is kept."""

    def finish(self: Pipeline, drain: Drain, late: bool) -> None:
        positions = self.ledger.final_positions(drain.states)
        for state in drain.states:
            state.draining = False
        if drain.number is None:
            self.context.emit(messages.Stop(positions, not late))
        else:
            self.context.emit(messages.Release(drain.number, positions))

    patch.setattr(Pipeline, "_finish", finish)


@mutation
def purge_forgets_retries(patch: pytest.MonkeyPatch) -> None:
    """Batches that wait for a retry survive their assignment."""
    purge = AccountQueue.purge

    def partly(self: AccountQueue, *stays: Callable[[Run], bool]) -> list[Run]:
        again, self.again = self.again, []
        gone = purge(self, *stays)
        self.again = again
        return gone

    patch.setattr(AccountQueue, "purge", partly)
