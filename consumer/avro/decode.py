"""From a record's bytes to a commerce event: wire formats, and what is known of the writers' schemas.

The bytes say which schema they were written with, in one of these ways (docs/run.md, "Wire formats"):

* Confluent: ``00``, a schema id of four bytes (big-endian), the datum;
* Confluent's header: ``__value_schema_id`` holds ``01`` and the schema's GUID of 16 bytes (or ``00`` and an
  id), the value is the bare datum;
* Avro single-object encoding: ``C3 01``, the CRC-64-AVRO fingerprint (little-endian), the datum.

These leading bytes (here: the *framing*) are the key under which the compiled reader of a schema is kept, so
that a known record costs one look-up. An unknown one is answered with the `SchemaRef` that is needed; the
shell fetches it, tells `add_schema`, and decodes again; `missing` is the verdict where there is none. Nothing here
does I/O.

Schemas that can be read are kept for good: an outage of the registry must never cost one that was known
(docs/why.md). Refusals are bounded, the one not asked for longest is dropped and simply asked for again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from enum import Enum, StrEnum
from typing import Any, Final
from uuid import UUID

from consumer.avro.paths import ALL, Asked
from consumer.avro.plan import Plan, Read, trimmed
from consumer.avro.reading import MOST_ITEMS, TooManyItems, Unresolvable, reader_of
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import AvroType, InvalidSchema, Json, fingerprint, parse, shown
from consumer.engine.model import CommerceEvent, Record, Rejection, SchemaRef, Stage

SCHEMA_ID_HEADER: Final = "__value_schema_id"
"""The header in which Confluent's serialisers put the schema of the value (for the key there is another)."""
MAX_REFUSED_SCHEMAS: Final = 1_024

_ID_MAGIC: Final = b"\x00"
_GUID_MAGIC: Final = b"\x01"
_SINGLE_OBJECT_MAGIC: Final = b"\xc3\x01"
_ID_FRAMING: Final = 5
_SINGLE_OBJECT_FRAMING: Final = 10
_FRAMINGS: Final = {
    "id": (_ID_MAGIC, _ID_FRAMING),
    "guid": (_GUID_MAGIC, 17),
    "fingerprint": (_SINGLE_OBJECT_MAGIC, _SINGLE_OBJECT_FRAMING),
}
"""By kind of `SchemaRef`: how a framing begins, and how many bytes it has in all."""
_IN_HEADER: Final = frozenset({"id", "guid"})
_IN_VALUE: Final = frozenset({"id", "fingerprint"})

Decoded = CommerceEvent | Rejection | SchemaRef | None
"""An event; or why there is none; or the schema that is needed first; or ``None`` for a tombstone."""


class DecodeCode(StrEnum):
    """Why a record was rejected at stage ``decode``: the dead letter's ``pinstream.code``.

    The closed set of reasons why bytes or a line could not become a commerce event: dead letters, metrics and
    docs/conversion.md share it.
    """

    EMPTY = "empty"
    """The value has no bytes (a tombstone has no value at all, and is not rejected)."""
    UNKNOWN_WIRE_FORMAT = "unknown_wire_format"
    """The record does not say, in any way we read, which schema it was written with."""
    TRUNCATED_HEADER = "truncated_header"
    """It starts to name its schema, and ends before it has."""
    NO_SUCH_SCHEMA = "no_such_schema"
    """It names a schema that the registry (or the schemas folder) says does not exist."""
    INCOMPATIBLE_SCHEMA = "incompatible_schema"
    """Its schema, or the part of it that this record uses, cannot be resolved to ours."""
    UNDECODABLE = "undecodable"
    """Its bytes are not a datum of the schema it names."""
    TRAILING_BYTES = "trailing_bytes"
    """Bytes are left over after the datum: most likely it names the wrong schema."""
    NOT_JSON = "not_json"
    """A line of an NDJSON file is not JSON."""
    NOT_AN_OBJECT = "not_an_object"
    """A line of an NDJSON file is JSON, but not an object."""
    MISFIT = "misfit"
    """A line of an NDJSON file does not have the shape of the schema."""
    TOO_LARGE = "too_large"
    """A line of an NDJSON file is larger or deeper than we read; or a record has an array of too many items."""


_LONGEST_MESSAGE: Final = 500
"""Characters: a schema's names may be of any length, and a message is a header of the dead letter."""


def rejected(code: DecodeCode, message: str) -> Rejection:
    """The verdict of stage ``decode``: a value, never an exception, since one bad record must not stop the others.

    `message` must name schemas, fields and types only, never data."""
    return Rejection(Stage.DECODE, code.value, shown(message, _LONGEST_MESSAGE))


class WireFormat(Enum):
    """How records name their schema. ``AUTO`` looks at the header first, then at the bytes."""

    AUTO = "auto"
    CONFLUENT = "confluent"
    HEADER = "header"
    SINGLE_OBJECT = "single-object"


