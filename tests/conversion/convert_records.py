"""Records of any shape for the converter's property tests: schemas with mappings, and strategies.

A strategy follows a schema; a *wild* one sometimes has a value of another type than the schema's. `likely` gives
valid values where most records would be refused, so that the rest of the conversion is tested.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from consumer.avro.paths import Source
from consumer.conversion.computed.expressions import Expression
from tests.support import avro

ROOT = Path(__file__).parents[2]
MAID = "aebe52e7-03ee-455a-b3c4-e57283966239"


def steps_of(source: Expression) -> tuple[str, ...]:
    """Return the steps of a source that is not computed."""
    assert isinstance(source, Source)
    return source.steps


SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text())

RICH: dict[str, Any] = {
    "type": "record",
    "name": "Rich",
    "namespace": "a.b",
    "fields": [
        avro.field("id", ["null", "string", "long"]),
        avro.field("kind", "string"),
        avro.field("at", avro.logical("long", "timestamp-micros")),
        avro.field("where", ["null", "string"]),
        avro.field("props", avro.map_of(["null", "string", "double", "boolean"])),
        avro.field("born", ["null", avro.logical("int", "date"), "string"]),
        avro.field("mail", ["null", "string", avro.array(["null", "string"])]),
        avro.field("maid", ["null", "string"]),
        avro.field(
            "lines",
            avro.array(
                avro.record(
                    "Line",
                    products=avro.array(
                        avro.record(
                            "Product",
                            id=["null", "long", "string"],
                            price=["null", "double", "string"],
                            size=["null", "double"],
                            parent=["null", "Product"],
                        )
                    ),
                )
            ),
        ),
        avro.field("paid", ["null", avro.decimal(9, 2)]),
    ],
}
RICH_OVERLAY = """
[fields]
event_id = "id"
event_name = "kind"
event_time = "at"
action_source = "where"
opt_out = "props.out"
language = "props.lang"
"user_data.db" = "born"
"user_data.em" = "mail"
"user_data.hashed_maids" = "maid"
event_source_url = "props.page"
"user_data.client_user_agent" = "props.agent"
"device_info.languages" = "mail"
"app_info.install_time" = "at"
"device_info.battery_level" = "props.battery"
"custom_data.value" = "paid"
"custom_data.content_ids" = "lines[].products[].id"
"custom_data.num_items" = "lines[].products[].size"
"custom_data.contents[].id" = "lines[].products[].parent.id"
"custom_data.contents[].item_price" = "lines[].products[].price"
"custom_data.contents[].quantity" = "lines[].products[].parent.size"
[constants]
"custom_data.currency" = "USD"
language = "de"
"user_data.country" = "Germany"
partner_name = "ss-x"
[consent]
require = "props.consent"
allowed = ["yes", true]
[dedup]
key = "props.key"
"""
DEFAULT_OVERLAY = """
unknown_event_name = "custom"
phone_country_code = "49"
[fields]
"custom_data.content_name" = "order.items[].name"
"device_info.type" = "device.type"
"app_info.app_id" = "app.app_id"
"custom_data.predicted_ltv" = "search_query"
"custom_data.num_items" = "order.items[].price"
"custom_data.contents[].quantity" = ""
"custom_data.contents[].item_brand_id" = "order.items[].brand"
"user_data.customer_type" = "customer.gender"
"user_data.client_user_agent" = "customer.user_agent"
[own_events]
names = ["Store visit", "é"]
[constants]
"custom_data.opt_out_type" = "LDP"
"""
# A shop whose keys are numbers: decimals, dates, enums and maps, no text among its keys.
TYPED: dict[str, Any] = avro.record(
    "TrackingEvent",
    id=avro.logical("string", "uuid"),
    kind=avro.enum("Kind", "PAGE_VIEW", "PURCHASE", "OTHER"),
    ts=avro.logical("long", "timestamp-micros"),
    source=avro.enum("Source", "WEB", "STORE"),
    url=["null", "string"],
    user=["null", avro.record(
        "User",
        email=["null", "string"],
        phone=["null", "long"],
        user_id=["null", "long"],
        born=["null", avro.logical("int", "date")],
        zip=["null", "int"],
        country=["null", avro.enum("Country", "DE", "FR", "XX")],
    )],
    ip="string",
    agent="string",
    props=avro.map_of("string"),
    purchase=["null", avro.record(
        "Purchase",
        number="long",
        currency="string",
        total="double",
        lines=avro.array(avro.record(
            "Line", sku="long", title="string", brand=["null", "string"], unit_price=avro.decimal(12, 2),
            weight="double", qty="int")),
    )],
)  # fmt: skip
TYPED_OVERLAY = """
unknown_event_name = "filter"
[event_names]
PAGE_VIEW = "page_visit"
PURCHASE = "checkout"
[action_sources]
store = "offline"
[fields]
event_id = "id"
event_name = "kind"
event_time = "ts"
action_source = "source"
event_source_url = "url"
"user_data.em" = "user.email"
"user_data.ph" = "user.phone"
"user_data.external_id" = "user.user_id"
"user_data.db" = "user.born"
"user_data.zp" = "user.zip"
"user_data.country" = "user.country"
"user_data.click_id" = "props.epik"
"user_data.client_ip_address" = "ip"
"user_data.client_user_agent" = "agent"
"custom_data.currency" = "purchase.currency"
"custom_data.value" = "purchase.total"
"custom_data.order_id" = "purchase.number"
"custom_data.content_name" = "purchase.lines[].title"
"custom_data.content_brand" = "purchase.lines[].brand"
"custom_data.content_ids" = "purchase.lines[].sku"
"custom_data.num_items" = "purchase.lines[].qty"
"custom_data.contents[].id" = "purchase.lines[].sku"
"custom_data.contents[].item_name" = "purchase.lines[].title"
"custom_data.contents[].item_brand" = "purchase.lines[].brand"
"custom_data.contents[].item_price" = "purchase.lines[].unit_price"
"custom_data.contents[].quantity" = "purchase.lines[].qty"
"""

TEXTS = st.one_of(
    st.sampled_from(
        [
            "", " ", "\u00a0", "jane@example.com", "Jane@Example.com ", "0", "1", "0.00", "12.50", "-1", "1e3", "USD",
            "usd", "US", "CA", "US-CA", "en-US", "true", "yes", "WEB", "web", "1996-03-14", "203.0.113.7", "::",
            "https://shop.example/?q=1", "https://shop.example/?epik=dj0%2B", " HTTPS://Shop.Example/é?q=1&epik=a#b",
            "Mozilla/5.0 (compatible; bingbot/2.0)", "PINTERESTBOT", "Store visit", "new", "0171 1234567",
            "+1 (415) 555-0134", "0049-171", "４９ 171 1234567", "app_open", "checkout", "order_completed",
            "page_viewed", "cart_viewed", "LDP", "22", "é", "\ud800", "00000000-0000-0000-0000-000000000000",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "2025-10-09T08:00:00Z", "x" * 300,
            "abc123", MAID,
        ]
    ),
    st.text(max_size=8),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(1759999990000, 1760000301000),
    st.integers(1759999990000000, 1760000301000000),
    st.integers(),
    st.just(10**5000),
    st.floats(),
    st.sampled_from([Decimal("1.50"), Decimal("NaN"), Decimal("sNaN"), Decimal("-0.00"), Decimal("1E+9999")]),
    st.booleans(),
)
SCALARS = st.one_of(st.none(), TEXTS, NUMBERS, st.binary(max_size=3))


def shaped(
    schema: Any, wild: bool, named: dict[str, Any] | None = None, depth: int = 4
) -> st.SearchStrategy[Any]:
    """Return a strategy for values of an Avro type; with `wild` one in ten is of any type."""
    named = {} if named is None else named
    right = _shaped(schema, wild, named, depth)
    if not wild:
        return right
    odd = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(TEXTS, SCALARS, max_size=2))
    return st.integers(0, 9).flatmap(lambda draw: odd if draw == 0 else right)


SIMPLE: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(), "string": TEXTS, "boolean": st.booleans(), "int": st.integers(-2, 5),
    "long": st.one_of(st.integers(1759999990000, 1760000301000), st.integers(-(2**63), 2**63 - 1)),
    "double": st.floats(), "float": st.floats(width=32), "bytes": st.binary(max_size=3),
}  # fmt: skip
LOGICAL: dict[str, st.SearchStrategy[Any]] = {
    "date": st.integers(-(2**31), 2**31 - 1) | st.integers(-30_000, 30_000),
    "uuid": st.uuids().map(str),
    "timestamp-millis": st.integers(1759999990000, 1760000301000),
    "timestamp-micros": st.integers(1759999990000000, 1760000301000000),
}


def _shaped(schema: Any, wild: bool, named: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        branches = [branch for branch in schema if depth > 0 or branch == "null"] or schema
        return st.one_of([shaped(branch, wild, named, depth) for branch in branches])
    if isinstance(schema, str):
        if schema in named:
            return shaped(named[schema], wild, named, depth - 1) if depth > 0 else st.none()
        return SIMPLE[schema]
    if schema.get("logicalType") == "decimal":
        maximum = min(10**6, 10 ** schema["precision"] - 1)
        return st.integers(-10, maximum).map(lambda digits: Decimal(digits).scaleb(-schema["scale"]))
    if "logicalType" in schema:
        return LOGICAL[schema["logicalType"]]
    return _complex(schema, wild, named, depth)


def _complex(schema: Any, wild: bool, named: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if schema["type"] == "record":
        named[schema["name"]] = schema
        fields = {field["name"]: shaped(field["type"], wild, named, depth) for field in schema["fields"]}
        return st.fixed_dictionaries(fields)
    if schema["type"] == "array":
        return st.lists(shaped(schema["items"], wild, named, depth - 1), max_size=3)
    if schema["type"] == "map":
        keys = st.sampled_from(
            ["out", "lang", "battery", "consent", "key", "page", "agent", "epik", "brand", ""]
        )
        return st.dictionaries(keys, shaped(schema["values"], wild, named, depth), max_size=7)
    size = schema.get("size", 0)
    return st.binary(min_size=size, max_size=size) if size else st.sampled_from(schema["symbols"])


SETUPS: dict[str, tuple[dict[str, Any], str | None]] = {
    "default": (SCHEMA, None),
    "overlaid": (SCHEMA, DEFAULT_OVERLAY),
    "rich": (RICH, RICH_OVERLAY),
    "typed": (TYPED, TYPED_OVERLAY),
}


def likely(event: Any) -> Any:
    """Return the event with valid values where most would be refused, so that the rest of the conversion is tested."""
    if isinstance(event, dict) and "ts" not in event:  # whose enums and times are valid as they are
        event.update(event_type="order_completed", occurred_at=1759999000123, channel="WEB", event_id="e-1")
        event.update(ad_account_id=None, opt_out=False)
        event.update(kind="checkout", at=1759999000123456, where="ios", id=7, maid=MAID)
        if isinstance(event.get("customer"), dict):
            ids = event["customer"].get("advertising_ids")
            event["customer"]["advertising_ids"] = [*(ids if isinstance(ids, list) else ()), MAID]
        if isinstance(event.get("props"), dict):
            event["props"].update(consent="yes", out=False)
    return event
