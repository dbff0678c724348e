"""Encoding: framing, defaults, and the branches of unions."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import fastavro
import fastavro.schema
import pytest

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.encode import Encoder, Unencodable
from consumer.avro.schema import canonical_form, fingerprint, parse
from consumer.engine.model import Record


def schema(*fields: tuple[str, Any]) -> dict[str, Any]:
    """Return the schema of a record of fields without defaults."""
    return {"type": "record", "name": "E", "fields": [{"name": name, "type": kind} for name, kind in fields]}


def there_and_back(kind: Any, value: Any) -> Any:
    """Encode and decode `value` as a field of type `kind`, and return it."""
    of = schema(("v", kind))
    event = Decoder(OneSchema(of)).decode(Record(0, -1, None, Encoder(of).encode({"v": value}), ()))
    assert isinstance(event, dict)
    return event["v"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('"null"', 0x63DD24E7CC258F8A),
        ('"boolean"', 0x9F42FC78A4D4F764),
        ('"int"', 0x7275D51A3F395C8F),
        ('"long"', 0xD054E14493F41DB7),
        ('"float"', 0x4D7C02CB3EA8D790),
        ('"double"', 0x8E7535C032AB957E),
        ('"bytes"', 0x4FC016DAC3201965),
        ('"string"', 0x8F014872634503C7),
    ],
)
def test_fingerprints_of_the_avro_projects_own_vectors(document: str, expected: int) -> None:
    """Fingerprints are those of share/test/data/schema-tests.txt of Apache Avro (CRC-64-AVRO), little-endian as
    on the wire."""
    assert fingerprint(parse(document)) == expected.to_bytes(8, "little").hex()


def test_the_canonical_form_drops_what_bytes_do_not_depend_on() -> None:
    """The canonical form leaves out docs, defaults, aliases and logical types, writes full names instead of
    namespaces, and puts keys in order."""
    document = {
        "fields": [
            {
                "default": 0,
                "name": "t",
                "doc": "d",
                "type": {"logicalType": "timestamp-millis", "type": "long"},
            },
            {"type": ["null", {"type": "fixed", "size": 2, "name": "F"}], "name": "f", "aliases": ["g"]},
            {"name": "g", "type": "F"},
        ],
        "namespace": "a.b",
        "name": "E",
        "type": "record",
    }
    assert canonical_form(parse(document)) == (
        '{"name":"a.b.E","type":"record","fields":[{"name":"t","type":"long"},'
        '{"name":"f","type":["null",{"name":"a.b.F","type":"fixed","size":2}]},{"name":"g","type":"a.b.F"}]}'
    )


def test_framings() -> None:
    """A datum is framed with Confluent's prefix, or in single-object encoding with the schema's fingerprint."""
    of = schema(("v", "int"))
    assert Encoder(of, 300).encode({"v": 1}) == b"\x00\x00\x00\x01\x2c\x02"
    single = Encoder(of)
    print_hex = fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(of), "CRC-64-AVRO")
    assert single.encode({"v": 1}) == b"\xc3\x01" + bytes.fromhex(print_hex) + b"\x02"


MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (MILLIS, 1_760_000_000_123, 1_760_000_000_123),
        (MICROS, 5, 5),
        ({"type": "int", "logicalType": "date"}, -1, -1),
        ({"type": "long", "logicalType": "time-micros"}, 60_000_000, 60_000_000),
        (["null", MILLIS], 1000, 1000),
        (["null", MILLIS], None, None),
        (["boolean", MILLIS], 1000, 1000),
        ({"type": "array", "items": MILLIS}, [1000, 5], [1000, 5]),
        ({"type": "map", "values": MILLIS}, {"k": 1000}, {"k": 1000}),
    ],
)
def test_times(kind: Any, value: Any, expected: Any) -> None:
    """Times are encoded from counts of the schema's unit, as decoded events have them."""
    assert there_and_back(kind, value) == expected


@pytest.mark.parametrize("value", ["27.5", Decimal("27.50"), Decimal("-99.99"), 3, "0"])
def test_decimals(value: Any) -> None:
    """Decimals over bytes and over fixed are encoded exactly, with the schema's scale."""
    logical = {"logicalType": "decimal", "precision": 4, "scale": 2}
    for kind in ({"type": "bytes", **logical}, {"type": "fixed", "name": "D", "size": 3, **logical}):
        result = there_and_back(kind, value)
        assert result == Decimal(value)
        assert result.as_tuple().exponent == -2


def test_uuids() -> None:
    """UUIDs are encoded over string and over fixed."""
    given = "89791762-2336-4186-9674-299b90a802e2"
    for kind in ({"type": "string"}, {"type": "fixed", "name": "U", "size": 16}):
        assert there_and_back({**kind, "logicalType": "uuid"}, given) == given


