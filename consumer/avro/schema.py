"""Avro schemas as a graph of types: parsed, checked, bounded.

A schema document comes from outside (a registry, a file), so it is not trusted: its size, its depth, its names and the
cost of reading its data are checked here. The result is a graph of small objects in which every name is full and every
reference is the type itself, so that the modules that compile it (`resolution`, `ndjson`, `encode`) need no namespaces
and no look-ups.

Section numbers and rules are those of the Avro 1.12 specification. Defaults stay JSON here; a writer's
defaults are never used, so a wrong one does not make the schema invalid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from sys import intern
from typing import Any, Final, NamedTuple

Json = Any  # a JSON value as `json.loads` gives it

PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
# "error" is a record of RPC; some files and registries have it.
NAMED_KINDS: Final = frozenset({"record", "error", "enum", "fixed"})
# A registry's own limit for one schema is of this size; ours keeps parsing within milliseconds.
MAX_SCHEMA_CHARACTERS: Final = 1 << 20
MAX_SCHEMA_DEPTH: Final = 64
MAX_SCHEMA_TYPES: Final = 10_000  # references to types are counted, too
# Characters of a full name, an alias or a field's name. Each type's full name has its namespace, so a namespace of half
# a megabyte makes gigabytes of names.
MAX_NAME_CHARACTERS: Final = 1_024
MAX_DECIMAL_PRECISION: Final = 1_000
MAX_ALIAS_CHARACTERS: Final = 4 * MAX_SCHEMA_CHARACTERS  # of all full names of aliases together
MAX_VALUES_PER_DATUM: Final = 10_000  # values that one datum may hold beyond what its bytes pay for
VALUES_PER_BYTE: Final = 16  # honest data have about one
# The fewest bytes of a primitive; one, if it is not here.
_BYTES: Final = {"null": 0, "float": 4, "double": 8}
NO_DEFAULT: Final = object()  # the default of a field that has none (``None`` is the default ``null``)
_LONGEST_MESSAGE: Final = 300


def printable(message: str, longest: int = _LONGEST_MESSAGE) -> str:
    """Return `message` as one printable line of bounded length: names of a schema in it are not checked."""
    # Nearly every message: nothing to copy.
    if len(message) <= longest and message.isprintable():
        return message
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in message[:longest])
    return f"{line}…" if len(message) > longest else line


class InvalidSchema(ValueError):
    """The document is not an Avro schema that we can read. The message names types and fields, never data."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Logical(NamedTuple):
    """The meaning of a number or a string. `family` is the logical type without its unit."""

    name: str
    family: str
    # For the time families: units in a second (``date`` has none: it counts days).
    per_second: int = 0
    precision: int = 0
    scale: int = 0


@dataclass(slots=True, eq=False)
class Primitive:
    """One of `PRIMITIVES`."""

    kind: str
    logical: Logical | None = None


@dataclass(slots=True, eq=False)
class Array:
    """A list of items of one type."""

    items: AvroType
    kind: str = "array"


@dataclass(slots=True, eq=False)
class Map:
    """Text keys with values of one type."""

    values: AvroType
    kind: str = "map"


@dataclass(slots=True, eq=False)
class Union:
    """One of several types; `null` is the index of the branch ``null``, or -1."""

    branches: list[AvroType]
    null: int
    kind: str = "union"


@dataclass(slots=True, eq=False)
class Enum:
    """One of several symbols."""

    name: str
    aliases: tuple[str, ...]
    symbols: tuple[str, ...]
    default: str | None
    kind: str = "enum"


@dataclass(slots=True, eq=False)
class Fixed:
    """A fixed number of bytes."""

    name: str
    aliases: tuple[str, ...]
    size: int
    logical: Logical | None
    kind: str = "fixed"


@dataclass(slots=True, eq=False)
class Field:
    """A record's field; `default` is JSON, or `NO_DEFAULT`."""

    name: str
    aliases: tuple[str, ...]
    type: AvroType
    default: Json


@dataclass(slots=True, eq=False)
class Record:
    """Named fields, in order. A record is made before its fields are known, since they may refer to it."""

    name: str
    aliases: tuple[str, ...]
    fields: list[Field] = field(default_factory=list)
    kind: str = "record"


Named = Enum | Fixed | Record
AvroType = Primitive | Array | Map | Union | Enum | Fixed | Record

