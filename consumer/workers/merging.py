"""Merge the snapshots of all workers into one, for the page, /status and /metrics.

Each figure defines how it is merged (`figures.definitions`): by default it is added; of states and times the worst is
taken. Lists are joined here. Shares and quantiles are computed from the added counts. `merge([])` is the snapshot of no
worker. `remains` is what a dead worker leaves behind, also a snapshot, so all dead workers together are one. What a
worker counted after its last snapshot, half a second at most, is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from heapq import nlargest
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeVar

from consumer.engine.figures.counters import LETTERS_MOST, Counters, SamplesSnapshot, StoredLetter
from consumer.engine.figures.coverage import OTHER
from consumer.engine.figures.definitions import Shape, figures_of, first, least, most
from consumer.engine.figures.freshness import NO_FRESHNESS, FreshnessSnapshot
from consumer.engine.figures.statistics import (
    SCHEMAS_MOST,
    AccountStatistics,
    BrokerStatistics,
    PartitionStatistics,
    SchemaWait,
    Statistics,
    Totals,
    worst_state,
)

# Maximum number of names in a family of counts; further ones are counted as ``other``, as in the engine.
MOST_NAMES = 64

_T = TypeVar("_T")


def merge(snapshots: Sequence[Statistics]) -> Statistics:
    """Merge these snapshots, which are ordered from the oldest to the newest."""
    # Each snapshot is taken atomically and its ledger adds up: so does their sum, whatever their ages.
    merged: Statistics = _added(Statistics, snapshots)
    return merged


def remains(last: Statistics) -> Statistics:
    """What a dead worker leaves behind, computed from its last snapshot."""
    return replace(
        merge([]),
        # Its counts stay, so that no counter ever decreases. Levels and states end with the process.
        totals=_released(last.totals),
        passed=last.passed,
        freshness=replace(NO_FRESHNESS, age_sum=last.freshness.age_sum, buckets=last.freshness.buckets),
        counters=last.counters,
        letters=last.letters,
        samples=last.samples,
        brokers=tuple(replace(one, round_trip=None, round_trip_p99=None) for one in last.brokers),
    )


def _released(totals: Totals) -> Totals:
    """Count open records as released: another member reads them again."""
    # A ledger that did not add up is corrected, because the next process starts a new one.
    settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
    released = max(totals.released, totals.read + totals.released - settled)
    return replace(totals, read=settled, open=0, released=released)


class Merged:
    """The latest snapshot of each live worker, and the remains of the dead ones."""

    def __init__(self) -> None:
        # By worker, the oldest snapshot first.
        self._live: dict[int, Statistics] = {}
        self._past = merge([])
        # Family of counts -> the names that have a count of their own. Names stay, or a count would decrease.
        self._names: dict[str, set[str]] = {}

    def take(self, worker: int, statistics: Statistics) -> bool:
        """Take a worker's new snapshot. Return True if it has settled records since its last one."""
        # Removed first, so that the newest is last: of what cannot be added, the newest counts.
        before = self._live.pop(worker, None)
        self._live[worker] = statistics
        settled = 0 if before is None else before.totals.read - before.totals.open
        return statistics.totals.read - statistics.totals.open > settled

    def gone(self, worker: int) -> None:
        """Move a worker that has ended to the dead ones."""
        last = self._live.pop(worker, None)
        if last is not None:
            self._past = self._named(merge([self._past, remains(last)]))

    def statistics(self, *, stopping: bool = False) -> Statistics:
        """The merged snapshot. `stopping`: whether the supervisor is stopping."""
        one = self._named(merge([self._past, *self._live.values()]))
        return replace(one, stopping=stopping)

    def _named(self, statistics: Statistics) -> Statistics:
        """Limit each family to `MOST_NAMES` names: each worker does, but together they may have more."""
        counters = Counters()
        for family, value in vars(statistics.counters).items():
            setattr(counters, family, self._capped(family, value) if isinstance(value, Counter) else value)
        return replace(statistics, counters=counters)

    def _capped(self, family: str, counts: Counter[Any]) -> Counter[Any]:
        known = self._names.setdefault(family, set())
        capped: Counter[Any] = Counter()
        for name, count in counts.items():
            if name not in known and len(known) < MOST_NAMES:
                known.add(name)
            # Names of several parts are codes, and the set of codes is limited.
            capped[name if name in known or not isinstance(name, str) else OTHER] += count
        return capped


