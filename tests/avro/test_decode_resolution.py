"""Schema resolution, rule by rule of the Avro specification."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import fastavro
import pytest

from consumer.avro.reading import Unresolvable
from consumer.avro.resolution import Incompatible, compile_reader
from consumer.avro.schema import InvalidSchema, outline, parse

Schema = Any


def record(*fields: Schema, name: str = "shop.Event", **more: Any) -> Schema:
    """Return a record schema."""
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name: str, kind: Schema, **more: Any) -> Schema:
    """Return a field of a record schema."""
    return {"name": name, "type": kind, **more}


def enum(*symbols: str, name: str = "Colour", **more: Any) -> Schema:
    """Return an enum schema."""
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def read(writer: Schema, reader: Schema, value: Any) -> Any:
    """Write `value` with `writer` by fastavro, without logical types, and return it as read with `reader`."""
    out = io.BytesIO()
    node = parse(writer)
    fastavro.schemaless_writer(out, fastavro.parse_schema(outline(node)), value)
    data = out.getvalue()
    result, end = compile_reader(node, parse(reader))(data, 0)
    assert end == len(data)
    return result


def test_fields_match_by_name_in_any_order() -> None:
    """Fields are matched by name, in whatever order the writer has them."""
    writer = record(field("a", "int"), field("b", "string"))
    reader = record(field("b", "string"), field("a", "int"))
    assert read(writer, reader, {"a": 1, "b": "x"}) == {"a": 1, "b": "x"}


def test_fields_of_the_writer_only_are_read_over() -> None:
    """Fields of any type that only the writer has are skipped, and the fields behind them are read."""
    inner = record(field("q", {"type": "array", "items": ["null", "double"]}), name="Inner")
    extra = [
        field("x1", inner),
        field("x2", {"type": "map", "values": "bytes"}),
        field("x3", enum("A", "B")),
        field("x4", {"type": "fixed", "name": "F", "size": 3}),
        field("x5", ["null", "string", "long"]),
        field("x6", "float"),
        field("x7", "string"),
    ]
    value = {
        "x1": {"q": [1.5, None]},
        "x2": {"k": b"v"},
        "x3": "B",
        "x4": b"abc",
        "x5": 2**40,
        "x6": 1.0,
        "x7": "ü",
        "id": "e",
    }
    assert read(record(*extra, field("id", "string")), record(field("id", "string")), value) == {"id": "e"}


def test_fields_of_the_reader_only_take_their_default() -> None:
    """Fields of any type that only the reader has take their default; the text of a default for bytes is code
    points, and records are filled with the defaults of their fields."""
    reader = record(
        field("i", "int", default=7),
        field("d", "double", default=1),
        field("b", "bytes", default="\u00ff\u0000"),
        field("f", {"type": "fixed", "name": "F", "size": 2}, default="ab"),
        field("e", enum("A", "B"), default="B"),
        field("n", ["null", "string"], default=None),
        field("u", ["string", "null"], default="x"),
        field("late", ["null", "string"], default="of the second branch, as 1.12 allows"),
        field("list", {"type": "array", "items": "int"}, default=[1, 2]),
        field("map", {"type": "map", "values": "long"}, default={"k": 1}),
        field("r", record(field("z", "int", default=9), field("y", "string"), name="R"), default={"y": "q"}),
        field(
            "amount",
            {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2},
            default="\u0001",
        ),
    )
    assert read(record(field("gone", "int")), reader, {"gone": 1}) == {
        "i": 7,
        "d": 1.0,
        "b": b"\xff\x00",
        "f": b"ab",
        "e": "B",
        "n": None,
        "u": "x",
        "late": "of the second branch, as 1.12 allows",
        "list": [1, 2],
        "map": {"k": 1},
        "r": {"z": 9, "y": "q"},
        "amount": Decimal("0.01"),
    }


def test_default_values_are_fresh_for_each_record() -> None:
    """A default that can be changed is made anew for each record: events are mutable."""
    reader = record(
        field("list", {"type": "array", "items": "int"}, default=[]),
        field("full", {"type": "array", "items": {"type": "map", "values": "int"}}, default=[{"a": 1}]),
    )
    compiled = compile_reader(parse(record(field("x", "null"))), parse(reader))
    (first, _), (second, _) = compiled(b"", 0), compiled(b"", 0)
    first["list"].append(1)
    first["full"][0]["a"] = 2
    assert second == {"list": [], "full": [{"a": 1}]}


@pytest.mark.parametrize(
    ("kind", "default"),
    [("int", "1"), ("int", True), ("int", 2**31), ("string", 1), (["null", "int"], "x"), (enum("A"), "B")],
)
def test_a_default_that_is_no_value_of_its_type_is_the_schemas_fault(kind: Schema, default: Any) -> None:
    """A reader's default that is no value of its type makes the schema invalid."""
    with pytest.raises(InvalidSchema, match="default of field a"):
        compile_reader(parse(record(field("x", "int"))), parse(record(field("a", kind, default=default))))


