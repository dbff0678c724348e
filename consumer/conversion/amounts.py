"""Amounts of money and of things, exact: never through a float, never rounded.

Theory of operation. An amount arrives as text, ``int``, ``Decimal`` or ``float``; a float is taken as the
shortest decimal that means it (its ``repr``), which is what whoever wrote it saw. All four become text, one
pattern takes the text apart, and an exponent is resolved by moving the point within the digits. Trailing
zeros stay: ``129.970`` is sent as it is written. Digits are bounded before anything is expanded, so
``1e999999`` costs nothing.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from consumer.conversion.normalise import LeftOut, trim

MAX_DIGITS = 64
"""Most digits on either side of the point. A double, what the platform reads it into, holds 17."""

MAX_COUNT = 2**63 - 1
"""The API's counts are int64."""

_is_plain = re.compile(r"(?:[1-9][0-9]{0,63}+|0)(?:\.[0-9]{1,64}+)?+").fullmatch
"""What nearly all amounts look like: sent as they are written."""
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<power>[+-]?[0-9]{1,4}))?"
)
_LONGEST = 256


def _text(value: Any) -> str | LeftOut:
    """`value` as it would be written down; blank text is `LeftOut.BLANK`."""
    if isinstance(value, str):
        return (trim(value) or LeftOut.BLANK) if len(value) <= _LONGEST else LeftOut.MALFORMED
    if value is None:
        return LeftOut.BLANK
    if isinstance(value, bool):
        return LeftOut.MALFORMED
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _LONGEST else LeftOut.MALFORMED
    if isinstance(value, float | Decimal):
        written = repr(value) if isinstance(value, float) else str(value)
        return written if len(written) <= _LONGEST else LeftOut.MALFORMED
    return LeftOut.MALFORMED


def _number(value: Any) -> tuple[bool, str] | LeftOut:
    """Whether the number is below zero, and its size as decimal text."""
    text = _text(value)
    if not isinstance(text, str):
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        return LeftOut.MALFORMED
    whole, part, power = match["whole"], match["part"] or "", int(match["power"] or 0)
    digits = whole + part
    point = len(whole) + power
    places = len(digits) - point
    if not digits or abs(point) > MAX_DIGITS or abs(places) > MAX_DIGITS:
        return LeftOut.MALFORMED
    return match["sign"] == "-" and bool(digits.strip("0")), _placed(digits, point)


def amount(value: Any) -> str | LeftOut:
    """The amount as decimal text: digits and at most one point; or `LeftOut.BLANK` or `LeftOut.MALFORMED`.

    Malformed is all that is not a finite, ungrouped decimal number of zero or more.
    """
    if value.__class__ is str and _is_plain(value):
        return value
    number = _number(value)
    if isinstance(number, LeftOut):
        return number
    negative, size = number
    return LeftOut.MALFORMED if negative else size


def _placed(digits: str, point: int) -> str:
    """`digits` with the decimal point after the first `point` of them, zeros where there are none."""
    if point <= 0:
        return f"0.{'0' * -point}{digits}"
    whole, part = digits[:point].ljust(point, "0").lstrip("0") or "0", digits[point:]
    return f"{whole}.{part}" if part else whole


def is_zero(text: str) -> bool:
    """Whether an amount's text means zero; zero is sent, and counted."""
    return text[0] == "0" and not text.strip("0.")


def count(value: Any) -> int | LeftOut | None:
    """A whole number of things, 0 to `MAX_COUNT`; None if it is negative, which refuses the event.

    ``2``, ``"2"``, ``2.0`` and ``Decimal("2.00")`` are all two; one and a half is `LeftOut.MALFORMED`.
    """
    if value.__class__ is int and 0 <= value <= MAX_COUNT:
        return int(value)
    number = _number(value)
    if isinstance(number, LeftOut):
        return number
    negative, size = number
    if negative:
        return None
    whole, _, part = size.partition(".")
    things = int(whole)
    return things if not part.strip("0") and things <= MAX_COUNT else LeftOut.MALFORMED
