"""Each target in a process of its own, under atheris where it can be imported, else under Hypothesis.

``python -m tests.fuzzing.engine CORPORA FINDINGS TARGET[,seconds=N][,runs=N][,seed=N]…``: atheris instruments modules
as they are imported, which takes seconds, so they are imported once. libFuzzer owns its process, so each target then
has a child, which ends with 0 if nothing was found, and otherwise leaves the input in FINDINGS. Progress goes to
stderr, as libFuzzer writes it: ``#RUNS …``, and ``=TARGET CODE`` at a target's end.

Hypothesis is not coverage-guided. It starts from the same seeds and breaks them at random, shrinks what fails, and
writes that down: a good deal less, and more than nothing, where atheris has no wheel.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LONGEST: Final = 4_096
"""Bytes of an input. Targets repeat what they take, so that short input can have a large effect."""
SECONDS_AN_INPUT: Final = 25
_MEGABYTES: Final = 1_536
"""By how much a process may grow."""
_SLOWNESS: Final = 10.0
_ROUND: Final = 500
FOUND: Final = 77

Target = Callable[[bytes], None]


def has_atheris() -> bool:
    """Whether this Python can run coverage-guided."""
    return importlib.util.find_spec("atheris") is not None


def load(target: str) -> Target:
    """Import the product and return the function of a target. ``module:function`` names one outside the table."""
    module, _, name = target.rpartition(":")
    known: dict[str, Target] = {} if module else importlib.import_module("tests.fuzzing.targets").TARGETS
    found: Target = getattr(importlib.import_module(module), name) if module else known[target]
    return found


def fuzz_with_atheris(name: str, corpus: Path, findings: Path, limits: dict[str, int]) -> int:
    """Fuzz until the limits are reached; libFuzzer ends the process itself."""
    atheris: Any = importlib.import_module("atheris")
    # libFuzzer reads the peak of the process, which begins as that of the process that started it: a peak lasts over
    # fork and exec.
    already = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    arguments = {
        "max_len": LONGEST,
        "timeout": SECONDS_AN_INPUT,
        "rss_limit_mb": already + _MEGABYTES,
        "malloc_limit_mb": _MEGABYTES,
        "max_total_time": limits.get("seconds", 0),
        "runs": limits.get("runs", -1),
        "seed": limits.get("seed", 0),
        "len_control": 20,
        "reload": 0,
        "artifact_prefix": findings / f"{name.rpartition(':')[2]}-",
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in arguments.items()), str(corpus)], load(name)
    )
    atheris.Fuzz()
    return 0


def fuzz_with_hypothesis(name: str, corpus: Path, findings: Path, limits: dict[str, int]) -> int:
    """Fuzz until the limits are reached; return the exit code."""
    target = load(name)
    seeds = [path.read_bytes() for path in sorted(corpus.iterdir())]
    ends = time.monotonic() + limits.get("seconds", 10**9)
    left, number, done = limits.get("runs", 10**12), limits.get("seed", 0), 0
    while left > 0 and time.monotonic() < ends:
        count = min(left, _ROUND)
        failing = _round(target, seeds, count, number)
        if failing is not None:
            digest = hashlib.sha1(failing, usedforsecurity=False).hexdigest()
            (findings / f"{name.rpartition(':')[2]}-crash-{digest}").write_bytes(failing)
            return FOUND
        left, number, done = left - count, number + 1, done + count
        print(f"#{done}\thypothesis", file=sys.stderr, flush=True)
    return 0


def _round(target: Target, seeds: list[bytes], count: int, number: int) -> bytes | None:
    """The smallest failing input of `count`, or None."""
    import hypothesis
    from hypothesis import strategies as st

    edits = st.lists(st.tuples(st.integers(0, LONGEST), st.integers(0, 8), st.binary(max_size=8)), max_size=6)
    inputs = st.binary(max_size=256) | st.builds(broken, st.sampled_from(seeds or [b""]), edits)
    last: list[bytes] = []

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(inputs)
    def run(data: bytes) -> None:
        last[:] = [data]
        target(data)

    try:
        run()
    except Exception:
        traceback.print_exc()
        return last[0]
    return None


def broken(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """`data` with pieces replaced, each given as its place, its length and the new bytes."""
    for place, size, piece in edits:
        at = place % (len(data) + 1)
        data = data[:at] + piece + data[at + size :]
    return data[:LONGEST]


def main(arguments: list[str]) -> int:
    """Run the targets, one after the other."""
    corpora, findings, *targets = arguments
    fuzz = fuzz_with_atheris if has_atheris() else fuzz_with_hypothesis
    names = [one.partition(",")[0] for one in targets]
    if has_atheris():
        with importlib.import_module("atheris").instrument_imports(include=["consumer"]):
            for name in names:
                load(name)
        importlib.import_module("tests.fuzzing.contract").Measuring.slowness = _SLOWNESS
    for name, one in zip(names, targets, strict=True):
        child = os.fork()
        if not child:
            limits = {
                key: int(value) for key, _, value in (each.partition("=") for each in one.split(",")[1:])
            }
            os._exit(fuzz(name, Path(corpora, name.rpartition(":")[2]), Path(findings), limits))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"={name} {code}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
