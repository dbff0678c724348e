"""The operations that read a record in C, and the slots that they fill.

Theory of operation. `native/_slots.pxi` runs *operations* over a record's bytes, which put its values into *slots*.
Fields of records, and of records in records, get a slot each (the record is *spread*), and so do the fields of each
item, and the keys of a map that are asked for. Everything else is built as the plain reader builds it, and looked up
below its slot. Values that the mapping does not use get no slot: they are skipped, and so are the parts of a value that
are not mapped (fields of records in arrays, other keys of maps). A record type in several places has operations for
each of them, up to `MAX_OPERATIONS` in all; beyond that, and for a record that contains itself, one operation calls
the plain reader.

A record is spread only if all paths that the mapping uses below it are its fields. If our schema has a union, the
mapping may use a field of another branch; then the look-up fails, and the plain path reports that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeGuard

from consumer.avro import reading
from consumer.avro.paths import EACH, ITEMS, ORIGIN, VALUES, Asked, Path
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

MAX_SPREAD: Final = 1024  # fields of a spread record: each takes a slot
# Most operations of a program, except for the calls that replace the rest. Real schemas have some hundred fields.
MAX_OPERATIONS: Final = 16_384
MAX_BRANCHES: Final = 64  # of a union: finding one costs a step for each before it; Python has a table
MAX_KEYS: Final = 16  # of a map that get slots: each key of a record is compared with them, one by one
MAX_NESTED: Final = 32  # values within values that are read in C, which recurses on the machine's stack
_MAX_STEPS: Final = 8  # to a record that is spread
NOWHERE: Final = -1  # the slot of a value that is not mapped
_SOMEWHERE: Final = 0  # the slot of a part of a value that is mapped: it becomes part of that value


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

# Code, slot, number of slots, number of operations that belong to it, the bytes of null and of the other branch, and an
# object that it needs (see `Reader` in native/_slots.pxi).
Operation = tuple[int, int, int, int, int, int, Any]


class At(NamedTuple):
    """Where a value, or each of several, is found: in a slot, or below the object in that slot."""

    slot: int
    below: Path
    item: int = -1  # if `slot` holds the items: the slot in each item; else -1


class ComputedAt(NamedTuple):
    """How a value is computed, and where it, or each of several, is found below the result."""

    function: Callable[[Sequence[Any], tuple[Any, ...]], Any]
    # The arguments: for each, whether it is part of the present item, and where it is.
    reads: tuple[tuple[bool, At], ...]
    below: Path


class Layout:
    """The operations that read records of one plan, and the slots that they fill.

    `asked`: the paths of the mapped values; `item_steps`: the steps to the items, empty if there are none.
    `is_possible`: whether there are any operations; if not, the plain path takes the records.
    """

    def __init__(self, plan: Plan, asked: Asked, item_steps: Path) -> None:
        self.operations: list[Operation] = []
        self.width = 0  # slots of the record. While the fields of an item are laid out: of the item.
        self.item_width: int | None = None  # slots of each item; None: items have no slots
        self._asked = tuple(steps for steps in asked if steps[:1] != (ORIGIN,))
        self._item_steps = item_steps
        # The slot of the value at a path; within items that have slots, the slot in the item.
        self._slots: dict[Path, int] = {}
        self._around: list[Plan] = []  # the plans around the value that is being laid out
        self._made = 0  # operations so far
        # The decoder may be asked for more than this mapping uses: the rest is skipped.
        plan = trimmed(plan, self._asked)
        self.is_possible = self._is_spread(plan, ())
        if self._is_spread(plan, ()):
            self.operations = self._fields(plan, ())
        # The slot of items that are computed; below 0: they are read.
        self.items = self._new_slot((ITEMS,)) if item_steps[:1] == (ITEMS,) else NOWHERE
        # The slot of what the record has in Kafka beside its value; below 0: nothing of it is asked for.
        self.origin = self._new_slot((ORIGIN,)) if len(self._asked) < len(asked) else NOWHERE

    def place(self, steps: Path) -> At:
        """Return the slot nearest to the value at `steps`, and the steps on from there. Raises `KeyError`."""
        for count in range(len(steps), 0, -1):
            slot = self._slots.get(steps[:count])
            if slot is not None:
                return At(slot, steps[count:])
        raise KeyError(steps)

    # -- values whose parts have slots of their own

    def _is_spread(self, plan: Plan, path: Path) -> TypeGuard[RecordPlan]:
        """Return whether this is a record with few enough fields, and has all values that are asked for below
        `path`."""
        if not isinstance(plan, RecordPlan) or plan.fields is None or self._is_too_much(plan):
            return False
        if len(plan.fields) > MAX_SPREAD or len(path) > _MAX_STEPS:
            return False
        # A name of no characters would be taken for `EACH`.
        fields = {name for name, _ in plan.fields if name}
        return all(steps and steps[0] in fields for steps in self._below(path))

    def _below(self, path: Path) -> list[Path]:
        """Return the steps from `path` on of all paths that are asked for at it or below."""
        return [steps[len(path) :] for steps in self._asked if steps[: len(path)] == path]

    def _fields(self, plan: RecordPlan, path: Path) -> list[Operation]:
        """Return the operations for the fields of a record that is spread."""
        self._around.append(plan)
        operations = []
        for name, value in plan.fields or ():
            # `trimmed` left a name only to fields that are asked for.
            operations += self._value(value, NOWHERE) if name is None else self._field(value, (*path, name))
        self._around.pop()
        return operations

    def _field(self, plan: Plan, path: Path) -> list[Operation]:
        """Return the operations for one field of our schema: into slots of its parts, or into one slot."""
        first = self.width
        parts = self._parts(plan.value if isinstance(plan, OptionalPlan) else plan, path)
        if parts is None:
            return self._value(plan, self._new_slot(path))
        if isinstance(plan, OptionalPlan):
            return self._with(Code.OPTIONAL, first, self.width - first, parts, _branches(plan))
        return parts

    def _parts(self, plan: Plan, path: Path) -> list[Operation] | None:
        """Return the operations that read the parts of a value into slots of their own; None if it gets one slot as
        a whole."""
        if self._is_spread(plan, path):
            return self._fields(plan, path)
        steps = (*path, EACH)
        if isinstance(plan, ArrayPlan) and steps == self._item_steps:
            # An item that is null counts as missing.
            item, branches = plan.item, (0, 0)
            if isinstance(item, OptionalPlan):
                branches, item = _branches(item), item.value
            if self._is_spread(item, steps):
                slot = self._new_slot(path)
                around, self.width = self.width, 0  # an item has slots of its own
                fields = self._fields(item, steps)
                self.item_width, self.width = self.width, around
                return self._with(Code.ITEMS, slot, self.item_width, fields, branches)
        if isinstance(plan, MapPlan) and not self._is_too_much(plan):
            below = self._below(path)
            keys = sorted({steps[0] for steps in below if steps})
            if () not in below and not {EACH, VALUES} & {*keys} and len(keys) <= MAX_KEYS:
                slots = [self._new_slot((*path, key)) for key in keys]
                self._around.append(plan)
                value = self._value(plan.value, _SOMEWHERE)
                self._around.pop()
                extra = tuple(key.encode() for key in keys)
                return self._with(Code.KEYS, slots[0], len(keys), value, extra=extra)
        return None

    def _new_slot(self, path: Path) -> int:
        self._slots[path] = self.width
        self.width += 1
        return self.width - 1

    # -- values in one slot

    def _value(self, plan: Plan, slot: int) -> list[Operation]:
        """Return the operations that read one value into `slot`."""
        if isinstance(plan, DefaultPlan):
            # Nothing is read; null where its record is.
            return [] if slot == NOWHERE else self._with(Code.MAKE, slot, extra=plan.make)
        if isinstance(plan, EnumPlan):
            return self._with(Code.ENUM, slot, extra=plan.symbols)
        if isinstance(plan, Leaf):
            return self._leaf(plan, slot)
        if self._is_too_much(plan):
            return self._with(Code.CALL, slot, extra=plan.read)
        self._around.append(plan)
        part = min(slot, _SOMEWHERE)
        if isinstance(plan, OptionalPlan):
            # Its value goes into the same slot.
            made = self._with(Code.OPTIONAL, slot, 1, self._value(plan.value, slot), _branches(plan))
        elif isinstance(plan, ArrayPlan):
            made = self._with(Code.ARRAY, slot, 1, self._value(plan.item, part))
        elif isinstance(plan, MapPlan):
            made = self._with(Code.MAP, slot, 1, self._value(plan.value, part), extra=plan.keys)
        elif isinstance(plan, UnionPlan):
            branches = [operation for branch in plan.branches for operation in self._value(branch, part)]
            made = self._with(Code.UNION, slot, len(plan.branches), branches)
        else:
            fields: list[Operation] = []
            for name, value in plan.fields or ():
                fields += self._value(value, NOWHERE if name is None else part)
            names = tuple(name for name, _ in plan.fields or () if name is not None)
            made = self._with(Code.RECORD, slot, 1, fields, extra=names)
        self._around.pop()
        return made

    def _is_too_much(self, plan: Plan) -> bool:
        """Return whether to call the plain reader: the program would not end, be too long, or nest too deeply."""
        if isinstance(plan, RecordPlan) and (plan.fields is None or plan in self._around):
            return True
        if isinstance(plan, UnionPlan) and len(plan.branches) > MAX_BRANCHES:
            return True
        return len(self._around) >= MAX_NESTED or self._made >= MAX_OPERATIONS

    def _leaf(self, plan: Leaf, slot: int) -> list[Operation]:
        convert = plan.convert
        if slot == NOWHERE and isinstance(convert, partial) and convert.func is rescaled:
            convert = None  # it accepts every number, so nothing needs to be checked
        into = slot if convert is None else min(slot, _SOMEWHERE)
        if plan.size is not None:
            made = self._with(Code.FIXED, into, plan.size)
        else:
            code = _CODES.get(plan.primitive, Code.CALL)
            made = self._with(code, into, extra=plan.primitive if code is Code.CALL else None)
        if isinstance(convert, DecimalReader):
            return self._with(Code.DECIMAL, slot, convert.precision, made, (convert.scale, 0), convert)
        return made if convert is None else self._with(Code.CONVERT, slot, 1, made, extra=convert)

    def _with(
        self,
        code: Code,
        slot: int,
        slots: int = 1,
        behind: Sequence[Operation] = (),
        branches: tuple[int, int] = (0, 0),
        extra: Any = None,
    ) -> list[Operation]:
        """Return an operation, followed by the operations that belong to it."""
        self._made += 1
        return [(code, slot, slots, len(behind), *branches, extra), *behind]


def _branches(plan: OptionalPlan) -> tuple[int, int]:
    """Return the bytes of null and of the other branch."""
    return plan.null_byte, 2 - plan.null_byte
