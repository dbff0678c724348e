"""Generated schemas and data: we read what fastavro writes as fastavro reads it, and no bytes raise anything."""

from __future__ import annotations

import io
import itertools
from typing import Any

import fastavro
import fastavro.schema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.encode import Encoder
from consumer.avro.resolution import resolve
from consumer.avro.schema import MAX_SCHEMA_DEPTH, canonical_form, parse
from consumer.engine.model import Record, SchemaRef
from tests.support import avro
from tests.support.avro import written

Pair = tuple[Any, st.SearchStrategy[Any]]
"""A schema, and a strategy for its values."""

SEVEN = SchemaRef("id", "7")
PREFIX = b"\x00\x00\x00\x00\x07"
NAMES = ["a", "b", "c", "dé"]
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(), "boolean": st.booleans(), "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1), "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False), "bytes": st.binary(max_size=200), "string": st.text(max_size=200),
}  # fmt: skip
CLASSES = [["boolean"], ["int", "long", "float", "double"], ["bytes", "fixed", "array"], ["string", "enum"]]
"""A union has at most one type of each class, so that fastavro writes the branch that was meant: it takes bytes
for an array."""


def named(draw: st.DrawFn, counter: itertools.count[int], kind: str) -> Pair:
    """Return an enum or fixed type with a new name, and its values."""
    name = f"T{next(counter)}"
    if kind == "fixed":
        size = draw(st.integers(1, 20))
        return avro.fixed(name, size), st.binary(min_size=size, max_size=size)
    symbols = draw(st.lists(st.sampled_from(["A", "B", "C", "D"]), min_size=1, unique=True))
    return {"type": "enum", "name": name, "symbols": symbols}, st.sampled_from(symbols)


def kind_of(draw: st.DrawFn, counter: itertools.count[int], depth: int, kind: str) -> Pair:
    """Return a schema of this kind, and its values."""
    if kind in LEAVES:
        return kind, LEAVES[kind]
    if kind in ("fixed", "enum"):
        return named(draw, counter, kind)
    if kind == "record":
        return record(draw, counter, depth)
    if kind == "union":
        return union(draw, counter, depth)
    items, values = anything(draw, counter, depth - 1, empty=kind == "map")
    if kind == "map":
        return avro.map_of(items), st.dictionaries(st.text(max_size=5), values, max_size=3)
    return avro.array(items), st.lists(values, max_size=3)


def union(draw: st.DrawFn, counter: itertools.count[int], depth: int) -> Pair:
    """Return a union whose branches a value tells apart, with or without null, and its values."""
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique_by=str))
    kinds = [draw(st.sampled_from(each)) for each in classes]
    pairs = [kind_of(draw, counter, depth - 1, kind) for kind in kinds]
    if draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), ("null", st.none()))
    return [schema for schema, _ in pairs], st.one_of([values for _, values in pairs])


def record(draw: st.DrawFn, counter: itertools.count[int], depth: int) -> Pair:
    """Return a record of up to four fields, and its values."""
    name = f"shop.R{next(counter)}"
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    fields = {each: anything(draw, counter, depth - 1) for each in names}
    schema = avro.record(name, *[avro.field(each, fields[each][0]) for each in names])
    return schema, st.fixed_dictionaries({each: fields[each][1] for each in names})


def anything(draw: st.DrawFn, counter: itertools.count[int], depth: int, *, empty: bool = True) -> Pair:
    """Return any schema, and its values; unless `empty`, a schema whose data take at least a byte."""
    leaves = ["boolean", "int", "long", "float", "double", "bytes", "string", "enum", "fixed"]
    branching = ["array", "map", "union", "record"] if empty else ["array", "map", "union"]
    kinds = leaves + (["null"] if empty else []) + (branching if depth > 0 else [])
    return kind_of(draw, counter, depth, draw(st.sampled_from(kinds)))


