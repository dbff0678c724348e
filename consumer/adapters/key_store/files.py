"""The files of a key store on disk: how each is laid out, written and read. The package's docstring says what
they are for.

*The list* (``format``)::

    pinstream key store, format 3
    {"journal": 7, "start": 1731196800, "window": 172800, "next": 12, "segments": [[…], …]}
    the CRC-32 of these two lines

*A journal* (``journal-7``) begins with 64 bytes: an identification, and from byte 32 on the *acknowledged end*, up to
which all chunks are certain. So an error before this end is damage, and data behind it are at most those that a killed
process was writing. A chunk is the number of its keys, their stamp, a CRC-32 of both, of the keys and of its position,
and the keys.

*A segment* (``segment-11``) is laid out as `plain` says; its name, size and the CRC-32 of its checksums are in the
list.

Whatever goes wrong with a file becomes one `KeyStoreError` line that says what to do (`translated`).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from consumer.adapters.disk import flush, replace_file, sync_folder, write_all, write_file
from consumer.adapters.key_store.interface import Damage, bucket_length
from consumer.adapters.key_store.native import Builder, Segment
from consumer.adapters.key_store.plain import BLOCK_BYTES, ENTRY_BYTES, MAX_BITS
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError

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
    errno.ENOMEM: "raise the limit of address space (ulimit -v): all of the key store is mapped",
}


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn errors while the key store in the folder `path` is used into a `KeyStoreError`."""
    try:
        yield
    except Damage as damage:
        failure = KeyStoreError(
            f"the key store's {path} is damaged ({damage}): stop every process that uses it, move this folder away "
            "(its keys are lost, so their events may be sent twice if they are read again), and start again"
        )
        failure.needs_restart = True
        raise failure from damage
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        advice = _ADVICE.get(problem.errno or 0, "check the disk and the folder")
        raise KeyStoreError(
            f"the key store cannot use {problem.filename or path} ({reason}): {advice}"
        ) from problem


LIST = "format"
FORMAT = b"pinstream key store, format 3\n"

CHUNK_KEYS = 4096
"""Most keys of a chunk."""

_HEADER = struct.Struct(">20sQI")
_MAGIC = b"pinstream keys 3"
_END = struct.Struct(">QI")
_END_AT = 32
FIRST_CHUNK = 64
"""Bytes before the first chunk: the size of a journal without keys."""
_CHUNK = struct.Struct(">III")


class SegmentFile(NamedTuple):
    """The entry of a segment in the list."""

    number: int
    entries: int
    bits: int
    """Number of a key's first bits that the segment's directory uses."""
    start: int
    """The first second of its slice of time."""
    window: int
    """The window of its writer in seconds, which gives the length of the slice."""
    check: int
    """The CRC-32 of its checksums."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"segment-{self.number}"

    @property
    def bytes(self) -> int:
        """Bytes of its file."""
        return segment_bytes(self.entries, self.bits)

    @property
    def end(self) -> int:
        """The first second after its slice."""
        return self.start + bucket_length(self.window)

    def forgotten_at(self, window: int) -> int:
        """The second from which none of its keys is needed, neither with this window nor with its writer's."""
        # Processes that share the folder may have other windows: the longer of the writer's and this one counts.
        return self.end + max(window, self.window)


class FileList(NamedTuple):
    """The content of the list: which files belong to the store."""

    journal: int = 0
    """The number of the journal. There is none yet while `window` is 0."""
    start: int = 0
    window: int = 0
    next: int = 0
    """The number of the next segment."""
    segments: tuple[SegmentFile, ...] = ()
    """Segments in the order in which their youngest keys were written."""

    @property
    def journal_slice(self) -> SegmentFile:
        """Return the slice of time of the journal's keys, as a segment that is not written yet."""
        # Sealing fills in the rest.
        return SegmentFile(-1, 0, 0, self.start, self.window, 0)

    def names(self) -> set[str]:
        """Return the names of all files that belong to the store."""
        journals = [f"journal-{self.journal}"] if self.window else []  # none in a new store
        return {LIST, *journals, *(one.name for one in self.segments)}


