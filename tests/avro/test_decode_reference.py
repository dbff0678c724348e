"""The generated readers against a plain interpreter of the two schemas: the same verdict for any bytes.

The interpreter follows the specification datum by datum and checks every length before it reads. It has only
two special cases, which are ours: the branch of an optional must be one byte, and the text of a skipped field
is not checked to be UTF-8.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.avro.reading import Unresolvable
from consumer.avro.resolution import compile_reader
from consumer.avro.schema import parse
from tests.avro.test_decode_properties import evolutions, written
from tests.support import avro

Schema = Any
PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}


class Bad(Exception):
    """Raised for bytes that are no datum of the writer's schema."""


class NoPlace(Exception):
    """Raised for a datum that the reader's schema has no place for."""


def kind_of(schema: Schema) -> str:
    """Return ``union``, or the ``type`` of the schema."""
    if isinstance(schema, list):
        return "union"
    return schema if isinstance(schema, str) else str(schema["type"])


def resolves(writer: Schema, reader: Schema) -> bool:
    """Return whether two types, neither of them a union, are the same or a promotion."""
    kinds = (kind_of(writer), kind_of(reader))
    if kinds in PROMOTIONS:
        return True
    named = isinstance(writer, dict) and isinstance(reader, dict) and "name" in writer
    return kinds[0] == kinds[1] and (not named or writer["name"] == reader["name"])


class Interpreter:
    """Reads one datum, by the writer's schema and the reader's."""

    def __init__(self, data: bytes, definitions: dict[str, Schema] | None = None) -> None:
        self.data = data
        self.at = 0
        self.definitions = definitions or {}

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise Bad
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, bits: int = 64) -> int:
        total: int = 0
        for place in range(10):
            byte = self.take(1)[0]
            total += (byte % 128) << (7 * place)
            if byte < 128:
                value = -(total + 1) // 2 if total % 2 else total // 2
                if total >= 2**64 or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                    raise Bad
                return value
        raise Bad

    def index(self, length: int) -> int:
        index = self.number()
        if not 0 <= index < length:
            raise Bad
        return index

    def named(self, schema: Schema) -> Schema:
        if isinstance(schema, list):
            return [self.named(branch) for branch in schema]
        return self.definitions.get(schema, schema) if isinstance(schema, str) else schema

    def read(self, writer: Schema, reader: Schema) -> Any:
        writer, reader = self.named(writer), self.named(reader)
        if isinstance(writer, list):
            return self.union(writer, reader)
        if isinstance(reader, list):
            found = [each for each in reader if kind_of(each) == kind_of(writer) and resolves(writer, each)]
            found += [each for each in reader if resolves(writer, each)]
            return self.read(writer, found[0])
        return getattr(self, f"read_{kind_of(writer)}")(writer, reader)

    def union(self, writer: Schema, reader: Schema) -> Any:
        ours = reader if isinstance(reader, list) else [reader]
        fits = [any(resolves(branch, each) for each in ours) for branch in writer]
        is_optional = len(writer) == 2 and "null" in writer and all(fits)
        if is_optional and self.data[self.at : self.at + 1] not in (b"\x00", b"\x02"):
            raise Bad
        index = self.index(len(writer))
        if not fits[index]:
            raise NoPlace
        return self.read(writer[index], reader)

    def read_null(self, _writer: Schema, _reader: Schema) -> None:
        return None

    def read_boolean(self, _writer: Schema, _reader: Schema) -> bool:
        byte = self.take(1)[0]
        if byte > 1:
            raise Bad
        return byte == 1

    def read_int(self, _writer: Schema, reader: Schema) -> int | float:
        # The range of an int that is promoted to a float is not checked: any number is a valid float.
        return float(self.number()) if kind_of(reader) in ("float", "double") else self.number(32)

    def read_long(self, _writer: Schema, reader: Schema) -> int | float:
        return float(self.number()) if kind_of(reader) in ("float", "double") else self.number()

    def read_float(self, _writer: Schema, _reader: Schema) -> float:
        return float(struct.unpack("<f", self.take(4))[0])

    def read_double(self, _writer: Schema, _reader: Schema) -> float:
        return float(struct.unpack("<d", self.take(8))[0])

    def read_bytes(self, _writer: Schema, reader: Schema) -> bytes | str:
        data = self.take(self.number())
        if kind_of(reader) == "bytes":
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise Bad from None

    read_string = read_bytes

    def read_fixed(self, writer: Schema, _reader: Schema) -> bytes:
        return self.take(writer["size"])

    def read_enum(self, writer: Schema, reader: Schema) -> str:
        symbol = writer["symbols"][self.index(len(writer["symbols"]))]
        if symbol in reader["symbols"]:
            return str(symbol)
        if "default" not in reader:
            raise NoPlace
        return str(reader["default"])

    def block(self) -> int:
        count = self.number()
        if count < 0 and self.number() < 0:
            raise Bad
        return abs(count)

    def read_array(self, writer: Schema, reader: Schema) -> list[Any]:
        items: list[Any] = []
        while count := self.block():
            for _ in range(count):
                items.append(self.read(writer["items"], reader["items"]))  # noqa: PERF401
        return items

    def read_map(self, writer: Schema, reader: Schema) -> dict[str, Any]:
        items = {}
        while count := self.block():
            for _ in range(count):
                key = self.read("string", "string")
                items[key] = self.read(writer["values"], reader["values"])
        return items

    def read_record(self, writer: Schema, reader: Schema) -> dict[str, Any]:
        ours = {each["name"]: each for each in reader["fields"]}
        record = {}
        for each in writer["fields"]:
            name, theirs = each["name"], each["type"]
            if name in ours:
                record[name] = self.read(theirs, ours.pop(name)["type"])
            else:
                self.read(theirs, "bytes" if theirs == "string" else theirs)
        return record | {name: each["default"] for name, each in ours.items()}


