"""What the disk and LMDB may say, as one `KeyStoreError` line that tells what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

from consumer.errors import KeyStoreError


class Damage(Exception):
    """What is read cannot have been written so. Becomes a `KeyStoreError`; never leaves the store."""


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
    errno.ENOENT: "name a folder that can be made",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "name a folder, not a file",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "raise the limit of address space (ulimit -v): every bucket maps 16 GiB of it, used or not",
    # LMDB marks its readers by process id, so two containers whose ids collide cannot read one folder.
    errno.EAGAIN: "two containers cannot share one folder: give each its own",
}


_NO_ROOM = 64 * 1024
"""Bytes: less than LMDB writes in one go."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn what the outside raises while `path` is used into a `KeyStoreError`."""
    try:
        yield
    except _DAMAGED as damage:
        failure = KeyStoreError(
            f"the key store's {path} is damaged ({damage}): stop every process that uses it, move this folder away "
            "(its keys are forgotten, so their events may be sent twice if read again), and start anew"
        )
        failure.needs_restart = True
        raise failure from damage
    except lmdb.Error as failure:
        raise _told(path, failure, failure.code) from failure
    except OSError as failure:
        raise _told(path, failure, failure.errno) from failure


def _told(path: str, failure: Exception, code: int | None) -> KeyStoreError:
    if code == errno.EIO and _is_full(path):
        code = errno.ENOSPC
    reason = os.strerror(code) if code and code > 0 else str(failure)
    advice = _ADVICE.get(code or 0, "check the disk and the folder")
    return KeyStoreError(f"the key store cannot use {path} ({reason}): {advice}")


def _is_full(path: str) -> bool:
    """Whether the disk has no room left. LMDB calls a write that found room for a part of its pages an I/O error."""
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _NO_ROOM
