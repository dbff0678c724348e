"""Which batch goes next: all accounts' queues and gates, and what is in flight.

Theory of operation. `send` hands out batches until the concurrency of the process is used or nothing may go,
going round the accounts so that a busy one does not starve the others; a closed gate costs the others nothing
(lessons.md: rudder-server #4953). A refused token is every account's trouble, a refused account its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from consumer.engine.batching import AccountQueue, Batch
from consumer.engine.context import Context
from consumer.engine.dedup import COUNTED, OFFLINE, UNCLEAR, Delivery
from consumer.engine.gate import Gate
from consumer.engine.interface import GiveUp, ReadToken, Send
from consumer.engine.traces import trace_parents
from consumer.errors import InvariantViolation

TOKEN_REFUSED = 401
COUNTS_AS_OFFLINE_AFTER = 3600.0
"""Seconds after which a web or app event counts as offline when the platform receives it (DOC)."""


class Dispatcher:
    """The queues of all accounts, in a rotation, and the batches in flight by number."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queues: dict[str, AccountQueue] = {}
        self._rotation: list[AccountQueue] = []
        self._in_flight: dict[int, Batch] = {}
        self._gave_up = False
        self._unremembered = 0

    def __iter__(self) -> Iterator[AccountQueue]:
        return iter(self._queues.values())

    def queue(self, account: str) -> AccountQueue:
        """The account's queue; made when its first event comes."""
        queue = self._queues.get(account)
        if queue is None:
            queue = AccountQueue(account, self._context.policy, Gate(self._context.policy))
            self._share_token_halt(queue)
            self._queues[account] = queue
            self._rotation.append(queue)
        return queue

    def in_flight(self) -> Iterator[Delivery]:
        """All deliveries whose outcome is out there."""
        for batch in self._in_flight.values():
            yield from batch.deliveries

    def send(self, unremembered: int) -> None:
        """Emit `Send` for all that may go now.

        `unremembered`: events delivered whose keys are not durable yet. With those in flight they are what a crash
        makes us send again, so together they never exceed concurrency x batch (lessons.md, "Crash points").
        """
        self._unremembered = unremembered
        while len(self._in_flight) < self._context.policy.concurrency:
            sent = [self._send_one(queue) for queue in list(self._rotation)]
            if not any(sent):
                return

    def answered(self, number: int) -> Batch:
        """An attempt came back; its batch is no longer in flight."""
        batch = self._in_flight.pop(number, None)
        if batch is None:
            raise InvariantViolation(
                f"an answer came for call {number}, which is not in flight; please report this"
            )
        self._queues[batch.account].in_flight -= 1
        return batch

    def due(self) -> float | None:
        """When something here is next to be done (monotonic); None: only an answer or a new event can tell."""
        times = [self._due(queue) for queue in self._queues.values()]
        return min((at for at in times if at is not None), default=None)

    # -- halts

    def refuse(self, batch: Batch, status: int, code: int | None, rid: str | None) -> None:
        """The token or the account was refused: close the gates concerned, and say so when that is new.

        Calls that were under way when a halt began bring the same refusal once more; only a probe brings a new one.
        """
        own, now = self.queue(batch.account), self._context.now.monotonic
        if batch.probe:
            own.gate.refuse_again(status, code, now, self._context.jitter())
            self._put_off_probes(own, status)
        for queue in self._queues.values() if status == TOKEN_REFUSED else (own,):
            if queue.gate.halt is not None:
                queue.gate.halt.may_probe = False
            if queue.gate.refuse(status, code, now) and queue.gate.halt is not None:
                self._context.report(
                    "error",
                    "halted",
                    account=queue.account,
                    status=status,
                    code=code,
                    reason=queue.gate.halt.reason,
                    request_id=rid,
                )

    def _put_off_probes(self, own: AccountQueue, status: int) -> None:
        """The token is one for all: where one probe found it refused, the others need not ask as well."""
        if status != TOKEN_REFUSED or own.gate.halt is None:
            return
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and halt.status == TOKEN_REFUSED:
                halt.may_probe = False
                halt.probe_at = own.gate.halt.probe_at

    def accept(self, batch: Batch) -> None:
        """The token and the account were accepted. Only a probe tells that a halt is over: it went under the token
        of now. Its account's halt ends, and that of all accounts whose trouble was the token."""
        if not batch.probe:
            return
        own = self._queues[batch.account]
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and (queue is own or halt.status == TOKEN_REFUSED):
                queue.gate.halt = None
                self._context.report("info", "resumed", account=queue.account)

    def token_read(self, changed: bool) -> None:
        """The token was read again: those who waited for that may probe now."""
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and halt.reading_token:
                halt.reading_token = False
                halt.may_probe = True
                halt.refusals = 1 if changed else halt.refusals

    def tend_halts(self) -> None:
        """Read the token where a probe is due; give up where patience ran out."""
        now = self._context.now.monotonic
        reading = False
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is None:
                continue
            if not queue.queued and not queue.in_flight:
                halt.waiting_since = now
            self._mind_patience(queue, halt.waiting_since, halt.reason)
            if halt.probe_at <= now and not halt.reading_token and not halt.may_probe and not queue.in_flight:
                halt.reading_token = reading = True
        if reading:
            self._context.emit(ReadToken())

    def tend_silence(self) -> None:
        """Tell where the destination has become unreachable; where nothing is sent, nothing can be told."""
        now = self._context.now.monotonic
        for queue in self._queues.values():
            gate = queue.gate
            if not queue.queued and not queue.in_flight:
                gate.forget_silence()
            elif gate.halt is None and not gate.told_silence and gate.unreachable(now):
                gate.told_silence = True
                self._context.report("error", "unreachable", account=queue.account, reason=gate.reason)

    def _mind_patience(self, queue: AccountQueue, since: float, reason: str) -> None:
        patience = self._context.policy.halt_patience
        if not patience or self._gave_up or self._context.now.monotonic < since + patience:
            return
        self._gave_up = True
        self._context.emit(GiveUp(f"ad account {queue.account}: {reason} for {patience:.0f} s"))

    def _share_token_halt(self, queue: AccountQueue) -> None:
        for other in self._queues.values():
            halt = other.gate.halt
            if halt is not None and halt.status == TOKEN_REFUSED:
                queue.gate.refuse(halt.status, halt.code, self._context.now.monotonic)
                return

    # -- one account

    def _send_one(self, queue: AccountQueue) -> bool:
        context = self._context
        if not self._may_risk():
            return False
        now = context.now.monotonic
        opens = queue.gate.opens_at(now, queue.in_flight)
        if opens is None or opens > now:
            return False
        batch = queue.take(now, context.number())
        if batch is None:
            return False
        self._emit(queue, batch)
        self._rotation.remove(queue)
        self._rotation.append(queue)
        return True

    def _may_risk(self) -> bool:
        """Whether one more full batch may be out there without a durable key."""
        policy = self._context.policy
        at_risk = self._unremembered + sum(len(batch.deliveries) for batch in self._in_flight.values())
        return (
            len(self._in_flight) < policy.concurrency
            and at_risk + policy.batch_events <= policy.concurrency * policy.batch_events
        )

    def _emit(self, queue: AccountQueue, batch: Batch) -> None:
        context = self._context
        batch.attempts += 1
        batch.probe = queue.gate.halt is not None
        queue.in_flight += 1
        queue.gate.called(context.now.monotonic)
        self._in_flight[batch.number] = batch
        batch.sent_at = context.now.monotonic
        body = batch.body()
        context.counters.calls += 1
        context.counters.bytes_sent += len(body)
        context.counters.events_sent += len(batch.deliveries)
        if batch.attempts > 1:
            self._count_unclear(batch)
        links = context.policy.trace_links
        parents = (
            trace_parents((one.span.records[one.index] for one in batch.deliveries), links) if links else ()
        )
        context.emit(Send(batch.number, batch.account, body, len(batch.deliveries), batch.attempts, parents))

    def _count_unclear(self, batch: Batch) -> None:
        """Count, once, each event that goes again though it may have arrived, and is not dropped as a double then.

        It drops doubles of web and app events, and an event that reaches it more than an hour after it happened is no
        such event any more.
        """
        counters, since = self._context.counters, self._context.now.unix - COUNTS_AS_OFFLINE_AFTER
        for one in batch.deliveries:
            if one.marks & (UNCLEAR | COUNTED) == UNCLEAR and (one.marks & OFFLINE or one.event_time < since):
                one.marks |= COUNTED
                counters.unclear_repeats += 1
                counters.unclear_offline += one.offline

    def _due(self, queue: AccountQueue) -> float | None:
        halt, now = queue.gate.halt, self._context.now.monotonic
        times = []
        if halt is not None:
            if not halt.reading_token and not halt.may_probe and not queue.in_flight:
                times.append(halt.probe_at)
            if self._context.policy.halt_patience and not self._gave_up and (queue.queued or queue.in_flight):
                times.append(halt.waiting_since + self._context.policy.halt_patience)
        unreachable_at = queue.gate.unreachable_at()
        if halt is None and unreachable_at is not None and not queue.gate.told_silence:
            times.append(unreachable_at)
        ready = queue.due()
        opens = queue.gate.opens_at(now, queue.in_flight)
        if ready is not None and opens is not None and self._may_risk():
            times.append(max(ready, opens))
        return min(times, default=None)