# How many units make a second, by the end of a logical type's name.
_UNITS: Final = {"millis": 10**3, "micros": 10**6, "nanos": 10**9}
# The type that a time must have, and what it means. A time of day has no nanoseconds.
_TIMES: Final = {
    "date": ("int", Logical("date", "date")),
    "time-millis": ("int", Logical("time-millis", "time", _UNITS["millis"])),
    "time-micros": ("long", Logical("time-micros", "time", _UNITS["micros"])),
    **{
        f"{family}-{unit}": ("long", Logical(f"{family}-{unit}", family, per_second))
        for family in ("timestamp", "local-timestamp")
        for unit, per_second in _UNITS.items()
    },
}


def parse(document: Json) -> AvroType:
    """Return the graph of a schema: `document` is its text, or the JSON value of it. Raises `InvalidSchema`."""
    if isinstance(document, str) and document not in PRIMITIVES:
        if len(document) > MAX_SCHEMA_CHARACTERS:
            raise InvalidSchema(
                f"the schema has {len(document)} characters, {MAX_SCHEMA_CHARACTERS} are read"
            )
        try:
            document = json.loads(document)
        except (ValueError, RecursionError):
            raise InvalidSchema("the schema is not JSON (an Avro schema is)") from None
    return _Parser().parse(document, "", 0, "the schema")


