"""The interface of key stores and the arithmetic of the window, shared by all implementations.

A key store remembers the 16-byte keys of *delivered* events for a window, so that a record that is read again is
recognised as a duplicate and not sent again. Rules for every implementation:

* Time comes from the caller: every call takes `now` in unix seconds, and no store reads a clock to judge a key.
* The **stamp** of a key is the whole second of its latest delivery (of two stamps the later one counts). A key
  is remembered at `now` while ``floor(now) - stamp <= window``. So it is never forgotten before the window ends,
  and at most one second after. A stamp in the future (the clock went back) counts as remembered.
* Keys are stored in **buckets**: slices of time half a window long that begin at multiples of that length, so that
  processes that share a store agree on them without communication. A bucket is dropped as a whole when its last
  possible stamp is out of the window. Single keys are never deleted: in another system, deleting keys one by one let
  the dedup store outgrow its disk (docs/why.md, PostHog #44051).
* A store has a hard limit in bytes. Before it is exceeded, the oldest bucket is dropped although its keys may still
  be in the window; they are counted in `KeyStoreStatistics.evicted_early`, and the caller warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consumer.errors import InvariantViolation, SettingsError

KEY_BYTES = 16
"""Length of a key, a hash that the caller computes."""

MAX_STAMP = 2**32 - 1
"""Stamps are kept as four bytes (until the year 2106)."""


class KeyStoreStatistics(NamedTuple):
    """A snapshot for the page and the metrics."""

    keys: int
    """Keys held, including those already out of the window; a key in two buckets counts twice."""
    bytes_used: int
    """Bytes on disk (or an upper bound of those in memory); never above the store's limit."""
    buckets: int
    oldest: int | None
    """Unix seconds at which the oldest bucket begins; None when the store is empty."""
    evicted_early: int
    """Keys that this process dropped within their window because of the size limit. If not zero, raise the limit."""
    problem: str | None
    """Why the last `KeyStore.expire` failed; None if it succeeded."""


class KeyStore(Protocol):
    """Keys of delivered events, remembered for a window. Made by `open_key_store`; used by one event loop."""

    async def look_up(self, keys: Sequence[bytes], now: float, since: float | None = None) -> list[bool]:
        """Return for each key whether it is remembered at `now` (unix seconds). Raises `KeyStoreError` if unreadable.

        With `since` (unix seconds), only keys whose latest delivery was at or after that second count.
        """
        ...

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """Store the keys as delivered at `now`; durable on return.

        Raises `KeyStoreError` if it is not certain that all are stored. Some may be; trying again is safe.
        """
        ...

    async def expire(self, now: float) -> None:
        """Drop buckets that are out of the window. It does bounded work and is called every few seconds.

        It never raises for failures of the disk; `KeyStoreStatistics.problem` reports them.
        """
        ...

    def statistics(self) -> KeyStoreStatistics:
        """Return a snapshot of the store's size. It is cheap and does not wait."""
        ...

    async def close(self) -> None:
        """Finish pending writes and release all resources; a second call does nothing."""
        ...


class Window(NamedTuple):
    """The window and the length of its buckets, in whole seconds."""

    seconds: int
    bucket_seconds: int

    @classmethod
    def of(cls, window: float) -> Window:
        """Make a window of `window` seconds, rounded up. Raises `SettingsError` unless it is positive."""
        if not 0 < window <= MAX_STAMP:
            raise SettingsError(f"the dedup window cannot be {window} s: set a positive duration such as 48h")
        seconds = math.ceil(window)
        return cls(seconds, bucket_length(seconds))

    def stamp(self, now: float) -> int:
        """The stamp of a delivery at `now`."""
        return min(max(math.floor(now), 0), MAX_STAMP)

    def oldest(self, now: float, since: float | None = None) -> int:
        """The oldest stamp that is still remembered at `now` and is not before `since`."""
        remembered = max(0, self.stamp(now) - self.seconds)
        return remembered if since is None else max(remembered, self.stamp(since))

    def bucket_start(self, stamp: int) -> int:
        """The begin of the bucket of `stamp`."""
        return stamp - stamp % self.bucket_seconds


def bucket_length(window_seconds: int) -> int:
    """Length of a bucket in seconds: half a window, so that at most three buckets are needed at any time."""
    return max(1, math.ceil(window_seconds / 2))


def check_keys(keys: Sequence[bytes]) -> None:
    """Raise `InvariantViolation` unless every key has `KEY_BYTES` bytes: any other length is a bug in the caller."""
    for key in keys:
        if len(key) != KEY_BYTES:
            raise InvariantViolation(f"a dedup key has {len(key)} bytes instead of {KEY_BYTES}")