@st.composite
def records(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of a record, and a record of it."""
    schema, values = record(draw, itertools.count(), 3)
    return schema, draw(values)


WIDER = {"int": ["int", "long", "double"], "long": ["long", "double"], "float": ["float", "double"]}
ADDED: list[tuple[Any, Any]] = [
    ("string", "!"),
    (["null", "string"], None),
    (avro.array("int"), []),
    (avro.map_of("int"), {"k": 1}),
]
"""Types and defaults of fields that only the reader has."""


def evolved(draw: st.DrawFn, schema: Any) -> Any:
    """Return a schema that reads all data of `schema`: at any depth types are promoted or wrapped in a union,
    and fields and symbols are added, removed and moved."""
    if isinstance(schema, list):  # no primitive branch becomes another type: two could become the same
        return [branch if isinstance(branch, str) else evolved_type(draw, branch) for branch in schema]
    made = evolved_type(draw, schema)
    return ["null", made] if made != "null" and draw(st.booleans()) else made


def evolved_type(draw: st.DrawFn, schema: Any) -> Any:
    """Return such a schema as `evolved`, but never a union."""
    if isinstance(schema, str):
        return draw(st.sampled_from(WIDER.get(schema, [schema])))
    if schema["type"] == "enum":
        symbols = draw(st.lists(st.sampled_from(["A", "B", "C", "D"]), min_size=1, unique=True))
        return {**schema, "symbols": symbols, "default": symbols[0]}
    if schema["type"] == "record":
        return evolved_record(draw, schema)
    return {**schema, **{part: evolved(draw, schema[part]) for part in ("items", "values") if part in schema}}


def evolved_record(draw: st.DrawFn, schema: Any) -> Any:
    """Return a record with some of the fields of `schema` in any order, and some fields that only the reader has."""
    kept = draw(st.lists(st.sampled_from(schema["fields"]), unique_by=lambda each: str(each["name"])))
    added = draw(st.lists(st.sampled_from(ADDED), max_size=2))
    fields = [avro.field(each["name"], evolved(draw, each["type"])) for each in kept]
    fields += [
        avro.field(f"added_{number}", kind, default=default) for number, (kind, default) in enumerate(added)
    ]
    return {**schema, "fields": draw(st.permutations(fields))}


@st.composite
def evolutions(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the writer's schema, the reader's, and a record of the writer's."""
    schema, values = record(draw, itertools.count(), 3)
    return schema, evolved_record(draw, schema), draw(values)


def has_text_and_bytes(schema: Any) -> bool:
    """Return whether any union in the schema has both text and bytes."""
    if isinstance(schema, list):
        return {"string", "bytes"} <= {one for one in schema if isinstance(one, str)} or any(
            map(has_text_and_bytes, schema)
        )
    if not isinstance(schema, dict):
        return False
    return any(map(has_text_and_bytes, schema.get("fields", []))) or any(
        has_text_and_bytes(schema[part]) for part in ("type", "items", "values") if part in schema
    )


@given(records())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_fastavro_writes_is_read_as_fastavro_reads_it(generated: tuple[Any, Any]) -> None:
    """Read by the schema that wrote it, data comes out as fastavro reads it, and as it was written."""
    schema, value = generated
    data = written(schema, value)
    node = parse(schema)
    result, end = resolve(node, node).read(data, 0)
    assert end == len(data)
    assert result == fastavro.schemaless_reader(io.BytesIO(data), fastavro.parse_schema(schema), None)
    assert result == value


@given(records())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_encode_and_decode_are_inverse(generated: tuple[Any, Any]) -> None:
    """What our encoder writes, our decoder reads as the same value."""
    schema, value = generated
    decoder = Decoder(OneSchema(schema))
    decoder.add_schema(SEVEN, schema)
    encoded = Encoder(schema, 7).encode(value)
    assert decoder.decode(Record(0, -1, None, encoded, ())) == value


@given(evolutions())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_schema_that_evolved_is_resolved_as_fastavro_resolves_it(generated: tuple[Any, Any, Any]) -> None:
    """Data of an evolved schema is read as fastavro reads it, with fields, symbols, promotions and unions
    changed at any depth at once.

    A union of both text and bytes is omitted: fastavro takes the first branch that the text can be promoted to, we and
    Java the exact one (`consumer.avro.resolution`).
    """
    writer, reader, value = generated
    assume(not has_text_and_bytes(reader))
    data = written(writer, value)
    result, end = resolve(parse(writer), parse(reader)).read(data, 0)
    assert end == len(data)
    theirs, ours = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    assert result == fastavro.schemaless_reader(io.BytesIO(data), theirs, ours)


@given(records())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_canonical_form_is_that_of_fastavro(generated: tuple[Any, Any]) -> None:
    """The canonical form and the fingerprint of any schema are those of fastavro."""
    schema, _ = generated
    assert canonical_form(parse(schema)) == fastavro.schema.to_parsing_canonical_form(schema)


@given(records(), st.binary(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_bytes_never_raise(generated: tuple[Any, Any], noise: bytes) -> None:
    """Random bytes never raise, neither behind a known prefix nor alone."""
    schema, _ = generated
    decoder = Decoder(OneSchema(schema))
    decoder.add_schema(SEVEN, schema)
    for value in (PREFIX + noise, noise):
        decoder.decode(Record(0, -1, None, value, ()))


@given(records(), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_records_never_raise_and_truncated_ones_never_decode(
    generated: tuple[Any, Any], data: st.DataObject
) -> None:
    """Damaged records never raise. A record with a flipped bit may still decode; one with a byte cut off or
    added never does."""
    schema, value = generated
    decoder = Decoder(OneSchema(schema))
    decoder.add_schema(SEVEN, schema)
    good = written(schema, value)
    if not good:
        return
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    chunk = [Record(0, -1, None, PREFIX + each, ()) for each in (flipped, good[:at], good + b"\x00")]
    _, short, long = map(decoder.decode, chunk)
    assert not isinstance(short, dict)
    assert not isinstance(long, dict)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128, 8_191, 8_192, 1 << 20])
def test_text_of_every_length_of_length(length: int) -> None:
    """Text is read whether its length takes one byte or two, which is read inline, or more; text that is cut is not."""
    schema = avro.numbered("R", "string", ["null", "string"], "bytes", avro.array("string"))
    text = "x" * length
    value = {"f0": text, "f1": text, "f2": text.encode(), "f3": [text]}
    data, read = written(schema, value), resolve(parse(schema), parse(schema)).read
    assert read(data, 0) == (value, len(data))
    with pytest.raises(IndexError):
        read(data[:-1], 0)


@pytest.mark.parametrize("kind", ["array", "optional", "record", "map"])
def test_schemas_nested_as_deeply_as_they_may_be(kind: str) -> None:
    """A schema nested nearly as deep as is allowed, by arrays, optionals, records or maps, is read."""
    schema: Any = "string"
    value: Any = "x"
    for level in range(MAX_SCHEMA_DEPTH // 2 - 2):
        if kind == "array":
            schema, value = avro.array(schema), [value, value] if level < 3 else [value]
        elif kind == "map":
            schema, value = avro.map_of(schema), {"k": value}
        else:
            inner = ["null", schema] if kind == "optional" else schema
            schema, value = avro.numbered(f"R{level}", inner), {"f0": value}
    schema, value = avro.numbered("Top", schema), {"f0": value}
    data, node = written(schema, value), parse(schema)
    assert resolve(node, node).read(data, 0) == (value, len(data))
