"""What a mapping may say instead of a path: a value that is computed, as a TOML table.

Theory of operation. A table has one *operator* (``first``, ``join``, ``sum``, …), whose operands are paths or tables
again, and may have conditions. `Reading` makes an `Expression` of it and checks it against the schema; `functions`
makes the function of it. What is wrong is said in one line that names the operand.

An expression is a `Source`, which both executors read by its steps, or `Computed`, for which they call Python.

Paths are written from the record, as everywhere in a mapping. Which of several items a path means follows from where it
stands: under ``sum``, and in a field of ``contents[]``, it is the item at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, cast

from consumer.avro.paths import EACH, NoSuchPath, Path, SchemaPaths, Source
from consumer.avro.schema import Array, Field, Map, Record, Union
from consumer.conversion.amounts import exact
from consumer.errors import or_all

Scalar = str | int | float  # of TOML; a boolean is an int

NUMBERS: Final = frozenset({"int", "long", "float", "double", "decimal"})
WORDS: Final = frozenset({"string", "enum"})
# A number may be written as text; a symbol of an enum is none.
_OPERANDS: Final = NUMBERS | {"string"}
_JOINED: Final = NUMBERS | WORDS
# Text that means the same wherever it comes from: 1 and 1.0 are two texts, so no fractions.
_KEYS: Final = WORDS | {"int", "long", "boolean"}

_ARITHMETIC: Final = ("add", "subtract", "multiply")
_OPERATORS: Final = ("path", "branch", "value", "first", "join", "table", "sum", *_ARITHMETIC)
_ITSELF: Final = "<branch>"  # no name of Avro's
# Keys that may stand beside an operator.
_BESIDE: Final = {"join": ("with",), "table": ("of", "otherwise")}
_CONDITIONS: Final = ("when", "when_event")


class Unreadable(ValueError):
    """What a mapping says is no expression, or not one of this schema. One line."""


class Missing(Unreadable):
    """The schema has no such path."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Computed:
    """A value that is made of others. As `Source`, it has a `path`, for messages, and `kinds`."""

    __slots__ = ()

    @property
    def path(self) -> str:
        """The paths that it is computed from."""
        paths = dict.fromkeys(source.path for source in sources_in(cast("Made", self)))
        return ", ".join(paths) or "values of the mapping"

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of value that it may be; see `Source`."""
        made = cast("Made", self)  # its classes are those of `Made`, and no others
        match made:
            case Element(source) | Branch(source, _, _):
                return source.kinds
            case First(parts):
                return frozenset[str]().union(*(part.kinds for part in parts))
            case When(of, _, _) | Each(_, of):
                return of.kinds
            case Join() | Phone():
                return frozenset({"string"})
            case Sum() | Arithmetic():
                return frozenset({"decimal"})
            case Constant() | Table():
                return frozenset(map(_kind, constants_in(made)))


@dataclass(frozen=True, slots=True)
class Element(Computed):
    """What stands at a path on which one element of an array is picked, as in ``lines[0]``."""

    source: Source


@dataclass(frozen=True, slots=True)
class Branch(Computed):
    """The name of the record's type that stands at a path, of those that may.

    A record holds all fields of its type, so which of some `fields` it holds tells its type: `names` has it by those.
    """

    source: Source
    fields: frozenset[str]
    names: dict[frozenset[str], str]


@dataclass(frozen=True, slots=True)
class Constant(Computed):
    """The same for every event."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class First(Computed):
    """The first of these that has a value."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Join(Computed):
    """The texts of these, with `glue` between them; nothing if one is missing."""

    parts: tuple[Expression, ...]
    glue: str


@dataclass(frozen=True, slots=True)
class Table(Computed):
    """What stands in `entries` for a value; else `otherwise`. Nothing for a missing value."""

    of: Expression
    # By text, since keys of TOML are text: a number or a boolean is looked up as it is written.
    entries: dict[str, Scalar]
    otherwise: Scalar | None


@dataclass(frozen=True, slots=True)
class Sum(Computed):
    """The sum over all elements of an array; nothing if there are none, or one has no value."""

    of: Expression


@dataclass(frozen=True, slots=True)
class Arithmetic(Computed):
    """The first of these, and with it each of the others; nothing if one is missing."""

    operator: str
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """The value is one of `allowed`."""

    of: Expression
    allowed: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class When(Computed):
    """`of`, if all conditions hold and the conversion's name is one of `events`; else nothing."""

    of: Expression
    conditions: tuple[Condition, ...]
    events: frozenset[str] | None  # None: whatever the conversion's name is


@dataclass(frozen=True, slots=True)
class Each(Computed):
    """`of` for each element of an array: several values."""

    # The items' array: what follows from a computed field of the items is computed for each of them.
    array: Path
    of: Expression


