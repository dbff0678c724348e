"""examples/shop: the workflow and the commands of its README do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.processes import ROOT, bare_environment

EXAMPLE = ROOT / "examples" / "shop"
WORKFLOW: dict[str, Any] = yaml.safe_load(
    (EXAMPLE / ".github" / "workflows" / "mapping.yml").read_text("utf-8")
)
JOB = WORKFLOW["jobs"]["expect"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "shop"))


def bash(script: str, project: Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run a script as GitHub Actions does: with bash that stops at the first failure, and with pinstream installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=project, text=True, timeout=120,
        env={**bare_environment(project), **env, "PATH": path}, capture_output=True, check=False,
    )  # fmt: skip


def test_the_workflow_passes_and_notices_a_change(project: Path) -> None:
    """The workflow's last step passes; with another mapping it ends with exit code 1 and a line that says what
    differs."""
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
    """The commands of the README work in order in one shell, and make the expectations that are in the project. (The
    last is the demo, which tests/commands/test_init.py runs.)"""
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 4
    done = bash("\n".join(blocks[:3]), project)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / "expected.ndjson").read_bytes() == (EXAMPLE / "expected.ndjson").read_bytes()
