"""Every command has ``--help``, and those that read settings list them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from consumer import commands
from consumer.settings import all_settings
from tests.end_to_end.processes import ROOT, bare_environment, command

PAGE = (ROOT / "docs" / "run.md").read_text("utf-8")
COMMANDS = {name: commands.command(name) for name in commands.main.commands}


def leaves() -> Iterator[tuple[str, ...]]:
    """Return the words of each command, those within groups included."""
    for name, found in COMMANDS.items():
        if isinstance(found, click.Group):
            yield from ((name, within) for within in found.commands)
        else:
            yield (name,)


def test_every_promised_command_is_there() -> None:
    """Every command that the table of docs/run.md names exists, and no other."""
    named = re.findall(r"^\| `pinstream ([\w-]+)", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)
    assert {path for path in leaves() if path[0] == "offsets"} == {("offsets", "show"), ("offsets", "set")}


def test_the_overview_names_every_command(tmp_path: Path) -> None:
    """It has the first sentence of each command's help, though no command is imported for it."""
    done = helped(folder=tmp_path)
    for name, found in COMMANDS.items():
        assert re.search(rf"^  {name} +[A-Z]", done.stdout, re.MULTILINE), name
        sentence = found.get_short_help_str(1000)
        assert sentence in " ".join(done.stdout.split())
        assert (commands.main.commands[name].get_short_help_str(1000), found.name) == (sentence, name)
    version = command("--version", env=bare_environment(tmp_path))
    assert re.fullmatch(r"pinstream, version \d+\.\d+\.\d+\n", version.stdout)


@pytest.mark.parametrize("path", list(leaves()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], tmp_path: Path) -> None:
    """The help has usage and options, needs no setting and writes no file; the table of docs/run.md has the command."""
    done = helped(*path, folder=tmp_path)
    assert done.stdout.startswith("Usage: ")
    assert "--debug" in done.stdout
    assert list(tmp_path.iterdir()) == []
    [row] = re.findall(rf"^\| `pinstream {path[0]}\b.*", PAGE, re.MULTILINE)
    assert all(f"{word}`" in row or f"{word} " in row for word in path)


def helped(*path: str, folder: Path) -> Result:
    """Return the help of a command, asked for in this process without any setting."""
    nothing = dict.fromkeys(os.environ) | bare_environment(folder)
    done = CliRunner(env=nothing).invoke(commands.main, [*path, "--help"])
    assert (done.exit_code, done.stderr) == (0, "")
    return done


@pytest.mark.parametrize("words", ["--help", "run --help", "--version"])
def test_help_on_a_full_disk(words: str, tmp_path: Path) -> None:
    """Is one line that says so, and no traceback."""
    line, env = [sys.executable, "-m", "consumer", *words.split()], bare_environment(tmp_path)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            line, env=env, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    [said] = done.stderr.splitlines()
    assert said.startswith("pinstream: ")


@pytest.mark.parametrize("words", ["--bogus", "bogus", "run --bogus", "produce"])
def test_wrong_usage_on_a_full_disk(words: str) -> None:
    """Has its own exit code, though its words cannot be written."""
    line = [sys.executable, "-m", "consumer", *words.split()]
    with open("/dev/full", "wb") as full:
        assert subprocess.run(line, cwd=ROOT, stderr=full, check=False).returncode == 2


def test_run_lists_every_setting(tmp_path: Path) -> None:
    """The help of `run` lists name, default and reason of every setting, from the one place that defines them."""
    done = helped("run", folder=tmp_path)
    text = "".join(done.stdout.split())  # lines may break at any hyphen
    for doc in all_settings():
        assert re.search(rf"^ +{re.escape(doc.name)}(\s|$)", done.stdout, re.MULTILINE), doc.name
        assert f"[{doc.default}]".replace(" ", "") in text
        assert "".join(doc.reason.split()) in text, doc.name
