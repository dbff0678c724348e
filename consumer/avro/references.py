"""Schemas in several documents made one: references to named types replaced by their definitions.

A registry stores what a schema refers to under other subjects, a folder in other files. Pure functions on the
JSON, so that the result keeps everything its author wrote; what is no schema passes through unchanged, and
`schema.parse` refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from consumer.avro.schema import NAMED_KINDS, PRIMITIVES, InvalidSchema, Json, full_name, possible_names

_CHILDREN: Final = ("items", "values", "type")


def definitions(documents: Iterable[Json]) -> dict[str, Json]:
    """Return every named type of `documents`, nested ones too, by full name; the first of equal names.

    Raises `InvalidSchema` for a document nested too deeply.
    """
    found: dict[str, Json] = {}
    try:
        for document in documents:
            # The first of equal names stands, so the caller says by the order which file counts.
            for name, definition in _named_types(document, ""):
                found.setdefault(name, definition)
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None
    return found


def inlined(document: Json, known: Mapping[str, Json]) -> Json:
    """Return `document` with each type that it refers to, and does not define, put where it is first needed.

    `known` are definitions by full name (see `definitions`). Raises `InvalidSchema` if nested too deeply.
    """
    try:
        return _Inlining(known).walk(document, "")
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None


def _name_of(schema: dict[str, Json], namespace: str) -> tuple[str, str]:
    """Return the full name of a named type, else "", and the namespace for what is inside."""
    kind, name, own = schema.get("type"), schema.get("name"), schema.get("namespace", namespace)
    if not (isinstance(kind, str) and kind in NAMED_KINDS and isinstance(name, str) and isinstance(own, str)):
        return "", namespace
    full = full_name(name, own)
    return full, full.rpartition(".")[0]


def _named_types(schema: Json, namespace: str) -> Iterator[tuple[str, Json]]:
    if isinstance(schema, list):
        for branch in schema:
            yield from _named_types(branch, namespace)
    if not isinstance(schema, dict):
        return
    full, namespace = _name_of(schema, namespace)
    if full:
        # It may be put into another namespace, so it brings its own along.
        yield full, {**schema, "name": full.rpartition(".")[2], "namespace": namespace}
    fields = schema.get("fields")
    below = (
        [field.get("type") for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []
    )
    for child in (*(schema.get(key) for key in _CHILDREN), *below):
        yield from _named_types(child, namespace)


class _Inlining:
    """One document being completed."""

    def __init__(self, known: Mapping[str, Json]) -> None:
        self._known = known
        self._defined: set[str] = set()  # the names it has by now
        self._inside_known = 0

    def walk(self, schema: Json, namespace: str) -> Json:
        if isinstance(schema, str):
            return schema if schema in PRIMITIVES else self._reference(schema, namespace)
        if isinstance(schema, list):
            return [self.walk(branch, namespace) for branch in schema]
        return self._object(schema, namespace) if isinstance(schema, dict) else schema

    def _reference(self, name: str, namespace: str) -> Json:
        for full in possible_names(name, namespace):
            if full in self._defined:
                return name
            if full in self._known:
                # Within a definition from outside, a type that the document has already must not come twice.
                self._inside_known += 1
                definition = self.walk(self._known[full], "")
                self._inside_known -= 1
                return definition
        return name

    def _object(self, schema: dict[str, Json], namespace: str) -> Json:
        full, namespace = _name_of(schema, namespace)
        if full in self._defined and self._inside_known:
            return full  # it came in before, by itself or inside another definition
        if full:
            self._defined.add(full)
        whole = dict(schema)
        for key in _CHILDREN:
            # The text of "type" is a kind, or a reference that `parse` follows by itself.
            if isinstance(schema.get(key), list | dict) or (key != "type" and key in schema):
                whole[key] = self.walk(schema[key], namespace)
        if isinstance(schema.get("fields"), list):
            whole["fields"] = [
                {**field, "type": self.walk(field["type"], namespace)}
                if isinstance(field, dict) and "type" in field
                else field
                for field in schema["fields"]
            ]
        return whole
