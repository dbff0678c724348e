"""A member without partitions knows that it has joined its group, so that it counts as ready, too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.adapters.kafka.member.scripted_member import Bench, described, given, parts
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import Kafka, Member, unique
from tests.support.limits import LATE


def test_a_member_without_partitions_learns_from_the_coordinator_that_it_joined() -> None:
    """Under KIP-848 no callback says so: it asks until it is listed."""
    bench = Bench(settings={"group.protocol": "consumer"})
    bench.coordinator.answer = lambda _: described(0)

    def check() -> bool:
        bench.member._watch.due = bench.member.group_watch._due = 0.0
        bench.fetch()
        return bench.member.end_offsets().joined

    assert [check() for _ in range(4)] == [False] * 4
    bench.coordinator.answer = lambda _: described(0, 0)
    assert wait_until(check, 1.0)
    asked = len(bench.coordinator.asked)
    assert [check() for _ in range(4)] == [True] * 4
    assert len(bench.coordinator.asked) == asked


def test_a_member_that_joins_asks_on_time_though_no_record_comes() -> None:
    """It is ready only once it is listed, and a rolling update waits for that: no fetch may hold up the question."""
    bench = Bench(settings={"group.protocol": "consumer"})
    bench.member.is_wanted = lambda: False
    bench.member._watch.due = begun = time.monotonic() + 0.05
    bench.member.fetch(100, 10 * LATE)
    assert time.monotonic() - begun < LATE
    assert len(bench.coordinator.asked) == 1


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_member_without_a_coordinator_says_so(protocol: str) -> None:
    """In its report and in the log, again and again, until the client has one."""
    bench = Bench(settings={"group.protocol": protocol})

    def check(state: str, number: int) -> float | None:
        group = f', "topics":{{ }} , "cgrp": {{ "state": "{state}", "stateage": 0 }} }}'
        broker = (
            '"b":{ "name":"b", "nodeid":-1, "source":"configured", "state":"UP", "rx":1, "waitresp_cnt":0 }'
        )
        bench.consumer.config["stats_cb"](f'{{ "ts":{number * 2_000_000}, "brokers":{{ {broker} }}' + group)
        bench.member._watch.due = 0.0
        bench.fetch()
        return bench.member.end_offsets().coordinator_silent

    assert [check("wait-coord", number) for number in range(5)] == [None, None, None, 6.0, 8.0]
    assert [code for code, _ in bench.reported.errors] == ["_WAIT_COORD"] * 2
    assert "No coordinator of the group answers (for 8 s): " in bench.reported.errors[-1][1]
    assert check("up", 5) is None
    assert len(bench.reported.errors) == 2


def test_a_member_that_lost_its_partitions_has_to_be_seen_again() -> None:
    """When a member loses its partitions, the coordinator's earlier answer no longer counts."""
    bench = Bench(settings={"group.protocol": "consumer"})
    bench.coordinator.answer = lambda _: described(0, 0)
    bench.assign(0)
    assert bench.member.end_offsets().joined
    bench.coordinator.answer = None
    bench.member._watch.due = 0.0
    bench.fetch(lambda consumer: consumer.on.on_lost(consumer, parts(0)) or [])
    assert not bench.member.end_offsets().joined


def test_a_member_of_a_classic_group_queries_no_coordinator() -> None:
    """A member of a classic group queries no coordinator: an assignment comes there, also an empty one."""
    bench = Bench()
    bench.fetch()
    assert not bench.member.end_offsets().joined
    bench.fetch(given())
    assert bench.member.end_offsets().joined
    assert bench.coordinator.asked == []


@pytest.mark.real_kafka
async def test_a_spare_member_knows_that_it_has_joined(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """Of two members and one partition, both learn that they have joined, the one without the partition too."""
    name, group = topic(1), unique("group")
    one, other = (Member(kafka, [name], group, config=protocol) for _ in range(2))
    async with one:
        await one.until(lambda: bool(one.held), "the partition")
        assert (await one.source.end_offsets()).joined
        async with other:

            async def joined() -> bool:
                return (await other.source.end_offsets()).joined

            await other.until_async(joined, "what the group gives it, nothing")
            await other.until(lambda: len(one.held) + len(other.held) == 1, "one owner")
