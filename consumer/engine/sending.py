"""Which batch goes next: batches by account, those that wait to be tried again, and those in flight.

Theory of operation. Events fill one batch per account (`AccountQueue`). It is ready when it holds
`batch_events`, when the next event would take it over `batch_bytes`, or when its oldest event has waited `linger`.
Before that it goes early, if its call takes nothing from others (`Dispatcher._early_at`): waiting gains nothing where
events are few. While calls are in flight, or the quota is scarce, it fills; so more events come in fewer calls.
Refused or unanswered batches come back: at once (bisected halves) or at their time (backoff). Retries go first: they
hold the oldest records, and the oldest record holds the commit.

Where a body was too large for somebody on the way, batches are cut to half of it from then on (`shrink`); what is
larger already is cut when it is taken. Every 15 s that limit doubles, until it is gone, since what wanted smaller
bodies may be gone, too. If a larger one is refused again, the time until the next try doubles, up to ten minutes.

`Dispatcher` has all accounts' queues and gates, and the batches in flight. Its `send` hands out batches until the
concurrency of the process is used or nothing may go, going round the accounts so that a busy one does not starve the
others; a closed gate costs the others nothing (rudder-server #4953). A refused token is every account's trouble, a
refused account its own. What an answer means is not known here (`verdicts`).
"""

from __future__ import annotations

import heapq
import math
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from consumer.engine.block import RecordStage, Run, cut, divide, each_of, move_all, rows_of
from consumer.engine.context import Context
from consumer.engine.gate import TOKEN_REFUSED, Allowance, Gate, Notes, Quota
from consumer.engine.messages import AskCalls, CallsGiven, CallsNotGiven, GiveUp, ReadToken, Send
from consumer.engine.model import Note, Policy, trace_parents
from consumer.engine.reading import COUNTED, OFFLINE, UNCLEAR
from consumer.errors import bug

_OPENING, _CLOSING = b'{"data":[', b"]}"
_ENVELOPE = len(_OPENING + _CLOSING)
# A call holds at most this many times its bytes.
_WORTH_ITS_PAGE = 4
# Marks of events that were sent without a known outcome, and are not counted yet.
_UNCLEAR = re.compile(
    b"[%b]" % b"".join(b"\\x%02x" % mark for mark in range(256) if mark & (UNCLEAR | COUNTED) == UNCLEAR)
)
# Seconds after which the limit in bytes doubles: at first, and where larger bodies were tried and refused.
_GROW_AFTER, _GROW_AFTER_MOST = 15.0, 600.0


