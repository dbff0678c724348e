"""Makers of each kind of key store, for the suite that every kind must pass."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from consumer.adapters.key_store import disk_store, files, folder, native, plain, view
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.adapters.key_store.shared.address import parse_address
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.ports import KeyStore
from tests.adapters.key_store.shared.shops import Shop, on_redis, on_the_fake


def use_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the compiled operations by those in plain Python."""
    for module in (files, folder, view):
        for name in native.__all__:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(plain, name))


MakeStore = Callable[[float, int], KeyStore]
"""A function that makes a store from its window in seconds and its size limit in bytes."""


LOCAL = ("memory", "disk", "disk read on a thread", "disk in plain Python")
"""The kinds of key stores that one host has for itself."""


@pytest.fixture(params=[*LOCAL, "redis"])
async def make_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeStore]:
    """Yield a function that makes stores of the kind under test; they are closed at the end."""
    if request.param == "disk read on a thread":
        monkeypatch.setattr(disk_store, "INLINE_BYTES", 0)
    if request.param == "disk in plain Python":
        use_plain(monkeypatch)
    made: list[KeyStore] = []

    def make(window: float, max_bytes: int) -> KeyStore:
        bounds = Window.of(window)
        if request.param == "memory":
            store: KeyStore = MemoryKeyStore(bounds, max_bytes)
        elif request.param == "redis":
            url = f"{request.getfixturevalue('redis').url}?prefix={uuid4().hex}"
            store = RedisKeyStore(parse_address(url), bounds, lease=30.0)
        else:
            store = DiskKeyStore(str(tmp_path / f"store-{len(made)}"), bounds, max_bytes)
        made.append(store)
        return store

    yield make
    for store in made:
        await store.close()


@pytest.fixture(params=["redis", "stand-in"])
async def shop(request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    """A shared store of the kind under test."""
    made = on_redis(request.getfixturevalue("redis")) if request.param == "redis" else on_the_fake()
    yield made
    for one in made.made:
        await one.close()


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """Yield a folder in memory if the host has such a file system, for tests that make thousands of files."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)
