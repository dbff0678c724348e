"""The outcome of a replay, as it is printed."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest

from consumer.adapters.kafka.ranges import Bound, Range
from consumer.adapters.kafka.replay_progress import ReplayPlan
from consumer.commands.replay.bounded_run import Ran, ReplayEnd
from consumer.commands.replay.options import ReplayOptions
from consumer.commands.replay.outcome import ReplayOutcome, show_replay
from consumer.commands.results import print_result
from consumer.engine.figures.statistics import Cause, GuardStatistics
from consumer.engine.model import Position, Problem, Stage, TopicPartition
from consumer.engine.records.ledger import LastPosition
from consumer.errors import KafkaError
from tests.engine.building import Core, event, filtered, unconvertible


def outcome(
    end: ReplayEnd = ReplayEnd.COMPLETE, *, name: str | None = None, dry_run: bool = False, **changes: Any
) -> ReplayOutcome:
    """Return the outcome of a run that read a delivery, its duplicate, two filtered records and a dead letter."""
    core = Core()
    core.assign(0)
    core.fetch(event("a"), event("a"), filtered(), None, unconvertible())
    core.deliver()
    core.store_letters()
    plain = ReplayOutcome(
        Ran(end, core.statistics(), 1.5),
        ReplayOptions(
            ("orders",), (), Bound("beginning"), Bound("end"), (), name, dry_run, ignore_dedup=False, rate=None,
            limit=None, max_age=None, as_json=False,
        ),
        ReplayPlan([Range("orders", 0, 10, 20)], 0, resumed=False, progress=None),
        read_to={TopicPartition("orders", 0): 25},
        last_positions={TopicPartition("orders", 0): LastPosition(15, clear=end is ReplayEnd.COMPLETE)},
        outside_time=3,
        problems=[Problem("orders", 0, 14, Stage.CONVERT, "no_identity", "nobody [red]here[/red]")],
        sent_again=None,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_the_document_adds_up_and_names_the_range() -> None:
    """It has the codes and, for each partition, how far it was read, never beyond its end."""
    document = outcome().document()
    ledger = document["ledger"]
    assert ledger == {"read": 5, "delivered": 1, "duplicate": 1, "filtered": 2, "dead_lettered": 1, "open": 0}
    assert sum(document["filtered"].values()) == 2
    assert [one["records"] for one in document["rejections"]] == [1]
    expected = {"topic": "orders", "partition": 0, "from": 10, "to": 20, "read_to": 20, "next": 20}
    assert document["ranges"] == [expected]
    assert document["problems"][0]["offset"] == 14
    assert document["outside_time"] == 3
    assert orjson.loads(orjson.dumps(document)) == document


@pytest.mark.parametrize(
    ("end", "changes", "said"),
    [
        (ReplayEnd.INTERRUPTED, {"name": "n"}, "goes on where it stopped (--name n)"),
        (ReplayEnd.INTERRUPTED, {}, "what was delivered is known and not sent again"),
        (ReplayEnd.INTERRUPTED, {"sent_again": 4}, "orders[0] at 15"),
        (ReplayEnd.INTERRUPTED, {"dry_run": True}, "dry run was interrupted"),
    ],
)
def test_what_is_not_done_says_how_to_go_on(end: ReplayEnd, changes: dict[str, Any], said: str) -> None:
    """Each way to end early is one line that says how to go on."""
    failure = outcome(end, **changes).failure()
    assert said in str(failure)


@pytest.mark.parametrize(
    ("mostly", "cause", "advice"),
    [
        ("convert no_identity", Cause.MAPPING, "correct the mapping"),
        ("decode no_such_schema", Cause.SCHEMA, "correct the schema"),
        ("convert future_event_time", Cause.CLOCK, "clocks"),
        ("deliver refused", Cause.DESTINATION, "why Pinterest refuses"),
    ],
)
def test_the_guard_is_named_with_its_figures(mostly: str, cause: Cause, advice: str) -> None:
    """The line has topic, share, reason and what to do; it names the mapping only if that is the cause."""
    one = outcome(ReplayEnd.GUARDED)
    statistics = dataclasses.replace(
        one.ran.statistics, guard=GuardStatistics("orders", 700, 1000, mostly, cause)
    )
    failure = dataclasses.replace(one, ran=Ran(ReplayEnd.GUARDED, statistics, 1.0)).failure()
    assert "700 of the latest 1,000 records of orders would be dead letters" in str(failure)
    assert f"mostly for {mostly} ({cause.value}); " in str(failure)
    assert advice in str(failure)
    assert ("mapping" in str(failure)) == (cause is Cause.MAPPING)


@pytest.mark.parametrize("end", [ReplayEnd.COMPLETE, ReplayEnd.LIMITED])
def test_what_is_done_has_no_errors(end: ReplayEnd) -> None:
    """A run that is complete, or reached its limit, is exit code 0, unless its ledger does not add up: a bug."""
    one = outcome(end)
    assert one.failure() is None
    wrong = dataclasses.replace(one.ran.statistics.totals, delivered=0)
    statistics = dataclasses.replace(one.ran.statistics, totals=wrong)
    assert "does not add up" in str(dataclasses.replace(one, ran=Ran(end, statistics, 1.0)).failure())


@pytest.mark.parametrize(
    ("read_to", "clear"), [(15, True), (20, False)], ids=["not read to its end", "something open"]
)
def test_a_complete_run_has_read_and_settled_everything(read_to: int, clear: bool) -> None:
    """A run that is complete although a range is not read to its end, or has something open, does not add up."""
    name = TopicPartition("orders", 0)
    one = outcome(ReplayEnd.COMPLETE, read_to={name: read_to}, last_positions={name: LastPosition(12, clear)})
    assert not one.adds_up()


def test_where_to_go_on_is_reported_for_each_partition() -> None:
    """At the end of what was read and settled, at the lowest open offset, or where it began."""
    names = [TopicPartition("orders", number) for number in range(4)]
    one = outcome(
        ReplayEnd.INTERRUPTED,
        sent_again=0,
        plan=ReplayPlan(
            [Range(*name, 0, 20, start=Position(*name, 5, None)) for name in names],
            0,
            resumed=True,
            progress=None,
        ),
        read_to=dict.fromkeys(names, 20),
        last_positions={
            names[0]: LastPosition(9, clear=True),
            names[1]: LastPosition(9, clear=False),
            names[2]: LastPosition(None, clear=False),
        },
    )
    assert [each["next"] for each in one.document()["ranges"]] == [20, 9, 5, 5]
    assert "orders[1] at 9, orders[2] at 5, orders[3] at 5" in str(one.failure())


def test_a_failure_is_reported_as_it_is() -> None:
    """A failure is raised as it is, and the document has the figures up to then."""
    one = outcome(ReplayEnd.FAILED)
    failure = KafkaError("no broker")
    failed = dataclasses.replace(one, ran=dataclasses.replace(one.ran, failure=failure))
    assert failed.failure() is failure
    assert failed.document()["ledger"]["read"] == 5


def test_tables_go_to_people_and_json_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--json`` the table goes to stderr; its text is never taken for markup."""
    print_result(show_replay, outcome().document(), as_json=True, beside=True)
    out, err = capsys.readouterr()
    assert orjson.loads(out)["result"] == "complete"
    assert "orders:0:14" in err
    assert "nobody [red]here[/red]" in " ".join(err.split())
    assert "outside the time range" in err
    print_result(show_replay, outcome(dry_run=True, sent_again=2).document(), as_json=False, beside=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert "would be delivered" in out
    assert "event ids the platform sees twice" in out
