"""``pinstream reconcile``: the shop's list of orders against the receipts, order by order and to the cent."""

from __future__ import annotations

import csv
import io
import json
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
from tests.commands.receipts.making import NOW, answered, environment, made, write_receipts
from tests.end_to_end.processes import command, the_one_line
from tests.support.kafka.harness import Kafka, create_topic

BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2026, 5, 1, tzinfo=UTC)


def listed(folder: Path, text: str | bytes, zone: ZoneInfo = BERLIN) -> list[Order]:
    """Return the orders of a file with this text."""
    path = folder / "orders"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_orders(str(path), zone)


@pytest.mark.parametrize(
    ("text", "value", "moment"),
    [
        ("id,value,currency,time\n7,12.50,eur,2026-05-01T10:00:00Z\n", "12.50", "2026-05-01T10:00:00+00:00"),
        (
            "\ufeffId;Total;Currency;Date\r\n7;1.234,50;EUR;2026-05-01\r\n",
            "1234.50",
            "2026-05-01T00:00:00+02:00",
        ),
        (
            "Name\tTotal\tCurrency\tCreated at\n7\t1,234.5\tEUR\t2026-05-01 11:10:11 -0400\n",
            "1234.5",
            "2026-05-01T11:10:11-04:00",
        ),
        (
            'order_id,amount,currency,time\n7,"1 234,50",EUR,1777629600\n',
            "1234.50",
            "2026-05-01T10:00:00+00:00",
        ),
        ("id,value,currency,time\n7,1500,EUR,1777629600000\n", "1500", "2026-05-01T10:00:00+00:00"),
        (
            "id,value,currency,time\n7,1.234,KWD,2026-05-01 10:00:00 UTC\n8,1.5,KWD,2026-05-01\n",
            "1.234",
            "2026-05-01T10:00:00+00:00",
        ),
        (
            '{"id":7,"value":12.10,"currency":"EUR","time":"2026-05-01T10:00:00+02:00"}\n\n',
            "12.10",
            "2026-05-01T10:00:00+02:00",
        ),
        (
            '{"id":"7","value":"12,10","currency":"EUR","time":1777629600}',
            "12.10",
            "2026-05-01T10:00:00+00:00",
        ),
        (
            "id,value,currency,time\n7,12.50,EUR,2026-05-01\n7,,,\n7,,,\n",
            "12.50",
            "2026-05-01T00:00:00+02:00",
        ),
    ],
)
def test_lists_as_shops_export_them(text: str, value: str, moment: str, tmp_path: Path) -> None:
    """CSV with any usual separator, names of columns and decimal point, and NDJSON; a BOM; zones, and times without
    one, which are of ``--zone``; further lines of an order's items."""
    order = listed(tmp_path, text)[0]
    assert (order.id, order.value, order.time) == ("7", Decimal(value), datetime.fromisoformat(moment))
    assert order.currency in ("EUR", "KWD")
    assert len({one.id for one in listed(tmp_path, text)}) == len(listed(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("id,value,currency\n7,1,EUR\n", "no column for the time: call it time or created_at"),
        ("id,value,currency,time\n", "has no orders"),
        (
            "id,value,currency,time\n7,1.50,EUR,2026-05-01\n8,secret,EUR,2026-05-01\n",
            "line 3: an order needs",
        ),
        ("id,value,currency,time\n7,1.50,EUR,secret\n", "line 2: an order needs"),
        ("id,value,currency,time\n7,1.50,Euro,2026-05-01\n", "line 2: an order needs"),
        ("id,value,currency,time\n,1.50,EUR,2026-05-01\n", "line 2: an order needs"),
        ("id,value,currency,time\n7,1.50\n", "line 2: an order needs"),
        ("id,value,currency,time\n7,1.234,EUR,2026-05-01\n", "whether . or , is the decimal point"),
        (
            'id,value,currency,time\n7,"1,5",EUR,2026-05-01\n8,1.5,EUR,2026-05-01\n',
            "whether . or , is the decimal point",
        ),
        ('{"id": 7, "value": secret}\n', "neither CSV with a head nor NDJSON"),
        ('{"id": 7, "value": NaN, "currency": "EUR", "time": "2026-05-01"}', "line 1: an order needs"),
        ('{"id": 7, "value": null, "currency": "EUR", "time": "2026-05-01"}', "line 1: an order needs"),
        (b"id,value,currency,time\n7,1,EUR,\xff\xfe\n", "neither CSV with a head nor NDJSON"),
    ],
)
def test_a_list_that_cannot_be_read(text: str | bytes, why: str, tmp_path: Path) -> None:
    """The error says what is missing, or the line, and repeats no value."""
    with pytest.raises(InputError) as error:
        listed(tmp_path, text)
    assert why in str(error.value)
    assert "secret" not in str(error.value)


