"""``pinstream trace``: what became of an event, by its event id, its order id, or the place of its record.

Theory of operation. The receipts say what became of a record that is settled, in which call and when. The dead-letter
topic says where the letters are and whether they are done, and the key store until when it remembers an event. What has
no receipt may be open: so the records that the group has not settled are read, and converted as `run` would. Without
a receipts topic all records since ``--since`` are read like that: it shows what the mapping makes of a record, and
never that it was delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
import orjson
from rich.console import Console

from consumer.adapters.kafka.bounded import read_record
from consumer.adapters.kafka.letters import Place
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.app import building
from consumer.app.receipts import destination_name
from consumer.commands import receipts
from consumer.commands.base import SettingsCommand, asynchronous, iso
from consumer.commands.dead_letters.listing import MAX_KINDS, read_listing
from consumer.commands.dead_letters.options import Filters, parse_place
from consumer.commands.dead_letters.reading import find
from consumer.commands.explain.explaining import explanation
from consumer.commands.explain.showing import why
from consumer.commands.group_position import GroupPosition
from consumer.commands.parsing import JSON_OPTION, parse_since, parsed_option
from consumer.commands.payload import decode_now
from consumer.commands.receipts import PATIENCE, FoundReceipt, ReceiptKey, receipt_key, receipt_place
from consumer.commands.replay.fakes import holds_keys
from consumer.commands.results import print_result, prose
from consumer.conversion.sections import Sections
from consumer.engine.messages import Found
from consumer.engine.model import ConversionEvent, Converted, Record, TopicPartition
from consumer.engine.reading import TOMBSTONE, Keys
from consumer.errors import UsageError
from consumer.settings import Settings, load

# Of more ids than this, decoding all receipts takes less time than searching each of them for each id.
_MAX_SEARCHED: Final = 50
_SEARCHED_BYTES: Final = 16  # of an id: a receipt may lack the rest
_ARRIVED: Final = (receipts.DELIVERED, receipts.DUPLICATE)
_Read = Callable[[str, int, Record], Awaitable[Converted]]
_Documents = Mapping[str, list[dict[str, Any]]]


@click.command(cls=SettingsCommand)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@parsed_option(
    "--since", parse_since, default="2d", show_default=True, metavar="TIME",
    help="Look at receipts (without them: at records) from then on.",
)  # fmt: skip
@JSON_OPTION
@asynchronous
async def trace(ids: tuple[str, ...], since: int, as_json: bool) -> None:
    """Say what became of events, each by its event id, its order id, or TOPIC:PARTITION:OFFSET.

    From the receipts (PINSTREAM_RECEIPTS_TOPIC): where each of its records is, what became of it and when, in which
    call, its dead letter, and until when the key store remembers the event. Without receipts: what the mapping makes of
    the records that are found, never that they were delivered. Without an ID it prints all receipts, one JSON object a
    line.

    Exit code 0: each was delivered, or is a duplicate of what was; 1: one of them was not, or is not found. Needs the
    settings of `pinstream run`, without a token.

    \b
    pinstream trace 4711
    pinstream trace orders:3:1200 --since 30d --json
    """
    settings = load(os.environ, needs=("kafka",))
    asked = [os.fsencode(one).decode(errors="replace") for one in ids]
    if not ids:
        write = lambda one: sys.stdout.write(orjson.dumps(receipts.readable_receipt(one)).decode() + "\n")  # noqa: E731
        await receipts.read_receipts(settings, since, write)
        return
    topic, counting = settings.pinstream.receipts_topic, dict[ReceiptKey, FoundReceipt]()
    places = dict[str, Place]()
    for one in asked:
        with contextlib.suppress(UsageError):
            places[one] = parse_place(one)
    # Before the receipts are read: what is settled by now has its receipt.
    more = [place.topic for place in places.values()]
    rows = await receipts.positions_of(settings, settings.kafka.group_id, settings.kafka.topics, more)
    found = {} if topic is None else await _find_receipts(settings, asked, since)
    for receipt in itertools.chain.from_iterable(found.values()):
        receipts.keep(counting, receipt)
    letters, mapped = await _find_letters(settings, counting.values()), building.sections(settings)
    async with _reading(settings, mapped) as read:
        until = await _remembered_until(settings, mapped, counting, read)
        left = [one for one in asked if one not in found]
        places = {one: place for one, place in places.items() if one in left}
        others = await _find_in_source(settings, left, places, rows, since, read) if left else {}

    def record(one: FoundReceipt) -> dict[str, Any]:
        key, origin = receipt_key(one), one["origin"] or str(receipt_place(one))
        own = [each for each in letters if each["origin"] == origin]
        more = {"place": str(receipt_place(one)), "counts": counting[key] is one, "letters": own}
        return {**receipts.readable_receipt(one), **more, "remembered_until": until.get(key, "unknown")}

    traces: list[dict[str, Any]] = [
        {"id": id, "records": [*map(record, found.get(id, ()))], "without_receipt": others.get(id, [])}
        for id in dict.fromkeys(asked)
    ]
    print_result(_show, {"receipts": topic, "since": iso(since), "traces": traces}, as_json=as_json)
    counted = [[one["outcome"] for one in trace["records"] if one["counts"]] for trace in traces]
    if not all({*some}.intersection(_ARRIVED) for some in counted):
        sys.exit(1)


async def _find_receipts(settings: Settings, ids: Sequence[str], since: int) -> dict[str, list[FoundReceipt]]:
    """Return the receipts of each id, in the order of time."""
    found: defaultdict[str, list[FoundReceipt]] = defaultdict(list)
    raw = [one.encode() for one in ids]
    texts = [one[:_SEARCHED_BYTES] for one in raw]
    # A receipt's key is a JSON array that ends with partition and offset.
    ends = tuple(b",%s]" % b",".join(one.split(b":")[-2:]) for one in raw)

    def may_be(record: Record) -> bool:
        value = record.value or b""
        return any(text in value for text in texts) or (record.key or b"").endswith(ends)

    def take(one: FoundReceipt) -> None:
        names = {one["event_id"], one["order_id"], one["origin"], str(receipt_place(one))}
        for field in {"event_id", "order_id"}.intersection(one["cut"]):
            names |= {id for id in ids if id.startswith(one[field])}
        for name in names.intersection(ids):
            found[name].append(one)

    await receipts.read_receipts(
        settings, since, take, may_be if len(ids) <= _MAX_SEARCHED else lambda _: True
    )
    return {id: sorted(some, key=lambda one: (one["at"], receipt_place(one))) for id, some in found.items()}


async def _find_letters(settings: Settings, counting: Iterable[FoundReceipt]) -> Sequence[dict[str, Any]]:
    """Return the letters of records that were dead-lettered."""
    dead = [one for one in counting if one["outcome"] == receipts.DEAD_LETTERED]
    # The record of a redrive is a letter itself.
    origins = [parse_place(one["origin"] or str(receipt_place(one))) for one in dead]
    with contextlib.suppress(UsageError):  # a topic is gone, and so is that of its letters
        if origins:
            topics, _ = await find(settings, sorted({one.topic for one in origins}), Filters(origins=origins))
            letters: Sequence[dict[str, Any]] = (await read_listing(topics, MAX_KINDS))["latest"]
            return letters
    return []


async def _remembered_until(
    settings: Settings, mapped: Sections, counting: Mapping[ReceiptKey, FoundReceipt], read: _Read
) -> dict[ReceiptKey, str | None]:
    """Return until when the key store remembers the event of each receipt; None: it does not. Absent: not known."""
    url, window = settings.pinstream.key_store.get_secret_value(), settings.pinstream.dedup_window
    if url.startswith("memory:") or not holds_keys(settings):  # keys of another process, or none yet
        return {}
    keys, make = dict[ReceiptKey, bytes](), Keys(*building.destinations(settings))
    for name, one in counting.items():
        event = one["ad_account"], one["event_name"], one["event_id"]
        if None in event or one["destination"] != destination_name(settings):
            continue
        # With a [dedup] of its own, the mapping makes the key from the record.
        if any(section.mapping.dedup_key for section in mapped.all):
            place = receipt_place(one)
            record = await read_record(settings.kafka.client_properties(), *place, PATIENCE)
            made = None if record is None else await read(place.topic, place.partition, record)
            if not isinstance(made, ConversionEvent):
                continue
            event = made.account, made.name, made.dedup_id
        keys[name] = make.of(*event)
    store, now = building.service_key_store(settings), time.time()

    async def until(key: bytes) -> str | None:
        if Found.DELIVERED not in await store.look_up(key, now):
            return None
        # The store says whether it remembers a delivery since a second, so the second is found by halves.
        low, high = int(now - window) - 1, int(now) + 1
        while high - low > 1:
            middle = (low + high) // 2
            is_since = Found.DELIVERED in await store.look_up(key, now, middle)
            low, high = (middle, high) if is_since else (low, middle)
        return iso(int(low + window) * 1000)

    try:
        return dict(zip(keys, await asyncio.gather(*map(until, keys.values())), strict=True))
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _reading(settings: Settings, mapped: Sections) -> AsyncIterator[_Read]:
    """Yield a function that decodes and converts a record of a partition as `run` would now."""
    function, pinterest = building.transformer(settings, mapped), settings.pinterest
    decoder = building.decoder(mapped, function)
    # Without PINTEREST_AD_ACCOUNT_ID a record may name any account.
    accounts = pinterest.ad_account_ids if pinterest.ad_account_id else ()
    converter = building.converter(settings, mapped, accounts)
    writers = building.writer_schemas(settings, building.local_schemas(settings))

    async def read(topic: str, partition: int, record: Record) -> Converted:
        event = await decode_now(decoder, record, topic, writers, partition)
        if isinstance(event, dict) and function is not None:
            event = function.apply(event)
        return converter.convert(event, time.time()) if isinstance(event, dict) else event or TOMBSTONE

    try:
        yield read
    finally:
        await writers.close()


async def _find_in_source(
    settings: Settings,
    ids: Sequence[str],
    places: Mapping[str, Place],
    rows: Mapping[TopicPartition, GroupPosition],
    since: int,
    read: _Read,
) -> _Documents:
    """Return the records of each id: of those that are open; without a receipts topic, of all since then. `places`:
    of the ids that are one; `rows`: where the group stands."""
    config = settings.kafka.client_properties()
    found: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)  # by id and place

    async def match(name: TopicPartition, records: Sequence[Record]) -> None:
        for record in records:
            result, place = await read(*name, record), str(Place(*name, record.offset))
            # What is no event has no ids that the mapping has read.
            named = {one for one in ids if one.encode() in (record.value or b"")}
            if isinstance(result, ConversionEvent):
                named = {result.event_id, str(result.payload.get("custom_data", {}).get("order_id"))}
            for one in named.union([place]).intersection(ids):
                line, row = explanation(result), rows[name]
                stands = {"open": receipts.is_open(row, record.offset), "committed": row.committed}
                found[one][place] = {"place": place, **stands, "would_be": line["outcome"] + why(line)}

    for place in places.values():
        if (record := await read_record(config, *place, PATIENCE)) is not None:
            await match(TopicPartition(*place[:2]), [record])
    ranges = [Range(*name, row.next_read, row.next_read + (row.lag or 0)) for name, row in rows.items()]
    topics = sorted({one.topic for one in rows})
    if settings.pinstream.receipts_topic is None and topics:
        ranges = await resolve_ranges(config, topics, (), Bound("time", since), Bound("end"), PATIENCE)
    if len(places) < len(ids):
        await receipts.read_records(config, ranges, ", ".join(topics), match)
    return {one: [*of.values()] for one, of in found.items()}


def _show(document: dict[str, Any], console: Console) -> None:
    for trace in document["traces"]:
        prose(console, trace["id"], "bold")
        for one in trace["records"]:
            for line in _lines(one):
                prose(console, "  " + ", ".join(filter(None, line)))
        for one in trace["without_receipt"]:
            stands = f"the group stands at {'no offset' if one['committed'] is None else one['committed']}"
            state = f"open, {stands}" if one["open"] else f"settled, {stands}, without a receipt of that time"
            prose(console, f"  {one['place']}: {state}; the mapping makes of it: {one['would_be']}")
        if not trace["records"] and not trace["without_receipt"]:
            prose(console, f"  not found since {document['since']}: give an earlier --since")
    if not document["receipts"]:
        prose(console, "PINSTREAM_RECEIPTS_TOPIC is not set: without receipts nothing says what arrived")


def _lines(one: Mapping[str, Any]) -> Iterator[Sequence[str | None]]:
    """Yield what became of which record and event, in which call; its letters, its key."""
    said = defaultdict[str, str | None](lambda: None)
    said |= {name: f"{name.replace('_', ' ')} {value}" for name, value in one.items() if value}
    value = one["value"] and f"{one['value']} {one['currency']}"
    yield one["outcome"].replace("_", "-"), said["code"], one["place"], one["at"], said["origin"]
    yield one["event_name"], said["event_id"], said["order_id"], value, said["ad_account"]
    yield said["request_id"], said["http_status"], said["answered_at"], f"attempts {one['attempts']}"
    yield f"by {one['by']}", said["group"], said["destination"], said["member"]
    if one["test"]:
        yield ("in test mode: nothing was recorded",)
    if not one["counts"]:
        yield ("this receipt does not count: another one of the record does",)
    for letter in one["letters"]:
        yield f"letter {letter['place']}", letter["state"], f"{letter['stage']}: {letter['code']}"
    if (until := one["remembered_until"]) != "unknown":
        yield (
            f"the key store remembers it until {until}" if until else "the key store does not remember it",
        )
