"""FILE of ``explain``, ``produce`` and ``demo``: NDJSON or an Avro container, distinguished by the first bytes.

Both become commerce events in the shape of our schema, one at a time, so that a file may be larger than memory. A line
or a datum that does not fit is a verdict, and reading goes on; only what hides the rest (a broken block, an I/O error)
is an `InputError`, after everything before it was yielded. ``-`` is standard input.

A container carries its writer's schema, and is resolved by the same code as Kafka records
(`consumer.avro.resolution`); `consumer.avro.container` reads its blocks.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from consumer.avro.container import MAGIC, Block, BrokenContainer, Container
from consumer.avro.decode import DecodeCode, rejected
from consumer.avro.ndjson import MAX_LINE_BYTES, LinePlan, parse_line
from consumer.avro.plan import Read
from consumer.avro.reading import Unresolvable
from consumer.avro.resolution import Incompatible, compile_reader
from consumer.avro.schema import InvalidSchema, parse
from consumer.engine.model import CommerceEvent, Rejection
from consumer.errors import InputError


class FileRecord(NamedTuple):
    """One record: its line number (NDJSON) or ordinal (container), from 1, and what it holds."""

    ordinal: int
    event: CommerceEvent | Rejection


def open_records(path: str, schema: dict[str, Any]) -> Iterator[FileRecord]:
    """The records of the file `path` (``-``: standard input) in the shape of `schema` (JSON).

    Raises `InputError` at once if the file cannot be opened or its schema cannot be resolved to ours; while
    iterating, if it cannot be read to its end. The file is closed with the iterator. `schema` must be valid
    (`InvalidSchema` otherwise).
    """
    name = "standard input" if path == "-" else path
    with contextlib.ExitStack() as closing:
        try:
            source = sys.stdin.buffer if path == "-" else closing.enter_context(_opened(path))
            head = source.read(len(MAGIC))
            file = io.BufferedReader(_Rejoined(head, source))
            is_container = head == MAGIC
            records = _container(file, schema, name) if is_container else _lines(file, LinePlan(schema))
        except OSError as error:
            raise _unreadable(name, error) from None
        return _until_the_end(records, name, closing.pop_all())


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except ValueError as error:  # a path with a NUL in it
        raise _unreadable(repr(path), error) from None


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already. A pipe cannot be inspected otherwise: peeking returns what has
    arrived, which may be less."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Not `read`: that waits until the buffer is full, and lines may arrive slowly.
        data = self._head or self._rest.read1(len(buffer))  # type: ignore[attr-defined]
        taken = data[: len(buffer)]
        self._head = data[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _until_the_end(
    records: Iterator[FileRecord], name: str, closing: contextlib.ExitStack
) -> Iterator[FileRecord]:
    with closing:
        try:
            yield from records
        except OSError as error:
            raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> InputError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return InputError(f"{name} cannot be read: {why}; check the path and its permissions")


def _lines(file: BinaryIO, plan: LinePlan) -> Iterator[FileRecord]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        verdict = parse_line(line, plan) if line.strip() else None
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)  # the rest of a line that is too large
        if verdict is not None:
            yield FileRecord(number, verdict)


def _container(file: BinaryIO, schema: dict[str, Any], name: str) -> Iterator[FileRecord]:
    """Open the container at once; the iterator then reads it block by block."""
    try:
        container = Container(file.read)
    except BrokenContainer as error:
        raise InputError(f"{name} is a broken Avro container: {error}") from None
    try:
        node = parse(container.schema)
        reads = _Reads(compile_reader(node, parse(schema)), compile_reader(node, node))
    except (Incompatible, InvalidSchema) as error:
        raise InputError(f"{name}: its schema cannot be read as ours: {error}") from None
    return _blocks(container.blocks(), reads, name)


class _Reads(NamedTuple):
    """How a datum is read in our shape, and in the writer's own, which finds where it ends."""

    ours: Read
    theirs: Read


def _blocks(blocks: Iterator[Block], reads: _Reads, name: str) -> Iterator[FileRecord]:
    ordinal = 0
    while (block := _next_block(blocks, name, ordinal)) is not None:
        at = 0
        for _ in range(block.records):
            ordinal += 1
            event, at = _datum(reads, block.data, at, f"{name} is damaged at record {ordinal}")
            yield FileRecord(ordinal, event)
        if at != len(block.data):
            raise InputError(f"{name} is broken after record {ordinal}: its block goes on")


def _next_block(blocks: Iterator[Block], name: str, ordinal: int) -> Block | None:
    try:
        return next(blocks, None)
    except BrokenContainer as error:
        raise InputError(f"{name} is broken after record {ordinal}: {error}") from None


def _datum(reads: _Reads, data: bytes, at: int, broken: str) -> tuple[CommerceEvent | Rejection, int]:
    """One datum. The next one starts where it ends, so a datum that cannot be read hides the rest."""
    event: CommerceEvent | Rejection
    try:
        try:
            event, end = reads.ours(data, at)
        except Unresolvable as error:
            event = rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"the file's schema: {error}")
            _, end = reads.theirs(data, at)
    except Exception as error:
        raise InputError(f"{broken} ({type(error).__name__})") from None
    if end > len(data):
        raise InputError(f"{broken}: its block ends inside it")
    return event, end
