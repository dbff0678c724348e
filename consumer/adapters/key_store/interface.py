"""What a key store is, and the arithmetic of its window: shared by every implementation.

A key store remembers the 16-byte keys of *delivered* events for a window, so that a record read again is found
to be a duplicate and not sent again. Rules that hold for every implementation:

* Time is the caller's: every call takes `now` in unix seconds and no store reads a clock to judge a key.
* The **stamp** of a key is the whole second of its latest delivery (of two stamps the later one counts). A key
  is remembered at `now` while ``floor(now) - stamp <= window``. So it is never forgotten before the window is
  over and at most one second after. A stamp in the future (the clock went back) counts as remembered.
* Keys live in **buckets**: slices of time half a window long, which begin at multiples of that length, so that
  processes that share a store agree on them without talking. A bucket is dropped whole once its last possible
  stamp is out of the window; single keys are never deleted, which is what let another system's dedup store
  outgrow its disk (docs/why.md, PostHog #44051).
* A store has a hard limit in bytes. When it would be exceeded the oldest bucket is dropped although its keys are
  still in the window; they are counted in `KeyStoreStatistics.evicted_early`, and the caller warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consumer.errors import InvariantViolation, SettingsError

KEY_BYTES = 16
"""Length of a key: account, event name and event id, hashed by the caller."""

MAX_STAMP = 2**32 - 1
"""Stamps are kept as four bytes (until the year 2106)."""


class KeyStoreStatistics(NamedTuple):
    """A snapshot for the page and the metrics."""

    keys: int
    """Keys held, those already out of the window included; a key delivered in two buckets counts twice."""
    bytes_used: int
    """Bytes on disk (or an upper bound of those in memory); never above the store's limit."""
    buckets: int
    oldest: int | None
    """Unix seconds at which the oldest bucket begins; None when the store is empty."""
    evicted_early: int
    """Keys this process dropped inside their window because of the size limit. Not zero: raise the limit."""
    problem: str | None
    """Why the last `KeyStore.expire` could not finish; None when it did."""


class KeyStore(Protocol):
    """Keys of delivered events, remembered for a window. Made by `open_key_store`; used by one event loop."""

    async def look_up(self, keys: Sequence[bytes], now: float, since: float | None = None) -> list[bool]:
        """Tell for each key whether it is remembered at `now` (unix seconds); raise `KeyStoreError` if unreadable.

        `since` (unix seconds): only if its latest delivery was at or after that second.
        """
        ...

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """Store the keys as delivered at `now`; durable on return.

        Raises `KeyStoreError` when it is not certain that all are stored (some may be: to try again is safe).
        """
        ...

    async def expire(self, now: float) -> None:
        """Drop what is out of the window: bounded work, called every few seconds.

        Never raises for what the outside does; what went wrong shows in `KeyStoreStatistics.problem`.
        """
        ...

    def statistics(self) -> KeyStoreStatistics:
        """A snapshot of the store's size; cheap, and without waiting."""
        ...

    async def close(self) -> None:
        """Finish the writes under way and let go of everything; a second call does nothing."""
        ...


class Window(NamedTuple):
    """The window and its buckets' length, in whole seconds."""

    seconds: int
    bucket_seconds: int

    @classmethod
    def of(cls, window: float) -> Window:
        """Make a window of `window` seconds, rounded up to whole ones; raise `SettingsError` unless it is positive."""
        if not 0 < window <= MAX_STAMP:
            raise SettingsError(f"the dedup window cannot be {window} s: set a positive duration such as 48h")
        seconds = math.ceil(window)
        return cls(seconds, bucket_length(seconds))

    def stamp(self, now: float) -> int:
        """The stamp of a delivery at `now`."""
        return min(max(math.floor(now), 0), MAX_STAMP)

    def oldest(self, now: float, since: float | None = None) -> int:
        """The oldest stamp that is still remembered at `now`, or asked for: not before `since`."""
        remembered = max(0, self.stamp(now) - self.seconds)
        return remembered if since is None else max(remembered, self.stamp(since))

    def bucket_start(self, stamp: int) -> int:
        """Where the bucket of `stamp` begins."""
        return stamp - stamp % self.bucket_seconds


def bucket_length(window_seconds: int) -> int:
    """Length of a bucket in seconds: half a window, so that at most three buckets are live at any time."""
    return max(1, math.ceil(window_seconds / 2))


def check_keys(keys: Sequence[bytes]) -> None:
    """Raise `InvariantViolation` unless every key has `KEY_BYTES` bytes: any other length is a bug of the caller."""
    for key in keys:
        if len(key) != KEY_BYTES:
            raise InvariantViolation(f"a dedup key has {len(key)} bytes where {KEY_BYTES} are agreed")
