"""The pages of the repository: links lead somewhere, the index has every page, README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumer import __version__

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_CODE = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NOTES = ("contract.md", "design.md", "lessons.md", "pinterest.md", "style.md")
"""Notes that sources once cited and that this repository does not have."""


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading that it has."""
    for link in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_has_every_page() -> None:
    """docs/README.md names each page of the folder."""
    index = set(_LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= index


def test_the_readme_is_short() -> None:
    """It says what pinstream is, how to run it, what it guarantees, and where to read on: everything else has a
    page."""
    assert 6_000 <= (ROOT / "README.md").stat().st_size <= 8_192


def test_the_changelog_has_this_version() -> None:
    """The latest dated version is the package's; what is not released yet stands above it."""
    headings = re.findall(
        r"^## \[(.+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", headings[1][1])


def test_sources_cite_only_pages_that_are_there() -> None:
    """A page that a comment or a test names is in the repository."""
    for folder in ("consumer", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.suffix not in (".py", ".pyx", ".pxd", ".pyi") or path == Path(__file__):
                continue
            text = path.read_text("utf-8")
            assert not [name for name in _NOTES if re.search(rf"(?<![\w/-]){name}", text)], path
            for page in re.findall(r"\bdocs/[\w.-]+\.md\b", text):
                assert (ROOT / page).exists(), f"{path}: {page}"


def test_the_architecture_names_every_module_of_the_engine() -> None:
    """Each with what it does, and no module that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("### Inside the engine")[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    engine = ROOT / "consumer" / "engine"
    modules = [path.relative_to(engine).with_suffix("").as_posix() for path in engine.rglob("*.py")]
    assert sorted(named) == sorted(module for module in modules if not module.endswith("__init__"))
