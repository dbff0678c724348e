"""Hostile bytes and schemas: none raises, hangs, or takes memory for data that is only claimed."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.reading import MAX_ITEMS
from consumer.avro.schema import MAX_VALUES_PER_DATUM
from consumer.engine.model import Record, Rejection, SchemaRef
from tests.support import avro
from tests.support.avro import numbered as record
from tests.support.avro import zigzag

SEVEN = SchemaRef("id", "7")
PREFIX = b"\x00\x00\x00\x00\x07"


def decode(kind: Any, data: bytes) -> object:
    """Return what `data` decodes to as the only field of a record."""
    schema = avro.record("E", v=kind)
    decoder = Decoder(OneSchema(schema))
    assert decoder.add_schema(SEVEN, schema) is None
    return decoder.decode(Record(0, -1, None, PREFIX + data, ()))


ENUM = avro.enum("C", "A", "B")
INTS = avro.array("int")
FIXED = avro.fixed("F", 4)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("string", zigzag(2 << 30)),
        ("string", zigzag(2**62) + b"abc"),
        ("string", zigzag(-3) + b"abc"),
        ("string", zigzag(-(2**63))),
        ("string", b"\x04\xff\xfe"),
        ("string", b"\x06\xed\xa0\x80"),
        (["null", "string"], b"\x02" + zigzag(2**40)),
        (["null", "string"], b"\x02" + zigzag(-1) + b"a"),
        ("bytes", zigzag(2**62)),
        ("bytes", zigzag(-1)),
        (INTS, zigzag(2**60)),
        (INTS, zigzag(-(2**60)) + zigzag(9)),
        (INTS, zigzag(-(2**63)) + zigzag(9) + b"\x02"),
        (INTS, zigzag(-1) + zigzag(-9) + b"\x02\x00"),
        (avro.array(FIXED), zigzag(2**60)),
        (avro.array("float"), zigzag(2**60) + b"abcd"),
        (avro.array("string"), zigzag(2**60) + zigzag(2**61)),
        (avro.map_of("null"), zigzag(2**62)),
        (avro.map_of("null"), zigzag(2**62) + zigzag(2**61)),
        (ENUM, zigzag(2)),
        (ENUM, zigzag(-1)),
        (ENUM, zigzag(2**62)),
        (["null", "int"], zigzag(2)),
        (["null", "int"], zigzag(-1) + b"\x02"),
        (["null", "int"], b"\x82\x00\x02"),  # a longer spelling of 1
        (["null", "int", "string"], zigzag(-1) + b"\x02a"),
        (["int", "string"], zigzag(2**62)),
        ("long", b"\xff" * 9 + b"\x02"),
        ("long", b"\xff" * 10 + b"\x01"),
        ("long", b"\x80" * 1_000_000),
        ("int", zigzag(2**31)),
        ("int", zigzag(-(2**31) - 1)),
        ("boolean", b"\x02"),
        ("boolean", b""),
        ("float", b"\x00\x00\x00"),
        ("double", b"\x00" * 7),
        (FIXED, b"\x00\x00\x00"),
        (avro.logical("bytes", "decimal", precision=4), zigzag(500_000) + b"\x7f" * 500_000),
    ],
)
def test_lies_about_lengths_and_indexes_are_undecodable(kind: Any, data: bytes) -> None:
    """Lengths and indexes that lie are undecodable, which is found out quickly."""
    started = time.thread_time()
    verdict = decode(kind, data)
    assert isinstance(verdict, Rejection)
    assert verdict.code == "undecodable"
    assert time.thread_time() - started < 2


def test_a_claimed_length_allocates_nothing() -> None:
    """A length of two gigabytes without the data allocates no memory for it."""
    tracemalloc.start()
    try:
        decode("bytes", zigzag(2 << 30))
        decode(INTS, zigzag(2**60))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_data_nested_too_deeply_are_undecodable(depth: int) -> None:
    """Data nested ten thousand or a million levels deep, in records or in an array, is undecodable; the process
    survives."""
    chain = avro.record("N", next=["null", "N"])
    tree = avro.record("N", n=avro.array("N"))
    for schema, data in ((chain, b"\x02" * depth + b"\x00"), (tree, b"\x02" * depth + b"\x00" * (depth + 1))):
        decoder = Decoder(OneSchema(schema))
        decoder.add_schema(SEVEN, schema)
        verdict = decoder.decode(Record(0, -1, None, PREFIX + data, ()))
        assert isinstance(verdict, Rejection)
        assert verdict.code == "undecodable"
        assert "RecursionError" in verdict.message


def test_data_nested_a_hundred_deep_are_read() -> None:
    """Data nested a hundred levels deep is read."""
    chain = avro.record("N", next=["null", "N"])
    decoder = Decoder(OneSchema(chain))
    decoder.add_schema(SEVEN, chain)
    event = decoder.decode(Record(0, -1, None, PREFIX + b"\x02" * 100 + b"\x00", ()))
    for _ in range(101):
        assert isinstance(event, dict)
        event = event["next"]
    assert event is None


def test_what_is_really_there_is_read() -> None:
    """Arrays of several blocks or with a size, a big map, NaN, the least and the largest long, and a longer
    spelling of an index are read."""
    assert decode(INTS, zigzag(-2) + zigzag(2) + b"\x02\x04" + b"\x02\x06" + b"\x00") == {"v": [1, 2, 3]}
    keys = 100_000
    data = zigzag(keys) + b"".join(b"\x0c%06d\x02" % number for number in range(keys)) + b"\x00"
    event = decode(avro.map_of("int"), data)
    assert isinstance(event, dict)
    assert len(event["v"]) == keys
    nan = decode("double", b"\x00\x00\x00\x00\x00\x00\xf8\x7f")
    assert isinstance(nan, dict)
    assert nan["v"] != nan["v"]
    assert decode("long", zigzag(-(2**63))) == {"v": -(2**63)}
    assert decode("long", zigzag(2**63 - 1)) == {"v": 2**63 - 1}
    assert decode(ENUM, b"\x82\x00") == {"v": "B"}  # a longer spelling of 1, which Avro allows
    decoder = Decoder(OneSchema(avro.record("E", v="int")))
    decoder.add_schema(SEVEN, avro.record("E", skipped="string", v="int"))
    assert decoder.decode(Record(0, -1, None, PREFIX + b"\x02\xff\x02", ())) == {
        "v": 1
    }  # not text, and not asked for


def doubling(levels: int) -> Any:
    """Return the schema of a record of 2^`levels` nulls, which take no bytes."""
    kind: Any = "null"
    for level in range(levels):
        kind = record(f"L{level}", kind, f"L{level - 1}" if level else "null")
    return kind


@pytest.mark.parametrize(
    "kind",
    [
        avro.array("null"),
        avro.array(avro.fixed("F", 0)),
        avro.array(record("Empty")),
        avro.map_of(avro.array(record("Nulls", "null", "null"))),
        ["null", avro.array("null")],
        doubling(40),
        record("Wide", *["null"] * (MAX_VALUES_PER_DATUM + 1)),
        record("Endless", "Endless"),
        record("Paid", "double", "Paid"),
    ],
    ids=[
        "nulls",
        "fixed0",
        "empty",
        "in a map",
        "in a union",
        "doubling",
        "wide",
        "endless",
        "endless with bytes",
    ],
)
def test_schemas_whose_data_have_no_bound_are_refused(kind: Any) -> None:
    """A schema whose data may be endless is refused: an array of items of no bytes, which can claim 2^62 of
    them, and a record that always holds itself."""
    decoder = Decoder(OneSchema(record("E", "string")))
    started = time.thread_time()
    verdict = decoder.add_schema(SEVEN, record("E", "string", kind))
    assert verdict is not None
    assert verdict.code == "incompatible_schema"
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    "schema",
    [
        '"' + "x" * (2 << 20) + '"', '{"type":' * 200 + '"int"' + "}" * 200,
        "[" + ",".join(f'{{"type":"fixed","name":"F{n}","size":1}}' for n in range(20_000)) + "]",
        "[" * 5_000 + "]" * 5_000, '{"type": "bytes", "logicalType": "decimal", "precision": 1000000000}',
        '{"type": "fixed", "name": "F", "size": -1}', '{"type": "fixed", "name": "F", "size": 1e9}',
        '{"type": "enum", "name": "C", "symbols": []}', '{"type": "enum", "name": "C", "symbols": ["A", "A"]}',
        '{"type": "enum", "name": "C", "symbols": ["A"], "default": "B"}',
        '{"type": "enum", "name": "C", "symbols": [1]}', '{"type": "record", "name": "E"}',
        '{"type": "record", "name": 5, "fields": []}', '{"type": "record", "name": "E", "fields": [5]}',
        '{"type": "record", "name": "E", "fields": [{"name": "a"}]}',
        '{"type": "record", "name": "E", "fields": [{"name": "a", "type": "int", "aliases": "b"}]}',
        '{"type": "record", "name": "E", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}',
        '["int", "int"]', '["int", ["null"]]', "[]", '{"type": "array"}', '{"type": null}', "5",
    ],
    ids=lambda schema: str(schema)[:40],
)  # fmt: skip
def test_schemas_that_are_none_are_refused_in_bounded_time(schema: str) -> None:
    """A schema that is too large, too deep, or not Avro is refused, each within two seconds."""
    started = time.thread_time()
    verdict = Decoder(OneSchema(record("E", "string"))).add_schema(SEVEN, schema)
    assert isinstance(verdict, Rejection)
    assert verdict.code == "incompatible_schema"
    assert len(verdict.message) < 500
    assert time.thread_time() - started < 2


NOTHINGS = avro.record(
    "Nothings", avro.field("b", "boolean"), *(avro.field(f"n{number}", "null") for number in range(14))
)
"""A record of fifteen fields in one byte: the most fields for a byte that are accepted."""
BOMB = avro.record(
    "E",
    junk=avro.array(NOTHINGS),
    named=avro.map_of(["null", "Nothings"]),
    either=["int", avro.array(avro.array("Nothings"))],
    v="int",
)


@pytest.mark.parametrize("ours", ["lacks it", "has it, and nobody asks for it"])
@pytest.mark.parametrize("field", ["junk", "named", "either"])
def test_what_is_not_wanted_is_read_over_and_not_built(field: str, ours: str) -> None:
    """Many records of one byte each that are not wanted are skipped and not built: a megabyte of them once took
    half a gigabyte. The field behind them is read."""
    count = 60_000
    data = {
        "junk": zigzag(count) + b"\x01" * count + b"\x00" + b"\x00" + b"\x00\x02",
        "named": b"\x00" + zigzag(count // 3) + b"\x00\x02\x01" * (count // 3) + b"\x00" + b"\x00\x02",
        "either": b"\x00\x00\x02\x02" + zigzag(count) + b"\x01" * count + b"\x00\x00",
    }[field] + b"\x0e"
    if ours == "lacks it":
        decoder = Decoder(OneSchema(avro.record("E", v="int")))
    else:
        decoder = Decoder(OneSchema(BOMB, (("v",),)))
    assert decoder.add_schema(SEVEN, BOMB) is None
    record = Record(0, -1, None, PREFIX + data, ())
    tracemalloc.start()
    try:
        event = decoder.decode(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert event == {"v": 7}
    assert peak < 100_000
    assert isinstance(decoder.decode(record._replace(value=(record.value or b"")[:-1])), Rejection)


def test_only_the_keys_that_are_asked_for_are_kept() -> None:
    """Of a map, only the key that the mapping names is kept, and of its value only the field that is named."""
    inner = avro.record("I", *[avro.field(name, "int") for name in "ab"])
    schema = avro.record("E", m=avro.map_of(inner))
    decoder = Decoder(OneSchema(schema, (("m", "k", "b"),)))
    assert decoder.add_schema(SEVEN, schema) is None
    entries = b"".join(bytes([2 * len(key), *key, 2, 4]) for key in (b"j", b"k", b"l"))
    event = decoder.decode(Record(0, -1, None, PREFIX + zigzag(3) + entries + b"\x00", ()))
    assert event == {"m": {"k": {"b": 2}}}


def test_an_array_of_too_many_items_is_refused() -> None:
    """An array of too many items is refused in two steps and in one go. The message names the limit, and no
    more items than that are made."""
    kind = avro.array("boolean")
    assert isinstance(decode(kind, zigzag(MAX_ITEMS) + b"\x01" * MAX_ITEMS + b"\x00"), dict)
    for blocks in (zigzag(MAX_ITEMS + 1), zigzag(MAX_ITEMS) + b"\x01" * MAX_ITEMS + zigzag(1)):
        verdict = decode(kind, blocks + b"\x01" * (MAX_ITEMS + 1) + b"\x00")
        assert isinstance(verdict, Rejection)
        assert (verdict.code, MAX_ITEMS) == ("too_large", 10_000)
        assert "an array of more than 10000 items, in a datum of schema id 7" in verdict.message
