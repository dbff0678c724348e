"""``pinstream reconcile``: the shop's list of orders against the receipts, order by order and to the cent.

Theory of operation. The list is read whole: id, value, currency and time of each order. Then the receipts from the day
before the first order on, of this destination and of the event that an order is sent as (``--event``). A receipt is of
the order of its order id, else of its event id. Each order is in exactly one class: delivered comes first, since then
the order is a conversion, whatever became of its other records; then duplicate, which was delivered before the receipts
that are read. An order under two event ids is two conversions, so their values are added.

Sums are exact decimals. Days are those of ``--zone``, which is also that of times without one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.console import Console

from consumer.app.receipts import destination_name
from consumer.commands import receipts
from consumer.commands.base import DebugCommand, asynchronous, iso
from consumer.commands.parsing import JSON_OPTION
from consumer.commands.receipts import DEAD_LETTERED, DELIVERED, DUPLICATE, FILTERED, FoundReceipt, ReceiptKey
from consumer.commands.results import print_result, prose, table
from consumer.conversion.computed.expressions import Unreadable
from consumer.conversion.computed.tables import zone_named
from consumer.errors import InputError, UsageError, first_of
from consumer.settings import load

_Result = tuple[str, str | None, Mapping[str, Decimal]]
"""Class, why, and what was delivered by currency."""
_OTHER_VALUE, _NEVER_READ, _NOT_LISTED = "other_value", "never_read", "not_in_list"
_MISSING: Final = (FILTERED, DEAD_LETTERED, _NEVER_READ)
CLASSES: Final = (DELIVERED, _OTHER_VALUE, DUPLICATE, *_MISSING, _NOT_LISTED)
# A column's names in small letters, of which the first that is there counts.
_COLUMNS: Final = {
    "id": ("id", "order_id", "order_number", "order", "name", "event_id"),
    "value": ("value", "total", "amount"),
    "currency": ("currency",),
    "time": ("time", "created_at", "event_time", "date"),
}
# A point with one, two or four digits behind it, or behind the other one.
_POINT: Final = re.compile(r"([.,])(?:[0-9]{1,2}|[0-9]{4,})$")
_AMOUNT: Final = re.compile(r"-?[0-9][0-9.,' \u00a0\u202f]*")
_GROUPING: Final = str.maketrans("", "", "' \u00a0\u202f")
_UNIX: Final = re.compile(r"[0-9]{9,13}")
_LONGEST_SECONDS: Final = 10  # digits; more are milliseconds
# A time as shops export it has a space before its zone.
_SPACED_ZONE: Final = re.compile(r"\s+(?=[+-][0-9:]+$|Z$)")
_ZERO: Final = Decimal("0.00")  # a sum that begins with it has two decimals at least
_DAY: Final = timedelta(days=1)
_MAX_NAMED: Final = 10
_KEPT: Final = (
    *("group", "destination", "topic", "topic_id", "partition", "offset", "outcome", "code", "at"),
    *("event_name", "event_id", "order_id", "event_time", "value", "currency"),
)


class Order(NamedTuple):
    """An order of the list, and the line that it is on."""

    line: int
    id: str
    value: Decimal
    currency: str
    time: datetime


_Tolerance = Callable[[int], Decimal]


def _tolerance(text: str) -> _Tolerance:
    """Return how many of a number of orders may be missing."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(%?)", text)
    if found is None:
        raise UsageError(f"--tolerance {text!r} is neither a number of orders nor a share: write 10, or 0.5%")
    return lambda orders: Decimal(found[1]) * (Decimal(orders) / 100 if found[2] else 1)