@dataclass(frozen=True, slots=True)
class Phone(Computed):
    """Phone numbers with their country's code; see `phones`."""

    numbers: Expression
    country: Expression


Made = Element | Branch | Constant | First | Join | Table | Sum | Arithmetic | When | Each | Phone
Expression = Source | Made


def asked_by(expression: Expression) -> tuple[Path, ...]:
    """Return the paths of all that is read for this expression."""
    # Decoders read only what is asked for, so what is forgotten here would always be missing.
    if isinstance(expression, Source):
        return (expression.steps,)
    if isinstance(expression, Branch):
        # The record itself is looked at: a name that no field has keeps its fields together.
        return tuple((*expression.source.steps, name) for name in (*sorted(expression.fields), _ITSELF))
    return tuple(path for part in parts_of(expression) for path in asked_by(part))


def parts_of(expression: Expression) -> tuple[Expression, ...]:
    """Return the expressions that stand in this one."""
    match expression:
        case Source() | Constant():
            return ()
        case Element(source) | Branch(source, _, _):
            return (source,)
        case First(parts) | Join(parts, _) | Arithmetic(_, parts):
            return parts
        case Table(of, _, _) | Sum(of) | Each(_, of):
            return (of,)
        case Phone(numbers, country):
            return (numbers, country)
        case When(of, conditions, _):
            return (of, *(condition.of for condition in conditions))


def sources_in(expression: Expression, *, in_sums: bool = True) -> Iterator[Source]:
    """Yield the paths that this is computed from; without `in_sums`, only those outside of sums."""
    # A sum goes through an array of its own, whatever array the value around it is an element of.
    if isinstance(expression, Source):
        yield expression
    elif in_sums or not isinstance(expression, Sum):
        for part in parts_of(expression):
            yield from sources_in(part, in_sums=in_sums)


def results_of(expression: Expression) -> Iterator[Expression]:
    """Yield what this may be the value of: the alternatives, without what chooses among them."""
    if isinstance(expression, First):
        for part in expression.parts:
            yield from results_of(part)
    elif isinstance(expression, When | Each):
        yield from results_of(expression.of)
    else:
        yield expression


def constants_in(expression: Expression) -> Iterator[Scalar]:
    """Yield the constants that this may be, as they are written."""
    for result in results_of(expression):
        # Of a join or a sum the constants are parts only: none of them is the value.
        if isinstance(result, Constant):
            yield result.value
        elif isinstance(result, Table):
            yield from result.entries.values()
            yield from () if result.otherwise is None else (result.otherwise,)


def depends_on_event(expression: Expression) -> bool:
    """Return whether a condition in this asks for the conversion's name."""
    # The event's name itself must not: it would wait for itself.
    if isinstance(expression, When) and expression.events is not None:
        return True
    return any(depends_on_event(part) for part in parts_of(expression))


def array_of(expression: Expression) -> Path | None:
    """Return the steps to the array whose elements this is of; empty: it is of none, None: it is the same for all.

    Raises `Unreadable` if it is of several arrays.
    """
    arrays: dict[Path, str] = {}
    for source in sources_in(expression, in_sums=False):
        steps = source.steps
        if steps.count(EACH) > len(source.picks):
            if source.picks:
                raise Unreadable(f"{source.path!r}: a path into the items cannot pick an element on the way")
            # An array of arrays is gone through to its innermost elements.
            arrays.setdefault(steps[: len(steps) - steps[::-1].index(EACH)], source.path)
    if len(arrays) > 1:
        raise Unreadable(f"{' and '.join(map(repr, arrays.values()))} are of two arrays")
    # A path alone that goes through no array is no field of an item, but of the event.
    return next(iter(arrays), () if isinstance(expression, Source) else None)


def is_many(expression: Expression) -> bool:
    """Return whether this may give several values of an event."""
    match expression:
        case (Source() as source) | Element(source) | Branch(source, _, _):
            return source.steps.count(EACH) > len(source.picks)
        case First(parts):
            return any(map(is_many, parts))
        case Table(of, _, _) | When(of, _, _) | Phone(of, _):
            return is_many(of)
        case _:
            return isinstance(expression, Each)


def shown(expression: Expression) -> str:
    """Return how messages call this: its path, its value, or its operator."""
    match expression:
        case (Source() as source) | Element(source) | Branch(source, _, _):
            return repr(source.path)
        case Constant(value):
            return repr(value)
        case Arithmetic(operator, _):
            return operator
        case _:
            return type(expression).__name__.lower()


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):  # before int, which it is to Python
        return "boolean"
    return "string" if isinstance(value, str) else "long" if isinstance(value, int) else "double"


def listed(kinds: frozenset[str]) -> str:
    """Return kinds as messages say them."""
    return " or ".join(sorted(kinds))


