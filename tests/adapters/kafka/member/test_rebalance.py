"""Rebalances on a real broker: revocations, commits, unassignments, losses and pauses, under each group protocol."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.commits import commit_done
from consumer.engine.model import Position, TopicPartition
from consumer.errors import InvariantViolation, KafkaError
from tests.support.kafka.harness import PROTOCOLS, Kafka, Member, committed, produce, unique, until
from tests.support.limits import LATE

pytestmark = pytest.mark.real_kafka

PARTITIONS = 4
BOTH_GIVE = 6
"""Number of partitions with which each of two members has to hand one to a third."""


def fill(
    kafka: Kafka, topic: str, label: str, count: int = 100, partitions: int = PARTITIONS
) -> Counter[bytes | None]:
    """Write `count` records to each partition; return the values that a complete reader must have seen, once each."""
    expected: Counter[bytes | None] = Counter()
    for partition in range(partitions):
        values: list[bytes | None] = [f"{label}-{partition}-{number}".encode() for number in range(count)]
        produce(kafka, topic, values, partition=partition)
        expected.update(values)
    return expected


async def test_second_member_takes_over_where_the_first_committed(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """No record is skipped or doubled; each assignment has its epoch; a commit of another's is not sent."""
    name, group = topic(PARTITIONS), unique("group")
    expected = fill(kafka, name, "before")
    async with Member(kafka, [name], group, config=protocol) as first:
        await first.until(lambda: first.counts == expected, "all records")
        async with Member(kafka, [name], group, config=protocol) as second:
            await second.until(lambda: len(second.held) == 2 and len(first.held) == 2, "two partitions each")
            assert first.revocations
            for one in second.held.values():
                assert (one.start, one.commit_start) == (100, False)
                assert committed(kafka, group, name, one.partition).offset == 100
            assert not first.held.keys() & second.held.keys()
            gone = next(iter(second.held))
            assert await first.source.commit([Position(*gone, 1, 0)]) == commit_done((), "_ASSIGNMENT_LOST")
            assert committed(kafka, group, *gone).offset == 100
            expected += fill(kafka, name, "after")
            await second.until(lambda: first.counts + second.counts == expected, "each record once")
        # The second leaves without committing its last records, so the first reads those again.
        await first.until(lambda: len(first.held) == PARTITIONS, "all partitions back")
        await first.until(lambda: first.counts == expected, "the first to have all")
    assert first.losses == second.losses == []
    for member in (first, second):
        epochs = [one.epoch for one in member.assignments]
        assert epochs == sorted(set(epochs))
    assert not {one.epoch for one in first.assignments} & {one.epoch for one in second.assignments}


