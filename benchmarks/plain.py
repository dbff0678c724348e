"""The plain consumer: the same job written the usual way, for comparison.

confluent-kafka, fastavro, dictionaries, aiohttp. It converts by the same rules as far as the benchmark's events
need them, sends batches of 1000, and commits after each. It lacks: verdicts per event, dedup, dead letters,
retries, per-account quotas, a budget, rebalance handling.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import fastavro
from confluent_kafka import Consumer

_BATCH = 1000


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


async def main(bootstrap: str, topic: str, url: str, schema: Any) -> None:
    """Consume `topic` for ever."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"plain-{topic}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    async with aiohttp.ClientSession() as session:
        while True:
            messages = await asyncio.to_thread(consumer.consume, _BATCH, 0.1)
            events = []
            for message in messages:
                value = message.value()
                if message.error() or not isinstance(value, bytes):
                    continue
                events.append(convert(fastavro.schemaless_reader(io.BytesIO(value[10:]), schema, None)))  # type: ignore[arg-type]
            if not events:
                continue
            async with session.post(f"{url}/ad_accounts/1/events", json={"data": events}) as response:
                answer = await response.json()
                if answer["num_events_processed"] != len(events):
                    raise RuntimeError("not all processed")
            await asyncio.to_thread(consumer.commit, asynchronous=False)


if __name__ == "__main__":
    parsed = fastavro.parse_schema(json.loads(Path(sys.argv[4]).read_text()))
    servers, name, address = sys.argv[1:4]
    asyncio.run(main(servers, name, address, parsed))
