"""Merging snapshots: the result adds up, no counter decreases, shares and quantiles are those of all events."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

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
from consumer.engine.figures.delivered import Ages
from consumer.engine.figures.outside import BrokerStatistics, SchemaWait
from consumer.engine.figures.statistics import Cause, ClockStatistics, GuardStatistics, Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.model import MetadataLevel, Stage
from consumer.web.health import why_not_ready
from consumer.web.metrics import FiguresCollector
from consumer.web.status import status_document
from consumer.workers.merging import NO_WORKER, Merged, remains
from tests.web.building import (
    ACCOUNT,
    INFO,
    OTHER_ACCOUNT,
    TOPIC,
    account,
    busy,
    covered,
    full_counters,
    halted,
    partition,
    statistics,
    totals,
)

PARTS = ("delivered", "duplicate", "filtered", "dead_lettered", "open")


def series(snapshot: Statistics) -> dict[tuple[str, tuple[tuple[str, str], ...]], tuple[str, float]]:
    """Type and value of each series of /metrics; none is there twice."""
    registry = CollectorRegistry()
    registry.register(FiguresCollector(Statistics, lambda: [snapshot]))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = (family.type, sample.value)
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


def test_counts_and_levels_are_added() -> None:
    """Ledger, room, bytes, counters."""
    one = statistics(partition(0, delivered=5, open=2), counters=full_counters(), open_bytes=10, held=1)
    other = statistics(
        partition(1, delivered=7, filtered=1), counters=full_counters(), open_bytes=5, claims=3
    )
    both = merged(Statistics, [one, other])
    assert both.totals == totals(delivered=12, filtered=1, open=2)
    assert (both.open_bytes, both.held, both.claims, both.room) == (15, 1, 3, 2000)
    assert both.counters.delivered_by_name["checkout"] == 62_000
    assert both.counters.calls == 2 * full_counters().calls
    assert both.counters.rejections["decode", "malformed"] == 6


def test_shares_and_quantiles_are_of_all_events() -> None:
    """They are not the mean of the workers' shares: a worker that delivered little has little weight."""
    young, old = statistics(ages=[1] * 99), statistics(ages=[7200])
    both = merged(Statistics, [young, old]).freshness
    total = both.total
    assert (total.delivered, total.within_hour, total.p50, total.p95, total.p99) == (100, 0.99, 1, 1, 1)
    assert both.hour == both.day == both.total
    assert both.age_sum == 99 + 7200
    assert both == statistics(ages=[1] * 99 + [7200]).freshness


def test_coverage_is_of_all_events() -> None:
    """By event name: events, and what they carried."""

    def window(**names: Any) -> Any:
        return statistics(coverage=type(merged(Statistics, []).coverage)(hour=names, day={}))

    one = window(checkout=covered(100, em=1.0))
    other = window(checkout=covered(300, em=0.5), search=covered(5))
    hour = merged(Statistics, [one, other]).coverage.hour
    assert list(hour) == ["checkout", "search"]
    checkout = hour["checkout"]
    assert (checkout.events, checkout.carried[0], checkout.shares[0]) == (400, 250, 0.625)
    assert hour["search"] == covered(5)


def test_the_worst_state_is_taken() -> None:
    """An account that is halted for one worker is halted; the queues are added."""
    one = statistics(
        accounts=[account(queued=3, in_flight=1), account(OTHER_ACCOUNT)], seconds_since_progress=4.0
    )
    other = statistics(
        accounts=[account(state="halted", queued=2), account(OTHER_ACCOUNT, "throttled", seconds=7.0)],
        seconds_since_progress=90.0,
        guard=GuardStatistics(TOPIC, 9, 10, "convert no_identity", Cause.MAPPING),
    )
    both = merged(Statistics, [one, other])
    first, second = both.accounts
    assert (first.account, first.state, first.queued, first.in_flight) == (ACCOUNT, "halted", 5, 1)
    assert first.reason == other.accounts[0].reason
    assert (second.account, second.state, second.throttled_for) == (OTHER_ACCOUNT, "throttled", 7.0)
    assert both.destination == "halted"
    assert both.seconds_since_progress == 90.0
    assert both.guard == other.guard


def test_brokers_of_all_workers() -> None:
    """The slowest round trip counts; what was held back is added, and stays when its worker ends."""
    one = statistics(brokers=(BrokerStatistics("consumer", "1", 0.1, 0.5, 4.0),))
    other = statistics(
        brokers=(
            BrokerStatistics("consumer", "1", 0.2, 0.4, 1.5),
            BrokerStatistics("producer", "1", None, None, 0.0),
        )
    )
    assert merged(Statistics, [one, other]).brokers == (
        BrokerStatistics("consumer", "1", 0.2, 0.5, 5.5),
        BrokerStatistics("producer", "1", None, None, 0.0),
    )
    assert remains(one).brokers == (BrokerStatistics("consumer", "1", None, None, 4.0),)


