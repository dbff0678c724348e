"""Writes the Python that goes from one writer's bytes straight to the conversion event: one function.

Theory of operation. Decoding and converting are two generated functions (`avro_source`, `convert_source`) with a
commerce event between them: dictionaries that are made only to be taken apart again. Here the same two generators
write into one function. Where the first would put a field into a dictionary it puts it into a variable, and where the
second would look the field up it names the variable; what each of them decides stays where it is written.

Fields of records, and of records in records, become variables (they are *spread*). The items are read as tuples of
their fields and taken apart again by the loop over them. Whatever else there is (maps, unions, arrays in arrays,
records that stand in several places) is read as it always was, and looked up as it always was.

A record is spread only if all that the mapping asks for below it are fields of it. Where our schema has a union the
mapping may ask for what another branch of it holds; then it is looked up, which fails, and the two steps say so.

What the function gives is what the two would: a property test holds them against each other. It gives None where it
is not certain, and raises where something is wrong; both mean: ask the two.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar, Final, cast

from consumer.avro.decode import is_framed_alike
from consumer.avro.paths import EACH, Step, StepKind
from consumer.avro.source import (
    NO_BRANCH,
    ArrayPlan,
    DefaultPlan,
    Function,
    Module,
    OptionalPlan,
    Plan,
    RecordPlan,
    branch_bytes,
)
from consumer.avro.source_writer import Writer
from consumer.conversion.fields import Task
from consumer.conversion.python_source import Generator
from consumer.conversion.targets import CONTENTS, TARGETS
from consumer.conversion.writer import Reader, Reads
from consumer.engine.intake import serialised
from consumer.engine.model import ConversionEvent, Converted, Record

Fused = Callable[[bytes, int, float, float], Converted | None]
"""``(data, at, oldest, present)``: see `convert_source.Function`."""
Many = Callable[[list[Record], list[Any], bytes, int, float, float], None]
"""``(records, prepared, framing, start, oldest, present)``.

Reads on where `prepared` ends and appends what each record became, up to one that it is not certain of or that is
framed otherwise. The first is framed by `framing`, its datum begins at `start`. Never raises because of what they
hold."""

_MAX_DEPTH: Final = 8

Path = tuple[Step, ...]


class _Variables:
    """Which variable holds what stands at a path; what lies below it is looked up from there."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._places: dict[Path, str] = {}
        self._readers: dict[str, Reader] = {}

    def put(self, path: Path, variable: str) -> None:
        """The value at `path` is in `variable`."""
        self._places[path] = variable

    def value(self, steps: Path) -> str:
        """See `Reads`."""
        variable, rest = self.nearest(steps)
        return self._reader(variable).value(rest) if rest else variable

    def all_values(self, steps: Path) -> str:
        """See `Reads`."""
        variable, rest = self.nearest(steps)
        return Reader(self._writer, variable, True).all_values(rest)

    def nearest(self, steps: Path) -> tuple[str, Path]:
        """The variable nearest to what stands at `steps`, and the way on from there. Raises `KeyError`."""
        for count in range(len(steps), 0, -1):
            variable = self._places.get(steps[:count])
            if variable is not None:
                return variable, steps[count:]
        raise KeyError(steps)

    def _reader(self, variable: str) -> Reader:
        """Of what is in a variable; a record of nulls stands for null."""
        if variable not in self._readers:
            absent: dict[str, None] = {}
            root = f"{variable}_or"
            self._writer.line(f"{root} = {variable} or {self._writer.bind(absent, 'absent')}")
            self._readers[variable] = Reader(self._writer, root, True, absent)
        return self._readers[variable]


