"""What docs/first-event.md tells a newcomer to do, done in an empty folder: each step ends as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.shell import bash

PAGE = (Path(__file__).parents[2] / "docs" / "first-event.md").read_text("utf-8")
BLOCK = re.compile(r"^In `([^`]+)`.*?^```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
SETTING = re.compile(r"In `pinstream\.env` name it: `((\w+)=.+?)`")
SHELL: list[str] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
BEGIN, EXPLAIN, DELIVER, KEEP = SHELL
LEDGER = re.compile(r"^(?:sandbox: )?(\w+) +([\d.,]+)$", re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project that `init` has laid down, changed as steps 2 to 4 say."""
    init, enter, *_ = BEGIN.splitlines()
    assert bash(init, tmp_path).returncode == 0
    folder = tmp_path / enter.removeprefix("cd ")
    files = dict(BLOCK.findall(PAGE))
    assert files.keys() == {"schemas/order.avsc", "mapping.toml", "samples.ndjson"}
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    [(line, name)] = SETTING.findall(PAGE)
    settings = folder / "pinstream.env"
    changed, times = re.subn(rf"^{name}=.*$", line, settings.read_text("utf-8"), flags=re.MULTILINE)
    assert times == 1
    settings.write_text(changed, "utf-8")
    return folder


def test_one_is_explained_and_kept(project: Path) -> None:
    """The fourth step shows the payload; what the sixth one writes is what the workflow compares with."""
    done = bash(EXPLAIN, project)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["outcome"] == "deliverable"
    assert shown["payload"]["custom_data"] == {"currency": "EUR", "value": "59.9"}
    assert re.fullmatch(r"[0-9a-f]{64}", shown["payload"]["user_data"]["em"][0])
    settings, explain = EXPLAIN.splitlines()
    kept = bash(f"{settings}\n{KEEP}{explain} --expect expected.ndjson", project)
    assert kept.stdout == "1 of 1 records agree with expected.ndjson.\n", kept.stderr
    mapping = project / "mapping.toml"
    mapping.write_text(mapping.read_text().replace('"email"', '"mail"'))
    wrong = bash(EXPLAIN, project)
    assert wrong.returncode == 2
    assert "'mail' is not in the schema; the nearest that is: 'email'" in wrong.stderr


def test_one_is_delivered(project: Path) -> None:
    """The fifth step ends with the ledger that the page names; what it says of more lines is so, too."""
    deliver = f"{EXPLAIN.splitlines()[0]}\n{DELIVER}"
    done = bash(deliver, project)
    assert done.returncode == 0, done.stderr
    ledger = dict(LEDGER.findall(done.stdout))
    assert (ledger["delivered"], ledger["open"], ledger["value_sum"]) == ("1", "0", "59.9")
    samples = project / "samples.ndjson"
    line = samples.read_text()
    bad = line.replace("o-1001", "o-1002").replace("59.90", "-1")
    assert ": -1}" in bad
    samples.write_text(line * 3 + bad)
    ledger = dict(LEDGER.findall(bash(deliver, project).stdout))
    assert (ledger["delivered"], ledger["duplicate"], ledger["dead_lettered"]) == ("1", "2", "1")
