"""The soak's verdicts on made-up curves: leaks, exceeded budgets and losses are named, and nothing else is."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from benchmarks.soak.curves import plot
from benchmarks.soak.verdicts import (
    MIB,
    Sums,
    Verdict,
    horizon,
    judge,
    judge_books,
    judge_budget,
    judge_keys,
    judge_memory,
    judge_store_size,
    slope,
)
from benchmarks.soak.watch import Sample
from consumer.engine.model import Disposition

EVENTS = 2_000_000
RATE = 12_000
WINDOW = 20
FLAT = 230 * MIB

Curve = Callable[[int], float]
"""A value for each number of settled events."""


def curve(
    events: int = EVENTS,
    *,
    memory: Curve = lambda _: FLAT,
    keys: Curve | None = None,
    key_bytes: Curve = lambda _: 30 * MIB,
    rate: Callable[[float], float] = lambda _: RATE,
) -> list[Sample]:
    """A sample for each second of a run of `events`, with `rate` events a second. Keys are held for a window
    and a half."""
    samples: list[Sample] = []
    settled, at = 0, 0.0
    while True:
        before = next((one.delivered for one in reversed(samples) if one.at <= at - 1.5 * WINDOW), 0)
        samples.append(
            Sample(
                at=at,
                rss=int(memory(settled)) + 24 * MIB + int(key_bytes(settled)),
                private=int(memory(settled)),
                read=settled,
                delivered=settled,
                open_events=0,
                open_bytes=0,
                keys=int(keys(settled)) if keys is not None else settled - before,
                key_bytes=int(key_bytes(settled)),
                buckets=3,
                state_bytes=int(key_bytes(settled)),
            )
        )
        if settled == events:
            return samples
        settled, at = min(events, settled + int(rate(at))), at + 1.0


def memory_verdict(samples: list[Sample]) -> Verdict:
    """Of private memory."""
    return judge_memory("memory", samples, lambda one: one.private)


def noisy(memory: Curve, swing: float = 10 * MIB, seed: int = 1) -> Curve:
    """The curve with what open events and the allocator add and remove."""
    draw = random.Random(seed)
    return lambda settled: memory(settled) + draw.uniform(-swing, swing)


def test_flat_memory_passes() -> None:
    """A level that varies with open events, and a rise during the warm-up, are no leak."""

    def warming(settled: int) -> float:
        return FLAT - 150 * MIB * math.exp(-settled / 60_000)

    for seed in range(20):
        assert memory_verdict(curve(memory=noisy(warming, seed=seed))).held


@pytest.mark.parametrize("leaked", [24, 64, 1300])
def test_a_leak_of_an_object_an_event_fails(leaked: int) -> None:
    """The smallest object with its reference, a key, or a body: kept for each event, each of them is a leak."""
    for seed in range(20):
        verdict = memory_verdict(curve(memory=noisy(lambda settled: FLAT + leaked * settled, seed=seed)))
        assert not verdict.held
        assert "MiB per million events" in verdict.figures


def test_a_leak_of_bodies_fails_in_a_short_run_too() -> None:
    """CI's run is short: it cannot show a leak of one key for each event, but it does show one body for each event."""
    assert memory_verdict(curve(120_000, memory=lambda _: FLAT, rate=lambda _: 6_000)).held
    leaking = curve(120_000, memory=lambda settled: FLAT + 1300 * settled, rate=lambda _: 6_000)
    assert not memory_verdict(leaking).held


