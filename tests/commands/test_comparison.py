"""``explain --against``: every change of a mapping is named, with field, count and money, and nobody's data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from consumer.commands import main
from tests.end_to_end.processes import ROOT, bare_environment

EXAMPLE = ROOT / "examples" / "shop"
MAPPING = (EXAMPLE / "mapping.toml").read_text()
NOW = "2026-03-01T12:00:00Z"
TYPES = {
    "shop.order.paid": "checkout",
    "shop.cart.added": "add_to_cart",
    "shop.customer.registered": "signup",
}


def made_up(number: int) -> dict[str, Any]:
    """A record: of four, two orders, a cart and a registration; some buyers allow no ads, some orders are in francs."""
    kind = [*TYPES][(0, 0, 1, 2)[number % 4]]
    line = {"title": f"Lamp {number}", "unit_price": 10 + number, "pieces": 2}
    order = {
        "number": 40_000 + number,
        "currency": "CHF" if number % 8 == 1 else "EUR",
        "grand_total": f"{20 + 2 * number}.25",
        "lines": [{**line, "sku": f"sku-{number}"}, {**line, "sku": f"sku-{number}b", "pieces": 1}],
    }
    buyer = {
        "email": f"buyer{number}@example.com", "phone": f"+4930{5_550_000 + number}", "number": 7_000_000 + number,
        "born": "1990-05-17", "country": "Germany" if number % 3 else "Austria", "ip": f"192.0.2.{number}",
        "agent": f"Mozilla/5.0 (X11; {number})", "ads_allowed": number % 10 != 9,
    }  # fmt: skip
    meta = {
        "id": f"id-{number}", "type": kind, "created_at": "2026-03-01T11:58:00Z",
        "channel": "TILL" if number % 5 == 0 else "SHOP", "page": f"https://shop.example/{number}",
    }  # fmt: skip
    return {"meta": meta, "buyer": buyer, "order": None if kind == "shop.customer.registered" else order}


RECORDS = [made_up(number) for number in range(240)]
ALLOWED = [one for one in RECORDS if one["buyer"]["ads_allowed"]]
Chosen = Callable[[dict[str, Any]], bool]
Worth = Callable[[dict[str, Any]], Decimal]


def total(one: dict[str, Any]) -> Decimal:
    """What a record's order is worth."""
    return Decimal(one["order"]["grand_total"])


def unit(one: dict[str, Any]) -> Decimal:
    """The price of a piece of a record's order."""
    return Decimal(one["order"]["lines"][0]["unit_price"])


class Named(NamedTuple):
    """What must be named: the events, the field, how it changes, for which of their records, and what these are worth
    before and after."""

    name: str
    field: str
    change: str
    chosen: Chosen = lambda one: True
    before: Worth | None = total
    after: Worth | None = total
    currency: str | None = None  # with which all are sent afterwards
    among: Sequence[dict[str, Any]] = ALLOWED


def money(
    chosen: Iterable[dict[str, Any]], worth: Worth | None, currency: str | None = None
) -> dict[str, Decimal]:
    """The value of records by currency, without what is tested."""
    sums: dict[str, Decimal] = {}
    for one in chosen:
        if worth is not None and one["order"] is not None:
            key = currency or one["order"]["currency"]
            sums[key] = sums.get(key, Decimal(0)) + worth(one)
    return sums


def francs(one: dict[str, Any]) -> bool:
    """Choose orders in francs."""
    return bool(one["order"]["currency"] == "CHF")


def abroad(one: dict[str, Any]) -> bool:
    """Choose the buyers who are not in Austria."""
    return bool(one["buyer"]["country"] != "Austria")


def in_shop(one: dict[str, Any]) -> bool:
    """Choose what did not happen at a till."""
    return bool(one["meta"]["channel"] == "SHOP")


