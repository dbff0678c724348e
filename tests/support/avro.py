"""Schemas of Avro as tests write them: a function for each type that has parts, and for fields; and data of them."""

from __future__ import annotations

import io
from typing import Any

import fastavro

Schema = Any


def array(items: Schema) -> dict[str, Any]:
    """Return an array of these items."""
    return {"type": "array", "items": items}


def map_of(values: Schema) -> dict[str, Any]:
    """Return a map to these values."""
    return {"type": "map", "values": values}


def field(name: str, kind: Schema, **more: Any) -> dict[str, Any]:
    """Return a field of a record; `more`: a default, aliases."""
    return {"name": name, "type": kind, **more}


def record(name: str, *fields: dict[str, Any], **types: Schema) -> dict[str, Any]:
    """Return a record of these fields, and of fields without more than a name and a type."""
    return {"type": "record", "name": name, "fields": [*fields, *(field(*one) for one in types.items())]}


def numbered(name: str, *types: Schema) -> dict[str, Any]:
    """Return a record whose fields, ``f0`` and so on, have these types."""
    return record(name, *(field(f"f{number}", kind) for number, kind in enumerate(types)))


def optional(name: str, *types: Schema) -> dict[str, Any]:
    """Return a field that may be null, and is by default."""
    return field(name, ["null", *types], default=None)


def enum(name: str, *symbols: str, **more: Any) -> dict[str, Any]:
    """Return an enum of these symbols; `more`: a default, aliases."""
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def fixed(name: str, size: int, **more: Any) -> dict[str, Any]:
    """Return a fixed of this size; `more`: aliases, a logical type."""
    return {"type": "fixed", "name": name, "size": size, **more}


def logical(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """Return a primitive type with a logical type."""
    return {"type": kind, "logicalType": name, **more}


def decimal(precision: int, scale: int = 0) -> dict[str, Any]:
    """Return a decimal over bytes."""
    return logical("bytes", "decimal", precision=precision, scale=scale)


def written(schema: Schema, value: Any) -> bytes:
    """Return a bare datum, written by fastavro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return out.getvalue()


def zigzag(number: int) -> bytes:
    """Return a long as Avro writes it, of any size."""
    rest = number << 1 if number >= 0 else ~number << 1 | 1
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])
