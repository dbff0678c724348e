"""The journal of a bucket: recently stored keys, one record per transaction, not yet in the tree.

Keys are hashes, so each of a thousand keys falls on another leaf, and LMDB rewrites a page for each: that is most of
the cost of a key. In a record of the journal, a key takes 20 bytes. When the journal is full, a single transaction
enters all its keys into the tree in sorted order, so that one page write serves many keys.

The name of a record sorts after every key (it is longer than the greatest key) and contains three numbers: the
generation, which is the id of the transaction that began the journal and therefore unique; the number of the record;
and the number of keys before it. The value is the keys, each followed by its stamp. Records are appended and, at the
end of a generation, all removed. So a reader that remembers a generation and a count knows which records it has seen
(`Recent`), and the last name gives the extent.

A name implies the names before it, so a journal that lost a record or keys of a record is recognised and raises
`Damage`: a key that is silently missing would be an event that is sent again. (Changed bytes of a key cannot be
recognised, neither here nor in the tree.)

All functions work within a transaction of the caller, so journal and tree change together or not at all.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import lmdb

from consumer.adapters.key_store.failures import Damage
from consumer.adapters.key_store.interface import KEY_BYTES

_GREATEST = b"\xff" * KEY_BYTES
_NAME = struct.Struct(f">{KEY_BYTES}sQII")
_ENTRY = struct.Struct(f"{KEY_BYTES}s4s")
ENTRY_BYTES = _ENTRY.size
"""Bytes of a key with its stamp."""


class _Name(NamedTuple):
    """The name of a record."""

    generation: int
    record: int
    """Number of the record within the generation, from 0."""
    keys: int
    """Number of keys in the records before it."""

    @classmethod
    def read(cls, name: bytes) -> _Name:
        """Parse a name. Raises `Damage` if it is not the name of a record."""
        if len(name) != _NAME.size or not name.startswith(_GREATEST):
            raise Damage("its journal does not end with a record")
        _, *numbers = _NAME.unpack(name)
        return cls(*numbers)

    def packed(self) -> bytes:
        """Encode the name. Raises `Damage` for numbers that no journal reaches."""
        try:
            return _NAME.pack(_GREATEST, *self)
        except struct.error as beyond:
            raise Damage("the numbers of its journal are out of range") from beyond


class JournalExtent(NamedTuple):
    """The size of a journal."""

    generation: int
    """0 if it is empty."""
    records: int
    keys: int
    """A key that was stored twice counts twice."""

    def after(self, name: bytes, record: bytes) -> JournalExtent:
        """Return the extent including the next record. Raises `Damage` if it is not the next one."""
        if name != self.next().packed():
            raise Damage(f"record {self.records} of its journal is missing")
        return JournalExtent(self.generation, self.records + 1, self.keys + _count(record))

    def next(self) -> _Name:
        """The name of the next record."""
        return _Name(*self)


def _count(record: bytes) -> int:
    """The number of keys in a record. Raises `Damage` if it is cut short."""
    keys, rest = divmod(len(record), ENTRY_BYTES)
    if rest or not keys:
        raise Damage("a record of its journal is cut short")
    return keys


_EMPTY = JournalExtent(0, 0, 0)
_FIRST = _Name(0, 0, 0).packed()


def extent(transaction: lmdb.Transaction[bytes]) -> JournalExtent:
    """Return the extent of the journal, from its last record. Raises `Damage` if that is not a record."""
    cursor = transaction.cursor()
    if not cursor.last() or len(cursor.key()) == KEY_BYTES:
        return _EMPTY
    last = _Name.read(cursor.key())
    return JournalExtent(*last).after(cursor.key(), cursor.value())


def entries(keys: Sequence[bytes], stamp: bytes) -> bytes:
    """Encode keys that share a stamp for a record. Results may be concatenated."""
    return stamp.join(keys) + stamp if keys else b""


def last_stamp(record: bytes) -> bytes:
    """The stamp of a record's last key."""
    return record[-(ENTRY_BYTES - KEY_BYTES) :]


def append(transaction: lmdb.Transaction[bytes], record: bytes) -> None:
    """Append a record of `entries` to the journal. If a key is in it twice, its later stamp must come last."""
    held = extent(transaction)
    name = held.next() if held.records else _Name(transaction.id(), 0, 0)
    transaction.put(name.packed(), record, append=True)


def growth(record_bytes: int, page_bytes: int) -> int:
    """Return the maximum number of pages by which an `append` of `record_bytes` can lengthen the file.

    These are the pages of the record, the rewritten path to it through a tree that may grow (about ten levels at most),
    and LMDB's own list of free pages.
    """
    return record_bytes // page_bytes + 48


def take(transaction: lmdb.Transaction[bytes]) -> bytes:
    """Empty the journal and return all its records, concatenated. Raises `Damage` if it is incomplete."""
    held, cursor = extent(transaction), transaction.cursor()
    records = list(cursor.iternext()) if cursor.set_range(_FIRST) else []
    seen = JournalExtent(held.generation, 0, 0)
    for name, value in records:
        seen = seen.after(name, value)
        transaction.delete(name)
    return b"".join(value for _, value in records)


def in_order(record: bytes, most: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield the keys of a record with their stamps, `most` at a time, sorted by key and then by stamp."""
    # 20 concatenated bytes sort like the pair of key and stamp, in half the time.
    ordered = sorted([record[at : at + ENTRY_BYTES] for at in range(0, len(record), ENTRY_BYTES)])
    for start in range(0, len(ordered), most):
        yield list(_ENTRY.iter_unpack(b"".join(ordered[start : start + most])))


class Recent:
    """The content of a bucket's journal in memory. Each use first reads the records that are new since the last one.

    It may be used by several threads. A thread with an older view of the bucket may find keys that are newer than its
    view; they are on disk all the same. Methods raise `Damage` if the journal is incomplete.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[bytes, bytes] = {}
        self._seen = _EMPTY

    def find(self, transaction: lmdb.Transaction[bytes], keys: Sequence[bytes], oldest: bytes) -> set[bytes]:
        """Those of `keys` that are in the journal with a stamp of `oldest` or later."""
        with self._lock:
            self._follow(transaction)
            return {key for key in self._entries.keys() & keys if self._entries[key] >= oldest}

    def count(self, transaction: lmdb.Transaction[bytes]) -> int:
        """Return the number of distinct keys in the journal."""
        with self._lock:
            self._follow(transaction)
            return len(self._entries)

    def _follow(self, transaction: lmdb.Transaction[bytes]) -> None:
        now = extent(transaction)
        if now.generation != self._seen.generation:
            self._entries.clear()
            self._seen = JournalExtent(now.generation, 0, 0)
        if now.records <= self._seen.records:
            return
        cursor = transaction.cursor()
        cursor.set_range(_Name(now.generation, self._seen.records, 0).packed())
        for name, value in cursor.iternext():
            self._seen = self._seen.after(name, value)
            _keep_later(self._entries, value)


def _keep_later(entries: dict[bytes, bytes], record: bytes) -> None:
    new = dict(_ENTRY.iter_unpack(record))
    later = {key: entries[key] for key in entries.keys() & new.keys() if entries[key] > new[key]}
    entries.update(new)
    entries.update(later)
