"""The schemas that the decode target knows: two of readers, and writers' that differ from them in every way."""

from __future__ import annotations

import copy
from typing import Any, Final

from tests.fuzzing.building import SCHEMA


def _record(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": each, "type": kind} for each, kind in fields.items()],
    }


_TREE = _record(
    "Tree",
    {
        "left": ["null", "Tree"],
        "kids": {"type": "array", "items": "Tree"},
        "by": {"type": "map", "values": "Tree"},
    },
)
ZOO: Final = _record(
    "Zoo",
    {
        "null": "null",
        "flag": "boolean",
        "number": ["null", "long", "string", "double"],
        "amount": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 4},
        "day": {"type": "int", "logicalType": "date"},
        "at": {"type": "long", "logicalType": "timestamp-micros"},
        "uuid": {"type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid"},
        "colour": {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"], "default": "RED"},
        "props": {"type": "map", "values": ["null", "string", "boolean"]},
        "floats": {"type": "array", "items": "float"},
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
    fields["page_url"] = {"name": "page_url", "type": "string"}
    fields["opt_out_type"] = {"name": "opt_out_type", "type": ["string", "null"]}
    item = {"type": "record", "name": "Item", "fields": [{"name": "quantity", "type": "int"}]}
    order = next(branch for branch in fields["order"]["type"] if branch != "null")
    next(each for each in order["fields"] if each["name"] == "items")["type"] = {
        "type": "array",
        "items": item,
    }
    more = [{"name": "zoo", "type": ZOO}, {"name": "notes", "type": {"type": "map", "values": "bytes"}}]
    return {**schema, "fields": [*reversed(fields.values()), *more]}


def _other_zoo() -> dict[str, Any]:
    """The zoo as another team writes it: promoted numbers, other units and scales, further branches and symbols."""
    schema = copy.deepcopy(ZOO)
    kinds: dict[str, Any] = {
        "number": ["int", "string", "null", "float", "boolean"],
        "amount": {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 6},
        "at": {"type": "long", "logicalType": "timestamp-millis"},
        "colour": {"type": "enum", "name": "Colour", "symbols": ["BLUE", "GREEN"]},
        "floats": {"type": "array", "items": "long"},
        "blob": "string",
    }
    for each in schema["fields"]:
        each["type"] = kinds.get(each["name"], each["type"])
    return schema


READERS: Final[tuple[dict[str, Any], ...]] = (SCHEMA, ZOO)
WRITERS: Final[tuple[dict[str, Any], ...]] = (SCHEMA, ZOO, _older(), _other_zoo())
