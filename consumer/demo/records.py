"""The records of `produce` and `demo`, from a file or the generated shop, encoded for producing."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import click

from consumer.adapters.files import Types, open_records
from consumer.avro.encode import Encoder, SectionEncoders, Unencodable
from consumer.avro.paths import AvroSchema
from consumer.demo.generator import EventGenerator
from consumer.engine.model import CommerceEvent, Filtered, Rejection

# A duplicate repeats one of this number of latest records.
_RECENT = 500


class Produced(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes


@dataclass(eq=False)
class FileRecords:
    """The events of a file as records, in order. Events that do not fit the schema are skipped, counted and reported.

    `change`, if given, is applied to each event first.
    """

    file: str
    schema: AvroSchema | Types
    encoder: Encoder | SectionEncoders
    change: Callable[[CommerceEvent], CommerceEvent] | None = None
    skipped: int = 0

    def __iter__(self) -> Iterator[Produced]:
        for number, event in open_records(self.file, self.schema):
            try:
                if isinstance(event, Rejection):
                    raise Unencodable(event.message)
                if isinstance(event, Filtered):
                    raise Unencodable("the mapping filters records of its type (unknown_record)")
                value = self.encoder.encode(event if self.change is None else self.change(event))
            except Unencodable as error:
                # One bad record must not keep the others back. `produce` fails at its end.
                self.skipped += 1
                click.echo(f"pinstream: {self.file}, record {number} is skipped: {error}", err=True)
            else:
                yield Produced(key_of(event), value)


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


def made_up(generator: EventGenerator, encoder: Encoder | SectionEncoders) -> Iterator[Produced]:
    """Yield the records of the generated shop without end; invalid ones are not encoded."""
    for one in generator:
        value = one.raw if one.event is None else encoder.encode(one.event)
        yield Produced(one.key, value or b"")


def with_duplicates(records: Iterable[Produced], share: float, seed: int) -> Iterator[Produced]:
    """Repeat recent records, byte for byte, so that about `share` of all records are duplicates."""
    dice = random.Random(seed)  # noqa: S311 - the demo's dice
    recent: deque[Produced] = deque(maxlen=_RECENT)
    for record in records:
        yield record
        recent.append(record)
        while dice.random() < share:
            yield dice.choice(recent)


def with_invalid(
    records: Iterable[Produced],
    share: float,
    seed: int,
    now: Callable[[], float],
    encoder: Encoder | SectionEncoders,
) -> Iterator[Produced]:
    """Insert invalid records, so that about `share` of all records cannot be delivered."""
    dice = random.Random(seed)  # noqa: S311 - the demo's dice
    # Those of the generated shop: a defect of any other schema is not known here.
    broken = made_up(EventGenerator(seed, now, invalid=1.0), encoder)
    for record in records:
        while dice.random() < share:
            yield next(broken)
        yield record