def test_a_wrong_default_of_the_writer_is_no_matter() -> None:
    """A wrong default in the writer's schema is accepted, since only the reader's defaults are used."""
    assert read(record(field("a", "int", default="x")), record(field("a", "int")), {"a": 1}) == {"a": 1}


def test_a_field_without_default_that_is_not_written_is_incompatible() -> None:
    """A field without a default that the writer lacks makes the schemas incompatible, and the reason names the
    field."""
    with pytest.raises(Incompatible, match=r"shop\.Event\.b is not written"):
        compile_reader(parse(record(field("a", "int"))), parse(record(field("b", "int"))))


def test_the_path_of_a_nested_mismatch_is_named() -> None:
    """The reason for a mismatch names the path of the nested field."""
    writer = record(field("order", ["null", record(field("total", "int"), name="Order")]))
    reader = record(field("order", record(field("total", "string"), name="Order")))
    with pytest.raises(Incompatible, match=r"field shop\.Event\.order: .*Order\.total: int .* string"):
        compile_reader(parse(writer), parse(reader))


def test_aliases_of_fields_records_enums_and_fixed() -> None:
    """The reader's aliases of fields, records, enums and fixed types match the writer's names, at any depth."""
    writer = record(
        field("old", record(field("was", enum("A", name="OldColour")), name="Old")),
        field("raw", {"type": "fixed", "name": "other.Hash", "size": 1}),
        name="shop.OldEvent",
    )
    reader = record(
        field(
            "new",
            record(
                field("now", enum("A", aliases=["OldColour"]), aliases=["x", "was"]),
                name="New",
                aliases=["Old"],
            ),
            aliases=["old"],
        ),
        field("raw", {"type": "fixed", "name": "Digest", "size": 1, "aliases": ["other.Hash"]}),
        aliases=["OldEvent"],
    )
    assert read(writer, reader, {"old": {"was": "A"}, "raw": b"\x01"}) == {
        "new": {"now": "A"},
        "raw": b"\x01",
    }


def test_a_name_goes_before_an_alias() -> None:
    """A field that the writer has by name is not taken from another field that an alias names."""
    writer = record(field("a", "int"), field("b", "int"))
    reader = record(field("b", "int", aliases=["a"]), field("c", "int", aliases=["a"], default=0))
    assert read(writer, reader, {"a": 1, "b": 2}) == {"b": 2, "c": 1}


def test_fields_can_swap_names_by_alias() -> None:
    """Two fields that name each other as aliases both keep their names: an alias only takes a name that is free."""
    writer = record(field("a", "int"), field("b", "int"))
    reader = record(field("b", "int", aliases=["a"]), field("a", "int", aliases=["b"]))
    assert read(writer, reader, {"a": 1, "b": 2}) == {"a": 1, "b": 2}


def test_records_match_by_unqualified_name() -> None:
    """Records match by their name without the namespace."""
    fields = [field("a", "int")]
    assert read(record(*fields, name="v1.Event"), record(*fields, name="v2.Event"), {"a": 1}) == {"a": 1}


