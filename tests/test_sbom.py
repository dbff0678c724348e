"""The SBOM has what is installed, and nothing else. (`make wheels` compares a wheel's, tests/image the image's.)"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "sbom.py"
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 of which a line looks like this:
 Version: 1

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2.0-14
"""


def module() -> Any:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def package(root: Path, name: str, version: str, *lines: str) -> None:
    """Install a package that has nothing but its metadata."""
    folder = root / "lib" / "site-packages" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines, ""])
    (folder / "METADATA").write_text(text, "utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with three Python packages and two of Debian's."""
    package(
        tmp_path,
        "pinstream",
        "1.2.3",
        "License-Expression: Apache-2.0",
        "Requires-Dist: typing_Extensions>=4",
        "Requires-Dist: absent; python_version < '3'",
        "Requires-Dist: redis>=6; extra == 'redis'",
    )
    package(tmp_path, "typing-extensions", "4.0", "Classifier: License :: OSI Approved :: MIT License")
    package(tmp_path, "redis", "6.0+local", "License: MIT")
    status = tmp_path / "var" / "lib" / "dpkg" / "status"
    status.parent.mkdir(parents=True)
    status.write_text(STATUS, "utf-8")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('NAME="Debian"\nVERSION_ID="12"\nID=debian\n', "utf-8")
    return tmp_path


def test_it_names_what_an_image_has(root: Path) -> None:
    """Python's packages wherever their folder is, Debian's as dpkg says that they are installed, and the Python."""
    document = module().sbom(root)
    version = ".".join(map(str, sys.version_info[:3]))
    assert [one["purl"] for one in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64&distro=debian-12",
        f"pkg:generic/python@{version}",
        "pkg:pypi/redis@6.0%2Blocal",
        "pkg:pypi/typing-extensions@4.0",
    ]
    ours = document["metadata"]["component"]
    assert (ours["purl"], ours["type"]) == ("pkg:pypi/pinstream@1.2.3", "application")
    licences = {one["name"]: one.get("licenses") for one in [ours, *document["components"]]}
    assert licences["pinstream"] == [{"expression": "Apache-2.0"}]
    assert licences["redis"] == [{"license": {"name": "MIT"}}]
    assert licences["typing-extensions"] == [{"license": {"name": "MIT License"}}]


def test_it_says_which_package_asks_for_which(root: Path) -> None:
    """What only an extra asks for, or what is not there, is no dependency."""
    graph = {one["ref"]: one["dependsOn"] for one in module().sbom(root)["dependencies"]}
    assert graph == {
        "pkg:pypi/pinstream@1.2.3": ["pkg:pypi/typing-extensions@4.0"],
        "pkg:pypi/redis@6.0%2Blocal": [],
        "pkg:pypi/typing-extensions@4.0": [],
    }


def test_it_is_what_is_installed_here() -> None:
    """Of this environment it names every package with its version, each once, and is the same each time."""
    made = [
        subprocess.run(
            [sys.executable, SCRIPT, sys.prefix], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    ]
    assert made[0] == made[1]
    document = json.loads(made[0])
    parts = [document["metadata"]["component"], *document["components"]]
    assert len({one["bom-ref"] for one in parts}) == len(parts)
    found = {(one["name"], one["version"]) for one in parts if one["purl"].startswith("pkg:pypi/")}
    # Not sys.path, to which setuptools adds the packages inside itself.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    assert found == {(one.metadata["Name"], one.version) for one in distributions(path=folders)}
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert not re.search(r"timestamp|serialNumber", made[0])


def test_an_environment_without_pinstream_is_named(tmp_path: Path) -> None:
    """A wrong folder makes no empty document."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path}: pinstream is not installed there\n"
