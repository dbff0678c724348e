"""On random records, sources and operators give what a small conversion of this module's own gives."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from consumer.avro.decode import framing_of
from consumer.engine.model import Record, SchemaRef
from consumer.engine.reading import Columns, Keys
from consumer.errors import MappingError
from tests.conversion.test_compiled import Alone, Both
from tests.conversion.test_convert import DEFAULT, NOW
from tests.support import avro
from tests.support.mapping import load_mapping

_TEXT = ["null", "string"]
_SCALED = avro.record("VariableScaleDecimal", avro.field("scale", "int"), avro.field("value", "bytes"))
SCHEMA: dict[str, Any] = avro.record(
    "Shop",
    *(
        avro.field(name, kind)
        for name, kind in {
            "id": "string",
            "at": avro.logical("long", "timestamp-millis"),
            "kind": {"type": "enum", "name": "Kind", "symbols": ["web", "app"]},
            "params": ["null", avro.array(avro.record("Param", *(
                avro.field("key", _TEXT),
                avro.field("value", ["null", avro.record("Value", *(
                    avro.field("text", _TEXT), avro.field("number", ["null", "long"])))]),
            )))],
            "numbered": avro.array(avro.record("Numbered", avro.field("id", "int"), avro.field("text", "string"))),
            "attributes": {"type": "map", "values": _TEXT},
            "total": ["null", _SCALED],
            "rate": ["null", "double", "string"],
            "billing": _TEXT,
            "shipping": ["null", avro.array(_TEXT)],
            "paid_s": ["null", "long"],
            "made_us": ["null", "long"],
            "local": _TEXT,
            "clock": ["null", avro.logical("long", "local-timestamp-millis")],
            "grid": ["null", avro.array(["null", avro.array(_TEXT)])],
            "big": ["null", "long"],
            "digits": _TEXT,
            "by_id": {"type": "map", "values": avro.record("Held", *(
                avro.field("sku", _TEXT), avro.field("price", ["null", "VariableScaleDecimal"])))},
            "lines": avro.array(["null", avro.record("Line", *(
                avro.field("sku", _TEXT),
                avro.field("options", avro.array(avro.record("Option", *(
                    avro.field("name", "string"), avro.field("value", _TEXT))))),
            ))]),
        }.items()
    ),
)  # fmt: skip
KEY_SCHEMA = avro.record("Key", avro.field("customer", ["null", "string"]), avro.field("shop", "int"))
BASE = """
[fields]
event_id = "id"
event_time = "at"
event_name = ""
action_source = ""
{fields}
[constants]
event_name = "checkout"
action_source = "web"
"custom_data.currency" = "EUR"
"user_data.client_ip_address" = "93.184.216.34"
"user_data.client_user_agent" = "Mozilla/5.0"
"""
EXACT = Context(prec=500)
WORDS = [None, "", " ", "a", "b@x.com", "c@y.org", "GIFT-1", "GIFT", "7", "12.50", "größe", "𝔘👜", "e\u0301"]


def made(dice: random.Random) -> dict[str, Any]:
    """Return a random record of the schema."""

    def word() -> str | None:
        return dice.choice(WORDS)

    def some(make: Callable[[], Any], maximum: int = 3) -> list[Any]:
        return [make() for _ in range(dice.randrange(maximum + 1))]

    def maybe(make: Callable[[], Any]) -> Any:
        return dice.choice((None, make(), make()))

    def scaled() -> dict[str, Any]:
        number = dice.choice((0, 5, 12345, 99999999, 1 << 70))
        return {
            "scale": dice.choice((0, 2, 3, 5)),
            "value": number.to_bytes(number.bit_length() // 8 + 1, "big"),
        }

    local = datetime(2026, dice.choice((2, 3, 10)), 28, dice.randrange(24), 30, 7)
    return {
        "id": f"e-{dice.randrange(10**6)}",
        "at": int(NOW * 1000) - 5,
        "kind": dice.choice(("web", "app")),
        "params": maybe(lambda: some(lambda: {
            "key": dice.choice((None, "page", "page.x", "ref", "None")),
            "value": maybe(lambda: {"text": word(), "number": maybe(lambda: dice.randrange(99))})}, 5)),
        "numbered": some(lambda: {"id": dice.randrange(9), "text": dice.choice("xyz")}, 6),
        "attributes": {key: word() for key in ("a", "com.shop.epik", "it's", "x") if dice.random() < 0.6},
        "total": maybe(scaled),
        "rate": dice.choice((None, 0.0, 0.5, 3.0, "2.5", "x", "", "1000")),
        "billing": word(),
        "shipping": maybe(lambda: some(word)),
        "paid_s": maybe(lambda: int(NOW) - dice.randrange(10**5)),
        "made_us": maybe(lambda: int(NOW * 1e6) - dice.randrange(10**11)),
        "local": dice.choice((None, local.isoformat(), local.isoformat() + "+05:30", local.isoformat() + "Z", "soon")),
        "grid": maybe(lambda: some(lambda: maybe(lambda: some(word)))),
        "big": maybe(lambda: dice.choice((0, 1, -7, 2**53 + 1, 2**63 - 1, -(2**63)))),
        "digits": dice.choice((None, "", "0.1", "9" * 60, "1e-20", "1e999", "-3.5", "1,5", "NaN", "٣")),
        "clock": maybe(lambda: int((local.replace(tzinfo=UTC)).timestamp() * 1000)),
        "by_id": {str(at): {"sku": word(), "price": maybe(scaled)} for at in range(dice.randrange(4))},
        "lines": some(lambda: maybe(lambda: {
            "sku": word(), "options": some(lambda: {"name": dice.choice(("size", "colour")), "value": word()})}), 4),
    }  # fmt: skip


# -- the conversion of this module's own: small, slow, and without the product's functions


def present(value: Any) -> bool:
    """Return whether this is a value for the author of a mapping."""
    return value is not None and not (isinstance(value, str) and not value.strip())


def found(elements: list[dict[str, Any]] | None, by: str, text: str) -> dict[str, Any]:
    """Return the first element whose field has this text; an empty one if there is none."""
    for element in elements or []:
        if element[by] is not None and str(element[by]) == text:
            return element
    return {}


def decimal(scaled: Any) -> Decimal | None:
    """Return the number of a VariableScaleDecimal."""
    if scaled is None:
        return None
    return Decimal(int.from_bytes(scaled["value"], "big")) / Decimal(10) ** int(scaled["scale"])


def text(value: Any) -> str | None:
    """Return the text that is sent; None if nothing is."""
    return str(value) if present(value) else None


def digests(*values: Any) -> list[str] | None:
    """Return the digests of external ids, without repetition; None if there is none."""
    sent = [hashlib.sha256(str(one).strip().lower().encode()).hexdigest() for one in values if present(one)]
    return list(dict.fromkeys(sent)) or None


def seconds(moment: datetime | None) -> int | None:
    """Return whole seconds since 1970."""
    return None if moment is None else int(moment.timestamp() // 1)


def berlin(value: str | None) -> datetime | None:
    """Return the moment of text that may name its zone; None for text that is no time."""
    if value is None or value == "soon":
        return None
    at = datetime.fromisoformat(value)
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo("Europe/Berlin"))


def number(value: Any) -> Decimal | None:
    """Return a number, also of text; None if it is none."""
    try:
        return None if value is None else Decimal(str(value))
    except ArithmeticError:
        return None


def first(*values: Any) -> Any:
    """Return the first of these that is a value."""
    return next((value for value in values if present(value)), None)


def lines(event: dict[str, Any], make: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return the items that are sent, made of the order's lines."""
    items = [
        {key: value for key, value in make(one).items() if value is not None} for one in event["lines"] if one
    ]
    return [item for item in items if item] or None


