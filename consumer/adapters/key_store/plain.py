"""Operations on many keys at once, in plain Python: the fallback without a C compiler, and the reference of its tests.

Keys come as one *column*: a bytes object of 16 bytes a key. `found` has a byte for each key of the column; a search
sets it to `Found.DELIVERED` where the key is there with a stamp of `oldest` or later, and leaves other bytes as they
are. An *entry* is a key and its stamp, four bytes with the greatest first: entries sort by key and then by stamp.

A segment is a file of three parts: its entries, sorted, each key once; a directory of 2**bits + 1 numbers of four
bytes, the smallest first: for each value of a key's first bits the number of its first entry; and a CRC-32 of each
block of 1,024 bytes of the two. A directory costs one to two bytes a key, the checksums a twelfth.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from heapq import merge
from itertools import accumulate
from mmap import mmap
from zlib import crc32

from consumer.adapters.key_store.interface import Damage
from consumer.engine.messages import Found
from consumer.engine.reading import KEY_BYTES, split_keys

ENTRY_BYTES = 20
BLOCK_BYTES = 1024
MAX_BITS = 28
"""Most bits of a directory."""
_STAMP = struct.Struct(">I")


def _first_bits(key: bytes, bits: int) -> int:
    return int.from_bytes(key[:4], "big") >> (32 - bits)


class KeyTable:
    """Keys with their latest stamps, in memory."""

    def __init__(self) -> None:
        self._stamps: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def insert(self, keys: bytes | memoryview, stamp: int) -> None:
        """Insert a column of keys; of two stamps of a key the later one stays."""
        for key in split_keys(bytes(keys)):
            self._stamps[key] = max(stamp, self._stamps.get(key, 0))

    def find(self, keys: bytes, oldest: int, found: bytearray) -> None:
        """Mark the keys that are in the table."""
        for number, key in enumerate(split_keys(keys)):
            if self._stamps.get(key, -1) >= oldest:
                found[number] = Found.DELIVERED

    def sorted(self) -> bytes:
        """Return all entries, in order."""
        return b"".join(sorted(key + _STAMP.pack(stamp) for key, stamp in self._stamps.items()))


class Segment:
    """A segment whose content is `data`. Each part is compared with its checksum before its first use."""

    def __init__(self, data: bytes | mmap, entries: int, bits: int) -> None:
        self.entries, self._data, self._bits = entries, data, bits
        if not (0 <= entries <= len(data) // ENTRY_BYTES and 0 <= bits <= MAX_BITS):
            raise Damage("has another length than it was written with")
        self._size = entries * ENTRY_BYTES + ((1 << bits) + 1) * 4
        blocks = -(-self._size // BLOCK_BYTES)
        if len(data) != self._size + 4 * blocks:
            raise Damage("has another length than it was written with")
        self._checked = bytearray(blocks)

    def check(self) -> None:
        """Compare the whole segment with its checksums. Raises `Damage`."""
        self._whole(0, self._size)

    def find(self, keys: bytes, oldest: int, found: bytearray, beside: bool) -> None:
        """Mark the keys that are in the segment. Raises `Damage`. `beside`: let other threads run beside it."""
        for number, key in enumerate(split_keys(keys)):
            # Two neighbours in the directory: the first entry with these bits, and the first with the next value.
            at = self.entries * ENTRY_BYTES + 4 * _first_bits(key, self._bits)
            low, high = struct.unpack("<2I", self._whole(at, at + 8))
            # A checksum of 32 bits may match by chance: stay within the file.
            if not low <= high <= self.entries:
                raise Damage("is not as it was written")
            # Not one after the other: whoever chooses event ids can choose many whose keys share these bits.
            low += bisect_left(range(low, high), key, key=self.entry)
            if low < high:
                entry = self.entry(low)
                if entry.startswith(key) and _STAMP.unpack_from(entry, KEY_BYTES)[0] >= oldest:
                    found[number] = Found.DELIVERED

    def entry(self, number: int) -> bytes:
        """Return the entry with this number. Raises `Damage`."""
        return self._whole(number * ENTRY_BYTES, (number + 1) * ENTRY_BYTES)

    def _whole(self, begin: int, end: int) -> bytes:
        for block in range(begin // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            if not self._checked[block]:
                part = self._data[block * BLOCK_BYTES : min((block + 1) * BLOCK_BYTES, self._size)]
                # Checked once for each block: a look-up reads a few of its entries, the checksum all of them.
                if crc32(part) != struct.unpack_from("<I", self._data, self._size + 4 * block)[0]:
                    raise Damage("is not as it was written")
                self._checked[block] = 1
        return self._data[begin:end]


class Builder:
    """Makes the directory and the checksums of a segment, while its entries are added in order."""

    def __init__(self, bits: int) -> None:
        self.entries = 0
        self._bits = bits
        self._counts = [0] * ((1 << bits) + 1)
        self._checks: list[int] = []
        self._rest = b""

    def add(self, piece: bytes) -> None:
        """Add the next entries."""
        for at in range(0, len(piece), ENTRY_BYTES):
            self._counts[_first_bits(piece[at : at + 4], self._bits) + 1] += 1
        self.entries += len(piece) // ENTRY_BYTES
        # Blocks do not end where pieces end.
        data = self._rest + piece
        whole = len(data) - len(data) % BLOCK_BYTES
        self._checks += [crc32(data[at : at + BLOCK_BYTES]) for at in range(0, whole, BLOCK_BYTES)]
        self._rest = data[whole:]

    def finish(self) -> tuple[bytes, bytes]:
        """Return the directory and the checksums."""
        directory = struct.pack(f"<{len(self._counts)}I", *accumulate(self._counts))
        data = self._rest + directory
        checks = self._checks + [
            crc32(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)
        ]
        return directory, struct.pack(f"<{len(checks)}I", *checks)


class Merger:
    """Merges the entries of several segments in order: each key once, with its latest stamp."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        # `heapq.merge` holds one entry of each: a merge of gigabytes needs no memory.
        self._entries = merge(*(map(one.entry, range(one.entries)) for one in segments))
        self._next = next(self._entries, None)

    def take(self, maximum: int) -> bytes:
        """Return the next entries, up to `maximum`; none at the end. Raises `Damage`."""
        taken: list[bytes] = []
        while self._next is not None and len(taken) < maximum:
            entry, self._next = self._next, next(self._entries, None)
            # The latest stamp of a key comes last.
            if self._next is None or self._next[:KEY_BYTES] != entry[:KEY_BYTES]:
                taken.append(entry)
        return b"".join(taken)
