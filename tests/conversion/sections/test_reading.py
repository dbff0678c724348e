"""Records of several types are read by the sections of a mapping: both executors, all framings, unions and
single types."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.avro.decode import MAX_REFUSED_SCHEMAS, SCHEMA_ID_HEADER, Decoder, framing_of
from consumer.avro.encode import Encoder
from consumer.conversion.program import COMPILED
from consumer.conversion.sections import Sections
from consumer.engine.model import Filtered, Record, Rejection, SchemaRef
from consumer.engine.reading import Columns
from tests.conversion.sections.shop import (
    CLICK,
    MAPPING,
    NOW,
    ORDER,
    REFUND,
    SIGNUP,
    UNION,
    Readings,
    click,
    datum,
    loaded,
    order,
    signup,
)
from tests.support import avro
from tests.support.aws import glue_value

SCHEMAS: Final[dict[str, Any]] = {"order": ORDER, "click": CLICK, "signup": SIGNUP, "refund": REFUND}
EVENTS: Final[dict[str, Callable[[int], dict[str, Any]]]] = {
    "order": order, "click": click, "signup": signup, "refund": lambda n: {"id": f"r-{n}"},
}  # fmt: skip
BRANCHES: Final = {"null": 0, "order": 1, "click": 2, "signup": 3, "refund": 4}
GUID: Final = uuid.UUID(int=77)
IDS: Final = {"order": 1, "click": 2, "signup": 3, "refund": 4, "union": 9}
OWN: Final = {name: Encoder(schema) for name, schema in SCHEMAS.items()}


def value(kind: str, number: int, how: str) -> Record:
    """Return a record with an id of its own, as a branch of the union (by id, header or Glue), or in
    single-object encoding."""
    branch = bytes((BRANCHES[kind] << 1,))
    whole = b"" if kind == "null" else OWN[kind].encode(EVENTS[kind](number))[10:]
    if how == "union":
        return Record(number, -1, None, framing_of(SchemaRef("id", "9")) + branch + whole, ())
    if how == "header":
        header = (SCHEMA_ID_HEADER, framing_of(SchemaRef("guid", str(GUID))))
        return Record(number, -1, None, branch + whole, (header,))
    if how in ("glue", "zlib"):  # as AWS Glue's serialisers write a union
        return Record(number, -1, None, glue_value(str(GUID), branch + whole, zipped=how == "zlib"), ())
    if how == "long":  # a branch number in more bytes than it needs
        padded = bytes((BRANCHES[kind] << 1 | 0x80, 0))
        return Record(number, -1, None, framing_of(SchemaRef("id", "9")) + padded + whole, ())
    if how == "id":
        return Record(number, -1, None, framing_of(SchemaRef("id", str(IDS[kind]))) + whole, ())
    return Record(number, -1, None, OWN[kind].encode(EVENTS[kind](number)), ())


KNOWN: Final = {
    **{SchemaRef("id", str(number)): SCHEMAS.get(name, UNION) for name, number in IDS.items()},
    **{SchemaRef(kind, str(GUID)): UNION for kind in ("guid", "glue")},
}


def readings_of(sections: Sections) -> Readings:
    """Return both executors, which know the shop's schemas and their union."""
    return Readings(sections, KNOWN)


def section_of(columns: Columns, row: int) -> int:
    """Return the number of a row's section."""
    return columns.sections[row] if row < len(columns.sections) else 0


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> Readings:
    """Both executors over the sections of the shop."""
    return readings_of(loaded(tmp_path_factory.mktemp("schemas")))


def payloads(columns: Columns) -> list[Any]:
    """Return the events, as they are sent."""
    return [orjson.loads(columns.body(row)[:-1]) for row in range(len(columns)) if columns.is_event(row)]


@pytest.mark.parametrize("how", ["id", "union", "header", "single-object", "long", "glue", "zlib"])
def test_each_record_takes_the_section_of_its_type(how: str, readings: Readings) -> None:
    """A record is read by the section of its type: the name of the writer's schema, or of the branch of its union."""
    records = [value(kind, n, how) for n, kind in enumerate(("order", "click", "signup", "order"))]
    found = payloads(readings.check(records, "web.orders"))
    assert [one["event_name"] for one in found] == ["checkout", "page_visit", "signup", "checkout"]
    assert [one["event_id"] for one in found] == ["o-0", "c-1", "s-2", "o-3"]
    # The times of the three types are in microseconds, seconds and milliseconds.
    assert {one["event_time"] for one in found} == {NOW}
    assert found[0]["custom_data"] == {"currency": "EUR", "value": "59.90"}
    assert found[2]["action_source"] == "offline"


