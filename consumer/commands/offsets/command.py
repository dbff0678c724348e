"""``pinstream offsets``: where the consumer group stands, and moving it.

A group may be moved only while nobody is in it: a member would go on from where it is, and commit over what was
set. So this refuses while there are members, looks again right before it writes, and the brokers refuse what slips
in between. It shows what a move means before it makes it: what is read again, and what is skipped.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.adapters.kafka import (
    Bound,
    ClusterView,
    GroupInUse,
    GroupOffsets,
    GroupView,
    dead_letter_pattern,
    describe,
    named_partitions,
    nearest_topic,
)
from consumer.adapters.kafka.offsets import Extent
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.commands.base import Subgroup, first_of
from consumer.commands.offsets.rows import Move, PartitionRow
from consumer.commands.parsing import parse_bound
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, UsageError, nearest
from consumer.settings import Settings, load

_TIMEOUT = 15.0
_MOST_NAMED = 5
"""Members and partitions that one line names; of more, how many."""
_HOUR, _DAY = 3600.0, 86400.0


@dataclass(frozen=True, slots=True)
class ShowOffsetsOptions:
    """The command line's options."""

    group: str | None
    topics: tuple[str, ...]
    as_json: bool


@dataclass(frozen=True, slots=True)
class SetOptions:
    """The command line's options."""

    to: str
    group: str | None
    topics: tuple[str, ...]
    partitions: tuple[str, ...]
    yes: bool
    as_json: bool


@click.group(cls=Subgroup)
def offsets() -> None:
    """Show or change the committed offsets of the consumer group.

    To send a part of a topic again without moving the group, use `pinstream replay`.
    """


_GROUP = click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")
_TOPICS = "topics"
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")


@offsets.command()
@_GROUP
@click.option(
    "--topic",
    _TOPICS,
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS and whatever the group has offsets for.",
)
@_JSON
def show(**options: Any) -> None:
    """What the group has committed of each partition, what is left to read, and who is in it.

    "Settled above": records after the committed offset that are done already and will not be read again. Needs only
    the KAFKA_… settings.
    """
    asyncio.run(_show(ShowOffsetsOptions(**options), load(os.environ, needs=("kafka",))))


@offsets.command(name="set")
@click.option(
    "--to",
    required=True,
    metavar="X",
    help="beginning, end, offset:N or an ISO 8601 time (without a zone: UTC): the first record to read. By time: in "
    "each partition the first record with that Kafka timestamp or a later one, else its end.",
)
@_GROUP
@click.option(
    "--topic",
    _TOPICS,
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS; without it, whatever the group has offsets for.",
)
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="P | TOPIC:P",
    help="Only this partition; may be repeated. Default: all.",
)
@click.option("--yes", is_flag=True, help="Do it. Without it, it only shows what would change.")
@_JSON
def set_(**options: Any) -> None:
    """Move the group: the next `pinstream run` reads on from there. Shows before and after; --yes does it.

    Refused while the group has active members: stop every `pinstream run` of it first. Moved back, records are read
    again (delivered ones are recognised within PINSTREAM_DEDUP_WINDOW); moved forward, records are skipped. Needs
    only the KAFKA_… settings.

    \b
    pinstream offsets set --to 2026-11-24T06:00
    pinstream offsets set --to offset:1200 --partition orders:3 --yes
    """
    bound = parse_bound(options["to"], "--to", time.time())
    asyncio.run(_set(SetOptions(**options), bound, load(os.environ, needs=("kafka",))))


# What both commands ask.


class _Found(NamedTuple):
    """What the brokers say. `topics`: those of the command line, else those of the settings."""

    group: str
    cluster: ClusterView
    view: GroupView
    topics: Sequence[str]
    positions: Mapping[TopicPartition, Position]

    def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """All that there are of these, and all that the group has offsets for."""
        known = _partitions(topics, self.cluster)
        return sorted({*known, *(one for one in self.positions if one.topic in topics)})


