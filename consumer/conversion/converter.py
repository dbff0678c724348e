"""The plain executor: reference, fallback and `explain`.

Theory of operation. A `Converter` goes through the `Description` of its mapping for each event, and does not trust
values to have the types of the schema. The compiled program is tested against it, leaves other records to it, and
``pinstream explain`` shows what it does.

The order of decisions is: name, consent, account, source, id, time, the rest of the event, user data, identity, custom
data. The first refusal ends it. An event whose conversion raises an unforeseen exception is refused as
``unconvertible``, with the exception's type: one event never stops the rest.

The result is safe to serialise: text is Unicode, numbers fit the API's int64, amounts are text.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from consumer.avro.paths import ITEMS, value_at, walk
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import is_zero
from consumer.conversion.codes import Way
from consumer.conversion.decisions import REFUSALS, UNCONVERTIBLE, Decisions
from consumer.conversion.fields import Description, Groups, ProgramField, fields_in, grouped
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import Omitted, Unrecognised
from consumer.conversion.rules import Rule, click_id_of, total
from consumer.engine.figures.delivered import BITS_OF_SOURCES, COUNTED
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Rejection,
    Stage,
    Warned,
    section_of,
)

_NO_FIELDS: Final[dict[str, Any]] = {}  # stands for a value that is no record


class Converter:
    """Converts events under one mapping, or each under that of its section: `mappings` are in the sections' order.

    `accounts` are the ad accounts that a record may name, the first being the one of records that name none; empty:
    any digits will do, and the default is ``"0"``. `max_event_age` and `max_clock_skew` are
    seconds.
    """

    def __init__(
        self,
        *mappings: Mapping,
        accounts: tuple[str, ...],
        max_event_age: float,
        max_clock_skew: float = 300.0,
    ) -> None:
        # By the section's number, from 1. `consumer.conversion.program` follows these descriptions, too.
        self.descriptions = [
            Description(mapping, Decisions(mapping, accounts, max_event_age, max_clock_skew))
            for mapping in mappings
        ]

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """Return the conversion of `event` at `now` (unix seconds). Never raises."""
        what = self.descriptions[section_of(event) - 1]
        try:
            return _converted(what, event, *what.decisions.bounds(now))
        except Rejected as refused:
            return refused.rejection
        except Exception as failure:
            # Only the type: the text of the error may quote the record.
            name = type(failure).__name__
            message = f"the event cannot be converted ({name}): compare it with its schema"
            return Rejection(Stage.CONVERT, UNCONVERTIBLE, message)

    def ids_of(self, event: CommerceEvent) -> tuple[str | None, str | None]:
        """Return the event id and the order id of a record, as far as they can be read, whatever becomes of it."""
        what = self.descriptions[section_of(event) - 1]
        custom: dict[str, Any] = {}
        event_id = None
        # Whatever cannot be read stays unknown: the record is filtered or a dead letter.
        with contextlib.suppress(Exception):
            event_id = decide.id_of(what.read["event_id"](event))
        with contextlib.suppress(Exception):
            fields = (field for field in fields_in(what.custom_data) if field.key == "order_id")
            Writing(what, event, "").fill(custom, grouped(fields), event)
        return event_id if isinstance(event_id, str) else None, custom.get("order_id")


def _converted(what: Description, event: CommerceEvent, oldest: float, present: float) -> Converted:
    decisions, read = what.decisions, what.read
    if what.first_list is not None:
        event[ITEMS] = what.first_list.value(event, event)
    # The order is that of the decisions (see above): the first refusal counts, here and in the compiled program.
    name = decisions.name_of(read["event_name"](event))
    if name is decide.BY_EVENT_NAME:
        return decide.BY_EVENT_NAME
    # An event without consent is filtered even if its name is unknown: it must not be examined.
    if what.consent is not None and what.read_consent(event) is not True:
        return decide.BY_CONSENT
    if not isinstance(name, str):
        return name
    account = decisions.account_of(read["ad_account_id"](event))
    if not isinstance(account, str):
        return account
    source = decisions.source_of(read["action_source"](event))
    if not isinstance(source, str):
        return source
    event_id = decide.id_of(read["event_id"](event))
    if not isinstance(event_id, str):
        return event_id
    # An event without a key of its own is identified by its id.
    dedup_id = decide.dedup_id_of(what.read_dedup_key(event), event_id)
    time = decisions.time_of(read["event_time"](event))
    if not isinstance(time, int):
        return time
    # Nearly every time is between the bounds; only other times need a closer check.
    seconds = (
        time // decisions.units if oldest <= time <= present else decisions.outside(time, present, source)
    )
    if not isinstance(seconds, int):
        return seconds
    payload = {"event_name": name, "action_source": source, "event_time": seconds, "event_id": event_id}
    writing = Writing(what, event, source)
    writing.write(payload)
    warned, written = tuple(writing.warned), writing.marks & COUNTED
    return ConversionEvent(account, name, event_id, dedup_id, seconds, source, payload, written, warned)


class Rejected(Exception):
    """Ends a conversion with this verdict."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.code)
        self.rejection = rejection


