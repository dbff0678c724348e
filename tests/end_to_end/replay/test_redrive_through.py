"""``redrive --through-pipeline``: straight to the platform, marked when settled; what dies again is a letter again."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from consumer.demo.faults import Chance
from consumer.engine.model import Stage
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, last_error, run_environment
from tests.end_to_end.records import ENCODER, commerce_event, new_group, new_topic, records_on
from tests.end_to_end.replay.redriving import asked, bury, committed, headers_of, letter
from tests.support.kafka.harness import Kafka, produce

THROUGH = ("redrive", "--through-pipeline")
KILLS = 8
LETTERS = 600


def ids(count: int) -> dict[str, int]:
    """Each event of so many letters, once."""
    return {f"event-{number}": 1 for number in range(count)}


@pytest.mark.real_kafka
def test_delivered_marked_and_not_put_back(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Each letter is delivered once; its topic gets nothing; the second time there is nothing to do."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(300)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    said = asked(*THROUGH, "--dry-run", env=env)
    assert (said["redriven"], api.calls) == (300, 0)
    did = asked(*THROUGH, env=env)
    assert (did["matched"], did["redriven"], did["left"]) == (300, 300, 0)
    assert (did["ledger"]["delivered"], did["through_pipeline"]) == (300, True)
    assert api.accepted() == ids(300)
    assert records_on(kafka, topic) == 0
    again = asked(*THROUGH, env=env)
    assert (again["done_before"], again["ledger"]["read"]) == (300, 0)
    assert asked("redrive", env=env)["done_before"] == 300
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (0, 300)


@pytest.mark.real_kafka
def test_what_dies_again_is_a_letter_of_its_origin(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """One trip further, with the origin's place and time, and its own headers; after three the guard leaves it."""
    topic, group = new_topic(kafka), new_group()
    own = (("own", b"1"), ("own", None))
    broken = ENCODER.encode(commerce_event("old", occurred_at=10**12))
    bury(
        kafka,
        [letter(topic, 0), letter(topic, 5, value=broken, headers=own, stage=Stage.DELIVER, code="refused")],
    )
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    for trip in range(1, 5):
        counts = asked(*THROUGH, env=env)
        expected = (1 if trip > 1 else 2, 0) if trip <= 3 else (0, 1)
        assert (counts["redriven"], counts["looped"]) == expected
        assert counts["ledger"]["dead_lettered"] == (1 if trip <= 3 else 0)
    found = [one for one in committed(kafka, f"{topic}.dead-letters") if one.value() == broken]
    assert {one.partition() for one in found} == {1}
    headers = [headers_of(one) for one in found]
    texts: list[dict[str, Any]] = [dict(one) for one in headers]
    assert [one.get("pinstream.trips") for one in texts] == [None, b"1", b"2", b"3"]
    assert [one["pinstream.code"] for one in texts] == [b"refused", b"expired", b"expired", b"expired"]
    for one in texts:
        assert one["pinstream.topic"] == topic.encode()
        assert (one["pinstream.partition"], one["pinstream.offset"]) == (b"1", b"5")
        assert one["pinstream.timestamp"] == texts[0]["pinstream.timestamp"]
    assert [one for one in headers[3] if not one[0].startswith("pinstream.")] == [*own]
    assert len(headers[3]) == 2 + 9 + 2, "nothing piles up"
    assert texts[1]["pinstream.redriven"] == f"{topic}.dead-letters:1:0".encode()


@pytest.mark.real_kafka
def test_filters_and_max_and_what_is_left_out(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """As on the way back to the origin; a value that the letter lacks is read at its origin."""
    topic, group = new_topic(kafka), new_group()
    bury(
        kafka,
        [letter(topic, number, code="expired" if number % 2 else "no_identity") for number in range(40)],
    )
    whole = letter(topic, 100)
    produce(kafka, topic, [whole.record.value], key=whole.record.key, timestamp=whole.record.timestamp)
    omitted = whole._replace(partition=0, record=whole.record._replace(offset=0))
    bury(kafka, [omitted, letter(topic, 104)], left_out=("value",))
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    first = asked(*THROUGH, "--code", "expired", "--max", "7", env=env)
    assert (first["matched"], first["redriven"], first["left"]) == (20, 7, 13)
    assert len(api.accepted()) == 7
    rest = asked(*THROUGH, env=env)
    assert (rest["done_before"], rest["redriven"], rest["gone"]) == (7, 34, 1)
    assert api.accepted() == ids(40) | {"event-100": 1}


@pytest.mark.real_kafka
def test_interrupted_and_run_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGTERM: what is settled is marked, one line says so, exit code 1; the rest goes the next time."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(400)])
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_BATCH_EVENTS="10")
    arguments = ("dead-letters", *THROUGH, "--rate", "100/s", "--json")
    with Process(tmp_path, *arguments, env=env) as process:
        process.until(lambda: api.calls > 5, "calls")
        code, _ = process.stop(signal.SIGTERM)
        document = json.loads(process.stdout.splitlines()[-1])
        assert "run it again" in last_error(process.stderr)
    assert (code, document["result"]) == (1, "interrupted")
    assert document["redriven"] == len(api.accepted()) < 400
    rest = asked(*THROUGH, env=env)
    assert (rest["done_before"], rest["left"], rest["ledger"]["duplicate"]) == (document["redriven"], 0, 0)
    assert api.accepted() == ids(400)


