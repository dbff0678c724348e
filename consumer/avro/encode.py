"""From a commerce event to a record's value: what `produce`, `demo` and the tests write.

fastavro writes the bytes; here stands what it does not do: the framing by which a reader finds the schema,
our schema's defaults for missing fields, and times and decimals as people have them (ISO 8601, `datetime`,
`Decimal`). A whole number of a time field is a count of the schema's own unit, as in every commerce event.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

import fastavro

from consumer.avro.decode import framing_of
from consumer.avro.ndjson import Branch
from consumer.avro.schema import (
    Array,
    AvroType,
    Enum,
    Fixed,
    Logical,
    Map,
    Primitive,
    Record,
    Union,
    fingerprint,
    label,
    outline,
    parse,
)
from consumer.avro.values import INT_RANGE, LONG_RANGE, count_of, decimal_to_bytes, default_factory
from consumer.engine.model import CommerceEvent, SchemaRef


class ConfluentId(NamedTuple):
    """Framing: ``00`` and the id that a registry gave the schema."""

    schema_id: int


class SingleObject(NamedTuple):
    """Framing: ``C3 01`` and the schema's fingerprint; needs no registry."""


Framing = ConfluentId | SingleObject


class Unencodable(ValueError):
    """An event does not fit the schema it is to be written with. Names fields and types, never data."""


class Encoder:
    """Writes events of one schema (JSON) in one framing. Raises `InvalidSchema`, a `ValueError`."""

    def __init__(self, schema: dict[str, Any], framing: Framing) -> None:
        node = parse(schema)
        if isinstance(framing, ConfluentId):
            self._ref = SchemaRef("id", str(framing.schema_id))
        else:
            self._ref = SchemaRef("fingerprint", fingerprint(node))
        self._framing = framing_of(self._ref)
        self._prepare = _Preparer().compile(node)
        self._schema = fastavro.parse_schema(outline(node))

    @property
    def ref(self) -> SchemaRef:
        """How the records written here name their schema."""
        return self._ref

    def encode(self, event: CommerceEvent) -> bytes:
        """The value of a record that holds `event`. Raises `Unencodable`."""
        out = io.BytesIO()
        out.write(self._framing)
        try:
            fastavro.schemaless_writer(out, self._schema, self._prepare(event))
        except Unencodable:
            raise
        except Exception as error:  # fastavro's own are many, and quote the value
            raise Unencodable(f"the event does not fit its schema ({type(error).__name__})") from None
        return out.getvalue()


_Prepare = Callable[[Any], Any]


class _Preparer:
    """Compiles a schema into what turns an event into one that fastavro writes without logical types."""

    def __init__(self) -> None:
        self._records: dict[str, _RecordPreparation] = {}

    def compile(self, node: AvroType) -> _Prepare:
        if isinstance(node, Record):
            return self._record(node)
        if isinstance(node, Union):
            return self._union(node)
        if isinstance(node, Array):
            item = self.compile(node.items)
            return _checked("an array", list, lambda value: [item(each) for each in value])
        if isinstance(node, Map):
            inner = self.compile(node.values)
            return _checked("a map", dict, lambda value: {key: inner(each) for key, each in value.items()})
        if isinstance(node, Primitive | Fixed):
            return _leaf_preparation(node)
        return _enum_preparation(node)

    def _record(self, node: Record) -> _Prepare:
        known = self._records.get(node.name)
        if known is None:
            known = self._records[node.name] = _RecordPreparation(node)
            known.fields = [
                (each.name, self.compile(each.type), default_factory(each)) for each in node.fields
            ]
        return known.prepare

    def _union(self, node: Union) -> _Prepare:
        """A value goes to the branch that it fits best, as a bare one in NDJSON does, the first of equals."""
        branches = [Branch(each, self.compile(each)) for each in node.branches if each.kind != "null"]
        nullable = len(branches) < len(node.branches)
        expected = ", ".join(label(branch) for branch in node.branches)

        def prepare(value: Any) -> Any:
            if value is None and nullable:
                return None
            if len(branches) == 1:
                return branches[0].fit(value)
            rated = [(misfit, each) for each in branches if (misfit := each.misfit(value)) is not None]
            for _, branch in sorted(rated, key=itemgetter(0)):
                with suppress(Unencodable):
                    # fastavro takes a branch by its name.
                    return label(branch.node), branch.fit(value)
            raise Unencodable(f"expected one of: {expected}")

        return prepare


