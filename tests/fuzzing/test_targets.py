"""Every target over its seeds, and a little coverage-guided fuzzing of each: the same inputs on every run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.conversion.reading import Written
from consumer.engine.model import Record
from tests.fuzzing.__main__ import Limits, Outcome, fuzz, main
from tests.fuzzing.building import ROOT
from tests.fuzzing.contract import Measuring
from tests.fuzzing.engine import FOUND, fuzz_with_hypothesis, has_atheris
from tests.fuzzing.fast_path import both_of, fast_path
from tests.fuzzing.seeds import seeds
from tests.fuzzing.targets import TARGETS

RUNS = {
    "decode": 2_000, "convert": 1_500, "fast_path": 750, "schemas": 10, "explain": 375, "answers": 1_250,
    "registry": 300, "offset_map": 2_000, "key_store": 500,
}  # fmt: skip
"""Runs that take a second or two each; ``make fuzz`` is for longer."""
WITHOUT_COVERAGE = 20
"""Hypothesis takes this many times longer for an input."""


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    """Measure memory in this process."""
    Measuring.memory = True
    yield
    Measuring.memory = False


def fails_on_seven(data: bytes) -> None:
    """A target with a bug in it."""
    assert b"\x07" not in data


WITH_A_BUG = f"{__name__}:fails_on_seven"


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_keep_to_the_contract(target: str) -> None:
    """The fuzzer's first inputs are accepted within the bounds of time and memory."""
    for seed in seeds(target):
        TARGETS[target](seed)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """A fixed number of inputs from a fixed seed for each target, and for one with a bug in it: atheris where it is
    installed, else Hypothesis."""
    runs = {target: RUNS[target] if has_atheris() else RUNS[target] // WITHOUT_COVERAGE for target in TARGETS}
    limits = {target: Limits(runs=count, seed=1) for target, count in {**runs, WITH_A_BUG: 20_000}.items()}
    return fuzz(limits, tmp_path_factory.mktemp("fuzzing"), print)


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_little_fuzzing_finds_nothing(target: str, outcomes: dict[str, Outcome]) -> None:
    """All inputs were taken, and none is a finding."""
    outcome = outcomes[target]
    assert (outcome.finding, outcome.code) == (None, 0), outcome.tail
    assert outcome.runs >= RUNS[target] // (1 if has_atheris() else WITHOUT_COVERAGE)


def test_the_fast_path_s_target_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails for a reading that takes one record for another."""
    first, second = seeds("fast_path")[:2]
    fast_path(second)
    both = both_of(second[0])
    plan, function = both.compiled._written[both.framing, 1]
    assert function is not None
    taken = Record(0, -1, None, both.framing + first[2:], ())
    muddled = Written(plan, lambda records, *rest: function([taken] * len(records), *rest))
    monkeypatch.setitem(both.compiled._written, (both.framing, 1), muddled)
    with pytest.raises(AssertionError):
        fast_path(second)


def test_a_finding_is_kept_named_and_can_be_replayed(outcomes: dict[str, Outcome]) -> None:
    """The engine stops at the finding and stores it; so a target without findings has really run."""
    outcome = outcomes[WITH_A_BUG]
    assert outcome.code == FOUND
    assert outcome.finding is not None
    assert outcome.finding.name.startswith("fails_on_seven-crash-")
    with pytest.raises(AssertionError):
        fails_on_seven(outcome.finding.read_bytes())


@pytest.mark.skipif(not has_atheris(), reason="atheris is not installed")
def test_the_peak_of_who_starts_it_does_not_count(tmp_path: Path) -> None:
    """A process that once took two gigabytes starts a target, which inherits its peak and is judged by its growth."""
    for name in ("corpus", "findings"):
        (tmp_path / name).mkdir()
    target = """
import sys
from pathlib import Path
from tests.fuzzing.engine import fuzz_with_atheris
fuzz_with_atheris("answers", Path(sys.argv[1], "corpus"), Path(sys.argv[1], "findings"), {"seconds": 3, "seed": 1})
"""
    code = """
import resource, subprocess, sys
large = bytearray(2 << 30)
large[::4096] = bytes(len(range(0, len(large), 4096)))
del large
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2 << 20
sys.exit(subprocess.call([sys.executable, "-c", *sys.argv[1:]]))
"""
    arguments = [sys.executable, "-c", code, target, str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert list((tmp_path / "findings").iterdir()) == []


def test_without_atheris_hypothesis_finds_and_shrinks(tmp_path: Path) -> None:
    """It breaks seeds at random and stores the smallest failing input; a target without bugs ends with 0."""
    corpus, findings = tmp_path / "corpus", tmp_path / "findings"
    corpus.mkdir()
    findings.mkdir()
    for number, seed in enumerate(seeds("answers")):
        (corpus / str(number)).write_bytes(seed)
    limits = {"runs": 600, "seed": 1}
    assert fuzz_with_hypothesis(WITH_A_BUG, corpus, findings, limits) == FOUND
    assert [path.read_bytes() for path in findings.iterdir()] == [b"\x07"]
    assert fuzz_with_hypothesis("answers", corpus, findings, {"runs": 100, "seed": 1}) == 0


def test_replay_and_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--replay FILE`` runs one target on one file; an unknown target is wrong usage."""
    file = tmp_path / "input"
    file.write_bytes(seeds("answers")[0])
    assert main(["answers", "--replay", str(file)]) == 0
    assert "nothing wrong" in capsys.readouterr().err
    for wrong in (["nonsense"], ["--replay", str(file)]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
