"""Partitions whose start the brokers do not tell: they wait, are asked for again, and never read from a guess."""

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
from consumer.adapters.kafka.starts import Unstarted
from consumer.engine.messages import Assignment
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.membership.scripted_member import (
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
    """No client can be made then to ask whether the group has offsets: that counts as no answer, and ends nothing."""
    config = {
        "bootstrap.servers": "127.0.0.1:1",
        "group.id": "g",
        "ssl.ca.location": str(tmp_path / "ca.pem"),
    }
    with pytest.raises(KafkaException, match=r"ca\.pem cannot be read: No such file or directory"):
        group_has_offsets(config, 1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time for the member, too."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def refuse(bench: Bench, code: int | None) -> None:
    """What the coordinator says when it is asked for committed offsets; None: it answers."""
    bench.consumer.refused.pop("committed", None)
    if code is not None:
        bench.consumer.refused["committed"] = KafkaException(confluent_kafka.KafkaError(code))


def test_a_login_in_the_middle_of_the_question_ends_nothing(clock: Clock) -> None:
    """The login was not judged: the partition waits, and the question is asked again."""
    bench = Bench()
    words = "Failed to get committed offsets: Local: Authentication failure"
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTHENTICATION, words)
    bench.consumer.refused["committed"] = KafkaException(error)
    bench.assign(0)
    assert [code for code, _ in bench.told.troubles] == ["_AUTHENTICATION"]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert [one.partition for one in bench.told.assignments] == [0]


def waiting(strategy: str = "cooperative-sticky", reset: str = "earliest") -> Bench:
    """A member that was given partitions 0 and 1, and asked once, while the coordinator moved."""
    bench = Bench(strategy=strategy, reset=reset)
    bench.consumer.stored.update({0: 40, 1: 50})
    refuse(bench, MOVED)
    bench.assign(0, 1)
    return bench


@pytest.mark.parametrize(
    ("strategy", "assign"), [("cooperative-sticky", "incremental_assign"), ("range", "assign")]
)
def test_what_has_no_start_is_not_read_until_it_has(clock: Clock, strategy: str, assign: str) -> None:
    """The rebalance is answered without it, and the listener hears nothing; half a second later it starts where it was
    committed."""
    bench = waiting(strategy)
    assert bench.calls(assign) == [(assign, [])]
    assert bench.told.assignments == []
    assert bench.member.end_offsets().waiting_for_start == 2
    refuse(bench, None)
    bench.fetch()
    assert bench.calls(assign) == [(assign, [])], "not asked with every poll"
    clock.now += 0.5
    bench.fetch()
    assert bench.calls(assign)[1:] == [(assign, [(0, 40), (1, 50)])]
    assert [(one.partition, one.start) for one in bench.told.assignments] == [(0, 40), (1, 50)]
    assert bench.member.end_offsets().waiting_for_start == 0
    assert offsets(bench.fetch(lambda _: [message(40)])) == [40]


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_it_is_asked_for_as_long_as_it_takes(clock: Clock, reset: str) -> None:
    """Whatever the reset: each refusal is reported, and the answer counts whenever it comes."""
    bench = waiting(reset=reset)
    for _ in range(120):
        clock.now += 0.5
        bench.fetch()
    assert [code for code, _ in bench.told.troubles] == ["NOT_COORDINATOR"] * 121
    assert bench.told.troubles[0][1].startswith(
        "2 partitions wait for the brokers to say where to start: asking again (NOT_COORDINATOR: "
    )
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert len(bench.told.assignments) == 2


@pytest.mark.parametrize(
    ("strategy", "unassign"), [("cooperative-sticky", "incremental_unassign"), ("range", "unassign")]
)
def test_what_is_taken_before_it_started_was_never_ours(clock: Clock, strategy: str, unassign: str) -> None:
    """The listener, which never heard of it, is not asked; nothing is committed, and it does not start later."""
    bench = waiting(strategy)
    bench.fetch(taken(0, 1))
    assert bench.calls(unassign) == [(unassign, [])]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert not bench.told.assignments
    assert not bench.told.revocations
    assert not bench.told.losses
    assert bench.calls("commit") == []


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_what_is_lost_while_it_is_asked_for_does_not_start(clock: Clock, strategy: str) -> None:
    """Between the answer and the start is a poll, which tells of the loss. (An assignment after it would hide it:
    librdkafka would call revoked, and ask to be committed, what another member owns already.)
    """
    bench = waiting(strategy)
    refuse(bench, None)
    clock.now += 0.5

    def loss(consumer: FakeConsumer) -> list[Message]:
        consumer.on.on_lost(consumer, parts(0, 1))
        return []

    bench.fetch(loss)
    bench.fetch()
    assert not bench.told.assignments
    assert bench.calls("incremental_assign") + bench.calls("assign") == [
        ("incremental_assign" if strategy == "cooperative-sticky" else "assign", [])
    ]


def test_what_is_held_goes_on_beside_what_waits(clock: Clock) -> None:
    """Cooperative: one partition is read, two wait; of a revocation the listener hears only of what it was given."""
    bench = Bench()
    bench.assign(0)
    refuse(bench, MOVED)
    bench.assign(1, 2)
    assert offsets(bench.fetch(lambda _: [message(7)])) == [7]
    bench.fetch(taken(0, 1))
    assert bench.told.revocations == [[TopicPartition("t", 0)]]
    assert bench.calls("incremental_unassign") == [("incremental_unassign", [(0, -1001)])]
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert [one.partition for one in bench.told.assignments] == [0, 2]


def test_it_starts_paused_while_there_is_no_room(clock: Clock) -> None:
    """The level holds for what comes late, too."""
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
    """At once, and also when it comes later."""
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
    """A cluster in which every question takes all the time it has, except for what `answers` says."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[tuple[float, float]] = []
        """When each question was asked, and how long it had."""
        self.has_commits = False
        """On partition 9, which is another member's."""
        self.leaderless: set[int] = set()
        self.silent = True
        self.refuses = False

    def committed(self, partitions: list[RawPartition], timeout: float = -1) -> list[RawPartition]:
        """After all the time nothing; or what is committed."""
        self.asked.append((self.clock.now, timeout))
        if self.refuses:
            raise KafkaException(confluent_kafka.KafkaError(MOVED))
        if self.silent:
            self._hang(timeout)
        for one in partitions:
            one.offset = 5 if self.has_commits and one.partition == 9 else confluent_kafka.OFFSET_INVALID
        return partitions

    def has_offsets(self, _: float) -> bool:
        """Those of partition 9, if any."""
        return self.has_commits

    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        """100, unless it has no leader."""
        if partition.partition in self.leaderless:
            self._hang(timeout)
        return 0, 100

    def _hang(self, timeout: float) -> None:
        self.clock.now += timeout
        raise KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT))


