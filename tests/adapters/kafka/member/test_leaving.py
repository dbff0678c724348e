"""Leaving in the middle of a rebalance: brokers that delay an answer are waited for, as long as the deadline
allows.

A member that closes without leaving keeps its whole group waiting until its session times out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.adapters.kafka import commits, held, member, watch
from consumer.engine.model import Position
from tests.adapters.kafka.member.scripted_member import Bench, taken

ILLEGAL_GENERATION = confluent_kafka.KafkaError.ILLEGAL_GENERATION
GRACE = 25.0


class Clock:
    """A clock whose time passes only in sleeps, or when a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the member's modules."""
    one = Clock()
    for module in (commits, held, member, watch):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=one.monotonic, sleep=one.sleep))
    return one


def a_member(*partitions: int, **settings: Any) -> Bench:
    """Return a member that holds `partitions` and has an offset of each to commit."""
    bench = Bench(settings=settings)
    bench.told.positions = [Position("t", one, 8, 2) for one in partitions]
    bench.assign(*partitions)
    return bench


def passing(bench: Bench, clock: Clock, *, commit: float = 0.0, consume: float = 0.0) -> None:
    """Let each commit and each consume that waits take this many seconds."""
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
    """Close the member and return the names of the consumer's methods called meanwhile."""
    before = len(bench.consumer.calls)
    epochs = [one.epoch for one in bench.told.assignments]
    bench.member.close(bench.told.positions, epochs, clock.now + timeout)
    return [call[0] for call in bench.consumer.calls[before:]]


def test_a_member_without_partitions_leaves_after_the_rebalance(clock: Clock) -> None:
    """A member without partitions leaves after the rebalance, since librdkafka delays the unsubscription and a
    close would drop it."""
    bench = a_member()
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 200
    assert close(bench, clock) == ["unsubscribe", "goodbye", "close"]
    assert clock.now < 1000.0 + GRACE


def test_a_member_whose_partitions_were_all_revoked_leaves_as_one_without(clock: Clock) -> None:
    """A member whose partitions were all revoked, with no new ones yet, leaves like a member without partitions."""
    bench = a_member(0)
    bench.fetch(taken(0))
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 50
    assert close(bench, clock) == ["unsubscribe", "goodbye", "close"]


def test_a_rebalance_without_end_does_not_delay_a_stop(clock: Clock) -> None:
    """When a rebalance does not end, the member closes without having left, with some of the time to spare."""
    bench = a_member()
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = 10_000
    assert close(bench, clock) == ["unsubscribe", "close"]
    assert 1000.0 + 0.8 * GRACE < clock.now < 1000.0 + GRACE


def test_under_kip_848_a_member_leaves_without_waiting(clock: Clock) -> None:
    """Under KIP-848 the member does not wait to leave: its id is the client's own and stays."""
    bench = a_member(**{"group.protocol": "consumer"})
    passing(bench, clock, consume=0.1)
    assert close(bench, clock) == ["unsubscribe", "close"]
    assert clock.now <= 1000.0 + 0.2


def test_a_static_member_does_not_leave(clock: Clock) -> None:
    """A static member closes without leaving: it will be back before its session times out, without a rebalance."""
    assert close(a_member(**{"group.instance.id": "one"}), clock) == ["close"]


def test_a_member_with_partitions_leaves_by_closing(clock: Clock) -> None:
    """A member with partitions commits what is settled and leaves by closing alone."""
    assert close(a_member(0), clock) == ["commit", "close"]


def test_a_commit_that_a_rebalance_delayed_is_repeated(clock: Clock) -> None:
    """A commit that waited for a rebalance and was refused for its old generation is repeated, and no trouble
    reported."""
    bench = a_member(0)
    passing(bench, clock, commit=12.0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION]
    assert close(bench, clock) == ["commit", "commit", "close"]
    assert bench.told.troubles == []


def test_a_last_commit_is_repeated_while_there_is_time(clock: Clock) -> None:
    """Between generations the last commit is repeated while there is time, since no later commit can replace it."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 100
    names = close(bench, clock)
    assert names == ["commit"] * 101 + ["close"]
    assert bench.told.troubles == []


def test_a_revoked_partition_has_less_time(clock: Clock) -> None:
    """For a revoked partition the commit is repeated for a shorter time, since the group and this member's poll
    wait for it."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 100
    bench.fetch(taken(0))
    assert 1002.0 < clock.now < 1004.0
    assert [code for code, _ in bench.told.troubles] == ["ILLEGAL_GENERATION"]
