"""Reads the key stores of versions before 0.3, which were LMDB environments: without LMDB, and once.

Such a folder has a folder for each *bucket*: ``b-<start>-<window>-<sequence>``, the slice of time of its keys, with one
B-tree that maps a key to its stamp. Keys that had not been entered there yet are in *records* in the same tree: the
name of a record begins with 16 bytes of 255 and is longer than a key, its value is keys with their stamps.

The tree is read by the layout of LMDB 0.9 on a 64-bit little-endian machine (``mdb.c``: MDB_meta, MDB_page,
MDB_node), page by page from the file. So a file that was cut short or overwritten is `Damage`.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from consumer.adapters.key_store.files import SegmentFile
from consumer.adapters.key_store.interface import Damage
from consumer.adapters.key_store.native import KeyTable
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError

BUCKET: Final = re.compile(r"b-\d{1,10}-\d{1,10}-\d{1,9}")
"""The name of a folder that holds keys of the older format."""
LEFTOVER: Final = re.compile(rf"new|(old-)?{BUCKET.pattern}")
"""The same, or a folder that a killed process of that version was making or removing."""

_META: Final = struct.Struct("<16xI20xI76xQQ8xQ")
"""Meta page: its magic number, bytes of a page; entries and root of the tree; the transaction that wrote it."""
_MAGIC: Final = 0xBEEFC0DE
_HEADER: Final = struct.Struct("<Q2xHH2x")
"""Header of a page: its number, flags, and the end of its table of nodes (an overflow page has its length there)."""
_NODE: Final = struct.Struct("<HHHH")
"""Node: low and high part of the size (or, with the flags, of a child's number); flags; length of the key."""
_NUMBER: Final = struct.Struct("<Q")
_BRANCH, _LEAF = 1, 2
_BIG_DATA: Final = 1
_NONE: Final = 2**64 - 1
_RECORD: Final = struct.Struct(f">{KEY_BYTES}sQII")
"""Name of a record: the greatest key, a number that is the same for all, the record's number, keys before it."""
_STAMP_BYTES: Final = 4
_ENTRY_BYTES: Final = KEY_BYTES + _STAMP_BYTES
# Keys in memory at once: the compiled table takes 50 MB for this many.
_TABLE_KEYS: Final = 1_000_000


def refuse_if_in_use(root: str, names: Sequence[str]) -> None:
    """Raise `KeyStoreError` if a process of an older version has the folder open: keys that it stores would be lost."""
    for name in names:
        try:
            with open(os.path.join(root, name, "lock.mdb"), "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)  # LMDB holds a shared lock on this byte
        except FileNotFoundError:
            continue
        except BlockingIOError:
            raise KeyStoreError(
                f"the key store {root} is in use by an older version of pinstream: stop it, and start again"
            ) from None


def slice_of(name: str) -> SegmentFile:
    """Return the slice of time of a bucket's keys."""
    _, start, window, _ = name.split("-")
    return SegmentFile(0, 0, 0, int(start), int(window), 0)


def read_old(root: str, name: str) -> Iterator[KeyTable]:
    """Yield the keys of a bucket, a million at a time. Raises `Damage`."""
    path = os.path.join(root, name, "data.mdb")
    if not os.path.exists(path) or not os.path.getsize(path):  # being made when its process was killed
        return
    stamps: dict[bytes, bytearray] = {}
    count = 0
    with open(path, "rb") as file:
        try:
            for key, stamp in _Tree(file).entries():
                stamps.setdefault(stamp, bytearray()).extend(key)
                count += 1
                if count % _TABLE_KEYS == 0:
                    yield _table(stamps)
        except (struct.error, ValueError, Damage) as wrong:
            raise Damage(f"{name}: {wrong}") from wrong
    if stamps:
        yield _table(stamps)


def _table(stamps: dict[bytes, bytearray]) -> KeyTable:
    table = KeyTable()
    for stamp, keys in stamps.items():
        table.insert(bytes(keys), int.from_bytes(stamp, "big"))
    stamps.clear()
    return table


class _Tree:
    """The B-tree of a file."""

    def __init__(self, file: BinaryIO) -> None:
        """Find the root of the tree."""
        self._file = file
        self._page_bytes = 4096
        metas = [_META.unpack_from(self._read(0, 1))]
        self._page_bytes = metas[0][1]
        metas.append(_META.unpack_from(self._read(1, 1)))
        if any(meta[:2] != (_MAGIC, self._page_bytes) for meta in metas):
            raise Damage("data.mdb is not as it was written")
        # LMDB writes its two meta pages alternately: the one of the later transaction counts.
        _, _, self._count, self._root, _ = max(metas, key=lambda meta: int(meta[4]))

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all keys with their stamps."""
        ahead = [] if self._root == _NONE else [self._root]
        pages = os.fstat(self._file.fileno()).st_size // self._page_bytes
        seen, records = 0, []
        while ahead:
            pages -= 1
            number = ahead.pop()
            page = self._page(number)
            _, flags, lower = _HEADER.unpack_from(page)
            # A page that is in a tree twice, or was never written.
            if pages < 0 or not flags & (_BRANCH | _LEAF):
                raise Damage(f"page {number} of data.mdb is not as it was written")
            for node in struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, _HEADER.size):
                low, high, node_flags, key_bytes = _NODE.unpack_from(page, node)
                size, at = low | high << 16, node + _NODE.size + key_bytes
                if flags & _BRANCH:
                    ahead.append(size | node_flags << 32)
                    continue
                seen += 1
                key, value = page[at - key_bytes : at], page[at : at + size]
                if node_flags & _BIG_DATA:
                    # The value is on pages of its own, behind a header.
                    [first] = _NUMBER.unpack_from(page, at)
                    value = self._page(first, 1 + (15 + size) // self._page_bytes)[16 : 16 + size]
                if len(key) == KEY_BYTES and size == _STAMP_BYTES:
                    yield key, value
                else:
                    records.append((key, value))
        if seen != self._count:
            raise Damage(f"data.mdb has {seen} entries of {self._count}")
        yield from _recorded(sorted(records))

    def _page(self, number: int, pages: int = 1) -> bytes:
        found = self._read(number, pages)
        if _NUMBER.unpack_from(found) != (number,):
            raise Damage(f"page {number} of data.mdb is not as it was written")
        return found

    def _read(self, number: int, pages: int) -> bytes:
        # Not mapped, as LMDB does it: reading a page of a mapping that is missing in the file kills the process.
        self._file.seek(number * self._page_bytes)
        found = self._file.read(pages * self._page_bytes)
        if len(found) < pages * self._page_bytes:
            raise Damage(f"data.mdb was cut short: page {number} is in use and missing")
        return found


def _recorded(records: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of records with their stamps. Raises `Damage` if one is missing."""
    before = 0
    for number, (name, value) in enumerate(records):
        if _RECORD.unpack(name)[2:] != (number, before) or len(value) % _ENTRY_BYTES:
            raise Damage(f"record {number} of its journal is missing")
        before += len(value) // _ENTRY_BYTES
        for at in range(0, len(value), _ENTRY_BYTES):
            yield value[at : at + KEY_BYTES], value[at + KEY_BYTES : at + _ENTRY_BYTES]