def _added(owner: type, all_of_them: Sequence[Any]) -> Any:
    """One of the snapshots of this type: each figure by its rule, and without one the sum."""
    merged = {}
    for attribute in figures_of(owner):
        if attribute.is_field:
            values = [getattr(one, attribute.name) for one in all_of_them]
            # A label names the thing itself, and is the same in all of them.
            rule = first if attribute.figure.is_label else attribute.figure.merge
            rule = _JOINED.get((owner, attribute.name), rule)
            merged[attribute.name] = _sum(attribute.shape, values) if rule is None else rule(values)
    return owner(**merged)


def _sum(shape: Shape, values: Sequence[Any]) -> Any:
    """Numbers are added, in a row or by name too; of snapshots, by name too, one is made."""
    if figures_of(shape.item) and shape.many:
        names = sorted({name for window in values for name in window})
        return {name: _added(shape.item, [one[name] for one in values if name in one]) for name in names}
    if figures_of(shape.item):
        return _added(shape.item, [*_NONE.get(shape.item, ()), *values])
    if not shape.many:
        return sum(values)
    if values and isinstance(values[0], tuple):
        return tuple(map(sum, zip(*values, strict=True)))
    total: Counter[Any] = Counter()
    for one in values:
        total.update(one)
    return total


# What is added to nothing gives a histogram of the right width.
_NONE: Final[Mapping[type, Sequence[Any]]] = {FreshnessSnapshot: (NO_FRESHNESS,)}


# -- what is not added, but joined


def _grouped(lists: Sequence[Sequence[_T]], *names: str) -> list[list[_T]]:
    """What the workers say of one thing, which these attributes name; the oldest snapshot's first."""
    groups: dict[Any, list[_T]] = {}
    key = attrgetter(*names)
    for one in chain.from_iterable(lists):
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def _partitions(lists: Sequence[Sequence[PartitionStatistics]]) -> tuple[PartitionStatistics, ...]:
    # A partition that was handed over may be in two snapshots. The newer one, which comes later, replaces the other.
    latest = [group[-1] for group in _grouped(lists, "topic", "partition")]
    return tuple(sorted(latest, key=attrgetter("topic", "partition")))


def _accounts(lists: Sequence[Sequence[AccountStatistics]]) -> tuple[AccountStatistics, ...]:
    """The worst state of any worker's gate, and the sum of the queues; in the order of the settings."""
    merged = []
    for gates in _grouped(lists, "account"):
        state = worst_state(one.state for one in gates)
        # Reason and times belong to a state: those of other states would contradict it.
        worst: AccountStatistics = _added(AccountStatistics, [one for one in gates if one.state == state])
        queued, in_flight = (sum(map(attrgetter(name), gates)) for name in ("queued", "in_flight"))
        merged.append(replace(worst, queued=queued, in_flight=in_flight))
    return tuple(merged)


def _schemas(lists: Sequence[Sequence[SchemaWait]]) -> tuple[SchemaWait, ...]:
    # Several workers may wait for the same schema.
    merged: list[SchemaWait] = [_added(SchemaWait, group) for group in _grouped(lists, "kind", "value")]
    return tuple(nlargest(SCHEMAS_MOST, merged, key=attrgetter("seconds")))


def _letters(lists: Sequence[Sequence[StoredLetter]]) -> tuple[StoredLetter, ...]:
    return tuple(nlargest(LETTERS_MOST, chain.from_iterable(lists), key=attrgetter("at")))


def _messages(by_worker: Sequence[Mapping[_T, str]]) -> Mapping[_T, str]:
    """The latest of each kind."""
    return {kind: message for messages in by_worker for kind, message in messages.items()}


# By type and field: the lists, and the figures of what is one thing to all workers.
_JOINED: Final[Mapping[tuple[type, str], Callable[[Sequence[Any]], Any]]] = {
    (Statistics, "partitions"): _partitions,
    (Statistics, "accounts"): _accounts,
    (Statistics, "letters"): _letters,
    (Statistics, "schemas"): _schemas,
    (Statistics, "brokers"): lambda lists: tuple(
        _added(BrokerStatistics, group) for group in _grouped(lists, "client", "broker")
    ),
    (SamplesSnapshot, "rejections"): _messages,
    (SamplesSnapshot, "warnings"): _messages,
    (AccountStatistics, "state"): first,
    (AccountStatistics, "reason"): first,
    (AccountStatistics, "throttled_for"): most,
    (AccountStatistics, "halted_for"): most,
    (AccountStatistics, "next_probe_in"): least,
    (AccountStatistics, "unreachable_for"): most,
    (AccountStatistics, "told"): any,
    # The slowest of any worker; what was held back is added.
    (BrokerStatistics, "round_trip"): most,
    (BrokerStatistics, "round_trip_p99"): most,
    (SchemaWait, "kind"): first,
    (SchemaWait, "value"): first,
    (SchemaWait, "seconds"): most,
    (SchemaWait, "denied_seconds"): most,
}
