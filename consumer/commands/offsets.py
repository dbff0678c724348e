"""``pinstream offsets``: show where the consumer group stands, and move it while it has no members.

``offsets set`` shows what a move means before it makes it. *Read again* counts the settled records from the new offset
on: those below the old offset, and those above it that the offset map of the old commit says are settled, because the
map goes with the old offset. *Skipped* counts the records between the old and the new offset that are not settled. Both
count offsets, and some may be no records (compaction, transaction markers): so it says "up to".
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from consumer.adapters.kafka.cluster import ClusterView, Extent, describe, nearest_topic
from consumer.adapters.kafka.configuration import dead_letter_pattern
from consumer.adapters.kafka.groups import GroupInUse, GroupOffsets, GroupView
from consumer.adapters.kafka.ranges import Bound, named_partitions
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.commands.base import Command, asynchronous, prose
from consumer.commands.parsing import JSON_OPTION, PARTITION_OPTION, parse_bound, topics_option
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, UsageError, first_of, nearest
from consumer.settings import Settings, load

_TIMEOUT = 15.0
# Members and partitions that one line names; it says how many more there are.
_MOST_NAMED = 5
_HOUR, _DAY = 3600.0, 86400.0


@click.group()
def offsets() -> None:
    """Show or change the committed offsets of the consumer group.

    To send a part of a topic again without moving the group, use `pinstream replay`.
    """


_GROUP = click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")


@offsets.command(cls=Command)
@_GROUP
@topics_option(
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS and whatever the group has offsets for."
)
@JSON_OPTION
@asynchronous
async def show(group: str | None, topics: tuple[str, ...], as_json: bool) -> None:
    """Show what the group has committed of each partition, what is left to read, and who is in it.

    "Settled above": records after the committed offset that are done already and will not be read again. Needs only
    the KAFKA_… settings.
    """
    settings = load(os.environ, needs=("kafka",))
    given, group = group, group or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, given, topics, settings)
        # Also topics for which the group has offsets, but which the settings no longer name or the brokers do not have.
        meant = {*found.topics, *(() if topics else (one.topic for one in found.positions))}
        places = {*found.partitions(meant), *(one for one in found.positions if one.topic in meant)}
        rows = await _rows(offsets, found, sorted(places))
    documents = [_document(row) for row in rows]
    if as_json:
        members = [member._asdict() for member in found.view.members]
        document = {"group": group, "state": found.view.state, "members": members, "partitions": documents}
        click.echo(orjson.dumps(document))
        return
    states = {"Unknown": "these brokers do not list its members", "Dead": "it never had members"}
    state = states.get(found.view.state, f"{found.view.state}, {_members(found.view)}")
    # What would be skipped by a move to the end is what is left to read.
    left = sum(row.skipped(row.extent.end) for row in rows if row.extent is not None)
    console = Console()
    prose(console, f"group {group}: {state}; {left:,} left to read")
    _print_table(console, _FIGURES, documents)
    # One line for all partitions that have the same trouble.
    places_of: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if note := _note(row):
            places_of[note].append(str(row.place))
    for note, names in places_of.items():
        prose(console, f"{first_of(names, _MOST_NAMED)}: {note}")


@offsets.command(name="set", cls=Command)
@click.option(
    "--to",
    required=True,
    metavar="X",
    help="beginning, end, offset:N or an ISO 8601 time (without a zone: UTC): the first record to read. By time: in "
    "each partition the first record with that Kafka timestamp or a later one, else its end.",
)
@_GROUP
@topics_option(
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS; without it, whatever the group has offsets for."
)
@PARTITION_OPTION
@click.option("--yes", is_flag=True, help="Do it. Without it, it only shows what would change.")
@JSON_OPTION
@asynchronous
async def set_(
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
    # Before the settings are read: an impossible bound is wrong usage, whatever they are.
    bound = parse_bound(to, "--to", time.time())
    settings = load(os.environ, needs=("kafka",))
    given, group = group, group or settings.kafka.group_id
    async with GroupOffsets(settings.kafka.client_properties(), group, _TIMEOUT) as offsets:
        found = await _look(offsets, given, topics, settings)
        places = _chosen(partitions, found, settings.pinstream.dead_letter_topic)
        rows = await _rows(offsets, found, places)
        # A member would go on from where it is, and commit over the new offset. Refused without --yes too: a plan for a
        # group that moves is worth nothing.
        _refuse_in_use(group, found.view)
        if any(read_entry(one) is not None for one in found.positions.values()):
            raise UsageError(
                f"the group {group} stores the progress of a named replay: do not change it; start a replay with "
                "another --name instead"
            )
        targets = await _targets(offsets, bound, rows)
        plans = [_plan(row, targets[row.place]) for row in rows]
        totals = {name: sum(plan[name] for plan in plans) for name in ("read_again", "skipped")}
        console = Console(quiet=as_json)
        prose(console, f"group {group}:")
        # With a sign, but for none: "+0" would look like a change.
        changes = (
            "" if one is None else f"{one:+d}" if one else "0" for one in (plan["change"] for plan in plans)
        )
        signed = [{**plan, "change": change} for plan, change in zip(plans, changes, strict=True)]
        _print_table(console, ("before", "after", "change"), signed)
        for line in _meaning(rows, targets, settings, **totals):
            prose(console, line)
        now = found.positions
        if yes:
            # Once more, for a message that names the members. If one joins after this, the brokers refuse.
            _refuse_in_use(group, await offsets.view())
            try:
                await offsets.put(targets)
            except GroupInUse as refusal:
                _refuse_in_use(group, await offsets.view())
                raise GroupInUse(f"{refusal}: stop every member first") from refusal
            now = await offsets.positions(list(targets))
    # What is committed now, read from the brokers, in place of what was.
    moved = [row._replace(position=now.get(row.place)) for row in rows]
    if as_json:
        documents = [{**plan, "committed": row.committed} for plan, row in zip(plans, moved, strict=True)]
        click.echo(orjson.dumps({"group": group, "changed": yes, **totals, "partitions": documents}))
    elif yes:
        prose(console, "Done. Read back from the brokers:")
        _print_table(console, _FIGURES, map(_document, moved))
    else:
        prose(console, "Nothing was changed. Add --yes to do it.")
    # After the table, which shows what is committed instead.
    others = [str(row.place) for row in moved if row.committed != targets[row.place]]
    if yes and others:
        raise KafkaError(
            f"Kafka: {first_of(others, _MOST_NAMED)} have changed since they were set: another client commits for "
            "this group; find it with `pinstream offsets show`"
        )


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
        # A named replay commits its plan, and after it the map.
        planned = read_entry(self.position)
        _, _, offset, _, text = self.position if planned is None else planned.position
        found = offset_map.read(text, offset, where=map_place(self.place))
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


# What both commands ask the brokers.


class _Found(NamedTuple):
    """The answers of the brokers. `topics`: those of the command line, else those of the settings."""

    cluster: ClusterView
    view: GroupView
    topics: Sequence[str]
    positions: Mapping[TopicPartition, Position]

    def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Return the partitions of these topics, as far as they exist."""
        known = self.cluster.known
        return [TopicPartition(topic, number) for topic in topics for number in range(known.get(topic, 0))]