class _Parser:
    """One parse: the types defined so far, and how much of the bounds is used."""

    def __init__(self) -> None:
        self._named: dict[str, Named] = {}
        self._count = 0
        self._alias_characters = 0

    def parse(self, schema: Json, namespace: str, depth: int, where: str) -> AvroType:
        self._count += 1
        # Counted before a type is made: a document may repeat itself.
        if self._count > MAX_SCHEMA_TYPES:
            raise InvalidSchema(f"more than {MAX_SCHEMA_TYPES} types are not read ({where})")
        # Python's stack has a limit too, but it is reached later, at an unknown place.
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidSchema(f"{where}: more than {MAX_SCHEMA_DEPTH} levels are not read")
        if isinstance(schema, str):
            return self._reference(schema, namespace, where)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth, where)
        if isinstance(schema, dict):
            return self._object(schema, namespace, depth, where)
        raise InvalidSchema(f"{where}: a type is text, a list or an object")

    def _object(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> AvroType:
        kind = schema.get("type")
        if isinstance(kind, str):
            if kind in PRIMITIVES:
                return Primitive(kind, _logical(schema, kind, None))
            if kind in NAMED_KINDS:
                return self._named_type(schema, namespace, depth, where)
            if kind == "array":
                return Array(self.parse(schema.get("items"), namespace, depth + 1, f"items of {where}"))
            if kind == "map":
                return Map(self.parse(schema.get("values"), namespace, depth + 1, f"values of {where}"))
        # {"type": {"type": …}} is not in the specification, but occurs in practice; it has one meaning.
        return self.parse(kind, namespace, depth + 1, where)

    def _reference(self, name: str, namespace: str, where: str) -> AvroType:
        if name in PRIMITIVES:
            return Primitive(name)
        # Its full name, then the name as it stands, as Java reads it. A reference is the type itself, so that what
        # compiles the graph looks nothing up.
        for full in (full_name(name, namespace), name):
            if full in self._named:
                return self._named[full]
        raise InvalidSchema(f"{where}: there is no type {name!r}")

    def _union(self, schema: list[Json], namespace: str, depth: int, where: str) -> Union:
        branches = [self.parse(branch, namespace, depth + 1, where) for branch in schema]
        labels = [label(branch) for branch in branches]
        # Two branches of one type could not be distinguished by their values.
        if not branches or len(set(labels)) < len(labels) or "union" in labels:
            raise InvalidSchema(f"{where}: a union is of different types, at least one, none itself a union")
        return Union(branches, labels.index("null") if "null" in labels else -1)

    def _named_type(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> Named:
        name, own = schema.get("name"), schema.get("namespace", namespace)
        # A namespace may be empty, a name may not.
        if not isinstance(name, str) or not isinstance(own, str) or not name:
            raise InvalidSchema(f"{where}: a {schema['type']} has a name")
        full = _bounded_name(full_name(name, own))
        space = full.rpartition(".")[0]
        aliases = tuple(
            self._alias(alias, space) for alias in _texts(schema.get("aliases", []), f"aliases of {full}")
        )
        if full in self._named:
            raise InvalidSchema(f"{full}: is defined twice")
        if schema["type"] != "record" and schema["type"] != "error":
            named = (_enum if schema["type"] == "enum" else _fixed)(schema, full, aliases)
            self._named[full] = named
            return named
        self._named[full] = record = Record(full, aliases)  # known before its fields: they may refer to it
        fields = schema.get("fields")
        if not isinstance(fields, list):
            raise InvalidSchema(f"{full}: a record has a list of fields")
        record.fields = [self._field(each, space, depth, full) for each in fields]
        if len({each.name for each in record.fields}) < len(fields):
            raise InvalidSchema(f"{full}: two fields have the same name")
        return record

    def _alias(self, name: str, namespace: str) -> str:
        full = _bounded_name(full_name(name, namespace))
        self._alias_characters += len(full)
        if self._alias_characters > MAX_ALIAS_CHARACTERS:
            raise InvalidSchema(
                f"aliases of more than {MAX_ALIAS_CHARACTERS} characters are not read ({full})"
            )
        return full

    def _field(self, schema: Json, namespace: str, depth: int, record: str) -> Field:
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise InvalidSchema(f"{record}: a field is an object with a name")
        where = f"{record}.{_bounded_name(schema['name'])}"
        if "type" not in schema:
            raise InvalidSchema(f"{where}: the field has no type")
        aliases = _texts(schema.get("aliases", []), f"aliases of {where}")
        kind = self.parse(schema["type"], namespace, depth + 1, where)
        return Field(intern(schema["name"]), aliases, kind, schema.get("default", NO_DEFAULT))


def _enum(schema: dict[str, Json], name: str, aliases: tuple[str, ...]) -> Enum:
    symbols, default = _texts(schema.get("symbols"), f"symbols of {name}"), schema.get("default")
    if not symbols or len(set(symbols)) < len(symbols):
        raise InvalidSchema(f"{name}: an enum has symbols, each once")
    # Wrong defaults of fields are accepted, as a writer's are never used; a reader's enum uses its own.
    if default is not None and default not in symbols:
        raise InvalidSchema(f"{name}: the default is not one of the symbols")
    return Enum(name, aliases, symbols, default)


def _fixed(schema: dict[str, Json], name: str, aliases: tuple[str, ...]) -> Fixed:
    size = schema.get("size")
    if type(size) is not int or not 0 <= size <= MAX_SCHEMA_CHARACTERS:
        raise InvalidSchema(f"{name}: the size of a fixed is a whole number of bytes")
    return Fixed(name, aliases, size, _logical(schema, "fixed", size))


def full_name(name: str, namespace: str) -> str:
    """Return the name with its namespace; a name with a dot has one already ("Names" of the specification)."""
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _bounded_name(name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidSchema(
            f"{name[:40]}…: a name of {len(name)} characters; {MAX_NAME_CHARACTERS} are read, namespace included"
        )
    return name


def _texts(value: Json, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InvalidSchema(f"{where}: must be a list of text")
    return tuple(value)


def _logical(schema: dict[str, Json], kind: str, size: int | None) -> Logical | None:
    """Return the logical type; None if it is unknown or does not fit its type: the specification says to ignore it."""
    name = schema.get("logicalType")
    if name == "uuid":
        return Logical("uuid", "uuid") if kind == "string" or size == 16 else None
    if name != "decimal":
        base, logical = _TIMES.get(name, ("", None)) if isinstance(name, str) else ("", None)
        return logical if base == kind else None
    # The specification: an invalid decimal is read as its bytes.
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if kind not in ("bytes", "fixed") or type(precision) is not int or type(scale) is not int:
        return None
    if not 0 <= scale <= precision or precision < 1:
        return None
    # A valid one, but its numbers would take time that grows with the square of their digits.
    if precision > MAX_DECIMAL_PRECISION:
        raise InvalidSchema(f"a decimal of {precision} digits: {MAX_DECIMAL_PRECISION} are read")
    return Logical("decimal", "decimal", 0, precision, scale)


def branches_of(node: AvroType) -> Sequence[AvroType]:
    """Return the types that a value may be of: the branches of a union, else the type itself."""
    return node.branches if isinstance(node, Union) else (node,)


def label(node: AvroType) -> str:
    """Return the name of a type for messages: its full name, or its kind."""
    return node.name if isinstance(node, Named) else node.kind


def outline(node: AvroType, seen: set[str] | None = None) -> Json:
    """Reduce the schema to what the bytes depend on: names, types, symbols, sizes, in canonical order."""
    # A named type is written out where it occurs first, and referred to by its name after that.
    seen = set() if seen is None else seen
    if isinstance(node, Primitive):
        return node.kind
    if isinstance(node, Array):
        return {"type": "array", "items": outline(node.items, seen)}
    if isinstance(node, Map):
        return {"type": "map", "values": outline(node.values, seen)}
    if isinstance(node, Union):
        return [outline(branch, seen) for branch in node.branches]
    if node.name in seen:
        return node.name
    seen.add(node.name)
    if isinstance(node, Enum):
        return {"name": node.name, "type": "enum", "symbols": list(node.symbols)}
    if isinstance(node, Fixed):
        return {"name": node.name, "type": "fixed", "size": node.size}
    fields = [{"name": each.name, "type": outline(each.type, seen)} for each in node.fields]
    return {"name": node.name, "type": "record", "fields": fields}


def canonical_form(node: AvroType) -> str:
    """Return the Parsing Canonical Form ("Transforming into Parsing Canonical Form" of the specification)."""
    return json.dumps(outline(node), separators=(",", ":"), ensure_ascii=False)


# The fingerprint of no bytes, and what each byte changes ("Schema Fingerprints" of the specification).
_NOTHING: Final = 0xC15D213AA4D7A795
_CRC_64_AVRO: Final = [
    reduce(lambda crc, _: crc >> 1 ^ (_NOTHING if crc & 1 else 0), range(8), byte) for byte in range(256)
]


def fingerprint(node: AvroType) -> str:
    """Return CRC-64-AVRO of the canonical form: 16 hex digits, little-endian as in single-object encoding."""
    crc = _NOTHING
    for byte in canonical_form(node).encode():
        crc = crc >> 8 ^ _CRC_64_AVRO[(crc ^ byte) & 0xFF]
    return crc.to_bytes(8, "little").hex()


def require_bounded(node: AvroType) -> None:
    """Refuse a schema whose data could cost more than their size. Raises `InvalidSchema`."""
    _Bounds().debt(node, frozenset())


class _Bounds:
    """Bounds what reading a datum of a schema can cost, before the first byte is read.

    A datum of *n* bytes must not be able to make more than a small number of values per byte. Avro has types that take
    no bytes (``null``, an empty record), so an array of them can claim 2^62 items in nine bytes, records that hold
    records that hold records of such types double with every level, and an item of one byte may bring thousands of
    nulls along.

    So each value costs one, each byte that it certainly takes pays for `VALUES_PER_BYTE`, and the rest is the type's
    *debt*. What can come again within one datum (items of arrays, values of maps, records that hold themselves) must
    pay for itself; a whole datum may have a debt once, of a size that no honest schema comes near.
    """

    def __init__(self) -> None:
        self._known: dict[str, int | None] = {}  # what a record owes; None while it is being counted
        self._recurring: set[str] = set()  # records that hold themselves

    def debt(self, node: AvroType, around: frozenset[str]) -> int:
        """Return the largest debt that a datum can have; `around` are the records that begin at the same byte."""
        if isinstance(node, Record):
            return self._record(node, around)
        if isinstance(node, Union):
            # The branch's index is a byte, so no branch begins where the union does.
            return max(self.debt(branch, frozenset()) for branch in node.branches) - VALUES_PER_BYTE
        if isinstance(node, Map):
            # Each value has a key's length before it.
            self._require_paid(node.values, "a map", VALUES_PER_BYTE)
        elif isinstance(node, Array):
            self._require_paid(node.items, "an array", 0)
        size = node.size if isinstance(node, Fixed) else _BYTES.get(node.kind, 1)
        return 1 - VALUES_PER_BYTE * size

    def _require_paid(self, node: AvroType, holder: str, paid: int) -> None:
        if self.debt(node, frozenset()) > paid:
            raise InvalidSchema(
                f"{holder} of {label(node)}: its items hold more values than their bytes pay for"
            )

    def _record(self, node: Record, around: frozenset[str]) -> int:
        if node.name in around:
            raise InvalidSchema(f"{node.name}: contains itself without an end")
        if node.name in self._known:
            known = self._known[node.name]
            if known is None:  # we are inside it, behind a byte: it must pay for the next round
                self._recurring.add(node.name)
            return known or 0
        self._known[node.name] = None
        # Each field begins where the one before ends, which may be at the same byte.
        inside = around | {node.name}
        debt = 1 + sum(self.debt(each.type, inside) for each in node.fields)
        if debt > (0 if node.name in self._recurring else MAX_VALUES_PER_DATUM):
            raise InvalidSchema(f"{node.name}: holds more values than its bytes pay for")
        self._known[node.name] = debt
        return debt
