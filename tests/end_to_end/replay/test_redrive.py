"""``pinstream dead-letters redrive`` end to end: events go straight to the platform, and each letter is marked
when it is settled."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from consumer.engine.model import Stage
from tests.end_to_end.api import Api
from tests.end_to_end.processes import (
    ROOT,
    Process,
    command,
    last_error,
    run_environment,
    the_one_line,
)
from tests.end_to_end.records import (
    ENCODER,
    commerce_event,
    new_group,
    new_topic,
    records_on,
    write,
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
)
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, produce
from tests.support.limits import LATE


def test_delivered_marked_and_its_topic_left_alone(each_kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Each letter's event is delivered once; its source topic gets nothing; a second redrive finds nothing to
    do. A dry run before says the same, needs nothing but Kafka, and sends nothing."""
    topic, group = new_topic(each_kafka), new_group()
    bury(each_kafka, [letter(topic, number) for number in range(300)])
    said = asked("redrive", "--dry-run", env=kafka_environment(tmp_path, each_kafka, topic, group))
    assert (said["redriven"], api.calls) == (300, 0)
    env = run_environment(tmp_path, each_kafka, topic, group, api.url)
    did = asked("redrive", env=env)
    assert did == {**said, "dry_run": False, "ledger": did["ledger"]}
    assert (did["matched"], did["redriven"], did["left"]) == (300, 300, 0)
    assert (did["ledger"]["read"], did["ledger"]["delivered"]) == (300, 300)
    assert api.accepted() == event_ids(300)
    assert records_on(each_kafka, topic) == 0
    again = asked("redrive", env=env)
    assert (again["done_before"], again["ledger"]["read"]) == (300, 0)
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (0, 300)


