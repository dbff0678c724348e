"""Reading Avro's binary encoding in Python: small functions from bytes and a position to a value and the next position.

Theory of operation. A `Read` takes ``(data, at)`` and returns ``(value, next)``. `reader_of` puts one together for a
plan, out of the functions here. What is read comes from outside, so each function keeps three promises, and so does the
compiled reader (`native/_slots.pyx`):

* every loop over a count that the data claim consumes at least one byte per round, and reading past the end
  raises (text and bytes may leave the position beyond the end instead: whatever reads next raises, and the
  caller compares the final position with the length);
* nothing is allocated because a length was claimed, only because the bytes are there;
* only Python frames nest, so data nested too deeply end in `RecursionError`, not in a dead process. (This is why
  fastavro is not used here: its C code ends the process at 5,000 levels, and reads the negative index -1 of a union or
  enum as the last.)

Bad data raise `ValueError`, `IndexError`, `OverflowError`, `struct.error` or `RecursionError`; the caller
catches all alike. `Unresolvable` is apart: the bytes are fine and our schema has no place for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
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
    branch_bytes,
)

_FLOAT: Final = struct.Struct("<f").unpack_from
_DOUBLE: Final = struct.Struct("<d").unpack_from
_NO_BRANCH: Final = "a union's branch that it does not have"
_LONG_BITS: Final = 63  # the shift of a long's tenth and last byte


class Unresolvable(Exception):
    """This datum uses a branch or symbol of its schema that ours has no place for. Names types only."""


MOST_ITEMS: Final = 10_000
"""Of an array that is kept. An item of one byte may become a record of many defaults, some hundred bytes each."""


class TooManyItems(Exception):
    """This datum holds an array of more items than are kept."""


def read_null(_data: bytes, at: int) -> tuple[None, int]:
    """Nothing, in no bytes."""
    return None, at


def read_boolean(data: bytes, at: int) -> tuple[bool, int]:
    """One byte, 0 or 1."""
    byte = data[at]
    if byte > 1:
        raise ValueError("a boolean is 0 or 1")
    return byte == 1, at + 1


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """A zig-zag number of at most 64 bits."""
    byte = data[at]
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    number = byte & 127
    shift = 7
    while byte > 127:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if shift > _LONG_BITS and (byte > 1 or shift > _LONG_BITS + 7):
            raise ValueError("a long has at most 64 bits")
    return (number >> 1) ^ -(number & 1), at


def read_int(data: bytes, at: int) -> tuple[int, int]:
    """A zig-zag number of at most 32 bits."""
    byte = data[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number, at = read_long(data, at)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise ValueError("an int has at most 32 bits")
    return number, at


def read_long_as_float(data: bytes, at: int) -> tuple[float, int]:
    """Promotion of int or long to float or double."""
    number, at = read_long(data, at)
    return float(number), at


def read_float(data: bytes, at: int) -> tuple[float, int]:
    """Four bytes, little-endian."""
    return _FLOAT(data, at)[0], at + 4


def read_double(data: bytes, at: int) -> tuple[float, int]:
    """Eight bytes, little-endian."""
    return _DOUBLE(data, at)[0], at + 8


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    length, at = read_long(data, at)
    if length < 0:
        raise ValueError("a negative length")
    return length, at


def read_string(data: bytes, at: int) -> tuple[str, int]:
    """A length and so many bytes of UTF-8. May leave the position beyond the end (see above)."""
    byte = data[at]
    if not byte & 0x81:
        at += 1
        end = at + (byte >> 1)
    elif not byte & 1 and (high := data[at + 1]) < 128:  # two bytes: the length of most URLs and user agents
        at += 2
        end = at + (high << 6 | byte >> 1 & 63)
    else:
        length, at = _read_length(data, at)
        end = at + length
    return data[at:end].decode(), end


def read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """A length and so many bytes. May leave the position beyond the end (see above)."""
    length, at = _read_length(data, at)
    end = at + length
    return data[at:end], end


class FixedReader:
    """So many bytes. They have no length that reading past the end would trip over, so it is checked here."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: bytes, at: int) -> tuple[bytes, int]:
        """See `Read`."""
        end = at + self.size
        if end > len(data):
            raise ValueError("the data end inside a fixed")
        return data[at:end], end


def enum_reader(name: str, symbols: Sequence[str | None]) -> Read:
    """An index into the writer's symbols, each already mapped to ours; ``None`` for one without a place."""

    def read_enum(data: bytes, at: int) -> tuple[str, int]:
        index = data[at]
        if index & 0x81:  # more than one byte, or negative
            index, at = _read_length(data, at)
        else:
            index >>= 1
            at += 1
        symbol = symbols[index]
        if symbol is None:
            raise Unresolvable(f"a symbol that our enum {name} lacks, and it has no default")
        return symbol, at

    return read_enum


