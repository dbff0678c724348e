"""An ad account's gate: quota, throttle, pace, and the halt on a refused token or account.

Theory of operation. A call may go when four things allow it:

* quota: at most `calls_per_minute` calls in any 60 seconds (OAS: 5,000 per ad account), counted exactly;
* throttle: closed until the moment a 429 named; and where answers say ``x-ratelimit-remaining``, no more calls
  than remain until ``x-ratelimit-reset``: what the headers say holds (docs/platform.md);
* pace: calls in flight at once; halved when an attempt gets no verdict or a 429, one more for each success, so
  that an account in trouble does not hold the connections the others need;
* halt: a refused token (401) or account (403, 404) is an outage, not a bad event. Nothing goes but one probe at
  a time, after the token was read again; the first answer that is not a refusal ends it (docs/architecture.md, rule 7).

And it knows for how long calls have brought no verdict: after `Policy.unreachable_after` of that the destination is
unreachable. That closes nothing: calls go on, behind their backoff, and the first verdict ends it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from consumer.engine.model import GateState, Policy

_MINUTE = 60.0


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
    """Since when events wait for its end: patience is for those."""

    @property
    def reason(self) -> str:
        """What is refused, in words."""
        what = {401: "the access token is refused", 403: "the token may not use this ad account"}
        text = what.get(self.status, "the ad account is unknown")
        return f"{text} (HTTP {self.status}" + (f", code {self.code})" if self.code is not None else ")")


class Gate:
    """Whether, and when, the next call to one ad account may go. All times are monotonic seconds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._calls: deque[float] = deque()
        self._remaining: int | None = None
        self._reset_at = 0.0
        self.closed_until = 0.0
        self.pace = float(policy.concurrency)
        self.halt: Halt | None = None
        self.silent_since: float | None = None
        """Since when calls go out and bring no verdict; None: none is out there."""
        self.judged_at = float("-inf")
        """When a call last brought a verdict on events."""
        self.last_trouble = ""
        """Why the latest call without a verdict brought none, in words."""
        self.told_silence = False
        """Whether it was told that the destination is unreachable."""

    def opens_at(self, now: float, in_flight: int) -> float | None:
        """When the next call may go by this gate (now or earlier: at once); None: only an answer can tell."""
        if self.halt is not None:
            # A probe is a call like any other: it keeps to the throttle and the quota too.
            if in_flight or not self.halt.may_probe:
                return None
        elif in_flight >= int(self.pace):
            return None
        return max(self.closed_until, self._quota_at(now), self._pace_at(now))

    def called(self, now: float) -> None:
        """A call goes out."""
        self._calls.append(now)
        if self.silent_since is None:
            self.silent_since = now
        if self._remaining is not None:
            self._remaining = max(0, self._remaining - 1)
        if self.halt is not None:
            self.halt.may_probe = False

    def told(self, remaining: int | None, reset: float | None, now: float) -> None:
        """An answer's rate-limit headers: calls that remain, and seconds until the limit is set back."""
        if remaining is None or reset is None:
            return
        self._remaining = remaining
        self._reset_at = now + min(reset, self._policy.throttle_cap)

    def close(self, until: float) -> None:
        """A 429: nothing goes before `until`."""
        self.closed_until = max(self.closed_until, until)
        if self.silent_since is not None:
            # Nothing goes while it is closed, so nothing can be answered.
            self.silent_since = max(self.silent_since, until)
        self.slow_down()

    def slow_down(self) -> None:
        """No verdict came: half as many at once."""
        self.pace = max(1.0, self.pace / 2)

    def judged(self, now: float) -> None:
        """A verdict on events came: one more call at once."""
        self.judged_at = now
        self.pace = min(float(self._policy.concurrency), self.pace + 1)

    def heard(self, now: float, in_flight: int) -> bool:
        """The platform said something; `in_flight` more calls wait for an answer. True if that ends a told silence."""
        self.silent_since = now if in_flight else None
        told, self.told_silence = self.told_silence, False
        return told

    def forget_silence(self) -> None:
        """Nothing is left to be sent: whether anything would come through is not known."""
        self.silent_since = None
        self.told_silence = False

    def unheard(self, trouble: str) -> None:
        """A call brought no verdict, and this is why."""
        self.last_trouble = trouble

    def unreachable_at(self) -> float | None:
        """When it counts as unreachable if nothing is heard till then (monotonic); None: no call is out."""
        return None if self.silent_since is None else self.silent_since + self._policy.unreachable_after

    def unreachable(self, now: float) -> bool:
        """Whether calls have brought no verdict for too long."""
        at = self.unreachable_at()
        return at is not None and now >= at

    @property
    def reason(self) -> str:
        """Why nothing comes through, in words, while it is halted or unreachable."""
        if self.halt is not None:
            return self.halt.reason
        return f"no verdict on any event; the latest call: {self.last_trouble or 'not answered yet'}"

    def refuse(self, status: int, code: int | None, now: float) -> bool:
        """A refusal came. True if it begins a halt, False if one is already in force."""
        if self.halt is not None:
            return False
        self.halt = Halt(status, code, now, now + self._policy.probe_backoff.ceiling(1), waiting_since=now)
        return True

    def refuse_again(self, status: int, code: int | None, now: float, jitter: float) -> None:
        """A probe was refused: the next one comes later."""
        halt = self.halt
        if halt is None:
            return
        halt.status, halt.code = status, code
        halt.refusals += 1
        # Half of the ceiling is fixed: probing at once, time and again, is what a refused client must not do.
        halt.probe_at = now + self._policy.probe_backoff.ceiling(halt.refusals) * (0.5 + jitter / 2)

    def postpone_probe(self, now: float) -> None:
        """A probe got no verdict: the halt stands, the next probe comes after the shortest delay."""
        if self.halt is not None:
            self.halt.may_probe = False
            self.halt.probe_at = now + self._policy.probe_backoff.ceiling(1)

    def state(self, now: float) -> GateState:
        """For people: halted, unreachable, throttled (by a 429 or the quota), or open."""
        if self.halt is not None:
            return GateState.HALTED
        if self.unreachable(now):
            return GateState.UNREACHABLE
        if max(self.closed_until, self._quota_at(now), self._pace_at(now)) > now:
            return GateState.THROTTLED
        return GateState.OPEN

    def throttled_until(self, now: float) -> float:
        """When a throttled gate opens, monotonic; in the past when it is open."""
        return max(self.closed_until, self._quota_at(now), self._pace_at(now))

    def _quota_at(self, now: float) -> float:
        calls = self._calls
        # Compared as it is returned: with the terms turned round, rounding would open the gate and keep the count.
        while calls and calls[0] + _MINUTE <= now:
            calls.popleft()
        if len(calls) < self._policy.calls_per_minute:
            return now
        return calls[0] + _MINUTE

    def _pace_at(self, now: float) -> float:
        if self._remaining is None or now >= self._reset_at:
            self._remaining = None
            return now
        return now if self._remaining else self._reset_at
