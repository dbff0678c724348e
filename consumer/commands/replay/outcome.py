"""What a replay tells at the end: the ledger, what the range was, and what went wrong first. A table, or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.adapters.kafka.ranges import Range
from consumer.commands.replay.engine import Ran, ReplayEnd
from consumer.commands.replay.selection import EXPIRED, NOT_SELECTED
from consumer.engine.counters import by_name
from consumer.engine.ledger import LeftAt
from consumer.engine.model import Problem, TopicPartition
from consumer.web.status import ledger

_WOULD_BE = {
    "delivered": "would be delivered",
    "duplicate": "duplicate",
    "filtered": "filtered",
    "dead_lettered": "would be dead-lettered",
    "open": "open",
    "read": "read",
}
_MOST_PLACES = 8


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """A replay that is over."""

    ran: Ran
    ranges: Sequence[Range]
    begun_at: Mapping[TopicPartition, int]
    """From where on this run read."""
    read_to: Mapping[TopicPartition, int]
    left_at: Mapping[TopicPartition, LeftAt]
    outside_time: int
    problems: Sequence[Problem]
    dry_run: bool
    name: str | None
    resumed: bool
    sent_again: int | None
    """Event ids that the platform sees twice; None: dedup was not ignored."""

    def document(self) -> dict[str, Any]:
        """The whole as JSON."""
        statistics = self.ran.statistics
        filtered = statistics.counters.filtered
        rejections = sorted(statistics.counters.rejections.items())
        return {
            "result": self.ran.end.value,
            "dry_run": self.dry_run,
            "name": self.name,
            "resumed": self.resumed,
            "ledger": ledger(statistics.totals),
            "expired": filtered[EXPIRED],
            "not_selected": sum(filtered[code] for code in NOT_SELECTED),
            "filtered": by_name(filtered),
            "rejections": [
                {"stage": stage, "code": code, "records": count} for (stage, code), count in rejections
            ],
            "settled_before": statistics.passed,
            "outside_time": self.outside_time,
            "released": statistics.totals.released,
            "sent_again": self.sent_again,
            "ranges": [self._range(one) for one in self.ranges],
            "problems": [
                {**one._asdict(), "stage": one.stage.value} for one in sorted(self.problems, key=_place)
            ],
            "seconds": round(self.ran.seconds, 3),
        }

    def adds_up(self) -> bool:
        """Whether every record that was read became exactly one thing; and, where it is said to be all, all of them."""
        totals = self.ran.statistics.totals
        settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
        if totals.read != settled + totals.open:
            return False
        return self.ran.end is not ReplayEnd.COMPLETE or all(self._whole(one) for one in self.ranges)

    def _whole(self, one: Range) -> bool:
        name = TopicPartition(one.topic, one.partition)
        left = self.left_at.get(name)
        return self.read_to.get(name, one.begin) >= one.end and (left is None or left.clear)

    def trouble(self) -> str | None:
        """Why the exit code is not 0, and what to do; None: all is settled and adds up."""
        if not self.adds_up():
            return "the ledger does not add up; please report this bug"
        return _TROUBLE[self.ran.end](self)

    def next_offsets(self) -> dict[TopicPartition, int]:
        """The lowest offset of each partition that may not be settled: where one would go on."""
        return {name: self._next(name) for name in self.begun_at}

    def _next(self, name: TopicPartition) -> int:
        begun_at, left = self.begun_at[name], self.left_at.get(name)
        if left is None:
            return begun_at
        if left.clear:
            return max(begun_at, self.read_to.get(name, begun_at))
        return begun_at if left.next_offset is None else max(begun_at, left.next_offset)

    def _range(self, one: Range) -> dict[str, Any]:
        name = TopicPartition(one.topic, one.partition)
        return {
            "topic": one.topic,
            "partition": one.partition,
            "from": one.begin,
            "to": one.end,
            "read_to": min(self.read_to.get(name, one.begin), one.end),
            "next": min(self._next(name), one.end),
        }


def print_replay(outcome: ReplayOutcome, *, as_json: bool) -> None:
    """The table for people, on stdout; with `as_json` the document on stdout, and the table on stderr."""
    console = Console(stderr=as_json)
    console.print(_ledger_table(outcome))
    if outcome.problems:
        console.print(_problem_table(outcome.problems))
    if as_json:
        click.echo(orjson.dumps(outcome.document()))


def _ledger_table(outcome: ReplayOutcome) -> Table:
    title = "what would become of every record" if outcome.dry_run else "how every record ended"
    table = Table(title=title, title_justify="left")
    table.add_column("ledger")
    table.add_column("records", justify="right")
    document = outcome.document()
    filtered = document["filtered"]
    for name, count in document["ledger"].items():
        table.add_row(_WOULD_BE[name] if outcome.dry_run else name, f"{count:,}")
        details = filtered if name == "filtered" else {}
        if name == "dead_lettered":
            details = {f"{one['stage']}: {one['code']}": one["records"] for one in document["rejections"]}
        for code, records in details.items():
            table.add_row(f"  {_DETAILS.get(code, code)}", f"{records:,}", style="dim")
    beside = {
        "outside the time range, passed over": document["outside_time"],
        "settled in an earlier run, passed over": document["settled_before"],
        "event ids the platform sees twice, of this run": document["sent_again"] or 0,
        "let go of: not settled, or not read": document["released"],
    }
    if any(beside.values()):
        table.add_section()
        for what, records in beside.items():
            if records:
                table.add_row(what, f"{records:,}")
    return table


_DETAILS = {
    "expired": "expired: too old for the platform",
    "where": "left out by --where",
    "where_unjudged": "left out by --where: refused before it could be judged",
    "tombstone": "tombstone: no value",
    "event_name": "the mapping says not to send it",
    "consent": "no consent",
}


def _problem_table(problems: Sequence[Problem]) -> Table:
    table = Table(title="the first problems", title_justify="left")
    for column in ("record", "stage", "code", "reason"):
        table.add_column(column, overflow="fold")
    for one in sorted(problems, key=_place):
        place = f"{one.topic}:{one.partition}:{one.offset}"
        table.add_row(escape(place), one.stage.value, escape(one.code), escape(one.message))
    return table


def _place(one: Problem) -> tuple[str, int, int]:
    return one.topic, one.partition, one.offset


def _interrupted(outcome: ReplayOutcome) -> str:
    if outcome.dry_run:
        return "the dry run was interrupted: these figures are of what was read until then"
    if outcome.name is not None:
        return f"interrupted: the same command goes on where it stopped (--name {outcome.name})"
    if outcome.sent_again is None:
        return (
            "interrupted: run the same command again; what was delivered is known and not sent again "
            "(with --name it would go on where it stopped)"
        )
    ends = {TopicPartition(one.topic, one.partition): one.end for one in outcome.ranges}
    left = [(name, at) for name, at in sorted(outcome.next_offsets().items()) if at < ends[name]]
    places = [f"{name} at {offset}" for name, offset in left]
    more = f" and {len(places) - _MOST_PLACES} more" if len(places) > _MOST_PLACES else ""
    return (
        f"interrupted: go on from where each partition stopped (--partition P --from offset:N): "
        f"{', '.join(places[:_MOST_PLACES])}{more}; with --name it would go on by itself"
    )


def _guarded(outcome: ReplayOutcome) -> str:
    guard = outcome.ran.statistics.guard
    share = f"{guard.rejected:,} of the latest {guard.of:,} records of {guard.topic}" if guard else "too many"
    mostly = f", mostly for {guard.mostly} ({guard.cause.value})" if guard else ""
    remedy = guard.remedy if guard else "look at the first problems"
    return (
        f"stopped: {share} would be dead letters{mostly}; {remedy} and replay again (or set "
        "PINSTREAM_DEAD_LETTER_SHARE=1 to let them all go to the dead-letter topic)"
    )


_TROUBLE: Mapping[ReplayEnd, Callable[[ReplayOutcome], str | None]] = {
    ReplayEnd.COMPLETE: lambda _: None,
    ReplayEnd.LIMITED: lambda _: None,
    ReplayEnd.INTERRUPTED: _interrupted,
    ReplayEnd.GUARDED: _guarded,
    ReplayEnd.FAILED: lambda outcome: str(outcome.ran.failure),
}
