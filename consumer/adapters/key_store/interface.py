"""The interface of key stores and the arithmetic of the window, shared by all implementations.

A key store remembers the 16-byte keys of *delivered* events for a window, so that a record that is read again is
recognised as a duplicate and not sent again. Rules for every implementation:

* Time comes from the caller: every call takes `now` in unix seconds, and no store reads a clock to judge a key. It is
  the engine's time and not this machine's (`consumer.engine.context.Clock`): for `confirm` when events were delivered,
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
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.model import Announcement, Note
from consumer.engine.reading import KEY_BYTES
from consumer.errors import InvariantViolation, KeyStoreError, SettingsError

MAX_STAMP = 2**32 - 1  # stamps are kept as four bytes: until the year 2106


class Damage(Exception):
    """A file's content is not what was written. `translated` makes it a `KeyStoreError`; it never leaves the store."""


class Claimed(NamedTuple):
    """The answer of `KeyStore.claim`."""

    found: bytes
    """A byte for each key: 0, not delivered, and claimed by us now; 1, delivered within the window; 2, another member
    has it in flight."""
    session: int
    """The number of our session that holds the claims, from 1; 0: the store is not shared."""


class Renewed(NamedTuple):
    """The lease holds for its full length, from the moment when `KeyStore.renew` was called."""

    session: int
    """If it differs from the one before, the earlier claims are void."""
    notes: Sequence[Note] = ()
    """Notes of other members that still hold."""
    others: Sequence[Announcement] = ()
    """What the other members announce."""


class Given(NamedTuple):
    """Calls given from a quota."""

    calls: int
    wait: float
    """Seconds until calls are free, if none are now."""


class KeyStore(Protocol):
    """Keys of delivered events, remembered for a window. Made by `open_key_store`; used by one event loop.

    Keys come as one column: a bytes object with `KEY_BYTES` for each key. A member knows its own events in flight
    (`consumer.engine.claims`); only a store that members share keeps claims, and there `claim`, `release` and `renew`
    do more than here.
    """

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """Return a byte for each key: 1 if it is remembered at `now` (unix seconds), else 0.

        With `since` (unix seconds), only keys whose latest delivery was at or after that second count. Raises
        `KeyStoreError` if the store cannot be read.
        """
        ...

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """Look keys up, as `look_up` does; where members share the store, claim those that were not delivered, and that
        no live session of another member has claimed. Raises `KeyStoreError`; trying again is safe."""
        return Claimed(await self.look_up(keys, now, since), 0)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """Store the keys as delivered at `now`, and end our claims.

        Returns a byte for each key: 1, it is durable; 0, another member has claimed it by now; 2, it is durable, and
        another member had claimed and delivered it, too. (A store that is not shared has no other members: 1 for all.)
        Raises `KeyStoreError` if it is not certain that all are stored. Some may be; trying again is safe.
        """
        ...

    async def release(self, keys: bytes) -> None:
        """End our claims on keys that we will not deliver. Raises `KeyStoreError`."""
        return

    async def renew(self) -> Renewed:
        """Prolong the lease on our claims, or begin a session. Raises `KeyStoreError`."""
        return Renewed(0)

    async def members(self) -> Sequence[Announcement]:
        """Return what the members announce that share the store now. Raises `KeyStoreError`."""
        return ()

    async def tell(self, note: Note) -> None:
        """Tell a note to the other members, which get it from `renew` until it expires. Raises `KeyStoreError`."""
        return

    async def ask_calls(self, quota: str, calls: int, per_minute: int, seconds: float) -> Given:
        """Ask for at most `calls` of the quota with this name: `per_minute` in any 60 seconds, for all members
        together. The calls must be made within `seconds`, or not at all. Raises `KeyStoreError`."""
        return Given(calls, 0.0)

    async def expire(self, now: float) -> None:
        """Drop keys that are out of the window. It does bounded work and is called every few seconds.

        Raises `KeyStoreError` if it fails, or if other housekeeping has failed since the last call. Events can still be
        delivered while old keys stay.
        """
        ...

    async def review(self) -> Sequence[str]:
        """Return what does not fit in the store's own configuration, and what to do. Raises `KeyStoreError`."""
        return ()

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
