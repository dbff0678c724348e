"""Which batch goes next: the queues of all ad accounts, and the batches in flight.

Theory of operation. Each account has a queue of batches (`queues`) and a gate (`gate`). `Dispatcher.send` hands out
batches until the concurrency of the process is used or nothing may go, going round the accounts so that a busy one does
not starve the others; a closed gate costs the others nothing (rudder-server #4953).

A batch that is neither full nor has lingered goes early if its call takes nothing from other batches
(`Dispatcher._early_at`): waiting gains nothing where events are few. While calls are in flight, or the quota is scarce,
it fills, so that more events go in fewer calls. `verdicts` says what an answer means; `halts` says what a refusal of a
token or an account means for other accounts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from consumer.engine.block import RecordStage, Run
from consumer.engine.context import Context
from consumer.engine.messages import AskCalls, CallsGiven, Send
from consumer.engine.model import trace_parents
from consumer.engine.reading import COUNTED, OFFLINE, UNCLEAR
from consumer.engine.runs import each_of, move_all, rows_of
from consumer.engine.sending.gate import Gate, Quota
from consumer.engine.sending.halts import Halts
from consumer.engine.sending.queues import AccountQueue, Batch
from consumer.errors import bug

# Marks of events that were sent without a known outcome, and are not counted yet.
_UNCLEAR = re.compile(
    b"[%b]" % b"".join(b"\\x%02x" % mark for mark in range(256) if mark & (UNCLEAR | COUNTED) == UNCLEAR)
)
# Seconds after which a web or app event counts as offline when the platform receives it (DOC).
COUNTS_AS_OFFLINE_AFTER = 3600.0


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
        # The session in a shared key store that has claimed the queued events; see `consumer.engine.keys`.
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
            sent = [self._send_one(queue) for queue in list(self._rotation)]
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
            first = min(first, *self.halts.due(queue))
            # While too much is at risk, only an answer or a stored key allows a call, and both are inputs.
            ready, opens = queue.due(self._early_at(queue)), queue.gate.opens_at(now, queue.in_flight)
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
        batch = queue.take(now, self._context.number(), self._early_at(queue))
        if batch is None:
            return False
        self._emit(queue, batch)
        self._rotation.remove(queue)
        self._rotation.append(queue)
        return True

    def _early_at(self, queue: AccountQueue) -> float:
        """Return when a batch may go that is neither full nor has lingered; infinite: not before an answer comes.

        As in Nagle's algorithm: at once where no call is in flight; otherwise the next batch fills until the call ends.
        Half of the calls that may be in flight are left to full batches of other accounts.
        """
        is_busy = queue.in_flight or 2 * len(self._in_flight) >= self._context.policy.concurrency
        if is_busy or queue.gate.halt is not None:
            return math.inf
        return queue.gate.spares_at(self._context.now.monotonic)

    def _ask_for_calls(self, queue: AccountQueue) -> None:
        """Ask the shared key store for the calls that could begin now: unused calls are lost to all members."""
        context, policy = self._context, self._context.policy
        now = context.now.monotonic
        free = min(policy.concurrency - len(self._in_flight), int(queue.gate.pace) - queue.in_flight)
        calls = min(queue.takeable(now, self._early_at(queue)), free if queue.gate.halt is None else 1)
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
            allowance.answered(given.calls, given.wait, given.left, now)
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
        context.counters.calls += 1
        context.counters.bytes_sent += sum(map(len, parts))
        context.counters.events_sent += events
        self._count_unclear(batch)
        links = context.policy.trace_links
        records = (record for block, first, end in batch.runs for record in block.records[first:end])
        parents = trace_parents(records, links) if links else ()
        # Its answer must come while its claims hold (`consumer.engine.keys`): the shell checks that once more.
        begin_by = self.lease_until - context.policy.call_timeout
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
