"""`show --payload` shows of a record what is known to tell nothing of a person, and masks everything else."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.commands.payload import Masker
from tests.end_to_end.processes import ROOT
from tests.end_to_end.records import SCHEMA, commerce_event
from tests.end_to_end.test_personal_data import CUSTOMER, EVERYTHING, MARK, NEVER
from tests.engine.building import PROPERTY
from tests.support.mapping import load_mapping

DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()
"""The packaged mapping."""


def masker(overlay: str | None = None, schema: dict[str, Any] = SCHEMA) -> Masker:
    """Return a masker of the packaged schema and mapping, with `overlay`."""
    return Masker(schema, load_mapping(overlay, schema, default_toml=DEFAULT))


def whole(**members: Any) -> dict[str, Any]:
    """Return an event with a value in every field, in the shape that the decoder gives."""
    items = [
        {
            "sku": "ring-7",
            "name": "Moissanite ring",
            "category": "jewellery",
            "brand": "Ōmi",
            "price": "42.00",
            "quantity": 2,
        }
    ]
    order = {"order_id": "00000219", "currency": "EUR", "total": "84.00", "items": items}
    base = {field["name"]: None for field in SCHEMA["fields"]}
    device = {
        "brand": "Acme",
        "model": "X",
        "type": "phone",
        "carrier": "Telco",
        "os_version": "9",
        "wifi": True,
    }
    return {
        **base,
        **commerce_event("aa135aa0-c34b-473f-9611-755fff3b52de"),
        "occurred_at": 1_795_559_773_415,
        "page_url": "https://shop.example/?u=jane",
        "search_query": "a ring for jane",
        "language": "de",
        "customer": CUSTOMER,
        "order": order,
        "app": {"app_id": "429047995", "name": "Ring Shop", "version": "1.2"},
        "device": device,
        "opt_out": False,
        "opt_out_type": "LDP",
        "ad_account_id": "549755885175",
        **members,
    }


def test_what_is_shown_and_what_is_not() -> None:
    """What happened, when, and what was bought is shown; everything of the customer, the device and the page is
    masked."""
    shown = masker().masked(whole())
    assert shown["customer"].keys() == CUSTOMER.keys()
    for name, value in CUSTOMER.items():
        assert shown["customer"][name] == (["***"] if isinstance(value, list) else "***")
    assert {name: shown[name] for name in ("page_url", "search_query", "opt_out_type")} == {
        "page_url": "***",
        "search_query": "***",
        "opt_out_type": "***",
    }
    device = shown.pop("device")
    assert device.pop("wifi") is True
    assert set(device.values()) == {"***"}
    event = whole()
    for name in (
        "event_id",
        "event_type",
        "occurred_at",
        "channel",
        "language",
        "order",
        "app",
        "opt_out",
        "ad_account_id",
    ):
        assert shown[name] == event[name]


def test_nulls_and_structure_stay() -> None:
    """Nulls, empty lists and the number of elements are shown as they are."""
    bare = dict.fromkeys(CUSTOMER) | {"emails": [], "phones": [], "external_ids": ["a@b.example", "c"]}
    shown = masker().masked(whole(customer=bare, order=None, device=None))
    assert shown["customer"]["first_name"] is None
    assert shown["customer"]["emails"] == []
    assert shown["customer"]["external_ids"] == ["***", "***"]
    assert shown["order"] is None


def test_no_marked_value_is_shown() -> None:
    """No value of a field that may be personal is shown."""
    event = whole(
        **{
            name: EVERYTHING[name]
            for name in ("page_url", "search_query", "customer", "device", "opt_out_type")
        }
    )
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


def test_a_path_that_is_personal_too_is_personal() -> None:
    """A path that the mapping also sends as personal data is masked: here the order's id as external id."""
    overlay = '[fields]\n"user_data.external_id" = "order.order_id"\n'
    assert masker(overlay).masked(whole())["order"]["order_id"] == "***"


def test_a_path_that_is_not_mapped_is_hidden() -> None:
    """A path that is not mapped is masked, since it could hold anything."""
    assert masker('[fields]\n"custom_data.currency" = ""\n').masked(whole())["order"]["currency"] == "***"


