"""The trace of the rules has every field of the payload as sent, and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.conversion.converter import Converter
from consumer.conversion.rule_trace import RuleTrace
from consumer.engine.model import ConversionEvent, Rejection
from tests.conversion.convert_records import SETUPS as GIVEN
from tests.conversion.convert_records import likely, shaped
from tests.conversion.test_mapping import DEFAULT, SCHEMA
from tests.support.mapping import load_mapping

NOW = 1760000000.0
COMPUTED = """
[fields]
"custom_data.value" = { sum = { multiply = ["order.items[].price", "order.items[].quantity"] } }
"custom_data.contents[].item_name" = { first = ["order.items[].name", "order.items[].sku"] }
"user_data.em" = "customer.emails[0]"
"""
SETUPS = {**GIVEN, "computed": (SCHEMA, COMPUTED)}
CONVERTERS = {
    name: Converter(
        load_mapping(overlay, schema, default_toml=DEFAULT), accounts=("11", "22"), max_event_age=7 * 86400.0
    )
    for name, (schema, overlay) in SETUPS.items()
}
TRACES = {name: RuleTrace(converter) for name, converter in CONVERTERS.items()}
RECORDS = {(name, wild): shaped(SETUPS[name][0], wild) for name in SETUPS for wild in (False, True)}


def an_event(emails: list[str], **more: Any) -> dict[str, Any]:
    """Return an order with these e-mail addresses."""
    plain = {"event_id": "e", "event_type": "order_completed", "occurred_at": 1759999000123, "channel": "WEB"}
    return {**plain, "customer": {"emails": emails}, **more}


def fields_of(holder: dict[str, Any], prefix: str = "") -> dict[str, int]:
    """Return the dotted names of a payload's fields, with the number of values of each."""
    found: dict[str, int] = {}
    for key, value in holder.items():
        inner = value if key == "contents" else [value]
        if isinstance(inner[0], dict):
            name = f"{prefix}{key}{'[]' if key == 'contents' else ''}."
            for one in inner:
                for field, number in fields_of(one, name).items():
                    found[field] = found.get(field, 0) + number
        else:
            found[prefix + key] = len(value) if isinstance(value, list) else 1
    return found


@pytest.mark.parametrize("wild", [False, True], ids=["shaped", "wild"])
@pytest.mark.parametrize("name", SETUPS)
@settings(max_examples=40)
@given(data=st.data())
def test_the_trace_names_what_is_sent(name: str, wild: bool, data: st.DataObject) -> None:
    """For generated records the trace has the payload's fields and numbers, and a reason for each value that is
    omitted."""
    converter = CONVERTERS[name]
    event = likely(data.draw(RECORDS[name, wild]))
    result = converter.convert(event, NOW)
    rules = TRACES[name].rules(event, NOW)
    assert len({rule["field"] for rule in rules}) == len(rules)
    sent = {rule["field"]: rule["sent"] for rule in rules if rule["sent"]}
    if isinstance(result, ConversionEvent):
        assert sent == fields_of(result.payload)
        # num_items is a sum that the converter judges without a rule, so the trace has no reason for it.
        lost = {one.field for one in result.warnings if one.code in ("malformed", "placeholder", "not_web")}
        reported = {rule["field"] for rule in rules if rule["left_out"]}
        assert lost - {"custom_data.num_items"} <= reported
    else:
        assert sent == {}
    assert all(rule["values"] >= rule["sent"] for rule in rules)
    json.dumps(rules)


def test_of_a_refused_event_it_names_the_field_it_is_refused_for() -> None:
    """The trace of a refused event ends with the field that it is refused for."""
    event = an_event(["a@b.c"], order={"total": "-1"})
    converter = CONVERTERS["default"]
    assert isinstance(converter.convert(event, NOW), Rejection)
    rules = RuleTrace(converter).rules(event, NOW)
    assert rules[-1]["field"] == "custom_data.value"
    assert rules[-1]["left_out"] == {"not a decimal number of zero or more": 1}


@pytest.mark.parametrize(("emails", "sent"), [([], 0), (["a@b.c"], 2)])
def test_it_says_of_ids_of_unknown_form_that_they_identify_nobody(emails: list[str], sent: int) -> None:
    """The trace says so whether the event is sent or, for want of another identity, refused."""
    event = an_event(emails)
    event["customer"]["advertising_ids"] = ["ABC123", "def123", "null"]
    (rule,) = (one for one in TRACES["default"].rules(event, NOW) if one["field"] == "user_data.hashed_maids")
    assert (rule["values"], rule["sent"], rule["left_out"]) == (3, sent, {"a placeholder": 1})
    assert rule["done"] == ["normalised", "hashed", "of unknown form: no identity"]


def test_a_computed_value_names_the_paths_that_it_is_computed_from() -> None:
    """A computed value has all its paths in the trace; a single element of a list has its own."""
    items = [{"sku": "1", "price": "1.10", "quantity": 3}]
    event = an_event(["a@b.c"], order={"currency": "EUR", "items": items})
    rules = {rule["field"]: rule for rule in TRACES["computed"].rules(event, NOW)}
    assert rules["custom_data.value"]["from"] == "computed from order.items[].price, order.items[].quantity"
    assert rules["user_data.em"]["from"] == "customer.emails[0]"


def test_phone_numbers_that_got_their_country_s_code() -> None:
    """The trace says that a number got its country's code only if it did."""
    mapping = load_mapping('phone_country = "customer.country"', SCHEMA, default_toml=DEFAULT)
    trace = RuleTrace(Converter(mapping, accounts=("11",), max_event_age=7 * 86400.0))
    customer = {"emails": ["a@b.c"], "country": "DE"}
    reported = {}
    for number in ("030 123456", "+49 30 123456"):
        rules = trace.rules(an_event([], customer=customer | {"phones": [number]}), NOW)
        [reported[number]] = [rule for rule in rules if rule["field"] == "user_data.ph"]
    national, international = reported.values()
    assert national["rule"] == "with the country's code, digits, without leading zeros; SHA-256"
    assert national["from"] == "computed from customer.phones, customer.country"
    assert national["done"] == ["got its country's code", "normalised", "hashed"]
    assert international["done"] == ["normalised", "hashed"]
