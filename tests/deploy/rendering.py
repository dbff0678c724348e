"""The chart as `helm template` renders it, for the tests beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "pinstream"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
TARGET = Path(__file__).parent / "target"

OLDEST, NEWEST = "1.27.0", "1.37.0"
"""The oldest and newest versions of Kubernetes that the chart is rendered for and that there are schemas of."""

Manifest = dict[str, Any]


def helm() -> str:
    """The helm program. Without it the test is skipped, but fails in CI."""
    found = shutil.which("helm", path=str(TARGET)) or shutil.which("helm")
    if found is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("helm is not installed: make tests/deploy/target/.ready")
        pytest.skip("helm is not installed: make tests/deploy/target/.ready")
    return found


class Rendered(NamedTuple):
    """Everything that the chart makes of one set of values."""

    manifests: tuple[Manifest, ...]

    def kinds(self) -> list[str]:
        """The kinds of all manifests, sorted."""
        return sorted(one["kind"] for one in self.manifests)

    def one(self, kind: str, name: str = "pinstream") -> Manifest:
        """The only manifest of a kind with this name."""
        [found] = [one for one in self.manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        return found

    def workload(self) -> Manifest:
        """The StatefulSet or the Deployment."""
        [found] = [one for one in self.manifests if one["kind"] in ("StatefulSet", "Deployment")]
        return found

    def pod(self) -> Manifest:
        """The pod template."""
        pod: Manifest = self.workload()["spec"]["template"]["spec"]
        return pod

    def container(self) -> Manifest:
        """pinstream's container in the pod."""
        [container] = [one for one in self.pod()["containers"] if one["name"] == "pinstream"]
        return dict(container)

    def environment(self) -> dict[str, str]:
        """Its variables that are given as text."""
        return {one["name"]: one["value"] for one in self.container()["env"] if "value" in one}


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without this user's configuration."""
    return subprocess.run(
        [helm(), *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )


@cache
def template(
    example: str, *assignments: str, version: str = NEWEST, name: str = "pinstream"
) -> subprocess.CompletedProcess[str]:
    """`helm template` with an example's values, and with `path=JSON` assignments; the version may be left to helm."""
    values = [argument for one in assignments for argument in ("--set-json", one)]
    where = ["--namespace", "shop", "--values", str(EXAMPLES / f"{example}.yaml")]
    if version:
        where += ["--kube-version", version]
    return run_helm("template", name, str(CHART), *where, *values)


@cache
def rendered(example: str, *assignments: str, version: str = NEWEST, name: str = "pinstream") -> Rendered:
    """The rendered manifests; an error fails the test."""
    done = template(example, *assignments, version=version, name=name)
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(one for one in yaml.safe_load_all(done.stdout) if one))
