"""``pinstream offsets``: show where the consumer group stands, and move it while it has no members.

``offsets set`` shows what a move means before it is made (`consumer.commands.group_position`). It counts offsets, some
of which may be no records: so its numbers are "up to".
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
import orjson
from rich.console import Console

from consumer.adapters.kafka.cluster import describe_cluster, nearest_topic
from consumer.adapters.kafka.configuration import never_matched
from consumer.adapters.kafka.groups import ActiveMember, GroupOffsets, GroupView
from consumer.adapters.kafka.ranges import Bound, named_partitions
from consumer.adapters.kafka.replay_progress import read_entry
from consumer.commands.base import DebugCommand, asynchronous, flag_option
from consumer.commands.group_position import MAX_PARTITIONS_NAMED, GroupPosition, problems
from consumer.commands.parsing import JSON_OPTION, PARTITION_OPTION, parse_bound, parsed_option, topics_option
from consumer.commands.results import print_result, prose, table
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, UsageError, first_of, nearest
from consumer.settings import PinstreamSettings, Settings, load

_TIMEOUT = 15.0
_HOUR, _DAY = 3600.0, 86400.0


@click.group()
def offsets() -> None:
    """Show or change the committed offsets of the consumer group.

    To send a part of a topic again without moving the group, use `pinstream replay`.
    """


_GROUP = click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")


@offsets.command(cls=DebugCommand)
@_GROUP
@topics_option(
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS and whatever the group has offsets for."
)
@JSON_OPTION
@asynchronous
async def show(group: str | None, topics: tuple[str, ...], as_json: bool) -> None:
    """Show each partition's committed offset, what is left to read, and the group's members.

    "Settled above": records after the committed offset that are done already and will not be read again. Needs only
    the KAFKA_… settings.
    """
    async with _positions_of(group, topics) as found:
        # Also topics for which the group has offsets, but which the settings no longer name or the brokers do not have.
        meant = {*found.topics, *(() if topics else (one.topic for one in found.positions))}
        places = {*found.partitions(meant), *(one for one in found.positions if one.topic in meant)}
        rows = await found.rows(sorted(places))
    state, members = found.view
    documents = [_document(row) for row in rows]
    who = [member._asdict() for member in members]
    document = {"group": found.group, "state": state, "members": who, "partitions": documents}
    states = {"Unknown": "these brokers do not list its members", "Dead": "it never had members"}
    said = states.get(state, f"{state}, {_named(members)}")
    # The records left to read are those that a move to the end would skip.
    left = sum(row.skipped(row.extent.end) for row in rows if row.extent is not None)

    def show(_: object, console: Console) -> None:
        prose(console, f"group {found.group}: {said}; {left:,} left to read")
        _print_table(console, _FIGURES, documents)
        for line in problems(rows):
            prose(console, line)

    print_result(show, document, as_json=as_json)


@offsets.command(name="set", cls=DebugCommand)
@parsed_option(
    "--to",
    parse_bound,
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
@flag_option("--yes", help="Apply the change. Without --yes, the command only shows what would change.")
@JSON_OPTION
@asynchronous
async def set_(
    to: Bound,
    group: str | None,
    topics: tuple[str, ...],
    partitions: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Move the group: the next `pinstream run` reads on from there. Shows both offsets; --yes applies the change.

    Refused while the group has active members: stop every `pinstream run` of it first. Moved back, records are read
    again (delivered ones are recognised within PINSTREAM_DEDUP_WINDOW); moved forward, records are skipped. Needs
    only the KAFKA_… settings.

    \b
    pinstream offsets set --to 2026-11-24T06:00
    pinstream offsets set --to offset:1200 --partition orders:3 --yes
    """
    async with _positions_of(group, topics) as found:
        rows = await found.rows(_chosen(partitions, found))
        # A member would go on where it is, and commit over the new offset. Refused without --yes too: while members
        # read on, the numbers shown would be wrong.
        if found.view.active:
            members = found.view.members
            # No member is listed as long as all of them are just joining.
            who = f"has {_named(members)}" if members else f"is in use ({found.view.state})"
            raise KafkaError(
                f"the group {found.group} {who}: stop every member first; one that was killed counts until its session "
                "times out"
            )
        if any(read_entry(one) is not None for one in found.positions.values()):
            raise UsageError(
                f"the group {found.group} stores the progress of a named replay: do not change it; start a replay with "
                "another --name instead"
            )
        targets = await _targets(found.offsets, to, rows)
        plans = [_plan(row, targets[row.place]) for row in rows]
        totals = {name: sum(plan[name] for plan in plans) for name in ("read_again", "skipped")}
        console = Console(quiet=as_json)
        prose(console, f"group {found.group}:")
        _print_table(console, ("before", "after", "change"), plans)
        for line in _meaning(rows, targets, found.settings.pinstream, **totals):
            prose(console, line)
        now = found.positions
        if yes:
            await found.offsets.put(targets)  # the brokers refuse it if a member has joined
            now = await found.offsets.positions(list(targets))
    # Read what is committed now from the brokers, in place of the earlier offsets.
    moved = [row._replace(position=now.get(row.place)) for row in rows]
    if as_json:
        documents = [{**plan, "committed": row.committed} for plan, row in zip(plans, moved, strict=True)]
        click.echo(orjson.dumps({"group": found.group, "changed": yes, **totals, "partitions": documents}))
    elif yes:
        prose(console, "Done. Read back from the brokers:")
        _print_table(console, _FIGURES, map(_document, moved))
    else:
        prose(console, "Nothing was changed. Add --yes to do it.")
    # Raised after the table, which shows what is committed instead.
    others = [str(row.place) for row in moved if row.committed != targets[row.place]]
    if yes and others:
        raise KafkaError(
            f"Kafka: {first_of(others, MAX_PARTITIONS_NAMED)} have changed since they were set: another client "
            "commits for this group; find it with `pinstream offsets show`"
        )


