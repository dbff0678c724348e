"""``--help``: every command has one, and those that go by settings list all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumer.settings import describe
from tests.end_to_end.processes import bare_environment, command

COMMANDS = ("run", "demo", "explain", "check", "produce", "sandbox")


def test_the_overview_names_every_command(tmp_path: Path) -> None:
    """``pinstream --help``, and no command at all: what there is, each with a line on what it does."""
    done = command("--help", env=bare_environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z]", done.stdout, re.MULTILINE), name
    version = command("--version", env=bare_environment(tmp_path))
    assert re.fullmatch(r"pinstream, version \d+\.\d+\.\d+\n", version.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, tmp_path: Path) -> None:
    """Usage and options; it needs no setting and touches nothing."""
    done = command(name, "--help", env=bare_environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert "--debug" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_run_lists_every_setting(tmp_path: Path) -> None:
    """Name, default and reason of each, from the one place that defines them."""
    done = command("run", "--help", env=bare_environment(tmp_path))
    text = " ".join(done.stdout.split())
    for doc in describe():
        assert re.search(rf"^ +{re.escape(doc.name)}(\s|$)", done.stdout, re.MULTILINE), doc.name
        assert f"[{doc.default}]" in text
        assert text.count(" ".join(doc.reason.split())) >= 1, doc.name