NO_ADS = [one for one in RECORDS if not one["buyer"]["ads_allowed"]]
CURRENCY, VALUE = '"custom_data.currency" = "order.currency"', '"custom_data.value" = "order.grand_total"'
ID, EMAIL = 'event_id = "meta.id"', '"user_data.em" = "buyer.email"'
PAID, CONSENT = '"shop.order.paid" = "checkout"', 'require = "buyer.ads_allowed"'
LOST, CHANGED, ADDED = "lost", "changed", "added"
NO_CURRENCY = "accepted → dead_lettered: convert: missing_currency"
IDS = "custom_data.content_ids"
CHECKOUT, CART, SIGNUP = "checkout", "add_to_cart", "signup"
VALUES, SUM = (
    "custom_data.value",
    '{ sum = { multiply = ["order.lines[].unit_price", "order.lines[].pieces"] } }',
)
ALLOWED_NOW = "filtered: consent → accepted"
FAULTS: dict[str, tuple[list[tuple[str, str]], list[Named]]] = {
    "all in one currency": (
        [(CURRENCY, '"custom_data.currency" = { value = "EUR" }')],
        [Named(CHECKOUT, "custom_data.currency", CHANGED, francs, currency="EUR")]),
    "no currency": (
        [(CURRENCY, '"custom_data.currency" = ""')],
        [Named(name, "outcome", NO_CURRENCY, after=None) for name in (CHECKOUT, CART)]),
    "the value in cents": (
        [(VALUE, '"custom_data.value" = { multiply = ["order.grand_total", { value = 100 }] }')],
        [Named(name, VALUES, CHANGED, after=lambda one: 100 * total(one)) for name in (CHECKOUT, CART)]),
    "the price of one piece as the value": (
        [(VALUE, '"custom_data.value" = "order.lines[0].unit_price"')],
        [Named(CHECKOUT, VALUES, CHANGED, after=unit)]),
    "the value without shipping": (
        [(VALUE, f'"custom_data.value" = {SUM}')],
        [Named(CHECKOUT, VALUES, CHANGED, after=lambda one: 3 * unit(one))]),
    "no value": ([(VALUE, '"custom_data.value" = ""')], [Named(CHECKOUT, VALUES, LOST, after=None)]),
    "consent is not asked for": (
        [(CONSENT, "")],
        [Named(name, "outcome", ALLOWED_NOW, before=None, among=NO_ADS) for name in (CHECKOUT, SIGNUP)]),
    "a country as the consent": (
        [(CONSENT, 'require = "buyer.country"\nallowed = ["Austria"]')],
        [Named(CHECKOUT, "outcome", "accepted → filtered: consent", abroad, after=None),
         Named(CHECKOUT, "outcome", ALLOWED_NOW, lambda one: not abroad(one), before=None, among=NO_ADS)]),
    "the order's number as the id": (
        [(ID, 'event_id = "order.number"')],
        [Named(CHECKOUT, "event_id", CHANGED),
         Named(SIGNUP, "outcome", "accepted → dead_lettered: convert: missing_event_id")]),
    "an id that many share": (
        [(ID, 'event_id = "buyer.country"')], [Named(CHECKOUT, "event_id", CHANGED, after=None)]),
    "another key for duplicates": (
        [("[consent]", '[dedup]\nkey = "buyer.email"\n[consent]')],
        [Named(CHECKOUT, "(key)", CHANGED), Named(SIGNUP, "(key)", CHANGED)]),
    "article and title swapped": (
        [('contents[].id" = "order.lines[].sku"', 'contents[].id" = "order.lines[].title"'),
         ('item_name" = "order.lines[].title"', 'item_name" = "order.lines[].sku"')],
        [Named(CHECKOUT, "custom_data.contents[].id", CHANGED),
         Named(CHECKOUT, "custom_data.contents[].item_name", CHANGED), Named(CART, IDS, CHANGED)]),
    "number of the buyer and of the order swapped": (
        [('external_id" = "buyer.number"', 'external_id" = "order.number"'),
         ('order_id" = "order.number"', 'order_id" = "buyer.number"')],
        [Named(CHECKOUT, "user_data.external_id", CHANGED), Named(CHECKOUT, "custom_data.order_id", CHANGED),
         Named(SIGNUP, "user_data.external_id", LOST), Named(SIGNUP, "custom_data.order_id", ADDED)]),
    "address and agent swapped": (
        [("buyer.ip", "buyer.swap"), ("buyer.agent", "buyer.ip"), ("buyer.swap", "buyer.agent")],
        [Named(CHECKOUT, "user_data.client_ip_address", LOST),
         Named(CHECKOUT, "user_data.client_user_agent", CHANGED)]),
    "the phone as the e-mail address": (
        [(EMAIL, '"user_data.em" = "buyer.phone"')],
        [Named(CHECKOUT, "user_data.em", LOST), Named(SIGNUP, "user_data.em", LOST)]),
    "the e-mail address as the order's number": (
        [('order_id" = "order.number"', 'order_id" = "buyer.email"')],
        [Named(CHECKOUT, "custom_data.order_id", CHANGED), Named(SIGNUP, "custom_data.order_id", ADDED)]),
    "orders as carts": (
        [(PAID, '"shop.order.paid" = "add_to_cart"')],
        [Named(CHECKOUT, "event_name", CHANGED), Named(CHECKOUT, "(key)", CHANGED)]),
    "orders are not sent": (
        [(PAID, '"shop.order.paid" = "!filter"')],
        [Named(CHECKOUT, "outcome", "accepted → filtered: event_name", after=None)]),
    "a type misspelled": (
        [(PAID, '"shop.order.payed" = "checkout"')],
        [Named(CHECKOUT, "outcome", "accepted → filtered: event_name", after=None)]),
    "the shop as a store": (
        [('SHOP = "web"', 'SHOP = "offline"')],
        [Named(CHECKOUT, "action_source", CHANGED, in_shop), Named(CHECKOUT, "event_source_url", LOST, in_shop)]),
    "another account": (
        [(ID, f'{ID}\nad_account_id = "buyer.number"')],
        [Named(CHECKOUT, "ad_account_id", CHANGED), Named(CHECKOUT, "(key)", CHANGED)]),
    "quantity as the price": (
        [('item_price" = "order.lines[].unit_price"', 'item_price" = "order.lines[].pieces"')],
        [Named(CHECKOUT, "custom_data.contents[].item_price", CHANGED)]),
}  # fmt: skip
"""By what is wrong: the edits of the mapping, and what must be named (there may be more)."""