_KINDS: Final = {
    WireFormat.AUTO: frozenset(_FRAMINGS),
    WireFormat.CONFLUENT: frozenset({"id"}),
    WireFormat.HEADER: _IN_HEADER,
    WireFormat.SINGLE_OBJECT: frozenset({"fingerprint"}),
}


def framing_of(ref: SchemaRef) -> bytes:
    """The bytes by which a record (or its header) names `ref`: also what an encoder puts before a datum."""
    if ref.kind == "id":
        return _ID_MAGIC + int(ref.value).to_bytes(4, "big")
    if ref.kind == "guid":
        return _GUID_MAGIC + UUID(ref.value).bytes
    return _SINGLE_OBJECT_MAGIC + bytes.fromhex(ref.value)


class Decoder:
    """Reads records of any writer's schema into the shape of one reader schema.

    `reader_schema` is the JSON of our schema; `wire_format` fixes how records name theirs. `asked`: the paths that
    somebody will look at; the rest of a record is read over, whatever it would take. Raises `InvalidSchema` (a
    `ValueError`) if `reader_schema` is not one.
    """

    def __init__(
        self,
        reader_schema: dict[str, Any],
        *,
        wire_format: WireFormat = WireFormat.AUTO,
        asked: Asked = ALL,
    ) -> None:
        self._asked = asked
        self._reader = parse(reader_schema)
        self._kinds = _KINDS[wire_format]
        self.split = _SPLITS[wire_format]
        """From a record and its value to its framing, and to where in the value the datum starts."""
        self._known: dict[bytes, Read] = {}
        self.plans: dict[bytes, Plan] = {}
        """By framing, how the known schemas are read: for `consumer.conversion.reading`, which compiles them."""
        self._refused: OrderedDict[bytes, Rejection] = OrderedDict()
        # What we write ourselves in single-object encoding needs no look-up.
        own = SchemaRef("fingerprint", fingerprint(self._reader))
        self._learn(framing_of(own), self._reader)

    @property
    def known_schemas(self) -> int:
        """How many writers' schemas can be read without asking anyone."""
        return len(self._known)

    def add_schema(self, ref: SchemaRef, schema_json: Json, kind: str = "AVRO") -> Rejection | None:
        """Learn the schema that `ref` names, given as text or as the JSON value of it; `kind` as a registry calls it.

        Returns why its records can never be read, if so: each of them then gets this verdict.
        """
        framing = framing_of(ref)
        try:
            if kind != "AVRO":
                raise InvalidSchema(f"it is a {kind} schema; pinstream reads Avro")
            self._learn(framing, parse(schema_json))
        except (Incompatible, InvalidSchema) as error:
            verdict = rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"schema {ref.kind} {ref.value}: {error}")
            self._refuse(ref, verdict)
            return verdict
        self._refused.pop(framing, None)
        return None

    def _learn(self, framing: bytes, writer: AvroType) -> None:
        plan = trimmed(resolve(writer, self._reader), self._asked)
        self._known[framing] = reader_of(plan)
        self.plans[framing] = plan

    def missing(self, ref: SchemaRef) -> Rejection:
        """The verdict on a record whose schema does not exist. It is not remembered: the schema may come any time."""
        message = (
            f"schema {ref.kind} {ref.value} does not exist: register it, or put it into the schemas folder"
        )
        return rejected(DecodeCode.NO_SUCH_SCHEMA, message)

    def decode(self, record: Record) -> Decoded:
        """What one record holds."""
        return self.decode_chunk([record])[0]

    def decode_chunk(self, records: list[Record]) -> list[Decoded]:
        """What each of `records` holds, in their order. Never raises because of what they hold."""
        split, known = self.split, self._known.get
        framing, start, read = b"", 0, None
        decoded: list[Decoded] = []
        append = decoded.append
        for record in records:
            value = record.value
            if value is None:
                append(None)
                continue
            # Without headers, what begins as the value before is framed as that: mostly the whole chunk is.
            if read is None or record.headers or value[:start] != framing:
                framing, start = split(record, value)
                read = known(framing)
                if read is None:
                    append(self._unknown(framing, start, value))
                    continue
            try:
                event, end = read(value, start)
            except Exception as error:  # whatever hostile bytes provoke is this record's verdict
                append(_failed(framing, error))
                continue
            append(event if end == len(value) else _misaligned(framing, end > len(value)))
        return decoded

    def _unknown(self, framing: bytes, start: int, value: bytes) -> Rejection | SchemaRef:
        if not value:
            return rejected(
                DecodeCode.EMPTY, "the value is empty: zero bytes are no datum (and no tombstone)"
            )
        refusal = self._refused.get(framing)
        if refusal is not None:
            self._refused.move_to_end(framing)
            return refusal
        return _named_schema(framing, self._kinds & (_IN_HEADER if start == 0 else _IN_VALUE))

    def _refuse(self, ref: SchemaRef, verdict: Rejection) -> None:
        """Refuse what names `ref`; if it could be read before, it still can, for what is known goes first."""
        framing = framing_of(ref)
        self._refused[framing] = verdict
        self._refused.move_to_end(framing)
        if len(self._refused) > MAX_REFUSED_SCHEMAS:
            self._refused.popitem(last=False)