def test_an_enum_or_a_boolean_that_is_not_mapped_is_hidden() -> None:
    """Enums and booleans that are not mapped are masked, beside personal values or not; if they are mapped to a
    field that is not personal, they are shown."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    customer = next(field for field in schema["fields"] if field["name"] == "customer")["type"]
    vip = {"name": "vip", "type": "boolean", "default": False}
    tier = {"name": "tier", "type": {"type": "enum", "name": "Tier", "symbols": ["GOLD"]}, "default": "GOLD"}
    customer["fields"] += [vip, tier]
    state = {
        "name": "state",
        "type": ["null", {"type": "enum", "name": "State", "symbols": ["NEW"]}],
        "default": None,
    }
    schema["fields"] += [{**vip, "name": "first"}, state]
    event = whole(customer={**CUSTOMER, "vip": True, "tier": "GOLD"}, first=True, state="NEW")
    shown = masker(None, schema).masked(event)
    assert (shown["first"], shown["state"]) == ("***", "***")
    assert (shown["channel"], shown["opt_out"], shown["device"]["wifi"]) == ("WEB", False, True)
    assert (shown["customer"]["vip"], shown["customer"]["tier"]) == ("***", "***")


def test_personal_enums_at_the_top_level_are_hidden() -> None:
    """In a flat schema enums and booleans are masked that are mapped as personal data or not mapped."""

    def enum(name: str, *symbols: str) -> dict[str, Any]:
        return {"name": name, "type": {"type": "enum", "name": name.title(), "symbols": [*symbols]}}

    schema: dict[str, Any] = {
        "type": "record",
        "name": "Flat",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "happened", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            enum("what", "BOUGHT"),
            enum("where", "WEB"),
            enum("gender", "F", "M"),
            enum("land", "DE", "FR"),
            enum("religion", "NONE", "SOME"),
            {"name": "is_pregnant", "type": "boolean"},
        ],
    }
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
    hidden = {"gender": "F", "land": "DE", "religion": "SOME", "is_pregnant": True}
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
    """A masked value of two letters is a name: it is masked elsewhere where it is a whole word, but not within
    another word."""
    empty: dict[str, Any] = {**dict.fromkeys(CUSTOMER), "emails": [], "phones": []}
    empty["external_ids"] = ["Li Na", "李明"]
    customer = {**empty, "advertising_ids": [], "first_name": "Bo", "last_name": "Xi"}
    event = whole(customer=customer, page_url=None, search_query=None, **{field: value})
    assert masker().masked(event)[field] == shown


def test_a_country_does_not_hide_the_language() -> None:
    """A masked country does not mask a language that is written alike, since a code tells nothing of a person."""
    empty: dict[str, Any] = {
        **dict.fromkeys(CUSTOMER),
        "emails": [],
        "phones": [],
        "external_ids": [],
        "advertising_ids": [],
    }
    assert masker().masked(whole(customer={**empty, "country": "DE"}))["language"] == "de"


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
    texts = {"type": "map", "values": ["null", "string"]}
    lists = {"type": "map", "values": {"type": "array", "items": "string"}}
    schema["fields"] += [{"name": "properties", "type": texts}, {"name": "lists", "type": lists}]
    given = {"colour": "red", "jane@example.org": "yes", "none": None}
    shown = masker('[fields]\n"custom_data.content_name" = "properties.colour"\n', schema).masked(
        whole(properties=given, lists={"+49 151 2345678": ["a", "b"]})
    )
    assert shown["properties"] == {"colour": "red", "***2": "***", "***3": None}
    assert shown["lists"] == {"***1": ["***", "***"]}


def test_a_union_that_does_not_report_hides() -> None:
    """A value of a union of enum, text, number and bytes is masked, since a text may be anything."""
    schema: dict[str, Any] = copy.deepcopy(SCHEMA)
    kind = [{"type": "enum", "name": "Kind", "symbols": ["GIFT"]}, "string", "long", "bytes"]
    schema["fields"].append({"name": "kind", "type": kind})
    for value in ("GIFT", "Jane", 4915112345, b"\xff\x00"):
        assert masker(None, schema).masked(whole(kind=value))["kind"] == "***"


SECRETS = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="*"), min_size=4, max_size=14)


@PROPERTY
@given(st.lists(SECRETS, min_size=1, max_size=3), st.data())
def test_no_personal_value_passes(secrets: list[str], data: st.DataObject) -> None:
    """No personal value is shown, wherever it is in the customer, and wherever a producer's mistake repeats it."""
    names = [name for name, value in CUSTOMER.items() if isinstance(value, str)]
    event = whole(
        customer={
            **dict.fromkeys(CUSTOMER),
            "emails": secrets,
            "phones": [],
            "external_ids": [],
            "advertising_ids": [],
        }
    )
    event["customer"][data.draw(st.sampled_from(names))] = secrets[0]
    repeated = data.draw(st.sampled_from(secrets))
    event["event_id"] = data.draw(st.sampled_from([repeated, f"order-{repeated}", f"{repeated.upper()}"]))
    event["order"]["items"][0]["name"] = f"ring of {repeated}"
    shown = masker().masked(event)
    names_shown = (shown["event_id"], shown["order"]["items"][0]["name"].removeprefix("ring of"))
    folded = " ".join(repeated.split()).casefold()
    assert not any(folded in one.casefold() for one in names_shown if folded)


@PROPERTY
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
