"""The schema of the request: valid, closed, strict and complete."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from consumer.conversion.normalise import HASHED_FIELDS
from consumer.conversion.targets import EVENT_NAMES, TARGETS
from consumer.demo import rules
from tests.demo.examples import REQUEST, SENT, digest, event, full_event

DEFINITIONS: dict[str, Any] = rules.REQUEST["$defs"]


def accepts(changed: dict[str, Any]) -> bool:
    """Whether a call with this one event fits."""
    return REQUEST.is_valid({"data": [changed]})


def test_it_is_a_schema() -> None:
    """It keeps to JSON Schema 2020-12, and takes an event with every part, and one with few."""
    Draft202012Validator.check_schema(rules.REQUEST)
    assert accepts(full_event())
    assert accepts(event())


def test_every_object_is_closed() -> None:
    """No object takes a key that is not named: one unknown key can turn a whole call into a 400."""
    objects = [one for one in (rules.REQUEST, *DEFINITIONS.values()) if one["type"] == "object"]
    assert len(objects) == 7
    assert all(one["additionalProperties"] is False for one in objects)


def test_every_target_is_in_it() -> None:
    """Every target of a mapping is a member; exactly the hashed ones are arrays of digests."""
    for name in TARGETS.keys() - {"ad_account_id"}:
        at: Any = rules.REQUEST["$defs"]["event"]
        for part in name.split("."):
            at = at["properties"][part.removesuffix("[]")]
            at = _resolved(at["items"] if part.endswith("[]") else at)
    assert {key for key, one in DEFINITIONS["user_data"]["properties"].items() if "$ref" in one} == set(
        HASHED_FIELDS
    )


def _resolved(node: dict[str, Any]) -> Any:
    return DEFINITIONS[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("np", "ss-shop"),
        ("event_name", ""),
        ("event_name", "x" * 101),
        ("event_name", None),
        ("action_source", "WEB"),
        ("event_time", 1.5),
        ("event_time", "1700000000"),
        ("event_id", ""),
        ("opt_out", "false"),
        ("user_data", None),
        ("user_data.email", ["x"]),
        ("user_data.em", digest("x")),
        ("user_data.em", []),
        ("user_data.em.1", "jane@example.com"),
        ("user_data.em.1", digest("x").upper()),
        ("user_data.client_ip_address", None),
        ("user_data.customer_type", "New"),
        ("custom_data", None),
        ("custom_data.total", "1"),
        ("custom_data.value", 129.97),
        ("custom_data.value", "1,299.00"),
        ("custom_data.value", "-1"),
        ("custom_data.value", "1e3"),
        ("custom_data.currency", "eur"),
        ("custom_data.num_items", -1),
        ("custom_data.num_items", 2**63),
        ("custom_data.content_ids.0", 17),
        ("custom_data.contents.0.sku", "1"),
        ("custom_data.contents.0.item_price", None),
        ("custom_data.contents.0.quantity", -1),
        ("app_info.app_name", "x" * 201),
        ("app_info.store", "x"),
        ("device_info.battery_level", 101),
        ("device_info.os_family", "amiga"),
        ("device_info.languages", ["en"] * 101),
        ("device_info.colour", "red"),
    ],
)
def test_it_would_tell(path: str, value: Any) -> None:
    """A single mistake anywhere makes the call invalid."""
    changed: Any = copy.deepcopy(full_event())
    at = changed
    *parents, last = path.split(".")
    for name in parents:
        at = at[int(name)] if name.isdigit() else at[name]
    at[int(last) if last.isdigit() else last] = value
    assert not accepts(changed)


def test_what_we_send_has_no_null() -> None:
    """What the platform takes as null is left out by us: a payload is held against that."""
    assert SENT.is_valid({"data": [event(language="en")]})
    assert accepts(event(language=None))
    assert not SENT.is_valid({"data": [event(language=None)]})
    assert not SENT.is_valid({"data": [event(custom_data={"value": None})]})


@pytest.mark.parametrize("key", DEFINITIONS["event"]["required"])
def test_what_is_required(key: str) -> None:
    """Name, channel, time, id and user data of an event have to be there."""
    lacking = full_event()
    del lacking[key]
    assert not accepts(lacking)


@pytest.mark.parametrize(
    ("user_data", "fits"),
    [
        ({"em": [digest("a@example.com")]}, True),
        ({"hashed_maids": [digest("id")]}, True),
        ({"client_ip_address": "192.0.2.7", "client_user_agent": "Mozilla"}, True),
        ({"client_ip_address": "192.0.2.7"}, False),
        ({"ph": [digest("1")], "external_id": [digest("2")], "click_id": "dj0y"}, False),
        ({}, False),
    ],
)
def test_identity(user_data: dict[str, Any], fits: bool) -> None:
    """An e-mail, an advertising id, or address with agent."""
    assert accepts(event(user_data=user_data)) is fits


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"data": [event()]}, True),
        ({"data": [event()] * 1000}, True),
        ({"data": [event()] * 1001}, False),
        ({"data": []}, False),
        ({"data": [event()], "test": True}, False),
        ({}, False),
        ([], False),
    ],
)
def test_the_envelope(body: Any, fits: bool) -> None:
    """An object with only ``data``: 1 to 1000 events."""
    assert REQUEST.is_valid(body) is fits


def test_the_standard_names_are_those_that_the_converter_knows() -> None:
    """All 22, here and there."""
    assert set(DEFINITIONS["standard_event_name"]["enum"]) == rules.KNOWN_EVENT_NAMES == EVENT_NAMES
    assert len(EVENT_NAMES) == 22
