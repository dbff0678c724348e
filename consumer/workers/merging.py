"""Merge the snapshots of all workers into one, for the page, /status and /metrics.

Each figure defines how it is merged (`figures.definitions`): by default it is added; of states and times the worst is
taken. Shares and quantiles are computed from the added counts. `remains` is what a dead worker leaves behind, also a
snapshot, so all dead workers together are one. What a worker counted after its last snapshot, half a second at most, is
lost.

A worker that stands still keeps its last snapshot, which may name partitions that the group has
given to another worker since: these count there alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from consumer.engine.figures.counters import Counters, counted_as
from consumer.engine.figures.definitions import merged
from consumer.engine.figures.delivered import FreshnessSnapshot
from consumer.engine.figures.statistics import PartitionStatistics, Statistics
from consumer.engine.figures.value import ValueSnapshot

_Assignment = tuple[int, str, int, int]


def _assignment(worker: int, part: PartitionStatistics) -> _Assignment:
    return worker, part.topic, part.partition, part.epoch


# The snapshot of no worker.
NO_WORKER = merged(Statistics, [])


def remains(last: Statistics) -> Statistics:
    """Return what a dead worker leaves behind, computed from its last snapshot."""
    totals = last.totals
    # A ledger that did not add up is corrected, because the next process starts a new one.
    settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
    # Open records count as released: another member reads them again.
    released = max(totals.released, totals.read + totals.released - settled)
    return replace(
        NO_WORKER,
        # Its counts stay, so that no counter ever decreases. Levels and states end with the process.
        totals=replace(totals, read=settled, open=0, released=released),
        passed=last.passed,
        freshness=FreshnessSnapshot(last.freshness.age_sum, last.freshness.total),
        value=ValueSnapshot(last.value.total),
        counters=last.counters,
        letters=last.letters,
        samples=last.samples,
        key_store=last.key_store,
        log_lines_dropped=last.log_lines_dropped,
        brokers=tuple(replace(one, round_trip=None, round_trip_p99=None) for one in last.brokers),
    )


class Merged:
    """The latest snapshot of each live worker, and the remains of the dead ones."""

    def __init__(self) -> None:
        # By worker, the oldest snapshot first.
        self._live: dict[int, Statistics] = {}
        # Assignments of workers that stood still, of partitions that another worker has by now: the group has ended
        # them, and the worker will know that soon after it goes on.
        self._moved: set[_Assignment] = set()
        # These counts must not decrease, also if such a worker settles some of these records after all.
        self._released = self._read_ever = 0
        self._past = NO_WORKER
        # Family of counts -> the names that have a count of their own. Names stay, or a count would decrease.
        self._names: dict[str, set[str]] = {}

    def take(self, worker: int, statistics: Statistics) -> bool:
        """Take a worker's new snapshot. Return True if it has settled records since its last one."""
        # Removed first, so that the newest is last: of what cannot be added, the newest counts.
        before = self._live.pop(worker, None)
        self._live[worker] = statistics
        held = {_assignment(worker, one) for one in statistics.partitions}
        self._moved = {one for one in self._moved if one[0] != worker or one in held}
        # How large the key store is, a live worker knows; until one reports, it is what a dead one has seen last.
        counts = replace(self._past.key_store, keys=0, bytes_used=0, buckets=0)
        self._past = replace(self._past, key_store=counts)
        settled = 0 if before is None else before.totals.read - before.totals.open
        return statistics.totals.read - statistics.totals.open > settled

    def gone(self, worker: int) -> None:
        """Move a worker that has ended to the dead ones."""
        last = self._live.pop(worker, None)
        # Another process counts its assignments again.
        self._moved = {one for one in self._moved if one[0] != worker}
        if last is not None:
            self._past = self._named(merged(Statistics, [self._past, remains(last)]))

    def statistics(self, *, stopping: bool = False) -> Statistics:
        """Return the merged snapshot. `stopping`: whether the supervisor is stopping."""
        live = [self._without_moved(number, one) for number, one in self._live.items()]
        one = self._named(merged(Statistics, [self._past, *live]))
        self._released = max(self._released, one.totals.released, self._read_ever - one.totals.read)
        self._read_ever = one.totals.read + self._released
        totals = replace(one.totals, released=self._released)
        starting = one.starting if live else "no worker has reported yet"
        return replace(one, totals=totals, starting=starting, stopping=stopping)

    def stand_still(self, workers: Collection[int]) -> None:
        """Take these workers for ones that stand still: what a newer snapshot has of their partitions has moved."""
        newer: set[tuple[str, int]] = set()
        for worker, one in reversed(self._live.items()):
            names = {(part.topic, part.partition): part for part in one.partitions}
            if worker in workers:
                self._moved |= {_assignment(worker, names[name]) for name in newer & names.keys()}
            newer |= names.keys()

    def partitions_of(self, worker: int) -> Sequence[PartitionStatistics]:
        """Return the partitions of a worker that have not moved."""
        one = self._live.get(worker, NO_WORKER)
        return [part for part in one.partitions if _assignment(worker, part) not in self._moved]

    def _without_moved(self, worker: int, one: Statistics) -> Statistics:
        kept = self.partitions_of(worker)
        # Open records of the others are read again where they are now.
        again = sum(part.totals.open for part in one.partitions) - sum(part.totals.open for part in kept)
        totals = one.totals
        totals = replace(
            totals, read=totals.read - again, open=totals.open - again, released=totals.released + again
        )
        return replace(one, totals=totals, partitions=kept)

    def _named(self, statistics: Statistics) -> Statistics:
        """Limit the names of each family: each worker limits them, but together the workers may have more."""
        counts: dict[str, Any] = {
            family: self._capped(family, value) if isinstance(value, Counter) else value
            for family, value in vars(statistics.counters).items()
        }
        return replace(statistics, counters=Counters(**counts))

    def _capped(self, family: str, counts: Counter[Any]) -> Counter[Any]:
        known = self._names.setdefault(family, set())
        capped: Counter[Any] = Counter()
        for name, count in counts.items():
            # Names with several parts are codes, and the set of codes is limited.
            named = counted_as(name, known) if isinstance(name, str) else name
            known.add(named)
            capped[named] += count
        return capped
