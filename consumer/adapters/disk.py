"""Files that are written durably: complete and flushed before anything names them.

A file is written beside its place and renamed, so that whoever opens it finds the file before or the one after.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

# A long file is flushed in parts, because unflushed data delay the flush of the journal beside it.
_SYNC_BYTES = 8 * 1024 * 1024

# A file that is written in pieces of this size is cached in large pages of memory, where the file system has them (ext4
# and XFS do). Then a look-up in millions of keys waits only for the keys, and not for the addresses of their pages.
_PAGE_BYTES = 2 * 1024 * 1024


def write_file(path: str, parts: Iterable[bytes], *, reserve: int = 0) -> None:
    """Write a file, durably; for its user alone. If it cannot be written whole, nothing of it stays."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # At its full length from the start: its room counts as used while it is written (`Folder.bytes_on_disk`).
        os.ftruncate(number, reserve)
        size = flushed = 0
        waiting = bytearray()
        for part in parts:
            waiting += part
            while len(waiting) >= _PAGE_BYTES:
                write_all(number, waiting[:_PAGE_BYTES], size)
                size += _PAGE_BYTES
                del waiting[:_PAGE_BYTES]
            if size - flushed >= _SYNC_BYTES:
                flush(number)
                flushed = size
        write_all(number, waiting, size)
        os.ftruncate(number, size + len(waiting))
        os.fsync(number)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(number)


def flush(number: int) -> None:
    """Flush a file's data to disk. Raises `OSError`."""
    # macOS has no fdatasync; there, what its disk keeps in a cache of its own may be lost with the power.
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(number)


def replace_file(path: str, new: str, data: bytes) -> None:
    """Put `data` in place of the file at `path`, in one step; `new` is its name until then."""
    write_file(new, [data])
    try:
        os.rename(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise


def write_all(number: int, data: bytes | bytearray, at: int) -> None:
    """Write all of `data` to a descriptor."""
    # `pwrite` may write less than it is given; where the disk is full, the next call says so.
    with memoryview(data) as left:
        done = 0
        while done < len(left):
            done += os.pwrite(number, left[done:], at + done)


def read_through(path: str) -> None:
    """Read a file into the page cache, if it is there. Raises `OSError` where the disk cannot read it."""
    # Called before a mapping of the file is read: page by page that takes ten times as long, and a page that the disk
    # cannot read ends the process (SIGBUS) without a message.
    with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        piece = bytearray(_PAGE_BYTES)
        while file.readinto(piece):
            pass


def sync_folder(path: str) -> None:
    """Flush a folder's entries to disk."""
    # A power failure loses a new file that was flushed if its name in the folder was not.
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
