"""Completion in the shells that people use, as docs/run.md sets it up: real shells, asked as a person asks them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.terminal import OnTerminal

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "run.md").read_text("utf-8")
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
TYPED = {
    "pinstream dead": "dead-letters",  # the only command that begins so
    "pinstream explain --su": "--summary",  # an option of a command, though it is imported only now
    "pinstream dead-letters red": "redrive",  # a command below a command
    "pinstream explain ord": "orders-of-may.ndjson",  # a file, where a command takes one
}
"""What is typed before the key Tab, and what it becomes."""
CLEAR_LINE = "\x15"


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_typed_is_completed(shell: str, tmp_path: Path) -> None:
    """With the line that docs/run.md has for the shell, commands, options and files are completed."""
    if shutil.which(shell) is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"{shell} is not installed: .ci/run installs it")
        pytest.skip(f"{shell} is not installed")
    line = re.search(rf"^(.*{shell}_source pinstream.*?) +# {shell}:", PAGE, re.MULTILINE)
    assert line, f"docs/run.md has no line for {shell}"
    (tmp_path / "orders-of-may.ndjson").write_text("")
    # In this environment `pinstream` is a command, with nobody's settings.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    # zsh's own system of completion is set up by its configuration, which a test does not read.
    before = "autoload -U compinit && compinit -u; " if shell == "zsh" else ""
    # fish wants the terminal for its own, which setsid gives it; setsid itself becomes the shell.
    with OnTerminal(["setsid", "--ctty", *SHELLS[shell]], env=env, cwd=tmp_path) as terminal:
        terminal.type(f"{before}{line[1]}; echo re''ady\n")
        terminal.until("ready")
        for typed, wanted in TYPED.items():
            terminal.type(f"{CLEAR_LINE}{typed}\t")
            terminal.until(wanted)
