"""The rule for commit messages, as the hook of pre-commit and CI hold it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = Path(".ci/check_commits.py")
LONG = f"Add {'x' * 69}"


def read(tmp_path: Path, message: str) -> tuple[int, str]:
    """What the hook says of a message: its exit status and its complaint."""
    file = tmp_path / "COMMIT_EDITMSG"
    file.write_text(message)
    command = [sys.executable, str(ROOT / SCRIPT), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "message",
    [
        "Add a test",
        f"Add {'x' * 68}",
        "Warn, and go on",
        "Pass on the claim\n\nA body says why, in lines as long as they\nneed to be.\n",
        "Feed the guard\n# Please enter the commit message\n# for your changes.\n",
        f"Embed it\n\nWhy.\n# ------------------------ >8 ------------------------\n{'-' * 90}\n",
        "# a comment first\n\nAdd a test\n",
        f"Merge branch '{'x' * 80}'",
        f'Revert "{LONG[:70]}"\n\nThis reverts commit 1.',
        f"fixup! {LONG}",
    ],
)
def test_a_good_message_passes(tmp_path: Path, message: str) -> None:
    """Also what git writes itself, and with the comments that git omits."""
    assert read(tmp_path, message) == (0, "")


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (LONG, "the subject has 73 characters"),
        (f"Merge the {'x' * 80}", "the subject has 90 characters"),
        *(
            (subject, "plain verb")
            for subject in ("Added it", "Adds it", "Adding it", "add it", "feat: add it")
        ),
        *((subject, "plain verb") for subject in ("The guard", "New figures", "WIP", "", "Docs: say it")),
        ("Add it.", "ends with a point"),
        ("Add it\nand more", "leave the line after the subject empty"),
    ],
)
def test_any_other_message_is_refused(tmp_path: Path, message: str, wrong: str) -> None:
    """The complaint names the message and what to do."""
    status, said = read(tmp_path, message)
    assert status == 1
    assert said.startswith(repr(message.partition("\n")[0]))
    assert wrong in said


class Clone:
    """A repository whose oldest commits have long subjects, and to which the rule was added later."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        for number in range(3):
            self.commit(f"{LONG} {number}")
        (root / ".ci").mkdir()
        shutil.copy(ROOT / SCRIPT, root / SCRIPT)
        self.git("add", ".")
        self.commit("Add the rule")

    def git(self, *arguments: str) -> None:
        """Run git here, whatever the settings of the user are."""
        who = {
            f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True, timeout=60)

    def commit(self, message: str) -> None:
        """Commit what was added, or nothing."""
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def check(self, root: Path | None = None) -> tuple[int, str, str]:
        """What CI's step says here, or in a clone of this: exit status, report, complaints."""
        command = [sys.executable, str((root or self.root) / SCRIPT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout.strip(), done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A repository with the rule."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return Clone(tmp_path / "origin")


def test_only_what_is_newer_than_the_rule_is_checked(clone: Clone) -> None:
    """Older subjects stay as long as they are; a new one that is too long is named, a merge is git's own."""
    assert clone.check() == (0, "commits newer than this rule: 0", "")
    clone.commit("Add one more")
    clone.git("checkout", "--quiet", "-b", "side")
    clone.commit("Fix it")
    clone.git("checkout", "--quiet", "main")
    clone.git("merge", "--quiet", "--no-ff", "--message", f"Merge {LONG}", "side")
    assert clone.check() == (0, "commits newer than this rule: 2", "")
    clone.commit(LONG)
    clone.commit("fixup! Fix it")
    status, report, complaints = clone.check()
    assert (status, report) == (1, "commits newer than this rule: 4")
    assert LONG in complaints
    assert "'fixup! Fix it'" in complaints
    assert len(complaints.splitlines()) == 2


@pytest.mark.parametrize(("depth", "checked"), [(1, 1), (2, 2), (3, 3), (4, 3), (9, 2)])
def test_a_shallow_clone_of_one_branch_is_checked_as_far_as_it_goes(
    clone: Clone, tmp_path: Path, depth: int, checked: int
) -> None:
    """No commit that is older than the rule fails it, however much of the history is there."""
    clone.commit("Add one more")
    clone.commit("Add another")
    where = f"file://{clone.root}"
    clone.git("clone", "--quiet", f"--depth={depth}", "--single-branch", where, str(tmp_path / "shallow"))
    assert clone.check(tmp_path / "shallow") == (0, f"commits newer than this rule: {checked}", "")
    clone.commit(LONG)
    clone.git("clone", "--quiet", f"--depth={depth}", "--single-branch", where, str(tmp_path / "later"))
    assert clone.check(tmp_path / "later")[0] == 1


def test_without_a_history_nothing_is_checked(tmp_path: Path) -> None:
    """In an unpacked source package the step passes, and says why."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / SCRIPT, tmp_path / SCRIPT)
    command = [sys.executable, str(tmp_path / SCRIPT)]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert done.stdout == "no history of git here: no commit is checked\n"


def test_pre_commit_and_ci_call_it() -> None:
    """`pre-commit install` sets up both of its stages; CI has a step."""
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    [hooks] = [each["hooks"] for each in settings["repos"]]
    assert {hook["entry"]: hook["stages"] for hook in hooks} == {
        "make check": ["pre-commit"],
        str(SCRIPT): ["commit-msg"],
    }
    assert settings["default_install_hook_types"] == ["pre-commit", "commit-msg"]
    assert os.access(ROOT / SCRIPT, os.X_OK)
    assert f"step commits {SCRIPT} ||" in (ROOT / ".ci/run").read_text("utf-8")
