"""What the API asked of one process for one ad account: the world's own view, to check calls against."""

from __future__ import annotations

from collections import deque

from consumer.engine.model import Instant, Policy
from tests.simulation.api import Reply, Says
from tests.simulation.truth import Violation

_EPSILON = 1e-6
"""Seconds that rounding may cost."""
_COMMAS = 2
"""Bytes by which a half may be more than half."""


class GateView:
    """One account."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._calls: deque[float] = deque()
        self.closed_until = 0.0
        self._budget: int | None = None
        self._budget_until = 0.0
        self.halted: int | None = None
        """The status of the refusal in force."""
        self.token_read = False
        self.used = False
        """Whether it was ever called."""
        self.flying = 0
        self.silent_since: float | None = None
        """Since when calls bring no verdict; None: nothing is out there, or it cannot be told from here."""
        self._most_bytes: int | None = None
        """The size of bodies that is known to be too large for somebody on the way, halved, for a while."""
        self._most_bytes_until = 0.0
        self.unsure = self.throttled = False
        """Whether since when nothing was heard cannot be told from here: a throttle hides it, or what was to be sent
        went with its partition."""

    def spoken(self, reply: Reply, now: float, events: int, size: int) -> None:
        """An answer to a call that is not in flight any more: a verdict or none, and on what size of body."""
        if reply.says is Says.THROTTLE:
            self.silent_since = None
            self.unsure = self.throttled = bool(self.flying)
        elif reply.says is not Says.NOTHING:
            self.silent_since = now if self.flying else None
            self.unsure = self.throttled = False
        elif (
            reply.status == 413 and events > 1 and (self._most_bytes is None or size // 2 < self._most_bytes)
        ):
            self._most_bytes, self._most_bytes_until = size // 2, now + 15.0

    def check_state(self, state: str, busy: bool, now: float) -> None:
        """What the process says of the destination."""
        if self.halted is not None:
            return
        after = self._policy.unreachable_after
        silent = 0.0 if self.silent_since is None else now - self.silent_since
        if state == "unreachable" and not self.throttled and silent < after - _EPSILON:
            raise Violation("unreachable is what brings no verdict for long", f"{silent} s")
        if busy and not self.unsure and silent > after + _EPSILON and state != "unreachable":
            raise Violation("what brings no verdict for long is unreachable", f"{state} after {silent} s")

    def heard(self, reply: Reply, instant: Instant) -> None:
        """An answer's wish to be left alone."""
        cap, now = self._policy.throttle_cap, instant.monotonic
        wait = reply.until - instant.unix if reply.until is not None else reply.wait
        if wait is not None:
            self.closed_until = max(self.closed_until, now + min(wait, cap))
        remaining, reset = reply.headers.get("x-ratelimit-remaining"), reply.headers.get("x-ratelimit-reset")
        if remaining is not None and reset is not None:
            self._budget, self._budget_until = int(remaining), now + min(float(reset), cap)

    def refuse(self, status: int) -> None:
        """The token or the account was refused."""
        self.halted, self.token_read = status, False

    def check_send(self, now: float, events: int, size: int) -> None:
        """A call goes out."""
        self._check_size(now, events, size)
        self._check_gate(now)
        if self.silent_since is None:
            self.silent_since = now
        self.flying += 1
        self.used = True
        self._calls.append(now)
        if len(self._calls) > self._policy.calls_per_minute:
            before = self._calls.popleft()
            if now - before < 60 - _EPSILON:
                raise Violation(
                    "calls per minute", f"{self._policy.calls_per_minute + 1} in {now - before} s"
                )

    def _check_size(self, now: float, events: int, size: int) -> None:
        known = self._most_bytes is not None and now < self._most_bytes_until
        if known and events > 1 and size > (self._most_bytes or 0) + _COMMAS:
            raise Violation("what was too large for somebody goes in smaller bodies", f"{size} bytes")

    def _check_gate(self, now: float) -> None:
        if self.halted is not None:
            if self.flying or not self.token_read:
                raise Violation(
                    "one probe at a time, each after reading the token", f"refused: {self.halted}"
                )
            self.token_read = False
        if now < self.closed_until - _EPSILON:
            raise Violation("nothing is sent to a throttled account", f"for {self.closed_until - now} s yet")
        if self._budget is not None and now < self._budget_until - _EPSILON:
            if not self._budget:
                raise Violation("what the limit headers say holds", f"for {self._budget_until - now} s yet")
            self._budget -= 1
