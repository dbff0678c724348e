"""Name, source, account and time of an event, and why it is refused.

Theory of operation. Both executors call this module: the plain one always, the compiled one for uncommon cases. Every
refusal and every warning is a constant made once, so that making one costs nothing and no message can hold a record's
values. So the codes are closed sets, and docs/conversion.md lists them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from consumer.avro.paths import Path, value_at
from consumer.conversion.computed.expressions import Computation, Expression
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import Omitted, Unrecognised, text_of, trim
from consumer.conversion.rules import (
    SECONDS_A_DAY,
    TIMESTAMPS,
    CalendarDay,
    Rule,
    event_seconds,
    moment,
    trimmed_text,
    units_of,
)
from consumer.conversion.targets import ACTION_SOURCES, CONTENTS, EVENT_NAMES, FILTER, TIME_UNITS, Target
from consumer.engine.model import Filtered, Rejection, Stage, Untimely, Warned

BY_EVENT_NAME: Final = Filtered("event_name")
BY_CONSENT: Final = Filtered("consent")
BY_AGE: Final = Filtered("max_age")

_AMOUNT = "is not a decimal number of zero or more, without grouping: correct it at the producer"
# Each message says what to do and where; none has a value of the record in it.
_WHY: Final = {
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
    "late": "the event is older than [max_age] of the mapping allows for its action source",
    "no_identity": "no user data identifies a shopper: send em, or hashed_maids (IDFA or GAID), or "
    "client_ip_address and client_user_agent",
    "malformed_opt_out": "opt_out is neither true nor false, and a shopper's choice is not guessed: say in the mapping "
    'what other words mean, "opt_out" = { of = "its path", table = { yes = true, no = false } }',
    "malformed_value": f"custom_data.value {_AMOUNT}",
    "malformed_item_price": f"{CONTENTS}.item_price {_AMOUNT}",
    "malformed_predicted_ltv": f"custom_data.predicted_ltv {_AMOUNT}",
    "unknown_currency": "custom_data.currency is not a code of ISO 4217",
    "missing_currency": "custom_data.value has no currency (XXX and XTS are none), and the platform would take the "
    "advertiser's own: map one, or name it in [constants]",
    "negative_quantity": "a quantity is negative",
}
# Code of a refusal for an unforeseen reason; its message names the type of the failure only.
UNCONVERTIBLE: Final = "unconvertible"

REFUSALS: Final = {code: Rejection(Stage.CONVERT, code, why) for code, why in _WHY.items()}

_UNIT: Final = "by so much that it is probably counted in another unit: correct time_unit of the mapping"
_FAR_OFF: Final = {
    code: Rejection(Stage.CONVERT, code, f"{_WHY[code]}, {_UNIT}")
    for code in ("expired", "future_event_time")
}
# Times before this are refused as `_FAR_OFF`, and those further ahead: seconds taken for milliseconds are of 1970.
_LIKELY_FROM: Final = 946_684_800  # 2000-01-01
_LIKELY_AHEAD: Final = 10 * 365 * SECONDS_A_DAY
_LATEST_TIME: Final = 2**64  # in any unit; later ones count as this: a float does not hold every integer

NOT_WEB: Final = Warned("not_web", "event_source_url belongs to web events only: omitted", "event_source_url")
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

AnswerWarnings = dict[Omitted | type[Unrecognised], Warned]


def warnings_of(target: Target) -> AnswerWarnings:
    """Return the warning for each reason to leave this field out, or not to count it. A blank value gets none."""
    name = target.name
    return {
        # `Omitted.BLANK` is missing: most records leave some fields blank.
        Omitted.MALFORMED: Warned("malformed", f"{name} is not {target.meant}: omitted", name),
        Omitted.PLACEHOLDER: Warned("placeholder", f"{name} is a placeholder: omitted", name),
        Omitted.UNLIKELY: Warned("unlikely", f"{name} can hardly be a shopper's: omitted", name),
        Unrecognised: Warned(
            "unrecognised", f"{name} is not {target.meant}: sent, but it is no identity", name
        ),
    }


def zero_warning(target: Target) -> Warned:
    """Return the warning that an amount of zero is sent."""
    return Warned("zero_value", f"{target.name} is zero", target.name)


def note(warned: list[Warned], answer: Omitted | Unrecognised, warnings: AnswerWarnings) -> None:
    """Add the warning for a rule's `answer`, if there is one, unless it is in the list."""
    warning = warnings.get(answer if isinstance(answer, Omitted) else Unrecognised)
    if warning is not None:
        note_once(warned, warning)


def note_once(warned: list[Warned], warning: Warned) -> None:
    """Add `warning`, unless it is in the list."""
    if warning not in warned:  # a short list: each warning of a mapping is in it once
        warned.append(warning)


def reader(place: Path | Computation | None) -> Callable[[Any], Any]:
    """Return what reads the one value of an event that stands at `place`, or is computed; it returns None if there is
    none."""
    match place:
        case None:
            return lambda event: None
        case Computation():
            return lambda event: place.value(event, event)
        case (name,):  # as nearly all
            return lambda event: event.get(name) if isinstance(event, dict) else None
        case _:
            return lambda event: value_at(event, place)


def sent_values(
    rule: Rule,
    values: Iterable[Any],
    warned: list[Warned],
    warnings: AnswerWarnings,
    *,
    only_first: bool = False,
) -> list[Any]:
    """Return the rule's answer for each value, in order; add a warning for each value that it omits or does not
    recognise.

    With `only_first`, values after the first answer are not checked, so there is no warning for them.
    """
    sent: list[Any] = []
    for value in values:
        result = rule(value)
        if isinstance(result, Omitted):
            note(warned, result, warnings)
            continue
        if result.__class__ is Unrecognised:
            note(warned, result, warnings)
        sent.append(result)
        if only_first:
            break
    return sent


