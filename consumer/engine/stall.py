"""Whether work stands still: there is some, and nothing has been settled for too long. That is reported, no more.

Theory of operation. There is work when records are open or partitions lag. What is told under a name of its own is no
stall: a stop, a guard that has tripped, a destination that takes nothing. (If one account refuses us and another takes
events and has some, it is a stall all the same.) Any other cause is: a registry or a key store that does not answer, a
dead-letter topic that cannot be written, another producer's hanging transaction, behind which nothing can be read.
"""

from __future__ import annotations

from collections.abc import Iterable

from consumer.engine.batching import AccountQueue
from consumer.engine.context import Context
from consumer.engine.gate import State

_REMIND_EVERY = 300.0


class Stall:
    """Looks at intervals of the shell's own; `since` says since when nothing moves."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settled = -1
        self._moved_at: float | None = None
        self._remind_at: float | None = None

    def look(self, settled: int, work: int, excused: bool) -> None:
        """`settled` records so far, and how much `work` is left (records open, and lag)."""
        now = self._context.now.monotonic
        if not work or excused or settled != self._settled or self._moved_at is None:
            if self._remind_at is not None:
                still = round(now - (self._moved_at or now), 3)
                self._context.report("info", "moves_again", seconds=still)
            self._settled, self._moved_at, self._remind_at = settled, now, None
            return
        seconds = self.seconds()
        if seconds is not None and (self._remind_at is None or now >= self._remind_at):
            self._remind_at = now + _REMIND_EVERY
            self._context.report("error", "stalled", seconds=round(seconds, 3), work=work)

    def seconds(self) -> float | None:
        """For how long nothing has moved that should; None: not for too long."""
        if self._moved_at is None:
            return None
        still = self._context.now.monotonic - self._moved_at
        return still if still >= self._context.policy.stall_after else None


def excused(queues: Iterable[AccountQueue], now: float) -> bool:
    """Whether all that could be sent waits for the platform, which is reported by its own name."""
    states = [(queue.gate.state(now), queue.queued or queue.in_flight) for queue in queues]
    if all(state is State.OPEN for state, _ in states):
        return False
    return not any(state is State.OPEN and busy for state, busy in states)