def of_first_list(event: dict[str, Any]) -> Any:
    """Return what is sent of the items of the first list that has any: the items, their ids, and how many they are."""
    sent: dict[str, Any] = {"currency": "EUR"}
    order = [one for one in event["lines"] if one]
    given = [
        (one["sku"], found(one["options"], "name", "size").get("value"), len(one["options"])) for one in order
    ] or [
        (one["sku"], f"{one['sku']}-{event['id']}" if present(one["sku"]) else None, 0)
        for one in event["by_id"].values()
    ]
    items = [{"id": sku, "item_name": name, "quantity": size} for sku, name, size in given]
    sent["contents"] = [{key: value for key, value in one.items() if present(value)} for one in items]
    sent["content_ids"] = [sku for sku, _, _ in given if present(sku)]
    if given:
        sent["num_items"] = sum(size for _, _, size in given)
    return {key: value for key, value in sent.items() if value not in ([], None)}


def amounts(*values: Any) -> list[Decimal] | None:
    """Return numbers, also of text in ASCII; None if one is none, or longer than an amount may be."""
    found = [number(one) if str(one).isascii() else None for one in values]
    kept = [one for one in found if one is not None and one.is_finite() and abs(one.adjusted()) < 64]
    return kept if len(kept) == len(values) else None


