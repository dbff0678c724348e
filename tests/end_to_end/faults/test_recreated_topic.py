"""A topic is deleted and created again under one name: all records of the new topic are delivered, whatever was
committed.

The new log is longer than the old position by the next fetch, so no offset is out of range and nothing fails: only the
topic's id distinguishes the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

ANOTHER = pytest.mark.slow("the same under another group protocol")
OLD, NEW = 200, 700


class Shop:
    """A topic, a group that reads it, and the ids of the written events."""

    def __init__(self, kafka: Kafka, api: Api, folder: Path, protocol: Protocol) -> None:
        self.kafka, self.api = kafka, api
        self.topic, self.group = new_topic(kafka, 1), new_group()
        self._folder = folder
        self._env = {
            **run_environment(folder, kafka, self.topic, self.group, api.url),
            **protocol.settings,
            # How soon librdkafka sees that a topic is gone, and how many partitions it has.
            "KAFKA_TOPIC_METADATA_REFRESH_INTERVAL_MS": "1000",
        }
        self.expected: set[str] = set()

    def write(self, prefix: str, count: int) -> list[str]:
        """Write `count` records; return the ids of their events."""
        ids = [f"{prefix}-{number}" for number in range(count)]
        write_events(self.kafka, self.topic, [commerce_event(one) for one in ids])
        self.expected.update(ids)
        return ids

    def recreate(self, prefix: str, partitions: int = 1) -> None:
        """Delete the topic, create it again once the broker allows it, and write `NEW` records for each partition."""
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
        self.write(prefix, partitions * NEW)

    @contextmanager
    def service(self) -> Iterator[Process]:
        """A running `pinstream run`."""
        with Process(self._folder, "run", env=self._env) as process:
            yield process

    def until_delivered(self, process: Process, times: int) -> None:
        """Wait until every event was accepted, and the log has `times` new topics. Nothing is accepted twice."""
        process.until(
            lambda: self.expected <= set(self.api.accepted()),
            f"all of {len(self.expected)} accepted",
            within=2 * WITHIN,
        )
        assert set(self.api.accepted().values()) == {1}
        process.until(lambda: len(renewals(process)) >= times, "the word of a new topic")

    def until_committed(self, process: Process, offset: int) -> None:
        """Wait until the group has committed this offset."""
        process.until(
            lambda: committed_offsets(self.kafka, self.group, self.topic, 1) == [offset],
            f"offset {offset} committed",
        )


def renewals(process: Process) -> list[dict[str, Any]]:
    """What the log says of new topics."""
    return [line for line in process.log if line["event"] == "topic_made_anew"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(EAGER, id="eager", marks=ANOTHER),
        pytest.param(COOPERATIVE, id="cooperative"),
        pytest.param(KIP_848, id="kip-848", marks=ANOTHER),
    ],
)
def test_all_of_a_new_topic_is_delivered(kafka: Kafka, api: Api, tmp_path: Path, protocol: Protocol) -> None:
    """Under a running member, while a refused token pauses intake, while all members are stopped, and with another
    number of partitions: nothing is sent twice, and the log and /status say why the records are read."""
    shop = Shop(kafka, api, tmp_path, protocol)
    shop.write("old", OLD)
    with shop.service() as process:
        process.until_settled(OLD)
        shop.until_committed(process, OLD)
        # From the old offset on, 200 of 700 records would never be read.
        shop.recreate("running")
        shop.until_delivered(process, 1)
        [reported] = renewals(process)
        assert (reported["level"], reported["topic"], reported["partitions"]) == ("error", shop.topic, 1)
        assert process.status()["counts"]["topics_made_anew"][shop.topic] >= 1
        shop.until_committed(process, NEW)

        # Without intake no fetch can show that the topic is another one.
        api.set_token("another")
        late = shop.write("late", 10)
        process.until_logged("halted")
        process.until(lambda: process.status()["room"] == 0, "no room")
        shop.expected.difference_update(late)
        shop.recreate("paused")
        process.until(lambda: len(renewals(process)) > 1, "the word of a new topic")
        api.set_token(TOKEN)
        shop.until_delivered(process, 2)
        shop.until_committed(process, NEW)
        assert process.stop()[0] == 0

    # An offset of the old topic that is there at the next start (a broker keeps it, or takes it late) does not count.
    held = committed(kafka, shop.group, shop.topic)
    shop.recreate("stopped")
    consumer = Consumer({**kafka.config, "group.id": shop.group, "log_level": 0})
    old = RawPartition(shop.topic, 0, held.offset, metadata=held.metadata)
    consumer.commit(offsets=[old], asynchronous=False)
    consumer.close()
    with shop.service() as process:
        shop.until_delivered(process, 1)
        shop.until_committed(process, NEW)

        shop.recreate("divided", partitions=3)
        shop.until_delivered(process, 2)
        assert process.stop()[0] == 0
