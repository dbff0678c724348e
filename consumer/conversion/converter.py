"""The plain executor of a conversion: commerce event -> conversion event, filtered, or unconvertible.

Theory of operation. A `Converter` goes through the `Description` of its mapping for each event, and trusts no value to
be what the schema says. It is the reference that the compiled program is tested against, what takes a record that the
program leaves, and what ``pinstream explain`` shows.

The order is that of decisions: name, consent, account, source, id, time, the rest of the event, user data, identity,
custom data. The first refusal ends it. What breaks under every hand is refused as ``unconvertible`` under the name of
the failure's type: one event never stops the rest.

What comes out is safe to serialise: text is Unicode, numbers fit the API's int64, amounts are text.
"""

from __future__ import annotations

from typing import Any

from consumer.avro.paths import AvroSchema
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import is_zero
from consumer.conversion.codes import Way
from consumer.conversion.decisions import (
    FILTER_CODES,
    REFUSALS,
    REJECTION_CODES,
    UNCONVERTIBLE,
    WARNING_CODES,
    Decisions,
)
from consumer.conversion.fields import Description, Path, ProgramField
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import LeftOut
from consumer.conversion.rules import Rule, click_id_of, is_crawler, total
from consumer.conversion.targets import DECIDED
from consumer.engine.model import CommerceEvent, ConversionEvent, Converted, Rejection, Stage, Warned

__all__ = ["FILTER_CODES", "REJECTION_CODES", "WARNING_CODES", "Converter"]


class Converter:
    """Converts events of one schema under one mapping.

    `schema` is the reader's schema that `mapping` was checked against. `accounts` are the ad accounts that a
    record may name, the first being the one of records that name none; empty: any digits will do, and the
    default is ``"0"``. `partner_name` is that of every event. `max_event_age` and `max_clock_skew` are seconds.
    """

    def __init__(
        self,
        mapping: Mapping,
        schema: AvroSchema,
        *,
        accounts: tuple[str, ...],
        partner_name: str | None,
        max_event_age: float,
        max_clock_skew: float = 300.0,
    ) -> None:
        self.mapping = mapping
        self.schema = schema
        self._decisions = Decisions(mapping, accounts, max_event_age, max_clock_skew)
        self.description = Description(mapping, self._decisions, partner_name)
        """What is done; for `consumer.conversion.program` too."""
        self._names = {name: _names(self.description.steps(name)) for name in DECIDED}
        self._consent = None if mapping.consent is None else _names(mapping.consent.source.steps)
        self._dedup_key = None if mapping.dedup_key is None else _names(mapping.dedup_key.steps)

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """What becomes of `event` at `now` (unix seconds). Never raises."""
        return self.convert_chunk([event], now)[0]

    def convert_chunk(self, events: list[CommerceEvent], now: float) -> list[Converted]:
        """What becomes of each event, in order, at `now` (unix seconds). Never raises."""
        oldest, present = self.bounds(now)
        return [self._outcome(event, oldest, present) for event in events]

    def bounds(self, now: float) -> tuple[float, float]:
        """The oldest time of an event that is not expired at `now` (unix seconds), and the latest that is not ahead.

        In units of the record's time.
        """
        present = now * self._decisions.units
        return present - self._decisions.oldest, present

    def _outcome(self, event: CommerceEvent, oldest: float, present: float) -> Converted:
        try:
            return self._converted(event, oldest, present)
        except _Refused as refused:
            return refused.rejection
        except Exception as failure:
            name = type(failure).__name__
            message = f"the event cannot be converted ({name}): compare it with its schema"
            return Rejection(Stage.CONVERT, UNCONVERTIBLE, message)

    def _converted(self, event: CommerceEvent, oldest: float, present: float) -> Converted:
        decisions = self._decisions
        name = decisions.name_of(self._decided(event, "event_name"))
        if name is decide.BY_EVENT_NAME:
            return decide.BY_EVENT_NAME
        if self._consent is not None and not decisions.is_consent(_value(event, self._consent)):
            return decide.BY_CONSENT
        if not isinstance(name, str):
            return name
        account = decisions.account_of(self._decided(event, "ad_account_id"))
        if not isinstance(account, str):
            return account
        source = decisions.source_of(self._decided(event, "action_source"))
        if not isinstance(source, str):
            return source
        event_id = decide.id_of(self._decided(event, "event_id"))
        if not isinstance(event_id, str):
            return event_id
        key = self._dedup_key
        dedup_id = event_id if key is None else decide.dedup_id_of(_value(event, key), event_id)
        time = decisions.time_of(self._decided(event, "event_time"))
        if not isinstance(time, int):
            return time
        seconds = time // decisions.units if oldest <= time <= present else decisions.outside(time, present)
        if not isinstance(seconds, int):
            return seconds
        payload = {"event_name": name, "action_source": source, "event_time": seconds, "event_id": event_id}
        writing = _Writing(self.description, event, source)
        writing.write(payload)
        warned = tuple(writing.warned)
        return ConversionEvent(account, name, event_id, dedup_id, seconds, source, payload, warned)

    def _decided(self, event: CommerceEvent, name: str) -> Any:
        """The value that one of `DECIDED` is decided by; None if there is none."""
        names = self._names[name]
        return None if names is None else _value(event, names)


