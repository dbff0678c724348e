"""Many workers' snapshots become one, of which page, /status and /metrics are made as of a single process's.

Theory of operation. Each worker's snapshot was taken in one go and adds up; so what is summed over whole snapshots adds
up too, whatever their ages. Each figure has one rule in `_RULES`: what counts is added, levels are added, of states and
times the worst is taken, lists are joined. Shares and quantiles are worked out from the added counts, never from each
other. A rule of nothing gives nothing: `merge([])` is the snapshot of no worker at all.

`remains` is what a dead worker leaves behind: its counts, so that no counter ever goes back, and nothing of what it had
in hand, which is released: someone reads it again. That is a snapshot as well, so what all the dead left behind is one
snapshot, however many they were. What it counted after its last snapshot, half a second at most, nobody knows.

A partition that was handed over may be in two snapshots, of different moments; the newer one has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from operator import add
from typing import Any, Final, TypeVar

from consumer.engine.assignment import Totals
from consumer.engine.coverage import NO_COVERAGE, OTHER, CoverageSnapshot, Covered
from consumer.engine.freshness import NO_FRESHNESS, FreshnessSnapshot
from consumer.engine.statistics import (
    LETTERS_MOST,
    SCHEMAS_MOST,
    AccountStatistics,
    ClockStatistics,
    Counters,
    MetadataLeft,
    OldestOpen,
    PartitionStatistics,
    SamplesSnapshot,
    SchemaWait,
    Statistics,
    StoredLetter,
    worst_state,
)

MOST_NAMES = 64
"""Names in a family of counts; further ones are ``other``, as in the core."""

_T = TypeVar("_T")


def merge(snapshots: Sequence[Statistics]) -> Statistics:
    """One snapshot of all these, the oldest first."""
    return Statistics(
        **{name: rule([getattr(one, name) for one in snapshots]) for name, rule in _RULES.items()}
    )


def remains(last: Statistics) -> Statistics:
    """What is left of a worker that is gone, from its last snapshot."""
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
    """What is not settled is released. Books that were wrong are closed as well: the next process begins new ones."""
    settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
    released = max(totals.released, totals.read + totals.released - settled)
    return replace(totals, read=settled, open=0, released=released)


class Merged:
    """The latest snapshot of each live worker, and what the dead ones left behind."""

    def __init__(self) -> None:
        self._live: dict[int, Statistics] = {}
        """By worker, the oldest snapshot first."""
        self._past = merge([])
        self._names: dict[str, set[str]] = {}
        """Of each family of counts, the names that are counted by themselves: for ever, or a count would go back."""

    def take(self, worker: int, statistics: Statistics) -> bool:
        """A worker's snapshot of now; whether it has settled something since its last."""
        before = self._live.pop(worker, None)
        self._live[worker] = statistics
        return _settled(statistics) > (_settled(before) if before is not None else 0)

    def gone(self, worker: int) -> None:
        """A worker has ended."""
        last = self._live.pop(worker, None)
        if last is not None:
            self._past = self._named(merge([self._past, remains(last)]))

    def of(self, worker: int) -> Statistics | None:
        """The latest snapshot of a worker; None: it has sent none yet, or is gone."""
        return self._live.get(worker)

    def statistics(self, *, stopping: bool = False) -> Statistics:
        """The figures of all. `stopping`: whether the supervisor is."""
        one = self._named(merge([self._past, *self._live.values()]))
        return replace(one, stopping=stopping)

    def _named(self, statistics: Statistics) -> Statistics:
        """With at most `MOST_NAMES` names in each family: each worker keeps to that, but together they know more."""
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
            # Names of several parts are codes, of which there are only so many.
            capped[name if name in known or not isinstance(name, str) else OTHER] += count
        return capped


def _settled(statistics: Statistics) -> int:
    totals = statistics.totals
    return totals.read - totals.open


# -- the rules


def _totals(all_of_them: Sequence[Totals]) -> Totals:
    return Totals(*(sum(getattr(one, field.name) for one in all_of_them) for field in fields(Totals)))


def _partitions(all_of_them: Sequence[Sequence[PartitionStatistics]]) -> tuple[PartitionStatistics, ...]:
    latest = {(one.topic, one.partition): one for partitions in all_of_them for one in partitions}
    return tuple(one for _, one in sorted(latest.items()))


def _accounts(all_of_them: Sequence[Sequence[AccountStatistics]]) -> tuple[AccountStatistics, ...]:
    """In the order of the settings, which all workers have."""
    by_name: dict[str, list[AccountStatistics]] = {}
    for accounts in all_of_them:
        for one in accounts:
            by_name.setdefault(one.account, []).append(one)
    return tuple(map(_account, by_name.values()))


def _account(gates: Sequence[AccountStatistics]) -> AccountStatistics:
    """The worst state of any worker's gate, and what all have to send."""
    state = worst_state(one.state for one in gates)
    worst = [one for one in gates if one.state == state]
    return AccountStatistics(
        account=gates[0].account,
        state=state,
        reason=next((one.reason for one in worst if one.reason is not None), None),
        queued=sum(one.queued for one in gates),
        in_flight=sum(one.in_flight for one in gates),
        throttled_for=_most([one.throttled_for for one in worst]),
        halted_for=_most([one.halted_for for one in worst]),
        next_probe_in=_least([one.next_probe_in for one in worst]),
        unreachable_for=_most([one.unreachable_for for one in worst]),
    )


