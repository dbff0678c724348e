"""An upgrade from version 0.1, and the way back, while events flow: nothing is lost, and nothing is sent twice.

0.1 is the version before the key store of our own, the shared one, and the ids in what is committed. It cannot read
which records above a committed offset are settled, so it may write dead letters twice (docs/upgrading.md).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.group.members import COOPERATIVE, until_each_delivers
from tests.end_to_end.group.rollouts import SLOW_CALLS, STATIC, RollingOut
from tests.end_to_end.processes import ROOT, THIS, RunningProgram, wait_for

pytestmark = [
    pytest.mark.real_kafka,
    pytest.mark.timeout(600),
    pytest.mark.slow("installs version 0.1 and upgrades from it"),
]

BEFORE = "9a0b39f2aff9d70022d3d25e61755dd6293129c9"
"""The commit of version 0.1."""
_INSTALL_SECONDS = 280.0
_FETCH_SECONDS = 120.0
IN_CI = os.environ.get("CI", "").lower() == "true"
PARTITIONS = 2


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> RunningProgram:
    """Version 0.1 with the versions of its dependencies that it names."""
    folder = tmp_path_factory.mktemp("version-0.1")
    with tarfile.open(fileobj=io.BytesIO(_source())) as archive:
        archive.extractall(folder, filter="data")
    python = str(folder / ".venv" / "bin" / "python")
    dependencies = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    # It is not built: that takes longer than the tests of it, and its plain Python does the same as what is compiled.
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-compile"]
    for command in (
        [sys.executable, "-m", "venv", ".venv"],
        [*pip, "--constraint", "constraints.txt", *dependencies],
    ):
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return RunningProgram(python, folder)


def _source(repository: Path = ROOT, *, in_ci: bool = IN_CI) -> bytes:
    """All files of that commit as a tar archive.

    A clone may have left it out (``--depth``). In CI it is fetched then, or the test fails; elsewhere it is skipped.
    """
    made = _git(repository, "archive", BEFORE)
    if made.returncode != 0 and in_ci:
        fetched = _git(repository, "fetch", "--quiet", "--unshallow")
        made = _git(repository, "archive", BEFORE)
        if made.returncode != 0:
            said = f"{fetched.stderr.decode()}{made.stderr.decode()}"
            pytest.fail(f"CI needs the history with {BEFORE:.7}, to upgrade from it: {said}", pytrace=False)
    if made.returncode != 0:
        pytest.skip(f"needs the history of this repository, with {BEFORE:.7} (git fetch --unshallow)")
    return made.stdout


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # Another user's clone is trusted as far as its tests are, which run already.
    command = ["git", "-c", f"safe.directory={repository}", *arguments]
    try:
        return subprocess.run(
            command, cwd=repository, capture_output=True, timeout=_FETCH_SECONDS, check=False
        )
    except FileNotFoundError:
        if IN_CI:
            raise
        pytest.skip("git is not installed")


def test_a_stateful_set_is_upgraded_and_goes_back(rollout: RollingOut, earlier: RunningProgram) -> None:
    """Each version refuses the other's key stores until they are moved away."""
    with rollout(COOPERATIVE, partitions=PARTITIONS) as scene:
        members = [scene.start(number, earlier) for number in range(PARTITIONS)]
        scene.group.until_divided(*members)
        until_each_delivers(*members)

        def replace(program: RunningProgram, says: str) -> None:
            """Replace one member after the other; each refuses the key store of the one before."""
            for number in reversed(range(PARTITIONS)):
                scene.end(members[number])
                refused = scene.start(number, program)
                assert refused.wait() == 1
                assert says in refused.stderr
                state = scene.group.folder_of(STATIC.format(number)) / "state"
                (state / "keys").rename(state / f"keys.{len(list(state.iterdir()))}")
                members[number] = scene.start(number, program)
                until_each_delivers(members[number])
            scene.group.until_moving()

        with scene.timed(f"StatefulSet of {PARTITIONS}, upgraded from 0.1"):
            replace(THIS, "another version of pinstream: go on with that version, or move this folder away")
        with scene.timed(f"StatefulSet of {PARTITIONS}, back to 0.1"):
            replace(earlier, "key store")
        scene.finish(*members, letters_again=True)


def test_members_of_both_versions_share_a_group(
    rollout: RollingOut, api: Api, earlier: RunningProgram
) -> None:
    """A new member joins an old one and takes over, while calls fail; then an old one joins and takes over."""
    with rollout(COOPERATIVE, partitions=PARTITIONS, failing=0.1) as scene:
        group = scene.group
        (old,) = group.join(1, earlier)
        group.until_divided(old)
        until_each_delivers(old)
        with scene.timed("a new member joins one of 0.1 and takes over"):
            (new,) = group.join(1)
            scene.until_ready(new)
            group.until_divided(old, new)
            until_each_delivers(old, new)
            scene.end(old)
            group.until_divided(new)
            group.until_moving()
        # From here on no call fails, since 0.1 would send again what was delivered above one that is tried again. So
        # all that was read before has to be settled first.
        api.set_faults(**SLOW_CALLS)
        read = {one["partition"]: one["position"] for one in new.status()["partitions"]}
        wait_for(
            lambda: all(offset >= read[number] for number, offset in enumerate(group.committed())),
            "the end of retries",
        )
        with scene.timed("a member of 0.1 joins a new one and takes over"):
            (old,) = group.join(1, earlier)
            group.until_divided(old, new)
            until_each_delivers(old, new)
            scene.end(new)
            group.until_divided(old)
            group.until_moving()
        scene.finish(old, letters_again=True)
