"""Which events of a replay go on: what ``--where`` leaves out, and what is too old for the platform.

Theory of operation. `Selecting` stands before the real converter, `Judging` before the decoder; `WithoutExpired` does
for a whole reading what is left to do where nothing was asked for. What they leave out
becomes `Filtered`, so that the ledger adds up and nothing of it is sent or dead-lettered. Two codes tell whether an
event did not match, or could not be judged: a record that is refused before it has a name cannot be compared with one.
Too old is not a dead letter in a replay: whoever replays last month's topic does not want last month's dead letters
once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from consumer.engine.model import (
    Ahead,
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
)

if TYPE_CHECKING:
    from consumer.engine.block import Prepared
    from consumer.engine.reading import Converting, Decoded, Reading, SchemaLearner

EXPIRED: Final = "expired"
"""Filter code of what is too old; the code of the rejection that it stands for (`consumer.conversion.decisions`)."""
LEFT_OUT: Final = "where"
UNJUDGED: Final = "where_unjudged"
NOT_SELECTED: Final = frozenset({LEFT_OUT, UNJUDGED})
"""Filter codes of what ``--where`` left out."""

_EXPIRED = Filtered(EXPIRED)
_LEFT_OUT = Filtered(LEFT_OUT)
_UNJUDGED = Filtered(UNJUDGED)

_CHANNELS: Final[Mapping[str, frozenset[str]]] = {
    "web": frozenset({"web"}),
    "app": frozenset({"app_android", "app_ios"}),
    "app_android": frozenset({"app_android"}),
    "app_ios": frozenset({"app_ios"}),
    "store": frozenset({"offline"}),
    "offline": frozenset({"offline"}),
}
"""A channel as people call it -> the platform's ``action_source`` (docs/conversion.md)."""


class Condition(NamedTuple):
    """``field=value`` or ``field!=value``, as the command line has it."""

    field: str
    values: frozenset[str]
    equal: bool


_FIELDS: Final[Mapping[str, Callable[[ConversionEvent], str]]] = {
    "event_name": lambda event: event.name,
    "channel": lambda event: event.action_source,
    "ad_account": lambda event: event.account,
    "event_id": lambda event: event.event_id,
}
FIELDS: Final = tuple(_FIELDS)
CHANNELS: Final = tuple(_CHANNELS)


def conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of ``--where``: values of one field are alternatives, fields must all hold.

    Raises `ValueError` saying what is wrong with the first that cannot be.
    """
    found: dict[tuple[str, bool], set[str]] = {}
    for text in texts:
        field, values, equal = _parsed(text)
        found.setdefault((field, equal), set()).update(values)
    return tuple(Condition(field, frozenset(values), equal) for (field, equal), values in found.items())


def _parsed(text: str) -> tuple[str, frozenset[str], bool]:
    left, sign, value = text.partition("=")
    equal = not left.endswith("!")
    field, value = left.removesuffix("!").strip(), value.strip()
    if not sign or not value:
        raise ValueError(f"{text!r} is no condition: write field=value or field!=value")
    if field not in _FIELDS:
        raise ValueError(f"{field!r} cannot be asked for: use {', '.join(FIELDS)}")
    if field != "channel":
        return field, frozenset({value}), equal
    if value.lower() not in _CHANNELS:
        raise ValueError(f"{value!r} is no channel: use {', '.join(CHANNELS)}")
    return field, _CHANNELS[value.lower()], equal


class WithoutExpired:
    """A reading that leaves out what is too old: `Selecting` of everything, on the fast path."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`."""
        return self._reading.in_two_steps

    def read(self, records: list[Record], now: float) -> list[Prepared]:
        """See `consumer.engine.reading.Reading`."""
        return [
            _EXPIRED if isinstance(one, Rejection) and one.code == EXPIRED else one
            for one in self._reading.read(records, now)
        ]


class Judging:
    """A decoder; while anything is asked for, what cannot be decoded is left out: nobody knows whether it was meant."""

    def __init__(self, decoder: SchemaLearner) -> None:
        self._decoder = decoder

    def decode_chunk(self, records: list[Record]) -> Sequence[Decoded]:
        """See `consumer.engine.intake.Decoding`."""
        decoded = self._decoder.decode_chunk(records)
        return [_UNJUDGED if isinstance(one, Rejection) else one for one in decoded]

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = "AVRO") -> Rejection | None:
        """See `consumer.engine.intake.SchemaLearner`."""
        return self._decoder.add_schema(ref, schema_json, kind)

    def missing(self, ref: SchemaRef) -> Rejection | Filtered:
        """See `consumer.engine.intake.SchemaLearner`."""
        return _UNJUDGED


class Selecting:
    """Converts, and lets only those go on that meet all `conditions` and are not too old."""

    def __init__(self, converter: Converting, conditions: Sequence[Condition]) -> None:
        self._converter = converter
        self._tests = [(_FIELDS[one.field], one.values, one.equal) for one in conditions]

    def convert_chunk(self, events: list[CommerceEvent], now: float) -> Sequence[Converted]:
        """See `consumer.engine.intake.Converting`."""
        return [self._select(one) for one in self._converter.convert_chunk(events, now)]

    def _select(self, converted: Converted) -> Converted:
        if isinstance(converted, ConversionEvent):
            return converted if self._meets(converted) else _LEFT_OUT
        if not isinstance(converted, Rejection):
            return converted
        if isinstance(converted, Ahead) and self._tests:
            converted.verdict = _UNJUDGED
            return converted
        if converted.code == EXPIRED:
            return _EXPIRED
        return _UNJUDGED if self._tests else converted

    def _meets(self, event: ConversionEvent) -> bool:
        return all((read(event) in values) is equal for read, values, equal in self._tests)
