"""Partitions whose start the brokers do not tell: they wait, are asked for again, and never read from a guess."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException

from consumer.core.model import TopicPartition
from consumer.errors import KafkaError
from tests.adapters.scripted_member import Bench, given, message, offsets, taken
from tests.kafka.harness import Kafka, Member, commit, committed, produce, unique

MOVED = confluent_kafka.KafkaError.NOT_COORDINATOR
TEN: list[bytes | None] = [b"%d" % number for number in range(10)]
PROTOCOLS: dict[str, dict[str, Any]] = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range,roundrobin"},
    "kip-848": {"group.protocol": "consumer"},
}


class Clock:
    """`time.monotonic`, as a test has it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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


def waiting(strategy: str = "cooperative-sticky", reset: str = "earliest") -> Bench:
    """A member that was given partitions 0 and 1 while the coordinator moved."""
    bench = Bench(strategy=strategy, reset=reset)
    bench.consumer.stored.update({0: 40, 1: 50})
    refuse(bench, MOVED)
    bench.fetch(given(0, 1))
    return bench


@pytest.mark.parametrize(
    ("strategy", "assign"), [("cooperative-sticky", "incremental_assign"), ("range", "assign")]
)
def test_what_has_no_start_is_not_read_until_it_has(clock: Clock, strategy: str, assign: str) -> None:
    """The rebalance is answered without it; nobody is told; half a second later it starts where it was committed."""
    bench = waiting(strategy)
    assert bench.calls(assign) == [(assign, [])]
    assert bench.told.assignments == []
    refuse(bench, None)
    bench.fetch()
    assert bench.calls(assign) == [(assign, [])], "not asked with every poll"
    clock.now += 0.5
    assert offsets(bench.fetch(lambda _: [message(40)])) == [40]
    assert bench.calls(assign)[1:] == [(assign, [(0, 40), (1, 50)])]
    assert [(one.partition, one.start) for one in bench.told.assignments] == [(0, 40), (1, 50)]


@pytest.mark.parametrize("reset", ["earliest", "latest", "error"])
def test_it_is_asked_for_as_long_as_it_takes(clock: Clock, reset: str) -> None:
    """Whatever the reset: each refusal is told, and the answer counts whenever it comes."""
    bench = waiting(reset=reset)
    for _ in range(120):
        clock.now += 0.5
        bench.fetch()
    assert [code for code, _ in bench.told.troubles] == ["NOT_COORDINATOR"] * 121
    assert bench.told.troubles[0][1].startswith(
        "2 partitions wait for the brokers to say where to start: asked again (NOT_COORDINATOR: "
    )
    refuse(bench, None)
    clock.now += 0.5
    bench.fetch()
    assert len(bench.told.assignments) == 2


@pytest.mark.parametrize(
    ("strategy", "unassign"), [("cooperative-sticky", "incremental_unassign"), ("range", "unassign")]
)
def test_what_is_taken_before_it_started_was_never_ours(clock: Clock, strategy: str, unassign: str) -> None:
    """The listener, who was not told, is not asked; nothing is committed, and it does not start later."""
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


def test_what_is_held_goes_on_beside_what_waits(clock: Clock) -> None:
    """Cooperative: one partition is read, two wait; of a revocation the listener hears what it was told of."""
    bench = Bench()
    bench.fetch(given(0))
    refuse(bench, MOVED)
    assert offsets(bench.fetch(lambda consumer: [*given(1, 2)(consumer), message(7)])) == [7]
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
    bench.fetch(given(0))
    refuse(bench, MOVED)
    bench.fetch(given(1))
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
    with pytest.raises(KafkaError, match="this user may not"):
        bench.fetch(given(0))
    bench = waiting()
    refuse(bench, refusal)
    clock.now += 0.5
    with pytest.raises(KafkaError, match="this user may not"):
        bench.fetch()


class Moving(confluent_kafka.Consumer):
    """A consumer whose coordinator has moved, until it is found."""

    found = False
    asked = 0

    def committed(self, *args: Any, **options: Any) -> Any:
        """Refused by this broker, or told."""
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
