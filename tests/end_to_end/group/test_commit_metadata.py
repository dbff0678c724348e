"""Brokers that accept less metadata with a commit than Kafka's default: offsets are committed all the same, and
the log says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.shop import Shop
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka, committed

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]


def test_a_broker_that_takes_no_metadata(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``offset.metadata.max.bytes=0``: no commit with any byte of it succeeds, so commits go without; told once.

    `kafka` is there for its reasons to skip: this broker is the test's own.
    """
    assert kafka
    with RealBroker(offset_metadata_max_bytes=0) as broker:
        own = Kafka(broker.bootstrap_servers, "real")
        shop = Shop(own, api, tmp_path, partitions=1)
        shop.write_orders(50)
        with shop.run() as process:
            process.until_settled(50)
            process.until(lambda: shop.committed == 50, "the offset")
            reported = [one for one in process.log if one["event"] == "commit_metadata_refused"]
            assert [(one["level"], one["left"]) for one in reported] == [("warning", "nothing")]
            assert process.status()["commit_metadata"] == "nothing"
        assert not committed(own, shop.group, shop.topic).metadata
