"""Loosely typed values fitted into an Avro schema: lines of JSON (`ndjson`), and events to be written (`encode`).

Theory of operation. A schema is compiled once into closures, one for each type, that turn a value into one of that
type or raise `Misfit`. What both users share is here: records with defaults and aliases, arrays, maps, enums, and
the choice among the branches of a union. What a number, a text or a time may look like is the caller's (`leaf`).

A value of a union goes to the branch that it fits best, the first of equals.

A default is written in JSON ("Complex Types", table of field default values): bytes as text of the code
points 0 to 255, a union's as a value of any of its branches (since 1.12; before, of the first), a record's
with its own fields' defaults filled in. `default_factory` checks it once and then makes a fresh value per
record, since events are mutable.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final

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

_MOST_ATTEMPTS: Final = 10_000  # for each event: unions inside unions must not multiply without end

Fit = Callable[[Any], Any]  # makes a value of some type of another value, or raises `Misfit`


class Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


class Misfit(ValueError):
    """A value does not fit its type. `path` names the fields around it, from the inside out."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected
        self.path: list[str] = []

    def described(self, whole: str) -> str:
        """Return where the misfit is and what was expected, never a value. `whole` names the event itself."""
        where = ".".join(reversed(self.path)).replace(".[", "[")
        return f"{f'field {where}' if where else whole}: {self.expected}"


class Exhausted(Exception):
    """The event takes more attempts than `_MOST_ATTEMPTS`."""


class Fitter:
    """One schema, compiled. `leaf` gives what fits values into a type that has no parts.

    With `for_fastavro` a value of several possible branches comes out as fastavro takes it: a pair, branch and value.
    Without it, values may name their branch as Avro's JSON encoding does. Raises `InvalidSchema` for a wrong default.
    """

    def __init__(
        self, node: AvroType, leaf: Callable[[Primitive | Fixed], Fit], *, for_fastavro: bool = False
    ) -> None:
        self._leaf = leaf
        self._for_fastavro = for_fastavro
        # Keys are text like any other: no half of a surrogate pair.
        self._fit_key = leaf(Primitive("string"))
        self._records: dict[str, Fit] = {}
        self._attempts_left = 0
        self._fit = self._compile(node)

    def fit(self, event: Any) -> Any:
        """Return `event` as a value of the schema. Raises `Misfit` or `Exhausted`."""
        self._attempts_left = _MOST_ATTEMPTS
        return self._fit(event)

    def _compile(self, node: AvroType) -> Fit:
        if isinstance(node, Record):
            return self._records.get(node.name) or self._record(node)
        if isinstance(node, Union):
            return self._union(node)
        if isinstance(node, Array):
            return _array(self._compile(node.items))
        if isinstance(node, Map):
            return self._map(self._compile(node.values))
        return _enum(node) if isinstance(node, Enum) else self._leaf(node)

    def _record(self, node: Record) -> Fit:
        fields: list[tuple[str, tuple[str, ...], Fit, Callable[[], Any] | None]] = []

        def fit(value: Any) -> dict[str, Any]:
            # The exact type: text of JSON is never taken for something else.
            if type(value) is not dict:
                raise Misfit(f"expected an object ({node.name})")
            fitted = {}
            for name, aliases, fit_field, default in fields:
                # The name goes before an alias, should both be there.
                key = name if name in value else next((alias for alias in aliases if alias in value), None)
                try:
                    if key is not None:
                        fitted[name] = fit_field(value[key])
                    elif default is not None:
                        # Times and decimals of a default are values already; only fastavro takes other ones.
                        fitted[name] = fit_field(default()) if self._for_fastavro else default()
                    else:
                        raise Misfit("is missing, and has no default")
                except Misfit as error:
                    error.path.append(name)
                    raise
            return fitted

        self._records[node.name] = fit  # before its fields, which may refer to it
        fields += [
            (each.name, each.aliases, self._compile(each.type), default_factory(each)) for each in node.fields
        ]
        return fit

    def _map(self, fit_value: Fit) -> Fit:
        def fit(value: Any) -> dict[str, Any]:
            if type(value) is not dict:
                raise Misfit("expected an object")
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
            # Nearly every union: nothing to choose, and the misfit of the one branch says most.
            if len(branches) == 1:
                return branches[0][1](value)
            rated = [(misfit(each, value), each, fit_branch) for each, fit_branch in branches]
            for rating, each, fit_branch in sorted(rated, key=itemgetter(0)):
                if rating == _NOT_AT_ALL:
                    break
                # For the whole event, so that unions within unions do not multiply.
                self._attempts_left -= 1
                if self._attempts_left < 0:
                    raise Exhausted
                try:
                    fitted = fit_branch(value)
                except Misfit:
                    continue
                return (label(each), fitted) if self._for_fastavro else fitted
            raise Misfit(expected)

        return fit if self._for_fastavro else _with_tags(fit, branches)


