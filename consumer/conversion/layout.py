"""Where a record's values go: the operations that read it in C, and the slots that they fill.

Theory of operation. `native/_slots.pyx` runs *operations* over a record's bytes, which put its values into *slots*.
Fields of records, and of records in records, get a slot each (the record is *spread*), and so do the fields of each
item, and the keys of a map that are asked for. Everything else is built as the plain reader builds it, and looked up
below its slot. What the mapping does not ask for gets no slot: it is passed over, and so are the parts of a value that
are not mapped (fields of records in arrays, other keys of maps). A record that stands in several places is read in each
of them, up to `MOST_OPERATIONS` in all;
beyond that, and where a record holds itself, one operation calls the plain reader.

A record is spread only if all that the mapping asks for below it are fields of it. Where our schema has a union the
mapping may ask for what another branch of it holds; then it is looked up, which fails, and the plain path says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from consumer.avro import reading
from consumer.avro.paths import EACH, Asked, Path
from consumer.avro.plan import (
    ArrayPlan,
    DefaultPlan,
    EnumPlan,
    Leaf,
    MapPlan,
    OptionalPlan,
    Plan,
    RecordPlan,
    UnionPlan,
    trimmed,
)
from consumer.avro.reading import Read
from consumer.avro.values import DecimalReader, rescaled
from consumer.conversion.codes import Code

MOST_SPREAD: Final = 1024  # fields of a spread record: each takes a slot
# Of a program, but for the calls that then stand in for the rest. Honest schemas have some hundred fields.
MOST_OPERATIONS: Final = 16_384
MOST_BRANCHES: Final = 64  # of a union: finding one costs a step for each before it. Python has a table.
MOST_KEYS: Final = 16  # of a map that get slots: each key of the record is compared with them, one by one
MOST_NESTED: Final = 32  # values within values that are read in C, which recurses on the machine's stack
_MOST_STEPS: Final = 8  # to a record that is spread
NOWHERE: Final = -1  # the slot of a value that is not mapped
_SOMEWHERE: Final = 0  # the slot of a part of a value: it is asked for, and goes where the value goes


_CODES: Final[dict[Read, Code]] = {
    reading.read_string: Code.TEXT,
    reading.read_long: Code.LONG,
    reading.read_int: Code.INT,
    reading.read_boolean: Code.BOOLEAN,
    reading.read_bytes: Code.BYTES,
    reading.read_double: Code.DOUBLE,
    reading.read_float: Code.FLOAT,
    reading.read_null: Code.NULL_VALUE,
}

# Code, slot, slots, operations that belong to it, the bytes of null and of the other branch, and an object that it
# needs (see `Reader` in native/_slots.pyx).
Operation = tuple[int, int, int, int, int, int, Any]


class At(NamedTuple):
    """Where a value, or each of several, is found: in a slot, or below the object in that slot."""

    slot: int
    below: Path
    item: int = -1  # if `slot` holds the items: the slot in each item; else -1


class ComputedAt(NamedTuple):
    """How a value is computed, and where it, or each of several, is found below the result."""

    function: Callable[[Sequence[Any], tuple[Any, ...]], Any]
    # The arguments: whether each is part of the item at hand, and where it is.
    reads: tuple[tuple[bool, At], ...]
    below: Path


class Layout:
    """The operations that read records of one plan, and the slots that they fill.

    `asked`: the paths that values are asked for at; `item_steps`: that of the items, empty if there are none.
    """

    def __init__(self, plan: Plan, asked: Asked, item_steps: Path) -> None:
        self.operations: list[Operation] = []
        self.width = 0  # slots of the record. While the fields of an item are laid out: of the item.
        self.item_width: int | None = None  # slots of each item; None: an item is what stands in the array
        self._asked = asked
        self._item_steps = item_steps
        # The slot of what stands at a path; within items that have slots, the slot in the item.
        self._slots: dict[Path, int] = {}
        self._around: list[Plan] = []  # what the value that is being laid out is part of
        # A decoder may have been asked for more than the mapping asks for: what is too much is passed over.
        plan = trimmed(plan, asked)
        self.is_possible = self._is_spread(plan, ())
        if self.is_possible and isinstance(plan, RecordPlan):
            self._spread(plan, ())

    def place(self, steps: Path) -> At:
        """Return the slot nearest to the value at `steps`, and the steps on from there. Raises `KeyError`."""
        for count in range(len(steps), 0, -1):
            slot = self._slots.get(steps[:count])
            if slot is not None:
                return At(slot, steps[count:])
        raise KeyError(steps)

    # -- which fields get slots

    def _is_spread(self, plan: Plan, path: Path) -> bool:
        """Return whether this is a record with few enough fields, and has all that is asked for below `path`."""
        if not isinstance(plan, RecordPlan) or plan.fields is None or self._is_too_much(plan):
            return False
        if len(plan.fields) > MOST_SPREAD or len(path) > _MOST_STEPS:
            return False
        # A name of no characters would be taken for `EACH`.
        fields = {name for name, _ in plan.fields if name}
        return all(steps and steps[0] in fields for steps in self._below(path))

    def _below(self, path: Path) -> list[Path]:
        """Return the steps on from `path` of all that is asked for at it or below."""
        return [steps[len(path) :] for steps in self._asked if steps[: len(path)] == path]

    def _are_items(self, plan: Plan, path: Path) -> bool:
        steps = (*path, EACH)
        if steps != self._item_steps or not isinstance(plan, ArrayPlan):
            return False
        # An item that is null is as one that is not there.
        item = plan.item.value if isinstance(plan.item, OptionalPlan) else plan.item
        return self._is_spread(item, steps)

    def _keys(self, plan: Plan, path: Path) -> list[str]:
        """Return the keys that are asked for if this is a map whose keys get slots; else none."""
        if not isinstance(plan, MapPlan) or self._is_too_much(plan):
            return []
        below = self._below(path)
        keys = sorted({steps[0] for steps in below if steps})
        return [] if () in below or EACH in keys or len(keys) > MOST_KEYS else keys

    def _spread(self, plan: RecordPlan, path: Path) -> None:
        self._around.append(plan)
        for name, value in plan.fields or ():
            if name is None:
                self._operation(value, NOWHERE)
            else:
                self._field(value, (*path, name))
        self._around.pop()

    def _field(self, plan: Plan, path: Path) -> None:
        """Lay out one field that our schema has."""
        value = plan.value if isinstance(plan, OptionalPlan) else plan
        if self._is_spread(value, path) or self._are_items(value, path) or self._keys(value, path):
            slot = self.width
            at = self._add(Code.OPTIONAL, slot) if isinstance(plan, OptionalPlan) else 0
            if isinstance(value, RecordPlan):
                self._spread(value, path)
            elif isinstance(value, ArrayPlan):
                self._items(value, path)
            elif isinstance(value, MapPlan):
                self._map(value, path)
            if isinstance(plan, OptionalPlan):
                self._end(at, Code.OPTIONAL, slot, self.width - slot, plan.null_byte, 2 - plan.null_byte)
        else:
            self._operation(plan, self._new_slot(path) if self._below(path) else NOWHERE)

    def _new_slot(self, path: Path) -> int:
        self._slots[path] = self.width
        self.width += 1
        return self.width - 1

    def _items(self, plan: ArrayPlan, path: Path) -> None:
        slot = self._new_slot(path)
        at = self._add(Code.ITEMS, slot)
        item, branches = plan.item, (0, 0)
        if isinstance(item, OptionalPlan):
            branches = (item.null_byte, 2 - item.null_byte)
            item = item.value
        assert isinstance(item, RecordPlan)  # noqa: S101
        around, self.width = self.width, 0  # an item has slots of its own
        self._spread(item, self._item_steps)
        self.item_width, self.width = self.width, around
        self._end(at, Code.ITEMS, slot, self.item_width, *branches)

    def _map(self, plan: MapPlan, path: Path) -> None:
        keys, first = self._keys(plan, path), self.width
        for key in keys:
            self._new_slot((*path, key))
        at = self._add(Code.KEYS, first)
        self._around.append(plan)
        self._operation(plan.value, _SOMEWHERE)
        self._around.pop()
        self._end(at, Code.KEYS, first, len(keys), extra=tuple(key.encode() for key in keys))

    # -- operations

    def _operation(self, plan: Plan, slot: int) -> None:
        """Add what reads one value into `slot`."""
        if isinstance(plan, DefaultPlan):
            if slot != NOWHERE:  # nothing is read; null where its record is
                self._add(Code.MAKE, slot, extra=plan.make)
        elif isinstance(plan, EnumPlan):
            self._add(Code.ENUM, slot, extra=plan.symbols)
        elif isinstance(plan, Leaf):
            self._leaf(plan, slot)
        elif self._is_too_much(plan):
            self._add(Code.CALL, slot, extra=plan.read)
        else:
            self._around.append(plan)
            self._nest(plan, slot)
            self._around.pop()

    def _is_too_much(self, plan: Plan) -> bool:
        """Return whether the plain reader is called: the program would not end, be too long, or nest too deeply."""
        if isinstance(plan, RecordPlan) and (plan.fields is None or plan in self._around):
            return True
        if isinstance(plan, UnionPlan) and len(plan.branches) > MOST_BRANCHES:
            return True
        return len(self._around) >= MOST_NESTED or len(self.operations) >= MOST_OPERATIONS

    def _nest(self, plan: Plan, slot: int) -> None:
        """Add what reads a value that has parts."""
        part = min(slot, _SOMEWHERE)
        at = self._add(Code.CALL, slot)  # what it is follows below, when its extent is known
        if isinstance(plan, OptionalPlan):
            # Its value goes into the same slot: the operations that follow put it there.
            self._operation(plan.value, slot)
            self._end(at, Code.OPTIONAL, slot, 1, plan.null_byte, 2 - plan.null_byte)
        elif isinstance(plan, ArrayPlan):
            self._operation(plan.item, part)
            self._end(at, Code.ARRAY, slot, 1)
        elif isinstance(plan, MapPlan):
            self._operation(plan.value, part)
            self._end(at, Code.MAP, slot, 1, extra=plan.keys)
        elif isinstance(plan, UnionPlan):
            for branch in plan.branches:
                self._operation(branch, part)
            self._end(at, Code.UNION, slot, len(plan.branches))
        elif isinstance(plan, RecordPlan):
            for name, value in plan.fields or ():
                self._operation(value, NOWHERE if name is None else part)
            names = tuple(name for name, _ in plan.fields or () if name is not None)
            self._end(at, Code.RECORD, slot, 1, extra=names)

    def _leaf(self, plan: Leaf, slot: int) -> None:
        convert, into = plan.convert, slot
        if slot == NOWHERE and isinstance(convert, partial) and convert.func is rescaled:
            convert = None  # it takes every number, so there is nothing to find out
        at = len(self.operations)
        if convert is not None:
            self._add(Code.CONVERT, slot)
            into = min(slot, _SOMEWHERE)
        if plan.size is not None:
            self._add(Code.FIXED, into, plan.size)
        else:
            code = _CODES.get(plan.primitive, Code.CALL)
            self._add(code, into, extra=plan.primitive if code is Code.CALL else None)
        if isinstance(convert, DecimalReader):
            self._end(at, Code.DECIMAL, slot, convert.precision, convert.scale, extra=convert)
        elif convert is not None:
            self._end(at, Code.CONVERT, slot, 1, extra=convert)

    def _add(self, code: Code, slot: int, slots: int = 1, extra: Any = None) -> int:
        """Append an operation, and return its index."""
        self.operations.append((code, slot, slots, 0, 0, 0, extra))
        return len(self.operations) - 1

    def _end(
        self, at: int, code: Code, slot: int, slots: int, null: int = 0, value: int = 0, extra: Any = None
    ) -> None:
        """Write the operation at `at`, after all operations that belong to it were added."""
        self.operations[at] = (code, slot, slots, len(self.operations) - at - 1, null, value, extra)