async def test_draining_may_take_its_time(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """While the listener drains, the partition has no other owner, and the member stays in the group."""
    name, group = topic(PARTITIONS), unique("group")
    fill(kafka, name, "one", 5)
    drained = asyncio.Event()
    async with Member(kafka, [name], group, config=protocol) as first:
        await first.until(lambda: len(first.records) == PARTITIONS * 5)
        first.on_revoked = drained.wait
        async with Member(kafka, [name], group, config=protocol) as second:
            await first.until(lambda: len(first.revocations) > 0, "a revocation")
            assert await first.commit() == commit_done((), "REBALANCE_IN_PROGRESS")
            assert not set(first.revocations[0]) & second.held.keys()
            drained.set()
            await second.until(lambda: len(second.held) == 2, "two partitions")
            assert second.records == []
            assert all(one.start == 5 for one in second.held.values())
    assert first.losses == []


async def test_draining_too_long_is_given_up(kafka: Kafka, topic: Callable[..., str]) -> None:
    """The listener is cancelled and told of the loss; nothing is committed; the group goes on."""
    name, group = topic(PARTITIONS), unique("group")
    fill(kafka, name, "one", 5)
    async with Member(kafka, [name], group, revoke_timeout=0.5) as first:
        await first.until(lambda: len(first.records) == PARTITIONS * 5)
        first.on_revoked = asyncio.Event().wait
        async with Member(kafka, [name], group) as second:
            await second.until(lambda: len(second.held) == 2, "two partitions")
            assert first.losses == first.revocations
            assert all(one.start is None for one in second.held.values())
            assert "_TIMED_OUT" in {code for code, _ in first.errors}
            await second.until(lambda: len(second.records) == 10, "the records again")
        first.on_revoked = None


async def test_close_does_not_hang_in_a_rebalance(kafka: Kafka, topic: Callable[..., str]) -> None:
    """A close while the listener drains gives it half the deadline, then the group is left (backbeat PR 2818)."""
    name, group = topic(PARTITIONS), unique("group")
    async with Member(kafka, [name], group, revoke_timeout=60) as first:
        await first.until(lambda: len(first.held) == PARTITIONS)
        first.on_revoked = asyncio.Event().wait
        async with Member(kafka, [name], group) as second:
            await first.until(lambda: len(first.revocations) > 0, "a revocation")
            started = time.monotonic()
            await first.source.close(2.0)
            assert time.monotonic() - started < 2 + LATE
            await second.until(lambda: len(second.held) == PARTITIONS, "all partitions")
    assert "closed without leaving" not in str(first.errors)


async def test_a_member_that_leaves_while_another_drains_does_not_delay_the_group(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """The others do not wait for its session to time out (45 s; the test waits 30)."""
    name, group = topic(BOTH_GIVE), unique("group")
    async with (
        Member(kafka, [name], group, config=protocol) as first,
        Member(kafka, [name], group, config=protocol) as second,
    ):
        await second.until(lambda: len(second.held) == len(first.held) == 3)
        draining = Draining(first, second)
        async with Member(kafka, [name], group, config=protocol) as third:
            other = await draining.until_begun()
            await until_waiting(other, third)
            leaving = asyncio.create_task(third.stop())
            await asyncio.wait([leaving], timeout=0.3)
            draining.end()
            await leaving
        await first.until(lambda: len(first.held) + len(second.held) == BOTH_GIVE, "all partitions")
        late = fill(kafka, name, "late", 5, BOTH_GIVE)
        await first.until(lambda: first.counts + second.counts == late, "records of all partitions")
    assert third.errors == []


async def test_a_member_that_leaves_while_another_drains_commits_what_is_settled(
    kafka: Kafka, topic: Callable[..., str]
) -> None:
    """Its commit is delayed, refused for its old generation, and repeated: the next owner starts there."""
    name, group = topic(BOTH_GIVE), unique("group")
    async with Member(kafka, [name], group) as first, Member(kafka, [name], group) as second:
        await second.until(lambda: len(second.held) == len(first.held) == 3)
        expected = fill(kafka, name, "one", 5, BOTH_GIVE)
        await first.until(lambda: first.counts + second.counts == expected, "all records")
        draining = Draining(first, second)
        async with Member(kafka, [name], group) as third:
            other = await draining.until_begun()
            await until_waiting(other, third)
            leaving = asyncio.create_task(other.stop(commit=True))
            await asyncio.wait([leaving], timeout=3.5)  # longer than commits of revoked partitions are tried
            draining.end()
            await leaving
            left = draining.drainer
            await left.until(lambda: len(left.held) + len(third.held) == BOTH_GIVE, "all partitions")
            expected += fill(kafka, name, "two", 5, BOTH_GIVE)
            await left.until(
                lambda: first.counts + second.counts + third.counts == expected, "each record once"
            )
    assert other.errors == []


class Draining:
    """Two members whose partitions are revoked: the first of them to be asked drains until `end`."""

    def __init__(self, *both: Member) -> None:
        self._over = {id(one): asyncio.Event() for one in both}
        self._both = both
        self._before = [len(one.revocations) for one in both]
        for one in both:
            one.on_revoked = self._over[id(one)].wait

    async def until_begun(self) -> Member:
        """Wait until one drains; return the other one, which drains at once."""
        await self._both[0].until(lambda: bool(self._asked()), "a revocation")
        self.drainer = self._asked()[0]
        [other] = [one for one in self._both if one is not self.drainer]
        self._let_go(other)
        return other

    def _asked(self) -> list[Member]:
        return [one for one, n in zip(self._both, self._before, strict=True) if len(one.revocations) > n]

    def end(self) -> None:
        """End the draining."""
        self._let_go(self.drainer)

    def _let_go(self, member: Member) -> None:
        member.on_revoked = None
        self._over[id(member)].set()


async def until_waiting(*members: Member) -> None:
    """Wait for some heartbeats, so that all `members` have learned of the rebalance and joined again."""
    goals = [(member, member.fetches + 8) for member in members]
    await until(lambda: all(member.fetches >= goal for member, goal in goals), "eight fetches of each")


async def test_lost_partitions_are_never_committed(kafka: Kafka, topic: Callable[..., str]) -> None:
    """A member that did not poll for too long gets `lost`, not `revoked`, and commits nothing (librdkafka #5604)."""
    name, group = topic(PARTITIONS), unique("group")
    fill(kafka, name, "one", 5)
    hasty = {"max.poll.interval.ms": 1000, "session.timeout.ms": 1000, "heartbeat.interval.ms": 200}
    async with Member(kafka, [name], group, config=hasty) as first:
        await first.until(lambda: len(first.records) == PARTITIONS * 5)
        stale = [*first.next.values()]
        await first.halt()
        # Asked to give back before it is excluded, it would hear of that first.
        with AdminClient({"bootstrap.servers": kafka.bootstrap_servers}) as admin:
            asked = partial(admin.describe_consumer_groups, [group])
            await until(lambda: not asked()[group].result(10).members, "a group without members")
        async with Member(kafka, [name], group) as second:
            await second.until(lambda: len(second.held) == PARTITIONS, "all partitions")
            first.go_on()
            await first.until(lambda: len(first.losses) > 0, "to hear of the loss")
            assert first.revocations == []
            assert all(one.start is None for one in second.assignments[:PARTITIONS])
            assert (await first.source.commit(stale)).committed == ()
            # It returns as a new member, with new epochs.
            await first.until(lambda: len(first.held) == 2, "two partitions again")
            assert min(one.epoch for one in first.held.values()) > PARTITIONS
    assert "_MAX_POLL_EXCEEDED" in {code for code, _ in first.errors}


async def test_a_pause_is_for_the_assignments_of_now(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """Not for what is assigned again with room (parallel-consumer #857); and for all that comes without room."""
    name, group = topic(PARTITIONS), unique("group")
    expected: Counter[bytes | None] = Counter()
    async with Member(kafka, [name], group, config=protocol) as first:
        for before, later in ((0, 1000), (1000, 0)):
            await first.until(lambda: len(first.held) == PARTITIONS, "all partitions")
            await first.obeys(before)
            async with Member(kafka, [name], group, config=protocol) as second:
                await second.until(lambda seen=second: len(seen.held) == len(first.held) == 2)  # type: ignore[misc]
                await first.obeys(later)
            await first.until(lambda: len(first.held) == PARTITIONS, "all partitions back")
            seen = first.counts
            expected.update(fill(kafka, name, f"after {before}", 5))
            if not later:
                await first.obeys(0)
                await first.obeys(0)
                assert first.counts == seen
                await first.obeys(1000)
            await first.until(lambda: first.counts == expected, "records of all partitions")
            assert (await first.commit()).failure is None


async def test_failures_of_listeners_and_mixed_protocols_end_the_run(
    kafka: Kafka, topic: Callable[..., str]
) -> None:
    """The fetch raises the listener's exception; a strategy that the group does not share is named."""
    name, group = topic(), unique("group")

    class Broken(Member):
        """A member that raises at its first assignment."""

        async def assigned(self, assignments: object) -> None:
            raise InvariantViolation("the ledger is wrong")

    async with Broken(kafka, [name], unique("group")) as member:
        assert isinstance(await member.until_fails(), InvariantViolation)
    async with Member(kafka, [name], group) as first:
        await first.until(lambda: len(first.held) == 1)
        async with Member(kafka, [name], group, config=PROTOCOLS["eager"]) as other:
            failure = await other.until_fails()
        assert isinstance(failure, KafkaError)
        assert "assignment strategy" in str(failure)
        assert first.held.keys() == {TopicPartition(name, 0)}