@click.command(cls=DebugCommand)
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--zone", default="UTC", show_default=True, help="Zone of the days, and of times without one.")
@click.option("--event", default="checkout", show_default=True, help="The event name that orders have.")
@click.option(
    "--tolerance", type=_tolerance, default="0", metavar="N | N%", help="Orders that may be missing."
)
@JSON_OPTION
@asynchronous
async def reconcile(file: str, zone: str, event: str, tolerance: _Tolerance, as_json: bool) -> None:
    """Compare the shop's list of orders (CSV or NDJSON; - is standard input) with the receipts.

    Each order of FILE has an id, a value, a currency and a time, and is in one class: delivered with the same value
    or with another, duplicate, filtered, dead-lettered, never read. Events that are in the receipts and not in the list
    are a class of their own. Exit code 1: more than --tolerance are missing, that is filtered, dead-lettered or never
    read; 2: there are no receipts. Needs the settings of `pinstream run`, without account and token.

    \b
    pinstream reconcile orders-of-may.csv --zone Europe/Berlin --tolerance 0.5%
    """
    try:
        days_of = zone_named(zone)
    except Unreadable as error:
        raise UsageError(f"--{error}") from None
    settings = load(os.environ, needs=("kafka",))
    orders = read_orders(file, days_of)
    found, destination = dict[ReceiptKey, FoundReceipt](), destination_name(settings)
    ids, since = {one.id for one in orders}, min(one.time for one in orders) - _DAY
    oldest = sys.maxsize  # of all receipts

    def take(one: FoundReceipt) -> None:
        nonlocal oldest
        oldest = min(oldest, one["at"])
        is_asked = one["outcome"] == DELIVERED or one["order_id"] in ids or one["event_id"] in ids
        if is_asked and one["destination"] == destination and one["event_name"] in (event, None):
            # Without the rest, 100,000 take a quarter of a gigabyte less.
            receipts.keep(found, {name: one[name] for name in _KEPT})

    await receipts.read_receipts(settings, max(0, round(since.timestamp() * 1000)), take)
    if oldest == sys.maxsize:
        raise UsageError(f"there are no receipts since {since.isoformat()}, the day before the first order")
    compared = compare_orders(orders, found.values(), days_of)
    document = {"file": file, "zone": zone, "oldest_receipt": iso(oldest), **compared}
    document["within_tolerance"] = document["missing"] <= tolerance(len(orders))
    print_result(_show, document, as_json=as_json)
    if not document["within_tolerance"]:
        sys.exit(1)


# --- the list


def read_orders(path: str, zone: tzinfo) -> list[Order]:
    """Read a list of orders. Raises `InputError`, which names a line and no value."""
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        rows = list(_rows(data.decode("utf-8-sig")))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; check the path") from None
    except (ValueError, csv.Error):
        raise InputError(f"{name} is neither CSV with a head nor NDJSON, in UTF-8: save it as such") from None
    if not rows:
        raise InputError(f"{name} has no orders")
    columns = {one: next((n for n in names if n in rows[0][1]), "") for one, names in _COLUMNS.items()}
    for one, column in columns.items():
        if not column:
            raise InputError(f"{name} has no column for the {one}: call it {' or '.join(_COLUMNS[one])}")
    point, orders = _decimal_point(name, [row.get(columns["value"]) for _, row in rows]), list[Order]()
    for line, row in rows:
        id, value, currency, moment = (row.get(column) for column in columns.values())
        # Some exports have a line for each item, of which the first has what is the order's.
        if orders and not value and str(id).strip() == orders[-1].id:
            continue
        try:
            amount, at = _amount(value, point), _moment(moment, zone)
            if not str(id or "").strip() or not re.fullmatch(r"[A-Z]{3}", str(currency).strip().upper()):
                raise ValueError
        except (AttributeError, TypeError, ValueError, ArithmeticError, OSError):
            raise InputError(
                f"{name}, line {line}: an order needs an id, a value (a number), a currency (three letters) and a time "
                "(ISO 8601, or unix time)"
            ) from None
        orders.append(Order(line, str(id).strip(), amount, str(currency).strip().upper(), at))
    return orders


