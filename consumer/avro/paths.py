"""Paths into a commerce event, and what an Avro schema says lies at their end.

Theory of operation. A path is written ``order.items[].sku``: field names and, inside a map, keys, separated by
dots; ``[]`` after a name means each element of that array. `resolve` walks the schema along the written path
and answers the steps to take in a record and the *kinds* of value found there. Unions are walked in all their
branches; a path that ends at an array of scalars means its elements, with or without the final ``[]``.

The walk follows the path, so it ends where the path ends, however the schema refers to itself. Listing all
paths (to name the nearest one in an error) is bounded in depth and in number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Any, Final, NamedTuple

from consumer.errors import nearest

AvroSchema = dict[str, Any]
"""An Avro schema as its JSON, parsed."""


class StepKind(Enum):
    """How a step goes from a value to the next."""

    FIELD = "field"
    """A field of a record: always there in a decoded record."""
    KEY = "key"
    """A key of a map: there or not."""
    EACH = "each"
    """Every element of an array."""


class Step(NamedTuple):
    """One step of a path; `name` is empty for `StepKind.EACH`."""

    kind: StepKind
    name: str


EACH = Step(StepKind.EACH, "")

Asked = tuple[tuple[Step, ...], ...]
"""The paths that are asked for below a value; none: it is not asked for. The empty path: for all of it."""
NOTHING: Final[Asked] = ()
ALL: Final[Asked] = ((),)

STRUCTURES = frozenset({"record", "array", "map"})
"""Kinds that hold further values; a path must not end at one."""

_NAMED_PARTS = frozenset({"record", "map"})
"""Kinds whose parts have names; arrays of anything else are gone through without a word in the path."""

_LOGICAL_KINDS = {
    "date": "date",
    "decimal": "decimal",
    "uuid": "string",
    "time-millis": "time-millis",
    "time-micros": "time-micros",
    "timestamp-millis": "timestamp-millis",
    "timestamp-micros": "timestamp-micros",
    "timestamp-nanos": "timestamp-nanos",
    "local-timestamp-millis": "timestamp-millis",
    "local-timestamp-micros": "timestamp-micros",
    "local-timestamp-nanos": "timestamp-nanos",
}
"""Logical types that change what a value means. A local timestamp is read as UTC: it names no zone."""

_PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_DEEPEST = 8
_MOST_PATHS = 2000


class Source(NamedTuple):
    """Where a value comes from: the path as written, the steps, and the Avro kinds found at its end.

    Kinds are the names of the primitive types, ``enum``, ``fixed``, and the logical types ``decimal``, ``date``,
    ``time-…`` and ``timestamp-…``; uuids are ``string``. ``null`` is not among them.
    """

    path: str
    steps: tuple[Step, ...]
    kinds: frozenset[str]

    @property
    def many(self) -> bool:
        """Whether the path goes through an array: it may give several values."""
        return EACH in self.steps


class NoSuchPath(ValueError):
    """The schema has no such path, or the path ends at something that is not a value. One line."""


_SEGMENT = re.compile(r"(?P<name>[^\[\].]+)(?P<each>(?:\[\])*)")


def parse_field_path(path: str) -> tuple[str, ...]:
    """The names of a path, ``""`` for each ``[]``. Raises `NoSuchPath` if it is not written as a path."""
    names: list[str] = []
    for segment in path.split("."):
        match = _SEGMENT.fullmatch(segment)
        if match is None:
            raise NoSuchPath(
                f"{path!r} is not a path: write names separated by dots, [] after an array: order.items[].sku"
            )
        names += [match["name"], *[""] * (len(match["each"]) // 2)]
    return tuple(names)


class SchemaPaths:
    """The paths of one schema. `schema` is the reader's schema: a record, or a union with one."""

    def __init__(self, schema: AvroSchema) -> None:
        self._named: dict[str, tuple[Any, str]] = {}
        self._collect(schema, "")
        self._root = [branch for branch in self._branches(schema, "") if _type_of(branch[0]) == "record"]
        if not self._root:
            raise NoSuchPath("the schema is not a record")

    def resolve(self, path: str) -> Source:
        """The source that `path` names. Raises `NoSuchPath`, with the nearest path that exists."""
        places, steps = self._walk(path)
        kinds = {_kind(node) for node, _ in places}
        while "array" in kinds:
            # An array of scalars: the path means its elements.
            items = [branch for node, space in places for branch in self._elements(node, space)]
            if not items or any(_kind(node) in _NAMED_PARTS for node, _ in items):
                break
            places, kinds = items, {_kind(node) for node, _ in items}
            steps.append(EACH)
        kinds.discard("null")
        if kinds & STRUCTURES or not kinds:
            what = " or ".join(sorted(kinds)) or "null"
            raise NoSuchPath(f"{path!r} is no value but {what}; the nearest value is {self.nearest(path)!r}")
        return Source(path, tuple(steps), frozenset(kinds))

    def has(self, path: str) -> bool:
        """Whether the schema has this path at all, whatever lies there."""
        try:
            self._walk(path)
        except NoSuchPath:
            return False
        return True

    def nearest(self, path: str) -> str:
        """The path to a value that is spelled most like `path`."""
        return nearest(path, self.all_paths())

    def all_paths(self) -> Iterator[str]:
        """Paths to values, in the schema's order; bounded in number and depth."""
        bounded = islice(self._paths_below(self._root, "", _DEEPEST), _MOST_PATHS)
        return iter(dict.fromkeys(bounded))

    def _walk(self, path: str) -> tuple[list[tuple[Any, str]], list[Step]]:
        places, steps = self._root, list[Step]()
        for name in parse_field_path(path):
            kinds = {_kind(node) for node, _ in places}
            places = [branch for node, space in places for branch in self._step(node, space, name)]
            if not places:
                raise NoSuchPath(
                    f"{path!r} is not in the schema; the nearest that is: {self.nearest(path)!r}"
                )
            steps.append(Step(StepKind.KEY if "map" in kinds else StepKind.FIELD, name) if name else EACH)
        return places, steps

    def _step(self, node: Any, space: str, name: str) -> list[tuple[Any, str]]:
        """What lies one step below `node`; nothing if the step does not fit it."""
        kind = _kind(node)
        if not name:
            return self._elements(node, space)
        if kind == "map":
            return self._branches(node["values"], space)
        if kind == "record":
            space = _space_of(node, space)
            return [
                branch
                for field in node["fields"]
                if field["name"] == name
                for branch in self._branches(field["type"], space)
            ]
        return []

    def _elements(self, node: Any, space: str) -> list[tuple[Any, str]]:
        return self._branches(node["items"], space) if _kind(node) == "array" else []

    def _branches(self, node: Any, space: str) -> list[tuple[Any, str]]:
        """The types `node` may be: unions and nested types taken apart, names looked up."""
        if isinstance(node, list):
            return [branch for each in node for branch in self._branches(each, space)]
        if isinstance(node, str) and node not in _PRIMITIVES:
            found = self._named.get(f"{space}.{node}") if "." not in node and space else None
            found = found or self._named.get(node)
            if found is None:
                raise NoSuchPath(f"the schema names a type {node!r} that it does not define")
            return [found]
        if isinstance(node, dict) and isinstance(node.get("type"), dict | list):
            return self._branches(node["type"], space)
        if isinstance(node, dict) and node.get("type") not in _COMPLEX and "logicalType" not in node:
            return self._branches(node["type"], space)
        return [(node, space)]

    def _collect(self, node: Any, space: str) -> None:
        """Learns the named types at and below `node`, with the namespace their names are read in."""
        if isinstance(node, list):
            for each in node:
                self._collect(each, space)
        if not isinstance(node, dict):
            return
        if node.get("type") in ("record", "enum", "fixed", "error"):
            space = _space_of(node, space)
            name = node["name"].rpartition(".")[2]
            self._named[f"{space}.{name}" if space else name] = (node, space)
        for below in (*(field["type"] for field in node.get("fields", ())), *_parts(node)):
            self._collect(below, space)

    def _paths_below(self, places: list[tuple[Any, str]], prefix: str, depth: int) -> Iterator[str]:
        values = False
        for node, space in places:
            kind = _kind(node)
            if kind not in STRUCTURES:
                values = values or kind != "null"
            elif depth:
                yield from self._paths_inside(node, space, prefix, depth - 1)
        if values and prefix:
            yield prefix

    def _paths_inside(self, node: Any, space: str, prefix: str, depth: int) -> Iterator[str]:
        kind = _kind(node)
        if kind == "record":
            inner = _space_of(node, space)
            for field in node["fields"]:
                path = f"{prefix}.{field['name']}" if prefix else field["name"]
                yield from self._paths_below(self._branches(field["type"], inner), path, depth)
        elif kind == "map":
            yield from self._paths_below(self._branches(node["values"], space), f"{prefix}.<key>", depth)
        else:
            items = self._elements(node, space)
            scalars = not any(_kind(item) in _NAMED_PARTS for item, _ in items)
            yield from self._paths_below(items, prefix if scalars else f"{prefix}[]", depth)


