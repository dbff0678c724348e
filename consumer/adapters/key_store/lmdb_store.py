"""The key store on disk, and the seam between the event loop and the disk.

Where things are: `interface.py` the rules of the window, `bucket.py` one LMDB environment, `journal.py` the youngest
keys in it, `bucket_folder.py` which of them exist, here what is done with them.

*Writing* happens on a thread of its own, so that no fsync stops the event loop. While one transaction is under way
further calls of `remember` gather, and the next transaction takes them all. Most transactions only append to a bucket's
journal; one in several enters what has gathered there into the tree, where LMDB writes a page for nearly every key of a
thousand, and for a few of a hundred thousand. The binding lets go of the GIL at every key, so beside a busy event loop
each key would cost a turn; so the loop stands still while keys are entered (`Undisturbed`: some 4 ms at a time, 20 ms
at the most), and goes on in between and while the disk is waited for.

*Reading* happens inline: half a microsecond to 1.3 per key and bucket, whereas a thread, which asks for the GIL at
every key, takes half a second for a chunk of a thousand beside a busy loop. Only when the store outgrows
`INLINE_BYTES`, so that a look-up may wait for the disk, it is moved to a thread.

*The limit*: a bucket takes keys until it has a quarter of the limit, then the next one is begun. Before each
transaction its worst case is reckoned, and the oldest buckets are dropped until it fits.

One process per folder is the usual case, several on one host are fine. Not fine: network file systems, and
containers with process ids of their own sharing a folder (LMDB knows its readers by process id).
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
"""Up to this size look-ups are made on the event loop: it is taken to be in the page cache."""

TIME_LIMIT = 30.0
"""Seconds after which a disk that does not answer is an error."""

_STAND_STILL = 0.02
"""Seconds that the event loop stands still at the most for one transaction."""

_GROUP_KEYS = 20_000
_ENTERED_KEYS = 32_768
"""Keys that one transaction enters into the tree at the most: its own, and a full journal with three times as many."""
_FEWEST_KEYS = 8
"""Keys of a transaction in the smallest store."""
_PAGE_BYTES = 4096
_DROPS_PER_EXPIRE = 8
_ATTEMPTS = 100
"""Times a transaction is tried anew after making room or losing its bucket: far more than there are buckets."""


class Undisturbed:
    """While a thread is in this context, the event loop stands still for it, at most `most` seconds.

    For work that releases the GIL over and over and asks for it again at once: beside a busy event loop it would
    wait for its turn each time, and every turn costs more than the work. Standing still for a few milliseconds is
    cheaper for both.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: float) -> None:
        self._loop = loop
        self._most = most
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._done.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed: it disturbs no more
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
    """A `KeyStore` in a folder on a local disk; made by `LmdbKeyStore.open`."""

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
        """Open or make the store in folder `path`; raises `KeyStoreError`, saying what to do."""
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
        """Write all that waits, group after group, until nothing waits."""
        try:
            while self._pending:
                await self._write_group(self._take_group())
        finally:
            self._writing = None

    def _take_group(self) -> list[_Pending]:
        """Take the calls that the next transactions serve: all that wait, up to a bound on their keys."""
        group = [self._pending.popleft()]
        keys = len(group[0].keys)
        while self._pending and keys + len(self._pending[0].keys) <= _GROUP_KEYS:
            group.append(self._pending.popleft())
            keys += len(group[-1].keys)
        return group

    async def _write_group(self, group: list[_Pending]) -> None:
        """Write one group and tell its callers; whatever goes wrong is theirs to hear."""
        failure: BaseException | None = asyncio.CancelledError()
        try:
            undisturbed = Undisturbed(asyncio.get_running_loop(), _STAND_STILL)
            calls = [(call.keys, call.stamp) for call in group]
            await ask_disk(self._writer, partial(self._write, calls, undisturbed))
            failure = None
        except Exception as raised:  # a bug too: a caller must not wait for ever
            failure = raised
        finally:
            for call in group:
                _settle(call.done, failure)

    # --- on whichever thread reads ---

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
        """Store keys of the slice of time at `start` in one transaction, dropping old buckets to make room."""
        for _ in range(_ATTEMPTS):
            bucket = self._folder.active(start, self._quota)
            try:
                stored = bucket.put(part, self._room, self._journal_keys, undisturbed)
            except BucketRetired:  # another process dropped it: take the next one
                continue
            if not stored:
                self._evict_oldest(journal.last_stamp(part), but=bucket)
            elif bucket.is_on_disk():  # or else it was dropped while we wrote, and the keys went with it
                return
        raise KeyStoreError(
            f"the key store {self._folder.root} found no room in {_ATTEMPTS} attempts: raise its size limit, "
            "and see that all processes that share it have the same"
        )

    def _room(self) -> int:
        """Bytes left under the limit."""
        return self._max_bytes - self._folder.bytes_on_disk()

    def _evict_oldest(self, latest: bytes, *, but: Bucket) -> None:
        """Drop the oldest bucket although keys in it may still be in the window; never the one being written.

        One of the slice being written only if there is no other: after the clock went back that slice may be the
        oldest, and a chunk shall not push out its own keys.
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
    """Split keys into transactions: those of one slice of time, at most `size`, in the order of their stamps."""
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
    """Keys per transaction and keys in a journal.

    What a transaction enters into the tree (its own keys and a full journal) takes two pages a key and some at worst:
    that shall be an eighth of the limit at most. The smallest stores have no journal.
    """
    most = min(_ENTERED_KEYS, max(_FEWEST_KEYS, (max_bytes // 8 // _PAGE_BYTES - 64) // 2))
    keys = max(_FEWEST_KEYS, most // 4)
    return keys, most - keys
