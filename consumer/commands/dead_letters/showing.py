"""``pinstream dead-letters show``: one letter, and with ``--payload`` what it holds, personal values masked."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.adapters.kafka import Range
from consumer.adapters.kafka.letters import (
    KEY,
    VALUE,
    DeadRecord,
    Done,
    Place,
    own_headers,
    parse_place,
    read_letter,
    read_mark,
)
from consumer.app import building
from consumer.avro.decode import Decoder
from consumer.commands.base import Command
from consumer.commands.dead_letters.choosing import JSON_OPTION
from consumer.commands.dead_letters.listing import DONE, WAITING, iso
from consumer.commands.dead_letters.payload import Masker
from consumer.commands.dead_letters.reading import KafkaReader, Reader, whole_record, why_gone
from consumer.engine.masking import mask
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaMissing
from consumer.engine.model import CommerceEvent, Record, Rejection, SchemaRef
from consumer.errors import KafkaError, UsageError
from consumer.settings import Settings, load

_NOTHING_KNOWN: dict[str, Any] = {"type": "record", "name": "pinstream.nothing", "fields": []}
"""A reader's schema with which every record is an unknown one: it tells which schema the bytes name."""


@dataclass(frozen=True, slots=True)
class ShowLetterOptions:
    """The command line's options."""

    place: Place
    payload: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """What the record holds, or why that cannot be shown."""

    record: Any = None
    undecodable: Rejection | None = None
    schema: SchemaRef | None = None
    """The writer's schema that the bytes name."""
    value_bytes: int | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One letter."""

    letter: DeadRecord
    done: bool
    payload: Payload | None
    headers: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The whole as JSON."""
        letter = self.letter
        return {
            "place": str(letter.place),
            "state": DONE if self.done else WAITING,
            "origin": str(letter.origin),
            "stage": letter.stage.value,
            "code": letter.code,
            "message": letter.message,
            "attempts": letter.attempts,
            "trips": letter.trips,
            "at": iso(letter.at_ms),
            "timestamp": None if letter.timestamp < 0 else iso(letter.timestamp),
            "key_bytes": _size(letter, KEY, letter.record.key),
            "value_bytes": _size(letter, VALUE, letter.record.value),
            "headers": self.headers,
            "left_out": sorted(letter.omitted),
            **({} if self.payload is None else {"payload": _payload_document(self.payload)}),
        }


def _size(letter: DeadRecord, part: str, here: bytes | None) -> int | None:
    size = letter.omitted.get(part)
    return size if size is not None or here is None else len(here)


def _payload_document(payload: Payload) -> dict[str, Any]:
    rejection, schema = payload.undecodable, payload.schema
    return {
        "record": payload.record,
        "undecodable": None
        if rejection is None
        else {"stage": rejection.stage.value, "code": rejection.code, "message": rejection.message},
        "schema": None if schema is None else f"{schema.kind} {schema.value}",
        "value_bytes": payload.value_bytes,
        "note": payload.note,
    }


@click.command(name="show", cls=Command)
@click.argument("place", metavar="TOPIC:PARTITION:OFFSET")
@click.option("--payload", is_flag=True, help="Also the record, decoded; personal values are masked.")
@JSON_OPTION
def show_letter(place: str, payload: bool, as_json: bool) -> None:
    """One letter: where it is from, and why it died. TOPIC is the dead-letter topic, as `list` shows it.

    Key, value and headers are not shown, but for what --payload shows: fields that the mapping knows to say nothing
    of a person.
    """
    try:
        found = parse_place(place)
    except ValueError as error:
        raise UsageError(str(error)) from None
    options = ShowLetterOptions(found, payload, as_json)
    settings = load(os.environ, needs=("kafka",))
    shown = asyncio.run(_show(options, settings, KafkaReader(settings.kafka.client_properties())))
    if options.as_json:
        click.echo(orjson.dumps(shown.document()))
    else:
        _print(shown, Console())


async def _show(options: ShowLetterOptions, settings: Settings, reader: Reader) -> Shown:
    letter, where = await _find(options.place, reader)
    done = await _done(options.place, where, reader)
    payload = await _payload(letter, settings, reader) if options.payload else None
    # A producer may write anything into the name of a header.
    names = [mask(name) or "(no name)" for name, _ in own_headers(letter.record.headers)]
    return Shown(letter, done, payload, names)


async def _find(place: Place, reader: Reader) -> tuple[DeadRecord, Range]:
    try:
        ranges = {one.partition: one for one in await reader.ranges(place.topic)}
    except UsageError as error:
        # What it advises is an option of other commands.
        missing = str(error).removesuffix(": correct --topic")
        raise UsageError(f"{place}: {missing}; see pinstream dead-letters list") from None
    where = ranges.get(place.partition)
    if where is None:
        raise UsageError(f"{place}: {place.topic} has the partitions 0 to {len(ranges) - 1}")
    if not where.begin <= place.offset < where.end:
        held = f"{where.begin} to {where.end - 1}" if where.begin < where.end else "nothing"
        raise UsageError(f"{place}: {place.topic}[{place.partition}] holds {held} now")
    record = await reader.record(place)
    if record is None:
        raise KafkaError(
            f"{place}: there is no record at this offset (a gap of transactions or of compaction)"
        )
    letter = read_letter(place.topic, place.partition, record)
    if letter is None:
        mark = read_mark(record, await reader.home(place.topic, place.partition))
        what = "a mark of what was redriven" if mark is not None else "no dead letter of ours"
        raise UsageError(f"{place} is {what}; see pinstream dead-letters list")
    return letter, where