class Reading:
    """Reads expressions over one schema. `event_names`: all names that events may be sent under."""

    def __init__(self, paths: SchemaPaths, event_names: frozenset[str]) -> None:
        self._paths = paths
        self._event_names = event_names

    def expression(self, said: Any) -> Expression:
        """Return what the mapping says: a path, or a table. Raises `Unreadable`."""
        if isinstance(said, str):
            try:
                source = self._paths.resolve(said)
            except NoSuchPath as error:
                # A path that ends at a record exists, and is a mistake in every schema that has it.
                if not self._paths.has(said):
                    raise Missing(str(error), said) from None
                raise Unreadable(str(error)) from None
            return Element(source) if source.picks else source
        if isinstance(said, list):
            raise Unreadable(
                "a list stands where one path is expected: { first = [...] } takes the first with a value"
            )
        if not isinstance(said, dict):
            raise Unreadable(
                f"a path must be text in quotes; {{ value = {said} }} is the same for every event"
            )
        return self._conditional(said, self._operation(said))

    def missing(self, said: Any) -> str | None:
        """Return the first path of what the mapping says that the schema lacks; None: it lacks none."""
        # Each section asks for all lines of the packaged mapping, and an error's message takes a look at all paths.
        if isinstance(said, str):
            return None if self._paths.has(said) else said
        try:
            self.expression(said)
        except Missing as error:
            return error.path
        except Unreadable:
            # It is wrong in another way, whatever the schema.
            pass
        return None

    def _operation(self, said: dict[str, Any]) -> Expression:  # noqa: C901 (one case for each operator)
        # Unknown keys are told first: a misspelled operator would else be said to be missing.
        operators = [key for key in said if key in _OPERATORS]
        beside = _BESIDE.get(operators[0], ()) if operators else ()
        for key in said:
            if key not in (*operators, *beside, *_CONDITIONS):
                known = or_all(key, (*_OPERATORS, *beside, *_CONDITIONS))
                raise Unreadable(f"{key!r} is nothing that a table may say; {known}")
        if len(operators) != 1:
            found = " and ".join(operators) or "none"
            raise Unreadable(f"a table says one of {', '.join(_OPERATORS)}; here is {found}")
        [operator] = operators
        operand = said[operator]
        match operator:
            case "path" if isinstance(operand, str):
                return self.expression(operand)
            case "branch" if isinstance(operand, str):
                return self._branch(operand)
            case "path" | "branch":
                raise Unreadable(f"{operator} must be a path in quotes")
            case "value":
                return Constant(_scalar("value", operand))
            case "first":
                return First(self._parts(operator, operand))
            case "join":
                if not isinstance(glue := said.get("with", ""), str):
                    raise Unreadable("with must be text in quotes")
                return Join(self._parts(operator, operand, _JOINED, "text or a number"), glue)
            case "table":
                return self._table(operand, said)
            case "sum":
                # Which array it goes over is checked later (`functions`), since that depends on the items' array.
                of = self.expression(operand)
                _require(operator, of, _OPERANDS, "a number")
                return Sum(of)
        return Arithmetic(operator, self._parts(operator, operand, _OPERANDS, "a number"))

    def _branch(self, path: str) -> Branch:
        try:
            source, records = self._paths.records(path)
        except NoSuchPath as error:
            raise Unreadable(str(error)) from None
        # Names without namespace are what people write, if they are enough to tell the types apart.
        short = [record.name.rpartition(".")[2] for record in records]
        names_are_short = len(set(short)) == len(records)
        holding = {
            name if names_are_short else record.name: {field.name for field in record.fields}
            for name, record in zip(short, records, strict=True)
        }
        told: frozenset[str] = frozenset()
        # As few fields as tell all types apart; those without parts first, for they are quickly read.
        fields = sorted((field for record in records for field in record.fields), key=_has_parts)
        for field in fields:
            more = told | {field.name}
            if len(_told_apart(holding, more)) > len(_told_apart(holding, told)):
                told = more
        names = _told_apart(holding, told)
        if len(names) < len(records):
            alike = next(name for name in holding if name not in names.values())
            other = names[frozenset(told & holding[alike])]
            raise Unreadable(
                f"branch: {other!r} and {alike!r} have fields of the same names, so they cannot be told apart"
            )
        return Branch(source, told, names)

    def _parts(
        self, operator: str, said: Any, kinds: frozenset[str] | None = None, meant: str = ""
    ) -> tuple[Expression, ...]:
        # One operand alone is probably a list that was cut, or the wrong operator.
        if not isinstance(said, list) or len(said) < 2:
            raise Unreadable(
                f'{operator} takes a list of two or more: {operator} = ["one.path", "another.path"]'
            )
        parts = tuple(self.expression(part) for part in said)
        for part in parts:
            if kinds is not None:
                _require(operator, part, kinds, meant)
        return parts

    def _table(self, entries: Any, said: dict[str, Any]) -> Table:
        if not isinstance(entries, dict) or not entries:
            raise Unreadable('table takes values by text: table = { "1" = "shoes", "2" = "hats" }')
        if "of" not in said:
            raise Unreadable('table needs of, the path of the value: of = "…"')
        of = self.expression(said["of"])
        _require("table", of, _KEYS, "text, a whole number or a boolean")
        kinds = of.kinds
        for key in entries:
            # Text may be anything, but what is a number in every record has digits.
            if kinds <= {"int", "long"} and not key.removeprefix("-").isdecimal():
                raise Unreadable(f"table: {shown(of)} is {listed(kinds)}, so it is never {key!r}")
            if kinds == {"boolean"} and key not in ("true", "false"):
                raise Unreadable(
                    f'table: {shown(of)} is boolean, so it is never {key!r}: write "true" or "false"'
                )
        otherwise = said.get("otherwise")
        return Table(
            of,
            {key: _scalar(f"table {key!r}", value) for key, value in entries.items()},
            None if otherwise is None else _scalar("otherwise", otherwise),
        )

    def _conditional(self, said: dict[str, Any], of: Expression) -> Expression:
        events = said.get("when_event")
        if events is not None:
            events = [events] if isinstance(events, str) else events
            if not isinstance(events, list) or not events:
                raise Unreadable('when_event takes names of conversion events: when_event = ["checkout"]')
            for name in events:
                # It would never be met, and the field never sent.
                if name not in self._event_names:
                    known = or_all(str(name), sorted(self._event_names))
                    raise Unreadable(f"when_event: {name!r} is not the name of a conversion event; {known}")
        when = said.get("when")
        if when is None and events is None:
            return of
        if when is not None and (not isinstance(when, dict) or not when):
            raise Unreadable('when takes values by path: when = { "shop.country" = ["DE", "AT"] }')
        conditions = [
            self.condition("when", path, allowed)
            for path, allowed in flat(when or {}, lambda _: True).items()
        ]
        return When(of, tuple(conditions), None if events is None else frozenset(events))

    def condition(self, key: str, path: str, allowed: Any) -> Condition:
        """Return the condition that the value at `path` is `allowed`, or one of them. Raises `Unreadable`."""
        of = self.expression(path)
        kinds = of.kinds
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if not allowed:
            raise Unreadable(f"{key}: {path!r} has no values to compare with")
        for value in allowed:
            # A value that the path never has is a mistake of the mapping: 1 is not "1".
            kind = _kind(_scalar(f"{key} {path!r}", value))
            fitting = {"boolean": {"boolean"}, "string": WORDS}.get(kind, NUMBERS)
            if not kinds & fitting:
                raise Unreadable(f"{key}: {path!r} is {listed(kinds)}, so it is never {value!r}")
        return Condition(of, tuple(allowed))


