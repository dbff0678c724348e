"""The operators of computed values, and the functions that both executors call.

Theory of operation. An *expression* is a `Source`, which both executors read by its steps, or `Computed`, for which
they call Python. Each operator is a class: it says which kinds of value it gives, and makes its function out of those
of its parts. A `Computation` names the values that it takes (`ReadValue`) and has one function of them. Both executors
read these values in their own way and call the same function, so both compute the same. Each read goes up to the first
array on its path; the function does the rest, including the elements of a sum.

Paths are written from the record, as everywhere in a mapping. Which of several items a path means depends on its place:
under ``sum``, and in a field of ``contents[]``, it is the present item.

Numbers are decimal and exact: a double counts as its shortest decimal, and no digit is ever lost. A missing value is
None. A value that is no number is `Omitted.MALFORMED`, which each rule treats as a malformed value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from itertools import takewhile
from typing import Any, ClassVar, Final, NamedTuple

from consumer.avro.paths import EACH, IndexedPath, Path, Source, value_at, walk
from consumer.conversion.amounts import exact
from consumer.conversion.computed.phones import with_country
from consumer.conversion.normalise import Omitted, text_of, trim

Scalar = str | int | float  # of TOML; a boolean is an int
# The values read, and the present elements of the enclosing sums -> the value.
Function = Callable[[Sequence[Any], tuple[Any, ...]], Any]
Made = tuple[Function, bool]  # the function, and whether it gives a list
Scopes = tuple[IndexedPath, ...]  # the ways to the elements of the enclosing sums
NameOf = Callable[[Any], Any]  # the event's type -> its conversion's name

# No result is ever rounded: the digits of an operand are bounded (`amounts.MAX_DIGITS`), and so is their number.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_OPERATIONS: Final[dict[str, Callable[[Decimal, Decimal], Decimal]]] = {
    "add": _EXACT.add,
    "subtract": _EXACT.subtract,
    "multiply": _EXACT.multiply,
}
_ITSELF: Final = "<branch>"  # no name of Avro's
_ITEM, _EVENT = -1, -2  # where a way begins that begins in no sum


class Unreadable(ValueError):
    """A line of a mapping is no expression, or not one of this schema. The text is one line.

    `missing`: the path that the schema lacks, if that is the error.
    """

    def __init__(self, message: str, missing: str | None = None) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Computed:
    """A value that is computed from its `parts`. As `Source`, it has a `path`, for messages, and `kinds`."""

    parts: tuple[Expression, ...]
    gives: ClassVar[frozenset[str]] = frozenset()  # the kinds of all its values; empty: those of its parts

    @property
    def path(self) -> str:
        """Return the paths that it is computed from, for messages."""
        paths = dict.fromkeys(source.path for source in sources_in(self))
        return ", ".join(paths) or "values of the mapping"

    @property
    def kinds(self) -> frozenset[str]:
        """Return the kinds of value that it may be; see `Source`."""
        if isinstance(self, Constant | Table):  # values that are in the mapping itself
            return frozenset(map(kind_of, constants_in(self)))
        return self.gives or frozenset[str]().union(*(result.kinds for result in results_of(self)))

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """Return its function; `maker` makes those of its parts. Raises `Unreadable`."""
        return maker.make(self.parts[0], scopes)


Expression = Source | Computed


class Element(Computed):
    """The value at a path that picks one element of an array, as ``lines[0]``."""


@dataclass(frozen=True, slots=True)
class Branch(Computed):
    """The name of the type of the record at a path, which may be of several types.

    A record holds all fields of its type, so its type follows from which of `fields` it holds: these are the keys of
    `names`.
    """

    fields: frozenset[str]
    names: dict[frozenset[str], str]

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        fields, names = self.fields, self.names

        def name(value: Any) -> str | None:
            # In a union, another type than a record may stand here.
            return names.get(frozenset(fields & value.keys())) if isinstance(value, dict) else None

        return maker.changed(name, self.parts[0], scopes)


@dataclass(frozen=True, slots=True)
class Constant(Computed):
    """A value that is the same for every event."""

    parts: tuple[Expression, ...] = field(default=(), init=False)
    value: Scalar

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        value = self.value
        return lambda _read, _at: value, False


class First(Computed):
    """The value of the first part that has one."""

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        made = [maker.make(part, scopes) for part in self.parts]

        def first(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            for function, _ in made:
                value = function(read, at)
                if not _is_missing(value):
                    return value
            return None

        return first, any(is_many for _, is_many in made)


@dataclass(frozen=True, slots=True)
class Join(Computed):
    """The texts of the parts, with `glue` between them; nothing if one is missing."""

    glue: str
    gives = frozenset({"string"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        functions, glue = [maker.one(part, "join", scopes) for part in self.parts], self.glue

        def join(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            texts: list[str] = []
            for function in functions:
                text = text_of(function(read, at))
                # Half of a key would be another key: no value is better.
                if isinstance(text, Omitted):
                    return None if text is Omitted.BLANK else text
                texts.append(text)
            return glue.join(texts)

        return join, False


@dataclass(frozen=True, slots=True)
class Table(Computed):
    """The entry of `entries` for a value, or else `otherwise`. Nothing for a missing value."""

    # By text, since keys of TOML are text: a number or a boolean is looked up as it is written.
    entries: dict[str, Scalar]
    otherwise: Scalar | None

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        entries, otherwise = self.entries, self.otherwise

        def entry(value: Any) -> Any:
            if isinstance(value, bool):  # as TOML writes it
                return entries.get("true" if value else "false", otherwise)
            text = text_of(trim(value) if isinstance(value, str) else value)
            if isinstance(text, Omitted):  # blank text is no value, so it has no entry
                return None if text is Omitted.BLANK else text
            return entries.get(text, otherwise)

        return maker.changed(entry, self.parts[0], scopes)


class Sum(Computed):
    """The sum over all elements of an array; nothing if there are none, or one has no value."""

    gives = frozenset({"decimal"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        [of] = self.parts
        values = maker.each(maker.array(of, scopes), of, "sum", scopes)
        return lambda read, at: _folded(_EXACT.add, values(read, at)), False


@dataclass(frozen=True, slots=True)
class Arithmetic(Computed):
    """The operation over the parts, from the first to the last; nothing if one is missing."""

    operator: str
    gives = frozenset({"decimal"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        functions = [maker.one(part, self.operator, scopes) for part in self.parts]
        operation = _OPERATIONS[self.operator]
        return lambda read, at: _folded(operation, (of(read, at) for of in functions)), False


@dataclass(frozen=True, slots=True)
class Condition(Computed):
    """Whether the value is one of `allowed`."""

    allowed: tuple[Scalar, ...]
    gives = frozenset({"boolean"})

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        function, allowed = maker.one(self.parts[0], "a condition", scopes), self.allowed
        return lambda read, at: _is_among(function(read, at), allowed), False


@dataclass(frozen=True, slots=True)
class When(Computed):
    """The first part, if all others (conditions) hold and the conversion's name is one of `events`; else nothing."""

    events: frozenset[str] | None  # None: any name

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


