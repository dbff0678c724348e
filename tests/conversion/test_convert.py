"""Whole events through the packaged mapping, against cases written by hand from the platform's rules.

``vectors/events.json``: each case changes the plain event below (``set``: dotted path -> value) and has the
expected result. ``"#text"`` stands for the SHA-256 of the text.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.conversion.converter import Converter
from consumer.conversion.decisions import (
    BY_CONSENT,
    BY_EVENT_NAME,
    CRAWLER,
    NOT_WEB,
    OPT_OUT_TYPE_IGNORED,
    REFUSALS,
    UNCONVERTIBLE,
    warnings_of,
    zero_warning,
)
from consumer.conversion.mapping import Mapping
from consumer.conversion.targets import TARGETS
from consumer.engine.model import ConversionEvent, Converted, Filtered, Rejection, Stage
from tests.conversion.convert_records import SETUPS, likely, shaped
from tests.demo.examples import SENT
from tests.support.mapping import load_mapping

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text())
DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()
CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "events.json").read_text())
NOW = 1760000000.0
WEEK = 7 * 86400.0
# All codes there are: dead letters, metrics and docs/conversion.md have no others.
REJECTION_CODES = frozenset({*REFUSALS, UNCONVERTIBLE})
FILTER_CODES = frozenset({BY_EVENT_NAME.code, BY_CONSENT.code})
WARNING_CODES = frozenset(
    {"malformed", "placeholder", "unlikely", "unrecognised", "not_web", "zero_value", "opt_out_type_ignored"}
    | {"crawler"}
)

PLAIN: dict[str, Any] = {
    "event_id": "e-1",
    "event_type": "order_completed",
    "occurred_at": 1759999000123,
    "channel": "WEB",
    "customer": {"emails": ["jane@example.com"]},
    "order": {"order_id": "o-1", "currency": "USD", "total": "10.00"},
}


def filled(value: Any, schema: Any) -> Any:
    """Return `value` with the schema's defaults for missing fields, as decoding gives it."""
    if isinstance(schema, list):
        return None if value is None else filled(value, next(branch for branch in schema if branch != "null"))
    if isinstance(schema, dict) and schema["type"] == "record":
        fields = {field["name"]: field for field in schema["fields"]}
        return {
            name: filled(value.get(name, field.get("default")), field["type"])
            for name, field in fields.items()
        }
    if isinstance(schema, dict) and schema["type"] == "array":
        return [filled(item, schema["items"]) for item in value]
    return value


