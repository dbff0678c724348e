"""From a line of NDJSON to a commerce event.

The contract ("explain FILE"): union values are bare, missing fields take the schema's default, times are
milliseconds or ISO 8601 text. The other rules follow what people write by hand or export from other systems:

* A number never passes through a float: it keeps its literal, so 27.50 is the text ``27.50`` where the schema
  says string, and the exact decimal where it says decimal. Text is never taken for a number or a boolean.
* Unknown fields are ignored, as resolution drops the fields that only a writer has. Aliases are accepted.
* ``date`` is a count of days or ISO 8601; a time of day is milliseconds or ``hh:mm[:ss]``.
* bytes are text of the code points 0 to 255, as in Avro's JSON encoding; its tagged unions
  (``{"string": "x"}``) are accepted where the bare reading is impossible, or a record's name is the tag.
* What the record has in Kafka may stand beside its fields, under the names of a mapping: ``"@header.ce_type": "paid"``.

The verdict on a line that does not fit names path and type, but no value, and no key that the schema does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, Final, NoReturn

from consumer.avro.decode import MAX_RECORD_BYTES, Choice, DecodeCode, rejected
from consumer.avro.fitting import (
    Fit,
    Fitter,
    Misfit,
    Number,
    TooMuch,
    fit_decimal,
    fit_text,
    misfit,
    python_leaf,
)
from consumer.avro.paths import ORIGIN
from consumer.avro.schema import AvroType, Fixed, Logical, Primitive, parse
from consumer.avro.values import (
    MILLIS,
    decimal_to_scale,
    from_bytes,
    from_text,
    rescaled,
)
from consumer.engine.model import CommerceEvent, Filtered, Rejection, SectionEvent

MAX_LINE_BYTES: Final = MAX_RECORD_BYTES
# Milliseconds since 1970 of the years 1 to 9999.
_CALENDAR: Final = range(-62_135_596_800_000, 253_402_300_800_000)
_MAX_WHOLE_DIGITS: Final = 20  # of a 64-bit number with its sign


class LinePlan:
    """Our schemas, compiled for `parse_line`: lines of the record types that `choice` reads on a topic.

    A line may name its type as in Avro's JSON encoding of a union, ``{"com.shop.Order": {…}}``. If it does not, it is
    of the type `named`; without that, of the type that it fits best, like a bare value of a union. Raises
    `InvalidSchema`, a `ValueError`.
    """

    def __init__(self, choice: Choice, topic: str | None = None, named: str | None = None) -> None:
        self._choice, self.topic, self._named = choice, topic, named
        # By the number of our schema.
        self._types: dict[int, tuple[AvroType, Fit]] = {}
        for record in choice.records:
            chosen = choice.choose(record, topic)
            if isinstance(chosen, int):
                node = parse(choice.all[chosen - 1].schema)
                self._types[chosen] = node, Fitter(node, _leaf).fit

    def fit(self, document: dict[str, Any]) -> CommerceEvent | Rejection | Filtered:
        """Return the event of a line's object, or why there is none. Raises `Misfit` and `TooMuch`."""
        if len(document) == 1:
            [(tag, inner)] = document.items()
            # No field has a dot in its name: this key is a type. An unknown type is refused if types are distinguished.
            is_type = self._choice.typed or tag in self._choice.records
            if type(inner) is dict and "." in tag and is_type:
                return self._fitted(self._choice.choose(tag, self.topic), inner)
        if self._named is not None:
            return self._fitted(self._choice.choose(self._named, self.topic), document)
        return self._bare(document)

    def _fitted(
        self, chosen: int | Rejection | Filtered, document: Any
    ) -> CommerceEvent | Rejection | Filtered:
        if not isinstance(chosen, int):
            return chosen
        _, fit = self._types[chosen]
        return SectionEvent.of(chosen, fit(document))

    def _bare(self, document: dict[str, Any]) -> CommerceEvent | Rejection | Filtered:
        if len(self._types) == 1:
            return self._fitted(next(iter(self._types)), document)
        rated = sorted((misfit(node, document), number) for number, (node, _) in self._types.items())
        fitting: list[CommerceEvent | Rejection | Filtered] = []
        best = math.inf
        for rating, number in rated:
            # A type that fits worse than another is not meant; of equals none is preferred.
            if rating > best:
                break
            try:
                fitting.append(self._fitted(number, document))
                best = rating
            except Misfit:
                continue
        if len(fitting) == 1:
            return fitting[0]
        names = self._choice.records  # there may be hundreds: the first ones show what a name is like
        fits = "more than one of the record types" if fitting else "none of the record types"
        raise Misfit(
            f'it fits {fits} {", ".join(names[:5])}: write {{"{names[0]}": {{…}}}}, or name the type of all lines with '
            "--record"
        )


def parse_line(line: bytes, plan: LinePlan) -> CommerceEvent | Rejection | Filtered:
    """Return the event of one line, in the shape of the plan's schema, or why it does not fit."""
    # Checked before parsing, because the parser takes many times the line's bytes.
    if len(line) > MAX_LINE_BYTES:
        return rejected(DecodeCode.TOO_LARGE, f"the line is larger than {MAX_LINE_BYTES >> 20} MiB")
    try:
        # Editors of Windows put a byte-order mark in front.
        document = json.loads(
            line.decode("utf-8-sig"), parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
        )
        if type(document) is not dict:
            return rejected(
                DecodeCode.NOT_AN_OBJECT,
                "the line is JSON, but not an object: write each record as one object on one line",
            )
        origin = _origin(document, plan.topic)
        event = plan.fit(document)
        if origin and isinstance(event, dict):
            event[ORIGIN] = origin
        return event
    except Misfit as error:
        return rejected(DecodeCode.MISFIT, error.described("the line"))
    except (RecursionError, TooMuch):
        return rejected(DecodeCode.TOO_LARGE, "the line is nested too deeply")
    # These two are ValueErrors, so they come before it.
    except json.JSONDecodeError as error:
        # The parser's message holds no data; the text of its exception does.
        why = f"the line is not JSON ({error.msg}, column {error.colno}): write each record on one line"
        return rejected(DecodeCode.NOT_JSON, why)
    except UnicodeDecodeError:
        return rejected(DecodeCode.NOT_JSON, "the line is not JSON (not UTF-8)")
    except ValueError:
        return rejected(DecodeCode.NOT_JSON, "the line is not JSON (NaN and Infinity are not JSON)")


