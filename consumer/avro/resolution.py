"""Avro schema resolution ("Schema Resolution" of the specification), done once per pair of schemas.

`resolve` walks a writer's schema and ours side by side and works out the plan by which the writer's bytes are read
straight into the shape of our schema: fields we lack are read over, fields the writer lacks get our default, aliases
rename, numbers are promoted, enum symbols are mapped. Per datum nothing is compared or looked up any more.

The work is bounded by steps: each pair of types is resolved once, failed pairs of records and enums are remembered
like the others, and a writer's schema that would take more than `MOST_STEPS` is refused. So no schema holds up the
event loop for long, however its author nested it.

What can never be read raises `Incompatible` here. A union branch or an enum symbol without a place in ours
is only refused for the data that use it (`Unresolvable`), as the specification has it.

Choices where the specification is silent or implementations differ:

* Names of records, enums and fixed match by full name, by an alias of ours, or unqualified, in this order.
* Among the branches of our union an exact match goes before a promotion (as in Java; the text says the
  first that matches, which would read an int as a double though an int branch follows).
* Logical types: the same meaning in another unit is converted, exactly and rounding down; decimals are
  rescaled if that is exact; one that only one side declares takes the number as it is, for that is how
  people add the annotation later. Two different meanings (a date and a timestamp) are incompatible: the
  number would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, Final

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
)
from consumer.avro.reading import (
    FixedReader,
    ReadThenConvert,
    Unresolvable,
    read_boolean,
    read_bytes,
    read_double,
    read_float,
    read_int,
    read_long,
    read_long_as_float,
    read_null,
    read_string,
    reader_of,
    refusing,
)
from consumer.avro.schema import (
    Array,
    AvroType,
    Enum,
    Field,
    Fixed,
    Logical,
    Map,
    Named,
    Primitive,
    Record,
    Union,
    label,
    require_bounded,
    shown,
)
from consumer.avro.values import DecimalReader, decimal_to_scale, default_factory, from_bytes, rescaled


class Incompatible(Exception):
    """The writer's schema cannot be resolved to ours. Names types and fields, never data."""

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


_PROMOTIONS: Final[dict[tuple[str, str], Read]] = {
    ("null", "null"): read_null,
    ("boolean", "boolean"): read_boolean,
    ("int", "int"): read_int,
    ("int", "long"): read_int,
    ("int", "float"): read_long_as_float,
    ("int", "double"): read_long_as_float,
    ("long", "long"): read_long,
    ("long", "float"): read_long_as_float,
    ("long", "double"): read_long_as_float,
    ("float", "float"): read_float,
    ("float", "double"): read_float,
    ("double", "double"): read_double,
    ("string", "string"): read_string,
    ("string", "bytes"): read_bytes,
    ("bytes", "bytes"): read_bytes,
    ("bytes", "string"): read_string,
}
"""How a primitive of the writer is read as one of ours; a pair that is not here does not resolve."""


MOST_STEPS: Final = 100_000
"""Types, fields, branches and symbols looked at in one resolution: some 0.2 s. Honest schemas take some thousand."""


def compile_reader(writer: AvroType, reader: AvroType) -> Read:
    """What reads data of `writer` in the shape of `reader`.

    Raises `Incompatible`, or `InvalidSchema` if the writer's data would have no bound or a default of the
    reader is no value of its type.
    """
    return reader_of(resolve(writer, reader))


def resolve(writer: AvroType, reader: AvroType, most_steps: int = MOST_STEPS) -> Plan:
    """How data of `writer` are read in the shape of `reader`; raises as `compile_reader` does.

    `most_steps`: how much may be looked at, before the writer's schema is refused.
    """
    try:
        require_bounded(writer)
        return _Resolver(most_steps).resolve(writer, reader)
    except RecursionError:  # types are not nested so deeply, but may refer to each other in a long chain
        raise Incompatible("its types refer to each other too deeply") from None
    except _TooIntricate:
        raise Incompatible(
            f"the writer's schema is too large or too intricate: to resolve it would take more than {most_steps} steps "
            "(types, fields, union branches and enum symbols compared with ours)"
        ) from None


class _TooIntricate(Exception):
    """The steps are used up. No `Incompatible`: it must end the resolution, not one branch of it."""


