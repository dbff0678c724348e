"""Which fields a mapping fills, in which order, and how each comes to its value: the one description of a conversion.

Theory of operation. A `Description` is made once from a checked mapping. Two executors follow it: `converter`, which
goes through it for each event, and the compiled modules, for which `program` turns it into a program. What is to be
done is said here and in the rules; how, is the executor's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from consumer.avro.paths import EACH, Source, Step
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import amount
from consumer.conversion.codes import Way
from consumer.conversion.decisions import REFUSALS, Decisions, LeftOutWarnings
from consumer.conversion.mapping import Mapping
from consumer.conversion.rules import Memory, Rule
from consumer.conversion.targets import CONTENTS, DECIDED, TARGETS, Arity, Target
from consumer.engine.coverage import BITS, BITS_OF_FIELDS
from consumer.engine.model import Rejection, Warned

Path = tuple[Step, ...]

_MOST_LANGUAGES: Final = 100
_PARTNER_NAME: Final = "partner_name"
_CLICK_ID: Final = "user_data.click_id"
_ADDRESS: Final = "event_source_url"
_AGENT: Final = "user_data.client_user_agent"
_ITEM_ID, _ITEM_QUANTITY = f"{CONTENTS}.id", f"{CONTENTS}.quantity"
_GATHERED: Final = {"custom_data.content_ids": _ITEM_ID, "custom_data.num_items": _ITEM_QUANTITY}
_WORDS = frozenset({"string", "enum"})
COME_AGAIN: Final = frozenset(
    {
        "language",
        "custom_data.currency",
        *(f"user_data.{key}" for key in ("ge", "db", "ln", "fn", "ct", "st", "zp", "country")),
    }
)
"""Fields that have few different values, compared with the number of events."""

_BESIDE = ("user_data.hashed_maids", "user_data.st", "user_data.country", "custom_data.opt_out_type")
MARKS: Final = {
    **BITS_OF_FIELDS,
    **{name: 1 << number for number, name in enumerate(_BESIDE, start=len(BITS))},
}
"""Fields whose presence something else depends on, or is counted (`consumer.engine.coverage`)."""


@dataclass(frozen=True, slots=True)
class ProgramField:
    """One field of the event, of an object in it, or of an item."""

    name: str
    key: str
    """Its name in JSON."""
    way: Way
    steps: Path
    """To its value or values; in a field of an item, from the item."""
    names: tuple[str, ...]
    """Of those steps, up to the first array on the way."""
    rest: Path
    """From there on."""
    rule: Callable[[Any], Any] | None
    """None: no value comes from the record."""
    ask: Callable[[Any], Any] | None
    """The rule, which remembers what it answered where values come again and again (`COME_AGAIN`)."""
    is_text: bool
    """Whether its values are surely text or null, if the record is what its schema says."""
    most: int | None
    """Values that are sent at most; None: all."""
    warnings: LeftOutWarnings
    """By reason to leave a value out, what is warned of."""
    refusal: Rejection | None
    """With which a malformed value refuses the event; None: it is left out with a warning."""
    zero: Warned | None
    """Of an amount: what is warned of if it is zero."""
    constant: Any
    """What is sent where nothing else is; None: nothing."""
    web_only: bool
    """It belongs to events of the web."""
    gives_click_id: bool
    """It is the page's address, and an event without a click id takes it from there."""
    takes_click_id: bool
    """It is the click id, and comes from the page's address where nothing else gives it."""
    is_agent: bool
    """It is the user agent, which may be a crawler's."""


class Description:
    """What a mapping says of every event, under these decisions; `partner_name` is that of every event."""

    def __init__(self, mapping: Mapping, decisions: Decisions, partner_name: str | None) -> None:
        self.mapping = mapping
        self.decisions = decisions
        self._partner_name = partner_name
        self.item_steps = mapping.item_steps
        """To the array of the items; empty: the event itself is the one item."""
        self._filled = mapping.sources.keys() | mapping.constants.keys()
        if partner_name:
            self._filled.add(_PARTNER_NAME)
        if mapping.click_id_from_url:
            self._filled.add(_CLICK_ID)
        self.event = [field for field in self._of("") if field.name not in DECIDED]
        """The fields of the event itself that are not decided on before (`decisions`), in payload order."""
        self.app_info = self._of("app_info")
        self.device_info = self._of("device_info")
        self.user_data = self._of("user_data")
        self.items = self._of(CONTENTS)
        """The fields of each item."""
        custom = self._of("custom_data")
        self.gathered = [field for field in custom if self.is_gathered(field.name)]
        """Fields of ``custom_data`` whose values are those of a field of the items; they stand behind the items."""
        self.custom_data = [field for field in custom if not self.is_gathered(field.name)]

    def steps(self, name: str) -> Path | None:
        """To the value of one of `DECIDED`; None if the mapping has no source for it."""
        source = self.mapping.sources.get(name)
        return None if source is None else source.steps

    def is_text(self, name: str) -> bool:
        """See `Field.is_text`."""
        source = self.mapping.sources.get(name)
        return source is not None and source.kinds <= _WORDS

    def is_gathered(self, name: str) -> bool:
        """Whether this field has the same source as a field of the items."""
        source = self.mapping.sources.get(name)
        item = self.mapping.sources.get(_GATHERED.get(name, ""))
        return source is not None and item is not None and source.steps == item.steps and EACH in source.steps

    def _of(self, parent: str) -> list[ProgramField]:
        return [
            self._field(self.mapping.target(name))
            for name, target in TARGETS.items()
            if target.parent == parent and name in self._filled
        ]

    def _field(self, target: Target) -> ProgramField:
        mapping, name = self.mapping, target.name
        source, constant = mapping.sources.get(name), mapping.constants.get(name)
        if name == _PARTNER_NAME and self._partner_name:
            source, constant = None, self._partner_name
        steps = () if source is None else source.steps
        steps = steps[len(self.item_steps) :] if target.parent == CONTENTS else steps
        before = steps.index(EACH) if EACH in steps else len(steps)
        rule = None if source is None else decide.rule_for(target, source, mapping.time_unit)
        return ProgramField(
            name,
            target.key,
            Way.VALUE if source is None else _way(target, source),
            steps,
            tuple(step.name for step in steps[:before]),
            steps[before:],
            rule,
            _asking(name, rule),
            source is not None and self.is_text(name),
            _MOST_LANGUAGES if target.key == "languages" else None,
            decide.warnings_of(target),
            None if target.refusal is None else REFUSALS[target.refusal],
            decide.zero_warning(target) if target.rule is amount else None,
            constant,
            name == _ADDRESS,
            name == _ADDRESS and mapping.click_id_from_url,
            name == _CLICK_ID and mapping.click_id_from_url,
            name == _AGENT,
        )


def _asking(name: str, rule: Rule | None) -> Rule | None:
    if rule is None or name not in COME_AGAIN:
        return rule
    memory, ask = Memory(rule), rule
    return lambda value: memory[value] if value.__class__ is str else ask(value)


def _way(target: Target, source: Source) -> Way:
    """How the target's value is come to."""
    if target.hashed:
        return Way.DIGESTS
    if target.arity is Arity.ALL:
        return Way.ALL
    if target.arity is Arity.SUM:
        return Way.TOTAL
    return Way.FIRST if source.many and target.arity is not Arity.ITEM else Way.VALUE
