"""Receipts, as `trace`, `reconcile` and `audit` read them, and which of several counts.

Theory of operation. A receipt says what became of one record (docs/receipts.md, schemas/receipt.avsc). A record may
have several: it was read again after a kill, or replayed. Of receipts with one key (group, destination, place of the
record) the one of the highest `rank` counts: what was delivered stays delivered, whatever a later reading found. They
are in one partition, in the order in which they were written.

The topic is read without a group, from a time on to the end that it has now. Looking for an id in the bytes of a
receipt takes a twentieth of the time that decoding takes, so only what a command wants is decoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Final

from consumer.adapters.kafka.bounded import scan
from consumer.adapters.kafka.cluster import describe_cluster
from consumer.adapters.kafka.configuration import Config
from consumer.adapters.kafka.groups import GroupOffsets
from consumer.adapters.kafka.letters import Place
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.schemas import LocalSchemas
from consumer.app import building
from consumer.avro.decode import Decoder, OneSchema
from consumer.commands.base import iso, say
from consumer.commands.group_position import GroupPosition
from consumer.commands.payload import decode_now
from consumer.commands.replay.bounded_run import scan_shown
from consumer.engine.model import Record, TopicPartition
from consumer.errors import UsageError
from consumer.settings import Settings, packaged

FoundReceipt = dict[str, Any]
"""A receipt, by the names of its schema; times are milliseconds since 1970."""
ReceiptKey = tuple[Any, ...]
DUPLICATE, FILTERED, DEAD_LETTERED, DELIVERED = "duplicate", "filtered", "dead_lettered", "delivered"
RANKED: Final = (DUPLICATE, FILTERED, DEAD_LETTERED, DELIVERED)
"""From the one that counts least to the one that counts most."""
PATIENCE: Final = 15.0  # seconds of one question to the brokers
_KEY: Final = ("group", "destination", "topic", "topic_id", "partition", "offset")
_TIMES: Final = ("at", "event_time", "answered_at")


def rank(receipt: FoundReceipt) -> int:
    """Return how much a receipt counts among those with its key: the highest does, of equal ones the first."""
    return RANKED.index(receipt["outcome"])


def receipt_key(receipt: FoundReceipt) -> ReceiptKey:
    """Return the key of a receipt."""
    return tuple(receipt[name] for name in _KEY)


def keep(counting: MutableMapping[ReceiptKey, FoundReceipt], receipt: FoundReceipt) -> None:
    """Keep a receipt if it counts more than the one with its key so far."""
    key = receipt_key(receipt)
    if key not in counting or rank(receipt) > rank(counting[key]):
        counting[key] = receipt


def receipt_place(receipt: FoundReceipt) -> Place:
    """Return where the record is; that of a redrive is a letter."""
    return Place(receipt["topic"], receipt["partition"], receipt["offset"])


def readable_receipt(receipt: FoundReceipt) -> FoundReceipt:
    """Return a receipt with its times as ISO 8601, for JSON."""
    return receipt | {name: receipt[name] and iso(receipt[name]) for name in _TIMES}


async def read_receipts(
    settings: Settings,
    since: int,
    take: Callable[[FoundReceipt], object],
    wanted: Callable[[Record], bool] = lambda _: True,
) -> None:
    """Call `take` with each receipt that was written since then (milliseconds since 1970) and whose record is wanted.

    Raises `UsageError` if there is no such topic, and `KafkaError`.
    """
    topic, config, foreign = settings.pinstream.receipts_topic, settings.kafka.client_properties(), 0
    if topic is None:
        raise UsageError(
            "there are no receipts: PINSTREAM_RECEIPTS_TOPIC is not set; set it here and for `pinstream run`, which "
            "then writes them (docs/receipts.md)"
        )
    try:
        ranges = await resolve_ranges(config, [topic], (), Bound("time", since), Bound("end"), PATIENCE)
    except UsageError as error:
        text = str(error).removesuffix(": correct --topic")
        raise UsageError(f"there are no receipts (PINSTREAM_RECEIPTS_TOPIC): {text}") from None
    local = LocalSchemas(packaged("schemas"))
    schema = local.record("pinstream.Receipt")
    decoder = Decoder(OneSchema(schema, tuple((field["name"],) for field in schema["fields"])))
    writers = building.writer_schemas(settings, local)

    async def decode(_: TopicPartition, records: Sequence[Record]) -> None:
        nonlocal foreign
        for record in filter(wanted, records):
            receipt = await decode_now(decoder, record, topic, writers)
            if isinstance(receipt, dict):
                take(receipt)
            else:
                foreign += 1

    try:
        await read_records(config, ranges, topic, decode)
    finally:
        await writers.close()
    if foreign:
        say(f"pinstream: warning: {foreign:,} records of {topic} are no receipts: who may write to it?")


async def read_records(
    config: Config,
    ranges: Sequence[Range],
    name: str,
    take: Callable[[TopicPartition, Sequence[Record]], Awaitable[None]],
) -> None:
    """Call `take` with the records of these ranges, chunk by chunk. `name`: what is read, for the progress."""
    if not ranges:
        return
    chunks = scan_shown(f"reading {name}", ranges, scan(config, ranges))
    async with contextlib.aclosing(chunks):
        async for some in chunks:
            for chunk in some:
                await take(TopicPartition(chunk.topic, chunk.partition), chunk.records)


async def positions_of(
    settings: Settings, group: str, topics: Sequence[str], more: Iterable[str] = ()
) -> dict[TopicPartition, GroupPosition]:
    """Return where a group stands in the partitions of `topics` (names or patterns), and of `more` as far as there."""
    config, own = settings.kafka.client_properties(), settings.pinstream.own_topics
    view = await describe_cluster(config, topics, PATIENCE, own_topics=own)
    meant = sorted({*view.topics, *(view.known.keys() & {*more})})
    names = [TopicPartition(topic, number) for topic in meant for number in range(view.known[topic])]
    async with GroupOffsets(config, group, PATIENCE) as offsets:
        positions, extents = await offsets.positions(names), await offsets.extents(names)
    return {name: GroupPosition(name, positions.get(name), extents[name]) for name in names}


def is_open(row: GroupPosition, offset: int) -> bool:
    """Return whether the group has not settled the record at this offset."""
    return offset >= row.next_read and not row.settled(offset, offset + 1)
