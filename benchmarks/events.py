"""The benchmark's input: checkouts of about 395 bytes, two items, nine hashed fields, from a seeded random.

Fields repeat as real shoppers repeat them, and no more: names come from a few hundred, places from some dozens,
countries from a handful; e-mails, phones, ids and addresses are new with each shopper, and a shopper buys about
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

_PLACES = [
    ("New York", "NY", "US"), ("Los Angeles", "CA", "US"), ("Chicago", "IL", "US"), ("Houston", "TX", "US"),
    ("Toronto", "ON", "CA"), ("Montréal", "QC", "CA"), ("London", "LN", "GB"), ("Manchester", "MN", "GB"),
    ("Berlin", "BE", "DE"), ("München", "BY", "DE"), ("Paris", "PA", "FR"), ("Lyon", "LY", "FR"),
]  # fmt: skip
_SYLLABLES = [
    "an",
    "be",
    "car",
    "di",
    "el",
    "fa",
    "gor",
    "hel",
    "in",
    "jo",
    "ka",
    "lu",
    "mar",
    "no",
    "ol",
    "pe",
]
_AGENT = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 Safari/604.1"


def checkouts(count: int, seed: int, now_ms: int) -> Iterator[dict[str, Any]]:
    """`count` commerce events in the shape of the default schema, all of the last minutes before `now_ms`."""
    random = Random(seed)
    shoppers: list[dict[str, Any]] = []
    for number in range(count):
        if not shoppers or random.random() < 0.5:
            shoppers.append(_shopper(random, len(shoppers)))
        yield _checkout(
            random, shoppers[random.randrange(max(0, len(shoppers) - 50_000), len(shoppers))], number, now_ms
        )


def _name(random: Random) -> str:
    return (random.choice(_SYLLABLES) + random.choice(_SYLLABLES)).capitalize()


def _shopper(random: Random, number: int) -> dict[str, Any]:
    city, state, country = random.choice(_PLACES)
    first, last = _name(random), _name(random)
    return {
        "emails": [f"{first}.{last}{number}@example.com"],
        "phones": [f"+1{random.randrange(10**9, 10**10)}"],
        "external_ids": [f"c-{number:08d}"],
        "advertising_ids": [],
        "first_name": first,
        "last_name": last,
        "gender": random.choice("fm"),
        "birth_date": None,
        "city": city,
        "state": state,
        "postal_code": f"{random.randrange(10000, 99999)}",
        "country": country,
        "ip_address": ".".join(str(random.randrange(1, 255)) for _ in range(4)),
        "user_agent": _AGENT,
        "click_id": None,
        "partner_id": None,
    }


def _checkout(random: Random, shopper: dict[str, Any], number: int, now_ms: int) -> dict[str, Any]:
    items = [_item(random), _item(random)]
    cents = sum(int(float(item["price"]) * 100) * item["quantity"] for item in items)
    return {
        "event_id": f"{random.getrandbits(64):016x}-{number}",
        "event_type": "order_completed",
        "occurred_at": now_ms - random.randrange(0, 600_000),
        "channel": "WEB",
        "page_url": "https://www.shop.example.com/thanks",
        "search_query": None,
        "language": "en",
        "customer": shopper,
        "order": {
            "order_id": f"o-{number:09d}",
            "currency": "USD",
            "total": f"{cents // 100}.{cents % 100:02d}",
            "items": items,
        },
        "app": None,
        "device": None,
        "opt_out": False,
        "opt_out_type": None,
        "ad_account_id": None,
    }


def _item(random: Random) -> dict[str, Any]:
    sku = random.randrange(10_000)
    return {
        "sku": f"sku-{sku:05d}",
        "name": None,
        "category": "shirts",
        "brand": None,
        "price": f"{sku % 90 + 5}.{sku % 100:02d}",
        "quantity": random.randrange(1, 4),
    }
