"""The folder of a key store on disk: its buckets, and how they are created and dropped.

::

    format                   the version of the format, so that a future one is refused and not misread
    lock                     held (flock) while a bucket is created or dropped
    b-1731196800-172800-0/   a bucket (bucket.py)
    new, old-*               a bucket being created or dropped; if a kill leaves it behind, the next process removes it

Several processes may share the folder. Reading and writing keys needs only LMDB's own locks. Buckets are created and
dropped under the flock, which a kill releases. A new bucket is renamed to its name when it is complete, and renamed
away before its files are unlinked, so under its name it is whole or absent.

The folder's modification time shows that another process has created or dropped buckets: one ``stat`` per use. After
its commit, a writer checks that the bucket is still there (`Bucket.is_on_disk`), and otherwise writes again.

Methods may be called from several threads. `buckets` never waits for the other methods; they wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter

from consumer.adapters.key_store.bucket import Bucket, BucketName, folder_bytes
from consumer.adapters.key_store.failures import translated
from consumer.adapters.key_store.interface import Window
from consumer.errors import KeyStoreError

_FORMAT = b"pinstream key store, format 2\n"
_WITHOUT_JOURNALS = b"pinstream key store, format 1\n"
"""An older format, whose buckets have no journals. It can be read unchanged and is marked as the current one."""
_LOCK_TIME_LIMIT = 5.0
_RACY_NANOSECONDS = 2_000_000_000
"""A modification time younger than this may hide a second change within the same tick of the file system's clock."""

_open_roots: set[tuple[int, int]] = set()
"""Device and inode of the folders open in this process: LMDB's locks break if a process opens a file twice."""