class _Refused(Exception):
    """Ends a conversion with this verdict."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.code)
        self.rejection = rejection


class _Writing:
    """One event while its payload is written."""

    def __init__(self, description: Description, event: CommerceEvent, source: str) -> None:
        self.warned: list[Warned] = []
        self._description = description
        self._event = event
        self._source = source
        self._address: str | None = None
        """Of the event's page, if there may be a click id in it."""

    def write(self, payload: dict[str, Any]) -> None:
        """All but what was decided before. Raises `_Refused`."""
        what, event = self._description, self._event
        self._fill(payload, what.event, event)
        for key, fields in (("app_info", what.app_info), ("device_info", what.device_info)):
            written: dict[str, Any] = {}
            self._fill(written, fields, event)
            if written:
                payload[key] = written
        user = payload["user_data"] = {}
        self._fill(user, what.user_data, event)
        at_a_device = "client_ip_address" in user and "client_user_agent" in user
        if not ("em" in user or "hashed_maids" in user or at_a_device):
            raise _Refused(REFUSALS["no_identity"])
        custom = self._custom_data()
        if "value" in custom and "currency" not in custom:
            raise _Refused(REFUSALS["missing_currency"])
        if "opt_out_type" in custom and not ("st" in user and "country" in user):
            self.warned.append(decide.OPT_OUT_TYPE_IGNORED)
        if custom:
            payload["custom_data"] = custom

    def _custom_data(self) -> dict[str, Any]:
        what, event = self._description, self._event
        custom: dict[str, Any] = {}
        contents = []
        if what.items:
            for item in decide.walk(event, what.item_steps) if what.item_steps else [event]:
                content: dict[str, Any] = {}
                self._fill(content, what.items, item)
                if content:
                    contents.append(content)
        if contents:
            custom["contents"] = contents
        self._fill(custom, what.gathered, event)
        self._fill(custom, what.custom_data, event)
        return custom

    def _fill(self, into: dict[str, Any], fields: list[ProgramField], holder: Any) -> None:
        """Put each field that has a value below `holder`, or a constant, into an object."""
        for field in fields:
            sent, rule = None, field.ask
            if rule is not None:
                value = holder
                for name in field.names:
                    value = value.get(name) if isinstance(value, dict) else None
                if value is not None and field.way is Way.VALUE:
                    sent = self._judged(field, rule(value))
                elif value is not None:
                    sent = self._several(field, rule, value)
            if sent is None and field.takes_click_id and self._address is not None:
                sent = click_id_of(self._address)
            if sent is None:
                sent = field.constant
            if sent is not None:
                into[field.key] = sent

    def _several(self, field: ProgramField, rule: Rule, value: Any) -> Any:
        """What is sent of all values from `value` on; None if nothing is."""
        if not field.rest and field.way is not Way.TOTAL:  # one, sent as an array
            sent = self._judged(field, rule(value))
            return None if sent is None else [sent]
        values = decide.walk(value, field.rest)
        if field.way is Way.DIGESTS:
            return decide.digests(rule, values, self.warned, field.warnings) or None
        if field.way is Way.ALL:
            return decide.sent_values(rule, values, self.warned, field.warnings)[: field.most] or None
        if field.way is Way.FIRST:
            return self._judged(field, decide.first_sent(rule, values, self.warned, field.warnings))
        return self._judged(field, total(values))

    def _judged(self, field: ProgramField, result: Any) -> Any:
        """What a rule answered, or None if it is left out, with a warning; or it refuses the event."""
        if result is None:
            raise _Refused(REFUSALS["negative_quantity"])
        if isinstance(result, LeftOut):
            if field.refusal is None:
                decide.note(self.warned, result, field.warnings)
            elif result is LeftOut.MALFORMED:
                raise _Refused(field.refusal)
            return None
        if field.web_only and self._source != "web":
            self.warned.append(decide.NOT_WEB)
            return None
        if field.zero is not None and is_zero(result):
            decide.note_once(self.warned, field.zero)
        if field.gives_click_id:
            self._address = result
        if field.is_agent and is_crawler(result):
            decide.note_once(self.warned, decide.CRAWLER)
        return result


def _names(steps: Path | None) -> tuple[str, ...] | None:
    return None if steps is None else tuple(step.name for step in steps)


def _value(value: Any, names: tuple[str, ...]) -> Any:
    """The one value at the end of a path; None where there is none."""
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
