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


def test_records_of_a_partition_revoked_in_the_same_consume_are_dropped() -> None:
    """A record that arrives in the same consume as its partition's revocation is dropped, since the engine has
    drained it."""
    bench = Bench()

    def step(consumer: FakeConsumer) -> list[Message]:
        consumer.take_away(0)
        return [message(5, 0), message(9, 1)]

    bench.assign(0, 1)
    assert offsets(bench.fetch(step)) == [9]


def test_partition_gone_and_back_in_one_consume_starts_again() -> None:
    """Records of a partition revoked and assigned again in one consume are dropped, and it is read from its new
    start."""
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
    """A chunk ends where the leader epoch changes, since a position carries the leader epoch of the record
    before it."""
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


def test_revoked_positions_are_committed_before_the_unassignment() -> None:
    """Positions of revoked partitions alone are committed in the callback, with leader epochs, before the
    unassignment."""
    bench = Bench()
    bench.reported.positions = [Position("t", 0, 8, 2), Position("t", 1, 9, 2)]
    bench.assign(0, 1)
    bench.fetch(taken(0))
    names = [call[0] for call in bench.consumer.calls]
    assert bench.calls("commit") == [("commit", False, [(0, 8, 2)])]
    assert names.index("commit") < names.index("incremental_unassign")


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


def test_eager_assigns_and_unassigns_whole() -> None:
    """Under an eager strategy the whole assignment is set and dropped at once."""
    bench = Bench(strategy="range")
    bench.consumer.stored[1] = 6
    bench.assign(0, 1)
    bench.fetch(taken(0, 1))
    assert bench.calls("assign")[1:] == [("assign", [(0, confluent_kafka.OFFSET_BEGINNING), (1, 6)])]
    assert bench.calls("unassign") == [("unassign", [])]


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
    """The result of a commit names the positions that were committed, and the error code of the one that was refused. A
    commit in flight whose answer can no longer come fails at the close, so that its caller does not wait
    indefinitely."""
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
    """A moment without room pauses nothing, since a pause drops records fetched ahead and the resume takes up to a
    second. After a second partitions are paused and polls continue, since rebalances come only with polls."""
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
    """The end offset is unknown without a fetch. The one seen last is reported, from a fetch or, while partitions are
    paused, from a query, also if the log was cut; it is dropped with the partition."""
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
    """An error that does not pass, from librdkafka's error callback, ends the fetch and names the setting to change.
    One that passes is reported as an error, and fetching continues."""
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
    """A missing topic ends the run only before the first assignment; later it is trouble, since other topics
    may be left."""
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
    """While records come, a commit waits 0.2 s at most for the consumer's thread, and so does a partition for its
    start; after a fetch that brought none, 0.4 s."""
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
