"""The lease of a key store that members share: until when our claims there hold.

Theory of operation. Claims belong to our *session* and hold while its *lease* does. It is renewed each second. Three
rules, beside the one for claims of others (`lookups`), keep an event from being sent by two members:

* A call begins only if the lease is known to hold until the call's time limit (`Dispatcher.send`). It is known to
  hold from the moment when its renewal was asked for, however late the answer comes.
  The time for which the machine was suspended counts, and if the store says that claims are lost, none holds.
* A new session means that the lease of the one before had ended, or that the store lost data. Queued events, and events
  that come back without a verdict, were claimed by the session before, so they are looked up again. Events in flight
  stay there: their lease was long enough.
* A delivered event is confirmed only if no other live session has claimed it by now (the fence).

A claim that ends without delivery is released, so that other members need not wait for the end of our lease.
"""

from __future__ import annotations

from math import inf
from typing import Final

from consumer.engine.context import Context
from consumer.engine.messages import LeaseRenewed, RenewLease
from consumer.engine.model import Instant
from consumer.errors import bug

# Seconds between two renewals: short beside the lease, because a renewal also detects that the store has lost data.
RENEW_EVERY: Final = 1.0
# Seconds by which a lease counts as shorter than it is: the clocks of two machines do not run equally fast.
_MARGIN: Final = 1.0


class Lease:
    """Our session in the shared key store, and until when its claims hold. Without such a store they hold
    indefinitely."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.shared = context.policy.lease > 0
        # The session that has claimed the queued events; 0: none yet.
        self.session = 0
        # Until when (monotonic) its claims are known to hold.
        self.until = -inf if self.shared else inf
        # Whether the latest renewal failed.
        self.fails = False
        # The renewal under way: its number, and when it was asked for.
        self._renewing: tuple[int, float] | None = None
        self._renew_at = -inf
        # How far the wall clock is ahead of the monotonic one. It grows by the time that the machine is suspended for.
        self._ahead: float | None = None

    def due(self) -> float | None:
        """Return when a renewal is due next (monotonic)."""
        return self._renew_at if self.shared and self._renewing is None else None

    def go_on(self) -> None:
        """Begin the renewal that is due."""
        now = self._context.now.monotonic
        if self.shared and self._renewing is None and now >= self._renew_at:
            self._renewing = (self._context.number(), now)
            self._context.emit(RenewLease(self._renewing[0]))

    def notice_suspension(self, now: Instant) -> None:
        """Shorten the lease by the time that this machine was suspended for: the monotonic clock stands still then.

        If the wall clock was only set, this costs one renewal.
        """
        before, self._ahead = self._ahead, now.unix - now.monotonic
        if before is None or self._ahead <= before:
            return
        slept = self._ahead - before
        self.until -= slept
        if self._renewing is not None:
            self._renewing = (self._renewing[0], self._renewing[1] - slept)
        if slept > _MARGIN:
            self.renew_soon()

    def renew_soon(self) -> None:
        """Renew at once, as our session may have ended."""
        self._renew_at = -inf

    def lost(self) -> None:
        """Begin no call before the next renewal: by an answer of the store, our claims do not hold any more."""
        self.until = self._renew_at = -inf
        if self._renewing is not None:
            # It may have been done before the loss, so its answer proves nothing.
            self._renewing = (self._renewing[0], -inf)

    def renewed(self, happened: LeaseRenewed) -> bool:
        """Take the answer to a renewal: our claims hold for another lease from when it was asked for.

        Return True if a new session has taken the place of another, whose claims have ended.
        """
        now = self._context.now.monotonic
        self.until = self._answered(happened.number) + self._context.policy.lease - _MARGIN
        # An answer that came so late that it proves nothing is asked for again at once.
        self._renew_at = now + RENEW_EVERY if self.until > now else now
        self.fails = False
        before, self.session = self.session, happened.session
        # 0: the first session of this process, so no claim was made under another one.
        return before not in (0, happened.session)

    def renewal_failed(self, number: int) -> None:
        """Take a renewal that failed: try again soon. Until then the lease that is known to hold runs out."""
        self._answered(number)
        self.fails = True
        self._renew_at = self._context.now.monotonic + RENEW_EVERY

    def _answered(self, number: int) -> float:
        """Return when the renewal was asked for."""
        if self._renewing is None or self._renewing[0] != number:
            raise bug(f"renewal {number} was answered but not asked")
        asked_at, self._renewing = self._renewing[1], None
        return asked_at
