"""Schemas in several documents made one: references to named types replaced by their definitions.

A registry stores what a schema refers to under other subjects, a folder in other files. Pure functions on the
JSON, so that the result keeps everything its author wrote; what is no schema passes through unchanged and is
told to its author by `schema.parse`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from consumer.avro.schema import PRIMITIVES, InvalidSchema, Json, possible_names

_NAMED: Final = frozenset({"record", "error", "enum", "fixed"})
_CHILDREN: Final = ("items", "values", "type")


def definitions(documents: Iterable[Json]) -> dict[str, Json]:
    """Every named type of `documents`, nested ones too, by full name; the first of equal names.

    Raises `InvalidSchema` for a document nested too deeply.
    """
    found: dict[str, Json] = {}
    try:
        for document in documents:
            for name, definition in _named_types(document, ""):
                found.setdefault(name, definition)
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None
    return found


def inlined(document: Json, known: Mapping[str, Json]) -> Json:
    """`document` with every type it refers to but does not define put where it is first needed.

    `known` are definitions by full name (see `definitions`). Raises `InvalidSchema` if nested too deeply.
    """
    try:
        return _Inlining(known).walk(document, "")
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None


def _full_name(schema: dict[str, Json], namespace: str) -> tuple[str, str] | None:
    """Full name and namespace of a named type; ``None`` for anything else."""
    name, own = schema.get("name"), schema.get("namespace", namespace)
    if schema.get("type") not in _NAMED or not isinstance(name, str) or not isinstance(own, str):
        return None
    full = name if "." in name or not own else f"{own}.{name}"
    return full, full.rpartition(".")[0]


def _named_types(schema: Json, namespace: str) -> Iterator[tuple[str, Json]]:
    if isinstance(schema, list):
        for branch in schema:
            yield from _named_types(branch, namespace)
    if not isinstance(schema, dict):
        return
    named = _full_name(schema, namespace) if isinstance(schema.get("type"), str) else None
    if named is not None:
        full, namespace = named
        yield full, {**schema, "name": full.rpartition(".")[2], "namespace": namespace}
    for key in _CHILDREN:
        if isinstance(schema.get(key), list | dict):
            yield from _named_types(schema[key], namespace)
    for field in _fields(schema):
        yield from _named_types(field.get("type"), namespace)


def _fields(schema: dict[str, Json]) -> list[dict[str, Json]]:
    fields = schema.get("fields")
    return [field for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []


class _Inlining:
    """One document being completed; `_defined` are the names it has by now."""

    def __init__(self, known: Mapping[str, Json]) -> None:
        self._known = known
        self._defined: set[str] = set()
        self._inside_known = 0

    def walk(self, schema: Json, namespace: str) -> Json:
        if isinstance(schema, str):
            return self._reference(schema, namespace)
        if isinstance(schema, list):
            return [self.walk(branch, namespace) for branch in schema]
        return self._object(schema, namespace) if isinstance(schema, dict) else schema

    def _reference(self, name: str, namespace: str) -> Json:
        if name in PRIMITIVES:
            return name
        for full in possible_names(name, namespace):
            if full in self._defined:
                return name
            if full in self._known:
                self._inside_known += 1
                definition = self.walk(self._known[full], "")
                self._inside_known -= 1
                return definition
        return name

    def _object(self, schema: dict[str, Json], namespace: str) -> Json:
        named = _full_name(schema, namespace) if isinstance(schema.get("type"), str) else None
        if named is not None:
            full, namespace = named
            if full in self._defined and self._inside_known:
                return full  # it came in before, by itself or inside another definition
            self._defined.add(full)
        whole = dict(schema)
        for key in _CHILDREN:
            if isinstance(schema.get(key), list | dict) or (key != "type" and key in schema):
                whole[key] = self.walk(schema[key], namespace)
        if isinstance(schema.get("fields"), list):
            whole["fields"] = [self._field(field, namespace) for field in schema["fields"]]
        return whole

    def _field(self, field: Json, namespace: str) -> Json:
        if not isinstance(field, dict) or "type" not in field:
            return field
        return {**field, "type": self.walk(field["type"], namespace)}
