"""The JSON Schema of mapping files, made from the targets and the names that the loader knows.

`.venv/bin/python -m tests.conversion.targets.mapping_schema` writes schemas/mapping.schema.json. Editors take it up by
the line ``#:schema`` of a mapping: then they complete names, show what a field takes, and mark what pinstream would
refuse. What depends on the Avro schema or on the names in ``[own_events]``, `pinstream check` says: here any text will
do.

It is of draft 7, which every editor knows, and made for Taplo's language server. What that meets under ``anyOf`` or
``properties`` it proposes, once for each; under ``if`` and ``then`` it only checks. ``allOf``, and a schema that refers
to itself elsewhere, end it with an overflow of its stack.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from consumer.conversion.computed import tables
from consumer.conversion.loading import CHOICES
from consumer.conversion.targets import (
    ACTION_SOURCES,
    AGED,
    CONTENTS,
    DERIVED,
    DURATION,
    EVENT_NAMES,
    FILTER,
    LATE,
    LONGEST_OWN_EVENT,
    MAX_OWN_EVENTS,
    NEW_TARGETS,
    TARGETS,
    TIME_UNITS,
    Arity,
    Target,
)

FILE = Path(__file__).parents[3] / "schemas" / "mapping.schema.json"
COMMAND = ".venv/bin/python -m tests.conversion.targets.mapping_schema"

Schema = dict[str, Any]

EXPRESSION: Schema = {
    "type": ["string", "object"],
    "if": {"type": "object"},
    "then": {"$ref": "#/definitions/computed"},
}
"""A path, or a table that computes the value."""

OTHERS: Schema = {"not": {}}
"""For names that a table does not have. With plain `false`, Taplo marks all of the table instead of the one line."""

SEVERAL = {
    Arity.ONE: "One value; a list is refused.",
    Arity.FIRST: "Of several values the first usable one is sent.",
    Arity.ALL: "Several values are all sent.",
    Arity.SUM: "Several values are added up.",
    Arity.ITEM: "One value for each item.",
}
OPERATORS: dict[str, tuple[str, Schema]] = {
    "path": ("the value at this path; useful with a condition", {"type": "string"}),
    "branch": ("the name of the record's type at this path, in a union of several", {"type": "string"}),
    "value": ("this text, number or boolean, for every event", {"$ref": "#/definitions/scalar"}),
    "first": ("the first of these that has a value", {"$ref": "#/definitions/operands"}),
    "all": (
        "the values of all of these as one list, for a field that takes several",
        {"$ref": "#/definitions/operands"},
    ),
    "count": ("how many elements the array at this path has that are not null", {"type": "string"}),
    "join": (
        "the texts, one after the other; with stands between them",
        {"$ref": "#/definitions/operands"},
    ),
    "table": (
        "the entry whose key is the text of of; else otherwise, else none",
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"$ref": "#/definitions/scalar"},
        },
    ),
    "sum": ("the sum over the elements of an array that are not null", EXPRESSION),
    "add": ("the exact sum of two or more", {"$ref": "#/definitions/operands"}),
    "subtract": ("the first less the others, exactly", {"$ref": "#/definitions/operands"}),
    "multiply": ("the exact product of two or more", {"$ref": "#/definitions/operands"}),
    "time": ("a time that counts as unit and zone beside it say", EXPRESSION),
}
BESIDE: dict[str, tuple[str, Schema]] = {
    "with": ("what stands between the parts of join", {"type": "string"}),
    "of": ("the value that table looks up", EXPRESSION),
    "otherwise": (
        "what table gives for a value that it does not list",
        {"$ref": "#/definitions/scalar"},
    ),
    "unit": ("what a number in time counts, if its schema type does not say", {"enum": [*TIME_UNITS]}),
    "zone": ("where the clock of time was: Europe/Berlin or +02:00", {"type": "string", "minLength": 1}),
    "when": (
        "the value is none unless each path has this value, or one of these, or meets these tests",
        # A path that is written without quotes is a table of tables to TOML.
        {"type": "object", "minProperties": 1},
    ),
    "when_event": (
        "the value is none unless the conversion has this name, or one of these",
        {
            "anyOf": [
                {"$ref": "#/definitions/event"},
                {"type": "array", "minItems": 1, "items": {"$ref": "#/definitions/event"}},
            ]
        },
    ),
}
SETTINGS = {
    "unknown_record": "What becomes of record types that no section is for: refuse (a dead letter), filter (not sent).",
    "unknown_event_name": "What becomes of an event type that nothing names: refuse (a dead letter), custom, filter.",
    "external_id_case": "external_id is hashed in lower case, or as written: as the browser tag does it.",
    "time_unit": "What a time means whose schema type does not say.",
    "phone_country_code": "The calling code, 49, that phone numbers without one get; empty: none.",
    "phone_country": "The country of phone numbers as dialled at home: a path, or DE for all. Needs pinstream[phones].",
}


def described(text: str, of: Schema) -> Schema:
    """Return a schema with what an editor shows for it."""
    return {"description": text, **(behind(of) if "$ref" in of else of)}


def behind(of: Schema) -> Schema:
    """Return a schema that is checked all the same, but where no editor looks for names to propose."""
    return {"if": True, "then": of}


def closed(properties: Schema, **more: Any) -> Schema:
    """Return the schema of a table that has no other keys than these."""
    return {"type": "object", "properties": properties, "additionalProperties": OTHERS, **more}


def meaning(target: Target) -> str:
    """Return what a field takes, in a few sentences."""
    said = [f"Takes {target.meant}."]
    if target.form:
        said.append(f"Sent as {target.form}.")
    said.append(SEVERAL[target.arity])
    if target.refusal:
        said.append(f"A malformed value refuses the event ({target.refusal}).")
    if target.name in DERIVED:
        said.append(f"Follows from {DERIVED[target.name]} unless a line names it.")
    if target.name in NEW_TARGETS:
        said.append(f"The platform takes it only of late, {NEW_TARGETS[target.name]}.")
    return " ".join(said)


def by_object(lines: Schema) -> Schema:
    """Return a table of fields by their quoted names, and the same ones by objects: `user_data.em` without quotes."""
    objects: dict[str, Schema] = {}
    for name, line in lines.items():
        parent, _, key = name.rpartition(".")
        if parent and "[" not in parent:
            objects.setdefault(parent, {})[key] = line
    nested = {name: closed(fields) for name, fields in objects.items()}
    return closed({**lines, **nested})


def constant(target: Target) -> Schema:
    """Return what a line of [constants] may say for a field."""
    plain: Schema
    if target.name == "event_name":
        plain = behind({"$ref": "#/definitions/event"})
    elif target.name == "action_source":
        plain = {"enum": [*ACTION_SOURCES, ""]}
    else:
        plain = {"type": ["string", "number", "boolean"]}
    return {"if": {"type": "object"}, "then": {"$ref": "#/definitions/computed"}, "else": plain}


def tables_of_a_layer() -> dict[str, Schema]:
    """Return the tables that may stand at the top and in every section alike."""
    own = {
        "names": described(
            "Exactly as they are registered.",
            {
                "type": "array",
                "maxItems": MAX_OWN_EVENTS,
                "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_OWN_EVENT},
            },
        )
    }
    agreed: Schema = {
        "anyOf": [
            EXPRESSION,
            {"type": "array", "minItems": 1, "items": EXPRESSION},
        ]
    }
    consent = {
        "require": described("A path, or several that must all agree; empty: none is needed.", agreed),
        "any": described("Paths of which one must agree.", agreed),
        "allowed": described(
            "The values that are consent; without it only true is.",
            {"type": "array", "items": {"type": ["string", "integer", "boolean"]}},
        ),
    }
    age: Schema = {"type": "string", "pattern": f"^({DURATION.pattern})?$"}
    ages = {
        **{key: described('A duration, like "1h" or "30m"; empty: any.', age) for key in AGED},
        "late": described("What becomes of an older event.", {"enum": [*LATE]}),
    }
    path = EXPRESSION
    fields = {name: described(meaning(target), path) for name, target in TARGETS.items()}
    constants = {
        name: described(meaning(target), constant(target))
        for name, target in TARGETS.items()
        if target.constant
    }
    event: Schema = {"type": "object", "additionalProperties": {"$ref": "#/definitions/event"}}
    channel: Schema = {"type": "object", "additionalProperties": {"enum": [*ACTION_SOURCES, ""]}}
    key = described("A path, or a computed text.", path)
    return {
        "event_names": described('Your event type = Pinterest\'s name, or "!filter": not sent.', event),
        "own_events": described("Names of your own that are registered with Pinterest.", closed(own)),
        "action_sources": described("Where it happened, in any case = action source.", channel),
        "fields": described(
            "Pinterest's field = the path in your record, or a table that computes it; empty: not sent.",
            by_object(fields),
        ),
        "constants": described(
            "Pinterest's field = the value for events whose record gives none.", by_object(constants)
        ),
        "consent": described("Without it an event is not sent.", closed(consent)),
        "dedup": described(
            "What identifies an event within its ad account and name, if not event_id.", closed({"key": key})
        ),
        "max_age": described("How old an event may be, by where it happened.", closed(ages)),
    }


def layer() -> Schema:
    """Return what may stand at the top and in every section alike."""
    choices = {
        key: described(SETTINGS[key], {"enum": list(values)})
        for key, values in CHOICES.items()
        if key != "unknown_record"
    }
    code: Schema = {"type": "string", "pattern": "^([1-9][0-9]{0,2})?$"}
    return {
        **choices,
        "phone_country_code": described(SETTINGS["phone_country_code"], code),
        "phone_country": described(SETTINGS["phone_country"], EXPRESSION),
        **{name: {"$ref": f"#/definitions/{name}"} for name in tables_of_a_layer()},
    }


def definitions() -> Schema:
    """Return the schemas that others refer to."""
    known = {"enum": [*sorted(EVENT_NAMES), FILTER, ""]}
    operators = [
        {"required": [name], **({"required": ["table", "of"]} if name == "table" else {})}
        for name in OPERATORS
    ]
    return {
        "event": {"anyOf": [known, {"type": "string", "maxLength": LONGEST_OWN_EVENT}]},
        "scalar": {"type": ["string", "number", "boolean"]},
        "operands": {
            "type": "array",
            "minItems": 2,
            "items": EXPRESSION,
        },
        "computed": closed(
            {name: described(*said) for name, said in {**OPERATORS, **BESIDE}.items()}, oneOf=operators
        ),
        **tables_of_a_layer(),
    }


def schema() -> Schema:
    """Return the JSON Schema of a mapping file."""
    beside = {key for keys in tables._BESIDE.values() for key in keys}
    for name, said, read in (
        ("OPERATORS", OPERATORS.keys(), {*tables._OPERATORS}),
        ("BESIDE", BESIDE.keys(), beside | {*tables._CONDITIONS}),
    ):
        assert said == read, (
            f"{name} of tests/conversion/targets/mapping_schema.py and what the loader reads differ in "
            f"{', '.join(sorted(said ^ read))}: describe it there, then run: {COMMAND}"
        )
    assert CONTENTS.endswith("[]")
    lines = layer()
    top = {
        "unknown_record": described(SETTINGS["unknown_record"], {"enum": list(CHOICES["unknown_record"])}),
    }
    on_topics = described(
        "What differs on one topic.", {"type": "object", "additionalProperties": closed(lines)}
    )
    record = closed({**lines, "topic": on_topics})
    of_records = described(
        "What differs for one record type, by its full name.",
        {"type": "object", "additionalProperties": record},
    )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pinstream: how records become conversion events",
        **closed({**top, **lines, "record": of_records, "topic": on_topics}),
        "definitions": definitions(),
    }


def text() -> str:
    """Return the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
