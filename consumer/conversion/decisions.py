"""What the converter decides about a whole event: its name, source, account and time; and why it refuses one.

Theory of operation. Both executors ask here: the plain one always, the compiled one for what is not the common case.
Every refusal and every warning is a constant made once, so that making one costs nothing and no message can hold a
record's values. The closed sets of codes are `REJECTION_CODES`, `FILTER_CODES` and `WARNING_CODES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from consumer.avro.paths import Source, Step, StepKind
from consumer.conversion.mapping import FILTER, Mapping
from consumer.conversion.normalise import LeftOut, text_of, trim
from consumer.conversion.rules import (
    SECONDS_A_DAY,
    CalendarDay,
    Rule,
    event_seconds,
    moment,
    trimmed_text,
)
from consumer.conversion.targets import ACTION_SOURCES, CONTENTS, EVENT_NAMES, TIME_UNITS, Target
from consumer.engine.model import Ahead, Filtered, Rejection, Stage, Warned

BY_EVENT_NAME: Final = Filtered("event_name")
BY_CONSENT: Final = Filtered("consent")
FILTER_CODES: Final = frozenset({"event_name", "consent"})

_AMOUNT = "is not a decimal number of zero or more, without grouping: correct it at the producer"
_REFUSALS: Final = {
    "missing_event_name": "the event type is missing or blank",
    "unknown_event_name": "the event type is not mapped: add it to [event_names] of the mapping, or to [own_events] "
    "if it is registered with Pinterest",
    "unknown_action_source": "the channel is missing or not mapped: add it to [action_sources] of the mapping",
    "unknown_ad_account": "the ad account that the record names is not configured: add it to "
    "PINTEREST_EXTRA_AD_ACCOUNT_IDS",
    "missing_event_id": "the event id is missing, blank or not text; it is never made up",
    "missing_event_time": "the event time is missing or blank",
    "malformed_event_time": "the event time is neither a number of time units nor ISO 8601",
    "future_event_time": "the event time lies further ahead than clock skew explains",
    "expired": "the event is older than the platform takes",
    "no_identity": "user data identifies nobody: it needs em, or hashed_maids, or client_ip_address and "
    "client_user_agent",
    "malformed_opt_out": "opt_out is neither true nor false, and a shopper's choice is not guessed",
    "malformed_value": f"custom_data.value {_AMOUNT}",
    "malformed_item_price": f"{CONTENTS}.item_price {_AMOUNT}",
    "malformed_predicted_ltv": f"custom_data.predicted_ltv {_AMOUNT}",
    "unknown_currency": "custom_data.currency is not a code of ISO 4217",
    "missing_currency": "custom_data.value has no currency",
    "negative_quantity": "a quantity is negative",
}
UNCONVERTIBLE: Final = "unconvertible"
"""Code of a refusal for a reason nobody foresaw; its message names the type of the failure only."""

REFUSALS: Final = {code: Rejection(Stage.CONVERT, code, why) for code, why in _REFUSALS.items()}
REJECTION_CODES: Final = frozenset({*REFUSALS, UNCONVERTIBLE})

_FAR_OFF: Final = {
    code: Rejection(
        Stage.CONVERT,
        code,
        f"{_REFUSALS[code]}, by so much that it is probably counted in another unit: correct time_unit of the mapping",
    )
    for code in ("expired", "future_event_time")
}
"""Of times before `_LIKELY_FROM`, or more than `_LIKELY_AHEAD` ahead: seconds taken for milliseconds are of 1970."""
_LIKELY_FROM: Final = 946_684_800  # 2000-01-01
_LIKELY_AHEAD: Final = 10 * 365 * SECONDS_A_DAY

WARNING_CODES: Final = frozenset(
    {"malformed", "placeholder", "not_web", "zero_value", "opt_out_type_ignored", "crawler"}
)
NOT_WEB: Final = Warned(
    "not_web", "event_source_url belongs to web events only: left out", "event_source_url"
)
OPT_OUT_TYPE_IGNORED: Final = Warned(
    "opt_out_type_ignored",
    "the platform ignores opt_out_type unless user_data.st and user_data.country are sent",
    "custom_data.opt_out_type",
)
CRAWLER: Final = Warned(
    "crawler",
    "the user agent is a crawler's: the platform wants shoppers only; have the producer leave it out",
    "user_data.client_user_agent",
)

LeftOutWarnings = dict[LeftOut, Warned]


def warnings_of(target: Target) -> LeftOutWarnings:
    """The warning for each reason to leave this field out; what was blank is not worth one."""
    name = target.name
    return {
        LeftOut.MALFORMED: Warned("malformed", f"{name} is not {target.meant}: left out", name),
        LeftOut.PLACEHOLDER: Warned("placeholder", f"{name} stands for nothing: left out", name),
    }


def zero_warning(target: Target) -> Warned:
    """The warning that an amount of zero is sent."""
    return Warned("zero_value", f"{target.name} is zero", target.name)


def note(warned: list[Warned], left_out: LeftOut, warnings: LeftOutWarnings) -> None:
    """Adds the warning for `left_out`, once."""
    warning = warnings.get(left_out)
    if warning is not None:
        note_once(warned, warning)


def note_once(warned: list[Warned], warning: Warned) -> None:
    """Adds `warning` unless it is there; `warned` is short: it holds each warning of a mapping once."""
    if warning not in warned:
        warned.append(warning)


def get(value: Any, name: str) -> Any:
    """What `value` holds under `name`; None where it holds nothing or is nothing to hold."""
    return value.get(name) if isinstance(value, dict) else None


def walk(value: Any, steps: Iterable[Step]) -> list[Any]:
    """All values at the end of a path, in order, without nulls. A value where an array is meant is its one."""
    values = [value]
    for step in steps:
        if step.kind is StepKind.EACH:
            found = [each for held in values for each in (held if isinstance(held, list) else [held])]
        else:
            found = [get(held, step.name) for held in values]
        values = [held for held in found if held is not None] if None in found else found
    return values


def sent_values(
    rule: Rule, values: Iterable[Any], warned: list[Warned], warnings: LeftOutWarnings
) -> list[Any]:
    """What `rule` makes of each value, in order; a warning for what it leaves out."""
    sent = []
    for value in values:
        result = rule(value)
        if isinstance(result, LeftOut):
            note(warned, result, warnings)
        else:
            sent.append(result)
    return sent


def digests(rule: Rule, values: Iterable[Any], warned: list[Warned], warnings: LeftOutWarnings) -> list[Any]:
    """As `sent_values`, without duplicates."""
    sent = sent_values(rule, values, warned, warnings)
    return list(dict.fromkeys(sent)) if len(sent) > 1 else sent


def first_sent(rule: Rule, values: Iterable[Any], warned: list[Warned], warnings: LeftOutWarnings) -> Any:
    """What `rule` makes of the first usable value; `LeftOut.BLANK` if there is none."""
    for value in values:
        result = rule(value)
        if not isinstance(result, LeftOut):
            return result
        note(warned, result, warnings)
    return LeftOut.BLANK


_TIMESTAMPS: Final = {
    "timestamp-millis": TIME_UNITS["milliseconds"],
    "timestamp-micros": TIME_UNITS["microseconds"],
    "timestamp-nanos": TIME_UNITS["nanoseconds"],
}


def units_of(source: Source, time_unit: str) -> int:
    """How many units of a time at `source` make a second; what the schema does not say, `time_unit` does."""
    for kind, units in _TIMESTAMPS.items():
        if kind in source.kinds:
            return units
    return 1 if "date" in source.kinds else TIME_UNITS[time_unit]


def rule_for(target: Target, source: Source, time_unit: str) -> Rule:
    """The target's rule for values of this source: times and days depend on how the schema counts them."""
    days, units = "date" in source.kinds, units_of(source, time_unit)
    if target.name == "app_info.install_time":
        return event_seconds(units, days)
    if target.name == "user_data.db" and (days or source.kinds & _TIMESTAMPS.keys()):
        return CalendarDay(units, days, target.rule)
    return target.rule


