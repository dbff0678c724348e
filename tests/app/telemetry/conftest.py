"""What all tests of the telemetry undo."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _unmuted() -> Iterator[None]:
    """A start mutes OpenTelemetry's logger."""
    yield
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)
