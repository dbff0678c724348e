"""Exact amounts of money and of things.

Theory of operation. An amount arrives as text, ``int``, ``Decimal`` or ``float``; a float counts as its shortest
decimal (its ``repr``), which is what its author saw. All four become text, one pattern splits the text, and an exponent
is resolved by moving the point within the digits. Trailing zeros stay: ``129.970`` is sent as it is written.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from consumer.conversion.normalise import Omitted, trimmed_text

# Most digits on either side of the point. The platform reads an amount into a double, which holds 17.
MAX_DIGITS = 64

MAX_COUNT = 2**63 - 1  # the API's counts are int64

# The form of nearly all amounts, which are sent as they are written.
_is_plain = re.compile(r"(?:[1-9][0-9]{0,63}+|0)(?:\.[0-9]{1,64}+)?+").fullmatch
# Doubles between these are written without an exponent.
_LEAST_PLAIN, _MAX_PLAIN = 1e-4, 1e15
# A sign, digits around a point, and a power of ten; no grouping, since 1,234 means two things.
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<power>[+-]?[0-9]{1,4}))?"
)
# Most characters of an amount's text: longer ones are malformed.
_LONGEST = 256


def _number(value: Any) -> str | Omitted:
    """Return the number as decimal text without an exponent; only one below zero begins with a minus."""
    if isinstance(value, str) and len(value) > _LONGEST:
        return Omitted.MALFORMED
    # The shortest decimal of a float is its `repr`, which keeps the zero of 2.0.
    text = repr(value) if isinstance(value, float) else trimmed_text(value)
    if not isinstance(text, str):
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        return Omitted.MALFORMED
    whole, part, power = match["whole"], match["part"] or "", int(match["power"] or 0)
    digits = whole + part
    point = len(whole) + power
    places = len(digits) - point
    # Checked before the exponent is expanded: 1e999999 is short.
    if not digits or abs(point) > MAX_DIGITS or abs(places) > MAX_DIGITS:
        return Omitted.MALFORMED
    # Minus zero is zero: it refuses nothing.
    sign = "-" if match["sign"] == "-" and digits.strip("0") else ""
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    size, part = digits[:point].ljust(point, "0").lstrip("0") or "0", digits[point:]
    return f"{sign}{size}.{part}" if part else sign + size


def exact(value: Any) -> Decimal | Omitted:
    """Return the number, of either sign, with all its places; or `Omitted.BLANK` or `Omitted.MALFORMED`."""
    # The fast path: plain integers are not split: a sum calls this for each of its operands.
    kind = value.__class__
    if kind is Decimal:
        if value.is_finite() and abs(value.adjusted()) < MAX_DIGITS:
            # Zero has no sign, as in an amount.
            return value or value.copy_abs()  # type: ignore[no-any-return]  # mypy does not follow `kind`
    elif kind is int:
        if -MAX_COUNT <= value <= MAX_COUNT:
            return Decimal(value)
    elif kind is float:
        if _LEAST_PLAIN <= abs(value) < _MAX_PLAIN or not value:
            return Decimal(repr(value or 0.0))
    elif kind is str and _is_plain(value):
        return Decimal(value)
    number = _number(value)
    return number if isinstance(number, Omitted) else Decimal(number)


def amount(value: Any) -> str | Omitted:
    """Return the amount as decimal text, digits and at most one point; or `Omitted.BLANK` or `Omitted.MALFORMED`.

    Everything but a finite decimal number of zero or more, without grouping, is malformed.
    """
    # Sent as it is written, without splitting it.
    if value.__class__ is str and _is_plain(value):
        return value
    number = _number(value)
    return number if isinstance(number, Omitted) or number[0] != "-" else Omitted.MALFORMED


def is_zero(text: str) -> bool:
    """Return whether an amount's text means zero. Zero is sent, with a warning."""
    return text[0] == "0" and not text.strip("0.")


def count(value: Any) -> int | Omitted | None:
    """Return a whole number of things, 0 to `MAX_COUNT`; None if it is negative, which refuses the event.

    ``2``, ``"2"``, ``2.0`` and ``Decimal("2.00")`` are all two; one and a half is `Omitted.MALFORMED`.
    """
    if value.__class__ is int and 0 <= value <= MAX_COUNT:
        return int(value)
    number = _number(value)
    if isinstance(number, Omitted):
        return number
    # A return must not become a purchase: the caller refuses the event.
    if number[0] == "-":
        return None
    whole, _, part = number.partition(".")
    things = int(whole)
    # Half a thing is malformed; 2.0 is two.
    return things if not part.strip("0") and things <= MAX_COUNT else Omitted.MALFORMED