@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_killed_again_and_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Kills at random moments: every letter is delivered, hardly any event twice, all are marked in the end."""
    dice = random.Random(9)
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(600)])
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, PINSTREAM_BATCH_EVENTS="5", PINSTREAM_CONCURRENCY="2"
    )
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.05)
    for _ in range(KILLS):
        calls = api.calls
        with Process(tmp_path, "dead-letters", *THROUGH, env=env) as process:
            process.until(lambda calls=calls: api.calls > calls or process.ended, "a call")  # type: ignore[misc]
            time.sleep(dice.uniform(0.0, 0.5))
            process.kill()
    assert 0 < len(api.accepted()) < 600
    api.set_faults()
    last = asked(*THROUGH, env=env)
    assert last["left"] == 0
    accepted = api.accepted()
    assert accepted.keys() == ids(600).keys()
    # What a kill finds in flight: accepted, and its key not stored.
    assert sum(accepted.values()) - 600 <= KILLS * 2 * 5
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (0, 600)


@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_killed_where_letters_die_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The mapping is still wrong: killed at random, no letter is there twice, none is missing."""
    dice = random.Random(4)
    topic, group = new_topic(kafka), new_group()
    broken = ENCODER.encode(commerce_event("x", event_type="odd"))
    bury(kafka, [letter(topic, number, value=broken) for number in range(LETTERS)])
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_DEAD_LETTER_SHARE="1")
    arguments = ("dead-letters", *THROUGH, "--rate", "300/s", "--max-trips", "50")
    killed = 0
    for _ in range(KILLS):
        before = len(committed(kafka, f"{topic}.dead-letters"))
        with Process(tmp_path, *arguments, env=env) as process:
            process.until(
                lambda before=before: (
                    len(committed(kafka, f"{topic}.dead-letters")) > before or process.ended
                ),  # type: ignore[misc]
                "a letter",
            )
            time.sleep(dice.uniform(0.0, 0.4))
            killed += not process.ended
            process.kill()
    assert killed
    asked(*THROUGH, "--max-trips", "50", env=env)
    letters: Counter[tuple[Any, ...]] = Counter()
    for message in committed(kafka, f"{topic}.dead-letters"):
        texts = dict(headers_of(message))
        if "pinstream.stage" in texts:
            names = ("pinstream.partition", "pinstream.offset", "pinstream.trips")
            letters[tuple(texts.get(name) for name in names)] += 1
    assert [one for one, count in letters.items() if count > 1] == []
    listed = asked("list", env=env)
    assert listed["waiting"] == LETTERS
    assert listed["waiting"] + listed["done"] == sum(letters.values())


@pytest.mark.real_kafka
def test_another_redrive_takes_over(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Whichever way it goes back: this one stops with one clear line."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(400)])
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_BATCH_EVENTS="10")
    with Process(tmp_path, "dead-letters", *THROUGH, "--rate", "50/s", env=env) as process:
        process.until(lambda: api.calls > 3, "calls")
        second = asked("redrive", env=env)
        assert process.wait() == 1
        assert "another redrive" in last_error(process.stderr)
    assert second["left"] == 0
    assert asked("list", env=env)["waiting"] == 0


@pytest.mark.real_kafka
def test_a_wrong_mapping_does_not_kill_all_letters_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The guard against poison holds here too: it stops, and says why."""
    topic, group = new_topic(kafka), new_group()
    broken = [
        letter(topic, one, value=ENCODER.encode(commerce_event("x", event_type="odd"))) for one in range(200)
    ]
    bury(kafka, broken)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_DEAD_LETTER_SAMPLE="50")
    done = command("dead-letters", *THROUGH, env=env)
    assert done.returncode == 1
    assert "dead letters again" in last_error(done.stderr)
    assert asked("list", env=env)["waiting"] >= 150


@pytest.mark.real_kafka
def test_nothing_personal_is_shown(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """No key, no value, in nothing that it says."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, one, key=b"jane@example.org", value=b"jane@example.org") for one in range(9)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    done = command("dead-letters", *THROUGH, env=env)
    assert done.returncode == 0
    assert "9 dead once more" in done.stdout
    assert "jane" not in done.stdout + done.stderr


@pytest.mark.real_kafka
def test_a_refused_token_ends_it_with_its_own_exit_code(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """As in the service: patience runs out, exit code 3; the letters wait, unmarked."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(5)])
    api.set_token("pina_another")
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_HALT_PATIENCE="2s")
    done = command("dead-letters", *THROUGH, env=env)
    assert done.returncode == 3
    assert "PINTEREST_ACCESS_TOKEN" in last_error(done.stderr)
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (5, 0)
