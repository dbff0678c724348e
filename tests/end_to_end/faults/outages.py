"""What the tests of an outage share: a small budget, and a watch that holds the process to it at every sample.

Theory of operation. While something outside is gone, nothing settles, so a process must take in what its budget
allows and no more. `Watch.check` reads one /status document and asserts what must hold in every one of them: the
ledger adds up, and no more is open than the budget allows, in events and in bytes. All waiting goes through it, so
the budget is looked at every few milliseconds from the first record to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from tests.end_to_end.processes import WITHIN, Process

Status = dict[str, Any]
PARTS = ("delivered", "duplicate", "filtered", "dead_lettered", "open")


class Budget(NamedTuple):
    """How much may be open."""

    events: int
    bytes: int

    @property
    def settings(self) -> dict[str, str]:
        """The budget as settings of the process."""
        return {
            "PINSTREAM_MAX_OPEN_EVENTS": str(self.events),
            "PINSTREAM_MAX_OPEN_BYTES": f"{self.bytes}B",
        }


class Watch:
    """Looks at a process with a budget, and keeps the highest values."""

    def __init__(self, process: Process, budget: Budget) -> None:
        self.process = process
        self._budget = budget
        self.maximum = Budget(0, 0)
        self.max_memory = 0
        """In resident bytes."""

    def check(self) -> Status:
        """A status document, which must keep the budget."""
        status = self.process.status()
        ledger, held = status["ledger"], status["open"]["bytes"]
        assert ledger["read"] == sum(ledger[part] for part in PARTS)
        self.maximum = Budget(max(self.maximum.events, ledger["open"]), max(self.maximum.bytes, held))
        self.max_memory = max(self.max_memory, self.memory())
        assert ledger["open"] <= self._budget.events, status
        assert held <= self._budget.bytes, status
        return status

    def memory(self) -> int:
        """Resident bytes of the process now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def until(self, condition: Callable[[Status], Any], what: str, within: float = WITHIN) -> Status:
        """Wait, for a bounded time, until `condition` holds for a status document; return that document."""

        def hold() -> Status | None:
            try:
                status = self.check()
            except OSError:  # nobody answers: the process ended, and whoever waits says what it complained of
                return None
            return status if condition(status) else None

        found: Status = self.process.until(hold, what, within)
        return found

    def until_full(self, least: int) -> Status:
        """Wait until intake pauses with at least `open` open events; return the figures of then."""
        return self.until(
            lambda status: status["room"] == 0 and status["ledger"]["open"] >= least, "the pause of intake"
        )

    def until_settled(self, records: int, within: float = WITHIN) -> Status:
        """Wait until nothing is open and `count` records are committed: all that a new group has."""
        return self.until(
            lambda status: not status["ledger"]["open"] and committed(status) == records,
            f"{records} settled records",
            within,
        )

    def stands_still(self, failures: int, reason: str) -> Status:
        """Wait until `attempts` more attempts have failed for `reason`; nothing may be read, settled or
        committed meanwhile."""
        before = self.check()
        assert before["room"] == 0, before
        target = failed(before, reason) + failures
        after = self.until(
            lambda status: failed(status, reason) >= target, f"{failures} more failures: {reason}"
        )
        assert after["ledger"] == before["ledger"]
        assert after["room"] == 0
        assert committed(after) == committed(before)
        return after


def failed(status: Status, reason: str) -> int:
    """How many attempts failed without a verdict for this reason."""
    return int(status["counts"]["no_verdicts"].get(reason, 0))


def committed(status: Status) -> int:
    """The sum of the offsets that the process says are committed."""
    return sum(one["committed"] or 0 for one in status["partitions"])
