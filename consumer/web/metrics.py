"""Prometheus metrics, made from the core's snapshot when they are scraped; nothing is counted twice.

Names and units by Prometheus' conventions (base units, ``_total`` on counters). Labels come from closed or capped
sets, plus topic and partition for what belongs to an assigned partition; its series ends with the assignment. Each
family is told of in docs/status.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from consumer.engine.coverage import PARAMETERS, CoverageSnapshot
from consumer.engine.freshness import AGE_BOUNDS, FreshnessSnapshot
from consumer.engine.statistics import (
    CALL_BOUNDS,
    OUTCOMES,
    STATES,
    AccountStatistics,
    ClockStatistics,
    Counters,
    MetadataLeft,
    PartitionStatistics,
    Statistics,
)
from consumer.web.status import ledger

METRIC_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800)
"""Some of `AGE_BOUNDS`: each is a series for Prometheus to keep."""
_COUNTS: tuple[tuple[str, str, Callable[[Counters], int]], ...] = (
    ("pinstream_calls", "Calls made to the Conversions API.", lambda c: c.calls),
    ("pinstream_sent_events", "Events sent, those sent again included.", lambda c: c.events_sent),
    ("pinstream_sent_bytes", "Bytes of request bodies sent.", lambda c: c.bytes_sent),
    ("pinstream_batches_bisected", "Batches bisected to find a refused event.", lambda c: c.bisected),
    ("pinstream_batches_retried", "Batches put back to be sent again.", lambda c: c.retried_batches),
    (
        "pinstream_unclear_repeats",
        "Events sent again without a known outcome, offline or over an hour old by then: may be counted twice.",
        lambda c: c.unclear_repeats,
    ),
    (
        "pinstream_offline_events_unclear",
        "Those of pinstream_unclear_repeats_total that happened offline.",
        lambda c: c.unclear_offline,
    ),
    (
        "pinstream_processed_with_error",
        "Events processed, yet with an error message.",
        lambda c: c.processed_with_error,
    ),
    ("pinstream_followers", "Events that waited for an open one with the same key.", lambda c: c.followers),
    (
        "pinstream_in_two_steps_records",
        "Records that were not read on the fast path: of a schema that it cannot take, or undecodable, or unusual.",
        lambda c: c.in_two_steps,
    ),
    (
        "pinstream_removed_unread_records",
        "Records, at most, that were removed from their log before they were read: by retention, or by hand.",
        lambda c: c.removed_unread,
    ),
    (
        "pinstream_positions_went_back",
        "Times that a position went back: a log was cut, or a topic made anew.",
        lambda c: c.positions_went_back,
    ),
    (
        "pinstream_keys_forgotten_early",
        "Keys of delivered events that the key store forgot before their window was over, since it was full.",
        lambda c: c.keys_forgotten_early,
    ),
    (
        "pinstream_delivered_after_release",
        "Events delivered for a partition let go of meanwhile; its next owner finds them delivered, or sends again.",
        lambda c: c.delivered_after_release,
    ),
)
_FAMILIES: tuple[tuple[str, str, str, Callable[[Counters], Mapping[str, int]]], ...] = (
    ("pinstream_answers", "Answers of the API, by status or why none came.", "status", lambda c: c.answers),
    ("pinstream_no_verdicts", "Attempts without a verdict, by reason.", "reason", lambda c: c.no_verdicts),
    ("pinstream_filtered_records", "Records filtered, by rule.", "rule", lambda c: c.filtered),
    (
        "pinstream_delivered_events",
        "Events delivered, by event name.",
        "event_name",
        lambda c: c.delivered_by_name,
    ),
    ("pinstream_api_warnings", "Warnings of the API, by kind.", "kind", lambda c: c.api_warnings),
    (
        "pinstream_api_errors",
        "Error messages of the API about events, by kind.",
        "kind",
        lambda c: c.api_errors,
    ),
    (
        "pinstream_topics_made_anew",
        "Times that a topic was found deleted and made anew, and begun at its beginning.",
        "topic",
        lambda c: c.topics_made_anew,
    ),
    ("pinstream_failures", "Failed inner writes and look-ups, tried again.", "kind", lambda c: c.failures),
)

_PAIRS: tuple[tuple[str, str, tuple[str, str], Callable[[Counters], Mapping[tuple[str, str], int]]], ...] = (
    (
        "pinstream_convert_warnings",
        "Fields left out or malformed, by code and conversion field.",
        ("code", "field"),
        lambda c: c.convert_warnings,
    ),
    (
        "pinstream_rejected_records",
        "Records dead-lettered, by reason.",
        ("stage", "code"),
        lambda c: c.rejections,
    ),
)


class StatisticsCollector(Collector):
    """Reads one snapshot for each scrape."""

    def __init__(self, snapshot: Callable[[], Statistics]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """All metric families of now."""
        statistics = self._snapshot()
        yield from _ledger(statistics)
        yield from _partitions(statistics.partitions)
        yield from _accounts(statistics.accounts)
        yield from _levels(statistics)
        yield _clock(statistics.clock)
        yield _age(statistics.freshness)
        yield _call_seconds(statistics.counters)
        yield _within_hour(statistics.freshness)
        yield _coverage(statistics.coverage)
        yield from _counts(statistics.counters)


def _ledger(statistics: Statistics) -> Iterator[Metric]:
    totals = statistics.totals
    read = CounterMetricFamily("pinstream_records_read", "Records read, those let go of again included.")
    read.add_metric([], totals.read + totals.released)
    yield read
    released = CounterMetricFamily(
        "pinstream_records_released", "Records let go of unsettled; someone reads them again."
    )
    released.add_metric([], totals.released)
    yield released
    passed = CounterMetricFamily(
        "pinstream_records_passed_over", "Records passed over: settled before this assignment (offset map)."
    )
    passed.add_metric([], statistics.passed)
    yield passed
    settled = CounterMetricFamily(
        "pinstream_records_settled", "Records settled, by disposition.", labels=["disposition"]
    )
    for name, count in ledger(totals).items():
        if name not in ("read", "open"):
            settled.add_metric([name], count)
    yield settled
    opened = GaugeMetricFamily("pinstream_records_open", "Records read and not yet settled.")
    opened.add_metric([], totals.open)
    yield opened


def _partitions(partitions: Iterable[PartitionStatistics]) -> Iterator[Metric]:
    labels = ["topic", "partition"]
    lag = GaugeMetricFamily(
        "pinstream_partition_lag_records", "Records from the committed position to the end.", labels=labels
    )
    seconds = GaugeMetricFamily(
        "pinstream_lag_seconds",
        "Age of a partition's first record that is not settled; 0: no lag.",
        labels=labels,
    )
    committed = GaugeMetricFamily(
        "pinstream_partition_committed_offset", "The committed position.", labels=labels
    )
    for one in partitions:
        names = [one.topic, str(one.partition)]
        # What is not known has no series.
        for family, value in ((lag, one.lag), (seconds, one.lag_seconds), (committed, one.committed)):
            if value is not None:
                family.add_metric(names, value)
    yield from (lag, seconds, committed)


def _accounts(accounts: Iterable[AccountStatistics]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "pinstream_destination_state",
        "1 for the state an ad account's gate is in.",
        labels=["account", "state"],
    )
    queued = GaugeMetricFamily(
        "pinstream_queued_events", "Events waiting to be sent, by ad account.", labels=["account"]
    )
    in_flight = GaugeMetricFamily(
        "pinstream_calls_in_flight", "Calls under way, by ad account.", labels=["account"]
    )
    for one in accounts:
        for name in STATES:
            state.add_metric([one.account, name], int(one.state == name))
        queued.add_metric([one.account], one.queued)
        in_flight.add_metric([one.account], one.in_flight)
    yield from (state, queued, in_flight)


def _clock(one: ClockStatistics) -> Metric:
    """What is not known has no series."""
    behind = GaugeMetricFamily(
        "pinstream_clock_behind_seconds",
        "Time that our clock is behind the platform's, or the timestamps of records; ahead, if negative.",
        labels=["by"],
    )
    for by, seconds in (("platform", one.platform), ("records", one.records)):
        if seconds is not None:
            behind.add_metric([by], seconds)
    return behind


def _levels(statistics: Statistics) -> Iterator[Metric]:
    levels = (
        ("pinstream_open_bytes", "Bytes held by open records.", statistics.open_bytes),
        ("pinstream_held_records", "Records fetched, and not read for want of room.", statistics.held),
        ("pinstream_room_records", "Records intake would take now.", statistics.room),
        (
            "pinstream_dead_letter_guard",
            "1: intake has stopped, since too many records would be dead letters.",
            int(statistics.guard is not None),
        ),
        (
            "pinstream_waiting_for_start_partitions",
            "Partitions that are ours and not read yet: the brokers have not said where to start.",
            statistics.waiting_for_start,
        ),
        (
            "pinstream_unreadable_partitions",
            "Partitions that stand still, since what the broker sends of them is damaged.",
            sum(one.unreadable_at is not None for one in statistics.partitions),
        ),
        (
            "pinstream_commit_metadata_refused",
            "1: the brokers take no offset maps with commits, so what settles behind an open record may be sent again.",
            int(statistics.commit_metadata is not MetadataLeft.MAPS),
        ),
        (
            "pinstream_committed_elsewhere_partitions",
            "Partitions that began where the group had committed for another destination.",
            statistics.elsewhere,
        ),
        (
            "pinstream_joined",
            "1: the group has said which partitions are ours, nothing included.",
            int(statistics.joined),
        ),
        (
            "pinstream_stalled_seconds",
            "There is work, and nothing was settled for so long; 0: not for too long.",
            statistics.stalled_for or 0,
        ),
        (
            "pinstream_key_store_failing",
            "1: the latest look-up or write of the key store failed.",
            int(statistics.key_store_fails),
        ),
        ("pinstream_claims", "Event keys claimed by open events.", statistics.claims),
        (
            "pinstream_waiting_for_schema_records",
            "Records whose schema is not known yet.",
            statistics.waiting_for_schema,
        ),
        ("pinstream_early_records", "Records that lie ahead of our clock, and wait.", statistics.clock.early),
        (
            "pinstream_schema_wait_seconds",
            "How long the record that has waited longest for its schema has waited; 0: none waits.",
            max((one.seconds for one in statistics.schemas), default=0),
        ),
        (
            "pinstream_since_progress_seconds",
            "Time since something settled, or since nothing was left to settle.",
            statistics.seconds_since_progress,
        ),
        (
            "pinstream_oldest_open_seconds",
            "Age of the oldest record that is open, by its Kafka timestamp; 0: none is.",
            0 if statistics.oldest_open is None else statistics.oldest_open.age,
        ),
        (
            "pinstream_assigned_partitions",
            "Partitions that this process reads.",
            len(statistics.partitions),
        ),
        (
            "pinstream_ledger_mismatch_records",
            "By how many records the ledger does not add up: anything but 0 is a bug.",
            statistics.mismatch,
        ),
    )
    for name, documentation, value in levels:
        family = GaugeMetricFamily(name, documentation)
        if value is not None:
            family.add_metric([], value)
        yield family


def _age(freshness: FreshnessSnapshot) -> Metric:
    family = HistogramMetricFamily("pinstream_event_age_seconds", "Age of events when they were delivered.")
    seen = dict(zip(AGE_BOUNDS, accumulate(freshness.buckets), strict=False))
    buckets = [(str(bound), seen[bound]) for bound in METRIC_AGES]
    family.add_metric([], [*buckets, ("+Inf", freshness.total.delivered)], freshness.age_sum)
    return family


def _call_seconds(counters: Counters) -> Metric:
    family = HistogramMetricFamily(
        "pinstream_call_seconds", "Time from a call to its end, by outcome.", labels=["outcome"]
    )
    for outcome in OUTCOMES:
        counts = accumulate(counters.call_buckets[outcome, bound] for bound in CALL_BOUNDS)
        buckets = [
            ("+Inf" if bound == math.inf else str(bound), count)
            for bound, count in zip(CALL_BOUNDS, counts, strict=True)
        ]
        family.add_metric([outcome], buckets, counters.call_milliseconds[outcome] / 1000)
    return family


def _within_hour(freshness: FreshnessSnapshot) -> Metric:
    family = GaugeMetricFamily(
        "pinstream_delivered_within_hour_ratio",
        "Share of the events delivered in the last hour or day that were at most an hour old then.",
        labels=["window"],
    )
    for window, ages in (("hour", freshness.hour), ("day", freshness.day)):
        if ages.within_hour is not None:
            family.add_metric([window], ages.within_hour)
    return family


def _coverage(coverage: CoverageSnapshot) -> Metric:
    family = GaugeMetricFamily(
        "pinstream_parameter_coverage_ratio",
        "Share of the events delivered in the last hour that carried a recommended parameter, from a sample.",
        labels=["event_name", "parameter"],
    )
    for name, covered in coverage.hour.items():
        for parameter, share in zip(PARAMETERS, covered.shares, strict=True):
            family.add_metric([name, parameter.id], share)
    return family


def _counts(counters: Counters) -> Iterator[Metric]:
    for name, documentation, read in _COUNTS:
        count = CounterMetricFamily(name, documentation)
        count.add_metric([], read(counters))
        yield count
    for name, documentation, label, family_of in _FAMILIES:
        family = CounterMetricFamily(name, documentation, labels=[label])
        for key, value in sorted(family_of(counters).items()):
            family.add_metric([key], value)
        yield family
    for name, documentation, labels, pairs_of in _PAIRS:
        family = CounterMetricFamily(name, documentation, labels=labels)
        for pair, value in sorted(pairs_of(counters).items()):
            family.add_metric(pair, value)
        yield family
