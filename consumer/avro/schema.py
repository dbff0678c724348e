"""Avro schemas as a graph of types: parsed once, checked, and bounded.

A schema document comes from outside (a registry, a file), so nothing of it is trusted: its size, its depth,
its names and what reading it could cost are checked here. What comes out is a graph of small objects in
which every name is full and every reference is the type itself, so that the modules that compile it
(`resolution`, `ndjson`, `encode`) need no namespaces and no look-ups.

Section numbers and rules are those of the Avro 1.12 specification. Defaults stay JSON here; a writer's
defaults are never used, so a wrong one there is no reason to refuse the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from fastavro.schema import fingerprint as _fastavro_fingerprint

Json = Any
"""A JSON value as `json.loads` gives it."""

PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
MAX_SCHEMA_CHARACTERS: Final = 1 << 20
"""A registry's own limit for one schema is of this size; ours keeps parsing within milliseconds."""
MAX_SCHEMA_DEPTH: Final = 64
MAX_SCHEMA_TYPES: Final = 10_000
"""Types, and references to them."""
MAX_NAME_CHARACTERS: Final = 1_024
"""Of a full name, an alias or a field's name. A namespace counts for each type in it, so one of half a megabyte makes
gigabytes of names."""
MAX_DECIMAL_PRECISION: Final = 1_000
MAX_ALIAS_CHARACTERS: Final = 4 * MAX_SCHEMA_CHARACTERS
"""Of all full names of aliases together."""
MAX_VALUES_PER_DATUM: Final = 10_000
"""Values that one datum may hold beyond what its bytes pay for."""
VALUES_PER_BYTE: Final = 16
"""Honest data have about one."""
_BYTES: Final = {"null": 0, "float": 4, "double": 8}
"""The fewest bytes of a primitive; one, if it is not here."""
NO_DEFAULT: Final = object()
"""The default of a field that has none (``None`` is the default ``null``)."""


_LONGEST_MESSAGE: Final = 300


def shown(message: str, longest: int = _LONGEST_MESSAGE) -> str:
    """`message` as one printable line, cut: the names in it are a schema's, and nobody checked them."""
    if len(message) <= longest and message.isprintable():
        return message
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in message[:longest])
    return f"{line}…" if len(message) > longest else line


