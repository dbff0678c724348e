"""``pinstream dead-letters redrive`` end to end: back on the origin, read by ``run``, delivered once."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, last_error, run_environment, the_one_line
from tests.end_to_end.records import (
    commerce_event,
    new_group,
    new_topic,
    records_on,
    write_events,
)
from tests.end_to_end.replay.redriving import (
    asked,
    bury,
    committed,
    event_ids,
    headers_of,
    kafka_environment,
    letter,
    redriven,
)
from tests.support.kafka.harness import Kafka, create_topic, produce
from tests.support.limits import LATE

SLOWLY = (sys.executable, "-m", "tests.end_to_end.replay.redrive_points", "never")
"""Lots of ten letters, so that there are many moments between them."""


@pytest.mark.real_kafka  # the embedded broker ends transactions with records that have no checksum
def test_back_to_the_origin_and_delivered(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A wrong mapping makes dead letters; mended, they are put back and delivered, each once; then all is done."""
    topic, group = new_topic(kafka), new_group()
    events = [commerce_event(f"e{number}", event_type="sold") for number in range(40)]
    events += [commerce_event(f"old-{number}", occurred_at=10**12) for number in range(3)]
    write_events(kafka, topic, events)
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as process:
        assert process.until_settled(43)["dead_lettered"] == 43
        assert process.stop()[0] == 0

    wanted = ("--code", "unknown_event_name")
    said = asked("redrive", *wanted, "--dry-run", env=env)
    assert records_on(kafka, topic) == 43
    did = asked("redrive", *wanted, env=env)
    assert {**said, "dry_run": False} == did
    assert (did["matched"], did["redriven"], did["left"]) == (40, 40, 0)
    assert asked("redrive", *wanted, env=env)["done_before"] == 40

    (tmp_path / "m.toml").write_text('[event_names]\nsold = "checkout"\n')
    mended = {**env, "PINSTREAM_MAPPING_FILE": str(tmp_path / "m.toml")}
    with Process(tmp_path, "run", env=mended) as process:
        ledger = process.until_settled(40)
        assert process.stop()[0] == 0
    assert ledger["delivered"] == 40
    assert api.accepted() == {f"e{number}": 1 for number in range(40)}
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (3, 40)


@pytest.mark.real_kafka
def test_copies_are_as_the_records_were(kafka: Kafka, tmp_path: Path) -> None:
    """Partition, key, value, own headers; none of the headers that told of the death."""
    topic = new_topic(kafka)
    own = (("own", b"\x80"), ("own", None))
    letters = [letter(topic, number, headers=own) for number in range(8)]
    letters.append(letter(topic, 8, key=None, value=None))
    bury(kafka, letters)
    assert asked("redrive", env=kafka_environment(tmp_path, kafka, topic, new_group()))["redriven"] == 9
    found = committed(kafka, topic)
    assert {(one.partition(), one.key(), one.value()) for one in found} == {
        (one.partition, one.record.key, one.record.value) for one in letters
    }
    for one in found:
        headers = headers_of(one)
        assert headers[:-2] == ([*own] if one.value() is not None else [])
        assert [name for name, _ in headers[-2:]] == ["pinstream.trips", "pinstream.redriven"]


