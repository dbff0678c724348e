"""Writes the Python that reads one writer's data in the shape of our schema: straight-line code.

Theory of operation. `avro_resolution` works out a *plan*: what is read, in which order, and what becomes of it.
Walking the plan for each datum costs more than the reading itself, so it is written out as source once per pair
of schemas, and compiled. Each function is a `Read` (`avro_reading`), and all keep the promises made there:

* The usual spelling of a value, one byte of length, index or number, is read inline through a table of 256
  entries. Where the table says ``None`` the small function of `avro_reading` reads it instead, and judges it:
  longer spellings, negative lengths, indexes that are not there. So each rule stands there, once.
* What is rare (maps, unions of more than one type, decimals, promotions, refused branches) is only ever a call.
* A position beyond the end raises at the next byte looked at, as there; slices allocate only what is there.
* Only Python calls nest: a record that stands in several places, as one that holds itself does, is a function
  of its own. One that stands in a single place is read where it stands.

The code is bounded, however large the schema (`avro_schema` bounds that): a function goes `_MAX_NESTED` plans
deep and inlines so many, a wide record is read in parts, and once `_MAX_INLINED` plans are inlined all told,
equal ones share a function. Beyond a bound there is a call, never other code.

All that enters the source are names made here, numbers, and `repr` of field names; the rest is bound.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from consumer.avro.reading import (
    MOST_ITEMS,
    Read,
    TooManyItems,
    enum_reader,
    map_reader,
    read_boolean,
    read_bytes,
    read_count,
    read_int,
    read_long,
    read_null,
    read_string,
    refusing,
    union_reader,
)
from consumer.avro.source_writer import Writer

_MAX_FIELDS: Final = 64
_MAX_NESTED: Final = 12  # far below Python's limits of 20 nested loops and 100 indentations
_MAX_INLINED_BY_FUNCTION: Final = 512
_MAX_INLINED: Final = 4_096
"""Of all functions together. Honest schemas have some hundred fields; each costs some 70 µs to compile."""


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


def _table(entries: Iterable[Any]) -> tuple[Any, ...]:
    """`entries` by the first byte of their index, if it is the only one: even, and below 128."""
    table: list[Any] = [None] * 256
    for index, entry in zip(range(0, 128, 2), entries, strict=False):
        table[index] = entry
    return tuple(table)


_TABLES: Final = {read_boolean: "BOOLEANS", read_int: "NUMBERS", read_long: "NUMBERS"}
"""What is usually one byte, and the table of its values by that byte."""
_CONSTANTS: Final = {
    "TooManyItems": TooManyItems,
    "map_reader": map_reader,
    "union_reader": union_reader,
    "read_count": read_count,
    "BOOLEANS": (False, True, *[None] * 254),
    "NUMBERS": tuple((byte >> 1) ^ -(byte & 1) if byte < 128 else None for byte in range(256)),
    "COUNTS": _table(range(64)),
    "PASSED_1": _table(range(1, 65)),  # a length's byte and so many more
    "PASSED_2": _table(range(2, 66)),  # and the byte of the optional's branch
}


NO_BRANCH: Final = 'raise ValueError("a union\'s branch that it does not have")'


def branch_bytes(plan: OptionalPlan) -> tuple[int, int]:
    """How the branch of null, and the other one, are spelled."""
    return plan.null << 1, (1 - plan.null) << 1


def write_reader(plan: Plan) -> Read:
    """What reads data as `plan` says."""
    module = Module(plan)
    name = module.function(plan)
    constants = module.constants
    exec(compile(module.source(), "<Avro reader>", "exec"), constants)  # noqa: S102
    read: Read = constants[name]
    return read


def _uses(plan: Plan) -> Counter[RecordPlan]:
    """In how many places each record stands."""
    uses: Counter[RecordPlan] = Counter()
    waiting = [plan]
    while waiting:
        plan = waiting.pop()
        if isinstance(plan, RecordPlan):
            uses[plan] += 1
        if not isinstance(plan, RecordPlan) or uses[plan] == 1:
            waiting += _parts(plan)
    return uses


def _parts(plan: Plan) -> Sequence[Plan]:
    if isinstance(plan, RecordPlan):
        return [value for _, value in plan.fields or ()]
    if isinstance(plan, UnionPlan):
        return plan.branches
    if isinstance(plan, ArrayPlan):
        return [plan.item]
    return [plan.value] if isinstance(plan, OptionalPlan | MapPlan) else []


class Module:
    """The functions that read one plan, what they have in common, and how much may still be inlined."""

    def __init__(self, plan: Plan) -> None:
        self.constants: dict[str, Any] = dict(_CONSTANTS)
        self.uses = _uses(plan)
        self.inlined = 0
        self._names: dict[Plan, str] = {}
        self._waiting: deque[tuple[str, Plan]] = deque()
        self._combined: list[str] = []

    def source(self) -> str:
        """All functions that were asked for, and those that they ask for."""
        written = []
        while self._waiting:
            written.append(Function(self).source(*self._waiting.popleft()))
        return "\n".join([*written, *self._combined])

    def bind(self, value: Any, hint: str) -> str:
        """The name under which the source finds `value`."""
        name = f"{hint}_{len(self.constants)}"
        self.constants[name] = value
        return name

    def function(self, plan: Plan) -> str:
        """The name of the function that reads `plan`; equal plans share one."""
        if plan not in self._names:
            self._names[plan] = self._function(plan)
        return self._names[plan]

    def _function(self, plan: Plan) -> str:
        if isinstance(plan, Leaf):
            return self.bind(plan.read, "read")
        if isinstance(plan, RecordPlan) and plan.fields is None:
            return self.bind(refusing(f"{plan.name}: not resolved"), "refuse")
        if isinstance(plan, MapPlan):
            value, keys = self.function(plan.value), self.bind(plan.keys, "keys")
            return self._combine(f"map_reader({value}, {keys})")
        if isinstance(plan, UnionPlan):
            branches = ", ".join(map(self.function, plan.branches))
            return self._combine(f"union_reader([{branches}])")
        name = self.bind(None, "read")
        self._waiting.append((name, plan))
        return name

    def _combine(self, expression: str) -> str:
        """A function made from others, once they are there: these lines stand last, inner ones first."""
        name = self.bind(None, "read")
        self._combined.append(f"{name} = {expression}")
        return name


class Function:
    """Writes one function. Each method writes the lines that read a plan at ``at`` into the variable `into`."""

    def __init__(self, module: Module, writer: Writer | None = None) -> None:
        self._module = module
        self._writer = Writer() if writer is None else writer
        self._variables = 0
        self._inlined = 0
        self._nested = 0

    def source(self, name: str, plan: Plan) -> str:
        """The function `name`, which reads `plan`: its own lines always, what is in it if there is room."""
        self._inline(plan, "value")
        self._writer.line("return value, at")
        return self._writer.source(f"def {name}(data, at):")

    def read(self, plan: Plan, into: str) -> None:
        """Inline if there is room for it, else by a call."""
        if self._is_inlined(plan):
            self._inline(plan, into)
        else:
            self._call(self._module.function(plan), into)

    def _is_inlined(self, plan: Plan) -> bool:
        if isinstance(plan, RecordPlan):  # one that stands in one place only cannot hold itself
            fits = (
                self._module.uses[plan] == 1 and plan.fields is not None and len(plan.fields) <= _MAX_FIELDS
            )
        else:
            fits = not isinstance(plan, MapPlan | UnionPlan)
        return (
            fits
            and self._nested < _MAX_NESTED
            and self._inlined < _MAX_INLINED_BY_FUNCTION
            and self._module.inlined < _MAX_INLINED
        )

    def _inline(self, plan: Plan, into: str) -> None:
        self._inlined += 1
        self._module.inlined += 1
        self._nested += 1
        if isinstance(plan, RecordPlan):
            self._record(plan, into)
        elif isinstance(plan, ArrayPlan):
            self._array(plan, into)
        elif isinstance(plan, OptionalPlan):
            self._optional(plan, into)
        elif isinstance(plan, EnumPlan):
            table = self._module.bind(_table(plan.symbols), "SYMBOLS")
            self._one_byte(table, enum_reader(plan.name, plan.symbols), into)
        elif isinstance(plan, Leaf):
            self._leaf(plan.read, into)
        self._nested -= 1

    def _leaf(self, read: Read, into: str) -> None:
        if read is read_null:
            self._writer.line(f"{into} = None")
        elif read in (read_string, read_bytes):
            self._text(read, into)
        elif read in _TABLES:
            self._one_byte(_TABLES[read], read, into)
        else:
            self._call(self._module.function(Leaf(read)), into)

    def _call(self, function: str, into: str, at: str = "at") -> None:
        self._writer.line(f"{into}, at = {function}(data, {at})")

    def _one_byte(self, table: str, read: Read, into: str) -> None:
        line, block = self._writer.line, self._writer.block
        line(f"{into} = {table}[data[at]]")
        with block(f"if {into} is None:"):
            self._call(self._module.function(Leaf(read)), into)
        with block("else:"):
            line("at += 1")

    def _text(self, read: Read, into: str, behind: int = 0) -> None:
        """Text or bytes whose length stands `behind` bytes behind ``at``."""
        block = self._writer.block
        at, start = f"at + {behind}" if behind else "at", f"at + {behind + 1}"
        with block(f"if (n := PASSED_{behind + 1}[data[{at}]]) is None:"):
            self._call(self._module.function(Leaf(read)), into, at)
        with block("else:"):
            decoded = ".decode()" if read is read_string else ""
            self._writer.line(f"{into} = data[{start}:(at := at + n)]{decoded}")

    def _optional(self, plan: OptionalPlan, into: str) -> None:
        line, block = self._writer.line, self._writer.block
        null_byte, value_byte = branch_bytes(plan)
        with block(f"if (b := data[at]) == {value_byte}:"):
            if plan.value == Leaf(read_string):
                self._text(read_string, into, 1)
            else:
                line("at += 1")
                self.read(plan.value, into)
        with block(f"elif b == {null_byte}:"):
            line(f"{into} = None")
            line("at += 1")
        with block("else:"):  # a longer spelling of 0 or 1 as well
            line(NO_BRANCH)

    def _array(self, plan: ArrayPlan, into: str) -> None:
        item = self.variable()

        def read_item() -> str:
            self.read(plan.item, item)
            return item

        self.array(into, read_item, plan.kept)

    def array(self, into: str, read_item: Callable[[], str], kept: bool = True) -> None:
        """Blocks of items into a list; `read_item` writes the lines that read one, and gives an expression for it."""
        line, block = self._writer.line, self._writer.block
        count = self.variable()
        line(f"{into} = {[] if kept else None}")
        line(f"{count} = 0")
        with block("while True:"):
            with block(f"if not {count}:"):
                with block(f"if ({count} := COUNTS[data[at]]) is None:"):
                    self._call("read_count", count)
                with block("else:"):
                    line("at += 1")
                with block(f"if not {count}:"):
                    line("break")
            line(f"{count} -= 1")
            item = read_item()
            if kept:
                line(f"{into}.append({item})")
                with block(f"if len({into}) > {MOST_ITEMS}:"):
                    line("raise TooManyItems")

    def _record(self, plan: RecordPlan, into: str) -> None:
        fields = plan.fields or ()
        if len(fields) > _MAX_FIELDS:
            self._wide_record(plan.name, fields, into)
            return
        entries = []
        for name, value in fields:
            if isinstance(value, DefaultPlan):
                entries.append(f"{name!r}: {self.default(value)}")
                continue
            variable = self.variable()
            self.read(value, variable)
            if name is not None:
                entries.append(f"{name!r}: {variable}")
        self._writer.line(f"{into} = {{{', '.join(entries)}}}")

    def _wide_record(self, name: str, fields: Sequence[tuple[str | None, Plan]], into: str) -> None:
        """In parts that are records themselves: of so many fields, or of so many parts."""
        part = self.variable()
        self._writer.line(f"{into} = {{}}")
        size = _MAX_FIELDS
        while size * _MAX_FIELDS < len(fields):
            size *= _MAX_FIELDS
        for start in range(0, len(fields), size):
            self._call(self._module.function(RecordPlan(name, fields[start : start + size])), part)
            self._writer.line(f"{into}.update({part})")

    def default(self, plan: DefaultPlan) -> str:
        """An expression for the value of a field that the writer lacks."""
        if plan.make in (list, dict):
            return repr(plan.make())
        value = plan.make()
        if value is plan.make():  # what is not made anew each time may be shared
            return self._module.bind(value, "default")
        return f"{self._module.bind(plan.make, 'make')}()"

    def variable(self) -> str:
        """A name that no other has."""
        self._variables += 1
        return f"v{self._variables}"
