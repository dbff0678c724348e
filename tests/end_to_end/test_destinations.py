"""A sandbox first, as in the README, then another API, with one state folder. Each gets every event once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.harness import Kafka

RECORDS = 100


def test_a_sandbox_first_and_then_another_api_on_one_folder(
    kafka: Kafka, servers: Loop, api: Api, tmp_path: Path
) -> None:
    """What one destination received is no duplicate for another; the same holds for test mode."""
    topic = new_topic(kafka)
    write_events(kafka, topic, [commerce_event(f"order-{number}") for number in range(RECORDS)])
    with Api(servers) as other:
        runs = [
            (api.url, "false", "delivered"),
            (other.url, "true", "delivered"),
            (other.url, "false", "delivered"),
            (other.url + "/", "false", "duplicate"),
            (api.url, "false", "duplicate"),
        ]
        for url, test_mode, disposition in runs:
            env = run_environment(tmp_path, kafka, topic, new_group(), url, PINTEREST_TEST_MODE=test_mode)
            with Process(tmp_path, "run", env=env) as process:
                assert process.until_settled(RECORDS)[disposition] == RECORDS
                assert process.stop()[0] == 0
        expected = Counter({f"order-{number}": 1 for number in range(RECORDS)})
        assert api.accepted() == expected
        assert other.accepted() == expected
