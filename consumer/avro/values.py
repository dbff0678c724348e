"""Decimals, UUIDs and times.

Times are whole numbers of a unit, converted exactly and never through a float. A timestamp counts units since 1970
in UTC; a local timestamp counts them in the time of some zone that it does not name; a time counts them since midnight;
a date counts days since 1970.
Conversion between units rounds down, so that an instant never moves into the future.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final
from uuid import UUID

from consumer.avro.schema import MAX_DECIMAL_PRECISION, Fixed, Logical, Primitive

INT_RANGE: Final = range(-(2**31), 2**31)
LONG_RANGE: Final = range(-(2**63), 2**63)
# The unit, per second, of a time given as a whole number in NDJSON (docs/conversion.md).
MILLIS: Final = 1_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROS: Final = 1_000_000  # of a second, the unit of Python's own times
# `fromisoformat` takes almost any run of digits for a date; what people mean by ISO 8601 is narrower.
_DATE_AND_TIME: Final = re.compile(r"(?:\d{4}-\d\d-\d\d(?:[Tt ].+)?|\d{8}(?:[Tt].+)?)", re.ASCII)
_TIME_OF_DAY: Final = re.compile(r"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?", re.ASCII)
# Wide enough for every decimal that is read; what would be rounded raises.
_EXACT: Final = Context(prec=MAX_DECIMAL_PRECISION * 2, traps=[InvalidOperation, Inexact])


class DecimalReader:
    """Converts big-endian two's-complement bytes to a decimal; raises `ValueError` beyond the precision."""

    __slots__ = ("_bound", "precision", "scale")

    def __init__(self, logical: Logical) -> None:
        self.precision, self.scale = logical.precision, logical.scale
        self._bound = 10**logical.precision

    def __call__(self, data: bytes) -> Decimal:
        """Return the decimal of `data`, which has any length; no bytes are zero."""
        # The bytes may hold any number, also one with more digits than the precision allows.
        unscaled = int.from_bytes(data, "big", signed=True)
        if not -self._bound < unscaled < self._bound:
            raise ValueError("more digits than the decimal's precision")
        return Decimal(unscaled).scaleb(-self.scale, _EXACT)


def decimal_to_scale(value: Decimal, logical: Logical) -> Decimal:
    """Return the number with the logical type's scale. Raises `ValueError` if that is not exact, or too long."""
    # Checked first, because quantizing 1E+999999 would take all memory.
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
    """Return the bytes of a decimal: as few as it needs, or exactly `size` of a fixed. Raises `ValueError`."""
    unscaled = int(decimal_to_scale(value, logical).scaleb(logical.scale, _EXACT))
    # Two's complement: one bit for the sign, and one negative value more than positive ones.
    needed = (unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1
    if size is not None and needed > size:
        raise ValueError("more digits than the fixed type holds")
    return unscaled.to_bytes(size or needed, "big", signed=True)


def from_bytes(node: Fixed | Primitive) -> Callable[[bytes], Any] | None:
    """Return a function that makes bytes the value of the logical type of a ``bytes`` or ``fixed``; None: it
    has none."""
    logical = node.logical
    # Numbers keep their count, and a UUID that is text is text.
    if logical is None or node.kind not in ("bytes", "fixed"):
        return None
    return DecimalReader(logical) if logical.family == "decimal" else lambda data: str(UUID(bytes=data))


def rescaled(count: int, per_second: int, new_per_second: int) -> int:
    """Return `count` units, of which `per_second` make a second, in the new units, rounded down."""
    return count * new_per_second // per_second


def from_text(text: str, logical: Logical) -> int:
    """Return ISO 8601 text as a count of the logical type's unit; without an offset it is UTC.

    Raises `ValueError` for anything else.
    """
    if logical.family == "time":
        if not _TIME_OF_DAY.fullmatch(text):
            raise ValueError("not a time of day")
        # Counted from the midnight of the first day, which is 0.
        moment = datetime.combine(_EPOCH, time.fromisoformat(text), tzinfo=UTC)
    elif _DATE_AND_TIME.fullmatch(text):
        moment = datetime.fromisoformat(text.upper())
    else:
        raise ValueError("not ISO 8601")
    if moment.tzinfo is None or logical.family != "timestamp":
        # Dates and local timestamps are wall-clock values: the offset is not part of them.
        moment = moment.replace(tzinfo=UTC)
    return count_of(moment - _EPOCH, logical)


def count_of(since: timedelta, logical: Logical) -> int:
    """Return the time since a logical type's first moment as a count of its unit (days for dates), rounded down."""
    if not logical.per_second:
        return since.days
    return rescaled(since // timedelta(microseconds=1), MICROS, logical.per_second)
