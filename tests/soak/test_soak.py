"""A short soak: what ``make soak`` does with millions of events, with as many as CI has time for."""

from __future__ import annotations

import pytest

from benchmarks.soak import report
from benchmarks.soak.run import Plan, soak, unique_topic
from tests.support.kafka.harness import Kafka

PLAN = Plan(
    events=120_000,
    # The store is to be filled and emptied more than once in half a minute: a short window, and events in waves.
    window=3,
    request_timeout=1.5,
    rate=5_000,
    ahead=10_000,
    every=0.25,
    # A budget that binds at this size, and spells so short that the first quarter has seen a heavy one.
    spell=4_000,
    max_open_events=4_000,
    max_open_bytes=10 << 20,
    # In runs on a loaded machine the allocator's waves alone came to 7 MiB in what is measured here.
    jitter=16 << 20,
)


@pytest.mark.slow("a long run")
@pytest.mark.real_kafka  # the embedded broker deletes no records
@pytest.mark.timeout(300)  # a minute on a machine that has other things to do
def test_all_bounds_hold_for_the_length_of_a_run(kafka: Kafka) -> None:
    """Memory is flat, the budget is kept in every sample, the key store is no larger than its window, the
    ledger adds up, and nothing is lost."""
    outcome = soak(PLAN, kafka.bootstrap_servers, unique_topic())
    verdicts = outcome.verdicts()
    broken = [one.name for one in verdicts if not one.held]
    assert not broken, "\n".join(report.lines(outcome, verdicts))

    # All that is to be survived has happened.
    counts = outcome.status["counts"]
    assert counts["followers"] > 100
    assert counts["batches_retried"] > 0
    assert set(counts["rejections"]) == {"decode", "convert", "deliver"}
    assert counts["answers"].keys() >= {"200", "429", "503", "connection"}
