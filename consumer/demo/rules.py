"""What the sandbox refuses: pure functions from one event of ``data`` to a `Problem`, or None if it is fine.

There are two kinds of problems, and the platform answers them differently:

* **Structural**: what a validator of the OpenAPI description refuses: an unknown key in a closed object, a
  missing required key, a wrong type, a length or an enumeration. One of them turns the whole call into
  a 400 (woocommerce/pinterest-for-woocommerce #967).
* **Of one event**: what the description says in words only: identity, digests, decimal text, known names, the
  age of the event. The call is a 200, and that event's entry says ``failed``.

The description's ``anyOf`` puts ``required`` beside ``$ref``, where OpenAPI 3.0 ignores it: so identity is
checked here. The user data object is open in the description; here it is closed, like its neighbours, so that
a wrong key is seen and not silently lost.

The tables are read from ``request.schema.json``, a JSON Schema of the request; a test compares it with the
description itself. The checks are straight lines over these tables, since a load test must not wait for its
stand-in: about 10 microseconds for an event of usual size. Strictness beyond the platform is meant: this is an
independent second opinion on what the converter makes, so it shares no code with it.
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
"""In test mode only so many events of a call are processed (DOC)."""
MAX_AHEAD: Final = 300.0
"""Seconds an event may lie in the future: clock skew, not a mistake."""
MAX_AGE: Final = 7 * 86_400.0
"""Seconds an event may be old. Only third parties name a number; this is theirs."""


EMPTY_DIGEST: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing: proof that an absent value was hashed."""


class Problem(NamedTuple):
    """Why an event is refused. `code` is from a closed set; `value` is what offends, personal data or not."""

    structural: bool
    code: str
    message: str
    value: object = None


class Bound(NamedTuple):
    """What the description demands of a member of ``app_info`` or ``device_info``; lengths in code points."""

    type: type
    max_length: int | None = None
    maximum: int | None = None
    """Of an integer, whose minimum is then 0."""
    enum: frozenset[str] | None = None
    max_items: int | None = None


REQUEST: Final[Mapping[str, Any]] = json.loads(
    files("consumer.demo").joinpath("request.schema.json").read_text("utf-8")
)
"""The JSON Schema of a request's body."""

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
    """One of the schema's definitions."""
    found: Mapping[str, Any] = REQUEST["$defs"][name]
    return found


def _types(member: Mapping[str, Any]) -> _Types:
    """The types that a member may have."""
    while "$ref" in member:
        member = _definition(member["$ref"].rpartition("/")[2])
    named = member["type"]
    return frozenset(_PYTHON[name] for name in ([named] if isinstance(named, str) else named))


def _table(name: str) -> Mapping[str, _Types]:
    """The types of each member of an object."""
    return {key: _types(member) for key, member in _definition(name)["properties"].items()}


def _bound(member: Mapping[str, Any]) -> Bound:
    (kind,) = _types(member)
    enum = member.get("enum")
    return Bound(
        kind,
        max_length=member.get("maxLength"),
        maximum=member.get("maximum"),
        enum=None if enum is None else frozenset(enum),
        max_items=member.get("maxItems"),
    )


def _bounds(name: str) -> Mapping[str, Bound]:
    """What is demanded of each member of an object."""
    return {key: _bound(member) for key, member in _definition(name)["properties"].items()}


