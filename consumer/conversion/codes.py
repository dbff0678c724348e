"""The numbers that Python and the compiled modules share.

Theory of operation. `hatch_build.py` writes these enumerations into `constants.pxi`, which the `.pyx` files include,
with names such as ``WAY_TOTAL`` for `Way.TOTAL`: in C they have to be constants. It only reads this file.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The kind of an operation (`native/_slots.pxi`)."""

    TEXT = 0
    OPTIONAL = 1
    LONG = 2
    INT = 3
    BOOLEAN = 4
    ENUM = 5
    ITEMS = 6
    CALL = 7
    BYTES = 8
    MAKE = 9
    DOUBLE = 10
    FLOAT = 11
    FIXED = 12
    NULL_VALUE = 13
    ARRAY = 14
    MAP = 15
    RECORD = 16
    UNION = 17
    CONVERT = 18
    DECIMAL = 19
    KEYS = 20


class Way(IntEnum):
    """How the value of a field is made from the values in the record."""

    VALUE = 0  # the rule's answer for the one value
    FIRST = 1  # the rule's answer for the first usable value
    ALL = 2  # the rule's answers for all values
    DIGESTS = 3  # the different digests of all values
    TOTAL = 4  # the sum of all values

    # Faster ways to the same result, which only the compiled program takes.
    FLAG = 5  # `VALUE` of a boolean, which needs no call of its rule
    DIGEST = 6  # `DIGESTS` of a path that gives one value
    ONE_DIGEST = 7  # `DIGESTS` of an array, which nearly always holds one


class Usual(IntEnum):
    """The usual form of a value. A value of that form is converted without calling the rule (`native/_usual.pxi`)."""

    NOT_KNOWN = 0
    EMAIL = 1
    PHONE = 2
    LOWERED = 3
    AS_WRITTEN = 4
    DIGITS = 5
    ADDRESS = 6
    AMOUNT = 7
    WEB = 8
    TEXT = 9
    ORDER = 10
    NAME = 11
    CITY = 12
    BIRTHDAY = 13
    DAY = 14
