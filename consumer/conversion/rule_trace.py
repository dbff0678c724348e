"""What was done with each field of one event: where its value is from, the rule, and why a value was left out.

Theory of operation. The plain executor converts the event once more, by a description whose rules write down each
value that they are given and what they make of it. So the trace says what happened, and not what should have. It counts
values and names fields, paths and rules; no value is in it, since some are of a person.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from hashlib import sha256
from typing import Any, Final

from consumer.avro.paths import EACH, Source, walk
from consumer.conversion.codes import Way
from consumer.conversion.computed.expressions import Element, Phone, computation
from consumer.conversion.converter import Converter
from consumer.conversion.fields import ProgramField
from consumer.conversion.normalise import LeftOut, text_of
from consumer.engine.model import CommerceEvent, ConversionEvent

# The rule of a hashed field before the digest (docs/conversion.md, "User data").
_HASHED: Final = {
    "em": "without white space, lower case",
    "ph": "digits, without leading zeros",
    "ge": "f, m or n",
    "db": "YYYYMMDD",
    "ln": "NFC, lower case",
    "fn": "NFC, lower case",
    "ct": "NFC, lower case, without white space and punctuation",
    "st": "two letters, lower case",
    "zp": "digits",
    "country": "two letters, lower case",
    "external_id": "trimmed, lower case",
    "hashed_maids": "trimmed, lower case",
}
# The rule of what is decided on before the fields.
_DECIDED: Final = {
    "event_name": "by [event_names], or a name of the platform's or of your own",
    "action_source": "by [action_sources]",
    "event_time": "whole seconds since 1970",
    "event_id": "text, unchanged",
}
_PHONES: Final = "user_data.ph"
_GROUPS: Final = ("event", "app_info", "device_info", "user_data", "items", "gathered", "custom_data")


class RuleTrace:
    """Says what `converter` does with the fields of an event of one section."""

    def __init__(self, converter: Converter, section: int = 1) -> None:
        # What the rules were asked for the event in hand: field -> values with their answers.
        self._asked: dict[str, list[tuple[Any, Any]]] = {}
        self._written: list[Any] = []
        # Copies: the converter of the service must go on without writing anything down.
        self._converter = copy.copy(converter)
        self._converter.descriptions = [copy.copy(description) for description in converter.descriptions]
        description = self._converter.descriptions[section - 1]
        self._mapping = description.mapping
        self._fields: list[ProgramField] = []
        for group in _GROUPS:
            fields: list[ProgramField] = getattr(description, group)
            setattr(description, group, [self._recorded(field) for field in fields])
            self._fields += fields
        # Phone numbers as the record has them, before they get their country's code; None: they get none.
        phones = self._mapping.sources.get(_PHONES)
        self._numbers = None
        if isinstance(phones, Phone):
            name = self._mapping.sources.get("event_name")
            name_of = description.decisions.name_of
            self._numbers = computation(phones.parts[0], None, name, name_of)

    def rules(self, event: CommerceEvent, now: float) -> list[dict[str, Any]]:
        """Return an entry for each field that has a value in the record, or is sent; in the order of the payload.

        ``field``; ``from``: its path in the record, or what else gives the value; ``rule``; ``values`` and ``sent``:
        how many there are; ``done``: what was done with those that are sent; ``left_out``: how many are not, by reason.
        """
        self._asked.clear()
        converted = self._converter.convert(event, now)
        payload, lost = {}, {}
        if isinstance(converted, ConversionEvent):
            payload = converted.payload
            lost = {warning.field: warning.message for warning in converted.warnings}
        decided = [
            _Entry(name, self._origin(name), rule, sent=1)
            for name, rule in _DECIDED.items()
            if name in payload
        ]
        if self._numbers is not None:
            self._written = walk(self._numbers.value(event, None), (EACH,))
        # Of an event that is refused, these are the fields up to the one that it is refused for.
        entries = [
            self._entry(field, _sent(payload, field.name), lost.get(field.name)) for field in self._fields
        ]
        return [entry.shown() for entry in (*decided, *entries) if entry.values or entry.sent]

    def _recorded(self, field: ProgramField) -> ProgramField:
        """Return the field with a rule that writes down what it is asked and what it answers."""
        rule = field.rule
        if rule is None:
            return field

        def recorded(value: Any) -> Any:
            answer = rule(value)
            self._asked.setdefault(field.name, []).append((value, answer))
            return answer

        # No `Memory` around it: a value that comes again is asked again.
        return replace(field, rule=recorded, ask=recorded)

    def _origin(self, name: str) -> str:
        source = self._mapping.sources.get(name)
        if source is None:
            return "[constants]"
        # A value at a path, or one element of a list there, is not computed.
        computed = not isinstance(source, Source | Element)
        return f"computed from {source.path}" if computed else source.path

    def _entry(self, field: ProgramField, sent: int, lost: str | None) -> _Entry:
        """Return what was done with this field, of which `sent` values stand in the payload; `lost`: its warning."""
        target = self._mapping.target(field.name)
        rule = f"{_HASHED[target.key]}; SHA-256" if target.hashed else target.meant
        if field.name == _PHONES and (self._numbers is not None or self._mapping.phone_country_code):
            rule = f"with the country's code, {rule}"
        entry = _Entry(field.name, self._origin(field.name), rule, sent)
        for value, answer in self._asked.get(field.name, ()):
            entry.values += 1
            if answer is None:
                entry.left_out["negative"] += 1
            elif isinstance(answer, LeftOut):
                why = {LeftOut.BLANK: "blank", LeftOut.PLACEHOLDER: "stands for nothing"}.get(answer)
                entry.left_out[why or f"not {target.meant}"] += 1
            else:
                done = _done(value, answer, target.hashed)
                if field.name == _PHONES and self._numbers is not None and value not in self._written:
                    done.insert(0, "got its country's code")
                entry.done += [word for word in done if word not in entry.done]
        usable = entry.values - entry.left_out.total()
        # The rule had an answer, and the converter left it out all the same: its warning says why.
        if usable and lost is not None and not sent:
            entry.left_out[lost] += usable
            entry.done.clear()
        elif sent and not usable:
            self._say_what_else_gave_it(entry, field)
        elif 0 < sent < usable:
            entry.done.append("duplicates removed" if target.hashed else f"the first {sent} sent")
        return entry

    def _say_what_else_gave_it(self, entry: _Entry, field: ProgramField) -> None:
        if field.way is Way.TOTAL and field.name in self._mapping.sources:
            entry.done.append("summed")
        elif field.takes_click_id and field.constant is None:
            entry.source, entry.done = "epik in event_source_url", ["the record's own is missing"]
        elif field.constant is not None:
            of_mapping = field.name in self._mapping.constants
            entry.source = "[constants]" if of_mapping else "PINTEREST_PARTNER_NAME"


@dataclass(slots=True)
class _Entry:
    field: str
    source: str
    rule: str
    sent: int
    values: int = 0
    done: list[str] = dataclass_field(default_factory=list)
    left_out: Counter[str] = dataclass_field(default_factory=Counter)

    def shown(self) -> dict[str, Any]:
        """Return the entry as JSON. What is sent without a value of the record counts as one."""
        values = max(self.values, self.sent)
        return {
            "field": self.field,
            "from": self.source,
            "rule": self.rule,
            "values": values,
            "sent": self.sent,
            "done": self.done,
            "left_out": dict(self.left_out),
        }


def _done(value: Any, answer: Any, hashed: bool) -> list[str]:
    """Return what a rule did that made this answer of this value."""
    text = text_of(value)
    if not hashed:
        return ["unchanged" if answer in (value, text) else "normalised"]
    # Digests in the record are passed on, in lower case.
    if not isinstance(text, str) or text.strip().lower() == answer:
        return ["a digest already"]
    return ["hashed"] if sha256(text.encode()).hexdigest() == answer else ["normalised", "hashed"]


def _sent(payload: dict[str, Any], name: str) -> int:
    """Return how many values of the field `name` stand in a payload."""
    holders: list[Any] = [payload]
    *parents, key = name.split(".")
    for parent in parents:
        # Objects without values, and whole arrays, are left out of a payload.
        holders = [
            holder[parent.removesuffix("[]")] for holder in holders if parent.removesuffix("[]") in holder
        ]
        if parent.endswith("[]"):
            holders = [item for items in holders for item in items]
    values = [holder[key] for holder in holders if key in holder]
    return sum(len(value) if isinstance(value, list) else 1 for value in values)
