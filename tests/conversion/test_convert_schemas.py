"""Schemas other than the packaged one: times and days in every unit, decimals, maps, unions, single items."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from consumer.conversion.converter import Converter
from consumer.engine.model import ConversionEvent, Converted, Rejection
from tests.support import avro
from tests.support.mapping import load_mapping

ROOT = Path(__file__).parents[2]
DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()
NOW = 1760000000.0
SENT = 1759999000


def digest(text: str) -> str:
    """Return what a hashed field sends for normalised text."""
    return hashlib.sha256(text.encode()).hexdigest()


def convert(fields: dict[str, Any], event: dict[str, Any], overlay: str = "") -> Converted:
    """Convert `event` under a schema of the required fields and `fields`, which may replace them."""
    types: dict[str, Any] = {
        "event_id": "string", "event_type": "string", "occurred_at": "long", "channel": "string", "maid": "string",
        **fields,
    }  # fmt: skip
    schema = avro.record("Event", *[avro.field(name, kind) for name, kind in types.items()])
    overlay = (
        f'{overlay}\n[fields]\nuser_data.hashed_maids = "maid"\n' if "[fields]" not in overlay else overlay
    )
    mapping = load_mapping(overlay, schema, default_toml=DEFAULT)
    converter = Converter(mapping, accounts=("1",), max_event_age=7 * 86400.0)
    plain = {
        "event_id": "e", "event_type": "checkout", "occurred_at": SENT * 1000, "channel": "web",
        "maid": "aebe52e7-03ee-455a-b3c4-e57283966239",
    }  # fmt: skip
    return converter.convert({**plain, **event}, NOW)


def logical(kind: str, name: str) -> dict[str, str]:
    """Return an Avro type with a logical type."""
    return {"type": kind, "logicalType": name}


TIMES = {
    "millis": (logical("long", "timestamp-millis"), SENT * 10**3 + 999, ""),
    "micros": (logical("long", "timestamp-micros"), SENT * 10**6 + 999_999, ""),
    "nanos": (logical("long", "timestamp-nanos"), SENT * 10**9 + 999_999_999, ""),
    "local millis": (logical("long", "local-timestamp-millis"), SENT * 10**3, ""),
    "local micros": (logical("long", "local-timestamp-micros"), SENT * 10**6, ""),
    "plain long": ("long", SENT * 10**3, ""),
    "nullable": (["null", logical("long", "timestamp-micros")], SENT * 10**6, ""),
    "seconds": ("long", SENT, 'time_unit = "seconds"'),
    "seconds as a double": ("double", SENT + 0.999, 'time_unit = "seconds"'),
    "nanoseconds": ("long", SENT * 10**9, 'time_unit = "nanoseconds"'),
    "text": ("string", "2025-10-09T08:36:40Z", ""),
    "text with a fraction": ("string", "2025-10-09T08:36:40.999999999Z", ""),
    "text with a zone": ("string", "2025-10-09T10:36:40+02:00", ""),
    "text without a zone": ("string", "2025-10-09 08:36:40", ""),
    "text in the basic form": ("string", "20251009T083640Z", ""),
    "a number as text": ("string", f"{SENT}000", ""),
    "seconds as text": ("string", f" {SENT} ", 'time_unit = "seconds"'),
    "text in a union": (["null", "string", logical("long", "timestamp-micros")], "2025-10-09T08:36:40Z", ""),
}


@pytest.mark.parametrize("given", TIMES.values(), ids=TIMES)
def test_time_comes_in_the_schemas_own_unit(given: tuple[Any, Any, str]) -> None:
    """From any unit of time ``event_time`` is whole seconds, rounded down."""
    kind, value, overlay = given
    event = convert({"occurred_at": kind}, {"occurred_at": value}, overlay)
    assert isinstance(event, ConversionEvent), event
    assert event.payload["event_time"] == event.time == SENT


def test_a_date_is_its_midnight() -> None:
    """An event with only a day, as a number of days or as text, happened at midnight UTC."""
    for value in (20370, "2025-10-09"):
        event = convert({"occurred_at": [logical("int", "date"), "string"]}, {"occurred_at": value})
        assert isinstance(event, ConversionEvent)
        assert event.time == 20370 * 86400


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_event_time"),
        ("", "missing_event_time"),
        ("yesterday", "malformed_event_time"),
        ("2025-13-01T00:00:00Z", "malformed_event_time"),
        ("1759", "malformed_event_time"),
        (float("nan"), "malformed_event_time"),
        (float("inf"), "malformed_event_time"),
        (True, "malformed_event_time"),
        (10**30, "future_event_time"),
        (-(10**30), "expired"),
        ("9999-12-31T23:59:59Z", "future_event_time"),
        ("0001-01-01", "expired"),
    ],
)
def test_wrong_times_refuse_the_event(value: Any, code: str) -> None:
    """A time that is missing, malformed or absurd refuses the event with a code of its own."""
    result = convert({"occurred_at": ["null", "string", "double", "long"]}, {"occurred_at": value})
    assert isinstance(result, Rejection)
    assert result.code == code


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", "1996-03-14"),
        ("int", 19960314),
        (logical("int", "date"), 9569),
        (logical("long", "timestamp-millis"), 826761600000 + 5),
        (logical("long", "timestamp-micros"), 826761600000000 + 86399999999),
    ],
)
def test_a_birthday_in_every_form(kind: Any, value: Any) -> None:
    """A birthday as text, digits, a day or a moment is sent as ``YYYYMMDD``."""
    overlay = '[fields]\nuser_data.hashed_maids = "maid"\nuser_data.db = "born"'
    event = convert({"born": kind}, {"born": value}, overlay)
    assert isinstance(event, ConversionEvent)
    assert event.payload["user_data"]["db"] == [digest("19960314")]


def test_a_birthday_beyond_the_calendar_is_omitted() -> None:
    """A birthday outside the calendar is malformed and omitted."""
    overlay = '[fields]\nuser_data.hashed_maids = "maid"\nuser_data.db = "born"'
    for days in (-(2**31), 2**31 - 1):
        event = convert({"born": logical("int", "date")}, {"born": days}, overlay)
        assert isinstance(event, ConversionEvent)
        assert "db" not in event.payload["user_data"]
        assert [warning.field for warning in event.warnings] == ["user_data.db"]


def test_the_app_and_device_objects_keep_their_bounds() -> None:
    """Numbers outside their range, words that are no choice, and long text in the app and device objects are
    omitted with a warning."""
    fields = {"m": avro.map_of(["string", "long"])}
    overlay = '[fields]\nuser_data.hashed_maids = "maid"\n' + "\n".join(
        f'{name} = "m.{name.rpartition(".")[2]}"'
        for name in (
            "device_info.battery_level", "device_info.cpu_cores", "device_info.os_family", "device_info.form_factor",
            "device_info.timezone_abbr", "app_info.install_time", "app_info.window_width",
        )
    )  # fmt: skip
    values = {
        "battery_level": 101, "cpu_cores": 8, "os_family": "iOS", "form_factor": "toaster",
        "timezone_abbr": "Central", "install_time": 1739222269000, "window_width": "1678",
    }  # fmt: skip
    event = convert(fields, {"m": values}, overlay)
    assert isinstance(event, ConversionEvent)
    assert event.payload["device_info"] == {"cpu_cores": 8, "os_family": "ios"}
    assert event.payload["app_info"] == {"install_time": 1739222269, "window_width": 1678}
    assert sorted(warning.field for warning in event.warnings) == [
        "device_info.battery_level",
        "device_info.form_factor",
        "device_info.timezone_abbr",
    ]
