"""``pinstream reconcile``: the shop's list of orders against the receipts, order by order and to the cent."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from consumer.commands.receipts import FoundReceipt
from consumer.commands.reconcile import CLASSES, Order, compare_orders, read_orders
from consumer.errors import InputError
from tests.commands.receipts.making import NOW, Receipts, made
from tests.end_to_end.processes import command, the_one_line

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 5, 1, tzinfo=UTC)


def listed(folder: Path, text: str | bytes, zone: ZoneInfo = BERLIN) -> list[Order]:
    """Return the orders of a file with this text."""
    path = folder / "orders"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_orders(str(path), zone)


HEAD = "id,value,currency,time\n"


@pytest.mark.parametrize(
    ("text", "value", "moment"),
    [
        (f"{HEAD}7,12.50,eur,2026-05-01T10:00:00Z\n", "12.50", "2026-05-01T10:00:00+00:00"),
        ("\ufeffId;Total;Currency;Date\r\n7;1.234,50;EUR;2026-05-01\r\n", "1234.50", "2026-05-01T00:00:00+02:00"),
        ("Name\tTotal\tCurrency\tCreated at\n7\t1,234.5\tEUR\t2026-05-01 11:10:11 -0400\n", "1234.5",
            "2026-05-01T11:10:11-04:00"),
        ('order_id,amount,currency,time\n7,"1 234,50",EUR,1777629600\n', "1234.50", "2026-05-01T10:00:00+00:00"),
        (f"{HEAD}7,1500,EUR,1777629600000\n", "1500", "2026-05-01T10:00:00+00:00"),
        (f"{HEAD}7,1.234,KWD,2026-05-01 10:00:00 UTC\n8,1.5,KWD,2026-05-01\n", "1.234", "2026-05-01T10:00:00+00:00"),
        ('{"id":7,"value":12.10,"currency":"EUR","time":"2026-05-01T10:00:00+02:00"}\n\n', "12.10",
            "2026-05-01T10:00:00+02:00"),
        ('{"id":"7","value":"12,10","currency":"EUR","time":1777629600}', "12.10", "2026-05-01T10:00:00+00:00"),
        (f"{HEAD}7,12.50,EUR,2026-05-01\n7,,,\n7,,,\n", "12.50", "2026-05-01T00:00:00+02:00"),
    ],
)  # fmt: skip
def test_lists_as_shops_export_them(text: str, value: str, moment: str, tmp_path: Path) -> None:
    """CSV with any usual separator, names and decimal point, NDJSON; a BOM; zones, and times without; items."""
    order = listed(tmp_path, text)[0]
    assert (order.id, order.value, order.time) == ("7", Decimal(value), datetime.fromisoformat(moment))
    assert order.currency in ("EUR", "KWD")
    assert len({one.id for one in listed(tmp_path, text)}) == len(listed(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("id,value,currency\n7,1,EUR\n", "no column for the time: call it time or created_at"),
        (HEAD, "has no orders"),
        (f"{HEAD}7,1.50,EUR,2026-05-01\n8,secret,EUR,2026-05-01\n", "line 3: an order needs"),
        (f"{HEAD}7,1.50,EUR,secret\n", "line 2: an order needs"),
        (f"{HEAD}7,1.50,Euro,2026-05-01\n", "line 2: an order needs"),
        (f"{HEAD},1.50,EUR,2026-05-01\n", "line 2: an order needs"),
        (f"{HEAD}7,1.50\n", "line 2: an order needs"),
        (f"{HEAD}7,1.234,EUR,2026-05-01\n", "whether . or , is the decimal point"),
        (f'{HEAD}7,"1,5",EUR,2026-05-01\n8,1.5,EUR,2026-05-01\n', "whether . or , is the decimal point"),
        ('{"id": 7, "value": secret}\n', "neither CSV with a head nor NDJSON"),
        ('{"id": 7, "value": NaN, "currency": "EUR", "time": "2026-05-01"}', "line 1: an order needs"),
        ('{"id": 7, "value": null, "currency": "EUR", "time": "2026-05-01"}', "line 1: an order needs"),
        (HEAD.encode() + b"7,1,EUR,\xff\xfe\n", "neither CSV with a head nor NDJSON"),
    ],
)
def test_a_list_that_cannot_be_read(text: str | bytes, why: str, tmp_path: Path) -> None:
    """The error says what is missing, or the line, and repeats no value."""
    with pytest.raises(InputError) as error:
        listed(tmp_path, text)
    assert why in str(error.value)
    assert "secret" not in str(error.value)


def test_a_hundred_thousand_orders_each_in_its_class() -> None:
    """With losses, copies, other values, zones and currencies; the sums are exact."""
    chance, orders, receipts = random.Random(4711), list[Order](), list[FoundReceipt]()
    expected, whole = dict[str, str](), made("orders:0:0")
    sums: defaultdict[tuple[str, str, str], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)

    def receive(place: str, outcome: str = "delivered", **fields: Any) -> None:
        topic, partition, offset = place.split(":")
        where = {"topic": topic, "partition": int(partition), "offset": int(offset)}
        receipts.append({**whole, **where, "outcome": outcome, **fields})  # `made` would take ten seconds

    for number in range(100_000):
        kind, id = chance.choice(CLASSES), f"order-{number}"
        value = sent = Decimal(chance.randrange(1, 1_000_000)) / 100
        currency, zone = chance.choice(("EUR", "USD", "JPY")), timedelta(hours=chance.randrange(-11, 12))
        moment = START + timedelta(seconds=chance.randrange(30 * 86_400))
        fields: dict[str, Any] = {"order_id": id, "event_id": f"e{number}", "value": str(value), "currency": currency,
                  "event_time": int(moment.timestamp() * 1000)}  # fmt: skip
        place, listed = f"orders:{number % 4}:{number}", kind != "not_in_list"
        if listed:
            orders.append(Order(number, id, value, currency, moment.astimezone(timezone(zone))))
        expected[id] = kind
        if kind == "other_value" and chance.random() < 0.5:  # two conversions of one order
            receive(f"more:0:{number}", **{**fields, "event_id": f"f{number}"})
            receive(place, **fields)
            sent = 2 * value
        elif kind == "other_value":
            sent = value + 1
            receive(place, **{**fields, "value": str(sent)})
        elif kind != "never_read":
            receive(place, kind if listed else "delivered", **fields)
        if kind == "delivered":  # what else became of it changes nothing
            copy = chance.choice(("duplicate", "filtered", "dead_lettered", "delivered"))
            receive(f"copies:0:{number}", copy, **fields)
        total = sums[str(moment.astimezone(BERLIN).date()), currency, kind]
        arrived = kind in ("delivered", "other_value", "not_in_list")
        total[:] = total[0] + 1, total[1] + value * listed, total[2] + sent * arrived
    chance.shuffle(receipts)
    found = compare_orders(orders, receipts, BERLIN)
    assert {one["id"]: one["class"] for one in found["list"]} == expected
    classes = Counter(expected.values())
    assert found["classes"] == dict(classes)
    assert found["missing"] == sum(classes[kind] for kind in ("never_read", "filtered", "dead_lettered"))
    figures = ("orders", "listed", "delivered")
    assert sums == {
        (one["day"], one["currency"], one["class"]): [Decimal(one[name]) for name in figures]
        for one in found["sums"]
    }


def test_why_an_order_is_in_its_class() -> None:
    """What it is a copy of, what was sent, a code; an order that is listed twice counts once."""
    orders = [Order(n, f"o{n}", Decimal("5.00"), "EUR", START) for n in range(1, 7)]
    orders.append(orders[0]._replace(line=9))
    of: dict[str, Any] = {"currency": "EUR", "event_time": int(START.timestamp() * 1000)}
    receipts = [
        made("t:0:1", order_id="o1", value="5", **of),
        made("t:0:2", order_id="o2", value="5.00", **{**of, "currency": "USD"}),
        made("t:0:3", "duplicate", order_id="o3", event_id="event-1", **of),
        made("t:0:4", "duplicate", order_id="o4", **of),
        made("t:0:5", "dead_lettered", code="expired", order_id="o5", **of),
    ]
    found = {
        (one["id"], one["class"]): one["why"] for one in compare_orders(orders, receipts, BERLIN)["list"]
    }
    assert found == {
        ("o1", "delivered"): None,
        ("o1", "duplicate"): "of line 1 of the list",
        ("o2", "other_value"): "5.00 USD",
        ("o3", "duplicate"): "of t:0:1",
        ("o4", "duplicate"): "of an earlier event",
        ("o5", "dead_lettered"): "expired",
        ("o6", "never_read"): None,
    }


def test_from_the_topic(shop: Receipts, tmp_path: Path) -> None:
    """Exit code 1: more is missing than ``--tolerance``; 2: there are no receipts, so no order is missing."""
    file, moment = tmp_path / "orders.csv", datetime.fromtimestamp(NOW / 1000 - 60, UTC).isoformat()
    file.write_text(HEAD + "".join(f"order-{number},12.5,EUR,{moment}\n" for number in range(10)))
    reconcile = ("reconcile", str(file))
    assert "there are no receipts since" in shop.refused(*reconcile, "--json")
    assert "PINSTREAM_RECEIPTS_TOPIC is not set" in shop.refused(*reconcile, PINSTREAM_RECEIPTS_TOPIC="")
    others = [
        shop.made(8, destination="a sandbox"),
        shop.made(9, event_name="page_visit"),
        shop.made(1, "duplicate"),
    ]
    shop.write(*map(shop.made, range(8)), *others)
    found = shop.answered(*reconcile, code=1)
    assert (found["missing"], found["classes"]["delivered"], found["zone"]) == (2, 8, "UTC")
    assert [one["id"] for one in found["list"] if one["class"] == "never_read"] == ["order-8", "order-9"]
    assert found["sums"][0]["delivered"] == "100.00"
    for tolerance, code in (("2", 0), ("20%", 0), ("19.9%", 1)):
        found = shop.answered(*reconcile, "--tolerance", tolerance, code=code)
        assert found["within_tolerance"] is (code == 0)
    printed = shop.printed(*reconcile, "--zone", "Europe/Berlin", code=1)
    for text in (
        "10 orders",
        "those of Europe/Berlin",
        "never-read: 2  order-8, order-9",
        "missing",
        "more than allowed",
    ):
        assert text in printed
    assert "zone 'Moon' is not known" in shop.refused(*reconcile, "--zone", "Moon")
    assert "write 10, or 0.5%" in shop.refused(*reconcile, "--tolerance", "few")
    done = command("reconcile", "-", env=shop.env, stdin=HEAD)
    assert (done.returncode, the_one_line(done.stderr)) == (1, "standard input has no orders")
