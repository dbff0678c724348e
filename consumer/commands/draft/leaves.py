"""What a schema and the values of a sample say of each path.

Theory of operation. Schema and values are walked together, once: at each place are its type, the documentation on the
way, and all values of the sample there. A path to a value becomes a `SampledPath`. The keys of a map are those of the
sample, if they look like names. The walk is over the schema's JSON: `consumer.avro.schema` keeps no documentation.

What values *look like* is decided here, by their form alone (``forms`` in ``roles.toml``), with the rules that convert
them. Values are shown only of booleans, enums, and texts of which there are few, and none that looks like a person's
(`SampledPath.shown`).
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from importlib.resources import files
from itertools import islice
from typing import Any, Final, NamedTuple

from consumer.avro.paths import SCALED, AvroSchema, NoSuchPath, SchemaPaths, Source
from consumer.avro.references import definitions
from consumer.avro.schema import PRIMITIVES, full_name
from consumer.commands.draft.vocabulary import concepts_of, meaning_of
from consumer.conversion.amounts import exact
from consumer.conversion.normalise import Omitted, Unrecognised
from consumer.conversion.rules import click_id_of
from consumer.conversion.targets import TARGETS, TIME_UNITS

ROLES: Final = tomllib.loads(files(__package__).joinpath("roles.toml").read_text("utf-8"))
SETS: Final = {name: frozenset(words.split()) for name, words in ROLES["sets"].items()}
_DEEPEST: Final = 8
_MAX_LEAVES: Final = 2_000  # a schema may refer to itself
_MAX_KEYS: Final = 50  # different keys of a map that counts as a record; more are data
_KEY: Final = re.compile(r"[A-Za-z_][\w.-]{0,60}", re.ASCII)
_KEYS_OF_PAIRS: Final = ("key", "name", "Key", "Name")  # fields of the elements of a list of keys and values
# Values of a text that may be shown: this many at most, in this many records at least.
_MAX_SHOWN: Final = 10
_LEAST_RECORDS: Final = 100
_SHOWN: Final = re.compile(r"[^\W\d_][\w .:/+&-]{0,59}")
_TESTED: Final = 500  # values whose form is looked at
_FORM_SHARE: Final = 0.9  # of the values that have it


def _form(pattern: str, target: str) -> Callable[[Any], bool]:
    matches = re.compile(pattern).fullmatch
    rule = TARGETS[target].rule if target else str
    return lambda value: (
        matches(str(value).strip()) is not None and not isinstance(rule(value), Omitted | Unrecognised)
    )


FORMS: Final = {name: _form(*form) for name, form in ROLES["forms"].items()}


class _Spot(NamedTuple):
    """A place in the schema, and what is known there."""

    space: str  # the namespace
    path: str
    above: tuple[str, ...]  # names on the way, from the record's own on
    values: Sequence[Any]
    of: int  # how many records, or elements of its array, there are; 0: there is no sample
    doc: str = ""
    logical: str = ""
    called: str = ""  # the key whose value this is, in place of the name at the path's end


class SampledPath:
    """One path to a value: its place in schema and sample."""

    def __init__(self, source: Source, at: _Spot, doc: str, logical: str) -> None:
        self.source, self.doc, self.logical = source, doc, logical
        self.above, self.values, self.of, self.path = at.above, at.values, at.of, source.path
        self.array = self.path.rpartition("[].")[0]  # the innermost one on the way
        self.beside, _, last = self.path.rpartition(".")  # where its neighbours are
        # The concepts of its name, of the names on the way, of the nearest one that says anything, and of what is said.
        self.own, (self.said, self.said_around) = concepts_of(at.called or last), meaning_of(doc)
        ways = [concepts_of(name) for name in self.above[1:]]
        self.around = frozenset(one for way in ways for one in way)
        self.parent = next(filter(None, reversed(ways)), ())
        self.words = {*self.own, *self.said, *self.said_around}
        self.nanos = ""  # beside whole units of money: the path of its billionths
        self.filled = len(self.values) / self.of if self.of else 1.0
        # From the whole sample.
        held = [one for one in self.values if one != "" and not isinstance(one, dict | list)]
        self.tested = held[:: len(held) // _TESTED + 1]

    def share(self, fits: Callable[[Any], bool]) -> float:
        """Return the share of values that fit; 1 if there are none."""
        return sum(map(fits, self.tested)) / len(self.tested) if self.tested else 1.0

    @cached_property
    def has_fraction(self) -> bool:
        """Return whether all values are numbers, and one of them is no whole one."""
        numbers = [number for one in self.tested if isinstance(number := exact(one), Decimal)]
        return len(numbers) == len(self.tested) and any(number % 1 for number in numbers)

    @cached_property
    def form(self) -> str:
        """Return what nearly all values look like; empty: nothing in particular."""
        # A time with a logical type counts in its own unit, and a boolean has no form.
        is_time = self.logical.startswith(("timestamp", "local-", "date", "time-"))
        if is_time or not self.tested or isinstance(self.tested[0], bool | bytes):
            return ""
        # 59.90 and 60 are both of a price list: one fraction is enough.
        if self.has_fraction or self.source.kinds & {"float", "double", "decimal"}:
            return "numbers with a fraction" if self.has_fraction else "whole numbers"
        return next((name for name, fits in FORMS.items() if self.share(fits) >= _FORM_SHARE), "")

    @cached_property
    def counts(self) -> Counter[str]:
        """Return how often each value occurs."""
        texts = (str(one).lower() if isinstance(one, bool) else str(one).strip() for one in self.values)
        return Counter(one for one in texts if one)

    @property
    def has_few(self) -> bool:
        """Return whether many records have few values."""
        return len(self.counts) <= _MAX_SHOWN and len(self.values) >= _LEAST_RECORDS

    @cached_property
    def shown(self) -> dict[str, int]:
        """Return the values that may be shown, each with how often it occurs."""
        if self.source.kinds <= {"boolean", "enum"}:
            return {one: self.counts[one] for one in sorted(self.source.symbols or self.counts)}
        if not self.has_few or self.source.kinds - {"string", "enum"} or self.form in ROLES["personal"]:
            return {}
        return dict(sorted(self.counts.items())) if all(map(_SHOWN.fullmatch, self.counts)) else {}

    def evidence(self, said: str = "") -> str:
        """Return what speaks for the path, in words: what was `said`, the type, the form, and the share filled."""
        form = self.form
        if form == "URL" and (clicks := sum(click_id_of(str(one)) is not None for one in self.values)):
            form = f"URL, {clicks / len(self.values):.0%} with epik"
        elif self.source.kinds == {"boolean"} and self.values:
            form = f"true {self.counts['true'] / len(self.values):.0%}"
        filled = f"{self.filled:.0%} filled" if self.of else ""
        return ", ".join(filter(None, (said, self.logical, form, filled)))

    @property
    def unit(self) -> str:
        """Return the unit in which a time without a logical type counts, by its values or what is said of it."""
        if self.tested:
            return next((one for one in TIME_UNITS if self.form == f"time in {one}"), "")
        # "unix milliseconds" has two of these words: the finer one is meant.
        return next((one for one in sorted(TIME_UNITS) if any(map(one.upper().startswith, self.words))), "")


def is_of_items(array: str) -> bool:
    """Return whether an array, by its name, is one of items."""
    return not SETS["ARRAYS"].isdisjoint(concepts_of(array.rpartition(".")[2]))


def leaves_of(schema: AvroSchema, records: Sequence[Mapping[str, Any]], called: str) -> list[SampledPath]:
    """Return the paths to values of a record type that is `called` so, in the schema's order, with what these records
    have there."""
    walk, found = _Walk(definitions([schema]), SchemaPaths(schema)), dict[str, SampledPath]()
    start = _Spot("", "", (called,), records, len(records))
    for one in islice(walk.below(schema, start), _MAX_LEAVES):
        # The branches of a union may have the same field: the first describes it.
        found.setdefault(one.path, one)
    for path, one in found.items():
        if path.endswith(".units") and f"{one.beside}.nanos" in found:
            one.own, one.nanos = ("AMOUNT",), f"{one.beside}.nanos"
    return list(found.values())


class _Walk(NamedTuple):
    """One walk over a schema and the values of a sample."""

    known: Mapping[str, Any]
    paths: SchemaPaths

    def below(self, node: Any, at: _Spot) -> Iterator[SampledPath]:
        """Yield the leaves at and below a type."""
        if isinstance(node, str) and node not in PRIMITIVES:
            node = self.known.get(full_name(node, at.space)) or self.known[node]
        node = node if isinstance(node, dict) else {"type": node}
        at = at._replace(values=[one for one in at.values if one is not None])
        kind = node["type"]
        if isinstance(kind, list | dict):
            for branch in kind if isinstance(kind, list) else [kind]:
                yield from self.below(branch, at)
        elif tuple(sorted(field["name"] for field in node.get("fields", ()))) == SCALED:
            held = ((one["value"], one["scale"]) for one in at.values if isinstance(one, dict))
            numbers = [Decimal(int.from_bytes(digits, signed=True)).scaleb(-scale) for digits, scale in held]
            yield from self._leaf({"logicalType": "decimal", "scale": "some"}, at._replace(values=numbers))
        elif kind in ("record", "error", "map", "array"):
            for part, place in _parts(node, at):
                yield from self.below(part, place)
        elif kind != "null" and (at.values or not at.called):
            # Of the types of a pair's value only those that the sample has.
            yield from self._leaf(node, at)

    def _leaf(self, node: Mapping[str, Any], at: _Spot) -> Iterator[SampledPath]:
        logical = str(node.get("logicalType") or node.get("connect.name") or at.logical)
        if logical == "decimal":
            logical = f"decimal of {node.get('scale', 0)} places"
        # Not all that a schema has is a value.
        with suppress(NoSuchPath):
            source = self.paths.resolve(at.path.removesuffix("[]"))
            yield SampledPath(source, at, at.doc or node.get("doc", ""), logical)


def _parts(node: Mapping[str, Any], at: _Spot) -> Iterator[tuple[Any, _Spot]]:
    """Yield the types within an array, a map or a record, each with its place."""
    held = [one for one in at.values if isinstance(one, dict)]
    above = at.above if at.called else (*at.above, at.path.rpartition(".")[2])
    if node["type"] == "array":
        lists = [one for one in at.values if isinstance(one, list)]
        items = [one for some in lists for one in some]
        first = items[0] if items and isinstance(items[0], dict) and not is_of_items(at.path) else {}
        by = next((name for name in _KEYS_OF_PAIRS if name in first), "")
        if by and any(name.startswith("val") for name in first):
            for key in _names(str(one[by]) for one in items):
                values = [one for one in items if str(one[by]) == key]
                yield node["items"], at._replace(path=f"{at.path}[{by}='{key}']", values=values, called=key)
            return
        # A list of which the sample has one element alone stands for a record, unless it is one of items.
        is_one = bool(first) and max(map(len, lists)) == 1
        step, of = ("[0]", at.of) if is_one else ("[]", len(items))
        yield node["items"], at._replace(path=at.path + step, values=items, of=of)
    elif node["type"] == "map":
        for key in _names(key for one in held for key in one):
            path = f"{at.path}['{key}']" if "." in key else f"{at.path}.{key}"
            values = [one.get(key) for one in held]
            yield node["values"], _Spot(at.space, path, above, values, at.of, called=key)
    elif len(above) <= _DEEPEST:
        space = full_name(node["name"], node.get("namespace", at.space)).rpartition(".")[0]
        for field in node["fields"]:
            # The key of a pair is no value.
            if not (at.called and field["name"] in _KEYS_OF_PAIRS):
                path = f"{at.path}.{field['name']}".lstrip(".")
                values = [one.get(field["name"]) for one in held]
                said = field.get("doc", ""), field.get("logicalType", ""), at.called
                yield field["type"], _Spot(space, path, above, values, at.of, *said)


def _names(keys: Iterable[str]) -> list[str]:
    """Return keys that look like names; none if there are too many."""
    known = {*keys}
    return sorted(filter(_KEY.fullmatch, known)) if len(known) <= _MAX_KEYS else []
