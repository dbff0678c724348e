"""The /status document: the core's snapshot as JSON. Version 1; fields are only ever added within a version.

The ledger in it adds up: ``read = delivered + duplicate + filtered + dead_lettered + open``, in all and for each
partition. Times are in seconds, sizes in bytes, lags in records. What fields there are, and what each means, stands
with the figures themselves (`consumer.engine.figures`); so does the table in docs/status.md (`status_table`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypedDict

from consumer.engine.figures import Attribute, Figure, Shape, figures_of
from consumer.engine.statistics import Statistics, Totals

VERSION = 1


class Process(TypedDict):
    """What the process says of itself."""

    version: Annotated[str, Figure("version", "Of pinstream.")]
    started: Annotated[int, Figure("started", "Seconds since 1970.")]
    group: Annotated[str, Figure("group", "The consumer group.")]
    topics: Annotated[list[str], Figure("topics[]", "The topics or patterns it was told to read.")]
    sends_to: Annotated[str, Figure("sends_to", "The URL of the API.")]
    test_mode: Annotated[bool, Figure("test_mode", "Nothing is recorded by the platform.")]
    fast_path: Annotated[
        str,
        Figure(
            "fast_path",
            "How records are read.",
            status_note="`compiled`; `python`: the package was built without a C compiler, an event costs about six "
            "times as much; `off`: `PINSTREAM_FAST_PATH=false`.",
        ),
    ]


class KeyStoreSize(TypedDict):
    """What the key store holds."""

    keys: Annotated[int, Figure("keys", "Delivered keys that are remembered.")]
    bytes: Annotated[int, Figure("bytes", "What they take on disk.")]
    buckets: Annotated[int, Figure("buckets", "Slices of time that they are kept in.")]
    evicted_early: Annotated[
        int,
        Figure(
            "evicted_early",
            "Keys forgotten before the window was over: it was full, or somebody deleted the folder.",
        ),
    ]


class Document(NamedTuple):
    """What /status consists of; the rest of it is `Statistics`."""

    version: Annotated[int, Figure("version", "1. Within a version fields are only added.")]
    statistics: Annotated[Statistics, Figure(".")]


class Info(TypedDict):
    """What the process adds."""

    process: Annotated[Process, Figure("process")]
    key_store: Annotated[KeyStoreSize, Figure("key_store")]


def status_document(statistics: Statistics, info: Mapping[str, Any]) -> dict[str, Any]:
    """The document; `info` is what the process knows of itself (version, topics, destination's URL, key store)."""
    # Whatever `info` says, the figures stay what they are.
    return {**info, **document_of(Document(VERSION, statistics))}


def ledger(totals: Totals) -> dict[str, int]:
    """The six figures of the ledger."""
    return document_of(totals)


def document_of(owner: object) -> dict[str, Any]:
    """The figures of a snapshot, or of a part of one, under their names in /status."""
    document: dict[str, Any] = {}
    for attribute in figures_of(type(owner)):
        path, show = attribute.figure.status, attribute.figure.show
        if path:
            value = getattr(owner, attribute.name)
            _put(document, path, _plain(value) if show is None else show(value))
    return document


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    if path == ".":
        document.update(value)
        return
    *outer, last = path.removesuffix("[]").partition(".{")[0].split(".")
    for name in outer:
        document = document.setdefault(name, {})
    document[last] = value


def _plain(value: object) -> Any:
    """As JSON has it. It has no infinity: null."""
    if value is None or isinstance(value, int | str):
        return value
    if figures_of(type(value)):
        return document_of(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return None if math.isinf(value) else round(value, 3)
    if isinstance(value, Mapping):
        return _nested(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _nested(counts: Mapping[Any, Any]) -> dict[str, Any]:
    """In the order of the names; what stands under two names: first by the one, then by the other."""
    nested: dict[str, Any] = {}
    for names, value in sorted(counts.items()):
        if isinstance(names, tuple):
            nested.setdefault(names[0], {})[names[1]] = _plain(value)
        else:
            nested[names] = _plain(value)
    return nested


# -- the table in docs/status.md


class FieldRow(NamedTuple):
    """A field of the document, in the page's table."""

    path: str
    types: str
    meaning: str


_TYPES: Mapping[type, str] = {int: "int", float: "float", str: "str", bool: "bool"}


def status_table(*owners: type, path: str = "") -> str:
    """The page's table of the fields of these types' objects, which stand under `path`."""
    listed: set[type] = set()
    rows = _sorted_by_object(row for owner in owners for row in _rows(owner, path, listed))
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{one.path}` | {one.types} | {one.meaning} |" for one in rows)]) + "\n"


def _sorted_by_object(rows: Iterable[FieldRow]) -> list[FieldRow]:
    """What stands in one object stands together; objects in the order of their first fields."""
    by_object: dict[str, list[FieldRow]] = {}
    for row in rows:
        by_object.setdefault(row.path.partition(".")[0], []).append(row)
    return [row for of_one in by_object.values() for row in of_one]


def _rows(owner: type, path: str, listed: set[type]) -> Iterator[FieldRow]:
    listed.add(owner)
    for attribute in figures_of(owner):
        status = attribute.figure.status
        if not status:
            continue
        inner = path if status == "." else f"{path}.{status}" if path else status
        item, optional, _ = attribute.shape
        if not figures_of(item):
            yield FieldRow(inner, _types(attribute.shape), _words(attribute))
            continue
        if optional:
            yield FieldRow(inner, "object, null", _words(attribute))
        if item not in listed:
            yield from _rows(item, inner, listed)
            continue
        # The figures of such an object stand in the table already.
        words = _words(attribute)
        for row in _rows(item, inner, listed):
            yield row._replace(meaning=words)
            words = ""


def _types(shape: Shape) -> str:
    name = "str" if issubclass(shape.item, Enum) else _TYPES[shape.item]
    return f"{name}, null" if shape.optional else name


def _words(attribute: Attribute) -> str:
    return f"{attribute.figure.sentence} {attribute.figure.status_note}".strip()
