"""``make bench ARGS="--file F"``: the user's own events, schema and mapping, from end to end and step by step."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.own import (
    NothingToMeasure,
    OwnPlan,
    measure_own,
    own_steps,
    own_systems,
    plain_mapping,
    read_own,
    values_of,
    with_number,
)
from benchmarks.report import machine_before, own_part
from benchmarks.rivals.mapped import Mapped
from benchmarks.rivals.mapped import conversion as mapped_conversion
from benchmarks.tables import own_note, own_tables
from consumer.avro.paths import EACH
from consumer.conversion.converter import Converter
from consumer.engine.model import ConversionEvent
from tests.conversion.convert_records import TYPED as SCHEMA
from tests.conversion.convert_records import TYPED_OVERLAY as MAPPING
from tests.support.kafka.harness import Kafka

PLAN = OwnPlan(events=4_000, warm_up=1_000, runs=1)
NOW = 1_795_000_000


def event(number: int) -> dict[str, Any]:
    """A purchase in the shape of the schema, as NDJSON has it."""
    line = {"sku": 4711, "title": "Blue shoes", "brand": "Acme", "unit_price": 64.95, "weight": 0.5, "qty": 2}
    return {
        "id": str(uuid.UUID(int=number)),
        "kind": "PURCHASE",
        "ts": NOW * 1000,
        "source": "WEB",
        "url": "https://shop.example/thanks",
        "user": {
            "email": " Ann@Example.com",
            "phone": 14155550100,
            "user_id": 42,
            "born": "1984-02-29",
            "zip": 94107,
            "country": "DE",
        },
        "ip": "203.0.113.7",
        "agent": "Mozilla/5.0",
        "props": {"epik": "dj0y"},
        "purchase": {"number": 7, "currency": "EUR", "total": 129.9, "lines": [line]},
    }


@pytest.fixture
def shop(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A file of events and the environment that says how to read them."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "shop.avsc").write_text(json.dumps(SCHEMA))
    (tmp_path / "shop.toml").write_text(MAPPING)
    lines = [json.dumps(event(number)) for number in range(5)]
    (tmp_path / "events.ndjson").write_text("\n".join([*lines, "{}"]) + "\n")
    environ = {
        "PINSTREAM_SCHEMAS_DIR": str(folder),
        "PINSTREAM_SCHEMA": "TrackingEvent",
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "shop.toml"),
    }
    return str(tmp_path / "events.ndjson"), environ


def test_what_is_not_deliverable_is_omitted_and_counted(shop: tuple[str, dict[str, str]]) -> None:
    """Events of any age are measured; lines that do not fit and events that would be refused are not."""
    own = read_own(*shop)
    assert (len(own.events), own.omitted) == (5, 1)
    assert own.settings.keys() == {*shop[1], "PINSTREAM_MAX_EVENT_AGE"}


def test_a_file_of_nothing_says_so(shop: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """The message says so, and how to find out why."""
    (tmp_path / "nothing.ndjson").write_text("{}\n")
    with pytest.raises(
        NothingToMeasure, match="none of 1 records is deliverable; `pinstream explain` says why"
    ):
        read_own(str(tmp_path / "nothing.ndjson"), shop[1])


def test_the_same_events_come_again_under_other_ids(shop: tuple[str, dict[str, str]]) -> None:
    """Otherwise all but the first would be duplicates."""
    own = read_own(*shop)
    values = values_of(own, 23)
    assert len(set(values)) == len(values) == 23
    assert len({len(value) for value in values}) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("00000000-0000-0000-0000-0000000000ab", "00000000-0000-0000-0000-00000000000c"),
        ("order-4711", "ord000000c"),
        ("x", "x000000c"),
        (9, 13),
    ],
)
def test_an_id_is_changed_in_its_own_shape(value: Any, expected: Any) -> None:
    """A UUID stays a UUID, a number stays a number; the rest of the event is unchanged."""
    before = {"meta": {"id": value}}
    assert with_number(before, ("meta", "id"), 12) == {"meta": {"id": expected}}
    assert before == {"meta": {"id": value}}


def test_the_plain_consumer_sends_the_same_facts(shop: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """For an event in its usual spelling the plain consumer sends the same facts as pinstream: it does the same job."""
    own = read_own(*shop)
    _, _, plain = own_systems(own, tmp_path)
    assert plain.key == "plain"
    converter = Converter(own.mapping, accounts=("1",), max_event_age=1e12)
    ours = converter.convert(own.events[0], NOW)
    assert isinstance(ours, ConversionEvent)
    theirs = mapped_conversion(tmp_path / "schema.json", tmp_path / "mapping.json")(values_of(own, 1)[0])
    assert theirs.keys() == ours.payload.keys()
    same = ("em", "ph", "external_id", "zp", "click_id", "client_ip_address")
    assert [theirs["user_data"][key] for key in same] == [ours.payload["user_data"][key] for key in same]
    assert theirs["user_data"].keys() == ours.payload["user_data"].keys()
    assert theirs["event_time"] == ours.payload["event_time"] == NOW
    assert theirs["event_name"] == "checkout"
    assert theirs["custom_data"]["contents"] == [
        {"id": 4711, "item_name": "Blue shoes", "item_brand": "Acme", "item_price": "64.95", "quantity": 2}
    ]
    assert theirs["custom_data"].keys() == ours.payload["custom_data"].keys()


def test_the_plain_conversion_takes_times_and_sums_as_they_come(shop: tuple[str, dict[str, str]]) -> None:
    """Text, numbers of the mapping's unit, several values."""
    mapping = plain_mapping(read_own(*shop).mapping) | {
        "fields": [
            ("event_time", ["when"], False),
            ("custom_data.num_items", ["lines", EACH, "n"], False),
            ("custom_data.value", ["value"], False),
        ],
        "items": [],
        "item_fields": [],
        "constants": {"action_source": "web"},
        "units": 1000,
    }
    convert = Mapped(mapping).convert
    record = {
        "when": "2026-11-25T00:00:00+00:00",
        "lines": [{"n": 2}, {"n": None}, {"n": 3}],
        "value": Decimal("1.50"),
    }
    assert convert(record) == {
        "event_time": 1_795_564_800,
        "action_source": "web",
        "custom_data": {"num_items": 5, "value": "1.50"},
    }
    assert convert({"when": 1_500})["event_time"] == 1


