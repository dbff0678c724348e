"""A sandbox first, as in the README, then another API, with one state folder. Each gets every event once. And a gateway
that is declared to be the platform."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import Process, command, run_environment
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


def test_a_gateway_that_is_declared_to_be_the_platform(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """What was delivered through its URL before is a duplicate once PINSTREAM_DESTINATION says so: in the same group,
    for copies that come later; in another group; and in a replay."""
    topic, group = new_topic(kafka), new_group()
    orders = [commerce_event(f"order-{number}") for number in range(RECORDS)]
    before = run_environment(tmp_path, kafka, topic, group, api.url)
    write_events(kafka, topic, orders)
    with Process(tmp_path, "run", env=before) as process:
        assert process.until_settled(RECORDS)["delivered"] == RECORDS
        assert process.stop()[0] == 0
    declared = {**before, "PINSTREAM_DESTINATION": "pinterest"}
    write_events(kafka, topic, orders)
    for env, records in ((declared, RECORDS), ({**declared, "KAFKA_GROUP_ID": new_group()}, 2 * RECORDS)):
        with Process(tmp_path, "run", env=env) as process:
            assert process.until_settled(records)["duplicate"] == records
            assert process.status()["committed_elsewhere"] == 0
            assert process.stop()[0] == 0
    replayed = command("replay", "--topic", topic, "--from", "beginning", "--to", "end", env=declared)
    assert replayed.returncode == 0, replayed.stderr
    assert api.accepted() == Counter({f"order-{number}": 1 for number in range(RECORDS)})