def test_a_hundred_thousand_orders_each_in_its_class() -> None:
    """With losses, copies, other values, zones and currencies: each order is in the class that it was made for, and the
    sums by day, currency and class are exact."""
    chance, orders, receipts = random.Random(4711), list[Order](), list[FoundReceipt]()
    expected = dict[str, str]()
    sums: defaultdict[tuple[str, str, str], list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)
    for number in range(100_000):
        kind, id = chance.choice(CLASSES), f"order-{number}"
        value = Decimal(chance.randrange(1, 1_000_000)) / 100
        currency, zone = chance.choice(("EUR", "USD", "JPY")), timedelta(hours=chance.randrange(-11, 12))
        moment = START + timedelta(seconds=chance.randrange(30 * 86_400))
        at = int(moment.timestamp() * 1000)
        fields: dict[str, Any] = {
            "order_id": id,
            "event_id": f"e{number}",
            "value": str(value),
            "currency": currency,
            "event_time": at,
        }
        place, day = f"orders:{number % 4}:{number}", str(moment.astimezone(BERLIN).date())
        if kind != "not_in_list":
            orders.append(Order(number, id, value, currency, moment.astimezone(timezone(zone))))
        expected[id] = kind
        total = sums[day, currency, kind]
        total[:2] = total[0] + 1, total[1] + (value if kind != "not_in_list" else 0)
        sent = value
        if kind == "other_value":
            sent = value + 1
            if chance.random() < 0.5:  # two conversions of one order
                receipts.append(made(f"more:0:{number}", **{**fields, "event_id": f"f{number}"}))
                sent = 2 * value
                receipts.append(made(place, **fields))
            else:
                receipts.append(made(place, **{**fields, "value": str(sent)}))
        elif kind != "never_read":
            outcome = "delivered" if kind == "not_in_list" else kind
            receipts.append(made(place, outcome, **fields))
            if kind == "delivered":  # what else became of it changes nothing
                copy = chance.choice(("duplicate", "filtered", "dead_lettered", "delivered"))
                receipts.append(made(f"copies:0:{number}", copy, **fields))
        if kind in ("delivered", "other_value", "not_in_list"):
            total[2] += sent
    chance.shuffle(receipts)
    found = compare_orders(orders, receipts, BERLIN)
    assert {one["id"]: one["class"] for one in found["list"]} == expected
    assert found["classes"] == dict(Counter(expected.values()))
    assert found["missing"] == sum(
        found["classes"][kind] for kind in ("never_read", "filtered", "dead_lettered")
    )
    assert {
        (one["day"], one["currency"], one["class"]): [
            Decimal(one[name]) for name in ("orders", "listed", "delivered")
        ]
        for one in found["sums"]
    } == sums


def test_why_an_order_is_in_its_class() -> None:
    """A duplicate names what it is a copy of, another value what was sent, a refusal its code; an order that is listed
    twice counts once."""
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


def test_from_the_topic(kafka: Kafka, tmp_path: Path) -> None:
    """The command reads the receipts of its destination and event; exit code 1 says that more is missing than
    ``--tolerance``, 2 that there are no receipts."""
    topic = create_topic(kafka, 2)
    receipts = [made(f"orders:0:{number}") for number in range(8)]
    receipts += [
        made("orders:0:8", destination="a sandbox"),
        made("orders:0:9", event_name="page_visit"),
        made("orders:0:1", "duplicate"),
    ]
    write_receipts(kafka, topic, receipts)
    moment = datetime.fromtimestamp(NOW / 1000 - 60, UTC).isoformat()
    lines = "".join(f"order-{number},12.5,EUR,{moment}\n" for number in range(10))
    file = tmp_path / "orders.csv"
    file.write_text("id,value,currency,time\n" + lines)
    env = environment(tmp_path, kafka, topic)
    found = answered("reconcile", str(file), env=env, code=1)
    assert (found["missing"], found["classes"]["delivered"], found["zone"]) == (2, 8, "UTC")
    assert [one["id"] for one in found["list"] if one["class"] == "never_read"] == ["order-8", "order-9"]
    assert found["sums"][0]["delivered"] == "100.00"
    assert answered("reconcile", str(file), "--tolerance", "2", env=env)["within_tolerance"]
    assert answered("reconcile", str(file), "--tolerance", "20%", env=env)["within_tolerance"]
    answered("reconcile", str(file), "--tolerance", "19.9%", env=env, code=1)
    done = command("reconcile", str(file), "--zone", "Europe/Berlin", env=env)
    for text in (
        "10 orders",
        "those of Europe/Berlin",
        "never-read: 2  order-8, order-9",
        "missing",
        "more than allowed",
    ):
        assert text in done.stdout
    for bad, why in (
        (("--zone", "Moon"), "zone 'Moon' is not known"),
        (("--tolerance", "few"), "write 10, or 0.5%"),
    ):
        refused = command("reconcile", str(file), *bad, env=env)
        assert (refused.returncode, why in the_one_line(refused.stderr)) == (2, True)


def test_without_receipts(kafka: Kafka, tmp_path: Path) -> None:
    """Without a topic, or with none of that time on it, the exit code is 2: it is no order that is missing."""
    file = tmp_path / "orders.ndjson"
    file.write_text(json.dumps({"id": 1, "value": 2, "currency": "EUR", "time": "2026-05-01"}))
    for topic, why in (
        (None, "PINSTREAM_RECEIPTS_TOPIC is not set"),
        (create_topic(kafka), "there are no receipts since"),
    ):
        done = command("reconcile", str(file), "--json", env=environment(tmp_path, kafka, topic))
        assert (done.returncode, done.stdout) == (2, "")
        assert why in the_one_line(done.stderr)
    out = io.StringIO()
    csv.writer(out).writerow(["id", "value", "currency", "time"])
    done = command("reconcile", "-", env=environment(tmp_path, kafka, None), stdin=out.getvalue())
    assert (done.returncode, the_one_line(done.stderr)) == (1, "standard input has no orders")
