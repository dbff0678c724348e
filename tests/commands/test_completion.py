"""Completion in the shells that people use, as docs/run.md sets it up: real shells, asked as a person asks them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "run.md").read_text("utf-8")
SHELLS = ("bash", "zsh", "fish")
BOUND = 60.0


def line_for(shell: str) -> str:
    """The line that docs/run.md has for this shell, without the file that it goes into."""
    found = re.search(rf"^(.*{shell}_source pinstream.*?) +# {shell}:", PAGE, re.MULTILINE)
    assert found, f"docs/run.md has no line for {shell}"
    return found[1]


def environment(home: Path) -> dict[str, str]:
    """An environment in which `pinstream` is a command, with nobody's settings."""
    scripts = Path(sys.executable).parent
    return {"PATH": f"{scripts}:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


@contextmanager
def terminal(command: list[str], env: dict[str, str], folder: Path) -> Iterator[int]:
    """A shell on a terminal of its own; yields the file descriptor of the other side."""
    screen, side = pty.openpty()
    # fish wants the terminal for its own, which setsid gives it; setsid itself becomes the shell.
    shell = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=side, stdout=side, stderr=side, env=env, cwd=folder
    )
    os.close(side)
    try:
        yield screen
    finally:
        shell.kill()
        shell.wait()
        os.close(screen)


def read_until(screen: int, wanted: str) -> str:
    """What the shell shows until it has shown this."""
    shown, end = "", time.monotonic() + BOUND
    while wanted not in shown:
        assert time.monotonic() < end, f"{wanted!r} was never shown, only: {shown!r}"
        if select.select([screen], [], [], 1.0)[0]:
            try:
                shown += os.read(screen, 65536).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"the shell ended before {wanted!r}: {shown!r}")
    return shown


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Each of the shells that is installed; CI has them all."""
    name: str = request.param
    if shutil.which(name) is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{name} is not installed: .ci/run installs it")
        pytest.skip(f"{name} is not installed")
    return name


def completed(shell: str, typed: str, wanted: str, folder: Path) -> str:
    """What a shell shows until `wanted`, after the page's line, once this was typed and the key Tab pressed."""
    start = {
        "bash": ["bash", "--norc", "--noprofile", "-i"],
        "zsh": ["zsh", "-f", "-i"],
        "fish": ["fish", "--no-config", "-i"],
    }[shell]
    # zsh's own system of completion is set up by its configuration, which a test does not read.
    before = "autoload -U compinit && compinit -u; " if shell == "zsh" else ""
    with terminal(start, environment(folder), folder) as screen:
        os.write(screen, f"{before}{line_for(shell)}; echo re''ady\n".encode())
        read_until(screen, "ready")
        os.write(screen, f"{typed}\t".encode())
        return read_until(screen, wanted)


def test_a_command_is_completed(shell: str, tmp_path: Path) -> None:
    """Of `pinstream dead` the only command that begins so is left."""
    assert "pinstream dead-letters" in completed(shell, "pinstream dead", "dead-letters", tmp_path)


def test_an_option_of_a_command_is_completed(shell: str, tmp_path: Path) -> None:
    """A command's own options are known, though it is imported only now."""
    assert "--summary" in completed(shell, "pinstream explain --su", "--summary", tmp_path)


def test_a_command_of_a_group_is_completed(shell: str, tmp_path: Path) -> None:
    """The commands below a command are known."""
    assert "redrive" in completed(shell, "pinstream dead-letters red", "redrive", tmp_path)


def test_a_file_is_completed(shell: str, tmp_path: Path) -> None:
    """Where a command takes a file, files are offered."""
    (tmp_path / "orders-of-may.ndjson").write_text("")
    shown = completed(shell, "pinstream explain ord", "orders-of-may.ndjson", tmp_path)
    assert "orders-of-may.ndjson" in shown
