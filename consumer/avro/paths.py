"""Paths into a commerce event, and the types at their ends.

Theory of operation. A path is written ``order.items[].sku``: field names and, inside a map, keys, separated by
dots; ``['a.b']`` is a key that holds a dot. ``[]`` after a name means each element of that array, or each value of that
map; ``[0]`` the first element, ``[-1]`` the last, ``[name='size']`` the first one whose field has this text. `resolve`
walks the schema along the written path and answers the steps to take in a record and the *kinds* of value found there.
Unions are walked in all their branches; a path that ends at an array of scalars means its elements, with or without the
final ``[]``. `value_at` and `walk` follow such steps through a record.

The walk follows the path, so it ends where the path ends, however the schema refers to itself. Listing all
paths (to name the nearest one in an error) is bounded in depth and in number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import dropwhile, islice
from sys import intern
from typing import Any, Final, NamedTuple, TypeVar

from consumer.avro.schema import (
    Array,
    AvroType,
    Enum,
    Fixed,
    Map,
    Primitive,
    Record,
    branches_of,
    parse,
)
from consumer.errors import first_of, nearest, or_all

AvroSchema = dict[str, Any]  # an Avro schema as its JSON, parsed

Path = tuple[str, ...]  # names of record fields and keys of maps, and `EACH` for every element of an array
EACH: Final = ""
# What a record has in Kafka beside its value, as a part of the event. No field has this name.
ORIGIN: Final = "@"
# The items, where they come from the first of several lists: a part of the event that the converter makes.
ITEMS: Final = "@items"
VALUES: Final = "\udc00"  # each value of a map: half of a surrogate pair is no key of a record
IndexedPath = tuple["str | int | Find", ...]  # as `Path`, but for arrays of which one element is meant

_Step = TypeVar("_Step", bound="str | int | Find")

# The paths that are asked for below a value; none: the value is not asked for. The empty path asks for all of it.
Picks = tuple[tuple[int, "int | Find"], ...]  # `Source.picks`
Asked = tuple[Path, ...]
NOTHING: Final[Asked] = ()
ALL: Final[Asked] = ((),)

_STRUCTURES: Final = frozenset({"record", "array", "map"})  # a path must not end at one
_NO_VALUES: Final = _STRUCTURES | {"null"}
# A schema may refer to itself, and have thousands of fields: a list of its paths, for a message, has to end.
_DEEPEST: Final = 8
_MAX_PATHS: Final = 2000
_MAX_NAMED: Final = 8  # paths in one message
_MAX_STEPS: Final = 128  # of a path: to explain a wrong one takes time that is the square of them
_SHOWN: Final = 40  # characters of a path that is too long
_ANY_KEY: Final = "<key>"  # of a map, in messages
# A name behind a dot; or in brackets nothing or an index, a key in quotes, or a field and the text that it has.
_STEP: Final = re.compile(
    r"""\.(?P<name>[^\[\].]+)|\[(?P<index>(?:-?[0-9]{1,5})?)\]"""
    r"""|\[(?:(?P<by>[^\[\]'"=]+)=)?(?P<quote>['"])(?P<text>.+?)(?P=quote)\]"""
)
# The fields of Connect's VariableScaleDecimal, by which it is known.
SCALED: Final = ("scale", "value")
# The kinds of what a record has in Kafka; a key may be text or a number.
_ORIGINS: Final = {
    "key": frozenset({"string", "long"}),
    "header": frozenset({"string"}),
    "timestamp": frozenset({"timestamp-millis"}),
    "topic": frozenset({"string"}),
    "partition": frozenset({"int"}),
    "offset": frozenset({"long"}),
}
_KEYS: Final = frozenset({"string", "enum", "int", "long"})  # kinds whose text an element is found by


class Find(NamedTuple):
    """The first element of an array whose value at the end of `path` has this text."""

    path: Path
    text: str

    def __str__(self) -> str:
        """Return it as a mapping has it between brackets."""
        return f"{'.'.join(self.path)}={self.text!r}"

    def of(self, elements: Iterable[Any]) -> Any:
        """Return that element; None if there is none."""
        values = ((one, value_at(one, self.path)) for one in elements)
        return next((one for one, value in values if value is not None and str(value) == self.text), None)


class Source(NamedTuple):
    """Where a value comes from: the path as written, the steps, and the Avro kinds found at its end.

    It may give several values if `EACH` or `VALUES` is among the steps. `picks`: of which arrays only one element is
    meant, as the position of that `EACH` among the steps, and the element's index, below 0 from the end, or its text.

    Kinds are the names of the primitive types, ``enum``, ``fixed``, and the logical types ``decimal``, ``date``,
    ``time-…`` and ``timestamp-…``; uuids are ``string``. ``null`` is not among them. `symbols` are those of ``enum``.
    `is_scaled`: a record that means a decimal stands there (`SCALED`). `is_local`: a timestamp of some zone.
    """

    path: str
    steps: Path
    kinds: frozenset[str]
    picks: Picks = ()
    symbols: frozenset[str] = frozenset()
    is_scaled: bool = False
    is_local: bool = False


class NoSuchPath(ValueError):
    """The schema has no such path, or the path ends at something that is not a value. The message is one line."""


class SchemaPaths:
    """The paths of one schema of ours, which is that of a record. Raises `InvalidSchema`."""

    def __init__(self, schema: AvroSchema) -> None:
        self.schema = schema
        record = parse(schema)
        assert isinstance(record, Record)  # noqa: S101 - the folder of schemas gives no others
        self.record = record

    def resolve(self, path: str) -> Source:
        """Return the source that `path` names. Raises `NoSuchPath`, which says what may be meant."""
        if path.startswith(ORIGIN):
            return _of_origin(path)
        steps, picks, places = self._walk(path)
        while items := _elements(places):
            # An array of scalars: the path means its elements.
            if not _are_scalars(items):
                break
            places = items
            steps.append(EACH)
        kinds = _kinds(places)
        is_scaled = kinds == {"record"} and all(map(_is_scaled, places))
        if is_scaled:
            kinds = {"decimal"}
        if not kinds:
            raise NoSuchPath(f"{path!r} is no value but null: name another path")
        if kinds & _STRUCTURES:
            raise NoSuchPath(_no_value(path, steps, places))
        symbols = frozenset(symbol for place in places if isinstance(place, Enum) for symbol in place.symbols)
        families = {
            place.logical.family for place in places if isinstance(place, Primitive) and place.logical
        }
        is_local = "local-timestamp" in families
        return Source(path, tuple(steps), frozenset(kinds), picks, symbols, is_scaled, is_local)

    def elements(self, path: str) -> Source:
        """Return where the elements of the list stand at which `path` ends, or through which it goes; its kinds may be
        those of structures. Raises `NoSuchPath`."""
        steps, picks, places = self._walk(path)
        if items := _elements(places):
            places = items
            steps.append(EACH)
        if steps.count(EACH) + steps.count(VALUES) == len(picks):
            raise NoSuchPath(f"{path!r} is no list: name a list, or a path through one")
        return Source(path, tuple(steps), frozenset(_kinds(places)), picks)

    def records(self, path: str) -> tuple[Source, list[Record]]:
        """Return where the records stand at which `path` ends, and their types. Raises `NoSuchPath`."""
        steps, picks, places = self._walk(path)
        records = [place for place in places if isinstance(place, Record)]
        if not records:
            kinds = " or ".join(sorted(_kinds(places))) or "null"
            raise NoSuchPath(f"{path!r} is no record but {kinds}")
        return Source(path, tuple(steps), frozenset({"enum"}), picks), records

    def has(self, path: str) -> bool:
        """Return True if the schema has this path, to a value or to a structure."""
        try:
            return bool(_of_origin(path) if path.startswith(ORIGIN) else self._at(_parsed(path)[0]))
        except NoSuchPath:
            return False

    def all_paths(self) -> Iterator[str]:
        """Yield the paths to values, in the schema's order; bounded in number and depth."""
        return iter(values_in(self.record))

    def _at(self, steps: Iterable[str]) -> Sequence[AvroType]:
        """Return the types at the end of these steps; none if the schema does not have them."""
        # In all branches at once: a path is right if one branch of a union has it.
        start: Sequence[AvroType] = [self.record]
        return reduce(_below, steps, start)

    def _walk(self, path: str) -> tuple[list[str], Picks, Sequence[AvroType]]:
        """Return the steps of `path`, its picks, and the types at its end. Raises `NoSuchPath`."""
        steps, picks = _parsed(path)
        places = self._at(steps)
        if not places:
            # The first step that leads nowhere is what the message is about.
            number = next(at for at in range(len(steps)) if not self._at(steps[: at + 1]))
            raise NoSuchPath(self._missing(path, steps, picks, number))
        for number, step in enumerate(steps):
            if step == EACH and not _elements(self._at(steps[:number])):
                if number in dict(picks):
                    raise NoSuchPath(f"{path!r}: {written(steps[:number])!r} is a map: name one of its keys")
                steps[number] = VALUES
        for position, pick in picks:
            if isinstance(pick, Find):
                key = self.resolve(written((*steps[: position + 1], *pick.path)))
                if not key.kinds <= _KEYS:
                    kinds = " or ".join(sorted(key.kinds - _KEYS))
                    raise NoSuchPath(
                        f"{path!r}: {key.path!r} is {kinds}, but it has to be text or a whole number"
                    )
                if key.kinds == {"enum"} and pick.text not in key.symbols:
                    raise NoSuchPath(
                        f"{path!r}: {key.path!r} is never {pick.text!r}; {or_all(pick.text, key.symbols)}"
                    )
        return steps, picks, places

    def _missing(self, path: str, steps: list[str], picks: Picks, number: int) -> str:
        """Return the message that `steps[number]` of `path` does not exist."""
        here, rest, places = steps[:number], steps[number + 1 :], self._at(steps[:number])
        why, meant = "", here
        if steps[number] == EACH:
            why, meant = f": {written(here)!r} is no list", [*here, *rest]
        elif any(isinstance(place, Array) for place in places):
            why, meant = f": {written(here)!r} is a list", [*here, EACH, *steps[number:]]
        elif not any(isinstance(place, Record) for place in places):
            kinds = " or ".join(sorted(_kinds(places))) or "always null"
            why = f": {written(here)!r} is {kinds} and has no fields"
            if any(isinstance(place, Map) for place in self._at(here[:-1])):
                meant = [*here[:-1], ".".join(steps[number - 1 :])]  # a key that holds dots
        elif by_type := self._by_type_name(steps):
            why, meant = f": {by_type[0]!r} is the name of a type, not of a field", by_type[1]
        steps = meant if why and self._at(meant) else self._nearest(path, written(here))
        if steps:
            # Of the same lists the same elements are meant.
            near = written(steps, [one for one in picks if one[0] < number and steps[:number] == here])
            return f"{path!r} is not in the schema{why}; the nearest that is: {near!r}"
        # No path is spelled alike: name the paths that exist.
        holder = repr(written(here)) if here else "the record"
        has = first_of(_ends_below(places, written(here)), _MAX_NAMED) or "no fields"
        return f"{path!r} is not in the schema{why}; {holder} has {has}"

    def _nearest(self, path: str, here: str) -> list[str]:
        """Return the steps to the value that `path` probably means, which exists as far as `here`; or no steps."""
        every = list(self.all_paths())
        # Only the rest is compared: all paths below `here` begin alike.
        within = (f"{here}.", f"{here}[") if here else ""
        below = {one.removeprefix(here).lstrip("."): one for one in every if one.startswith(within)}
        name = path.rpartition(".")[2]
        others = (one for one in every if one.rpartition(".")[2] == name)
        near = below.get(nearest(path.removeprefix(here).lstrip("."), below)) or next(others, "")
        return _parsed(near)[0] if near else []

    def _by_type_name(self, steps: list[str]) -> tuple[str, list[str]] | None:
        """Return the name of a record type that the steps have in place of its field, and the steps that were meant."""
        everywhere = islice(_below_all([self.record], (), _DEEPEST), _MAX_PATHS)
        records = [
            (place.name, here) for here, places in everywhere for place in places if isinstance(place, Record)
        ]
        for name, here in records:
            # A name with a namespace is several steps.
            for words in (name.split("."), [name.rpartition(".")[2]]):
                for at in range(len(steps) - len(words) + 1):
                    meant = [*here, *steps[at + len(words) :]]
                    if meant and steps[at : at + len(words)] == words and self._at(meant):
                        return ".".join(words), meant
        return None


def _parsed(path: str) -> tuple[list[str], Picks]:
    """Return the steps of a path as it is written, and of which arrays only one element is meant (`Source.picks`)."""
    steps: list[str] = []
    picks: list[tuple[int, int | Find]] = []
    at, whole = 0, f".{path}"  # as if a dot stood before the first name
    while at < len(whole):
        match = _STEP.match(whole, at)
        if match is None:
            raise NoSuchPath(
                f"{path!r} is not a path: write names separated by dots, [] after an array: order.items[].sku; [0] for "
                "one element, [name='size'] for the one whose name is size, ['a.b'] for a key that holds a dot"
            )
        name, index, by, _, text = match.groups()
        at = match.end()
        if index is None and by is None:
            steps.append(intern(name or text))
            continue
        if index != "":
            picks.append((len(steps), Find(tuple(by.split(".")), text) if index is None else int(index)))
        steps.append(EACH)
        if len(steps) > _MAX_STEPS:
            break
    if len(steps) > _MAX_STEPS:
        raise NoSuchPath(f"{path[:_SHOWN]!r}… is a path of more than {_MAX_STEPS} steps: write a shorter one")
    return steps, tuple(picks)


def written(steps: Iterable[str], picks: Iterable[tuple[int, int | Find]] = ()) -> str:
    """Return the path of these steps, with these `Source.picks`, as it is written in a mapping."""
    chosen = dict(picks)
    parts = (
        f"[{chosen.get(at, '')}]" if step in (EACH, VALUES)
        else f"[{step!r}]" if set(step) & set(".[]") else f".{step}"
        for at, step in enumerate(steps)
    )  # fmt: skip
    return "".join(parts).removeprefix(".")


def _of_origin(path: str) -> Source:
    """Return the source of what a record has in Kafka beside its value. Raises `NoSuchPath`."""
    name, dot, rest = path.removeprefix(ORIGIN).partition(".")
    if rest.startswith("pinstream."):
        raise NoSuchPath(
            f"{path!r} is pinstream's own header of a dead letter: no record has it at its origin"
        )
    # The name of a header may hold dots; of the others only a key may have fields.
    steps = _parsed(path)[0][1:] if name == "key" and rest else [rest] * bool(rest)
    fits = {"key": True, "header": bool(rest)}.get(name, not rest)
    if name in _ORIGINS and fits and EACH not in steps and (rest or not dot):
        kinds = _ORIGINS[name] | ({"boolean"} if name == "key" and rest else set())
        return Source(path, (ORIGIN, name, *steps), kinds)
    known = ["@key", "@key.<field>", "@header.<name>", "@timestamp", "@topic", "@partition", "@offset"]
    raise NoSuchPath(f"{path!r} is nothing that a record has in Kafka; {or_all(path, known)}")


def _is_scaled(place: AvroType) -> bool:
    """Return whether a type is Connect's decimal whose scale differs from value to value (or null, which is none)."""
    fields = [(field.name, _kinds(branches_of(field.type))) for field in getattr(place, "fields", ())]
    return place.kind == "null" or sorted(fields) == [("scale", {"int"}), ("value", {"bytes"})]


def _no_value(path: str, steps: list[str], places: Sequence[AvroType]) -> str:
    """Return the message that `path` ends at a record, an array or a map, with what it may have meant."""
    what = {"record": "a record", "array": "a list", "map": "a map"}
    kinds = " or ".join(what.get(kind, kind) for kind in sorted(_kinds(places)))
    first = next(place.kind for place in places if place.kind in _STRUCTURES)
    ask = {"record": "one of its fields", "array": "a field of its elements", "map": "one of its keys"}[first]
    below = first_of(_ends_below(places, written(steps)), _MAX_NAMED) or "no fields"
    return f"{path!r} is {kinds}: name {ask}: {below}"


def _ends_below(places: Sequence[AvroType], here: str) -> list[str]:
    """Return the paths to what lies directly below these types, in the schema's order: fields, elements or keys."""
    found: list[str] = []
    for place in places:
        for step, kind in _parts(place):
            if isinstance(place, Array):
                found += _ends_below(branches_of(kind), f"{here}[]")
            else:
                found.append(f"{here}.{step}".removeprefix("."))
    return list(dict.fromkeys(found))


def values_in(node: AvroType) -> dict[str, frozenset[str]]:
    """Return the paths to the values of a type, in the schema's order, each with its kinds; bounded in number and
    depth."""
    ends = (
        (written(steps), frozenset(_kinds(places)))
        for steps, places in _below_all(branches_of(node), (), _DEEPEST)
        if steps and any(place.kind not in _NO_VALUES for place in places)
    )
    return dict(islice(ends, _MAX_PATHS))


def _below_all(
    places: Sequence[AvroType], steps: Path, depth: int
) -> Iterator[tuple[Path, Sequence[AvroType]]]:
    """Yield all places at and below these types: the steps to each, and its types. Inner places come first.

    An array of scalars has no step of its own: a path to it means its elements.
    """
    if depth < 0:
        return
    for node in places:
        for step, kind in _parts(node):
            below = branches_of(kind)
            is_end = isinstance(node, Array) and _are_scalars(below)
            yield from _below_all(below, steps if is_end else (*steps, step), depth - 1)
    yield steps, places


def _elements(places: Sequence[AvroType]) -> Sequence[AvroType]:
    """Return the types of the elements of those of these types that are arrays."""
    return [branch for node in places if isinstance(node, Array) for branch in branches_of(node.items)]


def _below(places: Sequence[AvroType], step: str) -> Sequence[AvroType]:
    """Return the types one step below these; none if the step fits none of them."""
    if step == EACH:
        # Where there is no array, the values of a map are meant.
        maps = (node for node in places if isinstance(node, Map))
        return _elements(places) or [branch for node in maps for branch in branches_of(node.values)]
    return [
        branch
        for node in places
        if not isinstance(node, Array)
        for name, kind in _parts(node)
        if name == step or isinstance(node, Map)
        for branch in branches_of(kind)
    ]


def _parts(node: AvroType) -> Iterable[tuple[str, AvroType]]:
    """Return the steps from this type to its parts, each with the type there."""
    if isinstance(node, Record):
        return ((field.name, field.type) for field in node.fields)
    if isinstance(node, Array):
        return ((EACH, node.items),)
    return ((_ANY_KEY, node.values),) if isinstance(node, Map) else ()


def _kinds(places: Iterable[AvroType]) -> set[str]:
    """Return the kinds of value at these types, see `Source`."""
    found = set()
    for node in places:
        logical = node.logical if isinstance(node, Primitive | Fixed) else None
        if logical is None:
            found.add(node.kind)
        else:
            # A local timestamp has no zone: it is read as UTC.
            found.add("string" if logical.family == "uuid" else logical.name.removeprefix("local-"))
    # Null is not a kind of value, because every field may be null.
    return found - {"null"}


def _are_scalars(items: Sequence[AvroType]) -> bool:
    """Return True if a path to these items of an array ends at them: none is a record or a map."""
    return not any(isinstance(item, Record | Map) for item in items)


# -- values at a path of a record


def value_at(value: Any, way: Iterable[str | int | Find]) -> Any:
    """Return the one value at the end of a way without `EACH`; None if there is none."""
    for step in way:
        if isinstance(step, str):  # as nearly every step
            # The value may be of another branch of a union, which has no such field.
            if not isinstance(value, dict):
                return None
            value = value.get(step)
        else:
            # A value that is not an array is its own element.
            elements = value if isinstance(value, list) else [value]
            if isinstance(step, Find):
                value = step.of(elements)
            else:
                value = elements[step] if -len(elements) <= step < len(elements) else None
    return value


def is_several(way: IndexedPath) -> bool:
    """Return whether several values may stand at the end of a way."""
    return EACH in way or VALUES in way


def to_first_list(way: tuple[_Step, ...], after: int = 0) -> tuple[_Step, ...]:
    """Return the way to the elements of the first list on it, from step `after` on; no steps if there is none."""
    return way[: next((at + 1 for at in range(after, len(way)) if way[at] in (EACH, VALUES)), 0)]


def to_last_list(way: IndexedPath) -> IndexedPath:
    """Return the way to the elements of the last list on it; no steps if there is none."""
    return way[: max((at + 1 for at, step in enumerate(way) if step in (EACH, VALUES)), default=0)]


def walk(value: Any, way: Iterable[str | int | Find]) -> list[Any]:
    """Return all values at the end of a way, in order, without nulls. A non-array is its own element."""
    values = [value]
    for step in way:
        found: list[Any] = []
        for held in values:
            if step == EACH:
                if isinstance(held, list):
                    found += held
                else:
                    found.append(held)
            elif not isinstance(step, str):
                found.append(value_at(held, (step,)))
            elif isinstance(held, dict):
                if step == VALUES:
                    found += held.values()
                else:
                    found.append(held.get(step))
        # Nulls are gone before the next step, so that none is walked into.
        values = [held for held in found if held is not None] if None in found else found
    return values


# -- what is asked for of a value


def _below_each(asked: Asked) -> Asked:
    """Return the paths without the `EACH` steps that they begin with.

    `walk` takes a value that is not an array for its own only element.
    """
    return tuple(tuple(dropwhile(lambda step: step == EACH, steps)) for steps in asked)


def within(asked: Asked, name: str) -> Asked:
    """Return the paths that are asked for below this part: a field, a key, or `EACH` element of an array."""
    if () in asked:
        return ALL
    if name != EACH:
        asked = _below_each(asked)
    return tuple(steps[1:] for steps in asked if steps and steps[0] == name)


def keys_in(asked: Asked) -> tuple[frozenset[str] | None, Asked]:
    """Return the keys of a map that are asked for (None: all), and the paths that are asked for below their values."""
    below = _below_each(asked)
    if () in below:
        return None, ALL
    keys = frozenset(steps[0] for steps in below)
    # All values of a map have one type, so what is asked for below one key is kept below every key.
    return None if VALUES in keys else keys, tuple(steps[1:] for steps in below)
