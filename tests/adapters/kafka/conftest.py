"""Fixtures of the Kafka adapter's tests."""

from __future__ import annotations

import time

import pytest

from tests.adapters.kafka.member.scripted_member import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace monotonic time and sleeps by a clock that only a test, or a sleep, moves."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock
