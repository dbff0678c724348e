"""Per ad account: batches by count, bytes and age, those waiting to be tried again, and the account's gate.

Theory of operation. Deliveries fill one batch per account. It is ready when it holds `batch_events`, when the
next event would take it over `batch_bytes`, or when its oldest event has waited `linger`. Refused or unanswered
batches come back: at once (bisected halves) or at their time (backoff). Retries go first: they hold the oldest
records, and the oldest record holds the commit.

Where a body was too large for somebody on the way, batches are cut to half of it from then on (`shrink`); what is
larger already is cut when it is taken. Every 15 s that limit doubles, until it is gone, since whoever wanted smaller
bodies may be gone, too. If a larger one is refused again, the time until the next try doubles, up to ten minutes.

Nothing here knows what an answer means; that is `delivery`. Nothing here sends; that is `pipeline`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from consumer.engine.dedup import Delivery
from consumer.engine.gate import Gate
from consumer.engine.policy import Policy

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
