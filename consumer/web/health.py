"""Healthy means progress, not merely life (lessons.md: aio-libs/aiokafka #847, #1154).

Theory of operation. There is work when records are open or partitions lag. Work that stands still for longer than
`stall_after` is sick, and a restart may help. A destination that is halted or throttles is not our sickness: a
restart would not help, so health stays good, and readiness says no.
"""

from __future__ import annotations

from consumer.core.statistics import Statistics


class Health:
    """Judges snapshots in the order they are taken. `stall_after` in seconds."""

    def __init__(self, stall_after: float) -> None:
        self._stall_after = stall_after
        self._settled = -1
        self._moved_at: float | None = None

    def sickness(self, statistics: Statistics, now: float) -> str | None:
        """What is wrong, in one line; None: healthy. `now` in monotonic seconds."""
        totals = statistics.totals
        settled = totals.read - totals.open
        lag = sum(one.lag or 0 for one in statistics.partitions)
        idle = not totals.open and not lag
        excused = statistics.destination != "open" or statistics.stopping
        if idle or excused or settled != self._settled or self._moved_at is None:
            self._settled, self._moved_at = settled, now
            return None
        still = now - self._moved_at
        if still < self._stall_after:
            return None
        return f"nothing settled for {still:.0f} s with {totals.open} records open and a lag of {lag}"


def unreadiness(statistics: Statistics) -> str | None:
    """Why no work can be done now; None: ready (partitions assigned, destination not halted)."""
    if statistics.stopping:
        return "stopping"
    if not statistics.partitions:
        return "no partitions assigned"
    if statistics.destination == "halted":
        reasons = [one.reason for one in statistics.accounts if one.reason is not None]
        return "destination halted: " + "; ".join(reasons)
    return None
