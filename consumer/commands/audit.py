"""``pinstream audit``: the ledger of a group over all its members and restarts, from the receipts.

Theory of operation. A record may have several receipts, so they are not simply counted: what each outcome (and day) has
is a set of offsets, and an offset counts once, for the highest outcome (`receipts.rank`) and its first day. Memory: 8
bytes for each receipt, 80 more for one that was delivered. What another command than `run` did is kept apart.

It adds up if each record between the first and the last offset with a receipt of that time has one. Offsets without one
are read in the topic. Most hold no record (compaction, the marker of a transaction), some are open, or were removed by
the topic's retention. What is left is settled and has no receipt. A record may be settled long after its neighbours: so
receipts of the day before, and of all the time after, are read, and not counted.
"""

from __future__ import annotations

import heapq
import os
import sys
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

import click
from rich.console import Console

from consumer.adapters.kafka.letters import Done, OffsetRange, Place
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.topic_ids import ask_once
from consumer.adapters.thread import run_blocking
from consumer.app.receipts import destination_name
from consumer.commands import receipts
from consumer.commands.base import DebugCommand, asynchronous, iso
from consumer.commands.parsing import JSON_OPTION, parse_since, parsed_option
from consumer.commands.receipts import DELIVERED, PATIENCE, RANKED, FoundReceipt
from consumer.commands.results import print_result, prose, table
from consumer.engine.model import Record, TopicPartition
from consumer.engine.records.offset_map import are_different_topics
from consumer.errors import UsageError, first_of
from consumer.settings import Settings, load

_DAY_MS: Final = 86_400_000
_CLOCKS_DIFFER_MS: Final = 3_600_000  # by less: a broker's, a member's and ours
_EPOCH: Final = date(1970, 1, 1)
_BEFORE, _AFTER = -1, sys.maxsize  # the days of what is not counted
_MAX_NAMED: Final = 10
_Log = tuple[str, str, str, int]
"""The command that wrote the receipts; a topic, its id (empty: not known), a partition."""


@click.command(cls=DebugCommand)
@parsed_option(
    "--since", parse_since, required=True, metavar="TIME", help="Count what was decided from then on."
)
@parsed_option(
    "--until", parse_since, default="0", show_default=True, metavar="TIME",
    help="Count what was decided before then; 0 is now.",
)  # fmt: skip
@click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")
@JSON_OPTION
@asynchronous
async def audit(since: int, until: int, group: str | None, as_json: bool) -> None:
    """Add up the receipts of a group, and compare them with the offsets of its topics.

    Over all members and restarts: how many records of each topic became what, by day (UTC). What `replay` and `redrive`
    did is shown apart. Exit code 0: each record has its receipt, or is open; 1: some have none; 2: there are no
    receipts of that time. Needs the settings of `pinstream run`, without account and token.

    \b
    pinstream audit --since 2026-12-01 --until 2026-12-02
    """
    if since >= until:
        raise UsageError("--since must be before --until: no receipt can match")
    settings = load(os.environ, needs=("kafka",))
    whose = group or settings.kafka.group_id, destination_name(settings)
    offsets: defaultdict[tuple[_Log, int, int], array[int]] = defaultdict(lambda: array("q"))
    requests, twice, members = dict[int, str](), list[dict[str, str]](), set[str]()

    def take(one: FoundReceipt) -> None:
        if (one["group"], one["destination"]) != whose:
            return
        day = _BEFORE if one["at"] < since else _AFTER if one["at"] >= until else one["at"] // _DAY_MS
        log = one["by"], one["topic"], one["topic_id"] or "", one["partition"]
        offsets[log, -receipts.rank(one), day].append(one["offset"])
        if day in (_BEFORE, _AFTER):
            return
        members.add(one["member"])
        if one["outcome"] == DELIVERED and (request := one["request_id"]):
            # One text for each request, which a thousand events share.
            event = hash((one["ad_account"], one["event_name"], one["event_id"]))
            if (first := requests.setdefault(event, sys.intern(request))) != request:
                where = {"event_id": one["event_id"], "place": str(receipts.receipt_place(one))}
                twice.append({**where, "first": first, "second": request})

    began = round(time.time() * 1000)
    await receipts.read_receipts(settings, max(0, since - _DAY_MS), take)
    counts, settled, spans = _add_up(offsets)
    if not counts:
        raise UsageError(f"there are no receipts of the group {whose[0]} for {whose[1]} of that time")
    names = ("by", "topic", "day", "outcome", "records")
    of = {"group": whose[0], "destination": whose[1], "since": iso(since), "until": iso(until)}
    document = of | {
        "members": len(members),
        "counts": [dict(zip(names, (*of, number), strict=True)) for of, number in sorted(counts.items())],
        "delivered_twice": twice,
        **await _compare(settings, whose, settled, spans, began),
    }
    print_result(_show, document, as_json=as_json)
    if document["without_receipt"]:
        sys.exit(1)


