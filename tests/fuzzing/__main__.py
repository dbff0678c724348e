"""``python -m tests.fuzzing [TARGET…] [--seconds N]``: fuzz what reads bytes from outside; ``make fuzz``.

Theory of operation. Each target (`targets`) is fuzzed in a process of its own (`engine`), one after the other, from
a corpus that starts as real inputs (`seeds`) and grows by what reached new code; it is kept under the folder
(``artifacts/fuzzing``) for the next time. While one runs, a line tells of its progress now and then. A finding is
written to a file, and the run ends with 1 and says how to see it again: ``--replay FILE`` gives the file to the
target in this process, with memory measured. What was fixed then becomes a test (`test_findings`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.fuzzing import engine
from tests.fuzzing.building import ROOT

FOLDER: Final = ROOT / "artifacts" / "fuzzing"
_PROGRESS: Final = re.compile(r"#(\d+)\t")
_END: Final = re.compile(r"=(\S+) (-?\d+)$")
_SECONDS_A_LINE: Final = 10.0
_TAIL: Final = 30

Say = Callable[[str], None]


class Limits(NamedTuple):
    """When fuzzing a target ends. The same `seed` and `runs` give the same inputs."""

    seconds: int | None = None
    runs: int | None = None
    seed: int | None = None

    def arguments(self) -> list[str]:
        """The limits as arguments of `engine`."""
        return [f"{name}={value}" for name, value in self._asdict().items() if value is not None]


class Outcome(NamedTuple):
    """The result for a target: its exit code, how many inputs it took, its last lines, and what it found."""

    code: int
    runs: int
    tail: str
    finding: Path | None = None


def fuzz(targets: Mapping[str, Limits], folder: Path, say: Say) -> dict[str, Outcome]:
    """Fuzz these targets, one after the other."""
    corpora, findings = folder / "corpus", folder / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    for target in targets:
        _write_seeds(target, corpora / target.rpartition(":")[2])
    before = set(findings.iterdir())
    limited = (",".join([target, *limits.arguments()]) for target, limits in targets.items())
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzzing.engine", str(corpora), str(findings), *limited],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    try:
        outcomes = _watch(list(targets), process, say)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the child of its target
        process.wait()
    for path in sorted(set(findings.iterdir()) - before):
        for target, outcome in outcomes.items():
            # Slow inputs that passed are told by libFuzzer as well; they are no findings.
            if path.name.startswith(f"{target.rpartition(':')[2]}-") and "-slow-unit-" not in path.name:
                outcomes[target] = outcome._replace(finding=path)
    return outcomes


def _write_seeds(target: str, corpus: Path) -> None:
    from tests.fuzzing.seeds import seeds

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number:02}").write_bytes(seed)


def _watch(targets: list[str], process: subprocess.Popen[str], say: Say) -> dict[str, Outcome]:
    """Return the outcome of each target when the process has ended; of what it did not come to, its own exit code."""
    outcomes: dict[str, Outcome] = {}
    runs, tail, reported = 0, [""], time.monotonic()
    assert process.stderr is not None
    for line in process.stderr:
        if end := _END.match(line):
            outcomes[end[1]] = Outcome(int(end[2]), runs, "".join(tail))
            runs, tail = 0, [""]
        elif progress := _PROGRESS.match(line):
            runs = int(progress[1])
            if time.monotonic() - reported >= _SECONDS_A_LINE:
                reported = time.monotonic()
                say(f"{targets[len(outcomes)]}: {runs} inputs")
        else:
            tail = [*tail[-_TAIL:], line]
    failed = Outcome(process.wait(), runs, "".join(tail))
    return {target: outcomes.get(target, failed) for target in targets}


def replay(target: str, file: Path) -> None:
    """Give a file to its target and measure memory; raises what is wrong."""
    from tests.fuzzing.contract import Measuring

    Measuring.memory = True
    engine.load(target)(file.read_bytes())


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from tests.fuzzing.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzzing", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--runs", type=int, help="inputs for each target, instead of seconds")
    parser.add_argument("--seed", type=int, help="of the dice; default: another one each time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of corpus and findings")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="give this file to the one TARGET")
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.targets if name not in TARGETS]
    if unknown or (parsed.replay and len(parsed.targets) != 1):
        parser.error(f"TARGET is of {', '.join(TARGETS)}; --replay takes one")
    parsed.targets = parsed.targets or list(TARGETS)
    return parsed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 nothing found, 1 a finding, 2 wrong usage."""
    parsed = _parsed(arguments)
    if parsed.replay:
        replay(parsed.targets[0], parsed.replay)
        _say(f"{parsed.targets[0]}: nothing wrong with {parsed.replay}")
        return 0
    if not engine.has_atheris():
        _say("atheris has no wheel for this Python: Hypothesis instead, which is not coverage-guided")
    limits = Limits(None if parsed.runs else parsed.seconds, parsed.runs, parsed.seed)
    code = 0
    for target in parsed.targets:
        outcome = fuzz({target: limits}, parsed.folder.resolve(), _say)[target]
        if outcome.code == 0:
            _say(f"{target}: {outcome.runs} inputs, nothing found")
            continue
        code = 1
        _say(outcome.tail)
        _say(f"{target}: FOUND by {outcome.finding}" if outcome.finding else f"{target}: the engine failed")
        if outcome.finding:
            _say(f"  again: {sys.executable} -m tests.fuzzing {target} --replay {outcome.finding}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
