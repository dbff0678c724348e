"""Members without a shared key store divide the quota of the ad account, as members come and go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.end_to_end.api import Api
from tests.end_to_end.group.members import (
    COOPERATIVE,
    KIP_848,
    PARTITIONS,
    Member,
    Members,
    Protocol,
    leave,
    until_each,
)
from tests.end_to_end.processes import WITHIN, wait_for
from tests.end_to_end.records import ENCODER, commerce_event
from tests.support.kafka.harness import Kafka

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(400)]

QUOTA = 60
EVENTS = 6000
"""More than the quota allows while the test runs."""


def divided_by(member: Member) -> int:
    """By how many members it says it divides the quota."""
    found: int = member.status()["destination"]["quota_divided_by"]
    return found


def write_backlog(kafka: Kafka, topic: str) -> None:
    """Write the same number of events to each partition."""
    producer = Producer({**kafka.config, "linger.ms": 5, "log_level": 0})
    for number in range(EVENTS):
        producer.produce(topic, ENCODER.encode(commerce_event(f"{number}")), partition=number % PARTITIONS)
    assert producer.flush(WITHIN) == 0


@pytest.mark.parametrize("protocol", [COOPERATIVE, KIP_848], ids=["classic", "kip-848"])
def test_members_that_come_and_go_keep_the_quota(
    kafka: Kafka, api: Api, tmp_path: Path, protocol: Protocol
) -> None:
    """One member, then three, then one: together they never make more calls in 60 seconds than the quota allows."""
    api.set_faults(calls_per_minute=None)
    with Members(
        kafka, api, tmp_path, protocol, session=10.0, PINSTREAM_CALLS_PER_MINUTE=str(QUOTA)
    ) as group:
        write_backlog(kafka, group.topic)
        [one] = group.join(1)
        wait_for(lambda: api.calls >= 5, "calls of one member")
        assert divided_by(one) == 1
        others = group.join(2)
        all_three = [one, *others]
        group.until_divided(*all_three)
        until_each(all_three, lambda member: divided_by(member) == 3, "three members")
        begun, before = time.monotonic(), api.calls
        wait_for(lambda: api.calls >= before + 12, "calls of three members")
        # Each has a third of the quota, evenly over its first minute, beside the call that it begins with.
        assert time.monotonic() - begun >= (12 - len(all_three)) * 60.0 / QUOTA - 1.0
        leave(*others)
        group.until_divided(one)
        one.until(lambda: divided_by(one) == 1, "the others' calls to be a minute old", within=150.0)
    calls = api.call_times
    most = max(sum(first <= one < first + 60.0 for one in calls) for first in calls)
    assert most <= QUOTA + 2 * QUOTA // 3
