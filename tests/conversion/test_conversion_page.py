"""docs/conversion.md explains every code, so that each can be looked up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from consumer.avro.decode import DecodeCode
from consumer.conversion.transform import FILTERED
from consumer.engine.model import TRANSFORM_FAILED, TRANSFORM_MISFIT
from tests.conversion.test_convert import FILTER_CODES, REJECTION_CODES, WARNING_CODES

PAGE = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text("utf-8")
CONVERT_CODES = REJECTION_CODES | {TRANSFORM_FAILED, TRANSFORM_MISFIT}


@pytest.mark.parametrize(
    "code",
    sorted(
        {*CONVERT_CODES, *(code.value for code in DecodeCode), *FILTER_CODES, *WARNING_CODES}
        | {FILTERED.code, "tombstone"}
    ),
)
def test_every_code_is_explained(code: str) -> None:
    """Each code of a rejection, a filter or a warning is on the page."""
    assert f"`{code}`" in PAGE


def test_no_code_is_explained_that_does_not_exist() -> None:
    """The table of rejections has no code that does not exist."""
    rows = re.findall(r"^\| (?:decode|convert) \| ([^|]*) \|", PAGE, re.MULTILINE)
    named = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    known = {*(code.value for code in DecodeCode), *CONVERT_CODES, "unserialisable"}
    assert named == known