def total(augend: Any, addend: Any, times: int = 1) -> str | None:
    """Return augend + times · addend with all its digits; None if one is no amount."""
    found = amounts(augend, addend)
    return None if found is None else format(EXACT.fma(found[1], Decimal(times), found[0]), "f")


def plain(text: str, *values: Any) -> str | None:
    """Return the texts of all values, joined; None if one is missing."""
    return text.join(map(str, values)) if all(map(present, values)) else None


Expected = Callable[[dict[str, Any], dict[str, Any]], Any]
_NAME, _ID, _ITEM = "custom_data.content_name", "user_data.external_id", "custom_data.contents[].item_name"
_INSTALLED, _TOTAL, _CUSTOM = "app_info.install_time", "custom_data.predicted_ltv", "custom_data"

# The field, its line in the mapping, and what is sent.
ROWS: dict[str, tuple[str, str, Expected]] = {
    "find": (_NAME, "\"params[key='page'].value.text\"",
        lambda e, k: text((found(e["params"], "key", "page").get("value") or {}).get("text"))),
    "find a key that holds a dot": (_NAME, "\"params[key='page.x'].value.number\"",
        lambda e, k: text((found(e["params"], "key", "page.x").get("value") or {}).get("number"))),
    "find what is no null": (_NAME, "\"params[key='None'].value.text\"",
        lambda e, k: text((found(e["params"], "key", "None").get("value") or {}).get("text"))),
    "find by a number": (_NAME, "'numbered[id=\"7\"].text'",
        lambda e, k: text(found(e["numbered"], "id", "7").get("text"))),
    "find in a first": (_NAME, "{ first = [\"params[key='page'].value.text\", \"params[key='ref'].value.number\"] }",
        lambda e, k: text(first((found(e["params"], "key", "page").get("value") or {}).get("text"),
                                (found(e["params"], "key", "ref").get("value") or {}).get("number")))),
    "find in items": (_ITEM, "\"lines[].options[name='size'].value\"",
        lambda e, k: lines(e, lambda one: {"item_name": text(found(one["options"], "name", "size").get("value"))})),
    "a key that holds a dot": (_NAME, "\"attributes['com.shop.epik']\"",
        lambda e, k: text(e["attributes"].get("com.shop.epik"))),
    "a key that holds a quote": (_NAME, '"attributes[\\"it\'s\\"]"', lambda e, k: text(e["attributes"].get("it's"))),
    "the values of a map": (_ID, '"attributes[]"', lambda e, k: digests(*e["attributes"].values())),
    "the values of a map as items": (_ITEM, '"by_id[].sku"',
        lambda e, k: [{"item_name": text(one["sku"])} for one in e["by_id"].values() if present(one["sku"])] or None),
    "a decimal of any scale in items": ("custom_data.contents[].item_price", '"by_id[].price"',
        lambda e, k: [{"item_price": decimal(one["price"])} for one in e["by_id"].values() if one["price"]] or None),
    "a decimal of any scale": (_TOTAL, '"total"', lambda e, k: decimal(e["total"])),
    "a sum over a map": (_TOTAL, '{ sum = { first = ["by_id[].price", { value = 0 }] } }',
        lambda e, k: sum((decimal(one["price"]) or Decimal(0) for one in e["by_id"].values()), Decimal(0))
        if e["by_id"] else None),
    "all": (_ID, '{ all = ["billing", "shipping", "lines[].sku"] }',
        lambda e, k: digests(e["billing"], *(e["shipping"] or []), *(one["sku"] for one in e["lines"] if one))),
    "the first of two lists": (_ID, '{ first = ["shipping", "lines[].sku"] }',
        lambda e, k: digests(*(e["shipping"] or [])) or digests(*(one["sku"] for one in e["lines"] if one))),
    "the ids of two lists": ("custom_data.content_ids", '{ all = ["lines[].sku", "by_id[].sku"] }',
        lambda e, k: [*(one["sku"] for one in e["lines"] if one and present(one["sku"])),
                      *(one["sku"] for one in e["by_id"].values() if present(one["sku"]))] or None),
    "items of the first of two lists": (_ITEM, '{ first = ["lines[].sku", "by_id[].sku"] }',
        lambda e, k: lines(e, lambda one: {"item_name": text(one["sku"])}) if any(e["lines"]) else
        [{"item_name": one["sku"]} for one in e["by_id"].values() if present(one["sku"])] or None),
    "items of two lists, and what follows from them": (f"{_ITEM} {_CUSTOM}",
        '{ first = ["lines[].options[name=\'size\'].value", { join = ["by_id[].sku", "id"], with = "-" }] }\n'
        '"custom_data.contents[].id" = { first = ["lines[].sku", "by_id[].sku"] }\n'
        '"custom_data.contents[].quantity" = { count = "lines[].options" }',
        lambda e, k: of_first_list(e)),
    "lists in a list": (_ID, '"grid[][]"',
        lambda e, k: digests(*(word for row in e["grid"] or [] for word in row or []))),
    "a list in a list": (_ID, '"grid[-1][]"', lambda e, k: digests(*((e["grid"] or [None])[-1] or []))),
    "one of lists in a list": (_NAME, '"grid[0][1]"',
        lambda e, k: text((*((e["grid"] or [None])[0] or []), None, None)[1])),
    "all lists in a list": (_ID, '{ all = ["grid[][]", "grid[0][]", "shipping"] }',
        lambda e, k: digests(*(word for row in e["grid"] or [] for word in row or []),
                             *((e["grid"] or [None])[0] or []), *(e["shipping"] or []))),
    "count lists": ("custom_data.num_items", '{ count = "grid" }',
        lambda e, k: sum(row is not None for row in e["grid"] or [])),
    "count in lists": ("custom_data.num_items", '{ count = "grid[][]" }',
        lambda e, k: sum(word is not None for row in e["grid"] or [] for word in row or [])),
    "join": (_NAME, '{ join = ["billing", "big", "kind"], with = "·" }',
        lambda e, k: plain("·", e["billing"], e["big"], e["kind"])),
    "table": (_NAME, '{ of = "billing", table = { "größe" = "size", "𝔘👜" = "bag", "7" = "7" }, otherwise = "?" }',
        lambda e, k: {"größe": "size", "𝔘👜": "bag", "7": "7"}.get(e["billing"], "?")
        if present(e["billing"]) else None),
    "add": (_NAME, '{ join = [{ add = ["big", "digits"] }, "id"], with = "=" }',
        lambda e, k: plain("=", total(e["big"], e["digits"]), e["id"])),
    "subtract": (_NAME, '{ join = [{ subtract = ["digits", "big"] }, "id"], with = "=" }',
        lambda e, k: plain("=", total(e["digits"], e["big"], -1), e["id"])),
    "multiply": (_NAME, '{ join = [{ multiply = ["big", "big", "big"] }, "id"], with = "=" }',
        lambda e, k: plain("=", e["big"] and e["big"] ** 3, e["id"])),
    "count": ("custom_data.num_items", '{ count = "lines" }', lambda e, k: sum(map(bool, e["lines"]))),
    "count values": ("custom_data.num_items", '{ count = "lines[].options[].value" }',
        lambda e, k: sum(option["value"] is not None for one in e["lines"] if one for option in one["options"])),
    "count a map": ("custom_data.num_items", '{ count = "by_id[]" }', lambda e, k: len(e["by_id"])),
    "count in items": (_ITEM, '{ count = "lines[].options" }\n"custom_data.contents[].id" = "lines[].sku"',
        lambda e, k: lines(e, lambda one: {"id": text(one["sku"]), "item_name": str(len(one["options"]))})),
    "a unit of time": (_INSTALLED, '{ time = "paid_s", unit = "seconds" }', lambda e, k: e["paid_s"]),
    "times of two units": (_INSTALLED,
        '{ first = [{ time = "paid_s", unit = "seconds" }, { time = "made_us", unit = "microseconds" }] }',
        lambda e, k: first(e["paid_s"], None if e["made_us"] is None else e["made_us"] // 10**6)),
    "a zone": (_INSTALLED, '{ time = "local", zone = "Europe/Berlin" }', lambda e, k: seconds(berlin(e["local"]))),
    "a zone of a local time": (_INSTALLED, '{ time = "clock", zone = "Europe/Berlin" }',
        lambda e, k: None if e["clock"] is None else seconds(
            datetime.fromtimestamp(e["clock"] / 1000, UTC).replace(tzinfo=ZoneInfo("Europe/Berlin")))),
    "a zone and a unit": (_INSTALLED, '{ time = "paid_s", unit = "seconds", zone = "+02:00" }',
        lambda e, k: None if e["paid_s"] is None else e["paid_s"] - 7200),
    "greater": (_NAME, '{ path = "id", when = { rate = { greater = 0.5 } } }',
        lambda e, k: e["id"] if (number(e["rate"]) or 0) > Decimal("0.5") else None),
    "greater and less": (_NAME, '{ path = "id", when = { "rate" = { greater = 0, less = 3 } } }',
        lambda e, k: e["id"] if 0 < (number(e["rate"]) or 0) < 3 else None),
    "greater, of a decimal of any scale": (_NAME, '{ path = "id", when = { total = { greater = 123 } } }',
        lambda e, k: e["id"] if (decimal(e["total"]) or 0) > 123 else None),
    "missing": (_NAME, '{ path = "id", when = { billing = { missing = true } } }',
        lambda e, k: None if present(e["billing"]) else e["id"]),
    "not missing, in a list": (_NAME, '{ path = "id", when = { shipping = { missing = false } } }',
        lambda e, k: e["id"] if any(map(present, e["shipping"] or [])) else None),
    "missing, of a key of a map": (_NAME, '{ path = "id", when = { attributes.a = { missing = true } } }',
        lambda e, k: None if present(e["attributes"].get("a")) else e["id"]),
    "missing, of a header": (_NAME, '{ path = "id", when = { "@header.ce_type" = { missing = true } } }',
        lambda e, k: None if present(k["headers"].get("ce_type")) else e["id"]),
    "begins with": (_NAME, '{ path = "id", when = { billing = { begins_with = "GIFT-" }, kind = "web" } }',
        lambda e, k: e["id"] if (e["billing"] or "").startswith("GIFT-") and e["kind"] == "web" else None),
    "@key": (_NAME, '"@key"', lambda e, k: text(k["key"])),
    "a field of an Avro key": (_NAME, '"@key.customer"', lambda e, k: text(k["fields"].get("customer"))),
    "a key in a join": (_NAME, '{ join = ["@key.shop", "id"], with = ":" }',
        lambda e, k: f"{k['fields']['shop']}:{e['id']}" if k["fields"] else None),
    "@header": (_NAME, '"@header.ce_type"', lambda e, k: text(k["headers"].get("ce_type"))),
    "a header whose name holds dots": (_NAME, '"@header.x.y-z"', lambda e, k: text(k["headers"].get("x.y-z"))),
    "@timestamp": (_INSTALLED, '"@timestamp"', lambda e, k: None if k["ms"] < 0 else k["ms"] // 1000),
    "@timestamp after a path": (_INSTALLED,
        '{ first = [{ time = "paid_s", unit = "seconds" }, { time = "@timestamp" }] }',
        lambda e, k: first(e["paid_s"], None if k["ms"] < 0 else k["ms"] // 1000)),
    "@topic, @partition and @offset": (_NAME, '{ join = ["@topic", "@partition", "@offset"], with = "/" }',
        lambda e, k: f"web.orders/3/{k['offset']}"),
    "a header in a condition": (_NAME, '{ path = "id", when = { "@header.ce_type" = ["paid"] } }',
        lambda e, k: e["id"] if k["headers"].get("ce_type") == "paid" else None),
}  # fmt: skip

PLACE = ("web.orders", 3)
KEY, TEXT_KEY = SchemaRef("id", "70001"), SchemaRef("id", "70002")


def kafka(
    dice: random.Random, offset: int
) -> tuple[dict[str, Any], bytes | None, list[tuple[str, bytes | None]]]:
    """Return what a record has in Kafka as the expectations take it, its key's bytes, and its headers."""
    fields: dict[str, Any] = {"customer": dice.choice((None, "", "c-7")), "shop": dice.randrange(9)}
    shop = bytes((fields["shop"] * 2,))
    customer = b"\x00" if fields["customer"] is None else b"\x02" + bytes((2 * len(fields["customer"]),))
    framed = framing_of(KEY) + customer + (fields["customer"] or "").encode() + shop
    key, value, has = dice.choice(
        (
            (None, None, {}),
            (b"", None, {}),
            (b"c-9", "c-9", {}),
            ("größe".encode(), "größe", {}),
            ((4711).to_bytes(4, "big"), 4711, {}),
            ((-4711).to_bytes(8, "big", signed=True), -4711, {}),
            (bytes(16), None, {}),
            (b"\xff\xfe", None, {}),
            (framing_of(TEXT_KEY) + b"\x06abc", "abc", {}),
            (framed, None, fields),
            (framed, None, fields),
        )
    )
    names = ("ce_type", "ce_type", "x.y-z", "other")
    headers = [
        (name, dice.choice((None, b"", b"paid", "größe".encode(), b"\xff")))
        for name in names
        if dice.random() < 0.7
    ]
    last = {name: None if content == b"\xff" else (content or b"").decode() for name, content in headers}
    ms = dice.choice((-1, 0, int(NOW * 1000) - 123, int(NOW * 1000) + 999))
    return {"key": value, "fields": has, "headers": last, "ms": ms, "offset": offset}, key, headers


def sent(body: bytes, field: str) -> Any:
    """Return the value of a field in the event; numbers of any form as decimals."""
    value = orjson.loads(body)
    for name in field.partition("[]")[0].split("."):
        value = value.get(name, {})
    if field.endswith("item_price"):
        return [{"item_price": Decimal(one["item_price"])} for one in value] or None
    if field == _TOTAL:
        return Decimal(value) if value else None
    return value if value != {} else None


@pytest.mark.parametrize("name", ROWS)
def test_each_gives_what_the_table_says_in_both_executors(name: str) -> None:
    """Each source and operator gives what this module computes, and no executor leaves a record to another."""
    fields, line, expected = ROWS[name]
    mapped, _, read = fields.partition(" ")
    field = read or mapped
    both = Both((SCHEMA, BASE.format(fields=f'"{mapped}" = {line}')))
    for ref, schema in ((KEY, KEY_SCHEMA), (TEXT_KEY, "string")):
        for decoder in (both.decoder, both.whole):
            decoder.add_schema(ref, schema)  # no value's schema: its verdict is of no interest
    dice = random.Random(name)
    records, meant = [], []
    for offset in range(300):
        event = made(dice)
        origin, key, headers = kafka(dice, offset)
        value = both.value(event)
        assert value is not None
        records.append(Record(offset, origin["ms"], key, value, tuple(headers)))
        meant.append(expected(event, origin))
    alone = Alone(both)
    readings: list[Any] = [both.two_steps, both.trimmed, both.compiled, *([alone] if both.function else [])]
    for reading in readings:
        columns = Columns(Keys())
        reading.read(records, NOW, columns, *PLACE)
        assert not columns.verdicts
        assert [sent(columns.body(row)[:-1], field) for row in range(len(records))] == meant
    assert alone.in_two_steps == 0
    assert len(set(map(str, meant))) > 1, "the records do not tell the rows apart"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"\"{_NAME}\" = \"params[kye='page'].value.text\"",
         "'params[].kye' is not in the schema; the nearest that is: 'params[].key'"),
        (f"\"{_NAME}\" = \"params[value.text='x'].key\"", None),
        (f"\"{_NAME}\" = \"params[value='x'].key\"", "'params[].value' is a record: name one of its fields"),
        (f'"{_NAME}" = "params[key=page].value.text"', "[name='size'] for the one whose name is size"),
        (f"\"{_NAME}\" = \"params[key='page']\"", "\"params[key='page']\" is a record: name one of its fields"),
        (
            f"\"{_NAME}\" = \"params[key='page'].valu.text\"",
            "the nearest that is: \"params[key='page'].value.text\"",
        ),
        (f"\"{_NAME}\" = \"total[scale='2'].value\"", "'total' is no list"),
        (f'"{_NAME}" = "attributes[0]"', "'attributes' is a map: name one of its keys"),
        (f'"{_NAME}" = "attributes"', "'attributes' is a map: name one of its keys: attributes.<key>"),
        (f'"{_NAME}" = "attributes.com.shop.epik"', "the nearest that is: \"attributes['com.shop.epik']\""),
        ('event_id = { all = ["billing", "shipping"] }', "name paths to one value, as lines[0], in { first = [...] }"),
        (f'"{_ID}" = ["billing", "shipping"]', "{ all = [...] } the values of all"),
        (f'"{_ITEM}" = {{ all = ["lines[].sku", "billing"] }}', "all may give several values of one item"),
        (f'"{_NAME}" = {{ count = "billing" }}', "'billing' is no list: name a list, or a path through one"),
        (f'"{_NAME}" = {{ count = ["lines"] }}', "count must be a path in quotes"),
        (f'"{_INSTALLED}" = {{ time = "paid_s", unit = "second" }}', "unit is one of 'seconds', 'milliseconds',"),
        (f'"{_INSTALLED}" = {{ time = "local", zone = "Europe/Berlinn" }}', "zone 'Europe/Berlinn' is not known here"),
        (f'"{_INSTALLED}" = {{ time = "local", zone = "+25:00" }}', "zone '+25:00' is not known here"),
        (f'"{_INSTALLED}" = {{ time = "at", unit = "seconds" }}', "its unit is known: remove unit"),
        (f'"{_INSTALLED}" = {{ time = "at", zone = "UTC" }}', "the same in all zones: remove zone"),
        (f'"{_INSTALLED}" = {{ time = {{ first = ["at", "paid_s"] }} }}', "put a time around each of its parts"),
        (f'"{_INSTALLED}" = {{ first = ["paid_s", "@timestamp"] }}',
         'write { time = "<path>" } around each, with unit'),
        (f'"{_NAME}" = {{ path = "id", when = {{ rate = {{ greater = true }} }} }}',
         "greater takes a number, but True"),
        (f'"{_NAME}" = {{ path = "id", when = {{ rate = {{ greater = nan }} }} }}', "greater takes a number, but nan"),
        (f'"{_NAME}" = {{ path = "id", when = {{ rate = {{ greter = 1, less = 2 }} }} }}', "the nearest is 'greater'"),
        (f'"{_NAME}" = {{ path = "id", when = {{ kind = {{ less = 1 }} }} }}',
         "less takes a number, but 'kind' is enum"),
        (f'"{_NAME}" = {{ path = "id", when = {{ rate = {{ begins_with = "" }} }} }}', "takes text, but '' is none"),
        (f'"{_NAME}" = {{ path = "id", when = {{ rate = {{}} }} }}', "when: 'rate' has nothing to compare with"),
        (f'"{_NAME}" = {{ path = "id", when = {{ total = {{ greater = 5, less = 5 }} }} }}', "no number at 'total' is"),
        ('event_id = { value = "x" }', "every event has its own: name a path"),
        (f'"{_NAME}" = {{ path = "id", when = {{ billing = {{ missing = 1 }} }} }}', "takes true or false, but 1 is"),
        (f'"{_NAME}" = {{ path = "id", when = {{ attributes = {{ missing = true }} }} }}',
         "'attributes' is a map: name one of its keys: attributes.<key>"),
        (f'"{_NAME}" = {{ path = "id", when = {{ shipping = {{ begins_with = "a" }} }} }}',
         "'shipping' may give several"),
        ('event_id = "@offset"', "'@offset' comes again when a topic is created again under its name, and new orders"),
        ('event_id = { first = [{ join = ["@topic", "id"] }, "id"] }', "'@topic' comes again when a topic is created"),
        ('event_id = { path = "id", when = { "@topic" = "web" } }', None),
        (f'"{_NAME}" = "@keys"', "'@keys' is nothing that a record has in Kafka; the nearest is '@key'"),
        (f'"{_NAME}" = "@header"', "the nearest is '@header.<name>'"),
        (f'"{_NAME}" = "@topic.x"', "the nearest is '@topic'"),
        (f'"{_NAME}" = "@key."', "'@key.' is nothing that a record has in Kafka; the nearest is '@key'"),
        (f'"{_NAME}" = "@key.a."', "'@key.a.' is not a path: write names separated by dots"),
        (f'"{_NAME}" = "@offset."', "'@offset.' is nothing that a record has in Kafka; the nearest is '@offset'"),
        (f'"{_NAME}" = "@key.list[]"', "'@key.list[]' is nothing that a record has in Kafka; known: '@key'"),
        (f'"{_NAME}" = "@header.pinstream.code"', "pinstream's own header of a dead letter: no record has it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_names_path_and_remedy(line: str, message: str | None) -> None:
    """What the schema cannot give, and an id that a recreated topic repeats, is one line at start."""
    overlay = BASE.format(fields=line)
    if line.startswith("event_id"):
        overlay = overlay.replace('event_id = "id"\n', "", 1)
    if message is None:
        load_mapping(overlay, SCHEMA, default_toml=DEFAULT)
        return
    with pytest.raises(MappingError) as error:
        load_mapping(overlay, SCHEMA, default_toml=DEFAULT)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["@topic", "@partition", "@offset"])
def test_no_key_is_made_of_what_a_recreated_topic_repeats(source: str) -> None:
    """Under such a key new orders would be duplicates, so it is refused; the key and headers are accepted."""
    for key, is_refused in (
        (f'{{ join = ["{source}", "id"] }}', True),
        ('{ join = ["@key", "@header.id"] }', False),
    ):
        overlay = f"{BASE.format(fields='')}\n[dedup]\nkey = {key}"
        if not is_refused:
            load_mapping(overlay, SCHEMA, default_toml=DEFAULT)
            continue
        with pytest.raises(
            MappingError, match=rf"\[dedup\] key: '{source}' comes again when a topic is created"
        ):
            load_mapping(overlay, SCHEMA, default_toml=DEFAULT)