async def _look(
    offsets: GroupOffsets, options: ShowOffsetsOptions | SetOptions, settings: Settings, group: str
) -> _Found:
    cluster = await describe(
        settings.kafka.client_properties(),
        () if options.topics else settings.kafka.topics,
        timeout=_TIMEOUT,
        dead_letter_topic=settings.pinstream.dead_letter_topic,
    )
    for topic in options.topics:
        if topic not in cluster.known:
            hint = nearest_topic(topic, cluster.known)
            raise UsageError(f"--topic {topic}: it does not exist, or this user may not see it{hint}")
    topics = list(dict.fromkeys(options.topics or cluster.topics))
    positions = await offsets.positions(_partitions(topics, cluster))
    view = await offsets.view()
    if options.group and not positions and not view.active:
        others = (one for one in await offsets.known_groups() if one != group and not one.startswith("__"))
        near = nearest(group, others, similar=True)
        raise UsageError(
            f"--group {group}: it has no committed offsets"
            + (f"; the nearest group is {near}" if near else "")
        )
    return _Found(group, cluster, view, topics, positions)


def _partitions(topics: Iterable[str], cluster: ClusterView) -> list[TopicPartition]:
    return [
        TopicPartition(topic, number) for topic in topics for number in range(cluster.known.get(topic, 0))
    ]


async def _rows(offsets: GroupOffsets, found: _Found, places: Sequence[TopicPartition]) -> list[PartitionRow]:
    there = [one for one in places if one.partition < found.cluster.known.get(one.topic, 0)]
    extent = await offsets.extents(there)
    return [PartitionRow(one, found.positions.get(one), extent.get(one)) for one in places]


_STATES = {"Unknown": "these brokers do not list its members", "Dead": "it never had members"}
_NO_TOPIC = "no topic is given: set KAFKA_TOPICS, or use --topic"


# offsets show


async def _show(options: ShowOffsetsOptions, settings: Settings) -> None:
    group = options.group or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, options, settings, group)
        topics = set(found.topics)
        if not options.topics:
            topics.update(one.topic for one in found.positions)
        places = found.partitions(topics)
        if not places:
            raise UsageError(_NO_TOPIC)
        rows = await _rows(offsets, found, places)
    if options.as_json:
        partitions = []
        for row in rows:
            begin, end = row.extent or (None, None)
            figures = {"committed": row.committed, "beginning": begin, "end": end, "lag": row.lag}
            partitions.append({**row.place._asdict(), **figures, "settled_above": row.settled()})
        members = [member._asdict() for member in found.view.members]
        document = {"group": group, "state": found.view.state, "members": members, "partitions": partitions}
        click.echo(orjson.dumps(document))
        return
    _say(f"group {group}: {_in_words(found.view)}; {sum(row.unread for row in rows):,} left to read")
    _print_rows(rows)
    for note in _notes(rows):
        _say(note)


def _print_rows(rows: Iterable[PartitionRow]) -> None:
    cells = []
    for row in rows:
        begin, end = row.extent or (None, None)
        cells.append((row.place, (row.committed, begin, end, row.lag, row.settled())))
    _print_table(("committed", "beginning", "end", "lag", "settled above"), cells)


def _notes(rows: Sequence[PartitionRow]) -> list[str]:
    """What is out of order, and what `run` makes of it."""
    there = [row for row in rows if row.extent is not None]
    kinds = [
        (
            [row for row in rows if row.extent is None],
            "no longer exists; the offsets stay until the brokers delete them",
        ),
        (
            [row for row in there if row.committed is None],
            "nothing committed; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` starts",
        ),
        (
            [row for row in there if row.committed is not None and row.committed < row.next_read],
            "records were deleted unread; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` continues",
        ),
        (
            [
                row
                for row in there
                if row.committed is not None and row.extent and row.committed > row.extent.end
            ],
            "the committed offset is beyond the end: the topic was created again, or its log was truncated; correct "
            "it with `pinstream offsets set`",
        ),
    ]
    return [
        f"{first_of([str(row.place) for row in of_kind], _MOST_NAMED)}: {text}"
        for of_kind, text in kinds
        if of_kind
    ]


