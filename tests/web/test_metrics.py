"""The Prometheus metrics: well-formed, bounded, and the same figures as /status."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from consumer.engine.figures.counters import Counters
from consumer.engine.figures.delivered import AGE_BOUNDS, METRIC_AGES
from consumer.engine.figures.statistics import Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.web.metrics import FiguresCollector
from consumer.web.status import status_document
from tests.engine.building import Core, event, filtered, unconvertible
from tests.web.building import (
    ACCOUNT,
    account,
    busy,
    empty,
    full_counters,
    guarded,
    halted,
    partition,
    statistics,
)

Families = dict[str, Metric]
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(snapshot: Statistics) -> Families:
    """What Prometheus reads, parsed by its own client; a name comes once."""
    registry = CollectorRegistry()
    registry.register(FiguresCollector(Statistics, lambda: [snapshot]))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len({one.name for one in families}) == len(families)
    return {one.name: one for one in families}


def series(families: Families) -> Series:
    """All series by name and labels; none comes twice."""
    samples = [one for family in families.values() for one in family.samples]
    found = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}
    assert len(found) == len(samples)
    return found


def value(found: Series, name: str, **labels: str) -> float:
    """One series' value."""
    return found[(name, tuple(sorted(labels.items())))]


def by_label(found: Series, name: str) -> dict[str, float]:
    """The values of a family with one label, by that label."""
    return {labels[0][1]: value for (one, labels), value in found.items() if one == name}


def _nameless() -> Statistics:
    return statistics(oldest_open=OldestOpen("orders", 0, 7, None, WaitsFor.BATCH, ACCOUNT))


def _mismatched() -> Statistics:
    return statistics(mismatch=-3)


@pytest.mark.parametrize("scene", [busy, empty])
def test_every_family_is_named_and_described_by_the_conventions(scene: object) -> None:
    """Names start with pinstream_, all have help and a type, counters and only they end in _total."""
    assert callable(scene)
    families = scrape(scene())
    assert families
    for name, family in families.items():
        assert name.startswith("pinstream_")
        assert len(family.documentation) > 10
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name


def test_families_are_the_same_before_anything_happened() -> None:
    """A dashboard and an alert find every family from the first scrape on."""
    assert set(scrape(empty())) == set(scrape(busy()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pinstream_dead_letter_guard", {guarded: 1, busy: 0, empty: 0}),
        ("pinstream_calls_total", {empty: 0}),
        ("pinstream_records_read_total", {empty: 0}),
        ("pinstream_oldest_open_seconds", {empty: 0, halted: 756, _nameless: None}),
        ("pinstream_ledger_mismatch_records", {busy: 0, _mismatched: -3}),
    ],
)
def test_single_figures(name: str, expected: Mapping[Callable[[], Statistics], float | None]) -> None:
    """The guard is 0 or 1. A counter without labels begins at 0, so that a rate over the start is right. The oldest
    open record is 0 if nothing is open, and has no series if its age is unknown. A mismatch of the ledger is its
    figure."""
    for scene, number in expected.items():
        assert series(scrape(scene())).get((name, ())) == number


def test_partition_series_end_with_the_assignment() -> None:
    """No lag of a partition that another member has now (vector PR 24647)."""
    core = Core()
    core.assign(0)
    core.assign(1)
    core.fetch(event("a"), partition=1)
    core.deliver()
    core.advance(1.0)
    core.commit()

    def partitions() -> set[str]:
        found = series(scrape(core.statistics()))
        return {dict(labels)["partition"] for _, labels in found if "partition" in dict(labels)}

    assert partitions() == {"1"}  # partition 0 has committed nothing, and no end is known of either
    core.lose(1)
    assert partitions() == set()


def test_unknown_lag_has_no_series() -> None:
    """Unknown is not zero."""
    found = series(scrape(statistics(partition(0, lag=None), partition(1, lag=0))))
    for family in ("pinstream_partition_lag_records", "pinstream_lag_seconds"):
        assert [dict(labels)["partition"] for name, labels in found if name == family] == ["1"]


def test_figures_agree_with_the_status_document() -> None:
    """One snapshot, two ways to read it: ledger, lags and freshness are the same. (Each counter for itself:
    `test_all_counters_are_exported` and its like of the document.)"""
    snapshot = busy()
    found, document = series(scrape(snapshot)), status_document(snapshot, {})
    ledger = document["ledger"]
    settled = by_label(found, "pinstream_records_settled_total")
    assert settled == {name: ledger[name] for name in ("delivered", "duplicate", "filtered", "dead_lettered")}
    assert value(found, "pinstream_records_open") == ledger["open"]
    assert value(found, "pinstream_records_released_total") == document["released"]
    for one in document["partitions"]:
        labels = {"topic": one["topic"], "partition": str(one["partition"])}
        assert value(found, "pinstream_partition_lag_records", **labels) == one["lag"]
        assert value(found, "pinstream_lag_seconds", **labels) == pytest.approx(one["lag_seconds"])
        assert value(found, "pinstream_partition_committed_offset", **labels) == one["committed"]
    assert value(found, "pinstream_oldest_open_seconds") == document["oldest_open"]["age_seconds"]
    for name, covered in document["coverage"]["hour"].items():
        for parameter, share in covered["share"].items():
            ratio = value(found, "pinstream_parameter_coverage_ratio", event_name=name, parameter=parameter)
            assert ratio == share
    assert value(found, "pinstream_event_age_seconds_count") == document["freshness"]["delivered"]
    within = value(found, "pinstream_event_age_seconds_bucket", le="3600")
    assert within / document["freshness"]["delivered"] == document["freshness"]["within_one_hour"]
    assert by_label(found, "pinstream_answers_total") == document["counts"]["answers"]
    names = {"stage": "convert", "code": "expired"}
    assert value(found, "pinstream_rejected_records_total", **names) == 7
    assert document["counts"]["rejections"]["convert"]["expired"] == 7