def test_records_of_different_names_are_incompatible() -> None:
    """Records of different names are incompatible, as in the specification: only an alias makes them the same."""
    with pytest.raises(Incompatible, match=r"shop\.Event cannot be read as shop\.Other"):
        compile_reader(parse(record(name="shop.Event")), parse(record(name="shop.Other")))


@pytest.mark.parametrize(
    ("writer", "reader", "value", "expected"),
    [
        ("int", "long", 5, 5),
        ("int", "float", 5, 5.0),
        ("int", "double", -5, -5.0),
        ("long", "float", 2**40, float(2**40)),
        ("long", "double", 2**40, float(2**40)),
        ("float", "double", 1.5, 1.5),
        ("string", "bytes", "ü", b"\xc3\xbc"),
        ("bytes", "string", b"\xc3\xbc", "ü"),
    ],
)
def test_promotions(writer: str, reader: str, value: Any, expected: Any) -> None:
    """Each promotion of the specification gives the exact Python type."""
    result = read(writer, reader, value)
    assert result == expected
    assert type(result) is type(expected)


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
KINDS: list[Schema] = [
    *("null", "boolean", "int", "long", "float", "double", "bytes", "string"),
    {"type": "array", "items": "int"},
    {"type": "map", "values": "int"},
    enum("A"),
    {"type": "fixed", "name": "F", "size": 1},
    record(name="R"),
]


@pytest.mark.parametrize("writer", KINDS, ids=str)
@pytest.mark.parametrize("reader", KINDS, ids=str)
def test_nothing_else_resolves(writer: Schema, reader: Schema) -> None:
    """Two types that are neither the same nor a promotion are incompatible."""
    allowed = writer is reader or (isinstance(writer, str) and (writer, str(reader)) in PROMOTIONS)
    if allowed:
        compile_reader(parse(writer), parse(reader))
        return
    with pytest.raises(Incompatible):
        compile_reader(parse(writer), parse(reader))


def test_fixed_of_another_size_is_incompatible() -> None:
    """Fixed types are incompatible unless both size and name match."""
    fixed = {"type": "fixed", "name": "F", "size": 1}
    with pytest.raises(Incompatible):
        compile_reader(parse(fixed), parse({**fixed, "size": 2}))


def test_a_union_is_read_as_a_single_type() -> None:
    """A union is read as a single type if the datum's branch matches; data of another branch is refused."""
    assert read(["null", "int"], "long", 5) == 5
    with pytest.raises(Unresolvable, match="null"):
        read(["null", "int"], "long", None)


def test_a_single_type_is_read_as_a_union() -> None:
    """A single type is read as the branch of the reader's union that it matches."""
    assert read("int", ["null", "long"], 5) == 5
    with pytest.raises(Incompatible, match="string is none of null, long"):
        compile_reader(parse("string"), parse(["null", "long"]))


def test_unions_are_matched_branch_by_branch() -> None:
    """Unions match branch by branch when reordered, extended or promoted; a branch without a match is refused
    only in data that uses it."""
    reader = ["string", "double", "null"]
    writer = ["null", "string", "int", "boolean"]
    assert [read(writer, reader, value) for value in (None, "x", 5)] == [None, "x", 5.0]
    with pytest.raises(Unresolvable, match="boolean is none of"):
        read(writer, reader, True)


def test_unions_without_a_common_branch_are_incompatible() -> None:
    """Unions without a common branch are incompatible, since no datum could be read."""
    with pytest.raises(Incompatible):
        compile_reader(parse(["boolean", "string"]), parse(["int", "null"]))


def test_an_exact_branch_goes_before_a_promotion() -> None:
    """An exact match goes before a promotion: an int stays an int though a double comes first (as in Java), and
    a record goes to the branch of its own name."""
    assert type(read("int", ["null", "double", "int"], 5)) is int
    assert read("bytes", ["string", "bytes"], b"\xff") == b"\xff"
    near, exact = record(field("a", "int"), name="x.R"), record(field("b", "int", default=0), name="y.R")
    assert read(record(field("a", "int"), name="y.R"), [near, exact], {"a": 1}) == {"b": 0}