def array_reader(read_item: Read, kept: bool = True) -> Read:
    """Blocks of items, up to a block of none; not `kept`: they are read over, and null stands for them."""

    def read_array(data: bytes, at: int) -> tuple[list[Any] | None, int]:
        items: list[Any] = []
        count, at = read_count(data, at)
        while count:
            for _ in range(count):
                item, at = read_item(data, at)
                if kept:
                    items.append(item)
                    if len(items) > MOST_ITEMS:
                        raise TooManyItems
            count, at = read_count(data, at)
        return items if kept else None, at

    return read_array


def map_reader(read_value: Read, keys: frozenset[str] | None = None) -> Read:
    """Blocks of keys and values, up to a block of none. Only `keys` are kept; None: all."""

    def read_map(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        items: dict[str, Any] = {}
        count, at = read_count(data, at)
        while count:
            for _ in range(count):
                key, at = read_string(data, at)
                value, at = read_value(data, at)
                if keys is None or key in keys:
                    items[key] = value
            count, at = read_count(data, at)
        return items, at

    return read_map


def read_count(data: bytes, at: int) -> tuple[int, int]:
    """The count of a block; a negative one is followed by the block's size, which only skipping needs."""
    count, at = read_long(data, at)
    if count < 0:
        _, at = _read_length(data, at)
    return abs(count), at


def union_reader(branches: Sequence[Read]) -> Read:
    """The index of a branch, then its datum."""

    def read_union(data: bytes, at: int) -> tuple[Any, int]:
        index, at = _read_length(data, at)
        return branches[index](data, at)

    return read_union


def optional_reader(read: Read, null: int, other: int) -> Read:
    """The union of null and one other type, whose branches are spelled by these bytes."""

    def read_optional(data: bytes, at: int) -> tuple[Any, int]:
        branch = data[at]
        if branch == other:
            return read(data, at + 1)
        if branch != null:  # a longer spelling of 0 or 1 as well
            raise ValueError(_NO_BRANCH)
        return None, at + 1

    return read_optional


class ReadThenConvert:
    """`read`, then `convert` what it read."""

    __slots__ = ("convert", "read")

    def __init__(self, read: Read, convert: Callable[[Any], Any]) -> None:
        self.read = read
        self.convert = convert

    def __call__(self, data: bytes, at: int) -> tuple[Any, int]:
        """See `Read`."""
        value, at = self.read(data, at)
        return self.convert(value), at


def refusing(reason: str) -> Read:
    """In place of a branch that cannot be resolved: an error only for the data that use it."""

    def refuse(_data: bytes, _at: int) -> tuple[Any, int]:
        raise Unresolvable(reason)

    return refuse


def reader_of(plan: Plan) -> Read:
    """What reads data as `plan` says."""
    return _Readers().of(plan)


_FieldRead = tuple[str | None, int, int, Read]
"""The name of a field that we have; of an optional, the bytes of null and of the other branch, else -1; its value."""


class _Readers:
    """The readers of one plan. A record or an enum has one, in however many places it stands."""

    def __init__(self) -> None:
        self._made: dict[RecordPlan | EnumPlan, Read] = {}

    def of(self, plan: Plan) -> Read:
        if isinstance(plan, Leaf):
            return plan.read
        if isinstance(plan, OptionalPlan):
            return optional_reader(self.of(plan.value), *branch_bytes(plan))
        if isinstance(plan, ArrayPlan):
            return array_reader(self.of(plan.item), plan.kept)
        if isinstance(plan, MapPlan):
            return map_reader(self.of(plan.value), plan.keys)
        if isinstance(plan, UnionPlan):
            return union_reader([self.of(branch) for branch in plan.branches])
        if isinstance(plan, DefaultPlan):
            make = plan.make
            return lambda _data, at: (make(), at)
        if plan not in self._made:
            if isinstance(plan, EnumPlan):
                self._made[plan] = enum_reader(plan.name, plan.symbols)
            else:
                self._record(plan)
        return self._made[plan]

    def _record(self, plan: RecordPlan) -> None:
        if plan.fields is None:
            self._made[plan] = refusing(f"{plan.name}: not resolved")
            return
        fields: list[_FieldRead] = []
        self._made[plan] = _record_reader(fields)  # before its fields, which may refer to it
        for name, value in plan.fields:
            if isinstance(value, OptionalPlan):
                fields.append((name, *branch_bytes(value), self.of(value.value)))
            else:
                fields.append((name, -1, -1, self.of(value)))


def _record_reader(fields: list[_FieldRead]) -> Read:
    def read_record(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        record: dict[str, Any] = {}
        for name, null, other, read in fields:
            # Nearly every field is an optional, so its branch is read here: a call less, for each.
            if other >= 0:
                branch = data[at]
                at += 1
                if branch != other:
                    if branch != null:
                        raise ValueError(_NO_BRANCH)
                    if name is not None:
                        record[name] = None
                    continue
            value, at = read(data, at)
            if name is not None:
                record[name] = value
        return record, at

    return read_record
