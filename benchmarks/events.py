"""The benchmark's input: checkouts of about 395 bytes, two items, ten hashed fields, from a seeded random.

Fields repeat as real shoppers repeat them, and no more: names come from a few hundred, places from some dozens,
countries from a handful; e-mails, phones, ids and addresses are new with each shopper, and a shopper buys about
twice.

Other sizes are the same checkout with more or fewer facts, as shops have them: larger ones have more items (20 KB is an
order of some hundred), smaller ones no user agent, no items, and less of the shopper's address.
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


_TYPICAL_BYTES = 395
_TYPICAL_ITEMS = 2
_ITEM_BYTES = 29
_LEAN_BYTES = 240


def checkouts(
    count: int, seed: int, now_ms: int, event_bytes: int = _TYPICAL_BYTES
) -> Iterator[dict[str, Any]]:
    """`count` commerce events in the shape of the default schema, all of the last minutes before `now_ms`.

    `event_bytes` is about what an event takes when it is encoded; 200 is the least.
    """
    random = Random(seed)
    items = max(0, _TYPICAL_ITEMS + round((event_bytes - _TYPICAL_BYTES) / _ITEM_BYTES))
    shoppers: list[dict[str, Any]] = []
    for number in range(count):
        if not shoppers or random.random() < 0.5:
            shoppers.append(_shopper(random, len(shoppers), event_bytes))
        shopper = shoppers[random.randrange(max(0, len(shoppers) - 50_000), len(shoppers))]
        yield _checkout(random, shopper, number, now_ms, items)


def _name(random: Random) -> str:
    return (random.choice(_SYLLABLES) + random.choice(_SYLLABLES)).capitalize()


def _shopper(random: Random, number: int, event_bytes: int) -> dict[str, Any]:
    city, state, country = random.choice(_PLACES)
    first, last = _name(random), _name(random)
    shopper = {
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
        # Of networks that shoppers are in: 128.0.0.0/3.
        "ip_address": ".".join(
            str(random.randrange(128 if first else 1, 160 if first else 255)) for first in (1, 0, 0, 0)
        ),
        "user_agent": _AGENT,
        "click_id": None,
        "partner_id": None,
    }
    if event_bytes < _TYPICAL_BYTES - _ITEM_BYTES * _TYPICAL_ITEMS:
        shopper |= {"user_agent": None}
    if event_bytes < _LEAN_BYTES:
        shopper |= {"city": None, "state": None, "postal_code": None, "gender": None, "ip_address": None}
    return shopper


def _checkout(
    random: Random, shopper: dict[str, Any], number: int, now_ms: int, item_count: int
) -> dict[str, Any]:
    items = [_item(random) for _ in range(item_count)]
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
