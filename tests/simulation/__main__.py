"""Runs seeded worlds: ``python -m tests.simulation [--seeds N] [--jobs J]``; ``--seed N`` replays one with a trace.

Each seed is run twice: with ``fake`` records, and with real Avro that is read in ``both`` ways, in two steps and on
the fast path. ``--reading`` asks for one of these, or for ``two-steps`` or ``fast`` alone.

Exits 0 when every invariant held in every seed; 1 otherwise, after printing the first seed that failed, its
invariant, and how to replay it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.avro_records import CANONICAL, FORMS
from tests.simulation.knobs import draw
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runs import Clock, Outcome, run_many, run_seed
from tests.simulation.trace import report

_SAY_EVERY = 5.0
"""Seconds between lines about the progress."""


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument(
        "count", nargs="?", type=int, default=300, help="how many seeds (the same as --seeds)"
    )
    parser.add_argument("--seeds", type=int, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="replay this seed, with a trace")
    parser.add_argument("--reading", choices=FORMS, help="how records are read (fake, then both)")
    parser.add_argument(
        "--mutation",
        choices=sorted(MUTATIONS),
        metavar="NAME",
        help=f"with one of {len(MUTATIONS)} deliberate bugs in the engine (a wrong name lists them)",
    )
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed, options.reading or "fake", options.mutation)
    count = options.seeds if options.seeds is not None else options.count
    seeds = range(options.first, options.first + count)
    readings = [options.reading] if options.reading else CANONICAL
    return max(_run(seeds, options.jobs, reading, options.mutation) for reading in readings)


def _replay(seed: int, reading: str, mutation: str | None) -> int:
    print(draw(seed, reading=reading))
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            MUTATIONS[mutation](patch)
        outcome = run_seed(seed, report, reading=reading)
    print(f"seed {seed}: {outcome.message or 'every invariant held'}")
    return 0 if outcome.held else 1


def _run(seeds: range, jobs: int, reading: str, mutation: str | None) -> int:
    clock, outcomes = Clock(), []
    for chunk in _shown(run_many(seeds, jobs, mutation, reading), len(seeds), clock):
        outcomes += chunk
    failed = sorted(outcome for outcome in outcomes if not outcome.held)
    if failed:
        first, more = failed[0], f" --mutation {mutation}" if mutation else ""
        print(f"seed {first.seed} fails: {first.message}")
        print(f"replay it with: python -m tests.simulation --seed {first.seed} --reading {reading}{more}")
        return 1
    repeated, accepted = (sum(getattr(one, name) for one in outcomes) for name in ("repeated", "accepted"))
    print(
        f"{reading}: {len(outcomes)} seeds held every invariant: {sum(one.inputs for one in outcomes)} inputs, "
        f"{sum(one.crashes for one in outcomes)} crashes, {accepted} events accepted of which {repeated} again "
        f"and excused, {len(outcomes) / clock.elapsed():.1f} seeds/s"
    )
    return 0


def _shown(chunks: Iterator[list[Outcome]], total: int, clock: Clock) -> Iterator[list[Outcome]]:
    """Pass `chunks` on, and print now and then how far they are."""
    done, said = 0, 0.0
    for chunk in chunks:
        done += len(chunk)
        if clock.elapsed() - said >= _SAY_EVERY:
            said = clock.elapsed()
            print(f"{done} of {total} seeds, {done / said:.1f} seeds/s", file=sys.stderr, flush=True)
        yield chunk


if __name__ == "__main__":
    sys.exit(main())
