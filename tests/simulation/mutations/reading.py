"""Deliberate bugs in how records are read on the fast path; only worlds of real bytes that take it can show them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import orjson
import pytest

from consumer.avro.plan import Plan
from consumer.conversion.reading import CompiledReading
from consumer.engine.model import Record
from consumer.engine.reading import TOMBSTONE, Columns, TwoSteps
from tests.simulation.mutations.mutating import around, mutation, replaces


@around(CompiledReading, "read")
def fast_path_gives_the_event_before(
    read: Any,
    self: CompiledReading,
    records: Sequence[Record | None],
    now: float,
    columns: Columns,
    *place: Any,
) -> None:
    """Something of one record is left over when the next one is read."""
    read(self, records, now, columns, *place)
    rows = [row for row in range(len(columns)) if columns.is_event(row)]
    said = [(columns.key(row), columns.body(row)) for row in rows]
    _rewrite(columns, dict(zip(rows[1:], said, strict=False)))


@mutation
def fast_path_does_not_check_where_the_datum_ends(patch: pytest.MonkeyPatch) -> None:
    """Bytes behind a datum, or missing at its end, are ignored."""

    def cut(plan: Plan, records: Sequence[Any], start: int) -> list[Any]:
        return [
            record
            if record is None or record.value is None
            else record._replace(value=record.value[: end(plan, record.value, start)])
            for record in records
        ]

    def end(plan: Plan, value: bytes, start: int) -> int | None:
        try:
            return plan.read(value, start)[1]
        except Exception:
            return None

    _around(patch, before=cut)


@mutation
def fast_path_keeps_items(patch: pytest.MonkeyPatch) -> None:
    """The list of one event's items is used for the next event, too."""
    kept: list[Any] = []

    def with_more(body: bytes) -> bytes:
        payload = orjson.loads(body[:-1])
        kept.extend(payload.get("custom_data", {}).get("contents", ()))
        if kept:
            payload.setdefault("custom_data", {})["contents"] = kept
        return orjson.dumps(payload) + b","

    _around(patch, after=with_more)


@replaces(TwoSteps, "read")
def fast_path_takes_what_it_cannot_read_for_a_tombstone(
    self: TwoSteps, records: Sequence[Record | None], now: float, columns: Columns, *place: Any
) -> None:
    """A record that the compiled program cannot read counts as a tombstone instead of going to the plain reader."""
    for _ in records:
        columns.add(TOMBSTONE)


def _around(
    patch: pytest.MonkeyPatch,
    before: Callable[[Plan, Sequence[Any], int], list[Any]] | None = None,
    after: Callable[[bytes], bytes] | None = None,
) -> None:
    """Let a program read other records, or give other results."""
    write = CompiledReading._write

    def changed(self: CompiledReading, plan: Plan, number: int) -> Any:
        function = write(self, plan, number)
        if function is None:
            return None

        def read(records: Sequence[Any], columns: Columns, framing: bytes, start: int, *more: Any) -> None:
            first = len(columns)
            function(
                records if before is None else before(plan, records, start), columns, framing, start, *more
            )
            rows = [row for row in range(first, len(columns)) if columns.is_event(row)]
            if after is not None:
                _rewrite(columns, {row: (columns.key(row), after(columns.body(row))) for row in rows})

        return read

    patch.setattr(CompiledReading, "_write", changed)


def _rewrite(columns: Columns, events: Mapping[int, tuple[bytes, bytes]]) -> None:
    """Replace the keys and bodies of rows."""
    said = [events.get(row, (columns.key(row), columns.body(row))) for row in range(len(columns))]
    columns.keys[:] = b"".join(key for key, _ in said)
    columns.page[:] = b"".join(body for _, body in said)
    columns.ends[:] = array("q", accumulate(len(body) for _, body in said))
