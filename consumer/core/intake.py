"""From fetched records to deliveries: decode, convert, serialise once, claim.

Theory of operation. A span's records are decoded and converted in one go each, since most of what an event costs
is spent here. What cannot become a delivery is told to the pipeline at once: it is filtered, rejected, or waits
for its schema. Each event is serialised once; batches, retries and bisects only join those bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from consumer.core.context import Context
from consumer.core.dedup import Claims, Delivery, dedup_key
from consumer.core.ledger import Ledger, Span
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

_SLICE = 64
"""Records decoded, converted and serialised in one go: few enough that the processor's cache still holds an event's
objects when the next stage comes to them (a slice of 1000 costs a third more; docs/performance.md)."""
TOMBSTONE = Filtered("tombstone")
Verdict = Filtered | Rejection | SchemaRef
Decoded = CommerceEvent | Rejection | SchemaRef | None


class Decoding(Protocol):
    """What the core needs of a decoder; see `consumer.core.decode.Decoder`."""

    def decode_chunk(self, records: list[Record]) -> Sequence[Decoded]:
        """One result per record: the event, why there is none, the schema that is needed first; None: tombstone."""


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
    """Turns records of a span into leaders to look up; the rest goes to `set_aside` or follows a leader."""

    def __init__(
        self, context: Context, ledger: Ledger, claims: Claims, decoder: Decoding, converter: Converting
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._claims = claims
        self._decoder = decoder
        self._converter = converter

    def take_in(
        self, span: Span, indexes: Sequence[int], records: list[Record]
    ) -> tuple[list[Delivery], list[tuple[int, Verdict]]]:
        """Decode and convert `records` (at `indexes` of `span`).

        Gives the deliveries that lead their key, to be looked up, and what else became of which index.
        """
        leaders: list[Delivery] = []
        aside: list[tuple[int, Verdict]] = []
        for at in range(0, len(records), _SLICE):
            self._take_slice(span, indexes[at : at + _SLICE], records[at : at + _SLICE], leaders, aside)
        return leaders, aside

    def _take_slice(
        self,
        span: Span,
        indexes: Sequence[int],
        records: list[Record],
        leaders: list[Delivery],
        aside: list[tuple[int, Verdict]],
    ) -> None:
        events: list[CommerceEvent] = []
        places: list[int] = []
        for index, decoded in zip(indexes, self._decoder.decode_chunk(records), strict=True):
            if type(decoded) is dict:
                events.append(decoded)
                places.append(index)
            else:
                # mypy cannot narrow by `type(...) is dict`; a None is a tombstone.
                aside.append((index, TOMBSTONE if decoded is None else decoded))  # type: ignore[arg-type]
        converted = self._converter.convert_chunk(events, self._context.now.unix)
        self._claim(span, places, converted, leaders, aside)

    def _claim(
        self,
        span: Span,
        places: list[int],
        converted: Sequence[Converted],
        leaders: list[Delivery],
        aside: list[tuple[int, Verdict]],
    ) -> None:
        costs, grown = span.costs, 0
        claim, dumps = self._claims.claim, orjson.dumps
        for index, event in zip(places, converted, strict=True):
            if not isinstance(event, ConversionEvent):
                aside.append((index, event))
                continue
            try:
                body = dumps(event.payload)
            except orjson.JSONEncodeError:
                aside.append(
                    (
                        index,
                        Rejection(
                            Stage.CONVERT, "unserialisable", "the event holds text that is not Unicode"
                        ),
                    )
                )
                continue
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
            costs[index] += len(body)
            grown += len(body)
            if claim(delivery):
                leaders.append(delivery)
            else:
                self._context.counters.followers += 1
            if event.warnings:
                self._count_warnings(event)
        self._ledger.grow(span.assignment, grown)

    def _count_warnings(self, event: ConversionEvent) -> None:
        counters = self._context.counters
        for warning in event.warnings:
            counters.bump(counters.convert_warnings, warning.code)
