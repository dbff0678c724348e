"""From fetched records to deliveries: decode, convert, serialise once, claim.

Theory of operation. A slice of records is *prepared*: decoded, converted, serialised; that changes nothing but what
decoder and converter know. Then it is known how many bytes each event will hold, and admission decides how many of
them fit. What is admitted *claims* its key. Each event is serialised once; batches, retries and bisects only join
those bytes. What was claimed of a slice is shown to `coverage` before the next one is prepared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from consumer.core.context import Context
from consumer.core.coverage import Coverage
from consumer.core.dedup import Claims, Delivery, dedup_key
from consumer.core.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    Stage,
)
from consumer.core.spans import Span
from consumer.core.statistics import Samples

SLICE = 64
"""Records decoded, converted and serialised in one go: few enough that the processor's cache still holds an event's
objects when the next stage comes to them (a slice of 1000 costs a third more; docs/performance.md)."""
TOMBSTONE = Filtered("tombstone")
_NOT_UNICODE = Rejection(Stage.CONVERT, "unserialisable", "the event holds text that is not Unicode")
Verdict = Filtered | Rejection | SchemaRef
Prepared = tuple[ConversionEvent, bytes] | Verdict
"""An event and its JSON (a plain tuple), or why there is none."""
Decoded = CommerceEvent | Rejection | SchemaRef | Filtered | None


class Decoding(Protocol):
    """What the core needs of a decoder; see `consumer.core.decode.Decoder`."""

    def decode_chunk(self, records: list[Record]) -> Sequence[Decoded]:
        """One result per record: the event, why there is none, the schema that is needed first; None: tombstone.

        `Filtered` where somebody in between does not want it (`consumer.core.selection`).
        """


class SchemaLearner(Decoding, Protocol):
    """A decoder that learns writers' schemas; see `consumer.core.decode.Decoder`."""

    def add_schema(self, ref: SchemaRef, schema_json: Any) -> Rejection | None:
        """Learn a writer's schema; gives why it can never be read, if so."""

    def add_missing(self, ref: SchemaRef) -> None:
        """There is no such schema."""


class Converting(Protocol):
    """What the core needs of a converter; see `consumer.core.convert.Converter`."""

    def convert_chunk(self, events: list[CommerceEvent], now: float) -> Sequence[Converted]:
        """One result per event, at `now` (unix seconds)."""


class Intake:
    """Turns records into events with their JSON, and those into deliveries."""

    def __init__(
        self,
        context: Context,
        claims: Claims,
        decoder: Decoding,
        converter: Converting,
        coverage: Coverage,
        samples: Samples,
    ) -> None:
        self._context = context
        self._claims = claims
        self._decoder = decoder
        self._converter = converter
        self._coverage = coverage
        self._samples = samples
        self._claimed: list[ConversionEvent] = []
        """Events of the latest slice that lead their keys."""

    def prepare(self, records: list[Record]) -> list[Prepared]:
        """One result per record."""
        self.show()
        events: list[CommerceEvent] = []
        places: list[int] = []
        prepared: list[Any] = list(self._decoder.decode_chunk(records))
        for place, decoded in enumerate(prepared):
            if type(decoded) is dict:
                events.append(decoded)
                places.append(place)
            elif decoded is None:
                prepared[place] = TOMBSTONE
        converted = self._converter.convert_chunk(events, self._context.now.unix)
        dumps = orjson.dumps
        for place, event in zip(places, converted, strict=True):
            if isinstance(event, ConversionEvent):
                try:
                    prepared[place] = (event, dumps(event.payload))
                except orjson.JSONEncodeError:
                    prepared[place] = _NOT_UNICODE
            else:
                prepared[place] = event
        return prepared

    def claim(self, span: Span, index: int, event: ConversionEvent, body: bytes) -> Delivery | None:
        """The delivery if it leads its key and is to be looked up; None: it follows the one that does."""
        account, name = event.account, event.name
        delivery = Delivery(
            span,
            index,
            account,
            dedup_key(account, name, event.dedup_id),
            body,
            name,
            event.time,
            event.action_source == "offline",
        )
        if event.warnings:
            self._count_warnings(event)
        if self._claims.claim(delivery):
            self._claimed.append(event)
            return delivery
        self._context.counters.followers += 1
        return None

    def _count_warnings(self, event: ConversionEvent) -> None:
        counters = self._context.counters
        for warning in event.warnings:
            counters.convert_warnings[warning.code, warning.field] += 1
            self._samples.warned(warning)

    def show(self) -> None:
        """A slice is done with: what it was claimed of is looked at."""
        if self._claimed:
            self._coverage.add(self._claimed, self._context.now.monotonic)
            self._claimed = []