def slow(
    clock: Clock, *partitions: int, whole: bool = False, reset: str = "latest"
) -> tuple[Slow, Unstarted]:
    """These wait in such a cluster."""
    cluster = Slow(clock)
    unstarted = Unstarted(
        cast(Consumer, cluster),
        reset,
        has_offsets=cluster.has_offsets,
        topic_ids=lambda *_: {},
        whole=whole,
        timeout=10.0,
        on_trouble=lambda *_: None,
    )
    unstarted.add([TopicPartition("t", one) for one in partitions])
    return cluster, unstarted


def test_a_question_that_hangs_leaves_time_for_others(clock: Clock) -> None:
    """It has 2 s, then 4, then half of what an answer may take; and as long as it took nothing is asked."""
    cluster, unstarted = slow(clock, 0)
    while clock.now < 1040.0:
        assert not unstarted.ask()
        clock.now += 0.1
    assert [timeout for _, timeout in cluster.asked] == [2.0, 4.0, 5.0, 5.0, 5.0]
    times = [at for at, _ in cluster.asked]
    pauses = [after - before - took for (before, took), after in zip(cluster.asked, times[1:], strict=False)]
    assert all(pause >= took for pause, (_, took) in zip(pauses, cluster.asked, strict=False))
    cluster.silent = False
    clock.now += 5.0
    assert unstarted.ask()
    assert [*unstarted.take().values()] == [Assignment("t", 0, 0, 100, True)]
    unstarted.add([TopicPartition("t", 1)])
    cluster.silent = True
    unstarted.ask()
    assert cluster.asked[-1][1] == 2.0, "patience is short again"


def test_a_refusal_at_once_costs_no_patience(clock: Clock) -> None:
    """Only what hangs shows that more time is needed; and an empty assignment cancels no pause."""
    cluster, unstarted = slow(clock, 0)
    cluster.silent = False
    cluster.refuses = True
    for _ in range(5):
        unstarted.ask()
        unstarted.add([])
        unstarted.ask()
        clock.now += 0.5
    assert [timeout for _, timeout in cluster.asked] == [2.0] * 5


@pytest.mark.parametrize("whole", [False, True])
def test_one_without_a_leader_keeps_no_other_from_its_start(clock: Clock, whole: bool) -> None:
    """Under `latest` one hangs: others begin after it was asked for once; all at once where they must."""
    cluster, unstarted = slow(clock, 0, 1, 3, whole=whole)
    cluster.silent = False
    cluster.leaderless.add(0)
    begun = []
    for _ in range(100):
        unstarted.ask()
        begun += [(name.partition, start.start) for name, start in unstarted.take().items()]
        clock.now += 0.1
        cluster.has_commits = bool(begun)
    assert sorted(begun) == ([] if whole else [(1, 100), (3, 100)])
    assert len(unstarted.waiting) == (3 if whole else 1)
    cluster.leaderless.clear()
    clock.now += 5.0
    assert unstarted.ask()
    begun += [(name.partition, start.start) for name, start in unstarted.take().items()]
    assert sorted(begun) == [(0, 100), (1, 100), (3, 100)], (
        "as one of a new topic, though others have committed"
    )
    assert len(unstarted.waiting) == 0


class Moving(confluent_kafka.Consumer):
    """A consumer whose coordinator has moved, until it is found."""

    found = False
    asked = 0

    def committed(self, *args: Any, **options: Any) -> Any:
        """Refused by this broker, or answered."""
        type(self).asked += 1
        if not self.found:
            raise KafkaException(confluent_kafka.KafkaError(MOVED))
        return super().committed(*args, **options)


@pytest.fixture
def moving() -> type[Moving]:
    """One for a test."""
    return type("MovingOnce", (Moving,), {})


@pytest.mark.kafka
@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_on_a_broker_it_goes_on_where_it_was_committed(
    kafka: Kafka, topic: Callable[..., str], moving: type[Moving], protocol: str
) -> None:
    """Under each protocol: a member lives through several refusals, reads from its commits, and commits."""
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


@pytest.mark.kafka
@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_on_a_broker_others_get_what_waits(
    kafka: Kafka, topic: Callable[..., str], moving: type[Moving], protocol: str
) -> None:
    """A rebalance takes a partition that waits, and so does the goodbye: others read it, without delay."""
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
