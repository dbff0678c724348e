"""``pinstream offsets``: show where the consumer group stands, and move it while it has no members.

``offsets set`` shows what a move means before it makes it. *Read again* counts the settled records from the new offset
on: those below the old offset, and those above it that the offset map of the old commit says are settled, because the
map goes with the old offset. *Skipped* counts the records between the old and the new offset that are not settled. Both
count offsets, and some may be no records (compaction, transaction markers): so it says "up to".
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.adapters.kafka.cluster import ClusterView, Extent, describe, nearest_topic
from consumer.adapters.kafka.configuration import dead_letter_pattern
from consumer.adapters.kafka.groups import GroupInUse, GroupOffsets, GroupView
from consumer.adapters.kafka.ranges import Bound, named_partitions
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.commands.base import Subgroup, first_of
from consumer.commands.parsing import PARTITION_OPTION, parse_bound
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, UsageError, nearest
from consumer.settings import Settings, load

_TIMEOUT = 15.0
# Members and partitions that one line names; it says how many more there are.
_MOST_NAMED = 5
_HOUR, _DAY = 3600.0, 86400.0


@click.group(cls=Subgroup)
def offsets() -> None:
    """Show or change the committed offsets of the consumer group.

    To send a part of a topic again without moving the group, use `pinstream replay`.
    """


_GROUP = click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")


@offsets.command()
@_GROUP
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS and whatever the group has offsets for.",
)
@_JSON
def show(group: str | None, topics: tuple[str, ...], as_json: bool) -> None:
    """Show what the group has committed of each partition, what is left to read, and who is in it.

    "Settled above": records after the committed offset that are done already and will not be read again. Needs only
    the KAFKA_… settings.
    """
    asyncio.run(_show(group, topics, as_json, load(os.environ, needs=("kafka",))))


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
    "topics",
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS; without it, whatever the group has offsets for.",
)
@PARTITION_OPTION
@click.option("--yes", is_flag=True, help="Do it. Without it, it only shows what would change.")
@_JSON
def set_(
    to: str,
    group: str | None,
    topics: tuple[str, ...],
    partitions: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Move the group: the next `pinstream run` reads on from there. Shows before and after; --yes does it.

    Refused while the group has active members: stop every `pinstream run` of it first. Moved back, records are read
    again (delivered ones are recognised within PINSTREAM_DEDUP_WINDOW); moved forward, records are skipped. Needs
    only the KAFKA_… settings.

    \b
    pinstream offsets set --to 2026-11-24T06:00
    pinstream offsets set --to offset:1200 --partition orders:3 --yes
    """
    bound = parse_bound(to, "--to", time.time())
    settings = load(os.environ, needs=("kafka",))
    asyncio.run(_set(bound, group, topics, partitions, yes, as_json, settings))


# Where the group stands in a partition, and what moving it there means.


class PartitionRow(NamedTuple):
    """One partition. `extent` is None if the topic or the partition is gone."""

    place: TopicPartition
    position: Position | None
    extent: Extent | None

    @property
    def committed(self) -> int | None:
        """The offset that the group has committed, if any."""
        return None if self.position is None else self.position.next_offset

    @property
    def next_read(self) -> int:
        """The offset at which the group reads on."""
        # Records below the beginning were deleted.
        begin = 0 if self.extent is None else self.extent.low
        return begin if self.committed is None else max(self.committed, begin)

    @property
    def lag(self) -> int | None:
        """Offsets from `next_read` to the end."""
        return None if self.extent is None else max(0, self.extent.end - self.next_read)

    def settled(self, start: int = 0, stop: int = 1 << 63) -> int:
        """Count the offsets in [start, stop) that the map says are settled above the committed one."""
        if self.position is None:
            return 0
        text = self.position.metadata
        # A named replay commits its plan, and after it the map.
        planned = read_entry(text)
        found = offset_map.read(
            text if planned is None else planned[1], self.position.next_offset, where=map_place(self.place)
        )
        bounds = [] if found is None else found.bounds
        runs = zip(bounds[::2], bounds[1::2], strict=True)
        return sum(max(0, min(end, stop) - max(begin, start)) for begin, end in runs)

    def read_again(self, after: int) -> int:
        """Count the settled offsets that are read again if the group moves to `after`."""
        if self.committed is None or self.extent is None:
            return 0
        # A committed offset beyond the end (the log was cut) settles nothing there.
        below = min(self.next_read, self.extent.end) - after
        return max(0, below) + self.settled(after)

    def skipped(self, after: int) -> int:
        """Count the offsets that are not settled and are never read if the group moves to `after`."""
        return max(0, after - self.next_read - self.settled(self.next_read, after))