def _array(fit_item: Fit) -> Fit:
    def fit(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Misfit("expected an array")
        items: list[Any] = []
        try:
            for item in value:
                items.append(fit_item(item))  # noqa: PERF401 (its length tells which item is the misfit)
        except Misfit as misfit:
            misfit.path.append(f"[{len(items)}]")
            raise
        return items

    return fit


def _enum(node: Enum) -> Fit:
    symbols = frozenset(node.symbols)

    def fit(value: Any) -> str:
        if type(value) is not str:
            raise Misfit(f"expected a symbol of {node.name}, as text")
        if value in symbols:
            return value
        if node.default is None:
            raise Misfit(f"expected one of the symbols of {node.name}")
        return node.default

    return fit


def of_type(expected: str, *types: type) -> Fit:
    """Return what takes values of these types as they are."""

    def fit(value: Any) -> Any:
        if not isinstance(value, types):
            raise Misfit(f"expected {expected}")
        return value

    return fit


# -- which branch of a union a value goes to


def _with_tags(fit_bare: Fit, branches: list[tuple[AvroType, Fit]]) -> Fit:
    """Return `fit_bare` that also takes a tagged value: an object whose one key names the branch."""

    def fit(value: Any) -> Any:
        tagged = _tagged(value, branches)
        if tagged is None:
            return fit_bare(value)
        node, fit_branch = tagged
        (inner,) = value.values()
        # Its name is the tag, and no field of it is called so: it can mean nothing else.
        if isinstance(node, Record):
            return fit_branch(inner)
        try:
            return fit_bare(value)
        except Misfit:
            return fit_branch(inner)

    return fit


def _tagged(value: Any, branches: list[tuple[AvroType, Fit]]) -> tuple[AvroType, Fit] | None:
    """Return the branch that the one key of `value` names, unless the key is a field of that branch."""
    if type(value) is not dict or len(value) != 1:
        return None
    (tag,) = value
    for node, fit in branches:
        name = label(node)
        fields = node.fields if isinstance(node, Record) else ()
        # People leave the namespace out.
        if tag in (name, name.rpartition(".")[2]) and not any(
            tag in (each.name, *each.aliases) for each in fields
        ):
            return node, fit
    return None


_NOT_AT_ALL: Final = 1_000_000


def misfit(node: AvroType, value: Any) -> int:
    """Rate how badly `value` fits a branch: 0 is an exact fit. Values inside it are not looked at."""
    if isinstance(node, Record):
        if type(value) is not dict:
            return _NOT_AT_ALL
        known: set[str] = set()
        for each in node.fields:
            names = {each.name, *each.aliases} & value.keys()
            if not names and each.default is NO_DEFAULT:
                return _NOT_AT_ALL
            known |= names
        return 2 * (len(value) - len(known))  # each field that the record lacks would be lost
    if isinstance(node, Enum) and type(value) is str and value not in node.symbols:
        return _NOT_AT_ALL if node.default is None else 4
    ratings = _MISFITS.get(type(value), {})
    logical = node.logical if isinstance(node, Primitive | Fixed) else None
    by_kind = ratings.get(node.kind, _NOT_AT_ALL)
    return by_kind if logical is None else ratings.get(logical.family, by_kind)


_TIMES: Final = ("date", "time", "timestamp", "local-timestamp")
# How badly a value of a Python type fits a kind, or the family of a logical type, when several could take it.
_MISFITS: Final[dict[type, dict[str, int]]] = {
    bool: {"boolean": 0},
    list: {"array": 0},
    dict: {"map": 1},
    str: {
        "enum": 0,
        "string": 0,
        "uuid": 1,
        **dict.fromkeys(_TIMES, 1),
        "decimal": 2,
        "bytes": 3,
        "fixed": 3,
    },
    # A fraction is tried as a whole number first, in vain.
    Number: {
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
        # Fields that the default leaves out take their own defaults.
        return {each.name: _value(each.type, json.get(each.name, each.default)) for each in node.fields}
    if isinstance(node, Array) and isinstance(json, list):
        return [_value(node.items, item) for item in json]
    if isinstance(node, Map) and isinstance(json, dict):
        return {key: _value(node.values, item) for key, item in json.items()}
    if isinstance(node, Enum) and json in node.symbols:
        return json
    if isinstance(node, Fixed | Primitive):
        return _value_of_leaf(node, json)
    raise ValueError(node.kind)


def _value_of_leaf(node: Fixed | Primitive, json: Json) -> Any:
    kind = node.kind
    if kind in ("bytes", "fixed") and isinstance(json, str):
        # Code points 0 to 255 are the bytes; others raise a ValueError.
        data = json.encode("latin-1")
        if isinstance(node, Fixed) and len(data) != node.size:
            raise ValueError(node.name)
        convert = from_bytes(node)
        return convert(data) if convert else data
    if kind in ("float", "double") and type(json) in (int, float):
        return float(json)
    bounds = {"int": INT_RANGE, "long": LONG_RANGE}.get(kind)
    if type(json) is not _PYTHON_TYPES.get(kind) or (bounds is not None and json not in bounds):
        raise ValueError(kind)
    return json


_PYTHON_TYPES: Final = {"null": type(None), "boolean": bool, "int": int, "long": int, "string": str}