async def _done(place: Place, where: Range, reader: Reader) -> bool:
    """Whether a mark, which comes after its letters, tells of this one."""
    done = Done()
    home = await reader.home(place.topic, place.partition)
    async with contextlib.aclosing(reader.scan([where._replace(begin=place.offset + 1)])) as scanned:
        async for chunks in scanned:
            for record in (one for chunk in chunks for one in chunk.records):
                mark = read_mark(record, home)
                runs = () if mark is None else mark.runs
                done.add(run for run in runs if run[0] <= place.offset < run[1])
    return place.offset in done


# -------------------------------------------------------------------------------------------------- payload


async def _payload(letter: DeadRecord, settings: Settings, reader: Reader) -> Payload:
    record, note = await _whole(letter, reader)
    if record is None:
        return Payload(note=note)
    local = building.local_schemas(settings)
    schema = building.reader_schema(settings, local)
    masker = Masker(schema, building.mapping(settings, schema))
    writers = building.writer_schemas(settings, local)
    try:
        decoded = await _decoded(building.decoder(settings, schema), record, writers)
    finally:
        await writers.close()
    size = None if record.value is None else len(record.value)
    if decoded is None:
        return Payload(note="a tombstone: the record has no value")
    if isinstance(decoded, Rejection):
        shown = decoded._replace(message=mask(decoded.message))
        return Payload(undecodable=shown, schema=_named_schema(settings, record), value_bytes=size, note=note)
    return Payload(masker.masked(decoded), value_bytes=size, note=note)


async def _whole(letter: DeadRecord, reader: Reader) -> tuple[Record | None, str | None]:
    """The record that died, if it can be had whole, and what to say of it."""
    try:
        record = await whole_record(letter, reader)
    except (KafkaError, UsageError):
        record = None
    if record is None:
        return None, why_gone(letter)
    if not letter.omitted:
        return record, None
    return record, f"it holds no {' and '.join(letter.omitted)}: read at its origin, {letter.origin}"


async def _decoded(decoder: Decoder, record: Record, writers: Any) -> CommerceEvent | Rejection | None:
    decoded = decoder.decode(record)
    if not isinstance(decoded, SchemaRef):
        return decoded
    answer = await writers.fetch(FetchSchema(decoded))
    if isinstance(answer, SchemaFound):
        decoder.add_schema(decoded, answer.schema)
    elif isinstance(answer, SchemaMissing):
        return decoder.missing(decoded)
    else:
        raise KafkaError(
            f"the schema {decoded.kind} {decoded.value} cannot be fetched now ({answer.reason}); try again"
        )
    again = decoder.decode(record)
    return None if isinstance(again, SchemaRef) else again


def _named_schema(settings: Settings, record: Record) -> SchemaRef | None:
    """The schema that the bytes name, whether it is known or not."""
    named = building.decoder(settings, _NOTHING_KNOWN).decode(record)
    return named if isinstance(named, SchemaRef) else None


# ---------------------------------------------------------------------------------------------------- print


def _print(shown: Shown, console: Console) -> None:
    document = shown.document()
    table = Table(title=f"dead letter {escape(document['place'])}", title_justify="left", show_header=False)
    table.add_column("what", style="dim")
    table.add_column("found", overflow="fold")
    rows = {
        "state": document["state"],
        "why": f"{document['stage']}: {document['code']}",
        "message": document["message"],
        "from": document["origin"],
        "recorded": document["timestamp"] or "-",
        "died": document["at"] or "-",
        "attempts": str(document["attempts"]),
        "trips": str(document["trips"]),
        "key": _bytes(document["key_bytes"]),
        "value": _bytes(document["value_bytes"]),
        "own headers": ", ".join(document["headers"]) or "none",
    }
    if document["left_out"]:
        rows["not in the letter"] = (
            f"{', '.join(document['left_out'])}: too large for its topic; see its origin"
        )
    for what, found in rows.items():
        table.add_row(what, escape(found))
    console.print(table)
    if shown.payload is not None:
        _print_payload(shown.payload, console)


def _bytes(size: int | None) -> str:
    return "none" if size is None else f"{size:,} bytes"


def _print_payload(payload: Payload, console: Console) -> None:
    if payload.note is not None:
        console.print(escape(payload.note), highlight=False, soft_wrap=True)
    if payload.undecodable is not None:
        rejection = payload.undecodable
        named = (
            "" if payload.schema is None else f"; its schema: {payload.schema.kind} {payload.schema.value}"
        )
        text = (
            f"cannot be decoded: {rejection.code}: {rejection.message}; {_bytes(payload.value_bytes)}{named}"
        )
        console.print(escape(text), highlight=False, soft_wrap=True)
    elif payload.record is not None:
        click.echo(orjson.dumps(payload.record, option=orjson.OPT_INDENT_2))