def _rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a list by the names of their columns. Raises `ValueError` and `csv.Error`."""

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {str(name).strip().lower().replace(" ", "_"): value for name, value in row.items()}

    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                # A number of JSON has a point and no grouping.
                yield number, named(dict(json.loads(line, parse_float=Decimal, parse_int=Decimal)))
        return
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=head.count))
    for row in reader:
        yield reader.line_num, named(row)


def _decimal_point(name: str, values: Sequence[Any]) -> str:
    """Return the decimal point of a column of amounts, ``.`` or ``,``: three digits behind it may be a thousand."""
    texts = [one.strip() for one in values if isinstance(one, str)]
    found = {match[1] for one in texts if (match := _POINT.search(one))}
    if len(found) > 1 or (not found and any("," in one or "." in one for one in texts)):
        raise InputError(f"{name}: whether . or , is the decimal point does not show; write 1234.50")
    return found.pop() if found else "."


def _amount(value: Any, point: str) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if not _AMOUNT.fullmatch(text := value.strip()):
        raise ValueError
    return Decimal(text.translate(_GROUPING).replace("," if point == "." else ".", "").replace(point, "."))


def _moment(value: Any, zone: tzinfo) -> datetime:
    text = str(value).strip()
    if _UNIX.fullmatch(text):
        return datetime.fromtimestamp(int(text) / (1 if len(text) <= _LONGEST_SECONDS else 1000), UTC)
    moment = datetime.fromisoformat(_SPACED_ZONE.sub("", text.replace("UTC", "Z")))
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


# --- orders and receipts


def _result(order: Order, records: Sequence[FoundReceipt], delivered: Mapping[str, FoundReceipt]) -> _Result:
    """Return what became of an order. `delivered`: receipts by event id."""
    last = {one["outcome"]: one for one in records}
    # Of an event id the platform counts one event.
    events = {(one["event_name"], one["event_id"]): one for one in records if one["outcome"] == DELIVERED}
    sent = defaultdict[str, Decimal](Decimal)
    for one in events.values():
        sent[one["currency"] or ""] += Decimal(one["value"] or 0)
    if sent == {order.currency: order.value}:
        return DELIVERED, None, sent
    if sent:
        return _OTHER_VALUE, " + ".join(f"{value} {currency}" for currency, value in sent.items()), sent
    if DUPLICATE in last:
        first = delivered.get(last[DUPLICATE]["event_id"])
        return DUPLICATE, f"of {receipts.receipt_place(first) if first else 'an earlier event'}", sent
    kind = next((one for one in (DEAD_LETTERED, FILTERED) if one in last), _NEVER_READ)
    return kind, last[kind]["code"] if kind in last else None, sent


def compare_orders(orders: Sequence[Order], found: Collection[FoundReceipt], zone: tzinfo) -> dict[str, Any]:
    """Return the class of each order and of each other event, and sums by day, currency and class."""
    ids, lines, rows = {one.id for one in orders}, dict[str, int](), list[dict[str, Any]]()
    delivered = {one["event_id"]: one for one in found if one["outcome"] == DELIVERED}
    of_order: defaultdict[str | None, list[FoundReceipt]] = defaultdict(list)
    for one in found:
        of_order[next((id for id in (one["order_id"], one["event_id"]) if id in ids), None)].append(one)
    sums: defaultdict[tuple[str, str, str], list[Decimal]] = defaultdict(lambda: [_ZERO] * 3)

    def enter(id: str, day: date, currency: str, listed: Decimal, result: _Result) -> None:
        kind, why, sent = result
        rows.append({"id": id, "day": str(day), "class": kind, "why": why})
        total = sums[str(day), currency, kind]
        total[:2] = total[0] + 1, total[1] + listed
        for of, value in sent.items():
            sums[str(day), of, kind][2] += value

    for order in orders:
        result = _result(order, of_order[order.id], delivered)
        if lines.setdefault(order.id, order.line) != order.line:
            result = DUPLICATE, f"of line {lines[order.id]} of the list", {}
        enter(order.id, order.time.astimezone(zone).date(), order.currency, order.value, result)
    first, last = min(row["day"] for row in rows), max(row["day"] for row in rows)
    for one in of_order[None]:
        day = datetime.fromtimestamp((one["event_time"] or one["at"]) / 1000, zone).date()
        if delivered.get(one["event_id"]) is one and first <= str(day) <= last:
            id, sent = one["order_id"] or one["event_id"], {one["currency"] or "": Decimal(one["value"] or 0)}
            enter(id, day, one["currency"] or "", _ZERO, (_NOT_LISTED, None, sent))
    counts = Counter(row["class"] for row in rows)
    names = ("day", "currency", "class", "orders", "listed", "delivered")
    return {
        "orders": len(orders),
        "classes": {kind: counts[kind] for kind in CLASSES},
        "missing": sum(counts[kind] for kind in _MISSING),
        "sums": [
            dict(zip(names, (*key, int(number), f"{listed:f}", f"{sent:f}"), strict=True))
            for key, (number, listed, sent) in sorted(sums.items())
        ],
        "list": rows,
    }


def _show(document: dict[str, Any], console: Console) -> None:
    file, zone, oldest = document["file"], document["zone"], document["oldest_receipt"]
    prose(
        console,
        f"{file}: {document['orders']:,} orders. Days, and times without a zone, are those of {zone}.",
    )
    prose(console, f"The receipts begin at {oldest}: earlier orders count as never read.")
    rows = [[str(cell).replace("_", "-") for cell in one.values()] for one in document["sums"]]
    console.print(table("day", "currency", "class", ">orders", ">listed", ">delivered", rows=rows))
    for kind, number in document["classes"].items():
        some = [one for one in document["list"] if one["class"] == kind and kind != DELIVERED]
        named = [one["id"] + (f" ({one['why']})" if one["why"] else "") for one in some]
        prose(console, f"{kind.replace('_', '-')}: {number:,}  {first_of(named, _MAX_NAMED)}")
    allowed = "no more" if document["within_tolerance"] else "more"
    prose(
        console,
        f"missing (filtered, dead-lettered, never read): {document['missing']:,}, {allowed} than allowed",
        "bold",
    )
