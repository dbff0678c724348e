"""From a record's bytes to a commerce event: wire formats and known schemas.

The bytes say which schema they were written with, in one of these ways (docs/run.md, "Wire formats"):

* Confluent: ``00``, a schema id of four bytes (big-endian), the datum;
* Confluent's header: ``__value_schema_id`` holds ``01`` and the schema's GUID of 16 bytes (or ``00`` and an
  id), the value is the bare datum;
* Avro single-object encoding: ``C3 01``, the CRC-64-AVRO fingerprint (little-endian), the datum;
* AWS Glue: ``03``, a byte for the compression (``00``: none, ``05``: zlib), the UUID of the schema version (16 bytes),
  the datum, compressed or not. A compressed one is unpacked first, and then read like one that was not compressed.

These leading bytes (here: the *framing*) are the key under which the compiled reader of a schema is kept, so that a
record with a known schema costs one look-up. For an unknown schema the result is its `SchemaRef`; the engine has the
schema fetched, adds it with `add_schema`, and decodes the record again; `missing` is the verdict if there is none. This
module does no I/O.

A record's *type* is the full name of the record in its writer's schema. A *choice* (the sections of the mapping file)
knows for each type and topic which of our schemas is meant, or why none is. It is asked once for each writer's schema
and topic; the answer is a *route*. A writer's schema may be a union of record types. Then the datum begins with the
number of a branch, which belongs to the framing, so that records of one branch that follow each other have equal
leading bytes. With a single schema of ours there is no choice: a union is read like any other type, by its plan.

Schemas that can be read are kept indefinitely: an outage of the registry must not affect known ones (docs/why.md).
Schemas that cannot be read are bounded, because the topics' producers decide how many there are: the one not used for
longest is forgotten, and fetched again if it is needed.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from functools import partial
from itertools import repeat
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from consumer.avro.origin import OriginOf, origin_of, plain_key
from consumer.avro.paths import ALL, NOTHING, ORIGIN, Asked, AvroSchema, within
from consumer.avro.plan import Plan, trimmed
from consumer.avro.reading import MAX_ITEMS, Read, TooManyItems, Unresolvable, read_length
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import (
    AvroType,
    InvalidSchema,
    Json,
    Union,
    branches_of,
    fingerprint,
    label,
    parse,
    printable,
)
from consumer.engine.model import (
    CommerceEvent,
    Filtered,
    Record,
    Rejection,
    SchemaDrift,
    SchemaRef,
    SectionEvent,
    Stage,
)
from consumer.engine.reading import Decoded

# The headers in which Confluent's serialisers name the schema of the value, and of the key.
SCHEMA_ID_HEADER, KEY_SCHEMA_ID_HEADER = "__value_schema_id", "__key_schema_id"
MAX_REFUSED_SCHEMAS: Final = 1_024
MAX_RECORD_BYTES: Final = 16 << 20
"""Bytes of the largest record that is read if its size is not known before: compressed, or a line of a file."""
# By kind of `SchemaRef`: how a framing begins, and how many bytes it has in all.
_FRAMINGS: Final = {
    "id": (b"\x00", 5),
    "guid": (b"\x01", 17),
    "fingerprint": (b"\xc3\x01", 10),
    "glue": (b"\x03\x00", 18),
}
IN_HEADER: Final = frozenset({"id", "guid"})
IN_VALUE: Final = frozenset({"id", "fingerprint", "glue"})
_GLUE, _GLUE_BYTES = _FRAMINGS["glue"]
_GLUE_ZLIB: Final = b"\x03\x05"
_UUIDS: Final = frozenset({"guid", "glue"})
_NO_ID: Final = SchemaRef("id", "0")  # registries count from 1


class DecodeCode(StrEnum):
    """Why a record was rejected at stage ``decode``: the dead letter's ``pinstream.code``.

    The closed set of reasons why bytes or a line could not become a commerce event: dead letters, metrics and
    docs/conversion.md share it.
    """

    EMPTY = "empty"  # the value has no bytes (a tombstone has no value, and is not rejected)
    # The record does not name its schema in any way that we can read.
    UNKNOWN_WIRE_FORMAT = "unknown_wire_format"
    TRUNCATED_HEADER = "truncated_header"  # it ends within the bytes that name its schema
    # It names a schema that does not exist in the registry (or in the schemas folder).
    NO_SUCH_SCHEMA = "no_such_schema"
    # Its schema, or the part of it that this record uses, cannot be resolved to ours.
    INCOMPATIBLE_SCHEMA = "incompatible_schema"
    UNKNOWN_RECORD = "unknown_record"  # no section of the mapping is for its record type
    UNDECODABLE = "undecodable"  # its bytes are not a datum of the schema it names
    # Bytes are left over after the datum: most likely it names the wrong schema.
    TRAILING_BYTES = "trailing_bytes"
    NOT_JSON = "not_json"  # a line of an NDJSON file is not JSON
    NOT_AN_OBJECT = "not_an_object"  # a line of an NDJSON file is JSON, but not an object
    MISFIT = "misfit"  # a line of an NDJSON file does not have the shape of the schema
    # A line of an NDJSON file is larger or deeper than we read; or a record has an array of too many items.
    TOO_LARGE = "too_large"


# A schema's names may be of any length, and a message is a header of the dead letter.
_LONGEST_MESSAGE: Final = 500


def rejected(code: DecodeCode, message: str) -> Rejection:
    """Return a rejection at stage ``decode``. It is not raised, because one bad record must not stop the others.

    `message` must name schemas, fields and types only, never data.
    """
    return Rejection(Stage.DECODE, code.value, printable(message, _LONGEST_MESSAGE))


def framing_of(ref: SchemaRef) -> bytes:
    """Return the bytes by which a record (or its header) names `ref`. An encoder puts them before the datum."""
    magic, length = _FRAMINGS[ref.kind]
    if ref.kind == "id":
        return magic + int(ref.value).to_bytes(length - len(magic), "big")
    return magic + (UUID(ref.value).bytes if ref.kind in _UUIDS else bytes.fromhex(ref.value))


class Ours(Protocol):
    """The schema that records of one type are read as."""

    @property
    def schema(self) -> AvroSchema:
        """Our schema."""

    @property
    def asked(self) -> Asked:
        """The paths whose values are used; the rest of a record is skipped, whatever its size."""

    def drift(self, writer: AvroType, plan: Plan) -> SchemaDrift:
        """Return how a writer's type, read by this plan, differs from what is asked for."""


