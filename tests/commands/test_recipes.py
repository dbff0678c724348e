"""examples/recipes: what each page of docs/recipes shows is what happens, in both executors.

tests/test_pages.py holds that a page has its folder's files.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.files import file_types, open_records
from consumer.app import building
from consumer.commands.explain.explaining import explanations
from consumer.engine.model import Record
from consumer.settings import load
from tests.conversion.test_compiled import Both, comparable_row
from tests.end_to_end.processes import ROOT
from tests.engine.building import Read, read_by
from tests.support.shell import bash

FOLDERS = sorted((ROOT / "examples" / "recipes").iterdir())
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
each_recipe = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def commands(folder: Path) -> str:
    """The commands of the recipe's page."""
    page = (ROOT / "docs" / "recipes" / f"{folder.name}.md").read_text("utf-8")
    [script] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return str(script)


@pytest.mark.parametrize(
    "folder",
    [
        FOLDERS[0],
        *(pytest.param(one, marks=pytest.mark.slow("one is enough for a change")) for one in FOLDERS[1:]),
    ],
    ids=lambda folder: folder.name,
)
def test_the_commands_do_what_the_page_says(folder: Path, tmp_path: Path) -> None:
    """The page's commands, in a shell in the repository, find that the records come out as expected."""
    (tmp_path / "home").mkdir()
    os.symlink(ROOT / "examples", tmp_path / "examples")
    done = bash(commands(folder), tmp_path, {"PYTHONDONTWRITEBYTECODE": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 of 3 records agree with expected.ndjson.\n"


def environment(folder: Path) -> dict[str, str]:
    """The settings of a recipe."""
    schema = json.loads((folder / "schema.avsc").read_text("utf-8"))
    return {
        "PINSTREAM_SCHEMAS_DIR": str(folder),
        "PINSTREAM_SCHEMA": ".".join(filter(None, [schema.get("namespace"), schema["name"]])),
        "PINSTREAM_MAPPING_FILE": str(folder / "mapping.toml"),
    }


def plain_longs(schema: Any) -> Any:
    """The schema as some writers register it: whole numbers without logical types."""
    if isinstance(schema, list):
        return [plain_longs(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: plain_longs(one) for key, one in schema.items()}
    if kept.get("type") == "long":
        kept.pop("logicalType", None)
    return kept


@each_recipe
def test_both_executors_read_it_from_avro(folder: Path) -> None:
    """Also if the writer's schema lacks the logical types of times that our copy has."""
    schema = json.loads((folder / "schema.avsc").read_text("utf-8"))
    types = file_types(building.sections(load(environment(folder), needs=())))
    events = [record.event for record in open_records(str(folder / "records.ndjson"), types)]
    both = Both((schema, (folder / "mapping.toml").read_text("utf-8")), plain_longs(schema))
    records = [Record(at, -1, None, both.value(event), ()) for at, event in enumerate(events)]
    compiled = read_by(both.compiled, records, NOW)
    for steps in (both.two_steps, both.trimmed):
        assert [comparable_row(one) for one in read_by(steps, records, NOW)] == list(
            map(comparable_row, compiled)
        )
    payloads = [json.loads(one.body) if isinstance(one, Read) else None for one in compiled]
    expected = [json.loads(line) for line in (folder / "expected.ndjson").read_text("utf-8").splitlines()]
    assert payloads == [one["payload"] for one in expected]


@pytest.mark.parametrize(
    ("name", "members", "becomes"),
    [
        (
            "commercetools",
            {"order": None, "type": None, "payloadNotIncluded": {"payloadType": "OrderCreated"}},
            "missing_event_id",
        ),
        ("connect-jdbc", {"status": "paid    "}, "event_name"),
        ("debezium", {"before": None}, "event_name"),
        ("ga4", {"email_sha256": None}, "no_identity"),
        ("segment", {"properties": {"total": 1.0}}, "missing_currency"),
        ("shopify", {"source_name": "580111"}, "event_name"),
        ("shopify", {"note_attributes": []}, "consent"),
        ("snowplow", {"platform": "srv"}, "unknown_action_source"),
    ],
)
def test_what_a_page_warns_of_happens(
    name: str, members: dict[str, Any], becomes: str, tmp_path: Path
) -> None:
    """The first record with other members is filtered or becomes a dead letter, as the page says."""
    folder = ROOT / "examples" / "recipes" / name
    record = json.loads((folder / "records.ndjson").read_text("utf-8").splitlines()[0])
    (tmp_path / "record.ndjson").write_text(json.dumps({**record, **members}))
    settings = load(environment(folder), needs=())
    [line] = (one.line for one in explanations(str(tmp_path / "record.ndjson"), NOW, settings))
    assert becomes == (line.get("filter") or line["error"]["code"])