@lru_cache(maxsize=4)  # the list is read for each chunk, and rarely changes
def decode_list(data: bytes) -> FileList:
    """Parse the list, which begins with `FORMAT`. Raises `Damage`."""
    text, check = data[:-9], data[-9:]  # the last line is eight digits
    if check != b"%08x\n" % crc32(text):
        raise Damage(f"{LIST} is not as it was written")
    found = json.loads(text[len(FORMAT) :])
    segments = tuple(SegmentFile(*one) for one in found["segments"])
    if any(one.entries < 0 or not 0 <= one.bits <= MAX_BITS for one in segments):
        raise Damage(f"{LIST} is not as it was written")
    if found.pop("old", ()):  # a development version was killed while it took over a folder of version 0.2
        raise Damage("an older version left keys in it that were not all taken over")
    return FileList(**{**found, "segments": segments})


class Journal:
    """An open journal. `chunks` and `acknowledged` may be used beside a writer; all else under the store's lock."""

    def __init__(self, root: str, number: int) -> None:
        """Open the journal. Raises `Damage`."""
        self.name = f"journal-{number}"
        self._number = number
        try:
            self._file = open(os.path.join(root, self.name), "r+b", buffering=0)  # noqa: SIM115 - `close` closes it
        except FileNotFoundError:
            raise Damage(f"{self.name} is missing") from None
        self._file_number = self._file.fileno()
        if os.pread(self._file_number, _HEADER.size, 0) != _header(number):
            raise Damage(f"{self.name} is not as it was written")
        self._written = 0
        self._waiting = b""

    @staticmethod
    def make(root: str, number: int) -> None:
        """Make an empty journal, durably."""
        first = _header(number).ljust(_END_AT, b"\0") + _end(number, FIRST_CHUNK)
        write_file(os.path.join(root, f"journal-{number}"), [first.ljust(FIRST_CHUNK, b"\0")])
        sync_folder(root)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def is_deleted(self) -> bool:
        """Return True if another process or a person deleted the file."""
        # An open file can still be written, but all its data are lost when it is closed.
        return not os.fstat(self._file_number).st_nlink

    def acknowledged(self) -> int:
        """Return the acknowledged end, up to which all chunks are certain. Raises `Damage`."""
        for _ in range(3):  # a writer may be writing it just now
            found = os.pread(self._file_number, _END.size, _END_AT)
            if len(found) == _END.size and found == _end(self._number, _END.unpack(found)[0]):
                return int(_END.unpack(found)[0])
        raise Damage(f"{self.name} is not as it was written")

    def chunks(self, begin: int, end: int) -> list[tuple[int, memoryview]]:
        """Return the stamp and the column of keys of each chunk between two ends. Raises `Damage`.

        A `begin` of 0 is the first chunk's.
        """
        begin = max(begin, FIRST_CHUNK)
        data = os.pread(self._file_number, max(0, end - begin), begin)
        if len(data) < end - begin:
            raise Damage(f"{self.name} was cut short")
        found, size = self._parsed(data, begin)
        if size != len(data):
            raise Damage(f"{self.name} is not as it was written")
        return found

    def recovered(self) -> Journal:
        """Keep complete chunks that a killed process wrote behind the acknowledged end, and cut the rest off.
        Return the journal.

        To be called before anything is added. Raises `Damage` if the file is shorter.
        """
        self._written = end = self.acknowledged()
        size = os.fstat(self._file_number).st_size
        if size < end:
            raise Damage(f"{self.name} was cut short")
        if size > end:
            # A power failure may take back the latest acknowledged end, though not the chunks before it.
            data = os.pread(self._file_number, size - end, end)
            _, whole = self._parsed(data, end)
            # Written again: after a flush that failed, the system takes what it has in memory for flushed.
            write_all(self._file_number, data[:whole], end)
            self._written = end + whole
            os.ftruncate(self._file_number, self._written)
            self._acknowledge(self._written)
        return self

    def add(self, keys: bytes, stamp: int) -> None:
        """Add a chunk to those that the next `commit` writes."""
        head = _CHUNK.pack(len(keys) // KEY_BYTES, stamp, self._check(self.size, keys, stamp))
        self._waiting += head + keys

    @property
    def size(self) -> int:
        """Bytes of the journal, with the chunks that wait for `commit`."""
        return self._written + len(self._waiting)

    def commit(self) -> None:
        """Append the chunks that wait. They are on disk when it returns.

        If it raises, they are cut off: at once, or by the next writer, unless that can write them again.
        """
        waiting, self._waiting = self._waiting, b""
        if not waiting:
            return
        write_all(self._file_number, waiting, self._written)
        self._acknowledge(self._written + len(waiting))
        if self.is_deleted():  # data written into a deleted file are lost
            raise Damage(f"{self.name} is missing")

    def _acknowledge(self, end: int) -> None:
        # In this order: an end that is on disk before its chunks would make a power failure look like damage.
        try:
            flush(self._file_number)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file_number, self._written)
            raise
        write_all(self._file_number, _end(self._number, end), _END_AT)
        self._written = end

    def _parsed(self, data: bytes, at: int) -> tuple[list[tuple[int, memoryview]], int]:
        """Return the complete chunks that `data` begins with, and their bytes. `at`: where `data` is in the file."""
        found, position, view = [], 0, memoryview(data)
        while position + _CHUNK.size <= len(data):
            count, stamp, check = _CHUNK.unpack_from(data, position)
            keys = view[position + _CHUNK.size : position + _CHUNK.size + count * KEY_BYTES]
            if not count or len(keys) < count * KEY_BYTES or check != self._check(at + position, keys, stamp):
                break
            found.append((stamp, keys))
            position += _CHUNK.size + len(keys)
        return found, position

    def _check(self, at: int, keys: bytes | memoryview, stamp: int) -> int:
        # With the journal's number and the position: data of an earlier file in the same disk blocks are not a chunk.
        return crc32(keys, crc32(struct.pack(">QQII", self._number, at, len(keys), stamp)))


