"""The JSON Schema of mapping files: current, as strict as the loader where it can be, taken up by editors (Taplo)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from consumer.conversion.targets import TARGETS
from consumer.errors import MappingError
from tests.conversion.targets import mapping_schema
from tests.support.mapping import load_mapping

ROOT = Path(__file__).parents[3]
VALIDATOR = Draft7Validator(mapping_schema.schema())
AVSC = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text("utf-8"))
DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text("utf-8")
FILES = [
    ROOT / "schemas" / "commerce_event.mapping.toml",
    *sorted((ROOT / "examples").rglob("mapping.toml")),
]
_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for number, block in enumerate(_BLOCK.findall(page.read_text("utf-8")))
    # A piece that begins within a table is no file.
    if not tomllib.loads(block).keys() & TARGETS.keys()
]
"""What the pages show of mapping files."""

WRONG = {
    "a misspelled field": '[fields]\n"user_data.email" = "customer.emails"',
    "a field where its object is named": '[fields]\nuser_data.email = "customer.emails"',
    "a table that does not exist": "[field]\n",
    "a setting with a wrong word": 'time_unit = "hours"',
    "a calling code with a plus": 'phone_country_code = "+49"',
    "an action source of nobody's": '[action_sources]\nSHOP = "store"',
    "a number for a path": "[fields]\nevent_id = 7",
    "a list for a path": '[fields]\nevent_id = ["a", "b"]',
    "two operators": '[fields]\nevent_id = { first = ["a", "b"], value = "x" }',
    "no operator": '[fields]\nevent_id = { when = { "a" = 1 } }',
    "an operator of nobody's": '[fields]\nevent_id = { concat = ["a", "b"] }',
    "one operand": '[fields]\nevent_id = { join = ["a"] }',
    "a table without of": '[fields]\nevent_id = { table = { "1" = "x" } }',
    "an id that is the same for all": '[constants]\nevent_id = "one"',
    "a channel that is no action source": '[constants]\naction_source = "store"',
    "a list for a constant": '[constants]\nlanguage = ["de"]',
    "consent by an empty list": "[consent]\nrequire = []",
    "a key of consent that does not exist": '[consent]\nneeds = "customer.marketing_consent"',
    "a second key of dedup": '[dedup]\nkeys = "order.order_id"',
    "names that are no list": '[own_events]\nnames = "loyalty_joined"',
    "a section's setting for the whole file": '[record."com.shop.Order"]\nunknown_record = "filter"',
}
"""Mistakes that both the loader and the schema see."""


def errors(toml: str) -> list[str]:
    """What the schema says of a mapping file."""
    return [error.message for error in VALIDATOR.iter_errors(tomllib.loads(toml))]


def test_the_file_is_current() -> None:
    """schemas/mapping.schema.json is what the targets make."""
    assert mapping_schema.FILE.read_text("utf-8") == mapping_schema.text(), (
        f"schemas/mapping.schema.json is not what the targets make; run: {mapping_schema.COMMAND}"
    )


def test_it_is_a_schema() -> None:
    """It is JSON Schema of draft 7, and has every target and no other field."""
    schema = json.loads(mapping_schema.FILE.read_text("utf-8"))
    Draft7Validator.check_schema(schema)
    fields = schema["definitions"]["fields"]["properties"]
    assert {name for name in fields if name in TARGETS or "." in name} == TARGETS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_whole_mappings_fit(path: Path) -> None:
    """The packaged mapping, the example's and those of the recipes."""
    assert errors(path.read_text("utf-8")) == []


@pytest.mark.parametrize("toml", SHOWN)
def test_what_the_pages_show_fits(toml: str) -> None:
    """Every piece of a mapping file on the pages."""
    assert errors(toml) == []


def test_the_pages_are_read() -> None:
    """There are such pieces; or this would look at nothing."""
    assert len(SHOWN) > 5


@pytest.mark.parametrize("toml", WRONG.values(), ids=WRONG)
def test_it_sees_what_the_loader_refuses(toml: str) -> None:
    """A mistake that needs no record's schema to be seen is one for the editor and for pinstream alike."""
    with pytest.raises(MappingError):
        load_mapping(toml, AVSC, default_toml=DEFAULT)
    assert errors(toml) != []


def test_names_of_your_own_are_none_of_its_business() -> None:
    """What a schema of one file cannot know it lets pass: event names of [own_events], paths, topics."""
    own = '[own_events]\nnames = ["Store visit"]\n[event_names]\nvisit = "Store visit"\n[fields]\nevent_id = "no.such"'
    assert errors(own) == []


def test_an_editor_can_go_through_it() -> None:
    """What Taplo's language server goes through to find proposals has an end, no allOf, and each name once in a table.

    It looks at once at everything under these words; a schema that leads back to itself ends it.
    """
    schema = mapping_schema.schema()

    def walk(part: Any, way: tuple[str, ...]) -> None:
        assert "allOf" not in part, way
        if reference := part.get("$ref", "").rpartition("/")[2]:
            assert reference not in way, way
            walk(schema["definitions"][reference], (*way, reference))
        for word in ("anyOf", "oneOf"):
            for one in part.get(word, ()):
                # Each branch with names of its own would propose all names around it once more.
                assert "properties" not in one, way
                walk(one, way)
        for word in ("items", "additionalProperties"):
            if isinstance(part.get(word), dict):
                walk(part[word], way)
        for name, one in part.get("properties", {}).items():
            walk(one, (*way, name) if name not in schema["definitions"] else way)

    walk(schema, ())


class TestTaplo:
    """The program that editors read TOML with takes the schema up from a mapping's first line."""

    @pytest.fixture
    def check(self, tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
        """Checks a mapping file that lies beside the schema."""
        shutil.copy(mapping_schema.FILE, tmp_path)
        program = Path(sys.executable).with_name("taplo")

        def run(toml: str) -> subprocess.CompletedProcess[str]:
            (tmp_path / "mapping.toml").write_text(toml, "utf-8")
            return subprocess.run(
                [program, "check", "--colors", "never", "mapping.toml"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )

        return run

    def test_a_good_file_passes(self, check: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
        """The example's mapping, which begins with the line of the page and has the schema beside it."""
        page = (ROOT / "docs" / "test-your-mapping.md").read_text("utf-8")
        example = ROOT / "examples" / "shop"
        good = (example / "mapping.toml").read_text("utf-8")
        line = "#:schema ./mapping.schema.json"
        assert f"`{line}`" in page
        assert good.startswith(f"{line}\n")
        assert (example / "mapping.schema.json").read_bytes() == mapping_schema.FILE.read_bytes()
        assert check(good).returncode == 0

    def test_a_misspelled_field_is_marked(
        self, check: Callable[[str], subprocess.CompletedProcess[str]]
    ) -> None:
        """The line with the mistake, and no other, is named; without the first line nothing is."""
        wrong = '[fields]\nevent_id = "meta.id"\n"user_data.email" = "buyer.email"\n'
        assert check(wrong).returncode == 0
        marked = check(f"#:schema ./mapping.schema.json\n{wrong}")
        assert marked.returncode == 1
        assert re.findall(r"mapping\.toml:(\d+):", marked.stderr) == ["4"]