# offsets set


async def _set(options: SetOptions, bound: Bound, settings: Settings) -> None:
    group = options.group or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, options, settings, group)
        places = _chosen(options, found, settings.pinstream.dead_letter_topic)
        _refuse_in_use(group, found.view)
        _refuse_replay(found)
        moves = await _moves(offsets, bound, await _rows(offsets, found, places))
        if not options.as_json:
            _print_plan(group, moves, settings)
        now = await _put(offsets, group, moves) if options.yes else None
        if options.as_json:
            click.echo(orjson.dumps(_set_document(found, moves, now)))
        elif now is None:
            _say("Nothing was changed. Add --yes to do it.")
        else:
            _say("Done. Read back from the brokers:")
            _print_rows(
                [PartitionRow(move.row.place, now.get(move.row.place), move.extent) for move in moves]
            )
    if now is not None:
        _check_read_back(moves, now)


def _chosen(options: SetOptions, found: _Found, dead_letters: str) -> list[TopicPartition]:
    """The partitions meant, all of them there."""
    topics: Collection[str] = found.topics
    if not topics:
        pattern = dead_letter_pattern(dead_letters)
        topics = {one.topic for one in found.positions if not re.match(pattern, one.topic)}
    places = _partitions(sorted(topics), found.cluster)
    if not places:
        raise UsageError(_NO_TOPIC)
    if not options.partitions:
        return places
    known = {topic: [one.partition for one in places if one.topic == topic] for topic in sorted(topics)}
    named = (named_partitions(text, list(known), known) for text in options.partitions)
    return sorted({place for places_ in named for place in places_})


def _refuse_in_use(group: str, view: GroupView) -> None:
    if view.members:
        raise GroupInUse(
            f"the group {group} has {_in_words(view, state=False)}: stop every member first; one that was killed "
            "counts until its session times out"
        )
    if view.active:
        raise GroupInUse(f"the group {group} is in use ({view.state}): stop every member first")


def _refuse_replay(found: _Found) -> None:
    if any(read_entry(one.metadata) is not None for one in found.positions.values()):
        raise UsageError(
            f"the group {found.group} stores the progress of a named replay: do not change it; start a replay with "
            "another --name instead"
        )


async def _moves(offsets: GroupOffsets, bound: Bound, rows: Sequence[PartitionRow]) -> list[Move]:
    since: Mapping[TopicPartition, int] = {}
    if bound.kind == "time":
        since = await offsets.first_since([row.place for row in rows], bound.value)
    moves = []
    for row in rows:
        if row.extent is None:
            raise KafkaError(f"Kafka: {row.place} disappeared meanwhile: run it again")
        moves.append(Move(row, row.extent, _target(bound, row.place, row.extent, since)))
    return moves


def _target(bound: Bound, place: TopicPartition, extent: Extent, since: Mapping[TopicPartition, int]) -> int:
    if bound.kind == "beginning":
        return extent.low
    if bound.kind == "time":
        return since.get(place, extent.end)
    if bound.kind == "end":
        return extent.end
    if not extent.low <= bound.value <= extent.end:
        raise UsageError(
            f"--to {bound}: offset {bound.value} is not in {place}, which goes from {extent.low} to its end, "
            f"{extent.end}; name another, or choose partitions with --partition"
        )
    return bound.value


async def _put(offsets: GroupOffsets, group: str, moves: Sequence[Move]) -> Mapping[TopicPartition, Position]:
    """Do it, and read back what is committed."""
    _refuse_in_use(group, await offsets.view())
    try:
        await offsets.put({move.row.place: move.after for move in moves})
    except GroupInUse as refusal:
        _refuse_in_use(group, await offsets.view())
        raise GroupInUse(f"{refusal}: stop every member first") from refusal
    return await offsets.positions([move.row.place for move in moves])