def test_a_topic_has_its_own_mapping(readings: Readings) -> None:
    """A record type with a section for a topic is read by it there, and by its other section elsewhere."""
    record = [value("click", 1, "union")]
    [here] = payloads(readings.check(record, "web.landing"))
    [there] = payloads(readings.check(record, "web.other"))
    assert (here["event_source_url"][-1], there["event_source_url"][-12:]) == ("b", "/a?epik=dj0x")
    assert "click_id" not in here["user_data"]
    assert there["user_data"]["click_id"] == "dj0x"


@pytest.mark.skipif(COMPILED is None, reason="the package was built without a C compiler")
@pytest.mark.parametrize("how", ["id", "union", "header", "single-object", "glue", "zlib"])
def test_mixed_records_are_read_on_the_fast_path(how: str, readings: Readings) -> None:
    """Records of several types are all read on the fast path, where each type has a program of its own."""
    before = readings.fast.in_two_steps
    records = [value(("order", "click", "signup")[n % 3], n, how) for n in range(120)]
    assert len(payloads(readings.check(records, "web.orders"))) == 120
    assert readings.fast.in_two_steps == before


@pytest.mark.parametrize("unknown", ["refuse", "filter"])
def test_types_that_no_section_maps(unknown: str, tmp_path: Path) -> None:
    """Records of types without a section, and null in a union, are refused or filtered; the records around them
    are sent."""
    both = readings_of(loaded(tmp_path, f'unknown_record = "{unknown}"\n{MAPPING}'))
    records = [value("order", 0, "union"), value("refund", 1, "union"), value("null", 2, "union"),
               value("refund", 3, "id"), value("click", 4, "id")]  # fmt: skip
    columns = both.check(records, "web.orders")
    assert len(payloads(columns)) == 2
    verdicts = [columns.verdicts[row] for row in (1, 2, 3)]
    if unknown == "filter":
        assert verdicts == [Filtered("unknown_record")] * 3
    else:
        assert all(isinstance(one, Rejection) and one.code == "unknown_record" for one in verdicts)
    assert [section_of(columns, row) for row in range(5)] == [1, 0, 0, 0, 2]


def test_a_schema_without_a_section_is_reported_when_it_is_learned(tmp_path: Path) -> None:
    """A schema of a type without a section is refused when it is learned, so that the log has it once."""
    decoder = Decoder(loaded(tmp_path))
    reported = decoder.add_schema(SchemaRef("id", "5"), REFUND)
    assert isinstance(reported, Rejection)
    assert reported.code == "unknown_record"
    assert decoder.add_schema(SchemaRef("id", "6"), ["null", REFUND, ORDER]) is None
    reported = decoder.add_schema(SchemaRef("id", "7"), {**ORDER, "fields": [avro.field("id", "bytes")]})
    assert isinstance(reported, Rejection)
    assert reported.code == "incompatible_schema"
    # The id may be given another schema later.
    assert decoder.add_schema(SchemaRef("id", "7"), ORDER) is None
    read = decoder.decode(
        Record(0, -1, None, framing_of(SchemaRef("id", "7")) + datum(ORDER, order()), ()), "t"
    )
    assert isinstance(read, dict)


@pytest.mark.parametrize(("how", "name"), [("id", "id 1"), ("union", "id 9"), ("header", f"guid {GUID}")])
def test_what_is_wrong_with_a_datum_names_its_schema(how: str, name: str, readings: Readings) -> None:
    """The message about a datum that cannot be read names its schema, also where the datum is a branch of a union."""
    record = value("order", 0, how)
    assert record.value is not None
    columns = readings.check([record._replace(value=record.value[:-1])], "web.orders")
    verdict = columns.verdicts[0]
    assert isinstance(verdict, Rejection)
    assert f"datum of schema {name}" in verdict.message


def test_a_record_whose_schema_does_not_fit_is_of_its_type_s_section(tmp_path: Path) -> None:
    """A record whose schema does not fit has the section of its type, on the fast path and off it, so that the
    guard and the counts name it."""
    both = readings_of(loaded(tmp_path))
    for decoder in (both.decoder, both.whole):
        decoder.add_schema(SchemaRef("id", "7"), {**CLICK, "fields": [avro.field("id", "bytes")]})
    record = Record(0, -1, None, framing_of(SchemaRef("id", "7")) + b"\x02a", ())
    columns = both.check([value("order", 0, "id"), record], "web.orders")
    verdict = columns.verdicts[1]
    assert isinstance(verdict, Rejection)
    assert verdict.code == "incompatible_schema"
    assert [section_of(columns, row) for row in range(2)] == [1, 2]


