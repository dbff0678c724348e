"""The key store in memory: one dict per bucket of time, dropped whole.

It follows the same rules as the store on disk (interface.py). Tests and the demo use it, and it is a valid choice if
duplicates after a restart do no harm. A bucket that has grown to a quarter of the limit is closed and another one
begun, so that an eviction never drops more than about a quarter of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumer.adapters.key_store.interface import KeyStoreStatistics, Window, check_keys
from consumer.errors import KeyStoreError

BYTES_PER_KEY = 128
"""Upper bound of the memory of a key: 64 for the bytes object as allocated, up to 60 for its share of a dict that
has just grown (CPython 3.11, measured with 100,000 to 3 million keys: 94 to 124)."""


class _Bucket:
    """Keys of one slice of time (or of a part of it), each with its stamp."""

    __slots__ = ("end", "stamps", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.stamps: dict[bytes, int] = {}


class MemoryKeyStore:
    """A `KeyStore` that is lost with the process."""

    def __init__(self, window: Window, max_bytes: int) -> None:
        self._window = window
        self._max_keys = max_bytes // BYTES_PER_KEY
        self._bucket_keys = max(1, self._max_keys // 4)
        self._buckets: list[_Bucket] = []  # oldest first; with equal start, in order of creation
        self._evicted_early = 0
        self._closed = False

    async def look_up(self, keys: Sequence[bytes], now: float, since: float | None = None) -> list[bool]:
        """See `KeyStore.look_up`."""
        self._check_open()
        oldest = self._window.oldest(now, since)
        live = [bucket.stamps for bucket in reversed(self._buckets) if bucket.end > oldest]
        return [any(stamps.get(key, -1) >= oldest for stamps in live) for key in keys]

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """See `KeyStore.remember`."""
        self._check_open()
        check_keys(keys)
        stamp = self._window.stamp(now)
        position = 0
        while position < len(keys):
            bucket = self._active(stamp)
            room = min(self._bucket_keys - len(bucket.stamps), self._max_keys - self._keys())
            _put(bucket.stamps, keys[position : position + room], stamp)
            position += room

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        oldest = self._window.oldest(now)
        self._buckets = [bucket for bucket in self._buckets if bucket.end > oldest]

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        keys = self._keys()
        oldest = self._buckets[0].start if self._buckets else None
        return KeyStoreStatistics(
            keys, keys * BYTES_PER_KEY, len(self._buckets), oldest, self._evicted_early, None
        )

    async def close(self) -> None:
        """See `KeyStore.close`."""
        self._closed = True
        self._buckets = []

    def _check_open(self) -> None:
        if self._closed:
            raise KeyStoreError("the key store is closed: open it again before use")

    def _keys(self) -> int:
        return sum(len(bucket.stamps) for bucket in self._buckets)

    def _active(self, stamp: int) -> _Bucket:
        """Return the bucket for a key of `stamp`, with room for one more key within the limit."""
        start = self._window.bucket_start(stamp)
        newest = next((bucket for bucket in reversed(self._buckets) if bucket.start == start), None)
        if newest is None or len(newest.stamps) >= self._bucket_keys:
            newest = _Bucket(start, start + self._window.bucket_seconds)
            self._buckets.append(newest)
            self._buckets.sort(key=lambda bucket: bucket.start)
        if self._keys() >= self._max_keys:
            self._evict_oldest(newest, stamp)
        return newest

    def _evict_oldest(self, active: _Bucket, stamp: int) -> None:
        """Drop the oldest bucket; one of the slice being written only if there is no other.

        If the clock went back, that slice may be the oldest, and a chunk must not evict its own keys.
        """
        others = [bucket for bucket in self._buckets if bucket is not active]
        oldest = min(others, key=lambda bucket: (bucket.start == active.start, bucket.start))
        self._buckets.remove(oldest)
        if oldest.end + self._window.seconds > stamp:
            self._evicted_early += len(oldest.stamps)


def _put(stamps: dict[bytes, int], keys: Sequence[bytes], stamp: int) -> None:
    """Set the stamp of the keys unless they have a later one."""
    for key in keys:
        if stamps.get(key, -1) < stamp:
            stamps[key] = stamp
