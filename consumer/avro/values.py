"""Values that take more than their bytes say: decimals, UUIDs, times, and the defaults of a schema.

Times are whole numbers of a unit, converted exactly and never through a float. A timestamp is a count of units since
1970 in UTC, a local timestamp the same of a clock on the wall, a time a count since midnight, a date a count of days.
Conversion between units rounds down, so that an instant never moves into the future.

A default is written in JSON ("Complex Types", table of field default values): bytes as text of the code
points 0 to 255, a union's as a value of any of its branches (since 1.12; before, of the first), a record's
with its own fields' defaults filled in. `default_factory` checks it once and then makes a fresh value per
record, since events are mutable.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final
from uuid import UUID

from consumer.avro.schema import (
    MAX_DECIMAL_PRECISION,
    NO_DEFAULT,
    Array,
    AvroType,
    Enum,
    Field,
    Fixed,
    InvalidSchema,
    Json,
    Logical,
    Map,
    Primitive,
    Record,
    Union,
)

INT_RANGE: Final = range(-(2**31), 2**31)
LONG_RANGE: Final = range(-(2**63), 2**63)
MILLIS: Final = 1_000
"""The unit, per second, of a time given as a whole number in NDJSON (docs/conversion.md)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MICROS: Final = 1_000_000
# `fromisoformat` takes almost any run of digits for a date; what people mean by ISO 8601 is narrower.
_DATE_AND_TIME: Final = re.compile(r"(?:\d{4}-\d\d-\d\d(?:[Tt ].+)?|\d{8}(?:[Tt].+)?)", re.ASCII)
_TIME_OF_DAY: Final = re.compile(r"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?", re.ASCII)
_EXACT: Final = Context(prec=MAX_DECIMAL_PRECISION * 2, traps=[InvalidOperation, Inexact])


class DecimalReader:
    """Gives the decimal of big-endian two's-complement bytes; raises `ValueError` beyond the precision."""

    __slots__ = ("_bound", "precision", "scale")

    def __init__(self, logical: Logical) -> None:
        self.precision, self.scale = logical.precision, logical.scale
        self._bound = 10**logical.precision

    def __call__(self, data: bytes) -> Decimal:
        """`data` has any length; none at all is zero."""
        unscaled = int.from_bytes(data, "big", signed=True)
        if not -self._bound < unscaled < self._bound:
            raise ValueError("more digits than the decimal's precision")
        return Decimal(unscaled).scaleb(-self.scale, _EXACT)


def decimal_to_scale(value: Decimal, logical: Logical) -> Decimal:
    """The same number with the logical type's scale. Raises `ValueError` if that is not exact, or too long."""
    if not value.is_finite() or value.adjusted() > logical.precision:
        raise ValueError("not a number of the decimal's precision")
    try:
        scaled = value.quantize(Decimal(1).scaleb(-logical.scale), context=_EXACT)
    except (InvalidOperation, Inexact):
        raise ValueError("more digits than the decimal's scale") from None
    if abs(scaled) >= Decimal(1).scaleb(logical.precision - logical.scale):
        raise ValueError("more digits than the decimal's precision")
    return scaled