def _check_read_back(moves: Iterable[Move], now: Mapping[TopicPartition, Position]) -> None:
    others = [
        str(move.row.place)
        for move in moves
        if (there := now.get(move.row.place)) is None or there.next_offset != move.after
    ]
    if others:
        raise KafkaError(
            f"Kafka: {first_of(others, _MOST_NAMED)} have changed since they were set: another client commits for "
            "this group; find it with `pinstream offsets show`"
        )


def _print_plan(group: str, moves: Sequence[Move], settings: Settings) -> None:
    _say(f"group {group}:")
    rows = []
    for move in moves:
        change = "" if move.change is None else f"{move.change:+d}" if move.change else "0"
        rows.append((move.row.place, (move.row.committed, move.after, change)))
    _print_table(("before", "after", "change"), rows)
    again, skipped = sum(move.read_again for move in moves), sum(move.skipped for move in moves)
    own = settings.pinstream
    if again:
        age = f", or is a dead letter if older than {_long(own.max_event_age)}" if own.max_event_age else ""
        _say(
            f"Up to {again:,} records will be READ AGAIN. Events delivered in the last {_long(own.dedup_window)} "
            "(PINSTREAM_DEDUP_WINDOW) are recognised by their keys and not sent again; events delivered before that "
            f"are sent again{age}."
        )
    if skipped:
        _say(
            f"Up to {skipped:,} records will be SKIPPED: their events are lost unless they are replayed: "
            f"{_replay([move for move in moves if move.skipped])}"
        )
    if not again and not skipped:
        _say("No record is read again, none is skipped.")


def _replay(moves: Sequence[Move]) -> str:
    """The command that reads what the first of these skips."""
    row = moves[0].row
    return (
        f"pinstream replay --topic {row.place.topic} --partition {row.place.partition} "
        f"--from offset:{row.next_read} --to offset:{moves[0].after}"
    ) + (f" (and so for {len(moves) - 1} more)" if len(moves) > 1 else "")


def _long(seconds: float) -> str:
    return f"{seconds / _DAY:g} days" if seconds > 3 * _DAY else f"{seconds / _HOUR:g} h"


# How things are shown.


def _say(text: str) -> None:
    """A line of prose on stdout; a terminal breaks it between words."""
    console = Console()
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _print_table(
    columns: Sequence[str], rows: Iterable[tuple[TopicPartition, Sequence[int | str | None]]]
) -> None:
    table = Table()
    table.add_column("topic", overflow="fold")
    for column in ("partition", *columns):
        table.add_column(column, justify="right")
    for place, cells in rows:
        row = ("none" if one is None else str(one) for one in (place.partition, *cells))
        table.add_row(escape(place.topic), *row)
    Console().print(table)


def _in_words(view: GroupView, *, state: bool = True) -> str:
    """State and members on a line."""
    people = Counter(view.members)
    who = [
        f"{f'{count} x ' if count > 1 else ''}{one.client_id} on {one.host}"
        for one, count in sorted(people.items())
    ]
    members = (
        f"{len(view.members)} active member{'s' * (len(view.members) != 1)}" if who else "no active members"
    )
    text = f"{members} ({first_of(who, _MOST_NAMED)})" if who else members
    return f"{_STATES.get(view.state, f'{view.state}, {text}')}" if state else text


def _set_document(
    found: _Found, moves: Sequence[Move], now: Mapping[TopicPartition, Position] | None
) -> dict[str, Any]:
    partitions = []
    for move in moves:
        figures = {"before": move.row.committed, "after": move.after, "change": move.change}
        meaning = {"read_again": move.read_again, "skipped": move.skipped}
        there = None if now is None else now.get(move.row.place)
        committed = move.row.committed if now is None else there.next_offset if there is not None else None
        partitions.append({**move.row.place._asdict(), **figures, **meaning, "committed": committed})
    return {
        "group": found.group,
        "changed": now is not None,
        "read_again": sum(move.read_again for move in moves),
        "skipped": sum(move.skipped for move in moves),
        "partitions": partitions,
    }
