"""Schemas, records and files made from a fuzzer's bytes: nearly right, since input that is all wrong is refused
at once."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tests.fuzzing.provider import DataProvider
from tests.support import avro
from tests.support.avro import zigzag

ROOT: Final = Path(__file__).parents[2]
SCHEMA: Final[dict[str, Any]] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text("utf-8"))
MAPPING: Final = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text("utf-8")
MAGIC: Final = b"Obj\x01"

_PRIMITIVES: Final = ("string", "null", "boolean", "int", "long", "float", "double", "bytes")
_LOGICAL: Final[tuple[dict[str, Any], ...]] = (
    avro.decimal(9, 2), avro.decimal(1000, 1000), avro.logical("int", "date"),
    avro.logical("long", "timestamp-millis"), avro.logical("long", "timestamp-nanos"),
    avro.logical("int", "time-millis"), avro.logical("string", "uuid"),
)  # fmt: skip
_DEEPEST: Final = 70
_LITTLE: Final = 40
"""Types of a built schema: other tests measure what larger ones cost."""


def _field_names(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for branch in schema for name in _field_names(branch)]
    if not isinstance(schema, dict):
        return []
    inner = [name for key in ("items", "type") for name in _field_names(schema.get(key))]
    own = [name for each in schema.get("fields", ()) for name in (each["name"], *_field_names(each["type"]))]
    return own + inner


FIELD_NAMES: Final = (*dict.fromkeys(_field_names(SCHEMA)), "extra", "self", "é", "a b", "'", "\ud800")


class SchemaBuilder:
    """Builds a writer's schema: our names in other places, other types under our names, references to
    surrounding types."""

    def __init__(self, provider: DataProvider) -> None:
        self._provider = provider
        self._names: list[str] = []
        self._left = _LITTLE

    def record(self, name: str = "commerce.v1.CommerceEvent", depth: int = 0) -> dict[str, Any]:
        """A record with up to eleven fields."""
        self._names.append(name)
        fields = [
            avro.field(self._provider.pick(FIELD_NAMES), self.anything(depth + 1))
            for _ in range(self._provider.below(12))
        ]
        return avro.record(name, *list({each["name"]: each for each in fields}.values()))

    def anything(self, depth: int) -> Any:
        """Any type."""
        provider = self._provider
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            return "string"
        choices: list[Callable[[], Any]] = [
            lambda: provider.pick(_PRIMITIVES), lambda: ["null", self.anything(depth + 1)],
            lambda: avro.array(self.anything(depth + 1)), lambda: avro.map_of(self.anything(depth + 1)),
            lambda: self.record(self._name(), depth + 1), lambda: provider.pick(self._names),
            lambda: provider.pick(_LOGICAL), lambda: [self.anything(depth + 1) for _ in range(provider.below(5))],
            lambda: avro.fixed(self._name(), provider.pick((0, 1, 16, 70_000, -1))),
            lambda: avro.enum(self._name(), "WEB", "A", provider.text()[:50]),
        ]  # fmt: skip
        return provider.pick(choices)()

    def _name(self) -> str:
        return self._provider.pick(
            (f"N{len(self._names)}_{self._left}", "Order", "Item", "commerce.v1.Customer", "N")
        )


def event(provider: DataProvider, schema: Any = SCHEMA, wild: bool = True) -> Any:
    """A value in the shape of `schema`; if `wild`, some values have another type than the schema says."""
    if wild and provider.byte() >= 236:
        return wild_value(provider)
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"]
        return None if provider.below(4) == 1 else event(provider, branches[0], wild)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return {each["name"]: event(provider, each["type"], wild) for each in schema["fields"]}
    if kind == "array":
        return [event(provider, schema["items"], wild) for _ in range(provider.below(4))]
    if kind == "map":
        return {provider.text(): event(provider, schema["values"], wild) for _ in range(provider.below(3))}
    if kind == "enum":
        return provider.pick(schema["symbols"])
    return _leaf(provider, kind)


def _leaf(provider: DataProvider, kind: Any) -> Any:
    if isinstance(kind, dict):
        return event(provider, kind, wild=False)
    if kind == "boolean":
        return provider.below(2) == 1
    return provider.number() if kind in ("int", "long") else provider.text()


def wild_value(provider: DataProvider) -> Any:
    """A value that no schema allows here: NaN, huge numbers, other types, nested values."""
    values: tuple[Callable[[], Any], ...] = (
        lambda: float("nan"), lambda: float("inf"), lambda: -float("inf"), lambda: -0.0, lambda: 1e308,
        lambda: 5e-324, lambda: 2.5, lambda: 10**5000, lambda: -(2**63), lambda: 2**64, lambda: Decimal("NaN"),
        lambda: Decimal("sNaN"), lambda: Decimal("-Infinity"), lambda: Decimal("1E+999999999"),
        lambda: Decimal("1E-999999999"), lambda: Decimal("0E+999999999"), lambda: Decimal("9" * 10_000),
        lambda: Decimal("1." + "0" * 10_000), lambda: Decimal(provider.number()).scaleb(-provider.below(30)),
        lambda: provider.text(), lambda: provider.text().encode("utf-8", "surrogatepass"), lambda: provider.number(),
        lambda: True, lambda: None, lambda: [wild_value(provider) for _ in range(provider.below(4))],
        lambda: {provider.text(): wild_value(provider) for _ in range(provider.below(4))},
        lambda: {"emails": [provider.text()], "items": [{"sku": provider.text(), "quantity": provider.number()}]},
    )  # fmt: skip
    return provider.pick(values)()


def size_of(value: Any) -> int:
    """About how many bytes `value` would take as JSON; for bounds."""
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting.extend((*one.keys(), *one.values()))
        elif isinstance(one, list):
            waiting.extend(one)
        size += len(one) if isinstance(one, str | bytes) else 8
    return size


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


CODECS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "null": bytes, "deflate": _deflated, "bzip2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


def header(schema: bytes, codec: bytes, sync: bytes) -> bytes:
    """An Avro container's header."""
    metadata = {b"avro.schema": schema, b"avro.codec": codec}
    entries = b"".join(
        zigzag(len(part)) + part for key_and_value in metadata.items() for part in key_and_value
    )
    return MAGIC + zigzag(len(metadata)) + entries + b"\x00" + sync


