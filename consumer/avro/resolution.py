"""A writer's schema resolved against ours, by Avro's rules.

`resolve` walks a writer's schema and ours side by side and works out the plan by which the writer's bytes are read
straight into the shape of our schema: fields we lack are skipped, fields the writer lacks get our default, aliases
rename, numbers are promoted, enum symbols are mapped. No datum needs another comparison or look-up.

The work is bounded by steps: each pair of types is resolved once, failed pairs of records and enums are remembered
like the others, and a writer's schema that would take more than `MAX_STEPS` is refused. So no schema blocks the event
loop for long, however it is nested.

A schema that can never be read raises `Incompatible` here. A union branch or an enum symbol without a place in ours is
refused only for the data that use it (`Unresolvable`), as the specification says.

Choices where the specification is silent or implementations differ:

* Names of records, enums and fixed match by full name, by an alias of ours, or unqualified, in this order.
* Among the branches of our union an exact match goes before a promotion (as in Java; the text says the
  first that matches, which would read an int as a double though an int branch follows).
* Logical types: the same meaning in another unit is converted, exactly and rounding down; decimals are
  rescaled if that is exact; one that only one side declares takes the number as it is, because
  people add the annotation later. Two different meanings (a date and a timestamp) are incompatible: the
  number would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, Final

from consumer.avro.fitting import default_factory
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
)
from consumer.avro.reading import PROMOTIONS, Unresolvable, read_bytes, read_fixed, refuse
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
    printable,
    require_bounded,
)
from consumer.avro.values import DecimalReader, decimal_to_scale, from_bytes, rescaled


class Incompatible(Exception):
    """The writer's schema cannot be resolved to ours. Names types and fields, never data."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


# Types, fields, branches and symbols looked at in one resolution: some 0.2 s. Honest schemas take some thousand.
MAX_STEPS: Final = 100_000


def resolve(writer: AvroType, reader: AvroType, max_steps: int = MAX_STEPS) -> Plan:
    """Return the plan that reads data of `writer` in the shape of `reader`.

    Raises `Incompatible`, also after `max_steps`, or `InvalidSchema` if the writer's data would have no bound or a
    default of the reader is no value of its type.
    """
    try:
        # Checked before the resolution, so that a refused schema costs no steps.
        require_bounded(writer)
        return _Resolver(max_steps).resolve(writer, reader)
    except RecursionError:  # types are not nested so deeply, but may refer to each other in a long chain
        raise Incompatible("its types refer to each other too deeply") from None
    except _TooIntricate:
        raise Incompatible(
            f"the writer's schema is too large or too intricate: to resolve it would take more than {max_steps} steps "
            "(types, fields, union branches and enum symbols compared with ours)"
        ) from None


class _TooIntricate(Exception):
    """The steps are used up. Not an `Incompatible`, because it ends the resolution and not one branch of it."""


class _Resolver:
    """One resolution of at most `steps` steps.

    `_pairs` holds the result for each pair of records or enums met so far: its plan, or why it has none. A record's
    plan is there before its fields are resolved, since they may refer to it: it is assumed to succeed. If it then
    fails, the types that referred to it have a plan without fields, which refuses only the data that use it. A failure
    in spite of that assumption is final, so it may be remembered.
    """

    def __init__(self, steps: int) -> None:
        self._left = steps
        # By identity: the names of the two sides may differ, and comparing types would walk them.
        self._pairs: dict[tuple[int, int], RecordPlan | EnumPlan | str] = {}

    def _step(self, count: int = 1) -> None:
        # Counted, not timed: the same schema is refused on every machine.
        self._left -= count
        if self._left < 0:
            raise _TooIntricate

    def resolve(self, writer: AvroType, reader: AvroType) -> Plan:
        self._step()
        if isinstance(writer, Union):
            return self._union(writer, reader)
        if isinstance(reader, Union):
            self._step(len(reader.branches))
            branches = reader.branches
            # An exact match goes before a promotion, see above.
            reader = min(branches, key=lambda branch: _match(writer, branch))  # the first of equals
            if _match(writer, reader) == _NONE:
                raise Incompatible(f"{label(writer)} is none of {', '.join(map(label, branches))}")
        elif _match(writer, reader) == _NONE:
            raise Incompatible(f"{label(writer)} cannot be read as {label(reader)}")
        if isinstance(writer, Record | Enum):
            return self._pair(writer, reader)
        if isinstance(writer, Array) and isinstance(reader, Array):
            return ArrayPlan(self.resolve(writer.items, reader.items))
        if isinstance(writer, Map) and isinstance(reader, Map):
            return MapPlan(self.resolve(writer.values, reader.values))
        assert isinstance(writer, Primitive | Fixed) and isinstance(reader, Primitive | Fixed)  # noqa: S101, PT018 (nothing else is left)
        return _leaf(writer, reader)

    def _union(self, writer: Union, reader: AvroType) -> Plan:
        branches: list[Plan] = []
        reasons = []
        for branch in writer.branches:
            try:
                # In a union with itself each branch is its own match: comparing each with all takes quadratic time.
                branches.append(self.resolve(branch, branch if writer is reader else reader))
            except Incompatible as error:
                reasons.append(str(error))
                # This branch is refused only for the data that use it.
                branches.append(Leaf(partial(refuse, str(error))))
        if len(reasons) == len(branches):
            raise Incompatible(reasons[writer.null == 0 and len(reasons) > 1])  # of null it says least
        # The union of null and one type has a plan of its own, since nearly every field is one.
        if reasons or writer.null < 0 or len(branches) != 2:
            return UnionPlan(tuple(branches))
        # A branch is a zig-zag number: 0 is the byte 0, and 1 is 2.
        return OptionalPlan(writer.null << 1, branches[1 - writer.null])

    def _pair(self, writer: Record | Enum, reader: AvroType) -> Plan:
        """Resolve two records or enums once, however often they are referred to."""
        pair = (id(writer), id(reader))
        known = self._pairs.get(pair)
        if isinstance(known, str):
            raise Incompatible(known)
        if known is not None:
            return known
        try:
            if isinstance(writer, Record) and isinstance(reader, Record):
                # Known before its fields are resolved, which may refer to it.
                self._pairs[pair] = plan = RecordPlan(writer.name)
                plan.fields = self._fields(writer, reader)
                return plan
            assert isinstance(writer, Enum) and isinstance(reader, Enum)  # noqa: S101, PT018 (as above)
            self._step(len(writer.symbols) + len(reader.symbols))
            ours = set(reader.symbols)
            # None for a symbol that we lack without a default: refused for the data that use it.
            symbols = tuple(symbol if symbol in ours else reader.default for symbol in writer.symbols)
            if not any(symbols):
                raise Incompatible(f"enum {reader.name} shares no symbol with the writer's")
            self._pairs[pair] = found = EnumPlan(reader.name, symbols)
            return found
        except Incompatible as error:
            # Remembered, or each further place would be resolved again in full.
            self._pairs[pair] = str(error)
            raise

    def _fields(self, writer: Record, reader: Record) -> list[tuple[str | None, Plan]]:
        self._step(len(writer.fields) + len(reader.fields))
        ours_by_writers = _matched_fields(writer, reader)
        fields: list[tuple[str | None, Plan]] = []
        for theirs in writer.fields:
            ours = ours_by_writers.get(theirs.name)
            if ours is not None:
                try:
                    fields.append((ours.name, self.resolve(theirs.type, ours.type)))
                except Incompatible as error:
                    raise Incompatible(f"field {reader.name}.{ours.name}: {error}") from None
            elif theirs.type.kind == "string":
                fields.append((None, Leaf(read_bytes)))  # skipped text need not be valid UTF-8
            else:
                fields.append((None, self.resolve(theirs.type, theirs.type)))
        matched = {ours.name for ours in ours_by_writers.values()}
        for ours in reader.fields:
            if ours.name not in matched:
                make = default_factory(ours)
                if make is None:
                    raise Incompatible(
                        f"field {reader.name}.{ours.name} is not written, and ours has no default"
                    )
                fields.append((ours.name, DefaultPlan(make)))
        return fields


