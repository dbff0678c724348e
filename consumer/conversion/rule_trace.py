"""What was done with each field of an event, for `explain --rules`.

Theory of operation. The plain executor converts the event again, by a description whose rules record each of their
values and answers. So the trace shows what happened, and not what should have happened. It counts values and names
fields, paths and rules; no value is in it, since some are personal.
"""

from __future__ import annotations

import copy
from collections import Counter
from hashlib import sha256
from typing import Any, Final

from consumer.avro.paths import EACH, Source, walk
from consumer.conversion.codes import Way
from consumer.conversion.computed.expressions import Element
from consumer.conversion.computed.operators import Phone
from consumer.conversion.converter import Converter
from consumer.conversion.fields import ProgramField, fields_in, grouped
from consumer.conversion.normalise import Omitted, Unrecognised, text_of
from consumer.conversion.targets import DECIDED, TARGETS
from consumer.engine.model import CommerceEvent, ConversionEvent

_OMITTED: Final = {
    Omitted.BLANK: "blank",
    Omitted.PLACEHOLDER: "a placeholder",
    Omitted.UNLIKELY: "unlikely",
}
_PHONES: Final = "user_data.ph"
_GROUPS: Final = ("event", "app_info", "device_info", "user_data", "items", "gathered", "custom_data")


class RuleTrace:
    """Says what `converter` does with the fields of an event of one section."""

    def __init__(self, converter: Converter, section: int = 1) -> None:
        # The rules' calls for the present event: field -> values with their answers.
        self._asked: dict[str, list[tuple[Any, Any]]] = {}
        # Copies: the service's converter must go on without recording.
        self._converter = copy.copy(converter)
        self._converter.descriptions = [copy.copy(description) for description in converter.descriptions]
        description = self._converter.descriptions[section - 1]
        self._mapping = description.mapping
        self._fields: list[ProgramField] = []
        for group in _GROUPS:
            fields = fields_in(getattr(description, group))
            setattr(description, group, grouped(map(self._recorded, fields)))
            self._fields += fields
        # How phone numbers are read before they get their country's code; None: they get none.
        phones = self._mapping.sources.get(_PHONES)
        self._numbers = description.computed(phones.parts[0], None) if isinstance(phones, Phone) else None

    def rules(self, event: CommerceEvent, now: float) -> list[dict[str, Any]]:
        """Return an entry for each field that has a value in the record, or is sent; in the order of the payload.

        ``field``; ``from``: its path in the record, or what else gives the value; ``rule``; ``values`` and ``sent``:
        how many there are; ``done``: what was done with those that are sent; ``omitted``: how many are not, by reason.
        """
        self._asked.clear()
        converted = self._converter.convert(event, now)
        payload, lost = {}, {}
        if isinstance(converted, ConversionEvent):
            payload = converted.payload
            lost = {warning.field: warning.message for warning in converted.warnings}
        numbers = None if self._numbers is None else walk(self._numbers.value(event, None), (EACH,))
        once = {"values": 1, "sent": 1, "done": [], "left_out": {}}
        decided = [
            {"field": name, "from": self._origin(name), "rule": target.form, **once}
            for name, target in TARGETS.items()
            if name in DECIDED and name in payload
        ]
        # For an event that is refused, these are the fields up to the one that it is refused for.
        traced = [self._traced(field, payload, lost.get(field.name), numbers) for field in self._fields]
        return [entry for entry in (*decided, *traced) if entry["values"]]

    def _recorded(self, field: ProgramField) -> ProgramField:
        """Return the field with a rule that records its calls and answers."""
        rule = field.rule
        if rule is None:
            return field

        def recorded(value: Any) -> Any:
            answer = rule(value)
            self._asked.setdefault(field.name, []).append((value, answer))
            return answer

        traced = copy.copy(field)
        # No `Memory` around it: a value that repeats is recorded again.
        traced.rule, traced.ask, traced.memory = recorded, recorded, None
        return traced

    def _origin(self, name: str) -> str:
        source = self._mapping.sources.get(name)
        if source is None:
            return "[constants]"
        # A value at a path, or one element of a list there, is not computed.
        computed = not isinstance(source, Source | Element)
        return f"computed from {source.path}" if computed else source.path

    def _traced(  # noqa: C901 (one branch for each thing that may have happened to the values)
        self, field: ProgramField, payload: dict[str, Any], lost: str | None, numbers: list[Any] | None
    ) -> dict[str, Any]:
        """Return the entry of one field. `lost`: its warning; `numbers`: phone numbers before they get their codes."""
        name, mapping, asked = field.name, self._mapping, self._asked.get(field.name, ())
        target, source, is_phone = mapping.target(name), self._origin(name), name == _PHONES
        rule = target.form or target.meant
        if is_phone and (numbers is not None or mapping.phone_country_code):
            rule = f"with the country's code, {rule}"
        done: list[str] = []
        omitted: Counter[str] = Counter()
        for value, answer in asked:
            if answer is None:
                omitted["negative"] += 1
            elif isinstance(answer, Omitted):
                omitted[_OMITTED.get(answer, f"not {target.meant}")] += 1
            else:
                if is_phone and numbers is not None and value not in numbers:
                    done.append("got its country's code")
                done += _done(value, answer, target.hashed)
        # The field's values in the payload: its name is a path, with the steps that `walk` takes.
        values = walk(payload, name.replace("[]", f".{EACH}").split("."))
        sent = sum(len(value) if isinstance(value, list) else 1 for value in values)
        usable = len(asked) - omitted.total()
        if usable and lost is not None and not sent:
            # The rule had an answer, and the converter left it out all the same: its warning says why.
            omitted[lost] += usable
            done.clear()
        elif 0 < sent < usable:
            done.append("duplicates removed" if target.hashed else f"the first {sent} sent")
        # In the branches below, the sent value is no answer of the field's own rule.
        elif sent and not usable and field.way is Way.TOTAL and name in mapping.sources:
            done.append("summed")
        elif sent and not usable and field.constant is not None:
            source = "[constants]"
        elif sent and not usable and field.takes_click_id:
            source, done = "epik in event_source_url", ["the record's own is missing"]
        return {
            "field": name,
            "from": source,
            "rule": rule,
            # A value that is sent without one in the record counts as one.
            "values": max(len(asked), sent),
            "sent": sent,
            "done": list(dict.fromkeys(done)),
            "left_out": dict(omitted),
        }


def _done(value: Any, answer: Any, hashed: bool) -> list[str]:
    """Return what the rule did to the value to get this answer."""
    text = text_of(value)
    if not hashed:
        return ["unchanged" if answer in (value, text) else "normalised"]
    # Digests in the record are sent on, in lower case.
    if not isinstance(text, str) or text.strip().lower() == answer:
        return ["a digest already"]
    done = ["hashed"] if sha256(text.encode()).hexdigest() == answer else ["normalised", "hashed"]
    return [*done, "of unknown form: no identity"] if isinstance(answer, Unrecognised) else done
