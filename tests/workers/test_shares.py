"""Each worker's share of the settings, and settings that cannot be divided."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.app.building import quota_members
from consumer.errors import SettingsError, UsageError
from consumer.settings import Settings
from consumer.workers.shares import MAX_WORKERS, check_divisible, cores, part, worker_count, worker_settings
from tests.settings.environment import with_


def loaded(tmp_path: Path, **more: str) -> Settings:
    """Valid settings, with `more` on top."""
    return with_(PINSTREAM_STATE_DIR=str(tmp_path), **more)


@given(whole=st.integers(1, 10**9), count=st.integers(1, MAX_WORKERS))
def test_parts_add_up(whole: int, count: int) -> None:
    """Their sum is the whole, and no two differ by more than one."""
    parts = [part(whole, number, count) for number in range(1, count + 1)]
    assert sum(parts) == whole
    assert max(parts) - min(parts) <= 1


def test_what_is_divided(tmp_path: Path) -> None:
    """Requests in flight and both budgets of open events are divided; everything else stays."""
    settings = loaded(tmp_path, PINSTREAM_CONCURRENCY="5", PINSTREAM_MAX_OPEN_BYTES="64MiB")
    one, two = (worker_settings(settings, number, 2) for number in (1, 2))
    assert (one.pinstream.concurrency, two.pinstream.concurrency) == (3, 2)
    assert (one.pinstream.max_open_events, one.pinstream.max_open_bytes) == (10_000, 32 * 1024 * 1024)
    changed = {"concurrency", "max_open_events", "max_open_bytes"}
    before, after = settings.pinstream.model_dump(), one.pinstream.model_dump()
    assert {name for name in before if before[name] != after[name]} == changed
    assert one.kafka == settings.kafka
    assert one.pinterest == settings.pinterest


def test_the_quota_is_divided_by_the_engine(tmp_path: Path) -> None:
    """By as many as there are workers, until the brokers say how many members hold partitions; also test mode's own."""
    settings = worker_settings(loaded(tmp_path, PINTEREST_TEST_MODE="true"), 1, 4)
    assert (settings.pinstream.calls_per_minute, quota_members(settings)) == (600, 4)
    assert quota_members(loaded(tmp_path)) == 1


def test_the_quota_of_a_shared_key_store_is_not_divided(tmp_path: Path) -> None:
    """The store counts the calls of all workers together, and of members elsewhere."""
    store = {"PINSTREAM_KEY_STORE": "redis://127.0.0.1", "PINSTREAM_CALLS_PER_MINUTE": "3"}
    settings = loaded(tmp_path, **store)
    check_divisible(settings, 4)
    divided = worker_settings(settings, 1, 4)
    assert (divided.pinstream.calls_per_minute, quota_members(divided)) == (3, 0)
    assert divided.pinstream.concurrency == 2


def test_static_members_have_names_of_their_own(tmp_path: Path) -> None:
    """Two members with the same name would fence each other out of the group."""
    settings = loaded(tmp_path, KAFKA_GROUP_INSTANCE_ID="pod-0", KAFKA_CLIENT_ID="us")
    names = [
        worker_settings(settings, number, 2).kafka.client_properties()["group.instance.id"]
        for number in (1, 2)
    ]
    assert names == ["pod-0-1", "pod-0-2"]
    assert worker_settings(settings, 1, 2).kafka.client_properties()["client.id"] == "us"


@pytest.mark.parametrize(
    ("count", "settings", "named"),
    [
        (2, {"PINSTREAM_KEY_STORE": "memory:"}, "PINSTREAM_KEY_STORE=memory:"),
        (9, {}, "PINSTREAM_CONCURRENCY=8"),
        (4, {"PINSTREAM_CALLS_PER_MINUTE": "3"}, "PINSTREAM_CALLS_PER_MINUTE=3"),
        (3, {"PINSTREAM_MAX_OPEN_EVENTS": "2000"}, "PINSTREAM_MAX_OPEN_EVENTS=2000 is 666"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_cannot_be_divided(tmp_path: Path, count: int, settings: dict[str, str], named: str) -> None:
    """Refused with the variable and the number of workers; one worker accepts all of it."""
    found = loaded(tmp_path, **settings)
    with pytest.raises(SettingsError, match=named) as refused:
        check_divisible(found, count)
    assert f"--workers {count}" in str(refused.value)
    check_divisible(found, 1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5", str(MAX_WORKERS + 1), "²"])
def test_an_invalid_number_of_workers(tmp_path: Path, text: str) -> None:
    """The error says what is allowed."""
    with pytest.raises(UsageError, match="auto"):
        worker_count(text, loaded(tmp_path))


_MANY = {"PINSTREAM_CONCURRENCY": "64"}
_FEW_CALLS = {**_MANY, "PINSTREAM_CALLS_PER_MINUTE": "3"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 8),
        (_MANY, 20),
        ({**_MANY, "PINSTREAM_MAX_OPEN_EVENTS": "4000"}, 4),
        (_FEW_CALLS, 3),
        ({**_FEW_CALLS, "PINSTREAM_KEY_STORE": "redis://localhost"}, 20),
    ],
)
def test_auto_chooses_nothing_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: int
) -> None:
    """With more cores than the settings can be divided by: the largest number that they allow; else one for each core.
    The defaults divide by up to PINSTREAM_CONCURRENCY."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    found = loaded(tmp_path, **settings)
    count = worker_count("auto", found, tmp_path / "cpu.max")
    assert count == expected
    for fewer in range(1, count + 1):
        check_divisible(found, fewer)
    with pytest.raises(SettingsError):
        check_divisible(found, count + 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert [worker_count(text, found, tmp_path / "cpu.max") for text in ("auto", "3")] == [2, 3]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 6), ("nonsense", 6)],
)
def test_a_container_s_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: Any
) -> None:
    """Whole cores of the container's limit, not the cores of its machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(limit + "\n")
    assert cores(cpu_max) == expected
