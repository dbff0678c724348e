"""Seeded worlds in which every invariant must hold; `make simulate SEEDS=10000` runs more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.model import Policy, Record
from consumer.engine.reading import Columns, TwoSteps
from tests.simulation.avro_records import CANONICAL
from tests.simulation.knobs import DESTINATION, Incidents, Rates, draw
from tests.simulation.records import BROKEN, LATE, MISSING, RecordKind, Spec
from tests.simulation.runs import digest_of, first_failure
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
_FAULTLESS: dict[str, Any] = {
    "rates": Rates(), "incidents": Incidents(), "grace": 60.0, "window": 1e6,
}  # fmt: skip

_MORE = pytest.mark.slow("a long simulation")


def _and_more(few: int, further: range) -> list[Any]:
    """Return the number that `make test` takes, and those of `make test-all`."""
    return [few, *(pytest.param(one, marks=_MORE) for one in further)]


@pytest.mark.parametrize("first", _and_more(0, range(50, 500, 50)))
def test_every_invariant_holds_in_every_world(first: int) -> None:
    """Whatever goes wrong, nothing is lost or committed too early, and nothing is sent again without an excuse."""
    failure = first_failure(range(first, first + 50))
    assert failure is None, f"{failure}; replay: python -m tests.simulation --seed {failure.seed}"


@pytest.mark.parametrize("first", _and_more(0, range(50, 200, 50)))
def test_every_invariant_holds_where_real_bytes_are_read(first: int) -> None:
    """The same with Avro that the product's decoder and converter read, in two steps and on the fast path."""
    failure = first_failure(range(first, first + 50), reading="both")
    replay = "python -m tests.simulation --reading both --seed"
    assert failure is None, f"{failure}; replay: {replay} {failure.seed}"


@pytest.mark.parametrize("first", _and_more(0, range(6, 24, 6)))
def test_the_fast_path_gives_the_same_commands_as_the_two_steps(first: int) -> None:
    """Whatever happens in a world, both readings give the same commands, byte by byte."""
    fast, two_steps, both = (
        [digest_of(seed, reading) for seed in range(first, first + 6)]
        for reading in ("fast", "two-steps", "both")
    )
    assert fast == two_steps == both
    assert len(set(fast)) == 6


def test_worlds_of_real_bytes_take_the_fast_path_and_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast path reads most records, with every writer's schema; and records of every kind that it must
    leave to the two steps occur."""
    asked: Counter[str] = Counter()
    read = TwoSteps.read

    def left(
        self: TwoSteps, records: Sequence[Record | None], now: float, columns: Columns, *place: Any
    ) -> None:
        first = len(columns)
        read(self, records, now, columns, *place)
        for row in range(first, len(columns)):
            asked[type(columns.verdicts.get(row)).__name__] += 1

    monkeypatch.setattr(TwoSteps, "read", left)
    worlds = [World(draw(seed, odd=0.3, late_schemas=0.2, reading="fast")) for seed in range(8)]
    for world in worlds:
        world.run()
    specs = [spec for world in worlds for spec in world.specs]
    assert {(spec.kind, spec.ref) for spec in specs} >= {
        *(
            (kind, None)
            for kind in RecordKind
            if kind not in (RecordKind.NO_SCHEMA, RecordKind.BROKEN_SCHEMA)
        ),
        *((RecordKind.GOOD, ref) for ref in LATE),
        (RecordKind.NO_SCHEMA, MISSING),
        (RecordKind.BROKEN_SCHEMA, BROKEN),
    }
    assert asked.keys() == {"Rejection", "SchemaRef"}, "whatever becomes an event does so on the fast path"


@pytest.mark.parametrize("first", _and_more(0, range(10, 40, 10)))
@pytest.mark.parametrize("reading", CANONICAL)
def test_without_errors_every_event_is_accepted_exactly_once(reading: str, first: int) -> None:
    """Graceful rebalances and restarts alone never send an event twice."""
    for seed in range(first, first + 10):
        world = World(draw(seed, rebalances=4, restarts=2, reading=reading, **_FAULTLESS))
        assert world.knobs.graceful
        world.run()


@pytest.mark.parametrize("first", _and_more(0, range(10, 40, 10)))
@pytest.mark.parametrize("reading", CANONICAL)
def test_without_errors_the_ledger_reports_what_truly_became_of_the_records(reading: str, first: int) -> None:
    """One undisturbed process: its counts of delivered, duplicate, filtered and dead-lettered records are exact."""
    alone: dict[str, Any] = {"rebalances": 0, "restarts": 0, "members": 1, "guarded": False}
    for seed in range(first, first + 10):
        world = World(draw(seed, reading=reading, **alone, **_FAULTLESS))
        assert world.knobs.undisturbed
        world.run()


@_MORE
def test_the_worlds_hold_the_errors_they_promise() -> None:
    """A simulation in which nothing happens proves nothing: every input and command occurs, and so does every
    incident."""
    seen: Counter[str] = Counter()

    def check(_: float, __: str, happened: Any, commands: Sequence[Any]) -> None:
        seen[type(happened).__name__] += 1
        for command in commands:
            seen[type(command).__name__] += 1
            if isinstance(command, messages.Report):
                seen[command.event + ("" if command.fields.get("in_time", 1) else " late")] += 1

    # That a process reads by the registry's earlier answer, which is another one by then, is a coincidence.
    often: dict[str, Any] = {"rates": Rates(registry_fails=0.6), "late_schemas": 0.3, "restarts": 3}
    kinds = (*messages.Input.__args__, *messages.Command.__args__)
    incidents = (
        "partitions_lost",
        "partitions_released late",
        "drained late",
        "position_went_back",
        "halted",
        "away",
        "unreachable",
        "reachable",
        "commit_metadata_ignored",
        "topic_made_anew",
        "dead_letter_guard",
        "schema_missing",
        "schema_from_disk",
        "schema_changed",
        "clock_off",
        "clock_jumped",
        "claimed_again",
    )
    promised = {*(kind.__name__ for kind in kinds), *incidents}
    crashes = 0
    for knobs in chain((draw(seed, **often) for seed in range(40)), (draw(seed) for seed in range(240))):
        world = World(knobs, check)
        world.run()
        crashes += world.crashes
        if promised <= seen.keys() and crashes > 20:
            return
    raise AssertionError(f"{crashes} crashes, and never: {promised - seen.keys()}")


def test_the_same_seed_gives_the_same_commands_in_another_process() -> None:
    """Nothing depends on the order of hashes, on addresses or on the clock."""
    code = "from tests.simulation.runs import digest_of; print(*(digest_of(seed) for seed in range(8)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True, capture_output=True, timeout=240,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 8


def test_the_command_line_names_the_first_failing_seed_and_how_to_replay_it() -> None:
    """With a bug in the engine it exits with 1; the replay that it names exits with 1 too, and prints the history."""
    command = [sys.executable, "-m", "tests.simulation"]
    bug = ["--mutation", "commits_the_highest_seen"]
    run = subprocess.run(
        [*command, "--seeds", "30", "--jobs", "1", *bug],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 1
    assert "nothing open is committed past" in run.stdout
    replay = run.stdout.strip().splitlines()[-1].split("python -m tests.simulation ")[1]
    again = subprocess.run([*command, *replay.split()], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert again.returncode == 1
    assert "-> Commit" in again.stdout or "-> Release" in again.stdout
    assert "nothing open is committed past" in again.stdout


def test_the_command_line_exits_0_when_all_holds() -> None:
    """It says how much was tried."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "8", "--jobs", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0
    assert [line.split(",")[0].split(": ")[:2] for line in run.stdout.splitlines()] == [
        [reading, "8 seeds held every invariant"] for reading in CANONICAL
    ]


def test_a_refused_account_does_not_hold_up_the_others() -> None:
    """While account 1 is refused (403), events of account 2 go on (docs/why.md: rudder-server #4953)."""
    policy = Policy(linger=0.05, max_open_events=500, destination=DESTINATION)
    sizes = {"members": 1, "partitions": 4, "accounts": 2, "records": 150, "arrival": 30.0, "quiet_at": 90.0}
    rest = {"rebalances": 0, "restarts": 0, "odd": 0.0, "bad": 0.0, "duplicates": 0.0, "late_schemas": 0.0}
    world = World(draw(1, policy=policy, latency=0.05, **_FAULTLESS, **sizes, **rest))
    world.put_out_of_order("account 1", 2.0, 80.0)
    accepted: list[tuple[str, float]] = []
    accept = world.truth.accept

    def note(spec: Spec) -> None:
        accepted.append((spec.account, world.now - world.base))
        accept(spec)

    world.truth.accept = note  # type: ignore[method-assign]
    world.run()
    others = [at for account, at in accepted if account == "2"]
    assert len(others) > 30
    assert max(others) < 40
