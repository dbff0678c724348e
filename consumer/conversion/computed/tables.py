"""How a mapping writes a computed value, and how that is checked.

A table has one *operator* (``first``, ``join``, ``sum``, …), whose operands are paths or tables again, and may have
conditions. `ExpressionReader` makes an `Expression` of it and checks it against the schema. Errors are one line that
names the operand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from consumer.avro.paths import NoSuchPath, SchemaPaths, Source
from consumer.avro.schema import Array, Field, Map, Record, branches_of
from consumer.conversion.amounts import MAX_DIGITS, exact
from consumer.conversion.computed.expressions import (
    Arithmetic,
    Branch,
    Computed,
    Constant,
    Element,
    Expression,
    First,
    Join,
    Scalar,
    Scaled,
    Sum,
    Table,
    Unreadable,
    constants_in,
    expression_name,
    listed,
    results_of,
    source_misfit,
)
from consumer.conversion.computed.operators import TESTS, All, Condition, Count, Time, When
from consumer.conversion.normalise import trim
from consumer.conversion.rules import TIMESTAMPS, local_moment, moment, units_of
from consumer.conversion.targets import DAYS, NUMBERS, TIME_UNITS, WORDS
from consumer.errors import or_all

# The kinds of operand that an operator takes, and their name in words; other operators take any kind. A number may be
# written as text; a symbol of an enum is none.
_NUMBER: Final = (NUMBERS | {"string"}, "a number")
_TAKES: Final = {
    "join": (NUMBERS | WORDS, "text or a number"),
    # Kinds whose text is the same from every source: 1 and 1.0 are two texts, so no fractions.
    "table": (WORDS | {"int", "long", "boolean"}, "text, a whole number or a boolean"),
    "time": (NUMBERS | DAYS | {"string"}, "a time"),
    **dict.fromkeys(("sum", "add", "subtract", "multiply"), _NUMBER),
}

# What no number has in it. A sign stands at its beginning, or behind an e.
_NO_NUMBER: Final = re.compile(r"[^0-9.eE+-]|(?<=[0-9.])[+-]")

_OPERATORS: Final = ("path", "branch", "value", "first", "all", "count", *_TAKES)
# Keys that may stand beside an operator.
_BESIDE: Final = {"join": ("with",), "table": ("of", "otherwise"), "time": ("unit", "zone")}
_CONDITIONS: Final = ("when", "when_event")


_Found = TypeVar("_Found")
Fold = Callable[[str], str]


class ExpressionReader:
    """Reads expressions over one schema. `event_names`: all names that events may be sent under; `time_unit`: that of
    times without one."""

    def __init__(
        self, paths: SchemaPaths, event_names: frozenset[str], time_unit: str = "milliseconds"
    ) -> None:
        self._paths = paths
        self._event_names = event_names
        self._time_unit = time_unit

    def expression(self, said: Any) -> Expression:
        """Return the expression that the mapping has here: a path, or a table. Raises `Unreadable`."""
        if isinstance(said, str):
            source = self._resolved(said, self._paths.resolve)
            if source.is_scaled:
                return Scaled((source,))
            return Element((source,)) if source.picks else source
        if isinstance(said, list):
            raise Unreadable(
                "a list stands where one path is expected: { first = [...] } takes the first with a value, "
                "{ all = [...] } the values of all"
            )
        if not isinstance(said, dict):
            as_toml = str(said).lower() if isinstance(said, bool) else said
            raise Unreadable(
                f"a path must be text in quotes; {{ value = {as_toml} }} is the same for every event"
            )
        return self._conditional(said, self._operation(said))

    def missing(self, said: Any) -> str | None:
        """Return the first path in this part of the mapping that the schema lacks; None: it lacks none."""
        # A fast way for plain paths: each section asks for all lines of the packaged mapping, and an error's message
        # compares all paths.
        if isinstance(said, str):
            return None if self._paths.has(said) else said
        try:
            self.expression(said)
        except Unreadable as error:
            # None if the error is another one, in every schema.
            return error.missing
        return None

    def _resolved(self, path: str, resolve: Callable[[str], _Found]) -> _Found:
        """Return the result of `resolve`, a method of `SchemaPaths`, for a path. Raises `Unreadable`."""
        try:
            return resolve(path)
        except NoSuchPath as error:
            # A path that ends at a record exists, and is an error in every schema that has it.
            raise Unreadable(str(error), None if self._paths.has(path) else path) from None

    def _operation(self, said: dict[str, Any]) -> Expression:  # noqa: C901 (one case for each operator)
        # Unknown keys are reported first: a misspelled operator would otherwise be reported as missing.
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
            case "path" | "branch" | "count":
                if not isinstance(operand, str):
                    raise Unreadable(f"{operator} must be a path in quotes")
                if operator == "count":
                    return Count((self._resolved(operand, self._paths.elements),))
                return self.expression(operand) if operator == "path" else self._branch(operand)
            case "value":
                return Constant(_scalar("value", operand))
            case "first":
                return First(self._parts(operator, operand))
            case "all":
                return All(self._parts(operator, operand))
            case "time":
                return self._time(operand, said)
            case "join":
                if not isinstance(glue := said.get("with", ""), str):
                    raise Unreadable("with must be text in quotes")
                return Join(self._parts(operator, operand), glue)
            case "table":
                return self._table(operand, said)
            case "sum":
                # Which array it goes over is checked later (`computation`), since that depends on the items' array.
                return Sum((self._operand(operator, self.expression(operand)),))
        return Arithmetic(self._parts(operator, operand), operator)

    def _time(self, operand: Any, said: dict[str, Any]) -> Time:
        of = self._operand("time", self.expression(operand))
        name, typed, unit = expression_name(of), of.kinds & DAYS, said.get("unit")
        if unit is not None and unit not in TIME_UNITS:
            raise Unreadable(f"unit is one of {', '.join(map(repr, TIME_UNITS))}")
        if len(typed) > 1 or (typed and of.kinds & NUMBERS):
            raise Unreadable(f"{name} counts in several units: put a time around each of its parts")
        if typed and unit is not None:
            raise Unreadable(f"{name} is {listed(typed)}, so its unit is known: remove unit")
        zone = zone_named(said["zone"]) if "zone" in said else None
        is_local = all(isinstance(one, Source) and one.is_local for one in results_of(of))
        if zone is not None and typed & TIMESTAMPS.keys() and not is_local:
            raise Unreadable(
                f"{name} is {listed(typed)}, a moment that is the same in all zones: remove zone"
            )
        units, is_day = units_of(of.kinds, TIME_UNITS[unit or self._time_unit]), "date" in typed
        return Time((of,), local_moment(units, is_day, zone) if zone else moment(units, is_day), units)

    def _branch(self, path: str) -> Branch:
        source, records = self._resolved(path, self._paths.records)
        # People write names without namespace, if these are enough to distinguish the types.
        short = [record.name.rpartition(".")[2] for record in records]
        names_are_short = len(set(short)) == len(records)
        holding = {
            name if names_are_short else record.name: {field.name for field in record.fields}
            for name, record in zip(short, records, strict=True)
        }
        distinctive: frozenset[str] = frozenset()
        # As few fields as distinguish all types; those without parts first, since they are quick to read.
        fields = sorted((field for record in records for field in record.fields), key=_has_parts)
        for field in fields:
            more = distinctive | {field.name}
            if len(_distinguished(holding, more)) > len(_distinguished(holding, distinctive)):
                distinctive = more
        names = _distinguished(holding, distinctive)
        if len(names) < len(records):
            alike = next(name for name in holding if name not in names.values())
            other = names[frozenset(distinctive & holding[alike])]
            raise Unreadable(
                f"branch: {other!r} and {alike!r} have fields of the same names, so they cannot be distinguished"
            )
        return Branch((source._replace(symbols=frozenset(holding)),), distinctive, names)

    def _parts(self, operator: str, said: Any) -> tuple[Expression, ...]:
        # One operand alone is probably a list that was cut, or the wrong operator.
        if not isinstance(said, list) or len(said) < 2:
            raise Unreadable(
                f'{operator} takes a list of two or more: {operator} = ["one.path", "another.path"]'
            )
        # All parts are read before one is checked: a missing path in any of them is reported first (`missing`).
        parts = [self.expression(part) for part in said]
        return tuple(self._operand(operator, part) for part in parts)

    def _operand(self, operator: str, of: Expression) -> Expression:
        """Return this operand. Raises `Unreadable` if it may be only of kinds that the operator does not take."""
        if operator not in _TAKES:
            return of
        kinds, meant = _TAKES[operator]
        if other := source_misfit(of, kinds):
            raise Unreadable(f"{operator} takes {meant}, but {other}")
        # Text in a record may be a number or not; a constant of the mapping is always the same.
        for constant in constants_in(of) if _TAKES[operator] is _NUMBER else ():
            if not isinstance(exact(constant), Decimal):
                raise Unreadable(f"{operator} takes {meant}, but {constant!r} is none")
        for result in results_of(of) if _TAKES[operator] is _NUMBER else ():
            if isinstance(result, Join) and _is_never_a_number(result):
                raise Unreadable(f"{operator} takes {meant}, but the join with {result.glue!r} is none")
        return of

    def _table(self, entries: Any, said: dict[str, Any]) -> Table:
        if not isinstance(entries, dict) or not entries:
            raise Unreadable('table takes values by text: table = { "1" = "shoes", "2" = "hats" }')
        if "of" not in said:
            raise Unreadable('table needs of, the path of the value: of = "…"')
        of = self._operand("table", self.expression(said["of"]))
        for key in entries:
            if why := never(of, key, is_key=True):
                raise Unreadable(f"table: {why}")
        otherwise = said.get("otherwise")
        return Table(
            (of,),
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
                # Such a condition would never be met, and the field never sent.
                if not isinstance(name, str) or name not in self._event_names:
                    known = or_all(str(name), sorted(self._event_names))
                    raise Unreadable(f"when_event: {name!r} is not the name of a conversion event; {known}")
        when = said.get("when")
        if when is None and events is None:
            return of
        if when is not None and (not isinstance(when, dict) or not when):
            raise Unreadable('when takes values by path: when = { "shop.country" = ["DE", "AT"] }')
        compared = flat(when or {}, lambda name, inner: not self._are_tests(name, inner))
        conditions = (self._condition(path, allowed) for path, allowed in compared.items())
        return When((of, *conditions), None if events is None else frozenset(events))

    def _are_tests(self, name: str, table: dict[str, Any]) -> bool:
        """Return whether a table in `when` has tests of the path `name`, and is no part of a longer path."""
        # A map has every key, also that of a test's name: its path is then written in quotes.
        has, is_map = self._paths.has, self._paths.has(f"{name}.<key>")
        return not table or any(key in TESTS and (is_map or not has(f"{name}.{key}")) for key in table)

    def _comparison(self, path: str, of: Expression, said: dict[str, Any]) -> Condition:
        tests: list[tuple[str, Any]] = []
        if not said:
            raise Unreadable(f"when: {path!r} has nothing to compare with: write one of {', '.join(TESTS)}")
        for key, limit in said.items():
            if key not in TESTS:
                raise Unreadable(f"when: {path!r} is compared by {key!r}; {or_all(key, TESTS)}")
            meant, kinds, _ = TESTS[key]
            number = exact(limit)
            fits = {"a number": isinstance(number, Decimal), "text": isinstance(limit, str) and limit != ""}
            if isinstance(limit, bool) is (meant in fits) or not fits.get(meant, True):
                raise Unreadable(f"when: {path!r}: {key} takes {meant}, but {limit!r} is none")
            if kinds and (other := source_misfit(of, kinds)):
                raise Unreadable(f"when: {key} takes {meant}, but {other}")
            tests.append((key, number if meant == "a number" else limit))
        limits = dict(tests)
        if {"greater", "less"} <= limits.keys() and limits["greater"] >= limits["less"]:
            raise Unreadable(f"when: no number at {path!r} is greater and less than that: exchange the two")
        return Condition((of,), (), tuple(tests))

    def _condition(self, path: str, allowed: Any) -> Condition:
        """Return the condition that the value at `path` is `allowed`, or one of them, or meets these tests."""
        of = self.expression(path)
        if isinstance(allowed, dict):
            return self._comparison(path, of, allowed)
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if not allowed:
            raise Unreadable(f"when: {path!r} has no values to compare with")
        for value in allowed:
            if value == "":
                raise Unreadable(
                    f'when: {path!r} is compared with "", but blank text counts as missing, so that holds for no '
                    "record: name the values for which it holds"
                )
            if why := never(of, _scalar(f"when {path!r}", value)):
                raise Unreadable(f"when: {why}")
        return Condition((of,), tuple(allowed))


def is_ever(of: Expression, value: Scalar, *, is_key: bool = False, fold: Fold = str) -> bool:
    """Return whether the value of this may be `value`, which a mapping compares with it.

    The key of a table (`is_key`) is the text of a number or a boolean, too. `fold`: texts are equal if this makes them
    equal.
    """
    possible = of.kinds & _fitting(value, is_key)
    if not isinstance(value, str):
        # Not-a-number and infinity are no record's.
        return bool(possible) and (isinstance(value, bool) or isinstance(exact(value), Decimal))
    texts = texts_of(of) if possible <= WORDS else None
    return bool(possible) and (texts is None or fold(value) in map(fold, texts))


def never(of: Expression, value: Scalar, *, is_key: bool = False, fold: Fold = str) -> str:
    """Return why the value of this is never `value`, and the nearest that it may be; empty: it may be (`is_ever`)."""
    if is_ever(of, value, is_key=is_key, fold=fold):
        return ""
    name, kinds = expression_name(of), of.kinds
    if not kinds & _fitting(value, is_key):
        hint = ': write "true" or "false"' if is_key and kinds == {"boolean"} else ""
        return f"{name} is {listed(kinds)}, so it is never {value!r}{hint}"
    if not isinstance(value, str):
        return (
            f"{name} is compared with a number of at most {MAX_DIGITS} digits before and after the point, but "
            f"{value!r} is none"
        )
    return f"{name} is never {value!r}; {or_all(value, sorted(texts_of(of) or ()))}"


def _fitting(value: Scalar, is_key: bool) -> frozenset[str]:
    """Return the kinds that may have this value. In a condition 1 is not "1"."""
    if not isinstance(value, str):
        return frozenset({"boolean"}) if isinstance(value, bool) else NUMBERS
    if not is_key:
        return WORDS
    # Text may be anything, but the text of a number has only digits.
    whole = {"int", "long"} if value.removeprefix("-").isdecimal() else set()
    return WORDS.union(whole, {"boolean"} if value in ("true", "false") else ())


def _is_never_a_number(join: Join) -> bool:
    """Return whether a part of every text that this gives is in no number."""
    fixed = [list(map(trim, texts_of(part) or ())) for part in join.parts if part.kinds <= WORDS]
    # Something stands before the glue: mostly a digit.
    return any(all(map(_NO_NUMBER.search, texts)) for texts in ([f"0{join.glue}"], *filter(None, fixed)))


def numbers_in_text(expression: Expression) -> Iterator[str]:
    """Yield the paths to text that is computed with as numbers: a text may be none."""
    for part in expression.parts if isinstance(expression, Computed) else ():
        yield from numbers_in_text(part)
        if isinstance(expression, Arithmetic | Sum):
            found = (one for one in results_of(part) if isinstance(one, Source))
            yield from (one.path for one in found if not one.kinds & NUMBERS)


def texts_of(of: Expression) -> frozenset[str] | None:
    """Return all texts that the value of this may be, if schema and mapping name them; None: it may be any text."""
    texts: set[str] = set()
    for result in results_of(of):
        if isinstance(result, Constant | Table):
            texts.update(one for one in constants_in(result) if isinstance(one, str))
        elif "string" in result.kinds:
            return None
        elif isinstance(result, Source):
            texts |= result.symbols
    return frozenset(texts)


def zone_named(name: Any) -> tzinfo:
    """Return a zone by its name in the IANA's database, or by its distance from UTC."""
    try:
        if str(name)[:1] in ("+", "-"):
            return datetime.fromisoformat(f"2000-01-01T00:00{name}").tzinfo or UTC
        return ZoneInfo(name)
    # No such file, a name that is no path, a file that is no zone.
    except (KeyError, ValueError, OSError, TypeError):
        raise Unreadable(
            f'zone {name!r} is not known here: write one of the IANA\'s names, "Europe/Berlin", or the distance from '
            'UTC, "+02:00" (names need the system\'s time zones, or the package tzdata)'
        ) from None


def _has_parts(field: Field) -> bool:
    return any(isinstance(branch, Record | Array | Map) for branch in branches_of(field.type))


def _distinguished(holding: dict[str, set[str]], fields: frozenset[str]) -> dict[frozenset[str], str]:
    """Return the types by which of these fields they have; of types that have the same ones, the first."""
    names: dict[frozenset[str], str] = {}
    for name, held in holding.items():
        names.setdefault(frozenset(fields & held), name)
    return names


def _scalar(key: str, value: Any) -> Scalar:
    # TOML's dates and times are no values here: a record has none of their type. Blank text counts as missing.
    if not isinstance(value, str | int | float) or value == "":
        raise Unreadable(f"{key} must be one value: text in quotes, a number, true or false")
    return value


def flat(
    table: dict[str, Any], is_table: Callable[[str, dict[str, Any]], bool], prefix: str = ""
) -> dict[str, Any]:
    """Return a table by its dotted names, which TOML takes for tables if they are written without quotes.

    `is_table`: returns whether a table inside, by its name, is a part of such names.
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and is_table(name, value):
            found |= flat(value, is_table, f"{name}.")
        else:
            found[name] = value
    return found
