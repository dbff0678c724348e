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

The tables are read from ``request.schema.json``, a JSON Schema of the request; a test compares it with the description.
The checks are simple loops over these tables, so that the sandbox does not slow down a load test: about 10 microseconds
for an event of usual size. They are stricter than Pinterest on purpose, and share no code with the converter, because
they are an independent check of its output.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from typing import Any, Final, NamedTuple

import pycountry

MAX_EVENTS: Final = 1000
MAX_TEST_EVENTS: Final = 20
"""Maximum number of events that are processed of a call in test mode (documented)."""
MAX_AHEAD: Final = 300.0
"""Seconds that an event may be in the future, because of clock skew."""
MAX_AGE: Final = 7 * 86_400.0
"""Maximum age of an event in seconds. Pinterest documents none; third parties name this one."""


EMPTY_DIGEST: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of the empty string: it shows that a missing value was hashed."""


class Violation(NamedTuple):
    """Why an event is refused. `code` is from a fixed set; `value` is the invalid value, which may be personal data."""

    structural: bool
    code: str
    message: str
    value: object = None


class MemberLimits(NamedTuple):
    """The description's limits of a member of ``app_info`` or ``device_info``; lengths in code points."""

    type: type
    max_length: int | None = None
    maximum: int | None = None
    """Maximum of an integer; its minimum is then 0."""
    enum: frozenset[str] | None = None
    max_items: int | None = None


REQUEST: Final[Mapping[str, Any]] = json.loads(
    files("consumer.demo").joinpath("request.schema.json").read_text("utf-8")
)
"""The JSON Schema of the body of a request."""