async def _look(
    offsets: GroupOffsets, given: str | None, topics: Sequence[str], settings: Settings
) -> _Found:
    """Ask the brokers about the group and the topics. `given`: the value of ``--group``."""
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
    found = _Found(cluster, await offsets.view(), meant, {})
    found = found._replace(positions=await offsets.positions(found.partitions(meant)))
    # A group that only the settings name may be new. One that the user has typed is probably mistyped.
    if given and not found.positions and not found.view.active:
        others = (one for one in await offsets.known_groups() if one != given and not one.startswith("__"))
        near = nearest(given, others)
        hint = f"; the nearest group is {near}" if near else ""
        raise UsageError(f"--group {given}: it has no committed offsets{hint}")
    return found


async def _rows(offsets: GroupOffsets, found: _Found, places: Sequence[TopicPartition]) -> list[PartitionRow]:
    if not places:
        raise UsageError("no topic is given: set KAFKA_TOPICS, or use --topic")
    # What is gone has no extent to ask for.
    there = [one for one in places if one.partition < found.cluster.known.get(one.topic, 0)]
    extent = await offsets.extents(there)
    return [PartitionRow(one, found.positions.get(one), extent.get(one)) for one in places]


# What `show` says of each partition.


_FIGURES = ("committed", "beginning", "end", "lag", "settled_above")


def _document(row: PartitionRow) -> dict[str, Any]:
    # JSON null, and "none" in the table, where the topic is gone or nothing is committed.
    begin, end = row.extent or (None, None)
    figures = (row.committed, begin, end, row.lag, row.settled())
    return {**row.place._asdict(), **dict(zip(_FIGURES, figures, strict=True))}


def _note(row: PartitionRow) -> str | None:
    """Return what is wrong with the offset, and what `run` does about it; None if nothing is wrong."""
    if row.extent is None:
        return "no longer exists; the offsets stay until the brokers delete them"
    if row.committed is None:
        return "nothing committed; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` starts"
    # The beginning has moved past it: retention was shorter than the outage.
    if row.committed < row.next_read:
        return "records were deleted unread; KAFKA_AUTO_OFFSET_RESET says where `pinstream run` continues"
    if row.committed > row.extent.end:
        return (
            "the committed offset is beyond the end: the topic was created again, or its log was truncated; correct "
            "it with `pinstream offsets set`"
        )
    return None


