"""Brokers that accept less metadata with a commit than Kafka's default: offsets are committed all the same, and
the log says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import commerce_event, committed_offsets, new_group, new_topic, write_events
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
        topic, group = new_topic(own, 1), new_group()
        write_events(own, topic, [commerce_event(f"event-{number}") for number in range(50)])
        with Process(tmp_path, "run", env=run_environment(tmp_path, own, topic, group, api.url)) as process:
            process.until_settled(50)
            process.until(lambda: committed_offsets(own, group, topic, 1) == [50], "the offset")
            reported = [one for one in process.log if one["event"] == "commit_metadata_refused"]
            assert [(one["level"], one["left"]) for one in reported] == [("warning", "nothing")]
            assert process.status()["commit_metadata"] == "nothing"
            assert process.stop()[0] == 0
        assert not committed(own, group, topic).metadata
