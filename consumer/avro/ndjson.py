"""From a line of NDJSON to a commerce event, in the shape of a schema but written as plain JSON.

The contract ("explain FILE"): union values are bare, missing fields take the schema's default, times are
milliseconds or ISO 8601 text. What people write by hand or export from elsewhere decides the rest:

* A number never passes through a float: it keeps its literal, so 27.50 is the text ``27.50`` where the schema
  says string, and the exact decimal where it says decimal. Text is never taken for a number or a boolean.
* Unknown fields are ignored, as resolution drops the fields that only a writer has. Aliases are accepted.
* ``date`` is a count of days or ISO 8601; a time of day is milliseconds or ``hh:mm[:ss]``.
* bytes are text of the code points 0 to 255, as in Avro's JSON encoding; its tagged unions
  (``{"string": "x"}``) are accepted where the bare reading is impossible, or a record's name is the tag.
* A bare value of a union with several branches goes to the one it fits best, the first of equals.

A schema is compiled once into closures (`LinePlan`). A value that does not fit raises `_Misfit`, which picks
up the path of fields on its way out; the verdict names path and type, never a value, nor a key that the
schema does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

from consumer.avro.decode import DecodeCode, rejected
from consumer.avro.schema import (
    NO_DEFAULT,
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
    parse,
)
from consumer.avro.values import (
    INT_RANGE,
    LONG_RANGE,
    MILLIS,
    decimal_to_scale,
    default_factory,
    from_bytes,
    from_text,
    rescaled,
)
from consumer.engine.model import CommerceEvent, Rejection

MAX_LINE_BYTES: Final = 16 << 20
_MAX_UNION_ATTEMPTS: Final = 10_000  # per line: unions inside unions must not multiply without end
_MAX_WHOLE_DIGITS: Final = 20  # of a 64-bit number with its sign


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


class _Misfit(Exception):
    """A value does not fit its type; `path` grows from the inside out."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.path: list[str] = []


class _Exhausted(Exception):
    """The line asks for more attempts than `_MAX_UNION_ATTEMPTS`."""


class _Budget:
    """What is left of the attempts to fit values into unions, for one line."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _MAX_UNION_ATTEMPTS


_Fit = Callable[[Any, _Budget], Any]


class LinePlan:
    """A reader schema (JSON), compiled for `parse_line`. Raises `InvalidSchema`, a `ValueError`."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.fit = _Compiler().compile(parse(schema))


