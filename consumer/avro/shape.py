"""Decoded values in Python's own types, and back, for the user's function.

Theory of operation. A decoded record is plain Python already, except for its times, which are counts of a unit.
`Shape.give` makes them `datetime`, `date` and `time`. `Shape.take` fits what a function returned into the schema: the
exact types that a decoded record has, in new objects, which no other code holds. None stands for any missing value. A
value that does not fit raises `Misfit`, which names fields and types, never a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final

from consumer.avro.fitting import Fit, Fitter, Misfit, TooMuch, fit_decimal, fit_text, may_be, python_leaf
from consumer.avro.reading import MAX_ITEMS
from consumer.avro.schema import (
    Array,
    AvroType,
    Enum,
    Field,
    Fixed,
    Logical,
    Map,
    Primitive,
    Record,
    Union,
    branches_of,
    label,
)
from consumer.avro.values import INT_RANGE, LONG_RANGE, MICROS, count_of, decimal_to_scale
from consumer.errors import nearest

# Parts of one record. A list may hold itself, or a thousand times the same list: the work for it must be bounded.
MAX_VALUES: Final = 200_000
MAX_CHARACTERS: Final = 16 << 20
_FIRST_DAY: Final = date(1970, 1, 1)
_NO_ZONE: Final = datetime(1970, 1, 1)
# By family of a logical type: the type that a function may return for it, and the moment at which its counts begin.
_TIMES: Final[dict[str, tuple[str, Any]]] = {
    "date": ("a date", _FIRST_DAY),
    "time": ("a time without a zone", _NO_ZONE),
    "timestamp": ("a datetime with a zone, such as tzinfo=UTC", datetime(1970, 1, 1, tzinfo=UTC)),
    "local-timestamp": ("a datetime without a zone", _NO_ZONE),
}


class Shape:
    """Gives values of a schema to the user's function, and makes the returned ones values of the schema again."""

    def __init__(self, root: AvroType) -> None:
        self._converters: dict[str, Fit] = {}
        self.give: Fit = self._to_python(root) or (lambda value: value)
        # From what the function returned to a record of the schema. Raises `Misfit` or `TooMuch`.
        self.take: Fit = _FromPython(root).fit

    # Only times change their type, so values without times stay as they are.

    def _to_python(self, node: AvroType) -> Fit | None:
        if isinstance(node, Record):
            return self._give_record(node)
        if isinstance(node, Array):
            give_item = self._to_python(node.items)
            return None if give_item is None else lambda items: [give_item(item) for item in items]
        if isinstance(node, Map):
            give_value = self._to_python(node.values)
            if give_value is None:
                return None
            return lambda values: {key: give_value(value) for key, value in values.items()}
        if isinstance(node, Union):
            return self._give_union(node)
        logical = node.logical if isinstance(node, Primitive) else None
        return None if logical is None or logical.family not in _TIMES else _time_to_python(logical)

    def _give_record(self, node: Record) -> Fit:
        if node.name in self._converters:
            return self._converters[node.name]
        fields: list[tuple[str, Fit]] = []

        def give(record: dict[str, Any]) -> dict[str, Any]:
            for name, give_field in fields:
                # A decoder may omit fields that were not asked for.
                if name in record:
                    record[name] = give_field(record[name])
            return record

        self._converters[node.name] = give  # before its fields, which may refer to it
        changes = [(each.name, self._to_python(each.type)) for each in node.fields]
        fields += [(name, change) for name, change in changes if change is not None]
        return give

    def _give_union(self, node: Union) -> Fit | None:
        branches = [(each, self._to_python(each)) for each in node.branches if each.kind != "null"]
        if all(give is None for _, give in branches):
            return None

        def give(value: Any) -> Any:
            if value is None:
                return None
            # The branch of a value is not known any more. If two branches fit, the value stays as it is.
            fitting = [change for each, change in branches if len(branches) == 1 or may_be(each, value)]
            return fitting[0](value) if len(fitting) == 1 and fitting[0] is not None else value

        return give


