"""Lines of NDJSON: plain JSON in the shape of the schema."""

from __future__ import annotations

import json
import math
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.decode import OneSchema
from consumer.avro.ndjson import MAX_LINE_BYTES, LinePlan, parse_line
from consumer.engine.model import Filtered, Rejection, Stage
from tests.support import avro

PACKAGED = json.loads((Path(__file__).parents[2] / "schemas" / "commerce_event.avsc").read_text("utf-8"))
PLAN = LinePlan(OneSchema(PACKAGED))
LEAST: dict[str, Any] = {
    "event_id": "e-1",
    "event_type": "order_completed",
    "occurred_at": 1_760_000_000_000,
    "channel": "WEB",
    "customer": {},
}


def line(**changes: Any) -> bytes:
    """Return the least line that fits the packaged schema, with `changes`."""
    return json.dumps({**LEAST, **changes}).encode()


def parsed(data: bytes, plan: LinePlan = PLAN) -> dict[str, Any]:
    """Return the event of a line that fits."""
    event = parse_line(data, plan)
    assert not isinstance(event, Rejection | Filtered), event
    return event


def rejection(data: bytes, plan: LinePlan = PLAN) -> Rejection:
    """Return the rejection of a line that does not fit."""
    verdict = parse_line(data, plan)
    assert isinstance(verdict, Rejection)
    assert verdict.stage is Stage.DECODE
    return verdict


def plan_of(kind: Any, **more: Any) -> LinePlan:
    """Return the plan of a record with one field ``v``."""
    return LinePlan(OneSchema(avro.record("E", {"name": "v", "type": kind, **more})))


def value_of(kind: Any, literal: str) -> Any:
    """Return what `literal` is read as for a field of type `kind`."""
    return parsed(b'{"v": %s}' % literal.encode(), plan_of(kind))["v"]


def test_missing_fields_take_the_default() -> None:
    """Missing fields take their default at every level, and each event has its own copy."""
    first, second = parsed(line(order={"items": [{}]})), parsed(line())
    assert first["customer"]["emails"] == []
    assert first["order"]["items"] == [
        {"sku": None, "name": None, "category": None, "brand": None, "price": None, "quantity": 1}
    ]
    assert first["opt_out"] is False
    first["customer"]["emails"].append("x")
    assert second["customer"]["emails"] == []
    assert second["order"] is None


def test_a_missing_field_without_default_is_named() -> None:
    """A missing field without a default is named with its path."""
    assert rejection(b"{}").message == "field event_id: is missing, and has no default"
    nested = avro.record("R", x="int")
    plan = plan_of(avro.array(nested))
    assert rejection(b'{"v": [{"x": 1}, {}]}', plan).message.startswith("field v[1].x: ")


def test_unknown_fields_are_ignored() -> None:
    """Fields that the schema lacks are ignored, as are fields that only a writer has."""
    assert parsed(line(nonsense={"a": 1})) == parsed(line())


def test_a_line_may_name_its_type() -> None:
    """A line may name its record type, as Avro's JSON encoding of a union does: the schema may be a branch of
    the union that was exported."""
    named = b'{"commerce.v1.CommerceEvent": %s}' % line()
    assert parsed(named) == parsed(line())
    assert rejection(b'{"commerce.v1.Other": %s}' % line()).code == "misfit"


def test_aliases_are_accepted() -> None:
    """A field may be called by an alias; its own name goes first."""
    plan = plan_of("int", aliases=["old"])
    assert parsed(b'{"old": 1}', plan) == {"v": 1}
    assert parsed(b'{"old": 1, "v": 2}', plan) == {"v": 2}


@pytest.mark.parametrize(
    "literal", ["27.50", "0.1", "1E3", "-0", "123456789012345678901234567890", "1.10e-7"]
)
def test_a_number_where_text_is_wanted_keeps_its_literal(literal: str) -> None:
    """A number where text is wanted keeps its literal, without going through a float."""
    event = parsed(b'{"order": {"total": %s}, ' % literal.encode() + line()[1:])
    assert event["order"]["total"] == literal
    assert type(event["order"]["total"]) is str