@dataclass(frozen=True, slots=True)
class Each(Computed):
    """The part for each element of an array: several values."""

    # The items' array: a field that follows from a computed field of the items is computed for each item.
    array: Path

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        values = maker.each(self.array, self.parts[0], "a field of an item", scopes)
        # Without nulls, as `walk` gives the values of a path.
        return lambda read, at: [value for value in values(read, at) if value is not None], True


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


# -- properties of an expression, without a record


def asked_by(expression: Expression) -> tuple[Path, ...]:
    """Return the paths of all that is read for this expression."""
    # Decoders read only the paths that are asked for, so a path that is forgotten here would always be missing.
    if isinstance(expression, Source):
        return (expression.steps,)
    if isinstance(expression, Branch):
        [steps] = asked_by(expression.parts[0])
        # The record itself is needed: a name that no field has makes the decoder keep it whole.
        return tuple((*steps, name) for name in (*sorted(expression.fields), _ITSELF))
    return tuple(path for part in expression.parts for path in asked_by(part))


def sources_in(expression: Expression, *, in_sums: bool = True) -> Iterator[Source]:
    """Yield the paths that an expression is computed from; without `in_sums`, only those outside of sums."""
    # A sum goes through an array of its own, independent of the array around it.
    if isinstance(expression, Source):
        yield expression
    elif in_sums or not isinstance(expression, Sum):
        for part in expression.parts:
            yield from sources_in(part, in_sums=in_sums)