# --- questions of both commands to the brokers


class _GroupAnswers(NamedTuple):
    """A group, and the brokers' answers about it. `topics`: those of the command line, else those of the settings."""

    settings: Settings
    group: str
    offsets: GroupOffsets
    # All existing topics, with their number of partitions.
    known: Mapping[str, int]
    topics: Sequence[str]
    view: GroupView
    positions: Mapping[TopicPartition, Position]

    def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """Return the partitions of these topics, as far as they exist."""
        return [TopicPartition(topic, one) for topic in topics for one in range(self.known.get(topic, 0))]

    async def rows(self, places: Sequence[TopicPartition]) -> list[GroupPosition]:
        """Return where the group stands in each of these. Raises `UsageError` if there are none."""
        if not places:
            raise UsageError("no topic is given: set KAFKA_TOPICS, or use --topic")
        # Partitions that no longer exist have no extent to ask for.
        there = [one for one in places if one.partition < self.known.get(one.topic, 0)]
        extent = await self.offsets.extents(there)
        return [GroupPosition(one, self.positions.get(one), extent.get(one)) for one in places]


@contextlib.asynccontextmanager
async def _positions_of(group: str | None, topics: Sequence[str]) -> AsyncIterator[_GroupAnswers]:
    """Ask the brokers about the group and the topics that the command line names."""
    settings = load(os.environ, needs=("kafka",))
    kafka = settings.kafka
    async with GroupOffsets(kafka.client_properties(), group or kafka.group_id, _TIMEOUT) as offsets:
        cluster = await describe_cluster(
            kafka.client_properties(),
            () if topics else kafka.topics,
            timeout=_TIMEOUT,
            own_topics=settings.pinstream.own_topics,
        )
        for topic in topics:
            if topic not in cluster.known:
                hint = nearest_topic(topic, cluster.known)
                raise UsageError(f"--topic {topic}: it does not exist, or this user may not see it{hint}")
        # A topic may be named twice, or match two patterns.
        meant = list(dict.fromkeys(topics or cluster.topics))
        view = await offsets.view()
        found = _GroupAnswers(settings, group or kafka.group_id, offsets, cluster.known, meant, view, {})
        found = found._replace(positions=await offsets.positions(found.partitions(meant)))
        # A group that only the settings name may be new. An unknown one that the user has typed is probably mistyped.
        if group and not found.positions and not view.active:
            others = (
                one for one in await offsets.known_groups() if one != group and not one.startswith("__")
            )
            near = nearest(group, others)
            hint = f"; the nearest group is {near}" if near else ""
            raise UsageError(f"--group {group}: it has no committed offsets{hint}")
        yield found


# Columns of `show` for each partition.