def test_waits_and_faults_of_any_worker() -> None:
    """A schema that several workers wait for is listed once; of clocks the largest difference is taken, of the
    rest the worst."""
    waits = SchemaWait("id", "17", 2, 40.0, 35.0), SchemaWait("id", "18", 1, 9.0, None)
    one = statistics(
        partition(0),
        schemas=waits,
        clock=ClockStatistics(70.0, 12.0, 70.0, 3),
        stalled_for=130.0,
        other_destination=2,
        members_differ=("mapping", "function"),
    )
    other = statistics(
        partition(1),
        schemas=(SchemaWait("id", "17", 5, 50.0, None),),
        clock=ClockStatistics(None, 90.0, 0.0, 1),
        commit_metadata=MetadataLevel.NOTHING,
        key_store_fails=True,
        other_destination=1,
        members_differ=("mapping",),
        joined=False,
    )
    both = merged(Statistics, [one, other])
    assert both.schemas == (SchemaWait("id", "17", 7, 50.0, 35.0), SchemaWait("id", "18", 1, 9.0, None))
    assert both.clock == ClockStatistics(70.0, 90.0, 70.0, 4)
    assert (both.stalled_for, both.other_destination, both.key_store_fails, both.joined) == (
        130.0,
        3,
        True,
        True,
    )
    assert both.members_differ == ("mapping", "function")
    assert both.commit_metadata is MetadataLevel.NOTHING


def test_the_oldest_open_record_of_all() -> None:
    """The largest age; a record without a timestamp only if none has one."""

    def with_age(age: float | None, milliseconds: int | None) -> Statistics:
        oldest = OldestOpen(TOPIC, 0, 1, age, WaitsFor.BATCH, ACCOUNT)
        return statistics(oldest_open=oldest, oldest_open_ms=milliseconds)

    both = merged(
        Statistics, [with_age(None, None), with_age(3.0, 97_000), with_age(9.0, 91_000), statistics()]
    )
    assert both.oldest_open is not None
    assert (both.oldest_open.age, both.oldest_open_ms) == (9.0, 91_000)


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


def test_the_latest_dead_letters_of_all() -> None:
    """Newest first, as many as one worker has."""

    def died(*at: int) -> Statistics:
        return statistics(
            letters=[
                StoredLetter(float(one), TOPIC, 0, one, Stage.CONVERT, "expired", "too old") for one in at
            ]
        )

    both = merged(Statistics, [died(*range(40, 0, -2)), died(*range(39, 0, -2))])
    assert [one.at for one in both.letters] == [float(at) for at in range(40, 40 - MAX_LETTERS, -1)]


def test_samples_of_all() -> None:
    """A message of each kind that any worker has."""
    one = statistics(samples=Samples({("decode", "malformed"): "a"}, {}))
    other = statistics(samples=Samples({("convert", "expired"): "b"}, {}))
    assert len(merged(Statistics, [one, other]).samples.rejections) == 2


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
    assert (left.partitions, left.accounts, left.open_bytes, left.claims, left.oldest_open) == (
        (),
        (),
        0,
        0,
        None,
    )


def test_a_ledger_that_does_not_add_up() -> None:
    """Two mismatches must not cancel each other out; the mismatch of a worker ends with its process, as after any
    restart."""
    off = [statistics(partition(0, delivered=3), mismatch=by) for by in (2, -2, 1)]
    assert abs(merged(Statistics, off).mismatch) == 2
    wrong = replace(off[0], totals=replace(off[0].totals, read=5))
    left = remains(wrong)
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
        self._counts = {number: dict.fromkeys(PARTS, 0) for number in self._partitions}
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
        parts = [
            partition(
                number,
                delivered=counts["delivered"],
                duplicate=counts["duplicate"],
                filtered=counts["filtered"],
                dead_lettered=counts["dead_lettered"],
                open=counts["open"],
            )
            for number, counts in self._counts.items()
        ]
        return statistics(*parts, ages=self._ages, counters=copied(self._counters))


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=60, deadline=None)
def test_it_adds_up_and_never_goes_back(seed: int) -> None:
    """Workers work, report, die and start again in any order: the ledger always adds up and no counter decreases."""
    dice, merged = random.Random(seed), Merged()
    shops: dict[int, Shop] = {}
    before: Mapping[Any, tuple[str, float]] = {}
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
        fell = [
            key
            for key, (kind, value) in before.items()
            if kind in ("counter", "histogram")
            and not key[0].endswith("_created")
            and now.get(key, ("", -1))[1] < value
        ]
        assert fell == []
        before = now
