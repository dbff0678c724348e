"""The whole group for the page: one question for all who look, and what its answer becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.kafka.groups import SharedPartition
from consumer.app import group
from consumer.app.group import GroupReader
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError
from tests.service.virtual_time import run
from tests.settings.environment import with_
from tests.web.building import TOPIC, partition, statistics


def reader(home: Path) -> GroupReader:
    """One that has partition 1 of a topic."""
    return GroupReader(with_(HOME=str(home)), lambda: statistics(partition(1)))


def test_many_askers_are_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come at once, and within seconds of the answer, get the same; later ones a new one. A member has its
    partitions and their lag; those without a member stand first."""
    asked: list[Any] = []

    async def answer(*question: Any) -> tuple[str, Sequence[SharedPartition]]:
        asked.append(question[2])
        await asyncio.sleep(2)
        holders = ["shop (10.0.0.7)", None, "shop (10.0.0.7)"]
        rows = [SharedPartition(TopicPartition(TOPIC, n), one, 5 + n) for n, one in enumerate(holders)]
        return "Stable", rows

    monkeypatch.setattr(group, "read_group", answer)

    async def check() -> None:
        one = reader(tmp_path)
        first, *others = await asyncio.gather(*(one.document() for _ in range(40)))
        assert others == [first] * 39
        assert first == {
            "state": "Stable",
            "problem": None,
            "members": [
                {"member": None, "lag": 6, "partitions": [{"topic": TOPIC, "partition": 1, "lag": 6}]},
                {
                    "member": "shop (10.0.0.7)",
                    "lag": 12,
                    "partitions": [
                        {"topic": TOPIC, "partition": 0, "lag": 5},
                        {"topic": TOPIC, "partition": 2, "lag": 7},
                    ],
                },
            ],
        }
        await asyncio.sleep(10)
        assert await one.document() == first
        assert asked == [[TopicPartition(TOPIC, 1)]]
        await asyncio.sleep(10)
        await one.document()
        assert len(asked) == 2

    run(check())


def test_brokers_that_do_not_say_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows why, and nothing else fails."""

    async def refuse(*_: Any) -> Any:
        raise KafkaError("Kafka: not now")

    monkeypatch.setattr(group, "read_group", refuse)
    found = run(reader(tmp_path).document())
    assert found == {"state": None, "members": [], "problem": "Kafka: not now"}
