"""The /status document: the core's snapshot as JSON. Version 1; fields are only ever added within a version.

The ledger in it adds up: ``read = delivered + duplicate + filtered + dead_lettered + open``, in all and for each
partition. Times are in seconds, sizes in bytes, lags in records. Each field is told of in
docs/status.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from consumer.engine.assignment import Totals
from consumer.engine.coverage import PARAMETERS, CoverageSnapshot, Covered
from consumer.engine.freshness import Ages, FreshnessSnapshot
from consumer.engine.statistics import (
    OUTCOMES,
    AccountStatistics,
    ClockStatistics,
    Counters,
    GuardStatistics,
    OldestOpen,
    PartitionStatistics,
    SamplesSnapshot,
    SchemaWait,
    Statistics,
    StoredLetter,
    by_name,
)

VERSION = 1


def status_document(statistics: Statistics, info: Mapping[str, Any]) -> dict[str, Any]:
    """The document; `info` is what the process knows of itself (version, topics, destination's URL, key store)."""
    figures = {
        "version": VERSION,
        "ledger": ledger(statistics.totals),
        "ledger_mismatch": statistics.mismatch,
        "released": statistics.totals.released,
        "passed_over": statistics.passed,
        "joined": statistics.joined,
        "stalled_for": _seconds(statistics.stalled_for),
        "key_store_fails": statistics.key_store_fails,
        "waiting_for_start": statistics.waiting_for_start,
        "commit_metadata": statistics.commit_metadata.value,
        "committed_elsewhere": statistics.elsewhere,
        "partitions": [_partition(one) for one in statistics.partitions],
        "destination": {
            "state": statistics.destination,
            "accounts": [_account(one) for one in statistics.accounts],
        },
        "guard": _guard(statistics.guard),
        "freshness": _freshness(statistics.freshness),
        "open": {
            "bytes": statistics.open_bytes,
            "oldest_record_ms": statistics.oldest_open_ms,
            "held": statistics.held,
            "waiting_for_schema": statistics.waiting_for_schema,
            "schemas": [_schema(one) for one in statistics.schemas],
            "claims": statistics.claims,
        },
        "clock": _clock(statistics.clock),
        "oldest_open": _oldest_open(statistics.oldest_open),
        "coverage": _coverage(statistics.coverage),
        "latest_dead_letters": [_letter(one) for one in statistics.letters],
        "samples": _samples(statistics.samples),
        "room": statistics.room,
        "seconds_since_progress": round(statistics.seconds_since_progress, 3),
        "stopping": statistics.stopping,
        "counts": counts(statistics.counters),
    }
    # Whatever `info` says, the figures stay what they are.
    return {**figures, **info, **figures}


def ledger(totals: Totals) -> dict[str, int]:
    """The six figures of the ledger."""
    return {
        "read": totals.read,
        "delivered": totals.delivered,
        "duplicate": totals.duplicate,
        "filtered": totals.filtered,
        "dead_lettered": totals.dead_lettered,
        "open": totals.open,
    }


def counts(counters: Counters) -> dict[str, Any]:
    """Everything the core counts, by its kind."""
    return {
        "rejections": _nested(counters.rejections),
        "filtered": by_name(counters.filtered),
        "delivered_by_event_name": by_name(counters.delivered_by_name),
        "convert_warnings": _nested(counters.convert_warnings),
        "api_warnings": by_name(counters.api_warnings),
        "api_errors": by_name(counters.api_errors),
        "answers": by_name(counters.answers),
        "no_verdicts": by_name(counters.no_verdicts),
        "failures": by_name(counters.failures),
        "topics_made_anew": by_name(counters.topics_made_anew),
        "calls": counters.calls,
        "calls_ended": _calls_ended(counters),
        "events_sent": counters.events_sent,
        "bytes_sent": counters.bytes_sent,
        "batches_bisected": counters.bisected,
        "batches_retried": counters.retried_batches,
        "unclear_repeats": counters.unclear_repeats,
        "offline_events_unclear": counters.unclear_offline,
        "processed_with_error": counters.processed_with_error,
        "followers": counters.followers,
        "in_two_steps": counters.in_two_steps,
        "removed_unread": counters.removed_unread,
        "positions_went_back": counters.positions_went_back,
        "keys_forgotten_early": counters.keys_forgotten_early,
        "delivered_after_release": counters.delivered_after_release,
    }


def _calls_ended(counters: Counters) -> dict[str, dict[str, Any]]:
    """How many calls ended in which way, and how long they took together."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for (outcome, _), count in counters.call_buckets.items():
        counts[outcome] += count
    return {
        outcome: {"count": count, "seconds": counters.call_milliseconds[outcome] / 1000}
        for outcome, count in counts.items()
    }


def _partition(one: PartitionStatistics) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "partition": one.partition,
        "committed": one.committed,
        "position": one.position,
        "end": one.end,
        "lag": one.lag,
        "lag_seconds": _seconds(one.lag_seconds),
        "unreadable_at": one.unreadable_at,
        "ledger": ledger(one.totals),
    }


def _account(one: AccountStatistics) -> dict[str, Any]:
    return {
        "account": one.account,
        "state": one.state,
        "reason": one.reason,
        "queued": one.queued,
        "in_flight": one.in_flight,
        "throttled_for": _seconds(one.throttled_for),
        "halted_for": _seconds(one.halted_for),
        "next_probe_in": _seconds(one.next_probe_in),
        "unreachable_for": _seconds(one.unreachable_for),
    }


def _guard(one: GuardStatistics | None) -> dict[str, Any] | None:
    """Where too many of the latest records would be dead letters, so that intake has stopped; null: nowhere."""
    if one is None:
        return None
    return {**one._asdict(), "cause": one.cause.value, "advice": f"{one.remedy} and start again"}


def _freshness(one: FreshnessSnapshot) -> dict[str, Any]:
    """Event age at delivery, since the start and over the last hour and day."""
    return {**_ages(one.total), "hour": _ages(one.hour), "day": _ages(one.day)}


def _ages(one: Ages) -> dict[str, Any]:
    """A quantile beyond the last bucket is null: JSON has no infinity."""
    return {
        "delivered": one.delivered,
        "within_one_hour": None if one.within_hour is None else rounded_share(one.within_hour),
        "age_p50": _seconds(one.p50),
        "age_p95": _seconds(one.p95),
        "age_p99": _seconds(one.p99),
    }


def _clock(one: ClockStatistics) -> dict[str, Any]:
    """Seconds that our clock is behind others; ahead, if negative."""
    return {
        "behind_platform": _seconds(one.platform),
        "behind_records": _seconds(one.records),
        "corrected": _seconds(one.corrected),
        "early": one.early,
    }


def _schema(one: SchemaWait) -> dict[str, Any]:
    """A schema that records wait for."""
    return {
        "kind": one.kind,
        "value": one.value,
        "records": one.records,
        "seconds": _seconds(one.seconds),
        "denied_seconds": _seconds(one.denied_seconds),
    }


def _oldest_open(one: OldestOpen | None) -> dict[str, Any] | None:
    """The oldest open record and what it waits for; null: nothing is open."""
    if one is None:
        return None
    return {
        "topic": one.topic,
        "partition": one.partition,
        "offset": one.offset,
        "age_seconds": _seconds(one.age),
        "waits_for": one.waits_for.value,
        "account": one.account,
    }


def _coverage(one: CoverageSnapshot) -> dict[str, Any]:
    """What share of events carried each recommended parameter, and what the platform advises."""
    return {
        "parameters": [parameter._asdict() for parameter in PARAMETERS],
        "hour": {name: _covered(covered) for name, covered in one.hour.items()},
        "day": {name: _covered(covered) for name, covered in one.day.items()},
    }


def _covered(one: Covered) -> dict[str, Any]:
    carried = {parameter.id: count for parameter, count in zip(PARAMETERS, one.carried, strict=True)}
    shares = {parameter.id: share for parameter, share in zip(PARAMETERS, one.shares, strict=True)}
    return {"events": one.events, "sampled": one.sampled, "carried": carried, "share": shares}


def _letter(one: StoredLetter) -> dict[str, Any]:
    return one._asdict() | {"stage": one.stage.value}


def _samples(one: SamplesSnapshot) -> dict[str, Any]:
    """The latest message of each kind."""
    return {"rejections": _nested(one.rejections), "convert_warnings": _nested(one.warnings)}


def _nested(pairs: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """What stands under two names: first by the one, then by the other."""
    nested: dict[str, dict[str, Any]] = {}
    for (outer, inner), value in sorted(pairs.items()):
        nested.setdefault(outer, {})[inner] = value
    return nested


def _seconds(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else round(value, 3)


def rounded_share(share: float) -> float:
    """Rounded down: 1 means all of them."""
    return math.floor(share * 1_000_000) / 1_000_000