def _add_up(
    offsets: Mapping[tuple[_Log, int, int], array[int]],
) -> tuple[Counter[tuple[str, ...]], Mapping[_Log, Done], Mapping[_Log, tuple[int, int]]]:
    """Return the ledger; of each log the records that have a receipt, and the first and the last that are counted."""
    settled, spans = defaultdict[_Log, Done](Done), dict[_Log, tuple[int, int]]()
    counts = Counter[tuple[str, ...]]()
    for (log, order, day), some in sorted(offsets.items()):
        ordered, before = sorted(some), settled[log]
        settled[log] = _union(before.runs(), ((offset, offset + 1) for offset in ordered))
        if day not in (_BEFORE, _AFTER):
            kind = *log[:2], str(_EPOCH + timedelta(day)), RANKED[-order]
            counts[kind] += settled[log].count() - before.count()
            first, last = spans.get(log, (ordered[0], ordered[-1]))
            spans[log] = min(first, ordered[0]), max(last, ordered[-1])
    return +counts, settled, spans


def _union(one: Iterable[OffsetRange], other: Iterable[OffsetRange]) -> Done:
    # In rising order, so that each run is added at the end.
    both = Done()
    both.add(heapq.merge(one, other))
    return both


async def _compare(
    settings: Settings,
    whose: tuple[str, str],
    settled: Mapping[_Log, Done],
    spans: Mapping[_Log, tuple[int, int]],
    began: int,
) -> dict[str, Any]:
    """Return what each topic itself holds between the first and the last receipt of `run`. `whose`: group and
    destination; `began`: when the receipts were read (milliseconds since 1970)."""
    config, topics = settings.kafka.client_properties(), sorted({log[1] for log in spans if log[0] == "run"})
    rows = await receipts.positions_of(settings, whose[0], (), topics)
    ids = await run_blocking("pinstream-kafka-ids", ask_once, config, topics, PATIENCE)
    found, has, gone = _partitions(settled, spans, rows, ids)
    ranges, places = list[Range](), dict[str, TopicPartition]()
    for name, one in found.items():
        extent, stop = rows[name].extent or (0, 0), one["last"] + 1
        begin = min(max(extent[0], one["first"]), stop)  # what is below was removed by retention
        removed, empty = _lacking(has[name], one["first"], begin), _lacking(has[name], begin, stop)
        found[name] |= {
            "records": stop - one["first"] - removed - empty,
            "removed": removed,
            "no_record": empty,
        }
        found[name]["open"] = 0
        if empty:
            ranges.append(Range(*name, begin, min(stop, extent[1])))

    async def check(name: TopicPartition, records: Sequence[Record]) -> None:
        for at in (record.offset for record in records if record.offset not in has[name]):
            found[name]["no_record"] -= 1
            if receipts.is_open(rows[name], at):
                found[name]["open"] += 1
            else:
                places[str(Place(*name, at))] = name

    def settles(one: FoundReceipt) -> None:
        if (one["group"], one["destination"]) == whose and one["by"] == "run":
            name = places.pop(str(receipts.receipt_place(one)), None)
            if name is not None:
                found[name]["open"] += 1

    await receipts.read_records(config, ranges, ", ".join(topics), check)
    # What was open when the receipts were read may have settled before the positions were asked for.
    if places:
        await receipts.read_receipts(settings, began - _CLOCKS_DIFFER_MS, settles)
    lost = Counter(places.values())
    offsets = [{**of, "without_receipt": lost[name]} for name, of in found.items()]
    return {"offsets": offsets, "not_compared": gone, "without_receipt": [*places]}


