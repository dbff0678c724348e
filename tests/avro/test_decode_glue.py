"""AWS Glue's wire format: ``03``, compression, the UUID of the schema version, Avro."""

from __future__ import annotations

import tracemalloc
import uuid
import zlib

import pytest

from consumer.avro.decode import MAX_RECORD_BYTES, SCHEMA_ID_HEADER, Decoder, OneSchema, framing_of
from consumer.engine.model import Filtered, Rejection, SchemaRef
from tests.avro.test_decode import EVENT, code, datum, decoder, record
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import SCHEMA as COMMERCE
from tests.conversion.test_convert import event_of
from tests.support import avro
from tests.support.aws import glue_value

VERSION = "0a0f5b1e-4bb0-4c0f-9d5b-4a27f0a5b7aa"
REF = SchemaRef("glue", VERSION)
ZIPPED = pytest.mark.parametrize("zipped", [False, True], ids=["plain", "zlib"])


def message(decoded: object) -> str:
    """Return the message of a rejection."""
    assert isinstance(decoded, Rejection)
    return decoded.message


@ZIPPED
def test_a_known_version_is_read(zipped: bool) -> None:
    """Records of a known version, compressed or not, are read."""
    value = glue_value(VERSION, datum(EVENT), zipped=zipped)
    assert decoder(REF).decode(record(value)) == EVENT


@ZIPPED
def test_an_unknown_version_is_asked_for(zipped: bool) -> None:
    """An unknown version is asked for by its UUID, as text."""
    assert decoder().decode(record(glue_value(VERSION, datum(EVENT), zipped=zipped))) == REF
    assert framing_of(REF) == glue_value(VERSION, b"")


@ZIPPED
def test_what_is_cut_off_is_rejected(zipped: bool) -> None:
    """A record cut off at any length is rejected: within the header as a truncated header, after it as undecodable."""
    whole = glue_value(VERSION, datum(EVENT), zipped=zipped)
    one = decoder(REF)
    assert code(one.decode(record(whole[:1]))) == "unknown_wire_format"
    for end in range(2, 18):
        assert code(one.decode(record(whole[:end]))) == "truncated_header"
        assert "inside the UUID of its schema" in message(one.decode(record(whole[:end])))
    for end in range(18, len(whole)):
        assert code(one.decode(record(whole[:end]))) == "undecodable"


def test_another_compression_is_no_format_of_ours() -> None:
    """A record with a compression byte other than Glue's two is rejected as an unknown wire format."""
    value = bytearray(glue_value(VERSION, datum(EVENT)))
    value[1] = 7
    assert code(decoder(REF).decode(record(bytes(value)))) == "unknown_wire_format"


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"\x00not zlib", "are not zlib's"),
        (zlib.compress(datum(EVENT))[:-1], "end too early"),
        (zlib.compress(datum(EVENT)) + b"\x00", "go on behind their end"),
    ],
)
def test_broken_compression_is_undecodable(tail: bytes, expected: str) -> None:
    """Broken compressed data is undecodable, and the message says what is wrong with it."""
    value = b"\x03\x05" + uuid.UUID(VERSION).bytes + tail
    decoded = decoder(REF).decode(record(value))
    assert code(decoded) == "undecodable"
    assert expected in message(decoded)


def test_a_bomb_is_not_unpacked() -> None:
    """Data that unpacks to more than a record may have is refused, and is never in memory as a whole."""
    bomb = glue_value(VERSION, bytes(4 * MAX_RECORD_BYTES), zipped=True)
    assert len(bomb) < MAX_RECORD_BYTES
    one = decoder(REF)
    tracemalloc.start()
    try:
        decoded = one.decode(record(bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert code(decoded) == "too_large"
    assert "unpacks to more than 16 MiB" in message(decoded)
    assert peak < 3 * MAX_RECORD_BYTES


def test_a_header_goes_before_what_the_value_begins_with() -> None:
    """With Confluent's header the value is a bare datum, even if it begins like a compressed record of Glue."""
    schema = avro.record("R", *[avro.field(name, "int") for name in "ab"])
    one, guid = Decoder(OneSchema(schema)), SchemaRef("guid", VERSION)
    assert one.add_schema(guid, schema) is None
    bare = datum({"a": -2, "b": -3}, schema)
    assert bare == b"\x03\x05"
    assert one.decode(record(bare, (SCHEMA_ID_HEADER, framing_of(guid)))) == {"a": -2, "b": -3}


@pytest.mark.parametrize("kind", ["JSON", "PROTOBUF"])
def test_a_schema_of_another_kind_says_so(kind: str) -> None:
    """A version that is a JSON or Protobuf schema is refused with the message that pinstream reads Avro."""
    one = decoder()
    assert one.add_schema(REF, "", kind) is not None
    said = message(one.decode(record(glue_value(VERSION, b"{}", zipped=True))))
    assert said == f"schema glue {VERSION}: it is a {kind} schema; pinstream reads Avro"


def test_a_missing_version_says_what_to_set() -> None:
    """The rejection for a missing version says to set a Glue registry, since the usual cause is that Glue is
    not asked."""
    assert "set SCHEMA_REGISTRY_URL=glue:" in decoder().missing(REF).message


def test_the_compiled_program_reads_it_too() -> None:
    """The compiled program reads Glue's records in one go, compressed or not, among records of other formats,
    and gives the same result for each as the two steps."""
    both = Both((COMMERCE, None))
    both.learn(REF, COMMERCE)
    confluent = both.value(event_of({}))
    assert confluent is not None
    body = confluent[len(both.framing) :]
    plain, zipped = glue_value(VERSION, body), glue_value(VERSION, body, zipped=True)
    broken, cut = zipped[:-1], zipped[:9]
    said = both.check(confluent, zipped, zipped, plain, broken, None, zipped, cut, confluent, zipped)
    read = [
        at for at, one in enumerate(said) if not isinstance(one, Rejection | Filtered) and one is not None
    ]
    assert read[:4] == [0, 1, 2, 3]
    assert said[1] == said[0] == said[9]
    assert [code(said[at]) for at in (4, 7)] == ["undecodable", "truncated_header"]
    if both.function is not None:
        assert both.compiled.in_two_steps == 1  # the record with the cut header