def block(count: int, data: bytes, sync: bytes, size: int | None = None) -> bytes:
    """One block of a container: `data` are packed already; `size` is what the block claims."""
    return zigzag(count) + zigzag(len(data) if size is None else size) + data + sync


def container(provider: DataProvider) -> bytes:
    """A container file: known codecs, repeated data that unpack to a lot, false counts and sizes."""
    codec = provider.pick(tuple(CODECS))
    schemas: tuple[Callable[[], Any], ...] = (
        lambda: SCHEMA, lambda: SchemaBuilder(provider).record(), lambda: "string",
        lambda: avro.record("CommerceEvent"),
    )  # fmt: skip
    schema = json.dumps(provider.pick(schemas)()).encode()
    sync = b"S" * 16
    parts = [
        header(
            schema,
            provider.pick((codec.encode(), b"snappy", b"zstandard", b"lz4", b"\xff", b"x" * 5000)),
            sync,
        )
    ]
    for _ in range(provider.below(4)):
        count = provider.pick((1, 2, 0, -1, 2**60, provider.number()))
        size = provider.pick((None, None, None, 2 << 30, -1, 2**62, -(2**63)))
        mark = provider.pick((sync, sync, sync, b"W" * 16, b""))
        data = provider.sized() * provider.pick((1, 1, 1, 1, 64, 20_000))
        parts.append(block(count, CODECS[codec](data[: 1 << 22]), mark, size))
    return b"".join(parts) + provider.rest()
