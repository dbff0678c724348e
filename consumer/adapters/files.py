"""FILE of ``explain``, ``produce`` and ``demo``: NDJSON or an Avro container, distinguished by the first bytes.

Records of both become commerce events in the shape of our schema, one at a time, so that a file may be larger than
memory. A line or a datum that does not fit is a verdict, and reading goes on; only an error that hides the rest (a
broken block, an I/O error) is an `InputError`, after everything before it was yielded. ``-`` is standard input.

A container carries its writer's schema, and is resolved by the same code as Kafka records
(`consumer.avro.resolution`); `consumer.avro.container` reads its blocks.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, NamedTuple

from consumer.avro.container import MAGIC, BrokenContainer, Container, DataBlock
from consumer.avro.decode import Choice, DecodeCode, Decoder, rejected, too_many_items
from consumer.avro.encode import Encoder, Unencodable
from consumer.avro.ndjson import MAX_LINE_BYTES, LinePlan, parse_line
from consumer.avro.paths import NOTHING
from consumer.avro.plan import trimmed
from consumer.avro.reading import MAX_ITEMS, Read, TooManyItems, Unresolvable, read_length
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import AvroType, InvalidSchema, Union, branches_of, label, parse
from consumer.conversion.sections import Sections
from consumer.engine.model import CommerceEvent, Filtered, Rejection, SectionEvent, section_of
from consumer.errors import InputError, UsageError, or_all

_NO_OBJECT: Final = frozenset({DecodeCode.NOT_JSON.value, DecodeCode.NOT_AN_OBJECT.value})


class FileRecord(NamedTuple):
    """One record: its line number (NDJSON) or ordinal (container), from 1, and its event or verdict."""

    ordinal: int
    event: CommerceEvent | Rejection | Filtered


class Types(NamedTuple):
    """The record types of a file: the choice among them, the topic that they are of, and the type of all lines.

    With a `decoder`, records are read as this reads those of a topic: only what it asks for is kept, and what is too
    large for it is refused. None: all is read.
    """

    choice: Choice
    topic: str | None = None
    named: str | None = None
    decoder: Decoder | None = None


def file_types(mapped: Sections, record: str | None = None, topic: str | None = None) -> Types:
    """Return what the records of a file are read as, by the mapping: of the type `record`, as if from `topic`.

    Raises `UsageError` if the mapping has no such type.
    """
    if record is not None and not mapped.knows(record):
        known = or_all(record, mapped.records)
        raise UsageError(f"--record {record[:300]!r} is no record type of the mapping; {known}")
    return Types(mapped, topic, record)


def open_records(path: str, types: Types) -> Iterator[FileRecord]:
    """Yield the records of the file `path` (``-``: standard input), each in the shape of our schema for its type.

    Raises `InputError` at once if the file cannot be opened or its schema cannot be resolved to ours; while
    iterating, if it cannot be read to its end. The file is closed with the iterator. Our schemas must be valid
    (`InvalidSchema` otherwise).
    """
    name = "standard input" if path == "-" else path
    if path == "-" and sys.stdin is None:  # the shell's <&-
        raise InputError("standard input is closed: name a file, or pipe the records in")
    with contextlib.ExitStack() as closing:
        try:
            file = sys.stdin.buffer if path == "-" else closing.enter_context(open(path, "rb"))
            # A pipe cannot be rewound, and peeking returns what has arrived, which may be less. A line may be shorter
            # than the mark, and the next one may be slow.
            head = file.readline(len(MAGIC))
            records = (
                _container(head, file, types, name)
                if head == MAGIC
                else _lines(head, file, LinePlan(types.choice, types.topic, types.named), _sizes(types), name)
            )
        except OSError as error:
            raise _unreadable(name, error) from None
        # From here on the iterator closes the file: until now an error did.
        return _until_the_end(records, name, closing.pop_all())


def _until_the_end(
    records: Iterator[FileRecord], name: str, closing: contextlib.ExitStack
) -> Iterator[FileRecord]:
    with closing:
        try:
            yield from records
        except OSError as error:
            raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError) -> InputError:
    why = error.strerror or type(error).__name__
    return InputError(f"{name} cannot be read: {why}; check the path and its permissions")


def _sizes(types: Types) -> Callable[[CommerceEvent], CommerceEvent | Rejection]:
    """Return a function that returns an event, or the verdict on it if it is too large for the decoder.

    The decoder itself decides, on the event's bytes in Avro, so that there is one rule.
    """
    known: dict[int, tuple[Encoder, Read]] = {}

    def checked(event: CommerceEvent) -> CommerceEvent | Rejection:
        if types.decoder is None:
            return event
        number = section_of(event)
        if number not in known:
            schema = types.choice.all[number - 1].schema
            known[number] = Encoder(schema), types.decoder.plan(parse(schema), number).read
        encoder, read = known[number]
        # What cannot be written is never read from Kafka: then the event itself is all there is to judge.
        with contextlib.suppress(Unencodable):
            try:
                read(encoder.encode(event), len(encoder.framing))
            except TooManyItems:
                return too_many_items("the line")
        return event

    return checked


def _lines(
    head: bytes,
    file: BinaryIO,
    plan: LinePlan,
    sized: Callable[[CommerceEvent], CommerceEvent | Rejection],
    name: str,
) -> Iterator[FileRecord]:
    number = records = others = 0
    # One byte more than a line may have shows that a line is too long, and no more of it is in memory.
    line = head if head.endswith(b"\n") else head + file.readline(MAX_LINE_BYTES + 1 - len(head))
    while line:
        number += 1
        if line.strip() and (verdict := parse_line(line, plan)) is not None:
            # An item and the comma behind it take two bytes: shorter lines have no list that is too long.
            if len(line) > 2 * MAX_ITEMS and not isinstance(verdict, Rejection | Filtered):
                verdict = sized(verdict)
            records += 1
            others += isinstance(verdict, Rejection) and verdict.code in _NO_OBJECT
            yield FileRecord(number, verdict)
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)  # the rest of a line that is too large
        line = file.readline(MAX_LINE_BYTES + 1)
    if records and others == records:
        raise InputError(
            f"{name} is not NDJSON: no line of it ({records:,} in all) is a JSON object; write each record as one "
            "object on one line (jq -c '.[]' makes that of a JSON array, jq -c . of objects over several lines; CSV "
            "has to be converted), or give an Avro container"
        )


def _container(head: bytes, file: BinaryIO, types: Types, name: str) -> Iterator[FileRecord]:
    """Open the container at once; the iterator then reads it block by block."""
    heads = [head]  # has been read already, and a pipe cannot be rewound
    try:
        container = Container(lambda size: heads.pop() if heads else file.read(size))
    except BrokenContainer as error:
        raise InputError(f"{name} is a broken Avro container: {error}") from None
    try:
        node = parse(container.schema)
        ours = _reader(node, types)
        # The writer's own shape finds where a datum ends that does not fit ours; nothing of it is kept.
        theirs = trimmed(resolve(node, node), NOTHING).read
    except (Incompatible, InvalidSchema) as error:
        raise InputError(f"{name}: its schema cannot be read as ours: {error}") from None
    return _data(container.blocks(), ours, theirs, name)


def _reader(writer: AvroType, types: Types) -> Read:
    """Return what reads a datum as our schema for its type; or, in place of an event, why there is none."""
    # With one schema there is no choice: a union is resolved to it as a whole, and a datum that cannot be read is an
    # error of the file.
    if not types.choice.typed:
        return _as_ours(writer, types, 1)
    reads = [_branch_reader(branch, types) for branch in branches_of(writer)]
    if not isinstance(writer, Union):
        return reads[0]

    def read(data: bytes, at: int) -> tuple[Any, int]:
        # A union is the number of the branch, then the datum. An invalid number raises an error, as all damage does.
        branch, at = read_length(data, at)
        return reads[branch](data, at)

    return read


def _as_ours(writer: AvroType, types: Types, number: int) -> Read:
    if types.decoder is not None:
        return types.decoder.plan(writer, number).read
    return resolve(writer, parse(types.choice.all[number - 1].schema)).read


def _branch_reader(writer: AvroType, types: Types) -> Read:
    """Return what reads a datum of one type as our schema for it; or over it, with a verdict in its place."""
    chosen = types.choice.choose(label(writer), types.topic)
    read: Read = trimmed(resolve(writer, writer), NOTHING).read
    if isinstance(chosen, int):
        try:
            read = _as_ours(writer, types, chosen)
        # The verdict is on records of this type alone: those of other types are read.
        except Incompatible as error:
            chosen = rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"the file's schema: {error}")

    def outcome(data: bytes, at: int) -> tuple[CommerceEvent | Rejection | Filtered, int]:
        event, at = read(data, at)
        return SectionEvent.of(chosen, event) if isinstance(chosen, int) else chosen, at

    return outcome


def _data(blocks: Iterator[DataBlock], ours: Read, theirs: Read, name: str) -> Iterator[FileRecord]:
    ordinal = 0
    try:
        for block in blocks:
            at = 0
            for _ in range(block.records):
                ordinal += 1
                event: CommerceEvent | Rejection | Filtered
                try:
                    try:
                        event, at = ours(block.data, at)
                    # The datum is whole but cannot be read as ours, because of an unknown enum symbol, for example: a
                    # verdict.
                    except Unresolvable as error:
                        event = rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"the file's schema: {error}")
                        _, at = theirs(block.data, at)
                    except TooManyItems:
                        event = too_many_items("the record")
                        _, at = theirs(block.data, at)
                except Exception as error:
                    # The next datum starts where this one ends, so the rest cannot be found.
                    raise InputError(
                        f"{name} is damaged at record {ordinal} ({type(error).__name__})"
                    ) from None
                if at > len(block.data):
                    raise InputError(f"{name} is damaged at record {ordinal}: its block ends inside it")
                yield FileRecord(ordinal, event)
            if at != len(block.data):
                raise BrokenContainer("its block goes on")
    except BrokenContainer as error:
        raise InputError(f"{name} is broken after record {ordinal}: {error}") from None