def _has_parts(field: Field) -> bool:
    branches = field.type.branches if isinstance(field.type, Union) else [field.type]
    return any(isinstance(branch, Record | Array | Map) for branch in branches)


def _told_apart(holding: dict[str, set[str]], fields: frozenset[str]) -> dict[frozenset[str], str]:
    """Return the first type, of those that hold the same of these fields, by what they hold."""
    names: dict[frozenset[str], str] = {}
    for name, held in holding.items():
        names.setdefault(frozenset(fields & held), name)
    return names


def _scalar(key: str, value: Any) -> Scalar:
    # TOML's dates and times are no values here: a record has none of their type. Blank text counts as missing.
    if not isinstance(value, str | int | float) or value == "":
        raise Unreadable(f"{key} must be one value: text in quotes, a number, true or false")
    return value


def _require(operator: str, part: Expression, kinds: frozenset[str], meant: str) -> None:
    """Raise `Unreadable` if what `part` may be is nothing that the operator takes."""
    # One fitting branch of a union is enough: of the others comes nothing, record by record.
    for result in results_of(part):
        found = result.kinds
        if not found & kinds:
            raise Unreadable(f"{operator} takes {meant}, but {shown(result)} is {listed(found)}")
    # Text of a record may be a number; what the mapping itself says is one, or never is.
    if kinds is _OPERANDS:
        for constant in constants_in(part):
            if not isinstance(exact(constant), Decimal):
                raise Unreadable(f"{operator} takes {meant}, but {constant!r} is none")


def flat(table: dict[str, Any], is_table: Callable[[str], bool], prefix: str = "") -> dict[str, Any]:
    """Return a table whose dotted names stand without quotes, which TOML takes for tables, by its dotted names.

    `is_table` says of a name whether a table of that name is such a part of names.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and is_table(name):
            found |= flat(value, is_table, f"{name}.")
        else:
            found[name] = value
    return found