_FIGURES = ("committed", "beginning", "end", "lag", "settled_above")
_COUNTS = ("lag", "settled_above")


def _document(row: GroupPosition) -> dict[str, Any]:
    # JSON null, and "none" in the table, where the topic is gone or nothing is committed.
    begin, end = row.extent or (None, None)
    figures = (row.committed, begin, end, row.lag, row.settled())
    return {**row.place._asdict(), **dict(zip(_FIGURES, figures, strict=True))}


# --- what `set` does and shows beforehand


def _chosen(named: Sequence[str], found: _GroupAnswers) -> list[TopicPartition]:
    """Return the partitions to move. All of them exist. `named`: the values of ``--partition``."""
    topics: Collection[str] = found.topics
    if not topics:
        # The group may have offsets of such topics, from a time when a pattern matched them.
        pattern = never_matched(found.settings.pinstream.own_topics)
        topics = {one.topic for one in found.positions if not re.match(pattern, one.topic)}
    places = found.partitions(sorted(topics))
    if not named or not places:
        return places
    # `--partition 3` means that partition of every topic; `orders:3` that of one.
    known = {topic: [one.partition for one in places if one.topic == topic] for topic in sorted(topics)}
    return sorted({place for text in named for place in named_partitions(text, list(known), known)})


async def _targets(
    offsets: GroupOffsets, bound: Bound, rows: Sequence[GroupPosition]
) -> dict[TopicPartition, int]:
    """Return the new offset of each partition."""
    since: Mapping[TopicPartition, int] = {}
    if bound.kind == "time":
        since = await offsets.first_since([row.place for row in rows], bound.value)
    targets = {}
    for row in rows:
        # The partition existed when the topics were described.
        if row.extent is None:
            raise KafkaError(f"Kafka: {row.place} disappeared: run it again")
        low, end = row.extent
        if bound.kind == "offset" and not low <= bound.value <= end:
            raise UsageError(
                f"--to {bound}: offset {bound.value} is not in {row.place}, which goes from {low} to its end, {end}; "
                "name another, or choose partitions with --partition"
            )
        # No record since that time: the end, so that the next new record is the first.
        after = {"beginning": low, "offset": bound.value, "time": since.get(row.place, end), "end": end}
        targets[row.place] = after[bound.kind]
    return targets


def _plan(row: GroupPosition, after: int) -> dict[str, Any]:
    return {
        **row.place._asdict(),
        "before": row.committed,
        "after": after,
        "change": None if row.committed is None else after - row.committed,
        "read_again": row.read_again(after),
        "skipped": row.skipped(after),
    }


def _meaning(
    rows: Sequence[GroupPosition],
    targets: Mapping[TopicPartition, int],
    own: PinstreamSettings,
    read_again: int,
    skipped: int,
) -> Iterator[str]:
    """Return what the move means for the records, and how to undo it."""
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
        # To be copied: the command that replays the skipped records.
        yield (
            f"Up to {skipped:,} records will be SKIPPED: their events are lost unless they are replayed: pinstream "
            f"replay --topic {topic} --partition {partition} --from offset:{first.next_read} "
            f"--to offset:{targets[first.place]}{more}"
        )
    if not read_again and not skipped:
        yield "No record is read again, none is skipped."


# --- how figures are shown


def _print_table(console: Console, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    def cell(name: str, value: int | None) -> str:
        if name == "change":
            # With a sign, except for 0: "+0" would look like a change.
            return "" if value is None else f"{value:+,d}" if value else "0"
        # An offset is copied into a command; a number of records is read.
        return "none" if value is None else f"{value:,}" if name in _COUNTS else str(value)

    columns = ("partition", *columns)
    heads = (f">{one.replace('_', ' ')}" for one in columns)
    cells = ([row["topic"], *(cell(name, row[name]) for name in columns)] for row in rows)
    console.print(table("topic", *heads, rows=cells))


def _named(members: Sequence[ActiveMember]) -> str:
    """Return the number of members, and the first of them."""
    if not members:
        return "no active members"
    # Members of one program on one host often have the same client id: name it once, with their number.
    who = [
        f"{f'{count} x ' if count > 1 else ''}{one.client_id} on {one.host}"
        for one, count in sorted(Counter(members).items())
    ]
    return f"{len(members)} active member{'s' * (len(members) != 1)} ({first_of(who, MAX_PARTITIONS_NAMED)})"
