"""Partitions whose start the brokers do not return wait, are queried again, and are never read from a guess."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException, Message

from consumer.adapters.kafka.groups import group_has_offsets
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import TEN
from tests.adapters.kafka.member.scripted_member import (
    Bench,
    Clock,
    FakeConsumer,
    given,
    message,
    offsets,
    parts,
    taken,
)
from tests.support.kafka.harness import PROTOCOLS, Kafka, Member, commit, committed, produce, unique

MOVED = confluent_kafka.KafkaError.NOT_COORDINATOR


def test_a_certificate_that_is_being_replaced_is_waited_for(tmp_path: Path) -> None:
    """No client can ask for the group's offsets: that is a question that failed, and may be repeated."""
    config = {
        "bootstrap.servers": "127.0.0.1:1",
        "group.id": "g",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
    }
    with pytest.raises(KafkaException, match=r"ca\.pem cannot be read: No such file or directory"):
        group_has_offsets(config, 1.0)


def refuse(bench: Bench, code: int | None) -> None:
    """Let the coordinator refuse queries for committed offsets with `code`, or answer them if it is None."""
    bench.consumer.refused.pop("committed", None)
    if code is not None:
        bench.consumer.refused["committed"] = KafkaException(confluent_kafka.KafkaError(code))


def test_a_login_in_the_middle_of_the_question_ends_nothing(clock: Clock) -> None:
    """No broker refused it: the partition waits, and is asked for again."""
    bench = Bench()
    words = "Failed to get committed offsets: Local: Authentication failure"
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTHENTICATION, words)
    bench.consumer.refused["committed"] = KafkaException(error)
    bench.assign(0)
    assert [code for code, _ in bench.reported.errors] == ["_AUTHENTICATION"]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert [one.partition for one in bench.reported.assignments] == [0]


def waiting(strategy: str = "cooperative-sticky", reset: str = "earliest") -> Bench:
    """Return a member with partitions 0 and 1 that queried their offsets once, while the coordinator was moving."""
    bench = Bench(strategy=strategy, reset=reset)
    bench.consumer.stored.update({0: 40, 1: 50})
    refuse(bench, MOVED)
    bench.assign(0, 1)
    return bench


@pytest.mark.parametrize(
    ("strategy", "assign"), [("cooperative-sticky", "incremental_assign"), ("range", "assign")]
)
def test_a_partition_without_a_start_is_not_read(clock: Clock, strategy: str, assign: str) -> None:
    """Nor reported as assigned; half a second later it is asked for again, and starts."""
    bench = waiting(strategy)
    assert bench.calls(assign) == [(assign, [])]
    assert bench.reported.assignments == []
    assert bench.member.end_offsets().waiting_for_start == 2
    refuse(bench, None)
    bench.fetch()
    assert bench.calls(assign) == [(assign, [])], "not asked with every poll"
    clock.now += 0.5
    bench.fetch()
    assert bench.calls(assign)[1:] == [(assign, [(0, 40), (1, 50)])]
    assert [(one.partition, one.start) for one in bench.reported.assignments] == [(0, 40), (1, 50)]
    assert bench.member.end_offsets().waiting_for_start == 0
    assert offsets(bench.fetch(lambda _: [message(40)])) == [40]


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_a_start_is_queried_without_limit(clock: Clock, reset: str) -> None:
    """Under any reset; each refusal is reported, and an answer counts whenever it comes."""
    bench = waiting(reset=reset)
    for _ in range(120):
        clock.now += 0.5
        bench.fetch()
    assert [code for code, _ in bench.reported.errors] == ["NOT_COORDINATOR"] * 121
    assert bench.reported.errors[0][1].startswith(
        "2 partitions wait for the brokers to say where to start: asking again (NOT_COORDINATOR: "
    )
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert len(bench.reported.assignments) == 2