class FusedGenerator(Generator):
    """Writes the function for records that are read as `plan` says."""

    most_spread: ClassVar[int] = 64
    """Fields of a record that is spread; one with more is no longer one function that Python compiles quickly."""

    def __init__(self, task: Task, plan: RecordPlan) -> None:
        self._plan = plan
        self._module = Module(plan)
        writer = Writer(self._module.constants)
        self._variables = _Variables(writer)
        super().__init__(task, True, writer, self._variables)
        self._function = Function(self._module, writer)
        self._item_fields: dict[str, str] | None = None
        """Name and variable of each field of an item, if items are read as tuples."""
        self._item_slots: list[str] = []
        """The variables that such a tuple is taken apart into."""
        self._asked = [
            *(source.steps for source in self._mapping.sources.values()),
            *self._asked_of_the_event(),
        ]

    def is_possible(self) -> bool:
        """Whether records of this plan can be read so: their fields become variables."""
        return self._has_variables(self._plan, ())

    def fused(self) -> str:
        """The source of ``fused`` and of what it calls."""
        self._read_record()
        self.convert()
        return self._writer.source("def fused(data, at, oldest, present):") + self._module.source()

    # Reading.

    def _read_record(self) -> None:
        """Read everything into variables; the datum must end where the bytes end."""
        self._spread(self._plan, ())
        with self._writer.block("if at != len(data):"):
            self._writer.line("return None")

    def _value(self, plan: Plan, variable: str, path: Path | None) -> None:
        """Read one value, or give it its default; `path` is None if we lack it."""
        if isinstance(plan, DefaultPlan):
            self._writer.line(f"{variable} = {self._function.default(plan)}")
        else:
            self._function.read(plan, variable)

    def _spread(self, plan: RecordPlan, path: Path) -> list[str]:
        """Read a record's fields into variables; gives their names."""
        return [
            variable
            for name, value in plan.fields or ()
            for variable in self._field_into(value, None if name is None else (*path, _field(name)))
        ]

    def _field_into(self, plan: Plan, path: Path | None) -> list[str]:
        """Read one field, `path` being None if we lack it; gives the variables that hold it."""
        if path is not None and self._is_spread(plan, path):
            assert isinstance(plan, RecordPlan)  # noqa: S101
            return self._spread(plan, path)
        if path is not None and isinstance(plan, OptionalPlan) and self._is_spread(plan.value, path):
            return self._optional_record(plan, path)
        variable = self._function.variable()
        if path is not None:
            self._variables.put(path, variable)
        if path is not None and self._are_items(plan, path):
            assert isinstance(plan, ArrayPlan)  # noqa: S101
            self._tuples(plan, variable)
        else:
            self._value(plan, variable, path)
        return [variable]

    def _is_spread(self, plan: Plan, path: Path) -> bool:
        return (
            isinstance(plan, RecordPlan)
            and self._is_read_in_place(plan)
            and len(path) <= _MAX_DEPTH
            and self._has_variables(plan, path)
        )

    def _is_read_in_place(self, plan: RecordPlan) -> bool:
        """Whether the code that reads it is written where it stands."""
        return self._module.uses[plan] == 1

    def _has_variables(self, plan: RecordPlan, path: Path) -> bool:
        """Whether there are few enough fields, and all that is asked for below `path` are among them."""
        if plan.fields is None or len(plan.fields) > self.most_spread:
            return False
        fields = {_field(name) for name, _ in plan.fields if name is not None}
        depth = len(path)
        return all(
            steps[depth : depth + 1] and steps[depth] in fields
            for steps in self._asked
            if steps[:depth] == path
        )

    def _optional_record(self, plan: OptionalPlan, path: Path) -> list[str]:
        line, block = self._writer.line, self._writer.block
        null, record = branch_bytes(plan)
        assert isinstance(plan.value, RecordPlan)  # noqa: S101
        with block(f"if (b := data[at]) == {record}:"):
            line("at += 1")
            variables = self._spread(plan.value, path)
        with block(f"elif b == {null}:"):
            line("at += 1")
            if variables:
                line(f"{' = '.join(variables)} = None")
        with block("else:"):
            line(NO_BRANCH)
        return variables

    # Items.

    def _are_items(self, plan: Plan, path: Path) -> bool:
        """Whether these are the items, and nobody but the loop over them asks for their fields."""
        steps = (*path, EACH)
        return (
            steps == self._mapping.item_steps
            and isinstance(plan, ArrayPlan)
            and self._is_spread(plan.item, steps)
            and not self._is_read_elsewhere(steps)
        )

    def _is_read_elsewhere(self, steps: Path) -> bool:
        """Whether anybody but the loop over the items asks for what lies below `steps`."""
        elsewhere = [
            source.steps
            for name, source in self._mapping.sources.items()
            if not name.startswith(CONTENTS) and not self._fields.is_gathered(TARGETS[name])
        ]
        return any(each[: len(steps)] == steps for each in [*elsewhere, *self._asked_of_the_event()])

    def _asked_of_the_event(self) -> list[Path]:
        """What is asked for beside the fields of a conversion event."""
        consent, key = self._mapping.consent, self._mapping.dedup_key
        sources = (None if consent is None else consent.source, key)
        return [source.steps for source in sources if source is not None]

    def _tuples(self, plan: ArrayPlan, into: str) -> None:
        """Read items as tuples of those fields that we have."""
        fields = self._item_variables(plan)
        self._item_slots = [variable for _, _, variable in fields]

        def read_item() -> str:
            for _, value, variable in fields:
                if isinstance(value, DefaultPlan):
                    self._writer.line(f"{variable} = {self._function.default(value)}")
                else:
                    self._function.read(value, variable)
            return f"({', '.join(self._item_slots)},)"

        self._function.array(into, read_item)

    def _item_variables(self, plan: ArrayPlan) -> list[tuple[str | None, Plan, str]]:
        """Name, plan and variable of each field of an item."""
        assert isinstance(plan.item, RecordPlan)  # noqa: S101
        fields = [(name, value, self._function.variable()) for name, value in plan.item.fields or ()]
        self._item_fields = {name: variable for name, _, variable in fields if name is not None}
        return fields

    def _item_loop(self) -> tuple[str, Reads]:
        if self._item_fields is None:
            return super()._item_loop()
        items = self._variables.value(self._mapping.item_steps[:-1])
        item = _Variables(self._writer)
        for name, variable in self._item_fields.items():
            item.put((_field(name),), variable)
        slots = "".join(f"{variable}, " for variable in self._item_slots)
        return f"for {slots or '_'} in {items} or ():", item


def _field(name: str) -> Step:
    return Step(StepKind.FIELD, name)


def write_fused(task: Task, plan: RecordPlan) -> Many | None:
    """The function that reads and converts records of this plan; None if they cannot be read so."""
    generator = FusedGenerator(task, plan)
    if not generator.is_possible():
        return None
    source, constants = generator.fused(), generator.constants
    exec(compile(source, "<fused reader>", "exec"), constants)  # noqa: S102
    return _many(cast("Fused", constants["fused"]))


def _many(fused: Fused) -> Many:
    """Reads many records with the function that reads one."""

    def read(
        records: list[Record], prepared: list[Any], framing: bytes, start: int, oldest: float, present: float
    ) -> None:
        first = len(prepared)
        for record in islice(records, first, None):
            value = record.value
            if len(prepared) > first and not is_framed_alike(record, framing, start):
                return
            try:
                result = fused(cast("bytes", value), start, oldest, present)
            except Exception:  # whatever it is, the two steps find out and say
                return
            if result is None:
                return
            prepared.append(serialised(result) if isinstance(result, ConversionEvent) else result)

    return read
