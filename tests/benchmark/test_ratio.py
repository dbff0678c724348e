"""The guard on pinstream's cost: CPU time by event beside the plain consumer's, in one run. Not an absolute time.

How it stays quiet on a noisy machine: CPU time and not the clock; pairs of runs one after the other, so that both
meet the same neighbours; and the best pair counts, since noise only ever makes one of the two slower and a
regression makes every pair worse. The first pair within the bound ends the test.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import READ_AHEAD, Content, fill_topic
from benchmarks.running import run_full
from benchmarks.systems import Pinstream, Plain
from tests.kafka.harness import Kafka

BOUND = 0.75
"""The most that pinstream may take of the plain consumer's CPU time by event."""

SLOWED = {"PYTHONPATH": str(Path(__file__).with_name("slowed"))}
"""A pinstream that decodes and converts twice (`slowed/sitecustomize`): stands for a fast path that is off."""

_WARM_UP, _EVENTS = 10_000, 30_000
_PAIRS = 6
_SLOW_PAIRS = 2

pytestmark = [
    pytest.mark.real_kafka,  # the embedded broker is Python in our own process: it would be measured too
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def topic(kafka: Kafka) -> str:
    """A topic with enough events for one run."""
    name = f"ratio-{uuid.uuid4().hex[:8]}"
    fill_topic(kafka.bootstrap_servers, name, Content(_WARM_UP + _EVENTS + 2 * READ_AHEAD))
    return name


def test_an_event_costs_less_than_in_the_plain_consumer(kafka: Kafka, topic: str) -> None:
    """In the best of several pairs of runs pinstream takes no more than the bound."""
    seen = []
    for ratio in _ratios(kafka, topic, Pinstream()):
        seen.append(round(ratio, 2))
        if ratio <= BOUND or len(seen) == _PAIRS:
            break
    print(f"pinstream to plain, CPU time by event: {seen}, bound {BOUND}")
    assert min(seen) <= BOUND, (
        f"pinstream takes {seen} of the plain consumer's CPU time; the bound is {BOUND}"
    )


def test_the_guard_sees_a_slower_pinstream(kafka: Kafka, topic: str) -> None:
    """A pinstream that is made slow is above the bound in every pair: the guard would fail."""
    ratios = _ratios(kafka, topic, Pinstream(settings=SLOWED))
    seen = [next(ratios) for _ in range(_SLOW_PAIRS)]
    print(f"the same of a slowed pinstream: {[round(ratio, 2) for ratio in seen]}")
    assert min(seen) > BOUND, seen


def _ratios(kafka: Kafka, topic: str, pinstream: Pinstream) -> Iterator[float]:
    """Pinstream's CPU time by event as a share of the plain consumer's, pair after pair."""
    while True:
        ours, plain = (
            run_full(system, kafka.bootstrap_servers, topic, _WARM_UP, _EVENTS)
            for system in (pinstream, Plain())
        )
        yield ours.cpu_us / plain.cpu_us