@pytest.mark.parametrize("lost", [False, True], ids=["revoked", "lost"])
@pytest.mark.parametrize(
    ("strategy", "assign"), [("cooperative-sticky", "incremental_assign"), ("range", "assign")]
)
def test_a_partition_that_goes_before_its_start_was_never_assigned(
    clock: Clock, strategy: str, assign: str, lost: bool
) -> None:
    """A partition revoked before its start is known, or lost during the query, was never assigned: no hook is called,
    nothing is committed, and it does not start later. A poll between answer and start reports the loss. (After an
    assignment librdkafka would call revoked instead, and the member would commit what another one owns.)"""
    bench = waiting(strategy)

    def loss(consumer: FakeConsumer) -> list[Message]:
        consumer.on.on_lost(consumer, parts(0, 1))
        return []

    if lost:
        refuse(bench, None)
        clock.now += 0.5
    bench.fetch(loss if lost else taken(0, 1))
    unassign = assign.replace("assign", "unassign")
    assert bench.calls(unassign) == [(unassign, [])]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert not bench.reported.assignments
    assert not bench.reported.revocations
    assert not bench.reported.losses
    assert bench.calls("commit") == []
    assert bench.calls(assign) == [(assign, [])]


def test_a_partition_is_read_while_others_wait_for_their_start(clock: Clock) -> None:
    """In a cooperative group; a revocation names only what had started."""
    bench = Bench()
    bench.assign(0)
    refuse(bench, MOVED)
    bench.assign(1, 2)
    assert offsets(bench.fetch(lambda _: [message(7)])) == [7]
    bench.fetch(taken(0, 1))
    assert bench.reported.revocations == [[TopicPartition("t", 0)]]
    assert bench.calls("incremental_unassign") == [("incremental_unassign", [(0, -1001)])]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert [one.partition for one in bench.reported.assignments] == [0, 2]


@pytest.mark.parametrize("code", ["GROUP_AUTHORIZATION_FAILED", "TOPIC_AUTHORIZATION_FAILED"])
def test_a_refusal_that_does_not_pass_ends_the_run(clock: Clock, code: str) -> None:
    """A refusal that does not pass ends the run, whether it comes at the first query or later."""
    refusal = getattr(confluent_kafka.KafkaError, code)
    bench = Bench()
    refuse(bench, refusal)
    bench.fetch(given(0))
    with pytest.raises(KafkaError, match="this user may not"):
        bench.fetch()
    bench = waiting()
    refuse(bench, refusal)
    clock.now += 0.5
    with pytest.raises(KafkaError, match="this user may not"):
        bench.fetch()


def test_a_question_that_hangs_leaves_time_for_others(clock: Clock) -> None:
    """It gets 2 s, 4 s, then half of an answer's limit; a pause as long as it took follows."""
    bench = Bench(reset="latest")
    refuse(bench, confluent_kafka.KafkaError._TIMED_OUT)
    bench.fetch(given(0))
    while clock.now < 1040.0:
        bench.fetch()
        clock.now += 0.1
    asked = bench.consumer.asked
    assert [timeout for _, timeout in asked] == [2.0, 4.0, 5.0, 5.0, 5.0]
    assert all(after - before >= 2 * took for (before, took), (after, _) in itertools.pairwise(asked))
    assert bench.reported.assignments == []
    refuse(bench, None)
    clock.now += 5.0
    bench.fetch()
    assert [(one.start, one.commit_start) for one in bench.reported.assignments] == [(77, True)]
    refuse(bench, confluent_kafka.KafkaError._TIMED_OUT)
    bench.assign(1)
    assert asked[-1][1] == 2.0, "patience is short again"


