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


class Glance(IntEnum):
    """How the program writes a field from its slot, without a Python object, if the value is canonical or remembered
    (`native/_glance.pxi`)."""

    ASKED = 0  # not at all
    TEXT = 1  # text as it is
    HASHED = 2  # an array of one digest
    ONE_HASHED = 3  # the same, for an array that mostly holds one text
    KNOWN_TEXT = 4  # the JSON that was written for the same text before
    TRUE_FALSE = 5


class Canonical(IntEnum):
    """The canonical form of a value. A value of that form is converted without calling the rule
    (`native/_canonical.pxi`)."""

    NOT_KNOWN = 0
    # Sent as it is.
    ADDRESS = 1
    AMOUNT = 2
    WEB = 3
    ORDER = 4
    TEXT = 5
    # Hashed.
    EMAIL = 6
    PHONE = 7
    LOWERED = 8
    AS_WRITTEN = 9
    DIGITS = 10
    NAME = 11
    CITY = 12
    BIRTHDAY = 13
    DAY = 14
