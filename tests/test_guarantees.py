"""docs/guarantees.md names its proofs, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
_QUOTED = re.compile(r"`([^`]+)`")
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


def defines(path: str, test: str) -> bool:
    """Whether the file has a test of this name."""
    return re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE) is not None
