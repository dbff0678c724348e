"""Leaving in the middle of a rebalance: what the brokers hold up is waited for, as long as the deadline allows.

A member that ended without a goodbye would keep its whole group waiting until its session times out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.adapters.kafka import commits, ends, member
from consumer.engine.model import Position
from tests.adapters.kafka.membership.scripted_member import Bench, taken

ILLEGAL_GENERATION = confluent_kafka.KafkaError.ILLEGAL_GENERATION
GRACE = 25.0


class Clock:
    """Time that passes only in sleeps, or when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """They pass at once."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The member's own."""
    one = Clock()
    for module in (commits, ends, member):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=one.monotonic, sleep=one.sleep))
    return one


def a_member(*partitions: int, **settings: Any) -> Bench:
    """It holds these, and has something to commit of each."""
    bench = Bench(settings=settings)
    bench.told.positions = [Position("t", one, 8, 2) for one in partitions]
    bench.assign(*partitions)
    return bench


def passing(bench: Bench, clock: Clock, *, commit: float = 0.0, consume: float = 0.0) -> None:
    """A commit, or a consume that waits, takes this many seconds."""
    commit_, consume_ = bench.consumer.commit, bench.consumer.consume

    def slow_commit(**options: Any) -> Any:
        clock.now += commit
        return commit_(**options)

    def slow_consume(num_messages: int = 1, timeout: float = -1) -> list[Message]:
        clock.now += consume
        return consume_(num_messages, timeout)

    bench.consumer.commit = slow_commit  # type: ignore[method-assign]
    bench.consumer.consume = slow_consume  # type: ignore[method-assign]


def close(bench: Bench, clock: Clock, timeout: float = GRACE) -> list[str]:
    """What is called of the consumer as the member leaves."""
    before = len(bench.consumer.calls)
    epochs = [one.epoch for one in bench.told.assignments]
    bench.member.close(bench.told.positions, epochs, clock.now + timeout)
    return [call[0] for call in bench.consumer.calls[before:]]


def test_without_partitions_it_leaves_once_the_rebalance_is_over(clock: Clock) -> None:
    """librdkafka puts the unsubscription off until then, and closing would forget the goodbye."""
    bench = a_member()
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 200
    assert close(bench, clock) == ["unsubscribe", "goodbye", "close"]
    assert clock.now < 1000.0 + GRACE


def test_what_it_let_go_of_it_does_not_hold(clock: Clock) -> None:
    """All its partitions were taken, and the group has not said yet what it gets instead: as one without any."""
    bench = a_member(0)
    bench.fetch(taken(0))
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 50
    assert close(bench, clock) == ["unsubscribe", "goodbye", "close"]


def test_a_rebalance_without_end_does_not_hold_it_up(clock: Clock) -> None:
    """Then it goes without a goodbye, and leaves some time for closing."""
    bench = a_member()
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 10_000
    assert close(bench, clock) == ["unsubscribe", "close"]
    assert 1000.0 + 0.8 * GRACE < clock.now < 1000.0 + GRACE


def test_under_kip_848_the_goodbye_waits_for_nobody(clock: Clock) -> None:
    """There the member id is the client's own and stays: it says nothing of the goodbye."""
    bench = a_member(**{"group.protocol": "consumer"})
    passing(bench, clock, consume=0.1)
    assert close(bench, clock) == ["unsubscribe", "close"]
    assert clock.now <= 1000.0 + 0.2


def test_a_static_member_says_no_goodbye(clock: Clock) -> None:
    """It will be back before its session times out, and no rebalance is worth that."""
    assert close(a_member(**{"group.instance.id": "one"}), clock) == ["close"]


def test_with_partitions_closing_says_it(clock: Clock) -> None:
    """Nothing else is needed; and what is settled is committed before."""
    assert close(a_member(0), clock) == ["commit", "close"]


def test_a_commit_that_was_held_up_is_tried_again(clock: Clock) -> None:
    """It waited behind a rebalance, and was refused for the generation before: the next one is taken, and no trouble is
    reported."""
    bench = a_member(0)
    passing(bench, clock, commit=12.0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION]
    assert close(bench, clock) == ["commit", "commit", "close"]
    assert bench.told.troubles == []


def test_between_generations_it_is_tried_for_as_long_as_there_is_time(clock: Clock) -> None:
    """A group that waits for one that drains can take long to agree; no later commit could make up for this one."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 100
    names = close(bench, clock)
    assert names == ["commit"] * 101 + ["close"]
    assert bench.told.troubles == []


def test_a_revoked_partition_has_less_time(clock: Clock) -> None:
    """The group waits for it, and so does this member's poll."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 100
    bench.fetch(taken(0))
    assert 1002.0 < clock.now < 1004.0
    assert [code for code, _ in bench.told.troubles] == ["ILLEGAL_GENERATION"]
