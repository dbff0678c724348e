#!/usr/bin/env python3
"""Writes what a folder has installed as an SBOM on stdout (CycloneDX 1.6, JSON): ``sbom.py ROOT``.

ROOT is a virtual environment, or the root of an image: Python's packages are found by the ``.dist-info`` in each folder
for packages, and Debian's by dpkg's list. The same content makes the same bytes: there is no time and no number in it.
Run it with the Python of ROOT, which is named too. It needs nothing else: the image's build runs it inside the image.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

OURS = "pinstream"
FOLDERS = ("site-packages", "dist-packages")
# What holds no package, and may not end.
NOT_FILES = ("proc", "sys", "dev", "run")
# A requirement's name; one that only an extra asks for is none.
REQUIRED = re.compile(r"\s*([A-Za-z0-9._-]+)(?!.*;.*\bextra\b)")


def canonical(name: str) -> str:
    """Return the name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def python_packages(root: Path) -> dict[str, dict[str, Any]]:
    """Return the components of the Python packages below `root`, by their references."""
    found = {}
    for at, folders, _ in os.walk(root):
        if Path(at) == root:
            folders[:] = [name for name in folders if name not in NOT_FILES]
        # Not what a package has of others inside itself.
        for folder in sorted(folders) if Path(at).name in FOLDERS else ():
            if folder.endswith(".dist-info") and Path(at, folder, "METADATA").is_file():
                package = Distribution.at(Path(at, folder))
                name = canonical(package.metadata["Name"])
                purl = f"pkg:pypi/{name}@{quote(package.version)}"
                found[purl] = {
                    **component(purl, package.metadata["Name"], package.version),
                    **licence(package.metadata),
                    # Taken out again for the graph.
                    "requires": [m[1] for m in map(REQUIRED.match, package.requires or ()) if m],
                }
    return found


def licence(metadata: Any) -> dict[str, Any]:
    """Return the package's licence as its author gives it: as an expression, or as a name of one line."""
    if expression := metadata.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    named = metadata.get("License") or ""
    classes = [
        line for line in metadata.get_all("Classifier", ()) if line.startswith("License :: OSI Approved :: ")
    ]
    names = [named] if named and "\n" not in named else [line.rpartition(" :: ")[2] for line in classes]
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def debian_packages(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the components of the packages that dpkg has installed below `root`."""
    status = root / "var/lib/dpkg/status"
    if not status.is_file():
        return
    release = (root / "etc/os-release").read_text("utf-8")
    [system] = re.findall(r'^ID="?([\w.-]+)"?$', release, re.MULTILINE)
    number = re.findall(r'^VERSION_ID="?([\w.-]+)"?$', release, re.MULTILINE)
    for entry in status.read_text("utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            where = f"arch={fields['Architecture']}&distro={'-'.join([system, *number])}"
            yield component(f"pkg:deb/{system}/{quote(name)}@{quote(version)}?{where}", name, version)


def component(purl: str, name: str, version: str) -> dict[str, Any]:
    """Return a component; its reference is its purl."""
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def sbom(root: Path) -> dict[str, Any]:
    """Return the document: what `root` has, and which Python package asks for which. Exit if pinstream is not there."""
    packages = python_packages(root)
    by_name = {canonical(package["name"]): purl for purl, package in packages.items()}
    if OURS not in by_name:
        sys.exit(f"{root}: pinstream is not installed there")
    graph = []
    for purl in sorted(packages):
        asked = {by_name.get(canonical(name)) for name in packages[purl].pop("requires")}
        graph.append({"ref": purl, "dependsOn": sorted(other for other in asked if other and other != purl)})
    ours = {**packages.pop(by_name[OURS]), "type": "application"}
    python = component(
        f"pkg:generic/python@{platform.python_version()}",
        platform.python_implementation(),
        platform.python_version(),
    )
    others = [*packages.values(), *debian_packages(root), {**python, "type": "platform"}]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": ours},
        "components": sorted(others, key=lambda one: one["bom-ref"]),
        "dependencies": graph,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: sbom.py ROOT, a virtual environment or the root of an image")
    print(json.dumps(sbom(Path(sys.argv[1])), indent=1, ensure_ascii=False))
