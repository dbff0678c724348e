"""The fast path under schemas and mappings of any shape, and what must not be shared between events.

`test_compiled` compares the fast path and the two steps under three mappings. Here the mapping reads whatever the
schema has: fields of optional records, of maps, of unions whose other branches the writer lacks, of items, of defaults.
"""

from __future__ import annotations

import itertools
import json
import tracemalloc
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.avro.decode import SCHEMA_ID_HEADER, Decoder, OneSchema, framing_of
from consumer.avro.paths import EACH, SchemaPaths
from consumer.conversion.normalise import Unrecognised
from consumer.conversion.reading import CompiledReading
from consumer.conversion.targets import TARGETS
from consumer.engine.model import Record, Rejection, SchemaRef
from consumer.engine.reading import TwoSteps
from consumer.errors import MappingError
from tests.avro.test_decode_properties import evolved_record, record
from tests.conversion.convert_records import MAID, steps_of
from tests.conversion.test_compiled import BOTH, Both, comparable_row
from tests.conversion.test_convert import DEFAULT, NOW, SCHEMA, event_of
from tests.conversion.test_normalise import VECTORS, sha256, target_name
from tests.engine.building import Read, read_by
from tests.support import avro
from tests.support.avro import optional
from tests.support.avro import record as record_of
from tests.support.mapping import load_mapping

EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "event_type": "checkout",
    "occurred_at": int(NOW * 1000) - 5,
    "channel": "web",
    "customer": {"emails": ["a@b.c"]},
}
CUSTOMER = avro.record("Customer", emails=avro.array("string"))  # fmt: skip
MAPPED = (
    "custom_data.content_name", "device_info.brand", "user_data.fn", "user_data.external_id", "device_info.languages",
    "device_info.battery_level", "custom_data.content_ids", "custom_data.num_items", "custom_data.contents[].id",
    "custom_data.contents[].item_name", "custom_data.contents[].item_price", "custom_data.contents[].quantity",
    "custom_data.value", "wifi",
)  # fmt: skip


