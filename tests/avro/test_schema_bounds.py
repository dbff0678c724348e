"""Hostile schemas: the cost to learn one is bounded by its size, counted in steps and not in seconds."""

from __future__ import annotations

import json
import tracemalloc
from sys import intern
from typing import Any

import pytest

from consumer.avro import resolution as avro_resolution
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.plan import Plan, RecordPlan
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import (
    MAX_NAME_CHARACTERS,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_TYPES,
    InvalidSchema,
    parse,
)
from consumer.engine.model import Rejection, SchemaRef
from tests.avro.test_decode_resolution import enum, record
from tests.support import avro
from tests.support.avro import field

SCHEMA = SchemaRef("id", "7")


def levels(depth: int, variants: int, last: Any) -> Any:
    """Return records ``shop.L0`` to ``shop.L{depth}``; each holds a union of all `variants` of the next one,
    which are defined once and referred to elsewhere. The last one has a field of type `last`.

    For a reader of single records each path from top to bottom is another one: `variants` to the power of `depth`.
    """
    kind: Any = [
        record(field("end", last), name=f"v{variant}.L{depth}") if depth else "null"
        for variant in range(variants)
    ]
    for level in range(depth - 1, -1, -1):
        names = [f"v{variant}.L{level + 1}" for variant in range(variants)]
        kind = [
            record(field("next", kind if variant == 0 else names), name=f"v{variant}.L{level}")
            for variant in range(variants)
        ]
    return record(field("top", kind))


def chain(depth: int, last: Any) -> Any:
    """Return the reader's schema that goes with `levels`."""
    kind = record(field("end", last), name=f"L{depth}")
    for level in range(depth - 1, -1, -1):
        kind = record(field("next", kind), name=f"L{level}")
    return record(field("top", kind))


def test_pairs_that_fail_are_resolved_once() -> None:
    """Pairs of records that cannot be read are resolved once each: three records on twenty levels make 3^20
    ways, but only some hundred pairs."""
    writer, reader = parse(levels(20, 3, "string")), parse(chain(20, "int"))
    with pytest.raises(Incompatible, match=r"field shop\.L0\.next: field shop\.L1\.next"):
        resolve(writer, reader, 2_000)


def test_pairs_that_resolve_are_resolved_once() -> None:
    """Pairs of records that can be read are resolved once each, too."""
    resolve(parse(levels(20, 3, "int")), parse(chain(20, "int")), 2_000)


def test_a_pair_that_failed_fails_again() -> None:
    """A pair that was refused in one branch of a union is refused again where it stands alone."""
    bad = record(field("a", "string"), name="Bad")
    ours = record(field("a", "int"), name="Bad")
    writer = record(field("x", ["null", bad]), field("y", "Bad"))
    reader = record(field("x", ["null", ours]), field("y", "Bad"))
    with pytest.raises(Incompatible, match=r"Event\.y: field shop\.Bad\.a: string cannot be read as int"):
        resolve(parse(writer), parse(reader))


def test_an_enum_that_failed_fails_again() -> None:
    """An enum that was refused in one branch of a union is refused again where it stands alone."""
    writer = record(field("x", ["null", enum("A")]), field("y", "Colour"))
    reader = record(field("x", ["null", enum("B")]), field("y", "Colour"))
    with pytest.raises(Incompatible, match=r"Event\.y: enum shop\.Colour shares no symbol"):
        resolve(parse(writer), parse(reader))


def test_one_enum_in_many_places_is_mapped_once() -> None:
    """The symbols of an enum in many places count once, and all places share one plan."""
    symbols = [f"S{number}" for number in range(10_000)]
    many = record(field("e0", enum(*symbols)), *(field(f"e{number}", "Colour") for number in range(1, 1_000)))
    plan = resolve(parse(many), parse(many), 50_000)
    assert isinstance(plan, RecordPlan)
    assert plan.fields is not None
    assert len({id(value) for _, value in plan.fields}) == 1