def test_a_record_that_dies_again_and_again_is_left_in_the_end(
    kafka: Kafka, api: Api, tmp_path: Path
) -> None:
    """Its trips go up with each redrive; at three the guard leaves it, and says so."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, [commerce_event("old", occurred_at=10**12)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    for trip in range(5):
        if trip <= 3:
            with Process(tmp_path, "run", env=env) as process:
                process.until_settled(1)
                assert process.stop()[0] == 0
        counts = asked("redrive", env=env)
        expected = {"redriven": 1, "looped": 0} if trip < 3 else {"redriven": 0, "looped": 1}
        assert {name: counts[name] for name in expected} == expected
        assert counts["done_before"] == min(trip, 3)
    headers = [dict(headers_of(one)) for one in committed(kafka, f"{topic}.dead-letters")]
    trips = [one.get("pinstream.trips", b"0") for one in headers if "pinstream.code" in one]
    assert trips == [b"0", b"1", b"2", b"3"]
    table = command("dead-letters", "redrive", env=env)
    assert "put back too often already" in table.stdout
    assert asked("redrive", "--max-trips", "4", env=env)["redriven"] == 1


def test_filters_and_max(kafka: Kafka, tmp_path: Path) -> None:
    """Only what is meant; never more than asked for; the rest the next time."""
    topic, other = new_topic(kafka), new_topic(kafka)
    bury(
        kafka,
        [letter(topic, number, code="expired" if number % 3 else "no_identity") for number in range(60)],
    )
    bury(kafka, [letter(other, number) for number in range(5)])
    env = kafka_environment(tmp_path, kafka, f"{topic},{other}", new_group())
    first = asked("redrive", "--code", "no_identity", "--origin", f"{topic}:0", env=env)
    assert (first["matched"], first["redriven"]) == (5, 5)
    second = asked("redrive", "--topic", topic, "--max", "7", env=env)
    assert (second["redriven"], second["done_before"], second["left"]) == (7, 5, 48)
    times = ("--since", "2023-11-14T22:13:30Z", "--until", "2023-11-14T22:13:40Z")
    assert asked("redrive", *times, env=env)["matched"] == 10
    last = asked("redrive", env=env)
    assert sorted((one["matched"], one["left"]) for one in last["topics"]) == [(5, 0), (60, 0)]
    assert event_ids(committed(kafka, topic), 60) == dict.fromkeys(range(60), 1)
    assert event_ids(committed(kafka, other), 5) == dict.fromkeys(range(5), 1)


@pytest.mark.real_kafka
def test_what_the_letter_lacks_comes_from_the_origin(kafka: Kafka, tmp_path: Path) -> None:
    """A record too large for its dead-letter topic goes back whole while its origin has it; else it is named."""
    topic = new_topic(kafka)
    sent = letter(topic, 0, headers=(("own", b"1"),))
    produce(
        kafka,
        topic,
        [sent.record.value],
        key=sent.record.key,
        headers=[("own", b"1")],
        timestamp=sent.record.timestamp,
    )
    bury(kafka, [sent, letter(topic, 4)], left_out=("value", "headers"))
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    counts = asked("redrive", env=env)
    assert (counts["redriven"], counts["gone"]) == (1, 1)
    assert f"{topic}.dead-letters:0:1 stays" in counts["notes"][0]
    original, copy = committed(kafka, topic)
    assert (copy.key(), copy.value()) == (original.key(), original.value())
    assert headers_of(copy)[0] == ("own", b"1")


@pytest.mark.real_kafka
def test_what_the_origin_takes_no_more_stays(kafka: Kafka, tmp_path: Path) -> None:
    """Named and counted; all others go."""
    topic = create_topic(kafka, 4, max_message_bytes="2000")
    create_topic(kafka, 4, f"{topic}.dead-letters")
    env = kafka_environment(tmp_path, kafka, topic, new_group(), KAFKA_COMPRESSION_TYPE="none")
    bury(kafka, [letter(topic, number, value=b"x" * (3000 if number == 8 else 100)) for number in range(20)])
    counts = asked("redrive", env=env)
    assert (counts["redriven"], counts["refused"]) == (19, 1)
    assert f"{topic}.dead-letters:0:2 stays" in counts["notes"][0]
    assert 8 not in event_ids(committed(kafka, topic), 20)
    assert asked("redrive", env=env)["done_before"] == 19


@pytest.mark.real_kafka
def test_an_origin_that_is_gone_keeps_its_letters(kafka: Kafka, tmp_path: Path) -> None:
    """And is not created by it."""
    topic = create_topic(kafka, 4)
    create_topic(kafka, 4, f"{topic}-gone.dead-letters")
    bury(kafka, [letter(f"{topic}-gone", number) for number in range(5)])
    env = kafka_environment(tmp_path, kafka, f"{topic}-gone", new_group())
    counts = asked("redrive", env=env)
    assert (counts["matched"], counts["gone"]) == (5, 5)
    assert f"{topic}-gone is not there any more" in counts["notes"][0]
    assert asked("list", env=env)["waiting"] == 5


@pytest.mark.real_kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_how_far_it_is(kafka: Kafka, tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 1, what is done and that it can be run again; which then puts back the rest, each once."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, one) for one in range(200)])
    env = kafka_environment(tmp_path, kafka, topic, group)
    arguments = ("dead-letters", "redrive", "--rate", "10/s", "--json")
    with Process(tmp_path, *arguments, env=env, under=SLOWLY) as process:
        process.until(lambda: records_on(kafka, topic) > 20, "letters put back")
        code, seconds = process.stop(number)
        document, line = json.loads(process.stdout.splitlines()[-1]), last_error(process.stderr)
    assert (code, document["result"]) == (1, "interrupted")
    assert seconds < LATE
    assert 0 < document["redriven"] < 200
    assert document["redriven"] + document["left"] == 200
    assert "run it again to go on" in line
    assert sum(redriven(kafka, topic).values()) == document["redriven"]
    rest = asked("redrive", env=env)
    assert (rest["done_before"], rest["left"]) == (document["redriven"], 0)
    assert event_ids(committed(kafka, topic), 200) == dict.fromkeys(range(200), 1)


@pytest.mark.real_kafka
def test_two_at_once(kafka: Kafka, tmp_path: Path) -> None:
    """The second takes over; the first ends with one clear line and exit code 1; each letter goes back once."""
    topic, group = new_topic(kafka), new_group()
    # So many that the first is not done by itself before the second has started, however slow the machine is.
    count = 3_000
    bury(kafka, [letter(topic, one) for one in range(count)])
    env = kafka_environment(tmp_path, kafka, topic, group)
    with Process(tmp_path, "dead-letters", "redrive", "--rate", "50/s", env=env, under=SLOWLY) as first:
        first.until(lambda: records_on(kafka, topic) > 30, "letters put back")
        second = asked("redrive", env=env)
        assert first.wait() == 1
        assert "another redrive" in the_one_line(first.stderr)
        assert "put back" in first.stdout
    assert second["left"] == 0
    assert second["done_before"] > 0
    assert second["done_before"] + second["redriven"] == count
    assert event_ids(committed(kafka, topic), count) == dict.fromkeys(range(count), 1)
    assert asked("list", env=env)["done"] == count


@pytest.mark.real_kafka
def test_what_comes_meanwhile_is_for_the_next_time(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """While ``run`` makes new dead letters of what is put back, a redrive ends, and puts each back once."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, [commerce_event(f"old{one}", occurred_at=10**12) for one in range(100)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as process:
        process.until_settled(100)
        counts = asked("redrive", "--rate", "200/s", env=env)
        assert (counts["matched"], counts["redriven"]) == (100, 100)
        process.until_settled(200)
        assert process.stop()[0] == 0
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (100, 100)


