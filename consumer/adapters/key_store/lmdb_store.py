"""The key store on disk, and the boundary between the event loop and the disk.

`interface.py` has the rules of the window, `bucket.py` one LMDB environment, `journal.py` its latest keys,
`bucket_folder.py` the set of buckets. This module looks keys up in them and stores keys.

*Writing* happens on its own thread, so that an fsync does not stop the event loop. During a transaction, further calls
of `remember` queue up, and the next transaction takes them all. Most transactions only append to a bucket's journal;
sometimes one enters the journal into the tree. Of a thousand keys nearly each costs LMDB a page write, of a hundred
thousand only a few do. The binding releases the GIL at every key, and beside a busy event loop each key would wait for
it. So the event loop is paused while keys are entered (`Undisturbed`: about 4 ms at a time, 20 ms at most); it runs in
between and while the thread waits for the disk.

*Reading* happens on the event loop and takes 0.5 to 1.3 microseconds per key and bucket. A thread, which requests the
GIL at every key, takes half a second for a thousand keys beside a busy loop. Only a store larger than `INLINE_BYTES`,
where a look-up may wait for the disk, is read on a thread.

*The limit*: a bucket takes keys until it has a quarter of the limit, then the next one is begun. Before each
transaction its worst case is computed, and the oldest buckets are dropped until it fits.

Usually one process uses a folder; several on one host are supported. Network file systems are not supported, and
neither are containers with separate process ids that share a folder (LMDB identifies its readers by process id).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple, TypeVar

from consumer.adapters.key_store import journal
from consumer.adapters.key_store.bucket import MAP_BYTES, Bucket, BucketRetired
from consumer.adapters.key_store.bucket_folder import BucketFolder
from consumer.adapters.key_store.interface import KeyStoreStatistics, Window, check_keys
from consumer.adapters.thread import OwnThread
from consumer.errors import KeyStoreError

_Result = TypeVar("_Result")

INLINE_BYTES = 1024**3
"""Up to this size, look-ups run on the event loop: the store is assumed to be in the page cache."""

TIME_LIMIT = 30.0
"""Seconds after which a disk that does not answer is an error."""

_STAND_STILL = 0.02
"""Maximum seconds for which the event loop is paused in one transaction."""

_GROUP_KEYS = 20_000
_ENTERED_KEYS = 32_768
"""Maximum keys that one transaction enters into the tree: its own, and a full journal of three times as many."""
_FEWEST_KEYS = 8
"""Keys per transaction in the smallest store."""
_PAGE_BYTES = 4096
_DROPS_PER_EXPIRE = 8
_ATTEMPTS = 100
"""Attempts of a transaction after making room or losing its bucket: far more than there are buckets."""


class Undisturbed:
    """Pauses the event loop while a thread is in this context, at most `most` seconds.

    It is for work that repeatedly releases the GIL and requests it again: beside a busy event loop it would wait each
    time, and waiting costs more than the work. A pause of a few milliseconds is cheaper for both.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: float) -> None:
        self._loop = loop
        self._most = most
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._done.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._done.wait, self._most)

    def __exit__(self, *_: object) -> None:
        self._done.set()


async def ask_disk(thread: OwnThread, function: Callable[[], _Result], limit: float = TIME_LIMIT) -> _Result:
    """Call `function` on the disk's thread and return its result.

    Raises `KeyStoreError` after `limit` seconds; the call cannot be undone and may still complete.
    """
    try:
        async with asyncio.timeout(limit) as limited:
            return await thread.run(function)
    except TimeoutError:
        if not limited.expired():
            raise
    raise KeyStoreError(
        f"the key store's disk did not answer within {limit:g} s: check the disk, "
        "and whether another process that shares the key store is stopped or hangs"
    )


class _Pending(NamedTuple):
    """A call of `remember` that waits to be written."""

    keys: Sequence[bytes]
    stamp: int
    done: asyncio.Future[None]


