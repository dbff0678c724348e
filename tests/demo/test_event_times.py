"""Moving an event in time: in whatever form the time is, it becomes that much later, and nothing else changes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from consumer.conversion.decisions import Decisions
from consumer.conversion.mapping import Mapping
from consumer.demo.records import EventTimes
from tests.conversion.test_convert import DEFAULT
from tests.support import avro
from tests.support.mapping import load_mapping

MAPPING = """
time_unit = "seconds"
[fields]
event_id = "id"
event_name = "id"
event_time = "meta.times.at"
[constants]
action_source = "web"
"""


def logical(kind: str, name: str) -> dict[str, Any]:
    """Return a type with a logical type."""
    return {"type": kind, "logicalType": name}


def mapping_for(kind: Any) -> Mapping:
    """Return a mapping under which the time is of this type, two levels down in a map."""
    times = {"type": "map", "values": ["null", kind]}
    schema = avro.record("Event", id="string", meta=avro.record("Meta", times=times, note="string"))
    return load_mapping(MAPPING, schema, default_toml=DEFAULT)


def event(at: Any) -> dict[str, Any]:
    """Return an event at this time."""
    return {"id": "e", "meta": {"times": {"at": at, "other": 7}, "note": "n"}}


@pytest.mark.parametrize(
    ("kind", "before", "seconds", "after"),
    [
        ("long", 1_700_000_000, 90, 1_700_000_090),
        ("double", 1_700_000_000.25, 90, 1_700_000_090.25),
        (logical("long", "timestamp-millis"), 1_700_000_000_123, 90, 1_700_000_090_123),
        (logical("long", "timestamp-micros"), -5, 1, 999_995),
        (logical("int", "date"), 20_000, 3 * 86_400 + 5, 20_003),
        ("string", "1700000000", 90, "1700000090"),
        ("string", "2026-11-25T10:00:00Z", 90, "2026-11-25T10:01:30.000+00:00"),
        ("string", "2026-11-25T12:00:00+02:00", 90, "2026-11-25T10:01:30.000+00:00"),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 14, "scale": 3},
            Decimal("1700000000.125"),
            90,
            Decimal("1700000090.125"),
        ),
    ],
    ids=str,
)
def test_a_time_is_moved_in_its_own_form(kind: Any, before: Any, seconds: int, after: Any) -> None:
    """A time is moved in its own form, and the converter reads the moved time as that many seconds later."""
    mapping, original = mapping_for(kind), event(before)
    times = EventTimes(mapping)
    moved = times.moved(original, seconds)
    assert moved == event(after)
    assert original == event(before)
    decisions = Decisions(mapping, ("1",), 1e12, 0.0)
    for at, one in ((before, original), (after, moved)):
        units = decisions.time_of(at)
        assert isinstance(units, int)
        assert units / decisions.units == times.seconds(one)


@pytest.mark.parametrize(
    "broken", [event(None), event("soon"), event(""), {"id": "e", "meta": None}, {"id": "e"}], ids=str
)
def test_what_has_no_time_stays_as_it_is(broken: dict[str, Any]) -> None:
    """An event without a time that can be read is not changed: the consumer reports what is wrong with it."""
    times = EventTimes(mapping_for("string"))
    assert times.seconds(broken) is None
    assert times.moved(broken, 5) == broken


def test_a_time_that_is_computed_is_moved_wherever_it_may_stand() -> None:
    """With alternatives for the time, the values at all their paths are moved, since any of them may count."""
    schema = avro.record("Event", id="string", paid=["null", "long"], made="long", dept="long")
    overlay = MAPPING.replace(
        '"meta.times.at"', '{ first = [{ path = "paid", when = { dept = 1 } }, "made"] }'
    )
    times = EventTimes(load_mapping(overlay, schema, default_toml=DEFAULT))
    event = {"id": "e", "paid": 1_700_000_000, "made": 1_600_000_000, "dept": 1}
    assert times.seconds(event) == 1_700_000_000
    assert times.moved(event, 90) == {**event, "paid": 1_700_000_090, "made": 1_600_000_090}
    assert times.seconds({**event, "paid": None}) == 1_600_000_000
    assert times.moved({**event, "paid": None}, 90) == {**event, "paid": None, "made": 1_600_000_090}
