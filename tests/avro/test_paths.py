"""Paths into schemas of all shapes."""

from __future__ import annotations

from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.paths import EACH, NoSuchPath, SchemaPaths
from consumer.avro.schema import InvalidSchema

TREE: dict[str, Any] = {
    "type": "record",
    "name": "Node",
    "namespace": "tree.v1",
    "fields": [
        {"name": "label", "type": {"type": "string"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A"]}},
        {"name": "again", "type": ["null", "Kind"]},
        {"name": "uid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "at", "type": ["null", {"type": "long", "logicalType": "local-timestamp-micros"}]},
        {"name": "odd", "type": {"type": "long", "logicalType": "unheard-of"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "tags", "type": {"type": "array", "items": ["null", "string"]}},
        {"name": "grid", "type": {"type": "array", "items": {"type": "array", "items": "int"}}},
        {"name": "bag", "type": {"type": "map", "values": ["null", "string", "tree.v1.Node"]}},
        {"name": "next", "type": ["null", "Node"]},
        {"name": "kids", "type": {"type": "array", "items": "tree.v1.Node"}},
        {
            "name": "either",
            "type": [
                {"type": "record", "name": "One", "fields": [{"name": "x", "type": "int"}]},
                {"type": "record", "name": "Two", "namespace": "o", "fields": [{"name": "x", "type": "Own"},
                    {"name": "y", "type": "string"}]},
            ],
        },
    ],
}  # fmt: skip
OWN = {"type": "fixed", "name": "Own", "namespace": "o", "size": 2}
TREE["fields"].insert(0, {"name": "own", "type": OWN})


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("label", {"string"}),
        ("kind", {"enum"}),
        ("again", {"enum"}),
        ("uid", {"string"}),
        ("at", {"timestamp-micros"}),
        ("odd", {"long"}),
        ("price", {"decimal"}),
        ("day", {"date"}),
        ("tags", {"string"}),
        ("tags[]", {"string"}),
        ("grid", {"int"}),
        ("grid[][]", {"int"}),
        ("next.next.next.label", {"string"}),
        ("kids[].kids[].day", {"date"}),
        ("bag.anything.label", {"string"}),
        ("either.x", {"int", "fixed"}),
        ("either.y", {"string"}),
        ("own", {"fixed"}),
    ],
)
@pytest.mark.parametrize("parsed", [False, True], ids=["as-written", "parsed"])
def test_kinds_at_the_end_of_a_path(path: str, kinds: set[str], parsed: bool) -> None:
    """Names, namespaces, unions, logical types and recursion are followed, in the JSON and in what fastavro parses."""
    schema = fastavro.parse_schema(TREE) if parsed else TREE
    assert isinstance(schema, dict)
    assert SchemaPaths(schema).resolve(path).kinds == kinds


def test_steps_are_names_and_elements() -> None:
    """Fields and keys of maps are steps by name, and each element of an array is a step of its own."""
    source = SchemaPaths(TREE).resolve('kids[].bag.it\'s "x".tags')
    assert source.steps == ("kids", EACH, "bag", 'it\'s "x"', "tags", EACH)
    assert EACH in source.steps


@pytest.mark.parametrize(
    "path", ["", ".", "a.", "[]", "label[]", "label.x", "tags[][]", "kids.label", "nope", "a[b]"]
)
def test_paths_that_do_not_exist(path: str) -> None:
    """A path that does not exist is an error."""
    with pytest.raises(NoSuchPath):
        SchemaPaths(TREE).resolve(path)
    assert not SchemaPaths(TREE).has(path)


def test_a_field_that_is_only_null_cannot_be_mapped() -> None:
    """A field of type null has no kind."""
    schema = {"type": "record", "name": "N", "fields": [{"name": "x", "type": "null"}]}
    with pytest.raises(NoSuchPath, match="no value but null"):
        SchemaPaths(schema).resolve("x")


def test_listing_the_paths_of_a_recursive_schema_ends() -> None:
    """All paths of a recursive schema are listed to a bounded depth and number, and each of them resolves."""
    paths = SchemaPaths(TREE)
    listed = list(paths.all_paths())
    assert 100 < len(listed) <= 2000
    assert len(listed) == len(set(listed))
    assert all(paths.resolve(path).kinds for path in listed[:300] if "<key>" not in path)


def test_a_type_that_is_not_defined_is_an_error() -> None:
    """A schema that names a type it lacks is an error that says so."""
    schema = {"type": "record", "name": "N", "fields": [{"name": "x", "type": "Missing"}]}
    with pytest.raises(InvalidSchema, match="'Missing'"):
        SchemaPaths(schema)


@settings(max_examples=30)
@given(st.text(max_size=30))
def test_no_path_raises_anything_else(path: str) -> None:
    """Any text as a path resolves or raises a `NoSuchPath` of one line."""
    try:
        message = str(SchemaPaths(TREE).resolve(path))
    except NoSuchPath as error:
        message = str(error)
    assert "\n" not in message
