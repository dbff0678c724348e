"""``pinstream produce``: a file's records, or made-up ones, onto a topic."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import click

from consumer.adapters.files import open_records
from consumer.adapters.kafka import RecordProducer, describe
from consumer.adapters.schemas import RegistrySchemas
from consumer.app import building
from consumer.app.signals import on_stop_signal
from consumer.avro.encode import ConfluentId, Encoder, SingleObject
from consumer.commands.base import Command, pause, say
from consumer.conversion.event_times import EventTimes
from consumer.demo.generator import EventGenerator
from consumer.demo.records import FileRecords, Produced, made_up
from consumer.engine.model import CommerceEvent, Rejection
from consumer.errors import InputError, MappingError, UsageError
from consumer.settings import Settings, load

_LINE_EVERY = 5.0
_FLUSH_TIMEOUT = 60.0
_DESCRIBE_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class ProduceOptions:
    """The command line's options."""

    file: str | None
    topic: str
    restamp: bool
    generate: bool
    events: int | None
    rate: float | None
    duplicates: float
    invalid: float
    seed: int


@click.command(cls=Command)
@click.argument("file", required=False)
@click.option("--topic", required=True, help="Topic to write to.")
@click.option("--now", "restamp", is_flag=True, help="Shift all event times so that the newest is now.")
@click.option("--generate", is_flag=True, help="Generate events instead of reading FILE.")
@click.option(
    "--events",
    type=click.IntRange(min=1),
    help="With --generate: stop after N events. Default: run until Ctrl-C.",
)
@click.option(
    "--rate", type=click.FloatRange(min=0.01), help="Events per second. Default: as fast as possible."
)
@click.option(
    "--duplicates",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    help="With --generate: share of events that are produced twice.",
)
@click.option(
    "--invalid", type=click.FloatRange(0, 0.9), default=0.0, help="With --generate: share of invalid records."
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="With --generate: the same seed gives the same events.",
)
def produce(file: str | None, **options: Any) -> None:
    """Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.

    With SCHEMA_REGISTRY_URL the schema is registered and records are in Confluent's wire format; without it, they are
    in Avro single-object encoding.
    """
    if (file is None) != options["generate"]:
        raise UsageError("give either FILE or --generate")
    settings = load(os.environ, needs=("kafka",))
    building.set_up_logs(settings)
    asyncio.run(_Production(ProduceOptions(file=file, **options), settings).run())


class _Production:
    def __init__(self, options: ProduceOptions, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._schema: dict[str, Any] = building.reader_schema(settings, building.local_schemas(settings))
        self._file: FileRecords | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        on_stop_signal(self._stopped.set)
        # One clear line for a topic or a broker that is not there, before any record is read.
        await describe(
            self._settings.kafka.client_properties(), [self._options.topic], timeout=_DESCRIBE_TIMEOUT
        )
        encoder = Encoder(self._schema, await self._framing())
        producer = RecordProducer(self._settings.kafka.client_properties())
        try:
            await self._send_all(producer, self._records(encoder))
            await producer.flush(_FLUSH_TIMEOUT)
        finally:
            await producer.close()
        say(f"produced {producer.delivered:,} records to {self._options.topic}")
        if self._file is not None and self._file.skipped:
            raise InputError(
                f"{self._file.skipped} records of {self._options.file} do not fit the schema; correct them"
            )

    async def _framing(self) -> ConfluentId | SingleObject:
        """Confluent's framing with a registered schema where there is a registry, else single-object encoding."""
        if not self._settings.registry.url:
            return SingleObject()
        registry = RegistrySchemas(self._settings.registry.client_configuration())
        try:
            return ConfluentId(await registry.register(f"{self._options.topic}-value", self._schema))
        finally:
            await registry.close()

    def _records(self, encoder: Encoder) -> Iterator[Produced]:
        options = self._options
        if options.file is None:
            generator = EventGenerator(options.seed, time.time, options.duplicates, options.invalid)
            return islice(made_up(generator, encoder), options.events)
        change: Callable[[CommerceEvent], CommerceEvent] | None = None
        if options.restamp:
            times = self._times()
            change = partial(times.moved, by=self._shift(options.file, times))
        self._file = FileRecords(options.file, self._schema, encoder, change)
        return islice(self._file, options.events)

    def _times(self) -> EventTimes:
        try:
            return EventTimes(building.mapping(self._settings, self._schema))
        except MappingError as error:
            raise UsageError(
                f"--now moves the times that the mapping reads, and it does not fit; mend it, or leave --now out "
                f"({error})"
            ) from error

    def _shift(self, file: str, times: EventTimes) -> int:
        """What to add so that the newest event is now. Reads the file once more."""
        if file == "-":
            raise UsageError(
                "--now reads the file twice, and standard input cannot be; write it to a file first"
            )
        records = (record for _, record in open_records(file, self._schema))
        found = (times.of(record) for record in records if not isinstance(record, Rejection))
        newest = max((time for time in found if time is not None), default=None)
        return 0 if newest is None else int(time.time() * times.units) - newest

    async def _send_all(self, producer: RecordProducer, records: Iterator[Produced]) -> None:
        begun = said = time.monotonic()
        for number, record in enumerate(records):
            if self._options.rate is not None:
                await pause(begun + number / self._options.rate - time.monotonic(), self._stopped)
            elif number % 1000 == 0:
                await asyncio.sleep(0)
            if self._stopped.is_set():
                return
            await producer.produce(self._options.topic, record.key, record.value)
            if time.monotonic() - said >= _LINE_EVERY:
                said = time.monotonic()
                say(f"{number + 1:,} records, {(number + 1) / (said - begun):,.0f} a second")