# What `set` does, and says beforehand.


def _chosen(named: Sequence[str], found: _Found, dead_letters: str) -> list[TopicPartition]:
    """Return the partitions to move. All of them exist. `named`: the values of ``--partition``."""
    topics: Collection[str] = found.topics
    if not topics:
        # The group may have offsets of dead-letter topics, from a time when a pattern matched them.
        pattern = dead_letter_pattern(dead_letters)
        topics = {one.topic for one in found.positions if not re.match(pattern, one.topic)}
    places = found.partitions(sorted(topics))
    if not named or not places:
        return places
    # `--partition 3` means that partition of every topic; `orders:3` that of one.
    known = {topic: [one.partition for one in places if one.topic == topic] for topic in sorted(topics)}
    return sorted({place for text in named for place in named_partitions(text, list(known), known)})


def _refuse_in_use(group: str, view: GroupView) -> None:
    if view.members:
        raise GroupInUse(
            f"the group {group} has {_members(view)}: stop every member first; one that was killed counts until its "
            "session times out"
        )
    # Members are just joining.
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
        # It was there when the topics were described.
        if row.extent is None:
            raise KafkaError(f"Kafka: {row.place} disappeared meanwhile: run it again")
        low, end = row.extent
        if bound.kind == "offset" and not low <= bound.value <= end:
            raise UsageError(
                f"--to {bound}: offset {bound.value} is not in {row.place}, which goes from {low} to its end, {end}; "
                "name another, or choose partitions with --partition"
            )
        # No record since then: the end, so that the next one that comes is the first.
        after = {"beginning": low, "offset": bound.value, "time": since.get(row.place, end), "end": end}
        targets[row.place] = after[bound.kind]
    return targets


def _plan(row: PartitionRow, after: int) -> dict[str, Any]:
    return {
        **row.place._asdict(),
        "before": row.committed,
        "after": after,
        "change": None if row.committed is None else after - row.committed,
        "read_again": row.read_again(after),
        "skipped": row.skipped(after),
    }


def _meaning(
    rows: Sequence[PartitionRow],
    targets: Mapping[TopicPartition, int],
    settings: Settings,
    read_again: int,
    skipped: int,
) -> Iterator[str]:
    """Say what the move means for the records, and how to undo it."""
    own = settings.pinstream
    if read_again:
        window, oldest = (
            f"{one / _DAY:g} days" if one > 3 * _DAY else f"{one / _HOUR:g} h"
            for one in (own.dedup_window, own.max_event_age)
        )
        # An age of 0 is no limit.
        age = f", or become dead letters if older than {oldest}" if own.max_event_age else ""
        yield (
            f"Up to {read_again:,} records will be READ AGAIN. Events delivered in the last {window} "
            "(PINSTREAM_DEDUP_WINDOW) are recognised by their keys and not sent again; events delivered before that "
            f"are sent again{age}."
        )
    if skipped:
        first, *others = [row for row in rows if row.skipped(targets[row.place])]
        topic, partition = first.place
        more = f" (and so for {len(others)} more)" if others else ""
        # To be copied: the command that reads what is skipped.
        yield (
            f"Up to {skipped:,} records will be SKIPPED: their events are lost unless they are replayed: pinstream "
            f"replay --topic {topic} --partition {partition} --from offset:{first.next_read} "
            f"--to offset:{targets[first.place]}{more}"
        )
    if not read_again and not skipped:
        yield "No record is read again, none is skipped."


# How things are shown.


def _print_table(console: Console, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    heads = (Column(one.replace("_", " "), justify="right") for one in ("partition", *columns))
    table = Table(Column("topic", overflow="fold"), *heads)
    for row in rows:
        cells = (row[column] for column in ("partition", *columns))
        table.add_row(escape(row["topic"]), *("none" if one is None else str(one) for one in cells))
    console.print(table)


def _members(view: GroupView) -> str:
    """Return the number of members, and the first of them."""
    if not view.members:
        return "no active members"
    # Members of one program on one host often have the same client id: name it once, with their number.
    who = [
        f"{f'{count} x ' if count > 1 else ''}{one.client_id} on {one.host}"
        for one, count in sorted(Counter(view.members).items())
    ]
    return f"{len(view.members)} active member{'s' * (len(view.members) != 1)} ({first_of(who, _MOST_NAMED)})"
