"""Healthy: this process goes on by itself. Ready: what it is given would be delivered. Neither is about anybody else.

Theory of operation. A probe that fails for somebody else's outage restarts the healthy (docs/why.md).
So what a restart does not help is no sickness, however long it lasts: the API, the brokers, the
registry, a shared store, a full disk, somebody's hanging transaction. What stands still for it is told by its own
name, on the page, in the log, as a metric and an alert (`consumer.engine.stall`), and `unreadiness` where nothing could
be delivered. A restart helps where the process itself does not go on:

* a loop that stands still: then the probe is not answered at all;
* a fetch that does not come back. Brokers that are away do not hold one up: each question has its time limit, and so
  has a rebalance, which waits for a drain. What takes longer than all of them together hangs in this process;
* a ledger that does not add up: nothing is committed any more, and a restart begins new books;
* a key store on this machine that only a new start can open.
"""

from __future__ import annotations

from consumer.engine.statistics import Statistics

FETCH_HANGS_AFTER = 120.0
"""Seconds, beside what a drain may take, after which a fetch hangs: far above all its time limits."""
_MISMATCH = (
    "the ledger does not add up (by {} records): nothing is read or committed any more; please report this"
)
_NOT_JOINED = "the group has not said yet which partitions are ours"
_NOT_STARTED = "the brokers do not say where to start: {} of our partitions wait"
_CANNOT = ("halted", "unreachable")
"""States in which an ad account takes no events, and nothing is known of when it will."""


def sickness(
    statistics: Statistics,
    now: float,
    fetched_at: float | None = None,
    *,
    hangs_after: float = FETCH_HANGS_AFTER,
    broken: str | None = None,
) -> str | None:
    """What is wrong with the process that a restart may mend, in one line; None: healthy.

    `now`, and `fetched_at`, when the last fetch began (None: nothing is known of it): monotonic seconds. `hangs_after`:
    seconds that a fetch may take. `broken`: why the key store cannot be used before a new start.
    """
    if statistics.mismatch:
        return _MISMATCH.format(statistics.mismatch)
    if statistics.stopping:
        return None  # the stop has a deadline of its own
    if fetched_at is not None and now - fetched_at >= hangs_after:
        return f"no fetch came back for {now - fetched_at:.0f} s"
    return broken


def unreadiness(statistics: Statistics) -> str | None:
    """Why nothing could be delivered now, in one line; None: ready.

    A member that the group gives nothing is ready, too: it is a spare, and a rolling update goes on.
    """
    if statistics.stopping:
        return "stopping"
    if statistics.mismatch:
        return _MISMATCH.format(statistics.mismatch)
    if not statistics.partitions and statistics.waiting_for_start:
        return _NOT_STARTED.format(statistics.waiting_for_start)
    if not statistics.joined:
        return _NOT_JOINED
    guard = statistics.guard
    if guard is not None:
        return (
            f"intake stopped: {guard.rejected} of the latest {guard.of} of {guard.topic} would be dead letters, "
            f"mostly {guard.mostly} ({guard.cause.value}): {guard.remedy} and start again"
        )
    return _no_account(statistics) or _no_key_store(statistics)


def _no_account(statistics: Statistics) -> str | None:
    """Of the ad accounts that there were events for, one that takes events is enough.

    They are not named: whoever reaches the address may ask. /status says which of them it is.
    """
    accounts = statistics.accounts
    if not accounts or any(one.state not in _CANNOT for one in accounts):
        return None
    state = "halted" if any(one.state == "halted" for one in accounts) else "unreachable"
    return f"destination {state}: " + "; ".join(dict.fromkeys(one.reason or "unknown" for one in accounts))


def _no_key_store(statistics: Statistics) -> str | None:
    if statistics.key_store_fails:
        return "the key store does not answer: nothing can be delivered without it (the log says why)"
    return None
