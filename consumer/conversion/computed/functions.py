"""From an expression to a function: what is read of a record for it, and what is made of that.

Theory of operation. A `Computation` names the values that it takes (`Read`) and has one function of them. Both
executors read these values in their own way and call the same function, so both compute the same. Each read goes up to
the first array on its path; what lies beyond is the function's business, which also goes through the elements of a sum.

Numbers are decimal and exact: a double is taken as the shortest decimal that means it, and no place is ever lost. A
missing value is None. What is no number is `LeftOut.MALFORMED`, which each rule takes for a malformed value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from itertools import takewhile
from typing import Any, Final, NamedTuple

from consumer.avro.paths import EACH, Path, Source
from consumer.conversion.amounts import exact
from consumer.conversion.computed.expressions import (
    Arithmetic,
    Branch,
    Condition,
    Constant,
    Each,
    Element,
    Expression,
    First,
    Join,
    Phone,
    Scalar,
    Sum,
    Table,
    Unreadable,
    When,
    shown,
    sources_in,
)
from consumer.conversion.computed.phones import with_country
from consumer.conversion.normalise import LeftOut, text_of, trim

# A path from some value on: names, `EACH` element, and the indexes of single elements.
Way = tuple[str | int, ...]
# What was read, and the elements that the sums around are at -> the value.
Function = Callable[[Sequence[Any], tuple[Any, ...]], Any]
NameOf = Callable[[Any], Any]  # the event's type -> its conversion's name

# No result is ever rounded: the digits of an operand are bounded (`amounts.MAX_DIGITS`), and so is their number.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_OPERATIONS: Final[dict[str, Callable[[Decimal, Decimal], Decimal]]] = {
    "add": _EXACT.add,
    "subtract": _EXACT.subtract,
    "multiply": _EXACT.multiply,
}


class Read(NamedTuple):
    """A value that is read: of the item at hand, or of the event; `names` end where the first array is."""

    of_item: bool
    names: Path


class Computation(NamedTuple):
    """What is read for a value, and how it is made of that."""

    reads: tuple[Read, ...]
    function: Function
    is_many: bool  # whether it gives a list

    def value(self, event: Any, item: Any) -> Any:
        """Return the value for this event, and this item of it; None where there is none."""
        # The compiled program fills the same list from its own reading.
        read = [_single(item if of_item else event, names) for of_item, names in self.reads]
        return self.function(read, ())


def computation(
    expression: Expression, item_steps: Path | None, name: Expression | None, name_of: NameOf
) -> Computation:
    """Return how `expression` is computed.

    `item_steps`: to the items' array if it belongs to a field of an item, else None. `name` gives the event's type.
    Raises `Unreadable` if a path gives several values where one is taken.
    """
    maker = _Maker(item_steps, name, name_of)
    function, is_many = maker.make(expression, ())
    # Several values of an event are sent as a list, or the first of them; a field of an item takes one.
    if is_many and item_steps is not None:
        raise Unreadable(f"{shown(expression)} may give several values of one item")
    return Computation(tuple(maker.reads), function, is_many)


class _Maker:
    """Makes the function of one expression, and gathers what is read for it."""

    def __init__(self, item_steps: Path | None, name: Expression | None, name_of: NameOf) -> None:
        self.reads: dict[Read, int] = {}  # each once, with its place in the list that the function gets
        self._item = item_steps
        self._name = name
        self._name_of = name_of

    def make(  # noqa: C901 (one case for each expression)
        self, expression: Expression, scopes: tuple[Way, ...]
    ) -> tuple[Function, bool]:
        """Return the function, and whether it gives a list. `scopes`: to the elements of the sums around."""
        match expression:
            case (Source() as source) | Element(source):
                return self._value(_marked(source), scopes)
            case Branch(source, fields, names):
                function, is_many = self._value(_marked(source), scopes)
                return _for_each(_branch(fields, names), function, is_many), is_many
            case Constant(value):
                return lambda _read, _at: value, False
            case First(parts):
                made = [self.make(part, scopes) for part in parts]
                return _first([function for function, _ in made]), any(is_many for _, is_many in made)
            case Join(parts, glue):
                return _join([self._one(part, "join", scopes) for part in parts], glue), False
            case Arithmetic(operator, parts):
                operands = [self._one(part, operator, scopes) for part in parts]
                operation = _OPERATIONS[operator]
                return lambda read, at: _folded(operation, (of(read, at) for of in operands)), False
            case Table(of, entries, otherwise):
                function, is_many = self.make(of, scopes)
                return _for_each(_table(entries, otherwise), function, is_many), is_many
            case When(of, conditions, events):
                function, is_many = self.make(of, scopes)
                return self._when(function, conditions, events, scopes), is_many
            case Sum(of):
                return self._sum(of, scopes), False
            case Phone(numbers, country):
                function, is_many = self.make(numbers, scopes)
                return _phone(function, is_many, self._one(country, "phone_country", scopes)), is_many
            case Each(array, of):
                return self._each(array, of, scopes), True

    def _one(self, expression: Expression, operator: str, scopes: tuple[Way, ...]) -> Function:
        function, is_many = self.make(expression, scopes)
        if is_many:
            raise Unreadable(
                f"{operator} takes one value, but {shown(expression)} may give several: name one, as in lines[0], or "
                "put a sum over it"
            )
        return function

    def _value(self, way: Way, scopes: tuple[Way, ...]) -> tuple[Function, bool]:
        # Below the element of a sum that is at hand, nothing more is read of the record.
        depth, passed = _scope(way, scopes)
        if depth >= 0:
            on = way[passed:]
            get = _several if EACH in on else _single
            return lambda _read, at: get(at[depth], on), EACH in on
        of_item = self._item is not None and way[: len(self._item)] == self._item
        rest = way[len(self._item) :] if of_item and self._item else way
        # The executors read names alone, each in its own way; from the first array on it is gone through here.
        names = tuple(map(str, takewhile(lambda step: isinstance(step, str) and step != EACH, rest)))
        index, beyond = self.reads.setdefault(Read(of_item, names), len(self.reads)), rest[len(names) :]
        if not beyond:
            return lambda read, _at: read[index], False
        reach = _several if EACH in beyond else _single
        return lambda read, _at: reach(read[index], beyond), EACH in beyond

    def _sum(self, of: Expression, scopes: tuple[Way, ...]) -> Function:
        """Return the sum of what `of` is for each element of the array that its paths go through."""
        arrays: dict[Way, str] = {}
        for source in sources_in(of, in_sums=False):
            way = _marked(source)
            _, passed = _scope(way, scopes)
            if passed == 0 and self._item and way[: len(self._item)] == self._item:
                passed = len(self._item)
            # One value for all elements, as a rate, may stand in a sum.
            if EACH not in way[passed:]:
                continue
            # A path alone is gone through to its innermost elements; several meet at the first array.
            if isinstance(of, Source | Element):
                end = len(way) - way[::-1].index(EACH)
            else:
                end = way.index(EACH, passed) + 1
                while way[end : end + 1] == (EACH,):
                    end += 1
            arrays.setdefault(way[:end], source.path)
        if (
            not arrays
            and self._item
            and any(_marked(one)[: len(self._item)] == self._item for one in sources_in(of))
        ):
            raise Unreadable(
                f"sum: {shown(of)} is one value of the item at hand; a sum in a field of the items goes over a list "
                "within the item"
            )
        if not arrays:
            raise Unreadable(f"sum: {shown(of)} is of no array: write [] after the array's name")
        if len(arrays) > 1:
            one, other, *_ = arrays.values()
            raise Unreadable(f"sum: {one!r} and {other!r} are of two arrays; a sum is over one")
        [array] = arrays
        elements, _ = self._value(array, scopes)
        function = self._one(of, "sum", (*scopes, array))
        return lambda read, at: _folded(
            _EXACT.add, (function(read, (*at, element)) for element in elements(read, at))
        )

    def _each(self, array: Path, of: Expression, scopes: tuple[Way, ...]) -> Function:
        elements, _ = self._value(array, scopes)
        function = self._one(of, "a field of an item", (*scopes, array))

        def each(read: Sequence[Any], at: tuple[Any, ...]) -> list[Any]:
            values = [function(read, (*at, element)) for element in elements(read, at)]
            # As `decisions.walk` does it for a path.
            return [value for value in values if value is not None]

        return each

    def _when(
        self,
        function: Function,
        conditions: tuple[Condition, ...],
        events: frozenset[str] | None,
        scopes: tuple[Way, ...],
    ) -> Function:
        tests = [self._condition(condition, scopes) for condition in conditions]
        if events is not None:
            # The name is that of the whole event, whatever item is at hand: hence no scopes.
            event_type = None if self._name is None else self._one(self._name, "event_name", ())
            name_of = self._name_of
            # What has no name is a `Rejection` or `Filtered`, which is none of these.
            tests.append(lambda read, at: name_of(event_type and event_type(read, at)) in events)

        def when(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            for holds in tests:
                if not holds(read, at):
                    return None
            return function(read, at)

        return when

    def _condition(self, condition: Condition, scopes: tuple[Way, ...]) -> Function:
        function, allowed = self._one(condition.of, "a condition", scopes), condition.allowed
        return lambda read, at: is_among(function(read, at), allowed)


# -- ways into values


def _marked(source: Source) -> Way:
    """Return the steps of a path, with the index where one element of an array is meant."""
    steps: list[str | int] = list(source.steps)
    for position, index in source.picks:
        steps[position] = index
    return tuple(steps)


def _scope(way: Way, scopes: tuple[Way, ...]) -> tuple[int, int]:
    """Return which of the scopes this way begins in, and how many of its steps lead there; -1 and 0: in none."""
    # The innermost first: its elements lie in those of the others.
    for depth in range(len(scopes) - 1, -1, -1):
        size = len(scopes[depth])
        if way[:size] == scopes[depth]:
            return depth, size
    return -1, 0


def _single(value: Any, way: Way) -> Any:
    """Return the value at the end of a way without arrays; None where there is none."""
    for step in way:
        if value is None:
            return None
        value = _step(value, step)
    return value


def _step(value: Any, step: str | int) -> Any:
    if isinstance(step, str):
        return value.get(step) if isinstance(value, dict) else None
    # What is no array is its own element, here as in `decisions.walk`.
    elements = value if isinstance(value, list) else [value]
    return elements[step] if -len(elements) <= step < len(elements) else None


def _several(value: Any, way: Way) -> list[Any]:
    """Return all values at the end of a way, without nulls; see `decisions.walk`."""
    values = [] if value is None else [value]
    for step in way:
        if step == EACH:
            found = [each for held in values for each in (held if isinstance(held, list) else [held])]
        else:
            found = [_step(held, step) for held in values]
        values = [held for held in found if held is not None]
    return values


# -- what is made of values


def _is_missing(value: Any) -> bool:
    """Return whether this is no value: null, blank text, or a list of nothing else."""
    if isinstance(value, str):
        return not trim(value)
    return value is None or (isinstance(value, list) and all(map(_is_missing, value)))


def _for_each(make: Callable[[Any], Any], function: Function, is_many: bool) -> Function:
    """Return what makes something of the function's value, or of each of its values."""
    if is_many:
        return lambda read, at: [make(value) for value in function(read, at)]
    return lambda read, at: make(function(read, at))


