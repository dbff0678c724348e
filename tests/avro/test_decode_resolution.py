"""Schema resolution, rule by rule of the Avro specification."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from consumer.avro.reading import PROMOTIONS, Read, Unresolvable
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import InvalidSchema, outline, parse
from tests.support import avro
from tests.support.avro import array, decimal, field, logical, map_of

Schema = Any


def record(*fields: Schema, name: str = "shop.Event", **more: Any) -> Schema:
    """Return a record schema."""
    return {**avro.record(name, *fields), **more}


def enum(*symbols: str, name: str = "Colour", **more: Any) -> Schema:
    """Return an enum schema."""
    return avro.enum(name, *symbols, **more)


def read(writer: Schema, reader: Schema, value: Any) -> Any:
    """Write `value` with `writer` by fastavro, without logical types, and return it as read with `reader`."""
    node = parse(writer)
    data = avro.written(outline(node), value)
    result, end = resolve(node, parse(reader)).read(data, 0)
    assert end == len(data)
    return result


def ints(*names: str, **aliases: str) -> list[Schema]:
    """Return fields for whole numbers, and such with an alias."""
    return [
        *(field(name, "int") for name in names),
        *(field(name, "int", aliases=[of]) for name, of in aliases.items()),
    ]


INNER = record(field("q", array(["null", "double"])), name="Inner")
EXTRA = [
    field("x1", INNER), field("x2", map_of("bytes")), field("x3", enum("A", "B")), field("x4", avro.fixed("F", 3)),
    field("x5", ["null", "string", "long"]), field("x6", "float"), field("x7", "string"),
]  # fmt: skip
EXTRAS = {
    "x1": {"q": [1.5, None]},
    "x2": {"k": b"v"},
    "x3": "B",
    "x4": b"abc",
    "x5": 2**40,
    "x6": 1.0,
    "x7": "ü",
}
OLD = record(
    field("old", record(field("was", enum("A", name="OldColour")), name="Old")),
    field("raw", avro.fixed("other.Hash", 1)),
    name="shop.OldEvent",
)
NEW_FIELD = field("now", enum("A", aliases=["OldColour"]), aliases=["x", "was"])
NEW = record(
    field("new", record(NEW_FIELD, name="New", aliases=["Old"]), aliases=["old"]),
    field("raw", avro.fixed("Digest", 1, aliases=["other.Hash"])),
    aliases=["OldEvent"],
)
NEAR, EXACT = record(*ints("a"), name="x.R"), record(field("b", "int", default=0), name="y.R")
UNKNOWN = enum("UNKNOWN", "RED", default="UNKNOWN")
COLOURS = enum("RED", "BLUE")
NODE = record(*ints("v"), field("next", ["null", "Node"]), name="Node")
NODE_OF_OURS = record(
    field("v", "long"), field("next", ["null", "Node"]), field("n", "int", default=0), name="Node"
)
LEAVES = field("leaves", array(record(field("tree", ["null", "Tree"]), name="Leaf")))
TREE = record(LEAVES, field("extra", map_of("Leaf")), name="Tree")
BARE_TREE: dict[str, Any] = {"leaves": [], "extra": {}}
MONEY = record(field("amount", "string"), name="Money", namespace="pay")
PAID = record(
    field("a", MONEY), field("b", ["null", "pay.Money"]), field("c", array({"type": "pay.Money"})),
    name="Event", namespace="shop",
)  # fmt: skip
AMOUNTS = {"a": {"amount": "1"}, "b": {"amount": "2"}, "c": [{"amount": "3"}]}
UNION = ["string", "double", "null"]


@pytest.mark.parametrize(
    ("writer", "reader", "value", "expected"),
    [
        # Fields are matched by name, in whatever order; those that only the writer has are read over.
        (record(*ints("a"), field("b", "string")), record(field("b", "string"), *ints("a")), {"a": 1, "b": "x"}, None),
        (record(*EXTRA, field("id", "string")), record(field("id", "string")), {**EXTRAS, "id": "e"}, {"id": "e"}),
        # Only the reader's defaults are used: a wrong one of the writer's is no matter.
        (record(field("a", "int", default="x")), record(*ints("a")), {"a": 1}, None),
        # Our aliases match the writer's names of fields, records, enums and fixed types, at any depth.
        (OLD, NEW, {"old": {"was": "A"}, "raw": b"\x01"}, {"new": {"now": "A"}, "raw": b"\x01"}),
        # A field that is there by name is not taken from another that an alias names, so two may swap their names.
        (record(*ints("a", "b")), record(*ints(b="a"), field("c", "int", aliases=["a"], default=0)), {"a": 1, "b": 2},
         {"b": 2, "c": 1}),
        (record(*ints("a", "b")), record(*ints(b="a", a="b")), {"a": 1, "b": 2}, None),
        # The name without the namespace is enough.
        (record(*ints("a"), name="v1.Event"), record(*ints("a"), name="v2.Event"), {"a": 1}, None),
        # A union is read as a single type, and a single type as a branch of a union.
        (["null", "int"], "long", 5, 5),
        ("int", ["null", "long"], 5, 5),
        # Branches may be in another order, more, and promoted.
        *((["null", "string", "int", "boolean"], UNION, value, value) for value in (None, "x")),
        (["null", "string", "int", "boolean"], UNION, 5, 5.0),
        # An exact match goes before a promotion (as in Java), and before a name without its namespace.
        ("int", ["null", "double", "int"], 5, 5),
        ("bytes", ["string", "bytes"], b"\xff", b"\xff"),
        (record(*ints("a"), name="y.R"), [NEAR, EXACT], {"a": 1}, {"b": 0}),
        # Symbols keep their meaning in another order; unknown ones take the reader's default, also inside unions.
        (COLOURS, UNKNOWN, "RED", "RED"),
        (COLOURS, UNKNOWN, "BLUE", "UNKNOWN"),
        (["null", COLOURS], ["null", UNKNOWN], "BLUE", "UNKNOWN"),
        (array(COLOURS), array(UNKNOWN), ["BLUE"], ["UNKNOWN"]),
        (COLOURS, enum("RED"), "RED", "RED"),
        # Records that hold themselves or each other, with a field more or less at each level.
        (NODE, NODE_OF_OURS, {"v": 1, "next": {"v": 2, "next": None}},
         {"v": 1, "n": 0, "next": {"v": 2, "n": 0, "next": None}}),
        (TREE, record(LEAVES, name="Tree"), {"leaves": [{"tree": BARE_TREE}, {"tree": None}],
         "extra": {"k": {"tree": BARE_TREE}}}, {"leaves": [{"tree": {"leaves": []}}, {"tree": None}]}),
        # A named type is referred to by short and by full name, inside and outside its namespace.
        (PAID, PAID, AMOUNTS, AMOUNTS),
        # The promotions.
        ("int", "long", 5, 5),
        ("int", "float", 5, 5.0),
        ("int", "double", -5, -5.0),
        ("long", "float", 2**40, float(2**40)),
        ("long", "double", 2**40, float(2**40)),
        ("float", "double", 1.5, 1.5),
        ("string", "bytes", "ü", b"\xc3\xbc"),
        ("bytes", "string", b"\xc3\xbc", "ü"),
        # A time of day is converted although time-millis is an int and time-micros a long.
        (logical("int", "time-millis"), logical("long", "time-micros"), 86_399_999, 86_399_999_000),
    ],
)  # fmt: skip
def test_what_is_read_as_the_specification_says(
    writer: Schema, reader: Schema, value: Any, expected: Any
) -> None:
    """Fields, aliases, names, unions, symbols and promotions give the exact Python value (None: the written one)."""
    result = read(writer, reader, value)
    expected = value if expected is None else expected
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("writer", "reader", "message"),
    [
        # The reason for a mismatch names the path of the field.
        (record(*ints("a")), record(*ints("b")), r"shop\.Event\.b is not written"),
        (record(field("order", ["null", record(*ints("total"), name="Order")])),
         record(field("order", record(field("total", "string"), name="Order"))),
         r"field shop\.Event\.order: .*Order\.total: int .* string"),
        # As in the specification, only an alias makes records of different names the same.
        (record(name="shop.Event"), record(name="shop.Other"), r"shop\.Event cannot be read as shop\.Other"),
        (avro.fixed("F", 1), avro.fixed("F", 2), "F cannot be read as F"),
        ("string", ["null", "long"], "string is none of null, long"),
        (["boolean", "string"], ["int", "null"], "boolean is none of int, null"),
        (enum("BLUE"), enum("RED"), "shares no symbol"),
        # Logical types of different meanings: the number would be read, and be wrong.
        (logical("int", "date"), logical("long", "timestamp-millis"), "cannot be read as"),
        (logical("int", "time-millis"), logical("long", "timestamp-millis"), "cannot be read as"),
        (logical("long", "local-timestamp-millis"), logical("long", "timestamp-millis"), "cannot be read as"),
        (decimal(4), "string", "cannot be read as"),
    ],
)  # fmt: skip
def test_what_is_incompatible(writer: Schema, reader: Schema, message: str) -> None:
    """Schemas of which no datum could be read, or one with a wrong meaning, are incompatible, with the reason."""
    with pytest.raises(Incompatible, match=message):
        resolve(parse(writer), parse(reader))


@pytest.mark.parametrize(
    ("writer", "reader", "value", "message"),
    [
        (["null", "int"], "long", None, "null"),
        (["null", "string", "int", "boolean"], UNION, True, "boolean is none of"),
        (COLOURS, enum("RED"), "BLUE", "Colour lacks"),
        # The default of the writer's enum is not used.
        (enum("RED", "BLUE", default="RED"), enum("RED"), "BLUE", "Colour lacks"),
        # A decimal is brought to our scale exactly, or not at all.
        (decimal(6, 2), decimal(6, 0), b"\x0a\xbe", "scale of 0"),
        (decimal(6, 2), decimal(4, 4), b"\x0a\xbe", "scale of 4"),
    ],
)  # fmt: skip
def test_what_our_schema_has_no_place_for(writer: Schema, reader: Schema, value: Any, message: str) -> None:
    """A branch, a symbol or digits that ours lacks are refused only in data that use them, and not named."""
    with pytest.raises(Unresolvable, match=message) as caught:
        read(writer, reader, value)
    assert "BLUE" not in str(caught.value)


def test_fields_of_the_reader_only_take_their_default() -> None:
    """Fields of any type that only the reader has take their default; the text of a default for bytes is code
    points, and records are filled with the defaults of their fields. Each record has its own: events are mutable."""
    late = "of the second branch, as 1.12 allows"
    defaults: dict[str, tuple[Schema, Any, Any]] = {
        "i": ("int", 7, 7),
        "d": ("double", 1, 1.0),
        "b": ("bytes", "\u00ff\u0000", b"\xff\x00"),
        "f": (avro.fixed("F", 2), "ab", b"ab"),
        "e": (enum("A", "B"), "B", "B"),
        "n": (["null", "string"], None, None),
        "u": (["string", "null"], "x", "x"),
        "late": (["null", "string"], late, late),
        "list": (array("int"), [1, 2], [1, 2]),
        "full": (array(map_of("int")), [{"a": 1}], [{"a": 1}]),
        "empty": (array("int"), [], []),
        "map": (map_of("long"), {"k": 1}, {"k": 1}),
        "r": (
            record(field("z", "int", default=9), field("y", "string"), name="R"),
            {"y": "q"},
            {"z": 9, "y": "q"},
        ),
        "amount": (decimal(4, 2), "\u0001", Decimal("0.01")),
    }
    ours = record(*(field(name, kind, default=default) for name, (kind, default, _) in defaults.items()))
    compiled: Read = resolve(parse(record(*ints("gone"))), parse(ours)).read
    (first, _), (second, _) = compiled(b"\x02", 0), compiled(b"\x02", 0)
    wanted = {name: value for name, (_, _, value) in defaults.items()}
    assert first == second == wanted
    first["empty"].append(1)
    first["full"][0]["a"] = 2
    first["r"]["z"] = 0
    assert second == wanted


@pytest.mark.parametrize(
    ("kind", "default"),
    [("int", "1"), ("int", True), ("int", 2**31), ("string", 1), (["null", "int"], "x"), (enum("A"), "B")],
)
def test_a_default_that_is_no_value_of_its_type_is_the_schemas_fault(kind: Schema, default: Any) -> None:
    """A reader's default that is no value of its type makes the schema invalid."""
    with pytest.raises(InvalidSchema, match="default of field a"):
        resolve(parse(record(*ints("x"))), parse(record(field("a", kind, default=default))))


