"""Health: whether this process works by itself. Readiness: whether it could deliver events now.

A probe that fails during an outage of another system makes Kubernetes restart healthy processes. So an outage that a
restart cannot help does not make the process unhealthy, however long it lasts: of the API, the brokers, the registry, a
shared store, a full disk, somebody's hanging transaction. `consumer.engine.survey` reports such a stall under its own
name on the page, in the log, as a metric and an alert; `why_not_ready` reports it if nothing could be delivered. A
restart helps if the process itself hangs:

* An event loop that hangs: the probe is not answered at all.
* A fetch that does not return. An outage of the brokers does not cause this: each request has a time limit, and so has
  a rebalance, which waits for a drain. A fetch that takes longer than all of them together hangs in this process.
* A function of the user's (``PINSTREAM_TRANSFORM``) that does not return: only the end of the process ends it.
* A ledger that does not add up: nothing is committed any more, and a restart starts a new ledger.
* A key store on this machine that only a new process can open.
"""

from __future__ import annotations

from consumer.engine.figures.statistics import Statistics

# Seconds, in addition to the time limit of a drain, after which a fetch hangs: far above all its time limits.
FETCH_HANGS_AFTER = 120.0
_MISMATCH = "the ledger does not add up (by {} records): nothing is read or committed any more; please report this bug"
# States in which an ad account takes no events for an unknown time.
_CANNOT = ("halted", "unreachable")


def why_unhealthy(
    statistics: Statistics,
    now: float,
    fetched_at: float | None = None,
    *,
    hangs_after: float = FETCH_HANGS_AFTER,
    broken: str | None = None,
) -> str | None:
    """Return what is wrong with the process and may be cured by a restart, in one line; None: healthy.

    `now` and `fetched_at`, the begin of the last fetch (None: unknown), are monotonic seconds. `hangs_after`: seconds
    that a fetch, or the user's function, may take. `broken`: why the key store cannot be used by this process any more.
    """
    # First, also while stopping: nothing is committed any more.
    if statistics.mismatch:
        return _MISMATCH.format(statistics.mismatch)
    if statistics.stopping:
        return None  # the shutdown has its own deadline
    if fetched_at is not None and now - fetched_at >= hangs_after:
        return f"no fetch has returned for {now - fetched_at:.0f} s"
    slow = statistics.slow_transform
    if slow is not None and slow.seconds >= hangs_after:
        return f"the function {slow.function} has not returned for {slow.seconds:.0f} s (PINSTREAM_TRANSFORM)"
    return broken


def why_not_ready(statistics: Statistics) -> str | None:
    """Return why nothing could be delivered now, in one line; None: ready.

    A member without partitions is ready: it is a spare, and a rolling update must continue.
    """
    if statistics.stopping:
        return "stopping"
    if statistics.mismatch:
        return _MISMATCH.format(statistics.mismatch)
    # Before all that follows from it.
    if statistics.brokers_silent is not None:
        return statistics.brokers_silent.sentence
    # An assigned partition counts only once it is known where to start.
    waiting = 0 if statistics.partitions else statistics.waiting_for_start
    if statistics.coordinator_silent is not None and (waiting or not statistics.joined):
        return statistics.coordinator_silent.sentence
    if waiting:
        return f"the brokers do not say where to start: {waiting} assigned partitions wait"
    if not statistics.joined:
        return statistics.starting or "the group has not assigned partitions yet"
    guard = statistics.guard
    if guard is not None:
        return (
            f"intake stopped: {guard.rejected} of the latest {guard.of} of {guard.topic} would be dead letters, "
            f"mostly {guard.reason} ({guard.cause.value}): {guard.advice}"
        )
    # An account that is throttled takes events again in a known time.
    accounts = statistics.accounts
    # One account that takes events is enough. They are not named, as /readyz needs no token; /status names them.
    if accounts and all(one.state in _CANNOT for one in accounts):
        state = "halted" if any(one.state == "halted" for one in accounts) else "unreachable"
        return f"destination {state}: " + "; ".join(
            dict.fromkeys(one.reason or "unknown" for one in accounts)
        )
    return _what_cannot_be_written(statistics)


def _what_cannot_be_written(statistics: Statistics) -> str | None:
    """Return what an outcome needs to be written and cannot be: keys or receipts."""
    if statistics.key_store_fails:
        why = statistics.key_store_trouble or "see key_store_trouble in the log"
        return f"the key store fails, and nothing can be delivered without it: {why}"
    if statistics.receipts_error is not None:
        why = statistics.receipts_error or "receipts cannot be written: see receipts_not_stored in the log"
        return f"{why}; no record settles without its receipt"
    return None
