"""The crash-point table (docs/guarantees.md) on real Kafka: one test per row, SIGKILL at that very point.

A process runs under `crashing` until it kills itself where the row says. Then the API's, the key store's and Kafka's
word is taken of how far it got, the ordinary product is started with the same state, and when all is committed the
counts are compared with the input: nothing lost, and accepted again is exactly what the row allows, each event under
its own id. `aftermath` says how that is known in advance.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import TopicPartition

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.crashes.aftermath import AT_RISK, BATCH, Line, Place, Remains, committed_of, twice
from tests.end_to_end.processes import Process
from tests.end_to_end.records import receipts_on
from tests.support.kafka.harness import Kafka
from tests.support.switches import switched

pytestmark = pytest.mark.real_kafka  # the embedded broker knows no static membership

FURTHER = pytest.mark.slow("a further point of the same row")
RECORDS = 600
KILLED = -9

NewLine = Callable[..., Line]


@pytest.fixture
def new_line(kafka: Kafka, api: Api, tmp_path: Path) -> NewLine:
    """``new_line()``: records with duplicates and broken ones, a new group and no state; `settings` are added."""

    def make(**settings: str) -> Line:
        return Line(kafka, api, tmp_path, RECORDS, seed=7, duplicates=0.05, invalid=0.04, settings=settings)

    return make


@pytest.fixture
def line(new_line: NewLine) -> Line:
    """A line whose next process gets the partitions at once, whatever the dead one held."""
    line = new_line(KAFKA_GROUP_INSTANCE_ID="the-one", **switched(commit_interval=0.05))
    # Answers take a moment, so that there are commits while there are calls.
    line.api.set_faults(slow=Chance(share=1.0), slow_seconds=0.05)
    return line


class Story(NamedTuple):
    """A kill and its consequences."""

    evidence: dict[str, Any]
    """What the dying process wrote about the point."""
    at_death: Remains
    last: dict[str, Any]
    """The final ledger of the process that did the rest."""
    end: Remains


def crashing(line: Line, point: str, times: int = 1) -> Process:
    """The product, which kills itself at that point."""
    under = (sys.executable, "-m", "tests.end_to_end.crashes.crashing", point, "-n", str(times))
    return Process(line.folder, "run", env=line.env, under=under)


def die_and_go_on(line: Line, point: str, times: int, **then: str) -> Story:
    """Kill at the point, do the rest with an ordinary process; what holds for every row is checked.

    `then`: settings that are different from there on.
    """
    with crashing(line, point, times) as doomed:
        assert doomed.wait() == KILLED, doomed.stderr[-3000:]
    evidence = evidence_of(doomed, "crash_point")[-1]
    assert evidence["times"] == times
    at_death = line.remains()
    line.at_death(at_death)
    passed = line.passed_over(at_death)
    assert len(passed) < len(line.events), "it died when all was done: that shows nothing"
    line.env.update(then)
    *log, last = line.finish().log
    # librdkafka hands nothing out a second time (its #4637, which we do not provoke).
    assert not [one for one in log if one["event"] == "position_went_back"]
    end = line.check_all_is_there()

    # Accepted again is what the API had and the key store had not, and that once: no more, no less, no other id.
    assert twice(end.accepted) == at_death.limbo
    assert len(at_death.limbo) <= AT_RISK
    # The successor read what was not settled for it, sent what was not remembered, and found the rest to be duplicates.
    assert last["read"] == len(line.events) - len(passed)
    assert last["delivered"] == len(line.expected - at_death.stored)
    assert last["open"] == 0
    # A dead letter is written again only if its record was there to be read again, and once.
    for place, times_there in end.letters.items():
        assert times_there == 1 or not at_death.read_past(place)
        assert times_there <= 2
    return Story(evidence, at_death, last, end)


def evidence_of(process: Process, event: str) -> list[dict[str, Any]]:
    """What a process under `crashing` wrote about this."""
    return [one for one in process.log if one["event"] == event]


def places(evidence: list[list[int]]) -> set[Place]:
    """Partitions and offsets from a line of evidence."""
    return {(partition, offset) for partition, offset in evidence}


@pytest.mark.parametrize(("point", "times"), [("fetched", 1), ("unsent", 6)])
def test_fetched_not_sent(line: Line, point: str, times: int) -> None:
    """The records are read again, and sent for the first time."""
    story = die_and_go_on(line, point, times)
    if point == "fetched":  # nothing had happened at all
        assert (story.at_death.accepted.total(), story.at_death.keys) == (0, 0)
        assert story.last["read"] == len(line.events)
    if point == "unsent":
        assert {story.end.accepted[name] for name in story.evidence["events"]} == {1}


def test_sent_and_never_received(line: Line) -> None:
    """Half of a call was written: the API saw none of it, so nothing is accepted twice."""
    story = die_and_go_on(line, "half_sent", 6)
    sent = story.evidence["events"]
    assert 0 < len(sent) <= BATCH
    assert not set(sent) & set(story.at_death.accepted)
    assert {story.end.accepted[name] for name in sent} == {1}


def test_sent_no_answer(line: Line) -> None:
    """The API has processed the call and the process cannot know: it is sent again with the same ids, at most
    concurrency x batch events."""
    story = die_and_go_on(line, "unread", 6)
    assert story.evidence["status"] == 200
    assert 0 < len(story.at_death.limbo) <= AT_RISK


@pytest.mark.parametrize(("point", "times"), [pytest.param("answered", 6, marks=FURTHER), ("storing", 3)])
def test_answered_key_not_yet_stored(line: Line, point: str, times: int) -> None:
    """The same as without an answer; a chunk of which only half is in the key store's journal does not count."""
    story = die_and_go_on(line, point, times)
    if point == "answered":
        events = story.evidence["events"]
        assert set(events) <= story.at_death.limbo
        assert {story.end.accepted[name] for name in events} == {2}
    else:
        assert story.at_death.keys < story.evidence["entries"]
        assert len(story.at_death.limbo) >= story.evidence["entries"] - story.at_death.keys


