"""``pinstream draft --topic`` reads the newest records of a topic, without a group, in each wire format."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.processes import bare_environment, command
from tests.end_to_end.records import commerce_event, ndjson, new_topic
from tests.support.kafka.harness import Kafka

ROOT = Path(__file__).parents[3]


def test_a_topic_is_read_without_a_group(kafka: Kafka, tmp_path: Path) -> None:
    """The draft is that of the same records in a file; an empty topic is one line that says so."""
    env = {**bare_environment(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    schema, topic, sample = (
        ROOT / "schemas" / "commerce_event.avsc",
        new_topic(kafka),
        tmp_path / "sample.ndjson",
    )
    sample.write_text(ndjson([commerce_event(f"e-{number}") for number in range(30)]))
    empty = command("draft", str(schema), "--topic", topic, env=env)
    assert (empty.returncode, empty.stdout) == (1, "")
    assert f"{topic}: no record can be read" in empty.stderr
    assert command("produce", str(sample), "--topic", topic, env=env).returncode == 0
    of_topic = command("draft", str(schema), "--topic", topic, env=env)
    of_file = command("draft", str(schema), "--sample", str(sample), env=env)
    assert of_topic.returncode == of_file.returncode == 0, of_topic.stderr
    assert "# It saw 30 records." in of_topic.stdout
    assert of_topic.stdout == of_file.stdout