def decimal_to_bytes(value: Decimal, logical: Logical, size: int | None) -> bytes:
    """The bytes of a decimal: as few as it needs, or exactly `size` of a fixed. Raises `ValueError`."""
    unscaled = int(decimal_to_scale(value, logical).scaleb(logical.scale, _EXACT))
    needed = (unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1
    if size is not None and needed > size:
        raise ValueError("more digits than the fixed type holds")
    return unscaled.to_bytes(size or needed, "big", signed=True)


def uuid_text(data: bytes) -> str:
    """The usual text of a UUID's 16 bytes."""
    return str(UUID(bytes=data))


def from_bytes(node: Fixed | Primitive) -> Callable[[bytes], Any] | None:
    """How the bytes of a ``bytes`` or ``fixed`` become the value its logical type stands for, if they do."""
    logical = node.logical
    if logical is None or node.kind not in ("bytes", "fixed"):
        return None
    if logical.family == "decimal":
        return DecimalReader(logical)
    return uuid_text


def default_factory(owner: Field) -> Callable[[], Any] | None:
    """What makes the field's default value, or ``None`` if it has none.

    Raises `InvalidSchema` if the default is not a value of the field's type.
    """
    if owner.default is NO_DEFAULT:
        return None
    try:
        value = _value(owner.type, owner.default)
    except (ValueError, RecursionError):
        raise InvalidSchema(f"the default of field {owner.name} is not a value of its type") from None
    if isinstance(value, list | dict):
        return (lambda: copy.deepcopy(value)) if value else type(value)
    return lambda: value


def _value(node: AvroType, json: Json) -> Any:
    """The value that a default's JSON stands for. Raises `ValueError`."""
    if isinstance(node, Union):
        return _value_of_union(node, json)
    if isinstance(node, Record):
        return _value_of_record(node, json)
    if isinstance(node, Array) and isinstance(json, list):
        return [_value(node.items, item) for item in json]
    if isinstance(node, Map) and isinstance(json, dict):
        return {key: _value(node.values, item) for key, item in json.items()}
    if isinstance(node, Enum) and json in node.symbols:
        return json
    if isinstance(node, Fixed | Primitive):
        return _value_of_leaf(node, json)
    raise ValueError(node.kind)


def _value_of_union(node: Union, json: Json) -> Any:
    for branch in node.branches:
        try:
            return _value(branch, json)
        except ValueError:
            continue
    raise ValueError(node.kind)


def _value_of_record(node: Record, json: Json) -> dict[str, Any]:
    if not isinstance(json, dict):
        raise ValueError(node.name)
    values = {each.name: json.get(each.name, each.default) for each in node.fields}
    return {each.name: _value(each.type, values[each.name]) for each in node.fields}


def _value_of_leaf(node: Fixed | Primitive, json: Json) -> Any:
    if node.kind in ("bytes", "fixed") and isinstance(json, str):
        data = json.encode("latin-1")
        if isinstance(node, Fixed) and len(data) != node.size:
            raise ValueError(node.name)
        convert = from_bytes(node)
        return convert(data) if convert else data
    if node.kind in ("float", "double") and type(json) in (int, float):
        return float(json)
    if not _LEAF_CHECKS.get(node.kind, _never)(json):
        raise ValueError(node.kind)
    return json


def _never(_json: Json) -> bool:
    return False


_LEAF_CHECKS: Final[dict[str, Callable[[Json], bool]]] = {
    "null": lambda json: json is None,
    "boolean": lambda json: type(json) is bool,
    "int": lambda json: type(json) is int and json in INT_RANGE,
    "long": lambda json: type(json) is int and json in LONG_RANGE,
    "string": lambda json: type(json) is str,
}


def rescaled(count: int, per_second: int, new_per_second: int) -> int:
    """`count` units of `per_second` as units of `new_per_second`, rounded down."""
    return count * new_per_second // per_second


def from_text(text: str, logical: Logical) -> int:
    """ISO 8601 text as a count of the logical type's unit; without an offset it is UTC.

    Raises `ValueError` for anything else.
    """
    if logical.family == "time":
        if not _TIME_OF_DAY.fullmatch(text):
            raise ValueError("not a time of day")
        return from_time(time.fromisoformat(text), logical)
    if not _DATE_AND_TIME.fullmatch(text):
        raise ValueError("not ISO 8601")
    return from_datetime(datetime.fromisoformat(text.upper()), logical)


def from_datetime(moment: datetime, logical: Logical) -> int:
    """A `datetime` as a count of the logical type's unit; a naive one is UTC. A date cuts the time off."""
    if moment.tzinfo is None or logical.family != "timestamp":
        # Dates and local timestamps are what the wall shows: its offset is not part of them.
        moment = moment.replace(tzinfo=UTC)
    micros = (moment - _EPOCH) // _MICROSECOND
    if logical.family == "date":
        return micros // (86_400 * _MICROS)
    return rescaled(micros, _MICROS, logical.per_second)


def from_time(moment: time, logical: Logical) -> int:
    """A time of day as a count of the logical type's unit since midnight."""
    seconds = moment.hour * 3600 + moment.minute * 60 + moment.second
    return rescaled(seconds * _MICROS + moment.microsecond, _MICROS, logical.per_second)


def count_of(value: object, logical: Logical) -> object:
    """What Python holds of a time (ISO 8601 text, `datetime`, `date`, `time`) as a count; a count stays.

    Raises `ValueError` for text that is no time of this type.
    """
    if isinstance(value, str):
        return from_text(value, logical)
    if isinstance(value, datetime):
        return from_datetime(value, logical)
    if isinstance(value, date):
        return from_datetime(datetime(value.year, value.month, value.day, tzinfo=UTC), logical)
    if isinstance(value, time):
        return from_time(value, logical)
    return value
