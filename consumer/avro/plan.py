"""How one writer's data are read in the shape of our schema.

Theory of operation. `resolution` makes a plan once per pair of schemas. Each part of a plan has a `read`, which reads
its data in Python as `reading` promises; `consumer.conversion.layout` makes the compiled modules' operations of the
same plan.

`trimmed` returns a plan without the parts that are not asked for. They are read, because their bytes must be a valid
datum, but no values are built: a datum of a megabyte may hold a million records of one byte each, which as dictionaries
take half a gigabyte. Fields that we lack, and fields that the mapping does not ask for, get a plan that keeps nothing:
arrays and maps without items, records without a named field. The values within are still read by the same functions, so
that the verdict on hostile bytes is the same; each is freed before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consumer.avro.paths import EACH, NOTHING, Asked, Path, keys_in, within
from consumer.avro.reading import (
    MAX_ITEMS,
    Read,
    TooManyItems,
    Unresolvable,
    read_count,
    read_length,
    read_string,
)


@dataclass(slots=True, eq=False)
class Leaf:
    """One value, read by the function `primitive`, and then converted."""

    primitive: Read
    convert: Callable[[Any], Any] | None = None
    size: int | None = None  # of a fixed
    read: Read = field(init=False)

    def __post_init__(self) -> None:
        primitive, convert = self.primitive, self.convert
        # Most values are not converted: then the caller calls the primitive directly.
        self.read = primitive
        if convert is not None:

            def read(data: bytes, at: int) -> tuple[Any, int]:
                value, at = primitive(data, at)
                return convert(value), at

            self.read = read


@dataclass(frozen=True, slots=True, eq=False)
class EnumPlan:
    """An index into the writer's symbols, each already mapped to ours; None for one that ours lacks.

    Made once for each pair of enums, however often it occurs in a schema: comparing a hundred thousand symbols in each
    of a thousand places would take minutes.
    """

    name: str
    symbols: tuple[str | None, ...]

    def read(self, data: bytes, at: int) -> tuple[str, int]:
        """See `Read`."""
        index, at = read_length(data, at)
        # An index that is too high raises; a negative one was refused with the length.
        symbol = self.symbols[index]
        if symbol is None:
            raise Unresolvable(f"a symbol that our enum {self.name} lacks, and it has no default")
        return symbol, at


@dataclass(frozen=True, slots=True)
class OptionalPlan:
    """The union of ``null`` and one other type: nearly every field is one.

    `null_byte` stands for the branch of null: 0 if it is the first one, else 2. The other one is 2 minus that.
    """

    null_byte: int
    value: Plan

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """See `Read`."""
        branch = data[at]
        if branch == self.null_byte:
            return None, at + 1
        if branch != 2 - self.null_byte:  # also a longer spelling of 0 or 1
            raise ValueError("a union's branch that it does not have")
        return self.value.read(data, at + 1)


@dataclass(frozen=True, slots=True)
class UnionPlan:
    """Any other union: the index of a branch, then that branch's datum."""

    branches: tuple[Plan, ...]

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """See `Read`."""
        # Not negative: Python would take the last branch for -1.
        index, at = read_length(data, at)
        return self.branches[index].read(data, at)


@dataclass(frozen=True, slots=True)
class ArrayPlan:
    """Blocks of items, up to an empty block; if not `kept`, the items are skipped and null stands for them."""

    item: Plan
    kept: bool = True

    def read(self, data: bytes, at: int) -> tuple[list[Any] | None, int]:
        """See `Read`."""
        items: list[Any] = []
        read_item = self.item.read
        count, at = read_count(data, at)
        # A count may be any number: each round reads at least a byte, or the schema is refused (`schema`).
        while count:
            for _ in range(count):
                item, at = read_item(data, at)
                if self.kept:
                    items.append(item)
                    # Checked for each item: too many items are refused, not a large claimed count.
                    if len(items) > MAX_ITEMS:
                        raise TooManyItems
            count, at = read_count(data, at)
        return items if self.kept else None, at


