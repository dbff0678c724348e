"""The workflows under .github/: two programs find nothing to say, actions are pinned, addresses stand in one place.

No workflow has run yet: nobody has an account here. What is proven is their form.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
EXAMPLE = ROOT / "examples" / "shop" / ".github" / "workflows" / "mapping.yml"
NAMES = {"docs", "locks", "nightly", "release", "test", "wheels"}
ACTIONLINT = ROOT / "tests" / "deploy" / "target" / "actionlint"
NOT_PINNED = "NOT PINNED"
"""What stands beside an action or an image whose commit or digest could not be seen when the line was written."""


def parsed(path: Path) -> dict[Any, Any]:
    """A workflow. YAML 1.1 reads its key `on` as true."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program over the repository."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_all_are_there() -> None:
    """All that CONTRIBUTING.md speaks of; each says that it was not tried, as long as that is so."""
    assert {path.stem for path in WORKFLOWS} == NAMES
    for path in WORKFLOWS:
        head = path.read_text("utf-8").partition("name:")[0]
        assert re.search(r"Not tried (on GitHub )?yet", " ".join(head.replace("#", " ").split())), path.name


def test_actionlint_finds_nothing() -> None:
    """Keys, expressions, inputs of known actions, and shell scripts (where shellcheck is installed) are right."""
    program = shutil.which("actionlint") or (str(ACTIONLINT) if ACTIONLINT.exists() else None)
    if program is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("actionlint is not installed: make tests/deploy/target/.ready")
        pytest.skip("actionlint is not installed: make tests/deploy/target/.ready")
    found = run(program, *map(str, (*WORKFLOWS, EXAMPLE)))
    assert found.returncode == 0, found.stdout


def test_zizmor_finds_nothing() -> None:
    """No credential is left behind, no text of strangers is run, no right is given that is not needed."""
    found = run(
        *(str(Path(sys.executable).parent / "zizmor"), "--offline", "--quiet", "--no-progress"),
        *(".github", "examples/shop/.github"),
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", [*WORKFLOWS, EXAMPLE], ids=lambda path: path.stem)
def test_actions_are_pinned(path: Path) -> None:
    """Each action of others is named by a commit, with its tag beside it; the others say that they are not."""
    for line in path.read_text("utf-8").splitlines():
        if found := re.match(r"\s*(?:- )?(?:uses|image): (\S+)(?:\s+# (.+))?$", line):
            what, beside = found[1], found[2] or ""
            pinned = re.search(r"@[0-9a-f]{40}$", what) and re.fullmatch(r"v\d+\.\d+\.\d+", beside)
            assert what.startswith("./") or pinned or NOT_PINNED in beside, line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_may_do_what_it_needs(path: Path) -> None:
    """A workflow as a whole may do nothing; each job has rights, a time limit and a known machine."""
    workflow = parsed(path)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"], name
        if "uses" not in job:
            assert 0 < job["timeout-minutes"] <= 90, name
            assert "latest" not in job["runs-on"], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_they_call_is_there(path: Path) -> None:
    """Each script that a step runs is in the repository, and each target is the Makefile's."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for job in parsed(path)["jobs"].values():
        for step in job.get("steps", ()):
            for target in re.findall(r"^\s*make ([a-z/.]+)", step.get("run", ""), re.MULTILINE):
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
            for script in re.findall(r"(?<!\S)(\.ci/\S+)", step.get("run", "")):
                assert os.access(ROOT / script, os.X_OK), script


def test_what_a_release_takes_is_made() -> None:
    """Each artifact that the release downloads is one that the wheels' workflow uploads."""
    made, taken = (
        {step["with"][key] for step in steps if name in step.get("uses", "")}
        for name, key, steps in (
            (
                "upload-artifact",
                "name",
                parsed(FOLDER / "workflows" / "wheels.yml")["jobs"]["wheel"]["steps"],
            ),
            (
                "download-artifact",
                "pattern",
                parsed(FOLDER / "workflows" / "release.yml")["jobs"]["release"]["steps"],
            ),
        )
    )
    [pattern] = taken
    assert {name.partition("$")[0] for name in made} == set(pattern.strip("{}").replace("*", "").split(","))


def test_the_tests_are_those_of_ci() -> None:
    """The test workflow runs .ci/run and adds no checks of its own."""
    steps = parsed(FOLDER / "workflows" / "test.yml")["jobs"]["run"]["steps"]
    assert ".ci/run" in steps[-2]["run"]
    # It reads all commits since its rule: a shallow clone would hide them.
    assert next(step for step in steps if "uses" in step)["with"]["fetch-depth"] == 0


def test_a_release_waits_for_everything() -> None:
    """Nothing is published before the tests are green, and the release itself comes last."""
    jobs = parsed(FOLDER / "workflows" / "release.yml")["jobs"]
    assert {"test", "wheels", "image"} <= set(jobs["index"]["needs"])
    assert "test" in jobs["image"]["needs"]
    assert {"index", "image"} <= set(jobs["release"]["needs"])
    assert all("plan" in job["needs"] for name, job in jobs.items() if name != "plan")


def test_what_the_image_is_built_on(tmp_path: Path) -> None:
    """The base is the Dockerfile's, named by the digest that the registry says; here a fake says it. The labels say
    what was built, of what and on what, and the image is for both kinds of machines."""
    steps = parsed(FOLDER / "workflows" / "release.yml")["jobs"]["image"]["steps"]
    look_up, build = (next(step for step in steps if step.get("id") == name) for name in ("base", "build"))
    digest = f"sha256:{'0' * 64}"
    fake = tmp_path / "docker"
    fake.write_text(f'#!/bin/sh\n[ "$4" = python:3.11-slim ] && echo {digest}\n', "utf-8")
    fake.chmod(0o755)
    output = tmp_path / "output"
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-e", "-c", look_up["run"]], cwd=ROOT, env=variables, check=True, timeout=60)
    said = dict(line.split("=", 1) for line in output.read_text("utf-8").splitlines())
    assert (said["base"], said["digest"]) == (f"python:3.11-slim@{digest}", digest)
    inputs = build["with"]
    used = set(re.findall(r"steps\.base\.outputs\.(\w+)", str(build)))
    assert used == set(said)
    argument, _, base = inputs["build-args"].partition("=")
    assert base == "${{ steps.base.outputs.base }}"
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert dockerfile.count(f"\nFROM ${{{argument}}}") == dockerfile.count("\nFROM ")
    assert inputs["platforms"] == "linux/amd64,linux/arm64"
    labels = [line.partition("=")[0] for line in inputs["labels"].splitlines()]
    labels += re.findall(r"(org\.opencontainers\.image\.\w+)=", dockerfile)
    assert {label.removeprefix("org.opencontainers.image.") for label in labels} == {
        *("title", "description", "licenses"),
        *("version", "revision", "created", "source", "base.name", "base.digest"),
    }


def test_a_release_has_no_password() -> None:
    """No workflow uses a secret: the index and the attestations trust the workflow, the registry GitHub's own token."""
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text("utf-8"), path.name


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_template_is_a_form(path: Path) -> None:
    """A form has a name, says what it is for, and asks something; it needs at least one answer."""
    form = parsed(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"]
    assert form["description"]
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked)
    assert any(part.get("validations", {}).get("required") for part in asked)