def results_of(expression: Expression) -> Iterator[Expression]:
    """Yield the expressions whose value this may have: the alternatives, without the conditions that choose."""
    if isinstance(expression, First | When | Each | Element | Branch):
        # The other parts of `When` are conditions: they choose, and none of them is the value.
        for part in expression.parts if isinstance(expression, First) else expression.parts[:1]:
            yield from results_of(part)
    else:
        yield expression


def constants_in(expression: Expression) -> Iterator[Scalar]:
    """Yield the constants that an expression may have as its value, as they are written."""
    for result in results_of(expression):
        # Constants in a join or a sum are only parts: none of them is the value.
        if isinstance(result, Constant):
            yield result.value
        elif isinstance(result, Table):
            yield from result.entries.values()
            yield from () if result.otherwise is None else (result.otherwise,)


def depends_on_event(expression: Expression) -> bool:
    """Return whether a condition in this asks for the conversion's name."""
    # The event's name itself must not depend on it: it would need itself.
    if isinstance(expression, When) and expression.events is not None:
        return True
    return isinstance(expression, Computed) and any(map(depends_on_event, expression.parts))


def array_of(expression: Expression) -> Path | None:
    """Return the steps to the array whose elements have this value; empty: no array, None: the same for all elements.

    Raises `Unreadable` if it reads from several arrays.
    """
    arrays: dict[Path, str] = {}
    for source in sources_in(expression, in_sums=False):
        steps = source.steps
        if is_many(source):
            if source.picks:
                raise Unreadable(f"{source.path!r}: a path into the items cannot pick an element on the way")
            # An array of arrays is gone through to its innermost elements.
            arrays.setdefault(steps[: len(steps) - steps[::-1].index(EACH)], source.path)
    if len(arrays) > 1:
        raise Unreadable(f"{' and '.join(map(repr, arrays.values()))} are of two arrays")
    # A plain path without an array is a field of the event, not of an item.
    return next(iter(arrays), () if isinstance(expression, Source) else None)


def is_many(expression: Expression) -> bool:
    """Return whether this may give several values of an event."""
    if isinstance(expression, Source):
        return expression.steps.count(EACH) > len(expression.picks)
    if isinstance(expression, When | Phone):
        return is_many(expression.parts[0])
    if isinstance(expression, Element | Branch | First | Table):
        return any(map(is_many, expression.parts))
    return isinstance(expression, Each)


def expression_name(expression: Expression) -> str:
    """Return the name of an expression in messages: its path, its value, or its operator."""
    if isinstance(expression, Source | Element | Branch):
        return repr(expression.path)
    if isinstance(expression, Constant):
        return repr(expression.value)
    return expression.operator if isinstance(expression, Arithmetic) else type(expression).__name__.lower()


def source_misfit(expression: Expression, kinds: frozenset[str]) -> str:
    """Return which value of this is of none of these kinds, and what it is instead, for messages; empty: all fit."""
    # One fitting branch of a union is enough: records with another branch have no value.
    found = (result for result in results_of(expression) if not result.kinds & kinds)
    return next((f"{expression_name(result)} is {listed(result.kinds)}" for result in found), "")


