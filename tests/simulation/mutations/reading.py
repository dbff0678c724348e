"""Deliberate bugs in how records are read on the fast path; only worlds of real bytes that take it can show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from consumer.avro.plan import Plan
from consumer.avro.reading import reader_of
from consumer.conversion.reading import CompiledReading
from consumer.engine.block import Delivery
from consumer.engine.model import Record
from consumer.engine.reading import TwoSteps
from tests.simulation.mutations.mutating import mutation


@mutation
def fast_path_gives_the_event_before(patch: pytest.MonkeyPatch) -> None:
    """Something of the record before is left over where the next one is read."""
    read = CompiledReading.read

    def behind(self: CompiledReading, records: list[Record], now: float) -> list[Any]:
        results = read(self, records, now)
        return [
            before if isinstance(before, Delivery) and isinstance(result, Delivery) else result
            for before, result in zip([None, *results[:-1]], results, strict=True)
        ]

    patch.setattr(CompiledReading, "read", behind)


@mutation
def fast_path_does_not_look_where_the_datum_ends(patch: pytest.MonkeyPatch) -> None:
    """What is left over behind a datum, or lacks at its end, is nobody's business."""

    def cut(plan: Plan, records: list[Record], start: int) -> list[Record]:
        return [
            record
            if record.value is None
            else record._replace(value=record.value[: end(plan, record.value, start)])
            for record in records
        ]

    def end(plan: Plan, value: bytes, start: int) -> int | None:
        try:
            return reader_of(plan)(value, start)[1]
        except Exception:
            return None

    _around(patch, before=cut)


@mutation
def fast_path_keeps_items(patch: pytest.MonkeyPatch) -> None:
    """The list that one event's items are collected in is the next one's too."""
    kept: list[Any] = []

    def with_more(said: Any) -> Any:
        if isinstance(said, Delivery):
            payload = orjson.loads(said.body)
            kept.extend(payload.get("custom_data", {}).get("contents", ()))
            if kept:
                payload.setdefault("custom_data", {})["contents"] = kept
            said.body = orjson.dumps(payload)
        return said

    _around(patch, after=with_more)


@mutation
def fast_path_takes_what_it_cannot_read_for_a_tombstone(patch: pytest.MonkeyPatch) -> None:
    """Where the function is not certain, or there is none yet, nobody is asked."""

    patch.setattr(TwoSteps, "read_one", lambda *_: None)


def _around(
    patch: pytest.MonkeyPatch,
    before: Callable[[Plan, list[Record], int], list[Record]] | None = None,
    after: Callable[[Any], Any] | None = None,
) -> None:
    """Have a program read other records, or say something else of each."""
    write = CompiledReading._write

    def changed(self: CompiledReading, plan: Plan) -> Any:
        function = write(self, plan)
        if function is None:
            return None

        def read(
            records: list[Record], prepared: list[Any], framing: bytes, start: int, *bounds: float
        ) -> None:
            first = len(prepared)
            function(
                records if before is None else before(plan, records, start), prepared, framing, start, *bounds
            )
            if after is not None:
                prepared[first:] = map(after, prepared[first:])

        return read

    patch.setattr(CompiledReading, "_write", changed)