class Choice(Protocol):
    """Decides which of our schemas a record is read as."""

    @property
    def all(self) -> Sequence[Ours]:
        """All our schemas; a schema's number is its place here, counted from 1."""

    @property
    def typed(self) -> bool:
        """True if the type of a record decides which schema it is read as; otherwise there is one schema for all."""

    @property
    def records(self) -> Sequence[str]:
        """The full names of the record types that are read."""

    @property
    def topics(self) -> Sequence[str]:
        """The topics on which a type may be read as another schema than on all others."""

    def choose(self, name: str, topic: str | None) -> int | Rejection | Filtered:
        """Return the schema's number for records of this type on a topic (None: without a topic), or why there is none.

        `name` is the full name in the writer's schema, or another type's name if it is no record.
        """

    def knows(self, name: str) -> bool:
        """Return True if records of this type are read on some topic."""


class OneSchema:
    """The choice where all records are read as one schema; it is its own `Ours`. Raises `InvalidSchema`."""

    typed, topics = False, ()

    def __init__(self, schema: Any, asked: Asked = ALL) -> None:
        self.schema, self.asked = schema, asked
        self.all: Sequence[Ours] = (self,)
        self.records = (label(parse(schema)),)

    def choose(self, name: str, topic: str | None) -> int:
        """See `Choice`."""
        return 1

    def knows(self, name: str) -> bool:
        """See `Choice`."""
        return True

    def drift(self, writer: AvroType, plan: Plan) -> SchemaDrift:
        """See `Ours`: there is no mapping."""
        return SchemaDrift("")


class Route(NamedTuple):
    """How records of one type on one topic are read, or why they are not; and the number of our schema, 0: none."""

    plan: Plan | Rejection | Filtered
    number: int


class FramedValue(NamedTuple):
    """How a record is read: its decompressed value, its framing, where its datum starts, and its route.

    `plan` is None if its schema is not known yet.
    """

    value: bytes
    framing: bytes
    start: int
    plan: Plan | Rejection | Filtered | None
    number: int


class Writer:
    """A known writer's schema, or why it can never be read. With `typed`, a union's branches are types of their own."""

    __slots__ = ("is_union", "plans", "routes", "types")

    def __init__(self, node: AvroType | Rejection, typed: bool) -> None:
        self.types = branches_of(node) if typed and isinstance(node, Union) else (node,)
        self.is_union = typed and isinstance(node, Union)
        # By topic, a route for each type.
        self.routes: dict[str, list[Route]] = {}
        # By type and number of our schema: sections of several topics share a plan.
        self.plans: dict[tuple[int, int], Plan | Rejection] = {}


