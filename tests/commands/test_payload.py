"""`show --payload` shows of a record what is known to tell nothing of a person, and masks everything else."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.commands.payload import Masker
from tests.end_to_end.processes import ROOT
from tests.end_to_end.records import SCHEMA, commerce_event
from tests.end_to_end.test_personal_data import CUSTOMER, EVERYTHING, MARK, NEVER
from tests.engine.building import PROPERTY
from tests.support import avro
from tests.support.mapping import load_mapping

DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()
"""The packaged mapping."""


def masker(overlay: str | None = None, schema: dict[str, Any] = SCHEMA) -> Masker:
    """Return a masker of the packaged schema and mapping, with `overlay`."""
    return Masker(schema, load_mapping(overlay, schema, default_toml=DEFAULT))


EMPTY: dict[str, Any] = {name: [] if isinstance(value, list) else None for name, value in CUSTOMER.items()}
"""A customer of whom nothing is known."""


def whole(**members: Any) -> dict[str, Any]:
    """Return an event with a value in every field, in the shape that the decoder gives."""
    item = {"sku": "ring-7", "name": "Moissanite ring", "category": "jewellery", "brand": "Ōmi", "price": "42.00",
            "quantity": 2}  # fmt: skip
    return {
        **{field["name"]: None for field in SCHEMA["fields"]},
        **commerce_event("aa135aa0-c34b-473f-9611-755fff3b52de"),
        "occurred_at": 1_795_559_773_415, "page_url": "https://shop.example/?u=jane",
        "search_query": "a ring for jane", "language": "de", "customer": CUSTOMER,
        "order": {"order_id": "00000219", "currency": "EUR", "total": "84.00", "items": [item]},
        "app": {"app_id": "429047995", "name": "Ring Shop", "version": "1.2"},
        "device": {"brand": "Acme", "model": "X", "type": "phone", "carrier": "Telco", "os_version": "9", "wifi": True},
        "opt_out": False, "opt_out_type": "LDP", "ad_account_id": "549755885175",
        **members,
    }  # fmt: skip


def test_what_is_shown_and_what_is_not() -> None:
    """What happened, when, and what was bought is shown; everything of customer, device and page is masked."""
    event = whole()
    shown = masker().masked(event)
    masked = {name: ["***"] if isinstance(value, list) else "***" for name, value in CUSTOMER.items()}
    assert shown["customer"] == masked
    assert [shown[name] for name in ("page_url", "search_query", "opt_out_type")] == ["***"] * 3
    assert shown["device"] == {**dict.fromkeys(event["device"], "***"), "wifi": True}
    for name in ("event_id", "event_type", "occurred_at", "channel", "language", "order", "app", "opt_out",
                 "ad_account_id"):  # fmt: skip
        assert shown[name] == event[name]


def test_nulls_and_structure_stay() -> None:
    """Nulls, empty lists and the number of elements are shown as they are."""
    bare = EMPTY | {"external_ids": ["a@b.example", "c"]}
    shown = masker().masked(whole(customer=bare, order=None, device=None))
    assert (shown["customer"]["first_name"], shown["customer"]["emails"], shown["order"]) == (None, [], None)
    assert shown["customer"]["external_ids"] == ["***", "***"]


def test_no_marked_value_is_shown() -> None:
    """No value of a field that may be personal is shown."""
    names = ("page_url", "search_query", "customer", "device", "opt_out_type")
    event = whole(**{name: EVERYTHING[name] for name in names})
    event["device"] = {**event["device"], "wifi": None}
    text = json.dumps(masker().masked(event))
    assert [one for one in NEVER if one in text] == []


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("event_id", "order-17", "order-17"),
        ("event_id", "4f2c1d7e8a9b4c3d9e8f7a6b5c4d3e2f", "4f2c1d7e8a9b4c3d9e8f7a6b5c4d3e2f"),
        ("event_id", "jane@example.org", "***"),
        ("event_id", f"{MARK}-first", "***"),
        ("event_id", f"x-{MARK.upper()}-FIRST-1", "***"),
        ("event_id", "49305550177731", "***"),
        ("event_id", "o-0049305550177731", "***"),
        ("event_id", "203.0.113.9", "***"),
        ("event_id", "a" * 64, "***"),
        ("event_id", "pina_abc.def", "***"),
        ("event_id", "https://shop.example/17", "***"),
        ("event_type", "order_completed", "order_completed"),
        ("event_type", "call +49 151 234-567-89", "call ***"),
        ("event_type", f"{MARK}-last bought", "*** bought"),
    ],
)
def test_text_that_looks_personal_is_masked(field: str, value: str, shown: str) -> None:
    """A value that would be shown is masked where it repeats a masked value or looks like personal data."""
    assert masker().masked(whole(**{field: value}))[field] == shown


@pytest.mark.parametrize(
    ("field", "path", "name"),
    [("user_data.external_id", "order.order_id", "order_id"), ("custom_data.currency", "", "currency")],
)
def test_what_is_personal_too_or_not_mapped_is_hidden(field: str, path: str, name: str) -> None:
    """A path that the mapping also sends as personal data, and one that is not mapped: it could hold anything."""
    assert masker(f'[fields]\n"{field}" = "{path}"\n').masked(whole())["order"][name] == "***"


def test_an_enum_or_a_boolean_that_is_not_mapped_is_hidden() -> None:
    """Beside personal values or not; if they are mapped to a field that is not personal, they are shown."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    customer = next(field for field in schema["fields"] if field["name"] == "customer")["type"]
    vip = avro.field("vip", "boolean", default=False)
    customer["fields"] += [vip, avro.field("tier", avro.enum("Tier", "GOLD"), default="GOLD")]
    schema["fields"] += [{**vip, "name": "first"}, avro.optional("state", avro.enum("State", "NEW"))]
    event = whole(customer={**CUSTOMER, "vip": True, "tier": "GOLD"}, first=True, state="NEW")
    shown = masker(None, schema).masked(event)
    assert (shown["first"], shown["state"]) == ("***", "***")
    assert (shown["channel"], shown["opt_out"], shown["device"]["wifi"]) == ("WEB", False, True)
    assert (shown["customer"]["vip"], shown["customer"]["tier"]) == ("***", "***")


