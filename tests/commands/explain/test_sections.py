"""``pinstream explain`` and ``check`` under a mapping with sections: which one a line belongs to, and what they say."""

from __future__ import annotations

import asyncio
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import fastavro
import pytest

from consumer.commands.check import local
from consumer.commands.check.rows import CheckContext, Severity
from consumer.commands.explain.explaining import explanations
from consumer.errors import UsageError
from consumer.settings import load
from tests.conversion.sections.shop import (
    CLICK,
    MAPPING,
    NOW,
    ORDER,
    REFUND,
    ROOT,
    SIGNUP,
    UNION,
    click,
    order,
    signup,
    write_schemas,
)


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, str]:
    """The settings of the shop."""
    write_schemas(tmp_path, ORDER, CLICK, SIGNUP)
    (tmp_path / "mapping.toml").write_text(MAPPING)
    return {
        "PINSTREAM_SCHEMAS_DIR": str(tmp_path),
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "mapping.toml"),
        "HOME": str(tmp_path),
    }


class Explained:
    """Runs `explain` with the shop's settings."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env, self._path = env, Path(env["HOME"]) / "records"

    def __call__(self, *records: Any, **options: Any) -> list[dict[str, Any]]:
        """Return the lines that explain these records, as NDJSON."""
        self._path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return self._lines(**options)

    def container(self, schema: Any, *data: Any) -> list[dict[str, Any]]:
        """Return the lines that explain these, in an Avro container."""
        with self._path.open("wb") as out:
            fastavro.writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), data)
        return self._lines()

    def _lines(self, **options: Any) -> list[dict[str, Any]]:
        settings = load(self._env, needs=())
        return [one.line for one in explanations(str(self._path), NOW + 60.0, settings, **options)]


@pytest.fixture
def explained(shop: dict[str, str]) -> Explained:
    """The command, with the shop's settings."""
    return Explained(shop)


def in_json(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as NDJSON has it, with its time in milliseconds."""
    return {**event, "at": NOW * 1000} if "at" in event else event


def test_a_line_names_its_type_or_is_of_the_one_it_fits(explained: Explained) -> None:
    """A line is of the type that it names, as in Avro's JSON encoding of a union, or of the only one that it fits."""
    lines = explained(
        {"com.shop.Order": in_json(order())}, {"com.shop.Click": click()}, in_json(signup()), click(), in_json(order())
    )  # fmt: skip
    assert [line["outcome"] for line in lines] == ["deliverable"] * 5
    assert [line["section"] for line in lines] == [
        "com.shop.Order", "com.shop.Click", "com.shop.Signup", "com.shop.Click", "com.shop.Order",
    ]  # fmt: skip
    assert lines[0]["payload"] == lines[4]["payload"]


def test_a_type_for_all_lines(explained: Explained) -> None:
    """A line that fits several record types, or none, is rejected with a message about ``--record``, which decides."""
    both = {"id": "x", "at": NOW * 1000, "total": 1, "member": {"mail": "a@b.example"}}
    [line] = explained(both)
    assert (line["error"]["code"], line["section"]) == ("misfit", None)
    assert "more than one of the record types" in line["error"]["message"]
    assert "--record" in line["error"]["message"]
    [none] = explained({"id": "x"})
    assert (
        "none of the record types com.shop.Order, com.shop.Click, com.shop.Signup" in none["error"]["message"]
    )
    [line] = explained(both, record="com.shop.Signup")
    assert line["payload"]["event_name"] == "signup"
    [line] = explained({"id": "x"}, record="com.shop.Signup")
    assert "at: is missing" in line["error"]["message"]
    with pytest.raises(UsageError, match=r"'com.shop.Sign' is no record type .* 'com.shop.Signup'"):
        explained(both, record="com.shop.Sign")


def test_a_function_gets_the_records_of_all_types(
    shop: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the name of each, too, and what it returns stays in the record's section."""
    folder = Path(shop["HOME"]) / "code"
    folder.mkdir()
    (folder / "own_sections.py").write_text(
        "def clean(record, record_type):\n"
        "    if record_type == 'com.shop.Click':\n        return None\n"
        "    if record_type == 'com.shop.Signup':\n        return {'page': record['member']['mail']}\n"
        "    return record | {'email': 'changed@example.com'}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    lines = Explained(shop | {"PINSTREAM_TRANSFORM": "own_sections:clean"})(
        *(in_json(one) for one in (order(), click(), signup()))
    )
    assert [line["section"] for line in lines] == ["com.shop.Order", "com.shop.Click", "com.shop.Signup"]
    assert lines[0]["payload"]["user_data"]["em"] == [sha256(b"changed@example.com").hexdigest()]
    assert lines[1]["filter"] == "transform"
    assert (
        "a key that is no field of com.shop.Signup: add the field to that schema"
        in lines[2]["error"]["message"]
    )


def test_a_container_names_its_types(explained: Explained) -> None:
    """Each datum is of the type of its branch of the union, or of the one type that the schema names."""
    data = [
        ("com.shop.Signup", signup()),
        None,
        ("com.shop.Refund", {"id": "r"}),
        ("com.shop.Click", click()),
    ]
    lines = explained.container(UNION, *data)
    assert [line["outcome"] for line in lines] == ["deliverable", "rejected", "rejected", "deliverable"]
    assert [line["error"]["code"] for line in lines[1:3]] == ["unknown_record"] * 2
    assert [line["section"] for line in lines] == ["com.shop.Signup", None, None, "com.shop.Click"]
    lines = explained.container(CLICK, click(1), click(2))
    assert [line["section"] for line in lines] == ["com.shop.Click"] * 2
    assert [line["error"]["code"] for line in explained.container(REFUND, {"id": "r"})] == ["unknown_record"]


def test_check_has_a_row_for_each_section(shop: dict[str, str]) -> None:
    """`check` has a row for each section with its schema's name; a section's topic that is not read is a warning."""
    found = CheckContext(load({**shop, "KAFKA_TOPICS": "web.orders,web.landings"}, needs=()))
    [schemas] = asyncio.run(local.schema(found))
    assert "com.shop.Order, com.shop.Click, com.shop.Signup in" in schemas.text
    said, *sections, warning = asyncio.run(local.mapping(found))
    assert "has 4 sections that fit their schemas; records of other types are dead letters" in said.text
    assert [(row.verdict, row.text.split(":")[0]) for row in sections] == [
        (Severity.OK, name)
        for name in ("com.shop.Order", "com.shop.Click", "com.shop.Click on web.landing", "com.shop.Signup")
    ]
    assert warning.verdict is Severity.WARNING
    text = "the topic web.landing, which KAFKA_TOPICS does not name; the nearest is web.landings"
    assert text in warning.text


def test_the_page_s_mapping_fits(shop: dict[str, str], explained: Explained) -> None:
    """The mapping and the NDJSON line in docs/sections.md work with these schemas."""
    page = (ROOT / "docs" / "sections.md").read_text("utf-8")
    [toml] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    [line] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    Path(shop["PINSTREAM_MAPPING_FILE"]).write_text(toml)
    tagged = json.loads(line)
    tagged["com.shop.Order"]["email"] = "a@b.example"
    [found] = explained(tagged)
    assert found["payload"]["custom_data"] == {"currency": "EUR", "value": "59.90"}
    [found] = explained(click(), topic="web.landing")
    assert found["payload"]["event_source_url"].endswith("/b")
    [found] = explained(click(), topic="shop.test")
    assert found["payload"]["opt_out"] is True
