"""The consumer's thread on a fake consumer: cases that no broker produces on demand, above all within one consume."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.adapters.kafka.commits import commit_done
from consumer.adapters.kafka.member import _CHANGES, Membership
from consumer.engine.messages import CommitDone
from consumer.engine.model import Position, TopicPartition
from consumer.errors import InvariantViolation, KafkaError
from tests.adapters.kafka.member.scripted_member import (
    Bench,
    Clock,
    FakeConsumer,
    Step,
    brings,
    given,
    message,
    offsets,
    parts,
    taken,
)


def test_partition_gone_and_back_in_one_consume_starts_again() -> None:
    """The records of that consume are dropped, and it is read from its new start."""
    bench = Bench()
    bench.consumer.stored[0] = 3

    def step(consumer: FakeConsumer) -> list[Message]:
        consumer.take_away(0)
        consumer.stored[0] = 5
        consumer.assign_to(0)
        return [message(4, 0), message(5, 0), message(6, 1)]

    bench.assign(0, 1)
    assert offsets(bench.fetch(step)) == [6]
    bench.fetch()
    assert bench.calls("incremental_assign")[-1] == ("incremental_assign", [(0, 5)])
    again = bench.fetch(lambda _: [message(5, 0)])
    assert [(chunk.epoch, offsets([chunk])) for chunk in again] == [
        (bench.reported.assignments[-1].epoch, [5])
    ]


def test_chunks_split_where_the_leader_epoch_changes() -> None:
    """A position carries the leader epoch of the record before it."""
    bench = Bench()
    bench.assign(0, 1)
    chunks = bench.fetch(
        lambda _: [message(1), message(2), message(7, 1), message(3, 0, 1), message(4, 0, 1), message(8, 1)]
    )
    assert [(chunk.partition, chunk.leader_epoch, offsets([chunk])) for chunk in chunks] == [
        (0, 0, [1, 2]),
        (1, 0, [7, 8]),
        (0, 1, [3, 4]),
    ]


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "drained too late"])
def test_what_is_lost_is_not_committed(lost: bool) -> None:
    """Lost partitions, and those whose draining exceeds its time, are reported and dropped, and not committed."""
    bench = Bench()
    bench.reported.positions, bench.reported.expired = [Position("t", 0, 8, 2)], not lost
    bench.assign(0)
    bench.fetch((lambda consumer: consumer.on.on_lost(consumer, parts(0)) or []) if lost else taken(0))
    assert bench.reported.losses == [[TopicPartition("t", 0)]]
    assert bench.calls("commit") == []
    assert len(bench.calls("incremental_unassign")) == 1


def test_commit_of_an_older_epoch_is_not_sent() -> None:
    """A commit for an earlier assignment of a partition is not sent to the broker."""
    bench = Bench()
    bench.assign(0)
    old = bench.reported.assignments[0].epoch
    bench.fetch(taken(0))
    bench.assign(0)
    results: list[CommitDone] = []
    bench.member.send_commit([Position("t", 0, 4, 0)], [old], results.append)
    assert results == [commit_done((), "_ASSIGNMENT_LOST")]
    assert bench.calls("commit") == []


def test_each_commit_is_answered() -> None:
    """With what was committed, and the code of what was refused; at the close, what is in flight fails."""
    bench = Bench()
    bench.assign(0, 1)
    epochs = [one.epoch for one in bench.reported.assignments]
    results: list[CommitDone] = []
    positions = [Position("t", 0, 4, 0), Position("t", 1, 5, 0)]
    bench.member.send_commit(positions, epochs, results.append)

    def answered(partition: int, offset: int, code: int | None) -> Any:
        error = None if code is None else confluent_kafka.KafkaError(code)
        return SimpleNamespace(topic="t", partition=partition, offset=offset, error=error)

    stale = confluent_kafka.KafkaError.STALE_MEMBER_EPOCH
    bench.consumer.config["on_commit"](None, [answered(0, 4, None), answered(1, 5, stale)])
    assert results == [commit_done((positions[0],), "STALE_MEMBER_EPOCH")]
    bench.member.send_commit(positions[:1], epochs[:1], results.append)
    bench.member.close([Position("t", 0, 5, 0)], epochs[:1], time.monotonic() + 1.0)
    assert results[1:] == [commit_done((), "_DESTROY")]
    assert bench.calls("commit")[-1] == ("commit", False, [(0, 5, 0)])


def test_without_room_for_long_partitions_are_paused_and_polled(clock: Clock) -> None:
    """For a second nothing is paused, which would drop what was fetched ahead; polls go on, with rebalances."""
    bench = Bench()
    bench.assign(0)
    for _ in range(3):
        assert bench.fetch(brings(message(1)), room=0) == []
        assert offsets(bench.fetch(brings(message(2)), room=5)) == [2]
    assert bench.calls("pause") == bench.calls("resume") == []
    bench.fetch(room=0)
    clock.now += 0.9
    bench.fetch(room=0)
    assert bench.calls("pause") == []
    clock.now += 0.1
    bench.fetch(room=0)
    assert [call[1] for call in bench.calls("pause")] == [[(0, -1001)]]
    bench.fetch(taken(0), room=0)
    assert bench.reported.revocations == [[TopicPartition("t", 0)]]
    bench.assign(1, room=0)
    bench.fetch(room=1)
    assert [call[1] for call in bench.calls("resume")] == [[(1, -1001)]]


def test_the_end_seen_last_is_reported(clock: Clock) -> None:
    """From a fetch or, while paused, a question, also after a cut; it goes with the partition."""
    bench = Bench()
    bench.assign(0)

    def reported(room: int) -> dict[TopicPartition, int]:
        for _ in range(2):
            clock.now += 1.0
            bench.fetch(room=room)
        return dict(bench.member.end_offsets().ends)

    name = TopicPartition("t", 0)
    assert reported(room=1) == {}
    bench.consumer.cached_end = 50
    assert reported(room=1) == {name: 50}
    assert reported(room=0) == {name: 77}
    for end in (90, 3):
        bench.consumer.cached_end = end
        assert reported(room=1) == {name: end}
    bench.fetch(taken(0))
    assert reported(room=1) == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("_AUTHENTICATION", "KAFKA_SASL_PASSWORD"),
        ("TOPIC_AUTHORIZATION_FAILED", "KAFKA_TOPICS"),
        ("GROUP_AUTHORIZATION_FAILED", "KAFKA_GROUP_ID"),
        ("UNSUPPORTED_VERSION", "KAFKA_GROUP_PROTOCOL"),
        ("FENCED_INSTANCE_ID", "KAFKA_GROUP_INSTANCE_ID"),
        *(
            (name, None)
            for name in ("_TRANSPORT", "_ALL_BROKERS_DOWN", "NOT_COORDINATOR", "_MAX_POLL_EXCEEDED")
        ),
    ],
)
def test_errors_of_the_client(name: str, says: str | None) -> None:
    """One that does not pass ends the fetch and names the setting; one that passes is reported."""
    bench = Bench()

    def step(consumer: FakeConsumer) -> list[Message]:
        code: int = getattr(confluent_kafka.KafkaError, name)
        consumer.config["error_cb"](confluent_kafka.KafkaError(code, "said by the broker"))
        return []

    if says is None:
        assert bench.fetch(step) == bench.fetch() == []
        assert bench.reported.errors == [(name, "said by the broker")]
        return
    with pytest.raises(KafkaError, match=says) as raised:
        bench.fetch(step)
    assert "\n" not in str(raised.value)


def test_topic_that_vanishes_later_is_errors() -> None:
    """A missing topic ends the run before the first assignment only: later, others may be left."""
    unknown = confluent_kafka.KafkaError(confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART)
    lacking = Message("t", -1, -1, None, None, None, unknown, (0, 0), 0.0, 0)
    with pytest.raises(KafkaError, match="topic t does not exist"):
        Bench().fetch(lambda _: [lacking])
    bench = Bench()
    bench.assign(0)
    bench.fetch(lambda _: [lacking])
    assert bench.reported.errors[0][0] == "UNKNOWN_TOPIC_OR_PART"


def test_a_member_says_what_it_is_to_its_group() -> None:
    """It joins, loses its partitions, joins again, has no time for a rebalance, gets a new client, fails, leaves."""
    bench = Bench()
    seen = [bench.member.membership]

    def fetch(step: Step) -> None:
        bench.fetch(step)
        seen.append(bench.member.membership)

    def lost(consumer: FakeConsumer) -> list[Message]:
        consumer.on.on_lost(consumer, parts(0))
        return []

    for step in (given(0), lost, given(0), brings(message(1))):
        fetch(step)
    bench.reported.busy = 1
    for step in (lost, brings()):
        fetch(step)
    code = confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED
    with pytest.raises(KafkaError, match="grant READ on it"):
        fetch(
            brings(
                Message(None, -1, -1, None, None, None, confluent_kafka.KafkaError(code), (0, -1), 0.0, -1)
            )
        )
    seen.append(bench.member.membership)
    bench.close()
    joining, joined = Membership.JOINING, Membership.JOINED
    assert seen[:5] == [joining, joined, joining, joined, joined]
    assert seen[5:] == [Membership.REJOINING, joining, Membership.FAILED]
    assert bench.member.membership is Membership.LEFT


def test_no_other_change_of_membership_is_made() -> None:
    """A change that the table does not have is a bug, and changes nothing."""
    member = Bench().member
    for before, after in itertools.product(Membership, Membership):
        member.membership = before
        if after in _CHANGES[before]:
            member._become(after)
            continue
        with pytest.raises(InvariantViolation, match=f"{before.name} cannot be {after.name}"):
            member._become(after)
        assert member.membership is before


def test_an_idle_member_checks_less_often_whether_something_waits_for_it() -> None:
    """While records come every 0.2 s, for a commit or a start; after a fetch without any, 0.4 s."""
    bench = Bench()

    def checks(*steps: Step) -> float:
        bench.consumer.script = list(steps)
        bench.member.fetch(100, 5.0)
        bench.ready.clear()
        return bench.consumer.waits

    bench.assign(0)
    checks(lambda _: [message(1)])
    assert [checks(), checks()] == [0.2, 0.4]
    checks(lambda _: [message(2)])
    assert checks() == 0.2