@dataclass(eq=False, slots=True)
class Batch:
    """Runs of events that go in one call."""

    number: int
    account: str
    runs: Sequence[Run]
    attempts: int = 0
    """Calls made with them."""
    failures: int = 0
    """Calls in a row that brought no verdict."""
    failing_since: float = 0.0
    """Since when it may be what is in them: since the first of these, the last 429, or the cut from another batch."""
    session: int = 0
    """Whose claims in a shared key store its events had when its last call went."""
    sent_at: float = 0.0
    """When its last call went (monotonic)."""
    probe: bool = False
    """Whether the call under way was sent while its gate was halted."""

    @property
    def events(self) -> int:
        """How many events go."""
        return rows_of(self.runs)

    @property
    def size(self) -> int:
        """Bytes of the request body."""
        return _size_of(self.runs)

    def parts(self) -> Sequence[bytes | memoryview]:
        """The request body, in parts: each event was serialised once, and stays where it was written."""
        pages = [
            memoryview(block.page)[block.start(first) : block.ends[end - 1]]
            for block, first, end in self.runs
        ]
        pages[-1] = pages[-1][:-1]  # no comma behind the last event
        # A view keeps its whole page for as long as the call takes, though the block may have dropped most of it by
        # then, and no budget counts that. So a small part of a page is copied.
        parts = [
            page if _WORTH_ITS_PAGE * len(page) >= len(run.block.page) else bytes(page)
            for page, run in zip(pages, self.runs, strict=True)
        ]
        return [_OPENING, *parts, _CLOSING]

    def halves(self, first: int, second: int) -> tuple[Batch, Batch]:
        """Bisect a refused batch: two new ones, numbered, that remember how often their events were sent."""
        one, other = cut(self.runs, self.events // 2)
        return self.part(first, one), self.part(second, other)

    def part(self, number: int, runs: Sequence[Run]) -> Batch:
        """Return a batch of some of these events: sent as often, and claimed by the same session."""
        return Batch(number, self.account, runs, self.attempts, session=self.session)


class AccountQueue:
    """What waits to be sent to one ad account."""

    def __init__(self, account: str, policy: Policy, gate: Gate) -> None:
        self.account = account
        self.gate = gate
        self.in_flight = 0
        self._policy = policy
        self._filling: list[Run] = []
        self._filling_events = 0
        self._filling_bytes = _ENVELOPE
        self._filling_since = 0.0
        self._ready: deque[Sequence[Run]] = deque()
        self._again: list[tuple[float, int, Batch]] = []
        # Of a batch's body; less than the policy's where that was too large for somebody.
        self._most_bytes = policy.batch_bytes
        self._grow_at = 0.0
        self._grow_after = _GROW_AFTER
        self._grown = False
        self.queued = 0

    @property
    def filling(self) -> Sequence[Run]:
        """The batch being filled."""
        return self._filling

    @property
    def ready(self) -> Iterable[Sequence[Run]]:
        """Batches that are full, or have lingered."""
        return self._ready

    def again(self) -> Iterator[tuple[float, Batch]]:
        """Batches to be tried again, and not before when."""
        return ((at, batch) for at, _, batch in self._again)

    def add(self, run: Run, now: float) -> None:
        """New events join the batch being filled, as many at a time as it has room for."""
        while True:
            count = min(run.rows, self._policy.batch_events - self._filling_events)
            room = self._most_bytes - self._filling_bytes
            if run.size > room:
                ends, start = run.block.ends, run.block.start(run.first)
                count = min(count, bisect_right(ends, start + room, run.first, run.end) - run.first)
            if not count and self._filling:
                self._close()
                continue
            if not self._filling:
                self._filling_since = now
            some, rest = cut([run], max(1, count))  # one alone goes, however large
            self._filling += some
            self._filling_events += some[0].rows
            self._filling_bytes += some[0].size
            self.queued += some[0].rows
            if self._filling_events >= self._policy.batch_events:
                self._close()
            if not rest:
                return
            (run,) = rest

    def put_back(self, batch: Batch, at: float) -> None:
        """A batch to be tried again, not before `at`."""
        heapq.heappush(self._again, (at, batch.number, batch))
        self.queued += batch.events

    def take(self, now: float, number: int, early_at: float = math.inf) -> Batch | None:
        """The next batch that may go now: due retries first, then full ones, then one that has waited long enough.

        `number` names the call. From `early_at` on one that is not full need not wait. What is no longer ours was
        purged when it ceased to be (`purge`), so what is taken is ours.
        """
        self._grow(now)
        if self._again and self._again[0][0] <= now:
            at, _, batch = heapq.heappop(self._again)
            self.queued -= batch.events
            batch.runs, rest = self._fitting(batch.runs)
            if rest:
                later = batch.part(batch.number, rest)
                later.failures, later.failing_since = batch.failures, batch.failing_since
                self.put_back(later, at)
            batch.number = number
            return batch
        if not self._ready and self._filling and now >= self._filled_at(early_at):
            self._close()
        if not self._ready:
            return None
        runs, rest = self._fitting(self._ready.popleft())
        if rest:
            self._ready.appendleft(rest)
        self.queued -= rows_of(runs)
        return Batch(number, self.account, runs)

    def takeable(self, now: float, early_at: float) -> int:
        """How many batches `take` would give now."""
        filled = bool(self._filling) and now >= self._filled_at(early_at)
        return sum(at <= now for at, _, _ in self._again) + len(self._ready) + filled

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

    def _fitting(self, runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
        """What of these is within the limit in bytes, at least one event, and what goes beyond it."""
        if self._most_bytes >= self._policy.batch_bytes or _size_of(runs) <= self._most_bytes:
            return runs, ()
        up_to = [*accumulate((row.size for row in each_of(runs)), initial=_ENVELOPE)]
        return cut(runs, max(1, bisect_right(up_to, self._most_bytes) - 1))

    def due(self, early_at: float = math.inf) -> float | None:
        """When something here is next ready to be taken; None while nothing waits."""
        times = [self._again[0][0]] if self._again else []
        if self._ready:
            return float("-inf")
        if self._filling:
            times.append(self._filled_at(early_at))
        return min(times, default=None)

    def _filled_at(self, early_at: float) -> float:
        lingered = self._filling_since + self._policy.linger
        # While something is to be tried again, small batches would only fail one after the other, and then be many.
        return lingered if self._again else min(lingered, early_at)

    def purge(self) -> list[Run]:
        """Take out all that is no longer ours to send, and return it."""
        kept, gone = divide(self._filling)
        self._filling = [*kept]
        self._filling_events, self._filling_bytes = rows_of(kept), _size_of(kept)
        ready, self._ready = self._ready, deque()
        for runs in ready:
            kept, rest = divide(runs)
            gone += rest
            if kept:
                self._ready.append(kept)
        for _, _, batch in self._again:
            batch.runs, rest = divide(batch.runs)
            gone += rest
        self._again = [entry for entry in self._again if entry[2].runs]
        heapq.heapify(self._again)
        self.queued -= rows_of(gone)
        return gone

    def empty(self) -> list[Run]:
        """Take out all that waits, and return it."""
        batches = [self._filling, *self._ready, *(batch.runs for _, _, batch in self._again)]
        self._filling, self._filling_events, self._filling_bytes = [], 0, _ENVELOPE
        self._ready.clear()
        self._again.clear()
        self.queued = 0
        return [*chain.from_iterable(batches)]

    def _close(self) -> None:
        self._ready.append(self._filling)
        self._filling, self._filling_events, self._filling_bytes = [], 0, _ENVELOPE


def _size_of(runs: Iterable[Run]) -> int:
    """Bytes of a body of these."""
    return _ENVELOPE + sum([run.size for run in runs])


# Seconds after which a web or app event counts as offline when the platform receives it (DOC).
COUNTS_AS_OFFLINE_AFTER = 3600.0


class Dispatcher:
    """The queues of all accounts, in a rotation, and the batches in flight by number."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queues: dict[str, AccountQueue] = {}
        self._rotation: list[AccountQueue] = []
        self._in_flight: dict[int, Batch] = {}
        self._gave_up = False
        self.notes = Notes(context)
        self.quota = Quota(context.policy)
        self._unremembered = 0
        # Whose claims in a shared key store the queued events have; see `consumer.engine.keys`.
        self.session = 0
        # Until when (monotonic) those claims are known to hold.
        self.lease_until = math.inf

    def __iter__(self) -> Iterator[AccountQueue]:
        return iter(self._queues.values())

    def queue(self, account: str) -> AccountQueue:
        """The account's queue; made when its first event comes."""
        queue = self._queues.get(account)
        if queue is None:
            queue = AccountQueue(account, self._context.policy, Gate(self._context.policy, self.quota))
            self.notes.heed_for(account, queue.gate)
            self._share_token_halt(queue)
            self._queues[account] = queue
            self._rotation.append(queue)
        return queue

    def in_flight(self) -> Iterator[Run]:
        """All events whose outcome is out there."""
        for batch in self._in_flight.values():
            yield from batch.runs

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
            raise bug(f"an answer came for call {number}, which is not in flight")
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
        elif own.gate.halt is None:
            self.notes.refused(own.account, status, code)
        for queue in self._queues.values() if self._is_of_all(status) else (own,):
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

    def _is_of_all(self, status: int) -> bool:
        """Whether this refusal is of the one token that all accounts have."""
        return status == TOKEN_REFUSED and not self._context.policy.token_by_account

    def _put_off_probes(self, own: AccountQueue, status: int) -> None:
        """Where one probe found the token of all refused, the others need not ask as well."""
        if not self._is_of_all(status) or own.gate.halt is None:
            return
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and halt.status == TOKEN_REFUSED:
                halt.may_probe = False
                halt.probe_at = own.gate.halt.probe_at

    def accept(self, batch: Batch) -> None:
        """The token and the account were accepted. Only a probe tells that a halt is over: it went under the token
        of now. Its account's halt ends, and that of all accounts whose trouble was the token that they share."""
        if not batch.probe:
            return
        own = self._queues[batch.account]
        for queue in self._queues.values():
            halt = queue.gate.halt
            if halt is not None and (queue is own or self._is_of_all(halt.status)):
                self.notes.disproved(queue.gate)
                queue.gate.halt = None
                self._context.report("info", "resumed", account=queue.account)

    def heed(self, notes: Sequence[Note]) -> None:
        """Heed what other members have met."""
        self.notes.heed(notes, [(queue.account, queue.gate) for queue in self])

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
                # Whether a call would succeed is not known any more.
                gate.silent_since, gate.told_silence = None, False
            elif gate.halt is None and not gate.told_silence and now >= gate.unreachable_at():
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
            if halt is not None and self._is_of_all(halt.status):
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
        if queue.gate.allowance is not None and not queue.gate.allowance.given(now):
            self._ask_for_calls(queue, queue.gate.allowance)
            return False
        batch = queue.take(now, context.number(), self._early_at(queue))
        if batch is None:
            return False
        self._emit(queue, batch)
        self._rotation.remove(queue)
        self._rotation.append(queue)
        return True

    def _early_at(self, queue: AccountQueue) -> float:
        """When a batch may go that is neither full nor has lingered; infinite: not before an answer comes.

        As in Nagle's algorithm: at once where nothing is in flight; else what is in flight gives the next one its time
        to fill. Half of the calls that may be in flight are left to full batches of other accounts.
        """
        if queue.in_flight or queue.gate.halt is not None:
            return math.inf
        if 2 * len(self._in_flight) >= self._context.policy.concurrency:
            return math.inf
        return queue.gate.spares_at(self._context.now.monotonic)

    def _ask_for_calls(self, queue: AccountQueue, allowance: Allowance) -> None:
        """Ask the shared key store for the calls that could begin now: what is given and not used is lost to all."""
        context, policy = self._context, self._context.policy
        now = context.now.monotonic
        free = min(policy.concurrency - len(self._in_flight), int(queue.gate.pace) - queue.in_flight)
        calls = min(queue.takeable(now, self._early_at(queue)), free if queue.gate.halt is None else 1)
        if not calls:
            return
        number = context.number()
        allowance.ask(number, now)
        context.emit(
            AskCalls(
                number,
                policy.destination or "",
                queue.account,
                calls,
                policy.calls_per_minute,
                allowance.seconds,
            )
        )

    def calls_given(self, happened: CallsGiven | CallsNotGiven) -> None:
        """The shared key store has given calls, or not."""
        context = self._context
        now, allowance = context.now.monotonic, self._queues[happened.account].gate.allowance
        if allowance is None or allowance.asked != happened.number:
            raise bug(f"question {happened.number} for calls was answered but not asked")
        if isinstance(happened, CallsGiven):
            allowance.answered(happened.calls, happened.wait, happened.left, now)
            return
        allowance.failures += 1
        context.counters.failures["key_store_quota"] += 1
        delay = context.policy.inner_backoff.delay(allowance.failures, 0.5 + context.jitter() / 2)
        allowance.unanswered(now + delay)

    @property
    def not_given(self) -> bool:
        """Whether the shared key store did not answer the latest question for calls that something waits for."""
        allowances = [queue.gate.allowance for queue in self if queue.queued]
        return any(one is not None and one.failures for one in allowances)

    def _may_risk(self) -> bool:
        """Whether one more full batch may be out there without a durable key, and its claims hold until it is back."""
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
        begin_by = self.lease_until - context.policy.call_timeout
        context.emit(Send(batch.number, batch.account, parts, events, batch.attempts, parents, begin_by))

    def _count_unclear(self, batch: Batch) -> None:
        """Count, once, each event that goes again though it may have arrived, and is not dropped as a double then.

        It drops doubles of web and app events, and an event that reaches it more than an hour after it happened is no
        such event any more.
        """
        counters, since = self._context.counters, self._context.now.unix - COUNTS_AS_OFFLINE_AFTER
        # Whatever the attempt: what was claimed again begins in another batch.
        runs = [run for run in batch.runs if _UNCLEAR.search(run.block.marks, run.first, run.end)]
        for block, index, _ in each_of(runs):
            marks = block.marks[index]
            if marks & (UNCLEAR | COUNTED) == UNCLEAR and (marks & OFFLINE or block.times[index] < since):
                block.marks[index] |= COUNTED
                counters.unclear_repeats += 1
                counters.unclear_offline += marks & OFFLINE

    def _due(self, queue: AccountQueue) -> float | None:
        halt, now = queue.gate.halt, self._context.now.monotonic
        times = []
        if halt is not None:
            if not halt.reading_token and not halt.may_probe and not queue.in_flight:
                times.append(halt.probe_at)
            if self._context.policy.halt_patience and not self._gave_up and (queue.queued or queue.in_flight):
                times.append(halt.waiting_since + self._context.policy.halt_patience)
        if halt is None and queue.gate.silent_since is not None and not queue.gate.told_silence:
            times.append(queue.gate.unreachable_at())
        ready = queue.due(self._early_at(queue))
        opens = queue.gate.opens_at(now, queue.in_flight)
        if ready is not None and opens is not None and self._may_risk():
            times.append(max(ready, opens))
        return min(times, default=None)
