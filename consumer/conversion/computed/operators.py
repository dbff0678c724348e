"""The operators that collect, count, read times and compare; see `expressions`, which has the others."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from consumer.avro.paths import EACH, ITEMS, Path, Source, walk
from consumer.avro.values import MICROS
from consumer.conversion.amounts import exact
from consumer.conversion.computed.expressions import (
    Computed,
    Expression,
    Made,
    Maker,
    Scalar,
    Scopes,
    Unreadable,
    array_of,
    asked_whole,
    expression_name,
    is_missing,
)
from consumer.conversion.computed.phones import with_country
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import NUMBERS, WORDS


class All(Computed):
    """The values of all parts, as one list."""

    choices = None
    is_list = True

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        functions = [maker.make(part, scopes)[0] for part in self.parts]
        # A value that is no list is walked as the only element of one.

        def every(read: Sequence[Any], at: tuple[Any, ...]) -> list[Any]:
            values = (value for function in functions for value in walk(function(read, at), (EACH,)))
            return [value for value in values if not is_missing(value)]

        return every, True


class Count(Computed):
    """How many elements a list has that are not null."""

    gives = frozenset({"long"})
    is_list, own_array = False, True

    @property
    def asked(self) -> tuple[Path, ...]:
        """See `Computed.asked`."""
        return asked_whole(self.parts[0])

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        function, is_many = maker.make(self.parts[0], scopes)
        if not is_many:
            name = expression_name(self.parts[0])
            raise Unreadable(f"count takes a list, but {name} is one value of the current element")
        return lambda read, at: len(walk(function(read, at), (EACH,))), False


class FirstList(Computed):
    """The elements of the first list that has any, each in an object under the number of its list; see `_from_item`."""

    is_list = True

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        functions = [maker.make(part, scopes)[0] for part in self.parts]

        def elements(read: Sequence[Any], at: tuple[Any, ...]) -> list[Any]:
            lists = ([{str(number): one} for one in get(read, at)] for number, get in enumerate(functions))
            return next(filter(None, lists), [])

        return elements, True


def unify(fields: dict[str, Expression], of_items: str) -> tuple[Path, ...]:
    """Make fields whose name begins with `of_items` be of one list, if they are of the first of several, and return
    these; none: they are of one list at most."""
    items = {name: one for name, one in fields.items() if name.startswith(of_items)}
    lists = max((tuple(dict.fromkeys(_lists_of(one))) for one in items.values()), key=len, default=())
    if len(lists) < 2:
        return ()
    fields.update((name, _from_item(one, lists)) for name, one in items.items())
    return lists


def _lists_of(expression: Expression) -> list[Path]:
    """Return the lists that the alternatives of a field of the items come from."""
    if isinstance(expression, Computed) and expression.choices != 0:
        return [one for part in expression.parts[: expression.choices] for one in _lists_of(part)]
    try:
        return [*filter(None, (array_of(expression),))]
    except Unreadable:  # raised again by whoever has the name of the field
        return []


def _from_item(expression: Expression, lists: Sequence[Path]) -> Expression:
    """Return the expression with paths through these lists as paths through `ITEMS`, whose elements `FirstList` makes:
    a path through another list than an item's finds nothing."""
    if not isinstance(expression, Source):
        parts = tuple(_from_item(part, lists) for part in expression.parts)
        return replace(expression, parts=parts) if parts else expression
    for number, steps in enumerate(lists):
        if expression.steps[: len(steps)] == steps:
            moved = (ITEMS, EACH, str(number), *expression.steps[len(steps) :])
            picks = tuple((at + len(moved) - len(expression.steps), pick) for at, pick in expression.picks)
            return expression._replace(steps=moved, picks=picks)
    return expression