# What both commands ask.


class _Found(NamedTuple):
    """The answers of the brokers. `topics`: those of the command line, else those of the settings."""

    cluster: ClusterView
    view: GroupView
    topics: Sequence[str]
    positions: Mapping[TopicPartition, Position]


async def _look(
    offsets: GroupOffsets, named: str | None, topics: Sequence[str], settings: Settings
) -> _Found:
    """Ask the brokers about the group and the topics. `named`: the value of ``--group``."""
    cluster = await describe(
        settings.kafka.client_properties(),
        () if topics else settings.kafka.topics,
        timeout=_TIMEOUT,
        dead_letter_topic=settings.pinstream.dead_letter_topic,
    )
    for topic in topics:
        if topic not in cluster.known:
            hint = nearest_topic(topic, cluster.known)
            raise UsageError(f"--topic {topic}: it does not exist, or this user may not see it{hint}")
    # A topic may be named twice, or match two patterns.
    meant = list(dict.fromkeys(topics or cluster.topics))
    positions = await offsets.positions(_partitions(meant, cluster))
    view = await offsets.view()
    # A group that only the settings name may be new. One that the user has typed is probably mistyped.
    if named and not positions and not view.active:
        others = (one for one in await offsets.known_groups() if one != named and not one.startswith("__"))
        near = nearest(named, others)
        raise UsageError(
            f"--group {named}: it has no committed offsets"
            + (f"; the nearest group is {near}" if near else "")
        )
    return _Found(cluster, view, meant, positions)


def _partitions(topics: Iterable[str], cluster: ClusterView) -> list[TopicPartition]:
    return [
        TopicPartition(topic, number) for topic in topics for number in range(cluster.known.get(topic, 0))
    ]


async def _rows(offsets: GroupOffsets, found: _Found, places: Sequence[TopicPartition]) -> list[PartitionRow]:
    if not places:
        raise UsageError("no topic is given: set KAFKA_TOPICS, or use --topic")
    # What is gone has no extent to ask for.
    there = [one for one in places if one.partition < found.cluster.known.get(one.topic, 0)]
    extent = await offsets.extents(there)
    return [PartitionRow(one, found.positions.get(one), extent.get(one)) for one in places]


# offsets show


async def _show(named: str | None, topics: Sequence[str], as_json: bool, settings: Settings) -> None:
    group = named or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, named, topics, settings)
        # Also topics for which the group has offsets, but which the settings no longer name or the brokers do not have.
        meant = {*found.topics, *(() if topics else (one.topic for one in found.positions))}
        known = _partitions(meant, found.cluster)
        places = {*known, *(one for one in found.positions if one.topic in meant)}
        rows = await _rows(offsets, found, sorted(places))
    documents = [_document(row) for row in rows]
    if as_json:
        members = [member._asdict() for member in found.view.members]
        document = {"group": group, "state": found.view.state, "members": members, "partitions": documents}
        click.echo(orjson.dumps(document))
        return
    states = {"Unknown": "these brokers do not list its members", "Dead": "it never had members"}
    # What would be skipped by a move to the end is what is left to read.
    left = sum(row.skipped(row.extent.end) for row in rows if row.extent is not None)
    state = states.get(found.view.state, f"{found.view.state}, {_members(found.view)}")
    _say(f"group {group}: {state}; {left:,} left to read")
    _print_table(_FIGURES, documents)
    places_of: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if note := _note(row):
            places_of[note].append(str(row.place))
    for note, names in places_of.items():
        _say(f"{first_of(names, _MOST_NAMED)}: {note}")


_FIGURES = ("committed", "beginning", "end", "lag", "settled above")


