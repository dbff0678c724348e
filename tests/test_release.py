"""What a release goes by (.ci/release.py): one version everywhere, addresses in one place, notes from CHANGELOG.md."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from consumer import __version__

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "release.py"


@pytest.fixture(scope="module")
def release() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository that is ready for version 1.2.3."""
    (tmp_path / "consumer").mkdir()
    (tmp_path / "deploy" / "helm" / "pinstream").mkdir(parents=True)
    (tmp_path / "consumer" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "deploy" / "helm" / "pinstream" / "Chart.yaml").write_text(
        'version: 0.4.0\nappVersion: "1.2.3"\n'
    )
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n### Added\n\n"
        "- A thing ([how](docs/guarantees.md#y)),\n"
        "  see [this](https://other.test/).\n\n## [1.2.2] - 2026-11-01\n\n- Older.\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pinstream.addresses]\nrepository = "https://git.test/o/r"\nsite = "https://site.test/"\n'
        'registry = "registry.test/o"\n'
    )
    return tmp_path


def test_what_no_version_has_is_not_released(release: Any, root: Path) -> None:
    """Lines that still stand under Unreleased would be in no version's notes."""
    text = (root / "CHANGELOG.md").read_text()
    (root / "CHANGELOG.md").write_text(text.replace("[Unreleased]\n", "[Unreleased]\n\n- Another thing.\n"))
    with pytest.raises(release.ReleaseError, match=r"under Unreleased.*move them to 1\.2\.3"):
        release.plan("v1.2.3", root)


def test_a_ready_repository_has_a_plan(release: Any, root: Path) -> None:
    """The plan has the version, and where image and chart go."""
    assert release.plan("v1.2.3", root) == {
        "version": "1.2.3",
        "registry": "registry.test/o",
        "host": "registry.test",
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("consumer/__init__.py", "1.2.3", "1.2.4", r"consumer/__init__\.py says 1\.2\.4"),
        (
            "deploy/helm/pinstream/Chart.yaml",
            '"1.2.3"',
            '"1.2.2"',
            r"Chart\.yaml \(appVersion\) says 1\.2\.2",
        ),
        ("CHANGELOG.md", "## [1.2.3] - 2026-12-01", "## [1.2.3]", r"CHANGELOG\.md says 1\.2\.2"),
        ("pyproject.toml", "https://site.test/", "https://site.example/", r"where these are: site;"),
        ("pyproject.toml", "registry.test/o", "r.pinstream.example/o", r"where these are: registry;"),
    ],
)
def test_what_does_not_fit_ends_it(
    release: Any, root: Path, file: str, old: str, new: str, said: str
) -> None:
    """A version that another file does not have, or an address that nobody knows: one line that names it."""
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(release.ReleaseError, match=said):
        release.plan("v1.2.3", root)


def test_notes_are_the_version_s_part(release: Any, root: Path) -> None:
    """Without its heading; links of the repository lead to the tag, others stay."""
    assert release.notes("1.2.3", root) == (
        "### Added\n\n- A thing ([how](https://git.test/o/r/blob/v1.2.3/docs/guarantees.md#y)),\n"
        "  see [this](https://other.test/).\n"
    )
    with pytest.raises(release.ReleaseError, match=r"says nothing of 1\.2\.9"):
        release.notes("1.2.9", root)


def test_this_repository_has_notes(release: Any) -> None:
    """The version of the package has a part in CHANGELOG.md."""
    assert "- " in release.notes(__version__)


def test_nothing_can_be_released_to_nowhere() -> None:
    """As long as addresses stand for what nobody knows, the script ends with one line that says where to set them."""
    found = subprocess.run(
        [sys.executable, SCRIPT, "plan", f"v{__version__}"], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 1
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1
    assert "[tool.pinstream.addresses]" in found.stderr


def test_addresses_have_one_place(release: Any) -> None:
    """No file but pyproject.toml names the places that nobody knows yet."""
    hosts = {re.sub(r"^https://", "", one).partition("/")[0] for one in release.addresses().values()}
    found = subprocess.run(
        [
            "git",
            "grep",
            "--files-with-matches",
            "--fixed-strings",
            *(word for host in hosts for word in ("-e", host)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.split() == ["pyproject.toml"]


def test_the_index_shows_links_that_work(release: Any, tmp_path: Path) -> None:
    """In the package's metadata every link of README is a whole address: an index has no files beside the page."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "consumer").mkdir()
    shutil.copy(ROOT / "consumer" / "__init__.py", tmp_path / "consumer")
    code = "import hatchling.build as b; print(b.prepare_metadata_for_build_wheel('.', {}))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    [path] = tmp_path.glob("*.dist-info/METADATA")
    metadata = HeaderParser().parsestr(path.read_text("utf-8"))
    shown = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", shown)
    repository = release.addresses()["repository"]
    assert len(links) > 30
    assert {link for link in links if not link.startswith(("https://", "http://", "#"))} == set()
    assert f"{repository}/blob/v{__version__}/docs/guarantees.md#memory" in links
    assert f"{repository}/raw/v{__version__}/docs/page.png" in links
    # Nothing but the links differs from the page of the repository.
    back = re.sub(rf"{re.escape(repository)}/(blob|raw)/v{re.escape(__version__)}/", "", shown)
    assert back.strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert f"Source, {repository}" in metadata.get_all("Project-URL", [])


def test_the_package_has_one_readme() -> None:
    """pyproject.toml leaves README and addresses to the hook, which knows the version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"readme", "urls", "version"} <= set(project["dynamic"])
