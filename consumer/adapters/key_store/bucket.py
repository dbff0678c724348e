"""One bucket on disk: a folder with one LMDB environment that maps key -> stamp.

Name: ``b-<start>-<window>-<sequence>``: unix seconds at which its slice of time begins, the window in seconds for
which its writer wants the keys remembered (the slice's length follows from it), and a number that counts up when
a slice needs several buckets because one has grown too large. So a name alone tells when a bucket may go.

Stamps are stored as four big-endian bytes: as bytes they sort like the numbers they are. What was stored lately is in
a journal and not in LMDB's tree yet (journal.py): a key is here if it is in either.

An environment must never be closed while a transaction is open on it, on whatever thread. So it is used only
under a lease (`Bucket.lease`), `Bucket.retire` makes further leases impossible, and the last one out closes.
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
"""Address space each environment maps. It costs nothing until used and is part of the format: since it is the same
in every process and buckets end long before it, no map ever has to grow (MDB_MAP_FULL, MDB_MAP_RESIZED)."""

_KEYS_AT_ONCE = 4096
"""Keys entered into the tree in one go: some 2 to 4 ms."""

FOLDER_BYTES = 4096
"""What a folder itself takes on the usual file systems."""

_NAME = re.compile(r"b-(\d{1,10})-(\d{1,10})-(\d{1,9})")


class BucketName(NamedTuple):
    """What a bucket's folder name says; in seconds. Sorts by age, oldest first."""

    start: int
    window: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> BucketName | None:
        """Read a folder's name; None for one that is not a bucket's."""
        match = _NAME.fullmatch(text)
        return cls(*map(int, match.groups())) if match else None

    def __str__(self) -> str:
        return f"b-{self.start}-{self.window}-{self.sequence}"

    @property
    def end(self) -> int:
        """The first second after the slice."""
        return self.start + bucket_length(self.window)

    def forgotten_at(self, window: int) -> int:
        """When no key in it is of use: neither to a reader with this window nor to the writer's own."""
        return self.end + max(window, self.window)


class BucketRetired(Exception):
    """The bucket was dropped between being listed and being used; the caller lists again. Never leaves the store."""


class Bucket:
    """An open bucket."""

    def __init__(self, folder: str, name: BucketName) -> None:
        """Open the environment in `folder`; raises `KeyStoreError`."""
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
        """Use the environment; raises `BucketRetired` when it is closed or about to be."""
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
        """Let no one in any more; closed now, or by the last lease that ends."""
        with self._lock:
            self._retired = True
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._leases:
            self._env.close()

    def find(self, keys: Sequence[bytes], oldest: bytes) -> set[bytes]:
        """Those of `keys` that are here with a stamp of `oldest` or later."""
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
        """Store keys with their stamps (`journal.entries`); on disk when it returns True.

        In the journal while that holds `journal_keys` at the most, else together with all of the journal in the tree.
        `undisturbed` is entered for as long as keys are entered one by one, not while the lock or the disk is
        waited for.

        False, and nothing stored, when the worst case needs more bytes than `room()` tells. It is asked while the
        environment's write lock is held, so that processes that share the bucket reckon one after the other.
        """
        with self.lease() as env, env.begin(write=True) as transaction:
            keys = journal.extent(transaction).keys + len(record) // journal.ENTRY_BYTES
            stat = transaction.stat()
            if keys <= journal_keys:
                if journal.growth(len(record), stat["psize"]) * stat["psize"] > room():
                    return False
                journal.append(transaction, record)
            else:
                self._recent.count(
                    transaction
                )  # is it whole? Nothing is dropped to make room for one that is not
                if _worst_growth(stat, keys) > room():
                    return False
                _enter_all(transaction, journal.take(transaction) + record, undisturbed or nullcontext())
        return True

    def entries(self) -> int:
        """How many keys it holds, one in both tree and journal counted twice; 0 once retired or if damaged."""
        try:
            with self.lease() as env, _reading(env) as transaction:
                in_tree = transaction.stat()["entries"] - journal.extent(transaction).records
                return in_tree + self._recent.count(transaction)
        except (BucketRetired, KeyStoreError):  # damage is told to those who want keys
            return 0

    def free_stale_readers(self) -> None:
        """Give back the reader slots of processes that were killed."""
        with suppress(BucketRetired), self.lease() as env:
            env.reader_check()

    def is_on_disk(self) -> bool:
        """Whether its name still leads to the files that are open here (another process may have dropped it)."""
        try:
            return os.stat(self._data).st_ino == self.inode
        except FileNotFoundError:
            return False


def folder_bytes(path: str) -> int:
    """Bytes a folder takes on disk with all that is in it; 0 if it is gone. Where it errs, it errs upwards."""
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
    # Its blocks; or its length, as long as the file system has yet to find blocks for it.
    return max(status.st_blocks * 512, status.st_size)


def _open_environment(folder: str) -> lmdb.Environment:
    env = lmdb.open(
        folder,
        map_size=MAP_BYTES,
        create=False,
        mode=0o700,
        metasync=False,  # a power failure may undo the last transaction, a kill none, and neither harms the rest
        readahead=False,  # keys are hashes: the neighbour page is never the next one wanted
    )
    try:
        env.reader_check()
        _check_length(env, os.path.join(folder, "data.mdb"))
    except BaseException:
        env.close()
        raise
    return env


def _check_length(env: lmdb.Environment, data: str) -> None:
    """Lengthen a file that is shorter than LMDB says, as LMDB expects; raises `Damage` if keys were in what is missing.

    Under the write lock, because a writer may be about to lengthen the file itself.
    """
    if os.stat(data).st_size >= _length(env):
        return
    with env.begin(write=True):
        if os.stat(data).st_size < _length(env):
            missing = first_missing(data, env.stat()["psize"])
            if missing is not None:
                raise Damage(f"data.mdb was cut short: page {missing} is in use and not there")
            os.truncate(data, _length(env))


def _length(env: lmdb.Environment) -> int:
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


@contextmanager
def _reading(env: lmdb.Environment) -> Iterator[lmdb.Transaction[bytes]]:
    """A read transaction; slots left by killed processes are freed if all are taken."""
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
    """Enter keys into the tree, sorted; of one that was there already the later stamp stays."""
    consumed, added = transaction.cursor().putmulti(items, overwrite=False)
    if added == consumed:
        return
    for key, stamp in items:
        held = transaction.get(key)
        if held is None or held < stamp:
            transaction.put(key, stamp)


def _worst_growth(stat: lmdb._StatDict, keys: int) -> int:
    """Most bytes by which a transaction that puts `keys` keys can lengthen the file.

    LMDB writes a page anew wherever it changes one. At worst no freed page can be reused, every key falls on a leaf
    of its own and splits it, all branches change, and the new leaves are half full (64 keys).
    """
    pages = 2 * min(keys, stat["leaf_pages"]) + 2 * stat["branch_pages"] + keys // 32 + 32
    return pages * stat["psize"]
