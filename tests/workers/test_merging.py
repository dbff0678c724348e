"""Merging snapshots: the result adds up, no counter decreases, shares and quantiles are those of all events."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from operator import ge
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from consumer.engine.figures.counters import (
    MAX_LETTERS,
    MAX_NAMES,
    OTHER,
    Counters,
    KeyStoreStatistics,
    Samples,
    StoredLetter,
)
from consumer.engine.figures.definitions import copied, figures_of, merged
from consumer.engine.figures.delivered import Ages, CoverageSnapshot, Covered
from consumer.engine.figures.outside import BrokerStatistics, SchemaWait
from consumer.engine.figures.quality import AccountQuality, EventQuality
from consumer.engine.figures.statistics import Cause, ClockStatistics, GuardStatistics, Statistics
from consumer.engine.figures.value import ValueSnapshot, Worth
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.model import VALUE_PARTS, MetadataLevel, Stage
from consumer.web.health import why_not_ready
from consumer.web.metrics import families
from consumer.web.status import status_document
from consumer.workers.merging import NO_WORKER, Merged, remains
from tests.web.building import (
    ACCOUNT,
    INFO,
    OTHER_ACCOUNT,
    TOPIC,
    account,
    busy,
    call_latency,
    covered,
    full_counters,
    halted,
    partition,
    statistics,
    totals,
)

PARTS = ("delivered", "duplicate", "filtered", "dead_lettered", "open")
Series = dict[tuple[str, tuple[str, ...]], tuple[str, Any]]


def series(snapshot: Statistics) -> Series:
    """Kind and value of each series of /metrics, by name and labels; none is there twice."""
    found: Series = {}
    for family, of_family in families(Statistics, [snapshot]):
        for labels, value in of_family:
            assert (family.name, labels) not in found
            found[family.name, labels] = (family.kind, value)
    return found


def test_every_figure_has_its_rule() -> None:
    """A new list in the snapshot needs a rule; every other figure is added, or defines its own rule."""
    assert {place.name for place in figures_of(Statistics) if place.is_field} == {
        field.name for field in fields(Statistics)
    }
    assert all(place.figure.merge for place in figures_of(Statistics) if place.is_field and place.shape.many)


def test_merging_no_worker() -> None:
    """An empty snapshot, which page, /status and /metrics can show."""
    nothing = NO_WORKER
    assert nothing.totals == totals()
    assert nothing.destination == "open"
    assert status_document(nothing, INFO)["freshness"]["within_one_hour"] is None
    assert series(nothing)


@pytest.mark.parametrize("scene", [busy, halted], ids=lambda scene: scene.__name__)
def test_merging_one_worker_changes_nothing(scene: Any) -> None:
    """Its document does not change."""
    one = scene()
    assert status_document(merged(Statistics, [one]), INFO) == status_document(one, INFO)


def _oldest(age: float | None) -> OldestOpen:
    return OldestOpen(TOPIC, 0, 1, age, WaitsFor.BATCH, ACCOUNT)


def _letters(*at: int) -> tuple[StoredLetter, ...]:
    return tuple(StoredLetter(float(one), TOPIC, 0, one, Stage.CONVERT, "expired", "too old") for one in at)


def _coverage(**hour: Covered) -> CoverageSnapshot:
    return CoverageSnapshot(hour, {})


_GUARD = GuardStatistics(TOPIC, 9, 10, "convert no_identity", Cause.MAPPING)
_HALF = Worth(10, 25 * VALUE_PARTS // 2)
_OLD, _NEW, _NEVER = (
    AccountQuality("7", at, why, ()) for at, why in ((5, None), (9, "away"), (None, "away"))
)
MERGED: dict[str, tuple[list[Any], Any]] = {
    "open_bytes": ([10, 5], 15),
    "claims": ([0, 3], 3),
    "other_destination": ([2, 1], 3),
    "key_store_fails": ([False, True], True),
    "joined": ([True, False], True),
    "stalled_for": ([130.0, None], 130.0),
    "seconds_since_progress": ([4.0, 90.0], 90.0),
    "guard": ([None, _GUARD], _GUARD),
    # Two mismatches must not cancel each other out.
    "mismatch": ([1, -2, 1], -2),
    "members_differ": ([("mapping", "function"), ("mapping",)], ("mapping", "function")),
    "commit_metadata": ([MetadataLevel.MAPS, MetadataLevel.NOTHING], MetadataLevel.NOTHING),
    "oldest_open_ms": ([None, 97_000, 91_000], 91_000),
    # A record without a timestamp only if none has one.
    "oldest_open": ([_oldest(None), _oldest(3.0), _oldest(9.0), None], _oldest(9.0)),
    # Newest first, as many as one worker has.
    "letters": (
        [_letters(*range(40, 0, -2)), _letters(*range(39, 0, -2))],
        _letters(*range(40, 40 - MAX_LETTERS, -1)),
    ),
    "samples": (
        [Samples({("decode", "malformed"): "a"}, {}), Samples({("convert", "expired"): "b"}, {})],
        Samples({("decode", "malformed"): "a", ("convert", "expired"): "b"}, {}),
    ),
    # The slowest round trip counts; what was held back is added.
    "brokers": (
        [
            (BrokerStatistics("consumer", "1", 0.1, 0.5, 4.0),),
            (
                BrokerStatistics("consumer", "1", 0.2, 0.4, 1.5),
                BrokerStatistics("producer", "1", None, None, 0.0),
            ),
        ],
        (
            BrokerStatistics("consumer", "1", 0.2, 0.5, 5.5),
            BrokerStatistics("producer", "1", None, None, 0.0),
        ),
    ),
    # A schema that several wait for is listed once.
    "schemas": (
        [
            (SchemaWait("id", "17", 2, 40.0, 35.0), SchemaWait("id", "18", 1, 9.0, None)),
            (SchemaWait("id", "17", 5, 50.0, None),),
        ],
        (SchemaWait("id", "17", 7, 50.0, 35.0), SchemaWait("id", "18", 1, 9.0, None)),
    ),
    "clock": (
        [ClockStatistics(70.0, 12.0, 70.0, 3), ClockStatistics(None, 90.0, 0.0, 1)],
        ClockStatistics(70.0, 90.0, 70.0, 4),
    ),
    # An account that is halted for one worker is halted; the queues are added.
    "accounts": (
        [
            (account(queued=3, in_flight=1), account(OTHER_ACCOUNT)),
            (account(state="halted", queued=2), account(OTHER_ACCOUNT, "throttled", seconds=7.0)),
        ],
        (
            account(state="halted", queued=5, in_flight=1),
            account(OTHER_ACCOUNT, "throttled", seconds=7.0),
        ),
    ),
    # Shares and quantiles are those of all events and calls, not the mean of the workers'.
    "coverage": (
        [
            _coverage(checkout=covered(100, em=1.0)),
            _coverage(checkout=covered(300, em=0.5), search=covered(5)),
        ],
        _coverage(checkout=covered(400, em=0.625), search=covered(5)),
    ),
    "freshness": (
        [statistics(ages=[1] * 99).freshness, statistics(ages=[7200]).freshness],
        statistics(ages=[1] * 99 + [7200]).freshness,
    ),
    "latency": (
        [call_latency(*[0.1] * 95), call_latency(*[8.0] * 5)],
        call_latency(*[0.1] * 95, *[8.0] * 5),
    ),
    # Two halves are one: added before they are rounded.
    "value": (
        [ValueSnapshot({("checkout", "EUR"): _HALF})] * 2,
        ValueSnapshot({("checkout", "EUR"): Worth(20, 25 * VALUE_PARTS)}),
    ),
    # Each worker asks for itself; one that has just started has covered nothing.
    "event_quality": (
        [EventQuality((_NEW,), 50.0), EventQuality((_OLD,), 86_400.0), EventQuality((_NEVER,), 7.0)],
        EventQuality((_NEW,), 7.0),
    ),
}
"""Figures of several workers, and of all of them."""


@pytest.mark.parametrize("name", MERGED)
def test_a_figure_of_all_workers(name: str) -> None:
    """Counts and levels are added, of states and times the worst is taken, of lists the most important items."""
    of_workers, of_all = MERGED[name]
    assert (
        getattr(merged(Statistics, [replace(NO_WORKER, **{name: one}) for one in of_workers]), name) == of_all
    )


def test_ledgers_and_counters_are_added() -> None:
    """Each count by its name."""
    one = statistics(partition(0, delivered=5, open=2), counters=full_counters())
    other = statistics(partition(1, delivered=7, filtered=1), counters=full_counters())
    both = merged(Statistics, [one, other])
    assert both.totals == totals(delivered=12, filtered=1, open=2)
    assert both.counters.delivered_by_name["checkout"] == 62_000
    assert both.counters.calls == 2 * full_counters().calls
    assert both.counters.rejections["decode", "malformed"] == 6


def test_a_partition_that_was_handed_over_is_listed_once() -> None:
    """The newer report is used; with both, Prometheus would refuse the scrape."""
    merged = Merged()
    merged.take(1, statistics(partition(0, lag=9), partition(1, lag=1)))
    merged.take(2, statistics(partition(0, lag=4)))
    assert [(one.partition, one.lag) for one in merged.statistics().partitions] == [(0, 4), (1, 1)]
    merged.take(1, statistics(partition(0, lag=3), partition(1, lag=1)))
    assert [(one.partition, one.lag) for one in merged.statistics().partitions] == [(0, 3), (1, 1)]
    assert series(merged.statistics())


def test_partitions_of_a_worker_that_stands_still_count_where_they_are_now() -> None:
    """The group has given one of its partitions to another worker, which reads the open records again. When it goes on,
    and until it knows of that, no counter decreases, whatever it settles then."""
    merged = Merged()
    before = partition(0, delivered=5, open=3), partition(1, delivered=2, open=1)
    merged.take(1, statistics(*before))
    merged.take(2, statistics(partition(0, open=3)))
    merged.stand_still([1])
    now = merged.statistics()
    assert now.totals == totals(delivered=7, open=4, released=3)
    assert [(one.partition, one.totals.open) for one in now.partitions] == [(0, 3), (1, 1)]
    assert [len(merged.partitions_of(worker)) for worker in (1, 2, 3)] == [1, 1, 0]
    # It goes on, has an answer to a call, and does not know yet.
    merged.take(1, statistics(partition(0, delivered=7, open=1), before[1]))
    merged.stand_still([])
    assert merged.statistics().totals == totals(delivered=9, open=4, released=3)
    merged.take(1, statistics(before[1], ended=totals(delivered=7, released=1)))
    assert merged.statistics().totals == totals(delivered=9, open=4, released=3)
    # Assigned to it again: another assignment.
    again = replace(partition(0, open=2), epoch=7)
    merged.take(2, statistics(ended=totals(released=3)))
    merged.take(1, statistics(again, before[1], ended=totals(delivered=7, released=1)))
    assert merged.statistics().totals == totals(delivered=9, open=3, released=4)


def test_the_remains_of_a_dead_worker() -> None:
    """Its counts stay; its open records count as released, and what it held is gone."""
    one = busy()
    left = remains(one)
    assert left.totals.open == 0
    assert left.totals.read + left.totals.released == one.totals.read + one.totals.released
    assert left.totals.read == sum(getattr(left.totals, part) for part in PARTS)
    assert left.counters is one.counters
    assert left.letters == one.letters
    assert left.freshness.total == one.freshness.total
    assert (left.freshness.hour, left.freshness.day) == (Ages(), Ages())
    held = (left.partitions, left.accounts, left.open_bytes, left.claims, left.oldest_open)
    assert held == ((), (), 0, 0, None)
    assert [(old.round_trip, old.throttled) for old in left.brokers] == [
        (None, 4.5),
        (None, 0.0),
        (None, 0.25),
    ]


def test_a_ledger_that_does_not_add_up_ends_with_its_process() -> None:
    """As after any restart."""
    one = statistics(partition(0, delivered=3), mismatch=2)
    left = remains(replace(one, totals=replace(one.totals, read=5)))
    assert (left.mismatch, left.totals) == (0, totals(delivered=3, released=2))


def test_before_a_worker_reports() -> None:
    """Whoever asks for the readiness meanwhile is told so, at the start and when all have died."""
    workers = Merged()
    assert why_not_ready(workers.statistics()) == "no worker has reported yet"
    workers.take(1, replace(NO_WORKER, starting="the key store is being opened"))
    assert why_not_ready(workers.statistics()) == "the key store is being opened"
    workers.take(1, replace(NO_WORKER, joined=True))
    assert workers.statistics().starting is None
    workers.gone(1)
    assert why_not_ready(workers.statistics()) == "no worker has reported yet"


def test_progress_of_a_worker() -> None:
    """Progress: records were settled since the last report of the same process."""
    merged = Merged()
    assert not merged.take(1, statistics(partition(0, open=5)))
    assert merged.take(1, statistics(partition(0, open=4, delivered=1)))
    assert not merged.take(1, statistics(partition(0, open=9, delivered=1)))
    merged.gone(1)
    assert not merged.take(1, statistics())
    assert merged.take(1, statistics(partition(0, duplicate=1)))


def test_the_key_store_is_one() -> None:
    """Sizes are the largest that a live worker reports, or the last known; evictions are added, those of dead workers
    too. Those of a server are counted once: each worker reports all of them."""
    all_, nothing = Merged(), NO_WORKER.key_store
    assert all_.statistics().key_store == nothing == KeyStoreStatistics()
    one = KeyStoreStatistics(10, 900, 2, evicted=1, evicted_by_server=3)
    all_.take(1, statistics(key_store=one))
    all_.take(2, statistics(key_store=KeyStoreStatistics(12, 800, 2, evicted=2, evicted_by_server=5)))
    found = all_.statistics().key_store
    assert found == KeyStoreStatistics(12, 900, 2, evicted=3, evicted_by_server=5)
    assert found.evicted_early == 8
    all_.gone(2)
    all_.take(1, statistics(key_store=one))
    assert all_.statistics().key_store == replace(found, keys=10)
    all_.gone(1)
    assert all_.statistics().key_store == replace(found, keys=10)
    all_.take(1, statistics(key_store=KeyStoreStatistics(4, 300, 1)))
    assert all_.statistics().key_store == replace(found, keys=4, bytes_used=300, buckets=1)


def test_names_are_bounded_over_all_workers() -> None:
    """Further names are counted as other: the sum is that of all events, and no count decreases."""
    merged = Merged()
    for life in range(10):
        counters = Counters()
        counters.delivered_by_name.update({f"name-{life}-{number}": 1 for number in range(20)})
        merged.take(1, statistics(counters=counters))
        merged.gone(1)
    found = merged.statistics().counters.delivered_by_name
    assert len(found) == MAX_NAMES + 1
    assert found[OTHER] == 200 - MAX_NAMES
    assert found.total() == 200


class Shop:
    """A worker whose figures grow as those of a real one."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._partitions = dice.sample(range(6), dice.randint(0, 4))
        self._counts: dict[int, dict[str, Any]] = {one: dict.fromkeys(PARTS, 0) for one in self._partitions}
        self._ages: list[float] = []
        self._counters = Counters()

    def work(self) -> None:
        """Read and settle some records in each partition."""
        for counts in self._counts.values():
            read, settled = self._dice.randint(0, 9), min(counts["open"], self._dice.randint(0, 9))
            counts["open"] += read - settled
            counts[self._dice.choice(PARTS[:-1])] += settled
            self._ages += [self._dice.choice([1, 100, 7000])] * settled
            self._counters.calls += settled
            name = f"name-{self._dice.randint(0, 200)}"
            self._counters.bump(self._counters.delivered_by_name, name, settled)

    def snapshot(self) -> Statistics:
        parts = [partition(number, **counts) for number, counts in self._counts.items()]
        return statistics(*parts, ages=self._ages, counters=copied(self._counters))


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=60, deadline=None)
def test_it_adds_up_and_never_goes_back(seed: int) -> None:
    """Workers work, report, die and start again in any order: the ledger always adds up and no counter decreases."""
    dice, merged = random.Random(seed), Merged()
    shops: dict[int, Shop] = {}
    before: Series = {}
    for _ in range(40):
        number = dice.randint(1, 3)
        if dice.random() < 0.2:
            shops.pop(number, None)
            merged.gone(number)
        else:
            shop = shops.setdefault(number, Shop(dice))
            shop.work()
            if dice.random() < 0.7:
                merged.take(number, shop.snapshot())
        merged.stand_still([number for number in (1, 2, 3) if dice.random() < 0.1])
        one = merged.statistics()
        assert one.totals.read == sum(getattr(one.totals, part) for part in PARTS)
        now = series(one)
        for key, (kind, value) in before.items():
            if kind == "counter":
                assert now[key][1] >= value, key
            elif kind == "histogram":
                assert all(map(ge, now[key][1].counts, value.counts)), key
                assert now[key][1].total >= value.total
        before = now