_ACCOUNT = re.compile(r"[0-9]{1,18}")


class Decisions:
    """The decisions under one mapping and these settings; see `consumer.conversion.converter.Converter`."""

    def __init__(
        self, mapping: Mapping, accounts: tuple[str, ...], max_event_age: float, max_clock_skew: float
    ) -> None:
        self._mapping = mapping
        self._accounts = accounts
        self.default_account = accounts[0] if accounts else "0"
        self.names: dict[str, str | Filtered] = {name: name for name in mapping.known_event_names}
        for event_type, name in mapping.event_names.items():
            self.names[event_type] = BY_EVENT_NAME if name == FILTER else name
        self.action_sources = {**{source: source for source in ACTION_SOURCES}, **mapping.action_sources}
        upper = {key.upper(): value for key, value in self.action_sources.items()}
        self.exact_sources: dict[str, str] = {**upper, **self.action_sources}
        """The usual spellings of each channel: for the compiled program."""
        time = mapping.sources["event_time"]
        self.units = units_of(time, mapping.time_unit)
        self.days = "date" in time.kinds
        self._moment = moment(self.units)
        self.oldest = max_event_age * self.units
        """How far back an event's time may lie, in units of the record's time."""
        self._skew = max_clock_skew * self.units

    def name_of(self, value: Any) -> str | Filtered | Rejection:
        """The conversion name of an event type; exact in the table, or a standard name in any case."""
        text = text_of(value)
        if isinstance(text, LeftOut):
            return self._mapping.constants.get("event_name") or REFUSALS["missing_event_name"]
        name = self.names.get(text)
        if name is not None:
            return name
        lowered = trim(text).lower()
        return lowered if lowered in EVENT_NAMES else self._unknown_name()

    def _unknown_name(self) -> str | Filtered | Rejection:
        verdicts: dict[str, str | Filtered | Rejection] = {"custom": "custom", "filter": BY_EVENT_NAME}
        return verdicts.get(self._mapping.unknown_event_name, REFUSALS["unknown_event_name"])

    def source_of(self, value: Any) -> str | Rejection:
        """The action source of a channel, in any case."""
        text = trimmed_text(value)
        if isinstance(text, LeftOut):
            return self._mapping.constants.get("action_source") or REFUSALS["unknown_action_source"]
        return self.action_sources.get(text.lower(), REFUSALS["unknown_action_source"])

    def account_of(self, value: Any) -> str | Rejection:
        """The account that a record names, if it is one of ours; where it names none, the default."""
        text = trimmed_text(value)
        if text is LeftOut.BLANK:
            return self.default_account
        known = text in self._accounts if self._accounts else _is_account(text)
        return text if known and isinstance(text, str) else REFUSALS["unknown_ad_account"]

    def time_of(self, value: Any) -> int | Rejection:
        """An event's time in units of the record's time."""
        time: int | LeftOut = self._moment(
            value * SECONDS_A_DAY if self.days and type(value) is int else value
        )
        if isinstance(time, LeftOut):
            return REFUSALS["missing_event_time" if time is LeftOut.BLANK else "malformed_event_time"]
        return time

    def outside(self, time: int, present: float) -> int | Rejection:
        """What becomes of a time that is not between the oldest and `present` (both in its units).

        A little ahead is clock skew: the event is sent as of now, in whole seconds.
        """
        if time > present + self._skew:
            far = time > present + _LIKELY_AHEAD * self.units
            refusal = (_FAR_OFF if far else REFUSALS)["future_event_time"]
            return Ahead.of(refusal, time / self.units)
        if time > present:
            return int(present // self.units)
        return (_FAR_OFF if time < _LIKELY_FROM * self.units else REFUSALS)["expired"]

    def is_consent(self, value: Any) -> bool:
        """Whether the value at the consent's path lets the event go."""
        consent = self._mapping.consent
        if consent is None:
            return True
        if consent.allowed:
            return any(type(value) is type(allowed) and value == allowed for allowed in consent.allowed)
        return value is True


def _is_account(text: str | LeftOut) -> bool:
    return isinstance(text, str) and _ACCOUNT.fullmatch(text) is not None


def id_of(value: Any) -> str | Rejection:
    """The event's id as it is."""
    text = text_of(value)
    return REFUSALS["missing_event_id"] if isinstance(text, LeftOut) else text


def dedup_id_of(value: Any, event_id: str) -> str:
    """What identifies the event within account and name: `value`, or where there is none `event_id`."""
    text = text_of(value)
    return event_id if isinstance(text, LeftOut) else text
