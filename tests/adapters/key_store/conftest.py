"""Makers of each kind of key store, for the suite that all of them must pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from consumer.adapters.key_store import KeyStore, lmdb_store
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.adapters.key_store.memory import MemoryKeyStore

MakeStore = Callable[[float, int], KeyStore]
"""Window in seconds, size limit in bytes -> store."""


@pytest.fixture(params=["memory", "lmdb", "lmdb read on a thread"])
async def make_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeStore]:
    """Make a store of the kind under test; closed at the end."""
    if request.param == "lmdb read on a thread":
        monkeypatch.setattr(lmdb_store, "INLINE_BYTES", 0)
    made: list[KeyStore] = []

    def make(window: float, max_bytes: int) -> KeyStore:
        bounds = Window.of(window)
        in_memory = request.param == "memory"
        store: KeyStore = (
            MemoryKeyStore(bounds, max_bytes)
            if in_memory
            else LmdbKeyStore.open(str(tmp_path / f"store-{len(made)}"), bounds, max_bytes)
        )
        made.append(store)
        return store

    yield make
    for store in made:
        await store.close()
