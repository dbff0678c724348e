"""69,659 real orders of a music shop, as commerce events in an Avro container: read, explained, added up."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest

from consumer.adapters.files import Types, open_records
from consumer.avro.decode import OneSchema
from tests.end_to_end.processes import ROOT, bare_environment, command
from tests.references.conftest import DATA

ORDERS = DATA / "cdnow_orders.avro"
SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text("utf-8"))


def test_the_schema_is_the_one_of_the_orders() -> None:
    """The file was written with the packaged schema, so no field is lost on the way."""
    canonical = fastavro.schema.to_parsing_canonical_form
    with ORDERS.open("rb") as file:
        assert canonical(fastavro.reader(file).writer_schema) == canonical(SCHEMA)


def test_every_order_is_read() -> None:
    """The events are the same as fastavro reads."""
    count = 0
    with ORDERS.open("rb") as file:
        for ours, their in zip(
            open_records(str(ORDERS), Types(OneSchema(SCHEMA))), fastavro.reader(file), strict=True
        ):
            count += 1
            if count % 500 == 1:
                assert isinstance(their, dict)
                expected = {**their, "occurred_at": int(their["occurred_at"].timestamp() * 1000)}
                assert ours == (count, expected)
    assert count == 69_659


@pytest.mark.slow("explains 69,659 orders")
def test_explained(tmp_path: Path) -> None:
    """All can be delivered by the clock of their time; their values add up to the cent."""
    env = bare_environment(tmp_path) | {"PINSTREAM_MAX_EVENT_AGE": "0"}
    done = command("explain", str(ORDERS), "--now", "1998-07-01", env=env)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert len(found) == 69_659
    assert {line["outcome"] for line in found} == {"deliverable"}
    assert sum(Decimal(line["payload"]["custom_data"]["value"]) for line in found) == Decimal("2500315.63")
