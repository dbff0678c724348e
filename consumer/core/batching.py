"""Per ad account: batches by count, bytes and age, those waiting to be tried again, and the account's gate.

Theory of operation. Deliveries fill one batch per account. It is ready when it holds `batch_events`, when the
next event would take it over `batch_bytes`, or when its oldest event has waited `linger`. Refused or unanswered
batches come back: at once (bisected halves) or at their time (backoff). Retries go first: they hold the oldest
records, and the oldest record holds the commit.

Nothing here knows what an answer means; that is `delivery`. Nothing here sends; that is `pipeline`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from consumer.core.dedup import Delivery
from consumer.core.gate import Gate
from consumer.core.policy import Policy

_OPENING, _CLOSING = b'{"data":[', b"]}"
_ENVELOPE = len(_OPENING + _CLOSING)


class Batch:
    """Deliveries that go in one call.

    `attempts` counts the calls made with them, `failures` those in a row that brought no verdict.
    """

    __slots__ = ("account", "attempts", "deliveries", "failures", "number", "probe")

    def __init__(self, number: int, account: str, deliveries: list[Delivery], attempts: int = 0) -> None:
        self.number = number
        self.account = account
        self.deliveries = deliveries
        self.attempts = attempts
        self.failures = 0
        self.probe = False
        """Whether the call under way was sent while its gate was halted."""

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
        full = self._filling_bytes + size > self._policy.batch_bytes
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
            if self._filling_bytes + size > self._policy.batch_bytes:  # one by one, to see where it is full
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
        if self._again and self._again[0][0] <= now:
            batch = heapq.heappop(self._again)[2]
            self.queued -= len(batch.deliveries)
            batch.number = number
            return batch
        if not self._ready and self._filling and now >= self._filling_since + self._policy.linger:
            self._close()
        if not self._ready:
            return None
        deliveries = self._ready.popleft()
        self.queued -= len(deliveries)
        return Batch(number, self.account, deliveries)

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
        self._filling_bytes = _ENVELOPE + sum(len(delivery.body) + 1 for delivery in self._filling)
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