def schema_of(*fields: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with what every event needs, and these fields."""
    needed = [
        avro.field("event_id", "string"), avro.field("event_type", "string"), avro.field("occurred_at", "long"),
        avro.field("channel", "string"), avro.field("customer", CUSTOMER),
    ]  # fmt: skip
    return avro.record("shop.Event", *needed, *fields)


A, B = record_of("A", x="string"), record_of("B", y="string")
ODD = record_of("K", **{"class": "string", "dé": "string"})
TEXTS = avro.map_of("string")
ARRAY = avro.array("string")
WIDE_NAMES = [f"f{number}" for number in range(70)]
WIDE = record_of("W", **dict.fromkeys(WIDE_NAMES, "string"))
USD = '"custom_data.currency" = "USD"'
CHAIN = record_of("N", x="string", next=["null", "N"])


def deep(levels: int) -> dict[str, Any]:
    """Return optional records in optional records, nested deeper than a program spreads."""
    return record_of(f"D{levels}", x="string", **({"d": ["null", deep(levels - 1)]} if levels else {}))


def held(levels: int) -> dict[str, Any]:
    """Return a value of `deep` with this number of levels."""
    return {"x": f"{levels}", "d": held(levels - 1) if levels else None}


@pytest.mark.parametrize(
    ("ours", "theirs", "line", "values"),
    [
        ((A, B), (A,), '"custom_data.content_name" = "p.y"', [{"x": "1"}, None]),
        ((A, B), (B,), '"custom_data.content_name" = "p.y"', [{"y": "1"}, None]),
        ((TEXTS, B), (B,), '"custom_data.content_name" = "p.y"', [{"y": "1"}, None]),
        ((TEXTS, B), (TEXTS,), '"custom_data.content_name" = "p.y"', [{"y": "1"}, {}, None]),
        ((avro.array(A), B), (B,), '"device_info.languages" = "p[].x"', [{"y": "de"}, None]),
        ((avro.array(A), record_of("C", x="string")), (record_of("C", x="string"),),
         '"device_info.languages" = "p[].x"', [{"x": "de"}, None]),
        ((avro.array(A), B), (avro.array(A),),
         '"custom_data.content_name" = "p.y"', [[{"x": "de"}], [], None]),
        ((avro.array([A, B]),), (avro.array(A),),
         '"custom_data.contents[].id" = "p[].y"\n"custom_data.content_ids" = "p[].y"', [[{"x": "1"}], []]),
        ((avro.array(["null", B]),), (avro.array(["null", B]),),
         '"custom_data.contents[].id" = "p[].y"', [[None, {"y": "1"}], [None], []]),
        ((avro.array(record_of("L", q=["null", B])),),
         (avro.array(record_of("L", q=["null", B])),),
         '"custom_data.contents[].id" = "p[].q.y"', [[{"q": None}, {"q": {"y": "1"}}]]),
        ((A, B), (A, B), '"custom_data.contents[].id" = "p.x"\n"custom_data.contents[].quantity" = "p.y"\n'
         '"custom_data.num_items" = "p.y"', [{"x": "1"}, {"y": "2"}, None]),
        ((ODD,), (ODD,),
         '"device_info.brand" = "p.class"\n"device_info.model" = "p.dé"\n"device_info.type" = "p.dé"',
         [{"class": "1", "dé": "2"}, None]),
        ((WIDE,), (WIDE,), '"device_info.brand" = "p.f69"', [dict.fromkeys(WIDE_NAMES, "1"), None]),
        ((deep(11),), (deep(11),), f'"device_info.brand" = "p{".d" * 11}.x"', [held(11), held(5), None]),
        ((CHAIN,), (CHAIN,), '"device_info.brand" = "p.next.next.x"',
         [{"x": "1", "next": {"x": "2", "next": {"x": "3", "next": None}}}, {"x": "1", "next": None}, None]),
        (("long", "string"), ("string",), '"user_data.ph" = "p"', ["12", None]),
    ],
)  # fmt: skip
def test_branches_that_the_writer_lacks(ours: Any, theirs: Any, line: str, values: list[Any]) -> None:
    """A mapped field in a branch of our union that the writer lacks gives the same result in both ways."""
    both = Both((schema_of(optional("p", *ours)), f"[fields]\n{line}"), schema_of(optional("p", *theirs)))
    written = [both.value({**EVENT, "p": value}) for value in values]
    assert None not in written
    assert all(isinstance(one, list) for one in both.check(*written))


@pytest.mark.parametrize(
    ("types", "path", "value", "ids"),
    [
        (("string", ARRAY), "p", "abc", ["abc"]),
        (("string", ARRAY), "p", "", None),
        (("string", ARRAY), "p", ["a", "b"], ["a", "b"]),
        (("long", ARRAY), "p", 0, ["0"]),
        (("long", ARRAY), "p[]", 7, ["7"]),
        ((TEXTS, ARRAY), "p[]", {"k": "v"}, None),
        ((TEXTS, ARRAY), "p[]", {}, None),
        (("string", avro.array(A)), "p[].x", "abc", None),
        ((TEXTS, avro.array(A)), "p[].x", {"x": "1", "z": "2"}, ["1"]),
        ((B, avro.array(A)), "p[].x", {"y": "1"}, None),
        (("string", avro.array(ARRAY)), "p", "abc", ["abc"]),
        ((avro.array(["string", ARRAY]),), "p", ["abc", ["d", "e"]], ["abc", "d", "e"]),
    ],
)
def test_items_are_the_elements_of_an_array(types: Any, path: str, value: Any, ids: Any) -> None:
    """A value of the union's other branch is the one item: neither its characters nor its keys are items."""
    both = Both((schema_of(optional("p", *types)), f'[fields]\n"custom_data.contents[].id" = "{path}"'))
    (said,) = both.check(both.value({**EVENT, "p": value}))
    contents = orjson.loads(said[5]).get("custom_data", {}).get("contents")
    assert contents == (None if ids is None else [{"id": one} for one in ids])


def evolved_item(draw: Any, item: dict[str, Any]) -> Any:
    """Return an item as our schema has it, perhaps in a union with null. Its ``k`` stays, since items of no
    bytes have no bound."""
    ours = evolved_record(draw, {**item, "fields": item["fields"][1:]})
    ours = {**ours, "fields": [*ours["fields"], item["fields"][0]]}
    return draw(st.sampled_from([ours, ours, ["null", ours]]))


def kept(parts: list[str], schema: dict[str, Any]) -> str:
    """Return an overlay of those parts that a mapping of this schema may have."""
    overlay = ""
    for part in parts:
        try:
            load_mapping(f"{overlay}\n{part}", schema, default_toml=DEFAULT)
        except MappingError:
            continue
        overlay += f"\n{part}"
    return overlay


def beside_fields(draw: Any, paths: list[str]) -> list[str]:
    """Return a dedup key and a consent at any path, each one time in three."""
    key, consent = (json.dumps(draw(st.sampled_from(paths))) for _ in range(2))
    parts = [
        f"[dedup]\nkey = {key}",
        f'[consent]\nrequire = {consent}\nallowed = ["", "A", "!", "0", 0, 1, true, false]',
    ]
    return [part for part in parts if draw(st.sampled_from([True, False, False]))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_mapping_asks_for_comes_out_alike(data: st.DataObject) -> None:
    """Any schema, evolved or with more branches than the writer's, and any of its paths in the mapping give the
    same result in both ways."""
    draw: Any = data.draw
    counter = itertools.count()
    extra, extras = record(draw, counter, 3)
    item, items = record(draw, counter, 2)
    item = {**item, "fields": [avro.field("k", "int"), *item["fields"]]}
    theirs = schema_of(optional("extra", extra), avro.field("lines", avro.array(item)))
    more = draw(st.lists(st.sampled_from([A, TEXTS, record_of("C", a="string", b="int")]), unique_by=str))
    ours = schema_of(
        optional("extra", evolved_record(draw, extra), *more),
        avro.field("lines", avro.array(evolved_item(draw, item)), default=[]),
    )
    paths = list(SchemaPaths(ours).all_paths())[5:] or ["event_id"]
    paths = [path.replace("<key>", "k") for path in paths]
    asked = draw(st.dictionaries(st.sampled_from(MAPPED), st.sampled_from(paths), min_size=1, max_size=4))
    lines = [f"{json.dumps(name)} = {json.dumps(path)}" for name, path in asked.items()]
    setup = (ours, kept([*beside_fields(draw, paths), "[fields]", *lines], ours))
    both = Both(setup, theirs)
    events = [
        {
            **EVENT,
            "extra": draw(st.one_of(st.none(), extras)),
            "lines": [{"k": 1, **one} for one in draw(st.lists(items, max_size=2))],
        }
        for _ in range(2)
    ]
    values = [value for event in events if (value := both.value(event)) is not None]
    cut = draw(st.integers(0, 12))
    both.check(*values, *(value[: len(value) - cut] for value in values))


ANY_SCALAR = ["null", "string", "long", "double", "boolean"]


def loose(schema: Any) -> Any:
    """Return the schema with any scalar where it has text or a boolean, which other code reads and converts."""
    if schema in ("string", "boolean", ["null", "string"], ["null", "boolean"]):
        return ANY_SCALAR
    if isinstance(schema, list):
        return [one if isinstance(one, str) else loose(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema["type"] == "array":
        return {**schema, "items": loose(schema["items"])}
    if schema["type"] == "record":
        return {**schema, "fields": [{**one, "type": loose(one["type"])} for one in schema["fields"]]}
    return schema


STRICT, LOOSE = BOTH["default"], Both((loose(SCHEMA), None))
IDENTIFIED = {
    "customer.emails": ["jane@example.com"],
    "customer.advertising_ids": ["aebe52e7-03ee-455a-b3c4-e57283966239"],
}
"""Values that identify the event, since a vector leaves one of them out."""


def event_with(path: str, value: Any, both: Both) -> dict[str, Any]:
    """Return an event that is identified and has this value at `path`; a currency is without a total."""
    alone = {"order.total": None} if path == "order.currency" else {}
    many = EACH in steps_of(both.converter.descriptions[0].mapping.sources[NAMES[path]])
    held = ([] if value is None else [value]) if many else value
    return event_of({**IDENTIFIED, **alone, path: held})


NAMES = {source.path: name for name, source in STRICT.converter.descriptions[0].mapping.sources.items()}


@pytest.mark.parametrize("both", [STRICT, LOOSE], ids=["strict", "loose"])
def test_every_normalised_value_comes_out_alike(both: Both) -> None:
    """The vectors of single fields, as whole events, give the same result in both ways, mostly in one go."""
    held = alone = 0
    for vector in VECTORS:
        path = both.converter.descriptions[0].mapping.sources[target_name(vector["field"])].path
        event = event_with(path, vector["raw"], both)
        if fastavro.validate(event, both.parsed, raise_errors=False):  # Avro can hold it in this field
            value = both.value(event)
            assert value is not None
            both.check(value)
            held += 1
            alone += both.function is None or both.alone(value) is not None
    # The others are numbers, which a field of text cannot hold.
    assert held >= sum(isinstance(vector["raw"], str) for vector in VECTORS) > 0.9 * len(VECTORS)
    assert alone > 0.95 * held


UNKNOWN = [f"id-{number}" for number in range(40)]
rule = TARGETS["user_data.hashed_maids"].rule


@pytest.mark.parametrize(
    ("ids", "known"),
    [
        (["abc123"], False),
        (["abc123", "ABC123 ", "def123"], False),
        (["abc123", MAID], True),
        ([MAID, "abc123"], True),
        (["null", "abc123", "x" * 257, ""], False),
        # What is sent counts: of equal digests that is the first.
        (["abc123", sha256("abc123")], False),
        ([sha256("abc123"), "abc123"], True),
        (UNKNOWN, False),  # more than are compared with each other
        ([*UNKNOWN, MAID], True),
        (["null"] * 40, False),
    ],
)
@pytest.mark.parametrize("kind", [ARRAY, avro.array(["null", "string"]), "string"], ids=str)
def test_ids_of_unknown_form_are_sent_and_identify_nobody(ids: list[str], known: bool, kind: Any) -> None:
    """Both ways send them with one warning, and refuse an event that has no other identity."""
    ids = ids[:1] if kind == "string" else ids
    known = known and (kind != "string" or type(rule(ids[0])) is str)
    overlay = '[fields]\n"user_data.hashed_maids" = "p"'
    both = Both((schema_of(optional("p", kind)), overlay))
    event = {**EVENT, "p": ids[0] if kind == "string" else ids}
    values = [both.value({**event, "customer": {"emails": emails}}) for emails in ([], ["a@b.c"])]
    assert both.function is None or all(both.alone(value) is not None for value in values if value)
    alone, beside = both.check(*values)
    wanted = [rule(one) for one in ids if isinstance(rule(one), str)]
    assert orjson.loads(beside[5])["user_data"].get("hashed_maids", []) == list(dict.fromkeys(wanted))
    unknown = any(isinstance(one, Unrecognised) for one in wanted)
    assert [one.code for one in beside[6]].count("unrecognised") == unknown
    assert isinstance(alone, Rejection) != known
    if known:
        assert orjson.loads(alone[5])["user_data"] == {"hashed_maids": list(dict.fromkeys(wanted))}
    else:
        assert alone.code == "no_identity"


def test_a_list_of_languages_is_cut() -> None:
    """The platform takes a hundred; more are not sent, in both ways."""
    both = Both((schema_of(optional("p", ARRAY)), '[fields]\n"device_info.languages" = "p"'))
    (said,) = both.check(both.value({**EVENT, "p": ["de"] * 101}))
    assert orjson.loads(said[5])["device_info"]["languages"] == ["de"] * 100


def test_a_schema_that_is_learned_again_is_read_as_it_is_now() -> None:
    """After a schema id gets another schema, its records are read by the new one."""
    both = Both((schema_of(optional("p", "string")), '[fields]\n"device_info.brand" = "p"'), schema_of())
    (before,) = both.check(both.value(EVENT))
    assert b"device_info" not in before[5]
    newer = Both((both.schema, '[fields]\n"device_info.brand" = "p"'))
    both.learn(SchemaRef("id", "7"), both.schema)
    (after,) = both.check(newer.value({**EVENT, "p": "Acme"}))
    assert orjson.loads(after[5])["device_info"] == {"brand": "Acme"}


KNOWN = (SchemaRef("id", "7"), SchemaRef("guid", str(UUID(int=7))))
NAMED = st.sampled_from(
    [*map(framing_of, KNOWN), framing_of(SchemaRef("id", "8")), b"", b"\xc3\x01" + b"8" * 8]
)
HEADERS = st.lists(
    st.tuples(st.sampled_from([SCHEMA_ID_HEADER, "x"]), st.one_of(st.none(), NAMED)), max_size=2
)
VALUES = st.one_of(st.none(), st.tuples(NAMED, st.sampled_from([b"", b"\0", b"datum"])))


@settings(max_examples=100, deadline=None)
@given(drawn=st.lists(st.tuples(VALUES, HEADERS), max_size=6))
def test_records_framed_in_any_way_and_order_are_read_alike(drawn: Any) -> None:
    """Records with known, unknown or cut schema ids, before the value or in a header, have the same results in
    any order."""
    framed = BOTH["default"].value(event_of({}))
    assert framed is not None
    datum, decoder, converter = framed[5:], DECODER, BOTH["default"].converter
    records = [
        Record(at, -1, None, value and value[0] + value[1].replace(b"datum", datum), tuple(headers))
        for at, (value, headers) in enumerate(drawn)
    ]
    compiled = read_by(CompiledReading(decoder, converter), records, NOW)
    two_steps = read_by(TwoSteps(decoder, converter), records, NOW)
    assert [comparable_row(one) for one in compiled] == [comparable_row(one) for one in two_steps]


def knowing() -> Decoder:
    """Return a decoder that knows our schema under two refs."""
    decoder = Decoder(OneSchema(SCHEMA))
    for ref in KNOWN:
        decoder.add_schema(ref, SCHEMA)
    return decoder


DECODER = knowing()


@pytest.mark.parametrize("refused", [False, True])
def test_memory_for_a_giant_event_is_given_back(refused: bool) -> None:
    """After an event of some megabytes, written or refused half-way, its memory is free again."""
    line = '"custom_data.contents[].id" = "p"\n"custom_data.content_ids" = "p"\n"custom_data.value" = "q"'
    both = Both(
        (schema_of(optional("p", ARRAY), optional("q", "string")), f"[fields]\n{line}\n[constants]\n{USD}")
    )
    canonical = both.value({**EVENT, "p": ["a"]})
    giant = both.value(
        {**EVENT, "p": [f"{number}-{'x' * 1000}" for number in range(3000)], "q": "-1" * refused}
    )
    record = [Record(0, -1, None, giant, ())]
    both.check(canonical)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            assert isinstance(read_by(both.compiled, record, NOW)[0], Rejection if refused else Read)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    both.check(canonical, giant, canonical)


@pytest.mark.parametrize("p", [None, {"y": "1"}])
def test_events_share_nothing_that_could_be_changed(p: Any) -> None:
    """The same bytes give the same event again after others were read: defaults and constants are not changed."""
    both = WITH_DEFAULTS
    value, other = both.value({**EVENT, "p": p}), both.value({**EVENT, "event_id": "e-2", "p": {"y": "2"}})
    assert value is not None
    assert other is not None
    first, second, again = both.check(value, other, value)
    assert first == again != second
    assert both.function is None or comparable_row(both.alone(value)) == first


WITH_DEFAULTS = Both(
    (
        schema_of(
            optional("p", B),
            avro.field("tags", avro.array("string"), default=["de", "en"]),
            avro.field("lines", avro.array(A), default=[{"x": "sku"}]),
            avro.field("q", record_of("Q", z=TEXTS), default={"z": {"k": "v"}}),
        ),
        """
        [fields]
        "device_info.languages" = "tags"
        "custom_data.contents[].id" = "lines[].x"
        "custom_data.content_ids" = "lines[].x"
        "custom_data.content_name" = "q.z.k"
        "device_info.brand" = "p.y"
        [constants]
        "user_data.country" = "US"
        """,
    ),
    schema_of(optional("p", B)),
)


GOOD: dict[str, Any] = {
    "id": "5eb561a4-2163-6369-8b52-9b4a97b75092",
    "kind": "PURCHASE",
    "ts": int(NOW * 1e6) - 5,
    "source": "WEB",
    "url": "https://shop.example/p",
    "user": {"email": "Ann@Example.com", "phone": 14155550100, "user_id": 4711, "born": 7305, "zip": 94107,
             "country": "DE"},
    "ip": "203.0.113.7",
    "agent": "Mozilla/5.0",
    "props": {"epik": "dj0y"},
    "purchase": {
        "number": 17,
        "currency": "EUR",
        "total": 37.5,
        "lines": [
            {"sku": 1, "title": "Crème", "brand": None, "unit_price": Decimal("12.50"), "weight": 0.5, "qty": 2},
            {"sku": 2, "title": "Socks", "brand": "Acme", "unit_price": Decimal("12.50"), "weight": 0.5, "qty": 1},
        ],
    },
}  # fmt: skip


def test_a_typed_record_is_what_one_expects() -> None:
    """The whole event is the expected one."""
    (said,) = BOTH["typed"].check(BOTH["typed"].value(GOOD))
    payload = orjson.loads(said[5])
    assert payload["event_source_url"] == "https://shop.example/p"
    assert payload["user_data"]["click_id"] == "dj0y"
    assert len(payload["user_data"]) == 9
    assert payload["custom_data"] == {
        "contents": [
            {"id": "1", "item_name": "Crème", "item_price": "12.50", "quantity": 2},
            {"id": "2", "item_name": "Socks", "item_brand": "Acme", "item_price": "12.50", "quantity": 1},
        ],
        "content_ids": ["1", "2"],
        "num_items": 3,
        "currency": "EUR",
        "value": "37.5",
        "content_name": "Crème",
        "content_brand": "Acme",
        "order_id": "17",
    }
    assert said[6:] == [[]]


@pytest.mark.parametrize(
    "lacking", [{}, {"user": None, "purchase": None, "props": {}}], ids=["whole", "bare"]
)
def test_typed_records_are_read_in_one_go(lacking: dict[str, Any]) -> None:
    """Precise types do not cost more: records of them are read in one go, also without half of their fields."""
    value = BOTH["typed"].value({**GOOD, **lacking})
    assert value is not None
    assert BOTH["typed"].alone(value) is not None
