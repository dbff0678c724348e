"""The pages of the repository: links lead somewhere, the index has every page, README stays short.

`python -m tests.test_pages` writes what pages take from files: the tables of modules in docs/architecture.md, and the
files of examples/recipes in docs/recipes.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from consumer import __version__

ROOT = Path(__file__).parents[1]
CONSUMER = ROOT / "consumer"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
RECIPES = sorted((ROOT / "examples" / "recipes").iterdir())
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("deploy/helm/*/README.md"),
        *ROOT.glob("examples/*/README.md"),
    ]
)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_has_its_head(page: Path) -> None:
    """A row without a head above it, as after a blank line, is not shown as a table."""
    for table in re.findall(r"(?:^\|.*\n)+", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE):
        assert re.match(r"\|.*\n\|[ :|-]+\|\n\|", table), table[:80]


def test_the_index_has_every_page() -> None:
    """docs/README.md names each page of the folder, and map-your-schema.md each recipe."""
    docs = ROOT / "docs"
    index = set(_LINK.findall((docs / "README.md").read_text("utf-8")))
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"README.md"} <= index
    recipes = {f"recipes/{folder.name}.md" for folder in RECIPES}
    assert recipes == {str(page.relative_to(docs)) for page in docs.glob("recipes/*.md")}
    assert recipes <= set(_LINK.findall((docs / "map-your-schema.md").read_text("utf-8")))


def test_the_readme_is_short() -> None:
    """It says what pinstream is, how to run it, what it guarantees, and where to read on: everything else has a
    page."""
    assert 6_000 <= (ROOT / "README.md").stat().st_size <= 8_192


def test_the_documentation_is_short() -> None:
    """The pages of docs/ have at most 45,000 words, and beside them a recipe at most 350. Files that a recipe or the
    tutorial shows do not count.

    A word stands between blanks and has a letter or a digit: the bars and rules of tables, bullets and the marks of
    headings are none. (`wc -w docs/*.md` counts these, too.)
    """
    texts = {page.stem: page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md")}
    texts["first-event"] = _CODE.sub("", texts["first-event"])
    pages = sum(map(words, texts.values()))
    recipes = [words(_CODE.sub("", page.read_text("utf-8"))) for page in (ROOT / "docs").glob("recipes/*.md")]
    assert pages <= 45_000
    assert max(recipes) <= 350


def words(text: str) -> int:
    """The number of words of a text."""
    return sum(any(sign.isalnum() for sign in word) for word in text.split())


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
            if path.suffix not in (".py", ".pyx", ".pxi", ".pyi") or path == Path(__file__):
                continue
            text = path.read_text("utf-8")
            assert not [name for name in _NOTES if re.search(rf"(?<![\w/-]){name}", text)], path
            for page in re.findall(r"\bdocs/[\w.-]+\.md\b", text):
                assert (ROOT / page).exists(), f"{path}: {page}"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, as a cell of a table."""
    said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert said, f"{path} has no docstring"
    sentence = re.match(r"(.+?\.)(\s|$)", said, re.DOTALL)
    assert sentence, f"{path}: its docstring begins with no sentence"
    return " ".join(sentence[1].replace("``", "`").replace("|", "\\|").split())


def modules_table(folder: str) -> str:
    """A row for each package and module under this folder of consumer/, but one for all figures and one for native."""
    rows = []
    for path in sorted((CONSUMER / folder).rglob("*.py")):
        name = path.relative_to(CONSUMER / folder).with_suffix("").as_posix().removesuffix("__init__")
        # The row of figures/ or native/ is enough for their modules.
        if name and not re.match(r"(figures|native)/.", name):
            rows.append(f"| `{name}` | {first_sentence(path)} |\n")
    return "".join(["| module | what it does |\n| --- | --- |\n", *rows])


def folders_table() -> str:
    """A row for each folder and module of consumer/, and who may import whom, by the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [
        one["name"] for one in contracts if one["type"] == "layers" and one["containers"] == ["consumer"]
    ]
    paths = [*CONSUMER.glob("*/__init__.py"), *CONSUMER.glob("*.py")]
    named = {
        f"{path.parent.name}/" if path.stem == "__init__" else path.name: path
        for path in paths
        if path.parent != CONSUMER or not path.stem.startswith("__")
    }
    rows = [f"| `{name}` | {first_sentence(path)} |\n" for name, path in sorted(named.items())]
    return "".join([f"`{layers}`\n\n", "| in `consumer/` | what it does |\n| --- | --- |\n", *rows])


def pretty(value: Any, indent: int = 0) -> str:
    """JSON for people, in lines of some 115 characters, without the empty members of objects.

    A text that begins with a zero byte is a number, as it is written: 59.90.
    """
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one not in (None, [], {})}
    flat = re.sub(r'"\\u0000(.+?)"', r"\1", json.dumps(value, ensure_ascii=False))
    if indent + len(flat) <= 115 or not isinstance(value, dict | list):
        return flat
    if isinstance(value, list):
        parts, ends = [pretty(one, indent + 1) for one in value], "[]"
    else:
        parts = [f"{json.dumps(key)}: {pretty(one, indent + len(key) + 5)}" for key, one in value.items()]
        ends = "{}"
    lines = [parts[0]]
    for part in parts[1:]:
        if "\n" in lines[-1] + part or indent + len(lines[-1]) + len(part) > 112:
            lines.append(part)
        else:
            lines[-1] += f", {part}"
    return ends[0] + (",\n" + " " * (indent + 1)).join(lines) + ends[1]


def shown(path: Path) -> str:
    """A file as a page shows it; of NDJSON, each line wrapped."""
    text = path.read_text("utf-8")
    if path.suffix == ".ndjson":
        lines = [json.loads(line, parse_float="\0{}".format) for line in text.splitlines()]
        text = "".join(f"{pretty(line)}\n" for line in lines)
    language = {".ndjson": "json", ".avsc": "json", ".py": "python"}.get(path.suffix, path.suffix[1:])
    return f"```{language}\n{text}```\n"


GENERATED: dict[Path, dict[str, Callable[[], str]]] = {
    ARCHITECTURE: {
        "folders": folders_table,
        "modules of the engine": lambda: modules_table("engine"),
    },
    **{
        ROOT / "docs" / "recipes" / f"{folder.name}.md": {
            path.name: partial(shown, path) for path in sorted(folder.glob("*.*"))
        }
        for folder in RECIPES
    },
}
"""What pages take from files, by the name of the comments that stand around it."""


def generated(path: Path) -> str:
    """The page with what it takes from files."""
    page = path.read_text("utf-8")
    for name, text in GENERATED[path].items():
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert end, f"{path} has no <!-- {name} --> … <!-- /{name} -->"
        page = before + begin + text() + end + after
    return page


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_what_is_taken_from_files_is_current(path: Path) -> None:
    """docs/architecture.md has each module with the first sentence of its docstring, and none that is gone; the page
    of a recipe has its files."""
    assert path.read_text("utf-8") == generated(path), "run: python -m tests.test_pages"


if __name__ == "__main__":
    for one in GENERATED:
        one.write_text(generated(one), "utf-8")
