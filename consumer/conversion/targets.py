"""Every field that the API takes, its rule, and where it may come from.

Theory of operation. One table, `TARGETS`, in the order of fields in a payload. The mapping checks names and types
against it; the converter and the tests' reference both read rules from it, so that each rule is defined once. Names are
dotted (``user_data.em``); ``custom_data.contents[].id`` is a field of every item. ``ad_account_id`` is no field of the
event but picks the account; it is a target of the mapping all the same.

The closed objects are those of the platform's OpenAPI description 5.28, without fields that we never send; fields that
came later, or are known only from one reading of the endpoint's page, are in `NEW_TARGETS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from consumer.conversion import rules
from consumer.conversion.amounts import MAX_COUNT, amount, count
from consumer.conversion.normalise import (
    HASHED_FIELDS,
    client_ip_address,
    external_id_as_written,
    hashing,
    phone_with_code,
    text_of,
)


class Arity(Enum):
    """How several values of a source are sent."""

    ONE = "one"  # not allowed: picking one would be a guess
    FIRST = "first"  # the first usable one is sent
    ALL = "all"  # all are sent, as an array
    SUM = "sum"  # their sum is sent
    ITEM = "item"  # one value in each item of ``contents``


class Target(NamedTuple):
    """A field a mapping may fill. `kinds`: Avro kinds it may come from (see `Source`).

    `refusal`: code of the refusal of an event for a malformed value; None: the value is omitted with a warning.
    `meant`: what the field accepts, for messages; `form`: what is sent for it, if that is not the same.
    """

    name: str
    rule: rules.Rule
    meant: str
    kinds: frozenset[str]
    arity: Arity = Arity.FIRST
    refusal: str | None = None
    hashed: bool = False
    constant: bool = True
    form: str = ""

    @property
    def parent(self) -> str:
        """Return the object that has the field: ``user_data``, ``custom_data.contents[]``, "" for the event."""
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        """Return the field's name within its object."""
        return self.name.rpartition(".")[2]


# The items of an event; its fields are fields of each of them.
CONTENTS = "custom_data.contents[]"

# The standard event names: those of the OpenAPI description, and the seven that came with 5.28.
EVENT_NAMES: Final = frozenset({
    "add_payment_info", "add_to_cart", "add_to_wishlist", "app_install", "app_open", "checkout", "contact", "custom",
    "customize_product", "find_location", "initiate_checkout", "lead", "page_visit", "schedule", "search", "signup",
    "start_trial", "submit_application", "subscribe", "view_category", "view_content", "watch_video",
})  # fmt: skip

MAX_OWN_EVENTS: Final = 15  # names of its own that an advertiser may register
FILTER: Final = "!filter"  # the word in `[event_names]` for an event type that is not sent
LONGEST_OWN_EVENT: Final = 100  # most characters of such a name

ACTION_SOURCES: Final = ("web", "app_ios", "app_android", "offline")

# Fields of the API that are always omitted.
NEVER_SENT: Final = frozenset(
    {"np", "external_measurement_id", "external_measurement_vendor_id", "advertiser_tracking_enabled"}
)

# The mapping's names for units of time -> how many make a second.
TIME_UNITS: Final = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}

# Kinds of value (see `consumer.avro.paths.Source`).
NUMBERS: Final = frozenset({"int", "long", "float", "double", "decimal"})
# Kinds that may hold a number or a time. A symbol of an enum begins with a letter, so it is neither.
_DIGITS = NUMBERS | {"string"}
WORDS: Final = frozenset({"string", "enum"})
_TEXT = NUMBERS | WORDS
# Kinds that count time, each in a unit of its own; each of them has a day.
DAYS: Final = frozenset({"date", "timestamp-millis", "timestamp-micros", "timestamp-nanos"})
_WHOLE = frozenset({"int", "long", "string"})
# Kinds that `rules.flag` reads.
_FLAG = WORDS | {"boolean", "int"}


def _special(name: str, meant: str, kinds: frozenset[str], form: str = "", constant: bool = False) -> Target:
    """Return a field that the converter decides itself: its rule is never called."""
    return Target(name, text_of, meant, kinds, Arity.ONE, constant=constant, form=form)


