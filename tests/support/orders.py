"""A year and a half of a music shop's orders, made up: always the same ones, awkward as real ones are.

Customer after customer, each with all their orders, as an export of a shop's database has them: so times jump back at
every new customer, and ten thousand orders share a few hundred midnights. Most customers order once, a few come back
dozens of times, some twice on a day, some for the same sum. Ids have leading zeros. Eighty orders cost nothing. Totals
are cents that no float holds: added up as floats they come out wrong, and the truth is counted here in whole cents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

COUNT: Final = 30_000
FREE: Final = 80
_SEED: Final = 19_970_101
_FIRST_DAY: Final = 852_076_800
"""1997-01-01T00:00:00Z, in seconds."""
_DAYS: Final = 546
"""Until 1998-06-30."""
_CDS: Final = (677, 899, 1077, 1149, 1177, 1297, 1399, 1433, 1476, 1496, 1599, 1999, 2999, 128_601)
"""Prices of one piece in cents; the last is a box that the shop sells once a year."""
_WEIGHTS: Final = (3, 4, 6, 9, 12, 9, 8, 6, 6, 6, 4, 3, 1, 0.01)


class Order(NamedTuple):
    """One order: its event, and its total in whole cents."""

    event: dict[str, Any]
    cents: int


@cache
def make_orders(count: int = COUNT) -> list[Order]:
    """The first `count` orders; `FREE` of every `COUNT` are free."""
    draws = random.Random(_SEED)
    free = frozenset(draws.sample(range(COUNT), FREE))
    days = _days(draws)
    return [_order(number, *next(days), number % COUNT in free, draws) for number in range(count)]


def sum_of(orders: list[Order]) -> str:
    """Their total, to the cent."""
    return _text(sum(order.cents for order in orders))


def _days(draws: random.Random) -> Iterator[tuple[int, int]]:
    """Customer and day of each order; the orders of a customer are in the order of time."""
    customer = 0
    while True:
        customer += 1
        orders = min(int(draws.paretovariate(1.1)), 60)
        first = draws.randrange(84)
        days = [first, *(draws.randrange(first, _DAYS) for _ in range(orders - 1))]
        if orders > 3 and draws.random() < 0.3:
            days[1] = days[0]  # twice on a day
        yield from ((customer, day) for day in sorted(days))


def _order(number: int, customer: int, day: int, free: bool, draws: random.Random) -> Order:
    quantity = min(int(draws.paretovariate(1.4)), 40)
    price = draws.choices(_CDS, _WEIGHTS)[0]
    cents = 0 if free else price * quantity
    return Order(_event(number + 1, f"{customer:05d}", day, quantity, _text(cents)), cents)


def _event(number: int, customer: str, day: int, quantity: int, total: str) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(
        (
            *("first_name", "last_name", "gender", "birth_date", "city", "state", "postal_code"),
            *("ip_address", "user_agent", "click_id", "partner_id"),
        )
    )
    return {
        "event_id": f"order-{number:05d}",
        "event_type": "order_completed",
        "occurred_at": (_FIRST_DAY + day * 86_400) * 1000,
        "channel": "WEB",
        "page_url": None,
        "search_query": None,
        "language": None,
        "customer": {
            **nothing,
            "emails": [f"customer{customer}@example.com"],
            "phones": [],
            "external_ids": [customer],
            "advertising_ids": [],
            "country": "US",
        },
        "order": {
            "order_id": f"{customer}-{day:03d}-{number}",
            "currency": "USD",
            "total": total,
            "items": [
                {
                    "sku": "0017",
                    "name": None,
                    "category": "music",
                    "brand": None,
                    "price": None,
                    "quantity": quantity,
                }
            ],
        },
        "app": None,
        "device": None,
        "opt_out": False,
        "opt_out_type": None,
        "ad_account_id": None,
    }


def _text(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"
