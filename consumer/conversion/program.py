"""The compiled executor: it makes its program from plan and fields, and calls it.

Theory of operation. The plain path reads a commerce event and then converts it. Here both become one program per
writer's schema: operations, which read a record's values into slots (`layout`), and one `CompiledField` for each field
of the event, in payload order, with all that it needs: where its value is, which rule to call, which warnings to add
(`native/_events.pyx`). So neither commerce event nor payload is ever made.

Nothing is decided here: rules and decisions are the Python functions that the plain path calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Final, NamedTuple

import orjson

from consumer.avro.paths import EACH, Path, is_several, to_first_list
from consumer.avro.plan import RecordPlan
from consumer.conversion.amounts import amount
from consumer.conversion.codes import Canonical, Glance, Way
from consumer.conversion.computed.expressions import Computation, ReadValue
from consumer.conversion.decisions import AnswerWarnings
from consumer.conversion.fields import Description, ProgramField, fields_in
from consumer.conversion.layout import At, ComputedAt, Layout
from consumer.conversion.normalise import client_ip_address, text_of
from consumer.conversion.rules import CalendarDay, Memory, Rule, flag, order_id, web_url
from consumer.conversion.targets import EXTERNAL_ID_AS_WRITTEN, TARGETS

# ``(records, columns, framing, start, oldest, present, origin)``. Reads on where `columns` end and adds a row for what
# each record became, up to one that it is not certain of or that is framed otherwise. The first is framed by `framing`,
# its datum begins at `start`. Never raises because of what they hold.
Many = Callable[..., None]


def _module() -> ModuleType | None:
    try:
        return importlib.import_module("consumer.conversion.native._events")
    except ModuleNotFoundError:  # only if it was not built: a fallback from a broken one would hide the error
        return None


COMPILED: Final = _module()  # the compiled module; None: it was not built here


# Rules with such a shortcut. Values that repeat (countries, currencies, genders) are remembered instead.
CANONICAL: Final[dict[Rule, Canonical]] = {
    TARGETS["user_data.em"].rule: Canonical.EMAIL,
    TARGETS["user_data.ph"].rule: Canonical.PHONE,
    TARGETS["user_data.external_id"].rule: Canonical.LOWERED,
    EXTERNAL_ID_AS_WRITTEN.rule: Canonical.AS_WRITTEN,
    TARGETS["user_data.zp"].rule: Canonical.DIGITS,
    TARGETS["user_data.fn"].rule: Canonical.NAME,
    TARGETS["user_data.ln"].rule: Canonical.NAME,
    TARGETS["user_data.ct"].rule: Canonical.CITY,
    TARGETS["user_data.db"].rule: Canonical.BIRTHDAY,
    text_of: Canonical.TEXT,
    order_id: Canonical.ORDER,
    client_ip_address: Canonical.ADDRESS,
    amount: Canonical.AMOUNT,
    web_url: Canonical.WEB,
}


def canonical_of(rule: Rule | None) -> Canonical:
    """Return the canonical form whose values need no call of this rule."""
    if isinstance(rule, CalendarDay):
        return Canonical.DAY if rule.length == 1 else Canonical.NOT_KNOWN
    return Canonical.NOT_KNOWN if rule is None else CANONICAL.get(rule, Canonical.NOT_KNOWN)


class CompiledField:
    """A field, and how the program makes its value.

    `at`: where its value is, or its array; `gather`: where all its values are, if there may be several.
    """

    def __init__(
        self, field: ProgramField, at: At | ComputedAt | None, gather: At | ComputedAt | None = None
    ) -> None:
        self.field = field
        self.key = b'"%s":' % field.key.encode()  # its name in JSON, and the colon
        self.at, self.gather = at, gather
        self.constant = None if field.constant is None else orjson.dumps(field.constant)
        self.canonical = canonical_of(field.rule)
        self.glance = _glance(field, self.canonical)


class Items(NamedTuple):
    """The items, and the values that are collected from them."""

    # Place of the items' array; of all items if they have no slots; None: the event itself is the one item.
    at: At | None
    slotted: bool  # whether each item has slots of its own; else the item itself is slot 0
    fields: list[CompiledField]
    quantity: int  # which of `fields` is the quantity, -1: none
    listed: int  # which of `fields` is listed in ``content_ids``, -1: none
    id_warnings: AnswerWarnings | None  # warnings if that one is omitted
    # Warnings if quantities cannot be added up in ``num_items``; None: they are not added up.
    sum_warnings: AnswerWarnings | None


# The lists of a `Description` whose fields stand in the event, or in an object of it.
_OBJECTS: Final = ("event", "app_info", "device_info", "user_data", "custom_data")


class Program:
    """All that `_events.pyx` needs to read records of this layout, under this description."""

    def __init__(self, what: Description, layout: Layout) -> None:
        self._layout = layout
        self.operations, self.width = layout.operations, layout.width
        self.description = what
        self.origin, self.items_slot = layout.origin, layout.items
        # What makes the items, if they come from the first of several lists.
        self.first_list = None if what.first_list is None else self._place(what.first_list)
        # By name (`targets.DECIDED`), where the values are that are decided first; None: the mapping names no source.
        self.decided = {name: self._place(steps) for name, steps in what.decided.items()}
        self.consent, self.dedup_id = self._place(what.consent), self._place(what.dedup_key)
        # The fields by their object.
        self.fields = {
            name: [self._field(field) for field in fields_in(getattr(what, name))] for name in _OBJECTS
        }
        self.items = self._items() if what.items else None

    def _place(self, place: Path | Computation | None, below: Path = ()) -> At | ComputedAt | None:
        """Return where a value is, or how it is computed, and where it is `below` the result; None: nowhere."""
        if not isinstance(place, Computation):
            return None if place is None else self._layout.place(place)
        reads = tuple(
            (of_item, self._in_item(names) if of_item else self._layout.place(names))
            for of_item, names in place.reads
        )
        return ComputedAt(place.function, reads, below)

    def _in_item(self, steps: Path) -> At:
        # Items that have no slots are handled one by one, as the value of the only slot.
        of_items = self.description.item_steps
        is_slot = self._layout.item_width is not None or not of_items
        return self._layout.place((*of_items, *steps)) if is_slot else At(0, steps)

    def _at_all(self, steps: Path) -> At:
        of_items, at = self.description.item_steps, self._layout.place(steps)
        if self._layout.item_width is None or steps[: len(of_items)] != of_items:
            return at
        return At(self._layout.place(of_items[:-1]).slot, at.below, at.slot)

    def _field(self, field: ProgramField) -> CompiledField:
        """Return a field of the event, or of an object of it."""
        if field.rule is None:
            return CompiledField(field, None)
        if field.computed is not None:
            place = self._place(field.computed, field.rest)
            return CompiledField(field, None, place) if field.is_many else CompiledField(field, place)
        if not field.is_many:
            return CompiledField(field, self._layout.place(field.steps))
        # One digest is mostly taken from the slot of its array.
        at = self._layout.place(field.steps[:-1]) if _is_list_of_text(field) else None
        return CompiledField(field, at, self._at_all(field.steps))

    def _items(self) -> Items:
        """Return the fields of each item, and the values that are collected from them."""
        what, steps = self.description, self.description.item_steps
        slotted = self._layout.item_width is not None
        gathered = {field.name: field for field in fields_in(what.gathered)}
        ids, total = gathered.get("custom_data.content_ids"), gathered.get("custom_data.num_items")
        fields = []
        for field in fields_in(what.items):
            at = self._in_item(field.steps) if field.computed is None else self._place(field.computed)
            fields.append(CompiledField(field, at))
        at_items = None
        if steps:
            at_items = self._layout.place(steps[:-1]) if slotted else self._at_all(steps)
        keys = [field.key for field in fields_in(what.items)]
        return Items(
            at_items,
            slotted,
            fields,
            keys.index("quantity") if "quantity" in keys else -1,
            keys.index("id") if ids is not None else -1,
            None if ids is None else ids.warnings,
            None if total is None else total.warnings,
        )


def _slotted_items(what: Description) -> Path:
    """Return the steps to the items, if each of them may have slots of its own; else none."""
    fields = (field for name in (*_OBJECTS, "items") for field in fields_in(getattr(what, name)))
    places = (*what.decided.values(), what.consent, what.dedup_key, *(field.computed for field in fields))
    # A value that is computed from all items of an event takes them as they are in the array.
    whole = ReadValue(False, to_first_list(what.item_steps)[:-1])
    taken = any(isinstance(place, Computation) and whole in place.reads for place in places)
    return () if taken else what.item_steps


def _is_list_of_text(field: ProgramField) -> bool:
    """Return whether digests are made of an array of text in one place, which mostly holds one: e-mail
    addresses and the like."""
    is_array = field.computed is None and field.steps[-1:] == (EACH,) and not is_several(field.steps[:-1])
    return is_array and field.way is Way.DIGESTS and field.is_text


def _glance(field: ProgramField, canonical: Canonical) -> Glance:
    """Return how the program writes the field if its value is canonical or remembered."""
    if field.is_many:
        return Glance.ONE_HASHED if canonical and _is_list_of_text(field) else Glance.ASKED
    if field.rule is flag:
        return Glance.TRUE_FALSE
    if canonical and field.way in (Way.VALUE, Way.DIGESTS):
        return Glance.TEXT if field.way is Way.VALUE else Glance.HASHED
    # Only if what is written depends on the text alone can it be remembered by the text.
    is_alone = isinstance(field.ask, Memory) and not field.is_judged and not field.takes_click_id
    return Glance.KNOWN_TEXT if is_alone else Glance.ASKED


def make_program(what: Description, plan: RecordPlan) -> Program | None:
    """Return the program of this description for records of this plan; None if no program can read them."""
    layout = Layout(plan, what.mapping.asked, _slotted_items(what))
    return Program(what, layout) if layout.is_possible else None


def write_program(description: Description, plan: RecordPlan) -> Many | None:
    """Return the function that reads and converts records of this plan; None if no program can, or the modules are
    not compiled."""
    program = None if COMPILED is None else make_program(description, plan)
    # Without a program every record is converted by the plain path.
    return None if COMPILED is None or program is None else COMPILED.Events(program).read