_COMPLEX = frozenset({"record", "error", "enum", "fixed", "array", "map"})


def _type_of(node: Any) -> str:
    name = node["type"] if isinstance(node, dict) else node
    return "record" if name == "error" else str(name)


def _kind(node: Any) -> str:
    """What a value of this type is, see `Source`."""
    kind = _type_of(node)
    logical = node.get("logicalType") if isinstance(node, dict) else None
    return _LOGICAL_KINDS.get(logical, kind) if isinstance(logical, str) else kind


def _space_of(node: AvroSchema, space: str) -> str:
    """The namespace that names inside this named type are read in."""
    name: str = node["name"]
    return name.rpartition(".")[0] if "." in name else str(node.get("namespace", space) or "")


def _parts(node: AvroSchema) -> list[Any]:
    """The types that an array, a map or a wrapped type is made of."""
    inner = [node[key] for key in ("items", "values") if key in node]
    return [*inner, node["type"]] if isinstance(node.get("type"), dict | list) else inner


# -- what is asked for of a value


def _below_each(asked: Asked) -> Asked:
    """What stands where an array is meant is its one element (`decisions.walk`)."""
    return tuple(_below_each_step(steps) for steps in asked)


def _below_each_step(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    while steps and steps[0] == EACH:
        steps = steps[1:]
    return steps


def within(asked: Asked, name: str) -> Asked:
    """What is asked for below this part; the part without a name is each element of an array."""
    if () in asked:
        return ALL
    if name:
        asked = _below_each(asked)
    return tuple(steps[1:] for steps in asked if steps and steps[0].name == name)


def names_in(asked: Asked) -> frozenset[str] | None:
    """The parts that are asked for; None: all, or none at all."""
    below = _below_each(asked)
    return None if () in below or not below else frozenset(steps[0].name for steps in below)


def below_any(asked: Asked) -> Asked:
    """What is asked for below any part."""
    return tuple(steps[1:] for steps in _below_each(asked))
