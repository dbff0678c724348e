"""A shop with three record types, its schemas and a mapping with sections for them, which tests of sections share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from consumer.adapters.schemas import LocalSchemas
from consumer.avro.decode import Decoder
from consumer.avro.encode import Encoder
from consumer.conversion.converter import Converter
from consumer.conversion.reading import CompiledReading
from consumer.conversion.sections import Sections, load_sections
from consumer.engine.model import Record, SchemaRef
from consumer.engine.reading import Columns, Keys, TwoSteps
from tests.support import avro

ROOT: Final = Path(__file__).parents[3]
DEFAULT: Final = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text("utf-8")
ORDER: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Order",
    "namespace": "com.shop",
    "aliases": ["com.oldshop.Purchase"],
    "fields": [avro.field("id", "string"), avro.field("at", avro.logical("long", "timestamp-micros")),
     avro.field("email", ["null", "string"], default=None), avro.field("total", avro.decimal(12, 2)),
     avro.field("state", "string", default="paid"), avro.field("consent", "boolean", default=True)],
}  # fmt: skip
CLICK: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Click",
    "namespace": "com.shop",
    "fields": [avro.field("click", "string"), avro.field("seconds", "long"),
     avro.field("email", ["null", "string"], default=None), avro.field("page", ["null", "string"], default=None),
     avro.field("referrer", ["null", "string"], default=None)],
}  # fmt: skip
SIGNUP: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Signup",
    "namespace": "com.shop",
    "fields": [
        avro.field("id", "string"),
        avro.field("at", avro.logical("long", "timestamp-millis")),
        avro.field("member", avro.record("Member", mail="string")),
    ],
}
REFUND: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Refund",
    "namespace": "com.shop",
    "fields": [avro.field("id", "string")],
}
UNION: Final[list[Any]] = ["null", ORDER, CLICK, SIGNUP, REFUND]

MAPPING: Final = """
[fields]
event_id = "id"
event_time = "at"
"user_data.em" = "email"

[constants]
action_source = "web"

[record."com.shop.Order".event_names]
paid = "checkout"
open = "!filter"
[record."com.shop.Order".fields]
event_name = "state"
"custom_data.value" = "total"
[record."com.shop.Order".constants]
"custom_data.currency" = "EUR"

[record."com.shop.Click"]
time_unit = "seconds"
[record."com.shop.Click".fields]
event_id = "click"
event_time = "seconds"
event_source_url = "page"
[record."com.shop.Click".constants]
event_name = "page_visit"
[record."com.shop.Click".topic."web.landing".fields]
event_source_url = "referrer"

[record."com.shop.Signup".fields]
"user_data.em" = "member.mail"
[record."com.shop.Signup".constants]
event_name = "signup"
action_source = "offline"
"""


def write_schemas(folder: Path, *schemas: Any) -> LocalSchemas:
    """Write a file for each schema, and return the folder as read."""
    for number, schema in enumerate(schemas or (ORDER, CLICK, SIGNUP)):
        name = schema["name"] if isinstance(schema, dict) else f"union{number}"
        (folder / f"{name}.avsc").write_text(json.dumps(schema))
    return LocalSchemas(folder)


def loaded(folder: Path, toml: str = MAPPING, *schemas: Any, **more: Any) -> Sections:
    """Return the sections of a mapping file."""
    wanted: dict[str, Any] = {"schema_name": "commerce.v1.CommerceEvent", **more}
    return load_sections(
        toml, write_schemas(folder, *schemas), default_toml=DEFAULT, overlay_name="my.toml", **wanted
    )


def order(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return an order, as a decoded event has it."""
    return {"id": f"o-{number}", "at": NOW * 10**6, "email": "jane@example.com", "total": "59.90", **changes}


def click(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a click."""
    there = {"page": "https://shop.example.com/a?epik=dj0x", "referrer": "https://shop.example.com/b"}
    return {"click": f"c-{number}", "seconds": NOW, "email": "jim@example.com", **there, **changes}


def signup(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a signup."""
    return {"id": f"s-{number}", "at": NOW * 1000, "member": {"mail": "joe@example.com"}, **changes}


NOW: Final = 1_772_366_400


def single_object(schema: Any, event: dict[str, Any]) -> bytes:
    """Return the value of a record in single-object encoding."""
    return Encoder(schema).encode(event)


def datum(schema: Any, event: dict[str, Any]) -> bytes:
    """Return the bare datum."""
    return single_object(schema, event)[10:]


class Readings:
    """Both executors over the same sections, with decoders that know these writers' schemas."""

    def __init__(self, sections: Sections, schemas: Mapping[SchemaRef, Any], **settings: Any) -> None:
        self.decoder, self.whole = Decoder(sections), Decoder(sections, whole=True)
        for decoder in (self.decoder, self.whole):
            for ref, schema in schemas.items():
                decoder.add_schema(ref, schema)
        mappings = [section.mapping for section in sections.all]
        converter = Converter(*mappings, **{"accounts": ("1",), "max_event_age": 1e9, **settings})
        self.fast = CompiledReading(self.decoder, converter, divided=True)
        self.slow = TwoSteps(self.whole, converter, divided=True)

    def check(self, records: Sequence[Record], topic: str, now: float = NOW + 60) -> Columns:
        """Return the results of both executors for these records; assert that they are the same."""
        fast, slow = Columns(Keys()), Columns(Keys())
        self.fast.read(records, now, fast, topic)
        self.slow.read(records, now, slow, topic)
        for name in ("page", "ends", "keys", "times", "marks", "kinds", "kind_numbers", "verdicts"):
            assert getattr(fast, name) == getattr(slow, name), name
        # The order of warnings does not count, nor whether a row without any has an entry.
        warnings = [{row: sorted(of) for row, of in one.warnings.items() if of} for one in (fast, slow)]
        assert warnings[0] == warnings[1]
        # Also for rows without an event, since the guard and the counts name the section.
        sections = [columns.sections.ljust(len(records), b"\0") for columns in (fast, slow)]
        assert sections[0] == sections[1]
        return fast
