"""Computed values: what an expression is, and the functions that both executors call.

Theory of operation. An *expression* is a `Source`, which both executors read by its steps, or `Computed`, for which
they call Python. Each operator is a class (here, and in `operators`): it says which kinds of value it gives, and makes
its function out of those of its parts. A `Computation` names the values that it takes (`ReadValue`) and has one
function of them. Both executors read these values in their own way and call the same function, so both compute the
same. Each read goes up to the first array on its path; the function does the rest, including the elements of a sum.

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

from consumer.avro.paths import (
    EACH,
    SCALED,
    VALUES,
    Find,
    IndexedPath,
    Path,
    Source,
    is_several,
    to_first_list,
    to_last_list,
    value_at,
    walk,
)
from consumer.conversion.amounts import MAX_DIGITS, exact
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
_LONGEST_DECIMAL: Final = 32  # bytes: more digits than an amount may have
_ITSELF: Final = "<branch>"  # no name of Avro's
_LISTS: Final = (EACH, VALUES)
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
    choices: ClassVar[int | None] = 0  # how many parts, from the first on, may be its value; None: all
    is_list: ClassVar[bool | None] = None  # whether it may give several values; None: if a part may
    own_array: ClassVar[bool] = (
        False  # whether it goes through an array that is independent of those around it
    )

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

    @property
    def asked(self) -> tuple[Path, ...]:
        """Return the paths of all that is read for it."""
        return tuple(path for part in self.parts for path in asked_by(part))

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """Return its function; `maker` makes those of its parts. Raises `Unreadable`."""
        return maker.make(self.parts[0], scopes)


Expression = Source | Computed


class Element(Computed):
    """The value at a path that picks one element of an array, as ``lines[0]``."""

    choices = 1


@dataclass(frozen=True, slots=True)
class Constant(Computed):
    """A value that is the same for every event."""

    parts: tuple[Expression, ...] = field(default=(), init=False)
    value: Scalar

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        value = self.value
        return lambda _read, _at: value, False


@dataclass(frozen=True, slots=True)
class Branch(Element):
    """The name of the type of the record at a path, which may be of several types.

    A record holds all fields of its type, so its type follows from which of `fields` it holds: these are the keys of
    `names`.
    """

    fields: frozenset[str]
    names: dict[frozenset[str], str]

    @property
    def asked(self) -> tuple[Path, ...]:
        """See `Computed.asked`."""
        return asked_whole(self.parts[0], self.fields)

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        fields, names = self.fields, self.names

        def name(value: Any) -> str | None:
            # In a union, another type than a record may stand here.
            return names.get(frozenset(fields & value.keys())) if isinstance(value, dict) else None

        return maker.changed(name, self.parts[0], scopes)


class Scaled(Element):
    """The decimal that Connect's VariableScaleDecimal holds: a record of a scale and the bytes of a whole number."""

    @property
    def asked(self) -> tuple[Path, ...]:
        """See `Computed.asked`."""
        return asked_whole(self.parts[0], SCALED)

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        return maker.changed(_scaled, self.parts[0], scopes)


class First(Computed):
    """The value of the first part that has one."""

    choices = None

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        made = [maker.make(part, scopes) for part in self.parts]

        def first(read: Sequence[Any], at: tuple[Any, ...]) -> Any:
            for function, _ in made:
                value = function(read, at)
                if not is_missing(value):
                    return value
            return None

        return first, any(is_many for _, is_many in made)


@dataclass(frozen=True, slots=True)
class Join(Computed):
    """The texts of the parts, with `glue` between them; nothing if one is missing."""

    glue: str
    gives = frozenset({"string"})
    is_list = False

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
    is_list, own_array = False, True

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
    is_list = False

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        functions = [maker.one(part, self.operator, scopes) for part in self.parts]
        operation = _OPERATIONS[self.operator]
        return lambda read, at: _folded(operation, (of(read, at) for of in functions)), False


@dataclass(frozen=True, slots=True)
class Each(Computed):
    """The part for each element of an array: several values."""

    choices = 1
    is_list = True

    # The items' array: a field that follows from a computed field of the items is computed for each item.
    array: Path

    def make(self, maker: Maker, scopes: Scopes) -> Made:
        """See `Computed.make`."""
        values = maker.each(self.array, self.parts[0], "a field of an item", scopes)
        # Without nulls, as `walk` gives the values of a path.
        return lambda read, at: [value for value in values(read, at) if value is not None], True


# -- properties of an expression, without a record


def asked_by(expression: Expression) -> tuple[Path, ...]:
    """Return the paths of all that is read for this expression."""
    # Decoders read only the paths that are asked for, so a path that is forgotten here would always be missing.
    if isinstance(expression, Computed):
        return expression.asked
    steps = expression.steps
    return (steps, *((*steps[: at + 1], *by.path) for at, by in expression.picks if isinstance(by, Find)))


