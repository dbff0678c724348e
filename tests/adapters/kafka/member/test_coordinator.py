"""How questions to a group's coordinator are asked, which could end the process (`describe_group`, `RenewedAdmin`)."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.adapters.kafka.cluster import RenewedAdmin
from consumer.adapters.kafka.groups import GroupOffsets, describe_group
from tests.adapters.kafka.member.scripted_member import FakeAdmin
from tests.support.limits import LATE


def refusing(*codes: int) -> FakeAdmin:
    """Return a client that describes its group after these refusals; the group has no offsets."""
    left = list(codes)

    def answer(call: str) -> Any:
        if call == "offsets":
            return SimpleNamespace(topic_partitions=[])
        return KafkaException(KafkaError(left.pop(0))) if left else None

    return FakeAdmin(answer)


def client_of(*admins: Any) -> RenewedAdmin:
    """Return a client that uses `admins` one after the other."""
    left = iter(admins)
    return RenewedAdmin({}, make_admin=lambda _: next(left))


@pytest.mark.parametrize("passing", [KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError._AUTHENTICATION])
async def test_offsets_are_asked_for_when_the_coordinator_has_answered(passing: int) -> None:
    """Only once it has described the group; a login in between, or a cluster without groups, is waited for."""
    admin = refusing(KafkaError.NOT_COORDINATOR, passing)
    offsets = GroupOffsets({"bootstrap.servers": "127.0.0.1:9"}, "shop", 5.0)
    offsets._client = client_of(admin)
    async with offsets:
        assert await offsets.positions([]) == {}
    assert admin.calls == ["describe", "describe", "describe", "offsets", "end"]


def test_what_describing_a_group_fails_with() -> None:
    """A broker that cannot describe groups is asked all the same; an error that does not pass is raised."""
    until = time.monotonic() + 1.0
    describe_group(client_of(refusing(KafkaError._UNSUPPORTED_FEATURE)), "shop", until)
    with pytest.raises(KafkaException):
        describe_group(client_of(refusing(KafkaError.GROUP_AUTHORIZATION_FAILED)), "shop", until)


async def test_a_question_without_an_answer_is_asked_by_another_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within its limit: the first client may never get one, although the broker works."""
    monkeypatch.setattr("consumer.adapters.kafka.groups._LEAST_TRY", 0.1)
    silent, other = FakeAdmin(), refusing()
    async with GroupOffsets({}, "shop", 4.0) as offsets:
        offsets._client = client_of(silent, other)
        assert await offsets.positions([]) == {}
    assert silent.ended.wait(LATE)
    assert silent.calls == ["describe", "end"]
    assert other.calls[:2] == ["describe", "offsets"]
