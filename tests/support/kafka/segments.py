"""A broker's log segments on disk: to damage a batch in them, to repair it, and to cut them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.kafka.raw import crc32c

_FRAMED: Final = 12
"""Bytes of a batch's base offset and length, which are not part of the length."""
_CRC_AT: Final = 17
_CHECKED_AT: Final = 21
"""The place in a batch from which the checksum is computed."""
_RECORDS_AT: Final = 61


class RecordBatch(NamedTuple):
    """A batch of records in a segment: its first offset, and its place."""

    base: int
    begin: int
    end: int


class LogSegment:
    """The first segment of a partition of a `RealBroker`."""

    def __init__(self, directory: Path, topic: str, partition: int = 0) -> None:
        self.path = directory / "logs" / f"{topic}-{partition}" / f"{0:020}.log"

    def batches(self) -> list[RecordBatch]:
        """All batches, in order."""
        data, at, found = self.path.read_bytes(), 0, []
        while at + _FRAMED <= len(data):
            base, length = struct.unpack_from(">qi", data, at)
            found.append(RecordBatch(base, at, at + _FRAMED + length))
            at = found[-1].end
        return found

    def flip(self, batch: RecordBatch) -> None:
        """Change one bit of the batch's records; the second time this changes it back."""
        self._write(batch.end - 30, bytes([self._read(batch.end - 30, 1)[0] ^ 1]))

    def spoil(self, batch: RecordBatch) -> bytes:
        """Replace the batch's packed records by noise, with a correct checksum; return the earlier bytes."""
        before = self._read(batch.begin, batch.end - batch.begin)
        records = bytes([0xAA]) * (len(before) - _RECORDS_AT)
        checked = before[_CHECKED_AT:_RECORDS_AT] + records
        self._write(batch.begin + _CRC_AT, struct.pack(">I", crc32c(checked)) + checked)
        return before

    def unmeasure(self, batch: RecordBatch) -> bytes:
        """Give the batch an impossible length; return the earlier bytes."""
        before = self._read(batch.begin, batch.end - batch.begin)
        self._write(batch.begin + 8, struct.pack(">i", -5))
        return before

    def cut(self, batch: RecordBatch) -> None:
        """Cut the log before this batch, while the broker is dead: it leads again, under a later epoch, without it."""
        with self.path.open("r+b") as file:
            file.truncate(batch.begin)

    def restore(self, batch: RecordBatch, before: bytes) -> None:
        """Put the earlier bytes back."""
        self._write(batch.begin, before)

    def _read(self, at: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def _write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)
