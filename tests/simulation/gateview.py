"""What the API asked of one process for one ad account: the world's own view, to check calls against."""

from __future__ import annotations

from collections import deque

from consumer.core.model import Instant
from consumer.core.policy import Policy
from tests.simulation.api import Reply
from tests.simulation.truth import Violation

_EPSILON = 1e-6
"""Seconds that rounding may cost."""


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

    def check_send(self, now: float) -> None:
        """A call goes out."""
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
        self.flying += 1
        self.used = True
        self._calls.append(now)
        if len(self._calls) > self._policy.calls_per_minute:
            before = self._calls.popleft()
            if now - before < 60 - _EPSILON:
                raise Violation(
                    "calls per minute", f"{self._policy.calls_per_minute + 1} in {now - before} s"
                )