class Decoder:
    """Reads records of any writer's schema, each in the shape of our schema for its type.

    With `whole`, all fields of a record are read, not only those that are asked for. `origins`: for each of our
    schemas, what else is asked for that a record has in Kafka (`avro.origin`). Raises `InvalidSchema` (a `ValueError`)
    if one of our schemas is not valid.
    """

    def __init__(
        self, choice: Choice, *, whole: bool = False, origins: Iterable[Asked] = repeat(NOTHING)
    ) -> None:
        self._choice, self._typed = choice, choice.typed
        self._ours = [(parse(ours.schema), ALL if whole else ours.asked) for ours in choice.all]
        # By number of our schema; None: nothing is asked for of what a record has in Kafka.
        # Who asks for all of a record means its value.
        asked = [
            tuple(steps[1:] for steps in (*ours.asked, *more) if steps[:1] == (ORIGIN,))
            for ours, more in zip(choice.all, origins, strict=False)
        ]
        self._origins = [origin_of(parts, self._key_of) for parts in asked]
        self._asks_key = any(within(parts, "key") for parts in asked)
        # By framing, how the keys of a schema are read, or why they are not; None: the schema is asked for.
        self._keys: dict[bytes, Plan | Rejection | None] = {}
        self.known: dict[bytes, Writer] = {}  # by framing
        # The framings of known schemas of which no type is read on any topic, the one not used for longest first.
        self._unread: OrderedDict[bytes, None] = OrderedDict()
        # By framing, schemas from an earlier answer of the registry, perhaps before it was set up again.
        self._doubted: dict[bytes, SchemaRef] = {}
        # Records that we write ourselves in single-object encoding need no look-up.
        for node, _ in self._ours:
            resolve(node, node)  # a default that does not fit its type is an error now
            self.known[framing_of(SchemaRef("fingerprint", fingerprint(node)))] = Writer(node, self._typed)

    def find(self, record: Record, value: bytes, topic: str) -> FramedValue:
        """Return how a record of this topic is read; `value` is its value, compressed or not."""
        if value.startswith(_GLUE_ZLIB):
            # Where a header names the schema, the value is a bare datum, which may begin with any bytes.
            is_bare = record.headers and _schema_header(record, SCHEMA_ID_HEADER) is not None
            unzipped = value if is_bare else _unzipped(value)
            if isinstance(unzipped, Rejection):
                return FramedValue(value, b"", 0, unzipped, 0)
            value = unzipped
        framing, start = split_framing(record, value)
        writer = self.known.get(framing)
        if writer is None:
            return FramedValue(value, framing, start, None, 0)
        if framing in self._unread:
            self._unread.move_to_end(framing)
        routes = writer.routes.get(topic)
        if routes is None:
            routes = [self._route(framing, writer, at, topic) for at in range(len(writer.types))]
            writer.routes[topic] = routes
        if not writer.is_union:
            plan, number = routes[0]  # named: records of two schemas in turn come here each
            return FramedValue(value, framing, start, plan, number)
        try:
            branch, begin = read_length(value, start)
            chosen = routes[branch]
        except Exception as error:  # whatever hostile bytes provoke is this record's verdict
            return FramedValue(value, framing, start, _failed(framing, error, "bytes"), 0)
        # The branch belongs to the framing, but where a header names the schema.
        return FramedValue(value, value[:begin] if start else framing, begin, *chosen)

    def _route(self, framing: bytes, writer: Writer, at: int, topic: str | None) -> Route:
        node = writer.types[at]
        if isinstance(node, Rejection):
            return Route(node, 0)
        number = self._choice.choose(label(node), topic) if self._typed else 1
        if not isinstance(number, int):
            return Route(number, 0)
        if (at, number) not in writer.plans:
            try:
                writer.plans[at, number] = self.plan(node, number)
            except (Incompatible, InvalidSchema) as error:
                # For this type only: records of the other types are read.
                writer.plans[at, number] = _incompatible(framing, error)
        return Route(writer.plans[at, number], number)

    def plan(self, writer: AvroType, number: int) -> Plan:
        """Return how data of this writer are read as our schema of this number.

        Raises `Incompatible`, or `InvalidSchema` if the writer's data would have no bound.
        """
        ours, asked = self._ours[number - 1]
        # Fields that are not asked for are skipped: a record may hold far more than the mapping uses.
        return trimmed(resolve(writer, ours), asked)

    def origin(self, number: int, topic: str, partition: int) -> OriginOf | None:
        """Return what gives the origin of records of a partition that are read as our schema of this number; None:
        nothing of it is asked for."""
        origin = self._origins[number - 1]
        return None if origin is None else partial(origin, topic, partition)

    def _key_of(self, record: Record) -> Any:
        """Return the value of a record's key; or why it cannot be read, or its schema if that is not known."""
        key = record.key
        if not key:
            return None
        framing, start = split_framing(record, key, KEY_SCHEMA_ID_HEADER)
        ref = named_schema(framing, IN_HEADER if start == 0 else {"id"}) if len(key) > start else None
        if not isinstance(ref, SchemaRef) or ref == _NO_ID:
            return plain_key(key)
        plan = self._keys.get(framing)
        if plan is None:
            self._keys[framing] = None
            return ref
        if isinstance(plan, Rejection):
            return plan
        return self._datum(plan.read, key, framing, start, "bytes of the key")

    def _datum(self, read: Read, content: bytes, framing: bytes, start: int, what: str = "bytes") -> Any:
        """Return the datum that begins at `start`; or why `content`, which messages call `what`, is none."""
        try:
            datum, end = read(content, start)
        except Exception as error:  # whatever hostile bytes provoke is this record's verdict
            return self.unless_doubted(framing, _failed(framing, error, what))
        if end == len(content):
            return datum
        code, said = DecodeCode.TRAILING_BYTES, f"{what} are left over after"
        if end > len(content):
            code, said = DecodeCode.UNDECODABLE, f"the {what} end inside"
        return self.unless_doubted(framing, rejected(code, f"{said} the datum of {schema_name(framing)}"))

    def add_schema(
        self, ref: SchemaRef, schema_json: Json, kind: str = "AVRO"
    ) -> Rejection | Filtered | None:
        """Learn the schema that `ref` names, given as text or as its JSON value; `kind` as a registry calls it.

        Return the verdict on all its records if they can never be read, on any topic; None: they can be.
        """
        framing = framing_of(ref)
        verdict = self._add_schema(framing, schema_json, kind)
        if not self._asks_key:
            return verdict
        is_key = framing in self._keys
        try:
            if kind != "AVRO":
                raise InvalidSchema(f"it is a {kind} schema; pinstream reads keys in Avro")
            node = parse(schema_json)
            self._keys[framing] = resolve(node, node)
        except (InvalidSchema, Incompatible) as error:
            self._keys[framing] = _incompatible(framing, error)
        # No value may ever have the schema of a key: what is said of values is no verdict on the records that wait.
        return None if is_key else verdict

    def _add_schema(self, framing: bytes, schema_json: Json, kind: str) -> Rejection | Filtered | None:
        self._doubted.pop(framing, None)
        try:
            # A registry also holds Protobuf and JSON schemas.
            if kind != "AVRO":
                raise InvalidSchema(f"it is a {kind} schema; pinstream reads Avro")
            writer = Writer(parse(schema_json), self._typed)
        except InvalidSchema as error:
            writer = Writer(_incompatible(framing, error), False)
        routes = [self._route(framing, writer, at, None) for at in range(len(writer.types))]
        if not self._typed and isinstance(routes[0].plan, Rejection):
            # Only the verdict is kept: a thousand schemas that cannot be read may be of megabytes each.
            writer = Writer(routes[0].plan, False)
        for node, (plan, number) in zip(writer.types, routes, strict=True):
            # One type that is read is enough; also on another topic, whose section is found with its first record.
            is_other_branch = (
                not number and not isinstance(node, Rejection) and self._choice.knows(label(node))
            )
            if is_other_branch or not isinstance(plan, Rejection | Filtered):
                self._unread.pop(framing, None)
                self.known[framing] = writer
                return None
        # A schema that could be read before still can be. Where types are distinguished, a schema that does not fit is
        # kept nevertheless: its records count for their own section.
        was_read = framing in self.known and framing not in self._unread
        if not was_read or (self._typed and not isinstance(writer.types[0], Rejection)):
            self.known[framing] = writer
            self._unread[framing] = None
            self._unread.move_to_end(framing)
            if len(self._unread) > MAX_REFUSED_SCHEMAS:
                stalest, _ = self._unread.popitem(last=False)
                del self.known[stalest]
        verdict = routes[-1].plan
        assert isinstance(verdict, Rejection | Filtered)  # noqa: S101 - or one would be read
        return verdict

    def drift(self, ref: SchemaRef) -> Sequence[SchemaDrift]:
        """See `consumer.engine.reading.SchemaLearner.drift`."""
        framing, found = framing_of(ref), dict[int, SchemaDrift]()
        writer = self.known[framing]
        for at, node in enumerate(writer.types):
            if isinstance(node, Rejection):
                continue
            # A type that is mapped on no topic is not asked for each of them.
            for topic in (None, *(self._choice.topics if self._choice.knows(label(node)) else ())):
                plan, number = self._route(framing, writer, at, topic)
                if number not in found and not isinstance(plan, Rejection | Filtered):
                    found[number] = self._choice.all[number - 1].drift(node, plan)
        return [*found.values()]

    def doubt(self, ref: SchemaRef) -> None:
        """See `consumer.engine.reading.SchemaLearner.doubt`."""
        self._doubted[framing_of(ref)] = ref

    def forget(self, ref: SchemaRef) -> None:
        """Forget this schema: its records are answered with `ref`."""
        framing = framing_of(ref)
        self._doubted.pop(framing, None)
        self._unread.pop(framing, None)
        self.known.pop(framing, None)
        self._keys.pop(framing, None)

    def unless_doubted(
        self, framing: bytes, verdict: Rejection | Filtered
    ) -> Rejection | Filtered | SchemaRef:
        """Return the verdict on a record with this framing; or its schema, if that is in doubt and may be the cause."""
        if self._doubted and isinstance(verdict, Rejection):
            # The framing of a union ends with the number of a branch.
            named = (ref for known, ref in self._doubted.items() if framing.startswith(known))
            return next(named, None) or verdict
        return verdict

    def missing(self, ref: SchemaRef) -> Rejection:
        """Return the verdict on a record whose schema does not exist. It is not remembered: the schema may come."""
        how = "set SCHEMA_REGISTRY_URL=glue: and check its region" if ref.kind == "glue" else "register it"
        self._keys.pop(framing_of(ref), None)
        message = f"schema {ref.kind} {ref.value} does not exist: {how}, or put it into the schemas folder"
        if ref == _NO_ID:
            # Registries count ids from 1. Apicurio's own serialisers write ids of eight bytes: the first four are 0.
            message = (
                "schema id 0 does not exist: if Apicurio's own serialiser wrote the record, it needs "
                "apicurio.registry.as-confluent=true and apicurio.registry.use-id=contentId"
            )
        return rejected(DecodeCode.NO_SUCH_SCHEMA, message)

    def section_of(self, record: Record, topic: str = "") -> int:
        """See `consumer.engine.reading.Decoding.section_of`."""
        return 0 if record.value is None else self.find(record, record.value, topic).number

    def decode(self, record: Record, topic: str = "", partition: int = -1) -> Decoded:
        """Return the event of one record, or why there is none. Never raises because of its content."""
        if record.value is None:
            return None
        value, framing, start, plan, number = self.find(record, record.value, topic)
        if plan is None:
            if not value:
                why = "the value is empty: zero bytes are no datum (and no tombstone)"
                return rejected(DecodeCode.EMPTY, why)
            return named_schema(framing, IN_HEADER if start == 0 else IN_VALUE)
        if isinstance(plan, Rejection | Filtered):
            return self.unless_doubted(framing, plan)
        event: CommerceEvent | Rejection | Filtered = self._datum(plan.read, value, framing, start)
        if not isinstance(event, dict):
            return event
        if (origin := self._origins[number - 1]) is not None:
            event[ORIGIN] = found = origin(topic, partition, record)
            if not isinstance(found, dict):
                return found
        # Without a choice every event is of the first schema: it costs no copy to say so.
        return SectionEvent.of(number, event) if self._typed else event


