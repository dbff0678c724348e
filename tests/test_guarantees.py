"""docs/guarantees.md names its proofs: each of them exists, and `make test` runs one for each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
_QUOTED = re.compile(r"`([^`]+)`")
_SLOW = "pytest.mark.slow"
_CRASH_POINTS = "tests/end_to_end/crashes/test_crash_points.py"

PATHS = sorted({name for name in _QUOTED.findall(PAGE) if name.startswith(("tests/", "consumer/"))})
CRASH_TESTS = sorted({name for name in _QUOTED.findall(PAGE) if name.startswith("test_")})
BUGS = sorted(
    {name for words in re.findall(r"bugs? ((?:`\w+`(?:, )?)+)", PAGE) for name in _QUOTED.findall(words)}
)


@pytest.mark.parametrize("name", PATHS)
def test_the_test_or_module_exists(name: str) -> None:
    """A path leads to a file, and behind ``::`` is a test in it."""
    path, _, test = name.partition("::")
    assert (ROOT / path).is_file()
    assert not test or defines(path, test)


@pytest.mark.parametrize("name", CRASH_TESTS)
def test_the_crash_point_has_its_test(name: str) -> None:
    """Each row of the table has one test."""
    assert defines(_CRASH_POINTS, name)


@pytest.mark.parametrize("name", BUGS)
def test_the_bug_is_revived(name: str) -> None:
    """The simulation's own tests show that it catches the bug."""
    assert name in MUTATIONS


def test_the_page_names_its_proofs() -> None:
    """The page has proofs, so the tests above really read it."""
    assert len(PATHS) > 20
    assert len(CRASH_TESTS) >= 6
    assert len(BUGS) > 12
    assert len(MUTATIONS) > 100
    assert len(ROWS) > 80
    assert not _runs_always("tests/simulation/mutations/test_mutations.py", "")
    assert not _runs_always("tests/soak/test_soak.py", "test_all_bounds_hold_for_the_length_of_a_run")


def defines(path: str, test: str) -> bool:
    """Whether the file has a test of this name."""
    return re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE) is not None


ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:42])
def test_a_promise_does_not_rest_on_slow_tests_alone(row: str) -> None:
    """Each row names a test that `make test` runs. Deliberate bugs and alerts do not count, nor does what is
    marked slow as a whole."""
    named = [
        name
        for name in _QUOTED.findall(row)
        if name.startswith("tests/") and name.endswith(".py") | ("::" in name)
    ]
    assert any(_runs_always(*name.partition("::")[::2]) for name in named), (
        f"only `make test-all` runs {named}"
    )


def _runs_always(path: str, test: str) -> bool:
    """Whether some case of this test, or of the file if `test` is empty, is not slow."""
    module = ast.parse((ROOT / path).read_text("utf-8"))
    # A name that stands for the mark, as in ``_MORE = pytest.mark.slow("…")``.
    names = {
        ast.unparse(one.targets[0])
        for one in module.body
        if isinstance(one, ast.Assign) and ast.unparse(one.value).startswith(_SLOW)
    }

    def is_slow(mark: ast.expr) -> bool:
        return ast.unparse(mark) in names or ast.unparse(mark).startswith(_SLOW)

    for one in module.body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "pytestmark":
            marks = one.value.elts if isinstance(one.value, ast.List | ast.Tuple) else [one.value]
            if any(map(is_slow, marks)):
                return False
    found = [
        one
        for one in module.body
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and one.name.startswith(("test_", "Test"))
        and test.partition("::")[0] in ("", one.name)
    ]
    # What a library makes of a class, as Hypothesis makes ``TestMachine = Machine.TestCase``, runs always.
    made = not test and any(
        isinstance(one, ast.Assign) and ast.unparse(one.targets[0]).startswith("Test") for one in module.body
    )
    return made or any(not any(map(is_slow, one.decorator_list)) for one in found)