def test_a_leak_that_begins_late_fails() -> None:
    """Flat for half of the run, then a kibibyte for each event."""
    late = curve(memory=lambda settled: FLAT + 1024 * max(0, settled - EVENTS // 2))
    assert not memory_verdict(late).held


def test_a_peak_fails() -> None:
    """One moment at twice the level kills a container, though the line through all samples is flat."""
    peak = curve(memory=lambda settled: FLAT * (2 if settled == 100 * RATE else 1))
    verdict = memory_verdict(peak)
    assert not verdict.held


def test_too_few_checks_are_no_proof() -> None:
    """Three samples prove nothing."""
    assert not memory_verdict(curve(3 * RATE)).held


def test_the_slope_is_that_of_the_line() -> None:
    """The slope of a straight line is exact, and the allowed growth is added to it."""
    samples = curve(memory=lambda settled: 1000 + 3 * settled)
    assert slope(samples, lambda one: one.private) == pytest.approx(3_000_000)
    assert slope(samples[:1], lambda one: one.private) == math.inf


def test_a_budget_is_kept_or_not() -> None:
    """At the limit is within it; one sample above is not; and a limit that is never approached was not tested."""
    assert judge_budget("open", [10, 100, 60], 100).held
    above = judge_budget("open", [10, 101, 60], 100)
    assert not above.held
    assert "at 1 of 3 samples" in above.figures
    assert not judge_budget("open", [10, 20, 30], 100).held
    assert not judge_budget("open", [], 100).held


def test_a_store_that_forgets_passes() -> None:
    """Keys for a window and a half, at a rate that doubles and halves: no more than were delivered in that time."""
    for rate in (
        lambda _: RATE,
        lambda at: RATE * (2 if 40 < at < 60 else 1),
        lambda at: RATE / (1 + at / 50),
    ):
        verdict = judge_keys(curve(rate=rate), WINDOW)
        assert verdict.held, verdict


def test_a_store_that_forgets_nothing_fails() -> None:
    """Every key ever delivered is still there."""
    assert not judge_keys(curve(keys=lambda settled: settled), WINDOW).held


def test_a_store_that_forgets_late_fails() -> None:
    """One bucket more than the window needs fails."""
    maximum = int(RATE * (horizon(WINDOW) + WINDOW / 2))
    assert not judge_keys(curve(keys=lambda settled: min(settled, maximum)), WINDOW).held


def test_a_store_that_was_never_full_proves_nothing() -> None:
    """In a run shorter than the window the store forgets nothing, and the verdict says so."""
    verdict = judge_keys(curve(WINDOW * RATE), WINDOW)
    assert not verdict.held
    assert "turned over" in verdict.figures


def size_verdict(samples: list[Sample]) -> Verdict:
    """Of the key store on disk."""
    return judge_store_size("size", samples, lambda one: one.key_bytes)


def test_a_store_that_keeps_its_size_passes() -> None:
    """As buckets come and go the size rises and falls to the same values."""
    saw = curve(key_bytes=lambda settled: 25 * MIB + settled % (10 * RATE) * 100)
    assert size_verdict(saw).held


def test_a_store_that_grows_fails() -> None:
    """Disk space that is never freed shows in the last half, however slowly it grows."""
    assert not size_verdict(curve(key_bytes=lambda settled: 100 * settled)).held
    assert not size_verdict(curve(5 * RATE)).held


def test_a_store_that_holds_more_keys_may_be_larger() -> None:
    """Nearly twice the size is no growth for twice the keys, but is growth for the same number of keys."""
    samples = [
        one._replace(keys=keys, key_bytes=size)
        for one in curve()
        for keys, size in [(100_000, 30 * MIB) if one.at < 105 else (200_000, 57 * MIB)]
    ]
    assert size_verdict(samples).held
    assert not size_verdict([one._replace(keys=100_000) for one in samples]).held


LEDGER = {"read": 100, "delivered": 80, "duplicate": 10, "filtered": 4, "dead_lettered": 6, "open": 0}
EXPECTED = Counter({Disposition.DELIVERED: 82, Disposition.DUPLICATE: 10, Disposition.FILTERED: 4}) + Counter(
    {Disposition.DEAD_LETTERED: 4}
)


def sums(ledger: Mapping[str, int] | None = None, **figures: Any) -> Sums:
    """A correct run of 100 records, of which the sink refused 2; `figures` replace values."""
    whole = Sums(
        produced=100,
        expected=EXPECTED,
        ledger={**LEDGER, **(ledger or {})},
        accepted=80,
        refused=2,
        never_seen=0,
        unheard=0,
        committed=100,
        exit_code=0,
    )
    return whole._replace(**figures)


def broken(books: Sums) -> set[str]:
    """The names of the broken promises."""
    return {one.name for one in judge_books(books) if not one.held}


def test_books_in_order_pass() -> None:
    """Both ends and the ledger agree; calls whose answer came too late may have been accepted."""
    assert broken(sums()) == set()
    assert broken(sums(accepted=90, unheard=1000)) == set()


@pytest.mark.parametrize(
    ("books", "name"),
    [
        (sums({"read": 99}), "the ledger adds up"),
        (sums({"delivered": 79, "open": 1}), "the ledger adds up"),
        (sums({"delivered": 79, "filtered": 5}), "the ledger agrees with both ends"),
        (sums({"dead_lettered": 5, "duplicate": 11}), "the ledger agrees with both ends"),
        (sums(accepted=79), "the ledger agrees with both ends"),
        (sums(accepted=81), "the ledger agrees with both ends"),
        (sums(never_seen=1), "nothing is lost"),
        (sums(committed=99), "all is committed, and it ends in order"),
        (sums(exit_code=1), "all is committed, and it ends in order"),
    ],
)
def test_books_out_of_order_fail(books: Sums, name: str) -> None:
    """One record more or less anywhere is noticed and named."""
    assert name in broken(books)


def test_all_promises_are_judged() -> None:
    """A good run has eleven verdicts, all kept; a run over budget has one that is broken."""
    samples = [one._replace(open_events=9_000, read=one.read + 9_000, open_bytes=900) for one in curve()]

    def judged(max_open_bytes: int) -> list[Verdict]:
        limits = {"max_open_events": 10_000, "max_open_bytes": max_open_bytes, "window": WINDOW}
        return judge(samples, sums(), **limits)

    assert [one.held for one in judged(1_000)] == [True] * 11
    assert [one.name for one in judged(800) if not one.held] == ["open bytes keep to the budget"]


def test_a_key_store_that_follows_the_throughput_is_no_leak() -> None:
    """A faster machine fills more of the store, and its mapped files are resident; a leak beside that still shows."""

    def judged(memory: Curve) -> list[str]:
        samples = curve(3_600_000, memory=memory, key_bytes=lambda settled: 20 * MIB + settled * 24)
        verdicts = judge(samples, sums(), max_open_events=1, max_open_bytes=1, window=WINDOW)
        return [one.name for one in verdicts if not one.held and "memory" in one.name]

    assert judged(lambda _: FLAT) == []
    assert len(judged(lambda settled: FLAT + 24 * settled)) == 2


def test_a_curve_is_drawn_to_scale() -> None:
    """Zero is at the bottom, the limit at the top, and no peak is lost between two columns."""
    assert plot([0, 4, 8], [0.0, 0.4, 0.8], width=3, height=1, top=8) == [" ▄█"]
    assert plot([8, 8, 16], [0.0, 0.5, 1.0], width=2, height=2, top=16) == [" █", "██"]
    assert plot([1, 9, 1], [0.0, 0.1, 0.2], width=1, height=1, top=9) == ["█"]
    assert plot([5, 5], [0.0, 0.9], width=4, height=1, top=5) == ["████"]
    assert plot([1], [0.0], width=1, height=1, top=1_000_000) == ["▁"]
