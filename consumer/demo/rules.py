"""The rules of the sandbox: pure functions from one event of ``data`` to a `Violation`, or None if it is valid.

There are two kinds of violations, and Pinterest answers them differently:

* **Structural** ones, which a validator of the OpenAPI description finds: an unknown key in a closed object, a
  missing required key, a wrong type, a length or an enumeration. One of them turns the whole call into
  a 400 (woocommerce/pinterest-for-woocommerce #967).
* **Violations of one event**, which the description only states in words: identity, digests, decimal text, known
  names, the age of the event. The call is a 200, and the entry of that event says ``failed``.

The description's ``anyOf`` puts ``required`` beside ``$ref``, where OpenAPI 3.0 ignores it, so identity is checked
here. The user data object is open in the description. Here it is closed, like the other objects, so that a wrong key is
reported and not silently ignored.

The shapes are read from ``request.schema.json``, a JSON Schema of the request; a test compares it with the description.
The checks are stricter than Pinterest on purpose, and share no code with the converter, because they are an independent
check of its output.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import pycountry
from pydantic_core import SchemaValidator, ValidationError, core_schema

MAX_EVENTS: Final = 1000
# Maximum number of events that are processed of a call in test mode (documented).
MAX_TEST_EVENTS: Final = 20
# Seconds that an event may be in the future, because of clock skew.
MAX_AHEAD: Final = 300.0
# Maximum age of an event in seconds. Pinterest documents none; third parties name this one.
MAX_AGE: Final = 7 * 86_400.0


# SHA-256 of the empty string: it shows that a missing value was hashed.
EMPTY_DIGEST: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class Violation(NamedTuple):
    """Why an event is refused. `code` is from a fixed set; `value` is the invalid value, which may be personal data."""

    code: str
    message: str
    value: object = None

    @property
    def structural(self) -> bool:
        """True if the violation refuses the whole call, and not only its event."""
        return self.code in _STRUCTURAL


_STRUCTURAL: Final = frozenset(("unknown_key", "missing_key", "wrong_type", "out_of_bounds", "event_count"))

# The JSON Schema of the body of a request.
REQUEST: Final[Mapping[str, Any]] = json.loads(
    files("consumer.demo").joinpath("request.schema.json").read_text("utf-8")
)
_DEFINITIONS: Final[Mapping[str, Any]] = REQUEST["$defs"]
_INT64_MAX: Final = 2**63 - 1
# Objects of which Pinterest's validator also checks lengths, bounds and enumerations.
_BOUNDED: Final = ("app_info", "device_info")


def _structure(schema: Mapping[str, Any], bounded: bool = False) -> core_schema.CoreSchema:
    """What a part of the JSON Schema says of types, keys and, if `bounded`, of sizes, in the terms of pydantic-core."""
    # A definition may be an alias of another one.
    while "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema, bounded = _DEFINITIONS[name], bounded or name in _BOUNDED
    made: core_schema.CoreSchema
    types = schema["type"]  # one name, or a list of two of which one is null
    # Strict, because pydantic would else take true for a number, and the text "1" too.
    if "object" in types:
        required = schema.get("required", ())
        members = {
            key: core_schema.typed_dict_field(_structure(member, bounded), required=key in required)
            for key, member in schema["properties"].items()
        }
        made = core_schema.typed_dict_schema(members, extra_behavior="forbid", strict=True)
    elif "array" in types:
        maximum = schema.get("maxItems") if bounded else None
        # The first wrong item is enough: a body has room for millions of them.
        made = core_schema.list_schema(
            _structure(schema["items"], bounded), max_length=maximum, strict=True, fail_fast=True
        )
    elif "integer" in types:
        least, maximum = (0, schema.get("maximum", _INT64_MAX)) if bounded else (None, None)
        made = core_schema.int_schema(ge=least, le=maximum, strict=True)
    elif "boolean" in types:
        made = core_schema.bool_schema(strict=True)
    elif bounded and "enum" in schema:
        made = core_schema.literal_schema(schema["enum"])
    else:
        # Lengths are in code points, as the description's.
        made = core_schema.str_schema(max_length=schema.get("maxLength") if bounded else None, strict=True)
    return core_schema.nullable_schema(made) if "null" in types else made


# The sandbox must not slow down a load test: this takes a few microseconds for an event of typical size.
_EVENT: Final = SchemaValidator(_structure(_DEFINITIONS["event"]))
# More errors than this can only be unknown keys, of which a body has room for millions: the API has fewer keys.
_MAX_ERRORS: Final = 200
# pydantic-core's types of error -> ours; any other is of a wrong type.
_MISSHAPEN: Final = {
    "extra_forbidden": ("unknown_key", "is not allowed"),
    "missing": ("missing_key", "is required"),
    **dict.fromkeys(
        ("string_too_long", "too_long", "greater_than_equal", "less_than_equal", "literal_error"),
        ("out_of_bounds", "is out of bounds"),
    ),
}
_EVENT_MEMBERS, _USER_MEMBERS = (_DEFINITIONS[name]["properties"] for name in ("event", "user_data"))
SPEC_ACTION_SOURCES: Final[frozenset[str]] = frozenset(_EVENT_MEMBERS["action_source"]["enum"])
# The standard event names. Names that an advertiser registered are valid too. Pinterest labels any other name as
# Unknown (5.31); the sandbox refuses it, so that the mistake is seen.
KNOWN_EVENT_NAMES: Final[frozenset[str]] = frozenset(_DEFINITIONS["standard_event_name"]["enum"])
CUSTOMER_TYPES: Final[frozenset[str]] = frozenset(_USER_MEMBERS["customer_type"]["enum"])

_CURRENCIES: Final = frozenset(currency.alpha_3 for currency in pycountry.currencies)
_PLAIN: Final = ("client_user_agent", "click_id", "partner_id")
# What identifies a person only together.
_IP_AND_AGENT: Final = {"client_ip_address", "client_user_agent"}
_is_digest: Final = re.compile(r"[0-9a-f]{64}").fullmatch
_is_digest_of_any_case: Final = re.compile(r"[0-9a-fA-F]{64}").fullmatch
_is_decimal: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?").fullmatch
_is_web_address: Final = re.compile(r"https?://[^/\s]", re.IGNORECASE).match


def check_event(
    event: object,
    now: float,
    *,
    max_age: float | None = MAX_AGE,
    event_names: frozenset[str] = KNOWN_EVENT_NAMES,
) -> Violation | None:
    """Return the first violation of one item of ``data``, structure before meaning; None if it is accepted.

    `now` is in seconds since 1970; `max_age` in seconds, None for any age.
    """
    return _check_structure(event) or next(_violations(event, now, max_age, event_names), None)


def check_envelope(body: object) -> Violation | None:
    """Return what is wrong with the body, which must be an object with only ``data``, 1 to 1000 items."""
    if type(body) is not dict:
        return Violation("wrong_type", "the body must be an object")
    for key in body:
        if key != "data":
            return Violation("unknown_key", f"unknown key {key!r} beside data")
    if type(body.get("data")) is not list:
        return Violation("missing_key", "data is required and must be an array")
    if not 1 <= len(body["data"]) <= MAX_EVENTS:
        return Violation("event_count", f"data must hold 1 to {MAX_EVENTS} events, not {len(body['data'])}")
    return None


def check_account(account: str) -> bool:
    """Return True if this can be the id of an ad account: 1 to 18 digits 0-9."""
    return len(account) <= 18 and account.isascii() and account.isdigit()


def warning_for(event: Mapping[str, Any]) -> str | None:
    """Return the warning that Pinterest would give for an accepted event; None if there is none."""
    custom_data = event.get("custom_data")
    if custom_data and custom_data.get("value") is not None and custom_data.get("currency") is None:
        return "custom_data.value without currency: the advertiser's currency is assumed"
    url = event.get("event_source_url")
    if url is not None and (event["action_source"] != "web" or _is_web_address(url) is None):
        return "event_source_url should be an absolute http(s) URL, and of web events only"
    language = event.get("language")
    if language is not None and (len(language) != 2 or not language.isalpha()):
        return "language should be a two-letter code"
    return None


def _check_structure(event: object) -> Violation | None:
    try:
        _EVENT.validate_python(event)
    except ValidationError as error:
        if error.error_count() > _MAX_ERRORS:
            return Violation("unknown_key", f"more than {_MAX_ERRORS} keys of an event are not allowed")
        first = error.errors(include_url=False, include_context=False)[0]
        code, what = _MISSHAPEN.get(first["type"], ("wrong_type", "has the wrong type"))
        # An index among the items tells nothing more: `contents[]` is any of them.
        path = "".join("[]" if isinstance(step, int) else f".{step}" for step in first["loc"])
        # The input of these two is not an invalid value, but the whole object, or the value at the key.
        invalid = None if code in ("missing_key", "unknown_key") else first["input"]
        return Violation(code, f"{path.removeprefix('.') or 'an event'} {what}", invalid)
    return None


# What is wrong with an event of the right structure. Only the first violation is asked for, so nothing after it is
# looked at.


def _violations(
    event: Any, now: float, max_age: float | None, event_names: frozenset[str]
) -> Iterator[Violation]:
    name, source, event_id, at = (
        event[key] for key in ("event_name", "action_source", "event_id", "event_time")
    )
    if name not in event_names:
        yield Violation("event_name", "event_name is neither a standard one nor registered", name)
    if source not in SPEC_ACTION_SOURCES:
        yield Violation("action_source", "action_source is not known", source)
    if not event_id.strip():
        yield Violation("event_id", "event_id is blank", event_id)
    if at > now + MAX_AHEAD:  # often milliseconds by mistake
        yield Violation("future", "event_time is in the future (is it in seconds?)", at)
    if max_age is not None and at < now - max_age:
        yield Violation("expired", f"event_time is more than {max_age / 86_400:g} days ago", at)
    yield from _in_user_data(event["user_data"])
    yield from _in_custom_data(event.get("custom_data", {}))


def _in_user_data(user_data: dict[str, Any]) -> Iterator[Violation]:
    for key, member in user_data.items():
        if type(member) is list:
            yield from _in_digests(f"user_data.{key}", member)
        elif key in _PLAIN and member is not None:
            if not member or member.isspace():
                yield Violation("empty", f"user_data.{key} is blank: leave it out", member)
            # The most frequent mistake: all values are hashed.
            if len(member) == 64 and _is_digest_of_any_case(member):
                yield Violation("hashed", f"user_data.{key} must not be hashed", member)
    if user_data.get("customer_type", "new") not in CUSTOMER_TYPES:
        yield Violation("customer_type", "user_data.customer_type must be new or returning")
    address = user_data.get("client_ip_address")
    if address is not None and not _is_address(address):
        yield Violation("ip_address", "user_data.client_ip_address must be a plain IP address", address)
    if not ("em" in user_data or "hashed_maids" in user_data or user_data.keys() >= _IP_AND_AGENT):
        yield Violation(
            "identity", "user_data needs em, or hashed_maids, or client_ip_address with client_user_agent"
        )


def _in_digests(path: str, values: list[str]) -> Iterator[Violation]:
    if not values:
        yield Violation("empty", f"{path} is empty: leave it out", values)
    for text in values:
        if _is_digest(text) is None:
            yield Violation("digest", f"{path} must hold SHA-256 digests in lower-case hex", text)
        if text == EMPTY_DIGEST:
            yield Violation("empty_digest", f"{path} holds the hash of the empty string", text)


def _in_custom_data(custom_data: dict[str, Any]) -> Iterator[Violation]:
    currency = custom_data.get("currency")
    if currency is not None and currency not in _CURRENCIES:
        yield Violation("currency", "custom_data.currency must be an ISO 4217 code in upper case", currency)
    items = zip(repeat("custom_data.contents[]"), custom_data.get("contents", ()))
    # An order and its items have amounts and quantities under different names.
    for path, holder in chain([("custom_data", custom_data)], items):
        for key in ("value", "predicted_ltv", "item_price"):
            amount = holder.get(key)
            if amount is not None and _is_decimal(amount) is None:
                yield Violation("amount", f"{path}.{key} must be plain decimal text", amount)
        for key in ("num_items", "quantity"):
            if not 0 <= holder.get(key, 0) <= _INT64_MAX:
                yield Violation("quantity", f"{path}.{key} must not be negative", holder[key])


def _is_address(text: str) -> bool:
    """Return True for a valid, non-zero IPv4 or IPv6 address."""
    # `ipaddress` takes ten times as long.
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return any(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False
