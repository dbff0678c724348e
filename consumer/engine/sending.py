"""Which batch goes next: the queues of all ad accounts, the batches in flight, and the halts of accounts.

Theory of operation. Each account has a queue of batches and a gate (`account`). `Dispatcher.send` hands out
batches until the concurrency of the process is used or nothing may go, going round the accounts so that a busy one does
not starve the others; a closed gate costs the others nothing (rudder-server #4953).

`account` has the rule of when a batch goes. `verdicts` says what an answer means.

*Halts.* A refused token concerns every account that uses it, a refused account only itself. `Halts` closes
the gates concerned, has the token read again before each probe, and ends the halt with the first probe that is
accepted; where patience runs out, it gives up.

*Notes.* A 429 or a refusal concerns every member, not only the one that received it: a 429 an ad account, a refused
token all accounts, a refused account itself. That member writes a note into the shared store. The others read it when
they renew their lease, each second, and close their gates for the same time, or halt as if they had been refused.

A note acts once on each member, and expires. What ends a halt is the member's own probe, so a note never keeps a member
halted whose token is accepted: and if a probe shows that a note was wrong here (the members' tokens differ, or one has
read the corrected token later), notes of refusals do not halt that account again for `_DOUBT` seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Final

from consumer.engine.account import TOKEN_REFUSED, AccountQueue, Batch, Gate, Quota
from consumer.engine.block import RecordStage, Run, each_of, move_all, rows_of
from consumer.engine.context import Context
from consumer.engine.messages import AskCalls, CallsGiven, GiveUp, ReadToken, Send, TellNote
from consumer.engine.model import THROTTLED, Note, Policy, trace_parents
from consumer.engine.reading import COUNTED, OFFLINE, UNCLEAR
from consumer.errors import bug

# Seconds for which a refusal is announced to other members: they renew their leases each second.
_TELL_FOR: Final = 60.0
# Seconds by which a throttle must last longer than the one in the last note to have a note of its own.
_WORTH_TELLING: Final = 1.0
# Seconds for which an account ignores notes of refusals, after its own probe has shown that one was wrong.
_DOUBT: Final = 600.0
# Marks of events that were sent without a known outcome, and are not counted yet.
_UNCLEAR = re.compile(
    b"[%b]" % b"".join(b"\\x%02x" % mark for mark in range(256) if mark & (UNCLEAR | COUNTED) == UNCLEAR)
)
# Seconds after which a web or app event counts as offline when the platform receives it (DOC).
COUNTS_AS_OFFLINE_AFTER = 3600.0


def is_of_all(status: int, policy: Policy) -> bool:
    """Return True if a refusal with this status concerns the one token that all accounts share."""
    return status == TOKEN_REFUSED and not policy.token_by_account


class Halts:
    """Refused tokens and accounts, accounts without verdicts, and notes to and from other members."""

    def __init__(self, context: Context, queues: Mapping[str, AccountQueue]) -> None:
        """`queues`: by account; the dispatcher adds more."""
        self._context = context
        self._queues = queues
        # Whether the run was given up already.
        self.gave_up = False
        # By account, until when the throttle in the last note lasts.
        self._told_until: dict[str, float] = {}
        # Until when notes of a refused token are ignored.
        self._doubts_until = 0.0
        # The names of the notes that were applied: each acts once.
        self._applied: frozenset[str] = frozenset()
        # Notes for this destination, as last read, and when each expires (monotonic).
        self._notes: Sequence[tuple[float, Note]] = ()

    # -- what our own calls bring

    def refuse(self, batch: Batch, status: int, code: int | None, rid: str | None) -> None:
        """Halt the accounts that a refused token or account concerns, and report each new halt.

        Calls that were in flight when a halt began bring the same refusal once more; only a probe brings a new one.
        """
        own, now = self._queues[batch.account], self._context.now.monotonic
        of_all = is_of_all(status, self._context.policy)
        probed = own.gate.halt if batch.probe else None
        if batch.probe:
            own.gate.refuse_again(status, code, now, self._context.jitter())
        elif own.gate.halt is None:
            # An empty account stands for all of them.
            self._tell("" if of_all else own.account, status, code, _TELL_FOR)
        for queue in self._queues.values() if of_all else (own,):
            halt = queue.gate.halt
            if halt is None:
                self._halt(queue, status, code, rid)
                continue
            halt.may_probe = False
            # Where one probe found the shared token refused, the other accounts need not probe as well.
            if probed is not None and halt.status == TOKEN_REFUSED:
                halt.probe_at = probed.probe_at

    def _halt(
        self, queue: AccountQueue, status: int, code: int | None, rid: str | None, *, by_member: bool = False
    ) -> None:
        """Halt an account, unless it is halted already, and report it; `by_member`: another member met the refusal."""
        halt = queue.gate.refuse(status, code, self._context.now.monotonic, by_member=by_member)
        if halt is not None:
            self._context.report(
                "error", "halted", account=queue.account, status=status, code=code, reason=halt.reason,
                request_id=rid,
            )  # fmt: skip

    def accept(self, batch: Batch) -> None:
        """End halts after a probe was accepted, which was sent with the present token: the halt of its account,
        and of all accounts that share a refused token. Other accepted calls prove nothing."""
        if not batch.probe:
            return
        own = self._queues[batch.account]
        for queue in self._queues.values():
            gate, halt = queue.gate, queue.gate.halt
            if halt is None or not (queue is own or is_of_all(halt.status, self._context.policy)):
                continue
            # Earlier notes do not count any more; and if a note was wrong here, none counts for a while.
            until = self._context.now.monotonic + (_DOUBT if halt.by_member else _TELL_FOR)
            gate.doubts_until = max(gate.doubts_until, until)
            if is_of_all(halt.status, self._context.policy):
                self._doubts_until = max(self._doubts_until, until)
            gate.halt = None
            self._context.report("info", "resumed", account=queue.account)

    def throttled(self, account: str, wait: float) -> None:
        """Tell the other members that this account takes no calls for `wait` seconds."""
        until = self._context.now.monotonic + wait
        # Several calls in flight bring the same answer.
        if until >= self._told_until.get(account, 0.0) + _WORTH_TELLING:
            self._told_until[account] = until
            self._tell(account, THROTTLED, None, wait)

    def _tell(self, account: str, status: int, code: int | None, seconds: float) -> None:
        # Without a shared key store there is no place for a note.
        if self._context.policy.lease > 0:
            destination = self._context.policy.destination or ""
            self._context.emit(TellNote(Note(destination, account, status, code, seconds)))

    def token_read(self, changed: bool) -> None:
        """Let accounts probe that waited for the token to be read again."""
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and halt.reading_token:
                halt.reading_token = False
                halt.may_probe = True
                # With a new token the delay between probes begins again at its shortest.
                halt.refusals = 1 if changed else halt.refusals

    # -- what time brings

    def due(self, queue: AccountQueue) -> tuple[float, float, float]:
        """Return when to read the token for a probe, to give up, and to report that the account is unreachable
        (monotonic); infinite: not before an input changes that."""
        gate, halt, patience = queue.gate, queue.gate.halt, self._context.policy.halt_patience
        if halt is None:
            return inf, inf, inf if gate.silence_is_logged else gate.unreachable_at()
        probes = not (halt.reading_token or halt.may_probe or queue.in_flight)
        # Patience runs while events wait: an account without any may be refused for days.
        loses_patience = patience and not self.gave_up and (queue.queued or queue.in_flight)
        return halt.probe_at if probes else inf, halt.waiting_since + patience if loses_patience else inf, inf

    def go_on(self) -> None:
        """Do what is due: have the token read, give up, report that an account is unreachable."""
        now, reading = self._context.now.monotonic, False
        for queue in self._queues.values():
            gate, halt = queue.gate, queue.gate.halt
            if not queue.queued and not queue.in_flight:
                # Whether a call would succeed is not known any more.
                gate.silent_since, gate.silence_is_logged = None, False
                if halt is not None:
                    halt.waiting_since = now
            probe, give_up, silent = self.due(queue)
            if halt is not None and give_up <= now:
                self.gave_up = True
                patience = self._context.policy.halt_patience
                self._context.emit(GiveUp(f"ad account {queue.account}: {halt.reason} for {patience:.0f} s"))
            if halt is not None and probe <= now:
                halt.reading_token = reading = True
            if silent <= now:
                gate.silence_is_logged = True
                self._context.report("error", "unreachable", account=queue.account, reason=gate.reason)
        if reading:
            self._context.emit(ReadToken())

    # -- what others have met

    def share(self, queue: AccountQueue) -> None:
        """Apply to the queue of a new account what holds already: notes, and a halt of the shared token."""
        # Notes that came before the first event of this account.
        for until, note in self._notes:
            self._apply(note, until, queue)
        for other in self._queues.values():
            halt = other.gate.halt
            if halt is not None and is_of_all(halt.status, self._context.policy):
                queue.gate.refuse(halt.status, halt.code, self._context.now.monotonic)
                return

    def apply(self, notes: Sequence[Note]) -> None:
        """Apply the notes of the store that are new."""
        now, destination = self._context.now.monotonic, self._context.policy.destination or ""
        ours = [one for one in notes if one.destination == destination]
        new = [one for one in ours if one.name not in self._applied]
        self._applied = frozenset(one.name for one in ours)
        self._notes = [(now + one.seconds, one) for one in ours]
        for queue in self._queues.values() if new else ():
            for note in new:
                self._apply(note, now + note.seconds, queue)

    def _apply(self, note: Note, until: float, queue: AccountQueue) -> None:
        """Close an account's gate, or halt it, as a note says that expires at `until` (monotonic)."""
        now, account, gate = self._context.now.monotonic, queue.account, queue.gate
        if note.account not in ("", account) or until <= now:
            return
        if note.status != THROTTLED:
            if now >= (gate.doubts_until if note.account else self._doubts_until):
                self._halt(queue, note.status, note.code, None, by_member=True)
            return
        until = min(until, now + self._context.policy.throttle_cap)
        if until > gate.closed_until:
            gate.close(until, by_member=True)
            wait = round(until - now, 3)
            self._context.report("warning", "throttled", account=account, wait_seconds=wait, request_id=None)


