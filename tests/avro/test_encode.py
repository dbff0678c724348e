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
from tests.support import avro


def schema(*fields: tuple[str, Any]) -> dict[str, Any]:
    """Return the schema of a record of fields without defaults."""
    return avro.record("E", *[avro.field(name, kind) for name, kind in fields])


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
    """The canonical form omits docs, defaults, aliases and logical types, writes full names instead of
    namespaces, and puts keys in order."""
    document = {
        "fields": [
            {"default": 0, "name": "t", "doc": "d", "type": avro.logical("long", "timestamp-millis")},
            {"type": ["null", avro.fixed("F", 2)], "name": "f", "aliases": ["g"]},
            avro.field("g", "F"),
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


MILLIS, MICROS = avro.logical("long", "timestamp-millis"), avro.logical("long", "timestamp-micros")
DECIMAL = {"logicalType": "decimal", "precision": 4, "scale": 2}
UUID = "89791762-2336-4186-9674-299b90a802e2"
MONEY = avro.decimal(9, 2)
# Records of a union: which one is meant follows from the fields.
RECORDS = [
    "null",
    avro.record("Seen", at=MILLIS),
    avro.record("Paid", total=MONEY),
    avro.record("Basket", total=MONEY, lines=avro.array(avro.record("Line", price=MONEY))),
    avro.record("Gone", left="boolean"),
    "string",
]
# Records with the same fields: which one is meant follows from the types.
ALIKE = [avro.record("A", v="string"), avro.record("B", v=MONEY), avro.record("C", v="boolean")]
NODE = schema(("v", MILLIS), ("next", ["null", "E"]))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        # Times are counts of the schema's unit, as decoded events have them.
        (MILLIS, 1_760_000_000_123, 1_760_000_000_123),
        (MICROS, 5, 5),
        (avro.logical("int", "date"), -1, -1),
        (avro.logical("long", "time-micros"), 60_000_000, 60_000_000),
        (["null", MILLIS], 1000, 1000),
        (["null", MILLIS], None, None),
        (["boolean", MILLIS], 1000, 1000),
        (avro.array(MILLIS), [1000, 5], [1000, 5]),
        (avro.map_of(MILLIS), {"k": 1000}, {"k": 1000}),
        # Decimals are exact, with the schema's scale.
        *(
            (kind, value, Decimal(value).quantize(Decimal("0.01")))
            for value in ("27.5", Decimal("27.50"), Decimal("-99.99"), 3, "0")
            for kind in ({"type": "bytes", **DECIMAL}, avro.fixed("D", 3, **DECIMAL))
        ),
        (avro.logical("string", "uuid"), UUID, UUID),
        (avro.fixed("U", 16, logicalType="uuid"), UUID, UUID),
        (RECORDS, {"total": "27.50"}, {"total": Decimal("27.50")}),
        (RECORDS, {"total": Decimal("27.5")}, {"total": Decimal("27.50")}),
        (RECORDS, {"at": 1000}, {"at": 1000}),
        (RECORDS, {"total": "2", "lines": [{"price": "1.1"}]},
         {"total": Decimal("2.00"), "lines": [{"price": Decimal("1.10")}]}),
        (RECORDS, {"left": True}, {"left": True}),
        (RECORDS, None, None),
        (RECORDS, "other", "other"),
        (ALIKE, {"v": "1.10"}, {"v": "1.10"}),
        (ALIKE, {"v": Decimal("1.10")}, {"v": Decimal("1.10")}),
        (ALIKE, {"v": False}, {"v": False}),
    ],
)  # fmt: skip
def test_what_is_written_is_read_again(kind: Any, value: Any, expected: Any) -> None:
    """Times, decimals, UUIDs and records of a union are encoded as decoded events, or people, write them."""
    assert str(there_and_back(kind, value)) == str(expected)


def test_missing_fields_take_the_schemas_default() -> None:
    """Missing fields take the schema's default, also bytes and nested records, whose defaults JSON writes
    differently."""
    inner = avro.record("R", avro.field("z", "int", default=4))
    of = avro.record("E", avro.field("b", "bytes", default="\u00ff"), avro.field("r", inner, default={}))
    event = Decoder(OneSchema(of)).decode(Record(0, -1, None, Encoder(of).encode({}), ()))
    assert event == {"b": b"\xff", "r": {"z": 4}}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("string", 5, "expected text"),
        ("string", "\ud800", "half of a surrogate pair"),
        ("int", "jane@example.com", "whole number of 32 bits"),
        ("int", 2**40, "whole number of 32 bits"),
        (MILLIS, "jane@example.com", "whole number of 64 bits"),
        (MILLIS, "20251009085320", "whole number of 64 bits"),
        *((avro.decimal(4, 2), value, "decimal of scale 2") for value in ("1.234", "jane@example.com", True)),
        (avro.enum("C", "A"), "jane@example.com", "symbol of C"),
        (avro.fixed("F", 2), b"abc", "expected 2 bytes"),
        (avro.array("int"), 5, "expected an array"),
        (avro.map_of("int"), [], "expected an object"),
        (["null", "int"], "jane@example.com", "whole number of 32 bits"),
        (avro.record("R"), "jane@example.com", r"expected an object \(R\)"),
        ([avro.record("A", v="string"), avro.record("B", v="long")], {"v": 1.5}, "expected one of: A, B"),
    ],
)
def test_what_does_not_fit_raises_without_reporting_the_value(kind: Any, value: Any, message: str) -> None:
    """The message for a value that does not fit names fields and types, never the value."""
    with pytest.raises(Unencodable, match=rf"field E\.v: .*{message}") as caught:
        Encoder(schema(("v", kind))).encode({"v": value})
    assert "jane" not in str(caught.value)


def test_a_missing_field_without_default_is_named() -> None:
    """A missing field without a default is named in the message, so that the author of the file can add it."""
    with pytest.raises(Unencodable, match=r"E\.v: is missing"):
        Encoder(schema(("v", "int"))).encode({})


def test_recursive_schemas() -> None:
    """A record that holds itself is encoded, as fastavro reads it."""
    value = {"v": 1000, "next": {"v": 2, "next": None}}
    encoded = Encoder(NODE).encode(value)
    assert Decoder(OneSchema(NODE)).decode(Record(0, -1, None, encoded, ())) == value
    plain = fastavro.parse_schema(schema(("v", "long"), ("next", ["null", "E"])))  # without logical types
    assert fastavro.schemaless_reader(io.BytesIO(encoded[10:]), plain, None) == value
