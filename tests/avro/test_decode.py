"""Wire formats, learning schemas, and the rejections of stage decode."""

from __future__ import annotations

import itertools
import json
import uuid
from typing import Any

import pytest
from confluent_kafka.schema_registry import header_schema_id_serializer
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext

from consumer.avro.decode import MAX_REFUSED_SCHEMAS, SCHEMA_ID_HEADER, Decoder, OneSchema, framing_of
from consumer.avro.encode import Encoder
from consumer.engine.model import Record, Rejection, SchemaRef, Stage
from tests.support import avro

SCHEMA = avro.record(
    "shop.Event", avro.field("id", "string"), avro.field("note", ["null", "string"], default=None)
)
SEVEN = SchemaRef("id", "7")
GUID = "89791762-2336-4186-9674-299b90a802e2"
EVENT = {"id": "e-1", "note": None}


def record(value: bytes | None, *headers: tuple[str, bytes | None]) -> Record:
    """Return a record with this value and these headers; its other parts do not count here."""
    return Record(0, -1, None, value, headers)


def datum(event: dict[str, Any], schema: dict[str, Any] = SCHEMA) -> bytes:
    """Return bare Avro, written by fastavro."""
    return avro.written(schema, event)


def decoder(*known: SchemaRef) -> Decoder:
    """Return a decoder for `SCHEMA` that has learnt it under each ref of `known`."""
    made = Decoder(OneSchema(SCHEMA))
    for ref in known:
        assert made.add_schema(ref, SCHEMA) is None
    return made


def code(decoded: object) -> str:
    """Return the code of a rejection, which must be of stage decode."""
    assert isinstance(decoded, Rejection)
    assert decoded.stage is Stage.DECODE
    return decoded.code


ID = b"\x00\x00\x00\x00\x07"
OLDER = {**SCHEMA, "fields": SCHEMA["fields"][:1]}


def as_confluent_writes_it() -> Record:
    """Return a record whose header has the GUID of its schema, beside another header."""
    written: list[Any] = [("traceparent", b"00-1")]
    context = SerializationContext("t", MessageField.VALUE, headers=written)
    value = header_schema_id_serializer(datum(EVENT), context, SchemaId("AVRO", 7, GUID))
    return record(value, *written)


@pytest.mark.parametrize(
    ("written", "ref", "schema"),
    [
        (record(ID + datum(EVENT)), SEVEN, SCHEMA),
        # The id is unsigned.
        (record(b"\x00\xff\xff\xff\xff" + datum(EVENT)), SchemaRef("id", "4294967295"), SCHEMA),
        (as_confluent_writes_it(), SchemaRef("guid", GUID), SCHEMA),
        # A header that begins with magic byte 0 holds an id.
        (record(datum(EVENT), (SCHEMA_ID_HEADER, ID)), SEVEN, SCHEMA),
        # Of several headers the first with a value counts, as for Confluent's deserialiser.
        (record(datum(EVENT), (SCHEMA_ID_HEADER, ID), (SCHEMA_ID_HEADER, ID[:-1] + b"\x08")), SEVEN, SCHEMA),
        (record(ID + datum(EVENT), (SCHEMA_ID_HEADER, None)), SEVEN, SCHEMA),
        # The key's header says nothing of the value.
        (record(ID + datum(EVENT), ("__key_schema_id", b"\x01" + uuid.UUID(GUID).bytes)), SEVEN, SCHEMA),
        # A fingerprint is asked for in the form that the record has it: little-endian hex.
        (record(Encoder(OLDER).encode({"id": "e-1"})),
         SchemaRef("fingerprint", Encoder(OLDER).encode({"id": "e-1"})[2:10].hex()), OLDER),
    ],
)  # fmt: skip
def test_how_a_record_names_its_schema(written: Record, ref: SchemaRef, schema: dict[str, Any]) -> None:
    """While the schema that a record names is unknown, decoding returns its ref; once learnt, the event."""
    made = decoder()
    assert made.decode(written) == ref
    assert made.add_schema(ref, json.dumps(schema)) is None
    assert made.decode(written) == EVENT


