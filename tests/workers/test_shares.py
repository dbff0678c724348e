"""Each worker's share of the settings."""

from __future__ import annotations

from pathlib import Path

from consumer.app.building import quota_members
from consumer.settings import Settings
from consumer.workers.shares import check_divisible, worker_settings
from tests.settings.environment import with_


def loaded(tmp_path: Path, **more: str) -> Settings:
    """Valid settings, with `more` on top."""
    return with_(PINSTREAM_STATE_DIR=str(tmp_path), **more)


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


def test_the_quota_of_a_shared_key_store_is_not_divided(tmp_path: Path) -> None:
    """The store counts the calls of all workers together, and of members elsewhere."""
    store = {"PINSTREAM_KEY_STORE": "redis://127.0.0.1", "PINSTREAM_CALLS_PER_MINUTE": "3"}
    settings = loaded(tmp_path, **store)
    check_divisible(settings, 4)
    divided = worker_settings(settings, 1, 4)
    assert (divided.pinstream.calls_per_minute, quota_members(divided)) == (3, 0)
    assert divided.pinstream.concurrency == 2