def test_enum_symbols() -> None:
    """Reordered symbols keep their meaning; unknown ones take the reader's default, also inside unions."""
    ours = enum("UNKNOWN", "RED", default="UNKNOWN")
    assert read(enum("RED", "BLUE"), ours, "RED") == "RED"
    assert read(enum("RED", "BLUE"), ours, "BLUE") == "UNKNOWN"
    assert read(["null", enum("RED", "BLUE")], ["null", ours], "BLUE") == "UNKNOWN"
    assert read(
        {"type": "array", "items": enum("RED", "BLUE")}, {"type": "array", "items": ours}, ["BLUE"]
    ) == ["UNKNOWN"]


def test_an_unknown_symbol_without_a_default_is_refused() -> None:
    """An unknown symbol without a default is refused only in data that uses it. The message does not name it,
    since it is data."""
    assert read(enum("RED", "BLUE"), enum("RED"), "RED") == "RED"
    with pytest.raises(Unresolvable, match=r"Colour lacks") as caught:
        read(enum("RED", "BLUE"), enum("RED"), "BLUE")
    assert "BLUE" not in str(caught.value)
    with pytest.raises(Incompatible, match="shares no symbol"):
        compile_reader(parse(enum("BLUE")), parse(enum("RED")))


def test_the_default_of_the_writers_enum_is_not_used() -> None:
    """For an unknown symbol the default of the reader's enum is used, not the writer's."""
    with pytest.raises(Unresolvable):
        read(enum("RED", "BLUE", default="RED"), enum("RED"), "BLUE")


def test_recursive_schemas() -> None:
    """Records that hold lists of themselves are read, with a field that the reader adds at each level."""
    writer = record(field("v", "int"), field("next", ["null", "Node"]), name="Node")
    reader = record(
        field("v", "long"), field("next", ["null", "Node"]), field("n", "int", default=0), name="Node"
    )
    value = {"v": 1, "next": {"v": 2, "next": None}}
    assert read(writer, reader, value) == {"v": 1, "n": 0, "next": {"v": 2, "n": 0, "next": None}}


def test_mutually_recursive_schemas_with_a_dropped_field() -> None:
    """Records that refer to each other are read, without a recursive field that the reader lacks."""
    tree = record(
        field("leaves", {"type": "array", "items": record(field("tree", ["null", "Tree"]), name="Leaf")}),
        field("extra", {"type": "map", "values": "Leaf"}),
        name="Tree",
    )
    slim = record(
        field("leaves", {"type": "array", "items": record(field("tree", ["null", "Tree"]), name="Leaf")}),
        name="Tree",
    )
    value = {
        "leaves": [{"tree": {"leaves": [], "extra": {}}}, {"tree": None}],
        "extra": {"k": {"tree": {"leaves": [], "extra": {}}}},
    }
    assert read(tree, slim, value) == {"leaves": [{"tree": {"leaves": []}}, {"tree": None}]}


def test_one_named_type_in_several_places() -> None:
    """A named type is referred to by short and by full name, inside and outside its namespace."""
    money = record(field("amount", "string"), name="Money", namespace="pay")
    schema = record(
        field("a", money),
        field("b", ["null", "pay.Money"]),
        field("c", {"type": "array", "items": {"type": "pay.Money"}}),
        name="Event",
        namespace="shop",
    )
    value = {"a": {"amount": "1"}, "b": {"amount": "2"}, "c": [{"amount": "3"}]}
    assert read(schema, schema, value) == value


