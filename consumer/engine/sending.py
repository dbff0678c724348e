"""Which batch goes next: batches by account, those that wait to be tried again, and those in flight.

Theory of operation. Deliveries fill one batch per account (`AccountQueue`). It is ready when it holds
`batch_events`, when the next event would take it over `batch_bytes`, or when its oldest event has waited `linger`.
Refused or unanswered batches come back: at once (bisected halves) or at their time (backoff). Retries go first: they
hold the oldest records, and the oldest record holds the commit.

Where a body was too large for somebody on the way, batches are cut to half of it from then on (`shrink`); what is
larger already is cut when it is taken. Every 15 s that limit doubles, until it is gone, since whoever wanted smaller
bodies may be gone, too. If a larger one is refused again, the time until the next try doubles, up to ten minutes.

`Dispatcher` has all accounts' queues and gates, and the batches in flight. Its `send` hands out batches until the
concurrency of the process is used or nothing may go, going round the accounts so that a busy one does not starve the
others; a closed gate costs the others nothing (rudder-server #4953). A refused token is every account's trouble, a
refused account its own. What an answer means is not known here (`verdicts`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from consumer.engine.block import COUNTED, OFFLINE, UNCLEAR, Delivery, RecordStage, move_all
from consumer.engine.context import Context
from consumer.engine.gate import Gate
from consumer.engine.messages import GiveUp, ReadToken, Send
from consumer.engine.model import Policy, trace_parents
from consumer.errors import InvariantViolation

_OPENING, _CLOSING = b'{"data":[', b"]}"
_ENVELOPE = len(_OPENING + _CLOSING)
_GROW_AFTER, _GROW_AFTER_MOST = 15.0, 600.0
"""Seconds after which the limit in bytes doubles: at first, and where larger bodies were tried and refused."""


class Batch:
    """Deliveries that go in one call.

    `attempts` counts the calls made with them, `failures` those in a row that brought no verdict. Since
    `failing_since` it may be what is in them: since the first of these, the last 429, or the cut from another batch.
    """

    __slots__ = (
        "account",
        "attempts",
        "deliveries",
        "failing_since",
        "failures",
        "number",
        "probe",
        "sent_at",
    )

    def __init__(self, number: int, account: str, deliveries: list[Delivery], attempts: int = 0) -> None:
        self.number = number
        self.account = account
        self.deliveries = deliveries
        self.attempts = attempts
        self.failures = 0
        self.failing_since = 0.0
        self.sent_at = 0.0
        """When its last call went (monotonic)."""
        self.probe = False
        """Whether the call under way was sent while its gate was halted."""

    @property
    def size(self) -> int:
        """Bytes of the request body."""
        return _size_of(self.deliveries)

    def body(self) -> bytes:
        """The request body; each event was serialised once, here the bytes are only joined."""
        # The ends go with the outermost events: put around what is joined, they would copy all of it twice more.
        bodies = [delivery.body for delivery in self.deliveries]
        bodies[0] = _OPENING + bodies[0]
        bodies[-1] += _CLOSING
        return b",".join(bodies)


class AccountQueue:
    """What waits to be sent to one ad account."""

    def __init__(self, account: str, policy: Policy, gate: Gate) -> None:
        self.account = account
        self.gate = gate
        self.in_flight = 0
        self._policy = policy
        self._filling: list[Delivery] = []
        self._filling_bytes = _ENVELOPE
        self._filling_since = 0.0
        self._ready: deque[list[Delivery]] = deque()
        self._again: list[tuple[float, int, Batch]] = []
        self._most_bytes = policy.batch_bytes
        """Of a batch's body; less than the policy's where that was too large for somebody."""
        self._grow_at = 0.0
        self._grow_after = _GROW_AFTER
        self._grown = False
        self.queued = 0

    @property
    def filling(self) -> Sequence[Delivery]:
        """The batch being filled."""
        return self._filling

    @property
    def ready(self) -> Iterable[Sequence[Delivery]]:
        """Batches that are full, or have lingered."""
        return self._ready

    def again(self) -> Iterator[tuple[float, Batch]]:
        """Batches to be tried again, and not before when."""
        return ((at, batch) for at, _, batch in self._again)

    def add(self, delivery: Delivery, now: float) -> None:
        """A new delivery joins the batch being filled."""
        size = len(delivery.body) + 1
        full = self._filling_bytes + size > self._most_bytes
        if self._filling and (full or len(self._filling) >= self._policy.batch_events):
            self._close()
        if not self._filling:
            self._filling_since = now
        self._filling.append(delivery)
        self._filling_bytes += size
        self.queued += 1
        if len(self._filling) >= self._policy.batch_events:
            self._close()

    def add_all(self, deliveries: Sequence[Delivery], now: float) -> None:
        """New deliveries join, as many at a time as the batch being filled has room for."""
        at = 0
        while at < len(deliveries):
            some = deliveries[at : at + max(1, self._policy.batch_events - len(self._filling))]
            at += len(some)
            size = sum([len(one.body) for one in some]) + len(some)
            if self._filling_bytes + size > self._most_bytes:  # one by one, to see where it is full
                for one in some:
                    self.add(one, now)
                continue
            if not self._filling:
                self._filling_since = now
            self._filling += some
            self._filling_bytes += size
            self.queued += len(some)
            if len(self._filling) >= self._policy.batch_events:
                self._close()

    def put_back(self, batch: Batch, at: float) -> None:
        """A batch to be tried again, not before `at`."""
        heapq.heappush(self._again, (at, batch.number, batch))
        self.queued += len(batch.deliveries)

    def take(self, now: float, number: int) -> Batch | None:
        """The next batch that may go now: due retries first, then full ones, then one that has waited long enough.

        `number` names the call. Deliveries that are no longer ours were
        purged when they ceased to be (`purge`), so what is taken is ours.
        """
        self._grow(now)
        if self._again and self._again[0][0] <= now:
            at, _, batch = heapq.heappop(self._again)
            self.queued -= len(batch.deliveries)
            rest = self._cut(batch.deliveries)
            if rest:
                later = Batch(batch.number, self.account, rest, batch.attempts)
                later.failures, later.failing_since = batch.failures, batch.failing_since
                self.put_back(later, at)
            batch.number = number
            return batch
        if not self._ready and self._filling and now >= self._filling_since + self._policy.linger:
            self._close()
        if not self._ready:
            return None
        deliveries = self._ready.popleft()
        rest = self._cut(deliveries)
        if rest:
            self._ready.appendleft(rest)
        self.queued -= len(deliveries)
        return Batch(number, self.account, deliveries)

    def shrink(self, size: int, now: float) -> None:
        """A body of several events and this many bytes was too large for somebody: half of it from now on."""
        if size // 2 < self._most_bytes:  # else it went before the limit was known
            self._most_bytes = size // 2
            if self._grown:
                self._grow_after = min(2 * self._grow_after, _GROW_AFTER_MOST)
            self._grown = False
        self._grow_at = now + self._grow_after

    def _grow(self, now: float) -> None:
        if self._most_bytes >= self._policy.batch_bytes or now < self._grow_at:
            return
        self._most_bytes = min(2 * self._most_bytes, self._policy.batch_bytes)
        self._grow_at = now + self._grow_after
        self._grown = True

    def _cut(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Take off what goes beyond the limit in bytes, all but one event if need be, and return it."""
        if self._most_bytes >= self._policy.batch_bytes:
            return []
        size = _ENVELOPE
        for at, one in enumerate(deliveries):
            size += len(one.body) + 1
            if at and size > self._most_bytes:
                rest = deliveries[at:]
                del deliveries[at:]
                return rest
        return []

    def due(self) -> float | None:
        """When something here is next ready to be taken; None while nothing waits."""
        times = [self._again[0][0]] if self._again else []
        if self._ready:
            return float("-inf")
        if self._filling:
            times.append(self._filling_since + self._policy.linger)
        return min(times, default=None)

    def purge(self) -> list[Delivery]:
        """Take out all deliveries that are no longer ours to send, and return them."""
        gone: list[Delivery] = []
        self._filling = _keep(self._filling, gone)
        self._filling_bytes = _size_of(self._filling)
        self._ready = deque(kept for kept in (_keep(one, gone) for one in self._ready) if kept)
        for _, _, batch in self._again:
            batch.deliveries = _keep(batch.deliveries, gone)
        self._again = [entry for entry in self._again if entry[2].deliveries]
        heapq.heapify(self._again)
        self.queued -= len(gone)
        return gone

    def __iter__(self) -> Iterator[Delivery]:
        """All queued deliveries, oldest batch first."""
        for _, _, batch in sorted(self._again, key=lambda entry: entry[1]):
            yield from batch.deliveries
        for deliveries in self._ready:
            yield from deliveries
        yield from self._filling

    def _close(self) -> None:
        self._ready.append(self._filling)
        self._filling = []
        self._filling_bytes = _ENVELOPE