def _partitions(
    settled: Mapping[_Log, Done],
    spans: Mapping[_Log, tuple[int, int]],
    rows: Container[TopicPartition],
    ids: Mapping[str, str],
) -> tuple[dict[TopicPartition, dict[str, Any]], dict[TopicPartition, Done], list[str]]:
    """Return of each partition that `run` has read the first and the last offset, and those with a receipt; and the
    partitions that are gone."""
    found, has, gone = dict[TopicPartition, dict[str, Any]](), dict[TopicPartition, Done](), list[str]()
    for log, (first, last) in sorted(spans.items()):
        name, done = TopicPartition(log[1], log[3]), settled[log]
        if log[0] != "run":
            continue
        if name not in rows or are_different_topics(log[2] or None, ids.get(name.topic)):
            gone.append(str(name))
            continue
        if name in has:  # the brokers did not tell all members the topic's id
            done, first = _union(done.runs(), has[name].runs()), min(first, found[name]["first"])
            last = max(last, found[name]["last"])
        has[name], found[name] = done, {**name._asdict(), "first": first, "last": last}
    return found, has, gone


def _lacking(done: Done, first: int, stop: int) -> int:
    """Return how many of the offsets [first, stop) are not among those that are done."""
    window = Done()
    window.add([(first, stop)] if first < stop else [])
    return window.count() - done.common(window)


def _show(document: dict[str, Any], console: Console) -> None:
    who = f"group {document['group']}, destination {document['destination']}, members: {document['members']}"
    prose(console, f"{who}, from {document['since']} to {document['until']}; days in UTC")
    days: defaultdict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for one in document["counts"]:
        days[one["by"], one["topic"], one["day"]][one["outcome"]] += one["records"]
    kinds = RANKED[::-1]
    heads = [f">{kind.replace('_', '-')}" for kind in (*kinds, "records")]
    for title, is_run in (("the ledger", True), ("beside it, by replay or redrive", False)):
        of = [(key[1:], number) for key, number in sorted(days.items()) if (key[0] == "run") is is_run]
        rows = [[*key, *(f"{number[kind]:,}" for kind in kinds), f"{number.total():,}"] for key, number in of]
        if rows:
            console.print(table("topic", "day", *heads, rows=rows, title=title))
    names = ("first", "last", "records", "no_record", "removed", "open", "without_receipt")
    parts = [
        [f"{one['topic']}[{one['partition']}]", *(f"{one[name]:,}" for name in names)]
        for one in document["offsets"]
    ]
    heads = [f">{name.replace('_', ' ')}" for name in names]
    console.print(table("partition", *heads, rows=parts, title="the topics' own offsets"))
    prose(console, "no record: a gap of compaction, or a transaction's marker; removed: by retention")
    for one in document["delivered_twice"][:_MAX_NAMED]:
        prose(
            console, f"event id {one['event_id']}: {one['first']} and, from {one['place']}, {one['second']}"
        )
    prose(console, f"delivered under two request ids: {len(document['delivered_twice']):,} events")
    if gone := document["not_compared"]:
        prose(
            console,
            f"not compared, since the topic is gone or was created again: {first_of(gone, _MAX_NAMED)}",
        )
    lost = document["without_receipt"]
    text = f"{len(lost):,} records are settled and have no receipt: {first_of(lost, _MAX_NAMED)}"
    prose(console, text if lost else "It adds up: all other records have a receipt, or are open.", "bold")
