"""The compiled modules' program: what they run to get from a record's bytes to its delivery, JSON and all.

Theory of operation. The plain path reads a commerce event and then converts it. Here both become one program per
writer's schema: operations, which read a record's values into slots (`layout`), and one `Field` for each field of the
event, in payload order, with all that it takes: where its value stands, what to ask, what to warn of
(`native/_events.pyx`). So neither commerce event nor payload is ever made.

Nothing is decided here: rules and decisions are the Python functions that the plain path asks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any, Final, NamedTuple

import orjson

from consumer.avro.plan import RecordPlan
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import amount
from consumer.conversion.decisions import REFUSALS, Decisions, LeftOutWarnings
from consumer.conversion.fields import MARKS, MOST_LANGUAGES, Fields, Task, Way, is_quantity
from consumer.conversion.layout import Layout, Operation, Path, Place
from consumer.conversion.normalise import client_ip_address, text_of
from consumer.conversion.rules import CalendarDay, Rule, order_id, web_url
from consumer.conversion.targets import CONTENTS, DECIDED, EXTERNAL_ID_AS_WRITTEN, TARGETS, Target
from consumer.engine.model import Record, Rejection, Warned

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


_OF_ALL_VALUES: Final = frozenset({Way.DIGESTS, Way.ALL, Way.FIRST, Way.TOTAL})
_REMEMBERED: Final = frozenset({Way.REMEMBERED, Way.DIGEST, Way.ONE_DIGEST})
_ANY_NUMBER: Final = 2**31 - 1


class Usual(IntEnum):
    """What the usual spelling of a value is like, which is answered without asking the rule (`_usual.pyx`)."""

    NOT_KNOWN = 0
    EMAIL = 1
    PHONE = 2
    LOWERED = 3
    AS_WRITTEN = 4
    DIGITS = 5
    ADDRESS = 6
    AMOUNT = 7
    WEB = 8
    TEXT = 9
    ORDER = 10
    NAME = 11
    CITY = 12
    BIRTHDAY = 13
    DAY = 14


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


class Field(NamedTuple):
    """One field of the event, of an object in it, or of an item."""

    key: bytes
    """Its name in JSON, and the colon."""
    way: Way
    at: At | None
    """Of its value, or of its array; None: it has no source."""
    gather: At | None
    """Of all its values, where there may be several."""
    rule: Callable[[Any], Any] | None
    cache: dict[Any, Any] | None
    most: int
    """Values that are sent at most."""
    warnings: tuple[LeftOutWarnings, ...]
    """By reason to leave it out, what is warned of; for each field that goes without."""
    refusal: Rejection | None
    """With which a malformed value refuses the event."""
    zero: Warned | None
    """Of an amount: what is warned of if it is zero."""
    web_only: bool
    gives_click_id: bool
    """See `Fields.gives_click_id`; so the next."""
    takes_click_id: bool
    crawlers: dict[Any, Any] | None
    """Of the user agent: which are crawlers'."""
    constant: bytes | None
    """The JSON that is sent where nothing else is."""
    mark: int
    """See `MARKS`."""
    usual: Usual


class Items(NamedTuple):
    """The items, and what is gathered from them."""

    at: At | None
    """Of the items' array; of all items if they have no slots; None: the event itself is the one item."""
    slotted: bool
    """Whether each item has slots of its own; else it is what stands in the array, as slot 0."""
    fields: list[Field]
    quantity: int
    """Which of `fields` is the quantity, -1: none."""
    listed: int
    """Which of `fields` is listed in ``content_ids``, -1: none."""
    summed: bool
    """Whether quantities are added up in ``num_items``."""
    sum_warnings: LeftOutWarnings


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
    event: list[Field]
    app_info: list[Field]
    device_info: list[Field]
    user: list[Field]
    custom: list[Field]
    items: Items | None


