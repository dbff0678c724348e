"""The tables of docs/status.md, made from the definitions of the figures."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from consumer.engine.figures.definitions import Figure, figure, figures_of, snapshot
from consumer.web.metrics import families
from consumer.web.status import Process


@snapshot
class Info:
    """What the process adds to the figures of the engine."""

    process: Process = figure()


class FieldRow(NamedTuple):
    """A field of the document, in the page's table."""

    path: str
    types: str
    meaning: str
    figure: Figure


def metrics_table(owner: type, *documents: type, path: str = "") -> str:
    """The page's table of the metrics of this type. One that is a field of the documents, which stand under `path`,
    is told of there."""
    fields: dict[str, FieldRow] = {}
    for document in documents:
        for row in _rows(document, path, {}):
            fields.setdefault(row.figure.metric, row)
    lines = ["| name | labels | what |", "| --- | --- | --- |"]
    for family, _ in families(owner, ()):
        field = fields.get(family.name)
        what = f"`{field.path}`. {field.figure.metric_note}".strip() if field else family.help
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {labels} | {what} |")
    return "\n".join(lines) + "\n"


def status_table(*owners: type, path: str = "") -> str:
    """The page's table of the fields of these types' objects, which stand under `path`."""
    listed: dict[type, str] = {}
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


def _rows(owner: type, path: str, listed: dict[type, str]) -> Iterator[FieldRow]:
    listed[owner] = path
    for attribute in figures_of(owner):
        if not attribute.path:
            continue
        figure, (item, optional, _) = attribute.figure, attribute.shape
        inner = path if attribute.path == "." else f"{path}.{attribute.path}".removeprefix(".")
        words = f"{figure.sentence} {figure.status_note}".strip()
        null = ", null" if optional else ""
        if not figures_of(item):
            types = ("str" if issubclass(item, Enum) else item.__name__) + null
            yield FieldRow(inner, types, words, figure)
            continue
        if optional:
            yield FieldRow(inner, "object" + null, words, figure)
            words = ""
        if item in listed:
            # Its figures stand in the table already.
            kinds = {one for row in _rows(item, "", {}) for one in row.types.split(", ")}
            yield FieldRow(
                f"{inner}.{{…}}", ", ".join(sorted(kinds)), words or f"As `{listed[item]}`.", figure
            )
        else:
            yield from _rows(item, inner, listed)
