"""What a writer's schema lacks of what the mapping reads, and which recommended parameters it could fill."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from consumer.avro.decode import Decoder
from consumer.engine.model import SchemaDrift, SchemaRef
from tests.support.mapping import load_sections_of

SCHEMA = json.loads((Path(__file__).parents[3] / "schemas" / "commerce_event.avsc").read_text("utf-8"))
REF = SchemaRef("id", "7")
DEFAULT = (Path(__file__).parents[3] / "schemas" / "commerce_event.mapping.toml").read_text("utf-8")
Json = dict[str, Any]


def drift(writer: Json, mapping: str = "") -> list[SchemaDrift]:
    """The drift of a writer's schema, as the decoder has learned it."""
    decoder = Decoder(load_sections_of(mapping, SCHEMA, default_toml=DEFAULT))
    assert decoder.add_schema(REF, json.dumps(writer)) is None
    return list(decoder.drift(REF))


def without(*paths: str, **names: str) -> Json:
    """Our schema, as a writer has it who lacks these paths or has other names for the customer's fields."""
    schema: Json = deepcopy(SCHEMA)
    for path in paths:
        *parents, name = path.split(".")
        record = schema
        for parent in parents:
            record = fields(record)[parent]["type"]
            record = record[1] if isinstance(record, list) else record
        record["fields"] = [one for one in record["fields"] if one["name"] != name]
    for one in fields(schema)["customer"]["type"]["fields"]:
        one["name"] = names.get(one["name"], one["name"])
    return schema


def fields(record: Json) -> dict[str, Json]:
    """The fields of a record by their names."""
    return {str(one["name"]): one for one in record["fields"]}


NAME = "commerce.v1.CommerceEvent"
BOTH = """
[fields]
"user_data.em" = {first = ["customer.emails", "customer.phones"]}
"""


@pytest.mark.parametrize(
    ("writer", "mapping", "lacks", "could_fill"),
    [
        pytest.param(SCHEMA, "", (), (), id="the same schema"),
        pytest.param(
            without("customer.emails", "order.order_id"),
            "",
            ("customer.emails (user_data.em)", "order.order_id (custom_data.order_id)"),
            (),
            id="fields are gone",
        ),
        pytest.param(
            without("customer.phones", emails="customerEmail"),
            "",
            ("customer.emails (user_data.em)", "customer.phones (user_data.ph)"),
            ("user_data.em from customer.customerEmail",),
            id="one has another name",
        ),
        pytest.param(without("customer.emails"), BOTH, (), (), id="another path of the same field is there"),
    ],
)
def test_drift(writer: Json, mapping: str, lacks: tuple[str, ...], could_fill: tuple[str, ...]) -> None:
    """Mapped paths that the writer lacks, with their fields, and what its other fields could fill."""
    assert drift(writer, mapping) == [SchemaDrift(NAME, lacks, could_fill)]


def test_a_whole_record_is_gone() -> None:
    """Each path below it is named; a branch of a union that has it counts as there."""
    writer = without()
    writer["fields"] = [one for one in writer["fields"] if one["name"] != "order"]
    [found] = drift(writer)
    assert {path.partition(" ")[0] for path in found.lacks} >= {"order.total", "order.items[].sku"}
    assert all(path.startswith("order.") for path in found.lacks)
