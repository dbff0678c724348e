"""Members without a shared key store divide the quota of the ad account, as members come and go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from tests.support.switches import switched

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(400), pytest.mark.slow("minutes of a quota")]

QUOTA, MINUTE = 30, 12.0
EVENTS = 8000
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
    """One member, then three, then one: together they never make more calls in a minute than docs/scaling.md allows.
    The minute is 12 s here: the test waits until the calls of members that left are a minute old."""
    api.set_faults(calls_per_minute=None)
    settings: dict[str, Any] = {
        "PINSTREAM_CALLS_PER_MINUTE": str(QUOTA),
        **switched(minute=MINUTE, count_every=1.0),
    }
    with Members(kafka, api, tmp_path, protocol, session=10.0, **settings) as group:
        write_backlog(kafka, group.topic)
        [one] = group.join(1)
        wait_for(lambda: api.calls >= 5, "calls of one member")
        assert divided_by(one) == 1
        others = group.join(2)
        all_three = [one, *others]
        wait_for(
            lambda: any(api.sent_by(member.name) for member in others), "the first call of a joining member"
        )
        joined = time.monotonic()
        group.until_divided(*all_three)
        until_each(all_three, lambda member: divided_by(member) == 3, "three members")
        begun, before = time.monotonic(), api.calls
        wait_for(lambda: api.calls >= before + 12, "calls of three members")
        # Each has a third of the quota, evenly over its first minute, beside the call that it begins with.
        assert time.monotonic() - begun >= (12 - len(all_three)) * MINUTE / QUOTA - 1.0
        leave(*others)
        group.until_divided(one)
        one.until(
            lambda: divided_by(one) == 1,
            "the others' calls to be a minute old",
        )
    calls = api.call_times
    maximum = max(sum(first <= one < first + MINUTE for one in calls) for first in calls)
    # The two add their parts to what was just used up, and until they know of each other they spread the whole quota.
    parts, rest = 2 * QUOTA / 3, 2 * (QUOTA - QUOTA / 3)
    bound = QUOTA + parts + rest * (begun - joined) / MINUTE + len(others)
    assert maximum <= min(bound, 3 * QUOTA - 1), "three members that divide nothing make 90"