@pytest.mark.parametrize(
    ("kind", "literal", "expected"),
    [
        ("int", "5", 5),
        ("int", "2.0", 2),
        ("int", "2e3", 2000),
        ("int", "-0", 0),
        ("long", "9223372036854775807", 2**63 - 1),
        ("double", "1", 1.0),
        ("double", "0.1", 0.1),
        ("float", "1e3", 1000.0),
        ("boolean", "true", True),
        ("null", "null", None),
        ("bytes", '"\\u00ff"', b"\xff"),
        (avro.fixed("F", 2), '"ab"', b"ab"),
        (avro.map_of("long"), '{"k": 1}', {"k": 1}),
        (avro.decimal(6, 2), "27.5", Decimal("27.50")),
        (avro.decimal(6, 2), '"27.50"', Decimal("27.50")),
        (avro.logical("string", "uuid"), '"x"', "x"),
        (
            avro.fixed("U", 16, logicalType="uuid"),
            '"0123456789abcdef"',
            "30313233-3435-3637-3839-616263646566",
        ),
    ],
)
def test_leaves(kind: Any, literal: str, expected: Any) -> None:
    """Each primitive type is read as the exact Python type of a decoded record."""
    value = value_of(kind, literal)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("kind", "literal"),
    [
        ("string", "true"),
        ("string", "null"),
        ("string", "[]"),
        ("string", '"\\ud800"'),
        ("int", '"5"'),
        ("int", "1.5"),
        ("int", "2147483648"),
        ("int", "1e999999999"),
        ("int", "1e99999999999999999999999"),
        ("int", "0e99999999999999999999999"),
        ("int", "true"),
        ("int", "null"),
        ("long", "9223372036854775808"),
        ("double", "1e999"),
        ("double", '"1"'),
        ("double", "false"),
        ("boolean", "0"),
        ("boolean", '"true"'),
        ("null", "0"),
        ("bytes", '"\\u0100"'),
        ("bytes", "1"),
        (avro.fixed("F", 2), '"abc"'),
        (avro.enum("C", "A"), '"B"'),
        (avro.enum("C", "A"), "0"),
        (avro.array("int"), "{}"),
        (avro.map_of("int"), "[]"),
        (avro.map_of("int"), '{"jane@example.com": "x"}'),
        (avro.decimal(4, 2), "1.234"),
        (avro.decimal(4, 2), "100"),
        (avro.decimal(4, 2), "1e999999"),
        (avro.decimal(4, 2), '"jane@example.com"'),
        (["null", "int"], '"jane@example.com"'),
        (["null", "int", "boolean"], '"jane@example.com"'),
        (["int", "string"], "null"),
        (avro.record("R"), "[]"),
        (avro.logical("int", "date"), "3000000000"),
    ],
)
def test_what_does_not_fit_is_a_misfit_that_reports_no_value(kind: Any, literal: str) -> None:
    """The rejection of a value that does not fit names the field and what is expected there, never the value."""
    verdict = rejection(b'{"v": %s}' % literal.encode(), plan_of(kind))
    assert verdict.code == "misfit"
    assert verdict.message.startswith("field v")
    assert "expected" in verdict.message
    assert "jane" not in verdict.message


def test_enums() -> None:
    """An unknown symbol takes the enum's default."""
    assert parsed(line(channel="TV"))["channel"] == "UNKNOWN"
    assert parsed(line(channel="IOS"))["channel"] == "IOS"


MILLIS = avro.logical("long", "timestamp-millis")
MICROS = avro.logical("long", "timestamp-micros")


@pytest.mark.parametrize(
    ("kind", "literal", "expected"),
    [
        (MILLIS, "1760000000123", 1_760_000_000_123),
        (MICROS, "1760000000123", 1_760_000_000_123_000),
        (MILLIS, '"2025-10-09T08:53:20.123Z"', 1_760_000_000_123),
        (MICROS, '"2025-10-09T08:53:20.123Z"', 1_760_000_000_123_000),
        (MILLIS, '"2025-10-09T10:53:20.1239+02:00"', 1_760_000_000_123),
        (MILLIS, '"2025-10-09T08:53:20"', 1_760_000_000_000),
        (MILLIS, '"2025-10-09 08:53:20z"', 1_760_000_000_000),
        (MILLIS, '"20251009T085320Z"', 1_760_000_000_000),
        (MILLIS, '"1970-01-02"', 86_400_000),
        (["null", MILLIS], '"1970-01-01T00:00:01Z"', 1000),
        (["boolean", MILLIS], '"1970-01-01T00:00:01Z"', 1000),
        (["null", "string", MILLIS], '"1970-01-01T00:00:01Z"', "1970-01-01T00:00:01Z"),
        (MILLIS, '"1969-12-31T23:59:59.999999Z"', -1),
        (MICROS, '"2025-10-09T08:53:20.123456Z"', 1_760_000_000_123_456),
        (avro.logical("long", "local-timestamp-millis"), '"1970-01-01T00:00:01+05:00"', 1000),
        (avro.logical("int", "date"), '"1969-12-31"', -1),
        (avro.logical("int", "time-millis"), '"00:00:01.5"', 1500),
        (avro.logical("int", "date"), '"1970-01-11"', 10),
        (avro.logical("int", "date"), "10", 10),
        (avro.logical("int", "time-millis"), '"00:01:00"', 60_000),
        (avro.logical("long", "time-micros"), "5", 5000),
    ],
)
def test_times_are_milliseconds_or_iso_8601(kind: Any, literal: str, expected: Any) -> None:
    """Whatever the schema's unit, times are written as milliseconds or as ISO 8601, which is UTC without an offset."""
    assert value_of(kind, literal) == expected


