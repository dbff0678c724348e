"""``pinstream produce``: write the records of a file, or generated ones, to a topic."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import click

from consumer.adapters.files import Types, file_types, open_records
from consumer.adapters.kafka.cluster import create_topic, describe_cluster
from consumer.adapters.kafka.producers import RecordProducer
from consumer.adapters.schemas import LocalSchemas
from consumer.app import building
from consumer.app.ending import on_stop_signal
from consumer.avro.decode import Choice, OneSchema
from consumer.avro.encode import Encode, encoding
from consumer.commands.base import DebugCommand, asynchronous, paced, say
from consumer.commands.parsing import RECORD_OPTION, record_options
from consumer.conversion.sections import Sections
from consumer.demo.generator import EventGenerator
from consumer.demo.records import FileRecords, Produced, disturbed, event_times, made_up
from consumer.engine.model import CommerceEvent, Filtered, Rejection
from consumer.errors import InputError, KafkaError, MappingError, UsageError
from consumer.settings import DEFAULT_SCHEMA, Settings, load

_LINE_EVERY = 5.0
_FLUSH_TIMEOUT = 60.0
_DESCRIBE_TIMEOUT = 15.0
_MAX_PARTITIONS = 10_000


@click.command(cls=DebugCommand)
@click.argument("file", required=False, type=click.Path(allow_dash=True))
@click.option("--topic", required=True, help="Topic to write to.")
@click.option(
    "--create-topic",
    "partitions",
    type=click.IntRange(1, _MAX_PARTITIONS),
    metavar="N",
    help="Create the topic with N partitions first, unless it exists.",
)
@click.option("--now", "restamp", is_flag=True, help="Shift all event times so that the newest is now.")
@click.option("--generate", is_flag=True, help="Generate events instead of reading FILE.")
@record_options("as fast as possible")
@RECORD_OPTION
@asynchronous
async def produce(
    file: str | None,
    topic: str,
    partitions: int | None,
    restamp: bool,
    generate: bool,
    events: int | None,
    duplicates: float,
    invalid: float,
    seed: int,
    rate: float | None,
    record: str | None,
) -> None:
    """Encode FILE's records (NDJSON or an Avro container; - is standard input) and produce them.

    With SCHEMA_REGISTRY_URL the schema is registered and records are in Confluent's wire format; without it, they are
    in Avro single-object encoding.
    """
    if (file is None) != generate:
        raise UsageError("give either FILE or --generate")
    settings = load(os.environ, needs=("kafka",))
    building.set_up_logs(settings)
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    local = building.local_schemas(settings)
    # The events of the generated shop are always of one type.
    mapped = None if file is None else _mapped(settings, local, restamp)
    if mapped is None:
        # Then all records have the schema that the settings name.
        types = Types(OneSchema(local.reader(settings.pinstream.schema_name or DEFAULT_SCHEMA)))
    else:
        types = file_types(mapped, record, topic)
    config = settings.kafka.client_properties()
    if partitions is not None and await create_topic(config, topic, partitions, _DESCRIBE_TIMEOUT):
        say(f"created the topic {topic} with {partitions} partition{'s' if partitions > 1 else ''}")
    # A missing topic or broker is one clear error before any record is read.
    await describe_cluster(config, [topic], timeout=_DESCRIBE_TIMEOUT)
    # Confluent's TopicNameStrategy, the default of all its clients; for several record types its
    # TopicRecordNameStrategy, since a subject holds versions of one type.
    names = ["value"] if mapped is None or not mapped.typed else [one.record for one in mapped.all]
    encode = await _encode(settings, types.choice, [f"{topic}-{name}" for name in names])
    source = None
    records: Iterable[Produced]
    if file is None:
        records = made_up(EventGenerator(seed, time.time, duplicates, invalid), encode)
    else:
        change = None if mapped is None or not restamp else _moving_to_now(file, types, mapped)
        source = FileRecords(file, types, encode, change)
        records = disturbed(source, duplicates, invalid, seed, encode)
    # Made after the encoder: errors of a schema or the registry show without a connection for records.
    producer = RecordProducer(config)
    last = 0
    try:
        begun = said = time.monotonic()
        async for number, one in paced(islice(records, events), rate, stopped):
            await producer.produce(topic, one.key, one.value, one.place, one.headers)
            last = one.place or last
            # Shows that work on a long file, or at a slow rate, goes on.
            if time.monotonic() - said >= _LINE_EVERY:
                said = time.monotonic()
                say(f"{number + 1:,} records, {(number + 1) / (said - begun):,.0f} a second")
    finally:
        await _finish(producer, topic, file, last if stopped.is_set() else 0)
    # Raised at the end, so that the good records of the file are written in spite of the bad ones.
    if source is not None and source.skipped:
        raise InputError(f"{source.skipped} records of {file} do not fit the schema; correct them")


async def _finish(producer: RecordProducer, topic: str, file: str | None, last: int) -> None:
    """Wait until all records are written, and say how many. `last`: the last of the file, if it was not read to its
    end. Raises `KafkaError`, which says where to go on."""
    try:
        # Also after Ctrl-C, or where the rest of the file cannot be read.
        await producer.flush(_FLUSH_TIMEOUT)
    except KafkaError as error:
        if file is None:
            raise
        raise KafkaError(
            f"{error}; everything before record {producer.open_place or last + 1} of {file} is written: go on with "
            "that one (some records behind it may be written, too)"
        ) from error
    finally:
        await producer.close()
    say(
        f"produced {producer.delivered:,} records to {topic}{f', up to record {last} of {file}' if last else ''}"
    )


def _mapped(settings: Settings, local: LocalSchemas, restamp: bool) -> Sections | None:
    """Return the record types of the file, and their mappings for `--now`.

    None: there is one type, whose mapping does not fit and is not needed.
    """
    try:
        return building.sections(settings, local)
    except MappingError as error:
        if restamp:
            raise UsageError(
                f"--now moves the times that the mapping reads, and it does not fit; correct it, or leave --now out "
                f"({error})"
            ) from error
        # Only sections name the record types.
        if building.has_sections(settings):
            raise
        return None


async def _encode(settings: Settings, choice: Choice, subjects: Sequence[str]) -> Encode:
    """Return an encoder of records, with each schema under its subject; with registered schemas if there is a
    registry."""
    # Glue's ids have another form, which does not fit into Confluent's framing.
    if not settings.registry.url or settings.registry.is_glue:
        return encoding(choice)
    ids: dict[str, int] = {}
    registry = building.registry(settings)
    try:
        for subject, one in zip(subjects, choice.all, strict=True):
            if subject not in ids:  # sections of several topics may be of one type
                ids[subject] = await registry.register(subject, one.schema)
    finally:
        await registry.close()
    return encoding(choice, [ids[subject] for subject in subjects])


def _moving_to_now(file: str, types: Types, mapped: Sections) -> Callable[[CommerceEvent], CommerceEvent]:
    """Return a function that moves the times of an event so that the newest event of the file is now."""
    # The newest time is known only after the whole file.
    if file == "-":
        raise UsageError("--now reads the file twice, and standard input cannot be; write it to a file first")
    of = event_times(mapped)
    read = (record for _, record in open_records(file, types) if not isinstance(record, Rejection | Filtered))
    # In seconds, since units may differ between sections.
    times = (of(record).seconds(record) for record in read)
    newest = max((at for at in times if at is not None), default=None)
    by = 0.0 if newest is None else time.time() - newest
    return lambda event: of(event).moved(event, by)
