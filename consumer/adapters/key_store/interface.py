"""The interface of key stores and the arithmetic of the window, shared by all implementations.

A key store remembers the 16-byte keys of *delivered* events for a window, so that a record that is read again is
recognised as a duplicate and not sent again. Rules for every implementation:

* Time comes from the caller: every call takes `now` in unix seconds, and no store reads a clock to judge a key. It is
  the engine's time and not this machine's (`consumer.engine.clock`): for `confirm` when events were delivered,
  for all else the time by which keys are out of the window. No jump of a clock moves that, and it is 0 until something
  has confirmed the clock: then nothing is out of the window.
* The **stamp** of a key is the whole second of its latest delivery (of two stamps the later one counts). A key
  is remembered at `now` while ``floor(now) - stamp <= window``. So it is never forgotten before the window ends,
  and at most one second after. A stamp in the future (the clock went back) counts as remembered.
* On disk and in memory, keys are stored by **slices of time** half a window long that begin at multiples of that
  length, so that processes that share a folder agree on them without communication. A slice is dropped as a whole when
  its last possible stamp is out of the window. Single keys are never deleted: in another system, deleting keys one by
  one let the dedup store outgrow its disk (docs/why.md, PostHog #44051). (Redis frees what is deleted: see `shared`.)
* A store has a hard limit in bytes. Before it is exceeded, the keys that were written first are dropped, an eighth of
  the store or less at a time, although they may still be in the window; they are counted in
  `KeyStoreStatistics.evicted_early`, and the caller warns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from consumer.engine.reading import KEY_BYTES
from consumer.errors import InvariantViolation, KeyStoreError

MAX_STAMP = 2**32 - 1  # stamps are kept as four bytes: until the year 2106


class Damage(Exception):
    """A file's content is not what was written. `translated` makes it a `KeyStoreError`; it never leaves the store."""


class Window(NamedTuple):
    """The window and the length of its buckets, in whole seconds."""

    seconds: int
    bucket_seconds: int

    @classmethod
    def of(cls, window: float) -> Window:
        """Make a window of `window` seconds, rounded up."""
        seconds = math.ceil(window)
        return cls(seconds, bucket_length(seconds))

    def stamp(self, now: float) -> int:
        """Return the stamp of a delivery at `now`."""
        # A clock may be wrong; keys of before 1970 or after 2106 are kept under the nearest stamp.
        return min(max(math.floor(now), 0), MAX_STAMP)

    def oldest(self, now: float, since: float | None = None) -> int:
        """Return the oldest stamp that is still remembered at `now` and is not before `since`."""
        # Whole seconds, rounded so that a key is remembered too long rather than too short.
        remembered = max(0, self.stamp(now) - self.seconds)
        return remembered if since is None else max(remembered, self.stamp(since))

    def bucket_start(self, stamp: int) -> int:
        """Return the first second of the bucket of `stamp`."""
        return stamp - stamp % self.bucket_seconds


def bucket_length(window_seconds: int) -> int:
    """Return the length of a bucket in seconds."""
    # Half a window: at most three buckets are needed at any time. With shorter buckets each look-up would search more,
    # with longer ones more keys would be kept beyond their window.
    return max(1, math.ceil(window_seconds / 2))


def check_use(keys: bytes, *, closed: bool) -> None:
    """Raise `KeyStoreError` for a closed store, and `InvariantViolation` for a column that is not whole keys."""
    if closed:
        raise KeyStoreError("the key store is closed: open it again before use")
    if len(keys) % KEY_BYTES:  # a bug in the caller, which may have cut off a key anywhere in it
        raise InvariantViolation(
            f"a column of dedup keys has {len(keys)} bytes, which is not {KEY_BYTES} a key"
        )