class BucketFolder:
    """An open key store folder."""

    def __init__(self, root: str, window: Window) -> None:
        """Open the folder, or create it. Raises `KeyStoreError`."""
        self.root = os.path.abspath(os.path.expanduser(root))
        self._window = window
        self._guard = threading.Lock()
        self._buckets: tuple[Bucket, ...] = ()
        self._seen_change: int | None = None
        with translated(self.root):
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            status = os.stat(self.root)
        self._identity = (status.st_dev, status.st_ino)
        self._lost = 0
        if self._identity in _open_roots:
            raise KeyStoreError(f"the key store {self.root} is already open in this process: use that one")
        _open_roots.add(self._identity)
        try:
            self._is_marked()  # before anything is written: the folder may not be a key store
            with self._guard, self._locked():
                if not self._is_marked():
                    self._mark()
                self._remove_leftovers()
                self._list()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all buckets; their files stay."""
        for bucket in self._buckets:
            bucket.retire()
        self._buckets = ()
        _open_roots.discard(self._identity)

    def buckets(self) -> tuple[Bucket, ...]:
        """Return the buckets, newest first. While another thread changes them, return the previous list."""
        if self._guard.acquire(blocking=False):
            try:
                self._list_if_changed()
            finally:
                self._guard.release()
        return self._buckets

    def listed(self) -> tuple[Bucket, ...]:
        """Return the buckets as last listed, newest first, without reading the disk."""
        return self._buckets

    def lost(self) -> int:
        """Return the number of keys lost because the folder was deleted while in use."""
        return self._lost

    def active(self, stamp: int, quota: int) -> Bucket:
        """Return the bucket for keys of `stamp`; a new one if the newest of its slice has `quota` bytes or more."""
        with self._guard:
            self._list_if_changed()
            bucket = self._writable(stamp, quota)
            if bucket is None:
                with self._locked():
                    self._list()  # another process may have created it while we waited for the lock
                    bucket = self._writable(stamp, quota) or self._make(stamp)
        return bucket

    def drop(self, bucket: Bucket) -> int:
        """Remove a bucket with its files. Return the number of its keys; 0 if another process removed it first."""
        with self._guard, self._locked():
            return self._drop(bucket)

    def drop_forgotten(self, stamp: int, at_most: int) -> None:
        """Drop up to `at_most` buckets that are not needed at `stamp`, oldest first, and leftovers of a kill."""
        with self._guard:
            self._list_if_changed()
            forgotten = [b for b in self._buckets if b.name.forgotten_at(self._window.seconds) <= stamp]
            if not forgotten and not self._leftovers():
                return
            with self._locked():
                self._remove_leftovers()
                for bucket in forgotten[-at_most:]:
                    self._drop(bucket)

    def bytes_on_disk(self) -> int:
        """Return the bytes of the whole folder on disk."""
        with translated(self.root):
            return folder_bytes(self.root)

    # --- the methods below are called under the guard ---

    def _list_if_changed(self) -> None:
        with translated(self.root):
            try:
                changed = os.stat(self.root).st_mtime_ns
            except FileNotFoundError:
                self._begin_anew()
                return
            if changed != self._seen_change:
                self._list()

    def _begin_anew(self) -> None:
        """The whole folder was deleted: create it again and count the lost keys."""
        self._lost += sum(bucket.entries() for bucket in self._buckets)
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        _open_roots.discard(self._identity)
        status = os.stat(self.root)
        self._identity = (status.st_dev, status.st_ino)
        _open_roots.add(self._identity)
        with self._locked():
            if not self._is_marked():
                self._mark()
            self._list()

    def _list(self) -> None:
        """Open the buckets that have appeared and retire those that have gone."""
        with translated(self.root):
            changed = os.stat(self.root).st_mtime_ns
            settled = time.time_ns() - changed > _RACY_NANOSECONDS
            names = filter(None, map(BucketName.parse, os.listdir(self.root)))
            for bucket in self._buckets:
                if not bucket.is_on_disk():
                    self._forget(bucket)
            for name in set(names).difference(bucket.name for bucket in self._buckets):
                self._add(name)
        self._seen_change = changed if settled else None

    def _add(self, name: BucketName) -> None:
        """Open a bucket and add it to the list, unless another process has dropped it meanwhile."""
        folder = self._path(str(name))
        try:
            bucket = Bucket(folder, name)
        except KeyStoreError:
            if os.path.isdir(folder):
                raise
        else:
            self._buckets = tuple(sorted((*self._buckets, bucket), key=attrgetter("name"), reverse=True))

    def _forget(self, bucket: Bucket) -> None:
        """Remove a bucket that is no longer on disk from the list."""
        self._buckets = tuple(other for other in self._buckets if other is not bucket)
        bucket.retire()

    def _writable(self, stamp: int, quota: int) -> Bucket | None:
        newest = self._newest(stamp)
        if newest is None:
            return None
        with translated(newest.folder):
            return newest if folder_bytes(newest.folder) < quota else None

    def _newest(self, stamp: int) -> Bucket | None:
        slice_ = (self._window.bucket_start(stamp), self._window.seconds)
        return next((bucket for bucket in self._buckets if bucket.name[:2] == slice_), None)

    def _make(self, stamp: int) -> Bucket:
        """Create the next bucket of the stamp's slice, under the flock."""
        before = self._newest(stamp)
        sequence = before.name.sequence + 1 if before else 0
        name = BucketName(self._window.bucket_start(stamp), self._window.seconds, sequence)
        self._remove_leftovers()
        if not self._is_marked():  # the folder was emptied while in use
            self._mark()
        new = self._path("new")
        with translated(new):
            os.mkdir(new, mode=0o700)
            Bucket(new, name).retire()  # LMDB creates its files and closes them
            _sync_folder(new)
            os.rename(new, self._path(str(name)))
            _sync_folder(self.root)
        self._list()
        return next(bucket for bucket in self._buckets if bucket.name == name)

    def _drop(self, bucket: Bucket) -> int:
        """Remove a bucket, under the flock, so that only one of several processes counts its keys as dropped."""
        self._remove_leftovers()
        dropped = 0
        with translated(bucket.folder):
            if bucket.is_on_disk():
                dropped = bucket.entries()
                old = self._path(f"old-{bucket.name}")
                os.rename(bucket.folder, old)
                shutil.rmtree(old)
        self._forget(bucket)
        return dropped

    def _is_marked(self) -> bool:
        """Return True if the folder is a key store of this format; False if it is empty or of a readable older format.

        Raises `KeyStoreError` for a folder of another format or with other content.
        """
        with translated(self.root):
            names = os.listdir(self.root)
            if "format" in names:
                with open(self._path("format"), "rb") as file:
                    return self._is_format(file.read(len(_FORMAT) + 1))
        if set(names) - {"lock", "format.new"}:
            raise KeyStoreError(
                f"the folder {self.root} contains files that are not a key store: name an empty or a new folder"
            )
        return False

    def _is_format(self, found: bytes) -> bool:
        if found not in (_FORMAT, _WITHOUT_JOURNALS):
            raise KeyStoreError(
                f"the key store {self.root} has a format that this version does not know: use the version of "
                "pinstream that wrote it, or name another folder (the keys are then not known)"
            )
        return found == _FORMAT

    def _mark(self) -> None:
        """Write the marker of this format, atomically."""
        new = self._path("format.new")
        with translated(new):
            with open(new, "wb") as file:
                file.write(_FORMAT)
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, self._path("format"))
            _sync_folder(self.root)

    def _leftovers(self) -> list[str]:
        with translated(self.root):
            return [name for name in os.listdir(self.root) if name == "new" or name.startswith("old-")]

    def _remove_leftovers(self) -> None:
        """Remove buckets that a killed process left half created or half dropped.

        Under the flock, no process uses them.
        """
        for name in self._leftovers():
            with translated(self._path(name)):
                shutil.rmtree(self._path(name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock against other processes. Raises `KeyStoreError` if it is not free in time."""
        path = self._path("lock")
        with translated(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for_lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # which also unlocks

    def _wait_for_lock(self, descriptor: int) -> None:
        give_up = time.monotonic() + _LOCK_TIME_LIMIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as held:
                if time.monotonic() > give_up:
                    raise KeyStoreError(
                        f"the key store {self.root} has been locked by another process for {_LOCK_TIME_LIMIT:g} s: "
                        "check whether a process that uses it is stopped or hangs"
                    ) from held
                time.sleep(0.005)
            else:
                return

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)


def _sync_folder(path: str) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
