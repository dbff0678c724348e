"""The target of schemas: whatever a schema, a mapping and a record are like, one go says what the two steps say.

`fast_path` fuzzes the bytes of records under a few shapes of schema. Here the shape itself is the fuzzer's: types of
any kind and depth, unions of several, logical types, a reader's schema that differs from the writer's, and a mapping
that asks for any of its paths. Records are written as the schema says, from choices too, so that most are read to
their end; some are damaged. Each input costs what a schema costs that is met for the first time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.paths import SchemaPaths
from consumer.avro.schema import InvalidSchema
from consumer.conversion.targets import CONTENTS, TARGETS
from consumer.engine.model import SchemaRef
from tests.conversion.test_compiled import Both
from tests.conversion.test_compiled_shapes import CUSTOMER, kept
from tests.conversion.test_convert import NOW
from tests.fuzzing.contract import bounded
from tests.fuzzing.provider import DataProvider
from tests.support import avro
from tests.support.avro import zigzag

_DEEPEST: Final = 4
_SEVERAL: Final[tuple[Any, ...]] = (
    avro.array("string"), avro.array(["null", "string", "long"]), avro.map_of("string"), "long",
)  # fmt: skip
_LEAVES: Final[tuple[Any, ...]] = (
    *("string", "string", "long", "int", "boolean", "double", "float", "bytes", "null"),
    avro.logical("string", "uuid"),
    avro.decimal(12, 2),
    avro.logical("int", "date"),
    avro.logical("int", "time-millis"),
    *(avro.logical("long", f"timestamp-{unit}") for unit in ("millis", "micros", "nanos")),
    avro.logical("long", "local-timestamp-micros"),
)
_TIMES: Final = (
    ("long", 10**3),
    (avro.logical("long", "timestamp-micros"), 10**6),
    (avro.logical("long", "timestamp-nanos"), 10**9),
)
_WIDER: Final = {"int": "double", "long": "double", "float": "double", "string": "bytes", "bytes": "string"}
_SYMBOLS: Final = ("EUR", "checkout", "A", "B")
_TEXTS: Final = (
    *(
        "", "a", "e-1", "web", "checkout", "a@b.c", "12.50", "-1", "0", "1996-03-14", "USD", "true", "é", "\n", "日本",
    ),
    *("https://a.b/c", "203.0.113.7", "+1 415 555", "x" * 64, "x" * 300, "en-US", " ", '"'),
)  # fmt: skip
_NUMBERS: Final = (0, 1, -1, 7, 63, 64, 2**31 - 1, -(2**31), int(NOW) - 5)
_LARGER: Final = (2**62, 2**63 - 1, -(2**63), *(int(NOW) * 10**digits - 5 for digits in (3, 6, 9)))
_FLOATS: Final = (0.0, -0.0, 1.5, -1.0, 12.5, float("nan"), float("inf"), 1e30, 0.1)
_NEW: Final = (
    ("string", "!"),
    (["null", "string"], None),
    (avro.array("string"), ["1", "2"]),
    (avro.map_of("string"), {"k": "v"}),
)
"""Types and defaults of a field that only the reader has."""
_RECORDS: Final = 3


class Shapes:
    """Makes schemas from a taker's choices."""

    def __init__(self, provider: DataProvider) -> None:
        self._provider = provider
        self._names = 0

    def type(self, depth: int = _DEEPEST) -> Any:
        """Any type, `depth` levels deep at the most."""
        kind = self._provider.below(10) if depth else 0
        if kind < 4:
            return self._leaf()
        if kind == 4:
            return avro.array(self.type(depth - 1))
        if kind == 5:
            return avro.map_of(self.type(depth - 1))
        if kind < 8:
            return self._union(depth - 1)
        return self.record(depth - 1)

    def record(self, depth: int) -> dict[str, Any]:
        """A record of up to four fields, perhaps with another record in it."""
        name = self._name()
        fields = [avro.field(each, self.type(depth)) for each in "kxyz"[: self._provider.below(5)]]
        if self._provider.below(8) == 7:
            fields.append(avro.field("again", ["null", name]))
        return avro.record(name, *fields)

    def _leaf(self) -> Any:
        choice = self._provider.below(len(_LEAVES) + 2)
        if choice < len(_LEAVES):
            return _LEAVES[choice]
        if choice == len(_LEAVES):
            return {
                "type": "enum",
                "name": self._name(),
                "symbols": list(_SYMBOLS[: 1 + self._provider.below(4)]),
            }
        return avro.fixed(self._name(), self._provider.below(5))

    def _union(self, depth: int) -> list[Any]:
        branches = {"null": "null"} if self._provider.below(4) else {}
        many = self._provider.below(2)
        for _ in range(1 + self._provider.below(3)):
            # One of something or several of it: where producers could not agree.
            branch = self.type(depth) if not many else self._provider.pick(("string", *_SEVERAL))
            if not isinstance(branch, list):
                branches.setdefault(_named(branch), branch)
        made = list(branches.values()) or ["null"]
        return made[::-1] if self._provider.below(2) else made

    def _name(self) -> str:
        self._names += 1
        return f"T{self._names}"

    def evolved(self, schema: Any) -> Any:
        """A schema that reads most data of `schema`: fields are removed, added, moved and renamed, and types
        are promoted."""
        change = self._provider.below(8)
        if isinstance(schema, str):
            if change == 7:
                return _WIDER.get(schema, schema)
            return ["null", schema] if change == 6 and schema != "null" else schema
        if isinstance(schema, list):
            return [one if isinstance(one, str) else self._evolved_type(one) for one in schema]
        made = self._evolved_type(schema)
        return ["null", made] if change == 7 else made

    def _evolved_type(self, schema: dict[str, Any]) -> dict[str, Any]:
        if schema["type"] == "enum" and self._provider.below(4) == 3:
            return {**schema, "symbols": schema["symbols"][:1], "default": schema["symbols"][0]}
        if schema["type"] == "record":
            return {**schema, "fields": list(self.evolved_fields(schema["fields"]))}
        return {
            **schema,
            **{part: self.evolved(schema[part]) for part in ("items", "values") if part in schema},
        }

    def evolved_fields(self, fields: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """The same as `evolved` for the fields of a record."""
        for field in fields[::-1] if self._provider.below(4) == 3 else fields:
            change = self._provider.below(12)
            if change == 11:
                continue
            renamed = {"name": f"our_{field['name']}", "aliases": [field["name"]]} if change == 10 else {}
            yield {**field, "type": self.evolved(field["type"]), **renamed}
        if self._provider.below(3) == 2:
            kind, default = self._provider.pick(_NEW)
            yield avro.field("new", kind, default=default)


def _named(schema: Any) -> str:
    """The key by which a union tells its branches apart."""
    return schema if isinstance(schema, str) else str(schema.get("name", schema["type"]))


class Bytes:
    """Writes data of a schema from a taker's choices, whatever the values."""

    def __init__(self, provider: DataProvider) -> None:
        self._provider = provider
        self._types: dict[str, Any] = {}

    def datum(self, schema: Any, depth: int = 0) -> bytes:
        """One value."""
        if isinstance(schema, list):
            too_deep = depth > 3 * _DEEPEST and "null" in schema  # a record that holds itself
            branch = schema.index("null") if too_deep else self._provider.below(len(schema))
            return zigzag(branch) + self.datum(schema[branch], depth + 1)
        if isinstance(schema, str):
            return (
                self._primitive(schema)
                if schema not in self._types
                else self.datum(self._types[schema], depth + 1)
            )
        kind = schema["type"]
        self._types.update({schema["name"]: schema} if "name" in schema else {})
        if kind == "record":
            return b"".join(self.datum(field["type"], depth + 1) for field in schema["fields"])
        if kind in ("array", "map"):
            return self._blocks(schema.get("items", schema.get("values")), kind == "map", depth)
        if kind == "enum":
            return zigzag(self._provider.below(len(schema["symbols"]) + 1))
        if kind == "fixed":
            return self._provider.take(schema["size"]).ljust(schema["size"], b"\1")
        return self._primitive(kind)

    def _blocks(self, inner: Any, keys: bool, depth: int) -> bytes:
        written = b""
        for _ in range(self._provider.below(3)):
            count = 1 + self._provider.below(2)
            items = b"".join(
                (self._primitive("string") if keys else b"") + self.datum(inner, depth + 1)
                for _ in range(count)
            )
            sized = self._provider.below(4) == 3
            written += (zigzag(-count) + zigzag(len(items)) if sized else zigzag(count)) + items
        return written + b"\0"

    def _primitive(self, kind: str) -> bytes:
        provider = self._provider
        if kind in ("null", "boolean"):
            return bytes([provider.below(2)]) if kind == "boolean" else b""
        if kind in ("int", "long"):
            return zigzag(provider.pick(_NUMBERS if kind == "int" else (*_NUMBERS, *_LARGER)))
        if kind in ("float", "double"):
            return struct.pack("<f" if kind == "float" else "<d", provider.pick(_FLOATS))
        raw = provider.pick(_TEXTS).encode() if kind == "string" else provider.take(provider.below(6))
        return zigzag(len(raw)) + raw


def _text(value: str) -> bytes:
    return zigzag(len(value)) + value.encode()


class World(NamedTuple):
    """What a schema and a mapping make, and what writes records of them."""

    both: Both
    fields: list[dict[str, Any]]
    canonical: dict[str, bytes]
    """For each field, the bytes of an event that is delivered."""

    def datum(self, provider: DataProvider) -> bytes:
        """One record, usually with what every event needs; perhaps damaged."""
        data, strange = Bytes(provider), provider.below(8) == 7
        datum = bytearray()
        for field in self.fields:
            canonical = None if strange else self.canonical.get(field["name"])
            datum += data.datum(field["type"]) if canonical is None else canonical
        for _ in range(max(0, provider.below(8) - 5)):
            at = provider.byte() * len(datum) >> 8
            datum[at : at + provider.below(3)] = provider.take(provider.below(3))
        return bytes(datum)


def world(provider: DataProvider) -> World | None:
    """None: pinstream does not start with such a schema, or cannot read that writer's data."""
    shapes = Shapes(provider)
    time, units = provider.pick(_TIMES)
    needed = [avro.field(name, "string") for name in ("event_id", "event_type", "channel")]
    canonical: list[dict[str, Any]] = [
        *needed,
        avro.field("occurred_at", time),
        avro.field("customer", CUSTOMER),
    ]
    free = [avro.field(f"p{number}", shapes.type()) for number in range(1 + provider.below(3))]
    fields: list[dict[str, Any]] = [*free[:1], *canonical, *free[1:]]
    theirs = avro.record("shop.Event", *fields)
    evolved = shapes.evolved_fields(free) if provider.below(2) else free
    ours = {**theirs, "fields": [*canonical, *evolved]}
    try:
        paths = [path.replace("<key>", "a") for path in SchemaPaths(ours).all_paths()][4:]
        if Decoder(OneSchema(ours)).add_schema(SchemaRef("id", "7"), theirs) is not None:
            return None
    except InvalidSchema:  # as where the name of a type is used whose definition has gone
        return None
    both = Both((ours, _overlay(provider, paths, ours)), theirs)
    values = {"event_id": "e-1", "event_type": "checkout", "channel": "web"}
    known = {name: _text(value) for name, value in values.items()}
    known |= {"occurred_at": zigzag(int(NOW * units) - 5), "customer": zigzag(1) + _text("a@b.c") + b"\0"}
    return World(both, fields, known)


def _overlay(provider: DataProvider, paths: list[str], schema: dict[str, Any]) -> str:
    """A mapping that asks for some of these paths, items and what is gathered from them among it."""
    asked = {provider.pick(list(TARGETS)): provider.pick(paths) for _ in range(provider.below(6))}
    arrays = [path for path in paths if "[]" in path] if provider.below(2) else []
    for key, gathered in (("id", "content_ids"), ("quantity", "num_items")):
        if provider.below(2):
            asked[f"{CONTENTS}.{key}"] = path = provider.pick(arrays or paths)
            asked |= {f"custom_data.{gathered}": path} if provider.below(2) else {}
    lines = [f"{json.dumps(name)} = {json.dumps(path)}" for name, path in asked.items()]
    key, consent = (json.dumps(provider.pick(paths)) for _ in range(2))
    beside = [f"[dedup]\nkey = {key}", f'[consent]\nrequire = {consent}\nallowed = ["", "a", 0, 1, true]']
    return kept([*(part for part in beside if provider.below(4) == 3), "[fields]", *lines], schema)


def schemas(data: bytes) -> None:
    """A schema and a mapping, and a few records read together; perhaps with a trace in their headers."""
    provider = DataProvider(data)
    made = world(provider)
    if made is None:
        return
    headers = (("traceparent", b"00-1"),) if provider.below(4) == 3 else ()
    values = [made.both.framing + made.datum(provider) for _ in range(_RECORDS)]
    with bounded(sum(map(len, values)) * 3):
        made.both.check(*values, headers=headers)
