"""The plain consumer's conversion for any schema: written the usual way, with the paths of a mapping.

The mapping comes as the JSON file that `benchmarks.own` writes. As in `conversion` nothing is checked and nothing is
normalised by field; what is hashed is trimmed and in lower case.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastavro

_SINGLE_OBJECT_HEAD = 10
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SEVERAL = ("custom_data.content_ids",)
_SUM = "custom_data.num_items"


def conversion(schema: Path, mapping: Path) -> Callable[[bytes], dict[str, Any]]:
    """A function that makes a conversion event of a record's value, which was written with the schema in that file."""
    parsed = fastavro.parse_schema(json.loads(schema.read_text()))
    convert = Mapped(json.loads(mapping.read_text())).convert

    def convert_value(value: bytes) -> dict[str, Any]:
        body = io.BytesIO(value[_SINGLE_OBJECT_HEAD:])
        return convert(fastavro.schemaless_reader(body, parsed, None))  # type: ignore[arg-type]

    return convert_value


class Mapped:
    """Converts by `mapping`: ``fields`` and ``item_fields`` (target, path, hashed), ``items`` (the path to them),
    ``event_names``, ``action_sources``, ``constants``, ``units`` (of a time, by second)."""

    def __init__(self, mapping: dict[str, Any]) -> None:
        self._fields = mapping["fields"]
        self._items = mapping["items"]
        self._item_fields = mapping["item_fields"]
        self._names = mapping["event_names"]
        self._sources = mapping["action_sources"]
        self._constants = mapping["constants"]
        self._units = mapping["units"]

    def convert(self, record: dict[str, Any]) -> dict[str, Any]:
        """One conversion event."""
        event: dict[str, Any] = {}
        for target, value in self._constants.items():
            _put(event, target, value)
        for target, path, hashed in self._fields:
            values = walk(record, path)
            if values:
                _put(event, target, _hashed(values) if hashed else self._sent(target, values))
        contents = [self._item(item) for item in walk(record, self._items)] if self._item_fields else []
        if contents:
            event.setdefault("custom_data", {})["contents"] = contents
        return event

    def _sent(self, target: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if target == "event_time":
            return self._seconds(first)
        if target == "event_name":
            return self._names.get(first, first)
        if target == "action_source":
            return self._sources.get(str(first).lower(), first)
        if target in _SEVERAL:
            return [plain(value) for value in values]
        return sum(values) if target == _SUM else plain(first)

    def _seconds(self, value: Any) -> int:
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):
            return int((value - _EPOCH).total_seconds())
        return int(value // self._units)

    def _item(self, item: dict[str, Any]) -> dict[str, Any]:
        found = {key: walk(item, path) for key, path, _ in self._item_fields}
        return {key: plain(values[0]) for key, values in found.items() if values}


def walk(value: Any, path: Sequence[str]) -> list[Any]:
    """All values at the end of a path, without nulls; a step without a name stands for each element."""
    values = [value]
    for name in path:
        if name:
            values = [held.get(name) for held in values if isinstance(held, dict)]
        else:
            values = [each for held in values for each in (held if isinstance(held, list) else [held])]
        values = [held for held in values if held is not None]
    return values


def plain(value: Any) -> Any:
    """A value in a form that JSON can hold."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _hashed(values: Sequence[Any]) -> list[str]:
    texts = [str(value).strip().lower() for value in values]
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts if text]


def _put(event: dict[str, Any], target: str, value: Any) -> None:
    *parents, key = target.split(".")
    for parent in parents:
        event = event.setdefault(parent, {})
    event[key] = value