@pytest.mark.real_kafka
def test_after_the_mapping_is_corrected(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A wrong mapping makes dead letters; with the right one those with the chosen code are delivered; the
    others wait."""
    topic, group = new_topic(kafka), new_group()
    events = [commerce_event(f"e{number}", event_type="sold") for number in range(40)]
    events += [commerce_event(f"old-{number}", occurred_at=10**12) for number in range(3)]
    write_events(kafka, topic, events)
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as process:
        assert process.until_settled(43)["dead_lettered"] == 43
        assert process.stop()[0] == 0
    (tmp_path / "m.toml").write_text('[event_names]\nsold = "checkout"\n')
    corrected = {**env, "PINSTREAM_MAPPING_FILE": str(tmp_path / "m.toml")}
    did = asked("redrive", "--code", "unknown_event_name", env=corrected)
    assert (did["matched"], did["redriven"], did["ledger"]["delivered"]) == (40, 40, 40)
    assert api.accepted() == {f"e{number}": 1 for number in range(40)}
    assert records_on(kafka, topic) == 43
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (3, 40)


def test_sources_in_kafka_are_the_origin_s(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A record dies under a wrong mapping; redriven under the right one, its key, headers, time, topic, partition and
    offset are those that it had, not the letter's."""
    topic, group = new_topic(kafka), new_group()
    ahead = [commerce_event(f"ahead-{number}") for number in range(3)]
    values = [ENCODER.encode(one) for one in (*ahead, commerce_event("died", event_type="sold"))]
    at = int(time.time() * 1000) - 60_000
    headers = [("ce_source", b"till"), ("pinstream.code", b"own")]
    write(kafka, topic, ((b"c-7", one) for one in values), partition=2, timestamp=at, headers=headers)
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as process:
        assert process.until_settled(4)["dead_lettered"] == 1
        assert process.stop()[0] == 0
    (tmp_path / "m.toml").write_text(
        '[event_names]\nsold = "checkout"\n[fields]\n"app_info.install_time" = "@timestamp"\n'
        '"custom_data.content_name" = { join = ["@topic", "@partition", "@offset", "@key", "@header.ce_source"], '
        'with = "/" }\n'
    )
    did = asked("redrive", env=env | {"PINSTREAM_MAPPING_FILE": str(tmp_path / "m.toml")})
    assert did["ledger"]["delivered"] == 1
    [sent] = [one for one in api.events if one["event_id"] == "died"]
    assert sent["custom_data"]["content_name"] == f"{topic}/2/3/c-7/till"
    assert sent["app_info"]["install_time"] == at // 1000


def test_what_dies_again_is_a_letter_of_its_origin(each_kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A new letter has one more trip, the original place, time and headers; after three trips a redrive leaves it."""
    topic, group = new_topic(each_kafka), new_group()
    own = (("own", b"1"), ("own", None))
    broken = ENCODER.encode(commerce_event("old", occurred_at=10**12))
    bury(
        each_kafka,
        [letter(topic, 0), letter(topic, 5, value=broken, headers=own, stage=Stage.DELIVER, code="refused")],
    )
    env = run_environment(tmp_path, each_kafka, topic, group, api.url)
    for trip in range(1, 5):
        counts = asked("redrive", env=env)
        expected = (1 if trip > 1 else 2, 0) if trip <= 3 else (0, 1)
        assert (counts["redriven"], counts["looped"]) == expected
        assert counts["ledger"]["dead_lettered"] == (1 if trip <= 3 else 0)
    found = [one for one in committed(each_kafka, f"{topic}.dead-letters") if one.value() == broken]
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
    assert "redriven too often already" in command("dead-letters", "redrive", env=env).stdout
    assert asked("redrive", "--max-trips", "4", env=env)["redriven"] == 1


@pytest.mark.real_kafka
def test_filters_and_max_and_what_is_omitted(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Only chosen letters are redriven, never more than asked for, and the rest the next time; over two topics.
    A value that a letter lacks is read from its source topic."""
    topic, other, group = new_topic(kafka), new_topic(kafka), new_group()
    bury(
        kafka,
        [letter(topic, number, code="expired" if number % 2 else "no_identity") for number in range(40)],
    )
    bury(kafka, [letter(other, 200 + number) for number in range(5)])
    whole = letter(topic, 100)
    produce(kafka, topic, [whole.record.value], key=whole.record.key, timestamp=whole.record.timestamp)
    omitted = whole._replace(partition=0, record=whole.record._replace(offset=0))
    bury(kafka, [omitted, letter(topic, 104)], omitted=("value",))
    env = run_environment(tmp_path, kafka, f"{topic},{other}", group, api.url)
    first = asked("redrive", "--topic", topic, "--code", "expired", "--max", "7", env=env)
    assert (first["matched"], first["redriven"], first["left"]) == (20, 7, 13)
    assert len(api.accepted()) == 7
    times = ("--since", "2023-11-14T22:13:30Z", "--until", "2023-11-14T22:13:40Z")
    assert asked("redrive", "--dry-run", *times, env=env)["matched"] == 10
    second = asked("redrive", "--code", "no_identity", "--origin", f"{topic}:0", env=env)
    assert (second["matched"], second["redriven"]) == (10, 10)
    rest = asked("redrive", env=env)
    assert (rest["done_before"], rest["redriven"], rest["gone"]) == (17, 29, 1)
    assert sorted((one["matched"], one["left"]) for one in rest["topics"]) == [(5, 0), (42, 0)]
    assert f"{topic}.dead-letters:0:11 stays" in rest["notes"][0]
    others = {f"event-{number}": 1 for number in (100, *range(200, 205))}
    assert api.accepted() == event_ids(40) | others


@pytest.mark.real_kafka
def test_an_origin_that_is_gone_is_not_needed(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A source topic that was deleted is not needed: the events are delivered, and the topic is not created."""
    topic = f"{create_topic(kafka, 4)}-gone"
    create_topic(kafka, 4, f"{topic}.dead-letters")
    bury(kafka, [letter(topic, number) for number in range(5)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    assert asked("redrive", env=env)["redriven"] == 5
    assert api.accepted() == event_ids(5)
    assert topic not in AdminClient({**kafka.config, "log_level": 0}).list_topics(timeout=WITHIN).topics


@pytest.mark.real_kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_how_far_it_is(
    kafka: Kafka, api: Api, tmp_path: Path, number: signal.Signals
) -> None:
    """Letters that are settled are marked, one line says that it can be run again, exit code 1; the rest
    follows the next time."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, one) for one in range(400)])
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_BATCH_EVENTS="10")
    arguments = ("dead-letters", "redrive", "--rate", "100/s", "--json")
    with Process(tmp_path, *arguments, env=env) as process:
        process.until(lambda: api.calls > 5, "calls")
        code, seconds = process.stop(number)
        document = json.loads(process.stdout.splitlines()[-1])
        assert "run it again to go on" in last_error(process.stderr)
    assert (code, document["result"]) == (1, "interrupted")
    assert seconds < LATE
    assert document["redriven"] == len(api.accepted()) < 400
    assert document["redriven"] + document["left"] == 400
    rest = asked("redrive", env=env)
    assert (rest["done_before"], rest["left"], rest["ledger"]["duplicate"]) == (document["redriven"], 0, 0)
    assert api.accepted() == event_ids(400)


@pytest.mark.real_kafka
def test_two_at_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The second redrive takes over; the first ends with one clear line and exit code 1. Each letter is
    delivered; only what the first sent before it noticed may be sent twice."""
    topic, group = new_topic(kafka), new_group()
    # So many that the first is not done by itself before the second has started, however slow the machine is.
    count = 3_000
    bury(kafka, [letter(topic, one) for one in range(count)])
    limits = {"PINSTREAM_BATCH_EVENTS": "10", "PINSTREAM_CONCURRENCY": "2"}
    env = run_environment(tmp_path, kafka, topic, group, api.url, **limits)
    with Process(tmp_path, "dead-letters", "redrive", "--rate", "50/s", env=env) as first:
        # For three seconds: it marks what is done each second, and the second one is soon there.
        first.until(lambda: api.calls > 15, "calls")
        second = asked("redrive", env=env)
        assert first.wait() == 1
        assert "another redrive" in last_error(first.stderr)
        assert "redriven" in first.stdout
    assert second["left"] == 0
    assert second["done_before"] > 0
    assert second["done_before"] + second["redriven"] == count
    accepted = api.accepted()
    assert accepted.keys() == event_ids(count).keys()
    in_flight, until_the_next_mark = 2 * 10, 50
    assert sum(accepted.values()) - count <= in_flight + until_the_next_mark
    assert asked("list", env=env)["done"] == count


@pytest.mark.real_kafka
def test_beside_a_running_member(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``run`` goes on with the same key store and makes new dead letters meanwhile, which the redrive leaves.
    Its rate leaves part of the quota to ``run``."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(200)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as member:
        write_events(kafka, topic, [commerce_event(f"live-{number}") for number in range(50)])
        member.until_settled(50)
        begun = time.monotonic()
        with Process(tmp_path, "dead-letters", "redrive", "--rate", "50/s", "--json", env=env) as redrive:
            redrive.until(lambda: len(api.accepted()) > 60, "a letter")
            write_events(kafka, topic, [commerce_event(f"old{one}", occurred_at=10**12) for one in range(20)])
            write_events(kafka, topic, [commerce_event(f"later-{number}") for number in range(50)])
            ledger = member.until_settled(120)
            assert redrive.wait() == 0, redrive.stderr
            # 200 at 50 a second, of which those of one second may go at once.
            assert time.monotonic() - begun >= 3
            counts = json.loads(redrive.stdout.splitlines()[-1])
        assert member.stop()[0] == 0
    assert (ledger["delivered"], ledger["dead_lettered"]) == (100, 20)
    assert (counts["matched"], counts["redriven"], counts["ledger"]["delivered"]) == (200, 200, 200)
    live = {f"{name}-{number}": 1 for name in ("live", "later") for number in range(50)}
    assert api.accepted() == event_ids(200) | live
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (20, 200)


@pytest.mark.real_kafka
def test_a_compacted_dead_letter_topic_keeps_marks(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Marks have keys of their own and a value, so compaction keeps them."""
    topic = create_topic(kafka, 4)
    create_topic(kafka, 4, f"{topic}.dead-letters", cleanup_policy="compact")
    bury(kafka, [letter(topic, number) for number in range(20)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    for maximum in (8, 12):
        assert asked("redrive", "--max", str(maximum), env=env)["redriven"] == maximum
    marks: list[Any] = [
        one
        for one in committed(kafka, f"{topic}.dead-letters")
        if "pinstream.done" in dict(one.headers() or ())
    ]
    assert len({one.key() for one in marks}) == len(marks) >= 5
    assert all(one.value() for one in marks)


@pytest.mark.real_kafka
def test_a_wrong_mapping_does_not_kill_all_letters_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The dead-letter guard works here, too: the redrive stops and says why."""
    topic, group = new_topic(kafka), new_group()
    broken = [
        letter(topic, one, value=ENCODER.encode(commerce_event("x", event_type="odd"))) for one in range(200)
    ]
    bury(kafka, broken)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_DEAD_LETTER_SAMPLE="50")
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 1
    assert "would be dead letters, mostly for" in last_error(done.stderr)
    assert asked("list", env=env)["waiting"] >= 150


@pytest.mark.real_kafka
def test_nothing_personal_is_shown(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Whatever the letters hold, a redrive prints no key and no value."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, one, key=b"jane@example.org", value=b"jane@example.org") for one in range(9)])
    bury(kafka, [letter(topic, 12, key=b"jane@example.org")], omitted=("value",))
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 0
    assert "9 dead again" in done.stdout
    assert "jane" not in done.stdout + done.stderr


@pytest.mark.real_kafka
def test_a_refused_token_ends_it_with_its_own_exit_code(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """As in the service: when the patience is over it ends with exit code 3; the letters stay unmarked."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(5)])
    api.set_token("pina_another")
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_HALT_PATIENCE="2s")
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 3
    assert "PINTEREST_ACCESS_TOKEN" in last_error(done.stderr)
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (5, 0)


def test_what_is_done_is_shown_so(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``show`` says of a letter that it is done; marks do not count as letters."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, 0), letter(topic, 4)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    assert asked("redrive", "--max", "1", env=env)["redriven"] == 1
    places = [f"{topic}.dead-letters:0:{offset}" for offset in range(3)]
    assert [asked("show", place, env=env)["state"] for place in places[:2]] == ["done", "waiting"]
    done = command("dead-letters", "show", places[2], env=env)
    assert done.returncode == 2
    assert "a mark" in the_one_line(done.stderr)


def test_a_result_that_cannot_be_printed_is_said(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The disk is full: the work is done, one line says that the result could not be written; exit code 1."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, 0)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "consumer", "dead-letters", "redrive"],
            cwd=ROOT,
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "the result could not be printed" in last_error(done.stderr)
    assert asked("redrive", env=env)["done_before"] == 1


def test_no_broker_is_one_line(tmp_path: Path) -> None:
    """The line names the broker and says what to check."""
    kafka = Kafka("127.0.0.1:9", "external")
    env = run_environment(tmp_path, kafka, "orders", new_group(), "http://127.0.0.1:9")
    done = command("dead-letters", "redrive", env=env)
    assert done.returncode == 1
    assert "KAFKA_BOOTSTRAP_SERVERS" in last_error(done.stderr)
