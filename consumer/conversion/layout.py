"""Where a record's values go: the operations that read it in C, and the slots that they fill.

Theory of operation. `native/_slots.pyx` runs *operations* over a record's bytes, which put its values into *slots*.
Fields of records, and of records in records, get a slot each (the record is *spread*), and so do the fields of each
item. Everything else is built as the plain reader builds it, and looked up below its slot. What the mapping does not
ask for gets no slot: it is passed over, and so are the parts of a value that are not mapped (fields of records in
arrays, keys of maps). A record that stands in several places is read in each of them, up to `MOST_OPERATIONS` in all;
beyond that, and where a record holds itself, one operation calls the plain reader.

A record is spread only if all that the mapping asks for below it are fields of it. Where our schema has a union the
mapping may ask for what another branch of it holds; then it is looked up, which fails, and the plain path says so.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from consumer.avro.paths import ALL, EACH, NOTHING, Asked, Step, StepKind, below_any, names_in, within
from consumer.avro.plan import (
    ArrayPlan,
    DefaultPlan,
    EnumPlan,
    Leaf,
    MapPlan,
    OptionalPlan,
    Plan,
    Read,
    RecordPlan,
    UnionPlan,
    branch_bytes,
)
from consumer.avro.reading import (
    FixedReader,
    ReadThenConvert,
    read_boolean,
    read_bytes,
    read_double,
    read_float,
    read_int,
    read_long,
    read_null,
    read_string,
    reader_of,
)
from consumer.avro.values import DecimalReader, rescaled
from consumer.conversion.codes import Code
from consumer.conversion.fields import Path

MOST_SPREAD: Final = 1024
"""Fields of a record that is spread: each takes a slot."""
MOST_OPERATIONS: Final = 16_384
"""Of a program, but for the calls that then stand in for the rest. Honest schemas have some hundred fields."""
MOST_BRANCHES: Final = 64
"""Of a union: to find one costs a step for each before it. Python has a table."""
MOST_NESTED: Final = 32
"""Values within values that are read in C, which recurses on the machine's stack."""
_MOST_STEPS: Final = 8
"""To a record that is spread."""
NOWHERE: Final = -1
"""The slot of a value that is not mapped."""
_SOMEWHERE: Final = 0
"""The slot of a part of a value: it is asked for, and goes where the value goes."""


_CODES: Final[dict[Read, Code]] = {
    read_string: Code.TEXT,
    read_long: Code.LONG,
    read_int: Code.INT,
    read_boolean: Code.BOOLEAN,
    read_bytes: Code.BYTES,
    read_double: Code.DOUBLE,
    read_float: Code.FLOAT,
    read_null: Code.NULL_VALUE,
}

Operation = tuple[int, int, int, int, int, int, Any]
"""Code, slot, slots, operations behind it, the bytes of null and of the other branch, and what it needs."""


class ValuePlace(NamedTuple):
    """Where a value stands: in a slot, or below what stands there."""

    slot: int
    below: Path