def _matched_fields(writer: Record, reader: Record) -> dict[str, Field]:
    """Map the writer's fields to our fields: by name first, then by our aliases in their order."""
    free = {each.name for each in writer.fields}
    matched = {ours.name: ours for ours in reader.fields if ours.name in free}
    # A field of the writer's matches one of ours only once, by its name if possible.
    free -= matched.keys()
    for ours in reader.fields:
        alias = next((alias for alias in ours.aliases if alias in free), None)
        if ours.name not in matched and alias is not None:
            matched[alias] = ours
            free.discard(alias)
    return matched


# From the best to the worst: the lowest rating among the branches of a union wins.
_EXACT, _BY_ALIAS, _BY_UNQUALIFIED_NAME, _BY_PROMOTION, _NONE = range(5)


def _match(writer: AvroType, reader: AvroType) -> int:
    """Rate how well two types match: the lower the better. Neither is a union."""
    if writer.kind != reader.kind:
        return _BY_PROMOTION if (writer.kind, reader.kind) in PROMOTIONS else _NONE
    if isinstance(writer, Fixed) and isinstance(reader, Fixed) and writer.size != reader.size:
        return _NONE
    if not isinstance(writer, Named) or not isinstance(reader, Named) or writer.name == reader.name:
        return _EXACT
    if writer.name in reader.aliases:
        return _BY_ALIAS
    # As Java and the specification have it: the last part of a name is enough.
    unqualified = {name.rpartition(".")[2] for name in (reader.name, *reader.aliases)}
    return _BY_UNQUALIFIED_NAME if writer.name.rpartition(".")[2] in unqualified else _NONE


def _leaf(writer: Primitive | Fixed, reader: Primitive | Fixed) -> Leaf:
    """Return the plan of a value without parts, with the logical types of both sides applied."""
    theirs, ours = writer.logical, reader.logical
    # The bytes of a decimal are not text, and text is not a decimal.
    if writer.kind != reader.kind and any(one and one.family == "decimal" for one in (theirs, ours)):
        names = [node.logical.name if node.logical else label(node) for node in (writer, reader)]
        raise Incompatible(f"{names[0]} cannot be read as {names[1]}")
    convert: Callable[[Any], Any] | None
    # One side without a meaning takes the number as it is: people add the annotation later.
    if theirs is None or ours is None or theirs == ours:
        convert = from_bytes(reader)
    elif theirs.family != ours.family:
        raise Incompatible(f"{theirs.name} cannot be read as {ours.name}")
    elif ours.family == "decimal":
        convert = partial(_rescaled_decimal, DecimalReader(theirs), ours)
    else:
        convert = partial(rescaled, per_second=theirs.per_second, new_per_second=ours.per_second)
    if isinstance(writer, Fixed):
        return Leaf(partial(read_fixed, writer.size), convert, writer.size)
    return Leaf(PROMOTIONS[writer.kind, reader.kind], convert)


def _rescaled_decimal(read: Callable[[bytes], Decimal], ours: Logical, data: bytes) -> Decimal:
    value = read(data)
    try:
        # Exact or not at all: an amount is never rounded.
        return decimal_to_scale(value, ours)
    except ValueError:
        raise Unresolvable(f"a decimal that our scale of {ours.scale} does not hold exactly") from None