def test_key_stored_core_not_reported(line: Line) -> None:
    """The keys are durable, but only the key store knows: the records are read again, found to be duplicates,
    and not sent."""
    story = die_and_go_on(line, "stored", 3)
    assert story.at_death.keys == len(story.at_death.stored) >= len(story.evidence["keys"]) > 0
    assert {story.end.accepted[name] for name in story.at_death.stored} == {1}
    waiting = [name for place, name in line.places.items() if not story.at_death.read_past(place)]
    assert story.last["duplicate"] >= len(set(waiting) & story.at_death.stored) > 0


@pytest.mark.parametrize("point", ["uncommitted", "committing"])
def test_key_stored_not_committed(line: Line, point: str) -> None:
    """The commit was not sent, or was accepted without the process hearing of it: in both cases nothing is sent
    again."""
    line.api.set_faults(slow=Chance(share=1.0), slow_seconds=0.15)  # so that calls come between the commits
    story = die_and_go_on(line, point, 4)
    positions = {
        partition: committed_of(TopicPartition(line.topic, partition, offset, metadata=metadata))
        for partition, offset, metadata in story.evidence["positions"]
    }
    taken = [story.at_death.committed[partition] == position for partition, position in positions.items()]
    assert positions
    assert not any(taken) if point == "uncommitted" else all(taken)
    covered = {
        name for (partition, offset), name in line.places.items()
        if partition in positions and positions[partition].passes(offset)
    }  # fmt: skip
    assert covered
    assert covered <= story.at_death.stored
    assert {story.end.accepted[name] for name in covered} == {1}


def test_refused_dead_letter_not_written(line: Line) -> None:
    """Killed before the producer had the dead letters: the events are refused again, and each dead letter is
    there once."""
    story = die_and_go_on(line, "refused", 1)
    letters = places(story.evidence["letters"])
    assert letters <= line.broken_places
    assert not story.at_death.letters
    assert set(story.end.letters.values()) == {1}
    assert not any(story.at_death.read_past(place) for place in letters)


def test_refused_dead_letter_not_yet_acknowledged(line: Line) -> None:
    """The broker has the dead letter and the process had not heard: the event is refused again, so there may be
    one more dead letter, never one less."""
    story = die_and_go_on(line, "written", 1)
    [place] = places(story.evidence["letters"])
    assert story.at_death.letters[place] == 1
    assert not story.at_death.read_past(place)
    assert story.end.letters[place] == 2


@pytest.mark.parametrize(
    ("point", "times"),
    [
        ("unreceipted", 4),
        ("receipted", 4),
        *(pytest.param(*one, marks=FURTHER) for one in (("unread", 6), ("storing", 3), ("stored", 3))),
        *(pytest.param(*one, marks=FURTHER) for one in (("committing", 2), ("refused", 1), ("written", 1))),
    ],
)
def test_with_receipts(line: Line, point: str, times: int) -> None:
    """At every point: a record that is passed over has a receipt; a key that is stored has a delivered one; and no more
    receipts than what is at risk say delivered of an event without a key. At the end the receipt that counts says what
    became of each record, to the event and the cent."""
    if point == "committing":
        line.api.set_faults(
            slow=Chance(share=1.0), slow_seconds=0.15
        )  # so that calls come between the commits
    topic = f"{line.topic}.receipts"
    line.env["PINSTREAM_RECEIPTS_TOPIC"] = topic
    at_death: list[Counted] = []
    line.at_death = lambda remains: at_death.append(check_at_death(line, remains, topic))
    story = die_and_go_on(line, point, times)
    if point in ("unreceipted", "receipted"):
        here = places(story.evidence["receipts"])
        assert 0 < len(here) <= AT_RISK
        assert (here <= at_death[0].keys()) == (point == "receipted")
        assert not any(story.at_death.read_past(place) for place in here)
    end = counted(line.kafka, topic)
    assert end.keys() == line.values.keys()
    delivered = [one for one in end.values() if one["outcome"] == "delivered"]
    assert {one["event_id"] for one in delivered} == line.expected
    assert sum(Decimal(one["value"] or 0) for one in delivered) == line.generator.value_sum
    assert {place for place, one in end.items() if one["outcome"] == "dead_lettered"} == line.broken_places