KINDS: list[Schema] = [
    *("null", "boolean", "int", "long", "float", "double", "bytes", "string"),
    *(array("int"), map_of("int"), enum("A"), avro.fixed("F", 1), record(name="R")),
]


@pytest.mark.parametrize("writer", KINDS, ids=str)
def test_nothing_else_resolves(writer: Schema) -> None:
    """Two types that are neither the same nor a promotion are incompatible."""
    for reader in KINDS:
        if writer is reader or (isinstance(writer, str) and (writer, str(reader)) in PROMOTED):
            resolve(parse(writer), parse(reader))
        else:
            with pytest.raises(Incompatible):
                resolve(parse(writer), parse(reader))


PROMOTED = {
    *(("int", wider) for wider in ("long", "float", "double")), ("long", "float"), ("long", "double"),
    ("float", "double"), ("string", "bytes"), ("bytes", "string"),
}  # fmt: skip


def test_the_table_of_promotions_is_that_of_the_specification() -> None:
    """No pair of different types is in it but those of the specification."""
    assert {pair for pair in PROMOTIONS if pair[0] != pair[1]} == PROMOTED


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
    theirs, ours = ("long" if name is None else logical("long", name) for name in (writer, reader))
    assert read(theirs, ours, value) == expected
    assert read(["null", theirs], ["null", ours], value) == expected