@dataclass(frozen=True, slots=True)
class MapPlan:
    """Blocks of keys and values, up to an empty block. Only the values of `keys` are kept; None: all. `passed` reads
    over the others, and keeps nothing of them."""

    value: Plan
    keys: frozenset[str] | None = None
    passed: Plan | None = None  # None: as `value`

    def read(self, data: bytes, at: int) -> tuple[dict[str, Any], int]:
        """See `Read`."""
        items: dict[str, Any] = {}
        read_value, read_over = self.value.read, (self.passed or self.value).read
        count, at = read_count(data, at)
        while count:
            for _ in range(count):
                key, at = read_string(data, at)
                # Every key and value is read, as they must be a datum; only those that are asked for are kept.
                if self.keys is None or key in self.keys:
                    items[key], at = read_value(data, at)
                else:
                    _, at = read_over(data, at)
            count, at = read_count(data, at)
        return items, at


@dataclass(frozen=True, slots=True)
class DefaultPlan:
    """A field that the writer lacks: no byte is read, `make` gives its value."""

    make: Callable[[], Any]

    def read(self, _data: bytes, at: int) -> tuple[Any, int]:
        """See `Read`."""
        return self.make(), at


@dataclass(slots=True, eq=False)
class RecordPlan:
    """Fields in the writer's order, those that we lack without a name, and then our defaults.

    Made before its fields are known, because they may refer to it; `fields` stays ``None`` if they cannot be resolved.
    """

    name: str
    fields: Sequence[tuple[str | None, Plan]] | None = None

    def read(self, data: bytes, at: int) -> tuple[dict[str, Any], int]:
        """See `Read`."""
        if self.fields is None:
            raise Unresolvable(f"{self.name}: not resolved")
        record: dict[str, Any] = {}
        for name, plan in self.fields:
            value, at = plan.read(data, at)
            if name is not None:
                record[name] = value
        return record, at


Plan = Leaf | EnumPlan | OptionalPlan | UnionPlan | ArrayPlan | MapPlan | DefaultPlan | RecordPlan


def is_read(plan: Plan, steps: Path) -> bool:
    """Return True if data read by `plan` have something at these steps; False: the writer lacks it in every branch."""
    here: list[Plan] = [plan]
    for step in steps:
        # Each plan once, however many ways lead to it.
        here = list({id(one): one for place in here for one in _below(place, step)}.values())
    return any(not isinstance(one, DefaultPlan) for one in here)


def _below(plan: Plan, step: str) -> Iterator[Plan]:
    """Yield the plans one step below this one."""
    if isinstance(plan, RecordPlan):
        yield from (value for name, value in plan.fields or () if name == step)
    elif isinstance(plan, OptionalPlan):
        yield from _below(plan.value, step)
    elif isinstance(plan, UnionPlan):
        for branch in plan.branches:
            yield from _below(branch, step)
    elif isinstance(plan, ArrayPlan):
        # A path to an array of scalars may end at the array.
        yield from (plan.item,) if step == EACH else _below(plan.item, step)
    elif isinstance(plan, MapPlan):
        yield plan.value


def trimmed(
    plan: Plan, asked: Asked, records: dict[tuple[RecordPlan, Asked], RecordPlan] | None = None
) -> Plan:
    """Return `plan` without the parts that `asked` does not name: they are skipped, and not kept.

    `records`: the records that were trimmed on the way to this plan.
    """
    records = {} if records is None else records
    if isinstance(plan, RecordPlan):
        key = (plan, asked)
        # A record may occur in many places, and in itself: it is trimmed once for each set of paths.
        if key not in records and plan.fields is not None:
            records[key] = made = RecordPlan(plan.name)
            fields = [
                (name, value, NOTHING if name is None else within(asked, name)) for name, value in plan.fields
            ]
            made.fields = [
                (name if below else None, trimmed(value, below, records))
                for name, value, below in fields
                if below or not isinstance(value, DefaultPlan)
            ]
        return records.get(key, plan)
    if isinstance(plan, OptionalPlan):
        return OptionalPlan(plan.null_byte, trimmed(plan.value, asked, records))
    if isinstance(plan, UnionPlan):
        return UnionPlan(tuple(trimmed(branch, asked, records) for branch in plan.branches))
    if isinstance(plan, ArrayPlan):
        # Where no path names the array, the paths apply to its items.
        return ArrayPlan(trimmed(plan.item, within(asked, EACH) or asked, records), bool(asked))
    if isinstance(plan, MapPlan):
        keys, below = keys_in(asked)
        value = trimmed(plan.value, below, records)
        # Trimmed twice only where the two differ, or maps within maps would take time without end.
        differ = keys is not None and below
        return MapPlan(value, keys, trimmed(plan.value, NOTHING, records) if differ else value)
    return plan