class Dispatcher:
    """The queues of all accounts, in a rotation, and the batches in flight by number."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queues: dict[str, AccountQueue] = {}
        # A queue that has just sent moves to the end. (`_queues` keeps its order, in which accounts are shown.)
        self._rotation: list[AccountQueue] = []
        self._in_flight: dict[int, Batch] = {}
        self.halts = Halts(context, self._queues)
        self.quota = Quota(context.policy)
        # Delivered events whose keys are not durable yet, as of the last call of `send`.
        self._unremembered = 0
        # The session in a shared key store that has claimed the queued events; see `consumer.engine.claims`.
        self.session = 0
        # Until when (monotonic) its claims are known to hold.
        self.lease_until = math.inf

    def __iter__(self) -> Iterator[AccountQueue]:
        return iter(self._queues.values())

    def queue(self, account: str) -> AccountQueue:
        """Return the account's queue, which is made when the account's first event comes."""
        queue = self._queues.get(account)
        if queue is None:
            queue = AccountQueue(account, self._context.policy, Gate(self._context.policy, self.quota))
            self.halts.share(queue)
            self._queues[account] = queue
            self._rotation.append(queue)
        return queue

    def in_flight(self) -> Iterator[Run]:
        """Yield the events in calls that are not answered yet."""
        for batch in self._in_flight.values():
            yield from batch.runs

    def send(self, unremembered: int) -> None:
        """Emit `Send` for each batch that may go now.

        `unremembered`: delivered events whose keys are not durable yet. A crash makes us send them and the events in
        flight again, so together they never exceed concurrency x batch.
        """
        self._unremembered = unremembered
        # A round gives each account one batch at most.
        while len(self._in_flight) < self._context.policy.concurrency:
            sent = [self._send_one(queue) for queue in list(self._rotation) if queue.queued]
            if not any(sent):
                return

    def answered(self, number: int) -> Batch:
        """Return the batch of a call that has ended; it is no longer in flight."""
        batch = self._in_flight.pop(number, None)
        if batch is None:
            raise bug(f"an answer came for call {number}, which is not in flight")
        self._queues[batch.account].in_flight -= 1
        return batch

    def due(self) -> float | None:
        """Return when something here is due next (monotonic); None: only an answer or a new event changes that."""
        now, may_risk, first = self._context.now.monotonic, self._may_risk(), math.inf
        for queue in self._queues.values():
            if queue.is_idle:
                continue
            first = min(first, *self.halts.due(queue))
            # While too much is at risk, only an answer or a stored key allows a call, and both are inputs.
            ready, opens = queue.due(), queue.gate.opens_at(now, queue.in_flight)
            if ready is not None and opens is not None and may_risk:
                first = min(first, max(ready, opens))
        return None if first == math.inf else first

    # -- one account

    def _send_one(self, queue: AccountQueue) -> bool:
        now = self._context.now.monotonic
        opens = queue.gate.opens_at(now, queue.in_flight)
        if not self._may_risk() or opens is None or opens > now:
            return False
        if not queue.gate.allowance.given(now):
            self._ask_for_calls(queue)
            return False
        batch = queue.take(now, self._context.number())
        if batch is None:
            return False
        self._emit(queue, batch)
        self._rotation.remove(queue)
        self._rotation.append(queue)
        return True

    def _ask_for_calls(self, queue: AccountQueue) -> None:
        """Ask the shared key store for the calls that could begin now: unused calls are lost to all members."""
        context, policy = self._context, self._context.policy
        now = context.now.monotonic
        free = min(policy.concurrency - len(self._in_flight), int(queue.gate.pace) - queue.in_flight)
        calls = min(queue.takeable(now), free if queue.gate.halt is None else 1)
        if not calls:
            return
        number, allowance = context.number(), queue.gate.allowance
        allowance.asked, allowance.asked_at = number, now
        whose = policy.destination or "", queue.account
        context.emit(AskCalls(number, *whose, calls, policy.calls_per_minute, allowance.seconds))

    def calls_given(self, number: int, account: str, given: CallsGiven | None) -> None:
        """Take the shared key store's answer to the question `number` for calls; None: it did not answer."""
        context = self._context
        now, allowance = context.now.monotonic, self._queues[account].gate.allowance
        if allowance.asked != number:
            raise bug(f"question {number} for calls was answered but not asked")
        if given is not None:
            allowance.answered(given.calls, given.wait, now)
            return
        # Without an answer no call goes: the members' calls together must stay within the quota.
        allowance.failures += 1
        context.counters.failures["key_store_quota"] += 1
        delay = context.policy.inner_backoff.delay(allowance.failures, 0.5 + context.jitter() / 2)
        allowance.asked, allowance.ask_at = None, now + delay

    def _may_risk(self) -> bool:
        """Return True if one more full batch may be sent: not too many events lack a durable key, and its
        claims hold until it is answered."""
        policy = self._context.policy
        if self._context.now.monotonic + policy.call_timeout > self.lease_until:
            return False
        at_risk = self._unremembered + rows_of(self.in_flight())
        return (
            len(self._in_flight) < policy.concurrency
            and at_risk + policy.batch_events <= policy.concurrency * policy.batch_events
        )

    def _emit(self, queue: AccountQueue, batch: Batch) -> None:
        context = self._context
        batch.attempts += 1
        # Only the answer to a probe concerns the present token: calls in flight were sent with the one before.
        batch.probe = queue.gate.halt is not None
        queue.in_flight += 1
        queue.gate.called(context.now.monotonic)
        self._in_flight[batch.number] = batch
        move_all(batch.runs, RecordStage.IN_FLIGHT)
        batch.sent_at, batch.session = context.now.monotonic, self.session
        parts, events = batch.parts(), batch.events
        batch.sent_bytes = sum(map(len, parts))
        context.counters.calls += 1
        context.counters.bytes_sent += batch.sent_bytes
        context.counters.events_sent += events
        self._count_unclear(batch)
        links = context.policy.trace_links
        records = (record for block, first, end in batch.runs for record in block.records[first:end])
        parents = trace_parents(records, links) if links else ()
        # A process that stood still since now may have lost the partition. And the answer must come while the claims
        # hold (`consumer.engine.claims`). The shell checks both once more.
        begin_by = min(
            context.now.monotonic + context.policy.away, self.lease_until - context.policy.call_timeout
        )
        context.emit(Send(batch.number, batch.account, parts, events, batch.attempts, parents, begin_by))

    def _count_unclear(self, batch: Batch) -> None:
        """Count, once, each event that is sent again although it may have arrived, and that the platform may
        count twice.

        The platform drops doubles of web and app events only, and an event that reaches it more than an hour after it
        happened counts as an offline event.
        """
        counters, since = self._context.counters, self._context.now.unix - COUNTS_AS_OFFLINE_AFTER
        # In any attempt: events that were claimed again begin in another batch.
        runs = [run for run in batch.runs if _UNCLEAR.search(run.block.marks, run.first, run.end)]
        for block, index, _ in each_of(runs):
            marks = block.marks[index]
            if marks & (UNCLEAR | COUNTED) == UNCLEAR and (marks & OFFLINE or block.times[index] < since):
                block.marks[index] |= COUNTED
                counters.unclear_repeats += 1
                counters.unclear_offline += marks & OFFLINE