class Try:
    """A folder with a mapping, its old version and samples."""

    def __init__(self, folder: Path, records: Iterable[dict[str, Any]] = RECORDS) -> None:
        self.new, self.old, self.samples = (
            folder / name for name in ("new.toml", "old.toml", "samples.ndjson")
        )
        self.samples.write_text("".join(f"{json.dumps(one)}\n" for one in records))
        self.old.write_text(MAPPING)
        self.new.write_text(MAPPING)
        self.env = {
            **bare_environment(folder), "PINSTREAM_SCHEMAS_DIR": str(EXAMPLE / "schemas"),
            "PINSTREAM_SCHEMA": "com.shop.Event", "PINSTREAM_MAPPING_FILE": str(self.new),
        }  # fmt: skip

    def edit(self, *edits: tuple[str, str]) -> None:
        """Change the new version."""
        text = MAPPING
        for old, new in edits:
            assert old in text, old
            text = text.replace(old, new)
        self.new.write_text(text)

    def compare(self, *options: str) -> Result:
        """Run `explain --against`."""
        line = ["explain", str(self.samples), "--now", NOW, "--against", str(self.old), *options]
        return CliRunner(env=self.env).invoke(main, line)


@pytest.fixture
def tried(tmp_path: Path) -> Try:
    """Samples, and a mapping that did not change."""
    return Try(tmp_path)


def test_the_same_mapping_changes_nothing(tried: Try) -> None:
    """Exit code 0, whatever comments and order the file has; the value is that of the events."""
    tried.edit(("[event_names]", "# the same\n[event_names]"))
    done = tried.compare()
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "Nothing changes: 240 records, each with the same outcome and the same event.\n"
    )
    assert re.search(r"accepted +216 +216\n", done.stdout)
    line = ["explain", str(tried.samples), "--against", str(tried.old)]
    done = CliRunner(env=tried.env).invoke(main, line)  # as of today: the records are from March
    assert done.exit_code == 1
    assert "No event was accepted or compared; if they are too old, explain has --now" in done.stdout
    found = json.loads(tried.compare("--json").stdout.splitlines()[-1])
    assert (found["records"], found["changed"], found["changes"]) == (240, 0, [])
    sums = {currency: Decimal(both["before"]) for currency, both in found["value"].items()}
    assert sums == money(ALLOWED, total)
    assert all(both["before"] == both["after"] for both in found["value"].values())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(tried: Try, fault: str) -> None:
    """With field, number and value before and after, to the cent; no value of a buyer is shown."""
    edits, expected = FAULTS[fault]
    tried.edit(*edits)
    done = tried.compare("--json")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    named = {(one["event_name"], one["field"], one["change"]): one for one in found["changes"]}
    people = tried.compare().stdout
    for one in expected:
        change = named[one.name, one.field, one.change]
        chosen = [each for each in one.among if TYPES[each["meta"]["type"]] == one.name and one.chosen(each)]
        assert change["records"] == len(chosen) > 0, one
        sums = {side: {name: Decimal(both[side]) for name, both in change["value"].items()} for side in SIDES}
        assert _no_zeros(sums["before"]) == money(chosen, one.before), one
        if fault != "an id that many share":  # all but two of them are duplicates then
            assert _no_zeros(sums["after"]) == money(chosen, one.after, one.currency), one
        assert one.field in people
        assert f"{len(chosen)} " in people
    for record in RECORDS:
        buyer = record["buyer"]
        for secret in (buyer["email"], buyer["phone"], str(buyer["number"]), buyer["ip"] + '"'):
            assert secret not in done.stdout + people


