"""Reading a record into slots: the reading half of the fast path, as a program for the compiled module `_slots`.

Theory of operation. `fused_source` writes the reading of a record as Python: its fields go into variables. Here the
same walk over the plan makes a list of operations instead, which C runs over the bytes; each variable is a slot. What
the mapping does not ask for gets no slot: it is passed over, and so are the parts nobody asks for of what is asked for
(fields of records in arrays, keys of maps). A record that stands in several places is read in each of them where it
stands, up to `MOST_OPERATIONS` in all; what is more, or holds itself, is a call.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Any, Final, NamedTuple

from consumer.avro.paths import ALL, EACH, NOTHING, Asked, below_any, names_in, within
from consumer.avro.reading import (
    Converting,
    FixedReader,
    Read,
    read_boolean,
    read_bytes,
    read_double,
    read_float,
    read_int,
    read_long,
    read_null,
    read_string,
)
from consumer.avro.source import (
    ArrayPlan,
    DefaultPlan,
    EnumPlan,
    Leaf,
    MapPlan,
    OptionalPlan,
    Plan,
    RecordPlan,
    UnionPlan,
    branch_bytes,
)
from consumer.avro.times import rescaled
from consumer.avro.values import DecimalReader
from consumer.conversion.fields import Task
from consumer.conversion.reading_source import FusedGenerator, Path

MOST_NESTED: Final = 32
MOST_OPERATIONS: Final = 16_384
"""Of a program, but for the calls that then stand in for the rest. Honest schemas have some hundred fields."""
MOST_BRANCHES: Final = 64
"""Of a union: to find one costs a step for each before it. Python has a table."""
NOWHERE: Final = -1
"""The slot of what nobody asks for."""
_SOMEWHERE: Final = 0
"""The slot of a part of a value: it is asked for, and goes where the value goes."""


class Code(IntEnum):
    """What an operation does; `_slots.pyx` has the same numbers."""

    TEXT = 0
    OPTIONAL = 1
    LONG = 2
    INT = 3
    BOOLEAN = 4
    ENUM = 5
    ITEMS = 6
    CALL = 7
    BYTES = 8
    MAKE = 9
    DOUBLE = 10
    FLOAT = 11
    FIXED = 12
    NULL_VALUE = 13
    ARRAY = 14
    MAP = 15
    RECORD = 16
    UNION = 17
    CONVERT = 18
    DECIMAL = 19


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


class Place(NamedTuple):
    """Where a value stands: in a slot, or below what stands there."""

    slot: int
    below: Path


class SlotsGenerator(FusedGenerator):
    """Makes the program that reads records of `plan`."""

    def __init__(self, task: Task, plan: RecordPlan) -> None:
        super().__init__(task, plan)
        self._operations: list[Operation] = []
        self._names: list[str] = []
        """The variable of each slot."""
        self._item_names: list[str] | None = None
        """Of each slot of an item, if items have slots of their own."""
        self._called: list[tuple[int, str]] = []
        """Operations that call a function of the module, and its name."""
        self._around: list[Plan] = []
        """What the value that is being read is part of."""

    def program(self) -> tuple[list[Operation], int]:
        """The operations, and how many slots they fill."""
        self._spread(self._plan, ())
        source, constants = self._module.source(), self._module.constants
        exec(compile(source, "<slot reader>", "exec"), constants)  # noqa: S102
        for at, name in self._called:
            self._operations[at] = (*self._operations[at][:6], constants[name])
        return self._operations, len(self._names)

    @property
    def items_have_slots(self) -> bool:
        """Whether each item has slots of its own; else it is what stands in the array."""
        return self._item_names is not None

    def place(self, steps: Path) -> Place:
        """Where the value at `steps` stands, once the program is made."""
        variable, below = self._variables.nearest(steps)
        return Place(self._names.index(variable), below)

    def item_place(self, steps: Path) -> Place:
        """As `place`, within an item that has slots."""
        assert self._item_names is not None  # noqa: S101
        variable, below = self._variables.nearest((*self._mapping.item_steps, *steps))
        return Place(self._item_names.index(variable), below)

    # -- the walk over the plan

    def _is_read_elsewhere(self, steps: Path) -> bool:
        return False  # what asks for fields of all items finds them in the items' slots too

    def _is_read_in_place(self, plan: RecordPlan) -> bool:
        return plan not in self._around and len(self._operations) < MOST_OPERATIONS

    def _spread(self, plan: RecordPlan, path: Path) -> list[str]:
        self._around.append(plan)
        variables = super()._spread(plan, path)
        self._around.pop()
        return variables

    def _are_items(self, plan: Plan, path: Path) -> bool:
        # An item that is null is as one that is not there.
        if isinstance(plan, ArrayPlan) and isinstance(plan.item, OptionalPlan):
            plan = ArrayPlan(plan.item.value)
        return super()._are_items(plan, path)

    def _value(self, plan: Plan, variable: str, path: Path | None) -> None:
        if path is not None and isinstance(plan, OptionalPlan) and self._are_items(plan.value, path):
            assert isinstance(plan.value, ArrayPlan)  # noqa: S101
            at, slot = self._begin(), len(self._names)
            self._tuples(plan.value, variable)
            self._end(at, Code.OPTIONAL, slot, 1, *branch_bytes(plan))
            return
        asked = NOTHING if path is None else self._asked_below(path)
        slot = NOWHERE
        if asked:
            slot = len(self._names)
            self._names.append(variable)
        self._operation(plan, slot, asked)

    def _optional_record(self, plan: OptionalPlan, path: Path) -> list[str]:
        assert isinstance(plan.value, RecordPlan)  # noqa: S101
        at, slot = self._begin(), len(self._names)
        variables = self._spread(plan.value, path)
        self._end(at, Code.OPTIONAL, slot, len(self._names) - slot, *branch_bytes(plan))
        return variables

    def _tuples(self, plan: ArrayPlan, into: str) -> None:
        self._names.append(into)
        at, slot = self._begin(), len(self._names) - 1
        around, self._names = self._names, []
        item, branches = plan.item, (0, 0)
        if isinstance(item, OptionalPlan):
            branches = branch_bytes(item)
            item = item.value
        assert isinstance(item, RecordPlan)  # noqa: S101
        self._spread(item, self._mapping.item_steps)
        self._item_names, self._names = self._names, around
        self._end(at, Code.ITEMS, slot, len(self._item_names), *branches)

    def _asked_below(self, path: Path) -> Asked:
        depth = len(path)
        return tuple(steps[depth:] for steps in self._asked if steps[:depth] == path)

    # -- operations

    def _operation(self, plan: Plan, slot: int, asked: Asked) -> None:
        """What reads one value into `slot`."""
        if isinstance(plan, DefaultPlan):
            if slot != NOWHERE:  # nothing is read; null where its record is
                self._operations.append((Code.MAKE, slot, 1, 0, 0, 0, plan.make))
        elif isinstance(plan, EnumPlan):
            self._operations.append((Code.ENUM, slot, 1, 0, 0, 0, plan.symbols))
        elif isinstance(plan, Leaf):
            self._leaf(plan.read, slot)
        elif self._is_too_much(plan):
            self._by_call(plan, slot)
        else:
            self._around.append(plan)
            self._nest(plan, slot, asked)
            self._around.pop()

    def _is_too_much(self, plan: Plan) -> bool:
        """Whether a call has to do: the program would not end, or be too long, or nested too deeply."""
        if isinstance(plan, RecordPlan) and (plan.fields is None or not self._is_read_in_place(plan)):
            return True
        if isinstance(plan, UnionPlan) and len(plan.branches) > MOST_BRANCHES:
            return True
        return len(self._around) >= MOST_NESTED or len(self._operations) >= MOST_OPERATIONS

    def _nest(self, plan: Plan, slot: int, asked: Asked) -> None:
        """A value that has parts."""
        at, part = self._begin(), min(slot, _SOMEWHERE)
        if isinstance(plan, OptionalPlan):
            # Its value goes into the same slot: the operations that follow put it there.
            self._operation(plan.value, slot, asked)
            self._end(at, Code.OPTIONAL, slot, 1, *branch_bytes(plan))
        elif isinstance(plan, ArrayPlan):
            self._operation(plan.item, part, within(asked, EACH.name) or asked)
            self._end(at, Code.ARRAY, slot, 1, 0, 0)
        elif isinstance(plan, MapPlan):
            keys = names_in(asked)
            self._operation(plan.value, part, ALL if keys is None else below_any(asked))
            self._end(at, Code.MAP, slot, 1, 0, 0, keys)
        elif isinstance(plan, UnionPlan):
            for branch in plan.branches:
                self._operation(branch, part, asked)
            self._end(at, Code.UNION, slot, len(plan.branches), 0, 0)
        elif isinstance(plan, RecordPlan):
            self._end(at, Code.RECORD, slot, 1, 0, 0, self._fields_of_record(plan, part, asked))

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
        if isinstance(read, Converting):
            self._converting(read, slot)
        elif isinstance(read, FixedReader):
            self._operations.append((Code.FIXED, slot, read.size, 0, 0, 0, None))
        elif read in _CODES:
            self._operations.append((_CODES[read], slot, 1, 0, 0, 0, None))
        else:
            self._by_call(Leaf(read), slot)

    def _converting(self, read: Converting, slot: int) -> None:
        convert = read.convert
        if slot == NOWHERE and isinstance(convert, partial) and convert.func is rescaled:
            self._leaf(read.read, slot)  # it takes every number
            return
        at = self._begin()
        self._leaf(read.read, min(slot, _SOMEWHERE))
        if isinstance(convert, DecimalReader):
            self._end(at, Code.DECIMAL, slot, convert.precision, convert.scale, 0, convert)
        else:
            self._end(at, Code.CONVERT, slot, 1, 0, 0, convert)

    def _by_call(self, plan: Plan, slot: int) -> None:
        self._called.append((len(self._operations), self._module.function(plan)))
        self._operations.append((Code.CALL, slot, 1, 0, 0, 0, None))

    def _begin(self) -> int:
        """The place of an operation whose extent is known later."""
        self._operations.append((Code.CALL, 0, 0, 0, 0, 0, None))
        return len(self._operations) - 1

    def _end(
        self, at: int, code: Code, slot: int, slots: int, null: int, value: int, extra: Any = None
    ) -> None:
        self._operations[at] = (code, slot, slots, len(self._operations) - at - 1, null, value, extra)