def _size_of(deliveries: Iterable[Delivery]) -> int:
    """Bytes of a body of these."""
    return _ENVELOPE + sum([len(one.body) + 1 for one in deliveries])


def _keep(deliveries: Iterable[Delivery], gone: list[Delivery]) -> list[Delivery]:
    kept: list[Delivery] = []
    for delivery in deliveries:
        (kept if delivery.accepted else gone).append(delivery)
    return kept


def halves(batch: Batch, first: int, second: int) -> tuple[Batch, Batch]:
    """Bisect a refused batch: two new batches, numbered, that remember how often their events were sent."""
    middle = len(batch.deliveries) // 2
    return (
        Batch(first, batch.account, batch.deliveries[:middle], batch.attempts),
        Batch(second, batch.account, batch.deliveries[middle:], batch.attempts),
    )


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
        makes us send again, so together they never exceed concurrency x batch.
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
        move_all(batch.deliveries, RecordStage.IN_FLIGHT)
        batch.sent_at = context.now.monotonic
        body = batch.body()
        context.counters.calls += 1
        context.counters.bytes_sent += len(body)
        context.counters.events_sent += len(batch.deliveries)
        if batch.attempts > 1:
            self._count_unclear(batch)
        links = context.policy.trace_links
        parents = (
            trace_parents((one.block.records[one.index] for one in batch.deliveries), links) if links else ()
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