EVENT: Final = _table("event")
REQUIRED: Final[tuple[str, ...]] = tuple(_definition("event")["required"])
USER_DATA: Final = _table("user_data")
CUSTOM_DATA: Final = _table("custom_data")
CONTENT: Final = _table("content")
APP_INFO: Final = _bounds("app_info")
DEVICE_INFO: Final = _bounds("device_info")
ACTION_SOURCES: Final[frozenset[str]] = frozenset(_definition("event")["properties"]["action_source"]["enum"])
KNOWN_EVENT_NAMES: Final[frozenset[str]] = frozenset(_definition("standard_event_name")["enum"])
"""The standard names. One that an advertiser registered is good too; of any other the platform says that it is labelled
Unknown (5.31), and here it is refused, so that it is seen."""
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
) -> Problem | None:
    """The first problem of one item of ``data``, structure before meaning; None if it is accepted.

    `now` is in seconds since 1970; `max_age` in seconds, None for any age.
    """
    problem = check_structure(event)
    if problem is not None:
        return problem
    assert isinstance(event, dict)  # noqa: S101  what check_structure has just established
    custom_data = event.get("custom_data")
    return (
        _check_names(event, event_names)
        or _check_time(event["event_time"], now, max_age)
        or _check_user_data(event["user_data"])
        or (None if custom_data is None else _check_custom_data(custom_data))
    )


def check_structure(event: object) -> Problem | None:
    """What a validator of the OpenAPI description refuses in one item of ``data``."""
    if type(event) is not dict:
        return _structural("wrong_type", "an event must be an object", event)
    problem = _check_object(event, EVENT, "")
    if problem is not None:
        return problem
    if not event.keys() >= _REQUIRED_SET:
        missing = next(key for key in REQUIRED if key not in event)
        return _structural("missing_key", f"{missing} is required")
    return _check_user_data_structure(event["user_data"]) or _check_optional_structure(event)


def check_envelope(body: object) -> Problem | None:
    """What is wrong with the body around the events: an object with only ``data``, 1 to 1000 items."""
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
    """Whether this can be the id of an ad account: 1 to 18 digits 0-9."""
    return len(account) <= 18 and account.isascii() and account.isdigit()


def warning_for(event: Mapping[str, Any]) -> str | None:
    """What the platform would grumble about in an accepted event; None if nothing."""
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


def _structural(code: str, message: str, value: object = None) -> Problem:
    return Problem(True, code, message, value)


def _check_object(value: dict[str, Any], table: Mapping[str, _Types], prefix: str) -> Problem | None:
    for key, member in value.items():
        types = table.get(key)
        if types is None:
            return _structural("unknown_key", f"{prefix}{key} is not allowed")
        if type(member) not in types:
            return _structural("wrong_type", f"{prefix}{key} has the wrong type", member)
    return None


def _check_user_data_structure(user_data: dict[str, Any]) -> Problem | None:
    problem = _check_object(user_data, USER_DATA, "user_data.")
    if problem is not None:
        return problem
    if not _all_text(chain.from_iterable(_arrays(user_data))):
        return _structural("wrong_type", "the arrays of user_data must hold strings only")
    return None


def _check_optional_structure(event: dict[str, Any]) -> Problem | None:
    custom_data = event.get("custom_data")
    if custom_data is not None:
        problem = _check_custom_data_structure(custom_data)
        if problem is not None:
            return problem
    app_info, device_info = event.get("app_info"), event.get("device_info")
    return (None if app_info is None else _check_bounded(app_info, APP_INFO, "app_info.")) or (
        None if device_info is None else _check_bounded(device_info, DEVICE_INFO, "device_info.")
    )


def _check_custom_data_structure(custom_data: dict[str, Any]) -> Problem | None:
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


def _check_bounded(value: dict[str, Any], table: Mapping[str, Bound], prefix: str) -> Problem | None:
    for key, member in value.items():
        bound = table.get(key)
        if bound is None:
            return _structural("unknown_key", f"{prefix}{key} is not allowed")
        if type(member) is not bound.type:
            return _structural("wrong_type", f"{prefix}{key} has the wrong type", member)
        if not _within(member, bound):
            return _structural("out_of_bounds", f"{prefix}{key} is out of bounds", member)
    return None


def _within(member: Any, bound: Bound) -> bool:
    if bound.type is int:
        return bool(0 <= member <= (_INT64_MAX if bound.maximum is None else bound.maximum))
    if bound.type is list:
        return (bound.max_items is None or len(member) <= bound.max_items) and _all_text(member)
    return (bound.enum is None or member in bound.enum) and (
        bound.max_length is None or len(member) <= bound.max_length
    )


