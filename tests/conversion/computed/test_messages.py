"""Mistakes in a mapping that computes values are errors at start."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.errors import MappingError
from tests.conversion.computed.test_values import CATEGORY, SHOP, VALUE, mapping_of
from tests.conversion.test_convert import DEFAULT
from tests.support.mapping import load_mapping


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (f'"{VALUE}" = {{ sum = "shipping" }}',
         "[fields] 'custom_data.value': sum: 'shipping' is of no array: write [] after"),
        (f'"{VALUE}" = {{ sum = {{ multiply = ["lines[].price", "fees[]"] }} }}',
         "'lines[].price' and 'fees[]' are of two arrays"),
        (f'"{VALUE}" = {{ add = ["lines[].price", "shipping"] }}',
         "add takes one value, but 'lines[].price' may give several"),
        (f'"{VALUE}" = {{ add = ["rate", {{ value = "one" }}] }}', "add takes a number, but 'one' is none"),
        (f'"{VALUE}" = {{ add = ["rate", {{ value = "1.5" }}] }}', None),
        (f'"{VALUE}" = {{ sum = {{ of = "lines[].kind", table = {{ "1" = "a" }} }} }}',
         "sum takes a number, but 'a' is none"),
        ('"custom_data.contents[].item_price" = { sum = "lines[].price" }',
         "'lines[].price' is one value of the current item; a sum in a field of the items goes over a list within"),
        (f'"{VALUE}" = {{ add = ["tier", "shipping"] }}', "add takes a number, but 'tier' is enum"),
        (f'"{VALUE}" = {{ add = ["at", "shipping"] }}', "add takes a number, but 'at' is timestamp-millis"),
        (f'"{VALUE}" = {{ add = ["shipping"] }}', "add takes a list of two or more"),
        (f'"{VALUE}" = {{ add = ["shiping", "shipping"] }}',
         "'shiping' is not in the schema; the nearest that is: 'shipping'"),
        (f'"{VALUE}" = {{ plus = ["rate", "shipping"] }}', "'plus' is nothing that a table may say"),
        (f'"{VALUE}" = {{ summ = "fees" }}', "'summ' is nothing that a table may say; the nearest is 'sum'"),
        (f'"{VALUE}" = {{ sum = "fees", first = ["rate", "rate"] }}', "here is sum and first"),
        (f'"{VALUE}" = {{ when = {{ ads = true }} }}', "here is none"),
        (f'"{VALUE}" = ["rate", "shipping"]', "a list stands where one path is expected"),
        (f'"{VALUE}" = 5', "a path must be text in quotes; { value = 5 } is the same for every event"),
        (f'"{VALUE}" = {{ value = "five" }}', "'five' is not a decimal number of zero or more"),
        (f'"{VALUE}" = {{ first = ["rate", "ads"] }}',
         "takes a decimal number of zero or more, but 'ads' is boolean"),
        (f'"{VALUE}" = {{ path = "rate", when = {{ dept = "1" }} }}', "when: 'dept' is int, so it is never '1'"),
        (f'"{VALUE}" = {{ path = "rate", when = {{ country = 1 }} }}', "when: 'country' is string, so it is never 1"),
        *(
            (
                f'"{VALUE}" = {{ path = "shipping", when = {{ shipping = [1, {number}] }} }}',
                f"when: 'shipping' is compared with a number of at most 64 digits before and after the point, but "
                f"{float(number)!r} is none",
            )
            for number in ("nan", "inf", "-inf", "1e300")
        ),
        (f'"{VALUE}" = {{ path = "rate", when = {{ rate = [0.5, -1e60, 0] }} }}', None),
        (f'"{VALUE}" = {{ path = "rate", when = {{ contry = "DE" }} }}',
         "'contry' is not in the schema; the nearest that is: 'country'"),
        (f'"{VALUE}" = {{ path = "rate", when_event = "chekout" }}',
         "when_event: 'chekout' is not the name of a conversion event; the nearest is"),
        (f'"{VALUE}" = {{ path = "rate", when_event = [["checkout"]] }}',
         "when_event: ['checkout'] is not the name of a conversion event"),
        (f'"{CATEGORY}" = {{ of = "dept", table = {{ shoes = "1" }} }}',
         "table: 'dept' is int, so it is never 'shoes'"),
        (f'"{CATEGORY}" = {{ of = "rate", table = {{ "1" = "a" }} }}', None),
        (f'"{CATEGORY}" = {{ of = "shipping", table = {{ "1" = "a" }} }}',
         "table takes text, a whole number or a boolean, but 'shipping' is decimal"),
        (f'"{CATEGORY}" = {{ of = "ads", table = {{ yes = "a" }} }}', "'ads' is boolean, so it is never 'yes'"),
        (f'"{CATEGORY}" = {{ table = {{ yes = "a" }} }}', "table needs of, the path of the value"),
        (f'"{CATEGORY}" = {{ join = ["ads", "country"] }}', "join takes text or a number, but 'ads' is boolean"),
        (f'"{CATEGORY}" = {{ join = ["lines[].sku", "country"] }}',
         "join takes one value, but 'lines[].sku' may give several"),
        ('"custom_data.vlaue" = { sum = "fees" }',
         "is not a field of a conversion event; the nearest is 'custom_data.value'"),
        ('"custom_data.currency" = { of = "country", table = { DE = "EURO" } }', "'EURO' is not a code of ISO 4217"),
        ('event_time = { first = ["micros", "at"] }',
         "'micros' is timestamp-micros and 'at' is timestamp-millis, so they count time in different units: write"),
        ('event_time = { first = ["at", "dept"] }',
         "'at' is timestamp-millis and 'dept' is a number of milliseconds (time_unit), so they count"),
        (f'"{VALUE}" = {{ path = "rate", when = {{ tier = "GOD" }} }}',
         "when: 'tier' is never 'GOD'; the nearest is 'GOLD'"),
        (f'"{VALUE}" = {{ path = "rate", when = {{ tier = "TIN" }} }}', None),
        (f'"{VALUE}" = {{ path = "rate", when = {{ terms = "GOD" }} }}', None),
        (f'"{VALUE}" = {{ path = "rate", when = {{ country = "" }} }}',
         "when: 'country' is compared with \"\", but blank text counts as missing, so that holds for no record"),
        (f'"{CATEGORY}" = {{ of = "tier", table = {{ GOLD = "a", TON = "b" }} }}',
         "table: 'tier' is never 'TON'; the nearest is 'TIN'"),
        (f'"{CATEGORY}" = {{ of = {{ first = ["tier", "dept"] }}, table = {{ "7" = "a", TIN = "b" }} }}', None),
        (f'"{CATEGORY}" = {{ of = {{ first = ["tier", "dept"] }}, table = {{ "x7" = "a" }} }}',
         "table: first is never 'x7'; known: 'GOLD', 'TIN'"),
        (f'"{VALUE}" = {{ multiply = ["rate", {{ join = ["country", "dept"], with = " - " }}] }}',
         "multiply takes a number, but the join with ' - ' is none"),
        (f'"{VALUE}" = {{ sum = {{ join = ["lines[].size", {{ value = "EUR" }}] }} }}',
         "sum takes a number, but the join with '' is none"),
        (f'"{VALUE}" = {{ multiply = ["rate", {{ join = ["country", "dept"], with = "-" }}] }}',
         "multiply takes a number, but the join with '-' is none"),
        (  # a sign in a field of its own
            f'"{VALUE}" = {{ add = ["rate", {{ join = [{{ of = "tier", table = {{ TIN = " -", GOLD = "+" }} }}, "dept"]'
            " }] }",
            None,
        ),
        (f'"{VALUE}" = {{ add = ["rate", {{ join = ["dept", "tier"] }}] }}',
         "add takes a number, but the join with '' is none"),
        (f'"{VALUE}" = {{ add = ["rate", {{ join = ["dept", "dept", "country"], with = "." }}] }}', None),
        ('event_name = { path = "type", when_event = "checkout" }',
         "when_event asks for the name that this line decides"),
        ('event_name = { first = ["type", { value = "buy" }] }', "'buy' is not an event type of [event_names]"),
        ('action_source = { value = "phone" }', "'phone' is not a channel of [action_sources], or an action source"),
        ('event_id = { first = ["id", "lines[].sku"] }', "takes one value, but"),
        ('"custom_data.contents[].item_price" = { add = ["lines[].price", "fees[]"] }', "are of two arrays"),
        ('"custom_data.contents[].item_name" = { path = "lines[0].taxes[].amount" }',
         "cannot pick an element on the way"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_start(fields: str, message: str | None) -> None:
    """A mistake is one line that names the field, the operand and the nearest name that exists."""

    def load() -> Any:
        return load_mapping(mapping_of(fields), SHOP, default_toml=DEFAULT, overlay_name="mapping.toml")

    if message is None:
        load()
        return
    with pytest.raises(MappingError) as error:
        load()
    assert message in str(error.value)
    assert str(error.value).startswith("mapping.toml: [fields] ")
    assert "\n" not in str(error.value)


def test_a_constant_on_a_condition_is_named_by_its_table() -> None:
    """A wrong constant under a condition is named by its table in the file, where it is to be changed."""
    rest = """[constants."custom_data.currency"]
first = [{ value = "EURO", when = { country = "DE" } }, { value = "USD" }]
"""
    overlay = mapping_of("", rest).replace('"custom_data.currency" = "EUR"', "")
    with pytest.raises(
        MappingError, match=r"\[constants\] 'custom_data.currency': 'EURO' is not a code of ISO"
    ):
        load_mapping(overlay, SHOP, default_toml=DEFAULT)