def test_a_schema_that_takes_too_many_steps_is_refused() -> None:
    """A schema that takes too many steps is refused with a message that names the limit; other schemas are
    still learnt."""
    reader = record(field("e", enum("A", "B")))
    decoder = Decoder(OneSchema(reader))
    large = record(field("e", enum("A", *(f"S{number}" for number in range(avro_resolution.MAX_STEPS)))))
    verdict = decoder.add_schema(SCHEMA, parse_text(large))
    assert isinstance(verdict, Rejection)
    assert "too large or too intricate" in verdict.message
    assert f"more than {avro_resolution.MAX_STEPS} steps" in verdict.message
    assert decoder.add_schema(SchemaRef("id", "8"), reader) is None


def parse_text(schema: Any) -> str:
    """Return the schema as a registry sends it."""
    return json.dumps(schema, separators=(",", ":"))


def test_the_budget_ends_the_resolution_and_not_a_branch() -> None:
    """Running out of steps ends the whole resolution, not only the branch of a union: the other branches would
    go on without a bound."""
    wide = record(*(field(f"f{number}", "int") for number in range(100)), name="Wide")
    writer = record(field("x", ["null", wide]))
    with pytest.raises(Incompatible, match="too large or too intricate"):
        resolve(parse(writer), parse(writer), 50)


def test_steps_grow_with_the_size_of_a_schema() -> None:
    """Each field of a wide schema costs at most ten steps, so the largest schema stays far below the limit."""

    def resolved(fields: int, steps: int) -> Plan:
        wide = parse(record(*(field(f"f{number}", ["null", "string"]) for number in range(fields))))
        return resolve(wide, wide, steps)

    for fields in (10, 100, 1_000, MAX_SCHEMA_TYPES // 4):
        resolved(fields, 10 * fields)


@pytest.mark.parametrize(
    "schema",
    [
        record(field("a", "int"), name="n" * 300_000),
        record(
            *(field(f"f{number}", avro.fixed(f"F{number}", 1)) for number in range(3_000)),
            namespace="n" * 300_000,
            name="Top",
        ),
        record(field("n" * 300_000, "int")),
        record(
            field("a", "int"), name="Top", namespace="n" * 1_000, aliases=[f"a{i}" for i in range(90_000)]
        ),
        record(field("a", "int"), name="Top", aliases=["n" * 300_000]),
    ],
    ids=["name", "namespace", "field", "aliases", "alias"],
)
def test_names_cannot_fill_the_memory(schema: Any) -> None:
    """Long names are refused before they take memory: with a namespace in the name of each type below it, half
    a megabyte of text once made gigabytes."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidSchema, match=f"{MAX_NAME_CHARACTERS} are read|aliases of more than"):
            parse(schema)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20


def test_of_a_schema_that_cannot_be_read_only_the_verdict_is_kept() -> None:
    """Ten schemas of a thousand fields each that do not fit ours take less than 100 kB; parsed, they take megabytes."""
    decoder = Decoder(OneSchema(record(field("a", "int"), name="Ours")))
    # Interned beforehand: else the interpreter's table of such names may grow in the middle, by megabytes.
    names = [[intern(f"f{number}_{at}") for at in range(1_000)] for number in range(10)]
    tracemalloc.start()
    try:
        for number, of_fields in enumerate(names):
            schema = json.dumps(record(*(field(name, "int") for name in of_fields), name="Theirs"))
            assert isinstance(decoder.add_schema(SchemaRef("id", str(number)), schema), Rejection)
        del schema
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


def test_a_name_of_the_greatest_length_is_read() -> None:
    """A name of the greatest length, namespace included, is read; one character more is refused."""
    parse(record(name="n" * (MAX_NAME_CHARACTERS - 2), namespace="s"))
    with pytest.raises(InvalidSchema, match="namespace included"):
        parse(record(name="n" * (MAX_NAME_CHARACTERS - 1), namespace="s"))


def test_the_deepest_schema_is_read() -> None:
    """A schema of the greatest depth is read; one level more is refused."""

    def nested(levels: int) -> str:
        return '{"type":"array","items":' * levels + '"int"' + "}" * levels

    parse(nested(MAX_SCHEMA_DEPTH))
    with pytest.raises(InvalidSchema, match="items of items of"):
        parse(nested(MAX_SCHEMA_DEPTH + 1))
