"""The conversion of the Python rivals, written the usual way: fastavro, walks along paths, hashlib.

It follows the product's rules as far as the benchmark's events need them: it does not check, normalise by field, or
know other event types.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro

_SINGLE_OBJECT_HEAD = 10
"""Bytes before the Avro: two of marker, eight of fingerprint."""

_USER_DATA = {
    "em": "customer.emails", "ph": "customer.phones", "external_id": "customer.external_ids",
    "hashed_maids": "customer.advertising_ids", "fn": "customer.first_name", "ln": "customer.last_name",
    "ge": "customer.gender", "db": "customer.birth_date", "ct": "customer.city", "st": "customer.state",
    "zp": "customer.postal_code", "country": "customer.country",
}  # fmt: skip
_PLAIN = {
    "client_ip_address": "customer.ip_address", "client_user_agent": "customer.user_agent",
    "click_id": "customer.click_id", "partner_id": "customer.partner_id",
}  # fmt: skip


def conversion(schema: Path) -> Callable[[bytes], dict[str, Any]]:
    """A function that makes a conversion event of a record's value, which was written with the schema in that file."""
    parsed = fastavro.parse_schema(json.loads(schema.read_text()))

    def convert_value(value: bytes) -> dict[str, Any]:
        body = io.BytesIO(value[_SINGLE_OBJECT_HEAD:])
        return convert(fastavro.schemaless_reader(body, parsed, None))  # type: ignore[arg-type]

    return convert_value


def convert(record: dict[str, Any]) -> dict[str, Any]:
    """One conversion event, by walking paths."""
    user_data: dict[str, Any] = {}
    for field, path in _USER_DATA.items():
        value = _at(record, path)
        hashes = _hashed(value if isinstance(value, list) else [value])
        if hashes:
            user_data[field] = hashes
    for field, path in _PLAIN.items():
        value = _at(record, path)
        if value:
            user_data[field] = value
    items = _at(record, "order.items") or []
    custom: dict[str, Any] = {
        "currency": _at(record, "order.currency"),
        "value": _at(record, "order.total"),
        "order_id": _at(record, "order.order_id"),
        "content_ids": [item["sku"] for item in items if item["sku"]],
        "num_items": sum(item["quantity"] for item in items),
        "contents": [
            {
                "id": item["sku"],
                "item_price": item["price"],
                "quantity": item["quantity"],
                "item_category": item["category"],
            }
            for item in items
        ],
    }
    return {
        "event_name": "checkout",
        "action_source": record["channel"].lower(),
        "event_time": int(record["occurred_at"].timestamp()),
        "event_id": record["event_id"],
        "event_source_url": record["page_url"],
        "opt_out": record["opt_out"],
        "user_data": user_data,
        "custom_data": {key: value for key, value in custom.items() if value is not None},
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(values: list[str | None]) -> list[str]:
    return [_sha(value.strip().lower()) for value in values if value and value.strip()]


def _at(record: dict[str, Any], path: str) -> Any:
    value: Any = record
    for step in path.split("."):
        if value is None:
            return None
        value = value.get(step)
    return value