def test_personal_enums_at_the_top_level_are_hidden() -> None:
    """In a flat schema enums and booleans are masked that are mapped as personal data or not mapped."""
    symbols = {
        "what": ["BOUGHT"],
        "where": ["WEB"],
        "gender": ["F", "M"],
        "land": ["DE", "FR"],
        "religion": ["NONE"],
    }
    kinds: dict[str, Any] = {name: avro.enum(name.title(), *some) for name, some in symbols.items()}
    happened = avro.logical("long", "timestamp-millis")
    schema = avro.record("Flat", id="string", happened=happened, **kinds, is_pregnant="boolean")
    mapping = """
[fields]
event_id = "id"
event_time = "happened"
event_name = "what"
action_source = "where"
"user_data.ge" = "gender"
"user_data.country" = "land"
[event_names]
BOUGHT = "checkout"
[action_sources]
WEB = "web"
"""
    flat = Masker(schema, load_mapping(mapping, schema, default_toml=DEFAULT))
    event = {"id": "o-1", "happened": 1, "what": "BOUGHT", "where": "WEB"}
    hidden = {"gender": "F", "land": "DE", "religion": "NONE", "is_pregnant": True}
    assert flat.masked({**event, **hidden}) == {**event, **dict.fromkeys(hidden, "***")}


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("event_id", "Bo.Xi.12", "***"),
        ("event_id", "bo-12", "***"),
        ("event_id", "bob-12", "bob-12"),
        ("event_id", "o_XI_1", "***"),
        ("event_type", "Ring for Bo Xi", "Ring for *** ***"),
        ("event_type", "boxing", "boxing"),
        ("event_type", "the Li-Na ring", "the *** ring"),
        ("event_type", "李明 ring", "*** ring"),
    ],
)
def test_short_hidden_values_are_found_as_words(field: str, value: str, shown: str) -> None:
    """A masked value of two letters is a name: it is masked elsewhere as a whole word, not within another one."""
    customer = EMPTY | {"external_ids": ["Li Na", "李明"], "first_name": "Bo", "last_name": "Xi"}
    event = whole(customer=customer, page_url=None, search_query=None, **{field: value})
    assert masker().masked(event)[field] == shown


