"""Two ways in which a query to a group's coordinator could end the process, and how they are avoided.

A group's offsets are queried only after its coordinator has answered (`describe_group`), and librdkafka never gives
up a query (`RenewedAdmin`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.adapters.kafka.cluster import RenewedAdmin
from consumer.adapters.kafka.groups import (
    GroupOffsets,
    ask_committed,
    ask_patiently,
    describe_group,
)
from tests.adapters.kafka.member import asker
from tests.adapters.kafka.member.scripted_member import FakeAdmin
from tests.support.kafka.broker import RealBroker
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
    """Offsets are queried only after the coordinator has described the group, also on a cluster without any
    group, and where a query fails because its connection logs in again."""
    admin = refusing(KafkaError.NOT_COORDINATOR, passing)
    offsets = GroupOffsets({"bootstrap.servers": "127.0.0.1:9"}, "shop", 5.0)
    offsets._client = client_of(admin)
    async with offsets:
        assert await offsets.positions([]) == {}
    assert admin.calls == ["describe", "describe", "describe", "offsets", "end"]


def test_what_describing_a_group_fails_with() -> None:
    """A broker that cannot describe groups, as the embedded one, is queried without that answer: it does no harm there.
    An error that does not pass by waiting is raised to the caller."""
    until = time.monotonic() + 1.0
    describe_group(client_of(refusing(KafkaError._UNSUPPORTED_FEATURE)), "shop", until)
    with pytest.raises(KafkaException):
        describe_group(client_of(refusing(KafkaError.GROUP_AUTHORIZATION_FAILED)), "shop", until)


def test_a_question_without_an_answer_is_asked_by_another_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query without an answer is repeated by a new client within its limit: the first may never get one,
    although the broker works."""
    monkeypatch.setattr("consumer.adapters.kafka.groups._LEAST_TRY", 0.1)
    silent, other = FakeAdmin(), refusing()
    client = client_of(silent, other)
    assert ask_patiently(lambda until: ask_committed(client, "shop", until), 4.0) == []
    assert silent.ended.wait(LATE)
    assert silent.calls == ["describe", "end"]
    assert other.calls == ["describe", "offsets"]


@pytest.mark.timeout(180)
def test_questions_that_were_given_up_do_not_end_the_process(own_kafka: RealBroker) -> None:
    """When the broker is away for longer than any query waits and then returns, the process lives and the next
    query is answered."""
    command = [sys.executable, "-m", asker.__name__]
    with ExitStack() as stack:
        children = {
            route: stack.enter_context(
                subprocess.Popen(
                    [*command, route, own_kafka.bootstrap_servers],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for route in asker.ROUTES
        }
        for child in children.values():
            stack.callback(child.kill)

        def said() -> dict[str, str]:
            return {
                route: child.stdout.readline().strip() for route, child in children.items() if child.stdout
            }

        assert said() == dict.fromkeys(asker.ROUTES, "answered")
        own_kafka.kill()
        for child in children.values():
            print(file=child.stdin, flush=True)
        assert said() == dict.fromkeys(asker.ROUTES, "unanswered")
        own_kafka.restart()
        ended = {route: (child.communicate(), child.returncode) for route, child in children.items()}
        assert ended == dict.fromkeys(asker.ROUTES, (("answered\n", ""), 0))
