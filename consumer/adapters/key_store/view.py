"""The reading side of a key store's folder: which keys are remembered. Only the event loop uses it.

It follows the files and never takes a lock: the list, which is another file after each change, and the journal up to
its acknowledged end. Keys of the journal are in a table in memory, those of this process in the same way as those of
others. A segment that this process wrote is opened by the thread that wrote it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

from consumer.adapters.disk import read_through
from consumer.adapters.key_store.files import (
    LIST,
    FileList,
    Journal,
    SegmentFile,
    decode_list,
    open_segment,
)
from consumer.adapters.key_store.interface import Damage
from consumer.adapters.key_store.native import KeyTable, Segment
from consumer.adapters.thread import run_aside

# Of a store up to this size every block is checked at the start (a tenth of a second for 10 million keys): so damage is
# reported at once, and the store is in the page cache. A larger one is checked block by block, at first use.
CHECKED_BYTES = 1024**3

# Another process may replace the list while this one opens its files, but hardly more often than this in a row.
_ATTEMPTS = 100


class OpenSegment(NamedTuple):
    """A segment that is open."""

    file: SegmentFile
    segment: Segment

    def find(self, keys: bytes, oldest: int, found: bytearray, *, beside: bool) -> None:
        """See `Segment.find`. Raises `Damage`, with the file's name."""
        if self.file.end > oldest:
            try:
                self.segment.find(keys, oldest, found, beside)
            except Damage as damage:
                raise Damage(f"{self.file.name} {damage}") from damage


class View:
    """What one process has read of the folder. Methods raise `Damage` and `OSError`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._path = os.path.join(root, LIST)
        self._open_list = -1
        self._seen: tuple[int, int] | None = None
        self._journal: Journal | None = None
        self._position = 0
        self._prepared: dict[SegmentFile, OpenSegment] = {}
        self._unused: list[int | Journal | OpenSegment] = []
        self.files = FileList()
        self.table = KeyTable()
        self.segments: tuple[OpenSegment, ...] = ()

    def check(self) -> None:
        """Check every block of the newest segments, up to `CHECKED_BYTES` of them."""
        left = CHECKED_BYTES
        for one in reversed(self.segments):
            left -= one.file.bytes
            if left < 0:
                return
            try:
                read_through(os.path.join(self._root, one.file.name))
                one.segment.check()
            except Damage as damage:
                raise Damage(f"{one.file.name} {damage}") from damage

    def prepare(self, file: SegmentFile) -> None:
        """Open a segment that the next list will name; called on the thread that wrote it, beside the event loop."""
        # Opening takes ten system calls. Beside a merge, the event loop would wait for the interpreter's lock after
        # each: 20 ms were measured.
        self._prepared[file] = OpenSegment(file, open_segment(self._root, file))

    def forget_prepared(self) -> None:
        """Drop prepared segments, because the list could not be written. Any thread may call it."""
        # Otherwise a file that no list names would occupy a disk that may be full, long after it was removed. A segment
        # that another thread has just prepared is dropped, too: then the event loop opens it.
        self._prepared.clear()

    def refresh(self) -> None:
        """Read what has changed. Raises `FileNotFoundError` if the list was deleted."""
        # Before each look-up: one `stat`, and one `pread` of 12 bytes.
        status = os.stat(self._path)
        if (status.st_dev, status.st_ino) != self._seen:
            self._load()
            # Closing a removed file waits for the disk, and ending a mapping waits for page faults of other threads.
            unused, self._unused = self._unused, []
            if unused:
                try:
                    run_aside("key-store-closer", partial(_close, unused))
                except (
                    RuntimeError
                ):  # no thread can be started now: waiting is better than keeping the files open
                    _close(unused)
        if self._journal is not None:
            end = self._journal.acknowledged()
            if end != self._position:
                if end < self._position:  # an older copy was restored: later keys are lost
                    raise Damage(f"{self._journal.name} was cut short")
                for stamp, keys in self._journal.chunks(self._position, end):
                    self.table.insert(keys, stamp)
                self._position = end

    def keys(self) -> int:
        """Number of keys held; a key that is in several places counts several times."""
        return len(self.table) + sum(one.file.entries for one in self.segments)

    def close(self) -> None:
        """Close the files and forget everything."""
        # The same as an empty list, so that the next `refresh` reads the list again.
        self._replace(-1, FileList(), (), None)
        self._seen = None
        self.forget_prepared()
        _close(self._unused)

    def _load(self) -> None:
        """Open the files that a new list names."""
        for _ in range(_ATTEMPTS):
            number = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(number)
            try:
                files = decode_list(os.pread(number, status.st_size, 0))
                # Segments that are open already stay open: their blocks have been checked.
                held = {**self._prepared, **{one.file: one for one in self.segments}}
                segments = tuple(
                    held.get(file) or OpenSegment(file, open_segment(self._root, file))
                    for file in files.segments
                )
                journal = self._journal
                is_same = (files.journal, files.window) == (self.files.journal, self.files.window)
                # The folder may have been deleted and made again by another process, with a journal of the same number.
                if not is_same or (journal is not None and journal.is_deleted()):
                    journal = Journal(self._root, files.journal) if files.window else None
            except BaseException as error:
                # A file that is missing: the list was replaced since, or it is damage.
                is_final = not isinstance(error, Damage) or os.stat(self._path).st_ino == status.st_ino
                os.close(number)
                if is_final:
                    raise
            else:
                self._replace(number, files, segments, journal)
                self._seen = (status.st_dev, status.st_ino)
                for file in list(self._prepared):  # a copy: other threads change it
                    # In the list, or merged by another process before the list was read.
                    if file.number < files.next and (one := self._prepared.pop(file, None)) is not None:
                        self._unused.append(one)
                return
        raise Damage(f"{LIST} does not come to rest")

    def _replace(
        self, number: int, files: FileList, segments: tuple[OpenSegment, ...], journal: Journal | None
    ) -> None:
        # The list is kept open: otherwise a later list could get the same inode number, and would be taken for it.
        if self._open_list >= 0:
            self._unused.append(self._open_list)
        if journal is not self._journal:
            if self._journal is not None:
                self._unused.append(self._journal)
            # The keys of the earlier journal are in a segment by now.
            self.table, self._position = KeyTable(), 0
        self._unused += set(self.segments) - set(segments)
        self._open_list, self.files, self.segments, self._journal = number, files, segments, journal


def _close(unused: list[int | Journal | OpenSegment]) -> None:
    while unused:
        one = unused.pop()
        if isinstance(one, Journal):
            one.close()
        elif isinstance(one, int):
            os.close(one)
        # A segment's mapping ends with its last user: mostly here, or in a look-up that is still under way.