def test_a_country_does_not_hide_the_language() -> None:
    """A masked country does not mask a language that is written alike, since a code tells nothing of a person."""
    assert masker().masked(whole(customer=EMPTY | {"country": "DE"}))["language"] == "de"


def test_numbers_that_are_hidden_in_another_place_are_hidden() -> None:
    """A number that equals a masked value, such as a phone number as a quantity, is masked; others are shown."""
    event = whole()
    event["customer"] = {**CUSTOMER, "phones": ["+49 151 23456"], "external_ids": ["7001"]}
    item = event["order"]["items"][0]
    event["order"]["items"] = [{**item, "quantity": number} for number in (4915123456, 7001, 2)]
    quantities = [one["quantity"] for one in masker().masked(event)["order"]["items"]]
    assert quantities == ["***", "***", 2]


def test_maps_keys_are_data() -> None:
    """Of a map only a key that the mapping names is shown."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    texts, lists = avro.map_of(["null", "string"]), avro.map_of(avro.array("string"))
    schema["fields"] += [avro.field("properties", texts), avro.field("lists", lists)]
    given = {"colour": "red", "jane@example.org": "yes", "none": None}
    named = masker('[fields]\n"custom_data.content_name" = "properties.colour"\n', schema)
    shown = named.masked(whole(properties=given, lists={"+49 151 2345678": ["a", "b"]}))
    assert shown["properties"] == {"colour": "red", "***2": "***", "***3": None}
    assert shown["lists"] == {"***1": ["***", "***"]}


def test_a_union_that_does_not_report_hides() -> None:
    """A value of a union of enum, text, number and bytes is masked, since a text may be anything."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    schema["fields"].append(avro.field("kind", [avro.enum("Kind", "GIFT"), "string", "long", "bytes"]))
    for value in ("GIFT", "Jane", 4915112345, b"\xff\x00"):
        assert masker(None, schema).masked(whole(kind=value))["kind"] == "***"


FEWER = settings(PROPERTY, max_examples=150)
SECRETS = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="*"), min_size=4, max_size=14)


@FEWER
@given(st.lists(SECRETS, min_size=1, max_size=3), st.data())
def test_no_personal_value_passes(secrets: list[str], data: st.DataObject) -> None:
    """No personal value is shown, wherever it is in the customer, and wherever a producer's mistake repeats it."""
    names = [name for name, value in CUSTOMER.items() if isinstance(value, str)]
    event = whole(customer=EMPTY | {"emails": secrets})
    event["customer"][data.draw(st.sampled_from(names))] = secrets[0]
    repeated = data.draw(st.sampled_from(secrets))
    event["event_id"] = data.draw(st.sampled_from([repeated, f"order-{repeated}", f"{repeated.upper()}"]))
    event["order"]["items"][0]["name"] = f"ring of {repeated}"
    shown = masker().masked(event)
    names_shown = (shown["event_id"], shown["order"]["items"][0]["name"].removeprefix("ring of"))
    folded = " ".join(repeated.split()).casefold()
    assert not any(folded in one.casefold() for one in names_shown if folded)


@FEWER
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    )
)
def test_it_is_json_whatever_the_record_holds(value: Any) -> None:
    """A masked record can be written as JSON, even one in a shape that the schema does not have."""
    orjson.dumps(masker().masked(whole(order=value, customer=CUSTOMER)), option=orjson.OPT_NON_STR_KEYS)
