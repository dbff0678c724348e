"""Key stores: where the keys of delivered events are remembered for the dedup window.

`open_key_store` opens one by its URL; `consumer.adapters.key_store.interface` says what it promises.

``memory:``      lost with the process: for tests, the demo, and if duplicates after a restart do no harm
``lmdb:/path``   a folder on a local disk; survives restarts and kills; may be shared by processes of one host
``redis://...``  not in this version
"""

from __future__ import annotations

from consumer.adapters.key_store.interface import KeyStore, KeyStoreStatistics, Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.errors import SettingsError

__all__ = ["MIN_MAX_BYTES", "KeyStore", "KeyStoreStatistics", "open_key_store"]

MIN_MAX_BYTES = 16 * 1024 * 1024
"""Smallest size limit accepted: below it, a chunk of keys needs too many transactions."""


def open_key_store(url: str, *, window: float, max_bytes: int) -> KeyStore:
    """Open the key store that `url` names, or create it.

    `window` is in seconds, `max_bytes` the hard limit of the store's size. Raises `SettingsError` for an invalid
    URL, window or limit, and `KeyStoreError` if the store cannot be opened (not writable, damaged, of another format,
    locked by another process). The message says what to do.
    """
    if max_bytes < MIN_MAX_BYTES:
        raise SettingsError(f"the key store's size limit cannot be {max_bytes} bytes: set at least 16MiB")
    scheme, colon, rest = url.partition(":")
    bounds = Window.of(window)
    if colon and scheme == "memory" and not rest:
        return MemoryKeyStore(bounds, max_bytes)
    if colon and scheme == "lmdb" and rest:
        return LmdbKeyStore.open(rest, bounds, max_bytes)
    if scheme in ("redis", "rediss"):
        raise SettingsError("PINSTREAM_KEY_STORE: redis is not in this version; use lmdb:/path or memory:")
    raise SettingsError("PINSTREAM_KEY_STORE: not a key store; use lmdb:/path or memory:")