def _text(name: str) -> Target:
    return Target(name, text_of, "text", _TEXT)


def _texts(parent: str, **longest: int) -> list[Target]:
    """Return fields of an object for text of up to this many characters."""
    return [
        Target(f"{parent}.{key}", rules.text_up_to(maximum), f"text of up to {maximum} characters", _TEXT)
        for key, maximum in longest.items()
    ]


def _numbers(parent: str, **highest: int) -> list[Target]:
    """Return fields of an object for whole numbers up to these."""
    return [
        Target(
            f"{parent}.{key}",
            rules.integer(maximum),
            f"a whole number from 0 to {maximum}",
            _WHOLE,
            Arity.ONE,
        )
        for key, maximum in highest.items()
    ]


def _amount(name: str, arity: Arity = Arity.ONE) -> Target:
    refusal = f"malformed_{name.rpartition('.')[2]}"
    return Target(name, amount, "a decimal number of zero or more", _DIGITS, arity, refusal)


def _choice(name: str, words: str) -> Target:
    return Target(name, rules.choice(words.split()), f"one of {', '.join(words.split())}", _TEXT)


def _table() -> list[Target]:
    return [
        _special("event_name", "text", WORDS, "by [event_names], or a name of the platform's or of your own",
                 constant=True),
        _special("action_source", "text", WORDS, "by [action_sources]", constant=True),
        _special("event_time", "a time", _DIGITS | DAYS, "whole seconds since 1970"),
        _special("event_id", "text", frozenset({"string", "int", "long"}), "text, unchanged"),
        _special("ad_account_id", "digits", frozenset({"string", "int", "long"})),
        Target("event_source_url", rules.web_url, "an absolute http or https URL", frozenset({"string"})),
        Target("opt_out", rules.flag, "true or false", _FLAG, Arity.ONE, "malformed_opt_out"),
        _text("partner_name"),
        Target("language", rules.language, "a language", _TEXT),
        *(_text(key) for key in ("app_id", "app_name", "app_version")),
        *(_text(f"device_{key}") for key in ("brand", "carrier", "model", "type")),
        _text("os_version"),
        Target("wifi", rules.flag, "true or false", _FLAG, Arity.ONE),
        # The numbers are limits of the API: the most characters of a text, the highest number.
        *_texts("app_info", app_id=200, app_name=200, app_package_name=200, app_store=100, app_version=100),
        # The rule depends on how the schema counts time: `decisions.rule_for` makes another one.
        Target("app_info.install_time", text_of, "a time", _TEXT | DAYS, Arity.ONE, constant=False),
        *_texts("app_info", user_agent=16384),
        *_numbers("app_info", window_height=30720, window_width=30720),
        *_texts("device_info", brand=100, carrier=100, kernel_version=100, locale=35, model=100, os_name=100,
                os_release_name=100, os_version=100, timezone=40, timezone_abbr=5, type=100),
        *_numbers("device_info", battery_level=100, cpu_cores=1152, external_storage_free_space=1048576,
                  external_storage_size=1048576, screen_density=100000, screen_height=30720, screen_width=30720,
                  storage_free_space=1048576, storage_size=1048576),
        _choice("device_info.form_factor", "desktop laptop cellphone tablet smartwatch tv vr console other"),
        _choice("device_info.network_type",
                "wifi cellular_2g cellular_3g cellular_4g cellular_5g cellular_6g ethernet unknown"),
        _choice("device_info.os_family", "ios android macos windows linux bsd other"),
        Target("device_info.languages", rules.language, "a language", _TEXT, Arity.ALL, constant=False),
        *(Target(f"user_data.{key}", hashing(normaliser), meant, _TEXT | DAYS if key == "db" else _TEXT, Arity.ALL,
                 hashed=True, form=f"{form}; SHA-256") for key, (normaliser, meant, form) in HASHED_FIELDS.items()),
        Target("user_data.client_ip_address", client_ip_address, "an IP address", _TEXT),
        *(_text(f"user_data.{key}") for key in ("client_user_agent", "click_id", "partner_id")),
        _choice("user_data.customer_type", "new returning")._replace(constant=False),
        Target("custom_data.currency", rules.currency, "a code of ISO 4217", _TEXT, Arity.ONE, "unknown_currency"),
        _amount("custom_data.value"),
        Target("custom_data.content_ids", text_of, "text", _TEXT, Arity.ALL, constant=False),
        *(_text(f"custom_data.{key}") for key in ("content_name", "content_category", "content_brand")),
        *(_text(f"{CONTENTS}.{key}")._replace(arity=Arity.ITEM, constant=False) for key in
          ("id", "item_name", "item_category", "item_brand", "item_brand_id")),
        _amount(f"{CONTENTS}.item_price", Arity.ITEM)._replace(constant=False),
        Target(f"{CONTENTS}.quantity", count, f"a whole number up to {MAX_COUNT}", _DIGITS, Arity.ITEM,
               constant=False),
        Target("custom_data.num_items", count, f"a whole number up to {MAX_COUNT}", _DIGITS, Arity.SUM,
               constant=False),
        Target("custom_data.order_id", rules.order_id, "text", _TEXT),
        _text("custom_data.search_string"),
        Target("custom_data.opt_out_type", rules.trimmed_text, "text", _TEXT),
        _amount("custom_data.predicted_ltv"),
    ]  # fmt: skip