def _arrays(user_data: dict[str, Any]) -> list[list[Any]]:
    """The hashed fields' values: in user_data, they and only they are arrays."""
    return [member for member in user_data.values() if type(member) is list]


def _all_text(values: Iterable[object]) -> bool:
    try:
        "".join(values)  # type: ignore[arg-type]  # the quickest test there is: the loop is in C
    except TypeError:
        return False
    return True


# Meaning


def _failed(code: str, message: str, value: object = None) -> Problem:
    return Problem(False, code, message, value)


def _check_names(event: dict[str, Any], event_names: frozenset[str]) -> Problem | None:
    if event["event_name"] not in event_names:
        return _failed(
            "event_name", "event_name is neither a standard one nor registered", event["event_name"]
        )
    if event["action_source"] not in ACTION_SOURCES:
        return _failed("action_source", "action_source is not known", event["action_source"])
    if not event["event_id"].strip():
        return _failed("event_id", "event_id is blank", event["event_id"])
    return None


def _check_time(event_time: int, now: float, max_age: float | None) -> Problem | None:
    if event_time > now + MAX_AHEAD:
        return _failed("future", "event_time is in the future (is it in seconds?)", event_time)
    if max_age is not None and event_time < now - max_age:
        return _failed("expired", f"event_time is more than {max_age / 86_400:g} days ago", event_time)
    return None


def _check_user_data(user_data: dict[str, Any]) -> Problem | None:
    arrays = _arrays(user_data)
    if not (all(arrays) and _all_digests(list(chain.from_iterable(arrays)))):
        return _find_digest_problem(user_data)
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
    """Whether all are digests: at once, since one by one this alone would take half of the time there is."""
    joined = "".join(texts)
    return (
        set(map(len, texts)) <= _DIGEST_LENGTH
        and joined.isascii()
        and not joined.encode("ascii").translate(None, b"0123456789abcdef")
        and EMPTY_DIGEST not in texts
    )


def _find_digest_problem(user_data: dict[str, Any]) -> Problem | None:
    """Names the first array that is to blame, once it is known that one is."""
    problems = (_check_digests(key, values) for key, values in user_data.items() if type(values) is list)
    return next(filter(None, problems), None)


def _check_digests(key: str, values: list[str]) -> Problem | None:
    if not values:
        return _failed("empty", f"user_data.{key} is empty: leave it out", values)
    for text in values:
        if _is_digest(text) is None:
            return _failed("digest", f"user_data.{key} must hold SHA-256 digests in lower-case hex", text)
        if text == EMPTY_DIGEST:
            return _failed("empty_digest", f"user_data.{key} holds the hash of the empty string", text)
    return None


def _check_plain(key: str, text: str) -> Problem | None:
    if not text or text.isspace():
        return _failed("empty", f"user_data.{key} is blank: leave it out", text)
    if len(text) == 64 and _is_digest_of_any_case(text):
        return _failed("hashed", f"user_data.{key} must not be hashed", text)
    return None


def _check_identity(user_data: dict[str, Any]) -> Problem | None:
    if "em" in user_data or "hashed_maids" in user_data:
        return None
    if "client_ip_address" in user_data and "client_user_agent" in user_data:
        return None
    return _failed(
        "identity", "user_data needs em, or hashed_maids, or client_ip_address with client_user_agent"
    )


def _is_address(text: str) -> bool:
    """A valid IPv4 or IPv6 address that names someone (inet_pton: a tenth of what `ipaddress` takes)."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return any(socket.inet_pton(family, text))
    except (OSError, ValueError):
        return False


def _check_custom_data(custom_data: dict[str, Any]) -> Problem | None:
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


def _check_content(content: dict[str, Any]) -> Problem | None:
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
