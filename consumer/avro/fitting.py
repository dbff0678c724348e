"""Loosely typed values fitted into an Avro schema: lines of JSON (`ndjson`), events to be written (`encode`), and what
a function of the user's returns (`shape`).

Theory of operation. A schema is compiled once into closures, one for each type, that turn a value into one of that
type or raise `Misfit`. This module has the parts that all users share: records with defaults and aliases, arrays, maps,
enums, and the choice among the branches of a union. The caller decides which numbers, texts and times are accepted
(`leaf`); `python_leaf` accepts values in Python's own types.

A value of a union goes to the branch that it fits best, the first of equals.

A default is written in JSON ("Complex Types", table of field default values): bytes as text of the code
points 0 to 255, a union's as a value of any of its branches (since 1.12; before, of the first), a record's
with its own fields' defaults filled in. `default_factory` checks it once and then makes a fresh value per
record, since events are mutable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, Literal

from consumer.avro.schema import (
    NO_DEFAULT,
    Array,
    AvroType,
    Enum,
    Field,
    Fixed,
    InvalidSchema,
    Json,
    Map,
    Primitive,
    Record,
    Union,
    label,
)
from consumer.avro.values import INT_RANGE, LONG_RANGE, from_bytes

_MAX_ATTEMPTS: Final = 10_000  # for each event: unions inside unions must not multiply without end

Fit = Callable[[Any], Any]  # makes a value of some type of another value, or raises `Misfit`


class Number(str):
    """A JSON number with its literal."""

    __slots__ = ()


class Misfit(ValueError):
    """A value does not fit its type. `path` names the fields around it, from the inside out."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.path: list[str] = []

    def described(self, whole: str) -> str:
        """Return where the misfit is and what was expected, but no value. `whole` names the event itself."""
        where = ".".join(reversed(self.path)).replace(".[", "[")
        return f"{f'field {where}' if where else whole}: {self.expected}"


class TooMuch(Exception):
    """A value takes more attempts, or has more parts, than one event may."""