@pytest.mark.real_kafka
def test_a_compacted_dead_letter_topic_keeps_marks(kafka: Kafka, tmp_path: Path) -> None:
    """Marks have a key of their own and a value."""
    topic = create_topic(kafka, 4)
    create_topic(kafka, 4, f"{topic}.dead-letters", cleanup_policy="compact")
    bury(kafka, [letter(topic, number) for number in range(20)])
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    for most in (8, 12):
        assert asked("redrive", "--max", str(most), env=env)["redriven"] == most
    marks: list[Any] = [
        one
        for one in committed(kafka, f"{topic}.dead-letters")
        if "pinstream.done" in dict(one.headers() or ())
    ]
    assert len({one.key() for one in marks}) == len(marks) >= 5
    assert all(one.value() for one in marks)


def test_nothing_personal_is_shown(kafka: Kafka, tmp_path: Path) -> None:
    """Whatever the letters hold: no key and no value in anything a redrive says."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, one, key=b"jane@example.org", value=b"jane@example.org") for one in range(9)])
    bury(kafka, [letter(topic, 10, key=b"jane@example.org")], left_out=("value",))
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 0
    assert "jane" not in done.stdout + done.stderr


def test_no_broker_is_one_line(tmp_path: Path) -> None:
    """Which broker it is, and what to check."""
    env = kafka_environment(tmp_path, Kafka("127.0.0.1:9", "external"), "orders", new_group())
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 1
    assert "KAFKA_BOOTSTRAP_SERVERS" in last_error(done.stderr)
