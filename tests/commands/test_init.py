"""``pinstream init`` lays down a project that works at once, and changes nothing that is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from consumer.commands.init import next_commands
from tests.end_to_end.processes import ROOT, bare_environment, command
from tests.support.shell import bash

EXAMPLE = ROOT / "examples" / "shop"


def content(folder: Path) -> dict[str, bytes]:
    """Each file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_its_three_commands_work_at_once(tmp_path: Path) -> None:
    """Its last three lines, entered in a shell, load the settings, test the mapping, and deliver the samples."""
    folder = tmp_path / "my shop"
    env = bare_environment(tmp_path)
    done = command("init", str(folder), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert content(folder) == content(EXAMPLE)
    assert f"{folder} has {len(content(EXAMPLE))} files now" in done.stdout
    lines = done.stdout.splitlines()[-3:]
    assert [line[:2] for line in lines] == ["  "] * 3
    ran = bash("\n".join([*lines[:2], f"{lines[2]} --json"]), tmp_path)
    assert ran.returncode == 0, ran.stderr
    first, *_, last = ran.stdout.splitlines()
    assert first == "9 of 9 records agree with expected.ndjson."
    ledger = json.loads(last)["ledger"]
    assert (ledger["read"], ledger["delivered"], ledger["filtered"], ledger["open"]) == (8, 4, 3, 0)


@pytest.mark.parametrize("taken", ["folder", "file", "below a file"])
def test_what_is_there_is_left_alone(taken: str, tmp_path: Path) -> None:
    """A folder that has something in it, a file of that name, a folder that cannot be made: one line that says so."""
    there = tmp_path / "shop"
    if taken == "folder":
        there.mkdir()
    (there / "mapping.toml" if taken == "folder" else there).write_text("mine")
    before = content(tmp_path)
    named = there / "shop" if taken == "below a file" else there
    done = command("init", str(named), env=bare_environment(tmp_path))
    said = {
        "below a file": (1, f"{named} cannot be written (Not a directory); name another folder"),
    }.get(taken, (2, f"{named} is not an empty folder; name a new one"))
    assert (done.returncode, done.stderr) == (said[0], f"pinstream: {said[1]}\n")
    assert (done.stdout, content(tmp_path)) == ("", before)


@pytest.mark.parametrize(
    ("environ", "program"),
    [
        ({"UV": "/usr/bin/uv", "PATH": "{folder}"}, "uvx pinstream"),
        ({"UV": "/usr/bin/uv", "VIRTUAL_ENV": "/srv/other", "PATH": "{folder}"}, "uvx pinstream"),
        ({"UV": "/usr/bin/uv", "VIRTUAL_ENV": "{folder}", "PATH": "{folder}"}, "uv run pinstream"),
        ({"PATH": "{folder}"}, "pinstream"),
        ({"PATH": ""}, f"{sys.executable} -m consumer"),
    ],
)
def test_the_commands_call_pinstream_as_it_can_be_called(
    environ: dict[str, str], program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `uvx`, `uv run` or `pipx run` there is none on the path, nor if an environment is not activated."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "pinstream").touch(0o755)
    environ = {name: text.format(folder=tmp_path) for name, text in environ.items()}
    first, *others = next_commands(Path("shop"), environ)
    assert first == "cd shop && set -a && . ./pinstream.env && set +a"
    assert next_commands(Path(), environ)[0] == "set -a && . ./pinstream.env && set +a"
    assert [line.partition(" explain ")[0].partition(" demo ")[0] for line in others] == [program] * 2
    (tmp_path / "pipx_metadata.json").touch()
    again = next_commands(Path("shop"), environ)[2]
    assert again.startswith("pipx run pinstream " if program.endswith("-m consumer") else f"{program} ")
