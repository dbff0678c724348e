"""A shell in which commands of a page or a workflow are entered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.processes import WITHIN, bare_environment


def bash(script: str, folder: Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run a script with bash that stops at the first failure, as GitHub Actions does; with pinstream, no settings."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    env = {**bare_environment(folder), "COLUMNS": "120", **env, "PATH": path}
    return subprocess.run(
        line, cwd=folder, env=env, capture_output=True, text=True, timeout=2 * WITHIN, check=False
    )
