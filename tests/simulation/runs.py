"""Runs one seed, or many in several processes, and reports the results."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import pytest

from tests.simulation.knobs import draw
from tests.simulation.mutations import MUTATIONS
from tests.simulation.truth import Violation
from tests.simulation.world import Trace, World

TWICE = 50
"""One of this many seeds is run twice: the same seed must give the same commands."""
_CHUNK = 20


class Outcome(NamedTuple):
    """The result of a seed: `invariant` and `message` are empty if every invariant held."""

    seed: int
    invariant: str
    message: str
    inputs: int
    crashes: int
    accepted: int
    """Events that the API accepted, with repetitions."""
    repeated: int
    """Those of them that it had accepted before, all of them excused."""

    @property
    def held(self) -> bool:
        """Whether every invariant held."""
        return not self.invariant


def run_seed(seed: int, trace: Trace | None = None, *, reading: str = "fake", **overrides: Any) -> Outcome:
    """Live one world to its end; `overrides` are for its knobs."""
    twice = trace is None and not overrides and seed % TWICE == 0
    world = World(draw(seed, reading=reading, **overrides), trace, digest=twice)
    invariant = message = ""
    try:
        world.run()
        if twice and digest_of(seed, reading) != world.digest:
            raise Violation("the same seed gives the same commands", "a second run went another way")
    except Violation as violation:
        invariant, message = violation.invariant, str(violation)
    except Exception as bug:
        # The core promises to raise nothing else; and a bug in the world must not pass for a success.
        invariant, message = "nothing else is raised", f"{type(bug).__name__}: {bug}"
    accepted = world.truth.accepted
    repeated = sum(count - 1 for count in accepted.values() if count)
    return Outcome(seed, invariant, message, world.inputs, world.crashes, sum(accepted.values()), repeated)


def digest_of(seed: int, reading: str = "fake") -> str:
    """A digest of all inputs and commands of a seed's processes."""
    world = World(draw(seed, reading=reading), digest=True)
    world.run()
    return world.digest


def first_failure(seeds: Iterable[int], **overrides: Any) -> Outcome | None:
    """The first of these seeds with a broken invariant, run in this process."""
    outcomes = (run_seed(seed, **overrides) for seed in seeds)
    return next((outcome for outcome in outcomes if not outcome.held), None)


def _run_chunk(seeds: range, reading: str, mutation: str | None) -> list[Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        if mutation is not None:
            MUTATIONS[mutation](patch)
        outcomes = []
        for seed in seeds:
            outcomes.append(run_seed(seed, reading=reading))
            if not outcomes[-1].held:
                break
        return outcomes


def run_many(
    seeds: range, jobs: int, mutation: str | None = None, reading: str = "fake"
) -> Iterator[list[Outcome]]:
    """The results of all seeds, a chunk at a time; no chunk begins after a broken invariant."""
    chunks = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(_run_chunk, chunk, reading, mutation) for chunk in chunks]
        for future in as_completed(futures):
            if future.cancelled():
                continue
            outcomes = future.result()
            yield outcomes
            if not outcomes[-1].held:
                # Chunks already under way go on: an earlier seed among them may fail too.
                for other in futures:
                    other.cancel()


class Clock:
    """Wall time since it was created, for rates."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def elapsed(self) -> float:
        """Seconds."""
        return max(time.monotonic() - self._begin, 1e-6)