def _document(row: PartitionRow) -> dict[str, Any]:
    begin, end = row.extent or (None, None)
    figures = (row.committed, begin, end, row.lag, row.settled())
    names = (name.replace(" ", "_") for name in _FIGURES)
    return {**row.place._asdict(), **dict(zip(names, figures, strict=True))}


def _note(row: PartitionRow) -> str | None:
    """Return what is wrong with the offset, and what `run` does about it; None if nothing is wrong."""
    if row.extent is None:
        return "no longer exists; the offsets stay until the brokers delete them"
    if row.committed is None:
        return "nothing committed; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` starts"
    if row.committed < row.next_read:
        return "records were deleted unread; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` continues"
    if row.committed > row.extent.end:
        return (
            "the committed offset is beyond the end: the topic was created again, or its log was truncated; correct "
            "it with `pinstream offsets set`"
        )
    return None


# offsets set


async def _set(
    bound: Bound,
    named: str | None,
    topics: Sequence[str],
    partitions: Sequence[str],
    yes: bool,
    as_json: bool,
    settings: Settings,
) -> None:
    group = named or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, named, topics, settings)
        places = _chosen(partitions, found, settings.pinstream.dead_letter_topic)
        rows = await _rows(offsets, found, places)
        # A member would go on from where it is, and commit over the new offset. Refused without --yes too: a plan for a
        # group that moves is worth nothing.
        _refuse_in_use(group, found.view)
        if any(read_entry(one.metadata) is not None for one in found.positions.values()):
            raise UsageError(
                f"the group {group} stores the progress of a named replay: do not change it; start a replay with "
                "another --name instead"
            )
        targets = await _targets(offsets, bound, rows)
        if not as_json:
            _print_plan(group, rows, targets, settings)
        now = await _put(offsets, group, targets) if yes else found.positions
    moved = [row._replace(position=now.get(row.place)) for row in rows]
    if as_json:
        plans = [_plan(row, targets[row.place]) for row in rows]
        totals = {name: sum(one[name] for one in plans) for name in ("read_again", "skipped")}
        documents = [{**plan, "committed": row.committed} for plan, row in zip(plans, moved, strict=True)]
        click.echo(orjson.dumps({"group": group, "changed": yes, **totals, "partitions": documents}))
    elif yes:
        _say("Done. Read back from the brokers:")
        _print_table(_FIGURES, map(_document, moved))
    else:
        _say("Nothing was changed. Add --yes to do it.")
    # After the table, which shows what is committed instead.
    others = [str(row.place) for row in moved if row.committed != targets[row.place]]
    if yes and others:
        raise KafkaError(
            f"Kafka: {first_of(others, _MOST_NAMED)} have changed since they were set: another client commits for "
            "this group; find it with `pinstream offsets show`"
        )


def _chosen(named: Sequence[str], found: _Found, dead_letters: str) -> list[TopicPartition]:
    """Return the partitions to move. All of them exist. `named`: the values of ``--partition``."""
    topics: Collection[str] = found.topics
    if not topics:
        # The group may have offsets of dead-letter topics, from a time when a pattern matched them.
        pattern = dead_letter_pattern(dead_letters)
        topics = {one.topic for one in found.positions if not re.match(pattern, one.topic)}
    places = _partitions(sorted(topics), found.cluster)
    if not named or not places:
        return places
    known = {topic: [one.partition for one in places if one.topic == topic] for topic in sorted(topics)}
    return sorted({place for text in named for place in named_partitions(text, list(known), known)})


def _refuse_in_use(group: str, view: GroupView) -> None:
    if view.members:
        raise GroupInUse(
            f"the group {group} has {_members(view)}: stop every member first; one that was killed counts until its "
            "session times out"
        )
    if view.active:
        raise GroupInUse(f"the group {group} is in use ({view.state}): stop every member first")


