"""One bucket on disk: a folder with one LMDB environment that maps key -> stamp.

Its name is ``b-<start>-<window>-<sequence>``: the unix second at which its slice of time begins, the window of its
writer in seconds (which gives the length of the slice), and a number that distinguishes the buckets of a slice when one
has grown too large. So the name alone says when a bucket may be dropped.

Stamps are stored as four big-endian bytes, which sort like the numbers. Recently stored keys are in a journal and not
yet in LMDB's tree (journal.py): a bucket has a key if it is in either.

An environment must never be closed while any thread has a transaction open on it. So it is used only under a lease
(`Bucket.lease`). `Bucket.retire` prevents further leases, and the last lease to end closes the environment.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple

import lmdb

from consumer.adapters.key_store import journal
from consumer.adapters.key_store.failures import Damage, translated
from consumer.adapters.key_store.interface import bucket_length
from consumer.adapters.key_store.pages import first_missing
from consumer.errors import KeyStoreError

MAP_BYTES = 16 * 1024**3
"""Address space that each environment maps. It costs nothing until used and is part of the format: it is the same in
every process, and buckets end long before it, so a map never has to grow (MDB_MAP_FULL, MDB_MAP_RESIZED)."""

_KEYS_AT_ONCE = 4096
"""Keys entered into the tree at once, in about 2 to 4 ms."""

FOLDER_BYTES = 4096
"""Bytes of a folder itself on common file systems."""

_NAME = re.compile(r"b-(\d{1,10})-(\d{1,10})-(\d{1,9})")


class BucketName(NamedTuple):
    """The parts of a bucket's folder name, in seconds. Names sort from the oldest to the newest."""

    start: int
    window: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> BucketName | None:
        """Parse a folder's name; None if it is not a bucket's."""
        match = _NAME.fullmatch(text)
        return cls(*map(int, match.groups())) if match else None

    def __str__(self) -> str:
        return f"b-{self.start}-{self.window}-{self.sequence}"

    @property
    def end(self) -> int:
        """The first second after the slice."""
        return self.start + bucket_length(self.window)

    def forgotten_at(self, window: int) -> int:
        """The second from which no key in it is needed, neither with this window nor with its writer's window."""
        return self.end + max(window, self.window)


class BucketRetired(Exception):
    """The bucket was dropped between being listed and being used; the caller lists again. It never leaves the store."""


class Bucket:
    """An open bucket."""

    def __init__(self, folder: str, name: BucketName) -> None:
        """Open the environment in `folder`. Raises `KeyStoreError`."""
        self.name = name
        self.folder = folder
        self._data = os.path.join(folder, "data.mdb")
        self._lock = threading.Lock()
        self._leases = 0
        self._retired = False
        with translated(folder):
            self._env = _open_environment(folder)
            self.inode = os.stat(self._data).st_ino
        self._recent = journal.Recent()

    @contextmanager
    def lease(self) -> Iterator[lmdb.Environment]:
        """Use the environment. Raises `BucketRetired` if it is closed or about to be closed."""
        with self._lock:
            if self._retired:
                raise BucketRetired
            self._leases += 1
        try:
            with translated(self.folder):
                yield self._env
        finally:
            with self._lock:
                self._leases -= 1
                self._close_if_idle()

    def retire(self) -> None:
        """Allow no further leases, and close the environment now or when the last lease ends."""
        with self._lock:
            self._retired = True
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._leases:
            self._env.close()

    def find(self, keys: Sequence[bytes], oldest: bytes) -> set[bytes]:
        """Return those of `keys` that have a stamp of `oldest` or later here."""
        with self.lease() as env, _reading(env) as transaction:
            found = self._recent.find(transaction, keys, oldest)
            found.update(key for key, stamp in transaction.cursor().getmulti(keys) if stamp >= oldest)
        return found

    def put(
        self,
        record: bytes,
        room: Callable[[], int],
        journal_keys: int = 0,
        undisturbed: AbstractContextManager[None] | None = None,
    ) -> bool:
        """Store keys with their stamps (`journal.entries`). They are on disk when it returns True.

        The keys go to the journal if it then has at most `journal_keys`; otherwise they are entered into the tree
        together with the whole journal. `undisturbed` is active while keys are entered one by one, not while waiting
        for the lock or the disk.

        Returns False, and stores nothing, if the worst case needs more bytes than `room()` returns. `room` is called
        under the environment's write lock, so that processes that share the bucket compute it one after the other.
        """
        with self.lease() as env, env.begin(write=True) as transaction:
            keys = journal.extent(transaction).keys + len(record) // journal.ENTRY_BYTES
            stat = transaction.stat()
            if keys <= journal_keys:
                if journal.growth(len(record), stat["psize"]) * stat["psize"] > room():
                    return False
                journal.append(transaction, record)
            else:
                self._recent.count(transaction)  # raises Damage before anything is dropped to make room
                if _worst_growth(stat, keys) > room():
                    return False
                _enter_all(transaction, journal.take(transaction) + record, undisturbed or nullcontext())
        return True

    def entries(self) -> int:
        """Return the number of keys; a key in both tree and journal counts twice. 0 if retired or damaged."""
        try:
            with self.lease() as env, _reading(env) as transaction:
                in_tree = transaction.stat()["entries"] - journal.extent(transaction).records
                return in_tree + self._recent.count(transaction)
        except (BucketRetired, KeyStoreError):  # `find` and `put` report damage
            return 0

    def free_stale_readers(self) -> None:
        """Free the reader slots of processes that were killed."""
        with suppress(BucketRetired), self.lease() as env:
            env.reader_check()

    def is_on_disk(self) -> bool:
        """Return True if its name still leads to the files that are open here. Another process may have dropped it."""
        try:
            return os.stat(self._data).st_ino == self.inode
        except FileNotFoundError:
            return False


