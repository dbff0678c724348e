"""The made-up orders: the same on every machine, and as awkward as they say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import reduce
from itertools import pairwise
from operator import add

from tests.support.orders import COUNT, FREE, make_orders, sum_of

ORDERS = make_orders()


def test_they_are_always_the_same() -> None:
    """Their sum and a digest of their text are written here; fewer orders are the beginning of the same list."""
    assert len(ORDERS) == COUNT
    assert sum_of(ORDERS) == "1015301.38"
    assert make_orders(500) == ORDERS[:500]
    text = "\n".join(json.dumps(order.event, sort_keys=True) for order in ORDERS)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f2bd88f894d0b146"


def test_they_are_awkward() -> None:
    """They have free orders, repeated ones, times out of order or shared, and cents that a float gets wrong."""
    events = [order.event for order in ORDERS]
    assert len({event["event_id"] for event in events}) == COUNT
    assert sum(order.cents == 0 for order in ORDERS) == FREE
    assert sum(later["occurred_at"] < one["occurred_at"] for one, later in pairwise(events)) > 1_000
    assert len({event["occurred_at"] for event in events}) < 600
    days = Counter((event["customer"]["external_ids"][0], event["occurred_at"]) for event in events)
    assert sum(count > 1 for count in days.values()) > 300
    customers = Counter(event["customer"]["external_ids"][0] for event in events)
    assert min(customers.values()) == 1
    assert max(customers.values()) >= 50
    totals = [float(event["order"]["total"]) for event in events]
    # (From Python 3.12 on `sum` makes up for what each addition loses.)
    assert str(reduce(add, totals)) != sum_of(ORDERS)
    assert sum(int(total * 100) != order.cents for total, order in zip(totals, ORDERS, strict=True)) > 1_000