def listed(kinds: frozenset[str]) -> str:
    """Return kinds as text for messages."""
    return " or ".join(sorted(kinds))


def kind_of(value: Scalar) -> str:
    """Return the kind of a value that is in the mapping itself; see `Source`."""
    if isinstance(value, bool):  # before int, which a bool is in Python
        return "boolean"
    return "string" if isinstance(value, str) else "long" if isinstance(value, int) else "double"


# -- from an expression to its function


class ReadValue(NamedTuple):
    """A value that is read from the present item or the event; `names` end at the first array."""

    of_item: bool
    names: Path


class Computation(NamedTuple):
    """The values to read for a computed value, and its function."""

    reads: tuple[ReadValue, ...]
    function: Function
    is_many: bool  # whether it gives a list

    def value(self, event: Any, item: Any) -> Any:
        """Return the value for this event and this item of it; None if there is none."""
        # The compiled program fills the same list in its own way.
        read = [value_at(item if of_item else event, names) for of_item, names in self.reads]
        return self.function(read, ())


def computation(
    expression: Expression, item_steps: Path | None, name: Expression | None, name_of: NameOf
) -> Computation:
    """Return how `expression` is computed.

    `item_steps`: to the items' array if it belongs to a field of an item, else None. `name` gives the event's type.
    Raises `Unreadable` if a path gives several values where one is taken.
    """
    maker = Maker(item_steps, name, name_of)
    function, is_many = maker.make(expression, ())
    # Several values of an event are sent as a list, or the first of them; a field of an item takes one.
    if is_many and item_steps is not None:
        raise Unreadable(f"{expression_name(expression)} may give several values of one item")
    return Computation(tuple(maker.reads), function, is_many)


