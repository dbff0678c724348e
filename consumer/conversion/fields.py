"""Which fields a mapping fills, in which order, and from what.

Theory of operation. A `Description` is made once from a checked mapping. Two executors follow it: `converter`, which
goes through it for each event, and the compiled modules, for which `program` turns it into a program. This module and
the rules define what is done; the executors decide how.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Final, NamedTuple

from consumer.avro.paths import EACH, Path, Source, is_several, to_first_list, written
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import amount, count
from consumer.conversion.codes import Way
from consumer.conversion.computed.expressions import Computation, Each, Expression, computation, is_many
from consumer.conversion.computed.operators import FirstList
from consumer.conversion.decisions import REFUSALS, Decisions
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import text_of
from consumer.conversion.rules import Memory, Rule, flag, is_crawler, order_id, web_url
from consumer.conversion.targets import CONTENTS, DECIDED, DERIVED, TARGETS, WORDS, Arity, Target
from consumer.engine.figures.delivered import BITS_OF_FIELDS, COUNTED

# The API's limit for the list of languages.
_MAX_LANGUAGES: Final = 100
_CLICK_ID: Final = "user_data.click_id"
_ADDRESS: Final = "event_source_url"
_AGENT: Final = "user_data.client_user_agent"
# Fields whose values rarely repeat, or whose rules are quick: a memory would cost more than it saves.
_NOT_REMEMBERED: tuple[Rule, ...] = (text_of, order_id, web_url, flag, amount, count)
_OF_ONE_PERSON: Final = frozenset(
    f"user_data.{key}" for key in ("em", "ph", "external_id", "hashed_maids", "client_ip_address")
)

# Beside what is counted. An advertising id may be sent and be no identity.
_BESIDE = ("user_data.st", "custom_data.opt_out_type", "user_data.hashed_maids")
# Fields whose presence other fields depend on, or is counted (`consumer.engine.figures.delivered`).
MARKS: Final = {
    **BITS_OF_FIELDS,
    **{name: BITS_OF_FIELDS.get(name, 0) | (COUNTED + 1) << number for number, name in enumerate(_BESIDE)},
}


class ProgramField:
    """One field of the event, of an object in it, or of an item."""

    def __init__(self, description: Description, target: Target) -> None:
        mapping, name = description.mapping, target.name
        source, constant = mapping.sources.get(name), mapping.constants.get(name)
        item_steps = description.item_steps if target.parent == CONTENTS else None
        self.name = name
        self.key = target.key  # its name in JSON
        self.mark = MARKS.get(name, 0)  # 0: no other field depends on it, and it is not counted
        # How the value is computed, if it is.
        self.computed: Computation | None = None
        # The steps to its value or values; in a field of an item, from the item.
        self.steps: Path = ()
        if isinstance(source, Source):
            self.steps = source.steps[len(item_steps or ()) :]
        elif source is not None:
            self.computed = description.computed(source, item_steps)
            self.steps = (EACH,) if self.computed.is_many else ()
        before = len(to_first_list(self.steps)) - 1 if is_several(self.steps) else len(self.steps)
        names = self.steps[:before]
        # The steps to the record that holds the value, or holds the first array on the way to it.
        self.above = names[:-1]
        # The name of that value, or array, in that record. None: the value is computed, or it is the item itself.
        self.own = names[-1] if names else None
        self.rest = self.steps[before:]  # from that array on
        self.way = Way.VALUE if source is None else _way(target, source)
        self.is_flat = self.rest == (EACH,)  # whether that array holds the values themselves
        self.is_many = bool(self.rest) or self.way is Way.TOTAL
        self.is_list = self.way in (Way.DIGESTS, Way.ALL)  # sent as an array, even if there is one value
        # None: no value comes from the record.
        self.rule = None if source is None else decide.rule_for(target, source, mapping.time_unit)
        # The rule, with a memory of its answers if values repeat (`Memory`).
        self.ask = self.rule
        self.memory: Memory | None = None
        is_quick = self.rule in _NOT_REMEMBERED or name in _OF_ONE_PERSON
        if self.rule is not None and self.way in (Way.VALUE, Way.DIGESTS) and not is_quick:
            self.ask = self.memory = Memory(self.rule)
        self.is_text = description.is_text(name)  # whether its values are only text or null, by the schema
        # Most values that are sent; None: all.
        self.maximum = _MAX_LANGUAGES if target.key == "languages" else None
        self.warnings = decide.warnings_of(target)  # for each reason to leave a value out
        # The event's refusal for a malformed value; None: the value is omitted with a warning.
        self.refusal = None if target.refusal is None else REFUSALS[target.refusal]
        # Of an amount: the warning if it is zero.
        self.zero = decide.zero_warning(target) if target.rule is amount else None
        self.constant = constant  # is sent if there is no other value; None: none
        self.web_only = name == _ADDRESS
        # A missing click id is taken from the page's address.
        self.gives_click_id = name == _ADDRESS and mapping.click_id_from_url
        self.takes_click_id = name == _CLICK_ID and mapping.click_id_from_url
        # Of the user agent: whether it is a crawler's. Agents repeat, and are long.
        self.crawlers = Memory(is_crawler) if name == _AGENT else None
        self.has_substitute = self.takes_click_id or constant is not None
        # Whether the rule's answer has consequences beyond being sent, even if it is text.
        self.is_judged = (
            self.web_only or self.gives_click_id or self.crawlers is not None or self.zero is not None
        )


class FieldGroup(NamedTuple):
    """Fields that follow each other in an object, and whose values are in one record: it is looked up once.

    `needs_record`: whether none of them has a value without that record.
    """

    above: Path  # the steps to that record
    fields: list[ProgramField]
    needs_record: bool


Groups = list[FieldGroup]  # the fields of one object, in the order of the payload


def grouped(fields: Iterable[ProgramField]) -> Groups:
    """Return the fields of an object by the records that hold their values, in the same order."""
    return [
        FieldGroup(above, group, all(field.own is not None and not field.has_substitute for field in group))
        for above, same in groupby(fields, lambda field: field.above)
        for group in [list(same)]
    ]


def fields_in(groups: Groups) -> list[ProgramField]:
    """Return the fields of `grouped`."""
    return [field for group in groups for field in group.fields]


class Description:
    """The conversion of every event by a mapping and its decisions."""

    def __init__(self, mapping: Mapping, decisions: Decisions) -> None:
        self.mapping = mapping
        self.decisions = decisions
        # Where the values are that are decided before all others; None if the mapping has no source for one.
        self.decided = {name: self._place(mapping.sources.get(name)) for name in DECIDED}
        self.consent = self._place(mapping.consent)
        self.dedup_key = self._place(mapping.dedup_key)
        # What reads them off an event.
        self.read = {name: decide.reader(place) for name, place in self.decided.items()}
        self.read_consent, self.read_dedup_key = decide.reader(self.consent), decide.reader(self.dedup_key)
        # Steps to the array of the items; empty: the event itself is the one item.
        self.item_steps = mapping.item_steps
        # What makes the items, if they come from the first of several lists.
        self.first_list: Computation | None = None
        if mapping.item_lists:
            lists = tuple(
                Source(written(steps), steps, frozenset({"record"})) for steps in mapping.item_lists
            )
            self.first_list = self.computed(FirstList(lists), None)
        self._filled = mapping.sources.keys() | mapping.constants.keys()
        if mapping.click_id_from_url:
            self._filled.add(_CLICK_ID)
        # The fields of the event itself that are not decided earlier (`decisions`), in payload order.
        self.event = grouped(field for field in self._of("") if field.name not in DECIDED)
        self.app_info = grouped(self._of("app_info"))
        self.device_info = grouped(self._of("device_info"))
        self.user_data = grouped(self._of("user_data"))
        self.items = grouped(self._of(CONTENTS))  # the fields of each item
        custom = self._of("custom_data")
        # Fields of ``custom_data`` whose values are those of a field of the items; they are sent after the items.
        self.gathered = grouped(field for field in custom if self._is_gathered(field.name))
        self.custom_data = grouped(field for field in custom if not self._is_gathered(field.name))

    def is_text(self, name: str) -> bool:
        """Return whether the values of a source are only text or null; see `ProgramField.is_text`."""
        source = self.mapping.sources.get(name)
        # A computed value may be malformed, and then it is no text.
        return isinstance(source, Source) and source.kinds <= WORDS

    def _is_gathered(self, name: str) -> bool:
        """Return whether this field has the same source as a field of the items."""
        source = self.mapping.sources.get(name)
        item = self.mapping.sources.get(DERIVED.get(name, ""))
        if isinstance(source, Each):
            return source.parts == (item,)
        return isinstance(source, Source) and source == item and is_several(source.steps)

    def _place(self, source: Expression | None) -> Path | Computation | None:
        """Return where the value of a source is in an event, or how it is computed."""
        if source is None or isinstance(source, Source):
            return None if source is None else source.steps
        return self.computed(source, None)

    def computed(self, source: Expression, item_steps: Path | None) -> Computation:
        """Return how a source is computed; `item_steps`: to the items' array, for a field of an item."""
        name = self.mapping.sources.get("event_name")
        return computation(source, item_steps, name, self.decisions.name_of)

    def _of(self, parent: str) -> list[ProgramField]:
        return [
            ProgramField(self, self.mapping.target(name))
            for name, target in TARGETS.items()
            if target.parent == parent and name in self._filled
        ]


def _way(target: Target, source: Expression) -> Way:
    """Return how the target's value is made."""
    if target.hashed:
        return Way.DIGESTS
    if target.arity is Arity.ALL:
        return Way.ALL
    if target.arity is Arity.SUM:
        return Way.TOTAL
    return Way.FIRST if target.arity is not Arity.ITEM and is_many(source) else Way.VALUE
