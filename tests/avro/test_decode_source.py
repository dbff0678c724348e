"""The generated source: bounded whatever the schema, and nothing of a schema in it but names as text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

from consumer.avro.reading import Read
from consumer.avro.resolution import compile_reader
from consumer.avro.schema import MAX_SCHEMA_DEPTH, parse
from tests.avro.test_decode_properties import written

Schema = Any


def record(types: list[Schema], name: str = "R") -> Schema:
    """A record whose fields have these types."""
    fields = [{"name": f"f{number}", "type": each} for number, each in enumerate(types)]
    return {"type": "record", "name": name, "fields": fields}


def generated(read: Read) -> Iterator[CodeType]:
    """The code of each function that was generated for `read`."""
    assert isinstance(read, FunctionType)
    for value in list(read.__globals__.values()):
        if isinstance(value, FunctionType) and value.__globals__ is read.__globals__:
            yield value.__code__


def compiled(schema: Schema) -> Read:
    """The reader of `schema`'s data as they are, made in bounded time."""
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
        (
            record([{"type": "array", "items": ITEM}, *[{"type": "array", "items": "Item"}] * 2_000]),
            {f"f{n}": [{"f0": "a", "f1": None, "f2": n}] for n in range(2_001)},
        ),
        (
            record([record([OPTIONAL] * 60, f"R{n}") for n in range(40)]),
            {f"f{n}": {f"f{m}": "x" if m % 2 else None for m in range(60)} for n in range(40)},
        ),
    ],
    ids=["many optionals", "very wide", "one record in many places", "records in a record"],
)
def test_a_function_is_bounded_however_large_the_schema(schema: Schema, value: Any) -> None:
    """What does not fit becomes calls, and the data are read as ever."""
    read = compiled(schema)
    data = written(schema, value)
    assert read(data, 0) == (value, len(data))
    assert list(read(data, 0)[0]) == list(value)
    codes = list(generated(read))
    assert max(len(code.co_code) for code in codes) < 200_000
    assert max(code.co_nlocals + code.co_stacksize for code in codes) < 2_000


def test_once_enough_is_inlined_a_field_costs_a_call() -> None:
    """Equal types share a function, so that neither their number nor their code grows with a very large schema."""
    array = {"type": "array", "items": "int"}
    few, many = ([*generated(compiled(record([array] * size)))] for size in (2_500, 4_500))
    assert len(many) - len(few) < 100
    assert sum(len(code.co_code) for code in many) - sum(len(code.co_code) for code in few) < 2_000 * 60


@pytest.mark.parametrize("kind", ["array", "optional", "record", "map"])
def test_schemas_nested_as_deeply_as_they_may_be(kind: str) -> None:
    """Beyond what Python nests in one function there are calls."""
    schema: Schema = "string"
    value: Any = "x"
    for level in range(MAX_SCHEMA_DEPTH // 2 - 2):
        if kind == "array":
            schema, value = {"type": "array", "items": schema}, [value, value] if level < 3 else [value]
        elif kind == "map":
            schema, value = {"type": "map", "values": schema}, {"k": value}
        else:
            inner = ["null", schema] if kind == "optional" else schema
            schema, value = record([inner], f"R{level}"), {"f0": value}
    schema, value = record([schema], "Top"), {"f0": value}
    data = written(schema, value)
    assert compiled(schema)(data, 0) == (value, len(data))


NAMES = [
    "'",
    '"',
    "\\",
    "\n",
    "'}; raise SystemExit #",
    '"""',
    "{at}",
    "data",
    "at",
    "b",
    "n",
    "v1",
    "\ud800",
    "é",
    "\0",
]


def test_names_are_only_text() -> None:
    """Whatever a foreign schema calls its fields, records and symbols."""
    enum = {"type": "enum", "name": "E'); raise SystemExit", "symbols": NAMES}
    schema = {
        "type": "record",
        "name": 'R"); raise SystemExit',
        "fields": [{"name": name, "type": enum if name == "'" else "int"} for name in NAMES],
    }
    data = bytes([2 * NAMES.index("at"), *range(2, 2 * len(NAMES), 2)])
    expected = {name: number for number, name in enumerate(NAMES)} | {"'": "at"}
    assert compiled(schema)(data, 0) == (expected, len(data))


def test_a_default_is_shared_only_if_it_cannot_change() -> None:
    """Events are mutable: a list or map that the writer lacks is made anew for each."""
    writer = parse({"type": "record", "name": "R", "fields": []})
    defaults: list[tuple[Schema, Any]] = [
        ("string", "text"),
        ({"type": "array", "items": "int"}, []),
        ({"type": "array", "items": "int"}, [1]),
        ({"type": "map", "values": "int"}, {}),
        (record(["int"], "In"), {"f0": 1}),
    ]
    fields = [{"name": f"f{n}", "type": kind, "default": value} for n, (kind, value) in enumerate(defaults)]
    read = compile_reader(writer, parse({"type": "record", "name": "R", "fields": fields}))
    (first, _), (second, _) = read(b"", 0), read(b"", 0)
    assert list(first.values()) == [value for _, value in defaults]
    assert first["f0"] is second["f0"]
    assert all(first[name] is not second[name] for name in ("f1", "f2", "f3", "f4"))
