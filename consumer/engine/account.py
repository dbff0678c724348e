"""One ad account: its gate (when a call may go) and its queue (what goes in the call).

Theory of operation. *The gate.* A call may go when four things allow it:

* quota: at most `calls_per_minute` calls in any 60 seconds (the platform's limit for an ad account is 5,000). Members
  with a shared key store have one quota together: each asks there for the calls that it could make now (`Allowance`).
  Without one, the quota is divided by the number of members that hold partitions (`Quota`);
* throttle: closed until the time that a 429 named; and if answers carry ``x-ratelimit-remaining``, no more calls than
  that until ``x-ratelimit-reset`` (docs/platform.md);
* pace: calls in flight at once. A success adds one; an attempt without a verdict, or a 429, halves it, so that an
  account in trouble does not hold the connections that the others need;
* halt: a refused token (401) or account (403, 404) is an outage, not a bad event. Only one probe at a time goes, after
  the token was read again. The first answer that is not a refusal ends the halt (docs/architecture.md, rule 7).

A gate also knows since when calls have brought no verdict: after `Policy.unreachable_after` the destination counts as
unreachable. That closes nothing: calls go on with their backoff, and the first verdict ends it.

*The queue.* Events fill one batch per account (`AccountQueue`). One rule says when it goes: it is full (it holds
`batch_events`, or the next event would take it over `batch_bytes`), or its oldest event has waited *the wait*. That is
`linger`, or longer where calls are few: batches that are not full use at most half of the quota, evenly
(`Gate.filled_at`), and the rest is for full ones. While no call may begin, the batch fills.

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
from typing import Final

from consumer.engine.block import Run, cut, divide, each_of, rows_of
from consumer.engine.model import Announcement, GateState, Policy

_MINUTE = 60.0
TOKEN_REFUSED: Final = 401
# Seconds that calls may take to begin once the store has given them, and the most that this is raised to.
_VALID, _VALID_MOST = 2.0, 10.0
_OPENING, _CLOSING = b'{"data":[', b"]}"
_ENVELOPE = len(_OPENING + _CLOSING)
# A call keeps at most this many times its bytes in memory.
_WORTH_ITS_PAGE = 4
# Seconds after which the limit in bytes doubles: at first, and where larger bodies were tried and refused.
_GROW_AFTER, _GROW_AFTER_MOST = 15.0, 600.0


@dataclass(slots=True)
class Halt:
    """A refusal in force. `status` is the HTTP status, `code` the platform's error code; times are monotonic."""

    status: int
    code: int | None
    since: float
    probe_at: float
    refusals: int = 1
    reading_token: bool = False
    may_probe: bool = False
    waiting_since: float = 0.0
    """Since when events have waited for the end of the halt (monotonic)."""
    by_member: bool = False
    """True if another member met the refusal, and our own calls have not yet."""

    @property
    def reason(self) -> str:
        """The refusal in words."""
        what = {401: "the access token is refused", 403: "the token may not use this ad account"}
        text = what.get(self.status, "the ad account is unknown")
        code = "" if self.code is None else f", code {self.code}"
        return f"{text} (HTTP {self.status}{code})" + (
            ", as another member reported" if self.by_member else ""
        )


@dataclass(slots=True)
class Allowance:
    """Calls to an account that the shared key store has given to this member. Times are monotonic.

    By default they are unlimited: no store counts the calls of all members.
    """

    calls: float = math.inf
    until: float = math.inf
    """When calls that are left become void: the store counts them for a minute from then."""
    asked: int | None = None
    """The number of the question under way."""
    asked_at: float = 0.0
    seconds: float = _VALID
    """Seconds for which calls are asked for."""
    used_up_until: float = 0.0
    """No call is free before, as the store said."""
    ask_at: float = 0.0
    """The store is not asked again before, because it did not answer."""
    failures: int = 0

    def given(self, now: float) -> bool:
        """Return True if a call may be made."""
        return self.calls > 0 and now < self.until

    def answered(self, calls: int, wait: float, now: float) -> None:
        """Take the answer: calls, or the seconds to wait for some."""
        self.asked, self.failures = None, 0
        self.calls, self.until = calls, self.asked_at + self.seconds
        self.used_up_until = now + wait
        # Calls that the store gives too late are void. So that a slow store does not stop everything, ask for more
        # time.
        self.seconds = min(_VALID_MOST, _VALID + now - self.asked_at)


