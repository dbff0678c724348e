"""What goes in a call to an ad account: the batch that fills, full ones, and those that are sent again.

Theory of operation. Events fill one batch per account (`AccountQueue`). One rule says when it goes: it is full (it
holds `batch_events`, or the next event would take it over `batch_bytes`), or its oldest event has waited *the wait*
since it came and since the batch before was closed. That is `linger`, or longer where calls are few: batches that are
not full use at most half of the quota, evenly (`Gate.filled_at`), and the rest is for full ones. While no call may
begin, the batch fills.

Refused or unanswered batches come back: at once (bisected halves) or at their time (backoff). Retries go first: they
have the oldest records, and the oldest record holds back the commit.

Where a body was too large for the platform or a server in between, bodies are limited to half of its size from then on
(`shrink`); batches that are larger already are cut when they are taken. Every 15 s the limit doubles, until it is gone,
because its cause may be gone, too. If a larger body is refused again, the time until the next try doubles, up to ten
minutes.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import attrgetter

from consumer.engine.model import Policy
from consumer.engine.records.runs import Run, cut, divide, each_of, rows_of
from consumer.engine.sending.gate import Gate

_OPENING, _CLOSING = b'{"data":[', b"]}"
_ENVELOPE = len(_OPENING + _CLOSING)
# A call keeps at most this many times its bytes in memory.
_WORTH_ITS_PAGE = 4
# Seconds after which the limit in bytes doubles: at first, and where larger bodies were tried and refused.
_GROW_AFTER, _MAX_GROW_AFTER = 15.0, 600.0


BodyParts = Sequence[bytes | memoryview]
"""A body, in parts."""


@dataclass(eq=False, slots=True)
class Batch:
    """Runs of events that are sent in one call."""

    number: int
    account: str
    runs: Sequence[Run]
    attempts: int = 0
    """Calls made with its events."""
    failures: int = 0
    """Calls in a row that brought no verdict."""
    failing_since: float = 0.0
    """Since when its events may be the reason: since the first of these failures, the last 429, or a bisection."""
    session: int = 0
    """The session in a shared key store that had its events' claims when its last call was sent."""
    sent_at: float = 0.0
    """When its last call was sent (monotonic)."""
    sent_bytes: int = 0
    """Bytes of the body of that call."""
    probe: bool = False
    """True if the call under way was sent while the account was halted."""

    @property
    def events(self) -> int:
        """Number of its events."""
        return rows_of(self.runs)

    @property
    def size(self) -> int:
        """Bytes of the request body."""
        return _size_of(self.runs)

    def parts(self) -> BodyParts:
        """Return the request body in parts: most events are sent from where they were serialised, once."""
        pages = [
            memoryview(block.page)[block.start(first) : block.ends[end - 1]]
            for block, first, end in self.runs
        ]
        pages[-1] = pages[-1][:-1]  # no comma behind the last event
        # A view keeps its whole page in memory during the call, although the block may have dropped most of it by then,
        # and no budget counts that. So a small part of a page is copied.
        parts = [
            page if _WORTH_ITS_PAGE * len(page) >= len(run.block.page) else bytes(page)
            for page, run in zip(pages, self.runs, strict=True)
        ]
        return [_OPENING, *parts, _CLOSING]

    def purge(self, stays: Callable[[Run], bool] = attrgetter("accepted")) -> list[Run]:
        """Remove and return all rows that fail the test `stays`: by default those for which no new work may begin."""
        self.runs, gone = divide(self.runs, stays)
        return gone

    def failed(self, now: float, *, blameless: bool = False) -> None:
        """Count a call that brought no verdict. `blameless`: nothing in the batch is the reason."""
        self.failures += 1
        if blameless or self.failures == 1:
            self.failing_since = now

    def halves(self, first: int, second: int) -> tuple[Batch, Batch]:
        """Bisect a refused batch: return two new ones with these numbers that keep its calls and failures."""
        one, other = cut(self.runs, self.events // 2)
        return replace(self, number=first, runs=one), replace(self, number=second, runs=other)


class AccountQueue:
    """The batches that wait to be sent to one ad account."""

    def __init__(self, account: str, policy: Policy, gate: Gate) -> None:
        self.account = account
        self.gate = gate
        self.in_flight = 0
        self._policy = policy
        # The batch being filled, and its events and bytes, counted as it grows by runs.
        self.filling: list[Run] = []
        self._filling_events = 0
        self._filling_bytes = _ENVELOPE
        # When its oldest event came, and when the batch before it was closed.
        self._oldest = self._closed_at = -math.inf
        # Batches that are full, or have waited.
        self.ready: deque[Sequence[Run]] = deque()
        # A heap of batches to be retried, by time. The number keeps two of the same time in order.
        self.again: list[tuple[float, int, Batch]] = []
        # Bytes of a body at most; less than the policy's limit where that was too large.
        self._max_bytes = policy.batch_bytes
        self._grow_at = 0.0
        self._grow_after = _GROW_AFTER
        self._grown = False
        self.queued = 0

    @property
    def is_idle(self) -> bool:
        """True if nothing waits, is in flight or is probed."""
        return not (self.queued or self.in_flight or self.gate.halt)

    def add(self, run: Run, now: float) -> None:
        """Add new events to the batch being filled, as many at a time as it has room for."""
        self._grow(now)
        block, first, end = run
        while first < end:
            count = min(end - first, self._policy.batch_events - self._filling_events)
            room = self._max_bytes - self._filling_bytes
            fit = bisect_right(block.ends, block.start(first) + room, first, first + count) - first
            if not fit and self.filling:
                self._close(now)
                continue
            self._oldest = min(self._oldest, block.since) if self.filling else block.since
            some = Run(block, first, first + max(1, fit))  # one alone goes, however large
            self.filling.append(some)
            self._filling_bytes += some.size
            self._filling_events += some.end - first
            self.queued += some.end - first
            if self._filling_events >= self._policy.batch_events:
                self._close(now)
            first = some.end

    def put_back(self, batch: Batch, at: float) -> None:
        """Queue a batch that is to be retried, not before `at`."""
        heapq.heappush(self.again, (at, batch.number, batch))
        self.queued += batch.events

    def take(self, now: float, number: int) -> Batch | None:
        """Return the next batch that may go now: due retries first, then full batches, then one that has waited
        long enough.

        `number` names the call. All that is taken is ours: `purge` removes events as soon as they are not.
        """
        self._grow(now)
        # First batches that were sent before: they have the oldest records, and those hold back the commit.
        if self.again and self.again[0][0] <= now:
            at, _, batch = heapq.heappop(self.again)
            self.queued -= batch.events
            batch.runs, rest = self._fitting(batch.runs)
            if rest:
                self.put_back(replace(batch, runs=rest), at)
            batch.number = number
            return batch
        if not self.ready and self.filling and now >= self._filled_at():
            self._close(now)
        if not self.ready:
            return None
        runs, rest = self._fitting(self.ready.popleft())
        if rest:
            self.ready.appendleft(rest)
        self.queued -= rows_of(runs)
        return Batch(number, self.account, runs)

    def begin(self, batch: Batch, now: float, session: int) -> BodyParts:
        """Begin a call with a batch that was taken. Return its body. `session`: see `consumer.engine.dedup.lease`."""
        batch.attempts += 1
        # Only the answer to a probe concerns the present token: calls in flight were sent with the one before.
        batch.probe = self.gate.halt is not None
        self.in_flight += 1
        self.gate.called(now)
        batch.sent_at, batch.session = now, session
        parts = batch.parts()
        batch.sent_bytes = sum(map(len, parts))
        return parts

    def ended(self) -> None:
        """Take the end of a call."""
        self.in_flight -= 1

    def takeable(self, now: float) -> int:
        """Return how many batches `take` would return now."""
        filled = bool(self.filling) and now >= self._filled_at()
        return sum(at <= now for at, _, _ in self.again) + len(self.ready) + filled

    def _grow(self, now: float) -> None:
        if self._max_bytes < self._policy.batch_bytes and now >= self._grow_at:
            self._max_bytes = min(2 * self._max_bytes, self._policy.batch_bytes)
            self._grow_at, self._grown = now + self._grow_after, True

    def shrink(self, size: int, now: float) -> None:
        """Limit bodies to half of `size` bytes: a body of this size, with several events, was too large."""
        if size // 2 < self._max_bytes:  # otherwise it was sent before the limit was known
            self._max_bytes = size // 2
            # A larger body was tried, and refused again: try less often.
            if self._grown:
                self._grow_after = min(2 * self._grow_after, _MAX_GROW_AFTER)
            self._grown = False
        self._grow_at = now + self._grow_after

    def _fitting(self, runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
        """Return the runs that fit into the limit in bytes, at least one event, and the rest."""
        if self._max_bytes >= self._policy.batch_bytes or _size_of(runs) <= self._max_bytes:
            return runs, ()
        up_to = [*accumulate((row.size for row in each_of(runs)), initial=_ENVELOPE)]
        return cut(runs, max(1, bisect_right(up_to, self._max_bytes) - 1))

    def due(self) -> float | None:
        """Return when a batch is next ready to be taken; None while none waits."""
        if self.ready:
            return -math.inf
        times = [self.again[0][0]] if self.again else []
        if self.filling:
            times.append(self._filled_at())
        return min(times, default=None)

    def fills_for(self) -> float:
        """Return how many seconds the batch that fills now waits in all; 0: none does."""
        return self._filled_at() - self._since if self.filling else 0.0

    @property
    def _since(self) -> float:
        # Not while the batch before filled: batches that are not full would come closer than the wait.
        return max(self._oldest, self._closed_at)

    def _filled_at(self) -> float:
        return self.gate.filled_at(self._since)

    def purge(self, stays: Callable[[Run], bool] = attrgetter("accepted")) -> list[Run]:
        """Remove and return all rows that fail the test `stays`: by default those for which no new work may begin."""
        kept, gone = divide(self.filling, stays)
        self.filling = [*kept]
        self._filling_events, self._filling_bytes = rows_of(kept), _size_of(kept)
        divided = [divide(runs, stays) for runs in self.ready]
        self.ready = deque(runs for runs, _ in divided if runs)
        gone += chain.from_iterable(rest for _, rest in divided)
        for _, _, batch in self.again:
            gone += batch.purge(stays)
        self.again = [entry for entry in self.again if entry[2].runs]
        heapq.heapify(self.again)
        self.queued -= rows_of(gone)
        return gone

    def _close(self, now: float) -> None:
        self.ready.append(self.filling)
        self._closed_at = now
        self.filling, self._filling_events, self._filling_bytes = [], 0, _ENVELOPE


def _size_of(runs: Iterable[Run]) -> int:
    """Return the bytes of a body with these runs."""
    return _ENVELOPE + sum([run.size for run in runs])
