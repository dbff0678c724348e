"""The compiled modules' program: what they run to get from a record's bytes to its delivery, JSON and all.

Theory of operation. The plain path reads a commerce event and then converts it. Here both become one program per
writer's schema: operations, which read a record's values into slots (`layout`), and one `CompiledField` for each field
of the event, in payload order, with all that it takes: where its value stands, what to ask, what to warn of
(`native/_events.pyx`). So neither commerce event nor payload is ever made.

Nothing is decided here: rules and decisions are the Python functions that the plain path asks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

import orjson

from consumer.avro.paths import EACH
from consumer.avro.plan import RecordPlan
from consumer.conversion.amounts import amount
from consumer.conversion.codes import Usual, Way
from consumer.conversion.decisions import Decisions, LeftOutWarnings
from consumer.conversion.fields import MARKS, Description, Path, ProgramField
from consumer.conversion.layout import Layout, Operation
from consumer.conversion.normalise import client_ip_address, text_of
from consumer.conversion.rules import CalendarDay, Memory, Rule, flag, order_id, web_url
from consumer.conversion.targets import EXTERNAL_ID_AS_WRITTEN, TARGETS
from consumer.engine.model import Record

_NOT_REMEMBERED: tuple[Rule, ...] = (text_of, order_id, web_url)
"""Rules of text that hardly comes again, or is judged at a glance."""

Many = Callable[[list[Record], list[Any], bytes, int, float, float], None]
"""``(records, prepared, framing, start, oldest, present)``.

Reads on where `prepared` ends and appends what each record became, up to one that it is not certain of or that is
framed otherwise. The first is framed by `framing`, its datum begins at `start`. Never raises because of what they
hold."""


def _module() -> ModuleType | None:
    try:
        return importlib.import_module("consumer.conversion.native._events")
    except ImportError:
        return None


COMPILED: Final = _module()
"""The compiled module; None: it was not built here."""


USUAL: Final[dict[Rule, Usual]] = {
    TARGETS["user_data.em"].rule: Usual.EMAIL,
    TARGETS["user_data.ph"].rule: Usual.PHONE,
    TARGETS["user_data.external_id"].rule: Usual.LOWERED,
    EXTERNAL_ID_AS_WRITTEN.rule: Usual.AS_WRITTEN,
    TARGETS["user_data.zp"].rule: Usual.DIGITS,
    TARGETS["user_data.fn"].rule: Usual.NAME,
    TARGETS["user_data.ln"].rule: Usual.NAME,
    TARGETS["user_data.ct"].rule: Usual.CITY,
    TARGETS["user_data.db"].rule: Usual.BIRTHDAY,
    text_of: Usual.TEXT,
    order_id: Usual.ORDER,
    client_ip_address: Usual.ADDRESS,
    amount: Usual.AMOUNT,
    web_url: Usual.WEB,
}
"""Rules that have such a shortcut. What comes again and again (countries, currencies, genders) is remembered."""


def usual_of(rule: Rule | None) -> Usual:
    """The shortcut in front of this rule."""
    if isinstance(rule, CalendarDay):
        return Usual.DAY if rule.length == 1 else Usual.NOT_KNOWN
    return Usual.NOT_KNOWN if rule is None else USUAL.get(rule, Usual.NOT_KNOWN)


class At(NamedTuple):
    """Where a value stands, or all of several."""

    slot: int
    below: tuple[str, ...]
    """The names on the way on from there; one that is empty is each element."""
    item: int
    """In which slot of each item, if the items are what stands in `slot`; else -1."""


Memories = dict[str, Memory]
"""By name of the field, for all programs of one description."""


class CompiledField(NamedTuple):
    """A field, and how the program comes to its value."""

    field: ProgramField
    key: bytes
    """Its name in JSON, and the colon."""
    way: Way
    at: At | None
    """Of its value, or of its array; None: it has no source."""
    gather: At | None
    """Of all its values, where there may be several."""
    memory: Memory | None
    warnings: tuple[LeftOutWarnings, ...]
    """Those of all fields that go without if this one is left out."""
    constant: bytes | None
    """As JSON."""
    mark: int
    """See `MARKS`; 0: nothing depends on it."""
    usual: Usual


class Items(NamedTuple):
    """The items, and what is gathered from them."""

    at: At | None
    """Of the items' array; of all items if they have no slots; None: the event itself is the one item."""
    slotted: bool
    """Whether each item has slots of its own; else it is what stands in the array, as slot 0."""
    fields: list[CompiledField]
    quantity: int
    """Which of `fields` is the quantity, -1: none."""
    listed: int
    """Which of `fields` is listed in ``content_ids``, -1: none."""
    sum_warnings: LeftOutWarnings | None
    """Where quantities are added up in ``num_items``: what is warned of if that cannot be."""


class Decided(NamedTuple):
    """What is decided before anything else: where its values stand, and what there is instead of one (None: `at`)."""

    name: At | None
    names: dict[str, Any]
    no_name: str | None
    consent: At | None
    account: At | None
    source: At | None
    sources: dict[str, Any]
    no_source: str | None
    event_id: At
    trusts_event_id: bool
    dedup_id: At | None
    time: At
    days: bool
    """Whether times always have to be asked about."""
    units: int
    decisions: Decisions


class Program(NamedTuple):
    """All that `_events.pyx` takes to read records of one plan."""

    operations: list[Operation]
    width: int
    decided: Decided
    event: list[CompiledField]
    app_info: list[CompiledField]
    device_info: list[CompiledField]
    user: list[CompiledField]
    custom: list[CompiledField]
    items: Items | None


