"""The source returns only records of the epoch announced last, and none that a cancelled fetch left behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from confluent_kafka import Message

from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.source import KafkaSource
from consumer.engine.messages import Assignment
from consumer.engine.model import Position, TopicPartition
from tests.adapters.kafka.member.scripted_member import FakeConsumer, Ids, brings, given, message, offsets
from tests.adapters.kafka.member.test_forgotten import FORGOTTEN, ended
from tests.support.certificates import Authority
from tests.support.kafka.harness import until


class Listener:
    """A listener that records epochs and losses."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.losses: list[TopicPartition] = []

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Record the epochs."""
        self.epochs += [one.epoch for one in assignments]

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Return no positions to commit."""
        return ()

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Record the partitions."""
        self.losses += partitions


async def test_partitions_that_come_while_a_certificate_is_replaced_wait(tmp_path: Path) -> None:
    """The client for their topics' ids cannot be made; a warning says why."""
    authority = tmp_path / "ca.pem"
    authority.write_text(Authority(tmp_path, "brokers").file.read_text())
    fake = FakeConsumer({})
    errors: list[tuple[str, str]] = []
    config = {
        "bootstrap.servers": "127.0.0.1:1",
        "group.id": "g",
        "security.protocol": "ssl",
        "ssl.ca.location": str(authority),
    }
    listener = Listener()
    hooks = Hooks(listener, on_error=lambda *reported: errors.append(reported), counts_members=True)
    source = KafkaSource(config, ["t"], hooks, make_consumer=lambda _: cast(Any, fake))
    await source.start()
    authority.unlink()
    fake.script = [given(0)]
    for _ in range(2):
        assert await source.fetch(100, 0.0) == []
    await until(lambda: len(errors) > 0, "the trouble")
    [(code, text)] = errors
    assert (code, listener.epochs) == ("_FAIL", [])
    assert text.startswith("a partition waits for the brokers to say where to start: asking again")
    assert f"KAFKA_SSL_CA_LOCATION: {authority} cannot be read" in text
    await source.close(5.0)


async def test_what_a_cancelled_fetch_left_is_dropped_when_its_partition_is_lost() -> None:
    """These records come again, under the next epoch only."""
    made: list[FakeConsumer] = []

    def make(config: dict[str, Any]) -> Any:
        made.append(FakeConsumer(config))
        return made[-1]

    listener = Listener()
    config = {"bootstrap.servers": "nowhere:9092", "group.id": "g", "group.protocol": "consumer"}
    hooks = Hooks(listener)
    source = KafkaSource(config, ["t"], hooks, make_consumer=make, make_topic_ids=lambda *_, **__: Ids())
    await source.start()
    made[-1].script = [given(0)]
    for _ in range(2):
        assert await source.fetch(100, 0.0) == []
    under_way, cancelled = threading.Event(), threading.Event()

    def slowly(_: FakeConsumer) -> list[Message]:
        under_way.set()
        assert cancelled.wait(10)
        return [message(4), ended(FORGOTTEN)]

    made[-1].script = [slowly]
    fetching = asyncio.create_task(source.fetch(100, 0.0))
    assert await asyncio.to_thread(under_way.wait, 10)
    fetching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await fetching
    cancelled.set()

    assert await source.fetch(100, 0.0) == []
    assert listener.losses == [TopicPartition("t", 0)]
    made[-1].script = [given(0)]
    for _ in range(2):
        assert await source.fetch(100, 0.0) == []
    made[-1].script = [brings(message(4))]
    [chunk] = await source.fetch(100, 0.0)
    assert (chunk.epoch, offsets([chunk])) == (listener.epochs[-1], [4])
    assert len(set(listener.epochs)) == 2
    await source.close(5.0)