class Quota:
    """This member's part of each account's calls a minute.

    Members divide it, unless a shared key store counts the calls of all. A smaller part takes effect at once, a larger
    one after a minute: until then the platform still counts the calls of the members that had it.
    """

    def __init__(self, policy: Policy) -> None:
        self._whole = policy.calls_per_minute
        self.divided = policy.quota_members > 0
        self.members = max(1, policy.quota_members)
        # Live sessions in a shared key store that make calls to the same destination, ours included.
        self.sessions = 1
        self._destination = policy.destination or ""
        # Since when the group has had fewer members, and the highest number that it had in that time.
        self._fewer: tuple[float, int] | None = None

    @property
    def calls(self) -> int:
        """Our calls in any 60 seconds; at least one, or an account with more members than calls would stand still."""
        return max(1, self._whole // self.members)

    @property
    def wait(self) -> float:
        """Seconds that a batch that is not full waits at least, so that such calls use half of our part."""
        return 2 * _MINUTE * self.sessions / self.calls

    def shared_with(self, others: Iterable[Announcement]) -> None:
        """Take what the other live sessions in the shared key store announce."""
        self.sessions = 1 + sum(one.destination == self._destination for one in others)

    def group_has(self, members: int, now: float) -> None:
        """Take the number of members that hold partitions, as the brokers have just said."""
        if not self.divided:
            return
        if members >= self.members:
            self.members, self._fewer = members, None
            return
        # The highest number counts: a member that came and went in this minute has made calls, too.
        since, most = self._fewer or (now, members)
        self._fewer = since, max(most, members)
        if now >= since + _MINUTE:
            self.members, self._fewer = max(1, most, members), None


class Gate:
    """Says when the next call to one ad account may go. All times are monotonic seconds."""

    def __init__(self, policy: Policy, quota: Quota | None = None) -> None:
        self._policy = policy
        self._quota = quota or Quota(policy)
        # When calls of the last 60 seconds were sent.
        self._calls: deque[float] = deque()
        # When the first call was sent after a minute without any.
        self._began = 0.0
        self.allowance = Allowance(calls=0) if policy.lease else Allowance()
        self._remaining: int | None = None
        self._reset_at = 0.0
        self.closed_until = 0.0
        # Until when the gate is closed because another member was throttled.
        self._by_member_until = 0.0
        # Until when notes that this account is refused are ignored (`Halts`).
        self.doubts_until = 0.0
        self.pace = float(policy.concurrency)
        self.halt: Halt | None = None
        # Since when calls have brought no verdict; None: no call is in flight.
        self.silent_since: float | None = None
        # When a call last brought a verdict on events.
        self.judged_at = float("-inf")
        # Why the latest call without a verdict brought none.
        self.last_trouble = ""
        # Whether the log says that the destination is unreachable.
        self.silence_is_logged = False

    def opens_at(self, now: float, in_flight: int) -> float | None:
        """Return when the next call may go; not after `now`: at once; None: not before another answer comes."""
        if self.halt is not None:
            # A probe is a call like any other, so throttle and quota hold for it too.
            if in_flight or not self.halt.may_probe:
                return None
        elif in_flight >= int(self.pace):
            return None
        opens, allowance = max(self.throttled_until(now), self._evenly_at(now)), self.allowance
        if allowance.given(now):
            return opens
        return None if allowance.asked is not None else max(opens, allowance.ask_at)

    def called(self, now: float) -> None:
        """Count a call that is sent now."""
        if not self._calls:
            self._began = now
        self._calls.append(now)
        self.allowance.calls -= 1
        # The oldest call without an answer counts; later calls do not restart the time.
        if self.silent_since is None:
            self.silent_since = now
        # The header does not count this call.
        if self._remaining is not None:
            self._remaining = max(0, self._remaining - 1)
        if self.halt is not None:
            self.halt.may_probe = False

    def limited(self, remaining: int | None, reset: float | None, now: float) -> None:
        """Take an answer's rate-limit headers: the calls that remain, and the seconds until the limit is reset."""
        if remaining is not None and reset is not None:
            self._remaining = remaining
            # A header must not stop us for a day.
            self._reset_at = now + min(reset, self._policy.throttle_cap)

    def close(self, until: float, *, by_member: bool = False) -> None:
        """Let no call go before `until`, because of a 429; `by_member`: another member met it."""
        self.closed_until = max(self.closed_until, until)
        if self.silent_since is not None:
            # No call goes while the gate is closed, so there can be no answer: the platform is not silent.
            self.silent_since = max(self.silent_since, until)
        if by_member:
            self._by_member_until = self.closed_until
        else:
            self.slow_down()

    def told_by_member(self, now: float) -> bool:
        """Return True if the account is halted or closed because of what another member has met."""
        return (
            self.halt.by_member if self.halt is not None else now < self.closed_until == self._by_member_until
        )

    def slow_down(self) -> None:
        """Halve the number of calls at once, because one brought no verdict."""
        self.pace = max(1.0, self.pace / 2)

    def judged(self, now: float) -> None:
        """Allow one more call at once, because one brought a verdict on events."""
        self.judged_at = now
        self.pace = min(float(self._policy.concurrency), self.pace + 1)

    def heard(self, now: float, in_flight: int) -> bool:
        """Take note of an answer; `in_flight` more calls have none yet. Return True if it ends a logged silence."""
        # For calls still in flight, silence counts from this answer on.
        self.silent_since = now if in_flight else None
        was_logged, self.silence_is_logged = self.silence_is_logged, False
        return was_logged

    def unreachable_at(self) -> float:
        """Return when the account counts as unreachable unless an answer comes; infinity: no call is in flight."""
        return math.inf if self.silent_since is None else self.silent_since + self._policy.unreachable_after

    @property
    def reason(self) -> str:
        """Why no event is delivered, while the account is halted or unreachable."""
        if self.halt is not None:
            return self.halt.reason
        return f"no verdict on any event; the latest call: {self.last_trouble or 'not answered yet'}"

    def refuse(self, status: int, code: int | None, now: float, *, by_member: bool = False) -> Halt | None:
        """Begin a halt because of a refusal; return it, or None if there is one. `by_member`: as in `close`."""
        if self.halt is not None:
            return None
        probe_at = now + self._policy.probe_backoff.delay(1)
        self.halt = Halt(status, code, now, probe_at, waiting_since=now, by_member=by_member)
        return self.halt

    def refuse_again(self, status: int, code: int | None, now: float, jitter: float) -> None:
        """Send the next probe later, because one was refused."""
        if (halt := self.halt) is not None:
            halt.status, halt.code, halt.by_member = status, code, False
            halt.refusals += 1
            # Half of the longest delay is fixed: a refused client must not probe at once, again and again.
            halt.probe_at = now + self._policy.probe_backoff.delay(halt.refusals, 0.5 + jitter / 2)

    def postpone_probe(self, now: float) -> None:
        """Send the next probe after the shortest delay, because one got no verdict."""
        if self.halt is not None:
            self.halt.may_probe = False
            self.halt.probe_at = now + self._policy.probe_backoff.delay(1)

    def state(self, now: float) -> GateState:
        """Return the state to show."""
        if self.halt is not None:
            return GateState.HALTED
        if now >= self.unreachable_at():
            return GateState.UNREACHABLE
        return GateState.THROTTLED if self.throttled_until(now) > now else GateState.OPEN

    def throttled_until(self, now: float) -> float:
        """Return when throttle, quota and the answers' headers let a call go; not after `now`: at once."""
        if now >= self._reset_at:
            self._remaining = None
        opens = max(self.closed_until, self._quota_at(now))
        if not self.allowance.given(now):
            opens = max(opens, self.allowance.used_up_until)
        return max(opens, self._reset_at) if self._remaining == 0 else opens

    def filled_at(self, since: float) -> float:
        """Return when a batch that is not full has waited long enough; `since`: when its oldest event came.

        Calls that the headers leave are divided among members, too, and over the time to their reset.
        """
        filled = since + max(self._policy.linger, self._quota.wait)
        if not self._remaining:  # with none left the gate is closed
            return filled
        # The time at which two such waits have as many seconds as are left for each call of ours.
        share = 2 * self._quota.members * self._quota.sessions / self._remaining
        return max(filled, (since + share * self._reset_at) / (1 + share))

    def _quota_at(self, now: float) -> float:
        calls, most = self._calls, self._quota.calls
        # Compared in the form that is returned: in another one, rounding could open the gate and keep the count.
        while calls and calls[0] + _MINUTE <= now:
            calls.popleft()
        # There may be more than `most`, if our part of the quota has become smaller.
        return now if len(calls) < most else calls[-most] + _MINUTE

    def _evenly_at(self, now: float) -> float:
        """Return when a divided quota lets the next call go, within the first minute of calls.

        The partitions may have just come from members that used up the whole quota. As those members' calls get older
        than a minute, ours may take their place, one after the other.
        """
        if not self._quota.divided or not self._calls or now >= self._began + _MINUTE:
            return now
        return self._began + _MINUTE * min(1.0, len(self._calls) / self._quota.calls)


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

    def parts(self) -> Sequence[bytes | memoryview]:
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
        self._filling_since = 0.0
        # Batches that are full, or have waited.
        self.ready: deque[Sequence[Run]] = deque()
        # A heap of batches to be retried, by time. The number keeps two of the same time in order.
        self.again: list[tuple[float, int, Batch]] = []
        # Bytes of a body at most; less than the policy's limit where that was too large.
        self._most_bytes = policy.batch_bytes
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
            room = self._most_bytes - self._filling_bytes
            fit = bisect_right(block.ends, block.start(first) + room, first, first + count) - first
            if not fit and self.filling:
                self._close()
                continue
            if not self.filling:
                self._filling_since = now
            some = Run(block, first, first + max(1, fit))  # one alone goes, however large
            self.filling.append(some)
            self._filling_bytes += some.size
            self._filling_events += some.end - first
            self.queued += some.end - first
            if self._filling_events >= self._policy.batch_events:
                self._close()
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
            self._close()
        if not self.ready:
            return None
        runs, rest = self._fitting(self.ready.popleft())
        if rest:
            self.ready.appendleft(rest)
        self.queued -= rows_of(runs)
        return Batch(number, self.account, runs)

    def takeable(self, now: float) -> int:
        """Return how many batches `take` would return now."""
        filled = bool(self.filling) and now >= self._filled_at()
        return sum(at <= now for at, _, _ in self.again) + len(self.ready) + filled

    def _grow(self, now: float) -> None:
        if self._most_bytes < self._policy.batch_bytes and now >= self._grow_at:
            self._most_bytes = min(2 * self._most_bytes, self._policy.batch_bytes)
            self._grow_at, self._grown = now + self._grow_after, True

    def shrink(self, size: int, now: float) -> None:
        """Limit bodies to half of `size` bytes: a body of this size, with several events, was too large."""
        if size // 2 < self._most_bytes:  # otherwise it was sent before the limit was known
            self._most_bytes = size // 2
            # A larger body was tried, and refused again: try less often.
            if self._grown:
                self._grow_after = min(2 * self._grow_after, _GROW_AFTER_MOST)
            self._grown = False
        self._grow_at = now + self._grow_after

    def _fitting(self, runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[Run]]:
        """Return the runs that fit into the limit in bytes, at least one event, and the rest."""
        if self._most_bytes >= self._policy.batch_bytes or _size_of(runs) <= self._most_bytes:
            return runs, ()
        up_to = [*accumulate((row.size for row in each_of(runs)), initial=_ENVELOPE)]
        return cut(runs, max(1, bisect_right(up_to, self._most_bytes) - 1))

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
        return self._filled_at() - self._filling_since if self.filling else 0.0

    def _filled_at(self) -> float:
        return self.gate.filled_at(self._filling_since)

    def purge(self, stays: Callable[[Run], bool] = attrgetter("accepted")) -> list[Run]:
        """Remove and return all rows that fail the test `stays`: by default those for which no new work may begin."""
        kept, gone = divide(self.filling, stays)
        self.filling = [*kept]
        self._filling_events, self._filling_bytes = rows_of(kept), _size_of(kept)
        divided = [divide(runs, stays) for runs in self.ready]
        self.ready = deque(runs for runs, _ in divided if runs)
        gone += chain.from_iterable(rest for _, rest in divided)
        for _, _, batch in self.again:
            batch.runs, rest = divide(batch.runs, stays)
            gone += rest
        self.again = [entry for entry in self.again if entry[2].runs]
        heapq.heapify(self.again)
        self.queued -= rows_of(gone)
        return gone

    def _close(self) -> None:
        self.ready.append(self.filling)
        self.filling, self._filling_events, self._filling_bytes = [], 0, _ENVELOPE


def _size_of(runs: Iterable[Run]) -> int:
    """Return the bytes of a body with these runs."""
    return _ENVELOPE + sum([run.size for run in runs])
