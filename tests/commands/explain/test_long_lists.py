"""`explain` and both executors of the service agree about records with long lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import fastavro
import pytest

from consumer.app import building
from consumer.avro.encode import Encoder
from consumer.avro.reading import MAX_ITEMS
from consumer.commands.explain.explaining import explanations
from consumer.conversion.reading import CompiledReading
from consumer.engine.model import Record, Rejection
from consumer.engine.reading import Reading, TwoSteps
from consumer.settings import load
from tests.engine.building import read_by
from tests.support import avro

NOW: Final = 1_772_366_400
TEXTS_TYPE: Final = avro.array("string")
LINE: Final = avro.record("Line", sku=["null", "string"], tags=TEXTS_TYPE, codes=TEXTS_TYPE)
SHOP: Final = {
    **avro.record("Shop", id="string", at="long", mails=TEXTS_TYPE, lines=avro.array(["null", LINE]),
        fees=avro.array("double"), notes=TEXTS_TYPE, grid=avro.array(TEXTS_TYPE), extra=avro.map_of(TEXTS_TYPE)),
    "namespace": "com.shop",
}  # fmt: skip
MAPPING: Final = """
[fields]
event_id = "id"
event_time = "at"
"user_data.em" = "mails"
"user_data.ph" = "extra.phones"
"user_data.external_id" = "grid[][]"
"custom_data.value" = { sum = "fees" }
"custom_data.contents[].id" = "lines[].sku"
"custom_data.content_ids" = "lines[].tags"
[constants]
event_name = "checkout"
action_source = "web"
"custom_data.currency" = "EUR"
"""
ONE: Final[dict[str, Any]] = {
    "id": "o-1", "at": NOW * 1000, "mails": ["a@b.de"], "fees": [1.0], "notes": [], "grid": [], "extra": {},
    "lines": [{"sku": "A", "tags": [], "codes": []}],
}  # fmt: skip
TEXTS: Final = ["t"]
# A list of this many items, and whether the mapping asks for it.
LISTS: Final[dict[str, tuple[Any, bool]]] = {
    "items": (lambda n: {"lines": [{"sku": "A", "tags": [], "codes": []}] * n}, True),
    "items of which all are null": (lambda n: {"lines": [None] * n}, True),
    "texts": (lambda n: {"mails": ["a@b.de"] * n}, True),
    "numbers that are summed": (lambda n: {"fees": [1.0] * n}, True),
    "a list within an item": (lambda n: {"lines": [{"sku": "A", "tags": TEXTS * n, "codes": []}]}, True),
    "a list within a list": (lambda n: {"grid": [TEXTS, TEXTS * n]}, True),
    "lists within a list": (lambda n: {"grid": [TEXTS] * n}, True),
    "a key of a map": (lambda n: {"extra": {"phones": ["+4930123456"] * n}}, True),
    "another key of the map": (lambda n: {"extra": {"notes": TEXTS * n}}, False),
    "a list that is not asked for": (lambda n: {"notes": TEXTS * n}, False),
    "such a list within an item": (
        lambda n: {"lines": [{"sku": "A", "tags": [], "codes": TEXTS * n}]},
        False,
    ),
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The settings for this schema and mapping."""
    (tmp_path / "shop.avsc").write_text(json.dumps(SHOP))
    (tmp_path / "mapping.toml").write_text(MAPPING)
    return {
        "PINSTREAM_SCHEMAS_DIR": str(tmp_path),
        "PINSTREAM_SCHEMA": "com.shop.Shop",
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "mapping.toml"),
        "HOME": str(tmp_path),
    }


def explained(environ: dict[str, str], *events: dict[str, Any], container: bool) -> list[dict[str, Any]]:
    """Return what explain says of these events, in a file of lines or in a container."""
    file = Path(environ["HOME"]) / "events"
    if container:
        with file.open("wb") as out:
            fastavro.writer(out, fastavro.parse_schema(SHOP), events)
    else:
        file.write_text("".join(f"{json.dumps(one)}\n" for one in events))
    return [one.line for one in explanations(str(file), NOW, load(environ, needs=()))]


def verdicts(environ: dict[str, str], event: dict[str, Any]) -> list[str]:
    """Return what becomes of an event, by explain (lines, container), and by the service (two steps, compiled)."""
    said = []
    for container in (False, True):
        # What comes behind it is explained, too.
        line, after = explained(environ, event, ONE, container=container)
        assert after["outcome"] == "deliverable"
        said.append(line["error"]["code"] if line["error"] else line["outcome"])
    settings = load(environ, needs=())
    mapped = building.sections(settings)
    value = Encoder(SHOP).encode(event)
    for kind in (TwoSteps, CompiledReading):
        decoder = building.decoder(mapped)
        reading: Reading = kind(decoder, building.converter(settings, mapped, ("11",)))
        [read] = read_by(reading, [Record(0, -1, None, value, ())], NOW)
        said.append(read.code if isinstance(read, Rejection) else "deliverable")
    return said


@pytest.mark.parametrize("number", [MAX_ITEMS, MAX_ITEMS + 1])
@pytest.mark.parametrize("kind", LISTS)
def test_all_say_the_same_of_long_lists(kind: str, number: int, environ: dict[str, str]) -> None:
    """One item more than the mapping may ask for is too large, for lines, containers, and the service in both ways."""
    make, is_asked = LISTS[kind]
    expected = "too_large" if is_asked and number > MAX_ITEMS else "deliverable"
    assert verdicts(environ, {**ONE, **make(number)}) == [expected] * 4


def test_with_a_function_of_the_users_all_lists_are_counted(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of the user's takes whole records, so a list is too long whether the mapping asks for it or not."""
    (tmp_path / "keep_all.py").write_text("def change(event):\n    return event\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    environ["PINSTREAM_TRANSFORM"] = "keep_all:change"
    for number, outcome in ((MAX_ITEMS, "deliverable"), (MAX_ITEMS + 1, "rejected")):
        for container in (False, True):
            line, after = explained(environ, {**ONE, "notes": TEXTS * number}, ONE, container=container)
            assert (line["outcome"], after["outcome"]) == (outcome, "deliverable")