def event_of(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the plain event with `changes`, in the full shape of the schema."""
    event = json.loads(json.dumps(PLAIN))
    for path, value in changes.items():
        holder = event
        *parents, last = path.split(".")
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[last] = value
    result: dict[str, Any] = filled(event, SCHEMA)
    return result


@cache
def mapping_of(overlay: str | None) -> Mapping:
    """Return the packaged mapping with `overlay`."""
    return load_mapping(overlay, SCHEMA, default_toml=DEFAULT)


def converter(overlay: str | None = None, **settings: Any) -> Converter:
    """Return a converter under the packaged mapping with `overlay`."""
    return Converter(mapping_of(overlay), **{"accounts": ("11", "22"), "max_event_age": WEEK, **settings})


def wanted(value: Any) -> Any:
    """Return an expected value with its "#text" hashed."""
    if isinstance(value, dict):
        return {key: wanted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [wanted(each) for each in value]
    if isinstance(value, str) and value.startswith("#"):
        return hashlib.sha256(value[1:].encode()).hexdigest()
    return value


def found(event: ConversionEvent, path: str) -> Any:
    """Return what the conversion event has at a dotted path, or "absent"."""
    if path in ("account", "dedup_id"):
        return getattr(event, path)
    value: Any = event.payload
    for key in path.split("."):
        if key not in value:
            return "absent"
        value = value[key]
    return value


def judge(case: dict[str, Any], result: Converted) -> None:
    """Assert that `result` is what the case says."""
    if case["outcome"] == "filtered":
        assert result == Filtered(case["code"])
        return
    if case["outcome"] == "rejected":
        assert isinstance(result, Rejection)
        assert (result.stage, result.code) == (Stage.CONVERT, case["code"])
        return
    assert isinstance(result, ConversionEvent), result
    for path, value in case.get("fields", {}).items():
        assert found(result, path) == wanted(value), path
    for path in case.get("absent", ()):
        assert found(result, path) == "absent", path
    if "payload" in case:
        assert result.payload == wanted(case["payload"])
    if "warnings" in case:
        assert [[warning.code, warning.field] for warning in result.warnings] == case["warnings"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_each_case_comes_out_as_the_rules_say(case: dict[str, Any]) -> None:
    """Every hand-written event is delivered, filtered or refused as the platform's rules say."""
    event = event_of(case.get("set", {}))
    subject = converter(case.get("mapping"))
    now = case.get("now", NOW)
    judge(case, subject.convert(event, now))


def test_there_are_enough_cases() -> None:
    """There are many cases, with every code but that of unforeseen failures."""
    assert len(CASES) >= 120
    codes = {case.get("code") for case in CASES if case["outcome"] == "rejected"}
    assert REJECTION_CODES - codes <= {
        "unconvertible",
        "missing_event_time",
        "malformed_event_time",
        "malformed_opt_out",
        "malformed_predicted_ltv",
    }
    assert {case["code"] for case in CASES if case["outcome"] == "filtered"} == FILTER_CODES
    assert {code for case in CASES for code, _ in case.get("warnings", ())} == WARNING_CODES


def test_keys_fake_order() -> None:
    """In a payload the fields that identify the event come first, and user data and custom data last."""
    changes = {"page_url": "https://shop.example/", "language": "en", "app": {"name": "A"}}
    event = converter('[constants]\npartner_name = "ss-shop"\n').convert(event_of(changes), NOW)
    assert isinstance(event, ConversionEvent)
    keys = list(event.payload)
    assert keys[:4] == ["event_name", "action_source", "event_time", "event_id"]
    assert keys[-2:] == ["user_data", "custom_data"]
    assert event.payload["partner_name"] == "ss-shop"


def test_the_event_says_what_the_pipeline_needs() -> None:
    """A conversion event has account, name, ids, time and source beside the payload."""
    event = converter().convert(event_of({"ad_account_id": "22"}), NOW)
    assert isinstance(event, ConversionEvent)
    assert (event.account, event.name, event.event_id, event.dedup_id) == ("22", "checkout", "e-1", "e-1")
    assert (event.time, event.action_source, event.warnings) == (1759999000, "web", ())


def test_without_accounts_any_digits_will_do() -> None:
    """Without accounts, as in `explain`, the record's account is taken if it consists of digits."""
    subject = converter(accounts=())
    for named, account in ((None, "0"), ("549755885175", "549755885175"), (" ", "0")):
        event = subject.convert(event_of({"ad_account_id": named}), NOW)
        assert isinstance(event, ConversionEvent)
        assert event.account == account
    for named in ("12a", "1" * 19, "١٢", "-1"):
        result = subject.convert(event_of({"ad_account_id": named}), NOW)
        assert isinstance(result, Rejection)
        assert result.code == "unknown_ad_account"


def test_age_and_skew_are_settings() -> None:
    """The bounds on an event's age and on future times are settings of the converter, in seconds."""
    subject = converter(max_event_age=60.0, max_clock_skew=1.0)
    for ahead, code in ((-60, None), (-60.001, "expired"), (1, None), (1.001, "future_event_time")):
        result = subject.convert(event_of({"occurred_at": round((NOW + ahead) * 1000)}), NOW)
        assert (result.code if isinstance(result, Rejection) else None) == code


@pytest.mark.parametrize(
    ("occurred_at", "code", "hint"),
    [
        (round(NOW), "expired", True),
        (round(NOW * 1000) - 30 * 86_400_000, "expired", False),
        (round(NOW * 1_000_000), "future_event_time", True),
        (10**400, "future_event_time", True),  # more than a float holds
        (round(NOW * 1000) + 86_400_000, "future_event_time", False),
    ],
)
def test_a_time_in_another_unit_says_so(occurred_at: int, code: str, hint: bool) -> None:
    """A time that is of 1970 as milliseconds, or of the far future, gets a message about the unit."""
    result = converter().convert(event_of({"occurred_at": occurred_at}), NOW)
    assert isinstance(result, Rejection)
    assert (result.code, "correct time_unit of the mapping" in result.message) == (code, hint)


def test_a_bad_event_does_not_change_the_others() -> None:
    """Each event has its own result, whatever the events before it hold."""
    events = [event_of({"event_id": f"e-{number}"}) for number in range(5)]
    events[2] = {"customer": {"emails": object()}}
    events[3]["event_id"] = ""
    subject = converter()
    results = [subject.convert(event, NOW) for event in events]
    ids = [result.event_id if isinstance(result, ConversionEvent) else result.code for result in results]
    assert ids == ["e-0", "e-1", "missing_event_name", "missing_event_id", "e-4"]


def test_messages_hold_no_values_of_the_record() -> None:
    """Rejections and warnings name fields and have no values of the record."""
    secret = "s3cr3t"
    spoiled = {
        f"customer.{name}": f"{secret}..."
        for name in ("gender", "birth_date", "state", "postal_code", "country", "ip_address")
    }
    subject = converter()
    event = subject.convert(event_of({**spoiled, "page_url": secret, "language": secret}), NOW)
    assert isinstance(event, ConversionEvent)
    assert len(event.warnings) == 8
    assert all(one.code in WARNING_CODES and one.field in TARGETS for one in event.warnings)
    texts = [warning.message for warning in event.warnings]
    for path in ("event_type", "order.total", "order.currency", "ad_account_id"):
        result = subject.convert(event_of({path: secret}), NOW)
        assert isinstance(result, Rejection)
        texts.append(result.message)
    assert not [text for text in texts if secret in text or "\n" in text]


def test_the_refusal_of_an_opt_out_shows_the_table_that_translates_it() -> None:
    """The line of a mapping in the message, with a path in place of the words for it, reads the refused record."""
    event = event_of({"opt_out": None, "language": "yes"})
    line = REFUSALS["malformed_opt_out"].message.partition("mean, ")[2].replace("its path", "language")
    result = converter(f"[fields]\n{line}\n").convert(event, NOW)
    assert isinstance(result, ConversionEvent)
    assert result.payload["opt_out"] is True


def test_warnings_are_of_closed_sets() -> None:
    """Each warning has a code and a field of a closed set, so that both can be labels of a metric."""
    possible = [NOT_WEB, OPT_OUT_TYPE_IGNORED, CRAWLER, *map(zero_warning, TARGETS.values())]
    possible += [one for target in TARGETS.values() for one in warnings_of(target).values()]
    assert {one.code for one in possible} == WARNING_CODES
    assert {one.field for one in possible} == set(TARGETS)


def test_every_payload_fits_the_schema_of_the_request() -> None:
    """All deliverable cases fit the platform's closed objects, without a null."""
    delivered = 0
    for case in CASES:
        subject = converter(case.get("mapping"))
        result = subject.convert(event_of(case.get("set", {})), case.get("now", NOW))
        if isinstance(result, ConversionEvent):
            SENT.validate(json.loads(orjson.dumps({"data": [result.payload]})))
            delivered += 1
    assert delivered > 100


def test_the_unforeseen_is_a_refusal_that_names_its_type_only() -> None:
    """A value that raises wherever it is used refuses its event, with the type of the exception as the only detail."""

    class Hostile(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            raise RuntimeError("s3cr3t")

        __getitem__ = get

    result = converter().convert(Hostile(), NOW)
    assert isinstance(result, Rejection)
    assert result.code == "unconvertible"
    assert "RuntimeError" in result.message
    assert "s3cr3t" not in result.message


@pytest.mark.parametrize(
    ("quantities", "total"),
    [([1, 1.5], None), ([2**63 - 1, 1], None), ([1, None, 2], 3), (["2", 3.0], 5)],
)
def test_the_sum_of_quantities_is_never_wrong(quantities: list[Any], total: int | None) -> None:
    """If a quantity cannot be read, or the sum does not fit int64, num_items is omitted."""
    event = event_of({})
    event["order"]["items"] = [{"quantity": quantity} for quantity in quantities]
    result = converter().convert(event, NOW)
    assert isinstance(result, ConversionEvent)
    assert result.payload["custom_data"].get("num_items") == total


WILD = {name: shaped(schema, wild=True) for name, (schema, _) in SETUPS.items()}
WILD_CONVERTERS = {
    name: Converter(
        load_mapping(overlay, schema, default_toml=DEFAULT), accounts=("11", "22"), max_event_age=WEEK
    )
    for name, (schema, overlay) in SETUPS.items()
}


@pytest.mark.parametrize("name", SETUPS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_of_any_type_raise_nothing(name: str, data: st.DataObject) -> None:
    """Of values that the schema does not allow, each is judged by its rule: payloads can be serialised."""
    result = WILD_CONVERTERS[name].convert(likely(data.draw(WILD[name])), NOW)
    if isinstance(result, ConversionEvent):
        assert orjson.loads(orjson.dumps(result.payload)) == result.payload
        assert result.payload["event_time"] <= NOW
        assert len(result.warnings) == len(set(result.warnings))
    elif isinstance(result, Rejection):
        assert result.code != "unconvertible"
