"""``replay --dry-run --against``: what is compared of the records that the engine reads."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumer.app import building
from consumer.commands.comparison import of_old
from consumer.commands.replay.against import Against
from consumer.commands.replay.options import parse_where
from consumer.engine.messages import (
    Assigned,
    Assignment,
    Fetched,
    FetchSchema,
    SchemaFound,
    Tick,
    Transform,
    Transformed,
)
from consumer.engine.model import Chunk, Instant, Record, SchemaRef
from consumer.settings import load
from tests.conversion.computed.test_operators import BASE, KEY, KEY_SCHEMA, SCHEMA, made
from tests.conversion.computed.test_origin import FRAMED, both_of
from tests.conversion.test_convert import NOW
from tests.end_to_end.processes import bare_environment

CUSTOMER = '"user_data.external_id" = "@key.customer"'


def value(seed: int, at: float = NOW) -> bytes:
    """The value of a record."""
    event = made(random.Random(seed)) | {"id": f"id-{seed}", "at": int(at * 1000)}
    found = both_of("").value(event)
    assert found is not None
    return found


class Compared:
    """An engine that reads records by one mapping, compared with another."""

    def __init__(
        self, folder: Path, old: str, new: str, *where: str, limit: int | None = None, function: str = ""
    ) -> None:
        (folder / "shop.avsc").write_text(json.dumps(SCHEMA))
        for name, fields in (("old.toml", old), ("new.toml", new)):
            (folder / name).write_text(BASE.format(fields=fields))
        settings = load(
            {
                **bare_environment(folder), "PINSTREAM_SCHEMAS_DIR": str(folder), "PINSTREAM_SCHEMA": "Shop",
                "PINSTREAM_MAPPING_FILE": str(folder / "new.toml"), "PINTEREST_AD_ACCOUNT_ID": "549755885175",
                "PINSTREAM_MAX_EVENT_AGE": "0", **({"PINSTREAM_TRANSFORM": function} if function else {}),
            },
            needs=("account",),
        )  # fmt: skip
        mapped, conditions = building.sections(settings), parse_where(where)
        self.function = building.transformer(settings, mapped)
        with of_old(settings, str(folder / "old.toml")) as of:
            self.against = Against(settings, mapped, building.sections(of), conditions)
        self.pipeline = building.pipeline(
            settings,
            mapped,
            replace(building.policy(settings), max_records=limit),
            decoding=self.against.decoding,
            around=self.against.around,
            fast=not where,
        )
        self.now = Instant(0.0, NOW)
        self.handle(Assigned([Assignment("orders", 0, 1, 0, False)]))
        self.handle(SchemaFound(SchemaRef("id", "7"), json.dumps(SCHEMA)))

    def handle(self, event: Any) -> list[Any]:
        """Let the engine handle what happened, and the function its records."""
        commands = list(self.pipeline.handle(event, self.now))
        for one in commands:
            if isinstance(one, Transform) and self.function:
                results = [*map(self.function.apply, one.events)]
                commands += self.pipeline.handle(Transformed(one.number, results), self.now)
        return commands

    def fetched(self, *records: Record) -> list[Any]:
        """Let the engine read records; return the schemas that it asks for."""
        commands = self.handle(Fetched([Chunk("orders", 0, 1, None, list(records))]))
        return [one.ref for one in commands if isinstance(one, FetchSchema)]

    def document(self) -> dict[str, Any]:
        """The comparison."""
        return self.against.document(self.pipeline.statistics(self.now).totals.read)


@pytest.mark.parametrize("function", ["", "againstshop:clean"], ids=["fast", "with a function"])
@pytest.mark.parametrize("old_asks", [True, False])
def test_a_key_that_only_one_mapping_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_asks: bool, function: str
) -> None:
    """Its schema is fetched; until then the record waits, and is compared once; with a function, too."""
    (tmp_path / "againstshop.py").write_text("def clean(record, kind): return record\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fields = (CUSTOMER, "") if old_asks else ("", CUSTOMER)
    compared = Compared(tmp_path, *fields, function=function)
    records = [Record(0, -1, FRAMED, value(1), ()), Record(1, -1, b"text", value(2), ())]
    assert compared.fetched(*records) == [KEY]
    compared.handle(SchemaFound(KEY, json.dumps(KEY_SCHEMA)))
    found = compared.document()
    assert (found["records"], found["changed"], found["not_compared"]) == (2, 1, 0)
    [change] = found["changes"]
    assert (change["field"], change["change"]) == (
        "user_data.external_id",
        "lost" if old_asks else "added",
    )
    assert change["examples"][0]["record"] == "orders:0:0"
    assert "c-7" not in json.dumps(found)


def test_a_schema_that_does_not_come_is_counted(tmp_path: Path) -> None:
    """What still waits is not compared, and said to be so; nothing of it is hidden behind "nothing changes"."""
    compared = Compared(tmp_path, CUSTOMER, "")
    compared.fetched(Record(0, -1, FRAMED, value(1), ()))
    assert [compared.document()[key] for key in ("records", "not_compared")] == [0, 1]


@pytest.mark.parametrize("where", [(), ("event_name=checkout",)], ids=["fast", "in two steps"])
def test_each_record_that_is_taken_counts_once(tmp_path: Path, where: tuple[str, ...]) -> None:
    """Not those beyond the limit, though their slice was read; tombstones and what no mapping reads are the same."""
    compared = Compared(tmp_path, "", '"custom_data.order_id" = "id"', *where, limit=4)
    values = [value(1), None, b"\x00\x00", value(2), value(3), value(4), value(5)]
    compared.fetched(*(Record(offset, -1, None, one, ()) for offset, one in enumerate(values)))
    found = compared.document()
    taken = 6 if where else 5  # the limit counts neither tombstones nor what is omitted
    assert found["records"] + found["not_compared"] == compared.pipeline.statistics(compared.now).totals.read
    assert [one["field"] for one in found["changes"]] == ["custom_data.order_id"]
    assert (found["records"], found["not_compared"]) == (taken, 0)


def test_a_record_that_waits_for_its_time_counts_then(tmp_path: Path) -> None:
    """Not while it is not known which clock is right, and once when its time has come."""
    compared = Compared(tmp_path, "", '"custom_data.order_id" = "id"')
    later = NOW + 86_400
    compared.fetched(Record(0, int(later * 1000), None, value(1, later), ()))
    assert [compared.document()[key] for key in ("records", "not_compared")] == [0, 1]
    compared.now = Instant(later + 60 - NOW, later + 60)
    compared.handle(Tick())
    assert [compared.document()[key] for key in ("records", "changed", "not_compared")] == [1, 1, 0]