def _branch(fields: frozenset[str], names: dict[frozenset[str], str]) -> Callable[[Any], str | None]:
    return lambda value: names.get(frozenset(fields & value.keys())) if isinstance(value, dict) else None


def _first(functions: list[Function]) -> Function:
    def first(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
        for function in functions:
            value = function(read, at)
            if not _is_missing(value):
                return value
        return None

    return first


def _join(functions: list[Function], glue: str) -> Function:
    def join(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
        texts: list[str] = []
        for function in functions:
            text = text_of(function(read, at))
            # Half of a key is another key: nothing is better.
            if isinstance(text, LeftOut):
                return None if text is LeftOut.BLANK else text
            texts.append(text)
        return glue.join(texts)

    return join


def _table(entries: dict[str, Scalar], otherwise: Scalar | None) -> Callable[[Any], Any]:
    def entry(value: Any) -> Any:
        if isinstance(value, bool):  # as TOML writes it
            return entries.get("true" if value else "false", otherwise)
        text = text_of(trim(value) if isinstance(value, str) else value)
        if isinstance(text, LeftOut):
            return None if text is LeftOut.BLANK else text
        return entries.get(text, otherwise)

    return entry


def _phone(function: Function, is_many: bool, country: Function) -> Function:
    def phone(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
        numbers, of = function(read, at), country(read, at)
        return [with_country(number, of) for number in numbers] if is_many else with_country(numbers, of)

    return phone


def is_among(value: Any, allowed: Sequence[Scalar]) -> bool:
    """Return whether a value of a record is one of those that a mapping names. Numbers are compared as numbers."""
    for one in allowed:
        # To Python true is 1; to the author of a mapping it is not.
        if isinstance(one, bool) or isinstance(value, bool) or isinstance(one, str):
            if type(value) is type(one) and value == one:
                return True
        elif isinstance(value, int | float | Decimal) and exact(value) == exact(one):
            return True
    return False


def _folded(
    operation: Callable[[Decimal, Decimal], Decimal], values: Iterable[Any]
) -> Decimal | LeftOut | None:
    """Return the operation over all of these values; if one is missing or no number, that: a part would be wrong."""
    result: Decimal | None = None
    for value in values:
        number = exact(value)
        if isinstance(number, LeftOut):
            return None if number is LeftOut.BLANK else number
        result = number if result is None else operation(result, number)
    return result