def parse_line(line: bytes, plan: LinePlan) -> CommerceEvent | Rejection:
    """The event that one line holds, in the shape of the plan's schema, or why it does not fit."""
    if len(line) > MAX_LINE_BYTES:
        return rejected(DecodeCode.TOO_LARGE, f"the line is larger than {MAX_LINE_BYTES >> 20} MiB")
    try:
        document = json.loads(
            line.decode("utf-8-sig"), parse_int=_Number, parse_float=_Number, parse_constant=_refuse_constant
        )
        if type(document) is not dict:
            return rejected(DecodeCode.NOT_AN_OBJECT, "the line is JSON, but not an object: {…}")
        event: CommerceEvent = plan.fit(document, _Budget())
    except _Misfit as misfit:
        where = ".".join(reversed(misfit.path)).replace(".[", "[")
        return rejected(DecodeCode.MISFIT, f"{'field ' + where if where else 'the line'}: {misfit.expected}")
    except (RecursionError, _Exhausted):
        return rejected(DecodeCode.TOO_LARGE, "the line is nested too deeply")
    except ValueError as error:
        return rejected(DecodeCode.NOT_JSON, f"the line is not JSON ({_place(error)})")
    return event


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _place(error: ValueError) -> str:
    """Where the JSON breaks; the parser's own words hold no data, its exception does."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "NaN and Infinity are not JSON"


class _Compiler:
    """One compilation; `_records` holds the fits of records met so far, since they may recur."""

    def __init__(self) -> None:
        self._records: dict[str, _RecordFit] = {}

    def compile(self, node: AvroType) -> _Fit:
        if isinstance(node, Record):
            return self._record(node).fit
        if isinstance(node, Union):
            return self._union(node).fit
        if isinstance(node, Array):
            return _array_fit(self.compile(node.items))
        if isinstance(node, Map):
            return _map_fit(self.compile(node.values))
        if isinstance(node, Enum):
            return _enum_fit(node)
        return _leaf_fit(node)

    def _record(self, node: Record) -> _RecordFit:
        known = self._records.get(node.name)
        if known is None:
            known = self._records[node.name] = _RecordFit(node)
            known.fields = [
                _FieldFit(each.name, each.aliases, self.compile(each.type), default_factory(each))
                for each in node.fields
            ]
        return known

    def _union(self, node: Union) -> _UnionFit:
        return _UnionFit(
            node.null >= 0,
            [Branch(branch, self.compile(branch)) for branch in node.branches if branch.kind != "null"],
        )


class _FieldFit(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    fit: _Fit
    default: Callable[[], Any] | None


class _RecordFit:
    """Fits an object into a record; its fields are told later, since they may refer to it."""

    def __init__(self, node: Record) -> None:
        self._name = node.name
        self.fields: list[_FieldFit] = []

    def fit(self, value: Any, budget: _Budget) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Misfit(f"expected an object ({self._name})")
        return {each.name: self._field(each, value, budget) for each in self.fields}

    def _field(self, each: _FieldFit, value: dict[str, Any], budget: _Budget) -> Any:
        key = each.name if each.name in value else next((a for a in each.aliases if a in value), None)
        try:
            if key is not None:
                return each.fit(value[key], budget)
            if each.default is not None:
                return each.default()
            raise _Misfit("is missing, and has no default")
        except _Misfit as misfit:
            misfit.path.append(each.name)
            raise


def _array_fit(fit_item: _Fit) -> _Fit:
    def fit(value: Any, budget: _Budget) -> list[Any]:
        if type(value) is not list:
            raise _Misfit("expected an array")
        items: list[Any] = []
        for item in value:
            try:
                items.append(fit_item(item, budget))
            except _Misfit as misfit:
                misfit.path.append(f"[{len(items)}]")
                raise
        return items

    return fit


def _map_fit(fit_value: _Fit) -> _Fit:
    def fit(value: Any, budget: _Budget) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Misfit("expected an object")
        try:
            return {_text(key): fit_value(item, budget) for key, item in value.items()}
        except _Misfit as misfit:
            misfit.path.append("*")  # a map's keys are data
            raise

    return fit


def _enum_fit(node: Enum) -> _Fit:
    symbols = frozenset(node.symbols)

    def fit(value: Any, _budget: _Budget) -> str:
        if type(value) is not str:
            raise _Misfit(f"expected a symbol of {node.name}, as text")
        if value in symbols:
            return value
        if node.default is None:
            raise _Misfit(f"expected one of the symbols of {node.name}")
        return node.default

    return fit


def _leaf_fit(node: Primitive | Fixed) -> _Fit:
    logical = node.logical
    convert: Callable[[Any], Any]
    if logical is not None and logical.per_second:
        convert = _time_conversion(logical, INT_RANGE if node.kind == "int" else LONG_RANGE)
    elif logical is not None and logical.family == "date":
        convert = _date_conversion(logical)
    elif logical is not None and logical.family == "decimal":
        convert = _decimal_conversion(logical)
    elif isinstance(node, Fixed):
        convert = _fixed_conversion(node)
    else:
        convert = _CONVERSIONS[node.kind]
    return lambda value, _budget: convert(value)


def _time_conversion(logical: Logical, bounds: range) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if type(value) is _Number:
            return _bounded(rescaled(_whole(value), MILLIS, logical.per_second), bounds)
        return _bounded(_from_iso(value, logical, "whole milliseconds or ISO 8601 text"), bounds)

    return convert


def _date_conversion(logical: Logical) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if type(value) is _Number:
            return _bounded(_whole(value), INT_RANGE)
        return _from_iso(value, logical, "an ISO 8601 date or whole days")

    return convert


def _from_iso(value: Any, logical: Logical, expected: str) -> int:
    try:
        if type(value) is str:
            return from_text(value, logical)
    except (ValueError, OverflowError):
        pass
    raise _Misfit(f"expected {expected}")


def _decimal_conversion(logical: Logical) -> Callable[[Any], Decimal]:
    expected = f"expected a decimal of {logical.precision} digits, {logical.scale} behind the point"

    def convert(value: Any) -> Decimal:
        try:
            if type(value) is _Number or type(value) is str:
                return decimal_to_scale(Decimal(value), logical)
        except (ValueError, InvalidOperation):
            pass
        raise _Misfit(expected)

    return convert


def _fixed_conversion(node: Fixed) -> Callable[[Any], Any]:
    of_logical = from_bytes(node)

    def convert(value: Any) -> Any:
        data = _bytes(value)
        if len(data) != node.size:
            raise _Misfit(f"expected {node.size} bytes ({node.name})")
        return of_logical(data) if of_logical else data

    return convert


def _null(value: Any) -> None:
    if value is not None:
        raise _Misfit("expected null")


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _Misfit("expected true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is _Number:
        return str(value)
    if type(value) is not str:
        raise _Misfit("expected text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Misfit("expected text, found half of a surrogate pair") from None
    return value


def _bytes(value: Any) -> bytes:
    try:
        if type(value) is str:
            return value.encode("latin-1")
    except UnicodeEncodeError:
        pass
    raise _Misfit("expected bytes, as text of the code points 0 to 255")


def _whole(value: Any) -> int:
    """A number without a fraction; 2.0 and 2e3 have none."""
    if type(value) is not _Number:
        raise _Misfit("expected a whole number")
    try:
        number = Decimal(value)
        # The size goes first: 1e999999999 is a short literal and a number of a billion digits.
        if number.adjusted() < _MAX_WHOLE_DIGITS and number == number.to_integral_value():
            return int(number)
    except InvalidOperation:  # an exponent that even Decimal does not hold
        pass
    raise _Misfit("expected a whole number")


def _bounded(number: int, bounds: range) -> int:
    if number not in bounds:
        raise _Misfit(f"expected a number of {bounds.stop.bit_length()} bits")
    return number


def _float(value: Any) -> float:
    number = float(value) if type(value) is _Number else math.nan
    if not math.isfinite(number):
        raise _Misfit("expected a number")
    return number


_CONVERSIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "null": _null,
    "boolean": _boolean,
    "int": lambda value: _bounded(_whole(value), INT_RANGE),
    "long": lambda value: _bounded(_whole(value), LONG_RANGE),
    "float": _float,
    "double": _float,
    "bytes": _bytes,
    "string": _text,
}


class Branch:
    """A branch of a union that is not ``null``: how it is named, and how well a value fits it.

    A value is JSON with its numbers as `_Number`, or part of a commerce event, which `consumer.avro.encode` writes.
    """

    def __init__(self, node: AvroType, fit: Callable[..., Any]) -> None:
        self.node = node
        self.fit = fit
        """Turns a value into one of `node`'s type, or raises."""
        name = label(node)
        self.tags = {name, name.rpartition(".")[2]}

    def misfit(self, value: Any) -> int | None:
        """How badly `value` fits at first sight: 0 is exactly, ``None`` not at all."""
        node = self.node
        if isinstance(node, Record):
            return _misfit_of_record(node, value) if type(value) is dict else None
        by_type = _MISFITS.get(type(value), {})
        if isinstance(node, Primitive | Fixed) and node.logical is not None:
            return by_type.get(node.logical.family, by_type.get(node.kind))
        if isinstance(node, Enum) and value not in node.symbols:
            return None if node.default is None else 4
        return by_type.get(node.kind)


