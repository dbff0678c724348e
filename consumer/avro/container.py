"""Avro container files, taken apart within bounds.

Theory of operation. A container is a header (metadata, then a marker of 16 bytes that also follows every block) and
blocks: a count of records, a size, the records packed with the header's codec. A `Container` reads with a `read` like
that of a file and yields the unpacked blocks; it does not read the records in them.

A file may come from anywhere, so memory is not allocated only because the file claims a size: bytes are read piece by
piece, a block is unpacked only up to `MAX_BLOCK_BYTES` (a few kilobytes can unpack to gigabytes), and a block cannot
claim more records than it has bytes. Codecs are those of the standard library, whose unpackers can be stopped.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from consumer.avro.reading import read_long
from consumer.avro.schema import printable

MAGIC: Final = b"Obj\x01"
MAX_METADATA_BYTES: Final = 4 << 20  # of all metadata together, the schema among them
MAX_METADATA_ENTRIES: Final = 1_000
MAX_BLOCK_BYTES: Final = 64 << 20  # packed and unpacked; writers end a block after some 16 KB to 2 MB
_SYNC_BYTES: Final = 16
_PIECE: Final = 1 << 20
# The header of xz says how much memory unpacking takes: up to 4 GiB, if nothing bounds it.
_XZ_MEMORY: Final = 128 << 20
_LONGEST_SHOWN: Final = 40


class BrokenContainer(Exception):
    """The file is not an Avro container, or is damaged. The message is one line and holds no data."""


class DataBlock(NamedTuple):
    """A number of records, and their bytes."""

    records: int
    data: bytes


class Container:
    """Reads the header at once; `read` gives as many bytes as asked for, and fewer only at the end of the file.

    Raises `BrokenContainer`, and the errors of `read`.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        if self._exactly(len(MAGIC)) != MAGIC:
            raise BrokenContainer("it does not begin as one")
        metadata = self._metadata()
        try:
            self.schema = metadata[b"avro.schema"].decode()
        except (KeyError, UnicodeDecodeError):
            raise BrokenContainer("its header holds no schema") from None
        self._codec = metadata.get(b"avro.codec", b"null").decode("utf-8", "replace")
        self._sync = self._exactly(_SYNC_BYTES)

    def blocks(self) -> Iterator[DataBlock]:
        """Yield the blocks, in order, to the end of the file. Raises `BrokenContainer`, and the errors of `read`."""
        unpack = _CODECS.get(self._codec)
        if unpack is None:
            codec = printable(self._codec, _LONGEST_SHOWN)
            raise BrokenContainer(f"its codec {codec!r} is not read: {', '.join(_CODECS)} are")
        while first := self._read(1):
            count = self._long(first)
            packed = self._exactly(self._size(MAX_BLOCK_BYTES))
            # The header's marker of 16 bytes follows every block, so a damaged size is noticed here.
            if self._exactly(_SYNC_BYTES) != self._sync:
                raise BrokenContainer("a block does not end where it says")
            data = unpack(packed)
            # An empty block may claim any number of records of type null: reading them would not end.
            if not 0 <= count <= len(data):
                raise BrokenContainer("a block claims more records than it has bytes")
            yield DataBlock(count, data)

    def _metadata(self) -> dict[bytes, bytes]:
        metadata: dict[bytes, bytes] = {}
        left, entries = MAX_METADATA_BYTES, 0
        while count := self._long():
            if count < 0:
                self._long()  # the block's size
            for _ in range(abs(count)):
                key = self._exactly(self._size(left))
                metadata[key] = value = self._exactly(self._size(left - len(key)))
                left -= len(key) + len(value)
                entries += 1  # counted apart: equal keys are one entry of the dict
                if entries > MAX_METADATA_ENTRIES:
                    raise BrokenContainer(f"its header has more than {MAX_METADATA_ENTRIES} entries")
        return metadata

    def _size(self, maximum: int) -> int:
        size = self._long()
        if not 0 <= size <= maximum:
            raise BrokenContainer(f"it claims a length of {size} bytes, {maximum} are read")
        return size

    def _long(self, first: bytes = b"") -> int:
        data = first or self._exactly(1)
        # Ten bytes of seven bits hold every number: an eleventh is not read.
        while data[-1] > 127 and len(data) < 10:
            data += self._exactly(1)
        try:
            return read_long(data, 0)[0]
        except ValueError:
            raise BrokenContainer("a number has more than 64 bits") from None

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            # Piece by piece, so that a claimed length alone does not allocate memory.
            piece = self._read(min(size, _PIECE))
            if not piece:
                raise BrokenContainer("it ends in its middle")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _unpacked(unpacker: zlib._Decompress | bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes) -> bytes:
    try:
        # One byte more than the limit, or a block that is too large would look complete.
        unpacked = unpacker.decompress(data, MAX_BLOCK_BYTES + 1)
    except (OSError, zlib.error, lzma.LZMAError, EOFError):
        raise BrokenContainer("a block cannot be unpacked") from None
    if len(unpacked) > MAX_BLOCK_BYTES:
        raise BrokenContainer(f"a block unpacks to more than {MAX_BLOCK_BYTES >> 20} MiB")
    if not unpacker.eof:
        raise BrokenContainer("a block ends in the middle of what was packed")
    return unpacked


# zstandard and snappy are not in the standard library of Python 3.11.
_CODECS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "null": lambda data: data,
    "deflate": lambda data: _unpacked(zlib.decompressobj(-zlib.MAX_WBITS), data),
    "bzip2": lambda data: _unpacked(bz2.BZ2Decompressor(), data),
    "xz": lambda data: _unpacked(lzma.LZMADecompressor(memlimit=_XZ_MEMORY), data),
}
