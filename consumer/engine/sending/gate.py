"""When a call to an ad account may go: quota, throttle, pace and halt.

Theory of operation. A call may go when four things allow it:

* quota: at most `calls_per_minute` calls in any 60 seconds (the platform's limit for an ad account is 5,000). Members
  with a shared key store have one quota together: each asks there for the calls that it could make now (`Permits`).
  Without one, the quota is divided by the number of members that hold partitions (`Quota`);
* throttle: closed until the time that a 429 named; and if answers carry ``x-ratelimit-remaining``, no more calls than
  that until ``x-ratelimit-reset`` (docs/platform.md);
* pace: calls in flight at once. A success adds one; an attempt without a verdict, or a 429, halves it, so that an
  account that fails does not hold the connections that the others need;
* halt: a refused token (401) or account (403, 404) is an outage, not a bad event. Only one probe at a time goes, after
  the token was read again. The first answer that is not a refusal ends the halt (docs/architecture.md, rule 7).

A gate also knows since when calls have brought no verdict: after `Policy.unreachable_after` the destination counts as
unreachable. That closes nothing: calls go on with their backoff, and the first verdict ends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from consumer.engine.model import Announcement, Backoff, GateState, Policy
from consumer.errors import bug

_MINUTE = 60.0
TOKEN_REFUSED: Final = 401
# Seconds that calls may take to begin once the store has given them, and the most that this is raised to.
_VALID, _MAX_VALID = 2.0, 10.0


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

    def refused_again(self, probed: Halt | None) -> None:
        """Take a refusal of another call. `probed`: the halt whose probe was refused, if it was one."""
        self.may_probe = False
        # Where one probe found the shared token refused, the other accounts need not probe as well.
        if probed is not None and self.status == TOKEN_REFUSED:
            self.probe_at = probed.probe_at

    def token_read(self, changed: bool) -> None:
        """Let a probe go that waited for the token to be read again."""
        if self.reading_token:
            self.reading_token, self.may_probe = False, True
            # With a new token the delay between probes begins again at its shortest.
            self.refusals = 1 if changed else self.refusals

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
class Permits:
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

    def are_left(self, now: float) -> bool:
        """Return True if a call may be made."""
        return self.calls > 0 and now < self.until

    def ask(self, number: int, now: float) -> None:
        """Note the question `number`."""
        if self.asked is not None:
            raise bug("calls were asked for twice")
        self.asked, self.asked_at = number, now

    def unanswered(self, now: float, backoff: Backoff, jitter: float) -> None:
        """Ask later, because the store did not answer."""
        self.failures += 1
        self.asked, self.ask_at = None, now + backoff.delay(self.failures, 0.5 + jitter / 2)

    def answered(self, calls: int, wait: float, now: float) -> None:
        """Take the answer: calls, or the seconds to wait for some."""
        self.asked, self.failures = None, 0
        self.calls, self.until = calls, self.asked_at + self.seconds
        self.used_up_until = now + wait
        # Calls that the store gives too late are void. So that a slow store does not stop everything, ask for more
        # time.
        self.seconds = min(_MAX_VALID, _VALID + now - self.asked_at)


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
        since, maximum = self._fewer or (now, members)
        self._fewer = since, max(maximum, members)
        if now >= since + _MINUTE:
            self.members, self._fewer = max(1, maximum, members), None


class Gate:
    """Says when the next call to one ad account may go. All times are monotonic seconds."""

    def __init__(self, policy: Policy, quota: Quota | None = None) -> None:
        self._policy = policy
        self._quota = quota or Quota(policy)
        # When calls of the last 60 seconds were sent.
        self._calls: deque[float] = deque()
        # When the first call was sent after a minute without any.
        self._began = 0.0
        self.permits = Permits(calls=0) if policy.lease else Permits()
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
        self.last_error = ""
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
        opens, permits = max(self.throttled_until(now), self._evenly_at(now)), self.permits
        if permits.are_left(now):
            return opens
        return None if permits.asked is not None else max(opens, permits.ask_at)

    def called(self, now: float) -> None:
        """Count a call that is sent now."""
        if not self._calls:
            self._began = now
        self._calls.append(now)
        self.permits.calls -= 1
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

    def is_of_member(self, now: float) -> bool:
        """Return True if the account is halted or closed because of what another member has met."""
        return (
            self.halt.by_member if self.halt is not None else now < self.closed_until == self._by_member_until
        )

    def slow_down(self) -> None:
        """Halve the number of calls at once, because one brought no verdict."""
        self.pace = max(1.0, self.pace / 2)

    def unjudged(self, error: str, now: float, *, failed: bool) -> None:
        """Take a call that brought no verdict, and why. `failed`: it was begun."""
        self.last_error = error
        # More calls at once would only meet the same error.
        if failed:
            self.slow_down()
        self.postpone_probe(now)

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

    def note_silence(self, now: float) -> bool:
        """Note whether the account is unreachable by now. Return True if that is new."""
        is_new = not self.silence_is_logged and now >= self.unreachable_at()
        self.silence_is_logged = self.silence_is_logged or is_new
        return is_new

    def unreachable_at(self) -> float:
        """Return when the account counts as unreachable unless an answer comes; infinity: no call is in flight."""
        return math.inf if self.silent_since is None else self.silent_since + self._policy.unreachable_after

    @property
    def reason(self) -> str:
        """Why no event is delivered, while the account is halted or unreachable."""
        if self.halt is not None:
            return self.halt.reason
        return f"no verdict on any event; the latest call: {self.last_error or 'not answered yet'}"

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

    def end_halt(self, until: float) -> None:
        """End the halt, and ignore notes of refusals before `until`."""
        self.doubts_until, self.halt = max(self.doubts_until, until), None

    def idle(self, now: float) -> None:
        """Note that no event waits, so that it is not known any more whether a call would succeed."""
        self.silent_since, self.silence_is_logged = None, False
        if self.halt is not None:
            self.halt.waiting_since = now

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
        if not self.permits.are_left(now):
            opens = max(opens, self.permits.used_up_until)
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
        calls, maximum = self._calls, self._quota.calls
        # Compared in the form that is returned: in another one, rounding could open the gate and keep the count.
        while calls and calls[0] + _MINUTE <= now:
            calls.popleft()
        # There may be more than `maximum`, if our part of the quota has become smaller.
        return now if len(calls) < maximum else calls[-maximum] + _MINUTE

    def _evenly_at(self, now: float) -> float:
        """Return when a divided quota lets the next call go, within the first minute of calls.

        The partitions may have just come from members that used up the whole quota. As those members' calls get older
        than a minute, ours may take their place, one after the other.
        """
        if not self._quota.divided or not self._calls or now >= self._began + _MINUTE:
            return now
        return self._began + _MINUTE * min(1.0, len(self._calls) / self._quota.calls)
