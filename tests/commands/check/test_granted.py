"""What `check` makes of brokers' answers about rights: only a refusal counts as one. (The rights themselves are tested
on a broker.)"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer.commands.check import granted


class Brokers:
    """Brokers that answer each question about a topic with `error`; an AdminClient. `controller`: whether they have
    one."""

    def __init__(self, error: int, *, controller: bool = True) -> None:
        self._error = KafkaException(KafkaError(error))
        self._controller = controller
        self.asked: list[Any] = []

    def __call__(self, config: object) -> Brokers:
        return self

    def __enter__(self) -> Brokers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def list_topics(self, **_: object) -> Any:
        brokers = {1: None} if self._controller else {}
        return SimpleNamespace(controller_id=1, brokers=brokers, topics={})

    def _answer(self, name: object) -> dict[Any, Future[Any]]:
        self.asked.append(name)
        answer = Future[Any]()
        answer.set_exception(self._error)
        return {name: answer}

    def create_topics(
        self, topics: Sequence[Any], *, validate_only: bool, **_: object
    ) -> dict[Any, Future[Any]]:
        assert validate_only
        return self._answer(topics[0].topic)

    def describe_topics(self, topics: Any, **_: object) -> dict[Any, Future[Any]]:
        return self._answer("orders")

    def describe_configs(self, resources: Sequence[Any], **_: object) -> dict[Any, Future[Any]]:
        return self._answer(resources[0])


@pytest.mark.parametrize(
    ("error", "refuses", "lacks"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, True, True),
        (KafkaError.POLICY_VIOLATION, True, False),
        (KafkaError.INVALID_REPLICATION_FACTOR, True, False),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, True, False),
        (KafkaError.UNSUPPORTED_VERSION, False, False),
        (KafkaError.REQUEST_TIMED_OUT, False, False),
        (KafkaError.NOT_CONTROLLER, False, False),
        (KafkaError._TIMED_OUT, False, False),
    ],
)
def test_only_a_refusal_counts(
    error: int, refuses: bool, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a creation, which is only validated: an answer against the topic. Of a description: missing rights alone."""
    monkeypatch.setattr(granted, "admin_client", Brokers(error))
    found = granted.uncreatable({}, {"orders.dead-letters": "orders"}, 1.0)
    assert {topic: one.code() for topic, one in found.items()} == (
        {"orders.dead-letters": error} if refuses else {}
    )
    operations = ("READ", "WRITE", "DESCRIBE_CONFIGS")
    expected = dict.fromkeys(operations, ["orders"] if lacks else [])
    assert granted.lacking({}, operations, ["orders"], 1.0) == expected


def test_brokers_without_a_controller_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded broker would never answer: nothing is asked, and nothing counts as missing."""
    brokers = Brokers(KafkaError.TOPIC_AUTHORIZATION_FAILED, controller=False)
    monkeypatch.setattr(granted, "admin_client", brokers)
    assert granted.lacking({}, ("READ",), ["orders"], 1.0) == {"READ": []}
    assert granted.uncreatable({}, {"orders.dead-letters": "orders"}, 1.0) == {}
    assert brokers.asked == []
