"""The folder of a key store on disk: which buckets there are, and how they come and go.

::

    format                   which format this is, so that a future one is refused and not misread
    lock                     held (flock) while a bucket is made or dropped
    b-1731196800-172800-0/   a bucket (bucket.py)
    new, old-*               a bucket being made or dropped; left over by a kill, removed by whoever comes next

Several processes may share the folder. Reading and writing keys needs no agreement beyond LMDB's own locks; making
and dropping buckets is done under the flock, which a kill releases. A bucket is made under another name and
renamed when it is complete, and renamed before its files are unlinked, so under its own name it is whole or absent.

That others have made or dropped buckets is told by the folder's modification time: one ``stat`` per use. A writer
looks after its commit whether the bucket is still there (`Bucket.is_on_disk`) and else writes again, elsewhere.

Methods may be called from several threads: `buckets` never waits for the others; they wait for each other.
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
"""An older format, read as it is and marked as the present one: its buckets have no journals yet."""
_LOCK_TIME_LIMIT = 5.0
_RACY_NANOSECONDS = 2_000_000_000
"""A modification time younger than this may hide a second change within the same tick of the file system."""

_open_roots: set[tuple[int, int]] = set()
"""Folders open in this process, by device and inode: LMDB's locks break when a file is opened twice in one."""


class BucketFolder:
    """An open key store folder."""

    def __init__(self, root: str, window: Window) -> None:
        """Make or open the folder; raises `KeyStoreError`."""
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
            raise KeyStoreError(f"the key store {self.root} is open in this process already: use that one")
        _open_roots.add(self._identity)
        try:
            self._is_marked()  # before anything is written into a folder that may be no key store
            with self._guard, self._locked():
                if not self._is_marked():
                    self._mark()
                self._remove_leftovers()
                self._list()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all buckets; their files stay."""
        for bucket in self._buckets:
            bucket.retire()
        self._buckets = ()
        _open_roots.discard(self._identity)

    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets, newest first. While another thread changes them: as they were a moment ago."""
        if self._guard.acquire(blocking=False):
            try:
                self._list_if_changed()
            finally:
                self._guard.release()
        return self._buckets

    def listed(self) -> tuple[Bucket, ...]:
        """The buckets as they were last seen, newest first; without asking the disk."""
        return self._buckets

    def lost(self) -> int:
        """How many keys were lost since somebody deleted the folder while it was in use."""
        return self._lost

    def active(self, stamp: int, quota: int) -> Bucket:
        """The bucket that takes keys of `stamp`; a new one if the newest of its slice has `quota` bytes or more."""
        with self._guard:
            self._list_if_changed()
            bucket = self._writable(stamp, quota)
            if bucket is None:
                with self._locked():
                    self._list()  # another process may have made it while we waited for the lock
                    bucket = self._writable(stamp, quota) or self._make(stamp)
        return bucket

    def drop(self, bucket: Bucket) -> int:
        """Remove a bucket with its files and tell how many keys went; none if another process was first."""
        with self._guard, self._locked():
            return self._drop(bucket)

    def drop_forgotten(self, stamp: int, at_most: int) -> None:
        """Drop up to `at_most` buckets that are of no use at `stamp`, oldest first; also what a kill left over."""
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
        """Bytes the whole folder takes."""
        with translated(self.root):
            return folder_bytes(self.root)

    # --- below: only under the guard ---

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
        """The whole folder was deleted: make it again, empty. What it knew is lost, and counted."""
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
        """Open a bucket and list it, unless another process has dropped it since."""
        folder = self._path(str(name))
        try:
            bucket = Bucket(folder, name)
        except KeyStoreError:
            if os.path.isdir(folder):
                raise
        else:
            self._buckets = tuple(sorted((*self._buckets, bucket), key=attrgetter("name"), reverse=True))

    def _forget(self, bucket: Bucket) -> None:
        """Take a bucket that is no longer on disk off the list."""
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
        """Make the next bucket of the stamp's slice; under the flock."""
        before = self._newest(stamp)
        sequence = before.name.sequence + 1 if before else 0
        name = BucketName(self._window.bucket_start(stamp), self._window.seconds, sequence)
        self._remove_leftovers()
        if not self._is_marked():  # somebody emptied the folder
            self._mark()
        new = self._path("new")
        with translated(new):
            os.mkdir(new, mode=0o700)
            Bucket(new, name).retire()  # LMDB writes its files, and lets go of them
            _sync_folder(new)
            os.rename(new, self._path(str(name)))
            _sync_folder(self.root)
        self._list()
        return next(bucket for bucket in self._buckets if bucket.name == name)

    def _drop(self, bucket: Bucket) -> int:
        """Remove a bucket; under the flock, so that of several processes only one counts its keys as dropped."""
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
        """Whether the folder is a key store of this format, and not a fresh one or of an older format that is read too.

        Raises `KeyStoreError` for one of another format or with another use.
        """
        with translated(self.root):
            names = os.listdir(self.root)
            if "format" in names:
                with open(self._path("format"), "rb") as file:
                    return self._is_format(file.read(len(_FORMAT) + 1))
        if set(names) - {"lock", "format.new"}:
            raise KeyStoreError(
                f"the folder {self.root} holds other things than a key store: name an empty or a new folder"
            )
        return False

    def _is_format(self, found: bytes) -> bool:
        if found not in (_FORMAT, _WITHOUT_JOURNALS):
            raise KeyStoreError(
                f"the key store {self.root} has a format this version does not know: use the version of pinstream "
                "that wrote it, or name another folder (keys in it are then not known)"
            )
        return found == _FORMAT

    def _mark(self) -> None:
        """Make a folder a key store of this format: the marker is whole, or as it was before."""
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
        """Remove what a killed process left half made or half dropped; under the flock nobody is still at it."""
        for name in self._leftovers():
            with translated(self._path(name)):
                shutil.rmtree(self._path(name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock against other processes; raises `KeyStoreError` when it cannot be had in time."""
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
                        f"the key store {self.root} is locked by another process for {_LOCK_TIME_LIMIT:g} s: "
                        "see whether one that uses it is stopped or hangs"
                    ) from held
                time.sleep(0.005)
            else:
                return

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)


def _sync_folder(path: str) -> None:
    """Bring a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
