"""Which fields a mapping fills, in which order, and how each is treated: what everything that converts agrees on.

Theory of operation. A conversion is written out in more than one form (`convert_source` as Python, `convert_program` as
operations for the compiled module). What is to be done is the same in all of them and is said here: for each target its
*way*. How a way is done is the form's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from consumer.avro.paths import EACH, Source
from consumer.conversion import decisions as decide
from consumer.conversion.cache import Cache
from consumer.conversion.decisions import Decisions
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import text_of
from consumer.conversion.rules import Rule, flag, is_crawler, order_id, web_url
from consumer.conversion.targets import CONTENTS, TARGETS, Arity, Target
from consumer.engine.coverage import BITS, BITS_OF_FIELDS

MOST_LANGUAGES: Final = 100
PARTNER_NAME: Final = "partner_name"
_CLICK_ID: Final = "user_data.click_id"
_AGENT: Final = "user_data.client_user_agent"

_WORDS = frozenset({"string", "enum"})
_ITEM_ID, _ITEM_QUANTITY = f"{CONTENTS}.id", f"{CONTENTS}.quantity"
_NOT_REMEMBERED: tuple[Rule, ...] = (text_of, order_id, web_url, flag)
"""Rules that are not asked through a cache: their values hardly come again, or are told at a glance."""
_PLAIN_FROM: Final[dict[Rule, str]] = {text_of: "!", order_id: "1"}
"""Rules that ASCII text surely passes as it is, and the least character that it must begin with for that: ``!`` follows
the blank, so that what is not below it is neither empty nor blank; what is not below ``1`` is not 0 either."""

_BESIDE = ("user_data.hashed_maids", "user_data.st", "user_data.country", "custom_data.opt_out_type")
MARKS: Final = {
    **BITS_OF_FIELDS,
    **{name: 1 << number for number, name in enumerate(_BESIDE, start=len(BITS))},
}
"""Fields whose presence something else depends on, or is counted (`consumer.engine.coverage`)."""


class Way(IntEnum):
    """How a field comes to its value; `_events.pyx` has the same numbers."""

    TEXT = 0
    """Text that mostly passes at a glance (`Fields.plain_from`), else the rule."""
    REMEMBERED = 1
    """The rule, through a cache."""
    FLAG = 2
    """True and false as they are, else the rule."""
    RULE = 3
    """The rule."""
    DIGEST = 4
    """An array of one digest; of text, through a cache."""
    ONE_DIGEST = 5
    """As `DIGEST` of an array, which nearly always holds one; else `DIGESTS`."""
    DIGESTS = 6
    """The different digests of all values."""
    ALL = 7
    """What the rule makes of all values."""
    FIRST = 8
    """What the rule makes of the first usable value."""
    TOTAL = 9
    """The sum of all values."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be written out. `caches`, by target: what was answered before, shared by all that is written."""

    mapping: Mapping
    decisions: Decisions
    partner_name: str | None
    caches: dict[str, Cache] = field(default_factory=dict)