class _RecordPreparation:
    """Prepares a record's fields; they are told later, since they may refer to it."""

    def __init__(self, node: Record) -> None:
        self._name = node.name
        self.fields: list[tuple[str, _Prepare, Callable[[], Any] | None]] = []

    def prepare(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Unencodable(f"expected a {self._name}")
        return {name: self._field(value, name, prepare, default) for name, prepare, default in self.fields}

    def _field(self, value: Any, name: str, prepare: _Prepare, default: Callable[[], Any] | None) -> Any:
        if name not in value and default is None:
            raise Unencodable(f"field {self._name}.{name} is missing, and has no default")
        try:
            return prepare(value[name] if default is None or name in value else default())
        except Unencodable as error:
            raise Unencodable(f"field {self._name}.{name}: {error}") from None


def _leaf_preparation(node: Primitive | Fixed) -> _Prepare:
    logical = node.logical
    if logical is None:
        return _fixed_preparation(node.size) if isinstance(node, Fixed) else _PLAIN[node.kind]
    if logical.family == "decimal":
        return _decimal_preparation(logical, node.size if isinstance(node, Fixed) else None)
    if logical.family == "uuid":
        return _uuid_bytes if isinstance(node, Fixed) else _uuid_text
    return _time_preparation(logical, _PLAIN[node.kind])


def _checked(name: str, types: type | tuple[type, ...], prepare: _Prepare = lambda value: value) -> _Prepare:
    """`prepare` for values of these types only: what it takes, fastavro can write."""

    def checked(value: Any) -> Any:
        if not isinstance(value, types):
            raise Unencodable(f"expected {name}")
        return prepare(value)

    return checked


def _enum_preparation(node: Enum) -> _Prepare:
    def prepare(value: Any) -> Any:
        if value not in node.symbols:
            raise Unencodable(f"expected a symbol of {node.name}")
        return value

    return _checked(f"a symbol of {node.name}", str, prepare)


def _fixed_preparation(size: int) -> _Prepare:
    def prepare(value: Any) -> Any:
        if len(value) != size:
            raise Unencodable(f"expected {size} bytes")
        return value

    return _checked(f"{size} bytes", bytes, prepare)


def _bounded_preparation(bounds: range) -> _Prepare:
    """fastavro writes an int of any size, which nobody could read back."""

    def prepare(value: Any) -> Any:
        if type(value) is not int or value not in bounds:
            raise Unencodable(f"expected a whole number of {bounds.stop.bit_length()} bits")
        return value

    return prepare


_PLAIN: Final = {
    "null": _checked("null", type(None)),
    "boolean": _checked("a boolean", bool),
    "int": _bounded_preparation(INT_RANGE),
    "long": _bounded_preparation(LONG_RANGE),
    "float": _checked("a number", (int, float)),
    "double": _checked("a number", (int, float)),
    "bytes": _checked("bytes", bytes),
    "string": _checked("text", str),
}


def _time_preparation(logical: Logical, whole: _Prepare) -> _Prepare:
    def prepare(value: Any) -> Any:
        try:
            return whole(count_of(value, logical))
        except Unencodable:
            raise
        except (ValueError, OverflowError):
            raise Unencodable(f"expected a {logical.name}: a count of its unit, or ISO 8601 text") from None

    return prepare


def _decimal_preparation(logical: Logical, size: int | None) -> _Prepare:
    def prepare(value: Any) -> bytes:
        try:
            return value if isinstance(value, bytes) else decimal_to_bytes(Decimal(value), logical, size)
        except (ValueError, TypeError, ArithmeticError):
            raise Unencodable(f"expected a decimal of scale {logical.scale}") from None

    return prepare


def _uuid_text(value: Any) -> Any:
    if not isinstance(value, str | UUID):
        raise Unencodable("expected a UUID")
    return str(value)


def _uuid_bytes(value: Any) -> Any:
    try:
        return value if isinstance(value, bytes) else UUID(str(value)).bytes
    except ValueError:
        raise Unencodable("expected a UUID") from None
