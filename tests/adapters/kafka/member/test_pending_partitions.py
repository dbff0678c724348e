"""Partitions whose start the brokers do not return wait, are queried again, and are never read from a guess."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import confluent_kafka
import pytest
from confluent_kafka import Consumer, KafkaException, Message
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.groups import group_has_offsets
from consumer.adapters.kafka.starts import PendingPartitions
from consumer.engine.messages import Assignment
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
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
TEN: list[bytes | None] = [b"%d" % number for number in range(10)]


def test_a_certificate_that_is_being_replaced_is_waited_for(tmp_path: Path) -> None:
    """While a certificate is replaced, no client can ask whether the group has offsets: that counts as a query
    that failed and may be repeated."""
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
    """A failed login during a query, which no broker refused, does not end the run: the partition waits and is
    queried again."""
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
    """A partition without a start is not read and not reported as assigned; half a second later it is queried
    again and starts at its committed offset."""
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
    """Under any reset the query is repeated without limit, each refusal is reported, and an answer counts
    whenever it comes."""
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
    """Under a cooperative strategy one partition is read while two wait; a revocation names only the partition
    that had started."""
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


def test_a_late_start_is_paused_without_room(clock: Clock) -> None:
    """A partition that starts late while there is no room is paused like the others."""
    bench = Bench()
    bench.assign(0)
    refuse(bench, MOVED)
    bench.assign(1)
    refuse(bench, None)
    bench.fetch(room=0)
    clock.now += 1.0
    bench.fetch(room=0)
    assert [call[1] for call in bench.calls("pause")] == [[(0, -1001)], [(1, -1001)]]


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


class Slow:
    """A cluster in which every query takes its whole time limit, unless its fields say otherwise."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[tuple[float, float]] = []
        """When each query was asked, and how many seconds it had."""
        self.has_commits = False
        """Whether the group has a commit of partition 9, which is another member's."""
        self.leaderless: set[int] = set()
        self.silent = True
        self.refuses = False

    def committed(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Raise a refusal or a time-out, or return the committed offsets."""
        self.asked.append((self.clock.now, timeout))
        if self.refuses:
            raise KafkaException(confluent_kafka.KafkaError(MOVED))
        if self.silent:
            self._hang(timeout)
        for one in partitions:
            one.offset = 5 if self.has_commits and one.partition == 9 else confluent_kafka.OFFSET_INVALID
        return partitions

    def offsets_for_times(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """Return that every log begins at 0, or time out if any partition has no leader."""
        if self.leaderless.intersection(one.partition for one in partitions):
            self._hang(timeout)
        return [RawPartition(one.topic, one.partition, 0) for one in partitions]

    def has_offsets(self, _: float) -> bool:
        """Report whether the group has the commit of partition 9."""
        return self.has_commits

    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        """Return 100 as the end, or time out for a partition without a leader."""
        if partition.partition in self.leaderless:
            self._hang(timeout)
        return 0, 100

    def _hang(self, timeout: float) -> None:
        self.clock.now += timeout
        raise KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT))


def slow(
    clock: Clock, *partitions: int, whole: bool = False, reset: str = "latest"
) -> tuple[Slow, PendingPartitions]:
    """Return such a cluster, and these partitions waiting in it."""
    cluster = Slow(clock)
    pending = PendingPartitions(
        cast(Consumer, cluster),
        reset,
        has_offsets=cluster.has_offsets,
        topic_ids=lambda *_: {},
        whole=whole,
        timeout=10.0,
        on_error=lambda *_: None,
    )
    pending.add([TopicPartition("t", one) for one in partitions])
    return cluster, pending


def test_a_question_that_hangs_leaves_time_for_others(clock: Clock) -> None:
    """A query that hangs gets 2 s, then 4 s, then half of an answer's time limit, and a pause as long as it
    took follows it."""
    cluster, pending = slow(clock, 0)
    while clock.now < 1040.0:
        assert not pending.ask()
        clock.now += 0.1
    assert [timeout for _, timeout in cluster.asked] == [2.0, 4.0, 5.0, 5.0, 5.0]
    times = [at for at, _ in cluster.asked]
    pauses = [after - before - took for (before, took), after in zip(cluster.asked, times[1:], strict=False)]
    assert all(pause >= took for pause, (_, took) in zip(pauses, cluster.asked, strict=False))
    cluster.silent = False
    clock.now += 5.0
    assert pending.ask()
    assert [*pending.take().values()] == [Assignment("t", 0, 0, 100, True)]
    pending.add([TopicPartition("t", 1)])
    cluster.silent = True
    pending.ask()
    assert cluster.asked[-1][1] == 2.0, "patience is short again"


def test_a_refusal_at_once_costs_no_patience(clock: Clock) -> None:
    """A query that is refused at once does not lengthen the next one's time, and an empty assignment does not
    shorten the pause."""
    cluster, pending = slow(clock, 0)
    cluster.silent = False
    cluster.refuses = True
    for _ in range(5):
        pending.ask()
        pending.add([])
        pending.ask()
        clock.now += 0.5
    assert [timeout for _, timeout in cluster.asked] == [2.0] * 5


@pytest.mark.parametrize("whole", [False, True])
def test_a_partition_without_a_leader_keeps_no_other_from_its_start(clock: Clock, whole: bool) -> None:
    """Under `latest` a partition without a leader delays the others by one query only, or until it is known
    where all must start together."""
    cluster, pending = slow(clock, 0, 1, 3, whole=whole)
    cluster.silent = False
    cluster.leaderless.add(0)
    begun = []
    for _ in range(100):
        pending.ask()
        begun += [(name.partition, start.start) for name, start in pending.take().items()]
        clock.now += 0.1
        cluster.has_commits = bool(begun)
    assert sorted(begun) == ([] if whole else [(1, 100), (3, 100)])
    assert len(pending.waiting) == (3 if whole else 1)
    cluster.leaderless.clear()
    clock.now += 5.0
    assert pending.ask()
    begun += [(name.partition, start.start) for name, start in pending.take().items()]
    assert sorted(begun) == [(0, 100), (1, 100), (3, 100)], (
        "as one of a new topic, though others have committed"
    )
    assert len(pending.waiting) == 0


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
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_on_a_broker_a_late_start_is_where_the_group_committed(
    kafka: Kafka, topic: Callable[..., str], moving: type[Moving], protocol: str
) -> None:
    """Under each protocol, after several refused queries, a member reads from its commits, and commits."""
    name, group = topic(2), unique("group")
    for partition in range(2):
        produce(kafka, name, TEN, partition=partition)
        commit(kafka, group, name, 7, partition)
    async with Member(kafka, [name], group, config=PROTOCOLS[protocol], make_consumer=moving) as member:
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
