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
from consumer.avro.paths import EACH, ORIGIN, Source, value_at
from consumer.conversion.computed.expressions import Expression, results_of
from consumer.conversion.computed.operators import Time
from consumer.conversion.mapping import Mapping
from consumer.conversion.rules import SECONDS_A_DAY, Rule, moment, units_of
from consumer.conversion.sections import Sections
from consumer.conversion.targets import TIME_UNITS
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
    headers: tuple[tuple[str, bytes], ...] = ()


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
                origin = event.get(ORIGIN, {})
                key, headers = origin.get("key"), origin.get("header", {}).items()
                # A key in Avro has no schema here.
                key = str(key).encode() if isinstance(key, str | int) else key_of(event)
                yield Produced(key, value, number, tuple((name, text.encode()) for name, text in headers))


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


class _OneTime(NamedTuple):
    """A time of an event: the way to it, what reads it, its units a second, and whether it counts days."""

    way: list[str]
    read: Rule
    units: int
    is_day: bool


class EventTimes:
    """Reads and moves the times of events that one mapping converts.

    A time is read as the converter reads it (`rules.moment`), and written back the way it was: a number stays a number
    of the same unit, text stays text. A value that is not a time stays as it is: the consumer reports it.
    """

    def __init__(self, mapping: Mapping) -> None:
        def times_of(source: Expression, read: Rule, units: int) -> Iterator[_OneTime]:
            # A time that is computed is one of these; Kafka's own is made when the record is produced.
            for one in results_of(source):
                if isinstance(one, Time):
                    yield from times_of(one.parts[0], one.rule, one.units)
                elif isinstance(one, Source) and one.steps[0] != ORIGIN:
                    way = [step for step in one.steps if step != EACH]
                    yield _OneTime(way, read, units, "date" in one.kinds)

        source = mapping.sources["event_time"]
        units = units_of(source.kinds, TIME_UNITS[mapping.time_unit])
        self._times = [*times_of(source, moment(units, "date" in source.kinds), units)]

    def seconds(self, event: CommerceEvent) -> float | None:
        """The event's time in seconds since 1970; None if it has none that can be read."""
        times = ((one.read(value_at(event, one.way)), one.units) for one in self._times)
        return next((at / units for at, units in times if isinstance(at, int)), None)

    def moved(self, event: CommerceEvent, seconds: float) -> CommerceEvent:
        """Return a copy of the event that happened `seconds` later."""
        for way, read, units, is_day in self._times:
            at, by = read(value_at(event, way)), int(seconds * units)
            if not isinstance(at, int):
                continue
            # `copy` keeps its section. Only changed objects are copied, so that records share no object that changes.
            event = copy(event)
            holder: dict[str, Any] = event
            for name in way[:-1]:
                holder[name] = holder = dict(holder[name])
            value = holder[way[-1]]
            if not isinstance(value, str):
                value += by // SECONDS_A_DAY if is_day else by
            elif value.strip().isdigit():
                value = str(at + by)
            else:
                then = _EPOCH + timedelta(microseconds=(at + by) * 1_000_000 // units)
                value = then.isoformat(timespec="milliseconds")
            holder[way[-1]] = value
        return event