@pytest.mark.parametrize(
    ("writer", "reader", "value", "expected"),
    [
        (decimal(6, 2), decimal(6, 2), b"\x0a\xbe", "27.50"),
        (decimal(6, 2), decimal(6, 2), b"\xff", "-0.01"),
        (decimal(60, 2), decimal(60, 2), (10**59 + 1).to_bytes(26, "big"), "1" + 56 * "0" + "0.01"),
        (avro.fixed("D", 4, logicalType="decimal", precision=6, scale=2), None, b"\x00\x00\x0a\xbe", "27.50"),
        (decimal(6, 2), decimal(8, 4), b"\x0a\xbe", "27.5000"),
        (decimal(6, 2), decimal(6, 1), b"\x0a\xbe", "27.5"),
    ],
)
def test_decimals_are_exact(writer: Schema, reader: Schema, value: bytes, expected: str) -> None:
    """Decimals are read exactly, as big-endian two's complement with sign, in the reader's scale."""
    assert str(read(writer, reader or writer, value)) == expected


def test_a_decimal_beyond_its_precision_is_no_datum() -> None:
    """A decimal with more digits than its precision is refused."""
    with pytest.raises(ValueError, match="precision"):
        read(decimal(2), decimal(2), b"\x00\xff")


def test_uuids_are_text() -> None:
    """UUIDs over string and over fixed are read as text."""
    text = "89791762-2336-4186-9674-299b90a802e2"
    over_string, over_fixed = logical("string", "uuid"), avro.fixed("U", 16, logicalType="uuid")
    assert read(over_string, over_string, text) == text
    assert read(over_fixed, over_fixed, bytes.fromhex(text.replace("-", ""))) == text
