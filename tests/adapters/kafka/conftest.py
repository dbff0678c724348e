"""Fixtures of the Kafka adapter's tests."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.adapters.kafka.member.scripted_member import Clock
from tests.support.kafka.harness import PROTOCOLS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace monotonic time and sleeps by a clock that only a test, or a sleep, moves."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture(params=PROTOCOLS.values(), ids=list(PROTOCOLS))
def protocol(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the configuration of each group protocol."""
    config: dict[str, Any] = request.param
    return config
