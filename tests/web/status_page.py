"""The tables of docs/status.md, made from the definitions of the figures."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from consumer.engine.figures.definitions import figure, figures_of, snapshot
from consumer.web.metrics import families
from consumer.web.status import Process


@snapshot
class Info:
    """What the process adds to the figures of the engine."""

    process: Process = figure()


def metrics_table(*owners: type) -> str:
    """The page's table of the metrics of these types."""
    lines = ["| name | type | labels | what |", "| --- | --- | --- | --- |"]
    for family in (one for owner in owners for one, _ in families(owner, ())):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"


class FieldRow(NamedTuple):
    """A field of the document, in the page's table."""

    path: str
    types: str
    meaning: str


def status_table(*owners: type, path: str = "") -> str:
    """The page's table of the fields of these types' objects, which stand under `path`."""
    listed: set[type] = set()
    by_object: dict[str, list[FieldRow]] = {}
    for owner in owners:
        for row in _rows(owner, path, listed):
            # What stands in one object stands together, objects in the order of their first fields.
            by_object.setdefault(row.path.partition(".")[0], []).append(row)
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{one.path}` | {one.types} | {one.meaning} |" for rows in by_object.values() for one in rows
    ]
    return "\n".join(lines) + "\n"


def _rows(owner: type, path: str, listed: set[type]) -> Iterator[FieldRow]:
    listed.add(owner)
    for attribute in figures_of(owner):
        if not attribute.path:
            continue
        figure, (item, optional, _) = attribute.figure, attribute.shape
        inner = path if attribute.path == "." else f"{path}.{attribute.path}".removeprefix(".")
        words = f"{figure.sentence} {figure.status_note}".strip()
        null = ", null" if optional else ""
        if not figures_of(item):
            yield FieldRow(inner, ("str" if issubclass(item, Enum) else item.__name__) + null, words)
            continue
        if optional:
            yield FieldRow(inner, "object" + null, words)
            words = ""
        # Where the figures of such an object stand in the table already, only the first says what is different.
        known = item in listed
        for row in _rows(item, inner, listed):
            yield row._replace(meaning=words) if known else row
            words = ""
