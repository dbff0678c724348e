"""One schema from several documents.

A registry stores the types that a schema refers to under other subjects, a folder in other files. These are pure
functions on the JSON, so the result keeps everything that its author wrote. JSON that is not a schema passes through
unchanged, and `schema.parse` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from consumer.avro.schema import NAMED_KINDS, PRIMITIVES, InvalidSchema, Json, full_name


def definitions(documents: Iterable[Json]) -> dict[str, Json]:
    """Return every named type of `documents`, nested ones too, by full name; the first of equal names.

    Raises `InvalidSchema` for a document nested too deeply.
    """
    found: dict[str, Json] = {}

    def visit(schema: Json, namespace: str) -> None:
        full, inner = _name_of(schema, namespace)
        if full:
            # A definition may be put into another namespace, so it states its own. The first of equal names counts: the
            # caller decides by the order of the documents.
            found.setdefault(full, {**schema, "name": full.rpartition(".")[2], "namespace": inner})
        _with_parts(schema, lambda part: visit(part, inner))

    try:
        for document in documents:
            visit(document, "")
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None
    return found


def inlined(document: Json, known: Mapping[str, Json]) -> Json:
    """Return `document` with each type that it refers to, and does not define, put where it is first needed.

    `known` are definitions by full name (see `definitions`). Raises `InvalidSchema` if nested too deeply.
    """
    defined: set[str] = set()  # the names that the document has by now

    def walk(schema: Json, namespace: str, is_known: bool) -> Json:
        """`is_known`: this is part of a definition from `known`."""
        if isinstance(schema, str) and schema not in PRIMITIVES:
            # The two names that a reference may mean, as `schema.parse` takes it.
            for full in (full_name(schema, namespace), schema):
                if full in defined:
                    return schema
                if full in known:
                    return walk(known[full], "", True)
            return schema  # unknown: `schema.parse` says so
        full, inner = _name_of(schema, namespace)
        if full in defined and is_known:
            # The type was inlined before, alone or inside another definition, and must not be defined twice.
            return full
        if full:
            defined.add(full)
        return _with_parts(schema, lambda part: walk(part, inner, is_known))

    try:
        return walk(document, "", False)
    except RecursionError:
        raise InvalidSchema("the schema is nested too deeply") from None


def _name_of(schema: Json, namespace: str) -> tuple[str, str]:
    """Return the full name of a named type, else "", and the namespace for its parts."""
    if not isinstance(schema, dict):
        return "", namespace
    kind, name, own = schema.get("type"), schema.get("name"), schema.get("namespace", namespace)
    if not (isinstance(kind, str) and kind in NAMED_KINDS and isinstance(name, str) and isinstance(own, str)):
        return "", namespace
    full = full_name(name, own)
    return full, full.rpartition(".")[0]


def _with_parts(schema: Json, change: Callable[[Json], Json]) -> Json:
    """Apply `change` to each type directly inside the schema (branches, items, values, fields); return the result."""
    if isinstance(schema, list):
        return [change(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {**schema, **{key: change(schema[key]) for key in ("items", "values") if key in schema}}
    # The text of "type" is a kind, or a reference that `schema.parse` follows by itself.
    if isinstance(schema.get("type"), list | dict):
        whole["type"] = change(schema["type"])
    if isinstance(schema.get("fields"), list):
        whole["fields"] = [
            {**field, "type": change(field["type"])} if isinstance(field, dict) and "type" in field else field
            for field in schema["fields"]
        ]
    return whole