def asked_whole(expression: Expression, fields: Iterable[str] = ()) -> tuple[Path, ...]:
    """Return the paths that are read for the records at a path, of which these fields are needed."""
    steps, *others = asked_by(expression)
    # The record itself is needed: a name that no field has makes the decoder keep it whole.
    return (*((*steps, name) for name in (*sorted(fields), _ITSELF)), *others)


def sources_in(expression: Expression, *, in_sums: bool = True) -> Iterator[Source]:
    """Yield the paths that an expression is computed from; without `in_sums`, only those outside of sums."""
    if isinstance(expression, Source):
        yield expression
    elif in_sums or not expression.own_array:
        for part in expression.parts:
            yield from sources_in(part, in_sums=in_sums)


def results_of(expression: Expression) -> Iterator[Expression]:
    """Yield the expressions whose value this may have: the alternatives, without the conditions that choose."""
    parts = expression.parts[: expression.choices] if isinstance(expression, Computed) else ()
    for part in parts:
        yield from results_of(part)
    if not parts:
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


def array_of(expression: Expression, *, is_item: bool = True) -> Path | None:
    """Return the steps to the array whose elements have this value; empty: no array, None: the same for all elements.

    Raises `Unreadable` if it reads from several arrays, which only a field that is no item's (`is_item`) may do: None.
    """
    arrays: dict[Path, str] = {}
    for source in sources_in(expression, in_sums=False):
        steps = source.steps
        if is_many(source):
            # An array of arrays is gone through to its innermost elements.
            way = to_last_list(_marked(source))
            if way != steps[: len(way)] and is_item:
                raise Unreadable(
                    f"{source.path!r}: a path into the items cannot pick an element on the way to them"
                )
            arrays.setdefault(steps[: len(way)], source.path)
    if len(arrays) > 1 and is_item:
        raise Unreadable(f"{' and '.join(map(repr, arrays.values()))} are of two arrays")
    # A plain path without an array is a field of the event, not of an item.
    return next(iter(arrays), () if isinstance(expression, Source) else None) if len(arrays) < 2 else None


def is_many(expression: Expression) -> bool:
    """Return whether this may give several values of an event."""
    if isinstance(expression, Source):
        return is_several(_marked(expression))
    return any(map(is_many, expression.parts)) if expression.is_list is None else expression.is_list


def expression_name(expression: Expression) -> str:
    """Return the name of an expression in messages: its path, its value, or its operator."""
    if isinstance(expression, Source | Element):
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
            get = walk if is_several(rest) else value_at
            return lambda _read, at: get(at[depth], rest), is_several(rest)
        # The executors read only names, each in its own way; from the first array on, the function here walks the
        # value.
        names = tuple(map(str, takewhile(lambda step: isinstance(step, str) and step not in _LISTS, rest)))
        index, beyond = (
            self.reads.setdefault(ReadValue(depth == _ITEM, names), len(self.reads)),
            rest[len(names) :],
        )
        if not beyond:
            return lambda read, _at: read[index], False
        reach = walk if is_several(beyond) else value_at
        return lambda read, _at: reach(read[index], beyond), is_several(beyond)

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
            if not is_several(way[passed:]):
                continue
            # A single path goes to its innermost elements; several paths share the first array.
            if isinstance(of, Source | Element):
                array = to_last_list(way)
            else:
                array = to_first_list(way, passed)
                while way[len(array) : len(array) + 1] == (EACH,):
                    array = way[: len(array) + 1]
            arrays.setdefault(array, source.path)
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
    steps: list[str | int | Find] = list(source.steps)
    for position, index in source.picks:
        steps[position] = index
    return tuple(steps)


# -- operations on values


def is_missing(value: Any) -> bool:
    """Return whether this is no value: null, blank text, or a list of only such values."""
    if isinstance(value, str):
        return not trim(value)
    return value is None or (isinstance(value, list) and all(map(is_missing, value)))


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


def _scaled(value: Any) -> Decimal | Omitted | None:
    """Return the decimal of a VariableScaleDecimal; malformed if it has far more digits than an amount."""
    # In a union, another type than this record may stand here.
    scale, data = (value.get("scale"), value.get("value")) if isinstance(value, dict) else (None, None)
    if not isinstance(scale, int) or not isinstance(data, bytes):
        return None
    if len(data) > _LONGEST_DECIMAL or abs(scale) > 2 * MAX_DIGITS:
        return Omitted.MALFORMED
    return Decimal(int.from_bytes(data, "big", signed=True)).scaleb(-scale, _EXACT)