async def _targets(
    offsets: GroupOffsets, bound: Bound, rows: Sequence[PartitionRow]
) -> dict[TopicPartition, int]:
    """Return the new offset of each partition."""
    since: Mapping[TopicPartition, int] = {}
    if bound.kind == "time":
        since = await offsets.first_since([row.place for row in rows], bound.value)
    targets = {}
    for row in rows:
        # It was there a moment ago.
        if row.extent is None:
            raise KafkaError(f"Kafka: {row.place} disappeared meanwhile: run it again")
        low, end = row.extent
        if bound.kind == "offset" and not low <= bound.value <= end:
            raise UsageError(
                f"--to {bound}: offset {bound.value} is not in {row.place}, which goes from {low} to its end, {end}; "
                "name another, or choose partitions with --partition"
            )
        after = {"beginning": low, "offset": bound.value, "time": since.get(row.place, end), "end": end}
        targets[row.place] = after[bound.kind]
    return targets


async def _put(
    offsets: GroupOffsets, group: str, targets: Mapping[TopicPartition, int]
) -> Mapping[TopicPartition, Position]:
    """Set the offsets, and read back what is committed."""
    # Once more, for a message that names the members. If one joins after this, the brokers refuse.
    _refuse_in_use(group, await offsets.view())
    try:
        await offsets.put(targets)
    except GroupInUse as refusal:
        _refuse_in_use(group, await offsets.view())
        raise GroupInUse(f"{refusal}: stop every member first") from refusal
    return await offsets.positions(list(targets))


def _plan(row: PartitionRow, after: int) -> dict[str, Any]:
    change = None if row.committed is None else after - row.committed
    figures = {"before": row.committed, "after": after, "change": change}
    meaning = {"read_again": row.read_again(after), "skipped": row.skipped(after)}
    return {**row.place._asdict(), **figures, **meaning}


def _print_plan(
    group: str, rows: Sequence[PartitionRow], targets: Mapping[TopicPartition, int], settings: Settings
) -> None:
    _say(f"group {group}:")
    plans = [_plan(row, targets[row.place]) for row in rows]
    changes = (
        "" if one is None else f"{one:+d}" if one else "0" for one in (plan["change"] for plan in plans)
    )
    texts = [{**plan, "change": change} for plan, change in zip(plans, changes, strict=True)]
    _print_table(("before", "after", "change"), texts)
    again, skipped = (sum(plan[name] for plan in plans) for name in ("read_again", "skipped"))
    own = settings.pinstream
    if again:
        age = f", or is a dead letter if older than {_long(own.max_event_age)}" if own.max_event_age else ""
        _say(
            f"Up to {again:,} records will be READ AGAIN. Events delivered in the last {_long(own.dedup_window)} "
            "(PINSTREAM_DEDUP_WINDOW) are recognised by their keys and not sent again; events delivered before that "
            f"are sent again{age}."
        )
    if skipped:
        first, *others = [row for row in rows if row.skipped(targets[row.place])]
        topic, partition = first.place
        more = f" (and so for {len(others)} more)" if others else ""
        # To be copied: the command that reads what is skipped.
        _say(
            f"Up to {skipped:,} records will be SKIPPED: their events are lost unless they are replayed: pinstream "
            f"replay --topic {topic} --partition {partition} --from offset:{first.next_read} "
            f"--to offset:{targets[first.place]}{more}"
        )
    if not again and not skipped:
        _say("No record is read again, none is skipped.")


def _long(seconds: float) -> str:
    return f"{seconds / _DAY:g} days" if seconds > 3 * _DAY else f"{seconds / _HOUR:g} h"


# How things are shown.


def _say(text: str) -> None:
    """Print a line of prose on stdout."""
    console = Console()
    # Broken between words on a terminal, unbroken in a file, where people search for it.
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    table = Table()
    table.add_column("topic", overflow="fold")
    for column in ("partition", *columns):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (row[column.replace(" ", "_")] for column in ("partition", *columns))
        table.add_row(escape(row["topic"]), *("none" if one is None else str(one) for one in cells))
    Console().print(table)


def _members(view: GroupView) -> str:
    """Return the number of members, and the first of them."""
    who = [
        f"{f'{count} x ' if count > 1 else ''}{one.client_id} on {one.host}"
        for one, count in sorted(Counter(view.members).items())
    ]
    if not who:
        return "no active members"
    return f"{len(view.members)} active member{'s' * (len(view.members) != 1)} ({first_of(who, _MOST_NAMED)})"
