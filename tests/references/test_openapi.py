"""The schema of the request, beside the platform's own OpenAPI description of 5.23.

What differs is listed here, and nothing else may: keys that came later, what we close, and where a bound stands in
words only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from consumer.conversion.normalise import HASHED_FIELDS
from consumer.demo import rules
from tests.demo.examples import REQUEST, full_event
from tests.demo.test_rules import mutate
from tests.references.conftest import DATA

DESCRIPTION: dict[str, Any] = json.loads((DATA / "pinterest_events_openapi.json").read_text("utf-8"))
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]
EVENT: dict[str, Any] = SCHEMAS["ConversionEvents"]["properties"]["data"]["items"]
CUSTOM_DATA: dict[str, Any] = EVENT["properties"]["custom_data"]
OBJECTS = {
    "event": EVENT,
    "user_data": SCHEMAS["ConversionEventsUserDataProperties"],
    "custom_data": CUSTOM_DATA,
    "content": CUSTOM_DATA["properties"]["contents"]["items"],
    "app_info": SCHEMAS["ConversionEventAppInfo"],
    "device_info": SCHEMAS["ConversionEventDeviceInfo"],
}
LATER = {("content", "item_brand_id"), ("user_data", "customer_type")}
"""Keys that came with version 5.28 or later."""
LATER_NAMES = {
    "app_open", "contact", "customize_product", "find_location", "schedule", "start_trial", "submit_application",
}  # fmt: skip
CLOSED_BY_US = {"user_data"}
IN_WORDS = {
    "action_source": "enum", "event_id": "minLength", "client_ip_address": "minLength",
    "client_user_agent": "minLength", "currency": "pattern", "value": "pattern", "predicted_ltv": "pattern",
    "item_price": "pattern", "num_items": "minimum maximum", "quantity": "minimum maximum", "event_name": "anyOf",
    **dict.fromkeys(HASHED_FIELDS, "minItems items.pattern"),
}  # fmt: skip
"""Bounds in our schema that the description has only in its text, or that are our own rules."""


def members(objects: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each object's name with each of its members."""
    for name, described in objects.items():
        for key, member in described["properties"].items():
            yield name, key, member


def facts(member: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What a schema demands of a member, in either language, without texts for people."""
    if "$ref" in member:
        member = definitions[member["$ref"].rpartition("/")[2]]
    reported = {
        key: sorted(value) if key == "enum" else value
        for key, value in member.items()
        if key in {"type", "enum", "pattern", "anyOf"} or key.startswith(("min", "max"))
    }
    if reported["type"] == "object":
        return {"type": {"object"}}  # it has a row of its own
    kinds = [reported["type"]] if isinstance(reported["type"], str) else reported["type"]
    reported["type"] = {*kinds, *(["null"] if member.get("nullable") else [])}
    if "items" in member:
        reported |= {f"items.{key}": value for key, value in facts(member["items"], definitions).items()}
    if reported.get("minItems") == 0:
        del reported["minItems"]
    return reported


def ours() -> dict[str, Any]:
    """The objects of our schema."""
    return {name: rules.REQUEST["$defs"][name] for name in OBJECTS}


def test_the_same_keys() -> None:
    """The same keys, and the later ones beside them."""
    described = {(name, key) for name, key, _ in members(OBJECTS)}
    mine = {(name, key) for name, key, _ in members(ours())}
    assert mine - described == LATER
    assert described - mine == set()


def test_the_same_members() -> None:
    """Types, null, lengths, bounds and enumerations of each member; only the bounds listed above differ."""
    described = {(name, key): facts(member, SCHEMAS) for name, key, member in members(OBJECTS)}
    for name, key, member in members(ours()):
        if (name, key) in LATER:
            continue
        mine = facts(member, rules.REQUEST["$defs"])
        more = set(IN_WORDS.get(key, "").split()) if name not in {"app_info", "device_info"} else set()
        assert more <= mine.keys()
        assert {fact: reported for fact, reported in mine.items() if fact not in more} == described[
            name, key
        ], key


def test_the_same_required_and_closed() -> None:
    """Required members, further members, and their numbers are the same."""
    for name, described in OBJECTS.items():
        mine = rules.REQUEST["$defs"][name]
        assert set(mine.get("required", ())) == set(described.get("required", ()))
        assert mine["additionalProperties"] is False
        assert (described.get("additionalProperties") is False) != (name in CLOSED_BY_US)
    body = SCHEMAS["ConversionEvents"]
    for key in ("required", "additionalProperties"):
        assert rules.REQUEST[key] == body[key]
    for key in ("minItems", "maxItems"):
        assert rules.REQUEST["properties"]["data"][key] == body["properties"]["data"][key]
    wanted = [one["required"] for one in SCHEMAS["ConversionEventsUserData"]["anyOf"]]
    assert [one["required"] for one in rules.REQUEST["$defs"]["user_data"]["anyOf"]] == wanted


def test_the_same_names() -> None:
    """Every standard name is in the description's text, but for the later ones."""
    text = EVENT["properties"]["event_name"]["description"]
    names = set(rules.REQUEST["$defs"]["standard_event_name"]["enum"])
    assert {name for name in names if f"`{name}`" not in text} == LATER_NAMES
    for source in rules.SPEC_ACTION_SOURCES:
        assert source in EVENT["properties"]["action_source"]["description"]


def as_json_schema(node: Any) -> Any:
    """OpenAPI 3.0 as JSON Schema: ``nullable`` becomes a type; ``required`` beside ``$ref`` counts by itself."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: as_json_schema(value) for key, value in node.items() if key != "nullable"}
    if node.get("nullable") is True and isinstance(node.get("type"), str):
        converted["type"] = [node["type"], "null"]
    return converted


THEIRS = Draft202012Validator(
    {"$ref": "#/components/schemas/ConversionEvents", "components": as_json_schema(DESCRIPTION["components"])}
)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_whatever_the_description_refuses_is_refused(seed: int, times: int) -> None:
    """On events broken at random, our schema refuses all that the description refuses: to hold a payload against
    ours is enough."""
    draws = random.Random(seed)
    candidate = full_event()
    for _ in range(times):
        mutate(candidate, draws)
    call = {"data": [candidate]}
    assert THEIRS.is_valid(call) or not REQUEST.is_valid(call)