def test_single_object_of_our_own_schema_needs_no_look_up() -> None:
    """A record in single-object encoding that was written with the reader's own schema is read without a look-up."""
    assert decoder().decode(record(Encoder(SCHEMA).encode(EVENT))) == EVENT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "empty"),
        (b"\x00", "truncated_header"),
        (b"\x00\x00\x00\x07", "truncated_header"),
        (b"\xc3\x01\x01\x02\x03", "truncated_header"),
        (b"\xc3", "unknown_wire_format"),
        (b"\xc3\x02" + bytes(20), "unknown_wire_format"),
        (b'{"id": "e-1"}', "unknown_wire_format"),
        (b"\x01" + bytes(30), "unknown_wire_format"),
        (b"Obj\x01" + bytes(30), "unknown_wire_format"),
        (b"\x00\x00\x00\x00\x07", "undecodable"),
        (b"\x00\x00\x00\x00\x07\x06e-", "undecodable"),
        (b"\x00\x00\x00\x00\x07\x06e-1", "undecodable"),
        (b"\x00\x00\x00\x00\x07\x06e-1\x00\x00", "trailing_bytes"),
        (b"\x00\x00\x00\x00\x07\x06e-1\x04", "undecodable"),
        (b"\x00\x00\x00\x00\x07\x04\xff\xfe\x00", "undecodable"),
    ],
)
def test_what_is_no_record_of_ours_is_rejected(value: bytes, expected: str) -> None:
    """Each way in which a record can be malformed is rejected with its own code."""
    rejection = decoder(SEVEN).decode(record(value))
    assert code(rejection) == expected
    assert isinstance(rejection, Rejection)
    if expected == "trailing_bytes":
        assert rejection.message == "bytes are left over after the datum of schema id 7"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", "unknown_wire_format"),
        (b"\x01" + bytes(15), "truncated_header"),
        (b"\x01" + bytes(17), "unknown_wire_format"),
        (b"\x00\x01", "truncated_header"),
        (b"\x02" + bytes(16), "unknown_wire_format"),
    ],
)
def test_a_malformed_schema_header_is_rejected(header: bytes, expected: str) -> None:
    """A schema header that names no schema rejects the record, even if the value begins with a schema id."""
    value = b"\x00\x00\x00\x00\x07" + datum(EVENT)
    assert code(decoder(SEVEN).decode(record(value, (SCHEMA_ID_HEADER, header)))) == expected


def test_a_tombstone_is_none() -> None:
    """A record without a value decodes to None, which is no rejection."""
    assert decoder().decode(record(None)) is None


def test_each_record_is_read_by_its_own_framing() -> None:
    """Records of all framings, in any order, are each decoded as a decoder decodes them that has read no other."""
    made = decoder(SEVEN, SchemaRef("id", "8"))
    prefixed = b"\x00\x00\x00\x00\x07" + datum(EVENT)
    kinds = [
        record(prefixed), record(prefixed.replace(b"\x07", b"\x08", 1)),
        record(prefixed.replace(b"\x07", b"\x09", 1)),
        record(datum(EVENT), (SCHEMA_ID_HEADER, b"\x00\x00\x00\x00\x07")),
        record(prefixed, (SCHEMA_ID_HEADER, b"\x00\x00\x00\x00\x08")), record(prefixed, ("traceparent", b"00-1")),
        record(Encoder(SCHEMA).encode(EVENT)), record(datum(EVENT)), record(prefixed[:3]), record(b""), record(None),
    ]  # fmt: skip
    chunk = [each for pair in itertools.product(kinds, kinds) for each in pair]
    alone = [decoder(SEVEN, SchemaRef("id", "8")).decode(each) for each in kinds]
    assert [made.decode(each) for each in chunk] == [alone[kinds.index(each)] for each in chunk]


def test_ids_of_eight_bytes_are_explained() -> None:
    """Apicurio's own serialisers write ids of eight bytes by default. They are read as id 0, which no registry
    has, and the rejection names the setting to change."""
    wanted = decoder().decode(record(b"\x00" + (7).to_bytes(8, "big") + b"\x02"))
    assert wanted == SchemaRef("id", "0")
    verdict = decoder().missing(wanted)
    assert verdict.code == "no_such_schema"
    assert (
        "if Apicurio's own serialiser wrote the record, it needs apicurio.registry.as-confluent=true"
        in verdict.message
    )


