"""The event generator: repeatable, in the shape of the schema, and right about the dispositions of its events."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import fastavro
import orjson
import pytest

from consumer.conversion.converter import Converter
from consumer.demo import rules
from consumer.demo.generator import Defect, EventGenerator, GeneratedEvent
from consumer.engine.model import ConversionEvent, Converted, Disposition, Filtered
from tests.demo.examples import NOW
from tests.support.mapping import load_mapping

SCHEMA = Path(__file__).parents[2] / "schemas" / "commerce_event.avsc"
MAPPING = SCHEMA.with_suffix(".mapping.toml")


def stopped_clock() -> float:
    """A clock that stands still."""
    return NOW


def generate(n: int, **options: Any) -> list[GeneratedEvent]:
    """This many events of seed 7, or of the given seed."""
    return list(islice(EventGenerator(options.pop("seed", 7), stopped_clock, **options), n))


@pytest.fixture(scope="module")
def events() -> list[GeneratedEvent]:
    """A larger run with duplicates and invalid records."""
    return generate(6000, duplicates=0.05, invalid=0.05)


def test_same_seed_same_events(events: list[GeneratedEvent]) -> None:
    """The events depend only on the seed and the clock."""
    generator = EventGenerator(7, stopped_clock, duplicates=0.05, invalid=0.05)
    again = [*islice(generator, 10), *(next(generator) for _ in range(10))]
    assert again == events[:20]
    assert generate(20, seed=8) != generate(20)


def test_every_event_fits_the_schema(events: list[GeneratedEvent]) -> None:
    """Each event, even an unconvertible one, is encoded by fastavro and decodes to itself."""
    schema = fastavro.parse_schema(json.loads(SCHEMA.read_text()))
    for generated in events:
        if generated.event is None:
            continue
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, generated.event, strict=True)
        stream.seek(0)
        decoded: Any = fastavro.schemaless_reader(stream, schema, None)
        moment = datetime.fromtimestamp(generated.event["occurred_at"] / 1000, UTC)
        assert decoded == generated.event | {"occurred_at": moment}


def test_what_a_record_is_and_how_often(events: list[GeneratedEvent]) -> None:
    """A record is an event to encode, or raw bytes, which begin like none of the wire formats. The shares of duplicates
    and invalid records are about the requested ones, and each defect occurs."""
    for generated in events:
        assert (generated.event is None) is (generated.defect is Defect.UNDECODABLE)
        assert (generated.raw is None) is (generated.event is not None)
        assert generated.raw is None or generated.raw[:1] not in (b"", b"\x00", b"\xc3")
        assert generated.key
    tally = Counter(generated.expected for generated in events)
    assert 0.04 < tally[Disposition.DUPLICATE] / len(events) < 0.06
    assert 0.04 < tally[Disposition.DEAD_LETTERED] / len(events) < 0.06
    assert {generated.defect for generated in events} == {None, *Defect}


def test_by_default_all_is_valid_and_new() -> None:
    """Without shares there are no duplicates and no defects, and no id comes twice."""
    plain = generate(3000)
    assert {generated.expected for generated in plain} == {Disposition.DELIVERED, Disposition.FILTERED}
    assert len({generated.event["event_id"] for generated in plain if generated.event}) == 3000


def test_duplicates_repeat_a_delivered_record(events: list[GeneratedEvent]) -> None:
    """A duplicate is an earlier deliverable record, the same in every byte, key and all."""
    seen: dict[str, GeneratedEvent] = {}
    for generated in events:
        if generated.expected is Disposition.DELIVERED and generated.event is not None:
            assert generated.event["event_id"] not in seen
            seen[generated.event["event_id"]] = generated
        elif generated.expected is Disposition.DUPLICATE:
            assert generated.event is not None
            original = seen[generated.event["event_id"]]
            assert (generated.key, generated.event) == (original.key, original.event)
            assert generated.value is None


def test_sums_are_exact() -> None:
    """The values of the events add up to the totals of distinct deliveries, as decimals."""
    emitted = list(islice(EventGenerator(9, stopped_clock, duplicates=0.1, invalid=0.1), 3000))
    totals = {
        generated.event["event_id"]: Decimal(generated.event["order"]["total"])
        for generated in emitted
        if generated.expected is Disposition.DELIVERED
        and generated.event is not None
        and generated.event["order"] is not None
        and generated.event["order"]["total"] is not None
    }
    assert sum(generated.value or 0 for generated in emitted) == sum(totals.values()) > 0


def disposition_of(converted: Converted, sent: set[tuple[str, str]]) -> Disposition:
    """The disposition of a record if everything is delivered; `sent` remembers the keys."""
    if isinstance(converted, Filtered):
        return Disposition.FILTERED
    if not isinstance(converted, ConversionEvent):
        return Disposition.DEAD_LETTERED
    key = (converted.name, converted.event_id)
    if key in sent:
        return Disposition.DUPLICATE
    sent.add(key)
    return Disposition.DELIVERED


def test_expectations_hold_with_the_real_converter(events: list[GeneratedEvent]) -> None:
    """With the default mapping each event gets the expected disposition, and what is sent passes the rules."""
    schema = json.loads(SCHEMA.read_text())
    mapping = load_mapping(None, schema, default_toml=MAPPING.read_text())
    converter = Converter(mapping, accounts=("1",), max_event_age=rules.MAX_AGE)
    sent: set[tuple[str, str]] = set()
    for generated in events:
        if generated.event is None:
            continue
        converted = converter.convert(generated.event, NOW)
        assert disposition_of(converted, sent) is generated.expected
        if isinstance(converted, ConversionEvent):
            payload = orjson.loads(orjson.dumps(converted.payload))
            assert rules.check_event(payload, NOW) is None
            assert rules.warning_for(payload) is None
            value = payload.get("custom_data", {}).get("value")
            if generated.expected is Disposition.DELIVERED:
                assert generated.value == (None if value is None else Decimal(value))
