"""The guard on pinstream's cost: CPU time by event beside the plain consumer's, in one run. Not an absolute time.

How it stays quiet on a noisy machine: CPU time and not the clock; the two in turns, so that both meet the same
neighbours; and the best run of each counts, since noise only ever adds, whereas a regression is in every run. Two pairs
of runs are always made; further ones only while the ratio is above the bound, up to six.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.load import READ_AHEAD, Content, fill_topic
from benchmarks.running import run_full
from benchmarks.systems import Pinstream, Plain
from consumer.conversion.program import COMPILED
from tests.support.kafka.harness import Kafka

BOUND = 0.30 if COMPILED is not None else 2.25
"""The most that pinstream may take of the plain consumer's CPU time by event; more where nothing is compiled and every
record takes the plain path."""

SLOWED = {"PYTHONPATH": str(Path(__file__).with_name("slowed")), "PINSTREAM_FAST_PATH": "false"}
"""A pinstream off its fast path that decodes and converts twice (`slowed/sitecustomize`)."""

_WARM_UP, _EVENTS = 10_000, 30_000
_LEAST_PAIRS, _MOST_PAIRS = 2, 6

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
    """pinstream's best run takes no more than the bound of the plain consumer's best."""
    for pair, ratio in enumerate(_ratios(kafka, topic, Pinstream()), 1):
        if pair == _MOST_PAIRS or (pair >= _LEAST_PAIRS and ratio <= BOUND):
            break
    print(f"pinstream to plain, CPU time by event: {ratio:.2f} after {pair} pairs of runs; bound {BOUND}")
    assert ratio <= BOUND


def test_the_guard_sees_a_slower_pinstream(kafka: Kafka, topic: str) -> None:
    """A pinstream that is made slow is above the bound: the guard would fail."""
    *_, ratio = islice(_ratios(kafka, topic, Pinstream(settings=SLOWED)), _LEAST_PAIRS)
    print(f"the same of a slowed pinstream: {ratio:.2f}")
    assert ratio > BOUND


def _ratios(kafka: Kafka, topic: str, pinstream: Pinstream) -> Iterator[float]:
    """After each pair of runs: pinstream's CPU time by event as a share of the plain consumer's, best runs so far."""
    ours: list[float] = []
    plain: list[float] = []
    while True:
        for system, seen in ((pinstream, ours), (Plain(), plain)):
            seen.append(run_full(system, kafka.bootstrap_servers, topic, _WARM_UP, _EVENTS).cpu_us)
        yield min(ours) / min(plain)
