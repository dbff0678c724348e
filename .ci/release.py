#!/usr/bin/env python3
"""What a release is made of: its version, its addresses, its notes. Needs nothing but Python.

``release.py plan TAG`` prints what the workflow goes by, one ``name=value`` a line, or ends with one line that says
what does not fit: tag, package, chart and CHANGELOG.md have to name one version, and no address may be one of those
that stand for what nobody knows yet. ``release.py notes VERSION`` prints the version's part of CHANGELOG.md, with links
that work outside the repository.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# No address ends so, by RFC 2606: it stands for one that nobody knows yet.
UNKNOWN = ".example"


class ReleaseError(Exception):
    """Something has to change before this can be released; the message says what."""


def addresses(root: Path = ROOT) -> dict[str, str]:
    """Return the addresses of pyproject.toml, by name."""
    found: dict[str, str] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["pinstream"][
        "addresses"
    ]
    return found


def is_unknown(address: str) -> bool:
    """Return whether an address only stands for one that nobody knows yet."""
    return address.removeprefix("https://").partition("/")[0].endswith(UNKNOWN)


def plan(tag: str, root: Path = ROOT) -> dict[str, str]:
    """Return what the release workflow goes by. Raises `ReleaseError` if something does not fit the tag."""
    version = tag.removeprefix("v")
    chart = (root / "deploy" / "helm" / "pinstream" / "Chart.yaml").read_text("utf-8")
    changes = (root / "CHANGELOG.md").read_text("utf-8")
    said = {
        "consumer/__init__.py": _first(
            r'^__version__ = "(.+)"$', (root / "consumer" / "__init__.py").read_text("utf-8")
        ),
        "Chart.yaml (appVersion)": _first(r'^appVersion: "(.+)"$', chart),
        "CHANGELOG.md": _first(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", changes),
    }
    if other := {where: what for where, what in said.items() if what != version}:
        named = ", ".join(f"{where} says {what or 'nothing'}" for where, what in other.items())
        raise ReleaseError(f"the tag is {tag}, but {named}: make them agree, and set the tag again")
    known = addresses(root)
    if unknown := sorted(name for name, address in known.items() if is_unknown(address)):
        raise ReleaseError(
            f"nobody has said yet where these are: {', '.join(unknown)}; pyproject.toml, [tool.pinstream.addresses]"
        )
    waiting = re.search(r"^## \[Unreleased\]\s*\n(.*?)(?=^## \[|\Z)", changes, re.DOTALL | re.MULTILINE)
    if waiting is not None and waiting[1].strip():
        raise ReleaseError(
            f"CHANGELOG.md has lines under Unreleased, which {tag} would ship without a word: move them to {version}, "
            "and set the tag again"
        )
    return {"version": version, "registry": known["registry"], "host": known["registry"].partition("/")[0]}


def notes(version: str, root: Path = ROOT) -> str:
    """Return what CHANGELOG.md says of a version. Raises `ReleaseError` if that is nothing."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## \[|\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None or not found[1].strip():
        raise ReleaseError(f"CHANGELOG.md says nothing of {version}")
    blob = f"{addresses(root)['repository']}/blob/v{version}/"
    return re.sub(r"\]\((?!https?://|#)", f"]({blob}", found[1]).strip() + "\n"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def main(arguments: list[str]) -> int:
    """Run one of the two commands. Returns the exit code."""
    match arguments:
        case ["plan", tag]:
            print("\n".join(f"{name}={value}" for name, value in plan(tag).items()))
        case ["notes", version]:
            print(notes(version), end="")
        case _:
            raise ReleaseError("use: release.py plan TAG, or release.py notes VERSION")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ReleaseError as wrong:
        sys.exit(f"release.py: {wrong}")
