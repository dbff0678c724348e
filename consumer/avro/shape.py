"""Decoded values as Python's own, and back: what a function of the user's gets, and what it may return.

Theory of operation. A decoded record is plain Python already, but for its times, which are counts of a unit.
`Shape.give` makes them `datetime`, `date` and `time`. `Shape.take` fits what a function returned into the schema: the
exact types that a decoded record has, in objects of its own, so that nothing else holds them. None stands for any value
that is not there. What does not fit raises `Misfit`, which names fields and types, never a value.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from consumer.avro.fitting import Misfit
from consumer.avro.reading import MOST_ITEMS
from consumer.avro.schema import (
    Array,
    AvroType,
    Enum,
    Fixed,
    Logical,
    Map,
    Primitive,
    Record,
    Union,
    label,
)
from consumer.avro.values import INT_RANGE, LONG_RANGE, decimal_to_scale
from consumer.errors import nearest

# Of one record. A list may hold itself, or a thousand times the same list: what that takes must be bounded.
MOST_VALUES: Final = 200_000
MOST_CHARACTERS: Final = 16 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = datetime(1970, 1, 1)
_FIRST_DAY: Final = date(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_MICROS: Final = 1_000_000

_Change = Callable[[Any], Any]


class TooMuch(Exception):
    """The function returned more than one record may hold."""


class Shape:
    """How values of a schema are given to the function, and how what it returns becomes values of the schema again."""

    def __init__(self, root: AvroType) -> None:
        self._givers: dict[str, _Change] = {}
        self._takers: dict[str, _Change] = {}
        self._values = self._characters = 0
        self.give: _Change = self._giver(root) or (lambda value: value)
        self._take = self._taker(root)

    def take(self, record: Any) -> Any:
        """Return what the function returned as a record of the schema. Raises `Misfit` or `TooMuch`."""
        self._values = self._characters = 0
        return self._take(record)

    def _count(self, characters: int = 0) -> None:
        self._values += 1
        self._characters += characters
        if self._values > MOST_VALUES or self._characters > MOST_CHARACTERS:
            raise TooMuch

    # -- giving: only times change their type, so whatever holds none stays as it is

    def _giver(self, node: AvroType) -> _Change | None:
        if isinstance(node, Record):
            return self._give_record(node)
        if isinstance(node, Array):
            give_item = self._giver(node.items)
            return None if give_item is None else lambda items: [give_item(item) for item in items]
        if isinstance(node, Map):
            give_value = self._giver(node.values)
            if give_value is None:
                return None
            return lambda values: {key: give_value(value) for key, value in values.items()}
        if isinstance(node, Union):
            return self._give_union(node)
        logical = node.logical if isinstance(node, Primitive) else None
        return None if logical is None else _time_giver(logical)

    def _give_record(self, node: Record) -> _Change:
        if node.name in self._givers:
            return lambda value: self._givers[node.name](value)
        fields: list[tuple[str, _Change]] = []

        def give(record: dict[str, Any]) -> dict[str, Any]:
            for name, give_field in fields:
                # A decoder may leave out fields that were not asked for.
                if name in record:
                    record[name] = give_field(record[name])
            return record

        self._givers[node.name] = give  # before its fields, which may refer to it
        fields += [
            (each.name, give_field)
            for each in node.fields
            if (give_field := self._giver(each.type)) is not None
        ]
        return give

    def _give_union(self, node: Union) -> _Change | None:
        branches = [(each, self._giver(each)) for each in node.branches if each.kind != "null"]
        if all(give is None for _, give in branches):
            return None
        if len(branches) == 1:
            [(_, only)] = branches
            assert only is not None  # noqa: S101 - for the type checker
            return lambda value: None if value is None else only(value)

        def give(value: Any) -> Any:
            # Which branch it was is not known any more. If two fit, it stays as it is.
            fitting = [change for each, change in branches if _may_be(each, value)]
            return fitting[0](value) if len(fitting) == 1 and fitting[0] is not None else value

        return give

    # -- taking

    def _taker(self, node: AvroType) -> _Change:
        if isinstance(node, Record):
            return self._take_record(node)
        if isinstance(node, Array):
            return self._take_array(self._taker(node.items))
        if isinstance(node, Map):
            return self._take_map(self._taker(node.values))
        if isinstance(node, Union):
            return self._take_union(node)
        take_leaf = _leaf_taker(node)

        def take(value: Any) -> Any:
            taken = None if value is None else take_leaf(value)
            self._count(len(taken) if isinstance(taken, str | bytes) else 0)
            return taken

        return take

    def _take_record(self, node: Record) -> _Change:
        if node.name in self._takers:
            return lambda value: self._takers[node.name](value)
        fields: dict[str, _Change] = {}

        def take(value: Any) -> dict[str, Any] | None:
            self._count()
            if value is None:
                return None
            if not isinstance(value, dict):
                raise Misfit(f"expected a dict ({node.name})")
            for key in value:
                # A key may be made of the record's values: only names of the schema are shown.
                if key not in fields:
                    near = nearest(key, list(fields)) if isinstance(key, str) else None
                    hint = f" (the nearest is {near})" if near else ""
                    raise Misfit(
                        f"has a key that is no field of {node.name}{hint}: add the field to that schema"
                    )
            taken = {}
            for name, take_field in fields.items():
                try:
                    # None and a missing key mean the same: there is no value.
                    taken[name] = take_field(value.get(name))
                except Misfit as misfit:
                    misfit.path.append(name)
                    raise
            return taken

        self._takers[node.name] = take  # before its fields, which may refer to it
        fields.update({each.name: self._taker(each.type) for each in node.fields})
        return take

    def _take_array(self, take_item: _Change) -> _Change:
        def take(value: Any) -> list[Any] | None:
            self._count()
            if value is None:
                return None
            if not isinstance(value, list | tuple):
                raise Misfit("expected a list")
            if len(value) > MOST_ITEMS:
                raise Misfit(f"a list of more than {MOST_ITEMS:,} items")
            taken: list[Any] = []
            try:
                for item in value:
                    taken.append(take_item(item))  # noqa: PERF401 (its length tells which item is the misfit)
            except Misfit as misfit:
                misfit.path.append(f"[{len(taken)}]")
                raise
            return taken

        return take

    def _take_map(self, take_value: _Change) -> _Change:
        def take(value: Any) -> dict[str, Any] | None:
            self._count()
            if value is None:
                return None
            if not isinstance(value, dict):
                raise Misfit("expected a dict")
            taken = {}
            try:
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise Misfit("expected text as keys")
                    self._count(len(key))
                    taken[str(key)] = take_value(item)
            except Misfit as misfit:
                misfit.path.append("*")  # a map's keys are data
                raise
            return taken

        return take

    def _take_union(self, node: Union) -> _Change:
        branches = [(each, self._taker(each)) for each in node.branches if each.kind != "null"]
        if len(branches) == 1:
            return branches[0][1]
        expected = f"expected one of: {', '.join(label(each) for each in node.branches)}"

        def take(value: Any) -> Any:
            # First those that it may have been before: 5 of a long must not become 5.0 of a double. What is tried in
            # vain counts, too: unions within unions must not multiply.
            for _, take_branch in sorted(branches, key=lambda one: not _may_be(one[0], value)):
                try:
                    return take_branch(value)
                except Misfit:
                    continue
            raise Misfit(expected)

        return take


def _may_be(node: AvroType, value: Any) -> bool:
    """Return True if a decoded value may be of this branch of a union."""
    if isinstance(node, Record):
        return isinstance(value, dict) and value.keys() <= {each.name for each in node.fields}
    logical = node.logical if isinstance(node, Primitive | Fixed) else None
    kind = "decimal" if logical is not None and logical.family == "decimal" else node.kind
    if logical is not None and logical.family == "uuid":
        kind = "string"
    return isinstance(value, _DECODED[kind]) and (kind == "boolean" or not isinstance(value, bool))


_DECODED: Final[dict[str, type]] = {
    "null": type(None),
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "string": str,
    "enum": str,
    "bytes": bytes,
    "fixed": bytes,
    "decimal": Decimal,
    "array": list,
    "map": dict,
}


def _time_giver(logical: Logical) -> _Change | None:
    """Return what makes a `datetime`, `date` or `time` of a count; None for other types, and for nanoseconds.

    A count beyond the year 9999, which a record may hold, stays a number.
    """
    per_second = logical.per_second
    if logical.family == "date":
        return lambda days: _within(lambda: _FIRST_DAY + timedelta(days=days), days)
    if not 0 < per_second <= _MICROS:
        return None  # Python's times have no nanoseconds: to round them is the function's choice
    factor = _MICROS // per_second
    if logical.family == "time":
        return lambda count: _within(lambda: (_NAIVE_EPOCH + _MICROSECOND * (count * factor)).time(), count)
    epoch = _EPOCH if logical.family == "timestamp" else _NAIVE_EPOCH
    return lambda count: _within(lambda: epoch + _MICROSECOND * (count * factor), count)


def _within(make: Callable[[], Any], count: int) -> Any:
    try:
        return make()
    except OverflowError:
        return count


def _leaf_taker(node: AvroType) -> _Change:
    logical = node.logical if isinstance(node, Primitive | Fixed) else None
    if logical is not None and (logical.per_second or logical.family == "date"):
        return _time_taker(logical, INT_RANGE if node.kind == "int" else LONG_RANGE)
    if logical is not None and logical.family == "decimal":
        return _decimal_taker(logical)
    if logical is not None and logical.family == "uuid":
        return _take_text
    if isinstance(node, Enum):
        return _enum_taker(node)
    if isinstance(node, Fixed):
        return _bytes_taker(node.size)
    return _TAKERS[node.kind]


def _time_taker(logical: Logical, bounds: range) -> _Change:
    wanted = {
        "date": "a date",
        "time": "a time without a zone",
        "timestamp": "a datetime with a zone, such as tzinfo=UTC",
        "local-timestamp": "a datetime without a zone",
    }[logical.family]
    wanted += f", or a whole number ({logical.name})"

    def take(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            count = int(value)
        elif logical.family == "date" and isinstance(value, date) and not isinstance(value, datetime):
            count = (value - _FIRST_DAY).days
        elif logical.family == "time" and isinstance(value, time) and value.tzinfo is None:
            since = datetime.combine(_FIRST_DAY, value) - _NAIVE_EPOCH
            count = since // _MICROSECOND * logical.per_second // _MICROS
        elif (
            logical.family.endswith("timestamp")
            and isinstance(value, datetime)
            and (value.utcoffset() is not None) == (logical.family == "timestamp")
        ):
            since = value - (_EPOCH if logical.family == "timestamp" else _NAIVE_EPOCH)
            # Rounded down: an instant never moves into the future.
            count = since // _MICROSECOND * logical.per_second // _MICROS
        else:
            raise Misfit(f"expected {wanted}")
        if count not in bounds:
            raise Misfit(f"expected {wanted}; this one is too far off")
        return count

    return take


def _decimal_taker(logical: Logical) -> _Change:
    wanted = (
        f"expected a Decimal of at most {logical.precision} digits, {logical.scale} of them after the point"
    )

    def take(value: Any) -> Decimal:
        # A float has lost the exact amount already, and True is no amount.
        if isinstance(value, bool) or not isinstance(value, Decimal | int):
            raise Misfit(wanted)
        try:
            return decimal_to_scale(Decimal(value), logical)
        except (ValueError, ArithmeticError):
            raise Misfit(f"{wanted} (quantize rounds)") from None

    return take


def _enum_taker(node: Enum) -> _Change:
    def take(value: Any) -> str:
        text = _take_text(value)
        if text not in node.symbols:
            raise Misfit(f"expected a symbol of {node.name}")
        return text

    return take


def _bytes_taker(size: int | None) -> _Change:
    def take(value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray) or (size is not None and len(value) != size):
            raise Misfit("expected bytes" if size is None else f"expected {size} bytes")
        return bytes(value)

    return take


def _whole_taker(bounds: range) -> _Change:
    def take(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value not in bounds:
            raise Misfit(f"expected a whole number of {bounds.stop.bit_length()} bits")
        return int(value)

    return take


def _take_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Misfit("expected text")
    # The exact type: what a subclass does later is not known here.
    text = str.__str__(value)
    # Python's text may be what no UTF-8 holds, and so neither Avro nor JSON.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Misfit("expected text, found half of a surrogate pair") from None
    return text


def _take_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit("expected a number")
    return float(value)


def _take_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Misfit("expected True or False")
    return value


def _take_null(_value: Any) -> None:
    raise Misfit("expected None")


_TAKERS: Final[dict[str, _Change]] = {
    "null": _take_null,
    "boolean": _take_flag,
    "int": _whole_taker(INT_RANGE),
    "long": _whole_taker(LONG_RANGE),
    "float": _take_number,
    "double": _take_number,
    "bytes": _bytes_taker(None),
    "string": _take_text,
}
