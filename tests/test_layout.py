"""The layout: folders a person can survey, files neither crumbs nor walls, and no circle of imports.

The layers themselves are import-linter's (pyproject.toml): here it is held that no package is without. The exceptions
are listed here with their reasons; take out one that is none any more.
"""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = frozenset({".py", ".pyx", ".pxi", ".pyi", ".js", ".css", ".html"})
FILES_IN_A_FOLDER = 20
SHORTEST, LONGEST = 60, 600

MAX_CODE, MAX_TESTS = 38_800, 93_100
"""Lines of code of consumer/ and lines of the files of tests/. Lower them with what goes."""

SHORT = {
    "consumer/__main__.py": "python -m consumer",
    "consumer/adapters/kafka/native/plain.py": "what is compiled beside it, in Python",
    "consumer/commands/dead_letters/command.py": "the group alone: each command is beside its code",
    "consumer/commands/run.py": "the service itself is app/run and workers",
    "consumer/commands/sandbox.py": "the server itself is demo/api",
    "consumer/engine/context.py": "what all parts share; the rules of the time are in the clock",
    "consumer/engine/native/plain.py": "what is compiled beside it, in Python",
}
"""Modules of consumer/ with fewer lines, and why. `__init__` modules do not count."""

OF_THE_WHOLE = {
    *("benchmark", "deploy", "end_to_end", "fuzzing", "image", "references", "runbook", "simulation", "soak"),
    "support",
}
"""Folders of tests/ that belong to no package of consumer/: they test several together, or serve other tests."""

DEFINED_TWICE = frozenset({"Record"})
"""Names at the top of more than one module. CONTRIBUTING.md has the reasons."""

FILES = sorted(
    path.relative_to(ROOT)
    for top in ("consumer", "tests")
    for path in (ROOT / top).rglob("*")
    if path.suffix in CODE and "target" not in path.parts
)
MODULES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
    if path.parts[0] == "consumer" and path.suffix == ".py"
}


def lines(path: Path) -> int:
    """The number of lines of a file."""
    return len((ROOT / path).read_text("utf-8").splitlines())


def code_lines(path: Path) -> int:
    """The number of lines of a file without blank lines, comments and docstrings."""
    text = (ROOT / path).read_text("utf-8")
    docs = [
        node.value
        for node in (ast.walk(ast.parse(text)) if path.suffix in (".py", ".pyi") else ())
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    within = {number for one in docs for number in range(one.lineno, (one.end_lineno or one.lineno) + 1)}
    written = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(
        bool(line) and not line.startswith(("#", "//")) and number not in within for number, line in written
    )


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of consumer that a module imports, also under TYPE_CHECKING and in functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / MODULES[name]).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            within = {f"{node.module}.{one.name}" for one in node.names}
            found.update(within & MODULES.keys() or {node.module})
    return frozenset(found & MODULES.keys())


def test_a_folder_can_be_surveyed() -> None:
    """No folder of consumer/ or tests/ has more than twenty files of code."""
    folders = [str(path.parent) for path in FILES]
    full = {one: n for one in set(folders) if (n := folders.count(one)) > FILES_IN_A_FOLDER}
    assert full == {}


def test_a_module_is_more_than_a_corner_of_another() -> None:
    """No module of consumer/ has fewer than sixty lines without a reason."""
    short = {str(one) for one in MODULES.values() if lines(one) < SHORTEST and one.name != "__init__.py"}
    assert short <= SHORT.keys()


def test_a_module_is_one_sitting() -> None:
    """No module of consumer/ or tests/ has more than six hundred lines."""
    long = {str(one): n for one in FILES if one.suffix == ".py" and (n := lines(one)) > LONGEST}
    assert long == {}


def test_code_and_tests_do_not_grow() -> None:
    """consumer/ and tests/ stay within `MAX_CODE` and `MAX_TESTS`."""
    code = [path for path in FILES if path.parts[0] == "consumer"]
    tests = [path for path in FILES if path.parts[0] == "tests"]
    assert sum(map(code_lines, code)) <= MAX_CODE
    assert sum(map(lines, tests)) <= MAX_TESTS


def test_a_folder_of_tests_is_one_of_the_code() -> None:
    """The tests of consumer/X/Y, a package or a module, are in tests/X/Y; other folders have the tests of the whole."""
    code = {path.with_suffix("").parts[1:] for path in FILES if path.parts[0] == "consumer"}
    packages = {path.parts[1:-1] for path in MODULES.values()} - {()}
    folders = {path.parts[1:-1] for path in FILES if path.parts[0] == "tests"}
    folders = {one for one in folders if one and one[0] not in OF_THE_WHOLE}
    assert folders - code - packages == set()
    # Compiled modules are compared with plain Python by the tests of what calls them.
    assert {one for one in packages if one[-1] != "native"} - folders == set()


def test_every_package_names_its_layers() -> None:
    """Each package with three members or more has its layers in pyproject.toml, and no list leaves a member out."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layered = [one for one in contracts if one["type"] == "layers"]
    assert [one["name"] for one in layered if not one.get("exhaustive")] == []
    members = [name.rpartition(".")[0] for name in MODULES]
    large = {one for one in members if one and members.count(one) >= 3}
    assert large - {container for one in layered for container in one["containers"]} == set()


@pytest.mark.parametrize("name", MODULES)
def test_no_circle(name: str) -> None:
    """No chain of imports leads from a module back to itself, whatever the imports are for."""
    way, seen = [name], set[str]()
    while way:
        for one in imports(way.pop()):
            assert one != name, f"{name} is imported by what it imports"
            if one not in seen:
                seen.add(one)
                way.append(one)


def test_a_name_is_defined_in_one_module() -> None:
    """No class, and no public function, type or constant, has the name of another at the top of another module."""
    defined: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse((ROOT / path).read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names = [node.name.lstrip("_")]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [one.id for one in targets if isinstance(one, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    defined.setdefault(name, set()).add(module)
    assert {name for name, modules in defined.items() if len(modules) > 1} == DEFINED_TWICE