_UNKNOWN_WIRE_FORMAT: Final = rejected(
    DecodeCode.UNKNOWN_WIRE_FORMAT,
    "the record does not name its schema in any wire format that pinstream reads (Confluent prefix, Confluent header, "
    "Avro single-object, AWS Glue): check its producer's serialiser",
)


def is_framed_alike(record: Record, framing: bytes, start: int) -> bool:
    """Return True if a record is framed by `framing`, as an earlier record was whose datum began at `start`.

    `framing` is that of a known schema. If the earlier record's header named the schema (its datum began the value),
    this record's header must name it too; otherwise it must not.
    """
    value = record.value
    if value is None:
        return False
    if start == 0:
        return _schema_header(record, SCHEMA_ID_HEADER) == framing
    if record.headers and any(name == SCHEMA_ID_HEADER for name, _ in record.headers):
        return False
    return value[:start] == framing


def _schema_header(record: Record, header: str) -> bytes | None:
    """Return the first header of this name, as Confluent's serialisers write it, that names a schema, if any."""
    for name, content in record.headers:
        if name == header:
            return content
    return None


def split_framing(record: Record, value: bytes, name: str = SCHEMA_ID_HEADER) -> tuple[bytes, int]:
    """Return how a record names the schema of its value (or key), the framing, and where in it the datum starts."""
    # The header counts first: a bare datum may begin with any bytes, also with those of a framing.
    header = _schema_header(record, name) if record.headers else None
    if header is not None:
        return header, 0
    magic, length = _FRAMINGS["fingerprint"]
    if not value.startswith(magic):
        length = _GLUE_BYTES if value[:1] == _GLUE[:1] else _FRAMINGS["id"][1]
    return value[:length], length