def _header(number: int) -> bytes:
    return _HEADER.pack(_MAGIC, number, crc32(b"%d" % number))


def _end(number: int, end: int) -> bytes:
    return _END.pack(end, crc32(b"%d %d" % (number, end)))


def segment_bytes(entries: int, bits: int | None = None) -> int:
    """Return the size of a segment's file; without `bits`, of one that `write_segment` makes for `entries`."""
    size = entries * ENTRY_BYTES + ((1 << (directory_bits(entries) if bits is None else bits)) + 1) * 4
    return size + 4 * -(-size // BLOCK_BYTES)  # and a checksum for each block that is begun


def directory_bits(entries: int) -> int:
    """Return the bits of the directory of a segment with `entries` entries: 2 to 4 entries for each of its numbers."""
    # Four entries are 80 bytes, two or three cache lines; the wait for them is the cost of a look-up.
    return min(MAX_BITS, max(0, (entries // 2).bit_length() - 1))


def write_segment(path: str, pieces: Iterable[bytes], maximum: int, whose: SegmentFile) -> SegmentFile:
    """Write the entries of a segment, at most `maximum`, durably. Return `whose` with what the list says of the
    file."""
    builder = Builder(directory_bits(maximum))
    checks = b""

    def parts() -> Iterator[bytes]:
        nonlocal checks
        for piece in pieces:
            builder.add(piece)
            yield piece
        # Known only after all entries: a merge omits keys that are in several segments.
        directory, checks = builder.finish()
        yield directory
        yield checks

    write_file(path, parts(), reserve=segment_bytes(maximum))
    return whose._replace(entries=builder.entries, bits=directory_bits(maximum), check=crc32(checks))


class _MappedFile(mmap.mmap):
    """A file mapped into memory. Other threads run while its mapping ends."""

    def __del__(self) -> None:
        # Otherwise the mapping ends while the interpreter's lock is held. For a removed file of 1 GiB, whose pages and
        # blocks are freed then, that takes 60 ms, and a second on a busy disk. `close` releases the lock.
        self.close()


def open_segment(root: str, file: SegmentFile, *, in_order: bool = False) -> Segment:
    """Map a segment, to be read `in_order` or at random. Raises `Damage`."""
    try:
        with open(os.path.join(root, file.name), "rb") as opened:
            if os.fstat(opened.fileno()).st_size != file.bytes:
                raise Damage(f"{file.name} was cut short")
            data = _MappedFile(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise Damage(f"{file.name} is missing") from None
    # Keys are hashes: the next page in the file is rarely the next one needed. A merge reads page after page.
    data.madvise(mmap.MADV_SEQUENTIAL if in_order else mmap.MADV_RANDOM)
    size = file.bytes - 4 * -(-file.bytes // (BLOCK_BYTES + 4))
    with memoryview(data) as view:
        if crc32(view[size:]) != file.check:
            raise Damage(f"{file.name} is not as it was written")
    return Segment(data, file.entries, file.bits)


def write_list(root: str, files: FileList) -> None:
    """Replace the list, durably."""
    text = FORMAT + json.dumps(files._asdict()).encode() + b"\n"
    replace_file(os.path.join(root, LIST), os.path.join(root, f"{LIST}.new"), text + b"%08x\n" % crc32(text))
    sync_folder(root)