class Writing:
    """One event whose payload is being written."""

    def __init__(self, description: Description, event: CommerceEvent, source: str) -> None:
        self.warned: list[Warned] = []
        self.marks = BITS_OF_SOURCES.get(source, 0)  # of its source, and of all fields that are written
        self._description = description
        self._event = event
        self.source = source
        self.address: str | None = None  # of the event's page, if there may be a click id in it

    def write(self, payload: dict[str, Any]) -> None:
        """Write all fields that are not decided earlier. Raises `Rejected`."""
        what, event = self._description, self._event
        self.fill(payload, what.event, event)
        for key, groups in (("app_info", what.app_info), ("device_info", what.device_info)):
            written: dict[str, Any] = {}
            if groups:
                self.fill(written, groups, event)
            if written:
                payload[key] = written
        # Always there, as the platform requires it; without an identity in it the event is refused below.
        user = payload["user_data"] = {}
        self.fill(user, what.user_data, event)
        # The platform accepts an event only with one of these; neither address nor agent identifies a person alone.
        at_a_device = "client_ip_address" in user and "client_user_agent" in user
        # Nor does an advertising id that is `Unrecognised`.
        if not ("em" in user or at_a_device or str in map(type, user.get("hashed_maids", ()))):
            raise Rejected(REFUSALS["no_identity"])
        custom = self._custom_data()
        # An amount means nothing without its currency.
        if "value" in custom and "currency" not in custom:
            raise Rejected(REFUSALS["missing_currency"])
        # Without state and country the platform ignores the field: it is sent, with a warning, and does no harm.
        if "opt_out_type" in custom and not ("st" in user and "country" in user):
            self.warned.append(decide.OPT_OUT_TYPE_IGNORED)
        if custom:
            payload["custom_data"] = custom

    def _custom_data(self) -> dict[str, Any]:
        what, event = self._description, self._event
        custom: dict[str, Any] = {}
        contents = []
        if what.items:
            # Without an array the event itself is its one item.
            for item in walk(event, what.item_steps) if what.item_steps else [event]:
                content: dict[str, Any] = {}
                self.fill(content, what.items, item)
                # An item of which nothing can be sent is no item.
                if content:
                    contents.append(content)
        if contents:
            custom["contents"] = contents
        self.fill(custom, what.gathered, event)
        self.fill(custom, what.custom_data, event)
        return custom

    def fill(  # noqa: C901 (a call for each step would cost more than the step: this runs for each field)
        self, into: dict[str, Any], groups: Groups, holder: Any
    ) -> None:
        """Put each field that has a value below `holder`, or a constant, into an object."""
        marks = 0
        for above, fields, needs_record in groups:
            here = value_at(holder, above) if above else holder
            if isinstance(here, dict):
                get = here.get
            elif needs_record:
                continue
            else:
                get = _NO_FIELDS.get
            for field in fields:
                if field.own is not None:
                    value = get(field.own)
                elif field.computed is not None:
                    value = field.computed.value(self._event, holder)
                else:
                    value = here
                sent = None
                if value is not None and field.ask is not None:
                    if field.is_many:
                        # Most are lists of the values themselves, and many of those are empty.
                        if field.is_flat and value.__class__ is list and None not in value:
                            values = value
                        else:
                            values = walk(value, field.rest)
                        sent = sent_of_many(field, field.ask, values, self) if values else None
                    else:
                        known = field.memory if value.__class__ is str else None
                        # To call the memory would cost more than the look-up.
                        sent = field.ask(value) if known is None else known[value]
                        # Most answers are text that nothing else depends on.
                        if sent.__class__ is not str or field.is_judged:
                            sent = judged(field, sent, self)
                        if field.is_list and sent is not None:
                            sent = [sent]
                if sent is None:
                    if not field.has_substitute:
                        continue
                    # The record's own click id goes first; that of the address is the next best.
                    if field.takes_click_id and self.address is not None:
                        sent = click_id_of(self.address)
                    sent = field.constant if sent is None else sent
                    if sent is None:
                        continue
                into[field.key] = sent
                marks |= field.mark
        self.marks |= marks


# What both executors do with values that are not canonical. `event` is the one that is being written: this module's
# `Writing`, or that of the compiled program.


def sent_of_many(field: ProgramField, ask: Rule, values: list[Any], event: Writing) -> Any:
    """Return what is sent of several values; None if there is nothing to send. Raises `Rejected`.

    `ask`: the field's rule, or what answers in its place.
    """
    if field.is_list:
        sent = decide.sent_values(ask, values, event.warned, field.warnings)
        if len(sent) > 1 and field.way is Way.DIGESTS:
            sent = list(dict.fromkeys(sent))  # the first of equal digests stays, in the record's order
        # Without values there is no array: the key is omitted.
        return sent[: field.maximum] or None
    if field.way is Way.TOTAL:
        return judged(field, total(values), event)
    first = decide.sent_values(ask, values, event.warned, field.warnings, only_first=True)
    return judged(field, first[0], event) if first else None


def judged(field: ProgramField, answer: Any, event: Writing) -> Any:
    """Return the rule's answer; None, with a warning, if it is omitted. Raises `Rejected`."""
    # None is a negative quantity (`amounts.count`): it must not become a return by mistake.
    if answer is None:
        raise Rejected(REFUSALS["negative_quantity"])
    if isinstance(answer, Omitted):
        # Some malformed fields refuse the event (`target.refusal`); others are omitted.
        if field.refusal is not None and answer is Omitted.MALFORMED:
            raise Rejected(field.refusal)
        decide.note(event.warned, answer, field.warnings)
        return None
    if answer.__class__ is Unrecognised:
        decide.note(event.warned, answer, field.warnings)
    # The address of a page belongs to events of the web.
    if field.web_only and event.source != "web":
        event.warned.append(decide.NOT_WEB)
        return None
    if field.zero is not None and is_zero(answer):
        decide.note_once(event.warned, field.zero)
    if field.gives_click_id:
        event.address = answer
    if field.crawlers is not None and field.crawlers[answer]:
        decide.note_once(event.warned, decide.CRAWLER)
    return answer