def _freshness(all_of_them: Sequence[FreshnessSnapshot]) -> FreshnessSnapshot:
    """Histograms are added; shares and quantiles come from them."""

    def added(histograms: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(map(sum, zip(*histograms, strict=True)))

    if not all_of_them:
        return NO_FRESHNESS
    return FreshnessSnapshot(
        age_sum=sum(one.age_sum for one in all_of_them),
        buckets=added(one.buckets for one in all_of_them),
        hour_buckets=added(one.hour_buckets for one in all_of_them),
        day_buckets=added(one.day_buckets for one in all_of_them),
    )


def _counters(all_of_them: Sequence[Counters]) -> Counters:
    added = Counters()
    for one in all_of_them:
        for family, value in vars(one).items():
            so_far = getattr(added, family)
            if isinstance(value, Counter):
                so_far.update(value)
            else:
                setattr(added, family, so_far + value)
    return added


def _oldest(all_of_them: Sequence[OldestOpen | None]) -> OldestOpen | None:
    """One without an age only where all are without, as in the core."""
    found = [one for one in all_of_them if one is not None]
    return max(found, key=lambda one: -1.0 if one.age is None else one.age, default=None)


def _coverage(all_of_them: Sequence[CoverageSnapshot]) -> CoverageSnapshot:
    if not all_of_them:
        return NO_COVERAGE
    return CoverageSnapshot(
        hour=_covered([one.hour for one in all_of_them]), day=_covered([one.day for one in all_of_them])
    )


def _covered(windows: Sequence[Mapping[str, Covered]]) -> dict[str, Covered]:
    by_name: dict[str, Covered] = {}
    for window in windows:
        for name, one in window.items():
            so_far = by_name.get(name)
            by_name[name] = one if so_far is None else _added(so_far, one)
    return dict(sorted(by_name.items()))


def _added(one: Covered, other: Covered) -> Covered:
    """A share is of all events, so each weighs as much as there were."""
    events = one.events + other.events
    return Covered(
        events=events,
        sampled=one.sampled + other.sampled,
        carried=tuple(map(add, one.carried, other.carried)),
        shares=tuple(
            (mine * one.events + theirs * other.events) / events
            for mine, theirs in zip(one.shares, other.shares, strict=True)
        ),
    )


def _letters(all_of_them: Sequence[Sequence[StoredLetter]]) -> tuple[StoredLetter, ...]:
    joined = [letter for letters in all_of_them for letter in letters]
    return tuple(sorted(joined, key=lambda one: one.at, reverse=True)[:LETTERS_MOST])


def _samples(all_of_them: Sequence[SamplesSnapshot]) -> SamplesSnapshot:
    joined = SamplesSnapshot({}, {})
    for one in all_of_them:
        joined = SamplesSnapshot({**joined.rejections, **one.rejections}, {**joined.warnings, **one.warnings})
    return joined


def _first(values: Iterable[_T | None]) -> _T | None:
    return next((value for value in values if value is not None), None)


def _most(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _least(values: Iterable[Any]) -> Any:
    return min((value for value in values if value is not None), default=None)


def _worst(values: Sequence[float]) -> float:
    """The longest of all; 0 of none."""
    return max(values, default=0.0)


def _furthest(values: Sequence[int]) -> int:
    """The one that is furthest off: two that are wrong must not look right together."""
    return max(values, key=abs, default=0)


def _least_metadata(values: Sequence[MetadataLeft]) -> MetadataLeft:
    """What is left where the least is."""
    return max(values, key=list(MetadataLeft).index, default=MetadataLeft.MAPS)


def _clock(values: Sequence[ClockStatistics]) -> ClockStatistics:
    """They have one clock, and have heard of it at different times."""
    platform = [one.platform for one in values if one.platform is not None]
    return ClockStatistics(
        max(platform, key=abs, default=None),
        max((one.records for one in values), default=0.0),
        max((one.corrected for one in values), key=abs, default=0.0),
        sum(one.early for one in values),
    )


def _schemas(values: Sequence[Sequence[SchemaWait]]) -> tuple[SchemaWait, ...]:
    """The same schema may be waited for by several."""
    waits: dict[tuple[str, str], SchemaWait] = {}
    for one in chain.from_iterable(values):
        other = waits.get(one[:2])
        waits[one[:2]] = one if other is None else _both(one, other)
    return tuple(sorted(waits.values(), key=lambda one: -one.seconds)[:SCHEMAS_MOST])


def _both(one: SchemaWait, other: SchemaWait) -> SchemaWait:
    denied = [each for each in (one.denied_seconds, other.denied_seconds) if each is not None]
    seconds = max(one.seconds, other.seconds)
    return SchemaWait(*one[:2], one.records + other.records, seconds, max(denied, default=None))


def _all(values: Sequence[bool]) -> bool:
    return bool(values) and all(values)


_RULES: Final[Mapping[str, Callable[[Sequence[Any]], Any]]] = {
    "totals": _totals,
    "partitions": _partitions,
    "accounts": _accounts,
    "open_bytes": sum,
    "held": sum,
    "passed": sum,
    "waiting_for_start": sum,
    "joined": any,
    "stalled_for": _most,
    "key_store_fails": any,
    "room": sum,
    "claims": sum,
    "waiting_for_schema": sum,
    "oldest_open_ms": _least,
    "seconds_since_progress": _worst,
    "freshness": _freshness,
    "counters": _counters,
    "stopping": _all,
    "guard": _first,
    "oldest_open": _oldest,
    "coverage": _coverage,
    "letters": _letters,
    "samples": _samples,
    "commit_metadata": _least_metadata,
    "elsewhere": sum,
    "mismatch": _furthest,
    "schemas": _schemas,
    "clock": _clock,
}
"""For every field of `Statistics` how that of many is made."""
