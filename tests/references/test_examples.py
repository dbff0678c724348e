"""Examples of normalising that were handed to the project."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consumer.conversion.targets import TARGETS
from tests.conversion.test_normalise import target_name
from tests.references.conftest import DATA

EXAMPLES: list[dict[str, Any]] = json.loads((DATA / "normalise_examples.json").read_text("utf-8"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one['field']}-{one['raw']!r:.40}")
def test_each_comes_out_as_it_says(example: dict[str, Any]) -> None:
    """The digest, or the text if it is not hashed, is that of the example."""
    result = TARGETS[target_name(example["field"])].rule(example["raw"])
    assert result == (example["sha256"] or example["normalised"])