def interpreted(writer: Schema, reader: Schema, data: bytes, definitions: dict[str, Schema]) -> str:
    """Return the interpreter's verdict: the value and where it ends as text, so that NaN and types are compared too."""
    interpreter = Interpreter(data, definitions)
    try:
        value = interpreter.read(writer, reader)
    except Bad:
        return "no datum"
    except NoPlace:
        return "no place"
    return f"{value!r} to {interpreter.at}"


def assert_same_verdicts(
    writer: Schema, reader: Schema, values: list[bytes], definitions: dict[str, Schema] | None = None
) -> None:
    """Assert that the generated reader and the interpreter have the same verdict on each of `values`."""
    read = compile_reader(parse(writer), parse(reader))
    for data in values:
        try:
            value, end = read(data, 0)
            verdict = f"{value!r} to {end}" if end <= len(data) else "no datum"
        except Unresolvable:
            verdict = "no place"
        except (ValueError, IndexError, OverflowError, struct.error):
            verdict = "no datum"
        assert verdict == interpreted(writer, reader, data, definitions or {}), data.hex()


def damaged(data: bytes, places: list[tuple[int, int]]) -> list[bytes]:
    """Return `data`, all its truncations, a longer one, and one with each of `places` (byte, bit) flipped."""
    flips = [(byte % len(data), bit) for byte, bit in places] if data else []
    flipped = [data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :] for byte, bit in flips]
    return [data, data + b"\x00", *flipped, *(data[:end] for end in range(len(data)))]


PLACES = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 7)), min_size=20, max_size=40)


@given(evolutions(), PLACES, st.binary(max_size=60))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_of_any_pair_of_schemas_have_the_same_verdict(
    generated: tuple[Any, Any, Any], places: list[tuple[int, int]], noise: bytes
) -> None:
    """Valid, cut and damaged data, and random bytes, have the same verdict under any pair of schemas."""
    writer, reader, value = generated
    assert_same_verdicts(writer, reader, [noise, *damaged(written(writer, value), places)])


NODE = avro.record(
    "Node",
    id="string",
    left=["null", "Node"],
    kind=["string", "null"],
    all=avro.array("Node"),
    by=avro.map_of(["Node", "long"]),
)
LEAF: dict[str, Any] = {"id": "leaf", "left": None, "kind": None, "all": [], "by": {}}
TREE = {**LEAF, "left": LEAF, "kind": "tree", "all": [LEAF, {**LEAF, "by": {"x": LEAF, "y": 300}}]}


@given(PLACES)
@settings(max_examples=50, deadline=None)
def test_a_schema_that_holds_itself(places: list[tuple[int, int]]) -> None:
    """Data of a schema that holds itself, through an optional, an array and a map, has the same verdict,
    whether all of it is read or only the array."""
    part = {**NODE, "fields": [NODE["fields"][3], avro.field("new", "int", default=1)]}
    values = damaged(written(NODE, TREE), places)
    assert_same_verdicts(NODE, NODE, values, {"Node": NODE})
    read = compile_reader(parse(NODE), parse(part))
    assert read(values[0], 0) == (
        {"all": [{"all": [], "new": 1}, {"all": [], "new": 1}], "new": 1},
        len(values[0]),
    )