def folder_bytes(path: str) -> int:
    """Return the bytes on disk of a folder with its content, rather too many than too few; 0 if it is gone."""
    try:
        return FOLDER_BYTES + sum(map(_entry_bytes, os.scandir(path)))
    except FileNotFoundError:  # dropped by another process
        return 0


def _entry_bytes(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return folder_bytes(entry.path)
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    # Its blocks; or its length, while the file system has not allocated blocks for it yet.
    return max(status.st_blocks * 512, status.st_size)


def _open_environment(folder: str) -> lmdb.Environment:
    env = lmdb.open(
        folder,
        map_size=MAP_BYTES,
        create=False,
        mode=0o700,
        metasync=False,  # a power failure may undo the last transaction, a kill none; neither damages the rest
        readahead=False,  # keys are hashes: the next page in the file is rarely the next one needed
    )
    try:
        env.reader_check()
        _check_length(env, os.path.join(folder, "data.mdb"))
    except BaseException:
        env.close()
        raise
    return env


def _check_length(env: lmdb.Environment, data: str) -> None:
    """Lengthen a file that is shorter than LMDB expects. Raises `Damage` if the missing part contained keys.

    It works under the write lock, because a writer may be about to lengthen the file itself.
    """
    if os.stat(data).st_size >= _length(env):
        return
    with env.begin(write=True):
        if os.stat(data).st_size < _length(env):
            missing = first_missing(data, env.stat()["psize"])
            if missing is not None:
                raise Damage(f"data.mdb was cut short: page {missing} is in use and missing")
            os.truncate(data, _length(env))


def _length(env: lmdb.Environment) -> int:
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


@contextmanager
def _reading(env: lmdb.Environment) -> Iterator[lmdb.Transaction[bytes]]:
    """Begin a read transaction. If all reader slots are taken, free those of killed processes first."""
    try:
        transaction = env.begin()
    except lmdb.ReadersFullError:
        env.reader_check()
        transaction = env.begin()
    with transaction:
        yield transaction


def _enter_all(
    transaction: lmdb.Transaction[bytes], record: bytes, undisturbed: AbstractContextManager[None]
) -> None:
    """Enter all keys of a record into the tree."""
    for items in journal.in_order(record, _KEYS_AT_ONCE):
        with undisturbed:
            _enter(transaction, items)


def _enter(transaction: lmdb.Transaction[bytes], items: Sequence[tuple[bytes, bytes]]) -> None:
    """Enter sorted keys into the tree; of a key that is there already, the later stamp stays."""
    consumed, added = transaction.cursor().putmulti(items, overwrite=False)
    if added == consumed:
        return
    for key, stamp in items:
        held = transaction.get(key)
        if held is None or held < stamp:
            transaction.put(key, stamp)


def _worst_growth(stat: lmdb._StatDict, keys: int) -> int:
    """Return the maximum bytes by which a transaction that puts `keys` keys can lengthen the file.

    LMDB copies each page that it changes. In the worst case no freed page can be reused, every key falls on another
    leaf and splits it, all branches change, and the new leaves are half full (64 keys).
    """
    pages = 2 * min(keys, stat["leaf_pages"]) + 2 * stat["branch_pages"] + keys // 32 + 32
    return pages * stat["psize"]