@pytest.mark.parametrize(
    ("writer", "reader", "value", "expected"),
    [
        ("timestamp-micros", "timestamp-millis", 1_760_000_000_123_999, 1_760_000_000_123),
        ("timestamp-micros", "timestamp-millis", -1, -1),
        ("timestamp-millis", "timestamp-micros", 1_760_000_000_123, 1_760_000_000_123_000),
        ("timestamp-nanos", "timestamp-millis", 1_999_999, 1),
        ("local-timestamp-micros", "local-timestamp-millis", 1_999, 1),
        ("timestamp-millis", "timestamp-millis", 5, 5),
        ("timestamp-millis", None, 5, 5),
        (None, "timestamp-millis", 5, 5),
        ("unheard-of", "timestamp-millis", 5, 5),
    ],
)
def test_units_of_time_are_converted_to_ours(
    writer: str | None, reader: str | None, value: int, expected: int
) -> None:
    """Times are converted to the reader's unit exactly, rounding down; without a unit on either side the number
    stays."""

    def long(name: str | None) -> Schema:
        return "long" if name is None else {"type": "long", "logicalType": name}

    assert read(long(writer), long(reader), value) == expected
    assert read(["null", long(writer)], ["null", long(reader)], value) == expected


def test_time_of_day_is_converted_over_a_promotion() -> None:
    """A time of day is converted although time-millis is an int and time-micros a long."""
    millis = {"type": "int", "logicalType": "time-millis"}
    micros = {"type": "long", "logicalType": "time-micros"}
    assert read(millis, micros, 86_399_999) == 86_399_999_000


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        ({"type": "int", "logicalType": "date"}, {"type": "long", "logicalType": "timestamp-millis"}),
        ({"type": "int", "logicalType": "time-millis"}, {"type": "long", "logicalType": "timestamp-millis"}),
        (
            {"type": "long", "logicalType": "local-timestamp-millis"},
            {"type": "long", "logicalType": "timestamp-millis"},
        ),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4}, "string"),
    ],
)
def test_different_meanings_are_incompatible(writer: Schema, reader: Schema) -> None:
    """Logical types of different meanings are incompatible: the number would be read, and be wrong."""
    with pytest.raises(Incompatible):
        compile_reader(parse(writer), parse(reader))


def decimal(precision: int, scale: int = 0, **more: Any) -> Schema:
    """Return the schema of a decimal over bytes."""
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale, **more}


def test_decimals_are_exact() -> None:
    """Decimals are read exactly, as big-endian two's complement with sign and scale."""
    assert read(decimal(6, 2), decimal(6, 2), b"\x0a\xbe") == Decimal("27.50")
    assert str(read(decimal(6, 2), decimal(6, 2), b"\x0a\xbe")) == "27.50"
    assert read(decimal(6, 2), decimal(6, 2), b"\xff") == Decimal("-0.01")
    assert read(decimal(60, 2), decimal(60, 2), (10**59 + 1).to_bytes(26, "big")) == Decimal(
        "1" + 56 * "0" + "0.01"
    )
    fixed = {"type": "fixed", "name": "D", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 2}
    assert read(fixed, fixed, b"\x00\x00\x0a\xbe") == Decimal("27.50")


def test_decimals_are_rescaled_exactly_or_refused() -> None:
    """A decimal is brought to the reader's scale exactly, or refused if digits would be lost."""
    assert str(read(decimal(6, 2), decimal(8, 4), b"\x0a\xbe")) == "27.5000"
    assert str(read(decimal(6, 2), decimal(6, 1), b"\x0a\xbe")) == "27.5"
    with pytest.raises(Unresolvable, match="scale of 0"):
        read(decimal(6, 2), decimal(6, 0), b"\x0a\xbe")
    with pytest.raises(Unresolvable):
        read(decimal(6, 2), decimal(4, 4), b"\x0a\xbe")


def test_a_decimal_beyond_its_precision_is_no_datum() -> None:
    """A decimal with more digits than its precision is refused."""
    with pytest.raises(ValueError, match="precision"):
        read(decimal(2), decimal(2), b"\x00\xff")


def test_uuids_are_text() -> None:
    """UUIDs over string and over fixed are read as text."""
    text = "89791762-2336-4186-9674-299b90a802e2"
    over_string = {"type": "string", "logicalType": "uuid"}
    over_fixed = {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}
    assert read(over_string, over_string, text) == text
    assert read(over_fixed, over_fixed, bytes.fromhex(text.replace("-", ""))) == text