SIDES = ("before", "after")


def _no_zeros(sums: dict[str, Decimal]) -> dict[str, Decimal]:
    return {currency: amount for currency, amount in sums.items() if amount}


def test_what_either_mapping_takes_for_personal_is_not_shown(tried: Try) -> None:
    """Not where the other one writes it into an order's number; what is public for both is shown."""
    order_id = '"custom_data.order_id" = "order.number"'
    records = [{**one, "@key": f"key-of-{one['buyer']['number']}"} for one in RECORDS[:8]]
    tried.samples.write_text("".join(f"{json.dumps(one)}\n" for one in records))
    tried.old.write_text(MAPPING.replace('"buyer.number"', '"@key"'))
    for path in ("buyer.email", "buyer.phone", "@key"):
        tried.edit((order_id, f'"custom_data.order_id" = "{path}"'), ('"buyer.number"', '"buyer.ip"'))
        for done in (tried.compare(), tried.compare("--json")):
            assert done.exit_code == 1
            assert "custom_data.order_id" in done.stdout
            assert not any(text in done.stdout for text in ("key-of-", "buyer0", "5550000", "192.0.2.0"))
    tried.edit((VALUE, '"custom_data.value" = { multiply = ["order.grand_total", { value = 100 }] }'))
    assert '"20.25" → "2025.00"' in tried.compare().stdout
    # Text that the other mapping does not map may be anybody's name.
    text = re.sub("(?m)^.*order.lines\\[\\].title.*$", "", MAPPING)
    tried.old.write_text(text)
    tried.new.write_text(text.replace(order_id, '"custom_data.order_id" = "order.lines[0].title"'))
    shown = tried.compare().stdout
    assert "custom_data.order_id changed: " in shown
    assert "Lamp" not in shown


def test_sections_are_compared_with_a_file_without(tried: Try) -> None:
    """Each mapping reads the file in its own way: a section that says the same changes nothing."""
    head = '[record."com.shop.Event"'
    text = "".join(
        line.replace("[", f"{head}.", 1) if line.startswith("[") else line
        for line in MAPPING.splitlines(True)
    )
    tried.new.write_text(text)
    done = tried.compare()
    assert (done.exit_code, done.stdout[:16]) == (0, "Nothing changes:"), done.output


@pytest.mark.parametrize(
    ("options", "file", "said"),
    [
        (("--summary",), None, "--summary and --against print different things: give one of them"),
        (("--watch",), None, "--against and --watch print different things: give one of them"),
        ((), "-", "--against reads FILE more than once: save the records to a file, and name that"),
        ((), "lost.ndjson", "lost.ndjson cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tried: Try, options: tuple[str, ...], file: str | None, said: str
) -> None:
    """Two things to print, a stream, a file that does not exist."""
    line = ["explain", file or str(tried.samples), "--against", str(tried.old), *options]
    done = CliRunner(env=tried.env).invoke(main, line)
    assert (done.exit_code, done.stdout) == (1 if file == "lost.ndjson" else 2, "")
    assert said in done.stderr


def test_errors_name_the_file_and_strict_counts_what_is_rejected_now(tried: Try) -> None:
    """The old file that is not there by its option, a wrong one by its name."""
    tried.old.write_text('[fields]\nevent_id = "meta.idd"\n')
    done = tried.compare()
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{tried.old}: [fields] 'event_id': 'meta.idd' is not in the schema" in done.stderr
    tried.old.unlink()
    assert tried.compare().stderr.startswith(f"pinstream: --against: {tried.old} cannot be read")
    tried.old.write_text(MAPPING)
    tried.edit((CURRENCY, '"custom_data.currency" = ""'))
    said = f"168 of 240 records of {tried.samples} were rejected (--strict)\n"
    assert tried.compare("--strict").stderr.endswith(said)