def _unzipped(value: bytes) -> bytes | Rejection:
    """Return the value of a compressed record of AWS Glue's serialisers as it would be without the compression."""
    if len(value) < _GLUE_BYTES:
        return _GLUE + value[len(_GLUE) :]  # it ends inside its header: reported like an uncompressed one
    unpacker = zlib.decompressobj()
    try:
        # Bounded: a few kilobytes may unpack to gigabytes.
        datum = unpacker.decompress(value[_GLUE_BYTES:], MAX_RECORD_BYTES + 1)
    except zlib.error:
        return rejected(DecodeCode.UNDECODABLE, "the bytes behind the header of AWS Glue are not zlib's")
    if len(datum) > MAX_RECORD_BYTES:
        return rejected(DecodeCode.TOO_LARGE, f"the record unpacks to more than {MAX_RECORD_BYTES >> 20} MiB")
    if not unpacker.eof or unpacker.unused_data:
        what = "go on behind their end" if unpacker.eof else "end too early"
        return rejected(DecodeCode.UNDECODABLE, f"the zlib bytes behind the header of AWS Glue {what}")
    return _GLUE + value[len(_GLUE) : _GLUE_BYTES] + datum


def named_schema(framing: bytes, kinds: Collection[str]) -> SchemaRef | Rejection:
    """Return the schema that a framing of one of `kinds` names, or the rejection if it names none."""
    for kind, (magic, length) in _FRAMINGS.items():
        if kind not in kinds or framing[: len(magic)] != magic:
            continue
        if len(framing) < length:
            message = f"the record ends inside the {'UUID' if kind == 'glue' else kind} of its schema"
            return rejected(DecodeCode.TRUNCATED_HEADER, message)
        # Only a header can be longer than its kind has bytes.
        if len(framing) > length:
            break
        name = framing[len(magic) :]
        if kind == "id":
            return SchemaRef(kind, str(int.from_bytes(name, "big")))
        return SchemaRef(kind, str(UUID(bytes=name)) if kind in _UUIDS else name.hex())
    return _UNKNOWN_WIRE_FORMAT


