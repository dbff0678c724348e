"""Turn errors of the disk and LMDB into one `KeyStoreError` line that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

from consumer.errors import KeyStoreError


class Damage(Exception):
    """The store's data is inconsistent. `translated` turns it into a `KeyStoreError`; it never leaves the store."""


_DAMAGED = (
    Damage,
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)

_REFUSED = f"make it writable for user {os.geteuid()}, or name another folder in PINSTREAM_KEY_STORE"
_FULL = "free space on that disk, or name a folder on another one in PINSTREAM_KEY_STORE"
_ADVICE = {
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.EROFS: _REFUSED,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOENT: "name a folder that can be created",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "name a folder, not a file",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "raise the limit of address space (ulimit -v): every bucket maps 16 GiB of it, used or not",
    # LMDB marks its readers by process id, so two containers whose ids collide cannot read one folder.
    errno.EAGAIN: "two containers cannot share one folder: give each container its own folder",
}


_NO_ROOM = 64 * 1024
"""Free bytes below which the disk counts as full: less than LMDB writes at once."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn errors while `path` is used into a `KeyStoreError`."""
    try:
        yield
    except _DAMAGED as damage:
        failure = KeyStoreError(
            f"the key store's {path} is damaged ({damage}): stop every process that uses it, move this folder away "
            "(its keys are lost, so their events may be sent twice if they are read again), and start again"
        )
        failure.needs_restart = True
        raise failure from damage
    except lmdb.Error as failure:
        raise _failure(path, failure, failure.code) from failure
    except OSError as failure:
        raise _failure(path, failure, failure.errno) from failure


def _failure(path: str, failure: Exception, code: int | None) -> KeyStoreError:
    if code == errno.EIO and _is_full(path):
        code = errno.ENOSPC
    reason = os.strerror(code) if code and code > 0 else str(failure)
    advice = _ADVICE.get(code or 0, "check the disk and the folder")
    return KeyStoreError(f"the key store cannot use {path} ({reason}): {advice}")


def _is_full(path: str) -> bool:
    """Return True if the disk is full. LMDB reports a write with room for only some of its pages as an I/O error."""
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _NO_ROOM
