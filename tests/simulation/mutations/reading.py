"""Deliberate bugs in how records are read on the fast path; only worlds of real bytes that take it can show them."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.conversion import reading as fused
from consumer.conversion.reading import FusedReading
from consumer.conversion.reading_source import FusedGenerator, write_fused
from consumer.engine.dedup import Delivery
from consumer.engine.intake import TwoSteps
from consumer.engine.model import Record
from tests.simulation.mutations.mutating import mutation


@mutation
def fast_path_gives_the_event_before(patch: pytest.MonkeyPatch) -> None:
    """Something of the record before is left over where the next one is read."""
    read = FusedReading.read

    def behind(self: FusedReading, records: list[Record], now: float) -> list[Any]:
        results = read(self, records, now)
        return [
            before if isinstance(before, Delivery) and isinstance(result, Delivery) else result
            for before, result in zip([None, *results[:-1]], results, strict=True)
        ]

    patch.setattr(FusedReading, "read", behind)


@mutation
def fast_path_does_not_look_where_the_datum_ends(patch: pytest.MonkeyPatch) -> None:
    """What is left over behind a datum, or lacks at its end, is nobody's business."""
    _rewrite(patch, "if at != len(data):", "if False:")


@mutation
def fast_path_keeps_items(patch: pytest.MonkeyPatch) -> None:
    """The list that one event's items are collected in is the next one's too."""
    _rewrite(patch, "contents = []", "contents = globals().setdefault('kept', [])")


@mutation
def fast_path_takes_what_it_cannot_read_for_a_tombstone(patch: pytest.MonkeyPatch) -> None:
    """Where the function is not certain, or there is none yet, nobody is asked."""

    patch.setattr(TwoSteps, "read_one", lambda *_: None)


def _rewrite(patch: pytest.MonkeyPatch, line: str, instead: str) -> None:
    """Have another line written into the generated function, all of it in Python."""
    patch.setattr(fused, "write_program", write_fused)
    write = FusedGenerator.fused

    def rewritten(self: FusedGenerator) -> str:
        source = write(self)
        assert line in source
        changed: str = source.replace(line, instead)
        return changed

    patch.setattr(FusedGenerator, "fused", rewritten)
