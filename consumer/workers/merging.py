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
from itertools import chain
from typing import Any, Final

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

    def of(self, worker: int) -> Statistics | None:
        """The latest snapshot of a worker; None: it has sent none yet, or it is dead."""
        return self._live.get(worker)

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
            rule = _JOINED.get((owner, attribute.name)) or attribute.figure.merge
            merged[attribute.name] = _sum(attribute.shape, values) if rule is None else rule(values)
    return owner(**merged)


def _sum(shape: Shape, values: Sequence[Any]) -> Any:
    """Numbers are added, in a row or by name too; of snapshots, by name too, one is made."""
    if figures_of(shape.item):
        return (
            _by_name(shape.item, values)
            if shape.many
            else _added(shape.item, [*_NONE.get(shape.item, ()), *values])
        )
    if not shape.many:
        return sum(values)
    if values and isinstance(values[0], tuple):
        return tuple(map(sum, zip(*values, strict=True)))
    total: Counter[Any] = Counter()
    for one in values:
        total.update(one)
    return total


def _by_name(item: type, windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({name for window in windows for name in window})
    return {name: _added(item, [window[name] for window in windows if name in window]) for name in names}


# What is added to nothing gives a histogram of the right width.
_NONE: Final[Mapping[type, Sequence[Any]]] = {FreshnessSnapshot: (NO_FRESHNESS,)}


# -- what is not added, but joined


def _partitions(all_of_them: Sequence[Sequence[PartitionStatistics]]) -> tuple[PartitionStatistics, ...]:
    # A partition that was handed over may be in two snapshots. The newer one, which comes later, replaces the other.
    latest = {(one.topic, one.partition): one for partitions in all_of_them for one in partitions}
    return tuple(one for _, one in sorted(latest.items()))


def _accounts(all_of_them: Sequence[Sequence[AccountStatistics]]) -> tuple[AccountStatistics, ...]:
    """All workers list the accounts in the order of the settings."""
    by_name: dict[str, list[AccountStatistics]] = {}
    for accounts in all_of_them:
        for one in accounts:
            by_name.setdefault(one.account, []).append(one)
    return tuple(map(_account, by_name.values()))


def _account(gates: Sequence[AccountStatistics]) -> AccountStatistics:
    """The worst state of any worker's gate, and the sum of the queues."""
    state = worst_state(one.state for one in gates)
    # Reason and times belong to a state: those of other states would contradict it.
    worst = [one for one in gates if one.state == state]
    return AccountStatistics(
        account=gates[0].account,
        state=state,
        reason=first(one.reason for one in worst),
        queued=sum(one.queued for one in gates),
        in_flight=sum(one.in_flight for one in gates),
        throttled_for=most(one.throttled_for for one in worst),
        halted_for=most(one.halted_for for one in worst),
        next_probe_in=least(one.next_probe_in for one in worst),
        unreachable_for=most(one.unreachable_for for one in worst),
        told=any(one.told for one in worst),
    )


def _brokers(all_of_them: Sequence[Sequence[BrokerStatistics]]) -> tuple[BrokerStatistics, ...]:
    """The slowest round trip of any worker; what was held back is added."""
    merged: dict[tuple[str, str], BrokerStatistics] = {}
    for one in chain.from_iterable(all_of_them):
        known = merged.setdefault((one.client, one.broker), one)
        if known is not one:
            merged[one.client, one.broker] = BrokerStatistics(
                one.client,
                one.broker,
                most((known.round_trip, one.round_trip)),
                most((known.round_trip_p99, one.round_trip_p99)),
                known.throttled + one.throttled,
            )
    return tuple(merged.values())


def _letters(all_of_them: Sequence[Sequence[StoredLetter]]) -> tuple[StoredLetter, ...]:
    joined = chain.from_iterable(all_of_them)
    return tuple(sorted(joined, key=lambda one: one.at, reverse=True)[:LETTERS_MOST])


def _messages(all_of_them: Sequence[Mapping[tuple[str, str], str]]) -> Mapping[tuple[str, str], str]:
    """The latest of each kind."""
    return {kind: message for messages in all_of_them for kind, message in messages.items()}


def _schemas(all_of_them: Sequence[Sequence[SchemaWait]]) -> tuple[SchemaWait, ...]:
    """Several workers may wait for the same schema."""
    merged: dict[tuple[str, str], SchemaWait] = {}
    for one in chain.from_iterable(all_of_them):
        known = merged.setdefault((one.kind, one.value), one)
        if known is not one:
            merged[one.kind, one.value] = replace(
                known,
                records=known.records + one.records,
                seconds=max(known.seconds, one.seconds),
                denied_seconds=most((known.denied_seconds, one.denied_seconds)),
            )
    return tuple(sorted(merged.values(), key=lambda one: -one.seconds)[:SCHEMAS_MOST])


# By type and field.
_JOINED: Final[Mapping[tuple[type, str], Callable[[Sequence[Any]], Any]]] = {
    (Statistics, "partitions"): _partitions,
    (Statistics, "accounts"): _accounts,
    (Statistics, "letters"): _letters,
    (Statistics, "schemas"): _schemas,
    (Statistics, "brokers"): _brokers,
    (SamplesSnapshot, "rejections"): _messages,
    (SamplesSnapshot, "warnings"): _messages,
}