class _Maker:
    """Makes the program for records that are laid out so."""

    def __init__(self, description: Description, memories: Memories, layout: Layout) -> None:
        self._description = description
        self._memories = memories
        self._layout = layout

    def program(self) -> Program:
        """All of it."""
        what = self._description
        return Program(
            self._layout.operations,
            self._layout.width,
            self._decided(),
            [self._compiled(one) for one in what.event],
            [self._compiled(one) for one in what.app_info],
            [self._compiled(one) for one in what.device_info],
            [self._compiled(one) for one in what.user_data],
            [self._compiled(one) for one in what.custom_data],
            self._items() if what.items else None,
        )

    def _decided(self) -> Decided:
        mapping, decisions = self._description.mapping, self._description.decisions
        event_id, event_time = self._at_decided("event_id"), self._at_decided("event_time")
        assert event_id is not None  # noqa: S101 (a mapping without them does not load)
        assert event_time is not None  # noqa: S101
        return Decided(
            self._at_decided("event_name"),
            decisions.names,
            mapping.constants.get("event_name"),
            None if mapping.consent is None else self._at(mapping.consent.source.steps),
            self._at_decided("ad_account_id"),
            self._at_decided("action_source"),
            decisions.exact_sources,
            mapping.constants.get("action_source"),
            event_id,
            self._description.is_text("event_id"),
            None if mapping.dedup_key is None else self._at(mapping.dedup_key.steps),
            event_time,
            decisions.days,
            decisions.units,
            decisions,
        )

    def _at_decided(self, name: str) -> At | None:
        steps = self._description.steps(name)
        return None if steps is None else self._at(steps)

    def _compiled(self, field: ProgramField) -> CompiledField:
        way, at, gather = _compiled_way(field), None, None
        if field.rule is None:
            pass
        elif way is Way.ONE_DIGEST:
            at, gather = self._at(field.steps[:-1]), self._at_all(field.steps)
        elif way in (Way.DIGESTS, Way.ALL, Way.FIRST, Way.TOTAL):
            gather = self._at_all(field.steps)
        else:
            at = self._at(field.steps)
        return self._with(field, way, at, gather, (field.warnings,))

    def _with(
        self,
        field: ProgramField,
        way: Way,
        at: At | None,
        gather: At | None,
        warnings: tuple[LeftOutWarnings, ...],
    ) -> CompiledField:
        memory = None
        if field.rule is not None and field.is_text and way in (Way.REMEMBERED, Way.DIGEST, Way.ONE_DIGEST):
            memory = self._memories.setdefault(field.name, Memory(field.rule))
        return CompiledField(
            field,
            b'"%s":' % field.key.encode(),
            way,
            at,
            gather,
            memory,
            warnings,
            None if field.constant is None else orjson.dumps(field.constant),
            MARKS.get(field.name, 0),
            usual_of(field.rule),
        )

    def _items(self) -> Items:
        what, layout = self._description, self._layout
        of_items = what.item_steps
        gathered = {field.name: field for field in what.gathered}
        ids, total = gathered.get("custom_data.content_ids"), gathered.get("custom_data.num_items")
        fields = []
        for field in what.items:
            if of_items and layout.item_width is None:
                at = At(0, _names(field.steps), -1)
            else:
                at = self._at((*of_items, *field.steps))
            listed = ids is not None and field.key == "id"
            warnings = (field.warnings, ids.warnings) if listed and ids else (field.warnings,)
            fields.append(self._with(field, _compiled_way(field), at, None, warnings))
        keys = [field.key for field in what.items]
        at_all = None
        if of_items:
            at_all = self._at_all(of_items) if layout.item_width is None else self._at(of_items[:-1])
        return Items(
            at_all,
            layout.item_width is not None,
            fields,
            keys.index("quantity") if "quantity" in keys else -1,
            keys.index("id") if ids is not None else -1,
            None if total is None else total.warnings,
        )

    def _at(self, steps: Path) -> At:
        slot, below = self._layout.place(steps)
        return At(slot, _names(below), -1)

    def _at_all(self, steps: Path) -> At:
        of_items, at = self._description.item_steps, self._at(steps)
        if self._layout.item_width is None or steps[: len(of_items)] != of_items:
            return at
        return At(self._layout.place(of_items[:-1]).slot, at.below, at.slot)


def _names(steps: Path) -> tuple[str, ...]:
    return tuple(step.name for step in steps)


def _compiled_way(field: ProgramField) -> Way:
    """The way that the program takes, which may be shorter."""
    if field.way is Way.DIGESTS:
        if EACH not in field.steps:
            return Way.DIGEST
        return Way.ONE_DIGEST if field.is_text and EACH not in field.steps[:-1] else Way.DIGESTS
    if field.way is not Way.VALUE or field.rule is None:
        return field.way
    if field.rule is flag:
        return Way.FLAG
    return Way.REMEMBERED if field.is_text and field.rule not in _NOT_REMEMBERED else Way.VALUE


def write_program(description: Description, memories: Memories, plan: RecordPlan) -> Many | None:
    """What reads and converts records of this plan; None if there can be no program of it, or no compiled modules."""
    if COMPILED is None:
        return None
    layout = Layout(plan, description.mapping.asked, description.item_steps)
    if not layout.is_possible:
        return None
    many: Many = COMPILED.Events(_Maker(description, memories, layout).program()).read
    return many