class _FromPython(Fitter):
    """Fits a returned value into a schema. It takes Python's own types, and has bounds of its own."""

    _OBJECT, _ARRAY = "a dict", "a list"

    def __init__(self, root: AvroType) -> None:
        self._values = self._characters = 0
        super().__init__(root, _leaf_from_python, "bare")
        self._fit_key = self._take_key

    def fit(self, event: Any) -> Any:
        """See `Shape.take`."""
        self._values = self._characters = 0
        return super().fit(event)

    def _count(self, characters: int = 0) -> None:
        self._values += 1
        self._characters += characters
        if self._values > MAX_VALUES or self._characters > MAX_CHARACTERS:
            raise TooMuch

    def _compile(self, node: AvroType) -> Fit:
        others = [each for each in branches_of(node) if each.kind != "null"]
        # Nearly every union: None stands for a missing value of any type.
        if isinstance(node, Union) and len(others) == 1:
            return self._compile(others[0])
        if isinstance(node, Enum):
            node = replace(node, default=None)  # as in reading, but a function knows our symbols
        fit, kind = super()._compile(node), node.kind
        if kind == "union":
            # Any other value is counted by the branches, also by those that are tried in vain: unions within unions
            # must not multiply.
            return lambda value: self._count() if value is None else fit(value)
        # As a table: a record is asked for each of its names.
        names = dict.fromkeys(each.name for each in node.fields) if isinstance(node, Record) else {}
        is_checked = kind in ("record", "array", "enum")

        def take(value: Any) -> Any:
            # Counted before a value is made: the returned one may be far too large, or hold itself.
            self._count(len(value) if isinstance(value, str | bytes | bytearray) else 0)
            if value is None:
                return None
            if not is_checked:
                return fit(value)
            if kind == "record" and isinstance(value, dict) and not value.keys() <= names.keys():
                # A key may be made of the record's values: only names of the schema are shown.
                key = next(key for key in value if key not in names)
                near = nearest(key, names) if isinstance(key, str) else None
                hint = f" (the nearest is {near})" if near else ""
                raise Misfit(
                    f"has a key that is no field of {label(node)}{hint}: add the field to that schema"
                )
            if kind == "array" and isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
                raise Misfit(f"a list of more than {MAX_ITEMS:,} items")
            # A symbol may be of a subclass of `str`, such as a `StrEnum`.
            return fit(fit_text(value) if kind == "enum" else value)

        return take

    def _default(self, owner: Field) -> Callable[[], Any]:
        # None and a missing key mean the same: there is no value. The field counts nevertheless.
        return self._count

    def _take_key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise Misfit("expected text as keys")
        self._count(len(key))
        return fit_text(key)

    def _candidates(self, branches: list[tuple[AvroType, Fit]], value: Any) -> Iterable[tuple[AvroType, Fit]]:
        # First the branches that it may have come from: 5 of a long must not become 5.0 of a double.
        return sorted(branches, key=lambda one: not may_be(one[0], value))


def _leaf_from_python(node: Primitive | Fixed) -> Fit:
    logical = node.logical
    if logical is not None and logical.family in _TIMES:
        return _time_from_python(logical, INT_RANGE if node.kind == "int" else LONG_RANGE)
    if logical is not None and logical.family == "decimal":
        # A float has lost the exact amount already.
        expected = f"expected a Decimal of at most {logical.precision} digits, {logical.scale} of them after the point"
        to_scale = partial(decimal_to_scale, logical=logical)
        return fit_decimal((Decimal, int), to_scale, f"{expected} (quantize rounds)")
    # A decoded UUID is text, also if its type is fixed.
    return fit_text if logical is not None else python_leaf(node)


def _time_to_python(logical: Logical) -> Fit | None:
    """Return a function that makes a `datetime`, `date` or `time` of a count; None for nanoseconds.

    A count beyond the year 9999, which a record may hold, stays a number.
    """
    if logical.per_second > MICROS:
        return None  # Python's times have no nanoseconds: to round them is the function's choice
    begin = _TIMES[logical.family][1]
    unit = timedelta(seconds=1) / logical.per_second if logical.per_second else timedelta(days=1)

    def give(count: int) -> Any:
        try:
            moment = begin + unit * count
        except OverflowError:
            return count
        return moment.time() if logical.family == "time" else moment

    return give


def _time_from_python(logical: Logical, bounds: range) -> Fit:
    wanted, begin = _TIMES[logical.family]
    wanted += f", or a whole number ({logical.name})"

    def take(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            count = int(value)
        else:
            try:
                moment = datetime.combine(_FIRST_DAY, value) if logical.family == "time" else value
                since = moment - begin
            except TypeError:
                # Python subtracts no date from a datetime, and no time with a zone from one without, nor the reverse.
                since = None
            if not isinstance(since, timedelta):
                raise Misfit(f"expected {wanted}")
            count = count_of(since, logical)
        if count not in bounds:
            raise Misfit(f"expected {wanted}; this one is too far off")
        return count

    return take
