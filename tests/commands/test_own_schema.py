"""What docs/map-your-schema.md shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from consumer.commands import main
from consumer.commands.check.local import mapping, schema
from consumer.commands.check.rows import CheckContext
from consumer.commands.explain.explaining import explanations
from consumer.errors import SettingsError
from consumer.settings import load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "map-your-schema.md").read_text("utf-8")
BLOCK = re.compile(r"```(?:json|toml|sh)\n(.*?)```", re.DOTALL)
NOW = 1772366400.0


def blocks() -> list[str]:
    """Return the page's schema, record, draft, mapping, commands and payload."""
    found = BLOCK.findall(PAGE)
    assert len(found) == 6
    return [str(one) for one in found]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The page's files, and the settings that name them."""
    avsc, record, _, toml, *_ = blocks()
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "shop_event.avsc").write_text(avsc)
    (tmp_path / "mapping.toml").write_text(toml)
    (tmp_path / "sample.ndjson").write_text(record)
    return {
        "PINSTREAM_SCHEMAS_DIR": str(tmp_path / "schemas"),
        "PINSTREAM_SCHEMA": "com.shop.Event",
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "mapping.toml"),
        "HOME": str(tmp_path),
    }


def test_the_record_becomes_the_payload(files: dict[str, str], tmp_path: Path) -> None:
    """The page's record is converted with its schema and mapping to its payload, without a warning."""
    [shown] = (one.line for one in explanations(str(tmp_path / "sample.ndjson"), NOW, load(files, needs=())))
    assert shown["payload"] == json.loads(blocks()[5])
    assert shown["outcome"] == "deliverable"
    assert shown["warnings"] == []


def test_a_wrong_path_names_the_nearest(files: dict[str, str], tmp_path: Path) -> None:
    """The page says so of a path that the schema does not have."""
    (tmp_path / "mapping.toml").write_text(blocks()[3].replace("buyer.email", "buyer.mail"))
    with pytest.raises(SettingsError, match=r"'buyer\.mail' is not in the schema; .* 'buyer\.email'"):
        list(explanations(str(tmp_path / "sample.ndjson"), NOW, load(files, needs=())))


def test_the_draft_says_what_is_written_by_hand(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's draft has its paths; what needs a decision, consent and currency, is a comment."""
    monkeypatch.chdir(tmp_path)
    Path("mapping.toml").unlink()
    done = CliRunner().invoke(main, shlex.split(blocks()[2].removeprefix("pinstream ")))
    assert done.exit_code == 0, done.output
    text = Path("mapping.toml").read_text("utf-8")
    by_hand, fields = tomllib.loads(blocks()[3]), tomllib.loads(text)["fields"]
    assert {key: value for key, value in by_hand["fields"].items() if fields.get(key) != value} == {
        "custom_data.value": "order.grand_total"
    }
    assert '# require = "buyer.marketing_consent"' in text


async def test_check_names_what_may_surprise(files: dict[str, str], tmp_path: Path) -> None:
    """A line of the packaged mapping that an own schema has by accident; text that counts as numbers."""

    async def row() -> str:
        found = CheckContext(load(files, needs=()))
        await schema(found)
        return (await mapping(found))[0].text

    assert "packaged mapping" not in await row()
    avsc = json.loads(blocks()[0])
    avsc["fields"].append({"name": "language", "type": "string"})
    (tmp_path / "schemas" / "shop_event.avsc").write_text(json.dumps(avsc))
    assert (await row()).endswith("with a source; by the packaged mapping's lines: language")
    fields = '"custom_data.value" = { multiply = ["meta.type", { sum = "order.lines[].pieces" }] }'
    toml = re.sub('"custom_data.value" = .*', fields, blocks()[3])
    (tmp_path / "mapping.toml").write_text(toml)
    assert (await row()).endswith("; computed with as numbers, though they are text: meta.type")