@dataclass(frozen=True, slots=True)
class Time(Computed):
    """The time of the part in microseconds, by `rule` (`rules.moment`), which counts `units` a second."""

    rule: Callable[[Any], int | Omitted]
    units: int
    gives = frozenset({"timestamp-micros"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        rule, units = self.rule, self.units

        def time(value: Any) -> Any:
            answer = rule(value)
            if isinstance(answer, Omitted):
                return None if answer is Omitted.BLANK else answer
            return answer * MICROS // units

        return maker.changed(time, self.parts[0], scopes)


def _number_that(compare: Callable[[Decimal, Decimal], bool]) -> Callable[[Any, Decimal], bool]:
    def holds(value: Any, limit: Decimal) -> bool:
        number = exact(value)
        return isinstance(number, Decimal) and compare(number, limit)

    return holds


# What a test compares with, the kinds of value that it takes (none: all), and whether it holds of a value and that.
TESTS: Final[dict[str, tuple[str, frozenset[str], Callable[[Any, Any], bool]]]] = {
    "greater": ("a number", NUMBERS | {"string"}, _number_that(operator.gt)),
    "less": ("a number", NUMBERS | {"string"}, _number_that(operator.lt)),
    "begins_with": ("text", WORDS, lambda value, text: isinstance(value, str) and value.startswith(text)),
    "missing": ("true or false", frozenset(), lambda value, missing: is_missing(value) is missing),
}


@dataclass(frozen=True, slots=True)
class Condition(Computed):
    """Whether the value is one of `allowed`; or whether all `tests` of it hold, each with what it compares with."""

    allowed: tuple[Scalar, ...]
    tests: tuple[tuple[str, Any], ...] = ()
    gives = frozenset({"boolean"})
    is_list = False

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        tests, part = [(TESTS[key][2], limit) for key, limit in self.tests], self.parts[0]
        # Whether there is a value can be asked of a list, too.
        is_one = any(key != "missing" for key, _ in self.tests) or self.allowed
        function = maker.one(part, "a condition", scopes) if is_one else maker.make(part, scopes)[0]
        if allowed := self.allowed:
            return lambda read, at: _is_among(function(read, at), allowed), False

        def holds(read: Sequence[Any], at: tuple[Any, ...]) -> bool:
            value = function(read, at)
            return all(test(value, limit) for test, limit in tests)

        return holds, False


@dataclass(frozen=True, slots=True)
class When(Computed):
    """The first part, if all others (conditions) hold and the conversion's name is one of `events`; else nothing."""

    events: frozenset[str] | None  # None: any name
    choices = 1

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        of, *conditions = self.parts
        function, is_many = maker.make(of, scopes)
        tests = [maker.one(condition, "a condition", scopes) for condition in conditions]
        if (events := self.events) is not None:
            name = maker.event_name()
            # An event without a name has a `Rejection` or `Filtered` here, which is in no set of names.
            tests.append(lambda read, at: name(read, at) in events)

        def when(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            for holds in tests:
                if not holds(read, at):
                    return None
            return function(read, at)

        return when, is_many


class Phone(Computed):
    """Phone numbers, the first part, with the code of the country that the second one gives; see `phones`."""

    gives = frozenset({"string"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        function, is_many = maker.make(self.parts[0], scopes)
        country = maker.one(self.parts[1], "phone_country", scopes)

        def phone(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            numbers, of = function(read, at), country(read, at)
            if not is_many:
                return with_country(numbers, of)
            # Walked as in `changed`.
            return [with_country(number, of) for number in walk(numbers, (EACH,))]

        return phone, is_many


def depends_on_event(expression: Expression) -> bool:
    """Return whether a condition in this asks for the conversion's name."""
    # The event's name itself must not depend on it: it would need itself.
    if isinstance(expression, When) and expression.events is not None:
        return True
    return isinstance(expression, Computed) and any(map(depends_on_event, expression.parts))


# -- operations on values


def _is_among(value: Any, allowed: Sequence[Scalar]) -> bool:
    """Return whether a value of a record is one of those that a mapping names. Numbers are compared as numbers."""
    for one in allowed:
        # In Python true is 1; for the author of a mapping it is not.
        if isinstance(one, bool) or isinstance(value, bool) or isinstance(one, str):
            if type(value) is type(one) and value == one:
                return True
        elif isinstance(value, int | float | Decimal):
            # Two numbers that are malformed, such as NaN, are not equal.
            number = exact(value)
            if isinstance(number, Decimal) and number == exact(one):
                return True
    return False