def schema_name(framing: bytes) -> str:
    """Return the name that messages give to the schema of a framing."""
    for kind, (magic, length) in _FRAMINGS.items():
        if framing.startswith(magic):
            # The number of a union's branch may follow, which belongs to the framing.
            named = named_schema(framing[:length], {kind})
            if isinstance(named, SchemaRef):
                return f"schema {named.kind} {named.value}"
    return "its schema"


def _incompatible(framing: bytes, error: Exception) -> Rejection:
    return rejected(DecodeCode.INCOMPATIBLE_SCHEMA, f"{schema_name(framing)}: {error}")


def too_many_items(where: str) -> Rejection:
    """Return the verdict on a record for which `TooManyItems` was raised."""
    return rejected(DecodeCode.TOO_LARGE, f"an array of more than {MAX_ITEMS} items, in {where}")


def _failed(framing: bytes, error: Exception, what: str) -> Rejection:
    if isinstance(error, Unresolvable):
        return _incompatible(framing, error)
    # The datum fits the schema, but is too large to keep.
    if isinstance(error, TooManyItems):
        return too_many_items(f"a datum of {schema_name(framing)}")
    message = f"the {what} are not a datum of {schema_name(framing)} ({type(error).__name__})"
    return rejected(DecodeCode.UNDECODABLE, message)
