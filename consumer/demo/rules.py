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
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

import pycountry

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
        """Whether it costs the whole call, and not only its event."""
        return self.code in _STRUCTURAL


_STRUCTURAL: Final = frozenset(("unknown_key", "missing_key", "wrong_type", "out_of_bounds", "event_count"))

# The JSON Schema of the body of a request.
REQUEST: Final[Mapping[str, Any]] = json.loads(
    files("consumer.demo").joinpath("request.schema.json").read_text("utf-8")
)
_DEFINITIONS: Final[Mapping[str, Any]] = REQUEST["$defs"]
_PYTHON: Final[Mapping[str, type]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
_INT64_MAX: Final = 2**63 - 1
# Objects of which Pinterest's validator also checks lengths, bounds and enumerations.
_BOUNDED: Final = ("app_info", "device_info")


# Plain loops over these shapes take about 10 µs for an event of usual size: the sandbox must not slow down a load test.
class _Shape(NamedTuple):
    """What the schema says of the structure of a value. Lengths are in code points."""

    types: frozenset[type]
    members: Mapping[str, _Shape]
    """Of an object, which has no others."""
    required: Sequence[str]
    nested: Sequence[str]
    """The members that are objects or arrays themselves."""
    items: _Shape | None
    bounded: bool
    """Whether the following count."""
    most: int
    """Maximum of an integer, length of a text, number of items; the minimum of an integer is 0."""
    choices: Collection[str] | None


def _shape(schema: Mapping[str, Any], bounded: bool = False) -> _Shape:
    # A definition may be an alias of another one.
    while "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema, bounded = _DEFINITIONS[name], bounded or name in _BOUNDED
    named = schema["type"]
    members = {key: _shape(member, bounded) for key, member in schema.get("properties", {}).items()}
    items = schema.get("items")
    return _Shape(
        types=frozenset(_PYTHON[name] for name in ([named] if isinstance(named, str) else named)),
        members=members,
        required=schema.get("required", ()),
        nested=[key for key, member in members.items() if member.types & {dict, list}],
        items=None if items is None else _shape(items, bounded),
        bounded=bounded,
        most=schema.get("maxLength", schema.get("maxItems", schema.get("maximum", _INT64_MAX))),
        choices=schema.get("enum"),
    )


_EVENT: Final = _shape(_DEFINITIONS["event"])
_EVENT_MEMBERS, _USER_MEMBERS = (_DEFINITIONS[name]["properties"] for name in ("event", "user_data"))
ACTION_SOURCES: Final[frozenset[str]] = frozenset(_EVENT_MEMBERS["action_source"]["enum"])
# The standard event names. Names that an advertiser registered are valid too. Pinterest labels any other name as
# Unknown (5.31); the sandbox refuses it, so that the mistake is seen.
KNOWN_EVENT_NAMES: Final[frozenset[str]] = frozenset(_DEFINITIONS["standard_event_name"]["enum"])
CUSTOMER_TYPES: Final[frozenset[str]] = frozenset(_USER_MEMBERS["customer_type"]["enum"])

_PLAIN: Final = ("client_user_agent", "click_id", "partner_id")
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
    if type(event) is not dict:
        return Violation("wrong_type", "an event must be an object", event)
    custom_data = event.get("custom_data")
    return (
        _check_object(event, _EVENT, "")
        or _check_names(event, event_names)
        or _check_time(event["event_time"], now, max_age)
        or _check_user_data(event["user_data"])
        or (None if custom_data is None else _check_custom_data(custom_data))
    )


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


# Structure


def _check_object(value: dict[str, Any], shape: _Shape, path: str) -> Violation | None:
    for key, member in value.items():
        known = shape.members.get(key)
        if known is None:
            return Violation("unknown_key", f"{path}{key} is not allowed")
        # Exactly this type: to Python, True is an integer.
        if type(member) not in known.types:
            return Violation("wrong_type", f"{path}{key} has the wrong type", member)
        if known.bounded and not _within(member, known):
            return Violation("out_of_bounds", f"{path}{key} is out of bounds", member)
    for key in shape.required:
        if key not in value:
            return Violation("missing_key", f"{path}{key} is required")
    for key in shape.nested:
        if key in value:
            problem = _check_nested(value[key], shape.members[key], f"{path}{key}")
            if problem is not None:
                return problem
    return None


def _check_nested(value: Any, shape: _Shape, path: str) -> Violation | None:
    if shape.items is None:
        return _check_object(value, shape, f"{path}.")
    if dict not in shape.items.types:
        return None if _all_text(value) else Violation("wrong_type", f"{path} must be an array of strings")
    for one in value:
        if type(one) is not dict:
            return Violation("wrong_type", f"{path} must be an array of objects", one)
        problem = _check_object(one, shape.items, f"{path}[].")
        if problem is not None:
            return problem
    return None


def _within(value: Any, shape: _Shape) -> bool:
    if shape.choices is not None:
        return value in shape.choices
    size = value if type(value) is int else len(value)
    return 0 <= size <= shape.most and (type(value) is not list or _all_text(value))


def _all_text(values: Iterable[object]) -> bool:
    try:
        "".join(values)  # type: ignore[arg-type]  # the fastest test: the loop is in C
    except TypeError:
        return False
    return True


# Meaning


def _check_names(event: dict[str, Any], event_names: frozenset[str]) -> Violation | None:
    if event["event_name"] not in event_names:
        return Violation(
            "event_name", "event_name is neither a standard one nor registered", event["event_name"]
        )
    if event["action_source"] not in ACTION_SOURCES:
        return Violation("action_source", "action_source is not known", event["action_source"])
    if not event["event_id"].strip():
        return Violation("event_id", "event_id is blank", event["event_id"])
    return None


def _check_time(event_time: int, now: float, max_age: float | None) -> Violation | None:
    if event_time > now + MAX_AHEAD:  # often milliseconds by mistake
        return Violation("future", "event_time is in the future (is it in seconds?)", event_time)
    if max_age is not None and event_time < now - max_age:
        return Violation("expired", f"event_time is more than {max_age / 86_400:g} days ago", event_time)
    return None


def _check_user_data(user_data: dict[str, Any]) -> Violation | None:
    for key, member in user_data.items():
        if type(member) is list:  # of the hashed values of a field
            problem = _check_digests(key, member)
        elif key in _PLAIN and member is not None:
            problem = _check_plain(key, member)
        else:
            continue
        if problem is not None:
            return problem
    if user_data.get("customer_type", "new") not in CUSTOMER_TYPES:
        return Violation("customer_type", "user_data.customer_type must be new or returning")
    address = user_data.get("client_ip_address")
    if address is not None and not _is_address(address):
        return Violation("ip_address", "user_data.client_ip_address must be a plain IP address", address)
    if "em" in user_data or "hashed_maids" in user_data:
        return None
    if "client_ip_address" in user_data and "client_user_agent" in user_data:
        return None
    return Violation(
        "identity", "user_data needs em, or hashed_maids, or client_ip_address with client_user_agent"
    )


def _check_digests(key: str, values: list[str]) -> Violation | None:
    if not values:
        return Violation("empty", f"user_data.{key} is empty: leave it out", values)
    for text in values:
        if _is_digest(text) is None:
            return Violation("digest", f"user_data.{key} must hold SHA-256 digests in lower-case hex", text)
        if text == EMPTY_DIGEST:
            return Violation("empty_digest", f"user_data.{key} holds the hash of the empty string", text)
    return None


def _check_plain(key: str, text: str) -> Violation | None:
    if not text or text.isspace():
        return Violation("empty", f"user_data.{key} is blank: leave it out", text)
    if len(text) == 64 and _is_digest_of_any_case(text):  # the commonest mistake: everything hashed
        return Violation("hashed", f"user_data.{key} must not be hashed", text)
    return None


def _is_address(text: str) -> bool:
    """Return True for a valid, non-zero IPv4 or IPv6 address."""
    # `ipaddress` takes ten times as long.
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return any(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False


def _check_custom_data(custom_data: dict[str, Any]) -> Violation | None:
    for key in ("value", "predicted_ltv"):
        amount = custom_data.get(key)
        if amount is not None and _is_decimal(amount) is None:
            return Violation("amount", f"custom_data.{key} must be plain decimal text", amount)
    currency = custom_data.get("currency")
    if currency is not None and currency not in _currencies():
        return Violation("currency", "custom_data.currency must be an ISO 4217 code in upper case", currency)
    if not 0 <= custom_data.get("num_items", 0) <= _INT64_MAX:
        return Violation("quantity", "custom_data.num_items must not be negative", custom_data["num_items"])
    for content in custom_data.get("contents", ()):
        problem = _check_content(content)
        if problem is not None:
            return problem
    return None


def _check_content(content: dict[str, Any]) -> Violation | None:
    price = content.get("item_price")
    if price is not None and _is_decimal(price) is None:
        return Violation("amount", "custom_data.contents[].item_price must be plain decimal text", price)
    if not 0 <= content.get("quantity", 0) <= _INT64_MAX:
        return Violation(
            "quantity", "custom_data.contents[].quantity must not be negative", content["quantity"]
        )
    return None


@lru_cache(maxsize=1)
def _currencies() -> frozenset[str]:
    return frozenset(currency.alpha_3 for currency in pycountry.currencies)
