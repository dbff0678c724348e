"""What the API asked of one process for one ad account: the world's own view, to check calls against."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from consumer.engine.model import THROTTLED, Instant, Note, Policy
from tests.simulation.api import Reply, Says
from tests.simulation.truth import Violation

_EPSILON = 1e-6
"""Seconds that rounding may add."""
_COMMAS = 2
"""Bytes by which one half of a batch may exceed half of its size."""


class QuotaView:
    """How many calls a minute a process may make for each account, from what it knows of its group."""

    def __init__(self, policy: Policy, begin: float) -> None:
        self._whole = policy.calls_per_minute
        self.divided = policy.quota_members > 0
        self._reported = [(begin, policy.quota_members)]
        self.sessions = 1
        """Live sessions in the shared key store."""

    def reported(self, members: int, now: float) -> None:
        """`members` members hold partitions."""
        self._reported.append((now, members))

    def members(self, now: float, seconds: float = 60.0) -> int:
        """The most members that held partitions at any moment of the last `seconds`."""
        before = [members for at, members in self._reported if at <= now - seconds]
        return max([1, *before[-1:], *(members for at, members in self._reported if at > now - seconds)])

    def wait(self) -> float:
        """Seconds that a small batch waits at least: two minutes, divided by its part of the calls."""
        part = max(1, self._whole // max(1, self._reported[-1][1])) / self.sessions
        return 120.0 / part

    def sharing(self) -> int:
        """How many members make calls at least, this one included."""
        return max(1, self._reported[-1][1], self.sessions)

    def calls(self, now: float) -> int:
        """How many calls it may make in 60 seconds."""
        return max(1, self._whole // self.members(now))


class GateView:
    """One account."""

    def __init__(self, policy: Policy, quota: QuotaView) -> None:
        self._policy = policy
        self._quota = quota
        self._calls: deque[float] = deque()
        """When the calls of the last 60 seconds began."""
        self._began = 0.0
        """When the first call began after 60 seconds without any."""
        self.closed_until = 0.0
        self._budget: int | None = None
        self._budget_until = 0.0
        self.halted: int | None = None
        """The status of the refusal that is in force."""
        self.halt_shown: int | None = None
        """The status of the refusal that the process shows: it ends for the process only when a probe brings a
        verdict."""
        self.token_read = False
        self.used = False
        """Whether it was ever called."""
        self._small_at = float("-inf")
        """When the last batch went that was not full."""
        self.flying = 0
        self.silent_since: float | None = None
        """Since when calls have brought no verdict; None: no call is in flight, or it is not known from here."""
        self._max_bytes: int | None = None
        """Half of the size of a body that was too large for a proxy, while that counts."""
        self._max_bytes_until = 0.0
        self.cuts = False
        """Whether a body was ever too large, so that batches are full with fewer bytes."""
        self.shared_until = float("-inf")
        """The end of the throttle that other members know of."""
        self.may_be_halted = False
        """Another member has reported a refusal, and it is not known from here whether the process applied it."""
        self.unsure = self.throttled = False
        """Whether it is uncertain since when the account is silent: a throttle hides it, or the waiting events
        went with their partition."""

    def take_reply(self, reply: Reply, now: float, events: int, size: int) -> None:
        """Take in the answer to a call: a verdict or none, and the size of its body."""
        self.cuts = self.cuts or reply.status == 413
        if reply.says is Says.THROTTLE:
            self.silent_since = None
            self.unsure = self.throttled = bool(self.flying)
        elif reply.says is not Says.NOTHING:
            self.silent_since = now if self.flying else None
            self.unsure = self.throttled = False
        elif reply.status == 413 and events > 1 and (self._max_bytes is None or size // 2 < self._max_bytes):
            self._max_bytes, self._max_bytes_until = size // 2, now + 15.0

    def check_state(self, state: str, busy: bool, now: float) -> None:
        """Check what the process says about the destination."""
        if self.halted is not None or self.halt_shown is not None:
            return
        if state == "halted" and self.may_be_halted:
            return
        after = self._policy.unreachable_after
        silent = 0.0 if self.silent_since is None else now - self.silent_since
        if state == "unreachable" and not self.throttled and silent < after - _EPSILON:
            raise Violation("unreachable is what brings no verdict for long", f"{silent} s")
        if busy and not self.unsure and silent > after + _EPSILON and state != "unreachable":
            raise Violation("what brings no verdict for long is unreachable", f"{state} after {silent} s")

    def heard(self, reply: Reply, instant: Instant) -> None:
        """Take in the pause that an answer asks for."""
        cap, now = self._policy.throttle_cap, instant.monotonic
        wait = reply.until - instant.unix if reply.until is not None else reply.wait
        if wait is not None:
            self.closed_until = max(self.closed_until, now + min(wait, cap))
        remaining, reset = reply.headers.get("x-ratelimit-remaining"), reply.headers.get("x-ratelimit-reset")
        if remaining is not None and reset is not None:
            self._budget, self._budget_until = int(remaining), now + min(float(reset), cap)

    def close_as_reported(self, until: float, now: float) -> None:
        """Another member was throttled until then."""
        until = min(until, now + self._policy.throttle_cap)
        # Before the first event for this account, the process may hear that it is over, or that the server lost it.
        if until > self.closed_until and self.used:
            self.closed_until = until
            if self.silent_since is not None:  # what another member has heard is no answer to our calls
                self.silent_since = max(self.silent_since, until)

    def owes_throttle(self, reply: Reply, instant: Instant) -> bool:
        """Whether other members must learn of this 429: it is long, and ends later than what they know of."""
        wait = reply.until - instant.unix if reply.until is not None else reply.wait
        if wait is None or wait < self._policy.delivery_backoff.base:
            return False
        until = instant.monotonic + min(wait, self._policy.throttle_cap)
        return until > self.shared_until + 1.0 + _EPSILON

    def refuse(self, status: int) -> None:
        """The token or the account was refused."""
        self.halted, self.token_read = status, False
        self.halt_shown = status

    def check_send(self, now: float, events: int, size: int) -> None:
        """Check a call that begins."""
        self._check_size(now, events, size)
        self._check_gate(now)
        if self.silent_since is None:
            self.silent_since = now
        self.flying += 1
        self.used = True
        self._check_quota(now)

    def _check_quota(self, now: float) -> None:
        calls, maximum = self._calls, self._quota.calls(now)
        while calls and now - calls[0] >= 60 - _EPSILON:
            calls.popleft()
        if len(calls) >= maximum:
            raise Violation("calls per minute", f"{len(calls) + 1} in {now - calls[0]} s, not {maximum}")
        if not calls:
            self._began = now
        elif self._quota.divided and now < self._began + 60.0 * len(calls) / maximum - _EPSILON:
            since = now - self._began
            if since < 60.0 - _EPSILON:
                raise Violation(
                    "a part's first calls are made evenly", f"{len(calls) + 1} in {since} s, not {maximum}"
                )
        calls.append(now)

    def check_wait(self, now: float, since: float) -> None:
        """Check a call with a batch that is not full; `since`: when its oldest event came."""
        since, self._small_at = max(since, self._small_at), now
        waits, left = max(self._policy.linger, self._quota.wait()), max(0.0, self._budget_until - since)
        if self._budget:
            # The calls that the headers left, for all members, last for twice the time to their reset.
            calls = self._budget / (2 * self._quota.sharing())
            waits = max(waits, left / (calls + 1))
        if now < since + waits - _EPSILON:
            raise Violation("a batch that is not full waits", f"{now - since} s, not {waits}")

    def _check_size(self, now: float, events: int, size: int) -> None:
        known = self._max_bytes is not None and now < self._max_bytes_until
        if known and events > 1 and size > (self._max_bytes or 0) + _COMMAS:
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


class NotesView:
    """What a process that shares a key store must report to other members, and what it must apply of their reports."""

    def __init__(self, gates: Mapping[str, GateView]) -> None:
        self._gates = gates
        self.owed: list[tuple[str, int]] = []
        """The account (empty: all) and the status that must be reported to others now."""
        self._heard: set[str] = set()
        """The names of the notes that the latest renewal brought."""
        self.probed = False
        """Whether a probe was ever accepted: notes about refusals need not be applied from then on."""

    def answered(self, account: str, reply: Reply, probe: bool, instant: Instant) -> None:
        """The member that meets a throttle or a refusal first has to report it."""
        gate = self._gates[account]
        if reply.says is Says.THROTTLE and gate.owes_throttle(reply, instant):
            self.owed.append((account, reply.status))
        if reply.says is Says.HALT and not probe and gate.halt_shown is None and not gate.may_be_halted:
            self.owed.append(("" if reply.status == 401 else account, reply.status))

    def reported(self, note: Note, now: float) -> None:
        """The process reports it."""
        if note.status == THROTTLED:
            self._gates[note.account].shared_until = now + note.seconds
        if (note.account, note.status) in self.owed:
            self.owed.remove((note.account, note.status))

    def heard(self, notes: Sequence[Note], now: float) -> None:
        """What other members report holds here, too; each note counts once."""
        new = [note for note in notes if note.name not in self._heard]
        self._heard = {note.name for note in notes}
        for note in new:
            for account, gate in self._gates.items():
                if note.account in ("", account):
                    self._apply(note, gate, now)

    def _apply(self, note: Note, gate: GateView, now: float) -> None:
        if note.status == THROTTLED:
            gate.close_as_reported(now + note.seconds, now)
        elif self.probed or not gate.used:
            gate.may_be_halted = True
        elif gate.halted is None and gate.halt_shown is None:
            token_read = gate.token_read
            gate.refuse(note.status)
            # An earlier note may have halted it, and the token was read for that.
            gate.token_read = token_read and gate.may_be_halted
