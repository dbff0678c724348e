"""The reading half of the fast path as a program for the compiled module `_slots`, where that is there.

Theory of operation. `fused_source` writes the reading of a record as Python, and its conversion after it. Here the
reading becomes a list of operations instead, which C runs over the bytes; the conversion stays as it is, for its rules
live in one place. Both are made from one plan by one walk over it.

The module is compiled when the package is built, if there is a C compiler; without it everything works, slower.
"""

from __future__ import annotations

import importlib
from enum import IntEnum
from types import ModuleType
from typing import Any, Final, cast

from consumer.core.avro_reading import read_boolean, read_bytes, read_int, read_long, read_string
from consumer.core.avro_source import (
    ArrayPlan,
    DefaultPlan,
    EnumPlan,
    Leaf,
    OptionalPlan,
    Plan,
    RecordPlan,
    branch_bytes,
)
from consumer.core.convert_fields import Task
from consumer.core.fused_source import Fused, FusedGenerator, Path, compiled_source


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


_CODES: Final = {
    read_string: Code.TEXT,
    read_long: Code.LONG,
    read_int: Code.INT,
    read_boolean: Code.BOOLEAN,
    read_bytes: Code.BYTES,
}
_TEXTS: Final = ArrayPlan(Leaf(read_string))

Operation = tuple[int, int, int, int, int, int, Any]
"""Code, slot, slots, operations behind it, the bytes of null and of the other branch, and what it needs."""


def _module() -> ModuleType | None:
    try:
        return importlib.import_module("consumer.core._slots")
    except ImportError:
        return None


SLOTS: Final = _module()
"""The compiled module; None: it was not built here."""


class _SlotsGenerator(FusedGenerator):
    """Writes the function whose reading is a program."""

    def __init__(self, task: Task, plan: RecordPlan) -> None:
        super().__init__(task, plan)
        self._operations: list[Operation] = []
        self._names: list[str] = []
        """The variable of each slot."""
        self._called: list[tuple[int, str]] = []
        """Operations that call a function of the module, and its name."""

    def program(self, constants: dict[str, Any]) -> tuple[list[Operation], int]:
        """The operations, once the functions they call are there; and how many slots they fill."""
        for at, name in self._called:
            self._operations[at] = (*self._operations[at][:6], constants[name])
        return self._operations, len(self._names)

    def _read_record(self) -> None:
        self._spread(self._plan, ())
        self._writer.line(f"({''.join(f'{name}, ' for name in self._names)}) = read_slots(program, data, at)")

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

    def _end(self, at: int, code: Code, slot: int, slots: int, null: int, value: int) -> None:
        self._operations[at] = (code, slot, slots, len(self._operations) - at - 1, null, value, None)


def write_slots(task: Task, plan: RecordPlan) -> Fused | None:
    """As `fused_source.write_fused`, with the compiled module, which must be there."""
    assert SLOTS is not None  # noqa: S101
    generator = _SlotsGenerator(task, plan)
    constants = compiled_source(generator)
    if constants is None:
        return None
    constants.update(read_slots=SLOTS.read, program=SLOTS.Program(*generator.program(constants)))
    return cast("Fused", constants["fused"])
