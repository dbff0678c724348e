"""Reading a record into slots: the reading half of the fast path, as a program for the compiled module `_slots`.

Theory of operation. `fused_source` writes the reading of a record as Python: its fields go into variables. Here the
same walk over the plan makes a list of operations instead, which C runs over the bytes; each variable is a slot of a
tuple.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from consumer.core.avro_reading import (
    Converting,
    read_boolean,
    read_bytes,
    read_double,
    read_int,
    read_long,
    read_string,
)
from consumer.core.avro_source import (
    ArrayPlan,
    DefaultPlan,
    EnumPlan,
    Leaf,
    MapPlan,
    OptionalPlan,
    Plan,
    RecordPlan,
    branch_bytes,
)
from consumer.core.convert_fields import Task
from consumer.core.fused_source import FusedGenerator, Path


class Code(IntEnum):
    """What an operation does; `_slots.pyx` has the same numbers."""

    TEXT = 0
    OPTIONAL = 1
    LONG = 2
    INT = 3
    BOOLEAN = 4
    ENUM = 5
    TEXTS = 6
    ITEMS = 7
    CALL = 8
    BYTES = 9
    OVER = 10
    MAKE = 11
    DOUBLE = 12
    TEXT_MAP = 13
    CONVERT = 14


_CODES: Final = {
    read_string: Code.TEXT,
    read_long: Code.LONG,
    read_int: Code.INT,
    read_boolean: Code.BOOLEAN,
    read_bytes: Code.BYTES,
    read_double: Code.DOUBLE,
}
_TEXTS: Final = ArrayPlan(Leaf(read_string))
_TEXT_MAP: Final = MapPlan(Leaf(read_string))

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
        self._called: list[tuple[int, str]] = []
        """Operations that call a function of the module, and its name."""

    def program(self) -> tuple[list[Operation], int]:
        """The operations, and how many slots they fill."""
        self._spread(self._plan, ())
        source, constants = self._module.source(), self._module.constants
        exec(compile(source, "<slot reader>", "exec"), constants)  # noqa: S102
        for at, name in self._called:
            self._operations[at] = (*self._operations[at][:6], constants[name])
        return self._operations, len(self._names)

    @property
    def items_are_tuples(self) -> bool:
        """Whether each item is a tuple of slots; else it is what stands in the array."""
        return self._item_fields is not None

    def place(self, steps: Path) -> Place:
        """Where the value at `steps` stands, once the program is made."""
        variable, below = self._variables.nearest(steps)
        return Place(self._names.index(variable), below)

    def item_place(self, steps: Path) -> Place:
        """As `place`, within an item that is a tuple."""
        assert self._item_fields is not None  # noqa: S101
        return Place(self._item_slots.index(self._item_fields[steps[0].name]), steps[1:])

    def _is_read_elsewhere(self, steps: Path) -> bool:
        return False  # what asks for fields of all items finds them in the tuples too

    def _value(self, plan: Plan, variable: str, *, wanted: bool) -> None:
        self._names.append(variable)
        self._operation(plan, len(self._names) - 1, wanted)

    def _optional_record(self, plan: OptionalPlan, path: Path) -> list[str]:
        assert isinstance(plan.value, RecordPlan)  # noqa: S101
        at, slot = self._begin(), len(self._names)
        variables = self._spread(plan.value, path)
        self._end(at, Code.OPTIONAL, slot, len(self._names) - slot, *branch_bytes(plan))
        return variables

    def _tuples(self, plan: ArrayPlan, into: str) -> None:
        fields = self._item_variables(plan)
        self._names.append(into)
        at, slot = self._begin(), len(self._names) - 1
        for number, (name, value, _) in enumerate(fields, start=1):
            self._operation(value, slot + number, name is not None)
        self._end(at, Code.ITEMS, slot, len(fields), 0, 0)
        self._item_slots = [variable for _, _, variable in fields]

    # -- operations

    def _operation(self, plan: Plan, slot: int, wanted: bool) -> None:
        """What reads one value into `slot`."""
        if isinstance(plan, OptionalPlan):
            at = self._begin()
            self._operation(plan.value, slot, wanted)
            self._end(at, Code.OPTIONAL, slot, 1, *branch_bytes(plan))
        elif isinstance(plan, DefaultPlan):  # nothing is read; null where its record is
            self._operations.append((Code.MAKE, slot, 1, 0, 0, 0, plan.make))
        elif isinstance(plan, EnumPlan):
            self._operations.append((Code.ENUM, slot, 1, 0, 0, 0, plan.symbols))
        elif plan == _TEXTS:
            self._operations.append((Code.TEXTS, slot, 1, 0, 0, 0, None))
        elif plan == _TEXT_MAP:
            self._operations.append((Code.TEXT_MAP, slot, 1, 0, 0, 0, None))
        elif isinstance(plan, Leaf) and isinstance(plan.read, Converting):
            at = self._begin()
            self._operation(Leaf(plan.read.read), slot, True)
            self._end(at, Code.CONVERT, slot, 1, 0, 0, plan.read.convert)
        elif isinstance(plan, Leaf) and plan.read in _CODES:
            code = Code.OVER if plan.read is read_bytes and not wanted else _CODES[plan.read]
            self._operations.append((code, slot, 1, 0, 0, 0, None))
        else:
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
