"""Print the outcome of a replay: the ledger, the ranges, and the first problems. A table, or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from consumer.adapters.kafka.replay_progress import ReplayPlan
from consumer.commands.comparison import show_comparison
from consumer.commands.replay.bounded_run import Ran, ReplayEnd
from consumer.commands.replay.options import EXPIRED, NOT_SELECTED, ReplayOptions
from consumer.commands.results import table
from consumer.engine.model import Problem, TopicPartition
from consumer.engine.records.ledger import LastPosition
from consumer.errors import Incomplete, PinstreamError, first_of
from consumer.web.status import document_of

_WOULD_BE = {"delivered": "would be delivered", "dead_lettered": "would be dead-lettered"}
# Explains the codes that do not explain themselves.
_DETAILS = {
    "expired": "expired: too old for the platform",
    "where": "omitted by --where",
    "where_unjudged": "omitted by --where: refused before it could be judged",
    "tombstone": "tombstone: no value",
    "event_name": "the mapping says not to send it",
    "consent": "no consent",
}
_MAX_PLACES = 8


@dataclass(frozen=True, slots=True)
class ReplayOutcome:
    """The outcome of a replay."""

    ran: Ran
    options: ReplayOptions
    plan: ReplayPlan
    read_to: Mapping[TopicPartition, int]
    last_positions: Mapping[TopicPartition, LastPosition]
    outside_time: int
    problems: Sequence[Problem]
    # Event ids that the platform sees twice; None without `--ignore-dedup`.
    sent_again: int | None
    # The JSON form of the comparison with another mapping; None without `--against`.
    against: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        # No record's content: reasons are masked, and places are enough to find the record.
        statistics = self.ran.statistics
        filtered = statistics.counters.filtered
        rejections = sorted(statistics.counters.rejections.items())
        return {
            "result": self.ran.end.value,
            "dry_run": self.options.dry_run,
            "name": self.options.name,
            "resumed": self.plan.resumed,
            "ledger": document_of(statistics.totals),
            "expired": filtered[EXPIRED],
            "not_selected": sum(filtered[code] for code in NOT_SELECTED),
            "filtered": dict(sorted(filtered.items())),
            "rejections": [
                {"stage": stage, "code": code, "records": count} for (stage, code), count in rejections
            ],
            "settled_before": statistics.passed,
            "outside_time": self.outside_time,
            "released": statistics.totals.released,
            "sent_again": self.sent_again,
            "ranges": self._ranges(),
            # In the order of the log, not in the order in which they were found.
            "problems": [
                {**one._asdict(), "stage": one.stage.value}
                for one in sorted(self.problems, key=lambda one: one[:3])
            ],
            "seconds": round(self.ran.seconds, 3),
            **({} if self.against is None else {"against": self.against}),
        }

    def _ranges(self) -> list[dict[str, Any]]:
        found, left_of = [], self.plan.left()
        for one in sorted(self.plan.ranges):
            read_to, left = self.read_to.get(one.name, one.begin), self.last_positions.get(one.name)
            # Where the user would go on: the lowest offset that may not be settled. If that is not known, it is where
            # this run began, which in a named replay may be in the middle of its range.
            at = None if left is None else read_to if left.clear else left.next_offset
            after = max(left_of[one.name][0], 0 if at is None else at)
            whole = {"read_to": min(read_to, one.end), "next": min(after, one.end)}
            found.append({**one.name._asdict(), "from": one.begin, "to": one.end, **whole})
        return found

    def adds_up(self) -> bool:
        """Return True if each record that was read is counted once and, in a complete replay, all were read."""
        totals = self.ran.statistics.totals
        settled = totals.delivered + totals.duplicate + totals.filtered + totals.dead_lettered
        # Complete means that each range was read to its end and no record is open.
        clear = all(one.clear for one in self.last_positions.values())
        whole = clear and all(one["read_to"] == one["to"] for one in self._ranges())
        return totals.read == settled + totals.open and (whole or self.ran.end is not ReplayEnd.COMPLETE)

    def failure(self) -> PinstreamError | None:
        """Return why the exit code is not 0, and what to do; None if all records are settled and the figures add up."""
        if self.ran.failure is not None:
            return self.ran.failure
        # Checked before how the run ended: wrong figures cannot show that.
        if not self.adds_up():
            return Incomplete("the ledger does not add up; please report this bug")
        if self.ran.end is not ReplayEnd.INTERRUPTED:
            # A complete run and one up to the limit are what was asked for. Only the guard is left.
            return self.ran.guarded()
        if self.options.dry_run:
            return Incomplete("the dry run was interrupted: these figures are of what was read until then")
        if self.options.name is not None:
            return Incomplete(
                f"interrupted: the same command goes on where it stopped (--name {self.options.name})"
            )
        if self.sent_again is None:
            return Incomplete(
                "interrupted: run the same command again; what was delivered is known and not sent again "
                "(with --name it would go on where it stopped)"
            )
        # With `--ignore-dedup` the same command would send again what this run delivered.
        open_ones = (one for one in self._ranges() if one["next"] < one["to"])
        places = [f"{one['topic']}[{one['partition']}] at {one['next']}" for one in open_ones]
        return Incomplete(
            f"interrupted: go on from where each partition stopped (--partition P --from offset:N): "
            f"{first_of(places, _MAX_PLACES)}; with --name it would go on by itself"
        )


def show_replay(document: Mapping[str, Any], console: Console) -> None:
    """Print the JSON form of an outcome for people."""
    console.print(_ledger_table(document))
    if document["problems"]:
        rows = (
            (f"{one['topic']}:{one['partition']}:{one['offset']}", one["stage"], one["code"], one["message"])
            for one in document["problems"]
        )
        console.print(table("record", "stage", "code", "reason", rows=rows, title="the first problems"))
    if (against := document.get("against")) is not None:
        show_comparison(against, console)


def _ledger_table(document: Mapping[str, Any]) -> Table:
    dry_run = document["dry_run"]
    title = "what would become of every record" if dry_run else "how every record ended"
    found = table("ledger", ">records", title=title)
    details = {
        "filtered": document["filtered"],
        "dead_lettered": {f"{one['stage']}: {one['code']}": one["records"] for one in document["rejections"]},
    }
    for name, count in document["ledger"].items():
        found.add_row(_WOULD_BE.get(name, name) if dry_run else name, f"{count:,}")
        for code, records in details.get(name, {}).items():
            found.add_row(f"  {_DETAILS.get(code, code)}", f"{records:,}", style="dim")
    beside = {
        "outside the time range, passed over": document["outside_time"],
        "settled in an earlier run, passed over": document["settled_before"],
        "event ids the platform sees twice, of this run": document["sent_again"] or 0,
        "released: not settled, or not read": document["released"],
    }
    if any(beside.values()):
        found.add_section()
    # Rows of zeros would hide the others.
    for what, records in beside.items():
        if records:
            found.add_row(what, f"{records:,}")
    return found