class LmdbKeyStore:
    """A `KeyStore` in a folder on a local disk; opened by `LmdbKeyStore.open`."""

    def __init__(self, folder: BucketFolder, window: Window, max_bytes: int) -> None:
        self._folder = folder
        self._window = window
        self._max_bytes = max_bytes
        self._quota = min(max_bytes, MAP_BYTES) // 4
        self._transaction_keys, self._journal_keys = _transaction_keys(max_bytes)
        self._bytes = folder.bytes_on_disk()
        self._evicted_early = 0
        self._problem: str | None = None
        self._writer = OwnThread("key-store-writer")
        self._reader: OwnThread | None = None
        self._pending: deque[_Pending] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def open(cls, path: str, window: Window, max_bytes: int) -> LmdbKeyStore:
        """Open the store in folder `path`, or create it. Raises `KeyStoreError`, which says what to do."""
        return cls(BucketFolder(path, window), window, max_bytes)

    async def look_up(self, keys: Sequence[bytes], now: float, since: float | None = None) -> list[bool]:
        """See `KeyStore.look_up`."""
        self._check_open()
        oldest = self._window.oldest(now, since)
        if self._bytes <= INLINE_BYTES:
            return self._look_up(keys, oldest)
        if self._reader is None:
            self._reader = OwnThread("key-store-reader")
        return await ask_disk(self._reader, partial(self._look_up, keys, oldest))

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """See `KeyStore.remember`."""
        self._check_open()
        check_keys(keys)
        if not keys:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._pending.append(_Pending(keys, self._window.stamp(now), done))
        if self._writing is None:
            self._writing = loop.create_task(self._write_pending())
        await done

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        if self._closed:
            return
        try:
            await ask_disk(self._writer, partial(self._expire, self._window.stamp(now)))
            self._problem = None
        except KeyStoreError as failure:
            self._problem = str(failure)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        buckets = self._folder.listed()
        return KeyStoreStatistics(
            keys=sum(bucket.entries() for bucket in buckets),
            bytes_used=self._bytes,
            buckets=len(buckets),
            oldest=buckets[-1].name.start if buckets else None,
            evicted_early=self._evicted_early + self._folder.lost(),
            problem=self._problem,
        )

    async def close(self) -> None:
        """See `KeyStore.close`."""
        if self._closed:
            return
        self._closed = True
        if self._writing is not None:
            await self._writing
        for thread in (self._writer, self._reader):
            if thread is not None:
                await thread.end(timeout=TIME_LIMIT)
        self._folder.close()

    def _check_open(self) -> None:
        if self._closed:
            raise KeyStoreError("the key store is closed: open it again before use")

    # --- on the event loop ---

    async def _write_pending(self) -> None:
        """Write the pending calls, group by group, until none is left."""
        try:
            while self._pending:
                await self._write_group(self._take_group())
        finally:
            self._writing = None

    def _take_group(self) -> list[_Pending]:
        """Take the pending calls for the next transactions, up to a limit on their keys."""
        group = [self._pending.popleft()]
        keys = len(group[0].keys)
        while self._pending and keys + len(self._pending[0].keys) <= _GROUP_KEYS:
            group.append(self._pending.popleft())
            keys += len(group[-1].keys)
        return group

    async def _write_group(self, group: list[_Pending]) -> None:
        """Write one group and report success or failure to its callers."""
        failure: BaseException | None = asyncio.CancelledError()
        try:
            undisturbed = Undisturbed(asyncio.get_running_loop(), _STAND_STILL)
            calls = [(call.keys, call.stamp) for call in group]
            await ask_disk(self._writer, partial(self._write, calls, undisturbed))
            failure = None
        except Exception as raised:  # also a bug: the callers must not wait for ever
            failure = raised
        finally:
            for call in group:
                _settle(call.done, failure)

    # --- on the thread that reads ---

    def _look_up(self, keys: Sequence[bytes], oldest: int) -> list[bool]:
        wanted = oldest.to_bytes(4, "big")
        found: set[bytes] = set()
        for bucket in self._folder.buckets():
            if bucket.name.end > oldest:
                found |= _find(bucket, keys, wanted)
        return [key in found for key in keys] if found else [False] * len(keys)

    # --- on the writer's thread ---

    def _write(self, calls: list[tuple[Sequence[bytes], int]], undisturbed: Undisturbed) -> None:
        """Store the keys of several calls, each with its latest stamp."""
        for start, part in _parts(calls, self._window, self._transaction_keys):
            self._write_part(start, part, undisturbed)
        self._bytes = self._folder.bytes_on_disk()

    def _write_part(self, start: int, part: bytes, undisturbed: Undisturbed) -> None:
        """Store keys of the slice of time at `start` in one transaction; drop old buckets to make room."""
        for _ in range(_ATTEMPTS):
            bucket = self._folder.active(start, self._quota)
            try:
                stored = bucket.put(part, self._room, self._journal_keys, undisturbed)
            except BucketRetired:  # another process dropped it: use the next one
                continue
            if not stored:
                self._evict_oldest(journal.last_stamp(part), but=bucket)
            elif bucket.is_on_disk():  # if not, it was dropped while we wrote, and the keys with it
                return
        raise KeyStoreError(
            f"the key store {self._folder.root} found no room in {_ATTEMPTS} attempts: raise its size limit, "
            "and check that all processes that share it have the same limit"
        )

    def _room(self) -> int:
        """Bytes left under the limit."""
        return self._max_bytes - self._folder.bytes_on_disk()

    def _evict_oldest(self, latest: bytes, *, but: Bucket) -> None:
        """Drop the oldest bucket although its keys may still be in the window; never `but`, the one being written.

        A bucket of the slice being written is dropped only if there is no other: if the clock went back, that slice
        may be the oldest, and a chunk must not evict its own keys.
        """
        others = [bucket for bucket in self._folder.buckets() if bucket is not but]
        if not others:
            return
        oldest = min(others, key=lambda bucket: (bucket.name.start == but.name.start, bucket.name))
        keys = self._folder.drop(oldest)
        if oldest.name.forgotten_at(self._window.seconds) > int.from_bytes(latest, "big"):
            self._evicted_early += keys

    def _expire(self, stamp: int) -> None:
        self._folder.drop_forgotten(stamp, _DROPS_PER_EXPIRE)
        for bucket in self._folder.buckets():
            bucket.free_stale_readers()
        self._bytes = self._folder.bytes_on_disk()


