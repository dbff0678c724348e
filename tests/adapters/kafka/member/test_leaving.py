"""The last commit of a partition, and leaving: brokers that delay an answer are waited for, as long as the deadline
allows.

No later commit can replace the last one: the next owner would send again all records settled since the one before. A
member that closes without leaving keeps its whole group waiting until its session times out.
"""

from __future__ import annotations

from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.engine.model import Position
from tests.adapters.kafka.member.scripted_member import Bench, Clock, taken

ILLEGAL_GENERATION = confluent_kafka.KafkaError.ILLEGAL_GENERATION
PASSING = [
    ILLEGAL_GENERATION,
    confluent_kafka.KafkaError.REBALANCE_IN_PROGRESS,
    confluent_kafka.KafkaError.STALE_MEMBER_EPOCH,
    confluent_kafka.KafkaError.NOT_COORDINATOR,
    confluent_kafka.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    confluent_kafka.KafkaError._TRANSPORT,
    confluent_kafka.KafkaError._AUTHENTICATION,
]
COMMIT = ("commit", False, [(0, 8, 2)])
GRACE = 25.0


def a_member(*partitions: int, **settings: Any) -> Bench:
    """Return a member that holds `partitions` and has an offset of each to commit."""
    bench = Bench(settings=settings)
    bench.reported.positions = [Position("t", one, 8, 2) for one in partitions]
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
    epochs = [one.epoch for one in bench.reported.assignments]
    bench.member.close(bench.reported.positions, epochs, clock.now + timeout)
    return [call[0] for call in bench.consumer.calls[before:]]


@pytest.mark.parametrize(
    ("held", "lasts", "leaves"),
    [((), 200, True), ((0,), 50, True), ((), 10_000, False)],
    ids=["it had none", "all were revoked", "a rebalance without end"],
)
def test_a_member_without_partitions_leaves_after_the_rebalance(
    clock: Clock, held: tuple[int, ...], lasts: int, leaves: bool
) -> None:
    """librdkafka delays its unsubscription, and a close would drop that. One without end does not delay a stop."""
    bench = a_member(*held)
    bench.fetch(taken(*held))
    passing(bench, clock, consume=0.1)
    bench.consumer.rebalance_lasts = lasts
    assert close(bench, clock) == ["unsubscribe", *(["goodbye"] if leaves else []), "close"]
    assert clock.now < 1000.0 + GRACE
    assert leaves or clock.now > 1000.0 + 0.8 * GRACE


def test_some_members_leave_without_waiting(clock: Clock) -> None:
    """With partitions, by closing alone; under KIP-848, whose ids stay; a static one, which comes back, not at all."""
    assert close(a_member(0), clock) == ["commit", "close"]
    bench = a_member(**{"group.protocol": "consumer"})
    passing(bench, clock, consume=0.1)
    assert close(bench, clock) == ["unsubscribe", "close"]
    assert clock.now <= 1000.0 + 0.2
    assert close(a_member(**{"group.instance.id": "one"}), clock) == ["close"]


def test_a_commit_that_a_rebalance_delayed_is_repeated(clock: Clock) -> None:
    """It was refused for its old generation; no error is reported."""
    bench = a_member(0)
    passing(bench, clock, commit=12.0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION]
    assert close(bench, clock) == ["commit", "commit", "close"]
    assert bench.reported.errors == []


@pytest.mark.parametrize("code", PASSING)
def test_a_last_commit_that_meets_what_passes_is_repeated(clock: Clock, code: int) -> None:
    """A rebalance, a moving coordinator, a lost connection: that of a revoked partition, alone and before its
    unassignment, and that of a member that leaves."""
    bench = a_member(0, 1)
    bench.consumer.commit_answers = [code, code]
    bench.fetch(taken(0))
    assert bench.calls("commit") == [COMMIT] * 3
    assert bench.consumer.calls[-1][0] == "incremental_unassign"
    bench = a_member(0)
    bench.consumer.commit_answers = [code] * 100
    assert close(bench, clock) == ["commit"] * 101 + ["close"]
    assert bench.reported.errors == []


def test_a_last_commit_that_cannot_be_made(clock: Clock) -> None:
    """A refusal that does not pass is reported after one try; metadata that are too large are left out."""
    bench = a_member(0)
    bench.consumer.commit_answers = [confluent_kafka.KafkaError.UNKNOWN_MEMBER_ID] * 5
    bench.fetch(taken(0))
    assert bench.calls("commit") == [COMMIT]
    assert [reported for reported, _ in bench.reported.errors] == ["UNKNOWN_MEMBER_ID"]
    bench = a_member(0)
    bench.reported.positions = [Position("t", 0, 8, 2, "a map")]
    bench.consumer.commit_answers = [confluent_kafka.KafkaError.OFFSET_METADATA_TOO_LARGE]
    bench.fetch(taken(0))
    assert bench.calls("commit") == [COMMIT, COMMIT]
    assert bench.reported.errors == []


@pytest.mark.parametrize(("timeout", "maximum"), [(0.3, 7), (0.0, 1)])
def test_repeated_refusals_do_not_delay_a_stop_beyond_its_deadline(
    clock: Clock, timeout: float, maximum: int
) -> None:
    """The failure is reported; without time left there is one try."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 1000
    names = close(bench, clock, timeout)
    assert 1 <= names.count("commit") <= maximum
    assert names[-1] == "close"
    assert [reported for reported, _ in bench.reported.errors] == ["ILLEGAL_GENERATION"]


def test_a_revoked_partition_has_less_time(clock: Clock) -> None:
    """The group, and this member's poll, wait for its commit."""
    bench = a_member(0)
    bench.consumer.commit_answers = [ILLEGAL_GENERATION] * 100
    bench.fetch(taken(0))
    assert 1002.0 < clock.now < 1004.0
    assert [code for code, _ in bench.reported.errors] == ["ILLEGAL_GENERATION"]
