"""How records become events with their JSON: what the engine needs of a decoder and a converter.

Theory of operation. Decoder and converter are told of no other part of the engine; they fit the Protocols here by
shape. Each event is serialised once; batches, retries and bisects only join those bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from consumer.engine.block import Delivery, Prepared
from consumer.engine.coverage import written_in
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    Stage,
)

TOMBSTONE = Filtered("tombstone")
_NOT_UNICODE = Rejection(Stage.CONVERT, "unserialisable", "the event holds text that is not Unicode")
Decoded = CommerceEvent | Rejection | SchemaRef | Filtered | None


class Decoding(Protocol):
    """What the core needs of a decoder; see `consumer.avro.decode.Decoder`."""

    def decode_chunk(self, records: list[Record]) -> Sequence[Decoded]:
        """One result per record: the event, why there is none, the schema that is needed first; None: tombstone.

        `Filtered` where somebody in between does not want it (`consumer.commands.replay.selection`).
        """


class SchemaLearner(Decoding, Protocol):
    """A decoder that learns writers' schemas; see `consumer.avro.decode.Decoder`."""

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = ...) -> Rejection | None:
        """Learn a writer's schema; gives why it can never be read, if so."""

    def missing(self, ref: SchemaRef) -> Rejection | Filtered:
        """The verdict on a record whose schema does not exist."""


class Converting(Protocol):
    """What the core needs of a converter; see `consumer.conversion.converter.Converter`."""

    def convert_chunk(self, events: list[CommerceEvent], now: float) -> Sequence[Converted]:
        """One result per event, at `now` (unix seconds)."""


class Reading(Protocol):
    """From records to deliveries: `TwoSteps`, or `consumer.conversion.reading.CompiledReading`."""

    @property
    def in_two_steps(self) -> int:
        """How many records were decoded and converted one after the other, so far."""

    def read(self, records: list[Record], now: float) -> list[Prepared]:
        """One result per record, in order, at `now` (unix seconds)."""


def serialised(event: ConversionEvent) -> Delivery | Rejection:
    """The event with its JSON."""
    try:
        body = orjson.dumps(event.payload)
    except orjson.JSONEncodeError:
        return _NOT_UNICODE
    offline = event.action_source == "offline"
    written = written_in(event.payload)
    return Delivery(
        event.account, event.name, event.dedup_id, event.time, offline, body, event.warnings, written
    )


class TwoSteps:
    """Decodes and converts a slice, one after the other; each event is serialised at once."""

    def __init__(self, decoder: Decoding, converter: Converting) -> None:
        self._decoder = decoder
        self._converter = converter
        self.in_two_steps = 0

    def read(self, records: list[Record], now: float) -> list[Prepared]:
        """See `Reading`."""
        self.in_two_steps += len(records)
        read: list[Any] = list(self._decoder.decode_chunk(records))
        places = [place for place, decoded in enumerate(read) if type(decoded) is dict]
        converted = self._converter.convert_chunk([read[place] for place in places], now)
        for place, event in zip(places, converted, strict=True):
            read[place] = serialised(event) if isinstance(event, ConversionEvent) else event
        return [TOMBSTONE if one is None else one for one in read]

    def read_one(self, record: Record, now: float) -> Prepared:
        """What one record became."""
        (read,) = self.read([record], now)
        return read
