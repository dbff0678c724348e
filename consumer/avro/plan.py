"""How one writer's data are read in the shape of our schema, as a *plan*: what stands where, and what becomes of it.

Theory of operation. `resolution` makes a plan once per pair of schemas; `reading` executes it in Python, and
`consumer.conversion.layout` makes the compiled modules' operations of it.

`trimmed` is a plan without what is not asked for: read over, for its bytes must be a datum all the same, and never
built. A datum of a megabyte may hold a million records of one byte each, which as dictionaries take half a gigabyte.
What the writer has and we lack, and what the mapping does not ask for of ours, becomes a plan that makes nothing:
arrays and maps that keep no items, records without a named field. The values within are still read, by the same
functions, so that the verdict on hostile bytes is the same; each is gone before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from consumer.avro.paths import ALL, EACH, NOTHING, Asked, below_any, names_in, within

Read = Callable[[bytes, int], tuple[Any, int]]
"""From bytes and a position to a value and the next position; see `reading` for what it promises."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value, read by this function."""

    read: Read


@dataclass(frozen=True, slots=True, eq=False)
class EnumPlan:
    """An index into the writer's symbols, each already mapped to ours; ``None`` for one without a place.

    One is made for each pair of enums, however often it stands in a schema: to compare a hundred thousand symbols in
    each of a thousand places would take minutes.
    """

    name: str
    symbols: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class OptionalPlan:
    """The union of ``null`` (branch `null`, 0 or 1) and one other type: nearly every field is one."""

    null: int
    value: Plan


@dataclass(frozen=True, slots=True)
class UnionPlan:
    """Any other union."""

    branches: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class ArrayPlan:
    """Blocks of items, up to a block of none; not `kept`: they are read over, and null stands for them."""

    item: Plan
    kept: bool = True


@dataclass(frozen=True, slots=True)
class MapPlan:
    """Blocks of keys and values, up to a block of none. Only `keys` are kept; None: all."""

    value: Plan
    keys: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class DefaultPlan:
    """A field that the writer lacks: nothing is read, `make` gives its value."""

    make: Callable[[], Any]


@dataclass(slots=True, eq=False)
class RecordPlan:
    """The fields in the writer's order, those we lack without a name, then our defaults.

    Made before its fields are known, since they may refer to it; ``None`` if they never came to be.
    """

    name: str
    fields: Sequence[tuple[str | None, Plan]] | None = None


Plan = Leaf | EnumPlan | OptionalPlan | UnionPlan | ArrayPlan | MapPlan | DefaultPlan | RecordPlan


def branch_bytes(plan: OptionalPlan) -> tuple[int, int]:
    """How the branch of null, and the other one, are spelled."""
    return plan.null << 1, (1 - plan.null) << 1


_NO_KEYS: frozenset[str] = frozenset()


def trimmed(plan: Plan, asked: Asked = ALL) -> Plan:
    """What reads `plan` and makes only what `asked` names of it."""
    return _Trimming().trim(plan, asked)


class _Trimming:
    """One plan being trimmed. A record may stand in many places, and in itself: it is trimmed once for each asking."""

    def __init__(self) -> None:
        self._records: dict[tuple[RecordPlan, Asked], RecordPlan] = {}

    def trim(self, plan: Plan, asked: Asked) -> Plan:
        if isinstance(plan, RecordPlan):
            return self._record(plan, asked)
        if isinstance(plan, OptionalPlan):
            return OptionalPlan(plan.null, self.trim(plan.value, asked))
        if isinstance(plan, UnionPlan):
            return UnionPlan(tuple(self.trim(branch, asked) for branch in plan.branches))
        if isinstance(plan, ArrayPlan):
            return ArrayPlan(self.trim(plan.item, within(asked, EACH.name) or asked), bool(asked))
        if isinstance(plan, MapPlan):
            return self._map(plan, asked)
        return plan

    def _map(self, plan: MapPlan, asked: Asked) -> MapPlan:
        if not asked:
            return MapPlan(self.trim(plan.value, NOTHING), _NO_KEYS)
        keys = names_in(asked)
        return MapPlan(self.trim(plan.value, ALL if keys is None else below_any(asked)), keys)

    def _record(self, plan: RecordPlan, asked: Asked) -> RecordPlan:
        key = (plan, asked)
        if key in self._records or plan.fields is None:
            return self._records.get(key, plan)
        self._records[key] = made = RecordPlan(plan.name)
        made.fields = [
            (name if below else None, self.trim(value, below))
            for name, value, below in (
                (name, value, NOTHING if name is None else within(asked, name)) for name, value in plan.fields
            )
            if below or not isinstance(value, DefaultPlan)
        ]
        return made
