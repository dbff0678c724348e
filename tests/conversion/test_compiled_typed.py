"""The fast path under a schema of another shop: keys that are numbers, decimals, dates, enums, maps, none of them text.

Such records must have the same result as in two steps, and be read in one go: precise types must not cost more.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
from hypothesis import given, settings

from consumer.conversion.converter import Converter
from tests.conversion.convert_records import shaped
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import NOW
from tests.support import avro


def optional(name: str, *types: Any) -> dict[str, Any]:
    """Return a field that may be null."""
    return avro.field(name, ["null", *types])


def fields(**types: Any) -> list[dict[str, Any]]:
    """Return fields of these types."""
    return [avro.field(name, kind) for name, kind in types.items()]


def record_of(name: str, *of: dict[str, Any]) -> dict[str, Any]:
    """Return a record's schema."""
    return avro.record(name, *list(of))


def money(precision: int = 12, scale: int = 2) -> dict[str, Any]:
    """Return a decimal type for an amount."""
    return avro.decimal(precision, scale)


LINE = record_of(
    "Line",
    *fields(sku="long", title="string"),
    optional("brand", "string"),
    *fields(unit_price=money(), weight="double", qty="int"),
)
USER = record_of(
    "User",
    optional("email", "string"),
    optional("phone", "long"),
    optional("user_id", "long"),
    optional("born", avro.logical("int", "date")),
    optional("zip", "int"),
    optional("country", avro.enum("Country", "DE", "FR", "XX")),
)
PURCHASE = record_of(
    "Purchase", *fields(number="long", currency="string", total="double", lines=avro.array(LINE))
)
SCHEMA = record_of(
    "TrackingEvent",
    *fields(
        id=avro.logical("string", "uuid"),
        kind=avro.enum("Kind", "PAGE_VIEW", "PURCHASE", "OTHER"),
        ts=avro.logical("long", "timestamp-micros"),
        source=avro.enum("Source", "WEB", "STORE"),
    ),
    optional("url", "string"),
    optional("user", USER),
    *fields(ip="string", agent="string", props=avro.map_of("string")),
    optional("purchase", PURCHASE),
)
MAPPING = """
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
BOTH = Both((SCHEMA, MAPPING))

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


@settings(max_examples=400, deadline=None)
@given(event=shaped(SCHEMA, wild=False))
def test_typed_records_come_out_alike(event: dict[str, Any]) -> None:
    """Any records of this schema have the same result in two steps and in the compiled program."""
    BOTH.check(BOTH.value(event))


def test_a_typed_record_is_what_one_expects() -> None:
    """The whole event is the expected one."""
    (said,) = BOTH.check(BOTH.value(GOOD))
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


def test_typed_records_are_read_in_one_go() -> None:
    """Records of these types are read in one go, also a purchase that lacks half of its fields."""
    value, bare = BOTH.value(GOOD), BOTH.value({**GOOD, "user": None, "purchase": None, "props": {}})
    assert value is not None
    assert bare is not None
    assert isinstance(BOTH.converter, Converter)
    assert BOTH.alone(value) is not None
    assert BOTH.alone(bare) is not None