class Fields:
    """The fields that a task fills. `trusting`: values have the types that the schema promises."""

    def __init__(self, task: Task, *, trusting: bool) -> None:
        self._mapping = mapping = task.mapping
        self._partner_name = task.partner_name
        self._caches = task.caches
        self._trusting = trusting
        self.summed = self._read_with("custom_data.num_items", _ITEM_QUANTITY)
        """Whether the sum of quantities is gathered in the loop over the items."""
        self.listed = self._read_with("custom_data.content_ids", _ITEM_ID)
        """Whether the list of ids is."""
        self._filled = mapping.sources.keys() | mapping.constants.keys()
        if task.partner_name:
            self._filled.add(PARTNER_NAME)
        if mapping.click_id_from_url:
            self._filled.add(_CLICK_ID)

    def of(self, parent: str) -> list[Target]:
        """The targets in this object that are filled, in payload order."""
        return [
            self._mapping.target(name)
            for name, target in TARGETS.items()
            if target.parent == parent and name in self._filled
        ]

    def source(self, target: Target) -> Source | None:
        """Where its value comes from; None: from nowhere, it is the same for every event."""
        if target.name == PARTNER_NAME and self._partner_name:
            return None
        return self._mapping.sources.get(target.name)

    def constant(self, target: Target) -> str | None:
        """What it is where no value comes from the record; None: then it is not sent."""
        if target.name == PARTNER_NAME and self._partner_name:
            return self._partner_name
        return self._mapping.constants.get(target.name)

    def rule(self, target: Target, source: Source) -> Rule:
        """The target's rule for values of this source."""
        return decide.rule_for(target, source, self._mapping.time_unit)

    def way(self, target: Target, source: Source) -> Way:
        """How its value is come to."""
        if target.hashed:
            return self._hashed_way(source)
        if target.arity is Arity.ALL:
            return Way.ALL
        if target.arity is Arity.SUM:
            return Way.TOTAL
        if source.many and target.arity is not Arity.ITEM:
            return Way.FIRST
        return self._single_way(self.rule(target, source), source)

    def trusts_text(self, source: Source) -> bool:
        """Whether its values are surely text or null."""
        return self._trusting and source.kinds <= _WORDS

    def plain_from(self, rule: Rule) -> str:
        """Of `Way.TEXT`: ASCII text that does not begin below this passes as it is."""
        return _PLAIN_FROM[rule]

    def cache(self, target: Target, rule: Rule) -> Cache:
        """One memory for a target, whichever form of this task asks it."""
        return self._caches.setdefault(target.name, Cache(rule))

    def lacking(self, target: Target) -> tuple[Target, ...]:
        """The targets that go without if this one is left out."""
        if self.listed and target.name == _ITEM_ID:
            return (target, TARGETS["custom_data.content_ids"])
        return (target,)

    def gives_click_id(self, target: Target) -> bool:
        """Whether this is the page's address, and an event without a click id takes it from there."""
        return target.name == "event_source_url" and self._mapping.click_id_from_url

    def takes_click_id(self, target: Target) -> bool:
        """Whether this is the click id, and comes from the page's address where nothing else gives it."""
        return target.name == _CLICK_ID and self._mapping.click_id_from_url

    def warns_of_crawlers(self, target: Target) -> bool:
        """Whether this is the user agent."""
        return target.name == _AGENT

    @property
    def crawlers(self) -> Cache:
        """Which agents are crawlers'."""
        return self._caches.setdefault("crawlers", Cache(is_crawler))

    def is_gathered(self, target: Target) -> bool:
        """Whether it is filled by the loop over the items."""
        return (self.summed and target.name == "custom_data.num_items") or (
            self.listed and target.name == "custom_data.content_ids"
        )

    def _hashed_way(self, source: Source) -> Way:
        if not source.many:
            return Way.DIGEST if self._trusting else Way.DIGESTS
        one = self.trusts_text(source) and EACH not in source.steps[:-1]
        return Way.ONE_DIGEST if one else Way.DIGESTS

    def _single_way(self, rule: Rule, source: Source) -> Way:
        if rule is flag:
            return Way.FLAG
        if not self.trusts_text(source):
            return Way.RULE
        if rule in _PLAIN_FROM:
            return Way.TEXT
        return Way.RULE if rule in _NOT_REMEMBERED else Way.REMEMBERED

    def _read_with(self, name: str, item_field: str) -> bool:
        """Whether the field `name` has the same source as an item's field, and is gathered in the same loop."""
        source, item = self._mapping.sources.get(name), self._mapping.sources.get(item_field)
        return source is not None and item is not None and source.steps == item.steps and EACH in source.steps


def is_quantity(target: Target) -> bool:
    """Whether this is how many there are of an item: a count, whose sum may be gathered."""
    return target.name == _ITEM_QUANTITY