def rule_for(target: Target, source: Expression, time_unit: str) -> Rule:
    """Return the target's rule for values of this source: the schema says how times and days are counted."""
    days, units = "date" in source.kinds, units_of(source.kinds, TIME_UNITS[time_unit])
    if target.name == "app_info.install_time":
        return event_seconds(units, days)
    # A birthday counted in days or units is a calendar day first, and then normalised as text is.
    if target.name == "user_data.db" and (days or source.kinds & TIMESTAMPS.keys()):
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
        # A line of the mapping goes before a standard name: the shop may use such a word in another sense.
        for event_type, name in mapping.event_names.items():
            self.names[event_type] = BY_EVENT_NAME if name == FILTER else name
        self.action_sources = {**{source: source for source in ACTION_SOURCES}, **mapping.action_sources}
        # Upper and lower case are looked up directly, mixed case by the rule.
        upper = {key.upper(): value for key, value in self.action_sources.items()}
        # The canonical forms of each channel: for the compiled program.
        self.exact_sources: dict[str, str] = {**upper, **self.action_sources}
        unknown: dict[str, str | Filtered | Rejection] = {
            "custom": "custom",
            "filter": BY_EVENT_NAME,
            "refuse": REFUSALS["unknown_event_name"],
        }
        self._unknown_name = unknown[mapping.unknown_event_name]
        time = mapping.sources["event_time"]
        self.units = units_of(time.kinds, TIME_UNITS[mapping.time_unit])
        self.days = "date" in time.kinds
        self._moment = moment(self.units, self.days)
        # How far back an event's time may lie, in units of the record's time.
        self.oldest = max_event_age * self.units
        # The same by action source, where the mapping says less (`targets.MaxAge`).
        self._oldest_of = {one: age * self.units for one, age in mapping.max_age.seconds.items()}
        self._late = BY_AGE if mapping.max_age.late == "filter" else REFUSALS["late"]
        self._skew = max_clock_skew * self.units

    def bounds(self, now: float) -> tuple[float, float]:
        """Return the times between which no event is too old at `now` (unix seconds), or ahead.

        In units of the record's time.
        """
        present = now * self.units
        return present - min(self.oldest, *self._oldest_of.values(), math.inf), present

    def name_of(self, value: Any) -> str | Filtered | Rejection:
        """Return the conversion name of an event type: by the table, exactly; or a standard name, in any case."""
        text = text_of(value)
        if isinstance(text, Omitted):
            return self._mapping.constants.get("event_name") or REFUSALS["missing_event_name"]
        name = self.names.get(text)
        if name is not None:
            return name
        # The shop's own spellings are exact; the platform's may come in any case.
        lowered = trim(text).lower()
        return lowered if lowered in EVENT_NAMES else self._unknown_name

    def source_of(self, value: Any) -> str | Rejection:
        """Return the action source of a channel, which may be in any case."""
        text = trimmed_text(value)
        if isinstance(text, Omitted):
            return self._mapping.constants.get("action_source") or REFUSALS["unknown_action_source"]
        return self.action_sources.get(text.lower(), REFUSALS["unknown_action_source"])

    def account_of(self, value: Any) -> str | Rejection:
        """Return the account that a record names, if it is one of ours; the default if the record names none."""
        text = trimmed_text(value)
        # A record without an account belongs to the first one; a malformed account is refused, not guessed.
        if text is Omitted.BLANK:
            return self.default_account
        if isinstance(text, str) and (text in self._accounts if self._accounts else _ACCOUNT.fullmatch(text)):
            return text
        return REFUSALS["unknown_ad_account"]

    def time_of(self, value: Any) -> int | Rejection:
        """Return an event's time, in the units that the record counts."""
        time: int | Omitted = self._moment(value)
        if isinstance(time, Omitted):
            return REFUSALS["missing_event_time" if time is Omitted.BLANK else "malformed_event_time"]
        return time

    def outside(self, time: int, present: float, source: str) -> int | Rejection:
        """Judge a time, of an event of this action source, that is not between the `bounds`; `present` in its units.

        A time a little ahead is clock skew: the event is sent as of now, in whole seconds.
        """
        if time > present + self._skew:
            # A clock is hardly so far off; the message names the likelier reason.
            far = time > present + _LIKELY_AHEAD * self.units
            refusal = (_FAR_OFF if far else REFUSALS)["future_event_time"]
            return self._untimely(refusal, time)
        if time > present:
            return int(present // self.units)
        if present - time > self.oldest:
            # Some are, by any clock.
            far = time < _LIKELY_FROM * self.units
            return _FAR_OFF["expired"] if far else self._untimely(REFUSALS["expired"], time)
        oldest = self._oldest_of.get(source, math.inf)
        if present - time <= oldest:
            return int(time // self.units)
        late = self._untimely(REFUSALS["late"], time, oldest)
        late.verdict = self._late
        return late

    def _untimely(self, refusal: Rejection, time: int, oldest: float | None = None) -> Untimely:
        time = min(time, _LATEST_TIME)
        until = time + (self.oldest if oldest is None else oldest)
        return Untimely.of(refusal, time / self.units, until / self.units)


def id_of(value: Any) -> str | Rejection:
    """Return the event's id as it is. An id is never made up: two records of one event would get different ones."""
    text = text_of(value)
    return REFUSALS["missing_event_id"] if isinstance(text, Omitted) else text


def dedup_id_of(value: Any, event_id: str) -> str:
    """Return the key that identifies the event within account and name: `value`, else `event_id`."""
    text = text_of(value)
    # Without a usable key the id identifies the event: at worst a copy is delivered; no event is lost.
    return event_id if isinstance(text, Omitted) else text