class Maker:
    """Makes the function of one expression, and collects the values to read for it; see `computation`."""

    def __init__(self, item_steps: Path | None, name: Expression | None, name_of: NameOf) -> None:
        self.reads: dict[ReadValue, int] = {}  # each value once, with its index in the function's list
        self._item = item_steps
        self._name = name
        self._name_of = name_of

    def make(self, expression: Expression, scopes: Scopes) -> Made:
        """Return the function of an expression inside these sums. Raises `Unreadable`."""
        if isinstance(expression, Source):
            return self.value(_marked(expression), scopes)
        return expression.make(self, scopes)

    def one(self, expression: Expression, operator: str, scopes: Scopes) -> Function:
        """Return the function of an operand that must have one value. Raises `Unreadable`."""
        function, is_many = self.make(expression, scopes)
        if is_many:
            raise Unreadable(
                f"{operator} takes one value, but {expression_name(expression)} may give several: name one, as in "
                "lines[0], or put a sum over it"
            )
        return function

    def changed(self, change: Callable[[Any], Any], expression: Expression, scopes: Scopes) -> Made:
        """Return the function that changes the value of an expression, or each of its values."""
        function, is_many = self.make(expression, scopes)
        if is_many:
            # Alternatives and conditions may give a list, one value or none: all are walked as a list.
            return lambda read, at: [change(value) for value in walk(function(read, at), (EACH,))], True
        return lambda read, at: change(function(read, at)), False

    def event_name(self) -> Function:
        """Return the function of the conversion's name."""
        # The name belongs to the whole event, not to an item, so there are no scopes.
        event_type = None if self._name is None else self.one(self._name, "event_name", ())
        name_of = self._name_of
        return lambda read, at: name_of(event_type and event_type(read, at))

    def value(self, way: IndexedPath, scopes: Scopes) -> Made:
        """Return the function that gets the value at the end of a way."""
        depth, passed = self._scope(way, scopes)
        rest = way[passed:]
        # Below an element of a sum, no further value of the record is read.
        if depth >= 0:
            get = walk if EACH in rest else value_at
            return lambda _read, at: get(at[depth], rest), EACH in rest
        # The executors read only names, each in its own way; from the first array on, the function here walks the
        # value.
        names = tuple(map(str, takewhile(lambda step: isinstance(step, str) and step != EACH, rest)))
        index, beyond = (
            self.reads.setdefault(ReadValue(depth == _ITEM, names), len(self.reads)),
            rest[len(names) :],
        )
        if not beyond:
            return lambda read, _at: read[index], False
        reach = walk if EACH in beyond else value_at
        return lambda read, _at: reach(read[index], beyond), EACH in beyond

    def each(
        self, array: IndexedPath, of: Expression, operator: str, scopes: Scopes
    ) -> Callable[[Sequence[Any], tuple[Any, ...]], Iterator[Any]]:
        """Return a function that yields the one value of an operand for each element of an array. Raises
        `Unreadable`."""
        elements, _ = self.value(array, scopes)
        function = self.one(of, operator, (*scopes, array))
        return lambda read, at: (function(read, (*at, element)) for element in elements(read, at))

    def array(self, of: Expression, scopes: Scopes) -> IndexedPath:
        """Return the way to the one array that the paths of `of` go through, for a sum over it. Raises `Unreadable`."""
        arrays: dict[IndexedPath, str] = {}
        for source in sources_in(of, in_sums=False):
            way = _marked(source)
            _, passed = self._scope(way, scopes)
            # A sum may have one value for all elements in it, such as a rate.
            if EACH not in way[passed:]:
                continue
            # A single path goes to its innermost elements; several paths share the first array.
            if isinstance(of, Source | Element):
                end = len(way) - way[::-1].index(EACH)
            else:
                end = way.index(EACH, passed) + 1
                while way[end : end + 1] == (EACH,):
                    end += 1
            arrays.setdefault(way[:end], source.path)
        if not arrays and self._item and any(self._scope(_marked(one), ())[1] for one in sources_in(of)):
            raise Unreadable(
                f"sum: {expression_name(of)} is one value of the current item; a sum in a field of the items goes "
                "over a list within the item"
            )
        if not arrays:
            raise Unreadable(f"sum: {expression_name(of)} is of no array: write [] after the array's name")
        if len(arrays) > 1:
            one, other, *_ = arrays.values()
            raise Unreadable(f"sum: {one!r} and {other!r} are of two arrays; a sum is over one")
        return next(iter(arrays))

    def _scope(self, way: IndexedPath, scopes: Scopes) -> tuple[int, int]:
        """Return the scope that this way begins in (its place, `_ITEM` or `_EVENT`), and how many steps lead there."""
        # The innermost scope first: its elements are inside those of the others.
        for depth in range(len(scopes) - 1, -1, -1):
            size = len(scopes[depth])
            if way[:size] == scopes[depth]:
                return depth, size
        item = self._item
        return (_EVENT, 0) if item is None or way[: len(item)] != item else (_ITEM, len(item))


def _marked(source: Source) -> IndexedPath:
    """Return the steps of a path, with an index where it picks one element of an array."""
    steps: list[str | int] = list(source.steps)
    for position, index in source.picks:
        steps[position] = index
    return tuple(steps)


# -- operations on values


def _is_missing(value: Any) -> bool:
    """Return whether this is no value: null, blank text, or a list of only such values."""
    if isinstance(value, str):
        return not trim(value)
    return value is None or (isinstance(value, list) and all(map(_is_missing, value)))


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


def _folded(
    operation: Callable[[Decimal, Decimal], Decimal], values: Iterable[Any]
) -> Decimal | Omitted | None:
    """Return the operation over all values; if one is missing or no number, return that one: a partial result would
    be wrong."""
    result: Decimal | None = None
    for value in values:
        number = exact(value)
        if isinstance(number, Omitted):
            return None if number is Omitted.BLANK else number
        result = number if result is None else operation(result, number)
    return result
