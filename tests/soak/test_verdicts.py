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


def noisy(memory: Curve, swing: float = 10 * MIB, seed: int = 1) -> Curve:
    """The curve with what open events and the allocator add and remove."""
    draw = random.Random(seed)
    return lambda settled: memory(settled) + draw.uniform(-swing, swing)


def leaking(bytes_an_event: int) -> Curve:
    """Memory that grows by so many bytes with each event."""
    return lambda settled: FLAT + bytes_an_event * settled


def short(memory: Curve) -> list[Sample]:
    """A run as short as CI's."""
    return curve(120_000, memory=memory, rate=lambda _: 6_000)


@pytest.mark.parametrize(
    ("samples", "held"),
    [
        # A level that varies with open events, and a rise during the warm-up, are no leak.
        *((curve(memory=noisy(lambda settled: FLAT - 150 * MIB * math.exp(-settled / 60_000), seed=seed)), True)
          for seed in range(8)),
        # The smallest object with its reference, a key, or a body: kept for each event, each of them is a leak.
        *((curve(memory=noisy(leaking(size), seed=seed)), False) for size in (24, 64, 1300) for seed in range(4)),
        # A short run cannot show a leak of one key for each event, but it does show one body for each event.
        (short(lambda _: FLAT), True),
        (short(leaking(1300)), False),
        # Flat for half of the run, then a kibibyte for each event.
        (curve(memory=lambda settled: FLAT + 1024 * max(0, settled - EVENTS // 2)), False),
        # One moment at twice the level kills a container, though the line through all samples is flat.
        (curve(memory=lambda settled: FLAT * (2 if settled == 100 * RATE else 1)), False),
        # Three samples prove nothing.
        (curve(3 * RATE), False),
    ],
)  # fmt: skip
def test_memory_that_grows_fails(samples: list[Sample], held: bool) -> None:
    """What grows with the events, or peaks, is named; noise and a warm-up are not."""
    assert judge_memory("memory", samples, lambda one: one.private).held is held


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


@pytest.mark.parametrize(
    ("samples", "held"),
    [
        # Keys for a window and a half, at a rate that doubles and halves.
        (curve(), True),
        (curve(rate=lambda at: RATE * (2 if 40 < at < 60 else 1)), True),
        (curve(rate=lambda at: RATE / (1 + at / 50)), True),
        # Every key ever delivered is still there; one bucket more than the window needs.
        (curve(keys=lambda settled: settled), False),
        (curve(keys=lambda settled: min(settled, int(RATE * (horizon(WINDOW) + WINDOW / 2)))), False),
        # In a run shorter than the window the store forgets nothing, which proves nothing.
        (curve(WINDOW * RATE), False),
    ],
)
def test_a_store_that_does_not_forget_fails(samples: list[Sample], held: bool) -> None:
    """It has no more keys than were delivered in the time for which it has to keep them."""
    assert judge_keys(samples, WINDOW).held is held


def with_size(keys: int, size: int, later_keys: int, later_size: int) -> list[Sample]:
    """Samples whose store has other figures in the second half."""
    return [
        one._replace(keys=keys, key_bytes=size)
        if one.at < 105
        else one._replace(keys=later_keys, key_bytes=later_size)
        for one in curve()
    ]


@pytest.mark.parametrize(
    ("samples", "held"),
    [
        # As buckets come and go the size rises and falls to the same values.
        (curve(key_bytes=lambda settled: 25 * MIB + settled % (10 * RATE) * 100), True),
        # Disk space that is never freed shows in the last half, however slowly it grows.
        (curve(key_bytes=lambda settled: 100 * settled), False),
        (curve(5 * RATE), False),
        # Nearly twice the size is no growth for twice the keys, but is growth for the same number of keys.
        (with_size(100_000, 30 * MIB, 200_000, 57 * MIB), True),
        (with_size(100_000, 30 * MIB, 100_000, 57 * MIB), False),
    ],
)
def test_a_store_that_grows_on_disk_fails(samples: list[Sample], held: bool) -> None:
    """Its size follows its keys."""
    assert judge_store_size("size", samples, lambda one: one.key_bytes).held is held


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