class Fitter:
    """One compiled schema. `leaf` gives the function that fits values into a type without parts.

    `branches`: how a value of a union with several branches names its branch. ``tagged``: it may name it, as in Avro's
    JSON encoding. ``paired``: it does not, and the result is a pair of branch and value, as fastavro takes it.
    ``bare``: it does not. Raises `InvalidSchema` for a wrong default.
    """

    # What messages call a record or a map, and an array: words of JSON.
    _OBJECT, _ARRAY = "an object", "an array"

    def __init__(
        self,
        node: AvroType,
        leaf: Callable[[Primitive | Fixed], Fit],
        branches: Literal["tagged", "paired", "bare"] = "tagged",
    ) -> None:
        self._leaf = leaf
        self._branches = branches
        # Keys are text like any other: half of a surrogate pair is refused.
        self._fit_key = leaf(Primitive("string"))
        self._records: dict[str, Fit] = {}
        self._attempts_left = 0
        self._fit = self._compile(node)

    def fit(self, event: Any) -> Any:
        """Return `event` as a value of the schema. Raises `Misfit` or `TooMuch`."""
        self._attempts_left = _MAX_ATTEMPTS
        return self._fit(event)

    def _compile(self, node: AvroType) -> Fit:
        if isinstance(node, Record):
            return self._records.get(node.name) or self._record(node)
        if isinstance(node, Union):
            return self._union(node)
        if isinstance(node, Array):
            return self._array(self._compile(node.items))
        if isinstance(node, Map):
            return self._map(self._compile(node.values))
        return _enum(node) if isinstance(node, Enum) else self._leaf(node)

    def _record(self, node: Record) -> Fit:
        fields: list[tuple[str, tuple[str, ...], Fit, Callable[[], Any] | None]] = []

        def fit(value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                raise Misfit(f"expected {self._OBJECT} ({node.name})")
            fitted = {}
            for name, aliases, fit_field, default in fields:
                try:
                    # If both are there, the name counts before an alias.
                    if name in value:
                        fitted[name] = fit_field(value[name])
                    elif (key := next((alias for alias in aliases if alias in value), None)) is not None:
                        fitted[name] = fit_field(value[key])
                    elif default is not None:
                        # Times and decimals of a default are final values already; only fastavro takes other forms.
                        fitted[name] = fit_field(default()) if self._branches == "paired" else default()
                    else:
                        raise Misfit("is missing, and has no default")
                except Misfit as error:
                    error.path.append(name)
                    raise
            return fitted

        self._records[node.name] = fit  # before its fields, which may refer to it
        names = {each.name for each in node.fields}
        for each in node.fields:
            # An alias that is another field's name means that field, and not an earlier name of this one.
            aliases = tuple(alias for alias in each.aliases if alias not in names)
            fields.append((each.name, aliases, self._compile(each.type), self._default(each)))
        return fit

    def _default(self, owner: Field) -> Callable[[], Any] | None:
        """Return a function that gives the value of a missing field; None: the field has no default."""
        return default_factory(owner)

    def _array(self, fit_item: Fit) -> Fit:
        def fit(value: Any) -> list[Any]:
            if not isinstance(value, list | tuple):
                raise Misfit(f"expected {self._ARRAY}")
            items: list[Any] = []
            try:
                for item in value:
                    items.append(fit_item(item))  # noqa: PERF401 (its length tells which item is the misfit)
            except Misfit as misfit:
                misfit.path.append(f"[{len(items)}]")
                raise
            return items

        return fit

    def _map(self, fit_value: Fit) -> Fit:
        def fit(value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                raise Misfit(f"expected {self._OBJECT}")
            try:
                return {self._fit_key(key): fit_value(item) for key, item in value.items()}
            except Misfit as misfit:
                misfit.path.append("*")  # a map's keys are data
                raise

        return fit

    def _union(self, node: Union) -> Fit:
        branches = [(each, self._compile(each)) for each in node.branches if each.kind != "null"]
        nullable = node.null >= 0
        expected = f"expected one of: {', '.join(label(each) for each in node.branches)}"

        def fit(value: Any) -> Any:
            if value is None and nullable:
                return None
            # Nearly every union: there is no choice, and the misfit of the one branch says most.
            if len(branches) == 1:
                return branches[0][1](value)
            for each, fit_branch in self._candidates(branches, value):
                try:
                    fitted = fit_branch(value)
                except Misfit:
                    continue
                return (label(each), fitted) if self._branches == "paired" else fitted
            raise Misfit(expected)

        return _with_tags(fit, branches) if self._branches == "tagged" else fit

    def _candidates(self, branches: list[tuple[AvroType, Fit]], value: Any) -> Iterable[tuple[AvroType, Fit]]:
        """Yield the branches that may take this value, those that fit best first. Raises `TooMuch`."""
        rated = [(misfit(each, value), each, fit) for each, fit in branches]
        for rating, each, fit in sorted(rated, key=itemgetter(0)):
            if rating == _NOT_AT_ALL:
                return
            # For the whole event, so that unions within unions do not multiply.
            self._attempts_left -= 1
            if self._attempts_left < 0:
                raise TooMuch
            yield each, fit


def _enum(node: Enum) -> Fit:
    symbols = frozenset(node.symbols)

    def fit(value: Any) -> str:
        if type(value) is not str:
            raise Misfit(f"expected a symbol of {node.name}, as text")
        symbol = value if value in symbols else node.default
        if symbol is None:
            raise Misfit(f"expected a symbol of {node.name}")
        return symbol

    return fit


# -- values of Python that have no parts


def python_leaf(node: Primitive | Fixed) -> Fit:
    """Return a function that fits a value of Python's own into a type, whatever its logical type is."""
    return _bytes_of(node.size) if isinstance(node, Fixed) else _PYTHON[node.kind]


def fit_text(value: Any) -> str:
    """Return text that UTF-8 can hold. Raises `Misfit`."""
    if not isinstance(value, str):
        raise Misfit("expected text")
    # The exact type: a subclass may behave in another way later.
    text = str.__str__(value)
    # JSON and Python can spell half of a surrogate pair, which no UTF-8 holds, and so no Avro.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Misfit("expected text, found half of a surrogate pair") from None
    return text


def _fit_null(value: Any) -> None:
    if value is not None:
        raise Misfit("expected null")


def _fit_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Misfit("expected true or false")
    return value


def _fit_number(value: Any) -> float:
    # For Python True is a number, and for the platform no amount.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit("expected a number")
    try:
        return float(value)
    except OverflowError:  # an int has any number of digits
        raise Misfit("expected a number that a double holds") from None


def _whole(bounds: range) -> Fit:
    def fit(value: Any) -> int:
        # Made an int first: a range looks for a subclass, such as an `IntEnum`, among all its numbers one by one.
        number = int(value) if isinstance(value, int) and not isinstance(value, bool) else bounds.stop
        # fastavro would write an int of any size, and no reader could read it.
        if number not in bounds:
            raise Misfit(f"expected a whole number of {bounds.stop.bit_length()} bits")
        return number

    return fit


def fit_decimal(takes: tuple[type[Any], ...], make: Callable[[Decimal], Any], expected: str) -> Fit:
    """Return a function that makes a decimal of a number of these types; `make` raises for one that does not fit."""

    def fit(value: Any) -> Any:
        try:
            # True is a number in Python, and no amount.
            if isinstance(value, takes) and not isinstance(value, bool):
                return make(Decimal(value))
        except (ValueError, ArithmeticError):
            pass
        raise Misfit(expected)

    return fit


def _bytes_of(size: int | None) -> Fit:
    def fit(value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray) or (size is not None and len(value) != size):
            raise Misfit("expected bytes" if size is None else f"expected {size} bytes")
        return bytes(value)

    return fit


_PYTHON: Final[dict[str, Fit]] = {
    "null": _fit_null,
    "boolean": _fit_boolean,
    "int": _whole(INT_RANGE),
    "long": _whole(LONG_RANGE),
    "float": _fit_number,
    "double": _fit_number,
    "bytes": _bytes_of(None),
    "string": fit_text,
}


# -- which branch of a union a value goes to


def _with_tags(fit_bare: Fit, branches: list[tuple[AvroType, Fit]]) -> Fit:
    """Return `fit_bare` extended to tagged values: an object whose one key names the branch."""
    tags: dict[str, tuple[AvroType, Fit]] = {}
    for node, fit_branch in branches:
        fields = node.fields if isinstance(node, Record) else ()
        names = {name for each in fields for name in (each.name, *each.aliases)}
        # People omit the namespace. A field of the branch is not a tag.
        for tag in {label(node), label(node).rpartition(".")[2]} - names:
            tags.setdefault(tag, (node, fit_branch))

    def fit(value: Any) -> Any:
        tag = next(iter(value)) if type(value) is dict and len(value) == 1 else None
        if tag not in tags:
            return fit_bare(value)
        node, fit_branch = tags[tag]
        # The key is the branch's name, and no field of it has that name: so it is a tag.
        if isinstance(node, Record):
            return fit_branch(value[tag])
        try:
            return fit_bare(value)
        except Misfit:
            return fit_branch(value[tag])

    return fit


_NOT_AT_ALL: Final = 1_000_000
_AS_DECODED: Final = 1  # the worst fit of a value that a reader made of this type


def misfit(node: AvroType, value: Any) -> int:
    """Rate how badly `value` fits a branch: 0 is an exact fit. Values inside it are not looked at."""
    if isinstance(node, Record):
        if not isinstance(value, dict):
            return _NOT_AT_ALL
        known: set[str] = set()
        for each in node.fields:
            names = {each.name, *each.aliases} & value.keys()
            if not names and each.default is NO_DEFAULT:
                return _NOT_AT_ALL
            known |= names
        return 2 * (len(value) - len(known))  # each field that the record lacks would be lost
    if isinstance(node, Enum) and type(value) is str and value not in node.symbols:
        return _NOT_AT_ALL if node.default is None else 5
    # A subclass is as its base; for Python True is an int, too, and has its own line.
    ratings = next((_MISFITS[base] for base in type(value).__mro__ if base in _MISFITS), {})
    logical = node.logical if isinstance(node, Primitive | Fixed) else None
    by_kind = ratings.get(node.kind, _NOT_AT_ALL)
    return by_kind if logical is None else ratings.get(logical.family, by_kind)


def may_be(node: AvroType, value: Any) -> bool:
    """Return True if a reader may have made `value` of this branch."""
    if isinstance(node, Record):
        # Any field may be missing: a decoder omits those that were not asked for.
        return isinstance(value, dict) and value.keys() <= {each.name for each in node.fields}
    logical = node.logical if isinstance(node, Primitive | Fixed) else None
    # Given text fits a UUID no better than a time; decoded text is not a time, because a decoded time is a count.
    if logical is not None and logical.family == "uuid":
        return isinstance(value, str)
    return misfit(node, value) <= _AS_DECODED


_TIMES: Final = ("date", "time", "timestamp", "local-timestamp")
# How badly a value of a Python type fits a kind, or the family of a logical type, when several could take it.
_MISFITS: Final[dict[type, dict[str, int]]] = {
    bool: {"boolean": 0},
    list: {"array": 0},
    dict: {"map": 1},
    str: {
        "enum": 0,
        "string": 0,
        "uuid": 2,
        **dict.fromkeys(_TIMES, 2),
        "decimal": 3,
        "bytes": 4,
        "fixed": 4,
    },
    # A number with a fraction is tried as a whole number first, which fails, and then as the union's other types.
    Number: {
        "int": 0,
        "long": 0,
        **dict.fromkeys(_TIMES, 0),
        "decimal": 1,
        "double": 2,
        "float": 2,
        "string": 4,
    },
    int: {"int": 0, "long": 0, **dict.fromkeys(_TIMES, 0), "decimal": 2, "double": 3, "float": 4},
    float: {"double": 0, "float": 1, "decimal": 2},
    Decimal: {"decimal": 0},
    bytes: {"bytes": 0, "fixed": 0},
}


# -- defaults


def default_factory(owner: Field) -> Callable[[], Any] | None:
    """Return a function that makes the field's default value, or ``None`` if it has none.

    Raises `InvalidSchema` if the default is not a value of the field's type.
    """
    if owner.default is NO_DEFAULT:
        return None
    try:
        value = _value(owner.type, owner.default)
    # A default may be nested as deeply as its schema refers to itself.
    except (ValueError, RecursionError):
        raise InvalidSchema(f"the default of field {owner.name} is not a value of its type") from None
    # Events are changed in place, so each gets its own.
    if isinstance(value, list | dict):
        return (lambda: copy.deepcopy(value)) if value else type(value)
    return lambda: value


def _value(node: AvroType, json: Json) -> Any:
    """Return the value of a default that is written as JSON. Raises `ValueError`."""
    if isinstance(node, Union):
        # Any branch, the first that fits: since 1.12 it need not be the first one.
        for branch in node.branches:
            try:
                return _value(branch, json)
            except ValueError:
                continue
    if isinstance(node, Record) and isinstance(json, dict):
        # Fields that the default omits take their own defaults.
        return {each.name: _value(each.type, json.get(each.name, each.default)) for each in node.fields}
    if isinstance(node, Array) and isinstance(json, list):
        return [_value(node.items, item) for item in json]
    if isinstance(node, Map) and isinstance(json, dict):
        return {key: _value(node.values, item) for key, item in json.items()}
    if isinstance(node, Enum) and json in node.symbols:
        return json
    if not isinstance(node, Fixed | Primitive):
        raise ValueError(node.kind)
    fit, convert = python_leaf(node), from_bytes(node)
    if node.kind not in ("bytes", "fixed") or not isinstance(json, str):
        return fit(json)
    # Code points 0 to 255 are the bytes; others raise a `UnicodeEncodeError`, which is a ValueError.
    data = fit(json.encode("latin-1"))
    return convert(data) if convert else data
