"""The largest and deepest schemas that are allowed are read in bounded time, and names in them are never code."""

from __future__ import annotations

import time
from typing import Any

import pytest

from consumer.avro.reading import Read
from consumer.avro.resolution import compile_reader
from consumer.avro.schema import MAX_SCHEMA_DEPTH, parse
from tests.avro.test_decode_properties import written
from tests.support import avro

Schema = Any


def record(types: list[Schema], name: str = "R") -> Schema:
    """Return the schema of a record whose fields have these types."""
    return avro.numbered(name, *types)


def reader(schema: Schema) -> Read:
    """Return a reader of the data of `schema` as they are; assert that it is made in bounded time."""
    node = parse(schema)
    started = time.perf_counter()
    read = compile_reader(node, node)
    assert time.perf_counter() - started < 10
    return read


OPTIONAL = ["null", "string"]
ITEM = record(["string", OPTIONAL, "int"], "Item")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (record([OPTIONAL] * 3_000), {f"f{n}": str(n) if n % 3 else None for n in range(3_000)}),
        (record(["long"] * 9_000), {f"f{n}": n for n in range(9_000)}),
        (record([avro.array(ITEM), *[avro.array("Item")] * 2_000]),
         {f"f{n}": [{"f0": "a", "f1": None, "f2": n}] for n in range(2_001)}),
        (record([record([OPTIONAL] * 60, f"R{n}") for n in range(40)]),
         {f"f{n}": {f"f{m}": "x" if m % 2 else None for m in range(60)} for n in range(40)}),
    ],
    ids=["many optionals", "very wide", "one record in many places", "records in a record"],
)  # fmt: skip
def test_schemas_as_large_as_they_may_be(schema: Schema, value: Any) -> None:
    """Readers of the largest schemas are made in bounded time, and read the fields in order."""
    read = reader(schema)
    data = written(schema, value)
    assert read(data, 0) == (value, len(data))
    assert list(read(data, 0)[0]) == list(value)


@pytest.mark.parametrize("kind", ["array", "optional", "record", "map"])
def test_schemas_nested_as_deeply_as_they_may_be(kind: str) -> None:
    """A schema nested nearly as deep as is allowed, by arrays, optionals, records or maps, is read."""
    schema: Schema = "string"
    value: Any = "x"
    for level in range(MAX_SCHEMA_DEPTH // 2 - 2):
        if kind == "array":
            schema, value = avro.array(schema), [value, value] if level < 3 else [value]
        elif kind == "map":
            schema, value = avro.map_of(schema), {"k": value}
        else:
            inner = ["null", schema] if kind == "optional" else schema
            schema, value = record([inner], f"R{level}"), {"f0": value}
    schema, value = record([schema], "Top"), {"f0": value}
    data = written(schema, value)
    assert reader(schema)(data, 0) == (value, len(data))


NAMES = [
    "'", '"', "\\", "\n", "'}; raise SystemExit #", '"""', "{at}", "data", "at", "b", "n", "v1", "\ud800", "é", "\0",
]  # fmt: skip


def test_names_are_only_text() -> None:
    """Names of fields, records and symbols that look like code are read as text."""
    enum = {"type": "enum", "name": "E'); raise SystemExit", "symbols": NAMES}
    schema = avro.record(
        'R"); raise SystemExit', *[avro.field(name, enum if name == "'" else "int") for name in NAMES]
    )
    data = bytes([2 * NAMES.index("at"), *range(2, 2 * len(NAMES), 2)])
    expected = {name: number for number, name in enumerate(NAMES)} | {"'": "at"}
    assert reader(schema)(data, 0) == (expected, len(data))


def test_a_default_is_shared_only_if_it_cannot_change() -> None:
    """A default that is a list, map or record is recreated for each event, since events are mutable; text is shared."""
    writer = parse(avro.record("R"))
    defaults: list[tuple[Schema, Any]] = [
        ("string", "text"),
        (avro.array("int"), []),
        (avro.array("int"), [1]),
        (avro.map_of("int"), {}),
        (record(["int"], "In"), {"f0": 1}),
    ]
    fields = [avro.field(f"f{n}", kind, default=value) for n, (kind, value) in enumerate(defaults)]
    read = compile_reader(writer, parse(avro.record("R", *fields)))
    (first, _), (second, _) = read(b"", 0), read(b"", 0)
    assert list(first.values()) == [value for _, value in defaults]
    assert first["f0"] is second["f0"]
    assert all(first[name] is not second[name] for name in ("f1", "f2", "f3", "f4"))
