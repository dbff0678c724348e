"""Which batch goes next: the queues of all ad accounts, and the batches in flight.

Theory of operation. Each account has a queue of batches (`queue`) and a gate (`gate`). `Dispatcher.send` hands out
batches until the concurrency of the process is used or nothing may go, going round the accounts so that a busy one does
not starve the others; a closed gate costs the others nothing (rudder-server #4953).

`queue` has the rule of when a batch goes. `verdicts` says what an answer means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from consumer.engine.context import Context
from consumer.engine.messages import AcquirePermits, PermitsGranted
from consumer.engine.records.runs import Run, count_repeats, rows_of
from consumer.engine.sending.gate import Gate, Quota
from consumer.engine.sending.halts import Halts
from consumer.engine.sending.queue import AccountQueue, Batch, BodyParts
from consumer.errors import bug

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

    def send(self, at_risk: int, lease_until: float, session: int) -> Iterator[tuple[Batch, BodyParts]]:
        """Begin the calls that may begin now. Yield the batch of each, and its body.

        `at_risk`: delivered events whose keys are not durable yet. A crash makes us send them and the events in flight
        again, so together they never exceed concurrency x batch. `lease_until`, `session`: see `lease`.
        """
        while len(self._in_flight) < self._context.policy.concurrency:
            any_sent = False
            # A round gives each account one batch at most.
            for queue in [one for one in self._rotation if one.queued]:
                if (batch := self._take(queue, at_risk, lease_until)) is not None:
                    any_sent = True
                    yield batch, self._begin(queue, batch, session)
            if not any_sent:
                return

    def answered(self, number: int) -> Batch:
        """Return the batch of a call that has ended; it is no longer in flight."""
        batch = self._in_flight.pop(number, None)
        if batch is None:
            raise bug(f"an answer came for call {number}, which is not in flight")
        self._queues[batch.account].ended()
        return batch

    def due(self, at_risk: int, lease_until: float) -> float | None:
        """Return when something here is due next (monotonic); None: only an answer or a new event changes that."""
        now, first = self._context.now.monotonic, math.inf
        may_risk = self._may_risk(at_risk, lease_until)
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

    def _take(self, queue: AccountQueue, at_risk: int, lease_until: float) -> Batch | None:
        """Return the account's next batch, if it may be sent now."""
        now = self._context.now.monotonic
        opens = queue.gate.opens_at(now, queue.in_flight)
        if not self._may_risk(at_risk, lease_until) or opens is None or opens > now:
            return None
        if not queue.gate.permits.are_left(now):
            self._ask_for_calls(queue)
            return None
        return queue.take(now, self._context.number())

    def _begin(self, queue: AccountQueue, batch: Batch, session: int) -> BodyParts:
        """Begin a call with this batch. Return its body."""
        context = self._context
        self._in_flight[batch.number] = batch
        self._rotation.remove(queue)
        self._rotation.append(queue)
        parts = queue.begin(batch, context.now.monotonic, session)
        counters = context.counters
        counters.calls += 1
        counters.bytes_sent += batch.sent_bytes
        counters.events_sent += batch.events
        # Events that are sent again although they may have arrived, and that the platform may count twice: it drops
        # doubles of web and app events only, and an event that reaches it more than an hour after it happened counts as
        # an offline event.
        repeats, offline = count_repeats(batch.runs, context.now.unix - COUNTS_AS_OFFLINE_AFTER)
        counters.unclear_repeats += repeats
        counters.unclear_offline += offline
        return parts

    def _ask_for_calls(self, queue: AccountQueue) -> None:
        """Ask the shared key store for the calls that could begin now: unused calls are lost to all members."""
        context, policy = self._context, self._context.policy
        now = context.now.monotonic
        free = min(policy.concurrency - len(self._in_flight), int(queue.gate.pace) - queue.in_flight)
        calls = min(queue.takeable(now), free if queue.gate.halt is None else 1)
        if not calls:
            return
        number, permits = context.number(), queue.gate.permits
        permits.ask(number, now)
        whose = policy.destination or "", queue.account
        context.emit(AcquirePermits(number, *whose, calls, policy.calls_per_minute, permits.seconds))

    def permits_granted(self, number: int, account: str, given: PermitsGranted | None) -> None:
        """Take the shared key store's answer to the question `number` for calls; None: it did not answer."""
        context = self._context
        now, permits = context.now.monotonic, self._queues[account].gate.permits
        if permits.asked != number:
            raise bug(f"question {number} for calls was answered but not asked")
        if given is not None:
            permits.answered(given.calls, given.wait, now)
            return
        # Without an answer no call goes: the members' calls together must stay within the quota.
        context.counters.failures["key_store_quota"] += 1
        permits.unanswered(now, context.policy.inner_backoff, context.jitter())

    def _may_risk(self, at_risk: int, lease_until: float) -> bool:
        """Return True if one more full batch may be sent: not too many events lack a durable key, and its
        claims hold until it is answered."""
        policy = self._context.policy
        if self._context.now.monotonic + policy.call_timeout > lease_until:
            return False
        at_risk += rows_of(self.in_flight())
        return (
            len(self._in_flight) < policy.concurrency
            and at_risk + policy.batch_events <= policy.concurrency * policy.batch_events
        )