def test_without_the_plain_consumer_its_share_is_blank() -> None:
    """It is omitted where the mapping computes values."""
    found = {"name": "pinstream", "cpu_us": 7.1, "events_per_second": 90_000, "peak_mib": 140.0}
    systems, _ = own_tables({"systems": {"pinstream": found}, "stages_cpu_us": {}})
    assert systems.rows == [("pinstream", "7.1", "", "90,000", "140")]


@pytest.mark.slow("the benchmark, from end to end")
@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_from_a_file_to_the_tables(kafka: Kafka, shop: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """pinstream on both of its paths and the plain consumer, over the same records; figures of each."""
    reported: list[str] = []
    own = read_own(*shop)
    part = own_part(
        measure_own(
            kafka.bootstrap_servers, own, PLAN, tmp_path, reported.append, f"own-{uuid.uuid4().hex[:8]}"
        ),
        machine_before(),
    )
    assert len(reported) == own_steps(PLAN)
    systems, stages = own_tables(part)
    assert [row[0] for row in systems.rows] == ["pinstream", "pinstream, two steps", "plain consumer"]
    assert all(float(row[1]) > 0 for row in [*systems.rows, *stages.rows])
    assert systems.rows[2][2] == "1.00"
    assert own_note(part).startswith("5 events of about ")
    assert "(1 that are not deliverable omitted)" in own_note(part)
