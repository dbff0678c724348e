"""The journal of a bucket: the keys stored lately, as one record for each transaction, not yet in the tree.

Keys are hashes, so each of a thousand falls on a leaf of its own, and LMDB writes a page anew for each: that is most
of what a key costs. Written one after the other into a record they take 20 bytes each; and when the journal is full, a
single transaction enters all of them into the tree, in their order, so that a page is written for many at once.

A record's name sorts after every key (it is longer than the greatest one) and counts: the generation, which is the
number of the transaction that began the journal and so never comes again; the record; and the keys before it. Its
value is the keys, each with its stamp behind it. Records are appended and, at the end of a generation, all taken: so a
reader that remembers a generation and a count knows what it has seen (`Recent`), and the last name tells the extent.

Everything here works within a transaction of the caller's, so journal and tree change together or not at all.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import lmdb

from consumer.adapters.key_store.interface import KEY_BYTES

_GREATEST = b"\xff" * KEY_BYTES
_NAME = struct.Struct(f">{KEY_BYTES}sQII")
_ENTRY = struct.Struct(f"{KEY_BYTES}s4s")


class _Name(NamedTuple):
    """A record's name."""

    generation: int
    record: int
    """Counts the generation's records from 0."""
    keys: int
    """How many keys the records before it hold."""

    def packed(self) -> bytes:
        return _NAME.pack(_GREATEST, *self)


class Extent(NamedTuple):
    """How much a journal holds."""

    generation: int
    """0 if it is empty."""
    records: int
    keys: int
    """A key that was stored twice counts twice."""


_EMPTY = Extent(0, 0, 0)
_FIRST = _Name(0, 0, 0).packed()


def extent(transaction: lmdb.Transaction[bytes]) -> Extent:
    """How much the journal holds."""
    cursor = transaction.cursor()
    if not cursor.last() or len(cursor.key()) != _NAME.size:
        return _EMPTY
    _, *numbers = _NAME.unpack(cursor.key())
    last = _Name(*numbers)
    return Extent(last.generation, last.record + 1, last.keys + len(cursor.value()) // _ENTRY.size)


def append(transaction: lmdb.Transaction[bytes], entries: Mapping[bytes, bytes]) -> None:
    """Put keys with their stamps at the journal's end; of a key that it holds already the later stamp counts."""
    held = extent(transaction)
    name = _Name(held.generation or transaction.id(), held.records, held.keys)
    transaction.put(name.packed(), b"".join(chain.from_iterable(entries.items())), append=True)


def growth(keys: int, page_bytes: int) -> int:
    """The most pages by which an `append` of so many keys can lengthen the file.

    Its record, and anew the way to it through a tree that may get higher (at most some ten levels), and LMDB's own
    list of free pages.
    """
    return keys * _ENTRY.size // page_bytes + 48


def take(transaction: lmdb.Transaction[bytes]) -> dict[bytes, bytes]:
    """Empty the journal; all keys that it held, with the later stamp of each."""
    entries: dict[bytes, bytes] = {}
    cursor = transaction.cursor()
    records = list(cursor.iternext()) if cursor.set_range(_FIRST) else []
    for name, value in records:
        _keep_later(entries, _ENTRY.iter_unpack(value))
        transaction.delete(name)
    return entries


def add(entries: dict[bytes, bytes], more: Mapping[bytes, bytes]) -> None:
    """Add keys with their stamps; of a key that is there already the later stamp stays."""
    _keep_later(entries, more.items())


class Recent:
    """What a bucket's journal holds, in memory: a reader follows the journal, record by record.

    May be used by several threads. One with an older view of the bucket than another's may find keys that are newer
    than its view; on disk they are all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[bytes, bytes] = {}
        self._generation = 0
        self._records = 0

    def find(self, transaction: lmdb.Transaction[bytes], keys: Sequence[bytes], oldest: bytes) -> set[bytes]:
        """Those of `keys` that are in the journal with a stamp of `oldest` or later."""
        with self._lock:
            self._follow(transaction)
            return {key for key in self._entries.keys() & keys if self._entries[key] >= oldest}

    def _follow(self, transaction: lmdb.Transaction[bytes]) -> None:
        now = extent(transaction)
        if now.generation != self._generation:
            self._entries.clear()
            self._generation, self._records = now.generation, 0
        if now.records <= self._records:
            return
        cursor = transaction.cursor()
        cursor.set_range(_Name(now.generation, self._records, 0).packed())
        for value in cursor.iternext(keys=False, values=True):
            _keep_later(self._entries, _ENTRY.iter_unpack(value))
        self._records = now.records


def _keep_later(entries: dict[bytes, bytes], more: Iterable[tuple[bytes, bytes]]) -> None:
    new = dict(more)
    later = {key: entries[key] for key in entries.keys() & new.keys() if entries[key] > new[key]}
    entries.update(new)
    entries.update(later)
