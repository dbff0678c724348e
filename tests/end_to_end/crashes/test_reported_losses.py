"""Records that Kafka removed before they were read: log, /status and /metrics say how many."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.end_to_end.processes import Process
from tests.end_to_end.shop import NewShop
from tests.support.kafka.harness import WITHIN, commit


def metric(process: Process, name: str) -> float:
    """A counter without labels, as Prometheus reads it."""
    lines = process.get("/metrics")[1].splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
    return float(value)


@pytest.mark.real_kafka
def test_what_retention_removed_is_reported(new_shop: NewShop) -> None:
    """Committed at 5, the log begins at 20: the ten records that are left are delivered, at most fifteen are
    missing, and there is no lag."""
    shop = new_shop(partitions=1)
    shop.write_orders(30)
    commit(shop.kafka, shop.group, shop.topic, 5)
    place, admin = TopicPartition(shop.topic, 0, 20), AdminClient({**shop.kafka.config, "log_level": 0})
    admin.delete_records([place])[place].result(WITHIN)
    with shop.run() as process:
        process.until_settled(10)
        counted = process.status()["counts"]["removed_unread"]
        assert counted == metric(process, "pinstream_removed_unread_records_total") == 15
        process.until(lambda: process.status()["partitions"][0]["lag"] == 0, "no lag")
    [line] = [one for one in process.log if one["event"] == "records_removed_unread"]
    assert (line["level"], line["topic"], line["partition"]) == ("error", shop.topic, 0)
    assert (line["expected"], line["beginning"], line["at_most"]) == (5, 20, 15)
    assert shop.api.counts().accepted_events == 10
