"""The key store on disk for the event loop: `view` looks up, `folder` writes on a thread, another thread merges.

Merging is compiled code that does not hold the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from consumer.adapters.key_store.files import translated
from consumer.adapters.key_store.folder import Folder, mergeable
from consumer.adapters.key_store.interface import Window, check_use
from consumer.adapters.key_store.view import OpenSegment, View
from consumer.adapters.thread import OwnThread
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.messages import Stored
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError
from consumer.ports import KeyStore

_Result = TypeVar("_Result")

# Up to this size the store is assumed to be in the page cache, and look-ups run on the event loop. Beyond it they may
# have to wait for the disk, and run on a thread.
INLINE_BYTES = 1024**3

DISK_TIME_LIMIT = 30.0
"""Seconds after which a disk that does not answer is an error."""

_KEYS_AT_ONCE = 4096  # then others have a turn of the event loop
_EXPIRE_EVERY = 10.0  # seconds, where keys are kept for hours; at least ten times a bucket
_MERGE_AGAIN = 60.0  # seconds after a merge that failed: the disk may be full, and a merge writes much


async def ask_disk(
    thread: OwnThread, function: Callable[[], _Result], limit: float = DISK_TIME_LIMIT
) -> _Result:
    """Call `function` on the disk's thread and return its result.

    Raises `KeyStoreError` after `limit` seconds; the call cannot be undone and may still complete.
    """
    try:
        async with asyncio.timeout(limit) as limited:
            return await thread.run(function)
    except TimeoutError:
        if not limited.expired():  # raised by the call itself
            raise
    raise KeyStoreError(
        f"the key store's disk did not answer within {limit:g} s: check the disk, "
        "and whether another process that shares the key store is stopped or hangs"
    )


class DiskKeyStore(KeyStore):
    """A `KeyStore` in a folder on a local disk."""

    def __init__(self, path: str, window: Window, max_bytes: int) -> None:
        """Open the store in folder `path`, or create it. Raises `KeyStoreError`, which says what to do."""
        self._folder = Folder(path, window, max_bytes)
        self._window = window
        self._lost = 0
        self._deleted = 0
        """Keys that were in a deleted folder until it is made again."""
        self._view = View(self._folder.root)
        self._folder.announce = self._view.prepare
        with translated(self._folder.root):
            self._view.refresh()
            self._view.check()
            self._bytes = self._folder.bytes_on_disk()
        self._writer = OwnThread("key-store-writer")
        self._reader: OwnThread | None = None
        self._merger: OwnThread | None = None
        # Infinity from when a merge is queued until it has ended: two are never queued.
        self._merge_not_before = 0.0
        self._merge_failure: KeyStoreError | None = None
        self._waiting: list[tuple[bytes, int]] = []
        """Columns of keys with their stamps, which the next write takes."""
        self._writing: asyncio.Task[None] | None = None
        """The latest write; it begins when the one before it has ended."""
        self._expired_at = -math.inf
        self._closed = False

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        check_use(keys, closed=self._closed)
        await self._refresh()
        oldest = self._window.oldest(now, since)
        all_found = bytearray()
        for at in range(0, len(keys), _KEYS_AT_ONCE * KEY_BYTES):
            if at:
                await asyncio.sleep(0)  # let the other tasks of this event loop run
            some = keys[at : at + _KEYS_AT_ONCE * KEY_BYTES]
            found = bytearray(len(some) // KEY_BYTES)
            self._view.table.find(some, oldest, found)
            # The present segments: while a thread searches them, the list may change.
            search = partial(self._search, self._view.segments, some, oldest, found)
            if self._bytes <= INLINE_BYTES:
                search(beside=False)
            else:
                self._reader = self._reader or OwnThread("key-store-reader")
                await ask_disk(self._reader, partial(search, beside=True))
            all_found += found
        return bytes(all_found)

    def _search(
        self, segments: tuple[OpenSegment, ...], keys: bytes, oldest: int, found: bytearray, *, beside: bool
    ) -> None:
        with translated(self._folder.root):
            for one in reversed(segments):  # a key that comes again was mostly delivered lately
                one.find(keys, oldest, found, beside=beside)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        check_use(keys, closed=self._closed)
        if not keys:
            return b""
        # A flush takes milliseconds, so calls that come in that time share the next flush.
        if self._writing is None or not self._waiting:
            self._writing = asyncio.create_task(self._write(self._writing))
        self._waiting.append((keys, self._window.stamp(now)))
        # Other callers share the write: a caller that is cancelled must not cancel it.
        await asyncio.shield(self._writing)
        return bytes([Stored.DURABLE]) * (len(keys) // KEY_BYTES)

    async def _write(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        calls, self._waiting = self._waiting, []
        await self._refresh()  # if the folder was deleted, it is made again
        await self._change(partial(self._folder.append, calls))

    async def _change(self, step: Callable[[], None]) -> None:
        """Change the folder on the writer's thread, then read what has changed."""

        def run() -> None:
            try:
                step()
            except BaseException:  # of any kind: no list names the segments prepared for this change
                self._view.forget_prepared()
                raise
            self._bytes = self._folder.bytes_on_disk()

        await ask_disk(self._writer, run)
        await self._refresh()
        due = not self._closed and time.monotonic() >= self._merge_not_before
        if due and mergeable(self._view.files, self._folder.merge_bytes):
            self._merger = self._merger or OwnThread("key-store-merger")
            self._merge_not_before = math.inf
            self._merger.begin(self._merge)

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        if self._closed:
            return
        await self._refresh()
        if abs(now - self._expired_at) >= min(_EXPIRE_EVERY, self._window.bucket_seconds / 10):
            self._expired_at = now
            await self._change(partial(self._folder.expire, self._window.stamp(now)))
        # A merge has no caller of its own, so this one reports it, once.
        failure, self._merge_failure = self._merge_failure, None
        if failure is not None:
            raise failure

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        slices = {one.file.start for one in self._view.segments}
        if len(self._view.table):
            slices.add(self._view.files.start)
        return KeyStoreStatistics(
            keys=self._view.keys(),
            bytes_used=self._bytes,
            buckets=len(slices),
            evicted=self._folder.evicted_early + self._lost,
        )

    async def close(self) -> None:
        """See `KeyStore.close`."""
        if self._closed:
            return
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        # The merger first: it goes on writing until it sees that the store is closed.
        for thread in (self._merger, self._writer, self._reader):
            if thread is not None:  # a disk that hangs must not keep the process from ending
                await thread.end(timeout=DISK_TIME_LIMIT)
        self._view.close()

    async def _refresh(self) -> None:
        """Read what this process and others have changed."""
        with translated(self._folder.root):
            try:
                self._view.refresh()
            except FileNotFoundError:
                # The whole folder was deleted: make a new one, and count the keys that are lost.
                self._deleted += self._view.keys()
                self._view.close()
                # On the thread: this waits for the disk, and for the lock if another process does the same.
                if await ask_disk(self._writer, self._folder.open):
                    # Others that share the folder lost the same keys, and do not count them.
                    self._lost += self._deleted
                self._deleted = 0
                self._view.refresh()

    def _merge(self) -> None:
        not_before = 0.0
        try:
            self._folder.merge(lambda: not self._closed)
        except KeyStoreError as failure:
            self._view.forget_prepared()
            self._merge_failure = failure
            not_before = time.monotonic() + _MERGE_AGAIN
        finally:
            self._merge_not_before = not_before
