"""When a commerce event happened, in the record's own terms, and the same event at another time: ``produce --now``.

Theory of operation. A mapping says where an event's time stands and what it means; here it is read as the converter
reads it (`rules.moment`), moved, and written back the way it was: a number stays a number of the same unit,
text stays text. What is no time stays as it is, since what is wrong with a record is the consumer's to say.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from consumer.avro.paths import EACH, Source
from consumer.conversion.decisions import get, units_of
from consumer.conversion.mapping import Mapping
from consumer.conversion.rules import SECONDS_A_DAY, moment
from consumer.engine.model import CommerceEvent

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class EventTimes:
    """Reads and moves the times of events that one mapping converts."""

    def __init__(self, mapping: Mapping) -> None:
        source: Source = mapping.sources["event_time"]
        self._names = [step.name for step in source.steps if step != EACH]
        self.units: Final = units_of(source, mapping.time_unit)
        """So many of what `of` gives and `moved` takes make a second."""
        self._days = "date" in source.kinds
        self._read = moment(self.units)

    def of(self, event: CommerceEvent) -> int | None:
        """The event's time; None if it has none that can be read."""
        value: Any = event
        for name in self._names:
            value = get(value, name)
        if self._days and type(value) is int:
            return value * SECONDS_A_DAY
        time = self._read(value)
        return time if isinstance(time, int) else None

    def moved(self, event: CommerceEvent, by: int) -> CommerceEvent:
        """A copy of the event that happened `by` later."""
        time = self.of(event)
        if time is None:
            return event
        moved = dict(event)
        holder: dict[str, Any] = moved
        for name in self._names[:-1]:
            holder[name] = dict(holder[name])
            holder = holder[name]
        last = self._names[-1]
        holder[last] = self._written(holder[last], time, by)
        return moved

    def _written(self, value: Any, time: int, by: int) -> Any:
        if not isinstance(value, str):
            return value + (by // SECONDS_A_DAY if self._days else by)
        if value.strip().isdigit():
            return str(time + by)
        at = _EPOCH + timedelta(microseconds=(time + by) * 1_000_000 // self.units)
        return at.isoformat(timespec="milliseconds")
