"""A wrong mapping meets a real topic: intake stops and says so, and once it is corrected nothing is lost or
sent twice."""

from __future__ import annotations

import json
from pathlib import Path

from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, last_error, run_environment
from tests.end_to_end.records import (
    commerce_event,
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    value_of,
    write_events,
    write_generated,
)
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE

SAMPLE = 200
RECORDS = 4000
HEALTHY = 8000


def test_a_poisoned_topic_stops_intake_and_is_finished_later(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Log, page, readiness and metrics say why; the process stays healthy, stops at once, and leaves open
    records open."""
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
        assert line["cause"] in ("schema", "mapping")
        guard = first.until(lambda: first.status()["guard"], "the guard on /status")
        assert guard["topic"] == topic
        assert guard["rejected"] == round(line["share"] * SAMPLE)
        assert guard["cause"] == line["cause"]
        assert first.get("/healthz")[0] == 200
        code, why = first.get("/readyz")
        assert code == 503
        assert f"of the latest {SAMPLE} of {topic} would be dead letters" in why
        assert "pinstream_dead_letter_guard 1.0" in first.get("/metrics")[1]
        code, seconds = first.stop()
        assert code == 0
        assert seconds < LATE
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


def test_a_healthy_topic_may_be_read_again_and_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """3.5 of 100 records are refused, by the API or by conversion. Then all the others are duplicates at once,
    and what the API refuses comes back last and together; after a stop in the middle it is all that is left; a replay
    sees it as well. The guard never speaks."""
    topic, group = new_topic(kafka), new_group()
    api.set_faults(marker="refused", marked="failed")
    refused = [commerce_event(f"refused-{n}") for n in range(HEALTHY * 25 // 1000)]
    nobody = [commerce_event(f"nobody-{n}", customer={"emails": []}) for n in range(HEALTHY // 100)]
    good = [commerce_event(f"good-{n}") for n in range(HEALTHY - len(refused) - len(nobody))]
    every = len(good) // (len(refused) + len(nobody))
    bad = iter([one for pair in zip(refused, nobody, strict=False) for one in pair] + refused[len(nobody) :])
    mixed = [
        one for n, event in enumerate(good) for one in (event, *([next(bad, None)] if n % every == 0 else []))
    ]
    write_events(kafka, topic, [one for one in mixed if one is not None])
    env = run_environment(
        tmp_path,
        kafka,
        topic,
        group,
        api.url,
        PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}",
        PINSTREAM_LINGER="2s",
    )
    with Process(tmp_path, "run", env=env) as first:
        assert first.until_settled(HEALTHY)["delivered"] == len(good)
        assert first.stop()[0] == 0

    rewound = command("offsets", "set", "--to", "beginning", "--yes", env=env)
    assert rewound.returncode == 0, rewound.stderr
    # One call a minute: what is refused waits for its batch, and is left when it stops.
    with Process(tmp_path, "run", env={**env, "PINSTREAM_CALLS_PER_MINUTE": "1"}) as second:
        second.until(lambda: second.ledger()["duplicate"] == len(good), "all duplicates")
        assert second.stop()[0] == 0
    with Process(tmp_path, "run", env=env) as third:
        third.until(lambda: sum(committed_offsets(kafka, group, topic)) == HEALTHY, "all committed")
        assert third.status()["guard"] is None
        third.until(lambda: third.get("/readyz")[0] == 200, "the group assigns its partitions")
        assert third.stop()[0] == 0
        assert not [line for line in second.log + third.log if line["event"] == "dead_letter_guard"]

    replayed = command(
        "replay", "--topic", topic, "--from", "beginning", "--to", "end", "--json", env=env, timeout=240
    )
    assert replayed.returncode == 0, replayed.stderr
    document = json.loads(replayed.stdout.splitlines()[-1])
    assert document["result"] == "complete"
    assert document["ledger"]["duplicate"] == len(good)
    assert api.counts().accepted_events == len(good)


def test_a_destination_that_refuses_everything_is_named(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The message blames the destination, not the mapping: in the log, on /readyz and /status, and at the end
    of a replay; no event becomes a dead letter."""
    # In one partition, so that they are fetched at once and go in one call: all are refused before a letter is written.
    topic, group = new_topic(kafka, 1), new_group()
    api.set_faults(marker="order", marked="failed")
    write_events(kafka, topic, (commerce_event(f"order-{n}") for n in range(1000)))
    env = run_environment(
        tmp_path,
        kafka,
        topic,
        group,
        api.url,
        PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}",
        PINSTREAM_LINGER="2s",
    )
    with Process(tmp_path, "run", env=env) as process:
        line = process.until_logged("dead_letter_guard")
        guard = process.status()["guard"]
        code, why = process.get("/readyz")
        assert code == 503
        assert process.stop()[0] == 0
    replayed = command("replay", "--topic", topic, "--from", "beginning", "--to", "end", env=env, timeout=240)
    assert replayed.returncode == 1
    for said in (line["advice"], guard["advice"], why, last_error(replayed.stderr)):
        assert "why Pinterest refuses" in said
        assert "mapping" not in said
    assert (line["cause"], guard["cause"]) == ("destination", "destination")
    assert dead_letters(kafka, topic) == []
