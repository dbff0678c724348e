"""Merge the snapshots of all workers into one, for the page, /status and /metrics.

Each worker's snapshot is taken atomically and its ledger adds up, so a sum over whole snapshots adds up too, whatever
their ages. Each figure defines how it is merged (`consumer.engine.figures`): by default it is added; of states and
times the worst is taken. Lists are joined here. Shares and quantiles are computed from the added counts. `merge([])` is
the snapshot of no worker.

`remains` is what a dead worker leaves behind: its counts, so that no counter ever decreases. Its open records are
released: another member reads them again. The result is a snapshot too, so all dead workers together are one snapshot.
What a worker counted after its last snapshot, half a second at most, is lost.

A partition that was handed over may be in two snapshots of different ages; the newer one is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final

from consumer.engine.counters import LETTERS_MOST, Counters, SamplesSnapshot, StoredLetter
from consumer.engine.coverage import OTHER
from consumer.engine.figures import Shape, figures_of, first, least, most
from consumer.engine.freshness import NO_FRESHNESS, FreshnessSnapshot
from consumer.engine.statistics import (
    SCHEMAS_MOST,
    AccountStatistics,
    PartitionStatistics,
    SchemaWait,
    Statistics,
    Totals,
    worst_state,
)

MOST_NAMES = 64
"""Maximum number of names in a family of counts; further ones are counted as ``other``, as in the engine."""


def merge(snapshots: Sequence[Statistics]) -> Statistics:
    """Merge these snapshots, which are ordered from the oldest to the newest."""
    merged: Statistics = _added(Statistics, snapshots)
    return merged


def remains(last: Statistics) -> Statistics:
    """What a dead worker leaves behind, computed from its last snapshot."""
    return replace(
        merge([]),
        totals=_let_go(last.totals),
        passed=last.passed,
        freshness=replace(NO_FRESHNESS, age_sum=last.freshness.age_sum, buckets=last.freshness.buckets),
        counters=last.counters,
        letters=last.letters,
        samples=last.samples,
    )


def _let_go(totals: Totals) -> Totals:
    """Count open records as released. A ledger that did not add up is corrected: the next process starts a new one."""
    settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
    released = max(totals.released, totals.read + totals.released - settled)
    return replace(totals, read=settled, open=0, released=released)


class Merged:
    """The latest snapshot of each live worker, and the remains of the dead ones."""

    def __init__(self) -> None:
        self._live: dict[int, Statistics] = {}
        """By worker, the oldest snapshot first."""
        self._past = merge([])
        self._names: dict[str, set[str]] = {}
        """Family of counts -> the names that have a count of their own. Names stay, or a count would decrease."""

    def take(self, worker: int, statistics: Statistics) -> bool:
        """Take a worker's new snapshot. Return True if it has settled records since its last one."""
        before = self._live.pop(worker, None)
        self._live[worker] = statistics
        return _settled(statistics) > (_settled(before) if before is not None else 0)

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


def _settled(statistics: Statistics) -> int:
    totals = statistics.totals
    return totals.read - totals.open


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


_NONE: Final[Mapping[type, Sequence[Any]]] = {FreshnessSnapshot: (NO_FRESHNESS,)}
"""What is added to nothing gives a histogram of the right width."""


# -- what is not added, but joined


def _partitions(all_of_them: Sequence[Sequence[PartitionStatistics]]) -> tuple[PartitionStatistics, ...]:
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
    )


def _letters(all_of_them: Sequence[Sequence[StoredLetter]]) -> tuple[StoredLetter, ...]:
    joined = chain.from_iterable(all_of_them)
    return tuple(sorted(joined, key=lambda one: one.at, reverse=True)[:LETTERS_MOST])


def _messages(all_of_them: Sequence[Mapping[tuple[str, str], str]]) -> Mapping[tuple[str, str], str]:
    """The latest of each kind."""
    return {kind: message for messages in all_of_them for kind, message in messages.items()}


def _schemas(all_of_them: Sequence[Sequence[SchemaWait]]) -> tuple[SchemaWait, ...]:
    """Several workers may wait for the same schema."""
    waits: dict[tuple[str, str], list[SchemaWait]] = {}
    for one in chain.from_iterable(all_of_them):
        waits.setdefault((one.kind, one.value), []).append(one)
    merged = (
        SchemaWait(
            *schema,
            sum(one.records for one in several),
            max(one.seconds for one in several),
            most(one.denied_seconds for one in several),
        )
        for schema, several in waits.items()
    )
    return tuple(sorted(merged, key=lambda one: -one.seconds)[:SCHEMAS_MOST])


_JOINED: Final[Mapping[tuple[type, str], Callable[[Sequence[Any]], Any]]] = {
    (Statistics, "partitions"): _partitions,
    (Statistics, "accounts"): _accounts,
    (Statistics, "letters"): _letters,
    (Statistics, "schemas"): _schemas,
    (SamplesSnapshot, "rejections"): _messages,
    (SamplesSnapshot, "warnings"): _messages,
}
"""By type and field."""
