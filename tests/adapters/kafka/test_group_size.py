"""The number of members of a group that hold partitions: on a scripted client, and on brokers of both protocols."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupType, KafkaError, KafkaException

from consumer.adapters.kafka.cluster import RenewedAdmin
from consumer.adapters.kafka.groups import GroupWatch
from consumer.errors import SettingsError
from tests.adapters.kafka.member.scripted_member import Clock, FakeAdmin, described
from tests.support.kafka.harness import Kafka, Member, unique
from tests.support.limits import LATE


class Bench:
    """A group watch on a clock that a test moves."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.errors = clock, list[tuple[str, str]]()
        self.admins: list[FakeAdmin] = []
        self.refusal: SettingsError | None = None
        client = RenewedAdmin({}, make_admin=self.make_admin)
        self.size = GroupWatch("g", client, lambda *reported: self.errors.append(reported))

    @property
    def admin(self) -> FakeAdmin:
        """Return the client that was made last."""
        return self.admins[-1]

    def make_admin(self, _: object) -> FakeAdmin:
        """Make another client, or raise `refusal`."""
        if self.refusal is not None:
            raise self.refusal
        self.admins.append(FakeAdmin())
        return self.admin

    def answer(self, with_: Any) -> int | None:
        """Answer the latest query with a description or an error code; return the number that the watch reports."""
        if isinstance(with_, int):
            self.admin.asked[-1].set_exception(KafkaException(KafkaError(with_)))
        else:
            self.admin.asked[-1].set_result(with_)
        return self.size.poll()

    def asks_within(self, seconds: float) -> bool:
        """Report whether the watch queries again after `seconds`, and not 10 ms earlier."""
        before = len(self.admin.asked)
        self.clock.now += seconds - 0.01
        assert self.size.poll() is None
        assert len(self.admin.asked) == before
        self.clock.now += 0.01
        assert self.size.poll() is None
        return len(self.admin.asked) == before + 1


@pytest.fixture
def bench(clock: Clock) -> Bench:
    """Return a watch that has just made its first query."""
    made = Bench(clock)
    assert made.size.poll() is None
    return made


def test_members_that_hold_partitions_are_counted(bench: Bench) -> None:
    """Without spares; nothing waits for the answer, and ten seconds later it is asked again."""
    assert bench.size.poll() is None
    assert len(bench.admin.asked) == 1
    assert bench.answer(described(2, 0, 1)) == 2
    assert bench.size.poll() is None
    assert bench.asks_within(10.0)


@pytest.mark.parametrize(
    "state", [ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING]
)
def test_while_a_group_rebalances(bench: Bench, state: Any) -> None:
    """A classic group has no number then; of a KIP-848 group those count that will get partitions."""
    assert bench.answer(described(2, 1, state=state)) is None
    assert bench.asks_within(0.5)
    group = described(3, 0, 0, state=ConsumerGroupState.UNKNOWN, of=ConsumerGroupType.CONSUMER)
    group.members[1].target_assignment = SimpleNamespace(topic_partitions=["p"])
    assert bench.answer(group) == 2


def test_a_member_that_waits_to_be_listed_queries_again_soon(bench: Bench) -> None:
    """A member that waits to be listed has the query repeated soon; the list is dropped when partitions come or go."""
    bench.admin.asked[-1].set_result(described(1))
    assert bench.size.poll("m1") == 1
    assert bench.asks_within(0.5)
    bench.admin.asked[-1].set_result(described(1, 0))
    assert bench.size.poll("m1") == 1
    assert list(bench.size.members) == ["m0", "m1"]
    assert bench.asks_within(10.0)
    bench.size.expire_cache()
    assert list(bench.size.members) == []
    assert bench.answer(described(1, 0)) is None
    assert list(bench.size.members) == []


def test_when_partitions_come_or_go_the_query_is_repeated_at_once(bench: Bench) -> None:
    """An answer from before is ignored, and a silent coordinator never has two questions."""
    for _ in range(3):
        bench.size.expire_cache()
        assert bench.size.poll() is None
    assert len(bench.admin.asked) == 1
    assert bench.answer(described(1)) is None
    assert len(bench.admin.asked) == 2
    assert bench.answer(described(1)) == 1
    bench.size.expire_cache()
    assert bench.size.poll() is None
    assert bench.answer(described(1, 1)) == 2


def test_a_query_without_an_answer_is_repeated_by_another_client(bench: Bench) -> None:
    """After half a minute, also if partitions came or went; the first client is destroyed."""
    first = bench.admin
    bench.size.expire_cache()
    bench.clock.now += 29.99
    assert bench.size.poll() is None
    assert bench.admins == [first]
    bench.clock.now += 0.01
    assert bench.size.poll() is None
    assert first.ended.wait(LATE)
    assert bench.answer(described(1, 1)) == 2
    assert len(bench.admins) == 2
    bench.size.client.close()
    assert bench.admin.ended.is_set()


@pytest.mark.parametrize("first", [True, False])
def test_a_client_that_cannot_be_made_is_made_later(clock: Clock, first: bool) -> None:
    """As while a certificate is replaced: the first client, or another."""
    bench = Bench(clock)
    if not first:
        assert bench.size.poll() is None
    bench.refusal = SettingsError("KAFKA_SSL_CA_LOCATION: ca.pem cannot be read: No such file or directory")
    clock.now += 30.0
    assert bench.size.poll() is None
    bench.refusal = None
    clock.now += 10.0
    assert bench.size.poll() is None
    assert len(bench.admins) == (1 if first else 2)
    assert bench.answer(described(1)) == 1


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, 0.5),
        (KafkaError._TRANSPORT, 0.5),
        (KafkaError._TIMED_OUT, 10.0),
        (KafkaError._UNSUPPORTED_FEATURE, 10.0),
    ],
)
def test_a_question_that_fails_is_asked_again(bench: Bench, code: int, again: float) -> None:
    """A query that fails is repeated; it reports neither a number nor trouble."""
    assert bench.answer(code) is None
    assert bench.asks_within(again)
    assert bench.errors == []


def test_a_missing_right_is_reported_once(bench: Bench) -> None:
    """A missing right is reported once, with what to do."""
    assert bench.answer(KafkaError.GROUP_AUTHORIZATION_FAILED) is None
    assert bench.asks_within(10.0)
    assert bench.answer(KafkaError.GROUP_AUTHORIZATION_FAILED) is None
    [(code, text)] = bench.errors
    assert code == "GROUP_AUTHORIZATION_FAILED"
    assert "grant DESCRIBE" in text
    assert "PINSTREAM_CALLS_PER_MINUTE" in text
    assert "does not become ready" in text


@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_each_member_is_reported_the_number_of_members(
    kafka: Kafka, topic: Callable[..., str], protocol: str
) -> None:
    """Each member's source reports one member, then the two of three that hold partitions, then one again."""
    name, group = topic(2), unique("group")
    config = {"group.protocol": protocol}
    if protocol == "classic":
        config |= {"partition.assignment.strategy": "cooperative-sticky", "heartbeat.interval.ms": "300"}
    reported: list[int] = []
    one = Member(kafka, [name], group, config=config, on_group_size=reported.append)
    async with one:
        await one.until(lambda: reported[-1:] == [1], "one member")
        second, third = (Member(kafka, [name], group, config=config) for _ in range(2))
        async with second, third:
            await one.until(lambda: reported[-1:] == [2], "two members with partitions")
            assert len(one.held) == 1
        await one.until(lambda: reported[-1:] == [1], "one member again")
    assert max(reported) == 2