def test_a_refusal_at_once_costs_no_patience(clock: Clock) -> None:
    """It does not lengthen the next question, nor does an empty assignment shorten the pause."""
    bench = waiting(reset="latest")
    for _ in range(4):
        bench.fetch(given())
        bench.fetch()
        clock.now += 0.5
    bench.fetch()
    assert len(bench.consumer.asked) == 5
    assert {timeout for _, timeout in bench.consumer.asked} == {2.0}


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_partition_without_a_leader_keeps_no_other_from_its_start(clock: Clock, strategy: str) -> None:
    """Under `latest` it delays the others by one query only, or until it is known where all must start together."""
    bench = Bench(reset="latest", strategy=strategy)
    bench.consumer.leaderless = {0}
    bench.fetch(given(0, 1, 3))

    def starts() -> list[tuple[int, int | None]]:
        return [(one.partition, one.start) for one in bench.reported.assignments]

    for _ in range(100):
        before = clock.now
        bench.fetch()
        assert clock.now <= before + 5.0, "all questions share one time limit"
        clock.now += 0.1
        bench.consumer.stored = {9: 5} if starts() else {}
    whole = strategy == "range"
    assert sorted(starts()) == ([] if whole else [(1, 77), (3, 77)])
    assert bench.member.end_offsets().waiting_for_start == (3 if whole else 1)
    bench.consumer.leaderless.clear()
    clock.now += 5.0
    bench.fetch()
    assert sorted(starts()) == [(0, 77), (1, 77), (3, 77)], (
        "as one of a new topic, though others have committed"
    )
    if not whole:
        bench.assign(2)
        assert starts()[-1] == (2, None), "judged by the commits of its own time"


class Moving(confluent_kafka.Consumer):
    """A consumer whose coordinator has moved, until a test sets `found`."""

    found = False
    asked = 0

    def committed(self, *args: Any, **options: Any) -> Any:
        """Raise a refusal until the coordinator is found, then query the broker."""
        type(self).asked += 1
        if not self.found:
            raise KafkaException(confluent_kafka.KafkaError(MOVED))
        return super().committed(*args, **options)


@pytest.fixture
def moving() -> type[Moving]:
    """Return a class of such a consumer for one test."""
    return type("MovingOnce", (Moving,), {})


@pytest.mark.real_kafka
async def test_on_a_broker_a_late_start_is_where_the_group_committed(
    kafka: Kafka, topic: Callable[..., str], moving: type[Moving], protocol: dict[str, Any]
) -> None:
    """Under each protocol, after several refused queries, a member reads from its commits, and commits."""
    name, group = topic(2), unique("group")
    for partition in range(2):
        produce(kafka, name, TEN, partition=partition)
        commit(kafka, group, name, 7, partition)
    async with Member(kafka, [name], group, config=protocol, make_consumer=moving) as member:
        await member.until(lambda: moving.asked >= 3, "three questions")
        assert member.held == {}
        moving.found = True
        await member.until(lambda: len(member.records) >= 6, "what was not committed")
        assert member.counts == Counter(TEN[7:] * 2)
        assert {one.start for one in member.assignments} == {7}
        assert (await member.commit()).failure is None
    assert [committed(kafka, group, name, one).offset for one in range(2)] == [10, 10]


@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_on_a_broker_a_partition_that_waits_can_go_to_others(
    kafka: Kafka, topic: Callable[..., str], moving: type[Moving], protocol: str
) -> None:
    """A partition that waits for its start goes to another member at a rebalance, or at once when its member leaves."""
    name, group = topic(2), unique("group")
    for partition in range(2):
        produce(kafka, name, TEN, partition=partition)
    settings = {**PROTOCOLS[protocol], "session.timeout.ms": 45_000}
    if protocol == "kip-848":
        del settings["session.timeout.ms"]
    async with Member(kafka, [name], group, config=settings) as other:
        async with Member(kafka, [name], group, config=settings, make_consumer=moving) as member:
            await member.until(lambda: moving.asked >= 2, "questions")
            await other.until(lambda: len(other.held) == 1, "the other to keep one")
            moving.found = True
            await member.until(lambda: len(member.held) == 1, "its own")
            moving.found = False
        await other.until(lambda: len(other.held) == 2, "the goodbye")
        async with Member(kafka, [name], group, config=settings, make_consumer=moving) as member:
            asked = moving.asked
            await member.until(lambda: moving.asked >= asked + 2, "questions")
            begun = time.monotonic()
        await other.until(lambda: len(other.held) == 2, "the goodbye of one that never started")
        assert time.monotonic() - begun < 20.0, "it was not waited for until its session was over"
        await other.until(lambda: set(other.values) >= set(TEN))
    assert not member.assignments
    assert not member.revocations
    assert not member.losses
