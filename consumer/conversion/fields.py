"""Which fields a mapping fills, in which order, and from what: the one description of a conversion.

Theory of operation. A `Description` is made once from a checked mapping. Two executors follow it: `converter`, which
goes through it for each event, and the compiled modules, for which `program` turns it into a program. This module and
the rules define what is done; the executors decide how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from consumer.avro.paths import EACH, Path, Source
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import amount, count
from consumer.conversion.codes import Way
from consumer.conversion.computed.expressions import Computation, Each, Expression, computation, is_many
from consumer.conversion.decisions import REFUSALS, Decisions, LeftOutWarnings
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import text_of
from consumer.conversion.rules import Memory, Rule, flag, order_id, web_url
from consumer.conversion.targets import CONTENTS, DECIDED, DERIVED, TARGETS, WORDS, Arity, Target
from consumer.engine.figures.coverage import BITS, BITS_OF_FIELDS
from consumer.engine.model import Rejection, Warned

# The API's limit for the list of item ids.
_MOST_LANGUAGES: Final = 100
_PARTNER_NAME: Final = "partner_name"
_CLICK_ID: Final = "user_data.click_id"
_ADDRESS: Final = "event_source_url"
_AGENT: Final = "user_data.client_user_agent"
# Fields whose values rarely repeat, or whose rules are quick: a memory would cost more than it saves.
_NOT_REMEMBERED: tuple[Rule, ...] = (text_of, order_id, web_url, flag, amount, count)
_OF_ONE_PERSON: Final = frozenset(
    f"user_data.{key}" for key in ("em", "ph", "external_id", "hashed_maids", "client_ip_address")
)

_BESIDE = ("user_data.hashed_maids", "user_data.st", "user_data.country", "custom_data.opt_out_type")
# Fields whose presence other fields depend on, or is counted (`consumer.engine.figures.coverage`).
MARKS: Final = {
    **BITS_OF_FIELDS,
    **{name: 1 << number for number, name in enumerate(_BESIDE, start=len(BITS))},
}


@dataclass(frozen=True, slots=True)
class ProgramField:
    """One field of the event, of an object in it, or of an item."""

    name: str
    key: str  # its name in JSON
    way: Way
    computed: Computation | None  # how the value is computed, if it is
    steps: Path  # steps to its value or values; in a field of an item, from the item
    names: tuple[str, ...]  # those steps up to the first array on the way
    rest: Path  # the steps after those names
    rule: Callable[[Any], Any] | None  # None: no value comes from the record
    # The rule, with a memory of its answers if values repeat (`Memory`).
    ask: Callable[[Any], Any] | None
    is_text: bool  # whether its values are only text or null, by the schema
    most: int | None  # most values that are sent; None: all
    warnings: LeftOutWarnings  # the warning for each reason to leave a value out
    # Refusal of the event for a malformed value; None: the value is left out with a warning.
    refusal: Rejection | None
    zero: Warned | None  # of an amount: the warning if it is zero
    constant: Any  # the value that is sent if there is no other; None: none
    web_only: bool  # whether it is sent only with events of the web
    gives_click_id: bool  # whether it is the page's address, from which a missing click id is taken
    takes_click_id: bool  # whether it is the click id, which may be taken from the page's address
    is_agent: bool  # whether it is the user agent, which may be a crawler's


class Description:
    """The conversion of every event by a mapping and its decisions; `partner_name` is sent with every event."""

    def __init__(self, mapping: Mapping, decisions: Decisions, partner_name: str | None) -> None:
        self.mapping = mapping
        self.decisions = decisions
        self._partner_name = partner_name
        # Where the values are that are decided before all others; None if the mapping has no source for one.
        self.decided = {name: self._place(mapping.sources.get(name)) for name in DECIDED}
        self.consent = self._place(mapping.consent)
        self.dedup_key = self._place(mapping.dedup_key)
        # Steps to the array of the items; empty: the event itself is the one item.
        self.item_steps = mapping.item_steps
        self._filled = mapping.sources.keys() | mapping.constants.keys()
        if partner_name:
            self._filled.add(_PARTNER_NAME)
        if mapping.click_id_from_url:
            self._filled.add(_CLICK_ID)
        # The fields of the event itself that are not decided earlier (`decisions`), in payload order.
        self.event = [field for field in self._of("") if field.name not in DECIDED]
        self.app_info = self._of("app_info")
        self.device_info = self._of("device_info")
        self.user_data = self._of("user_data")
        self.items = self._of(CONTENTS)  # the fields of each item
        custom = self._of("custom_data")
        # Fields of ``custom_data`` whose values are those of a field of the items; they are sent after the items.
        self.gathered = [field for field in custom if self._is_gathered(field.name)]
        self.custom_data = [field for field in custom if not self._is_gathered(field.name)]

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
        return isinstance(source, Source) and source == item and EACH in source.steps

    def _place(self, source: Expression | None) -> Path | Computation | None:
        """Return where the value of a source is in an event, or how it is computed."""
        if source is None or isinstance(source, Source):
            return None if source is None else source.steps
        return self._computed(source, None)

    def _computed(self, source: Expression, item_steps: Path | None) -> Computation:
        name = self.mapping.sources.get("event_name")
        return computation(source, item_steps, name, self.decisions.name_of)

    def _of(self, parent: str) -> list[ProgramField]:
        return [
            self._field(self.mapping.target(name))
            for name, target in TARGETS.items()
            if target.parent == parent and name in self._filled
        ]

    def _field(self, target: Target) -> ProgramField:
        mapping, name = self.mapping, target.name
        source, constant = mapping.sources.get(name), mapping.constants.get(name)
        # The setting overrides the mapping: it is the same for all events of this service.
        if name == _PARTNER_NAME and self._partner_name:
            source, constant = None, self._partner_name
        computed: Computation | None = None
        steps: Path = ()
        if isinstance(source, Source):
            # The rest of the way from the item.
            steps = source.steps[len(self.item_steps) :] if target.parent == CONTENTS else source.steps
        elif source is not None:
            computed = self._computed(source, self.item_steps if target.parent == CONTENTS else None)
            steps = (EACH,) if computed.is_many else ()
        before = steps.index(EACH) if EACH in steps else len(steps)
        rule = None if source is None else decide.rule_for(target, source, mapping.time_unit)
        way = Way.VALUE if source is None else _way(target, source)
        again = way in (Way.VALUE, Way.DIGESTS) and rule not in _NOT_REMEMBERED and name not in _OF_ONE_PERSON
        return ProgramField(
            name=name,
            key=target.key,
            way=way,
            computed=computed,
            steps=steps,
            names=steps[:before],
            rest=steps[before:],
            rule=rule,
            ask=rule if rule is None or not again else Memory(rule),
            is_text=source is not None and self.is_text(name),
            most=_MOST_LANGUAGES if target.key == "languages" else None,
            warnings=decide.warnings_of(target),
            refusal=None if target.refusal is None else REFUSALS[target.refusal],
            zero=decide.zero_warning(target) if target.rule is amount else None,
            constant=constant,
            web_only=name == _ADDRESS,
            gives_click_id=name == _ADDRESS and mapping.click_id_from_url,
            takes_click_id=name == _CLICK_ID and mapping.click_id_from_url,
            is_agent=name == _AGENT,
        )


def _way(target: Target, source: Expression) -> Way:
    """Return how the target's value is made."""
    if target.hashed:
        return Way.DIGESTS
    if target.arity is Arity.ALL:
        return Way.ALL
    if target.arity is Arity.SUM:
        return Way.TOTAL
    return Way.FIRST if target.arity is not Arity.ITEM and is_many(source) else Way.VALUE
