"""Generated mappings: computed values of any nesting in sections of every kind, over two record types.

`test_values` tests what each operator does. Here mapping, records and their order are drawn, and the compiled program
and the two steps must have the same result for each record, to the byte.
"""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.decode import framing_of
from consumer.avro.encode import Encoder, Unencodable
from consumer.avro.paths import EACH, SchemaPaths
from consumer.conversion.computed.expressions import Unreadable, computation, is_many, results_of
from consumer.conversion.computed.tables import ExpressionReader
from consumer.conversion.sections import load_sections
from consumer.conversion.targets import CONTENTS, EVENT_NAMES, TARGETS, Arity
from consumer.engine.model import Record, SchemaRef
from consumer.errors import MappingError
from tests.conversion.computed.test_values import BASE, CONSTANTS, SHOP
from tests.conversion.convert_records import shaped
from tests.conversion.sections.shop import DEFAULT, Readings
from tests.conversion.test_convert import NOW

# A record type with some of the shop's fields, a few of them of other types.
_KEPT: Final = ("id", "type", "at", "country", "dept", "rate", "buyer", "lines")
OTHER: Final[dict[str, Any]] = {
    **SHOP,
    "name": "Other",
    "fields": [
        {**field, "type": ["null", "string"]} if field["name"] == "rate" else field
        for field in SHOP["fields"]
        if field["name"] in _KEPT
    ],
}
TYPES: Final[dict[str, dict[str, Any]]] = {"com.shop.Shop": SHOP, "com.shop.Other": OTHER}

_TEXTS: Final = (
    "type", "sub", "country", "tier", "buyer.email", "buyer.login", "buyer.tags.vip", "rate", "id",
)  # fmt: skip
_NUMBERS: Final = ("dept", "rate", "shipping", "lines[0].price", "lines[-1].pieces")
_LISTS: Final = ("buyer.mails", "lines[].sku", "fees", "lines[].taxes[].amount")
_OF_LINES: Final = tuple(f"lines[].{name}" for name in ("price", "pieces", "discount", "sku", "size", "kind"))
FIELDS: Final = (
    *("event_name", "event_id", "event_time", "opt_out", "language", "user_data.em", "user_data.external_id"),
    *("user_data.country", "custom_data.value", "custom_data.content_category", "custom_data.order_id"),
    *("custom_data.content_ids", "custom_data.num_items", "custom_data.contents[].id", "user_data.click_id"),
    *("custom_data.contents[].item_price", "custom_data.contents[].quantity", "custom_data.contents[].item_name"),
)  # fmt: skip


def _conditions() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(
        [
            {"when": {"dept": [1, 2]}},
            {"when": {"country": "DE"}},
            {"when": {"ads": True, "dept": 0}},
            {"when": {"lines[0].sku": ["A", "0"]}},
            {"when_event": ["checkout"]},
            {"when": {"lines[].kind": 1}},
        ]
    )


