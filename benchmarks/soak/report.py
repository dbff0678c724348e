"""What a soak prints: the curves, the ledger, the verdicts; and the same as JSON."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.soak.curves import plot
from benchmarks.soak.run import Outcome, Plan
from benchmarks.soak.verdicts import MIB, Verdict, median
from benchmarks.soak.watch import Sample

_WIDTH, _HEIGHT = 84, 4


def lines(outcome: Outcome, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The whole report, as text."""
    yield from curves(outcome.plan, outcome.samples)
    yield ""
    yield from _ledger(outcome)
    yield ""
    for one in verdicts:
        yield f"{'held  ' if one.held else 'BROKEN'}  {one.name}: {one.figures}"


def curves(plan: Plan, samples: Sequence[Sample]) -> Iterator[str]:
    """Each curve over the settled events, with its figures; a plot's upper edge is the budget."""
    yield from _curve("resident memory", samples, lambda one: one.rss, _mib)
    yield from _curve("of it private (resident less shared)", samples, lambda one: one.private, _mib)
    yield from _curve("open events", samples, lambda one: one.open_events, _count, plan.max_open_events)
    yield from _curve("open bytes", samples, lambda one: one.open_bytes, _mib, plan.max_open_bytes)
    yield from _curve("key store", samples, lambda one: one.key_bytes, _mib)
    yield from _curve("state folder on disk", samples, lambda one: one.state_bytes, _mib)
    seconds = samples[-1].at
    rate = samples[-1].settled / seconds if seconds else 0.0
    yield f"{len(samples)} samples in {seconds:.0f} s, {rate:,.0f} events a second"


def _curve(
    title: str,
    samples: Sequence[Sample],
    value: Callable[[Sample], int],
    shown: Callable[[float], str],
    limit: int | None = None,
) -> Iterator[str]:
    values = [value(one) for one in samples]
    last = max(1, samples[-1].settled)
    top = max(max(values), limit or 0)
    warm = [value(one) for one in samples if one.settled >= last / 4]
    yield (
        f"{title}: after the first quarter min {shown(min(warm))}, median {shown(median(warm))}, max {shown(max(warm))}"
        + (f"; limit {shown(limit)}" if limit is not None else "")
    )
    positions = [one.settled / last for one in samples]
    for number, row in enumerate(plot(values, positions, width=_WIDTH, height=_HEIGHT, top=top)):
        yield f"{shown(top) if number == 0 else '':>12} │{row.rstrip()}"
    yield f"{'0':>12} └{'─' * _WIDTH}"
    yield f"{'':>14}0{f'{last:,} events':>{_WIDTH - 1}}"


def _ledger(outcome: Outcome) -> Iterator[str]:
    counts, ledger = outcome.status["counts"], outcome.sums.ledger
    yield "ledger: " + ", ".join(f"{name} {count:,}" for name, count in ledger.items())
    answers = ", ".join(f"{name} {count:,}" for name, count in counts["answers"].items())
    yield (
        f"calls {outcome.calls:,} ({answers}); batches sent again {counts['batches_retried']:,}; "
        f"followers {counts['followers']:,}; failures {counts['failures'] or 'none'}"
    )
    for stage, codes in counts["rejections"].items():
        yield f"dead letters, {stage}: " + ", ".join(f"{code} {count:,}" for code, count in codes.items())


def document(outcome: Outcome, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The report for machines."""
    plan, sums = outcome.plan, outcome.sums
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "plan": {
            "events": plan.events,
            "seed": plan.seed,
            "window": plan.window,
            "max_open_events": plan.max_open_events,
            "max_open_bytes": plan.max_open_bytes,
        },
        "ledger": dict(sums.ledger),
        "accepted": sums.accepted,
        "refused": sums.refused,
        "never_seen": sums.never_seen,
        "calls": outcome.calls,
        "counts": outcome.status["counts"],
        "verdicts": [one._asdict() for one in verdicts],
        "samples": [one._asdict() for one in outcome.samples],
    }


def one_line(sample: Sample, events: int) -> str:
    """One sample, for a log or beside a progress bar."""
    return (
        f"{sample.settled:>11,} of {events:,}  {sample.at:5.0f} s  RSS {_mib(sample.rss)}  "
        f"private {_mib(sample.private)}  open {sample.open_events:,} / {_mib(sample.open_bytes)}  "
        f"keys {sample.keys:,} / {_mib(sample.key_bytes)} in {sample.buckets}"
    )


def _mib(value: float) -> str:
    return f"{value / MIB:.1f} MiB"


def _count(value: float) -> str:
    return f"{value:,.0f}"
