"""``pinstream produce``: write the records of a file, or generated ones, to a topic."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import click

from consumer.adapters.files import Types, open_records
from consumer.adapters.kafka.cluster import describe
from consumer.adapters.kafka.producer import RecordProducer
from consumer.app import building
from consumer.app.signals import on_stop_signal
from consumer.avro.decode import OneSchema
from consumer.avro.encode import ConfluentId, Encode, SingleObject
from consumer.commands.base import Command, paced, say
from consumer.commands.parsing import RECORD_OPTION
from consumer.conversion.sections import Sections
from consumer.demo.generator import EventGenerator
from consumer.demo.records import FileRecords, Produced, made_up, times_of
from consumer.engine.model import CommerceEvent, Filtered, Rejection
from consumer.errors import InputError, MappingError, UsageError
from consumer.settings import DEFAULT_SCHEMA, Settings, load

_LINE_EVERY = 5.0
_FLUSH_TIMEOUT = 60.0
_DESCRIBE_TIMEOUT = 15.0


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
@RECORD_OPTION
def produce(file: str | None, **options: Any) -> None:
    """Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.

    With SCHEMA_REGISTRY_URL the schema is registered and records are in Confluent's wire format; without it, they are
    in Avro single-object encoding.
    """
    if (file is None) != options["generate"]:
        raise UsageError("give either FILE or --generate")
    settings = load(os.environ, needs=("kafka",))
    building.set_up_logs(settings)
    asyncio.run(_Production(settings=settings, file=file, **options).run())


@dataclass(kw_only=True)
class _Production:
    settings: Settings
    file: str | None
    topic: str
    restamp: bool
    generate: bool
    events: int | None
    rate: float | None
    duplicates: float
    invalid: float
    seed: int
    record: str | None

    def __post_init__(self) -> None:
        self._local = building.local_schemas(self.settings)
        # What the generated shop has is of one type.
        self._sections = None if self.generate else self._mapped()
        if self._sections is None:
            # Then the records are of the one schema that the settings name.
            schema = self._local.reader(self.settings.pinstream.schema_name or DEFAULT_SCHEMA)
            self._types = Types(OneSchema(schema))
        else:
            self._types = building.file_types(self._sections, self.record, self.topic)
        self._source: FileRecords | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        on_stop_signal(self._stopped.set)
        # A missing topic or broker is one clear error before any record is read.
        await describe(self.settings.kafka.client_properties(), [self.topic], timeout=_DESCRIBE_TIMEOUT)
        records = self._records(await self._encode())
        # Made after the encoder: what is wrong with a schema or the registry needs no connection for records.
        producer = RecordProducer(self.settings.kafka.client_properties())
        try:
            await self._send_all(producer, records)
            # Also after Ctrl-C: what was handed to librdkafka is written, and counted below.
            await producer.flush(_FLUSH_TIMEOUT)
        finally:
            await producer.close()
        say(f"produced {producer.delivered:,} records to {self.topic}")
        # At the end, so that the good records of the file are written whatever the bad ones are.
        if self._source is not None and self._source.skipped:
            raise InputError(
                f"{self._source.skipped} records of {self.file} do not fit the schema; correct them"
            )

    def _mapped(self) -> Sections | None:
        """Return the record types of the file, and their mappings for `--now`.

        None: there is one type, and its mapping, which is not needed, does not fit.
        """
        try:
            return building.sections(self.settings, self._local)
        except MappingError as error:
            if self.restamp:
                raise UsageError(
                    f"--now moves the times that the mapping reads, and it does not fit; correct it, or leave --now "
                    f"out ({error})"
                ) from error
            # Only sections say which types there are.
            if building.has_sections(self.settings):
                raise
            return None

    async def _encode(self) -> Encode:
        """Return what encodes records: in Confluent's framing where there is such a registry, else single-object."""
        choice = self._types.choice
        # Glue has an id of its own form, which Confluent's framing cannot hold.
        if not self.settings.registry.url or self.settings.registry.is_glue:
            return building.encode(choice, [SingleObject()] * len(choice.all))
        # Confluent's TopicNameStrategy, the default of all its clients; for several record types its
        # TopicRecordNameStrategy, since a subject holds versions of one type.
        mapped = self._sections
        names = ["value"] if mapped is None or not mapped.typed else [one.record for one in mapped.all]
        ids: dict[str, ConfluentId] = {}
        registry = building.registry(self.settings)
        try:
            for name, one in zip(names, choice.all, strict=True):
                if name not in ids:  # sections of several topics may be of one type
                    ids[name] = ConfluentId(await registry.register(f"{self.topic}-{name}", one.schema))
        finally:
            await registry.close()
        return building.encode(choice, [ids[name] for name in names])

    def _records(self, encode: Encode) -> Iterator[Produced]:
        if self.file is None:
            generator = EventGenerator(self.seed, time.time, self.duplicates, self.invalid)
            return islice(made_up(generator, encode), self.events)
        change = None
        if self.restamp and self._sections is not None:
            change = self._moving_to_now(self.file, self._sections)
        self._source = FileRecords(self.file, self._types, encode, change)
        return islice(self._source, self.events)

    def _moving_to_now(self, file: str, mapped: Sections) -> Callable[[CommerceEvent], CommerceEvent]:
        """Return a function that moves the times of an event so that the newest event of the file is now."""
        # The newest time is known only after the whole file.
        if file == "-":
            raise UsageError(
                "--now reads the file twice, and standard input cannot be; write it to a file first"
            )
        of = times_of(mapped)
        records = (record for _, record in open_records(file, self._types))
        read = (record for record in records if not isinstance(record, Rejection | Filtered))
        # In seconds, since units may differ from section to section.
        times = (of(record).seconds(record) for record in read)
        newest = max((at for at in times if at is not None), default=None)
        by = 0.0 if newest is None else time.time() - newest
        return lambda event: of(event).moved(event, by)

    async def _send_all(self, producer: RecordProducer, records: Iterator[Produced]) -> None:
        begun = said = time.monotonic()
        async for number, record in paced(records, self.rate, self._stopped):
            await producer.produce(self.topic, record.key, record.value)
            # So that a long file, or a slow rate, is seen to go on.
            if time.monotonic() - said >= _LINE_EVERY:
                said = time.monotonic()
                say(f"{number + 1:,} records, {(number + 1) / (said - begun):,.0f} a second")
