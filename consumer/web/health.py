"""Healthy means progress, not merely life (lessons.md: aio-libs/aiokafka #847, #1154).

Theory of operation. There is work when records are open or partitions lag. Work that stands still for longer than
`stall_after` is sick, and a restart may help. Since when it stands is known from looking again and again: whoever
owns a `Health` looks at short intervals of its own, so that it does not matter how seldom a probe asks.

A destination that is halted or throttles is not our sickness: a restart would not help, so health stays good, and
readiness says no. But an account that refuses us excuses only what waits for it, not an open one that has work.
Nor is it our sickness that the guard has stopped intake: a restart would only write another sample of dead letters.
A ledger that does not add up is: nothing is committed any more, and a restart begins new books.

A process that has nothing left to read looks idle, even if nobody reads any more: a fetch that hangs hears of no
new records. So the time of the last fetch is looked at too. Fetches go on while halted and while paused (design.md,
rule 5), and nothing but the stop excuses them.
"""

from __future__ import annotations

from consumer.core.statistics import Statistics

_MISMATCH = (
    "the ledger does not add up (by {} records): nothing is read or committed any more; please report this"
)

_NO_PARTITIONS = "no partitions assigned"
_NOT_STARTED = "the brokers do not say where to start: {} of our partitions wait"


class Health:
    """Judges snapshots in the order they are taken. `stall_after` in seconds."""

    def __init__(self, stall_after: float) -> None:
        self._stall_after = stall_after
        self._settled = -1
        self._moved_at = 0.0

    def sickness(self, statistics: Statistics, now: float, fetched_at: float | None = None) -> str | None:
        """What is wrong, in one line; None: healthy.

        `now`, and `fetched_at`, when the last fetch came back (None: nothing is known of it): monotonic seconds.
        """
        if statistics.mismatch:
            return _MISMATCH.format(statistics.mismatch)
        totals = statistics.totals
        settled = totals.read - totals.open
        lag = sum(one.lag or 0 for one in statistics.partitions)
        idle = not totals.open and not lag
        if idle or settled != self._settled or _excused(statistics):
            self._settled, self._moved_at = settled, now
        if fetched_at is not None and not statistics.stopping and self._too_long(now - fetched_at):
            return f"no fetch came back for {now - fetched_at:.0f} s"
        if self._too_long(now - self._moved_at):
            still = now - self._moved_at
            return f"nothing settled for {still:.0f} s with {totals.open} records open and a lag of {lag}"
        return None

    def _too_long(self, seconds: float) -> bool:
        return seconds >= self._stall_after


def _excused(statistics: Statistics) -> bool:
    """Whether no restart could move what stands still, or one would do harm.

    We are stopping, or too many records would be dead letters, or all that waits, waits for the platform.
    """
    if statistics.stopping or statistics.guard is not None:
        return True
    if statistics.destination == "open":
        return False
    return not any(one.state == "open" and (one.queued or one.in_flight) for one in statistics.accounts)


def unreadiness(statistics: Statistics) -> str | None:
    """Why no work can be done now; None: ready (partitions assigned, destination not halted, guard not tripped)."""
    if statistics.stopping:
        return "stopping"
    if statistics.mismatch:
        return _MISMATCH.format(statistics.mismatch)
    if not statistics.partitions:
        return _NOT_STARTED.format(waiting) if (waiting := statistics.waiting_for_start) else _NO_PARTITIONS
    guard = statistics.guard
    if guard is not None:
        return (
            f"intake stopped: {guard.rejected} of the latest {guard.of} of {guard.topic} would be dead letters, "
            f"mostly {guard.mostly} ({guard.cause.value}): {guard.remedy} and start again"
        )
    if statistics.destination == "halted":
        halted = (one for one in statistics.accounts if one.state == "halted")
        return "destination halted: " + "; ".join(f"{one.account}: {one.reason}" for one in halted)
    return None
