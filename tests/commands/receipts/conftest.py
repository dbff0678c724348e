"""What the tests of receipts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.receipts.making import Receipts
from tests.support.kafka.harness import Kafka


@pytest.fixture
def shop(kafka: Kafka, tmp_path: Path) -> Receipts:
    """Topics without receipts and orders."""
    return Receipts(kafka, tmp_path)