WIDE = avro.record(
    "R",
    colours=avro.array(avro.enum("E", "A", "B")),
    plain=["null", "int"],
    some=avro.array(["null", "string", "long"]),
    note=["string", "null"],
)
NARROW = avro.record(
    "R",
    note="string",
    some=avro.array(["string", "null"]),
    plain="long",
    colours=avro.array(avro.enum("E", "B")),
)


@given(
    st.fixed_dictionaries(
        {
            "colours": st.lists(st.sampled_from("AB"), max_size=2),
            "plain": st.none() | st.just(7),
            "some": st.lists(st.none() | st.just("x") | st.just(300), max_size=3),
            "note": st.none() | st.just("y"),
        }
    ),
    PLACES,
)
@settings(max_examples=200, deadline=None)
def test_branches_and_symbols_without_a_place(value: dict[str, Any], places: list[tuple[int, int]]) -> None:
    """A branch or symbol without a place is told from bad bytes, whichever of the two comes first."""
    assert_same_verdicts(WIDE, NARROW, damaged(written(WIDE, value), places))


EVENT = {
    "event_id": "e-1",
    "event_type": "order_completed",
    "occurred_at": 1_760_000_000_000,
    "channel": "WEB",
    "page_url": "https://shop.example.com/thanks?" + "x" * 80,
    "customer": {"emails": ["jané@example.com"], "phones": ["+1", "+2"], "user_agent": "Mozilla/5.0 " * 8},
    "order": {"total": "27.50", "items": [{"sku": "007"}, {"name": "Schuh", "quantity": 300}]},
    "device": {"wifi": True},
}


@given(PLACES)
@settings(max_examples=20, deadline=None)
def test_the_packaged_schema(places: list[tuple[int, int]]) -> None:
    """The readers that nearly every record goes through have the same verdict: of the packaged schema, and of
    one without its last fields."""
    ours = json.loads((Path(__file__).parents[2] / "schemas" / "commerce_event.avsc").read_text("utf-8"))
    older = {**ours, "fields": ours["fields"][:-4]}
    for writer in (ours, older):
        assert_same_verdicts(writer, ours, damaged(written(writer, EVENT), places))


def record(*types: Schema) -> Schema:
    """Return the schema of a record whose fields have these types."""
    return avro.numbered("R", *types)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x80\x00", b"\x02", b"\x82\x00", b"\x01\x00", b"\x82\x80\x80\x00"]
)
@pytest.mark.parametrize(
    "rest", [b"", b"\x00", b"\x02\x02", b"\x02a\x00", b"\x82\x00a\x00", b"\x80\x80\x00" * 3]
)
@pytest.mark.parametrize(
    "kind",
    [
        "null",
        "boolean",
        "int",
        "long",
        "string",
        "bytes",
        avro.enum("E", "A", "B"),
        {"type": "enum", "name": "E", "symbols": [f"S{n}" for n in range(100)]},
        ["null", "string"],
        ["string", "null"],
        ["null", "boolean"],
        ["null", avro.array(["string", "null"])],
        ["string", "long"],
        avro.array("string"),
        avro.array(["null", "int"]),
        avro.map_of("int"),
    ],
    ids=str,
)
def test_every_spelling_of_lengths_counts_and_indexes(kind: Schema, data: bytes, rest: bytes) -> None:
    """Lengths, counts and indexes that are spelled too long, negative or cut have the same verdict, read inline
    or by a call."""
    assert_same_verdicts(record(kind, "int"), record(kind, "int"), [data + rest])


@pytest.mark.parametrize("length", [0, 1, 63, 64, 127, 128, 8_191, 8_192, 1 << 20])
def test_text_of_every_length_of_length(length: int) -> None:
    """Text has the same verdict whether its length takes one byte, which is read inline, or more."""
    schema = record("string", ["null", "string"], "bytes", avro.array("string"))
    text = "x" * length
    data = written(schema, {"f0": text, "f1": text, "f2": text.encode(), "f3": [text]})
    assert_same_verdicts(schema, schema, [data, data[:-1], data[:-2]])