@pytest.mark.parametrize(
    "literal",
    [
        '"yesterday"', '"1760000000123"', '"1712010112345"', '"2025-13-01"', '"2025-10-09T25:00"', "1.5", "1e30",
        "true",
    ],
)  # fmt: skip
def test_what_is_no_time_is_a_misfit(literal: str) -> None:
    """Text and numbers that are no time are misfits; so are digits in quotes, in which Python would find a date."""
    verdict = rejection(b'{"v": %s}' % literal.encode(), plan_of(MILLIS))
    assert verdict.code == "misfit"


@pytest.mark.parametrize(
    ("unit", "count", "readings"),
    [
        ("micros", 1_772_366_340_000_000, "as milliseconds it is the year 58134, as microseconds 2026"),
        ("millis", 1_772_366_340_000_000, "as milliseconds it is the year 58134, as microseconds 2026"),
        ("nanos", 1_772_366_340_000_000_000, "as milliseconds it is the year 56166023, as nanoseconds 2026"),
        ("micros", -377_705_116_800_000, "as milliseconds it is the year -9999, as microseconds 1958"),
        ("micros", 253_402_300_800_000, "as milliseconds it is the year 10000, as microseconds 1978"),
        ("nanos", 10**19, "as milliseconds it is the year 316889355, as nanoseconds 2286"),
    ],
)
@pytest.mark.parametrize("clock", ["timestamp", "local-timestamp"])
def test_a_whole_number_of_another_unit_is_refused_with_both_readings(
    unit: str, count: int, readings: str, clock: str
) -> None:
    """A whole number that is no year of the calendar as milliseconds is refused. The message has the year under
    both units, which tells nothing of a person, and what to write."""
    plan = plan_of(["null", avro.logical("long", f"{clock}-{unit}")])
    verdict = rejection(b'{"v": %d}' % count, plan)
    assert verdict.code == "misfit"
    assert verdict.message == f"field v: {readings}: write milliseconds or ISO 8601 text"


@pytest.mark.parametrize("count", [-62_135_596_800_000, 253_402_300_799_999])
def test_every_millisecond_of_the_calendar_is_one(count: int) -> None:
    """Each millisecond from the first of year 1 to the last of year 9999 is read."""
    assert value_of(MICROS, str(count)) == count * 1000


ORDER = avro.record(
    "shop.Order",
    avro.field("total", ["null", "string"], default=None),
    avro.field("string", ["null", "string"], default=None),
)


@pytest.mark.parametrize(
    ("kind", "literal", "expected"),
    [
        (["null", "string"], '{"string": "x"}', "x"),
        (["null", "int", "string"], '{"int": 5}', 5),
        (["null", ORDER], '{"shop.Order": {"total": "1"}}', {"total": "1", "string": None}),
        (["null", ORDER], '{"Order": {"total": 1}}', {"total": "1", "string": None}),
        (["null", ORDER], '{"string": "x"}', {"total": None, "string": "x"}),
        (["null", avro.map_of("string")], '{"map": "x"}', {"map": "x"}),
        (["null", avro.map_of("string")], '{"map": {"k": "x"}}', {"k": "x"}),
    ],
)
def test_tagged_unions_are_tolerated_where_they_are_clear(kind: Any, literal: str, expected: Any) -> None:
    """Avro's own JSON encoding of a union value is accepted; a value that can be read without the tag is read
    without it."""
    assert value_of(kind, literal) == expected


CIRCLE = avro.record("Circle", r="int")
SQUARE = avro.record("Square", avro.field("a", "int"), avro.field("r", "int", default=0))


