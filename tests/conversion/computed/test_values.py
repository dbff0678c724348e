"""Computed values: what each operator gives, how they nest, and what records they refuse."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.conversion.layout import ComputedAt
from consumer.conversion.program import make_program
from consumer.engine.model import ConversionEvent, Filtered, Record, Rejection
from tests.conversion.convert_records import shaped
from tests.conversion.test_compiled import Both, plan_of
from tests.conversion.test_convert import NOW
from tests.support import avro

_TEXT = ["null", "string"]
_MONEY = avro.decimal(12, 2)
_MILLIS = avro.logical("long", "timestamp-millis")
_TAX = avro.record("Tax", avro.optional("amount", "double"))
_LINE = avro.record(
    "Line",
    avro.optional("sku", "string"), avro.optional("size", "string"), avro.optional("kind", "int"),
    avro.optional("price", _MONEY, "string"), avro.optional("pieces", "int"), avro.optional("discount", "double"),
    avro.field("taxes", avro.array(_TAX), default=[]),
)  # fmt: skip
_BUYER = avro.record(
    "Buyer",
    avro.optional("email", "string"), avro.optional("login", "string"),
    avro.field("mails", avro.array(_TEXT), default=[]), avro.field("tags", avro.map_of(_TEXT), default={}),
)  # fmt: skip
SHOP: dict[str, Any] = {"namespace": "com.shop", **avro.record(
    "Shop",
    avro.optional("id", "string", "long"), avro.optional("type", "string"), avro.optional("sub", "string"),
    avro.optional("at", _MILLIS), avro.optional("paid_at", _MILLIS),
    avro.optional("micros", avro.logical("long", "timestamp-micros")),
    avro.optional("country", "string"), avro.optional("dept", "int"),
    avro.optional("tier", avro.enum("Tier", "GOLD", "TIN")), avro.optional("rate", "double", "string"),
    avro.optional("shipping", _MONEY), avro.optional("ads", "boolean"), avro.optional("terms", "boolean", "string"),
    avro.optional("buyer", _BUYER), avro.optional("lines", avro.array(["null", _LINE])),
    avro.field("fees", avro.array(["null", "double"]), default=[]),
)}  # fmt: skip

# Price times quantity less discount, summed over all lines.
TOTAL = (
    '{ sum = { subtract = [{ multiply = ["lines[].price", "lines[].pieces"] }, '
    '{ first = ["lines[].discount", { value = 0 }] }] } }'
)
BASE = """
time_unit = "milliseconds"
[fields]
event_id = "id"
event_name = "type"
event_time = "at"
action_source = ""
"user_data.em" = "buyer.email"
"custom_data.contents[].id" = "lines[].sku"
"custom_data.contents[].quantity" = "lines[].pieces"
"""
CONSTANTS = """
[constants]
action_source = "web"
"custom_data.currency" = "EUR"
"user_data.client_ip_address" = "93.184.216.34"
"user_data.client_user_agent" = "Mozilla/5.0"
"""


def mapping_of(fields: str, rest: str = "", base: str = BASE) -> str:
    """Return a mapping with these lines in [fields], and these tables after it."""
    kept = [
        line
        for line in base.splitlines()
        if line.split(" = ")[0] not in {said.split(" = ")[0] for said in fields.splitlines()}
    ]
    return "\n".join([*kept, fields, CONSTANTS, rest])


def both_of(fields: str, rest: str = "") -> Both:
    """Return both executors under such a mapping."""
    return Both((SHOP, mapping_of(fields, rest)))


def record(**values: Any) -> dict[str, Any]:
    """Return a deliverable record with these values."""
    given: dict[str, Any] = {"id": "e-1", "type": "checkout", "at": int(NOW * 1000) - 5, **values}
    defaults = {field["name"]: field["default"] for field in SHOP["fields"]}
    return {**defaults, **given}


def line(**values: Any) -> dict[str, Any]:
    """Return a line of an order."""
    empty = dict.fromkeys(("size", "kind", "discount"))
    return {"sku": "A", **empty, "price": Decimal("1.00"), "pieces": 1, "taxes": [], **values}


def buyer(**values: Any) -> dict[str, Any]:
    """Return a buyer with these values."""
    return {"email": None, "login": None, "mails": [], "tags": {}, **values}


def converted(both: Both, event: dict[str, Any]) -> Any:
    """Return the result of both executors, neither of which may leave the record to the other."""
    value = both.value(event)
    assert value is not None
    both.check(value)
    assert both.alone(value) is not None
    return both.converter.convert(both.decoder.decode(_record(value)), NOW)  # type: ignore[arg-type]  # a record is decoded


def _record(value: bytes) -> Record:
    return Record(0, -1, None, value, ())


def sent(fields: str, name: str, event: dict[str, Any], rest: str = "") -> Any:
    """Return what is sent as this field; None if nothing is."""
    result = converted(both_of(fields, rest), event)
    assert isinstance(result, ConversionEvent), result
    found: Any = result.payload
    for key in name.split("."):
        found = found.get(key, {}) if isinstance(found, dict) else None
    return found if found != {} else None


VALUE = "custom_data.value"
CATEGORY = "custom_data.content_category"


@pytest.mark.parametrize(
    ("said", "event", "expected"),
    [
        ('{ first = ["buyer.email", "buyer.login"] }', {"buyer": buyer(email="a", login="b")}, "a"),
        ('{ first = ["buyer.email", "buyer.login"] }', {"buyer": buyer(email=" ", login="b")}, "b"),
        ('{ first = ["buyer.email", "country"] }', {"country": "DE"}, "DE"),
        ('{ first = ["buyer.email", "country"] }', {}, None),
        ('{ first = ["country", { value = "none" }] }', {}, "none"),
        ('"lines[0].sku"', {"lines": [line(sku="x"), line(sku="y")]}, "x"),
        ('"lines[-1].sku"', {"lines": [line(sku="x"), line(sku="y")]}, "y"),
        ('"lines[2].sku"', {"lines": [line(sku="x"), line(sku="y")]}, None),
        ('"lines[-3].sku"', {"lines": [line(sku="x"), line(sku="y")]}, None),
        ('"lines[0].sku"', {"lines": [None, line(sku="y")]}, None),
        ('"lines[0].sku"', {"lines": []}, None),
        ('"lines[0].sku"', {}, None),
        ('"buyer.mails[1]"', {"buyer": buyer(mails=["a", "b"])}, "b"),
        ('{ join = ["country", "type", "dept"], with = ":" }', {"country": "DE", "dept": 4}, "DE:checkout:4"),
        ('{ join = ["country", "type"] }', {"country": "DE"}, "DEcheckout"),
        ('{ join = ["country", "type"] }', {"country": " "}, None),
        ('{ join = ["country", "type"] }', {}, None),
        ('{ of = "dept", table = { "1" = "shoes", "-2" = "hats" } }', {"dept": 1}, "shoes"),
        ('{ of = "dept", table = { "1" = "shoes", "-2" = "hats" } }', {"dept": -2}, "hats"),
        ('{ of = "dept", table = { "1" = "shoes" } }', {"dept": 3}, None),
        ('{ of = "dept", table = { "1" = "shoes" }, otherwise = "other" }', {"dept": 3}, "other"),
        ('{ of = "dept", table = { "1" = "shoes" }, otherwise = "other" }', {}, None),
        ('{ of = "ads", table = { true = "yes", false = "no" } }', {"ads": False}, "no"),
        ('{ of = "tier", table = { GOLD = "1" }, otherwise = "2" }', {"tier": "GOLD"}, "1"),
        ('{ of = "country", table = { DE = "Germany" } }', {"country": " DE "}, "Germany"),
        ('{ path = "country", when = { dept = [1, 2] } }', {"country": "DE", "dept": 2}, "DE"),
        ('{ path = "country", when = { dept = [1, 2] } }', {"country": "DE", "dept": 3}, None),
        ('{ path = "country", when = { rate = 1 } }', {"country": "DE", "rate": 1.0}, "DE"),
        ('{ path = "country", when = { rate = 0.1 } }', {"country": "DE", "rate": 0.1}, "DE"),
        ('{ path = "country", when = { ads = true } }', {"country": "DE", "ads": True}, "DE"),
        ('{ path = "country", when = { buyer.tags.vip = "y" } }',
         {"country": "DE", "buyer": buyer(tags={"vip": "y"})}, "DE"),
        ('{ path = "country", when = { ads = true, dept = 1 } }', {"country": "DE", "ads": True}, None),
        ('{ path = "country", when_event = "checkout" }', {"country": "DE"}, "DE"),
        ('{ path = "country", when_event = ["search"] }', {"country": "DE"}, None),
        ('{ value = "x", when = { "lines[0].sku" = "A" } }', {"lines": [line()]}, "x"),
        ('{ first = [{ value = "a", when = { tier = "TIN" } }, { value = "b", when = { dept = 1 } }, "country"] }',
         {"dept": 1}, "b"),
        ('{ join = [{ of = "dept", table = { "1" = "one" } }, "country"], with = "/" }',
         {"dept": 1, "country": "DE"}, "one/DE"),
    ],
)  # fmt: skip
def test_text(said: str, event: dict[str, Any], expected: str | None) -> None:
    """The first alternative with a value, one element, joined parts, tables and conditions give text."""
    assert sent(f'"{CATEGORY}" = {said}', CATEGORY, record(**event)) == expected


@pytest.mark.parametrize(
    ("said", "event", "expected"),
    [
        ('{ add = ["shipping", "rate"] }', {"shipping": Decimal("4.90"), "rate": 0.1}, "5.00"),
        ('{ add = ["shipping", "rate"] }', {"shipping": Decimal("4.90"), "rate": "0.105"}, "5.005"),
        ('{ subtract = ["shipping", "rate", { value = "0.5" }] }', {"shipping": Decimal("4.90"), "rate": 0.1},
         "4.30"),
        ('{ multiply = ["shipping", { value = 0.19 }] }', {"shipping": Decimal("4.90")}, "0.9310"),
        ('{ add = ["shipping", "rate"] }', {"shipping": Decimal("4.90")}, None),
        ('{ add = ["shipping", "rate"] }', {"shipping": Decimal("4.90"), "rate": " "}, None),
        ('{ add = ["shipping", { first = ["rate", { value = 0 }] }] }', {"shipping": Decimal("4.90")}, "4.90"),
        ('{ sum = "fees[]" }', {"fees": [0.1, 0.2, None]}, "0.3"),
        ('{ sum = "fees" }', {"fees": [0.1]}, "0.1"),
        ('{ sum = "fees[]" }', {"fees": []}, None),
        ('{ sum = "lines[].price" }', {"lines": [line(), line(price="2.5"), None]}, "3.50"),
        ('{ sum = "lines[].price" }', {"lines": [line(), line(price=None)]}, None),
        ('{ sum = "lines[].taxes[].amount" }', {"lines": [line(taxes=[{"amount": 0.1}, {"amount": 0.2}]), line()]},
         "0.3"),
        ('{ sum = { multiply = ["lines[].price", "lines[].pieces"] } }', {"lines": [line(pieces=3), line()]}, "4.00"),
        ('{ sum = { multiply = ["lines[].price", "rate"] } }', {"lines": [line(pieces=3), line()], "rate": 0.5},
         "1.000"),
        ('{ sum = { multiply = ["lines[].price", { sum = "lines[].taxes[].amount" }] } }',
         {"lines": [line(taxes=[{"amount": 0.1}, {"amount": 0.2}])]}, "0.300"),
        ('{ sum = { path = "lines[].price", when = { "lines[].kind" = 1 } } }', {"lines": [line(kind=1)]}, "1.00"),
        ('{ add = [{ sum = "lines[].price" }, "shipping"] }', {"lines": [line()], "shipping": Decimal("4.90")},
         "5.90"),
        (TOTAL, {"lines": [line(price="29.95", pieces=2, discount=5.5), line(price="0.10", pieces=3)]}, "54.70"),
        ('{ path = "shipping", when_event = ["checkout", "search"] }', {"shipping": Decimal("4.90")}, "4.90"),
    ],
)  # fmt: skip
def test_numbers(said: str, event: dict[str, Any], expected: str | None) -> None:
    """Arithmetic is decimal and exact with all places, and a missing operand gives no value."""
    assert sent(f'"{VALUE}" = {said}', VALUE, record(**event)) == expected


@pytest.mark.parametrize(
    "event",
    [
        {"shipping": Decimal("4.90"), "rate": "much"},
        {"shipping": Decimal("4.90"), "rate": "1,000"},
        {"shipping": Decimal("4.90"), "rate": float("nan")},
        {"shipping": Decimal("4.90"), "rate": 1e300},
        {"shipping": Decimal("4.90"), "rate": "9" * 64},
    ],
)
def test_an_operand_that_is_no_number_refuses_the_event_as_any_malformed_value(event: dict[str, Any]) -> None:
    """NaN, grouped text and numbers out of bounds refuse the event, as any malformed value does."""
    both = both_of(f'"{VALUE}" = {{ multiply = ["shipping", "rate"] }}')
    result = converted(both, record(**event))
    assert isinstance(result, Rejection)
    assert result.code == "malformed_value"


def test_a_result_below_zero_is_refused() -> None:
    """An event with a value below zero, as of a refund, is refused."""
    result = converted(
        both_of(f'"{VALUE}" = {{ subtract = ["shipping", "rate"] }}'),
        record(shipping=Decimal("1.00"), rate=2.0),
    )
    assert isinstance(result, Rejection)
    assert result.code == "malformed_value"


def test_fields_of_items() -> None:
    """Fields of items are computed for each item, also from fields of the event; content ids and num_items
    follow from the computed fields."""
    fields = """"custom_data.contents[].id" = { join = ["lines[].sku", "lines[].size"], with = "-" }
