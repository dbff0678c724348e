"""``pinstream dead-letters show``: show one letter, and with ``--payload`` its record with personal values masked."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from consumer.adapters.kafka import letters
from consumer.app import building
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.paths import ORIGIN
from consumer.commands.base import DebugCommand, asynchronous, iso
from consumer.commands.dead_letters.options import Filters, parse_place
from consumer.commands.dead_letters.reading import DeadLetters, LetterReader, facts, whole_record, why_gone
from consumer.commands.parsing import JSON_OPTION
from consumer.commands.payload import decode_now, masker_of
from consumer.commands.results import print_result, prose, table
from consumer.engine.model import Filtered, Rejection, SchemaRef
from consumer.engine.sending.masking import mask
from consumer.errors import KafkaError, UsageError
from consumer.settings import Settings, load

# The schema of a decoder that only finds out which writer's schema a record names.
_NOTHING_KNOWN: dict[str, Any] = {"type": "record", "name": "pinstream.nothing", "fields": []}


@click.command(name="show", cls=DebugCommand)
@click.argument("place", metavar="TOPIC:PARTITION:OFFSET", type=parse_place)
@click.option("--payload", is_flag=True, help="Also show the record, decoded; personal values are masked.")
@JSON_OPTION
@asynchronous
async def show_letter(place: letters.Place, payload: bool, as_json: bool) -> None:
    """Show one letter: where its record is from, and why it could not be delivered.

    TOPIC is the dead-letter topic, as `list` shows it. Key, value and headers are not shown. --payload shows the
    record, with all values masked except those that the mapping knows not to be personal.
    """
    settings = load(os.environ, needs=("kafka",))
    reader = LetterReader(settings.kafka.client_properties())
    letter, done = await _find(place, reader)
    key, value = letter.record.key, letter.record.value
    document = {
        **facts(letter, done),
        "timestamp": None if letter.timestamp < 0 else iso(letter.timestamp),
        # Only sizes; for a part that was omitted, the size that it had.
        "key_bytes": letter.omitted.get(letters.KEY, None if key is None else len(key)),
        "value_bytes": letter.omitted.get(letters.VALUE, None if value is None else len(value)),
        # A producer may write anything into the name of a header.
        "headers": [mask(name) or "(no name)" for name, _ in letters.own_headers(letter.record.headers)],
        "left_out": sorted(letter.omitted),
    }
    if payload:
        document["payload"] = await _payload(letter, settings, reader)
    print_result(_show, document, as_json=as_json)


async def _find(place: letters.Place, reader: LetterReader) -> tuple[letters.DeadRecord, bool]:
    """Return the letter, and whether it is done. Raises `UsageError` if there is none, and `KafkaError`."""
    try:
        ranges = {one.partition: one for one in await reader.ranges(place.topic)}
    except UsageError as error:
        # Its advice names an option that this command does not have.
        missing = str(error).removesuffix(": correct --topic")
        raise UsageError(f"{place}: {missing}; see pinstream dead-letters list") from None
    where = ranges.get(place.partition)
    # Name the existing range: the place may come from an old list, or be mistyped.
    if where is None:
        raise UsageError(f"{place}: {place.topic} has the partitions 0 to {len(ranges) - 1}")
    if not where.begin <= place.offset < where.end:
        held = f"{where.begin} to {where.end - 1}" if where.begin < where.end else "nothing"
        raise UsageError(f"{place}: {place.topic}[{place.partition}] holds {held} now")
    record = await reader.record(place)
    # The record was compacted, or is the marker of a transaction.
    if record is None:
        raise KafkaError(
            f"{place}: there is no record at this offset (a gap of transactions or of compaction)"
        )
    letter = letters.read_letter(place.topic, place.partition, record)
    if letter is None:
        homes = await reader.homes(place.topic, [place.partition])
        is_mark = letters.read_mark(record, homes[place.partition]) is not None
        what = "a mark of what was redriven" if is_mark else "no dead letter of ours"
        raise UsageError(f"{place} is {what}; see pinstream dead-letters list")
    topic = DeadLetters(place.topic, {None}, Filters(), reader)
    # Marks come after the letters that they are about.
    await topic.begin(ranges=[where._replace(begin=place.offset + 1)])
    return letter, topic.is_done(letter)


async def _payload(letter: letters.DeadRecord, settings: Settings, reader: LetterReader) -> dict[str, Any]:
    """Return the masked record, or why it cannot be shown."""
    shown: dict[str, Any] = dict.fromkeys(("record", "undecodable", "schema", "value_bytes", "note"))
    record = None
    # If this user may not read the origin, show the rest of the letter.
    with contextlib.suppress(KafkaError):
        record = await whole_record(letter, reader)
    if record is None:
        return {**shown, "note": why_gone(letter)}
    if letter.omitted:
        parts = " and ".join(letter.omitted)
        shown["note"] = f"it holds no {parts}: read at its origin, {letter.origin}"
    # Decoded as by `run`, but whole: also the fields that the mapping does not use.
    local = building.local_schemas(settings)
    mapped = building.sections(settings, local)
    writers = building.writer_schemas(settings, local)
    try:
        decoded = await decode_now(building.decoder(mapped, whole=True), record, letter.origin.topic, writers)
    finally:
        await writers.close()
    shown["value_bytes"] = None if record.value is None else len(record.value)
    match decoded:
        case None:
            shown["note"] = "a tombstone: the record has no value"
        case Filtered():
            shown["note"] = "the record is of a type that the mapping filters (unknown_record)"
        case Rejection():
            message = mask(decoded.message)
            shown["undecodable"] = {**decoded._asdict(), "stage": decoded.stage.value, "message": message}
            # A decoder without schemas returns the name of the schema that the bytes carry, whether it exists or not.
            if isinstance(named := Decoder(OneSchema(_NOTHING_KNOWN)).decode(record), SchemaRef):
                shown["schema"] = f"{named.kind} {named.value}"
        case _:
            decoded.pop(ORIGIN, None)  # its headers may be personal
            shown["record"] = masker_of(decoded, mapped).masked(decoded)
    return shown


def _show(document: dict[str, Any], console: Console) -> None:
    # Facts of the headers; sizes instead of contents.
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
    if omitted := ", ".join(document["left_out"]):
        rows["not in the letter"] = f"{omitted}: too large for its topic; see its origin"
    cells = ((Text(what, "dim"), found) for what, found in rows.items())
    title = f"dead letter {escape(document['place'])}"
    console.print(table("", "", rows=cells, title=title, show_header=False))
    payload = document.get("payload")
    if payload is None:
        return
    if payload["note"] is not None:
        prose(console, payload["note"])
    if (why := payload["undecodable"]) is not None:
        named = "" if payload["schema"] is None else f"; its schema: {payload['schema']}"
        text = f"cannot be decoded: {why['code']}: {why['message']}; {_bytes(payload['value_bytes'])}{named}"
        prose(console, text)
    elif payload["record"] is not None:
        # Not printed by the console, which would break its lines.
        click.echo(orjson.dumps(payload["record"], option=orjson.OPT_INDENT_2))


def _bytes(size: int | None) -> str:
    return "none" if size is None else f"{size:,} bytes"