@pytest.mark.parametrize(
    ("kind", "literal", "expected"),
    [
        (["string", "int"], "5", 5),
        (["string", "double"], "5.5", 5.5),
        (["double", "long"], "5", 5),
        (["long", "double"], "5.5", 5.5),
        (["int", "long"], "3000000000", 3_000_000_000),
        (["string", "boolean"], "true", True),
        (["boolean", "string"], "27.50", "27.50"),
        (["bytes", "string"], '"x"', "x"),
        ([MILLIS, "string"], '"1970-01-01T00:00:01Z"', "1970-01-01T00:00:01Z"),
        ([MILLIS, "boolean"], '"1970-01-01T00:00:01Z"', 1000),
        (["null", CIRCLE, SQUARE], '{"r": 1}', {"r": 1}),
        (["null", CIRCLE, SQUARE], '{"r": 1, "a": 2}', {"a": 2, "r": 1}),
        (["null", CIRCLE, avro.map_of("int")], '{"x": 1}', {"x": 1}),
        ([avro.enum("C", "A"), "string"], '"A"', "A"),
        ([avro.enum("C", "A", default="A"), "string"], '"B"', "B"),
        (["null", avro.array("int"), "string"], "[1]", [1]),
        # In a file, text of a time fits a time and a UUID equally well, so the first branch is taken.
        ([avro.logical("long", "timestamp-millis"), avro.logical("string", "uuid")], '"1970-01-01T00:00:01Z"', 1000),
        ([avro.logical("string", "uuid"), avro.logical("long", "timestamp-millis")], '"1970-01-01T00:00:01Z"',
         "1970-01-01T00:00:01Z"),
    ],
)  # fmt: skip
def test_a_bare_value_goes_to_the_branch_it_fits_best(kind: Any, literal: str, expected: Any) -> None:
    """A value without a tag goes to the branch that it fits best, and to the first of equals."""
    value = value_of(kind, literal)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"{'a': 1}", "not_json"),
        (b"{} {}", "not_json"),
        (b'{"event_id": NaN}', "not_json"),
        (b'{"v": -Infinity}', "not_json"),
        (b"\xff\xfe{\x00}\x00", "not_json"),
        (b'{"a": "\xed\xa0\x80"}', "not_json"),
        (b"[]", "not_an_object"),
        (b"null", "not_an_object"),
        (b"5", "not_an_object"),
        (b'"{}"', "not_an_object"),
        (b"[" * 1_000_000, "too_large"),
        (b'{"a":' * 1_000_000, "too_large"),
        (b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}', "too_large"),
        (b'{"event_id": ' + b"9" * 1_000_000 + b"}", "misfit"),
        (b'{"occurred_at": ' + b"9" * 1_000_000 + b', "event_id": "", "event_type": ""}', "misfit"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_lines_are_rejected(data: bytes, code: str) -> None:
    """Hostile lines are rejected in bounded time, without an exception."""
    started = time.perf_counter()
    assert rejection(data).code == code
    assert time.perf_counter() - started < 3


def test_a_byte_order_mark_is_no_reason_to_refuse() -> None:
    """A byte order mark, which some editors put before the first line, is ignored."""
    assert parsed(b"\xef\xbb\xbf" + line()) == parsed(line())


def test_the_last_of_equal_keys_counts() -> None:
    """Of equal keys the last counts, as in nearly every JSON parser."""
    assert parsed(b'{"v": 1, "v": 2}', plan_of("int")) == {"v": 2}


def test_unions_within_unions_are_bounded() -> None:
    """A line that could be tried in 2^60 ways, by unions within unions, is given up in bounded time."""
    node: dict[str, Any] = avro.record("A", c=["A", avro.record("B", c=["A", "B", "int"]), "int"])
    data = b'{"c":' * 60 + b'"no"' + b"}" * 60
    started = time.perf_counter()
    assert rejection(data, LinePlan(OneSchema(node))).code == "too_large"
    assert time.perf_counter() - started < 5


def test_recursive_schemas() -> None:
    """A record that holds itself is read; if it is nested too deeply, the line is rejected."""
    plan = LinePlan(OneSchema(avro.record("N", avro.field("n", ["null", "N"], default=None))))
    assert parsed(b'{"n": {"n": null}}', plan) == {"n": {"n": None}}
    assert rejection(b'{"n":' * 900 + b"{}" + b"}" * 900, plan).code == "too_large"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from([*LEAST, "order", "device", "customer"]), JSON)
@settings(max_examples=300, deadline=None)
def test_no_json_raises(name: str, value: Any) -> None:
    """Whatever JSON a field holds, the line is read or rejected without an exception."""
    result = parse_line(json.dumps({**LEAST, name: value}).encode(), PLAN)
    assert isinstance(result, dict | Rejection)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise(data: bytes) -> None:
    """Whatever bytes a line holds, it is read or rejected without an exception."""
    assert isinstance(parse_line(data, PLAN), dict | Rejection)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_what_they_were(value: float) -> None:
    """The shortest literal of a double is read as the same double."""
    assert math.copysign(1, value_of("double", repr(value))) == math.copysign(1, value)
    assert value_of("double", repr(value)) == value
