"""examples/shop: the workflow and the commands of its README do what they say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.processes import ROOT
from tests.support.shell import bash

EXAMPLE = ROOT / "examples" / "shop"
WORKFLOW: dict[str, Any] = yaml.safe_load(
    (EXAMPLE / ".github" / "workflows" / "mapping.yml").read_text("utf-8")
)
JOB = WORKFLOW["jobs"]["expect"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "shop"))


def test_the_workflow_passes_and_notices_a_change(project: Path) -> None:
    """With another mapping its last step ends with exit code 1 and a line that says what differs."""
    [script] = [step["run"] for step in JOB["steps"] if step.get("name") == "expect"]
    done = bash(script, project)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "9 of 9 records agree with expected.ndjson.\n"
    mapping = project / "mapping.toml"
    mapping.write_text(
        mapping.read_text("utf-8").replace('"order.lines[].unit_price"', '"order.lines[].pieces"')
    )
    done = bash(script, project)
    assert done.returncode == 1
    assert 'record 1: payload.custom_data.contents[0].item_price: expected "29.95", got "2"\n' in done.stdout
    assert done.stdout.endswith("6 of 9 records agree with expected.ndjson.\n")


def test_the_readme_s_commands_work(project: Path) -> None:
    """In order in one shell (the last is the demo: test_init.py); they make the expectations of the project."""
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    done = bash("\n".join(blocks[:3]), project)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "expected.ndjson").read_bytes() == (EXAMPLE / "expected.ndjson").read_bytes()