Counted = dict[Place, dict[str, Any]]


def counted(kafka: Kafka, topic: str) -> Counted:
    """By record, the receipt that counts."""
    found: Counted = {}
    order = ("duplicate", "filtered", "dead_lettered", "delivered")
    for one in receipts_on(kafka, topic):
        place = (one["partition"], one["offset"])
        if order.index(one["outcome"]) >= order.index(found.setdefault(place, one)["outcome"]):
            found[place] = one
    return found


def check_at_death(line: Line, remains: Remains, topic: str) -> Counted:
    """Hold the receipts against what is stored and committed, while no process runs."""
    found = counted(line.kafka, topic)
    assert line.passed_over(remains) <= found.keys()
    delivered = {one["event_id"] for one in found.values() if one["outcome"] == "delivered"}
    assert remains.stored <= delivered <= set(remains.accepted)
    assert len(delivered - remains.stored) <= AT_RISK
    for place in line.passed_over(remains) & line.places.keys():
        assert found[place]["outcome"] in ("delivered", "duplicate")
    return found


@pytest.mark.parametrize(
    ("point", "times", "then"), [pytest.param("storing", 3, False, marks=FURTHER), ("unread", 6, True)]
)
def test_without_the_fast_path(line: Line, point: str, times: int, then: bool) -> None:
    """The same holds for every row where records are read in two steps, also if the next process uses the fast path."""
    line.env |= switched(commit_interval=0.05, compiled=False)
    story = die_and_go_on(line, point, times, **switched(commit_interval=0.05, compiled=then))
    assert story.at_death.limbo
    assert story.last["delivered"]


def test_revoked_with_requests_in_flight_then_killed(new_line: NewLine) -> None:
    """The old owner dies while it waits for answers: the new owner sends again what had no answer, and nothing else."""
    line = new_line(KAFKA_SESSION_TIMEOUT_MS="4000", KAFKA_HEARTBEAT_INTERVAL_MS="200")
    with crashing(line, "revoked") as old:
        old.until(lambda: line.api.counts().accepted_events >= BATCH, "calls in flight")
        with line.run() as new:
            assert old.wait() == KILLED, old.stderr[-3000:]
            new.until(lambda: line.done, "all committed")
    evidence = evidence_of(old, "crash_point")[-1]
    end = line.check_all_is_there()
    assert 0 < len(evidence["events"]) <= AT_RISK
    assert twice(end.accepted) == set(evidence["events"])


@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=FURTHER)])
def test_revoked_with_requests_in_flight_until_the_deadline(new_line: NewLine, protocol: str) -> None:
    """The old owner waits until its deadline and releases the partitions; the new one sends again; late answers
    commit nothing."""
    concurrency = 2 * RECORDS // BATCH  # all events in flight, so that some are of whatever partition goes
    line = new_line(
        KAFKA_GROUP_PROTOCOL=protocol, PINSTREAM_SHUTDOWN_GRACE="1s", PINSTREAM_CONCURRENCY=str(concurrency)
    )
    with crashing(line, "late") as old:
        old.until(lambda: line.api.counts().accepted_events == len(line.expected), "all in flight")
        with line.run() as new:
            released = old.until(lambda: evidence_of(old, "released"), "the deadline")[0]
            gone = {name for place, name in line.places.items() if place[0] in released["partitions"]}
            assert gone <= set(released["events"]) == line.expected
            new.until(lambda: gone <= twice(line.api.accepted()), "what the new owner sends again")
            old.send(signal.SIGUSR1)
            old.until(lambda: evidence_of(old, "late_answer"), "a late answer")
            old.until(lambda: line.done, "all committed")
            assert (old.stop()[0], new.stop()[0]) == (0, 0)
    end = line.check_all_is_there()
    assert 0 < len(gone) < len(line.expected)
    assert twice(end.accepted) == gone
    committed = partitions_committed_after_let_go(old)
    assert committed, "the old owner went on with what it kept"
    assert not committed & set(released["partitions"])
    # What came late was not settled by the old owner: the new one's word counts, and each event counts once.
    assert old.log[-1]["delivered"] + new.log[-1]["delivered"] == len(line.expected)


def partitions_committed_after_let_go(process: Process) -> set[int]:
    """The partitions for which a process under ``late`` sent commits after it had first unassigned some."""
    events = [one["event"] for one in process.log]
    after = process.log[events.index("let_go") :]
    return {partition for one in after if one["event"] == "commit" for partition, *_ in one["positions"]}
