"""Members that share a key store: copies of an event in different partitions meet different members, and go once.

Each event is written once to each of two partitions, which different members read at the same moment, while the API
takes its time to answer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import (
    BATCH,
    CONCURRENCY,
    COOPERATIVE,
    PARTITIONS,
    Member,
    Members,
    until_each,
)
from tests.end_to_end.processes import WITHIN, wait_for
from tests.end_to_end.records import ENCODER, commerce_event
from tests.support.kafka.harness import Kafka
from tests.support.redis_server import RedisServer, redis_server

EVENTS = 600


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may stop or kill; it keeps its data when it is killed."""
    with redis_server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as one:
        yield one


def members(kafka: Kafka, api: Api, folder: Path, server: RedisServer, quota: int = 5000) -> Members:
    """A group that shares this store."""
    return Members(
        kafka,
        api,
        folder,
        COOPERATIVE,
        session=6.0,
        PINSTREAM_KEY_STORE=server.url,
        PINSTREAM_REQUEST_TIMEOUT="3s",
        PINSTREAM_MAX_OPEN_EVENTS="160",  # none can claim all at once
        PINSTREAM_CALLS_PER_MINUTE=str(quota),
    )


def write_copies(kafka: Kafka, topic: str, prefix: str) -> None:
    """Each event twice: in one half of the partitions, and in the other half in the opposite order.

    So two members begin with different events, and meet in the middle.
    """
    producer = Producer({**kafka.config, "linger.ms": 5, "log_level": 0})
    half = PARTITIONS // 2
    values = [ENCODER.encode(commerce_event(f"{prefix}-{number}")) for number in range(EVENTS)]
    for number in range(EVENTS):
        producer.produce(topic, values[number], partition=number % half)
        producer.produce(topic, values[-1 - number], partition=half + number % half)
    assert producer.flush(WITHIN) == 0


def settled(*of: Member) -> Counter[str]:
    """The sum of these members' ledgers."""
    return sum((Counter(one.ledger()) for one in of), Counter())


def twice(api: Api) -> dict[str, int]:
    """Events that the API accepted more than once."""
    return {one: times for one, times in api.accepted().items() if times > 1}


@pytest.mark.timeout(240)
def test_no_copy_is_sent_twice_while_nobody_crashes(
    kafka: Kafka, api: Api, tmp_path: Path, server: RedisServer
) -> None:
    """Whatever the partition and the member, each copy is settled, as delivered or as a duplicate. The members' partner
    names differ, which both show as another mapping, and are ready nevertheless."""
    with members(kafka, api, tmp_path, server) as group:
        one, other = group.join(2)
        group.until_divided(one, other)
        api.set_faults(slow=Chance(share=1.0), slow_seconds=0.3)
        write_copies(kafka, group.topic, "calm")
        wait_for(lambda: settled(one, other)["duplicate"] >= EVENTS, "all copies to be settled")
        assert settled(one, other)["delivered"] == EVENTS
        assert all(member.ledger()["delivered"] for member in (one, other)), "one member had it all"
        assert len(api.accepted()) == EVENTS
        assert twice(api) == {}
        pair = (one, other)
        wait_for(
            lambda: [each.status()["members_differ"] for each in pair] == [["mapping"]] * 2, "both to see it"
        )
        assert [each.get("/readyz")[0] for each in pair] == [200, 200]


@pytest.mark.timeout(300)
def test_a_killed_member_loses_nothing_and_doubles_only_what_it_had_in_flight(
    kafka: Kafka, api: Api, tmp_path: Path, server: RedisServer
) -> None:
    """The killed member's claims end with its lease; then the others deliver what it had."""
    with members(kafka, api, tmp_path, server) as group:
        one, other = group.join(2)
        group.until_divided(one, other)
        api.set_faults(slow=Chance(share=1.0), slow_seconds=1.0)
        write_copies(kafka, group.topic, "killed")
        one.until(lambda: one.calls_in_flight() >= 2, "calls in flight")
        one.kill()
        api.set_faults()
        wait_for(lambda: len(api.accepted()) == EVENTS, "all events to be accepted")
        other.until(lambda: other.ledger()["open"] == 0, "the end of all work")
        assert len(twice(api)) <= BATCH * CONCURRENCY
        assert max(api.accepted().values()) <= 2


@pytest.mark.timeout(300)
def test_while_the_store_is_away_nothing_is_sent_unjudged(
    kafka: Kafka, api: Api, tmp_path: Path, server: RedisServer
) -> None:
    """The members wait and say why; they stay healthy and continue by themselves. Nothing is lost or sent twice."""
    with members(kafka, api, tmp_path, server) as group:
        one, other = group.join(2)
        group.until_divided(one, other)
        write_copies(kafka, group.topic, "before")
        wait_for(lambda: settled(one, other)["duplicate"] >= EVENTS, "all copies to be settled")
        server.kill()
        write_copies(kafka, group.topic, "during")
        until_each(
            (one, other),
            lambda member: "the key store fails" in member.get("/readyz")[1],
            "the reason",
        )
        assert all(member.get("/healthz")[0] == 200 for member in (one, other))
        sent = api.accepted().total()
        assert sent == EVENTS
        server.start()
        wait_for(lambda: settled(one, other)["duplicate"] >= 2 * EVENTS, "all copies to be settled")
        assert len(api.accepted()) == 2 * EVENTS
        assert twice(api) == {}
        until_each((one, other), lambda member: member.get("/readyz")[0] == 200, "ready members")


@pytest.mark.timeout(240)
def test_members_together_use_up_one_quota_and_no_more(
    kafka: Kafka, api: Api, tmp_path: Path, server: RedisServer
) -> None:
    """Together they make as many calls as the quota has; then both say that they wait for it."""
    quota = 10

    def throttled(member: Member) -> bool:
        accounts = json.loads(member.get("/status")[1])["destination"]["accounts"]
        return [one["state"] for one in accounts] == ["throttled"]

    with members(kafka, api, tmp_path, server, quota) as group:
        one, other = group.join(2)
        group.until_divided(one, other)
        before = api.calls
        write_copies(kafka, group.topic, "quota")
        wait_for(lambda: throttled(one) and throttled(other), "both members to wait for the quota")
        wait_for(lambda: api.calls - before >= quota, "the quota to be used up")
        assert api.calls - before == quota
