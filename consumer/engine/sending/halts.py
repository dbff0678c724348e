"""Halts of ad accounts, and the notes that tell other members of them.

Theory of operation. *Halts.* A refused token concerns every account that uses it, a refused account only itself.
`Halts` closes the gates concerned, has the token read again before each probe, and ends the halt with the first probe
that is accepted; where patience runs out, it gives up.

*Notes.* A 429 or a refusal concerns every member, not only the one that received it: a 429 an ad account, a refused
token all accounts, a refused account itself. That member writes a note into the shared store. The others read it when
they renew their lease, each second, and close their gates for the same time, or halt as if they had been refused.

A note acts once on each member, and expires. What ends a halt is the member's own probe, so a note never keeps a member
halted whose token is accepted: and if a probe shows that a note was wrong here (the members' tokens differ, or one has
read the corrected token later), notes of refusals do not halt that account again for `_DOUBT` seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from consumer.engine.context import Context
from consumer.engine.messages import GiveUp, ReadToken, ShareNote
from consumer.engine.model import THROTTLED, Note, Policy
from consumer.engine.sending.gate import TOKEN_REFUSED
from consumer.engine.sending.queue import AccountQueue, Batch

# Seconds for which a refusal is announced to other members: they renew their leases each second.
_NOTE_SECONDS: Final = 60.0
# Seconds by which a throttle must last longer than the one in the last note to have a note of its own.
_WORTH_A_NOTE: Final = 1.0
# Seconds for which an account ignores notes of refusals, after its own probe has shown that one was wrong.
_DOUBT: Final = 600.0


def is_of_all(status: int, policy: Policy) -> bool:
    """Return True if a refusal with this status concerns the one token that all accounts share."""
    return status == TOKEN_REFUSED and not policy.token_by_account


class Halts:
    """Refused tokens and accounts, accounts without verdicts, and notes to and from other members."""

    def __init__(self, context: Context, queues: Mapping[str, AccountQueue]) -> None:
        """`queues`: by account; the dispatcher adds more."""
        self._context = context
        self._queues = queues
        # Whether the run was given up already.
        self.gave_up = False
        # By account, until when the throttle in the last note lasts.
        self._shared_until: dict[str, float] = {}
        # Until when notes of a refused token are ignored.
        self._doubts_until = 0.0
        # The names of the notes that were applied: each acts once.
        self._applied: frozenset[str] = frozenset()
        # Notes for this destination, as last read, and when each expires (monotonic).
        self._notes: Sequence[tuple[float, Note]] = ()

    # -- what our own calls bring

    def refuse(self, batch: Batch, status: int, code: int | None, rid: str | None) -> None:
        """Halt the accounts that a refused token or account concerns, and report each new halt.

        Calls that were in flight when a halt began bring the same refusal again; only a probe brings a new one.
        """
        own, now = self._queues[batch.account], self._context.now.monotonic
        of_all = is_of_all(status, self._context.policy)
        probed = own.gate.halt if batch.probe else None
        if batch.probe:
            own.gate.refuse_again(status, code, now, self._context.jitter())
        elif own.gate.halt is None:
            # An empty account stands for all of them.
            self._report("" if of_all else own.account, status, code, _NOTE_SECONDS)
        for queue in self._queues.values() if of_all else (own,):
            halt = queue.gate.halt
            if halt is None:
                self._halt(queue, status, code, rid)
                continue
            halt.refused_again(probed)

    def _halt(
        self, queue: AccountQueue, status: int, code: int | None, rid: str | None, *, by_member: bool = False
    ) -> None:
        """Halt an account, unless it is halted already, and report it; `by_member`: another member met the refusal."""
        halt = queue.gate.refuse(status, code, self._context.now.monotonic, by_member=by_member)
        if halt is not None:
            self._context.report(
                "error", "halted", account=queue.account, status=status, code=code, reason=halt.reason,
                request_id=rid,
            )  # fmt: skip

    def accept(self, batch: Batch) -> None:
        """End halts after a probe was accepted, which was sent with the present token: the halt of its account,
        and of all accounts that share a refused token. Other accepted calls prove nothing."""
        if not batch.probe:
            return
        own = self._queues[batch.account]
        for queue in self._queues.values():
            gate, halt = queue.gate, queue.gate.halt
            if halt is None or not (queue is own or is_of_all(halt.status, self._context.policy)):
                continue
            # Earlier notes do not count any more; and if a note was wrong here, none counts for a while.
            until = self._context.now.monotonic + (_DOUBT if halt.by_member else _NOTE_SECONDS)
            if is_of_all(halt.status, self._context.policy):
                self._doubts_until = max(self._doubts_until, until)
            gate.end_halt(until)
            self._context.report("info", "resumed", account=queue.account)

    def throttled(self, account: str, wait: float) -> None:
        """Tell the other members that this account takes no calls for `wait` seconds."""
        until = self._context.now.monotonic + wait
        # Several calls in flight bring the same answer.
        if until >= self._shared_until.get(account, 0.0) + _WORTH_A_NOTE:
            self._shared_until[account] = until
            self._report(account, THROTTLED, None, wait)

    def _report(self, account: str, status: int, code: int | None, seconds: float) -> None:
        # Without a shared key store there is no place for a note.
        if self._context.policy.lease > 0:
            destination = self._context.policy.destination or ""
            self._context.emit(ShareNote(Note(destination, account, status, code, seconds)))

    def token_read(self, changed: bool) -> None:
        """Let accounts probe that waited for the token to be read again."""
        for queue in self._queues.values():
            if queue.gate.halt is not None:
                queue.gate.halt.token_read(changed)

    # -- what time brings

    def due(self, queue: AccountQueue) -> tuple[float, float, float]:
        """Return when to read the token for a probe, to give up, and to report that the account is unreachable
        (monotonic); infinite: not before an input changes that."""
        gate, halt, patience = queue.gate, queue.gate.halt, self._context.policy.halt_patience
        if halt is None:
            return inf, inf, inf if gate.silence_is_logged else gate.unreachable_at()
        probes = not (halt.reading_token or halt.may_probe or queue.in_flight)
        # Patience runs while events wait: an account without any may be refused for days.
        loses_patience = patience and not self.gave_up and (queue.queued or queue.in_flight)
        return halt.probe_at if probes else inf, halt.waiting_since + patience if loses_patience else inf, inf

    def go_on(self) -> None:
        """Do what is due: have the token read, give up, report that an account is unreachable."""
        now, reading = self._context.now.monotonic, False
        for queue in self._queues.values():
            gate, halt = queue.gate, queue.gate.halt
            if not queue.queued and not queue.in_flight:
                gate.idle(now)
            probe, give_up, _ = self.due(queue)
            if halt is not None and give_up <= now:
                self.gave_up = True
                patience = self._context.policy.halt_patience
                self._context.emit(GiveUp(f"ad account {queue.account}: {halt.reason} for {patience:.0f} s"))
            if halt is not None and probe <= now:
                halt.reading_token = reading = True
            # A halt has its own report.
            if halt is None and gate.note_silence(now):
                self._context.report("error", "unreachable", account=queue.account, reason=gate.reason)
        if reading:
            self._context.emit(ReadToken())

    # -- what others have met

    def share(self, queue: AccountQueue) -> None:
        """Apply to the queue of a new account what holds already: notes, and a halt of the shared token."""
        # Notes that came before the first event of this account.
        for until, note in self._notes:
            self._apply(note, until, queue)
        for other in self._queues.values():
            halt = other.gate.halt
            if halt is not None and is_of_all(halt.status, self._context.policy):
                queue.gate.refuse(halt.status, halt.code, self._context.now.monotonic)
                return

    def apply(self, notes: Sequence[Note]) -> None:
        """Apply the notes of the store that are new."""
        now, destination = self._context.now.monotonic, self._context.policy.destination or ""
        ours = [one for one in notes if one.destination == destination]
        new = [one for one in ours if one.name not in self._applied]
        self._applied = frozenset(one.name for one in ours)
        self._notes = [(now + one.seconds, one) for one in ours]
        for queue in self._queues.values() if new else ():
            for note in new:
                self._apply(note, now + note.seconds, queue)

    def _apply(self, note: Note, until: float, queue: AccountQueue) -> None:
        """Close an account's gate, or halt it, as a note says that expires at `until` (monotonic)."""
        now, account, gate = self._context.now.monotonic, queue.account, queue.gate
        if note.account not in ("", account) or until <= now:
            return
        if note.status != THROTTLED:
            if now >= (gate.doubts_until if note.account else self._doubts_until):
                self._halt(queue, note.status, note.code, None, by_member=True)
            return
        until = min(until, now + self._context.policy.throttle_cap)
        if until > gate.closed_until:
            gate.close(until, by_member=True)
            wait = round(until - now, 3)
            self._context.report("warning", "throttled", account=account, wait_seconds=wait, request_id=None)
