"""The writing side of a key store's folder: append, seal, merge, drop. All of it runs on threads.

Each of these operations first takes the folder's lock (``flock`` on ``lock``, which a kill releases) and reads the
list. No state is kept between two calls, so any process may have made the last one. Order matters: new files are
complete and flushed before the list names them, and files that it no longer names are removed afterwards. So a kill
between any two system calls leaves either the state before or the state after, and files that the list does not name:
leftovers, which the next process that changes the list removes.

A merge runs outside the lock, and takes it only to enter its result. ``merge.lock`` is held during the whole merge, so
one process merges at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import accumulate

from consumer.adapters.key_store.files import (
    CHUNK_KEYS,
    FIRST_CHUNK,
    FORMAT,
    LIST,
    FileList,
    Journal,
    SegmentFile,
    decode_list,
    open_segment,
    segment_bytes,
    translated,
    write_list,
    write_segment,
)
from consumer.adapters.key_store.interface import Damage, Window
from consumer.adapters.key_store.native import KeyTable, Merger
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError

# Most keys of a journal: sealing it takes some 50 ms, and reading it at a start 10 ms.
JOURNAL_KEYS = 131_072

_LOCK_TIME_LIMIT = 5.0
# No caller waits for a merge. On a slow disk a writer may hold the lock for long; giving up would waste the merge.
_MERGE_LOCK_LIMIT = 60.0
_LOCKS = {"lock", "merge.lock"}
_KEYS = re.compile(r"(segment|journal)-\d+")
_OURS = re.compile(rf"{_KEYS.pattern}|format\.new")
_MERGING = "merging"
"""Name of the file that a merge writes."""
_PIECE = 65_536
"""Entries that a merge writes at a time."""
_FAN = 4
"""Segments of similar size that are merged into one."""
_MAX_MERGED = 16  # segments that are merged at once: an entry of each is compared with those of all others
_LARGEST_SEGMENT = 2 * 1024**3
_FOLDER_BYTES = 4096  # of a folder itself on common file systems
_SLACK = 16 * 1024  # for the list, for its successor, and for parts of blocks


class Folder:
    """A key store's folder as its writers use it."""

    def __init__(self, root: str, window: Window, max_bytes: int) -> None:
        """Open the folder or create it. Raises `KeyStoreError`."""
        self.root = os.path.abspath(os.path.expanduser(root))
        self.evicted_early = 0
        # Called on the writing thread with each new segment, before the list names it.
        self.announce: Callable[[SegmentFile], object] = lambda _: None
        self._window = window
        self.merge_bytes = min(max_bytes // 8 - _SLACK, _LARGEST_SEGMENT)
        self._journal_keys = max(64, min(JOURNAL_KEYS, self.merge_bytes // 3 // KEY_BYTES))
        # A chunk must fit into an empty journal.
        self._chunk_bytes = min(CHUNK_KEYS, self._journal_keys) * KEY_BYTES
        # The last eighth is for a merge's result. A journal that is sealed exists beside its segment for a moment.
        self._key_bytes = max_bytes - max_bytes // 8 - segment_bytes(self._journal_keys) - _SLACK
        self.open()

    def open(self) -> bool:
        """Make a new folder a key store, and return True; repair what a killed process left incomplete."""
        with translated(self.root):
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            # Checked before any write: a folder of another format, or with other files, is refused.
            names = set(os.listdir(self.root)) - _LOCKS
            self._read_list()
            if LIST not in names and names - {f"{LIST}.new"}:
                raise KeyStoreError(
                    f"the folder {self.root} contains files that are not a key store: name an empty or a new folder"
                )
            with self._locked():
                is_new = LIST not in os.listdir(self.root)
                files = self._read_list()
                if files.window:
                    Journal(self.root, files.journal).recovered().close()
                elif files == FileList():
                    write_list(self.root, files)
                self._remove_leftovers()
        return is_new

    def bytes_on_disk(self) -> int:
        """Return an upper estimate of the bytes that the folder takes on disk."""
        total = _FOLDER_BYTES
        for entry in os.scandir(self.root):
            with suppress(FileNotFoundError):  # removed since
                status = entry.stat(follow_symlinks=False)
                # The file's blocks, or its length, while the file system has not allocated all blocks yet.
                total += max(status.st_blocks * 512, status.st_size)
        return total

    # --- append and seal ---

    def append(self, calls: Sequence[tuple[bytes, int]]) -> None:
        """Store columns of keys, each with its stamp. They are on disk when it returns. Raises `KeyStoreError`."""
        with translated(self.root), self._locked():
            files = self._read_list()
            journal: Journal | None = None
            try:
                # In the order of stamps, because each journal holds keys of one slice of time.
                for keys, stamp in sorted(calls, key=lambda call: call[1]):
                    for at in range(0, len(keys), self._chunk_bytes):
                        chunk = keys[at : at + self._chunk_bytes]
                        files, journal = self._journal_for(files, journal, len(chunk), stamp)
                        journal.add(chunk, stamp)
                # All calls share one flush, which is the cost of a write.
                if journal is not None:
                    self._commit(files, journal, max(stamp for _, stamp in calls))
            finally:
                if journal is not None:
                    journal.close()

    def _journal_for(
        self, files: FileList, journal: Journal | None, more: int, stamp: int
    ) -> tuple[FileList, Journal]:
        """Return the journal for a chunk: the current one, unless it is full or of another slice of time."""
        slice_ = (self._window.bucket_start(stamp), self._window.seconds)
        if files.window:
            # Since the last call another process may have written to the journal, or have been killed while writing.
            journal = journal or Journal(self.root, files.journal).recovered()
            fits = journal.size + more <= self._journal_keys * KEY_BYTES
            if fits and (files.start, files.window) == slice_:
                return files, journal
            with closing(journal):
                files = self._sealed(self._commit(files, journal, stamp), journal)
        files = files._replace(journal=files.journal + 1, start=slice_[0], window=slice_[1])
        Journal.make(self.root, files.journal)
        self._change(files)
        return files, Journal(self.root, files.journal).recovered()

    def _commit(self, files: FileList, journal: Journal, stamp: int) -> FileList:
        """Write the chunks that wait, after dropping the oldest segments to make room for them."""
        # The oldest segments are dropped first, and as a whole: deleting single keys would mean writing files again.
        excess = journal.size + sum(one.bytes for one in files.segments) - self._key_bytes
        freed = [0, *accumulate(one.bytes for one in files.segments)]
        count = next((number for number, enough in enumerate(freed) if enough >= excess), None)
        if count is None:
            raise KeyStoreError(
                f"the key store {self.root} has no room for new keys within its size limit: raise it, "
                "and check that all processes that share it have the same limit"
            )
        if count:
            dropped = files.segments[:count]
            self._change(files := files._replace(segments=files.segments[count:]))
            self.evicted_early += sum(
                one.entries for one in dropped if one.forgotten_at(self._window.seconds) > stamp
            )
        journal.commit()
        return files

    def _sealed(self, files: FileList, journal: Journal) -> FileList:
        """Make a segment of a full journal's keys. Return the list with it, which is still to be written."""
        # The journal has keys in the order of their deliveries, some of them twice: the table sorts them and keeps one.
        table = KeyTable()
        for stamp, keys in journal.chunks(0, journal.acknowledged()):
            table.insert(keys, stamp)
        if not len(table):
            return files
        new = files.journal_slice._replace(number=files.next)
        new = write_segment(os.path.join(self.root, new.name), [table.sorted()], len(table), new)
        self.announce(new)
        return files._replace(next=files.next + 1, segments=(*files.segments, new))

    # --- drop and merge ---

    def expire(self, stamp: int) -> None:
        """Drop segments and a journal whose keys are not needed at `stamp`. Raises `KeyStoreError`."""
        with translated(self.root), self._locked():
            files = self._read_list()
            window = self._window.seconds
            kept = tuple(one for one in files.segments if one.forgotten_at(window) > stamp)
            after = files._replace(segments=kept)
            # The journal of a slice that is over is dropped as it is; the next write begins another one.
            if files.window and files.journal_slice.forgotten_at(window) <= stamp:
                after = after._replace(journal=files.journal + 1, start=0, window=0)
            if after != files:
                self._change(after)
            else:
                self._remove_leftovers()

    def merge(self, is_wanted: Callable[[], bool]) -> None:
        """Merge the segments that `mergeable` chooses, if any, into one. Ends early once `is_wanted` returns False.

        Raises `KeyStoreError`.
        """
        with translated(self.root), self._lock("merge.lock") as is_ours:
            chosen = mergeable(self._read_list(), self.merge_bytes) if is_ours else []
            if not chosen:
                return
            try:
                merger = Merger([open_segment(self.root, one, in_order=True) for one in chosen])
                # Checked before each piece: closing the store must not take as long as a merge.
                pieces = iter(lambda: merger.take(_PIECE) if is_wanted() else b"", b"")
                maximum = sum(one.entries for one in chosen)
                new = write_segment(os.path.join(self.root, _MERGING), pieces, maximum, chosen[-1])
            except Damage as damage:
                # If a segment is not in the list any more, another process has dropped it: that is not damage.
                if set(chosen) <= set(self._read_list().segments):
                    raise Damage(f"one of {', '.join(one.name for one in chosen)}: {damage}") from damage
            else:
                if is_wanted():
                    self._enter(new, chosen)

    def _enter(self, new: SegmentFile, merged: Sequence[SegmentFile]) -> None:
        """Replace merged segments by their result, unless one of them was dropped since."""
        with self._locked(_MERGE_LOCK_LIMIT):
            files = self._read_list()
            if not set(merged) <= set(files.segments):
                return
            new = new._replace(number=files.next)
            os.rename(os.path.join(self.root, _MERGING), os.path.join(self.root, new.name))
            self.announce(new)
            replaced = [new if one == merged[-1] else one for one in files.segments if one not in merged[:-1]]
            self._change(files._replace(next=files.next + 1, segments=tuple(replaced)))

    # --- the list and the lock ---

    def _read_list(self) -> FileList:
        """Return the list; an empty one for a new folder. Raises `KeyStoreError` for one of another version."""
        try:
            with open(os.path.join(self.root, LIST), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            if any(map(_KEYS.fullmatch, os.listdir(self.root))):  # the list is always made first
                raise Damage(f"{LIST} is missing") from None
            return FileList()
        if not data.startswith(FORMAT):
            raise KeyStoreError(
                f"the key store {self.root} was written by another version of pinstream: go on with that version, or "
                "move this folder away and start again (its keys are then not known, so their events may be sent twice "
                "if they are read again)"
            )
        return decode_list(data)

    def _change(self, files: FileList) -> None:
        """Write the list, and remove files that it no longer names."""
        # In this order, a kill in between leaves files that no list names, and never a list that names a missing file.
        write_list(self.root, files)
        self._remove_leftovers(files)

    def _remove_leftovers(self, files: FileList | None = None) -> None:
        """Remove files that the list does not name. Under the lock, only a merge can be writing one."""
        files = files or self._read_list()
        leftovers = set(os.listdir(self.root)) - files.names() - _LOCKS
        for name in leftovers:
            if self._is_younger(name, files):
                raise Damage(f"{LIST} is older than {name}")
        for name in leftovers:
            path = os.path.join(self.root, name)
            if name == _MERGING:
                with self._lock("merge.lock") as is_ours:
                    if is_ours:  # its process was killed
                        os.unlink(path)
            elif _OURS.fullmatch(name):
                os.unlink(path)

    def _is_younger(self, name: str, files: FileList) -> bool:
        """Return True if a file outside of the list is younger than the list, which was restored from a copy then."""
        if not _KEYS.fullmatch(name):
            return False
        kind, _, number = name.partition("-")
        # A killed process leaves at most the next file of each kind, and a journal is empty until the list names it.
        if kind == "segment":
            return int(number) > files.next
        ahead = int(number) - files.journal
        return ahead > 1 or (ahead == 1 and os.stat(os.path.join(self.root, name)).st_size > FIRST_CHUNK)

    @contextmanager
    def _locked(self, limit: float = _LOCK_TIME_LIMIT) -> Iterator[None]:
        """Hold the folder's lock against other processes and threads. Raises `KeyStoreError` after `limit` seconds."""
        with self._lock("lock", limit) as is_held:
            if not is_held:
                raise KeyStoreError(
                    f"the key store {self.root} has been locked by another process for {limit:g} s: "
                    "check whether a process that uses it is stopped or hangs"
                )
            yield

    @contextmanager
    def _lock(self, name: str, limit: float = 0.0) -> Iterator[bool]:
        """Try for `limit` seconds to take a lock. Yields True if it is held."""
        give_up = time.monotonic() + limit
        is_held = False
        number = os.open(os.path.join(self.root, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not is_held:
                try:
                    # Not `lockf`: that holds against other processes only, and ends when any descriptor of the file is
                    # closed.
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_held = True
                except BlockingIOError:
                    # `flock` itself can wait, but without a limit.
                    if time.monotonic() >= give_up:
                        break
                    time.sleep(0.002)
            yield is_held
        finally:
            # Closing alone would not unlock it while a child has it, which a function of the user forked.
            fcntl.flock(number, fcntl.LOCK_UN)
            os.close(number)


def mergeable(files: FileList, max_bytes: int) -> list[SegmentFile]:
    """Choose segments of one slice of time to be merged into one of at most `max_bytes`; none if there is no need."""
    slices: dict[tuple[int, int], list[SegmentFile]] = {}
    for one in files.segments:
        slices.setdefault((one.start, one.window), []).append(one)
    for slice_, segments in slices.items():
        segments.sort(key=lambda one: one.entries)
        if slice_ == (files.start, files.window):
            # Keys are still added to this slice: merge four or more segments of similar size, so that a key is written
            # about once for each fourfold growth.
            levels: dict[int, list[SegmentFile]] = {}
            for one in segments:
                levels.setdefault((2 * one.entries // JOURNAL_KEYS).bit_length() // 2, []).append(one)
            groups = [level for level in levels.values() if len(level) >= _FAN]
        else:
            # The slice is complete: merge all its segments, so that a look-up searches one.
            groups = [[]]
            for one in segments:
                # A large segment is not written again to add a few small ones: they are merged without it.
                if one.bytes > 8 * sum(other.bytes for other in groups[-1]):
                    groups.append([])
                groups[-1].append(one)
        for group in groups:
            sizes = map(segment_bytes, accumulate(one.entries for one in group))
            fitting = group[: min(_MAX_MERGED, sum(size <= max_bytes for size in sizes))]
            if len(fitting) > 1:
                return [one for one in files.segments if one in fitting]
    return []