_UNKNOWN_WIRE_FORMAT: Final = rejected(
    DecodeCode.UNKNOWN_WIRE_FORMAT,
    "the record does not name its schema in the expected wire format (Confluent prefix, Confluent header, "
    "Avro single-object): check its producer's serialiser",
)


def is_framed_alike(record: Record, framing: bytes, start: int) -> bool:
    """Whether a record is surely framed by `framing`, as one before it was, whose datum began at `start`.

    `framing` is that of a known schema. Where the header named the schema (the datum begins the value), this one's must
    too; else it must not.
    """
    value = record.value
    if value is None:
        return False
    if start == 0:
        return _schema_header(record) == framing
    if record.headers and any(name == SCHEMA_ID_HEADER for name, _ in record.headers):
        return False
    return value[:start] == framing


def _schema_header(record: Record) -> bytes | None:
    """The first header that names the value's schema (the serialisers' own rule), if it has a value."""
    for name, content in record.headers:
        if name == SCHEMA_ID_HEADER:
            return content
    return None


def _split_auto(record: Record, value: bytes) -> tuple[bytes, int]:
    """The framing, and where in the value the datum starts."""
    if record.headers:
        header = _schema_header(record)
        if header is not None:
            return header, 0
    if value[:2] == _SINGLE_OBJECT_MAGIC:
        return value[:_SINGLE_OBJECT_FRAMING], _SINGLE_OBJECT_FRAMING
    return value[:_ID_FRAMING], _ID_FRAMING


def _split_confluent(_record: Record, value: bytes) -> tuple[bytes, int]:
    return value[:_ID_FRAMING], _ID_FRAMING


def _split_header(record: Record, _value: bytes) -> tuple[bytes, int]:
    return _schema_header(record) or b"", 0


def _split_single_object(_record: Record, value: bytes) -> tuple[bytes, int]:
    return value[:_SINGLE_OBJECT_FRAMING], _SINGLE_OBJECT_FRAMING


_SPLITS: Final[dict[WireFormat, Callable[[Record, bytes], tuple[bytes, int]]]] = {
    WireFormat.AUTO: _split_auto,
    WireFormat.CONFLUENT: _split_confluent,
    WireFormat.HEADER: _split_header,
    WireFormat.SINGLE_OBJECT: _split_single_object,
}


def _named_schema(framing: bytes, kinds: Collection[str]) -> SchemaRef | Rejection:
    """The schema that a framing of one of `kinds` names, or what is wrong with the framing."""
    for kind, (magic, length) in _FRAMINGS.items():
        if kind not in kinds or framing[: len(magic)] != magic:
            continue
        if len(framing) < length:
            message = f"the record ends inside the {kind} of its schema"
            return rejected(DecodeCode.TRUNCATED_HEADER, message)
        if len(framing) == length:
            return SchemaRef(kind, _spelled(kind, framing[len(magic) :]))
    return _UNKNOWN_WIRE_FORMAT


def _spelled(kind: str, name: bytes) -> str:
    """The text of `SchemaRef` for the bytes of a framing behind its magic."""
    if kind == "id":
        return str(int.from_bytes(name, "big"))
    return str(UUID(bytes=name)) if kind == "guid" else name.hex()


def _described(framing: bytes) -> str:
    named = _named_schema(framing, _FRAMINGS)
    return f"schema {named.kind} {named.value}" if isinstance(named, SchemaRef) else "its schema"


def _failed(framing: bytes, error: Exception) -> Rejection:
    if isinstance(error, Unresolvable):
        return rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"{_described(framing)}: {error}")
    if isinstance(error, TooManyItems):
        message = f"an array of more than {MOST_ITEMS} items, in a datum of {_described(framing)}"
        return rejected(DecodeCode.TOO_LARGE, message)
    message = f"the bytes are not a datum of {_described(framing)} ({type(error).__name__})"
    return rejected(DecodeCode.UNDECODABLE, message)


def _misaligned(framing: bytes, short: bool) -> Rejection:
    if short:
        return rejected(DecodeCode.UNDECODABLE, f"the bytes end inside the datum of {_described(framing)}")
    return rejected(
        DecodeCode.TRAILING_BYTES, f"bytes are left over after the datum of {_described(framing)}"
    )
