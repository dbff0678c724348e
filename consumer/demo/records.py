"""The records of `produce` and `demo`: from a file or the generated shop, encoded; and how their times are moved."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import click

from consumer.adapters.files import Types, open_records
from consumer.avro.encode import Encode, Unencodable
from consumer.avro.paths import EACH, Source, value_at
from consumer.conversion.computed.expressions import results_of
from consumer.conversion.decisions import units_of
from consumer.conversion.mapping import Mapping
from consumer.conversion.rules import SECONDS_A_DAY, moment
from consumer.conversion.sections import Sections
from consumer.demo.generator import EventGenerator
from consumer.engine.model import CommerceEvent, Filtered, Rejection, section_of
from consumer.errors import InputError

# A duplicate repeats one of this number of latest records.
_RECENT = 500


class Produced(NamedTuple):
    """One record to produce. `place`: its place in its file, from 1; 0: it is from none."""

    key: bytes
    value: bytes
    place: int = 0


@dataclass(eq=False)
class FileRecords:
    """The events of a file as records, in order. Events that do not fit the schema are skipped, counted and reported.

    `change`, if given, is applied to each event first.
    """

    file: str
    types: Types
    encode: Encode
    change: Callable[[CommerceEvent], CommerceEvent] | None = None
    skipped: int = 0

    def __iter__(self) -> Iterator[Produced]:
        for number, event in open_records(self.file, self.types):
            try:
                if isinstance(event, Rejection):
                    raise Unencodable(event.message)
                if isinstance(event, Filtered):
                    raise Unencodable("the mapping filters records of its type (unknown_record)")
                value = self.encode(event if self.change is None else self.change(event))
            except Unencodable as error:
                # One bad record must not keep the others back. `produce` fails at its end.
                self.skipped += 1
                click.echo(f"pinstream: {self.file}, record {number} is skipped: {error}", err=True)
            else:
                yield Produced(key_of(event), value, number)


def key_of(event: CommerceEvent) -> bytes:
    """Return the key of the record: the shopper's first external id or e-mail address, else the event id."""
    # So the records of a shopper share a partition. With another schema, partitions fill evenly.
    customer = event.get("customer")
    if isinstance(customer, dict):
        for field in ("external_ids", "emails"):
            values = customer.get(field)
            if values:
                return str(values[0]).encode()
    return str(event.get("event_id", "")).encode()


def made_up(generator: EventGenerator, encode: Encode, *, skips: bool = False) -> Iterator[Produced]:
    """Yield the records of the generated shop without end. Raises `InputError` for an event that does not fit the
    schema, or `skips` it."""
    for one in generator:
        try:
            value = one.raw if one.event is None else encode(one.event)
        except Unencodable as error:
            if skips:
                continue
            raise InputError(
                f"the events of the made-up shop do not fit your schema ({error}); name a file of records, or unset "
                "PINSTREAM_SCHEMA and PINSTREAM_MAPPING_FILE"
            ) from error
        yield Produced(one.key, value or b"")


def disturbed(
    records: Iterable[Produced], duplicates: float, invalid: float, seed: int, encode: Encode
) -> Iterator[Produced]:
    """Repeat recent records, byte for byte, and insert invalid ones: about these shares of all records."""
    dice = random.Random(seed)  # noqa: S311 - the demo's dice
    recent: deque[Produced] = deque(maxlen=_RECENT)
    # Those of the generated shop: a defect of any other schema is not known here. Where its events do not fit, what is
    # left of them is bytes in no wire format.
    broken = made_up(EventGenerator(seed, time.time, invalid=1.0), encode, skips=True)
    for record in records:
        while dice.random() < invalid:
            yield next(broken)
        yield record
        recent.append(record)
        while dice.random() < duplicates:
            yield dice.choice(recent)


# -- times


def event_times(mapped: Sections) -> Callable[[CommerceEvent], EventTimes]:
    """Return what gives the `EventTimes` of an event, by its section."""
    times = [EventTimes(section.mapping) for section in mapped.all]
    return lambda event: times[section_of(event) - 1]


def moved_to_now(mapped: Sections) -> Callable[[CommerceEvent], CommerceEvent]:
    """Return a function that gives an event as if it happened now."""
    of = event_times(mapped)

    def moved(event: CommerceEvent) -> CommerceEvent:
        happened = of(event).seconds(event)
        return event if happened is None else of(event).moved(event, time.time() - happened)

    return moved


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class EventTimes:
    """Reads and moves the times of events that one mapping converts.

    A time is read as the converter reads it (`rules.moment`), and written back the way it was: a number stays a number
    of the same unit, text stays text. A value that is not a time stays as it is: the consumer reports it.
    """

    def __init__(self, mapping: Mapping) -> None:
        source = mapping.sources["event_time"]
        # A time that is computed is one of these.
        paths = [one for one in results_of(source) if isinstance(one, Source)]
        self._ways = [[step for step in path.steps if step != EACH] for path in paths]
        self._units = units_of(source, mapping.time_unit)
        self._days = "date" in source.kinds
        self._read = moment(self._units, self._days)

    def seconds(self, event: CommerceEvent) -> float | None:
        """The event's time in seconds since 1970; None if it has none that can be read."""
        times = (self._read(value_at(event, way)) for way in self._ways)
        return next((at / self._units for at in times if isinstance(at, int)), None)

    def moved(self, event: CommerceEvent, seconds: float) -> CommerceEvent:
        """Return a copy of the event that happened `seconds` later."""
        by = int(seconds * self._units)
        for way in self._ways:
            at = self._read(value_at(event, way))
            if not isinstance(at, int):
                continue
            # `copy` keeps its section. Only changed objects are copied, so that records share no object that changes.
            event = copy(event)
            holder: dict[str, Any] = event
            for name in way[:-1]:
                holder[name] = holder = dict(holder[name])
            value = holder[way[-1]]
            if not isinstance(value, str):
                value += by // SECONDS_A_DAY if self._days else by
            elif value.strip().isdigit():
                value = str(at + by)
            else:
                then = _EPOCH + timedelta(microseconds=(at + by) * 1_000_000 // self._units)
                value = then.isoformat(timespec="milliseconds")
            holder[way[-1]] = value
        return event
