"""Paths into schemas of all shapes."""

from __future__ import annotations

from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.paths import EACH, NoSuchPath, SchemaPaths
from consumer.avro.schema import InvalidSchema
from tests.support import avro

TREE: dict[str, Any] = {
    "type": "record",
    "name": "Node",
    "namespace": "tree.v1",
    "fields": [
        avro.field("label", {"type": "string"}),
        avro.field("kind", avro.enum("Kind", "A")),
        avro.field("again", ["null", "Kind"]),
        avro.field("uid", avro.logical("string", "uuid")),
        avro.field("at", ["null", avro.logical("long", "local-timestamp-micros")]),
        avro.field("odd", avro.logical("long", "unheard-of")),
        avro.field("price", avro.decimal(4, 2)),
        avro.field("day", avro.logical("int", "date")),
        avro.field("tags", avro.array(["null", "string"])),
        avro.field("grid", avro.array(avro.array("int"))),
        avro.field("bag", avro.map_of(["null", "string", "tree.v1.Node"])),
        avro.field("next", ["null", "Node"]),
        avro.field("kids", avro.array("tree.v1.Node")),
        avro.field("either", [
                avro.record("One", x="int"),
                {"type": "record", "name": "Two", "namespace": "o", "fields": [avro.field("x", "Own"),
                    avro.field("y", "string")]},
            ]),
    ],
}  # fmt: skip
OWN = avro.fixed("Own", 2, namespace="o")
TREE["fields"].insert(0, avro.field("own", OWN))


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
    schema = avro.record("N", x="null")
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
    schema = avro.record("N", x="Missing")
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