class InvalidSchema(ValueError):
    """The document is not an Avro schema that we read. The message names types and fields, never data."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class Logical(NamedTuple):
    """What a number or a string means. `family` is the logical type without its unit."""

    name: str
    family: str
    per_second: int = 0
    """Of the time families: how many units make a second (``date`` has none: it counts days)."""
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
    """So many bytes."""

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
    """Named fields, in order. Made before its fields are known, since they may refer to it."""

    name: str
    aliases: tuple[str, ...]
    fields: list[Field] = field(default_factory=list)
    kind: str = "record"


Named = Enum | Fixed | Record
AvroType = Primitive | Array | Map | Union | Enum | Fixed | Record
_N = TypeVar("_N", Enum, Fixed, Record)

_TIMES: Final = {
    "date": ("int", Logical("date", "date")),
    "time-millis": ("int", Logical("time-millis", "time", 10**3)),
    "time-micros": ("long", Logical("time-micros", "time", 10**6)),
    "timestamp-millis": ("long", Logical("timestamp-millis", "timestamp", 10**3)),
    "timestamp-micros": ("long", Logical("timestamp-micros", "timestamp", 10**6)),
    "timestamp-nanos": ("long", Logical("timestamp-nanos", "timestamp", 10**9)),
    "local-timestamp-millis": ("long", Logical("local-timestamp-millis", "local-timestamp", 10**3)),
    "local-timestamp-micros": ("long", Logical("local-timestamp-micros", "local-timestamp", 10**6)),
    "local-timestamp-nanos": ("long", Logical("local-timestamp-nanos", "local-timestamp", 10**9)),
}


def parse(document: Json, definitions: Mapping[str, Json] | None = None) -> AvroType:
    """The graph of a schema: `document` is its text, or the JSON value of it.

    `definitions` are further named types by full name, for a schema that refers to others outside itself.
    Raises `InvalidSchema`.
    """
    return _Parser(definitions or {}).parse(_loaded(document))


def _loaded(document: Json) -> Json:
    if not isinstance(document, str) or document in PRIMITIVES:
        return document
    if len(document) > MAX_SCHEMA_CHARACTERS:
        raise InvalidSchema(f"the schema has {len(document)} characters, {MAX_SCHEMA_CHARACTERS} are read")
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        raise InvalidSchema("the schema is not JSON (an Avro schema is)") from None


class _Parser:
    """One parse: the names defined so far, and how many types there are."""

    def __init__(self, definitions: Mapping[str, Json]) -> None:
        self._definitions = definitions
        self._named: dict[str, Named] = {}
        self._count = 0
        self._alias_characters = 0
        self._complex: dict[str, Callable[[dict[str, Json], str, int, str], AvroType]] = {
            "record": self._record,
            "error": self._record,
            "enum": self._enum,
            "fixed": self._fixed,
            "array": self._array,
            "map": self._map,
        }

    def parse(self, schema: Json, namespace: str = "", depth: int = 0, where: str = "the schema") -> AvroType:
        self._count += 1
        if self._count > MAX_SCHEMA_TYPES:
            raise InvalidSchema(f"more than {MAX_SCHEMA_TYPES} types are not read ({where})")
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidSchema(f"{where}: more than {MAX_SCHEMA_DEPTH} levels are not read")
        if isinstance(schema, str):
            return self._reference(schema, namespace, depth, where)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth, where)
        if isinstance(schema, dict):
            return self._object(schema, namespace, depth, where)
        raise InvalidSchema(f"{where}: a type is text, a list or an object")

    def _object(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> AvroType:
        kind = schema.get("type")
        if not isinstance(kind, str):
            # {"type": {"type": …}} is not in the specification, but seen in the wild; it has one meaning.
            return self.parse(kind, namespace, depth + 1, where)
        if kind in PRIMITIVES:
            return Primitive(kind, _logical(schema, kind, None))
        make = self._complex.get(kind)
        if make is None:
            return self._reference(kind, namespace, depth, where)
        return make(schema, namespace, depth, where)

    def _reference(self, name: str, namespace: str, depth: int, where: str) -> AvroType:
        if name in PRIMITIVES:
            return Primitive(name)
        for full in possible_names(name, namespace):
            known = self._named.get(full)
            if known is not None:
                return known
            if full in self._definitions:
                return self.parse(self._definitions[full], "", depth + 1, full)
        raise InvalidSchema(f"{where}: there is no type {name!r}")

    def _union(self, schema: list[Json], namespace: str, depth: int, where: str) -> Union:
        branches = [self.parse(branch, namespace, depth + 1, where) for branch in schema]
        labels = [label(branch) for branch in branches]
        if not branches or len(set(labels)) < len(labels) or "union" in labels:
            raise InvalidSchema(f"{where}: a union is of different types, at least one, none itself a union")
        return Union(branches, labels.index("null") if "null" in labels else -1)

    def _array(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> Array:
        return Array(self.parse(schema.get("items"), namespace, depth + 1, f"items of {where}"))

    def _map(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> Map:
        return Map(self.parse(schema.get("values"), namespace, depth + 1, f"values of {where}"))

    def _enum(self, schema: dict[str, Json], namespace: str, _depth: int, where: str) -> Enum:
        name, aliases, _ = self._name(schema, namespace, where)
        symbols = _texts(schema.get("symbols"), f"symbols of {name}")
        default = schema.get("default")
        if not symbols or len(set(symbols)) < len(symbols):
            raise InvalidSchema(f"{name}: an enum has symbols, each once")
        if default is not None and default not in symbols:
            raise InvalidSchema(f"{name}: the default is not one of the symbols")
        return self._remember(Enum(name, aliases, symbols, default))

    def _fixed(self, schema: dict[str, Json], namespace: str, _depth: int, where: str) -> Fixed:
        name, aliases, _ = self._name(schema, namespace, where)
        size = schema.get("size")
        if type(size) is not int or not 0 <= size <= MAX_SCHEMA_CHARACTERS:
            raise InvalidSchema(f"{name}: the size of a fixed is a whole number of bytes")
        return self._remember(Fixed(name, aliases, size, _logical(schema, "fixed", size)))

    def _record(self, schema: dict[str, Json], namespace: str, depth: int, where: str) -> Record:
        name, aliases, inner = self._name(schema, namespace, where)
        record = self._remember(Record(name, aliases))
        fields = schema.get("fields")
        if not isinstance(fields, list):
            raise InvalidSchema(f"{name}: a record has a list of fields")
        record.fields = [self._field(each, inner, depth, name) for each in fields]
        names = {each.name for each in record.fields}
        if len(names) < len(fields):
            raise InvalidSchema(f"{name}: two fields have the same name")
        return record

    def _field(self, schema: Json, namespace: str, depth: int, record: str) -> Field:
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise InvalidSchema(f"{record}: a field is an object with a name")
        where = f"{record}.{_bounded_name(schema['name'])}"
        if "type" not in schema:
            raise InvalidSchema(f"{where}: the field has no type")
        aliases = _texts(schema.get("aliases", []), f"aliases of {where}")
        kind = self.parse(schema["type"], namespace, depth + 1, where)
        return Field(schema["name"], aliases, kind, schema.get("default", NO_DEFAULT))

    def _name(self, schema: dict[str, Json], namespace: str, where: str) -> tuple[str, tuple[str, ...], str]:
        """Full name, full aliases, and the namespace for what is inside."""
        name, own = schema.get("name"), schema.get("namespace", namespace)
        if not isinstance(name, str) or not isinstance(own, str) or not name:
            raise InvalidSchema(f"{where}: a {schema['type']} has a name")
        full = _bounded_name(_full_name(name, own))
        space = full.rpartition(".")[0]
        aliases = _texts(schema.get("aliases", []), f"aliases of {full}")
        return full, tuple(self._alias(alias, space) for alias in aliases), space

    def _alias(self, name: str, namespace: str) -> str:
        full = _bounded_name(_full_name(name, namespace))
        self._alias_characters += len(full)
        if self._alias_characters > MAX_ALIAS_CHARACTERS:
            raise InvalidSchema(
                f"aliases of more than {MAX_ALIAS_CHARACTERS} characters are not read ({full})"
            )
        return full

    def _remember(self, named: _N) -> _N:
        if named.name in self._named:
            raise InvalidSchema(f"{named.name}: is defined twice")
        self._named[named.name] = named
        return named


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _bounded_name(name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidSchema(
            f"{name[:40]}…: a name of {len(name)} characters; {MAX_NAME_CHARACTERS} are read, namespace included"
        )
    return name


def possible_names(name: str, namespace: str) -> tuple[str, ...]:
    """What a reference can mean: its full name first, then the name as it stands (as Java reads it)."""
    full = _full_name(name, namespace)
    return (full,) if full == name else (full, name)


def _texts(value: Json, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InvalidSchema(f"{where}: must be a list of text")
    return tuple(value)


def _logical(schema: dict[str, Json], kind: str, size: int | None) -> Logical | None:
    """The logical type, or ``None`` if it is unknown or does not fit its type: then the specification says
    to ignore it."""
    name = schema.get("logicalType")
    if not isinstance(name, str):
        return None
    if name == "decimal":
        return _decimal(schema) if kind in ("bytes", "fixed") else None
    if name == "uuid":
        return Logical("uuid", "uuid") if kind == "string" or size == 16 else None
    base, logical = _TIMES.get(name, ("", None))
    return logical if base == kind else None


def _decimal(schema: dict[str, Json]) -> Logical | None:
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if type(precision) is not int or type(scale) is not int or not 0 <= scale <= precision or precision < 1:
        return None
    if precision > MAX_DECIMAL_PRECISION:
        raise InvalidSchema(f"a decimal of {precision} digits: {MAX_DECIMAL_PRECISION} are read")
    return Logical("decimal", "decimal", 0, precision, scale)


def label(node: AvroType) -> str:
    """How people call a type: its full name, or its kind."""
    return node.name if isinstance(node, Enum | Fixed | Record) else node.kind


def outline(node: AvroType, seen: set[str] | None = None) -> Json:
    """The schema reduced to what the bytes depend on: names, types, symbols, sizes, in canonical order."""
    seen = set() if seen is None else seen
    if isinstance(node, Primitive):
        return node.kind
    if isinstance(node, Array):
        return {"type": "array", "items": outline(node.items, seen)}
    if isinstance(node, Map):
        return {"type": "map", "values": outline(node.values, seen)}
    if isinstance(node, Union):
        return [outline(branch, seen) for branch in node.branches]
    return _outline_of_named(node, seen)


def _outline_of_named(node: Named, seen: set[str]) -> Json:
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
    """The Parsing Canonical Form ("Transforming into Parsing Canonical Form")."""
    return json.dumps(outline(node), separators=(",", ":"), ensure_ascii=False)


def fingerprint(node: AvroType) -> str:
    """CRC-64-AVRO of the canonical form: 16 hex digits in the order of single-object encoding (little-endian)."""
    return str(_fastavro_fingerprint(canonical_form(node), "CRC-64-AVRO"))


def require_bounded(node: AvroType) -> None:
    """Refuse a schema whose data could cost more than their size. Raises `InvalidSchema`."""
    _Bounds().debt(node, frozenset())


class _Bounds:
    """What reading a datum of a schema can cost at most, judged before the first byte is read.

    A datum of *n* bytes must not be able to make more than a small number of values per byte. Avro has types that take
    no bytes (``null``, an empty record), so an array of them can claim 2^62 items in nine bytes, records that hold
    records that hold records of such types double with every level, and an item of one byte may bring thousands of
    nulls along.

    So each value costs one, each byte it is sure to take pays for `VALUES_PER_BYTE`, and what is left is the type's
    *debt*. What can come again within one datum (items of arrays, values of maps, records that hold themselves) must
    pay for itself; a whole datum may have a debt once, of a size that no honest schema comes near. `_known` holds what
    a record owes, None while it is being counted.
    """

    def __init__(self) -> None:
        self._known: dict[str, int | None] = {}
        self._recurring: set[str] = set()
        """Records that hold themselves."""

    def debt(self, node: AvroType, around: frozenset[str]) -> int:
        """What a datum owes at most; `around` are the records that it begins without a byte in between."""
        if isinstance(node, Record):
            return self._record(node, around)
        if isinstance(node, Union):
            return max(self.debt(branch, frozenset()) for branch in node.branches) - VALUES_PER_BYTE
        if isinstance(node, Map):  # each value has a key's length before it
            self._require_paid(node.values, "a map", VALUES_PER_BYTE)
        elif isinstance(node, Array):
            self._require_paid(node.items, "an array", 0)
        size = node.size if isinstance(node, Fixed) else _BYTES.get(node.kind, 1)
        return 1 - VALUES_PER_BYTE * size

    def _require_paid(self, node: AvroType, holder: str, paid: int) -> None:
        if self.debt(node, frozenset()) > paid:
            raise InvalidSchema(
                f"{holder} of {label(node)}: items of so few bytes and so many values have no bound"
            )

    def _record(self, node: Record, around: frozenset[str]) -> int:
        if node.name in around:
            raise InvalidSchema(f"{node.name}: contains itself without an end")
        if node.name in self._known:
            known = self._known[node.name]
            if (
                known is None
            ):  # being counted, and we are inside it, behind a byte: it must pay for the next round
                self._recurring.add(node.name)
            return known or 0
        self._known[node.name] = None
        inside = around | {node.name}
        debt = 1 + sum(self.debt(each.type, inside) for each in node.fields)
        if debt > (0 if node.name in self._recurring else MAX_VALUES_PER_DATUM):
            raise InvalidSchema(f"{node.name}: holds more values than its bytes pay for")
        self._known[node.name] = debt
        return debt
