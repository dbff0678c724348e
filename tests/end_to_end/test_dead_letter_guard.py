"""A wrong mapping meets a real topic: intake stops and says so, and once that is seen to nothing is lost or twice."""

from __future__ import annotations

from pathlib import Path

from consumer.core.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import dead_letters, generated, new_group, new_topic, value_of, write_generated
from tests.kafka.harness import Kafka

SAMPLE = 200
RECORDS = 4000


def test_a_poisoned_topic_stops_intake_and_is_finished_later(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Log, page, readiness and metrics say why; it stays healthy, stops at once, and leaves all that is open open."""
    topic, group = new_topic(kafka), new_group()
    generator, events = generated(RECORDS, invalid=0.8)
    write_generated(kafka, topic, events)
    broken = sorted(value_of(one) for one in events if one.defect)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}")

    with Process(tmp_path, "run", env=env) as first:
        line = first.until_logged("dead_letter_guard")
        assert (line["level"], line["topic"], line["of"]) == ("error", topic, SAMPLE)
        assert 0.5 < line["share"] <= 1
        assert line["mostly"].split()[0] in ("decode", "convert")
        guard = first.until(lambda: first.status()["guard"], "the guard on /status")
        assert guard["topic"] == topic
        assert guard["rejected"] == round(line["share"] * SAMPLE)
        assert first.get("/healthz")[0] == 200
        code, why = first.get("/readyz")
        assert code == 503
        assert f"of the latest {SAMPLE} of {topic} would be dead letters" in why
        assert "pinstream_dead_letter_guard 1.0" in first.get("/metrics")[1]
        code, seconds = first.stop()
        assert code == 0
        assert seconds < 5
        left = first.log[-1]
        assert left["event"] == "stopped"
        assert left["read"] < RECORDS
    stored = [message.value() or b"" for message, _ in dead_letters(kafka, topic)]
    assert len(stored) == left["dead_lettered"]
    assert len(stored) < len(broken)

    # Somebody has looked at them: they are what they are.
    with Process(tmp_path, "run", env={**env, "PINSTREAM_DEAD_LETTER_SHARE": "1"}) as second:
        second.until_settled(RECORDS - left["read"])
        assert second.stop()[0] == 0
    assert sorted(message.value() or b"" for message, _ in dead_letters(kafka, topic)) == broken
    counts = api.counts()
    assert counts.accepted_events == counts.distinct_event_ids == generator.tally[Disposition.DELIVERED]
