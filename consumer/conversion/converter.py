"""Commerce event -> conversion event, filtered, or unconvertible.

Theory of operation. A `Converter` is made once from a checked mapping: `convert_source` writes the mapping out
as two functions. Each event goes through the trusting one; if a value is not of the type the schema promises
that raises, and the forgiving one converts it again, more slowly and without trust. If that raises too, the
event is refused as ``unconvertible`` under the name of the failure's type: one event never stops the rest.

What comes out is safe to serialise: text is Unicode, numbers fit the API's int64, amounts are text.
"""

from __future__ import annotations

from consumer.avro.paths import AvroSchema
from consumer.conversion.cache import Watch
from consumer.conversion.decisions import (
    FILTER_CODES,
    REJECTION_CODES,
    UNCONVERTIBLE,
    WARNING_CODES,
    Decisions,
)
from consumer.conversion.fields import Task
from consumer.conversion.mapping import Mapping
from consumer.conversion.python_source import write
from consumer.engine.model import CommerceEvent, Converted, Rejection, Stage

__all__ = ["FILTER_CODES", "REJECTION_CODES", "WARNING_CODES", "Converter"]


class Converter:
    """Converts events of one schema under one mapping.

    `schema` is the reader's schema that `mapping` was checked against. `accounts` are the ad accounts that a
    record may name, the first being the one of records that name none; empty: any digits will do, and the
    default is ``"0"``. `partner_name` is that of every event. `max_event_age` and `max_clock_skew` are seconds.
    """

    def __init__(
        self,
        mapping: Mapping,
        schema: AvroSchema,
        *,
        accounts: tuple[str, ...],
        partner_name: str | None,
        max_event_age: float,
        max_clock_skew: float = 300.0,
    ) -> None:
        self.mapping = mapping
        self.schema = schema
        decisions = Decisions(mapping, accounts, max_event_age, max_clock_skew)
        self._units = decisions.units
        self._max_age = decisions.oldest
        self.task = Task(mapping, decisions, partner_name)
        """For who writes it out in another way (`consumer.conversion.reading`)."""
        self.watch = Watch(self.task.caches.values)
        self._trusting = write(self.task, trusting=True)
        self._forgiving = write(self.task, trusting=False)

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """What becomes of `event` at `now` (unix seconds). Never raises."""
        return self.convert_chunk([event], now)[0]

    def convert_chunk(self, events: list[CommerceEvent], now: float) -> list[Converted]:
        """What becomes of each event, in order, at `now` (unix seconds). Never raises."""
        oldest, present = self.bounds(now)
        self.watch.add(len(events))
        trusting = self._trusting
        converted: list[Converted] = []
        for event in events:
            try:
                converted.append(trusting(event, oldest, present))
            except Exception:
                converted.append(self._again(event, oldest, present))
        return converted

    def bounds(self, now: float) -> tuple[float, float]:
        """The oldest time of an event that is not expired at `now` (unix seconds), and the latest that is not ahead.

        In units of the record's time.
        """
        present = now * self._units
        return present - self._max_age, present

    def _again(self, event: CommerceEvent, oldest: float, present: float) -> Converted:
        """Converts an event that is not quite what its schema promises."""
        try:
            return self._forgiving(event, oldest, present)
        except Exception as failure:
            name = type(failure).__name__
            message = f"the event cannot be converted ({name}): compare it with its schema"
            return Rejection(Stage.CONVERT, UNCONVERTIBLE, message)
