"""A group's offsets are asked for only once its coordinator has answered: before that librdkafka would crash."""

from __future__ import annotations

import concurrent.futures
import time
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.adapters.kafka.groups import GroupOffsets, meet_coordinator


class FakeAdmin:
    """Describes its group after this many refusals; answers with the offsets of a group without any."""

    def __init__(self, *refusals: int) -> None:
        self.refusals = list(refusals)
        self.calls: list[str] = []

    def describe_consumer_groups(
        self, groups: list[str], **_: Any
    ) -> dict[str, concurrent.futures.Future[Any]]:
        """Refused, or described."""
        self.calls.append("describe")
        answer = concurrent.futures.Future[Any]()
        if self.refusals:
            answer.set_exception(KafkaException(KafkaError(self.refusals.pop(0))))
        else:
            answer.set_result(None)
        return {groups[0]: answer}

    def list_consumer_group_offsets(self, _: Any, **__: Any) -> dict[str, concurrent.futures.Future[Any]]:
        """None at all."""
        self.calls.append("offsets")
        answer = concurrent.futures.Future[Any]()
        answer.set_result(SimpleNamespace(topic_partitions=[]))
        return {"shop": answer}

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")


async def test_offsets_are_asked_for_when_the_coordinator_has_answered() -> None:
    """It is asked who is in the group until it says so, on a cluster that never had a group."""
    admin = FakeAdmin(KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE)
    offsets = GroupOffsets({"bootstrap.servers": "127.0.0.1:9"}, "shop", 5.0)
    offsets._client.__exit__(None, None, None)  # the real one
    offsets._client = admin  # type: ignore[assignment]
    async with offsets:
        assert await offsets.positions([]) == {}
    assert admin.calls == ["describe", "describe", "describe", "offsets", "end"]


def test_a_broker_that_cannot_describe_groups_is_asked_all_the_same() -> None:
    """The embedded one: there the question does no harm."""
    meet_coordinator(FakeAdmin(KafkaError._UNSUPPORTED_FEATURE), "shop", time.monotonic() + 1.0)


def test_a_refusal_is_the_caller_s() -> None:
    """An error that waiting does not help against is raised."""
    with pytest.raises(KafkaException):
        meet_coordinator(FakeAdmin(KafkaError.GROUP_AUTHORIZATION_FAILED), "shop", time.monotonic() + 1.0)
