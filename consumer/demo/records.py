"""The records of `produce` and `demo`, from a file or the generated shop, encoded for producing."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import click

from consumer.adapters.files import open_records
from consumer.avro.encode import Encoder, Unencodable
from consumer.demo.generator import EventGenerator
from consumer.engine.model import CommerceEvent, Rejection

_RECENT = 500
"""A duplicate repeats one of this number of latest records."""


class Produced(NamedTuple):
    """One record to produce."""

    key: bytes
    value: bytes


class FileRecords:
    """The events of a file as records, in order. Events that do not fit the schema are skipped, counted and reported.

    `change`, if given, is applied to each event first.
    """

    def __init__(
        self,
        file: str,
        schema: dict[str, Any],
        encoder: Encoder,
        change: Callable[[CommerceEvent], CommerceEvent] | None = None,
    ) -> None:
        self._file = file
        self._schema = schema
        self._encoder = encoder
        self._change = change
        self.skipped = 0

    def __iter__(self) -> Iterator[Produced]:
        for number, event in open_records(self._file, self._schema):
            if isinstance(event, Rejection):
                self._skip(number, event.message)
                continue
            try:
                value = self._encoder.encode(event if self._change is None else self._change(event))
            except Unencodable as error:
                self._skip(number, str(error))
            else:
                yield Produced(key_of(event), value)

    def _skip(self, number: int, reason: str) -> None:
        self.skipped += 1
        click.echo(f"pinstream: {self._file}, record {number} is skipped: {reason}", err=True)


def key_of(event: CommerceEvent) -> bytes:
    """Return the key of the record: the shopper's first external id, or first e-mail address.

    So the records of a shopper share a partition. In other schemas it is the event id, so that partitions fill evenly.
    """
    customer = event.get("customer")
    if isinstance(customer, dict):
        for field in ("external_ids", "emails"):
            values = customer.get(field)
            if values:
                return str(values[0]).encode()
    return str(event.get("event_id", "")).encode()


def made_up(generator: EventGenerator, encoder: Encoder) -> Iterator[Produced]:
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
    records: Iterable[Produced], share: float, seed: int, now: Callable[[], float], encoder: Encoder
) -> Iterator[Produced]:
    """Insert invalid records, so that about `share` of all records cannot be delivered."""
    dice = random.Random(seed)  # noqa: S311 - the demo's dice
    broken = made_up(EventGenerator(seed, now, invalid=1.0), encoder)
    for record in records:
        while dice.random() < share:
            yield next(broken)
        yield record