class Layout:
    """The operations that read records of one plan, and the slots that they fill.

    `asked`: the paths that values are asked for at; `item_steps`: that of the items, empty if there are none.
    """

    def __init__(self, plan: RecordPlan, asked: Asked, item_steps: Path) -> None:
        self.operations: list[Operation] = []
        self.width = 0
        """Slots of the record. While the fields of an item are laid out: of the item."""
        self.item_width: int | None = None
        """Slots of each item; None: an item is what stands in the array."""
        self._asked = asked
        self._item_steps = item_steps
        self._slots: dict[Path, int] = {}
        """The slot of what stands at a path; within items that have slots, the slot in the item."""
        self._around: list[Plan] = []
        """What the value that is being laid out is part of."""
        self.is_possible = self._may_be_spread(plan, ())
        if self.is_possible:
            self._spread(plan, ())

    def place(self, steps: Path) -> ValuePlace:
        """The slot nearest to what stands at `steps`, and the way on from there. Raises `KeyError`."""
        for count in range(len(steps), 0, -1):
            slot = self._slots.get(steps[:count])
            if slot is not None:
                return ValuePlace(slot, steps[count:])
        raise KeyError(steps)

    # -- which fields get slots

    def _may_be_spread(self, plan: RecordPlan, path: Path) -> bool:
        """Whether there are few enough fields, and all that is asked for below `path` are among them."""
        if plan.fields is None or len(plan.fields) > MOST_SPREAD:
            return False
        fields = {_field(name) for name, _ in plan.fields if name is not None}
        depth = len(path)
        return all(
            steps[depth : depth + 1] and steps[depth] in fields
            for steps in self._asked
            if steps[:depth] == path
        )

    def _is_spread(self, plan: Plan, path: Path) -> bool:
        return (
            isinstance(plan, RecordPlan)
            and self._fits(plan)
            and len(path) <= _MOST_STEPS
            and self._may_be_spread(plan, path)
        )

    def _fits(self, plan: RecordPlan) -> bool:
        """Whether its operations may stand here: it does not hold itself, and the program is not too long."""
        return plan not in self._around and len(self.operations) < MOST_OPERATIONS

    def _are_items(self, plan: Plan, path: Path) -> bool:
        steps = (*path, EACH)
        if steps != self._item_steps or not isinstance(plan, ArrayPlan):
            return False
        # An item that is null is as one that is not there.
        item = plan.item.value if isinstance(plan.item, OptionalPlan) else plan.item
        return self._is_spread(item, steps)

    def _spread(self, plan: RecordPlan, path: Path) -> None:
        self._around.append(plan)
        for name, value in plan.fields or ():
            if name is None:
                self._operation(value, NOWHERE, NOTHING)
            else:
                self._field(value, (*path, _field(name)))
        self._around.pop()

    def _field(self, plan: Plan, path: Path) -> None:
        """One field that our schema has."""
        if isinstance(plan, OptionalPlan) and (
            self._is_spread(plan.value, path) or self._are_items(plan.value, path)
        ):
            at, slot = self._begin(), self.width
            self._field(plan.value, path)
            self._end(at, Code.OPTIONAL, slot, self.width - slot, *branch_bytes(plan))
        elif isinstance(plan, RecordPlan) and self._is_spread(plan, path):
            self._spread(plan, path)
        elif isinstance(plan, ArrayPlan) and self._are_items(plan, path):
            self._items(plan, path)
        else:
            depth = len(path)
            asked = tuple(steps[depth:] for steps in self._asked if steps[:depth] == path)
            self._operation(plan, self._new_slot(path) if asked else NOWHERE, asked)

    def _new_slot(self, path: Path) -> int:
        self._slots[path] = self.width
        self.width += 1
        return self.width - 1

    def _items(self, plan: ArrayPlan, path: Path) -> None:
        slot, at = self._new_slot(path), self._begin()
        item, branches = plan.item, (0, 0)
        if isinstance(item, OptionalPlan):
            branches = branch_bytes(item)
            item = item.value
        assert isinstance(item, RecordPlan)  # noqa: S101
        around, self.width = self.width, 0
        self._spread(item, self._item_steps)
        self.item_width, self.width = self.width, around
        self._end(at, Code.ITEMS, slot, self.item_width, *branches)

    # -- operations

    def _operation(self, plan: Plan, slot: int, asked: Asked) -> None:
        """What reads one value into `slot`."""
        if isinstance(plan, DefaultPlan):
            if slot != NOWHERE:  # nothing is read; null where its record is
                self._add(Code.MAKE, slot, extra=plan.make)
        elif isinstance(plan, EnumPlan):
            self._add(Code.ENUM, slot, extra=plan.symbols)
        elif isinstance(plan, Leaf):
            self._leaf(plan.read, slot)
        elif self._is_too_much(plan):
            self._add(Code.CALL, slot, extra=reader_of(plan))
        else:
            self._around.append(plan)
            self._nest(plan, slot, asked)
            self._around.pop()

    def _is_too_much(self, plan: Plan) -> bool:
        """Whether a call has to do: the program would not end, or be too long, or nested too deeply."""
        if isinstance(plan, RecordPlan) and (plan.fields is None or not self._fits(plan)):
            return True
        if isinstance(plan, UnionPlan) and len(plan.branches) > MOST_BRANCHES:
            return True
        return len(self._around) >= MOST_NESTED or len(self.operations) >= MOST_OPERATIONS

    def _nest(self, plan: Plan, slot: int, asked: Asked) -> None:
        """A value that has parts."""
        at, part = self._begin(), min(slot, _SOMEWHERE)
        if isinstance(plan, OptionalPlan):
            # Its value goes into the same slot: the operations that follow put it there.
            self._operation(plan.value, slot, asked)
            self._end(at, Code.OPTIONAL, slot, 1, *branch_bytes(plan))
        elif isinstance(plan, ArrayPlan):
            self._operation(plan.item, part, within(asked, EACH.name) or asked)
            self._end(at, Code.ARRAY, slot, 1)
        elif isinstance(plan, MapPlan):
            keys = names_in(asked)
            self._operation(plan.value, part, ALL if keys is None else below_any(asked))
            self._end(at, Code.MAP, slot, 1, extra=keys)
        elif isinstance(plan, UnionPlan):
            for branch in plan.branches:
                self._operation(branch, part, asked)
            self._end(at, Code.UNION, slot, len(plan.branches))
        elif isinstance(plan, RecordPlan):
            self._end(at, Code.RECORD, slot, 1, extra=self._fields_of_record(plan, part, asked))

    def _fields_of_record(self, plan: RecordPlan, part: int, asked: Asked) -> tuple[str, ...]:
        """Read the fields; gives the names of those that are asked for."""
        names = []
        for name, value in plan.fields or ():
            asked_here = NOTHING if name is None or part == NOWHERE else within(asked, name)
            if asked_here and name is not None:
                names.append(name)
            self._operation(value, part if asked_here else NOWHERE, asked_here)
        return tuple(names)

    def _leaf(self, read: Read, slot: int) -> None:
        if isinstance(read, ReadThenConvert):
            self._converting(read, slot)
        elif isinstance(read, FixedReader):
            self._add(Code.FIXED, slot, read.size)
        elif read in _CODES:
            self._add(_CODES[read], slot)
        else:
            self._add(Code.CALL, slot, extra=read)

    def _converting(self, read: ReadThenConvert, slot: int) -> None:
        convert = read.convert
        if slot == NOWHERE and isinstance(convert, partial) and convert.func is rescaled:
            self._leaf(read.read, slot)  # it takes every number
            return
        at = self._begin()
        self._leaf(read.read, min(slot, _SOMEWHERE))
        if isinstance(convert, DecimalReader):
            self._end(at, Code.DECIMAL, slot, convert.precision, convert.scale, extra=convert)
        else:
            self._end(at, Code.CONVERT, slot, 1, extra=convert)

    def _add(self, code: Code, slot: int, slots: int = 1, extra: Any = None) -> None:
        self.operations.append((code, slot, slots, 0, 0, 0, extra))

    def _begin(self) -> int:
        """The place of an operation whose extent is known later."""
        self._add(Code.CALL, 0)
        return len(self.operations) - 1

    def _end(
        self, at: int, code: Code, slot: int, slots: int, null: int = 0, value: int = 0, extra: Any = None
    ) -> None:
        self.operations[at] = (code, slot, slots, len(self.operations) - at - 1, null, value, extra)


def _field(name: str) -> Step:
    return Step(StepKind.FIELD, name)