@pytest.mark.parametrize("scene", [busy, empty])
def test_promtool_finds_nothing_to_say(scene: Callable[[], Statistics]) -> None:
    """Prometheus' own check of names, types, units and help."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    registry = CollectorRegistry()
    registry.register(FiguresCollector(Statistics, lambda: [scene()]))
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(registry), capture_output=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_read_never_falls_when_partitions_go() -> None:
    """A counter must not go back: what is released leaves the ledger's `read`, but not this one."""
    core = Core()
    core.assign()
    core.fetch(event("a"), event("b"), filtered())
    before, ledger = series(scrape(core.statistics())), core.statistics().totals
    core.lose(0)
    after = series(scrape(core.statistics()))
    assert (ledger.read, core.statistics().totals.read) == (3, 1)
    for found in (before, after):
        assert value(found, "pinstream_records_read_total") == 3
    assert value(after, "pinstream_records_released_total") == 2


def test_counts_by_reason_add_up_to_the_ledger() -> None:
    """In a core that did some of each: the reasons of a disposition sum up to it."""
    core = Core()
    core.assign()
    core.fetch(event("a"), event("b"), event("a"), filtered(), None, unconvertible(), b"\xff")
    core.store_letters()
    core.deliver()
    found, totals = series(scrape(core.statistics())), core.statistics().totals
    assert (totals.delivered, totals.filtered, totals.dead_lettered) == (2, 2, 2)
    assert sum(by_label(found, "pinstream_delivered_events_total").values()) == totals.delivered
    assert sum(by_label(found, "pinstream_filtered_records_total").values()) == totals.filtered
    rejected = [number for (name, _), number in found.items() if name == "pinstream_rejected_records_total"]
    assert sum(rejected) == totals.dead_lettered
    assert value(found, "pinstream_event_age_seconds_count") == totals.delivered


def test_freshness_has_a_series_for_each_window_and_no_more() -> None:
    """The share within the hour of the last hour and day; none where nothing was delivered."""
    name = "pinstream_delivered_within_hour_ratio"
    found = series(scrape(statistics(ages=[5, 5, 5, 3_601], earlier=[9_000] * 4)))
    assert {key: number for key, number in found.items() if key[0] == name} == {
        (name, (("window", "hour"),)): 0.75,
        (name, (("window", "day"),)): 0.375,
    }
    assert by_label(series(scrape(statistics(earlier=[5]))), name) == {"day": 1.0}
    assert by_label(series(scrape(empty())), name) == {}


def test_histogram_is_cumulative_with_all_its_bounds() -> None:
    """Each bucket holds the ones below; the last is all; the sum is the sum of the ages."""
    found = series(scrape(statistics(ages=[0, 1, 3, 3_600, 3_601, 10_000_000])))
    buckets = {
        dict(labels)["le"]: number
        for (name, labels), number in found.items()
        if name == "pinstream_event_age_seconds_bucket"
    }
    assert [float(one) for one in buckets] == [*map(float, METRIC_AGES), float("inf")]
    assert set(METRIC_AGES) < set(AGE_BOUNDS)
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["1"], buckets["5"], buckets["3600"], buckets["7200"], buckets["+Inf"]) == (2, 3, 4, 5, 6)
    assert value(found, "pinstream_event_age_seconds_sum") == 10_007_205


def test_an_account_is_in_exactly_one_state() -> None:
    """The three state series of an account sum up to one; its queue is beside them."""
    found = series(scrape(statistics(accounts=[account(queued=7, in_flight=2), account("7", "halted")])))
    for name, state in ((ACCOUNT, "open"), ("7", "halted")):
        states = {one: value(found, "pinstream_destination_state", account=name, state=one)
                  for one in ("open", "throttled", "halted")}  # fmt: skip
        assert [one for one, number in states.items() if number] == [state]
        assert sum(states.values()) == 1
    assert value(found, "pinstream_queued_events", account=ACCOUNT) == 7
    assert value(found, "pinstream_calls_in_flight", account=ACCOUNT) == 2


def test_names_from_outside_cannot_grow_the_series_without_bound() -> None:
    """Ten thousand different messages of the API are at most 65 series: the first 64 kinds, and `other`."""
    counters = Counters()
    for family in (counters.api_warnings, counters.api_errors, counters.answers, counters.no_verdicts):
        for number in range(10_000):
            counters.bump(family, f"kind {number}")
    found = series(scrape(statistics(counters=counters)))
    for name in ("api_warnings", "api_errors", "answers", "no_verdicts"):
        of_it = by_label(found, f"pinstream_{name}_total")
        assert (len(of_it), of_it["other"], sum(of_it.values())) == (65, 9_936, 10_000)


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line breaks in a message of the API do not break the format."""
    counters, message = full_counters(), 'say "no"\nto C:\\new'
    counters.api_errors[message] = 3
    found = series(scrape(statistics(counters=counters)))
    assert value(found, "pinstream_api_errors_total", kind=message) == 3


def test_all_counters_are_exported() -> None:
    """Everything that the engine counts has a series that follows it."""
    quiet = set(series(scrape(statistics())).items())
    for name, kept in vars(full_counters()).items():
        alone = Counters()
        setattr(alone, name, kept)
        moved = dict(set(series(scrape(statistics(counters=alone))).items()) - quiet)
        expected = sum(kept.values()) if isinstance(kept, dict) else kept
        if name == "call_buckets":  # the buckets of a histogram hold those below them, too
            moved = {one: count for one, count in moved.items() if one[0].endswith("_count")}
        if name == "call_milliseconds":
            expected /= 1000
        assert sum(moved.values()) == expected, name
