"""The journal of a bucket: the keys stored lately, as one record for each transaction, not yet in the tree.

Keys are hashes, so each of a thousand falls on a leaf of its own, and LMDB writes a page anew for each: that is most
of what a key costs. Written one after the other into a record they take 20 bytes each; and when the journal is full, a
single transaction enters all of them into the tree, in their order, so that a page is written for many at once.

A record's name sorts after every key (it is longer than the greatest one) and counts: the generation, which is the
number of the transaction that began the journal and so never comes again; the record; and the keys before it. Its
value is the keys, each with its stamp behind it. Records are appended and, at the end of a generation, all taken: so a
reader that remembers a generation and a count knows what it has seen (`Recent`), and the last name tells the extent.

A name says what must stand before it, so a journal that lost a record, or whose record lost keys, is told from a whole
one: `Damage`, for whoever asks, since a key that is not found is an event that is sent again. (Whether the bytes of a
key are those that were written nobody can tell, in the tree neither.)

Everything here works within a transaction of the caller's, so journal and tree change together or not at all.
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
"""What a key with its stamp takes."""


class _Name(NamedTuple):
    """A record's name."""

    generation: int
    record: int
    """Counts the generation's records from 0."""
    keys: int
    """How many keys the records before it hold."""

    @classmethod
    def read(cls, name: bytes) -> _Name:
        """Raises `Damage` for what is no record's name."""
        if len(name) != _NAME.size or not name.startswith(_GREATEST):
            raise Damage("its journal ends with what is no record")
        _, *numbers = _NAME.unpack(name)
        return cls(*numbers)

    def packed(self) -> bytes:
        """Raises `Damage` for numbers that no journal comes to."""
        try:
            return _NAME.pack(_GREATEST, *self)
        except struct.error as beyond:
            raise Damage("its journal counts further than it can") from beyond


class Extent(NamedTuple):
    """How much a journal holds."""

    generation: int
    """0 if it is empty."""
    records: int
    keys: int
    """A key that was stored twice counts twice."""

    def after(self, name: bytes, record: bytes) -> Extent:
        """With the record that comes next; raises `Damage` unless it is that."""
        if name != self.next().packed():
            raise Damage(f"record {self.records} of its journal is not there")
        return Extent(self.generation, self.records + 1, self.keys + _count(record))

    def next(self) -> _Name:
        """The name of the record that comes next."""
        return _Name(*self)


def _count(record: bytes) -> int:
    """How many keys a record holds."""
    keys, rest = divmod(len(record), ENTRY_BYTES)
    if rest or not keys:
        raise Damage("a record of its journal is cut short")
    return keys


_EMPTY = Extent(0, 0, 0)
_FIRST = _Name(0, 0, 0).packed()


def extent(transaction: lmdb.Transaction[bytes]) -> Extent:
    """How much the journal holds, by its last record; raises `Damage` if that is none."""
    cursor = transaction.cursor()
    if not cursor.last() or len(cursor.key()) == KEY_BYTES:
        return _EMPTY
    last = _Name.read(cursor.key())
    return Extent(*last).after(cursor.key(), cursor.value())


def entries(keys: Sequence[bytes], stamp: bytes) -> bytes:
    """Keys that share a stamp, as a record holds them. Records, or what shall be one, may be joined."""
    return stamp.join(keys) + stamp if keys else b""


def last_stamp(record: bytes) -> bytes:
    """The stamp of a record's last key."""
    return record[-(ENTRY_BYTES - KEY_BYTES) :]


def append(transaction: lmdb.Transaction[bytes], record: bytes) -> None:
    """Put a record of `entries` at the journal's end; a key that comes twice in it has its later stamp last."""
    held = extent(transaction)
    name = held.next() if held.records else _Name(transaction.id(), 0, 0)
    transaction.put(name.packed(), record, append=True)


def growth(record_bytes: int, page_bytes: int) -> int:
    """The most pages by which an `append` of so many bytes can lengthen the file.

    Its record, and anew the way to it through a tree that may get higher (at most some ten levels), and LMDB's own
    list of free pages.
    """
    return record_bytes // page_bytes + 48


def take(transaction: lmdb.Transaction[bytes]) -> bytes:
    """Empty the journal; all records that it held, joined. Raises `Damage` if it is not whole."""
    held, cursor = extent(transaction), transaction.cursor()
    records = list(cursor.iternext()) if cursor.set_range(_FIRST) else []
    seen = Extent(held.generation, 0, 0)
    for name, value in records:
        seen = seen.after(name, value)
        transaction.delete(name)
    return b"".join(value for _, value in records)


def in_order(record: bytes, most: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The keys of a record with their stamps, at most `most` at a time, sorted by key and then by stamp."""
    # As they are joined: bytes of 20 bytes sort like the pairs and take half the time.
    ordered = sorted([record[at : at + ENTRY_BYTES] for at in range(0, len(record), ENTRY_BYTES)])
    for start in range(0, len(ordered), most):
        yield list(_ENTRY.iter_unpack(b"".join(ordered[start : start + most])))


class Recent:
    """What a bucket's journal holds, in memory: a reader follows the journal, record by record; `Damage` if it cannot.

    May be used by several threads. One with an older view of the bucket than another's may find keys that are newer
    than its view; on disk they are all the same.
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
        """How many keys are in the journal, each counted once."""
        with self._lock:
            self._follow(transaction)
            return len(self._entries)

    def _follow(self, transaction: lmdb.Transaction[bytes]) -> None:
        now = extent(transaction)
        if now.generation != self._seen.generation:
            self._entries.clear()
            self._seen = Extent(now.generation, 0, 0)
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