def _settle(done: asyncio.Future[None], failure: BaseException | None) -> None:
    if done.done():  # its caller was cancelled
        return
    if failure is None:
        done.set_result(None)
    elif isinstance(failure, asyncio.CancelledError):
        done.cancel()
    else:
        done.set_exception(failure)


def _find(bucket: Bucket, keys: Sequence[bytes], oldest: bytes) -> set[bytes]:
    try:
        return bucket.find(keys, oldest)
    except BucketRetired:  # dropped since it was listed: its keys are forgotten
        return set()


def _parts(
    calls: Sequence[tuple[Sequence[bytes], int]], window: Window, size: int
) -> Iterator[tuple[int, bytes]]:
    """Split keys into transactions: each of one slice of time, at most `size` keys, in the order of their stamps."""
    slices: dict[int, bytearray] = {}
    for keys, stamp in sorted(calls, key=itemgetter(1)):
        slices.setdefault(window.bucket_start(stamp), bytearray()).extend(
            journal.entries(keys, stamp.to_bytes(4, "big"))
        )
    step = size * journal.ENTRY_BYTES
    for start, entries in slices.items():
        for at in range(0, len(entries), step):
            yield start, bytes(entries[at : at + step])


def _transaction_keys(max_bytes: int) -> tuple[int, int]:
    """Return the maximum keys of a transaction and of a journal.

    In the worst case, the keys that a transaction enters into the tree (its own and a full journal) take a little more
    than two pages each. That must be at most an eighth of the limit. The smallest stores have no journal.
    """
    most = min(_ENTERED_KEYS, max(_FEWEST_KEYS, (max_bytes // 8 // _PAGE_BYTES - 64) // 2))
    keys = max(_FEWEST_KEYS, most // 4)
    return keys, most - keys