"custom_data.contents[].item_price" = { multiply = ["lines[].price", "rate"] }
"custom_data.contents[].item_name" = { first = ["lines[].size", "country"] }
"custom_data.contents[].item_category" = { of = "lines[].kind", table = { "1" = "shoes" }, otherwise = "other" }
"custom_data.contents[].item_brand" = { value = "ours", when = { country = "DE" } }
"custom_data.contents[].quantity" = { first = ["lines[].pieces", { value = 1 }] }"""
    lines = [line(size="L", kind=1, pieces=3), line(sku="B", kind=2, pieces=None), None]
    result = converted(both_of(fields), record(lines=lines, rate=2.0, country="DE"))
    assert isinstance(result, ConversionEvent)
    shoe = {
        "id": "A-L", "item_name": "L", "item_category": "shoes", "item_brand": "ours", "item_price": "2.000",
        "quantity": 3,
    }  # fmt: skip
    hat = {
        "item_name": "DE", "item_category": "other", "item_brand": "ours", "item_price": "2.000", "quantity": 1,
    }  # fmt: skip
    assert result.payload["custom_data"] == {
        "contents": [shoe, hat],
        "content_ids": ["A-L"],
        "num_items": 4,
        "currency": "EUR",
    }


def test_a_sum_within_an_item() -> None:
    """A sum in a field of an item goes over the item's own array."""
    fields = '"custom_data.contents[].item_price" = { add = ["lines[].price", { sum = "lines[].taxes[].amount" }] }'
    lines = [line(taxes=[{"amount": 0.1}, {"amount": 0.2}]), line()]
    result = converted(both_of(fields), record(lines=lines))
    assert isinstance(result, ConversionEvent)
    assert [item.get("item_price") for item in result.payload["custom_data"]["contents"]] == ["1.30", None]


