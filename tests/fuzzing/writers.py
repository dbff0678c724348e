"""The schemas that the decode target knows: two of readers, and writers' that differ from them in every way."""

from __future__ import annotations

import copy
from typing import Any, Final

from tests.fuzzing.building import SCHEMA
from tests.support import avro


def _record(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return avro.record(name, *[avro.field(each, kind) for each, kind in fields.items()])


_TREE = _record("Tree", {"left": ["null", "Tree"], "kids": avro.array("Tree"), "by": avro.map_of("Tree")})
ZOO: Final = _record(
    "Zoo",
    {
        "null": "null",
        "flag": "boolean",
        "number": ["null", "long", "string", "double"],
        "amount": avro.decimal(30, 4),
        "day": avro.logical("int", "date"),
        "at": avro.logical("long", "timestamp-micros"),
        "uuid": avro.fixed("Id", 16, logicalType="uuid"),
        "colour": avro.enum("Colour", "RED", "GREEN", default="RED"),
        "props": avro.map_of(["null", "string", "boolean"]),
        "floats": avro.array("float"),
        "tree": ["null", _TREE],
        "blob": "bytes",
    },
)
"""Every kind of type there is, as reader and as writer."""


def _older() -> dict[str, Any]:
    """Our schema as an older producer has it: another order, fewer and other fields, other numbers, no nulls."""
    schema = copy.deepcopy(SCHEMA)
    fields = {each["name"]: each for each in schema["fields"]}
    for gone in ("language", "search_query", "device", "app"):
        del fields[gone]
    fields["page_url"] = avro.field("page_url", "string")
    fields["opt_out_type"] = avro.field("opt_out_type", ["string", "null"])
    item = avro.record("Item", quantity="int")
    order = next(branch for branch in fields["order"]["type"] if branch != "null")
    next(each for each in order["fields"] if each["name"] == "items")["type"] = avro.array(item)
    more = [avro.field("zoo", ZOO), avro.field("notes", avro.map_of("bytes"))]
    return {**schema, "fields": [*reversed(fields.values()), *more]}


def _other_zoo() -> dict[str, Any]:
    """The zoo as another team writes it: promoted numbers, other units and scales, further branches and symbols."""
    schema = copy.deepcopy(ZOO)
    kinds: dict[str, Any] = {
        "number": ["int", "string", "null", "float", "boolean"],
        "amount": avro.decimal(40, 6),
        "at": avro.logical("long", "timestamp-millis"),
        "colour": avro.enum("Colour", "BLUE", "GREEN"),
        "floats": avro.array("long"),
        "blob": "string",
    }
    for each in schema["fields"]:
        each["type"] = kinds.get(each["name"], each["type"])
    return schema


READERS: Final[tuple[dict[str, Any], ...]] = (SCHEMA, ZOO)
WRITERS: Final[tuple[dict[str, Any], ...]] = (SCHEMA, ZOO, _older(), _other_zoo())