class _Resolver:
    """One resolution of at most `steps` steps.

    `_pairs` holds what became of each pair of records or enums met so far: its plan, or why it has none. A record's
    plan is there before its fields are, since they may refer to it. Should it fail after all, then it was taken for
    good meanwhile, and what refers to it is refused only for the data that use it. So a failure is never premature:
    it stands also for what was taken for good, and may be remembered.
    """

    def __init__(self, steps: int) -> None:
        self._left = steps
        self._pairs: dict[tuple[int, int], RecordPlan | EnumPlan | str] = {}

    def _step(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise _TooIntricate

    def resolve(self, writer: AvroType, reader: AvroType) -> Plan:
        self._step()
        if isinstance(writer, Union):
            return self._union(writer, reader)
        if isinstance(reader, Union):
            self._step(len(reader.branches))
            return self.resolve(writer, _best_branch(writer, reader))
        if _match(writer, reader) is None:
            raise Incompatible(f"{label(writer)} cannot be read as {label(reader)}")
        return self._same_kind(writer, reader)

    def _same_kind(self, writer: AvroType, reader: AvroType) -> Plan:
        if isinstance(writer, Record | Enum) and isinstance(reader, Record | Enum):
            return self._pair(writer, reader)
        if isinstance(writer, Array) and isinstance(reader, Array):
            return ArrayPlan(self.resolve(writer.items, reader.items))
        if isinstance(writer, Map) and isinstance(reader, Map):
            return MapPlan(self.resolve(writer.values, reader.values))
        if isinstance(writer, Fixed) and isinstance(reader, Fixed):
            return _with_meaning(FixedReader(writer.size), writer, reader)
        assert isinstance(writer, Primitive) and isinstance(reader, Primitive)  # noqa: S101, PT018
        return _with_meaning(_PROMOTIONS[writer.kind, reader.kind], writer, reader)

    def _union(self, writer: Union, reader: AvroType) -> Plan:
        if writer is reader:  # each branch is its own match: looking for it among many would be a square
            return _union_plan(writer, [self.resolve(branch, branch) for branch in writer.branches])
        branches: list[Plan] = []
        reasons = []
        for branch in writer.branches:
            try:
                branches.append(self.resolve(branch, reader))
            except Incompatible as error:
                reasons.append(str(error))
                branches.append(Leaf(refusing(str(error))))
        if len(reasons) == len(branches):
            raise Incompatible(reasons[writer.null == 0 and len(reasons) > 1])  # of null it says least
        return UnionPlan(tuple(branches)) if reasons else _union_plan(writer, branches)

    def _pair(self, writer: Record | Enum, reader: Record | Enum) -> Plan:
        """What has a name may be referred to from many places: it is resolved in the first."""
        pair = (id(writer), id(reader))
        known = self._pairs.get(pair)
        if isinstance(known, str):
            raise Incompatible(known)
        if known is not None:
            return known
        try:
            if isinstance(writer, Enum) and isinstance(reader, Enum):
                self._step(len(writer.symbols) + len(reader.symbols))
                self._pairs[pair] = found = _enum(writer, reader)
                return found
            assert isinstance(writer, Record) and isinstance(reader, Record)  # noqa: S101, PT018
            self._pairs[pair] = plan = RecordPlan(writer.name)
            plan.fields = self._fields(writer, reader)
            return plan
        except Incompatible as error:
            self._pairs[pair] = str(error)
            raise

    def _fields(self, writer: Record, reader: Record) -> list[tuple[str | None, Plan]]:
        self._step(len(writer.fields) + len(reader.fields))
        ours_by_writers = _matched_fields(writer, reader)
        fields: list[tuple[str | None, Plan]] = []
        for theirs in writer.fields:
            ours = ours_by_writers.get(theirs.name)
            if ours is None:
                fields.append((None, self._over(theirs)))
            else:
                fields.append((ours.name, self._field(theirs, ours, reader)))
        matched = {ours.name for ours in ours_by_writers.values()}
        return fields + [
            (ours.name, _default(ours, reader)) for ours in reader.fields if ours.name not in matched
        ]

    def _field(self, theirs: Field, ours: Field, reader: Record) -> Plan:
        try:
            return self.resolve(theirs.type, ours.type)
        except Incompatible as error:
            raise Incompatible(f"field {reader.name}.{ours.name}: {error}") from None

    def _over(self, theirs: Field) -> Plan:
        """A field that we lack, read only to get past it."""
        kind = theirs.type
        return Leaf(read_bytes) if kind.kind == "string" else self.resolve(kind, kind)


def _union_plan(writer: Union, branches: list[Plan]) -> Plan:
    if writer.null < 0 or len(branches) != 2:
        return UnionPlan(tuple(branches))
    return OptionalPlan(writer.null, branches[1 - writer.null])


def _matched_fields(writer: Record, reader: Record) -> dict[str, Field]:
    """Our field for each of the writer's that we have: by name first, then by our aliases in their order."""
    free = {each.name for each in writer.fields}
    matched = {ours.name: ours for ours in reader.fields if ours.name in free}
    free -= matched.keys()
    for ours in reader.fields:
        alias = next((alias for alias in ours.aliases if alias in free), None)
        if ours.name not in matched and alias is not None:
            matched[alias] = ours
            free.discard(alias)
    return matched


def _default(ours: Field, reader: Record) -> DefaultPlan:
    make = default_factory(ours)
    if make is None:
        raise Incompatible(f"field {reader.name}.{ours.name} is not written, and ours has no default")
    return DefaultPlan(make)


_EXACT, _BY_ALIAS, _BY_UNQUALIFIED_NAME, _BY_PROMOTION = range(4)


def _match(writer: AvroType, reader: AvroType) -> int | None:
    """How well two types match, the lower the better; ``None`` if they do not. Neither is a union."""
    if isinstance(writer, Primitive) and isinstance(reader, Primitive):
        if writer.kind == reader.kind:
            return _EXACT
        return _BY_PROMOTION if (writer.kind, reader.kind) in _PROMOTIONS else None
    if writer.kind != reader.kind:
        return None
    if isinstance(writer, Fixed) and isinstance(reader, Fixed) and writer.size != reader.size:
        return None
    if isinstance(writer, Enum | Fixed | Record) and isinstance(reader, Enum | Fixed | Record):
        return _match_names(writer, reader)
    return _EXACT


def _match_names(writer: Named, reader: Named) -> int | None:
    if writer.name == reader.name:
        return _EXACT
    if writer.name in reader.aliases:
        return _BY_ALIAS
    unqualified = {name.rpartition(".")[2] for name in (reader.name, *reader.aliases)}
    return _BY_UNQUALIFIED_NAME if writer.name.rpartition(".")[2] in unqualified else None


def _best_branch(writer: AvroType, reader: Union) -> AvroType:
    matches = [(match, branch) for branch in reader.branches if (match := _match(writer, branch)) is not None]
    if not matches:
        raise Incompatible(f"{label(writer)} is none of {', '.join(map(label, reader.branches))}")
    return min(matches, key=lambda each: each[0])[1]


def _enum(writer: Enum, reader: Enum) -> EnumPlan:
    known = set(reader.symbols)
    symbols = tuple(symbol if symbol in known else reader.default for symbol in writer.symbols)
    if not any(symbols):
        raise Incompatible(f"enum {reader.name} shares no symbol with the writer's")
    return EnumPlan(reader.name, symbols)


def _with_meaning(read: Read, writer: Primitive | Fixed, reader: Primitive | Fixed) -> Leaf:
    """Apply the logical types of both sides to what `read` reads."""
    convert = _meaning(writer, reader)
    return Leaf(ReadThenConvert(read, convert) if convert else read)


def _meaning(writer: Primitive | Fixed, reader: Primitive | Fixed) -> Callable[[Any], Any] | None:
    theirs, ours = writer.logical, reader.logical
    if writer.kind != reader.kind and "decimal" in (_family(theirs), _family(ours)):
        raise Incompatible(f"{_called(writer)} cannot be read as {_called(reader)}")
    if theirs is None or ours is None or theirs == ours:
        return from_bytes(reader)
    if theirs.family != ours.family:
        raise Incompatible(f"{theirs.name} cannot be read as {ours.name}")
    if ours.family == "decimal":
        return partial(_rescaled_decimal, DecimalReader(theirs), ours)
    return partial(rescaled, per_second=theirs.per_second, new_per_second=ours.per_second)


def _family(logical: Logical | None) -> str:
    return "" if logical is None else logical.family


def _called(node: Primitive | Fixed) -> str:
    return label(node) if node.logical is None else node.logical.name


def _rescaled_decimal(read: Callable[[bytes], Decimal], ours: Logical, data: bytes) -> Decimal:
    value = read(data)
    try:
        return decimal_to_scale(value, ours)
    except ValueError:
        raise Unresolvable(f"a decimal that our scale of {ours.scale} does not hold exactly") from None
