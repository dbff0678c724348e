"""Avro's time types: whole numbers of a unit, converted exactly and never through a float.

A timestamp is a count of units since 1970 in UTC, a local timestamp the same of a clock on the wall, a time
a count since midnight, a date a count of days. Conversion between units rounds down, so that an instant
never moves into the future.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from consumer.avro.schema import Logical

MILLIS: Final = 1_000
"""The unit, per second, of a time given as a whole number in NDJSON (docs/conversion.md)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MICROS: Final = 1_000_000
# `fromisoformat` takes almost any run of digits for a date; what people mean by ISO 8601 is narrower.
_DATE_AND_TIME: Final = re.compile(r"(?:\d{4}-\d\d-\d\d(?:[Tt ].+)?|\d{8}(?:[Tt].+)?)", re.ASCII)
_TIME_OF_DAY: Final = re.compile(r"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?", re.ASCII)


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