def _origin(document: dict[str, Any], topic: str | None) -> dict[str, Any]:
    """Take what the record has in Kafka out of a line's object, and return it; `topic` is that of all lines."""
    origin: dict[str, Any] = {} if topic is None else {"topic": topic}
    for key in [one for one in document if one.startswith(ORIGIN)]:
        name, _, rest = key.removeprefix(ORIGIN).partition(".")
        if (value := document.pop(key)) is None or name not in _ORIGIN:
            continue
        try:
            fitted = _ORIGIN[name](value)
        except Misfit as error:
            error.path.append(key)
            raise
        origin[name] = {**origin.get(name, {}), rest: fitted} if name == "header" else fitted
    return origin


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError


def _leaf(node: Primitive | Fixed) -> Fit:
    logical, fit = node.logical, python_leaf(node)
    if logical is not None and (logical.per_second or logical.family == "date"):
        return _time(logical, fit)
    if logical is not None and logical.family == "decimal":
        expected = f"expected a decimal of {logical.precision} digits, {logical.scale} behind the point"
        # Text is accepted, too: exports quote amounts, so that no reader makes floats of them.
        return fit_decimal((str,), partial(decimal_to_scale, logical=logical), expected)
    from_json, of_logical = _FROM_JSON.get(node.kind), from_bytes(node)

    def leaf(value: Any) -> Any:
        fitted = fit(value if from_json is None else from_json(value))
        return of_logical(fitted) if of_logical else fitted

    return leaf


def _time(logical: Logical, fit_count: Fit) -> Fit:
    expected = (
        "whole milliseconds or ISO 8601 text" if logical.per_second else "an ISO 8601 date or whole days"
    )

    def fit(value: Any) -> Any:
        if type(value) is Number:
            count = _whole(value)
            # In JSON, times are milliseconds, whatever the schema's unit; a date counts days.
            if logical.per_second:
                if logical.family != "time" and count not in _CALENDAR:
                    raise Misfit(_another_unit(count))
                count = rescaled(count, MILLIS, logical.per_second)
        else:
            try:
                count = from_text(value, logical)
            except (TypeError, ValueError, OverflowError):
                raise Misfit(f"expected {expected}") from None
        return fit_count(count)

    return fit


def _another_unit(count: int) -> str:
    """Return why this is not a count of milliseconds: its year is in no calendar. A year alone identifies no person."""
    readings = [f"as milliseconds it is the year {_year(count, MILLIS)}"]
    # The finest unit comes last: a present time in nanoseconds, read as microseconds, is in no calendar.
    for unit, per_second in (("microseconds", 1_000_000), ("nanoseconds", 1_000_000_000)):
        if rescaled(count, per_second, MILLIS) in _CALENDAR:
            readings.append(f"as {unit} {_year(count, per_second)}")
            break
    return f"{', '.join(readings)}: write milliseconds or ISO 8601 text"


def _year(count: int, per_second: int) -> int:
    """Return the year of a count since 1970, however far away: the calendar repeats every 400 years."""
    cycles, days = divmod(count // (86_400 * per_second), 146_097)
    return 400 * cycles + (date(1970, 1, 1) + timedelta(days)).year


def _bytes(value: Any) -> bytes:
    try:
        if type(value) is str:
            return value.encode("latin-1")
    except UnicodeEncodeError:
        pass
    raise Misfit("expected bytes, as text of the code points 0 to 255")


def _whole(value: Any) -> int:
    """Return a number without a fraction, such as 2, 2.0 or 2e3."""
    try:
        number = Decimal(value) if type(value) is Number else None
        # The size is checked first: 1e999999999 is a short literal for a number of a billion digits.
        if (
            number is not None
            and number.adjusted() < _MAX_WHOLE_DIGITS
            and number == number.to_integral_value()
        ):
            return int(number)
    except InvalidOperation:  # an exponent that even Decimal does not hold
        pass
    raise Misfit("expected a whole number")


def _float(value: Any) -> float:
    number = float(value) if type(value) is Number else math.nan
    if not math.isfinite(number):  # 1e999 is JSON, and no double
        raise Misfit("expected a number")
    return number


# How a value of JSON becomes one of Python; any other kind is the same in both. A number keeps its literal as text:
# 27.50 its zero, and an id of 20 digits every digit.
_FROM_JSON: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("int", "long"), _whole),
    **dict.fromkeys(("float", "double"), _float),
    **dict.fromkeys(("bytes", "fixed"), _bytes),
}


def _json(value: Any) -> Any:
    """Return a JSON value with numbers for its literals."""
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    return _whole(value) if isinstance(value, Number) else value


_ORIGIN: Final[dict[str, Callable[[Any], Any]]] = {
    "key": _json,
    "timestamp": _leaf(Primitive("long", Logical("timestamp-millis", "timestamp", MILLIS))),
    "header": fit_text,
    "topic": fit_text,
    "partition": _leaf(Primitive("int")),
    "offset": _leaf(Primitive("long")),
}