class _Maker:
    """Makes the program for records of `plan`."""

    def __init__(self, task: Task, layout: Layout) -> None:
        self._mapping = task.mapping
        self._decisions = task.decisions
        self._fields = Fields(task, trusting=True)
        self._layout = layout

    def program(self) -> Program:
        """All of it."""
        return Program(
            self._layout.operations,
            self._layout.width,
            self._decided(),
            [self._field_of(one) for one in self._fields.of("") if one.name not in DECIDED],
            self._fields_of("app_info"),
            self._fields_of("device_info"),
            self._fields_of("user_data"),
            [
                self._field_of(one)
                for one in self._fields.of("custom_data")
                if not self._fields.is_gathered(one)
            ],
            self._items_of(self._fields.of(CONTENTS)),
        )

    def _decided(self) -> Decided:
        mapping, decisions = self._mapping, self._decisions
        event_id = mapping.sources["event_id"]
        return Decided(
            self._at_target("event_name"),
            decisions.names,
            mapping.constants.get("event_name"),
            None if mapping.consent is None else self._at(mapping.consent.source.steps),
            self._at_target("ad_account_id"),
            self._at_target("action_source"),
            decisions.exact_sources,
            mapping.constants.get("action_source"),
            self._at(event_id.steps),
            self._fields.trusts_text(event_id),
            None if mapping.dedup_key is None else self._at(mapping.dedup_key.steps),
            self._at(mapping.sources["event_time"].steps),
            decisions.days,
            decisions.units,
            decisions,
        )

    # -- fields

    def _fields_of(self, parent: str) -> list[Field]:
        return [self._field_of(one) for one in self._fields.of(parent)]

    def _field_of(self, target: Target) -> Field:
        source = self._fields.source(target)
        if source is None:
            return self._field_from(target, None, None)
        way, steps = self._fields.way(target, source), source.steps
        if way is Way.ONE_DIGEST:
            return self._field_from(target, self._at(steps[:-1]), self._at_all(steps))
        if way in _OF_ALL_VALUES:
            return self._field_from(target, None, self._at_all(steps))
        return self._field_from(target, self._at(steps), None)

    def _field_from(self, target: Target, at: At | None, gather: At | None) -> Field:
        fields, source, constant = self._fields, self._fields.source(target), self._fields.constant(target)
        way = Way.RULE if source is None else fields.way(target, source)
        rule = None if source is None else fields.rule(target, source)
        remembers = source is not None and fields.trusts_text(source) and way in _REMEMBERED
        return Field(
            b'"%s":' % target.key.encode(),
            way,
            at,
            gather,
            rule,
            fields.cache(target, rule) if rule is not None and remembers else None,
            MOST_LANGUAGES if target.key == "languages" else _ANY_NUMBER,
            tuple(decide.warnings_of(lacking) for lacking in fields.lacking(target)),
            None if target.refusal is None else REFUSALS[target.refusal],
            decide.zero_warning(target) if target.rule is amount else None,
            target.name == "event_source_url",
            fields.gives_click_id(target),
            fields.takes_click_id(target),
            fields.crawlers if fields.warns_of_crawlers(target) else None,
            None if constant is None else orjson.dumps(constant),
            MARKS.get(target.name, 0),
            usual_of(rule),
        )

    # -- items

    def _items_of(self, targets: list[Target]) -> Items | None:
        if not targets:
            return None
        steps = self._mapping.item_steps
        fields = [self._field_from(one, self._at_item(one), None) for one in targets]
        listed = [
            at for at, one in enumerate(targets) if self._fields.listed and len(self._fields.lacking(one)) > 1
        ]
        quantity = [at for at, one in enumerate(targets) if is_quantity(one)]
        return Items(
            self._at_items(steps),
            self._items_have_slots(),
            fields,
            quantity[0] if quantity else -1,
            listed[0] if listed else -1,
            self._fields.summed,
            decide.warnings_of(TARGETS["custom_data.num_items"]),
        )

    def _at_items(self, steps: Path) -> At | None:
        if not steps:
            return None
        return self._at(steps[:-1]) if self._items_have_slots() else self._at_all(steps)

    def _at_item(self, target: Target) -> At:
        steps, of_items = self._mapping.sources[target.name].steps, self._mapping.item_steps
        if of_items and not self._items_have_slots():
            return _at(Place(0, steps[len(of_items) :]))
        return self._at(steps)

    # -- places

    def _items_have_slots(self) -> bool:
        return self._layout.item_width is not None

    def _at_target(self, name: str) -> At | None:
        source = self._mapping.sources.get(name)
        return None if source is None else self._at(source.steps)

    def _at(self, steps: Path) -> At:
        return _at(self._layout.place(steps))

    def _at_all(self, steps: Path) -> At:
        of_items = self._mapping.item_steps
        if self._items_have_slots() and steps[: len(of_items)] == of_items:
            slot, below = self._layout.place(steps)
            return At(self._layout.place(of_items[:-1]).slot, _names(below), slot)
        return _at(self._layout.place(steps))


def _at(place: Place) -> At:
    return At(place.slot, _names(place.below), -1)


def _names(steps: Path) -> tuple[str, ...]:
    return tuple(step.name for step in steps)


def write_program(task: Task, plan: RecordPlan) -> Many | None:
    """What reads and converts records of this plan; None if there can be no program of it, or no compiled modules."""
    if COMPILED is None:
        return None
    layout = Layout(plan, task.mapping.asked, task.mapping.item_steps)
    if not layout.is_possible:
        return None
    many: Many = COMPILED.Events(_Maker(task, layout).program()).read
    return many
