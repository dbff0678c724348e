"""The key store in memory: a table for each bucket of time, dropped whole.

It follows the same rules as the store on disk (interface.py). Tests and the demo use it, and it is a valid choice if
duplicates after a restart do no harm.
"""

from __future__ import annotations

from typing import NamedTuple

from consumer.adapters.key_store.interface import Window, check_use
from consumer.adapters.key_store.native import KeyTable
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.messages import Stored
from consumer.engine.reading import KEY_BYTES
from consumer.ports import KeyStore

# Upper bound of the bytes of a key in memory. The compiled table needs 96 while it grows, the one in plain Python 124
# (CPython 3.11, measured with 100,000 to 3 million keys).
BYTES_PER_KEY = 128


class _Bucket(NamedTuple):
    """Keys of one slice of time (or of a part of it)."""

    start: int
    end: int
    table: KeyTable


class MemoryKeyStore(KeyStore):
    """A `KeyStore` that is lost with the process."""

    def __init__(self, window: Window, max_bytes: int) -> None:
        self._window = window
        self._max_keys = max_bytes // BYTES_PER_KEY
        self._bucket_keys = max(1, self._max_keys // 8)
        self._buckets: list[_Bucket] = []
        """Oldest first; with equal start, in order of creation."""
        self._evicted_early = 0
        self._closed = False

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        check_use(keys, closed=self._closed)
        oldest = self._window.oldest(now, since)
        found = bytearray(len(keys) // KEY_BYTES)
        for bucket in self._buckets:
            if bucket.end > oldest:
                bucket.table.find(keys, oldest, found)
        return bytes(found)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        check_use(keys, closed=self._closed)
        stamp = self._window.stamp(now)
        # Bucket by bucket, none with more than an eighth of the limit: an eviction never drops more than that.
        position = 0
        while position < len(keys):
            bucket = self._active(stamp)
            room = min(self._bucket_keys - len(bucket.table), self._max_keys - self._keys()) * KEY_BYTES
            bucket.table.insert(keys[position : position + room], stamp)
            position += room
        return bytes([Stored.DURABLE]) * (len(keys) // KEY_BYTES)

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        # Whole buckets only: looking at each key would block the event loop.
        oldest = self._window.oldest(now)
        self._buckets = [bucket for bucket in self._buckets if bucket.end > oldest]

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        keys = self._keys()
        return KeyStoreStatistics(keys, keys * BYTES_PER_KEY, len(self._buckets), self._evicted_early)

    async def close(self) -> None:
        """See `KeyStore.close`."""
        # Every later call is an error (`check_use`), as with the other stores.
        self._closed = True
        self._buckets = []

    def _keys(self) -> int:
        # Computed from the three or four buckets, so that there is no count that could become wrong.
        return sum(len(bucket.table) for bucket in self._buckets)

    def _active(self, stamp: int) -> _Bucket:
        """Return the bucket for a key of `stamp`, with room for one more key within the limit."""
        start = self._window.bucket_start(stamp)
        newest = next((bucket for bucket in reversed(self._buckets) if bucket.start == start), None)
        if newest is None or len(newest.table) >= self._bucket_keys:
            newest = _Bucket(start, start + self._window.bucket_seconds, KeyTable())
            self._buckets.append(newest)
            self._buckets.sort(key=lambda bucket: bucket.start)
        if self._keys() >= self._max_keys:
            self._evict_oldest(newest, stamp)
        return newest

    def _evict_oldest(self, active: _Bucket, stamp: int) -> None:
        """Drop the oldest bucket."""
        # A bucket of the slice that is being written is dropped only if there is no other. If the clock went back, that
        # slice may be the oldest, and a chunk must not evict its own keys.
        others = [bucket for bucket in self._buckets if bucket is not active]
        oldest = min(others, key=lambda bucket: (bucket.start == active.start, bucket.start))
        self._buckets.remove(oldest)
        if oldest.end + self._window.seconds > stamp:
            self._evicted_early += len(oldest.table)
