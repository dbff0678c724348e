"""A topic is deleted and created again under one name: all records of the new topic are delivered, whatever was
committed.

The new log is longer than the old position by the next fetch, so no offset is out of range and nothing fails: only the
topic's id distinguishes the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka import KafkaError as RawError
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.end_to_end.api import Api
from tests.end_to_end.group.members import COOPERATIVE, EAGER, KIP_848, Protocol
from tests.end_to_end.processes import TOKEN, Process, run_environment, wait_for
from tests.end_to_end.records import commerce_event, committed_offsets, new_group, new_topic, write_events
from tests.support.kafka.harness import WITHIN, Kafka, committed

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]

OLD, NEW = 200, 700
PROTOCOLS = {"eager": EAGER, "cooperative": COOPERATIVE, "kip-848": KIP_848}


class Shop:
    """A topic, a group that reads it, and the ids of the written events."""

    def __init__(self, kafka: Kafka, api: Api, folder: Path, protocol: Protocol) -> None:
        self.kafka, self.api = kafka, api
        self.topic, self.group = new_topic(kafka, 1), new_group()
        self._folder = folder
        self._env = {
            **run_environment(folder, kafka, self.topic, self.group, api.url),
            **protocol.settings,
        }
        self.expected: set[str] = set()

    def write(self, prefix: str, count: int) -> None:
        """Write `count` records."""
        ids = [f"{prefix}-{number}" for number in range(count)]
        write_events(self.kafka, self.topic, [commerce_event(one) for one in ids])
        self.expected.update(ids)

    def recreate(self, partitions: int = 1) -> None:
        """Delete the topic, and create it again as soon as the broker allows it."""
        admin = AdminClient({**self.kafka.config, "log_level": 0})
        admin.delete_topics([self.topic])[self.topic].result(WITHIN)

        def made() -> bool:
            try:
                admin.create_topics([NewTopic(self.topic, partitions, 1)])[self.topic].result(WITHIN)
            except KafkaException as error:
                if error.args[0].code() != RawError.TOPIC_ALREADY_EXISTS:
                    raise
                return False
            return True

        wait_for(made, "the topic's new life")

    @contextmanager
    def service(self) -> Iterator[Process]:
        """A running `pinstream run`."""
        with Process(self._folder, "run", env=self._env) as process:
            yield process

    def until_delivered(self, process: Process) -> None:
        """Wait until every event was accepted; none may be accepted twice."""
        process.until(
            lambda: self.expected <= set(self.api.accepted()),
            f"all of {len(self.expected)} accepted",
            within=2 * WITHIN,
        )
        assert set(self.api.accepted().values()) == {1}

    def until_committed(self, process: Process, offset: int) -> None:
        """Wait until the group has committed this offset."""
        process.until(
            lambda: committed_offsets(self.kafka, self.group, self.topic, 1) == [offset],
            f"offset {offset} committed",
        )


@pytest.fixture(params=PROTOCOLS)
def shop(request: pytest.FixtureRequest, kafka: Kafka, api: Api, tmp_path: Path) -> Shop:
    """One for each group protocol."""
    return Shop(kafka, api, tmp_path, PROTOCOLS[request.param])


def test_under_a_running_member(shop: Shop) -> None:
    """From the old offset on, 200 of 700 records would never be read: all are read, and the log and /status say why."""
    shop.write("old", OLD)
    with shop.service() as process:
        process.until_settled(OLD)
        shop.until_committed(process, OLD)
        shop.recreate()
        shop.write("new", NEW)
        shop.until_delivered(process)
        reported = process.until_logged("topic_made_anew")
        assert (reported["level"], reported["topic"], reported["partitions"]) == ("error", shop.topic, 1)
        assert process.status()["counts"]["topics_made_anew"][shop.topic] >= 1
        shop.until_committed(process, NEW)
        assert process.stop()[0] == 0


def test_while_intake_is_paused(shop: Shop) -> None:
    """A refused token stops intake, so no fetch can show that the topic is another one. With a new token all
    events are delivered."""
    shop.write("old", OLD)
    with shop.service() as process:
        process.until_settled(OLD)
        shop.until_committed(process, OLD)
        shop.api.set_token("another")
        shop.write("late", 10)
        process.until_logged("halted")
        process.until(lambda: process.status()["room"] == 0, "no room")
        shop.expected -= {f"late-{number}" for number in range(10)}
        shop.recreate()
        shop.write("new", NEW)
        process.until_logged("topic_made_anew")
        shop.api.set_token(TOKEN)
        shop.until_delivered(process)
        shop.until_committed(process, NEW)
        assert process.stop()[0] == 0


def test_while_all_members_are_stopped(shop: Shop) -> None:
    """An offset of the old topic that is committed at the next start (a broker keeps it, or takes it late) does
    not count."""
    shop.write("old", OLD)
    with shop.service() as process:
        process.until_settled(OLD)
        shop.until_committed(process, OLD)
        assert process.stop()[0] == 0
    held = committed(shop.kafka, shop.group, shop.topic)
    shop.recreate()
    shop.write("new", NEW)
    late = Consumer({**shop.kafka.config, "group.id": shop.group, "log_level": 0})
    late.commit(
        offsets=[RawPartition(shop.topic, 0, held.offset, metadata=held.metadata)], asynchronous=False
    )
    late.close()
    with shop.service() as process:
        shop.until_delivered(process)
        process.until_logged("topic_made_anew")
        shop.until_committed(process, NEW)
        assert process.stop()[0] == 0


def test_with_another_number_of_partitions(shop: Shop) -> None:
    """The new topic has three partitions where the old one had one: the group finds them, and all are read."""
    shop.write("old", OLD)
    with shop.service() as process:
        process.until_settled(OLD)
        shop.until_committed(process, OLD)
        shop.recreate(partitions=3)
        shop.write("new", 3 * NEW)
        shop.until_delivered(process)
        process.until_logged("topic_made_anew")
        assert process.stop()[0] == 0