def test_missing_fields_take_the_schemas_default() -> None:
    """Missing fields take the schema's default, also bytes and nested records, whose defaults JSON writes
    differently."""
    of = {
        "type": "record",
        "name": "E",
        "fields": [
            {"name": "b", "type": "bytes", "default": "\u00ff"},
            {
                "name": "r",
                "type": {
                    "type": "record",
                    "name": "R",
                    "fields": [{"name": "z", "type": "int", "default": 4}],
                },
                "default": {},
            },
        ],
    }
    event = Decoder(OneSchema(of)).decode(Record(0, -1, None, Encoder(of).encode({}), ()))
    assert event == {"b": b"\xff", "r": {"z": 4}}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", 5),
        ("int", "jane@example.com"),
        ("int", 2**40),
        (MILLIS, "jane@example.com"),
        (MILLIS, "20251009085320"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "1.234"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "jane@example.com"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, True),
        ({"type": "enum", "name": "C", "symbols": ["A"]}, "jane@example.com"),
        ({"type": "fixed", "name": "F", "size": 2}, b"abc"),
        ({"type": "array", "items": "int"}, 5),
        ({"type": "map", "values": "int"}, []),
        (["null", "int"], "jane@example.com"),
        ("string", "\ud800"),
        ({"type": "record", "name": "R", "fields": []}, "jane@example.com"),
    ],
)
def test_what_does_not_fit_raises_without_telling_the_value(kind: Any, value: Any) -> None:
    """The message for a value that does not fit names fields and types, never the value."""
    with pytest.raises(Unencodable) as caught:
        Encoder(schema(("v", kind))).encode({"v": value})
    assert "jane" not in str(caught.value)


def test_a_missing_field_without_default_is_named() -> None:
    """A missing field without a default is named in the message, so that the author of the file can add it."""
    with pytest.raises(Unencodable, match=r"E\.v: is missing"):
        Encoder(schema(("v", "int"))).encode({})


def test_recursive_schemas() -> None:
    """A record that holds itself is encoded."""
    node = schema(("v", MILLIS), ("next", ["null", "E"]))
    value = {"v": 1000, "next": {"v": 2, "next": None}}
    encoded = Encoder(node).encode(value)
    expected = {"v": 1000, "next": {"v": 2, "next": None}}
    assert Decoder(OneSchema(node)).decode(Record(0, -1, None, encoded, ())) == expected
    assert fastavro.schemaless_reader(io.BytesIO(encoded[10:]), parse_plain(node), None) == expected


def parse_plain(of: dict[str, Any]) -> Any:
    """Return the schema without logical types, so that fastavro reads plain counts."""
    return fastavro.parse_schema({**of, "fields": [{**of["fields"][0], "type": "long"}, of["fields"][1]]})


MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}


def record(name: str, **fields: Any) -> dict[str, Any]:
    """Return the schema of a record in a union."""
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": field, "type": kind} for field, kind in fields.items()],
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"total": "27.50"}, {"total": Decimal("27.50")}),
        ({"total": Decimal("27.5")}, {"total": Decimal("27.50")}),
        ({"at": 1000}, {"at": 1000}),
        (
            {"total": "27.50", "lines": [{"price": "1.10"}]},
            {"total": Decimal("27.50"), "lines": [{"price": Decimal("1.10")}]},
        ),
        ({"left": True}, {"left": True}),
        (None, None),
        ("other", "other"),
    ],
)
def test_decimals_and_times_inside_a_union_of_several_records(value: Any, expected: Any) -> None:
    """A record goes to the branch of the union that it fits; decimals and times inside it are converted as
    anywhere else."""
    of = [
        "null",
        record("Seen", at=MILLIS),
        record("Paid", total=MONEY),
        record("Basket", total=MONEY, lines={"type": "array", "items": record("Line", price=MONEY)}),
        record("Gone", left="boolean"),
        "string",
    ]
    assert there_and_back(of, value) == expected


def test_a_record_goes_to_the_branch_whose_types_fit() -> None:
    """Of two records with the same fields, the one whose types fit is written."""
    of = [record("A", v="string"), record("B", v=MONEY), record("C", v="boolean")]
    assert there_and_back(of, {"v": "1.10"}) == {"v": "1.10"}
    assert there_and_back(of, {"v": Decimal("1.10")}) == {"v": Decimal("1.10")}
    assert there_and_back(of, {"v": False}) == {"v": False}


def test_what_fits_no_branch_says_which_there_are() -> None:
    """The message for a value that fits no branch names the field and the branches."""
    of = schema(("v", [record("A", v="string"), record("B", v="long")]))
    with pytest.raises(Unencodable, match=r"field E\.v: expected one of: A, B"):
        Encoder(of).encode({"v": {"v": 1.5}})