def expressions(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for what may stand in place of a path."""

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        parts = st.lists(inner, min_size=2, max_size=3)
        tables = st.sampled_from([{"0": "a", "1": "b"}, {"DE": "checkout", "GOLD": "2"}, {"A": 1, "é": 2}])
        return st.one_of(
            st.builds(lambda of: {"first": of}, parts),
            st.builds(lambda of, glue: {"join": of, "with": glue}, parts, st.sampled_from(["", "-", "é"])),
            st.builds(lambda of, table: {"of": of, "table": table}, inner, tables),
            st.builds(lambda of, table: {"of": of, "table": table, "otherwise": "9"}, inner, tables),
            st.builds(lambda key, of: {key: of}, st.sampled_from(["add", "subtract", "multiply"]), parts),
            st.builds(lambda of: {"sum": of}, inner),
            st.builds(
                lambda of, when: {**({"path": of} if isinstance(of, str) else of), **when},
                inner,
                _conditions(),
            ),
        )

    return st.recursive(leaves, nested, max_leaves=6)


EXPRESSIONS: Final = expressions(
    st.sampled_from(
        [*_TEXTS, *_NUMBERS, *_LISTS, *_OF_LINES, *({"value": one} for one in ("x", "1.5", 2, 0.1))]
    )
)
LINES: Final = ("lines", EACH)  # the steps to the items
PLACES: Final = (
    "", *(f'record."{name}".' for name in TYPES), 'topic."t".', *(f'record."{name}".topic."t".' for name in TYPES),
)  # fmt: skip


def toml(said: Any) -> str:
    """Return the value as TOML, on one line."""
    if isinstance(said, dict):
        lines = (f"{json.dumps(key, ensure_ascii=False)} = {toml(of)}" for key, of in said.items())
        return f"{{ {', '.join(lines)} }}"
    if isinstance(said, list):
        return f"[{', '.join(map(toml, said))}]"
    return json.dumps(said, ensure_ascii=False)


class _Schemas:
    """The two record types, in place of a folder of schemas."""

    def reader(self, name: str) -> dict[str, Any]:
        """See `ReaderSchemas`."""
        return TYPES[name]

    record = reader


def mapping_of(lines: dict[str, dict[str, Any]]) -> str:
    """Return a mapping with these lines in the [fields] of their places."""
    tables = [BASE, "\n".join(f'"{name}" = {toml(said)}' for name, said in lines[""].items()), CONSTANTS]
    kept = {f'"{name}"' for name in lines[""]} | set(lines[""])
    tables[0] = "\n".join(line for line in BASE.splitlines() if line.split(" = ")[0] not in kept)
    for place in PLACES[1:]:
        said = "\n".join(f'"{name}" = {toml(of)}' for name, of in lines[place].items())
        tables.append(f"[{place}fields]\n{said}")
    return "\n".join(tables)


READINGS: Final = {name: ExpressionReader(SchemaPaths(schema), EVENT_NAMES) for name, schema in TYPES.items()}


def is_possible(place: str, name: str, said: Any) -> bool:
    """Return whether a mapping may have this line in this place: half of the drawn ones are no number, or
    several values where one is taken."""
    target, types = TARGETS[name], [one for one in TYPES if f'"{one}"' in place] or list(TYPES)
    for one in types:
        try:
            expression = READINGS[one].expression(said)
            computation(expression, LINES if name.startswith(CONTENTS) else None, None, lambda _: None)
        except Unreadable:
            return False
        if is_many(expression) and target.arity is Arity.ONE:
            return False
        if not all(result.kinds & target.kinds for result in results_of(expression)):
            return False
    return True


REFS: Final = {name: SchemaRef("id", str(number)) for number, name in enumerate(TYPES, start=1)}
RECORDS: Final = {name: shaped(schema, wild=False) for name, schema in TYPES.items()}
ENCODERS: Final = {name: Encoder(schema) for name, schema in TYPES.items()}
SPOILED: Final = st.sampled_from(["", "", "", "", "cut", "longer"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_executors_say_the_same(data: st.DataObject) -> None:
    """Both executors have the same results for any records of two types on two topics, under any sections with
    computed values."""
    lines: dict[str, dict[str, Any]] = {place: {} for place in PLACES}
    for place in PLACES:
        for name in data.draw(st.lists(st.sampled_from(FIELDS), max_size=3, unique=True)):
            said = data.draw(EXPRESSIONS)
            if is_possible(place, name, said):
                lines[place][name] = said
    try:
        sections = load_sections(
            mapping_of(lines), _Schemas(), default_toml=DEFAULT, schema_name="com.shop.Shop"
        )
    except MappingError:
        return  # a mistake that `is_possible` cannot see, such as fields of one item from two arrays
    schemas = {REFS[name]: schema for name, schema in TYPES.items()}
    readings = Readings(sections, schemas, accounts=("11", "22"), max_event_age=7 * 86400)
    records = []
    for number in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(list(TYPES)))
        event = data.draw(RECORDS[name])
        if data.draw(st.booleans()):
            event |= {"id": f"e-{number}", "type": "checkout", "at": int(NOW * 1000) - 5}
        try:
            value = ENCODERS[name].encode(event)
        except Unencodable:
            continue
        value = framing_of(REFS[name]) + value[10:]
        value = {"cut": value[:-1], "longer": value + b"\0"}.get(data.draw(SPOILED), value)
        records.append(Record(number, -1, None, value, ()))
    for topic in ("t", "u"):
        readings.check(records, topic, NOW)