def _misfit_of_record(node: Record, value: dict[str, Any]) -> int | None:
    known: set[str] = set()
    for each in node.fields:
        names = {each.name, *each.aliases} & value.keys()
        if not names and each.default is NO_DEFAULT:
            return None
        known |= names
    return 2 * (len(value) - len(known))


_TIMES: Final = ("date", "time", "timestamp", "local-timestamp")
_MISFITS: Final[dict[type, dict[str, int]]] = {
    bool: {"boolean": 0},
    list: {"array": 0},
    dict: {"map": 1},
    str: {
        "enum": 0,
        "string": 0,
        **dict.fromkeys(("uuid", *_TIMES), 1),
        "decimal": 2,
        "bytes": 3,
        "fixed": 3,
    },
    _Number: {
        "int": 0,
        "long": 0,
        **dict.fromkeys(_TIMES, 0),
        "decimal": 1,
        "double": 2,
        "float": 2,
        "string": 4,
    },
    int: {"int": 0, "long": 0, **dict.fromkeys(_TIMES, 0), "decimal": 1, "double": 2, "float": 3},
    float: {"double": 0, "float": 1, "decimal": 2},
    Decimal: {"decimal": 0},
    bytes: {"bytes": 0, "fixed": 0, "decimal": 1, "uuid": 1},
    UUID: {"uuid": 0},
    date: {"date": 0},
    time: {"time": 0},
    datetime: {"timestamp": 0, "local-timestamp": 0},
}
"""How badly a value fits a kind or family, when several could take it (a fraction is tried as a whole number first,
in vain)."""


class _UnionFit:
    """Fits a value into one of several types."""

    def __init__(self, nullable: bool, branches: list[Branch]) -> None:
        self._nullable = nullable
        self._branches = branches

    def fit(self, value: Any, budget: _Budget) -> Any:
        if value is None and self._nullable:
            return None
        tagged = self._tagged(value)
        if tagged is not None and isinstance(tagged.node, Record):
            return tagged.fit(_only_value(value), budget)
        try:
            return self._bare(value, budget)
        except _Misfit:
            if tagged is None:
                raise
            return tagged.fit(_only_value(value), budget)

    def _tagged(self, value: Any) -> Branch | None:
        """The branch that `value` names as Avro's JSON encoding does, unless the name is a field of it."""
        if type(value) is not dict or len(value) != 1:
            return None
        (tag,) = value
        for branch in self._branches:
            if tag in branch.tags and tag not in _names_of_fields(branch.node):
                return branch
        return None

    def _bare(self, value: Any, budget: _Budget) -> Any:
        if len(self._branches) == 1:
            return self._branches[0].fit(value, budget)
        rated = [(misfit, each) for each in self._branches if (misfit := each.misfit(value)) is not None]
        for _, branch in sorted(rated, key=lambda pair: pair[0]):
            budget.left -= 1
            if budget.left < 0:
                raise _Exhausted
            try:
                return branch.fit(value, budget)
            except _Misfit:
                continue
        raise _Misfit(f"expected one of: {self._described()}")

    def _described(self) -> str:
        names = [label(branch.node) for branch in self._branches]
        return ", ".join(["null", *names] if self._nullable else names)


def _only_value(value: dict[str, Any]) -> Any:
    (inner,) = value.values()
    return inner


def _names_of_fields(node: AvroType) -> Iterable[str]:
    if not isinstance(node, Record):
        return ()
    return {name for each in node.fields for name in (each.name, *each.aliases)}
