"""Judges what was seen. Pure: samples and sums in, verdicts out.

Memory. A leak grows with events, so the measure is memory per million events: the least-squares slope over all that
was seen after the first quarter of the events. `LEAK_BOUND` is 8 bytes an event: the least that Python can keep of an
event is a reference, which is 8 bytes. Not every rise is a leak, though: open events, librdkafka's queue and the bodies
in flight come and go by tens of megabytes between two samples, and the allocator keeps what the highest of these waves
took. So the growth that the slope stands for may be some megabytes more (`jitter`). With `JITTER`, two million events
are allowed 14 bytes an event, and the smallest object with a reference to it has 24. A short run needs more, and sees
less: the test's 120,000 events are allowed some 200 bytes each, and a record with its body has over 1,000. And no peak
after the first quarter stands out from the median by more than `PEAK_SHARE`.

It is measured twice: private memory (resident less shared), and resident memory less the size of the key store, whose
mapped file is in the shared part. That file follows the throughput, as it must, and has a verdict of its own: on a
machine that gets faster in the middle of a run, resident memory as a whole rises by exactly that.

Key store. A key is held for the window, then until its bucket (half a window) and the next tick of housekeeping are
over. So at no sample may there be more keys than were delivered in that time before it: a bound that holds however
fast or slow the machine is. What that takes on disk has to stay where it was once the store was full for the first
time: the most in the last half at most `SIZE_SHARE` of the most in the second quarter; where it held more keys in the
last half, by as much more. (How many it may hold is the other verdict. In a short run it is chance how many: a key may
go soon after its window, or two ticks and a bucket later.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.soak.watch import Sample
from consumer.engine.model import Disposition

MIB = 2**20
MILLION = 1_000_000
LEAK_BOUND = 8.0 * MILLION
"""Bytes per million events."""
JITTER = 8 * MIB
"""Growth that is no leak, in a run of millions."""
PEAK_SHARE = 1.25
SIZE_SHARE = 1.5
TURNOVERS = 2.0
"""The store must be filled and emptied this many times; otherwise the run shows nothing."""
HOUSEKEEPING = 2.0
"""Seconds between two ticks of the process's housekeeping."""
_LATE = 2.0
"""Seconds that a tick, a drop or a sample may be late."""
_LEAST_SAMPLES = 8


class Verdict(NamedTuple):
    """One promise: whether it held, and the figures."""

    name: str
    held: bool
    figures: str


class Sums(NamedTuple):
    """What both ends counted, when the run was over."""

    produced: int
    expected: Mapping[Disposition, int]
    """Of the records produced; events that the sink refuses become dead letters as well."""
    ledger: Mapping[str, int]
    accepted: int
    """Events the sink answered as processed."""
    refused: int
    never_seen: int
    """Deliverable events that the sink was never sent."""
    unheard: int
    """The most events that can be in calls whose answer came too late."""
    committed: int
    exit_code: int


