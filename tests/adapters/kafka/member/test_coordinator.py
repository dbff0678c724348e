"""Two ways in which a query to a group's coordinator could end the process, and how they are avoided.

A group's offsets are queried only after its coordinator has answered (`describe_group`), and librdkafka never gives
up a query (`RenewedAdmin`).
"""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import threading
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
from tests.support.kafka.broker import RealBroker
from tests.support.limits import LATE


class FakeAdmin:
    """An AdminClient that describes its group after `refusals`, or never if `silent`; the group has no offsets."""

    def __init__(self, *refusals: int, silent: bool = False) -> None:
        self.refusals = list(refusals)
        self.silent = silent
        self.calls: list[str] = []
        self.ended = threading.Event()

    def describe_consumer_groups(
        self, groups: list[str], **_: Any
    ) -> dict[str, concurrent.futures.Future[Any]]:
        """Refuse, describe the group, or never answer."""
        self.calls.append("describe")
        answer = concurrent.futures.Future[Any]()
        if self.silent:
            pass
        elif self.refusals:
            answer.set_exception(KafkaException(KafkaError(self.refusals.pop(0))))
        else:
            answer.set_result(None)
        return {groups[0]: answer}

    def list_consumer_group_offsets(self, _: Any, **__: Any) -> dict[str, concurrent.futures.Future[Any]]:
        """Return no offsets."""
        self.calls.append("offsets")
        answer = concurrent.futures.Future[Any]()
        answer.set_result(SimpleNamespace(topic_partitions=[]))
        return {"shop": answer}

    def __exit__(self, *_: object) -> None:
        self.calls.append("end")
        self.ended.set()


def client_of(*admins: Any) -> RenewedAdmin:
    """Return a client that uses `admins` one after the other."""
    left = iter(admins)
    return RenewedAdmin({}, make_admin=lambda _: next(left))


@pytest.mark.parametrize("passing", [KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError._AUTHENTICATION])
async def test_offsets_are_asked_for_when_the_coordinator_has_answered(passing: int) -> None:
    """Offsets are queried only after the coordinator has described the group, also on a cluster without any
    group, and where a query fails because its connection logs in again."""
    admin = FakeAdmin(KafkaError.NOT_COORDINATOR, passing)
    offsets = GroupOffsets({"bootstrap.servers": "127.0.0.1:9"}, "shop", 5.0)
    offsets._client = client_of(admin)
    async with offsets:
        assert await offsets.positions([]) == {}
    assert admin.calls == ["describe", "describe", "describe", "offsets", "end"]


def test_a_broker_that_cannot_describe_groups_is_asked_all_the_same() -> None:
    """A broker that cannot describe groups, as the embedded one, is queried without that answer: it does no
    harm there."""
    describe_group(client_of(FakeAdmin(KafkaError._UNSUPPORTED_FEATURE)), "shop", time.monotonic() + 1.0)


def test_a_refusal_is_the_caller_s() -> None:
    """An error that does not pass by waiting is raised to the caller."""
    with pytest.raises(KafkaException):
        describe_group(
            client_of(FakeAdmin(KafkaError.GROUP_AUTHORIZATION_FAILED)), "shop", time.monotonic() + 1.0
        )


def test_a_question_without_an_answer_is_asked_by_another_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query without an answer is repeated by a new client within its limit: the first may never get one,
    although the broker works."""
    monkeypatch.setattr("consumer.adapters.kafka.groups._LEAST_TRY", 0.1)
    silent, other = FakeAdmin(silent=True), FakeAdmin()
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
