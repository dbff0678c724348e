"""From fetched records to deliveries: decode, convert, serialise once, claim.

Theory of operation. A slice of records is *prepared*: decoded, converted, serialised; that changes nothing but what
decoder and converter know. Then it is known how many bytes each event will hold, and admission decides how many of
them fit. What is admitted *claims* its key. Each event is serialised once; batches, retries and bisects only join
those bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import orjson

from consumer.engine.clock import Clock
from consumer.engine.context import Context
from consumer.engine.counters import Samples
from consumer.engine.dedup import Claims, Delivery
from consumer.engine.model import (
    Ahead,
    CommerceEvent,
    ConversionEvent,
    Converted,
    Early,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    Stage,
    Warned,
)

SLICE = 64
"""Records decoded, converted and serialised in one go: few enough that the processor's cache still holds an event's
objects when the next stage comes to them (a slice of 1000 costs a third more; docs/performance.md)."""
TOMBSTONE = Filtered("tombstone")
_NOT_UNICODE = Rejection(Stage.CONVERT, "unserialisable", "the event holds text that is not Unicode")
Verdict = Filtered | Rejection | SchemaRef | Early
Prepared = Delivery | Verdict
"""A delivery that has no record yet, or why there is none."""
Decoded = CommerceEvent | Rejection | SchemaRef | Filtered | None


class Decoding(Protocol):
    """What the core needs of a decoder; see `consumer.avro.decode.Decoder`."""

    def decode_chunk(self, records: list[Record]) -> Sequence[Decoded]:
        """One result per record: the event, why there is none, the schema that is needed first; None: tombstone.

        `Filtered` where somebody in between does not want it (`consumer.engine.selection`).
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
    return Delivery(event.account, event.name, event.dedup_id, event.time, offline, body, event.warnings)


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


class Intake:
    """Turns records into events with their JSON, and those into deliveries."""

    def __init__(
        self, context: Context, clock: Clock, claims: Claims, reading: Reading, samples: Samples
    ) -> None:
        self._context = context
        self._clock = clock
        self._claims = claims
        self._reading = reading
        self._samples = samples

    def prepare(self, records: list[Record]) -> list[Prepared]:
        """One result per record."""
        prepared = self._reading.read(records, self._context.now.unix)
        self._context.counters.in_two_steps = self._reading.in_two_steps
        if Ahead in map(type, prepared):
            return [
                self._early(one, record) if isinstance(one, Ahead) else one
                for one, record in zip(prepared, records, strict=True)
            ]
        return prepared

    def prepare_by_its_own_clock(self, record: Record) -> Prepared:
        """What the record is by the time that it was stamped with."""
        (prepared,) = self._reading.read([record], record.timestamp / 1000)
        return prepared

    def _early(self, ahead: Ahead, record: Record) -> Prepared:
        """Whether an event that lies ahead waits or is refused."""
        if self._clock.may_wait(ahead.time, record.timestamp):
            return Early(ahead.time)
        return ahead.verdict

    def claim(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """These are read. Gives those that lead their keys and are to be looked up; the others follow who does."""
        claim = self._claims.claim
        leaders = [one for one in deliveries if claim(one)]
        self._context.counters.followers += len(deliveries) - len(leaders)
        for one in deliveries:
            if one.warnings:
                self._count_warnings(one.warnings)
        return leaders

    def _count_warnings(self, warnings: Iterable[Warned]) -> None:
        counters = self._context.counters
        for warning in warnings:
            counters.convert_warnings[warning.code, warning.field] += 1
            self._samples.warned(warning)