# Dotted name -> target, in payload order.
TARGETS: Final[dict[str, Target]] = {target.name: target for target in _table()}

# Targets that the platform accepts only recently -> since when: never sent unless a mapping names them.
NEW_TARGETS: Final = {
    f"{CONTENTS}.item_brand_id": "since 5.28",
    "user_data.customer_type": "as one reading of 5.31 has it",
}

# Targets that are filled from the items where a mapping has no line for them -> from which field of an item.
DERIVED: Final = {
    "custom_data.content_ids": f"{CONTENTS}.id",
    "custom_data.num_items": f"{CONTENTS}.quantity",
}
# Targets that the converter decides itself, before it reads any others.
DECIDED: Final = frozenset({"event_name", "action_source", "event_time", "event_id", "ad_account_id"})

# The target of ``external_id`` where the case is kept, for shops whose browser tag hashes the id as it is.
EXTERNAL_ID_AS_WRITTEN: Final = TARGETS["user_data.external_id"]._replace(
    rule=hashing(external_id_as_written)
)


@cache
def phone_target(code: str) -> Target:
    """Return the target of ``ph`` that puts the country's `code` before numbers without one."""
    return TARGETS["user_data.ph"]._replace(rule=hashing(phone_with_code(code)))


# The tables of a mapping file.
TABLES: Final = (
    *("event_names", "own_events", "action_sources", "fields", "constants", "consent", "dedup"),
    "max_age",
)
# Lines of [max_age] -> the action sources that they are for.
AGED: Final = {"web": ("web",), "app": ("app_ios", "app_android"), "offline": ("offline",)}
# What becomes of an event that is older.
LATE: Final = ("send", "filter", "dead_letter")
DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class MaxAge(NamedTuple):
    """How old an event may be that is sent, by action source; empty: as `PINSTREAM_MAX_EVENT_AGE` says. `late`: what
    becomes of an older one, one of `LATE`."""

    seconds: Mapping[str, int] = MappingProxyType({})
    late: str = "send"

    @classmethod
    def of(cls, table: dict[str, Any]) -> MaxAge | str:
        """Return what the table [max_age] says, or what is wrong with it."""
        late = table.get("late", "send")
        seconds: dict[str, int] = {}
        if late not in LATE:
            return f"'late' must be one of {', '.join(map(repr, LATE))}"
        for key, said in table.items():
            found = DURATION.fullmatch(said) if isinstance(said, str) else None
            if found:
                seconds |= dict.fromkeys(AGED[key], int(found[1]) * _SECONDS[found[2]])
            elif key != "late" and said != "":
                return f'{key!r} must be a duration in quotes, like "1h" or "30m"; empty: any age'
        return cls({} if late == "send" else seconds, late)
