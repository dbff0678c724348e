"""Opening a key store by its URL."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from consumer.adapters.key_store import open_key_store
from consumer.errors import SettingsError
from tests.adapters.key_store.helpers import HOUR, MIB, NOON, key


@pytest.mark.parametrize("scheme", ["memory:", "disk:"])
async def test_a_url_names_a_store(scheme: str, tmp_path: Path) -> None:
    """A URL of each kind opens a store that works; folders that are missing are made."""
    url = scheme if scheme == "memory:" else f"{scheme}{tmp_path}/state/keys"
    store = open_key_store(url, window=48 * HOUR, max_bytes=16 * MIB)
    await store.confirm(key(1), NOON)
    assert await store.look_up(key(1), NOON) == bytes([True])
    await store.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_a_folder_is_its_owner_s_alone(umask: int, tmp_path: Path) -> None:
    """Under any umask, only the owner can enter the folder and read its files."""
    before = os.umask(umask)
    try:
        store = open_key_store(f"disk:{tmp_path}/keys", window=48 * HOUR, max_bytes=16 * MIB)
        await store.confirm(key(1), NOON)
        await store.close()
    finally:
        os.umask(before)
    folder = tmp_path / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {"format", "journal-1"} <= {path.name for path in files}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in files)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "disk",
        "disk:",
        "lmdb:/tmp",
        "memory",
        "memory:x",
        "file:/tmp",
        "redis:",
        "redis://",
        "redis://user:secret@host:port",
        "redis://user:secret@one,two",
        "redis://user:secret@host?colour=red",
        "rediss://user:secret@host/1?cluster=true",
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    """The error names the variable and the values that it accepts, and repeats no secret."""
    with pytest.raises(
        SettingsError, match=r"PINSTREAM_KEY_STORE: .*(disk:/path|docs/scaling.md)"
    ) as refused:
        open_key_store(url, window=HOUR, max_bytes=16 * MIB)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("window", "max_bytes"), [(0, 16 * MIB), (-1, 16 * MIB), (float("nan"), 16 * MIB), (60, MIB)]
)
def test_impossible_limits_are_refused(window: float, max_bytes: int) -> None:
    """A window that is not positive and a size limit that is too small are refused."""
    with pytest.raises(SettingsError, match="cannot be"):
        open_key_store("memory:", window=window, max_bytes=max_bytes)
