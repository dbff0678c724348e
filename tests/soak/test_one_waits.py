"""Memory while one record stays open and all others settle: a run in order never tests this bound."""

from __future__ import annotations

import tracemalloc
from typing import Any

from consumer.engine import messages as m
from consumer.engine.model import (
    Chunk,
    CommerceEvent,
    Converted,
    Filtered,
    Instant,
    Policy,
    Record,
    Rejection,
    SchemaDrift,
    SchemaRef,
)
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import Decoded

UNKNOWN = SchemaRef("id", "7")
CHUNK = 500


class _Decoder:
    """One record needs a schema that is not known yet; the others are tombstones, which settle at once."""

    def decode(self, record: Record, topic: str = "", partition: int = -1) -> Decoded:
        return UNKNOWN if record.offset == 0 else None

    def section_of(self, record: Record, topic: str) -> int:
        return 0

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = "AVRO") -> Rejection | None:
        return None

    def doubt(self, ref: SchemaRef) -> None:
        """No schema comes from disk."""

    def forget(self, ref: SchemaRef) -> None:
        """There is nothing to forget."""

    def drift(self, ref: SchemaRef) -> tuple[SchemaDrift, ...]:
        return ()

    def missing(self, ref: SchemaRef) -> Filtered:
        return Filtered("nobody asks")


class _Converter:
    def convert(self, event: CommerceEvent, now: float) -> Converted:
        raise AssertionError("no record is an event")


def settle(pipeline: Pipeline, first: int, chunks: int) -> None:
    """Fetch `chunks` chunks, from offset `first` on."""
    for number in range(chunks):
        at = first + number * CHUNK
        records = [Record(offset, 1, None, b"x", ()) for offset in range(at, at + CHUNK)]
        pipeline.handle(m.Fetched([Chunk("t", 0, 1, 1, records)]), Instant(at / 1e6, 1e9))


def test_what_settled_behind_an_open_record_holds_no_memory() -> None:
    """A record waits for its schema for hours: the ledger of the millions that settle behind it does not grow."""
    pipeline = Pipeline(Policy(max_open_events=20_000, max_open_bytes=128 << 20), _Decoder(), _Converter())
    pipeline.handle(m.Assigned([m.Assignment("t", 0, 1, 0, False)]), Instant(0.0, 1e9))
    settle(pipeline, 0, 20)
    tracemalloc.start()
    try:
        settle(pipeline, 20 * CHUNK, 200)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pipeline.ledger.open == 1
    assert pipeline.ledger.totals().filtered == 220 * CHUNK - 1
    assert grown < 2 * 200 * CHUNK, f"{grown / (200 * CHUNK):.0f} bytes for every settled record"