def measured(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples after the warm-up, which is the first quarter of the events."""
    last = samples[-1].settled if samples else 0
    return [one for one in samples if one.settled >= last / 4]


def slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """By how much `value` grows per million events (least squares)."""
    mean_x = sum(one.settled for one in samples) / len(samples)
    mean_y = sum(map(value, samples)) / len(samples)
    spread = sum((one.settled - mean_x) ** 2 for one in samples)
    if not spread:
        return math.inf
    return sum((one.settled - mean_x) * (value(one) - mean_y) for one in samples) / spread * MILLION


def median(values: Sequence[float]) -> float:
    """The median: of two middle values the upper one."""
    return sorted(values)[len(values) // 2]


def judge_memory(
    name: str, samples: Sequence[Sample], value: Callable[[Sample], float], jitter: float = JITTER
) -> Verdict:
    """Memory is flat once warm: it has neither a slope nor a peak."""
    warm = measured(samples)
    if len(warm) < _LEAST_SAMPLES:
        return Verdict(name, False, f"only {len(warm)} samples after the warm-up: too few to tell")
    values = [value(one) for one in warm]
    events = (warm[-1].settled - warm[0].settled) / MILLION
    grows, middle, maximum = slope(warm, value), median(values), max(values)
    allowed = LEAK_BOUND + jitter / events if events else 0.0
    held = grows <= allowed and maximum <= middle * PEAK_SHARE
    figures = (
        f"{grows / MIB:+.2f} MiB per million events (at most {allowed / MIB:.1f}); most {maximum / MIB:.1f} MiB, "
        f"median {middle / MIB:.1f} (at most {PEAK_SHARE:g} times)"
    )
    return Verdict(name, held, figures)


def judge_budget(name: str, values: Sequence[int], limit: int) -> Verdict:
    """Open events and bytes stay below the limit in every sample, and come near it in at least one: otherwise
    the limit was not tested."""
    maximum, above = max(values, default=0), sum(1 for value in values if value > limit)
    figures = f"most {maximum:,} of {limit:,}, above it at {above} of {len(values)} samples"
    if maximum < limit / 2:
        return Verdict(name, False, f"{figures}: the limit was not put to the test")
    return Verdict(name, not above, figures)


def horizon(window: int) -> float:
    """The longest that a key may be held, in seconds: window, bucket (half a window) and housekeeping."""
    return window + math.ceil(window / 2) + HOUSEKEEPING + _LATE


def judge_keys(samples: Sequence[Sample], window: int) -> Verdict:
    """The store never holds more keys than were delivered within the time for which a key may be held."""
    name = "the key store forgets"
    worst, turnovers = 0.0, 0.0
    for index, one in enumerate(samples):
        begin = _last_before(samples[: index + 1], one.at - horizon(window))
        # Keys are stored before their events count as delivered: those events are open still.
        allowed = one.delivered - begin.delivered + one.open_events
        worst = max(worst, one.keys / allowed if allowed else float(one.keys > 0))
    maximum = max((one.keys for one in samples), default=0)
    if maximum:
        turnovers = samples[-1].delivered / maximum
    figures = (
        f"at most {worst:.2f} of the keys delivered within {horizon(window):g} s; most {maximum:,} keys, "
        f"turned over {turnovers:.1f} times (at least {TURNOVERS:g})"
    )
    return Verdict(name, worst <= 1 and turnovers >= TURNOVERS, figures)


def _last_before(samples: Sequence[Sample], at: float) -> Sample:
    """The last sample taken at `at` or before; the first one if there is none before."""
    return next((one for one in reversed(samples) if one.at <= at), samples[0])


def judge_store_size(name: str, samples: Sequence[Sample], value: Callable[[Sample], float]) -> Verdict:
    """The store keeps the size that it had when it was first full."""
    if len(samples) < _LEAST_SAMPLES:
        return Verdict(name, False, f"only {len(samples)} samples: too few to tell")
    begin, end = samples[0].at, samples[-1].at
    quarter = (end - begin) / 4
    first = [one for one in samples if begin + quarter <= one.at <= begin + 2 * quarter]
    late = [one for one in samples if one.at >= begin + 2 * quarter]
    keys_first, keys_late = (max((one.keys for one in part), default=0) for part in (first, late))
    fuller = max(1.0, keys_late / keys_first) if keys_first else 1.0
    max_first, max_late = max(map(value, first), default=0), max(map(value, late), default=0)
    limit = max_first * SIZE_SHARE * fuller
    figures = (
        f"most {max_late / MIB:.1f} MiB in the last half, {max_first / MIB:.1f} in the second quarter "
        f"(at most {SIZE_SHARE * fuller:.2f} times)"
    )
    return Verdict(name, max_late <= limit, figures)


def judge_books(sums: Sums) -> list[Verdict]:
    """The ledger adds up and agrees with what was produced and with the sink; nothing is lost."""
    ledger, expected = sums.ledger, sums.expected
    parts = sum(ledger[one.value] for one in Disposition) + ledger["open"]
    dead = expected[Disposition.DEAD_LETTERED] + sums.refused
    adds_up = ledger["read"] == parts == sums.produced and ledger["open"] == 0
    right = (
        ledger["filtered"] == expected[Disposition.FILTERED]
        and ledger["dead_lettered"] == dead
        and ledger["delivered"] <= sums.accepted <= ledger["delivered"] + sums.unheard
    )
    return [
        Verdict("the ledger adds up", adds_up, f"read {ledger['read']:,} of {sums.produced:,} produced"),
        Verdict(
            "the ledger agrees with both ends",
            right,
            f"delivered {ledger['delivered']:,}, accepted {sums.accepted:,}; dead letters "
            f"{ledger['dead_lettered']:,} of {dead:,}; filtered {ledger['filtered']:,} of "
            f"{expected[Disposition.FILTERED]:,}",
        ),
        Verdict("nothing is lost", not sums.never_seen, f"{sums.never_seen:,} events never reached the sink"),
        Verdict(
            "all is committed, and it ends in order",
            sums.committed == sums.produced and sums.exit_code == 0,
            f"committed {sums.committed:,}, exit code {sums.exit_code}",
        ),
    ]


def judge(
    samples: Sequence[Sample],
    sums: Sums,
    *,
    max_open_events: int,
    max_open_bytes: int,
    window: int,
    jitter: float = JITTER,
) -> list[Verdict]:
    """All promises of a run."""
    return [
        judge_memory(
            "resident memory, the key store's file aside, is flat",
            samples,
            lambda one: one.rss - one.key_bytes,
            jitter,
        ),
        judge_memory("private memory is flat", samples, lambda one: one.private, jitter),
        judge_budget("open events keep to the budget", [one.open_events for one in samples], max_open_events),
        judge_budget("open bytes keep to the budget", [one.open_bytes for one in samples], max_open_bytes),
        judge_keys(samples, window),
        judge_store_size("the key store keeps its size", samples, lambda one: one.key_bytes),
        judge_store_size("the state folder keeps its size", samples, lambda one: one.state_bytes),
        *judge_books(sums),
    ]