_Types = frozenset[type]
_PYTHON: Final[Mapping[str, type]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def _definition(name: str) -> Mapping[str, Any]:
    """Return a definition of the schema."""
    found: Mapping[str, Any] = REQUEST["$defs"][name]
    return found


def _types(member: Mapping[str, Any]) -> _Types:
    """Return the types that a member may have."""
    while "$ref" in member:
        member = _definition(member["$ref"].rpartition("/")[2])
    named = member["type"]
    return frozenset(_PYTHON[name] for name in ([named] if isinstance(named, str) else named))


def _table(name: str) -> Mapping[str, _Types]:
    """Return the types of each member of an object."""
    return {key: _types(member) for key, member in _definition(name)["properties"].items()}


def _limits_of(member: Mapping[str, Any]) -> MemberLimits:
    (kind,) = _types(member)
    enum = member.get("enum")
    return MemberLimits(
        kind,
        max_length=member.get("maxLength"),
        maximum=member.get("maximum"),
        enum=None if enum is None else frozenset(enum),
        max_items=member.get("maxItems"),
    )


def _limits_table(name: str) -> Mapping[str, MemberLimits]:
    """Return the limits of each member of an object."""
    return {key: _limits_of(member) for key, member in _definition(name)["properties"].items()}


EVENT: Final = _table("event")
REQUIRED: Final[tuple[str, ...]] = tuple(_definition("event")["required"])
USER_DATA: Final = _table("user_data")
CUSTOM_DATA: Final = _table("custom_data")
CONTENT: Final = _table("content")
APP_INFO: Final = _limits_table("app_info")
DEVICE_INFO: Final = _limits_table("device_info")
ACTION_SOURCES: Final[frozenset[str]] = frozenset(_definition("event")["properties"]["action_source"]["enum"])
KNOWN_EVENT_NAMES: Final[frozenset[str]] = frozenset(_definition("standard_event_name")["enum"])
"""The standard event names. Names that an advertiser registered are valid too. Pinterest labels any other name as
Unknown (5.31); the sandbox refuses it, so that the mistake is seen."""
CUSTOMER_TYPES: Final[frozenset[str]] = frozenset(
    _definition("user_data")["properties"]["customer_type"]["enum"]
)

_PLAIN: Final = ("client_user_agent", "click_id", "partner_id")
_REQUIRED_SET: Final = frozenset(REQUIRED)
_INT64_MAX: Final = 2**63 - 1
_DIGEST_LENGTH: Final = frozenset((64,))
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
    problem = check_structure(event)
    if problem is not None:
        return problem
    assert isinstance(event, dict)  # noqa: S101  check_structure has just checked it
    custom_data = event.get("custom_data")
    return (
        _check_names(event, event_names)
        or _check_time(event["event_time"], now, max_age)
        or _check_user_data(event["user_data"])
        or (None if custom_data is None else _check_custom_data(custom_data))
    )


def check_structure(event: object) -> Violation | None:
    """Return the first structural violation of one item of ``data``."""
    if type(event) is not dict:
        return _structural("wrong_type", "an event must be an object", event)
    problem = _check_object(event, EVENT, "")
    if problem is not None:
        return problem
    if not event.keys() >= _REQUIRED_SET:
        missing = next(key for key in REQUIRED if key not in event)
        return _structural("missing_key", f"{missing} is required")
    return _check_user_data_structure(event["user_data"]) or _check_optional_structure(event)


def check_envelope(body: object) -> Violation | None:
    """Return what is wrong with the body, which must be an object with only ``data``, 1 to 1000 items."""
    if type(body) is not dict:
        return _structural("wrong_type", "the body must be an object")
    for key in body:
        if key != "data":
            return _structural("unknown_key", f"unknown key {key!r} beside data")
    if type(body.get("data")) is not list:
        return _structural("missing_key", "data is required and must be an array")
    if not 1 <= len(body["data"]) <= MAX_EVENTS:
        return _structural("event_count", f"data must hold 1 to {MAX_EVENTS} events, not {len(body['data'])}")
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


def _structural(code: str, message: str, value: object = None) -> Violation:
    return Violation(True, code, message, value)


def _check_object(value: dict[str, Any], table: Mapping[str, _Types], prefix: str) -> Violation | None:
    for key, member in value.items():
        types = table.get(key)
        if types is None:
            return _structural("unknown_key", f"{prefix}{key} is not allowed")
        if type(member) not in types:
            return _structural("wrong_type", f"{prefix}{key} has the wrong type", member)
    return None


def _check_user_data_structure(user_data: dict[str, Any]) -> Violation | None:
    problem = _check_object(user_data, USER_DATA, "user_data.")
    if problem is not None:
        return problem
    if not _all_text(chain.from_iterable(_arrays(user_data))):
        return _structural("wrong_type", "the arrays of user_data must hold strings only")
    return None


def _check_optional_structure(event: dict[str, Any]) -> Violation | None:
    custom_data = event.get("custom_data")
    if custom_data is not None:
        problem = _check_custom_data_structure(custom_data)
        if problem is not None:
            return problem
    app_info, device_info = event.get("app_info"), event.get("device_info")
    return (None if app_info is None else _check_bounded(app_info, APP_INFO, "app_info.")) or (
        None if device_info is None else _check_bounded(device_info, DEVICE_INFO, "device_info.")
    )


def _check_custom_data_structure(custom_data: dict[str, Any]) -> Violation | None:
    problem = _check_object(custom_data, CUSTOM_DATA, "custom_data.")
    if problem is not None:
        return problem
    if not _all_text(custom_data.get("content_ids", ())):
        return _structural("wrong_type", "custom_data.content_ids must be an array of strings")
    for content in custom_data.get("contents", ()):
        if type(content) is not dict:
            return _structural("wrong_type", "custom_data.contents must be an array of objects", content)
        problem = _check_object(content, CONTENT, "custom_data.contents[].")
        if problem is not None:
            return problem
    return None


def _check_bounded(value: dict[str, Any], table: Mapping[str, MemberLimits], prefix: str) -> Violation | None:
    for key, member in value.items():
        bound = table.get(key)
        if bound is None:
            return _structural("unknown_key", f"{prefix}{key} is not allowed")
        if type(member) is not bound.type:
            return _structural("wrong_type", f"{prefix}{key} has the wrong type", member)
        if not _within(member, bound):
            return _structural("out_of_bounds", f"{prefix}{key} is out of bounds", member)
    return None


def _within(member: Any, bound: MemberLimits) -> bool:
    if bound.type is int:
        return bool(0 <= member <= (_INT64_MAX if bound.maximum is None else bound.maximum))
    if bound.type is list:
        return (bound.max_items is None or len(member) <= bound.max_items) and _all_text(member)
    return (bound.enum is None or member in bound.enum) and (
        bound.max_length is None or len(member) <= bound.max_length
    )


def _arrays(user_data: dict[str, Any]) -> list[list[Any]]:
    """Return the values of the hashed fields, the only arrays in user_data."""
    return [member for member in user_data.values() if type(member) is list]


def _all_text(values: Iterable[object]) -> bool:
    try:
        "".join(values)  # type: ignore[arg-type]  # the fastest test: the loop is in C
    except TypeError:
        return False
    return True


# Meaning


def _failed(code: str, message: str, value: object = None) -> Violation:
    return Violation(False, code, message, value)


def _check_names(event: dict[str, Any], event_names: frozenset[str]) -> Violation | None:
    if event["event_name"] not in event_names:
        return _failed(
            "event_name", "event_name is neither a standard one nor registered", event["event_name"]
        )
    if event["action_source"] not in ACTION_SOURCES:
        return _failed("action_source", "action_source is not known", event["action_source"])
    if not event["event_id"].strip():
        return _failed("event_id", "event_id is blank", event["event_id"])
    return None


def _check_time(event_time: int, now: float, max_age: float | None) -> Violation | None:
    if event_time > now + MAX_AHEAD:
        return _failed("future", "event_time is in the future (is it in seconds?)", event_time)
    if max_age is not None and event_time < now - max_age:
        return _failed("expired", f"event_time is more than {max_age / 86_400:g} days ago", event_time)
    return None


def _check_user_data(user_data: dict[str, Any]) -> Violation | None:
    arrays = _arrays(user_data)
    if not (all(arrays) and _all_digests(list(chain.from_iterable(arrays)))):
        # Find the first array that is invalid.
        found = (_check_digests(key, values) for key, values in user_data.items() if type(values) is list)
        return next(filter(None, found), None)
    for key in _PLAIN:
        text = user_data.get(key)
        if text is not None:
            problem = _check_plain(key, text)
            if problem is not None:
                return problem
    if user_data.get("customer_type", "new") not in CUSTOMER_TYPES:
        return _failed("customer_type", "user_data.customer_type must be new or returning")
    address = user_data.get("client_ip_address")
    if address is not None and not _is_address(address):
        return _failed("ip_address", "user_data.client_ip_address must be a plain IP address", address)
    return _check_identity(user_data)


def _all_digests(texts: list[str]) -> bool:
    """Return True if all are digests. Checking them together is much faster than one by one."""
    joined = "".join(texts)
    return (
        set(map(len, texts)) <= _DIGEST_LENGTH
        and joined.isascii()
        and not joined.encode("ascii").translate(None, b"0123456789abcdef")
        and EMPTY_DIGEST not in texts
    )


def _check_digests(key: str, values: list[str]) -> Violation | None:
    if not values:
        return _failed("empty", f"user_data.{key} is empty: leave it out", values)
    for text in values:
        if _is_digest(text) is None:
            return _failed("digest", f"user_data.{key} must hold SHA-256 digests in lower-case hex", text)
        if text == EMPTY_DIGEST:
            return _failed("empty_digest", f"user_data.{key} holds the hash of the empty string", text)
    return None


def _check_plain(key: str, text: str) -> Violation | None:
    if not text or text.isspace():
        return _failed("empty", f"user_data.{key} is blank: leave it out", text)
    if len(text) == 64 and _is_digest_of_any_case(text):
        return _failed("hashed", f"user_data.{key} must not be hashed", text)
    return None


def _check_identity(user_data: dict[str, Any]) -> Violation | None:
    if "em" in user_data or "hashed_maids" in user_data:
        return None
    if "client_ip_address" in user_data and "client_user_agent" in user_data:
        return None
    return _failed(
        "identity", "user_data needs em, or hashed_maids, or client_ip_address with client_user_agent"
    )


def _is_address(text: str) -> bool:
    """Return True for a valid, non-zero IPv4 or IPv6 address. inet_pton takes a tenth of the time of `ipaddress`."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return any(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False


def _check_custom_data(custom_data: dict[str, Any]) -> Violation | None:
    for key in ("value", "predicted_ltv"):
        amount = custom_data.get(key)
        if amount is not None and _is_decimal(amount) is None:
            return _failed("amount", f"custom_data.{key} must be plain decimal text", amount)
    currency = custom_data.get("currency")
    if currency is not None and currency not in _currencies():
        return _failed("currency", "custom_data.currency must be an ISO 4217 code in upper case", currency)
    if not 0 <= custom_data.get("num_items", 0) <= _INT64_MAX:
        return _failed("quantity", "custom_data.num_items must not be negative", custom_data["num_items"])
    for content in custom_data.get("contents", ()):
        problem = _check_content(content)
        if problem is not None:
            return problem
    return None


def _check_content(content: dict[str, Any]) -> Violation | None:
    price = content.get("item_price")
    if price is not None and _is_decimal(price) is None:
        return _failed("amount", "custom_data.contents[].item_price must be plain decimal text", price)
    if not 0 <= content.get("quantity", 0) <= _INT64_MAX:
        return _failed(
            "quantity", "custom_data.contents[].quantity must not be negative", content["quantity"]
        )
    return None


@lru_cache(maxsize=1)
def _currencies() -> frozenset[str]:
    return frozenset(currency.alpha_3 for currency in pycountry.currencies)