def test_a_missing_schema_rejects_its_records_and_may_come_later() -> None:
    """A missing schema gives a rejection that names it. It is not remembered: records are read once the schema
    is found."""
    made = decoder()
    verdict = made.missing(SEVEN)
    assert code(verdict) == "no_such_schema"
    assert "id 7" in str(verdict)
    assert made.decode(record(b"\x00\x00\x00\x00\x07abc")) == SEVEN
    assert made.add_schema(SEVEN, SCHEMA) is None
    assert made.decode(record(b"\x00\x00\x00\x00\x07" + datum(EVENT))) == EVENT


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "record", "name": "shop.Event", "fields": []}', '"string"', 'syntax = "proto3"; message Event {}',
        '{"type": "object", "properties": {}}', "[" * 100_000, "{}", "null",
        '{"type": "record", "name": "Event", "fields": [{"name": "id", "type": "Unheard"}]}',
    ],
)  # fmt: skip
def test_an_incompatible_schema_rejects_its_records(schema: str) -> None:
    """An incompatible schema is rejected when it is learnt, and again for each of its records."""
    made = decoder()
    verdict = made.add_schema(SEVEN, schema)
    assert code(verdict) == "incompatible_schema"
    assert made.decode(record(b"\x00\x00\x00\x00\x07abc")) == verdict


def test_a_schema_once_known_is_never_lost() -> None:
    """A readable schema stays known after an answer that cannot be read, and after any number of refused schemas."""
    made = decoder(SEVEN)
    made.add_schema(SEVEN, '"string"')
    for number in range(2 * MAX_REFUSED_SCHEMAS):
        made.add_schema(SchemaRef("id", str(1000 + number)), '"string"')
    assert made.decode(record(b"\x00\x00\x00\x00\x07" + datum(EVENT))) == EVENT


def test_refusals_are_bounded_and_the_stalest_goes_first() -> None:
    """At most `MAX_REFUSED_SCHEMAS` refused schemas are remembered. One that records still name stays; a
    dropped one is asked for again."""
    made = decoder()
    used, stale = SchemaRef("id", "1"), SchemaRef("id", "2")
    made.add_schema(used, '"string"')
    made.add_schema(stale, '"string"')
    for number in range(MAX_REFUSED_SCHEMAS - 1):
        assert code(made.decode(record(framing_of(used)))) == "incompatible_schema"
        made.add_schema(SchemaRef("id", str(1000 + number)), '"string"')
    assert code(made.decode(record(framing_of(used)))) == "incompatible_schema"
    assert made.decode(record(framing_of(stale))) == stale


def test_what_a_doubted_schema_cannot_read_names_it() -> None:
    """What a doubted schema cannot read gives its ref instead of a rejection, since the id may be another
    registry's. Once the schema is added again, it is rejected."""
    made = decoder(SEVEN, SchemaRef("id", "8"))
    framing = framing_of(SEVEN)
    unreadable = [framing + tail for tail in (b"", b"\xff" * 9, datum(EVENT)[:-1], datum(EVENT) + b"\0")]
    rejections = [made.decode(record(one)) for one in unreadable]
    made.doubt(SEVEN)
    assert [made.decode(record(one)) for one in unreadable] == [SEVEN] * len(unreadable)
    assert made.decode(record(framing + datum(EVENT))) == EVENT
    assert code(made.decode(record(framing_of(SchemaRef("id", "8")) + b"\xff" * 9))) == "undecodable"
    assert code(made.decode(record(b""))) == "empty"
    made.add_schema(SEVEN, SCHEMA)
    assert [made.decode(record(one)) for one in unreadable] == rejections


def test_a_doubted_schema_that_does_not_fit_ours_is_no_verdict() -> None:
    """Records of a doubted schema that does not fit ours are not rejected: they wait for what the registry has now."""
    made = decoder()
    made.add_schema(SEVEN, '"string"')
    made.doubt(SEVEN)
    value = framing_of(SEVEN) + datum(EVENT)
    assert made.decode(record(value)) == SEVEN
    made.add_schema(SEVEN, SCHEMA)
    assert made.decode(record(value)) == EVENT


def test_a_schema_can_be_forgotten() -> None:
    """After a schema is forgotten, whether readable, refused or never known, its records ask for it."""
    made = decoder(SEVEN)
    refused, unknown = SchemaRef("id", "8"), SchemaRef("id", "9")
    made.add_schema(refused, '"string"')
    for ref in (SEVEN, refused, unknown):
        made.doubt(ref)
        made.forget(ref)
        assert made.decode(record(framing_of(ref) + datum(EVENT))) == ref


def test_messages_hold_no_data() -> None:
    """The message of a rejection names the schema and the exception, and holds none of the record's bytes."""
    made = decoder(SEVEN)
    for tail in (b"jane@example.com", b"\x20jane@example.com\x09", b"\x20jane@example.com\x00jane"):
        verdict = made.decode(record(b"\x00\x00\x00\x00\x07" + tail))
        assert isinstance(verdict, Rejection)
        assert "jane" not in verdict.message
        assert "id 7" in verdict.message