@pytest.mark.parametrize(
    "unread", [CLICK | {"fields": [avro.field("id", "bytes")]}, avro.fixed("com.other.Thing", 2)]
)
def test_schemas_of_which_nothing_is_read_are_bounded(unread: dict[str, Any], tmp_path: Path) -> None:
    """At most `MAX_REFUSED_SCHEMAS` schemas are kept that cannot be read or have no section, since producers
    decide how many there are. One that records use stays; a dropped one is asked for again."""
    decoder = Decoder(loaded(tmp_path))
    known, used, stale = len(decoder.known), SchemaRef("id", "1"), SchemaRef("id", "2")
    records = {ref: Record(0, -1, None, framing_of(ref) + b"\x02a", ()) for ref in (used, stale)}
    decoder.add_schema(SchemaRef("id", "3"), ORDER)
    for ref in records:
        assert decoder.add_schema(ref, unread) is not None
    for number in range(MAX_REFUSED_SCHEMAS - 1):
        assert isinstance(decoder.decode(records[used]), Rejection)
        decoder.add_schema(SchemaRef("id", str(1000 + number)), unread)
    assert len(decoder.known) == known + 1 + MAX_REFUSED_SCHEMAS
    assert isinstance(decoder.decode(records[used]), Rejection)
    assert decoder.decode(records[stale]) == stale
    # Readable schemas do not count, and are never dropped.
    assert isinstance(decoder.decode(value("order", 0, "own"), "web.orders"), dict)
    read = framing_of(SchemaRef("id", "3")) + OWN["order"].encode(order(1))[10:]
    assert isinstance(decoder.decode(Record(0, -1, None, read, ()), "web.orders"), dict)


@pytest.mark.parametrize(
    ("how", "ref"), [("union", SchemaRef("id", "9")), ("header", SchemaRef("guid", str(GUID)))]
)
def test_what_a_doubted_union_cannot_read_names_it(how: str, ref: SchemaRef, tmp_path: Path) -> None:
    """What a doubted union cannot read asks for the union's schema, whatever the branch, on the fast path and
    off it: a wrong schema would give the wrong type. Other records are sent."""
    both = readings_of(loaded(tmp_path, f'unknown_record = "refuse"\n{MAPPING}'))
    order, click = value("order", 0, how), value("click", 3, how)
    cut = order._replace(value=(order.value or b"")[:-1])
    records = [order, value("refund", 1, how), cut, click]
    before = both.check(records, "web.orders").verdicts
    for decoder in (both.decoder, both.whole):
        decoder.doubt(ref)
    columns = both.check(records, "web.orders")
    assert (columns.verdicts, len(payloads(columns))) == ({1: ref, 2: ref}, 2)
    for decoder in (both.decoder, both.whole):
        decoder.add_schema(ref, UNION)
    assert both.check(records, "web.orders").verdicts == before
    for decoder in (both.decoder, both.whole):
        decoder.forget(ref)
    assert both.check(records, "web.orders").verdicts == dict.fromkeys(range(4), ref)


def test_an_older_writer_with_an_alias_is_read(tmp_path: Path) -> None:
    """A record of an older writer whose name is an alias of ours is read."""
    writer = {**ORDER, "name": "Purchase", "namespace": "com.oldshop", "aliases": []}
    decoder = Decoder(loaded(tmp_path))
    assert decoder.add_schema(SchemaRef("id", "5"), writer) is None
    whole = framing_of(SchemaRef("id", "5")) + datum(ORDER, order())
    assert isinstance(decoder.decode(Record(0, -1, None, whole, ()), "t"), dict)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x0a", b"\x01", b"\xff" * 11])
def test_a_branch_that_does_not_exist(data: bytes, readings: Readings) -> None:
    """A branch number that is cut off, too high, negative or too long is undecodable."""
    record = Record(0, -1, None, framing_of(SchemaRef("id", "9")) + data, ())
    verdict = readings.check([record], "t").verdicts[0]
    assert isinstance(verdict, Rejection)
    assert verdict.code == "undecodable"


HOW: Final = st.sampled_from(["id", "union", "header", "long", "single-object", "glue", "zlib"])
SPOILED: Final = st.sampled_from(["", "", "", "cut", "longer", "empty"])


@given(
    mixed=st.lists(st.tuples(st.sampled_from([*EVENTS, "null"]), HOW, SPOILED), max_size=12),
    topic=st.sampled_from(["web.landing", "t"]),
)
def test_both_executors_agree(readings: Readings, mixed: list[tuple[str, str, str]], topic: str) -> None:
    """Both executors have the same results for any mixture of types and framings, some of them broken."""
    records = []
    for number, (kind, how, spoiled) in enumerate(mixed):
        record = value(kind, number, "union" if kind == "null" else how)
        data = record.value or b""
        changed = {"cut": data[:-1], "longer": data + b"\0", "empty": b""}.get(spoiled, data)
        records.append(record._replace(value=changed))
    assert len(readings.check(records, topic)) == len(records)