def test_the_first_of_several_lists() -> None:
    """If the first alternative is a list with values, all of them are sent."""
    fields = '"user_data.em" = { first = ["buyer.mails", "buyer.login"] }'
    mails = ["a@x.de", None, "b@x.de"]
    assert len(sent(fields, "user_data.em", record(buyer=buyer(login="c@x.de", mails=mails)))) == 2
    assert len(sent(fields, "user_data.em", record(buyer=buyer(login="c@x.de", mails=[None])))) == 1


def test_what_is_decided_may_be_computed() -> None:
    """Name, id, time, account, source, consent and the dedup key may be computed."""
    fields = """event_name = { join = ["type", "sub"], with = "." }
event_id = { join = ["id", "dept"], with = ":" }
event_time = { first = ["paid_at", "at"] }
ad_account_id = { of = "country", table = { DE = "11", AT = "22" } }
action_source = { first = [{ value = "offline", when = { dept = 9 } }, { value = "web" }] }"""
    rest = """[event_names]
"order.paid" = "checkout"
[consent]
require = ["ads", "terms"]
any = ["ads"]
[dedup]
key = { join = ["id", "country"] }
"""
    both = both_of(fields, rest)
    paid = int(NOW * 1000) - 10_000
    event = record(type="order", sub="paid", dept=9, paid_at=paid, country="AT", ads=True, terms=True)
    result = converted(both, event)
    assert isinstance(result, ConversionEvent)
    assert (result.name, result.event_id, result.account, result.dedup_id) == (
        "checkout",
        "e-1:9",
        "22",
        "e-1AT",
    )
    assert (result.time, result.action_source) == (paid // 1000, "offline")
    assert isinstance(converted(both, {**event, "terms": None}), Filtered)
    assert isinstance(converted(both, {**event, "terms": "true"}), Filtered)
    assert converted(both, {**event, "sub": None}).code == "missing_event_name"
    assert converted(both, {**event, "id": None}).code == "missing_event_id"


@pytest.mark.parametrize(
    ("consent", "event", "is_sent"),
    [
        ('require = ["ads", "terms"]', {"ads": True, "terms": True}, True),
        ('require = ["ads", "terms"]', {"ads": True, "terms": False}, False),
        ('require = ["ads", "terms"]', {"ads": True}, False),
        ('any = ["ads", "terms"]', {"ads": False, "terms": True}, True),
        ('any = ["ads", "terms"]', {}, False),
        ('require = "ads"\nany = ["terms"]', {"ads": True}, False),
        ('require = ["ads", "terms"]\nallowed = [true, "yes"]', {"ads": True, "terms": "yes"}, True),
        ('require = ["ads", "terms"]\nallowed = [true, "yes"]', {"ads": True, "terms": "no"}, False),
        ('any = ["ads", "rate"]\nallowed = [false, 1]', {"ads": True}, False),
        ('require = "rate"\nallowed = ["a", 1]', {"rate": 1.0}, True),
        ('require = ["rate"]\nallowed = ["a", 1]', {"rate": 1.5}, False),
        ('require = ["ads", "rate"]\nallowed = [true, 1]', {"ads": True, "rate": 1.0}, True),
        (
            'require = ["ads", "rate"]\nallowed = [true, 1]',
            {"ads": True, "rate": float("nan")},
            False,
        ),
    ],
)
def test_consent_of_one_path_and_of_several(consent: str, event: dict[str, Any], is_sent: bool) -> None:
    """Consent needs all values of ``require`` and one of ``any``; however many there are, they are compared alike:
    numbers as numbers, but true is not 1."""
    result = converted(both_of("", f"[consent]\n{consent}"), record(**event))
    assert isinstance(result, ConversionEvent if is_sent else Filtered)


def test_a_constant_on_a_condition() -> None:
    """A constant on a condition is used where the record has no value."""
    rest = """[constants]
action_source = "web"
"user_data.client_ip_address" = "93.184.216.34"
"user_data.client_user_agent" = "Mozilla/5.0"
[constants."custom_data.currency"]
first = [
  { value = "EUR", when = { country = ["DE", "AT"] } },
  { value = "CHF", when = { country = "CH" } },
]
"""
    overlay = mapping_of(
        '"custom_data.value" = "shipping"\n"custom_data.currency" = "buyer.tags.currency"'
    ).replace(CONSTANTS, rest)
    both = Both((SHOP, overlay))
    for country, own, currency in (
        ("DE", None, "EUR"),
        ("CH", None, "CHF"),
        ("DE", "USD", "USD"),
        ("US", None, None),
    ):
        own_tags = buyer(tags={"currency": own})
        result = converted(both, record(country=country, shipping=Decimal("1.00"), buyer=own_tags))
        if currency is None:
            assert result.code == "missing_currency"
        else:
            assert result.payload["custom_data"]["currency"] == currency


EVERYTHING = f'''event_name = {{ first = [{{ join = ["type", "sub"], with = "." }}, "type"] }}
event_id = {{ first = ["id", "sub"] }}
event_time = {{ first = ["paid_at", "at"] }}
"user_data.em" = {{ first = ["buyer.mails", "buyer.email", "buyer.login"] }}
"user_data.external_id" = {{ join = ["country", "buyer.login"], with = ":" }}
"user_data.country" = {{ path = "country", when = {{ ads = true }} }}
"{VALUE}" = {TOTAL}
"{CATEGORY}" = {{ of = "dept", table = {{ "1" = "shoes", "0" = "hats" }}, otherwise = "other" }}
"custom_data.content_name" = "lines[0].sku"
"custom_data.order_id" = {{ path = "lines[-1].size", when_event = ["checkout", "search"] }}
"custom_data.predicted_ltv" = {{ add = [{{ sum = "fees[]" }}, "shipping", "rate"] }}
"custom_data.contents[].id" = {{ join = ["lines[].sku", "lines[].size"] }}
"custom_data.contents[].item_price" = {{ multiply = ["lines[].price", "rate"] }}
"custom_data.contents[].item_name" = {{ first = ["lines[].size", "country"] }}
"custom_data.contents[].quantity" = {{ first = ["lines[].pieces", {{ value = 1 }}] }}'''
ALL = both_of(
    EVERYTHING,
    '[event_names]\n"order.paid" = "checkout"\n[consent]\nany = ["ads", "terms"]\nallowed = [true, false, "yes"]',
)
RECORDS = shaped(SHOP, wild=False)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_both_executors_say_the_same(data: st.DataObject) -> None:
    """Both executors have the same rejections, payloads and warnings for any record."""
    event = data.draw(RECORDS)
    if data.draw(st.booleans()):
        event |= {
            "id": "e-1",
            "type": "checkout",
            "sub": None,
            "at": int(NOW * 1000) - 5,
            "paid_at": None,
            "ads": True,
        }
    value = ALL.value(event)
    if value is not None:
        ALL.check(value)


def test_the_sum_of_many_orders_is_right_to_the_cent() -> None:
    """The sums of two hundred orders (price times quantity less discount, plus shipping) are those of Python in
    whole cents."""
    random_orders = random.Random(4711)
    both = both_of(f'"{VALUE}" = {{ add = [{TOTAL}, "shipping"] }}')
    values, expected = [], []
    for number in range(200):
        lines, cents = [], 0
        for _ in range(random_orders.randint(1, 12)):
            price, pieces = random_orders.randint(0, 1_000_000), random_orders.randint(1, 99)
            discount = random_orders.choice([None, random_orders.randint(0, price)])
            as_text = random_orders.random() < 0.5
            money = Decimal(price).scaleb(-2)
            lines.append(
                line(
                    price=str(money) if as_text else money,
                    pieces=pieces,
                    discount=None if discount is None else discount / 100,
                )
            )
            cents += price * pieces - (discount or 0)
        shipping = random_orders.randint(0, 999)
        values.append(
            both.value(record(id=f"e-{number}", lines=lines, shipping=Decimal(shipping).scaleb(-2)))
        )
        expected.append(cents + shipping)
    said = both.check(*values)
    for row, cents in zip(said, expected, strict=True):
        value = orjson.loads(row[5])["custom_data"]["value"]
        assert Decimal(value) * 100 == cents
        assert value == f"{cents // 100}.{cents % 100:02}"


@pytest.mark.parametrize(("fields", "computed"), [("", 0), (f'"{VALUE}" = {TOTAL}', 1)])
def test_a_mapping_pays_for_what_it_computes(fields: str, computed: int) -> None:
    """The program calls Python once for each computed field, and never in a mapping without computed fields."""
    both = both_of(fields)
    plan = plan_of(both.decoder, both.framing)
    program = make_program(both.converter.descriptions[0], plan)
    assert program is not None
    fields_of = [field for fields in program.fields.values() for field in fields]
    items = program.items.fields if program.items is not None else []
    places = [one for field in (*fields_of, *items) for one in (field.at, field.gather)]
    places += [*program.decided.values(), program.consent, program.dedup_id]
    assert sum(isinstance(one, ComputedAt) for one in places) == computed


def test_a_table_over_alternatives_takes_a_list_one_value_or_nothing() -> None:
    """A table over alternatives is applied to each value of a list, to a single value, or to none, as the
    record has."""
    both = both_of(
        '"user_data.external_id" = { of = { first = ["buyer.mails", "buyer.login"] }, '
        'table = { ann = "A", bob = "B" } }'
    )

    def ids(**values: Any) -> Any:
        event = converted(both, record(buyer=buyer(email="a@b.de", **values)))
        assert isinstance(event, ConversionEvent)
        return event.payload["user_data"].get("external_id")

    assert ids(mails=["ann", None, "bob"]) == ids(mails=["ann", "bob"])
    assert len(ids(mails=["ann", "bob"])) == 2
    assert ids(login="ann") == ids(mails=["ann"])
    assert ids() is None
