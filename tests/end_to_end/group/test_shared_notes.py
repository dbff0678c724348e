"""What one member meets holds for all that share its key store: a throttle, and a refused token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import COOPERATIVE, Member, Members, until_each
from tests.end_to_end.processes import TOKEN, WITHIN, wait_for
from tests.end_to_end.records import ENCODER, commerce_event
from tests.support.kafka.harness import Kafka, unique
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(300)]


@pytest.fixture
def store(redis: RedisServer) -> str:
    """The address of a key store for the members of one test."""
    return f"{redis.url}?prefix={unique('notes')}"


class Scene:
    """Two members with a shared key store; both have delivered to the account."""

    def __init__(self, kafka: Kafka, api: Api, group: Members) -> None:
        self._kafka, self._api, self._group = kafka, api, group
        self._written = 0
        self.one, self.other = group.join(2)
        group.until_divided(self.one, self.other)
        self.write(self.one, self.other)
        self.until_all_accepted()

    def write(self, *members: Member) -> None:
        """Write an event to each of these partitions."""
        producer = Producer({**self._kafka.config, "log_level": 0})
        for partition in sorted(frozenset().union(*(one.partitions() for one in members))):
            value = ENCODER.encode(commerce_event(f"event-{self._written}"))
            producer.produce(self._group.topic, value, partition=partition)
            self._written += 1
        assert producer.flush(WITHIN) == 0

    def until_all_accepted(self) -> None:
        """Wait until everything that was written has arrived, once."""
        wait_for(lambda: len(self._api.accepted()) == self._written, "all events to be accepted")
        assert set(self._api.accepted().values()) == {1}


def account(member: Member) -> dict[str, Any]:
    """The ad account's part of the member's status."""
    [one] = member.status()["destination"]["accounts"]
    found: dict[str, Any] = one
    return found


def test_a_throttle_that_one_member_meets_quiets_all(
    kafka: Kafka, api: Api, tmp_path: Path, store: str
) -> None:
    """No member calls for as long as the Retry-After says; then all continue."""
    with Members(kafka, api, tmp_path, COOPERATIVE, session=10.0, PINSTREAM_KEY_STORE=store) as group:
        scene = Scene(kafka, api, group)
        # Without the headers of a quota, which would say a minute.
        api.set_faults(throttled=Chance(first=1), wait="seconds", wait_seconds=8.0, calls_per_minute=None)
        before = api.calls
        # One call, which waits for no other: nothing else is on its way when the answer comes.
        scene.write(scene.one)
        both = (scene.one, scene.other)
        wait_for(lambda: all(account(each)["state"] == "throttled" for each in both), "both to be throttled")
        assert account(scene.other)["told_by_member"]
        assert not account(scene.one)["told_by_member"]
        wait_for(lambda: not any(each.calls_in_flight() for each in both), "no call on its way")
        made = api.calls
        assert made > before
        scene.write(*both)
        while True:
            calls = api.calls
            if any(account(each)["state"] != "throttled" for each in both):
                break
            assert calls == made
            time.sleep(0.1)
        scene.until_all_accepted()
        assert not account(scene.other)["told_by_member"]


def test_a_refused_token_that_one_member_meets_halts_all_and_a_new_one_ends_it_for_all(
    kafka: Kafka, api: Api, tmp_path: Path, store: str
) -> None:
    """The other member makes no call before it knows; each member ends its halt with a probe of its own."""
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    with Members(
        kafka,
        api,
        tmp_path,
        COOPERATIVE,
        session=10.0,
        PINSTREAM_KEY_STORE=store,
        PINTEREST_ACCESS_TOKEN="",
        PINTEREST_ACCESS_TOKEN_FILE=str(secret),
    ) as group:
        scene = Scene(kafka, api, group)
        api.set_token("pina_the_next_token")
        scene.write(scene.one)
        both = (scene.one, scene.other)
        until_each(both, lambda member: account(member)["state"] == "halted", "the halt")
        assert account(scene.other)["told_by_member"]
        assert scene.other.until_logged("halted")["reason"].endswith("as another member reported")
        assert not scene.one.until_logged("halted")["reason"].endswith("as another member reported")
        secret.write_text("pina_the_next_token")
        scene.write(scene.one, scene.other)
        until_each(both, lambda member: account(member)["state"] == "open", "the end of the halt")
        scene.until_all_accepted()
